#ifndef TESTS_WIRE_WRITER_H
#define TESTS_WIRE_WRITER_H
/*
 * Messages written by hand, field by field with the numbers of the .proto
 * files: what is tested shares no line with the generated code.
 */
#include <assert.h>
#include <stdint.h>
#include <string.h>

#define WRITER_MAX (1u << 20)

struct writer {
    size_t n;
    uint8_t byte[WRITER_MAX];
};

static inline void write_raw(struct writer *w, const void *bytes, size_t n)
{
    assert(w->n + n <= WRITER_MAX);
    memcpy(w->byte + w->n, bytes, n);
    w->n += n;
}

static inline void write_base128(struct writer *w, uint64_t value)
{
    do {
        uint8_t byte = (uint8_t)((value & 0x7F) | (value > 0x7F ? 0x80 : 0));
        write_raw(w, &byte, 1);
        value >>= 7;
    } while (value);
}

static inline void write_number(struct writer *w, uint32_t field,
                                uint64_t value)
{
    write_base128(w, field << 3);
    write_base128(w, value);
}

static inline void write_float(struct writer *w, uint32_t field, float value)
{
    write_base128(w, field << 3 | 5);
    write_raw(w, &value, sizeof(value));
}

static inline void write_bytes(struct writer *w, uint32_t field,
                               const void *bytes, size_t n)
{
    write_base128(w, field << 3 | 2);
    write_base128(w, n);
    write_raw(w, bytes, n);
}

static inline void write_text(struct writer *w, uint32_t field,
                              const char *text)
{
    write_bytes(w, field, text, strlen(text));
}

static inline void write_message(struct writer *w, uint32_t field,
                                 const struct writer *inner)
{
    write_bytes(w, field, inner->byte, inner->n);
}
#endif
