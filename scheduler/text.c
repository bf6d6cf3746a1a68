#include "scheduler/text.h"

#include <stdlib.h>
#include <string.h>

void text_buffer_release(struct text_buffer *buffer)
{
    free(buffer->byte);
    memset(buffer, 0, sizeof(*buffer));
}

static enum status buffer_append(struct text_buffer *buffer, const char *byte,
                                 size_t n)
{
    if (n == 0)
        return STATUS_OK;
    if (buffer->capacity - buffer->n < n) {
        size_t capacity = 2 * (buffer->n + n);
        char *grown = realloc(buffer->byte, capacity);
        if (!grown)
            return status_fail(STATUS_RESOURCE_EXHAUSTED,
                               "no memory for %zu bytes of text", capacity);
        buffer->byte = grown;
        buffer->capacity = capacity;
    }
    memcpy(buffer->byte + buffer->n, byte, n);
    buffer->n += n;
    return STATUS_OK;
}

void text_init(struct text *text, const struct tokenizer *tokenizer,
               const struct sampling *sampling)
{
    memset(text, 0, sizeof(*text));
    text->tokenizer = tokenizer;
    text->sampling = sampling;
}

/* First byte of the first stop string in bytes; n if there is none. */
static size_t find_stop(const struct sampling *sampling, const char *byte,
                        size_t n)
{
    size_t first = n;

    for (uint32_t i = 0; i < sampling->n_stop; i++) {
        const char *stop = sampling->stop[i];
        const char *at = memmem(byte, n, stop, strlen(stop));
        if (at && (size_t)(at - byte) < first)
            first = (size_t)(at - byte);
    }
    return first;
}

/* Length of the longest tail of bytes with which a stop string begins. */
static size_t stop_tail(const struct sampling *sampling, const char *byte,
                        size_t n)
{
    size_t longest = 0;

    for (uint32_t i = 0; i < sampling->n_stop; i++) {
        const char *stop = sampling->stop[i];
        size_t tail = strlen(stop) - 1;
        if (tail > n)
            tail = n;
        while (tail > longest && memcmp(byte + n - tail, stop, tail) != 0)
            tail--;
        if (tail > longest)
            longest = tail;
    }
    return longest;
}

static enum status let_out(struct text *text, const char *byte, size_t n,
                           struct text_buffer *out)
{
    char all[STOP_BYTES_MAX + DETOKENIZER_OUT_MAX];
    size_t n_all = text->n_held, cut, tail;
    enum status st;

    if (text->sampling->n_stop == 0 ||
        text->n_token <= text->sampling->min_tokens)
        return buffer_append(out, byte, n);
    memcpy(all, text->held, n_all);
    memcpy(all + n_all, byte, n);
    n_all += n;
    cut = find_stop(text->sampling, all, n_all);
    if (cut < n_all) {
        text->is_stopped = true;
        text->n_held = 0;
        return buffer_append(out, all, cut);
    }
    tail = stop_tail(text->sampling, all, n_all);
    st = buffer_append(out, all, n_all - tail);
    if (st)
        return st;
    memcpy(text->held, all + n_all - tail, tail);
    text->n_held = (uint32_t)tail;
    return STATUS_OK;
}

enum status text_push(struct text *text, uint32_t id, bool is_silent,
                      struct text_buffer *out)
{
    char byte[DETOKENIZER_OUT_MAX];
    size_t n;

    text->n_token++;
    if (!text->tokenizer || text->is_stopped || is_silent)
        return STATUS_OK;
    n = detokenizer_push(&text->detokenizer, text->tokenizer, id,
                         text->sampling->skip_special, byte);
    return n ? let_out(text, byte, n, out) : STATUS_OK;
}

enum status text_finish(struct text *text, struct text_buffer *out)
{
    char byte[DETOKENIZER_OUT_MAX];
    enum status st = STATUS_OK;
    size_t n;

    if (!text->tokenizer || text->is_stopped)
        return STATUS_OK;
    n = detokenizer_finish(&text->detokenizer, byte);
    if (n)
        st = let_out(text, byte, n, out);
    if (!st && !text->is_stopped)
        st = buffer_append(out, text->held, text->n_held);
    text->n_held = 0;
    return st;
}
