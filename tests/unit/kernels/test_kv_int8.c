/*
 * Keys and values in int8, judged by an oracle: each number quantised by its
 * definition, in double, then a plain softmax over all tokens; and by the law
 * that no cut shows in a bit. What the numbers lose is held to half a step.
 */
#include "kernels/scalar.h"
#include "tests/unit/kernels/attend_check.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <math.h>

#define N_CUT 7u
static const uint32_t CUT[N_CUT] = {1, 2, 7, 63, 64, 65, 130};
static const struct attend_case CASE[] = {
    {{4, 2, 64, 0, 0}, 0}, {{3, 1, 96, 0, 0}, 0}, {{2, 1, 40, 0, 0}, 0}};
#define N_CASE (sizeof(CASE) / sizeof(*CASE))

static const struct backend *ref(void)
{
    const struct backend *backend;

    cr_assert(eq(int, backend_find("ref", &backend), STATUS_OK));
    return backend;
}

static struct attend_case case_of(size_t i, int arithmetic)
{
    struct attend_case it = CASE[i];

    it.shape.arithmetic = (enum arithmetic)arithmetic;
    it.shape.kv = KV_INT8;
    return it;
}

/* Dim d of x as it is after it was kept; *out_step its unit. */
static double kept(const float *x, uint32_t d_head, uint32_t d,
                   double *out_step)
{
    const uint32_t first = d / 64 * 64;
    float largest = 0.0f, scale;

    for (uint32_t i = first; i < first + 64 && i < d_head; i++)
        largest = fmaxf(largest, fabsf(x[i]));
    scale = largest / 127.0f;
    *out_step = (double)scale;
    return (double)(nearbyintf(x[d] * (1.0f / scale)) * scale);
}

/* Row t and query head h in double, unrotated. */
static void oracle(const struct attend_bench *b, uint32_t t, uint32_t h,
                   double *out)
{
    const struct attend_shape s = b->shape;
    const uint32_t kv = h / (s.n_head / s.n_kv_head), n = s.d_head;
    const float *q = b->q + ((size_t)t * s.n_head + h) * n;
    double score[ATTEND_TOKEN], most = -INFINITY, sum = 0, step;

    for (uint32_t j = 0; j <= t; j++) {
        const float *k = b->k + ((size_t)j * s.n_kv_head + kv) * n;

        score[j] = 0;
        for (uint32_t d = 0; d < n; d++)
            score[j] += (double)(q[d] * 0.1f) * kept(k, n, d, &step);
        most = fmax(most, score[j]);
    }
    for (uint32_t d = 0; d < n; d++)
        out[d] = 0;
    for (uint32_t j = 0; j <= t; j++) {
        const float *v = b->v + ((size_t)j * s.n_kv_head + kv) * n;
        const double p = exp(score[j] - most);

        sum += p;
        for (uint32_t d = 0; d < n; d++)
            out[d] += p * kept(v, n, d, &step);
    }
    for (uint32_t d = 0; d < n; d++)
        out[d] /= sum;
}

Test(kv_int8, attention_is_that_of_what_was_kept)
{
    for (size_t i = 0; i < N_CASE; i++) {
        const struct attend_case c = case_of(i, ARITHMETIC_FP32);
        const size_t width = (size_t)c.shape.n_head * c.shape.d_head;
        float *out = calloc(ATTEND_TOKEN * width, sizeof(*out));
        double want[256];
        struct attend_bench b;

        attend_bench_init(&b, &c, 7 * i);
        attend_by_cut(&b, ref(), NULL, ATTEND_TOKEN, 0xff, out);
        for (uint32_t t = 0; t < ATTEND_TOKEN; t += 13)
            for (uint32_t h = 0; h < c.shape.n_head; h++) {
                oracle(&b, t, h, want);
                for (uint32_t d = 0; d < c.shape.d_head; d++)
                    cr_assert(
                        fabs((double)out[t * width + h * c.shape.d_head + d] -
                             want[d]) < 5e-5,
                        "case %zu, token %u, head %u, dim %u", i, t, h, d);
            }
        attend_bench_release(&b);
        free(out);
    }
}

Test(kv_int8, no_cut_and_nothing_behind_a_row_shows_in_a_bit)
{
    for (size_t i = 0; i < N_CASE * N_CPU_ARITHMETIC; i++) {
        const struct attend_case c =
            case_of(i / N_CPU_ARITHMETIC, (int)(i % N_CPU_ARITHMETIC));
        const size_t n = (size_t)ATTEND_TOKEN * c.shape.n_head * c.shape.d_head;
        float *whole = calloc(n, sizeof(*whole)),
              *out = calloc(n, sizeof(*out));
        struct attend_bench b;

        attend_bench_init(&b, &c, i);
        attend_by_cut(&b, ref(), NULL, ATTEND_TOKEN, 0, whole);
        for (uint32_t k = 0; k < N_CUT; k++) {
            attend_by_cut(&b, ref(), NULL, CUT[k], 0xff, out);
            cr_assert(eq(sz, product_difference(out, whole, n), n),
                      "case %zu in calls of %u", i, CUT[k]);
        }
        attend_bench_release(&b);
        free(whole);
        free(out);
    }
}

/* Tiles of 64 dims of 64 tokens, and a float a token. */
Test(kv_int8, blocks_are_little_more_than_half_of_bf16)
{
    const struct attend_case c = case_of(0, ARITHMETIC_PAIR);
    struct attend_shape wide = c.shape, padded = c.shape;

    wide.kv = KV_WIDE;
    padded.d_head = 65; /* to 128 */
    cr_assert(eq(sz, kv_block_bytes(c.shape), 2 * 2 * (64 * 64 + 64 * 4)));
    cr_assert(eq(sz, kv_block_bytes(wide), 2 * 2 * 64 * 64 * 2));
    cr_assert(eq(sz, kv_block_bytes(padded), 2 * kv_block_bytes(c.shape)));
}

Test(kv_int8, a_number_is_off_by_half_a_step_and_no_number_makes_its_scale_none)
{
    const struct attend_shape shape = {1, 1, 70, ARITHMETIC_FP32, KV_INT8};
    struct kv_tile *block = aligned_alloc(64, kv_block_bytes(shape));
    void *const table[1] = {block};
    const struct attend_span span = {.n_row = 2, .block = table};
    float k[140], v[140] = {0};

    for (uint32_t i = 0; i < 140; i++)
        k[i] = (float)((int)(i * 7919 % 2001) - 1000) * 0x1p-10f;
    v[71] = INFINITY;
    v[138] = 0x1p-130f;
    ref()->kv_append(NULL, &(struct kv_append_args){.shape = shape,
                                                    .k = k,
                                                    .v = v,
                                                    .k_stride = 70,
                                                    .v_stride = 70,
                                                    .span = &span,
                                                    .n_span = 1});
    for (uint32_t i = 0; i < 140; i++) {
        const struct kv_tile *tile = &block[i % 70 / 64];
        double step;

        (void)kept(k + i / 70 * 70, 70, i % 70, &step);
        cr_assert(eq(flt, tile->scale[i / 70], (float)step));
        cr_assert(fabs((double)k[i] - step * tile->q[i / 70][i % 70 % 64]) <=
                  0.5001 * step);
    }
    cr_assert(eq(flt, block[2].scale[0], 0.0f));
    cr_assert(isnan(block[2].scale[1])); /* dims 0 .. 63 of the second row */
    cr_assert(eq(flt, block[3].scale[1], 0.0f));
    cr_assert(eq(int, block[2].q[1][1], 0));
    free(block);
}
