/*
 * How well keys match a query, against sums in double over keys that are
 * rotated in double; then every backend and pool against ref by bits. In each
 * arithmetic.
 */
#include "kernels/scalar.h"
#include "tests/unit/kernels/fixture.h"

#include <math.h>

enum { N_BLOCK = 35, N_KEY = 34 * KV_BLOCK + 37 };

static const struct attend_shape SHAPES[] = {
    {4, 2, 64, 0, 0}, {3, 3, 16, 0, 0},  {6, 2, 63, 0, 0},
    {8, 1, 96, 0, 0}, {34, 2, 32, 0, 0},
};
static const uint32_t N_ROT[] = {16, 16, 20, 96, 0};

struct session {
    struct attend_shape shape;
    float *q, *k; /* one query; N_KEY keys, packed */
    size_t kv_stride;
    void *block[N_BLOCK];
    struct rope_table table;
    double freq[HEAD_DIM_MAX];
};

static void session_init(struct session *s, size_t i)
{
    const uint32_t n_rot = N_ROT[i % COUNT(SHAPES)];
    struct attend_span span = {0, N_KEY, 0, s->block, NULL};

    s->shape = SHAPES[i % COUNT(SHAPES)];
    s->shape.arithmetic = (enum arithmetic)(i / COUNT(SHAPES));
    s->kv_stride = (size_t)s->shape.n_kv_head * s->shape.d_head;
    s->q = filled((size_t)s->shape.n_head * s->shape.d_head, i + 1);
    s->k = filled(N_KEY * s->kv_stride, i + 2);
    for (size_t f = 0; f < n_rot / 2; f++)
        s->freq[f] = pow(100.0, -2.0 * (double)f / n_rot);
    must(
        rope_table_init(n_rot, (size_t)N_BLOCK * KV_BLOCK, s->freq, &s->table));
    for (size_t b = 0; b < N_BLOCK; b++)
        s->block[b] = constant(kv_block_bytes(s->shape) / sizeof(float), 0.0f);
    backend_ref_found()->kv_append(
        NULL, &(struct kv_append_args){s->shape, s->k, s->k, s->kv_stride,
                                       s->kv_stride, &span, 1});
}

static void session_release(struct session *s)
{
    drop(s->q);
    drop(s->k);
    for (size_t b = 0; b < N_BLOCK; b++)
        drop(s->block[b]);
    rope_table_release(&s->table);
}

static double kept(const struct session *s, float x)
{
    return s->shape.arithmetic == ARITHMETIC_FP32
               ? x
               : scalar_from_bf16(scalar_to_bf16(x));
}

/* The product of a query head and a key, rotated by its position. */
static double product(const struct session *s, size_t head, size_t key)
{
    const size_t d_head = s->shape.d_head, n_pair = s->table.n_rot / 2;
    const size_t kv = head / (s->shape.n_head / s->shape.n_kv_head);
    const float *q = s->q + head * d_head;
    const float *k = s->k + key * s->kv_stride + kv * d_head;
    double sum = 0.0;

    for (size_t i = 0; i < n_pair; i++) {
        const double angle = (double)key * s->freq[i];
        const double x = kept(s, k[i]), y = kept(s, k[i + n_pair]);

        sum += q[i] * (x * cos(angle) - y * sin(angle));
        sum += q[i + n_pair] * (y * cos(angle) + x * sin(angle));
    }
    for (size_t d = 2 * n_pair; d < d_head; d++)
        sum += q[d] * kept(s, k[d]);
    return sum;
}

Test(match, is_the_sum_of_all_heads_products)
{
    struct pool *pools[N_POOL];
    static float want[N_KEY], got[N_KEY];

    pools_create(pools);
    for (size_t i = 0; i < COUNT(SHAPES) * N_CPU_ARITHMETIC; i++) {
        struct session s;

        session_init(&s, i);
        struct kv_match_args args = {.shape = s.shape,
                                     .table = &s.table,
                                     .q = s.q,
                                     .block = s.block,
                                     .n_key = N_KEY,
                                     .match = want};
        backend_ref_found()->kv_match(NULL, &args);
        for (size_t key = 0; key < N_KEY; key += 13) {
            double sum = 0.0, size = 1.0;

            for (size_t head = 0; head < s.shape.n_head; head++) {
                const double each = product(&s, head, key);

                sum += each;
                size += fabs(each);
            }
            cr_assert_float_eq(want[key], sum, 1e-4 * size,
                               "shape %zu, key %zu: %g, %g", i, key,
                               (double)want[key], sum);
        }
        args.match = got;
        EACH_BACKEND(backend)
        for (size_t p = 0; p < N_POOL; p++) {
            memset(got, 0, sizeof(got));
            backend->kv_match(pools[p], &args);
            assert_same(got, want, N_KEY, backend->name);
        }
        session_release(&s);
    }
    pools_destroy(pools);
}
