/* The table of kernels/backend.h: the only trigonometry of the program. */
#include "kernels/device.h"
#include "kernels/room.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

#define TABLE_MAX (UINT64_C(1) << 46) /* bytes; more than any machine has */

/* Angles of a pair from a block's first position to each of it. */
struct turns {
    double cos[KV_BLOCK], sin[KV_BLOCK];
};

static void turns_init(double freq, struct turns *out)
{
    for (uint32_t j = 0; j < KV_BLOCK; j++) {
        out->cos[j] = cos((double)j * freq);
        out->sin[j] = sin((double)j * freq);
    }
}

/*
 * A block of a pair by the theorem of addition, in a tenth of the time that
 * libm takes. That is off by less than `most`: four factors that are known to
 * an ulp of 1 and what is done with them make 2^-50, and angles, each rounded
 * on its own, two ulps of the last one. Where a float does not hang on that it
 * is the one of libm's result; for the others libm is asked.
 */
static void fill_block(const struct turns *turns, uint64_t first, double freq,
                       float *cosine, float *sine)
{
    const double a = (double)first * freq, c = cos(a), s = sin(a);
    const double last = (double)(first + KV_BLOCK) * fabs(freq);
    const double most = 0x1p-48 + last * 0x1p-51;
    float low[2][KV_BLOCK], high[2][KV_BLOCK];

    for (uint32_t j = 0; j < KV_BLOCK; j++) {
        const double x = c * turns->cos[j] - s * turns->sin[j];
        const double y = s * turns->cos[j] + c * turns->sin[j];

        low[0][j] = (float)(x - most);
        high[0][j] = (float)(x + most);
        low[1][j] = (float)(y - most);
        high[1][j] = (float)(y + most);
    }
    for (uint32_t j = 0; j < KV_BLOCK; j++) {
        const double angle = (double)(first + j) * freq;

        cosine[j] = low[0][j] == high[0][j] ? low[0][j] : (float)cos(angle);
        sine[j] = low[1][j] == high[1][j] ? low[1][j] : (float)sin(angle);
    }
}

static void fill(const struct turns *turns, const double *freq,
                 struct rope_table *table)
{
    const size_t n_pair = table->n_rot / 2;

    for (uint64_t p = 0; p < table->n_position; p += KV_BLOCK)
        for (size_t i = 0; i < n_pair; i++) {
            const size_t at = p * n_pair + i * KV_BLOCK;

            fill_block(&turns[i], p, freq[i], table->cos + at, table->sin + at);
        }
}

enum status rope_table_init(uint32_t n_rot, uint64_t n_position,
                            const double *inv_freq, struct rope_table *out)
{
    const size_t n_pair = n_rot / 2;
    struct rope_table table = {.n_rot = n_rot, .n_position = n_position};
    struct turns *turns = room_take(n_pair * sizeof(*turns));

    assert(n_rot % 2 == 0 && n_position % KV_BLOCK == 0);
    if (n_position < TABLE_MAX / sizeof(float) / (n_pair + 1)) {
        table.cos = room_take(n_position * n_pair * sizeof(float));
        table.sin = room_take(n_position * n_pair * sizeof(float));
    }
    if (!turns || !table.cos || !table.sin) {
        free(turns);
        free(table.cos);
        free(table.sin);
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for rotary angles of %lu positions",
                           n_position);
    }
    for (size_t i = 0; i < n_pair; i++)
        turns_init(inv_freq[i], &turns[i]);
    fill(turns, inv_freq, &table);
    free(turns);
    *out = table;
    return STATUS_OK;
}

void rope_table_release(struct rope_table *table)
{
    device_give(table->device, table->cos);
    device_give(table->device, table->sin);
    *table = (struct rope_table){0};
}

enum status rope_table_move(struct rope_table *table, struct device *device)
{
    const size_t bytes = table->n_position * (table->n_rot / 2) * sizeof(float);
    void *cosine = NULL, *sine = NULL;
    enum status st;

    if (!device)
        return STATUS_OK;
    st = device_take(device, bytes, &cosine);
    if (!st)
        st = device_take(device, bytes, &sine);
    if (st) {
        device_give(device, cosine);
        return st;
    }
    device_write(device, cosine, table->cos, bytes);
    device_write(device, sine, table->sin, bytes);
    free(table->cos);
    free(table->sin);
    table->cos = cosine;
    table->sin = sine;
    table->device = device;
    return STATUS_OK;
}
