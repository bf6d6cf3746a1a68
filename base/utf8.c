#include "base/utf8.h"

#include <stdint.h>

/* Length of the character at `s`, 0 if there is none (RFC 3629, table 3-7 of
   the Unicode standard: no overlong forms, no surrogates, at most U+10FFFF). */
static size_t utf8_length(const uint8_t *s, size_t n)
{
    uint8_t low = 0x80, high = 0xBF;
    size_t length;

    if (s[0] < 0x80)
        return 1;
    if (s[0] >= 0xC2 && s[0] <= 0xDF)
        length = 2;
    else if (s[0] >= 0xE0 && s[0] <= 0xEF)
        length = 3;
    else if (s[0] >= 0xF0 && s[0] <= 0xF4)
        length = 4;
    else
        return 0;
    if (s[0] == 0xE0)
        low = 0xA0;
    else if (s[0] == 0xED)
        high = 0x9F;
    else if (s[0] == 0xF0)
        low = 0x90;
    else if (s[0] == 0xF4)
        high = 0x8F;
    if (n < length || s[1] < low || s[1] > high)
        return 0;
    for (size_t i = 2; i < length; i++)
        if ((s[i] & 0xC0) != 0x80)
            return 0;
    return length;
}

size_t utf8_prefix(const char *text, size_t n_bytes)
{
    const uint8_t *s = (const uint8_t *)text;
    size_t i = 0;

    while (i < n_bytes) {
        size_t n = utf8_length(s + i, n_bytes - i);
        if (n == 0)
            break;
        i += n;
    }
    return i;
}
