#ifndef TESTS_UNIT_KERNELS_ATTEND_CHECK_H
#define TESTS_UNIT_KERNELS_ATTEND_CHECK_H
/*
 * Attention of one backend against ref by bits, for every arithmetic. Without
 * Criterion, so that the program in tests/bench can make the same checks on a
 * machine that has nothing but a C library.
 */
#include "kernels/scalar.h"
#include "tests/unit/kernels/product_check.h"

#include <float.h>
#include <math.h>

#define ATTEND_TOKEN 195u
#define ATTEND_BLOCK 4u

struct attend_case {
    struct attend_shape shape;
    uint32_t n_rot;
};

/* One to 40 queries of a KV head, so that rows fill a tile of 16 or not, and
 * more than one; heads that tiles of words fill, and others. */
static const struct attend_case ATTEND_CASE[] = {
    {{4, 2, 64, 0, 0}, 16},   {{8, 2, 256, 0, 0}, 64},
    {{1, 1, 32, 0, 0}, 0},    {{3, 1, 96, 0, 0}, 96},
    {{16, 1, 64, 0, 0}, 20},  {{34, 2, 128, 0, 0}, 128},
    {{40, 1, 160, 0, 0}, 62}, {{5, 1, 48, 0, 0}, 4},
    {{6, 2, 63, 0, 0}, 20},   {{2, 1, 1, 0, 0}, 0},
};

/* How rows end, bits. */
enum { ATTEND_GATED = 1, ATTEND_ROUNDED = 2, N_ATTEND_END = 4 };

/* One session: rows of q, k and v, gates, its blocks and its angles. */
struct attend_bench {
    struct attend_shape shape;
    int end;
    float *q, *k, *v, *gate, *cos, *sin;
    uint16_t *rounded;
    void *block[ATTEND_BLOCK];
    struct rope_table table;
};

static inline void attend_bench_init(struct attend_bench *b,
                                     const struct attend_case *c, uint64_t seed)
{
    const size_t n_q = (size_t)ATTEND_TOKEN * c->shape.n_head * c->shape.d_head;
    const size_t n_kv =
        (size_t)ATTEND_TOKEN * c->shape.n_kv_head * c->shape.d_head;
    const size_t n_angle = (size_t)ATTEND_BLOCK * KV_BLOCK * c->n_rot / 2;

    b->shape = c->shape;
    b->q = product_floats(n_q, seed + 1, PRODUCT_NOISE);
    b->k = product_floats(n_kv, seed + 2, PRODUCT_NOISE);
    b->v = product_floats(n_kv, seed + 3, PRODUCT_NOISE);
    b->gate = product_floats(n_q, seed + 6, PRODUCT_NOISE);
    b->rounded = malloc(n_q * sizeof(*b->rounded));
    /* Gates that are shut and open, too. */
    for (size_t i = 0; i < n_q; i += 5)
        b->gate[i] *= 300.0f;
    b->cos = product_floats(n_angle, seed + 4, PRODUCT_NOISE);
    b->sin = product_floats(n_angle, seed + 5, PRODUCT_NOISE);
    /* Sharp rows, too: some weights must underflow to nothing. */
    for (size_t i = 0; i < n_q; i += 3)
        b->q[i] *= 30.0f;
    b->table = (struct rope_table){c->n_rot, (uint64_t)ATTEND_BLOCK * KV_BLOCK,
                                   b->cos, b->sin, NULL};
    for (uint32_t i = 0; i < ATTEND_BLOCK; i++)
        b->block[i] = aligned_alloc(64, kv_block_bytes(c->shape));
}

static inline void attend_bench_release(struct attend_bench *b)
{
    free(b->q);
    free(b->k);
    free(b->v);
    free(b->gate);
    free(b->rounded);
    free(b->cos);
    free(b->sin);
    for (uint32_t i = 0; i < ATTEND_BLOCK; i++)
        free(b->block[i]);
}

/* Results as floats, wherever they are. */
static inline void attend_take_rounded(const struct attend_bench *b, float *out)
{
    const size_t n = (size_t)ATTEND_TOKEN * b->shape.n_head * b->shape.d_head;

    for (size_t i = 0; i < n && b->end & ATTEND_ROUNDED; i++)
        out[i] = scalar_from_bf16(b->rounded[i]);
}

