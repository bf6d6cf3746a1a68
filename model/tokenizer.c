#include "model/tokenizer_parts.h"

#include <stdlib.h>
#include <string.h>

/* Bounds of one match. A 10 MB piece takes 10 million steps without PCRE2's
 * compiler; ten times that is reached in about a second. */
#define MATCH_LIMIT (1u << 27)
#define MATCH_HEAP_KIB (256u << 10)
#define JIT_STACK_MIN (32u << 10)
#define JIT_STACK_MAX (16u << 20)

/* One encode call. */
struct pass {
    const struct tokenizer *tokenizer;
    bool parse_special;
    size_t max_token;
    struct ids *out;
    struct bpe bpe;
    pcre2_match_data *match;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
};

static void pass_release(struct pass *pass)
{
    pcre2_match_data_free(pass->match);
    pcre2_match_context_free(pass->context);
    pcre2_jit_stack_free(pass->stack);
    bpe_release(&pass->bpe);
}

static enum status pass_init(struct pass *pass)
{
    pass->match = pcre2_match_data_create(1, NULL);
    pass->context = pcre2_match_context_create(NULL);
    pass->stack = pcre2_jit_stack_create(JIT_STACK_MIN, JIT_STACK_MAX, NULL);
    if (!pass->match || !pass->context || !pass->stack)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory to match a split pattern");
    (void)pcre2_set_match_limit(pass->context, MATCH_LIMIT);
    (void)pcre2_set_heap_limit(pass->context, MATCH_HEAP_KIB);
    pcre2_jit_stack_assign(pass->context, NULL, pass->stack);
    return STATUS_OK;
}

static enum status run_stage(struct pass *pass, uint32_t i, const char *text,
                             size_t n);

static enum status match_failed(int error, size_t n)
{
    PCRE2_UCHAR text[128];

    (void)pcre2_get_error_message(error, text, sizeof(text));
    return status_fail(STATUS_INVALID_ARGUMENT,
                       "split pattern fails on a piece of %zu bytes: %s", n,
                       (const char *)text);
}

/* Cut the text by stage i and hand matches and gaps to the next one. */
static enum status split(struct pass *pass, uint32_t i, const char *text,
                         size_t n)
{
    const struct stage *stage = &pass->tokenizer->stage[i];
    const PCRE2_SIZE *bounds = pcre2_get_ovector_pointer(pass->match);
    size_t done = 0, at = 0, begin, end, length;
    enum status st = STATUS_OK;
    int found;

    while (at < n && !st) {
        /* The text was checked once; checking again from here to its end for
         * each piece would be quadratic. */
        found = pcre2_match(stage->code, (PCRE2_SPTR)text, n, at,
                            PCRE2_NO_UTF_CHECK, pass->match, pass->context);
        if (found == PCRE2_ERROR_NOMATCH)
            break;
        if (found < 0)
            return match_failed(found, n);
        begin = bounds[0];
        end = bounds[1];
        if (begin > done && !stage->drops_gaps)
            st = run_stage(pass, i + 1, text + done, begin - done);
        if (!st && !stage->drops_matches)
            st = run_stage(pass, i + 1, text + begin, end - begin);
        done = at = end;
        if (end == begin && at < n) { /* an empty match moves on */
            (void)codepoint_at(text, at, &length);
            at += length;
        }
    }
    if (!st && done < n && !stage->drops_gaps)
        st = run_stage(pass, i + 1, text + done, n - done);
    return st;
}

static enum status run_with_prefix(struct pass *pass, uint32_t i,
                                   const char *text, size_t n)
{
    char *prefixed = malloc(n + 1);
    enum status st;

    if (!prefixed)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for a piece of %zu bytes", n);
    prefixed[0] = ' ';
    memcpy(prefixed + 1, text, n);
    st = run_stage(pass, i, prefixed, n + 1); /* no second prefix */
    free(prefixed);
    return st;
}

/* Recursion is as deep as there are stages, TOKENIZER_STAGE_MAX. */
static enum status run_stage(struct pass *pass, uint32_t i, const char *text,
                             size_t n)
{
    const struct tokenizer *tokenizer = pass->tokenizer;

    if (!n)
        return STATUS_OK;
    if (tokenizer->has_prefix_space && i == tokenizer->prefix_stage &&
        text[0] != ' ')
        return run_with_prefix(pass, i, text, n);
    if (i < tokenizer->n_stage)
        return split(pass, i, text, n);
    return bpe_encode(tokenizer, &pass->bpe, (const uint8_t *)text, n,
                      pass->max_token, pass->out);
}

/* An added token in a text: what it covers, and where the search goes on. */
struct hit {
    size_t begin, end, resume;
    uint32_t id;
};

/* Longest added token that starts at `at`, or NULL. */
static const struct added *longest_at(const struct tokenizer *tokenizer,
                                      const struct trie *trie, const char *text,
                                      size_t n, size_t at)
{
    uint32_t node = 0, leaf = 0;

    for (size_t i = at; i < n; i++) {
        const struct pair_slot *slot =
            pair_map_find(&trie->edge, (uint64_t)node << 8 | (uint8_t)text[i]);

        if (!slot)
            break;
        node = slot->first;
        if (trie->leaf[node])
            leaf = trie->leaf[node];
    }
    return leaf ? &tokenizer->added[leaf - 1] : NULL;
}

