#include "node/eval_words.h"

#include <assert.h>
#include <string.h>

#define N_LISTED 128u
#define N_SYLLABLE 60u

const char eval_noise[] =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. "
    "There and back again.";

static const char *const NOUN[N_LISTED] = {
    "castle",    "garden",  "letter",   "harbour",   "window",   "captain",
    "winter",    "river",   "mountain", "kitchen",   "market",   "lantern",
    "bridge",    "forest",  "church",   "village",   "carriage", "island",
    "teacher",   "soldier", "doctor",   "sailor",    "farmer",   "painter",
    "brother",   "sister",  "stranger", "neighbour", "servant",  "widow",
    "morning",   "evening", "summer",   "autumn",    "shadow",   "silence",
    "thunder",   "meadow",  "valley",   "desert",    "ocean",    "shore",
    "tower",     "palace",  "cottage",  "cellar",    "chamber",  "corridor",
    "staircase", "curtain", "candle",   "mirror",    "table",    "cushion",
    "basket",    "bottle",  "hammer",   "needle",    "ribbon",   "saddle",
    "feather",   "kettle",  "ladder",   "pocket",    "wallet",   "pistol",
    "sword",     "trumpet", "violin",   "hymn",      "poem",     "story",
    "journal",   "picture", "parcel",   "treasure",  "secret",   "promise",
    "journey",   "voyage",  "battle",   "wedding",   "funeral",  "festival",
    "holiday",   "dinner",  "supper",   "orchard",   "blossom",  "cherry",
    "apple",     "barley",  "butter",   "sugar",     "copper",   "silver",
    "marble",    "velvet",  "cotton",   "leather",   "timber",   "gravel",
    "pebble",    "crystal", "diamond",  "emerald",   "falcon",   "sparrow",
    "swallow",   "pigeon",  "spider",   "beetle",    "rabbit",   "badger",
    "donkey",    "horse",   "kitten",   "puppy",     "tiger",    "monkey",
    "salmon",    "oyster",  "anchor",   "rudder",    "compass",  "engine",
    "station",   "tunnel",
};

static const char *const ADJECTIVE[N_LISTED] = {
    "silent",   "ancient",   "brave",    "bitter",   "bright",   "broken",
    "calm",     "careful",   "clever",   "cold",     "curious",  "damp",
    "dark",     "distant",   "dusty",    "eager",    "early",    "empty",
    "endless",  "faint",     "faithful", "famous",   "fearful",  "fierce",
    "foolish",  "forgotten", "fragile",  "frozen",   "gentle",   "golden",
    "graceful", "grave",     "grey",     "guilty",   "handsome", "happy",
    "hasty",    "heavy",     "hidden",   "hollow",   "honest",   "humble",
    "hungry",   "idle",      "jealous",  "jolly",    "joyful",   "kind",
    "lame",     "late",      "lazy",     "little",   "lively",   "lonely",
    "lost",     "loud",      "lovely",   "lucky",    "merry",    "mighty",
    "modest",   "narrow",    "neat",     "nervous",  "noble",    "noisy",
    "obedient", "old",       "pale",     "patient",  "peaceful", "plain",
    "pleasant", "polite",    "poor",     "precious", "proud",    "purple",
    "quick",    "quiet",     "ragged",   "rapid",    "rare",     "restless",
    "rich",     "ripe",      "rough",    "round",    "royal",    "rusty",
    "sacred",   "sad",       "salty",    "scarlet",  "serious",  "shallow",
    "sharp",    "shy",       "simple",   "sleepy",   "slender",  "slow",
    "smooth",   "soft",      "solemn",   "sour",     "steady",   "steep",
    "stern",    "stormy",    "strange",  "stubborn", "sudden",   "sunny",
    "sweet",    "swift",     "tall",     "tender",   "thirsty",  "tidy",
    "tiny",     "tired",     "upright",  "vain",     "warm",     "weary",
    "wicked",   "wise",
};

static const char *const VERB[] = {
    "admired", "avoided",  "carried",  "crossed", "described", "examined",
    "feared",  "followed", "forgot",   "found",   "guarded",   "kept",
    "loved",   "missed",   "observed", "painted", "praised",   "remembered",
    "saw",     "searched", "sold",     "touched", "visited",   "watched",
};

static const char *const TIME[] = {
    "At last",         "In those days",   "After a while",
    "Long ago",        "Before the rain", "On the second day",
    "Towards evening", "For many years",  "In the spring",
    "Without a word",  "As I was told",   "To our surprise",
};

static const char *const PLACE[] = {
    "by the water",     "at the end of the road",
    "in the next room", "under the old trees",
    "on the hill",      "behind the wall",
    "near the coast",   "in the middle of town",
    "upon the stairs",  "beside the fire",
};

uint32_t eval_n_kind(enum eval_kind kind)
{
    switch (kind) {
    case EVAL_NOUN:
        return N_LISTED;
    case EVAL_PAIR:
        return N_LISTED * N_LISTED;
    case EVAL_DIGITS_5:
        return 90000;
    case EVAL_DIGITS_7:
        return 9000000;
    case EVAL_DIGITS_10:
    case EVAL_UUID:
        break;
    }
    return UINT32_MAX;
}

