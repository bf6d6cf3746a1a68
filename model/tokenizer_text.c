#include "model/tokenizer_parts.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

enum utf8_part utf8_next(const uint8_t *bytes, size_t n, size_t *out_n)
{
    const uint8_t first = bytes[0];
    uint8_t low = 0x80, high = 0xbf; /* of the second byte */
    size_t need;

    *out_n = 1;
    if (first < 0x80)
        return UTF8_WHOLE;
    if (first < 0xc2 || first > 0xf4)
        return UTF8_INVALID;
    need = first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
    /* No overlong forms, no surrogates, nothing above U+10FFFF. */
    if (first == 0xe0)
        low = 0xa0;
    else if (first == 0xed)
        high = 0x9f;
    else if (first == 0xf0)
        low = 0x90;
    else if (first == 0xf4)
        high = 0x8f;
    for (size_t i = 1; i < need; i++) {
        *out_n = i;
        if (i == n)
            return UTF8_PARTIAL;
        if (bytes[i] < low || bytes[i] > high)
            return UTF8_INVALID;
        low = 0x80;
        high = 0xbf;
    }
    *out_n = need;
    return UTF8_WHOLE;
}

enum status utf8_check(const char *text, size_t n)
{
    const uint8_t *bytes = (const uint8_t *)text;
    uint64_t eight;
    size_t length, at = 0;

    while (at < n) {
        if (n - at >= sizeof(eight)) {
            memcpy(&eight, bytes + at, sizeof(eight));
            if (!(eight & 0x8080808080808080u)) {
                at += sizeof(eight);
                continue;
            }
        }
        if (utf8_next(bytes + at, n - at, &length) != UTF8_WHOLE)
            return status_fail(STATUS_INVALID_ARGUMENT,
                               "text is not UTF-8 at byte %zu of %zu (0x%02x)",
                               at, n, bytes[at]);
        at += length;
    }
    return STATUS_OK;
}

bool codepoint_is_space(int32_t codepoint)
{
    switch (utf8proc_category(codepoint)) {
    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
        return true;
    default:
        return (codepoint >= '\t' && codepoint <= '\r') || codepoint == 0x85;
    }
}

bool codepoint_is_word(int32_t codepoint)
{
    switch (utf8proc_category(codepoint)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
        return true;
    default:
        /* Joiners, and the circled and squared letters: Other_Alphabetic. */
        return codepoint == 0x200c || codepoint == 0x200d ||
               (codepoint >= 0x24b6 && codepoint <= 0x24e9) ||
               (codepoint >= 0x1f130 && codepoint <= 0x1f149) ||
               (codepoint >= 0x1f150 && codepoint <= 0x1f169) ||
               (codepoint >= 0x1f170 && codepoint <= 0x1f189);
    }
}

int32_t codepoint_at(const char *text, size_t at, size_t *out_n)
{
    utf8proc_int32_t codepoint = 0;

    *out_n = (size_t)utf8proc_iterate((const utf8proc_uint8_t *)text + at, 4,
                                      &codepoint);
    return codepoint;
}

int32_t codepoint_before(const char *text, size_t at, size_t *out_n)
{
    size_t first = at - 1;

    while (first && ((uint8_t)text[first] & 0xc0) == 0x80)
        first--;
    return codepoint_at(text, first, out_n);
}

struct codepoints {
    int32_t *at; /* owned */
    size_t n, capacity;
};

static enum status no_memory(size_t bytes)
{
    return status_fail(STATUS_RESOURCE_EXHAUSTED,
                       "no memory to normalise %zu bytes of text", bytes);
}

/* Canonical decomposition, marks still in the order of the text. */
static enum status decompose(const char *text, size_t n, struct codepoints *out)
{
    enum { ROOM = 8 }; /* no canonical decomposition is longer than 4 */

    for (size_t at = 0, length; at < n; at += length) {
        const int32_t codepoint = codepoint_at(text, at, &length);
        int bound = 0;

        if (out->capacity - out->n < ROOM) {
            const size_t capacity = 2 * out->capacity + n / 4 + 64;
            int32_t *grown = realloc(out->at, capacity * sizeof(*grown));

            if (!grown)
                return no_memory(n);
            out->at = grown;
            out->capacity = capacity;
        }
        if (codepoint < 0x80)
            out->at[out->n++] = codepoint;
        else
            out->n += (size_t)utf8proc_decompose_char(
                codepoint, out->at + out->n, ROOM,
                UTF8PROC_DECOMPOSE | UTF8PROC_STABLE, &bound);
    }
    return STATUS_OK;
}

static unsigned combining_class(int32_t codepoint)
{
    return codepoint < 0x300
               ? 0
               : (unsigned)utf8proc_get_property(codepoint)->combining_class;
}

/* Stable counting sort of one run of marks; `spare` has room for it. */
static void sort_run(int32_t *mark, size_t n, int32_t *spare)
{
    size_t start[257] = {0};

    for (size_t i = 0; i < n; i++)
        start[combining_class(mark[i]) + 1]++;
    for (size_t c = 1; c < 257; c++)
        start[c] += start[c - 1];
    for (size_t i = 0; i < n; i++)
        spare[start[combining_class(mark[i])]++] = mark[i];
    memcpy(mark, spare, n * sizeof(*mark));
}

/*
 * Canonical order of combining marks. utf8proc's own is a bubble sort, which
 * a text of marks alone turns into hours.
 */
static enum status order_marks(struct codepoints *text)
{
    int32_t *spare = NULL, *mark;
    bool is_sorted;
    size_t n;

    for (size_t i = 0; i < text->n; i += n ? n : 1) {
        mark = text->at + i;
        is_sorted = true;
        for (n = 0; i + n < text->n && combining_class(mark[n]); n++)
            if (n && combining_class(mark[n]) < combining_class(mark[n - 1]))
                is_sorted = false;
        if (is_sorted)
            continue;
        if (!spare) {
            spare = malloc((text->n - i) * sizeof(*spare));
            if (!spare)
                return no_memory(text->n * sizeof(*spare));
        }
        sort_run(mark, n, spare);
    }
    free(spare);
    return STATUS_OK;
}

static bool is_nfc_at_a_glance(const char *text, size_t n)
{
    /* Below U+0300 (first byte 0xcc) all characters are NFC themselves and
     * none combines. */
    for (size_t i = 0; i < n; i++)
        if ((uint8_t)text[i] >= 0xcc)
            return false;
    return true;
}

enum status text_nfc(const char *text, size_t n, char **out, size_t *out_n)
{
    struct codepoints points = {0};
    utf8proc_ssize_t composed;
    enum status st;
    int32_t *at;
    char *bytes;
    size_t n_bytes = 0;

    *out = NULL;
    if (is_nfc_at_a_glance(text, n))
        return STATUS_OK;
    st = decompose(text, n, &points);
    if (!st)
        st = order_marks(&points);
    if (st)
        goto out;
    at = points.at;
    assert(at); /* what needs NFC is not empty */
    composed = utf8proc_normalize_utf32(at, (utf8proc_ssize_t)points.n,
                                        UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    bytes = malloc(4 * (size_t)composed + 1);
    if (!bytes) {
        st = no_memory(n);
        goto out;
    }
    for (utf8proc_ssize_t i = 0; i < composed; i++)
        n_bytes += (size_t)utf8proc_encode_char(
            at[i], (utf8proc_uint8_t *)bytes + n_bytes);
    *out = bytes;
    *out_n = n_bytes;
out:
    free(points.at);
    return st;
}
