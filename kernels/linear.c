#include "kernels/linear.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define WEIGHT_BYTES_MAX ((size_t)1 << 46) /* more than any machine has */

/* Bytes of one panel of 16 outputs. */
static size_t panel_bytes(const struct linear *linear)
{
    size_t n_in = linear->n_in;

    if (linear->type == LINEAR_BF16)
        return (n_in + 1) / 2 * 2 * LINEAR_PANEL * sizeof(uint16_t);
    return n_in * LINEAR_PANEL * sizeof(float);
}

static size_t n_panel(const struct linear *linear)
{
    return ((size_t)linear->n_out + LINEAR_PANEL - 1) / LINEAR_PANEL;
}

size_t linear_bytes(const struct linear *linear)
{
    return n_panel(linear) * panel_bytes(linear);
}

enum status linear_init(uint32_t n_in, uint32_t n_out, enum linear_type type,
                        struct linear *out)
{
    struct linear linear = {.n_in = n_in, .n_out = n_out, .type = type};
    size_t bytes = 0;

    /* 64 divides every panel, as aligned_alloc wants; never ask for zero. */
    if (panel_bytes(&linear) <= WEIGHT_BYTES_MAX / (n_panel(&linear) + 1)) {
        bytes = linear_bytes(&linear);
        linear.panel = aligned_alloc(64, bytes ? bytes : 64);
    }
    if (!linear.panel)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for weights [%u, %u]", n_out, n_in);
    memset(linear.panel, 0, bytes);
    *out = linear;
    return STATUS_OK;
}

void linear_release(struct linear *linear)
{
    free(linear->panel);
    *linear = (struct linear){0};
}

void linear_pack_f32(struct linear *linear, uint32_t first_out, uint32_t n_row,
                     const void *weight)
{
    const unsigned char *source = weight;
    size_t n_in = linear->n_in;

    assert(linear->type == LINEAR_F32);
    assert((uint64_t)first_out + n_row <= linear->n_out);
    for (size_t row = 0; row < n_row; row++) {
        size_t o = first_out + row;
        float *panel =
            (float *)linear->panel + o / LINEAR_PANEL * n_in * LINEAR_PANEL;
        for (size_t i = 0; i < n_in; i++)
            memcpy(&panel[i * LINEAR_PANEL + o % LINEAR_PANEL],
                   source + (row * n_in + i) * sizeof(float), sizeof(float));
    }
}

void linear_pack_bf16(struct linear *linear, uint32_t first_out, uint32_t n_row,
                      const void *weight)
{
    const unsigned char *source = weight;
    size_t n_in = linear->n_in, n_pair = (n_in + 1) / 2;

    assert(linear->type == LINEAR_BF16);
    assert((uint64_t)first_out + n_row <= linear->n_out);
    for (size_t row = 0; row < n_row; row++) {
        size_t o = first_out + row;
        uint16_t *panel = (uint16_t *)linear->panel +
                          o / LINEAR_PANEL * n_pair * 2 * LINEAR_PANEL;
        for (size_t i = 0; i < n_in; i++) {
            size_t pair = i / 2 * LINEAR_PANEL + o % LINEAR_PANEL;
            memcpy(&panel[pair * 2 + i % 2],
                   source + (row * n_in + i) * sizeof(uint16_t),
                   sizeof(uint16_t));
        }
    }
}
