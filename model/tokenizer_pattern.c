/*
 * Split patterns are written for Oniguruma (Ruby's syntax), which Hugging
 * Face uses. What PCRE2 reads otherwise is rewritten when it can be said
 * exactly, and refused when it cannot: a pattern that splits almost right
 * would give almost right tokens.
 */
#include "model/tokenizer_parts.h"

#include <stdlib.h>
#include <string.h>

#define REWRITE_GROWTH 160u /* bytes the longest replacement takes */
#define PATTERN_MAX 65536u

const char *const PATTERN_GPT2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| "
                                 "?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/* PCRE2's \s takes U+180E too, and its \w knows no marks. */
#define SPACE "\\t-\\r\\x{85}\\p{Z}"
#define WORD                                                                   \
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24b6}-\\x{24e9}"                     \
    "\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}"

static enum status refuse(const char *where, const char *pattern, size_t at)
{
    return status_fail(STATUS_UNIMPLEMENTED,
                       "%s: '%.8s' at byte %zu of the split pattern is not "
                       "known",
                       where, pattern + at, at);
}

/* What stands for the escape \c, or NULL when it stays as it is. */
static const char *replacement(char c, bool is_in_class)
{
    switch (c) {
    case 's':
        return is_in_class ? SPACE : "[" SPACE "]";
    case 'S':
        return "[^" SPACE "]";
    case 'w':
        return is_in_class ? WORD : "[" WORD "]";
    case 'W':
        return "[^" WORD "]";
    case 'd':
        return "\\p{Nd}";
    case 'D':
        return "\\P{Nd}";
    default:
        return NULL;
    }
}

static bool is_unknown_escape(char c, bool is_in_class)
{
    if (is_in_class)
        return c && strchr("SWhHRXK", c);
    return c && strchr("hHbBRXKGyYgk", c);
}

/* Copy `pattern` to `out` as PCRE2 spells it. */
static enum status rewrite(const char *where, const char *pattern, char *out)
{
    bool is_in_class = false;
    size_t n = 0;

    for (size_t i = 0; pattern[i]; i++) {
        const char c = pattern[i], next = pattern[i + 1];
        const char *other;

        if (c == '\\') {
            if (is_unknown_escape(next, is_in_class))
                return refuse(where, pattern, i);
            other = replacement(next, is_in_class);
            if (other) {
                memcpy(out + n, other, strlen(other));
                n += strlen(other);
                i++;
                continue;
            }
            out[n++] = c;
            if (next)
                out[n++] = pattern[++i];
            /* Braces of \p{..} and \x{..} are no repetition. */
            if (next && strchr("pPx", next) && pattern[i + 1] == '{')
                while (pattern[i + 1] && pattern[i] != '}')
                    out[n++] = pattern[++i];
            continue;
        }
        /* Oniguruma has nested classes and their intersection, and reads
         * {1,3}+ as a repetition of a repetition. */
        if (is_in_class && (c == '[' || (c == '&' && next == '&')))
            return refuse(where, pattern, i);
        if (!is_in_class && c == '}' && next == '+')
            return refuse(where, pattern, i);
        out[n++] = c;
        if (c == '[') {
            is_in_class = true;
            if (pattern[i + 1] == '^')
                out[n++] = pattern[++i];
            if (pattern[i + 1] == ']')
                return refuse(where, pattern, i);
        } else if (c == ']') {
            is_in_class = false;
        }
    }
    out[n] = '\0';
    return STATUS_OK;
}

enum status pattern_compile(const char *where, const char *pattern,
                            bool is_literal, pcre2_code **out)
{
    const size_t n = strlen(pattern);
    uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C;
    PCRE2_UCHAR text[128];
    PCRE2_SIZE at = 0;
    pcre2_code *code;
    enum status st = STATUS_OK;
    char *ours;
    int error = 0;

    if (n > PATTERN_MAX)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: split pattern has %zu bytes, limit %u", where,
                           n, PATTERN_MAX);
    ours = malloc(n * REWRITE_GROWTH / 2 + REWRITE_GROWTH);
    if (!ours)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "%s: no memory for a split pattern", where);
    if (is_literal) {
        memcpy(ours, pattern, n + 1);
        options = PCRE2_UTF | PCRE2_LITERAL;
    } else {
        options |= PCRE2_MULTILINE; /* ^ and $ as in Ruby */
        st = rewrite(where, pattern, ours);
        if (st)
            goto out;
    }
    code = pcre2_compile((PCRE2_SPTR)ours, PCRE2_ZERO_TERMINATED, options,
                         &error, &at, NULL);
    if (!code) {
        (void)pcre2_get_error_message(error, text, sizeof(text));
        st = status_fail(STATUS_INVALID_ARGUMENT,
                         "%s: split pattern does not compile at '%.16s': %s",
                         where, ours + at, (const char *)text);
        goto out;
    }
    /* Without the compiler (hardened kernels) matching is slower, not other. */
    (void)pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
    *out = code;
out:
    free(ours);
    return st;
}