static bool is_own_word(const char *text, size_t n, size_t begin, size_t end)
{
    size_t length;

    return (!begin ||
            !codepoint_is_word(codepoint_before(text, begin, &length))) &&
           (end == n || !codepoint_is_word(codepoint_at(text, end, &length)));
}

/* Take in the white space around a hit, but none that is `done`. */
static void widen(const struct added *added, const char *text, size_t n,
                  size_t done, struct hit *hit)
{
    size_t length;

    while (added->strips_left && hit->begin > done &&
           codepoint_is_space(codepoint_before(text, hit->begin, &length)))
        hit->begin -= length;
    while (added->strips_right && hit->end < n &&
           codepoint_is_space(codepoint_at(text, hit->end, &length)))
        hit->end += length;
}

static bool next_added(const struct pass *pass, const struct trie *trie,
                       const char *text, size_t n, size_t done, struct hit *hit)
{
    if (!trie->n_node)
        return false;
    for (size_t at = hit->resume; at < n; at++) {
        const struct added *added;
        size_t end, length;

        if (!trie->starts[(uint8_t)text[at]])
            continue;
        added = longest_at(pass->tokenizer, trie, text, n, at);
        if (!added)
            continue;
        /* In the normalised trie the text's length is the NFC's own. */
        length = trie == &pass->tokenizer->raw ? added->n_bytes
                                               : added->n_normalised;
        end = at + length;
        if ((added->is_special && !pass->parse_special) ||
            (added->is_single_word && !is_own_word(text, n, at, end))) {
            at = end - 1;
            continue;
        }
        *hit = (struct hit){
            .begin = at, .end = end, .resume = end, .id = added->id};
        widen(added, text, n, done, hit);
        return true;
    }
    return false;
}

typedef enum status then_fn(struct pass *pass, const char *text, size_t n);

/* Cut the trie's tokens out and hand what lies between to `then`. */
static enum status cut(struct pass *pass, const struct trie *trie,
                       const char *text, size_t n, then_fn *then)
{
    struct hit hit = {0};
    size_t done = 0;
    enum status st;

    while (next_added(pass, trie, text, n, done, &hit)) {
        if (done < hit.begin) {
            st = then(pass, text + done, hit.begin - done);
            if (st)
                return st;
        }
        st = ids_append(pass->out, &hit.id, 1, pass->max_token);
        if (st)
            return st;
        done = hit.end;
    }
    return done < n ? then(pass, text + done, n - done) : STATUS_OK;
}

static enum status encode_plain(struct pass *pass, const char *text, size_t n)
{
    return run_stage(pass, 0, text, n);
}

static enum status encode_between(struct pass *pass, const char *text, size_t n)
{
    char *nfc = NULL;
    size_t n_nfc = 0;
    enum status st = STATUS_OK;

    if (pass->tokenizer->has_nfc)
        st = text_nfc(text, n, &nfc, &n_nfc);
    if (!st)
        st = cut(pass, &pass->tokenizer->normalised, nfc ? nfc : text,
                 nfc ? n_nfc : n, encode_plain);
    free(nfc);
    return st;
}

enum status tokenizer_encode(const struct tokenizer *tokenizer,
                             const char *text, size_t n_bytes,
                             bool parse_special, size_t max_token,
                             struct ids *out)
{
    const size_t n_before = out->n;
    struct pass pass = {.tokenizer = tokenizer,
                        .parse_special = parse_special,
                        .max_token = max_token,
                        .out = out};
    enum status st;

    if (n_bytes > TOKENIZER_TEXT_MAX)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "text has %zu bytes, limit %u", n_bytes,
                           TOKENIZER_TEXT_MAX);
    st = utf8_check(text, n_bytes);
    if (st)
        return st;
    st = pass_init(&pass);
    if (!st)
        st = cut(&pass, &tokenizer->raw, text, n_bytes, encode_between);
    if (st)
        out->n = n_before;
    pass_release(&pass);
    return st;
}

void ids_release(struct ids *ids)
{
    free(ids->id);
    *ids = (struct ids){0};
}

uint32_t tokenizer_n_token(const struct tokenizer *tokenizer)
{
    return tokenizer->n_token;
}

bool tokenizer_special(const struct tokenizer *tokenizer, const char *text,
                       uint32_t *out)
{
    for (uint32_t i = 0; i < tokenizer->n_added; i++)
        if (strcmp(tokenizer->added[i].text, text) == 0) {
            *out = tokenizer->added[i].id;
            return true;
        }
    return false;
}

bool tokenizer_is_special(const struct tokenizer *tokenizer, uint32_t id)
{
    return id < tokenizer->n_token && tokenizer->token[id].is_special;
}

const char *tokenizer_bytes(const struct tokenizer *tokenizer, uint32_t id,
                            size_t *out_n_bytes)
{
    const struct token *token;

    if (id >= tokenizer->n_token ||
        tokenizer->token[id].offset == TOKENIZER_ABSENT)
        return NULL;
    token = &tokenizer->token[id];
    *out_n_bytes = token->n_bytes;
    return (const char *)tokenizer->pool + token->offset;
}
