#include "kernels/ref/ref.h"

#include <assert.h>
#include <math.h>

void ref_rope(struct pool *pool, const struct rope_args *a)
{
    size_t n_pair = a->table->n_rot / 2;

    (void)pool;
    assert(a->table->n_rot <= a->d_head);
    for (size_t r = 0; r < a->n_row; r++) {
        uint64_t p = a->position[r];
        assert(p < a->table->n_position);
        for (size_t h = 0; h < a->n_head; h++) {
            float *head = a->x + r * a->x_stride + h * a->d_head;
            for (size_t i = 0; i < n_pair; i++) {
                size_t at =
                    (p / KV_BLOCK * n_pair + i) * KV_BLOCK + p % KV_BLOCK;
                float cosine = a->table->cos[at], sine = a->table->sin[at];
                float x = head[i], y = head[i + n_pair];
                head[i] = fmaf(x, cosine, -(y * sine));
                head[i + n_pair] = fmaf(y, cosine, x * sine);
            }
        }
    }
}
