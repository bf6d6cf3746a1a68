/* The table of kernels/backend.h: the only trigonometry of the program. */
#include "kernels/device.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

#define TABLE_MAX (UINT64_C(1) << 46) /* bytes; more than any machine has */

enum status rope_table_init(uint32_t n_rot, uint64_t n_position,
                            const double *inv_freq, struct rope_table *out)
{
    size_t n_pair = n_rot / 2;
    float *cosine = NULL, *sine = NULL;

    assert(n_rot % 2 == 0 && n_position % KV_BLOCK == 0);
    if (n_position < TABLE_MAX / sizeof(float) / (n_pair + 1)) {
        /* A whole number of 64-byte lines, and never zero of them. */
        size_t bytes = (n_position * n_pair + KV_BLOCK) * sizeof(float);
        cosine = aligned_alloc(64, bytes);
        sine = aligned_alloc(64, bytes);
    }
    if (!cosine || !sine) {
        free(cosine);
        free(sine);
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for rotary angles of %lu positions",
                           n_position);
    }
    for (uint64_t p = 0; p < n_position; p++) {
        for (size_t i = 0; i < n_pair; i++) {
            size_t at = (p / KV_BLOCK * n_pair + i) * KV_BLOCK + p % KV_BLOCK;
            double angle = (double)p * inv_freq[i];
            cosine[at] = (float)cos(angle);
            sine[at] = (float)sin(angle);
        }
    }
    *out = (struct rope_table){
        .n_rot = n_rot, .n_position = n_position, .cos = cosine, .sin = sine};
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