/* As InfiniteBench: a place is chosen and its digit is put in front of it. */
static void write_digits_10(const struct draw *draw, enum draw_what what,
                            uint32_t number, char *out)
{
    uint32_t n = 5;

    for (uint32_t i = 0; i < n; i++)
        out[i] = (char)('0' + draw_below(draw, what, 16 * number + i, 10));
    for (; n < 10; n++) {
        const uint32_t at = draw_below(draw, what, 16 * number + n, n);

        memmove(out + at + 1, out + at, n - at);
    }
    out[n] = '\0';
}

static void write_uuid(const struct draw *draw, enum draw_what what,
                       uint32_t number, char *out)
{
    uint32_t word[4];

    draw_bits(draw, what, number, word);
    (void)snprintf(out, EVAL_WORD_SIZE, "%08x-%04x-4%03x-%04x-%04x%08x",
                   word[0], word[1] >> 16, word[1] & 0xfffu,
                   (word[2] >> 16 & 0x3fffu) | 0x8000u, word[2] & 0xffffu,
                   word[3]);
}

void eval_write_kind(const struct draw *draw, enum draw_what what,
                     enum eval_kind kind, uint32_t number, char *out)
{
    uint32_t chosen = 0;

    if (kind == EVAL_UUID) {
        write_uuid(draw, what, number, out);
        return;
    }
    if (kind == EVAL_DIGITS_10) {
        write_digits_10(draw, what, number, out);
        return;
    }
    chosen = draw_distinct(draw, what, number, eval_n_kind(kind));
    if (kind == EVAL_NOUN)
        (void)snprintf(out, EVAL_WORD_SIZE, "%s", NOUN[chosen]);
    else if (kind == EVAL_PAIR)
        (void)snprintf(out, EVAL_WORD_SIZE, "%s-%s",
                       ADJECTIVE[chosen / N_LISTED], NOUN[chosen % N_LISTED]);
    else
        (void)snprintf(out, EVAL_WORD_SIZE, "%u",
                       chosen + eval_n_kind(kind) / 9);
}

void eval_write_letters(uint32_t number, char *out)
{
    for (uint32_t i = 0; i < 6; i++, number /= 26)
        out[i] = (char)('a' + number % 26);
    out[6] = '\0';
}

void eval_write_capitals(uint32_t number, uint32_t n_letter, char *out)
{
    for (uint32_t i = 0; i < n_letter; i++, number /= 26)
        out[i] = (char)('A' + number % 26);
    out[n_letter] = '\0';
}

/* Consonant and vowel; no listed word is made of three of these with an end. */
static void write_syllable(uint32_t number, char out[2])
{
    out[0] = "bdfgklmnprtv"[number / 5];
    out[1] = "aeiou"[number % 5];
}

void eval_write_word(uint32_t number, char *out)
{
    assert(number < EVAL_N_WORD);
    if (number < 2 * N_LISTED) {
        const uint32_t at = number / 2;

        (void)snprintf(out, EVAL_WORD_SIZE, "%s",
                       number % 2 ? ADJECTIVE[at] : NOUN[at]);
        return;
    }
    number -= 2 * N_LISTED;
    for (uint32_t i = 0; i < 3; i++, number /= N_SYLLABLE)
        write_syllable(number % N_SYLLABLE, out + 2 * (size_t)i);
    memcpy(out + 6, "x", 2);
}

void eval_write_form(const char *form, const struct eval_filling *filling,
                     FILE *to)
{
    for (; *form; form++) {
        if (*form != '%') {
            (void)fputc(*form, to);
            continue;
        }
        form++;
        assert(*form == 'k' || *form == 'v' || *form == 't');
        if (*form == 't')
            (void)fputs(filling->thing, to);
        else
            (void)fputs(*form == 'k' ? filling->key : filling->value, to);
    }
}

#define PICK(list, number)                                                     \
    ((list)[draw_below(draw, DRAW_WORD, 8 * sentence + (number),               \
                       sizeof(list) / sizeof((list)[0]))])

void eval_write_essay(const struct draw *draw, uint32_t number, FILE *to)
{
    const uint32_t sentence = number;

    switch (draw_below(draw, DRAW_WORD, 8 * sentence, 5)) {
    case 0:
        fprintf(to, "The %s %s %s the %s.", PICK(ADJECTIVE, 1), PICK(NOUN, 2),
                PICK(VERB, 3), PICK(NOUN, 4));
        break;
    case 1:
        fprintf(to, "%s, the %s %s the %s %s.", PICK(TIME, 1), PICK(NOUN, 2),
                PICK(VERB, 3), PICK(ADJECTIVE, 4), PICK(NOUN, 5));
        break;
    case 2:
        fprintf(to, "I knew the %s %s %s, but nobody %s it.",
                PICK(ADJECTIVE, 1), PICK(NOUN, 2), PICK(PLACE, 3),
                PICK(VERB, 4));
        break;
    case 3:
        fprintf(to, "It seemed to me that every %s %s the %s, as the %s does.",
                PICK(NOUN, 1), PICK(VERB, 2), PICK(NOUN, 3), PICK(NOUN, 4));
        break;
    default:
        fprintf(to, "%s we %s the %s, %s and %s, %s.", PICK(TIME, 1),
                PICK(VERB, 2), PICK(NOUN, 3), PICK(ADJECTIVE, 4),
                PICK(ADJECTIVE, 5), PICK(PLACE, 6));
        break;
    }
}