/* All tokens in calls of `cut` rows, over blocks that held `stale` bytes. */
static inline void attend_by_cut(struct attend_bench *b,
                                 const struct backend *backend,
                                 struct pool *pool, uint32_t cut, int stale,
                                 float *out)
{
    const size_t q_stride = (size_t)b->shape.n_head * b->shape.d_head;
    const size_t kv_stride = (size_t)b->shape.n_kv_head * b->shape.d_head;

    for (uint32_t i = 0; i < ATTEND_BLOCK; i++)
        memset(b->block[i], stale, kv_block_bytes(b->shape));
    for (uint32_t t = 0; t < ATTEND_TOKEN; t += cut) {
        const uint32_t n = ATTEND_TOKEN - t < cut ? ATTEND_TOKEN - t : cut;
        const struct attend_span span = {t, n, t, b->block, NULL};
        const float *gate = b->end & ATTEND_GATED ? b->gate : NULL;
        uint16_t *rounded = b->end & ATTEND_ROUNDED ? b->rounded : NULL;

        backend->kv_append(pool, &(struct kv_append_args){b->shape, b->k, b->v,
                                                          kv_stride, kv_stride,
                                                          &span, 1});
        backend->attend(pool, &(struct attend_args){.shape = b->shape,
                                                    .out = out,
                                                    .out_stride = q_stride,
                                                    .out_rounded = rounded,
                                                    .gate = gate,
                                                    .gate_stride = q_stride,
                                                    .q = b->q,
                                                    .q_stride = q_stride,
                                                    .table = &b->table,
                                                    .scale = 0.1f,
                                                    .span = &span,
                                                    .n_span = 1});
    }
    attend_take_rounded(b, out);
}

static inline bool attend_same(const struct attend_bench *b, const char *name,
                               const float *got, const float *want,
                               uint32_t cut, int stale)
{
    const size_t stride = (size_t)b->shape.n_head * b->shape.d_head;
    const size_t n = ATTEND_TOKEN * stride;
    const size_t at = product_difference(got, want, n);

    if (at == n)
        return true;
    printf("%s, arithmetic %d, %u heads on %u of %u, %u rotated, end %d, cut "
           "%u, over bytes %x: row %zu output %zu is %a, not %a\n",
           name, (int)b->shape.arithmetic, b->shape.n_head, b->shape.n_kv_head,
           b->shape.d_head, b->table.n_rot, b->end, cut, (unsigned)stale,
           at / stride, at % stride, (double)got[at], (double)want[at]);
    return false;
}

/* As under flush modes, where gates make a subnormal. */
static inline float attend_flushed(float x)
{
    return fabsf(x) < FLT_MIN ? copysignf(0.0f, x) : x;
}

/* What the plain results come to. */
static inline void attend_end(const struct attend_bench *b, const float *plain,
                              float *out)
{
    const size_t n = (size_t)ATTEND_TOKEN * b->shape.n_head * b->shape.d_head;

    for (size_t i = 0; i < n; i++) {
        out[i] = plain[i];
        if (b->end & ATTEND_GATED)
            out[i] = attend_flushed(out[i] *
                                    attend_flushed(scalar_sigmoid(b->gate[i])));
        if (b->end & ATTEND_ROUNDED)
            out[i] = scalar_from_bf16(scalar_to_bf16(out[i]));
    }
}

/* One case in each cut, with each end and pool; how many came out otherwise. */
static inline size_t attend_check(const struct backend *backend,
                                  const struct backend *ref,
                                  struct pool *const *pool, size_t n_pool,
                                  const struct attend_case *c)
{
    static const uint32_t CUT[] = {1, 3, 20, 65, ATTEND_TOKEN};
    const size_t n = (size_t)ATTEND_TOKEN * c->shape.n_head * c->shape.d_head;
    float *want = malloc(n * sizeof(*want)), *got = malloc(n * sizeof(*got));
    float *plain = malloc(n * sizeof(*plain));
    struct attend_bench b;
    size_t n_bad = 0;

    attend_bench_init(&b, c, c->shape.d_head);
    b.end = 0;
    attend_by_cut(&b, ref, NULL, ATTEND_TOKEN, 0, plain);
    for (b.end = 0; b.end < N_ATTEND_END; b.end++) {
        attend_end(&b, plain, want);
        for (size_t i = 0; i < PRODUCT_COUNT(CUT) * n_pool; i++) {
            const uint32_t cut = CUT[i / n_pool];
            const int stale = i % 2 ? 0xff : 0x7e; /* NaN or large numbers */

            attend_by_cut(&b, backend, pool[i % n_pool], cut, stale, got);
            n_bad += !attend_same(&b, backend->name, got, want, cut, stale);
        }
    }
    attend_bench_release(&b);
    free(want);
    free(got);
    free(plain);
    return n_bad;
}

static inline size_t attend_check_all(const struct backend *backend,
                                      const struct backend *ref,
                                      struct pool *const *pool, size_t n_pool)
{
    size_t n_bad = 0;

    for (size_t i = 0; i < PRODUCT_COUNT(ATTEND_CASE); i++)
        for (int a = 0; a < N_CPU_ARITHMETIC; a++) {
            struct attend_case c = ATTEND_CASE[i];

            c.shape.arithmetic = (enum arithmetic)a;
            n_bad += attend_check(backend, ref, pool, n_pool, &c);
        }
    return n_bad;
}
#endif
