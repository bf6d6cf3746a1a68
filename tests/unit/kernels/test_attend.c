/*
 * Attention against a softmax in double written the textbook way (all scores,
 * one maximum, one sum, no blocks), then every backend, cut, batch and thread
 * count against one call of ref by bits; all of it in each arithmetic.
 */
#include "kernels/scalar.h"
#include "tests/unit/kernels/fixture.h"

#include <float.h>

enum { N_TOKEN = 195, N_BLOCK = 4 };

struct shape {
    struct attend_shape attend;
    uint32_t n_rot;
};
/* 1 to 8 query heads to a KV head; dimensions that fill no vector, no pair and
 * no step of TILE; rotations that end inside one. */
static const struct shape SHAPES[] = {
    {{1, 1, 1, 0, 0}, 0},   {{4, 2, 64, 0, 0}, 16},  {{3, 3, 16, 0, 0}, 16},
    {{8, 1, 64, 0, 0}, 64}, {{6, 2, 63, 0, 0}, 20},  {{7, 1, 128, 0, 0}, 32},
    {{2, 1, 96, 0, 0}, 0},  {{3, 1, 192, 0, 0}, 64}, {{10, 2, 65, 0, 0}, 2},
    {{5, 1, 17, 0, 0}, 16}, {{2, 2, 3, 0, 0}, 2},    {{2, 1, 256, 0, 0}, 64},
};

#define N_CASE (COUNT(SHAPES) * N_CPU_ARITHMETIC)

/* Each shape in each arithmetic, FP32 first. */
static struct shape case_of(size_t i)
{
    struct shape shape = SHAPES[i % COUNT(SHAPES)];

    shape.attend.arithmetic = (enum arithmetic)(i / COUNT(SHAPES));
    return shape;
}

/* One session and all that one call may need. */
struct session {
    struct attend_shape shape;
    float *q, *k, *v; /* rows, padded by 1, 2 and 3 floats */
    size_t q_stride, k_stride, v_stride;
    void *block[N_BLOCK];
    struct rope_table table;
    double inv_freq[HEAD_DIM_MAX];
    float scale;
};

static void session_init(struct session *s, struct shape shape, uint64_t seed)
{
    size_t d = shape.attend.d_head;

    s->shape = shape.attend;
    s->q_stride = shape.attend.n_head * d + 1;
    s->k_stride = shape.attend.n_kv_head * d + 2;
    s->v_stride = shape.attend.n_kv_head * d + 3;
    s->q = filled(N_TOKEN * s->q_stride, seed + 1);
    s->k = filled(N_TOKEN * s->k_stride, seed + 2);
    s->v = filled(N_TOKEN * s->v_stride, seed + 3);
    /* Sharp rows too: some weights must underflow to nothing. */
    for (size_t i = 0; i < N_TOKEN * s->q_stride; i += 3)
        s->q[i] *= 30.0f;
    for (size_t i = 0; i < shape.n_rot / 2; i++)
        s->inv_freq[i] = pow(100.0, -2.0 * (double)i / shape.n_rot);
    must(rope_table_init(shape.n_rot, N_BLOCK * KV_BLOCK, s->inv_freq,
                         &s->table));
    s->scale = 1.0f / sqrtf((float)d);
    for (size_t b = 0; b < N_BLOCK; b++)
        s->block[b] = constant(kv_block_bytes(s->shape) / sizeof(float), 0.0f);
}

static void session_release(struct session *s)
{
    drop(s->q);
    drop(s->k);
    drop(s->v);
    for (size_t b = 0; b < N_BLOCK; b++)
        drop(s->block[b]);
    rope_table_release(&s->table);
}

/* What blocks hold before tokens come: bytes that are nothing, numbers of
 * every size, or NaN, as floats and as bf16. */
enum { EMPTY = 0, SMALL = 0x80, LARGE = 0x7e, BROKEN = 0xff };

static void clear_blocks(struct session *s, int byte)
{
    for (size_t b = 0; b < N_BLOCK; b++)
        memset(s->block[b], byte, kv_block_bytes(s->shape));
}

static size_t out_floats(const struct session *s)
{
    return (size_t)N_TOKEN * s->q_stride;
}

/* Arguments for the session's rows, in place. */
static struct attend_args args_of(const struct session *s,
                                  const struct attend_span *span, float *out)
{
    return (struct attend_args){.shape = s->shape,
                                .out = out,
                                .out_stride = s->q_stride,
                                .q = s->q,
                                .q_stride = s->q_stride,
                                .table = &s->table,
                                .scale = s->scale,
                                .span = span,
                                .n_span = 1};
}

/* Append rows [first, first + n) and attend with them; out as q. */
static void run(const struct session *s, const struct backend *backend,
                struct pool *pool, uint32_t first, uint32_t n, float *out)
{
    struct attend_span span = {first, n, first, s->block, NULL};
    struct kv_append_args append = {s->shape,    s->k,  s->v, s->k_stride,
                                    s->v_stride, &span, 1};
    struct attend_args args = args_of(s, &span, out);
    backend->kv_append(pool, &append);
    backend->attend(pool, &args);
}

/* What ref gives in one call; gaps between rows are 0. */
static float *whole(struct session *s)
{
    float *out = constant(out_floats(s), 0.0f);

    clear_blocks(s, EMPTY);
    run(s, backend_ref_found(), NULL, 0, N_TOKEN, out);
    return out;
}

/* To 8 significant bits, ties to even, but in FP32. */
static double kept(const struct session *s, double x)
{
    int exponent;
    double part = frexp(x, &exponent);

    return s->shape.arithmetic == ARITHMETIC_FP32
               ? x
               : ldexp(nearbyint(part * 256.0), exponent - 8);
}

static double rotated(const struct session *s, uint32_t token, size_t kv_head,
                      size_t d)
{
    const float *k = s->k + token * s->k_stride + kv_head * s->shape.d_head;
    size_t n_pair = s->table.n_rot / 2;

    if (d >= 2 * n_pair)
        return kept(s, (double)k[d]);
    double angle = token * s->inv_freq[d % n_pair];
    double x = kept(s, (double)k[d % n_pair]);
    double y = kept(s, (double)k[d % n_pair + n_pair]);
    return kept(s, d < n_pair ? x * cos(angle) - y * sin(angle)
                              : y * cos(angle) + x * sin(angle));
}

static void oracle_row(const struct session *s, uint32_t row, size_t head,
                       double *out)
{
    size_t d_head = s->shape.d_head;
    size_t kv = head * s->shape.n_kv_head / s->shape.n_head;
    const float *q = s->q + row * s->q_stride + head * d_head;
    double score[N_TOKEN], most = -INFINITY, sum = 0.0;

    for (uint32_t t = 0; t <= row; t++) {
        score[t] = 0.0;
        for (size_t d = 0; d < d_head; d++)
            score[t] +=
                kept(s, (double)q[d] * (double)s->scale) * rotated(s, t, kv, d);
        most = fmax(most, score[t]);
    }
    for (uint32_t t = 0; t <= row; t++)
        sum += exp(score[t] - most);
    for (size_t e = 0; e < d_head; e++) {
        out[e] = 0.0;
        for (uint32_t t = 0; t <= row; t++)
            out[e] += exp(score[t] - most) / sum *
                      kept(s, (double)s->v[t * s->v_stride + kv * d_head + e]);
    }
}

/*
 * In PAIR and TILE the oracle rounds q, k and v as the contract says, but not
 * the weights, each of which may be off by 2^-9; and a key that is rotated in
 * double may round to the other side, which moves a score by as much.
 */
static double bound_of(const struct session *s)
{
    return s->shape.arithmetic == ARITHMETIC_FP32 ? 5e-5 : 5e-3;
}

Test(attend, ref_is_softmax_attention)
{
    for (size_t i = 0; i < N_CASE; i++) {
        struct session s;
        session_init(&s, case_of(i), 10 * i);
        float *out = whole(&s);
        double want[HEAD_DIM_MAX];
        for (uint32_t row = 0; row < N_TOKEN; row += row % 64 == 62 ? 1 : 7)
            for (size_t h = 0; h < s.shape.n_head; h++) {
                size_t at = row * s.q_stride + h * s.shape.d_head;
                oracle_row(&s, row, h, want);
                assert_near(out + at, want, s.shape.d_head, bound_of(&s),
                            "attend");
            }
        drop(out);
        session_release(&s);
    }
}

/* --- a long session --- */

#define N_LONG (1u << 19)
#define N_ROUND 3u /* its blocks are these over and over */

static uint32_t long_token(uint32_t t)
{
    return t / KV_BLOCK % N_ROUND * KV_BLOCK + t % KV_BLOCK;
}

/* What the rotation adds to the score of token t. */
static double long_turned(const struct session *s, uint32_t t, const double *q,
                          const double *k)
{
    const size_t n_pair = s->table.n_rot / 2;
    double sum = 0.0;

    for (size_t d = 0; d < n_pair; d++) {
        const double angle = t * s->inv_freq[d];
        const double c = cos(angle), w = sin(angle);
        const double x = k[d], y = k[d + n_pair];
        sum += q[d] * kept(s, x * c - y * w) +
               q[d + n_pair] * kept(s, y * c + x * w);
    }
    return sum;
}

/* Its last row's head, in two passes over all keys; what is the same for all
 * that are one token is worked out once. */
static void long_oracle(const struct session *s, size_t head, double *out)
{
    const size_t d_head = s->shape.d_head, n_rot = s->table.n_rot;
    double *score = calloc(N_LONG, sizeof(*score)), most = -INFINITY, sum = 0.0;
    double q[HEAD_DIM_MAX], k[N_ROUND * KV_BLOCK][HEAD_DIM_MAX];
    double still[N_ROUND * KV_BLOCK] = {0}, weight[N_ROUND * KV_BLOCK] = {0};

    for (size_t d = 0; d < d_head; d++)
        q[d] = kept(s, (double)s->q[head * d_head + d] * (double)s->scale);
    for (uint32_t i = 0; i < N_ROUND * KV_BLOCK; i++) {
        for (size_t d = 0; d < d_head; d++)
            k[i][d] = kept(s, (double)s->k[i * s->k_stride + d]);
        for (size_t d = n_rot; d < d_head; d++)
            still[i] += q[d] * k[i][d];
    }
    for (uint32_t t = 0; t < N_LONG; t++) {
        const uint32_t i = long_token(t);
        score[t] = still[i] + long_turned(s, t, q, k[i]);
        most = fmax(most, score[t]);
    }
    for (uint32_t t = 0; t < N_LONG; t++) {
        const double e = exp(score[t] - most);
        weight[long_token(t)] += e;
        sum += e;
    }
    memset(out, 0, d_head * sizeof(*out));
    for (uint32_t i = 0; i < N_ROUND * KV_BLOCK; i++)
        for (size_t e = 0; e < d_head; e++)
            out[e] +=
                weight[i] / sum * kept(s, (double)s->v[i * s->v_stride + e]);
    free(score);
}

static void check_long(struct session *s, void *const *block, double bound)
{
    const struct attend_span span = {0, 1, N_LONG - 1, block, NULL};
    float *want = NULL;

    EACH_BACKEND(backend)
    {
        float *out = constant(s->q_stride, 0.0f);
        struct attend_args args = args_of(s, &span, out);
        backend->attend(NULL, &args);
        for (size_t h = 0; h < s->shape.n_head && !want; h++) {
            double oracle[HEAD_DIM_MAX];
            long_oracle(s, h, oracle);
            assert_near(out + h * s->shape.d_head, oracle, s->shape.d_head,
                        bound, backend->name);
        }
        if (want)
            assert_same(out, want, s->q_stride, backend->name);
        else
            want = constant(s->q_stride, 0.0f);
        memcpy(want, out, s->q_stride * sizeof(*want));
        drop(out);
    }
    drop(want);
}

/* Of which few or most have a part in what it gets. */
Test(attend, a_row_may_see_half_a_million_keys)
{
    void **block = calloc(N_LONG / KV_BLOCK, sizeof(*block));
    struct rope_table table = {0}; /* the same for all sessions */

    for (int arithmetic = 0; arithmetic < N_CPU_ARITHMETIC; arithmetic++)
        for (int is_flat = arithmetic > 0; is_flat < 2; is_flat++) {
            struct session s;
            struct shape shape = {{2, 1, 64, (enum arithmetic)arithmetic, 0},
                                  16};
            session_init(&s, shape, 77);
            rope_table_release(&s.table);
            for (size_t i = 0; i < shape.n_rot / 2; i++)
                s.inv_freq[i] = pow(1e7, -2.0 * (double)i / shape.n_rot);
            if (!table.cos)
                must(rope_table_init(shape.n_rot, N_LONG, s.inv_freq, &table));
            s.table = table;
            drop(whole(&s)); /* appends */
            for (size_t i = 0; i < N_LONG / KV_BLOCK; i++)
                block[i] = s.block[i % N_ROUND];
            for (size_t d = 0; d < s.q_stride; d++)
                s.q[d] *= is_flat ? 0.01f : 1.0f;
            check_long(&s, block, bound_of(&s));
            s.table = (struct rope_table){0};
            session_release(&s);
        }
    rope_table_release(&table);
    free(block);
}

static void check_cuts(struct session *s, const struct backend *backend,
                       struct pool *pool, const float *want)
{
    static const uint32_t CUTS[] = {1, 7, 63, 64, 65, 130, N_TOKEN};
    char what[96];

    for (size_t c = 0; c < COUNT(CUTS); c++) {
        float *out = constant(out_floats(s), 0.0f);
        clear_blocks(s, EMPTY);
        for (uint32_t t = 0, end; t < N_TOKEN; t = end) {
            end = t + CUTS[c] < N_TOKEN ? t + CUTS[c] : N_TOKEN;
            run(s, backend, pool, t, end - t, out);
            /* Rows of other sessions may follow: they are left alone. */
            size_t done = end * s->q_stride;
            cr_assert(is_zero(out + done, out_floats(s) - done));
        }
        snprintf(what, sizeof(what), "%s, %s, %u heads on %u of %u, cut %u",
                 backend->name, arithmetic_name(s->shape.arithmetic),
                 s->shape.n_head, s->shape.n_kv_head, s->shape.d_head, CUTS[c]);
        assert_same(out, want, out_floats(s), what);
        drop(out);
    }
}

Test(attend, every_backend_cut_and_thread_count_gives_refs_bits)
{
    struct pool *pools[N_POOL];

    pools_create(pools);
    for (size_t i = 0; i < N_CASE; i++) {
        struct session s;
        session_init(&s, case_of(i), 10 * i);
        float *want = whole(&s);
        EACH_BACKEND(backend)
        {
            if (backend == backend_ref_found()) {
                if (i < 3)
                    check_cuts(&s, backend, NULL, want);
                continue;
            }
            for (uint32_t p = 0; p < N_POOL; p++)
                check_cuts(&s, backend, pools[p], want);
        }
        drop(want);
        session_release(&s);
    }
    pools_destroy(pools);
}

/* Products that underflow leave zeros of either sign, of which a key that is
 * left out and one with a weight of zero make different ones. */
Test(attend, values_that_vanish_leave_the_same_zeros_in_each_backend)
{
    for (size_t i = 1; i < N_CASE; i += COUNT(SHAPES)) {
        struct session s;
        session_init(&s, case_of(i), 8);
        for (size_t k = 0; k < N_TOKEN * s.v_stride; k++)
            s.v[k] = copysignf(0x1p-126f, s.v[k]);
        float *want = whole(&s);
        EACH_BACKEND(backend)
        if (backend != backend_ref_found())
            check_cuts(&s, backend, NULL, want);
        drop(want);
        session_release(&s);
    }
}

/* The second call begins at every place of a block and crosses blocks. */
Test(attend, a_prompt_may_be_cut_at_every_position)
{
    for (size_t i = 1; i < N_CASE; i += COUNT(SHAPES)) {
        struct session s;
        session_init(&s, case_of(i), 3);
        float *want = whole(&s);
        EACH_BACKEND(backend)
        for (uint32_t cut = 1;
             cut < 2 * KV_BLOCK && backend != backend_ref_found(); cut++) {
            float *out = constant(out_floats(&s), 0.0f);
            clear_blocks(&s, EMPTY);
            run(&s, backend, NULL, 0, cut, out);
            run(&s, backend, NULL, cut, N_TOKEN - cut, out);
            assert_same(out, want, out_floats(&s), backend->name);
            drop(out);
        }
        drop(want);
        session_release(&s);
    }
}

/* Rejected drafts and later tokens of the same block lie behind a row. */
Test(attend, what_lies_behind_a_row_does_not_matter)
{
    static const int STALE[] = {EMPTY, SMALL, LARGE, BROKEN};

    for (size_t i = 4; i < N_CASE * COUNT(STALE); i += COUNT(SHAPES)) {
        struct session s;
        session_init(&s, case_of(i % N_CASE), 5);
        float *want = whole(&s);
        EACH_BACKEND(backend)
        {
            float *out = constant(out_floats(&s), 0.0f);
            clear_blocks(&s, STALE[i / N_CASE]);
            run(&s, backend, NULL, 0, 65, out);
            for (uint32_t t = 65; t < 81; t++)
                run(&s, backend, NULL, t, 1, out);
            run(&s, backend, NULL, 81, N_TOKEN - 81, out);
            assert_same(out, want, out_floats(&s), backend->name);
            drop(out);
        }
        drop(want);
        session_release(&s);
    }
}

/* Nor does a later row of the same call, even if its value is no number. */
Test(attend, a_value_that_is_not_finite_reaches_no_row_before_it)
{
    static const uint32_t BAD[] = {1, 77, 96, 130, 193};

    for (size_t i = 1; i < N_CASE; i += COUNT(SHAPES)) {
        struct session s;
        session_init(&s, case_of(i), 6);
        float *want = whole(&s);
        for (size_t b = 0; b < COUNT(BAD); b++) {
            float *v = s.v + BAD[b] * s.v_stride, was = v[5];
            size_t n = BAD[b] * s.q_stride;
            v[5] = b % 2 ? NAN : -INFINITY;
            EACH_BACKEND(backend)
            {
                float *out = constant(out_floats(&s), 0.0f);
                run(&s, backend, NULL, 0, N_TOKEN, out);
                assert_same(out, want, n, backend->name);
                cr_assert_not(isfinite(out[n + 5]), "%s", backend->name);
                cr_assert(isfinite(out[n + 6]), "%s", backend->name);
                drop(out);
            }
            v[5] = was;
        }
        drop(want);
        session_release(&s);
    }
}

/* Three sessions at unlike positions in one batch, in mixed row order. */
static void check_batch(struct shape shape, struct pool *const *pools)
{
    struct session s[3];
    float *want[3];
    static const uint32_t POSITION[] = {0, 65, 120}, N_ROW[] = {70, 1, 9};
    static const uint32_t FIRST_ROW[] = {10, 0, 1};

    for (size_t i = 0; i < 3; i++) {
        session_init(&s[i], shape, 100 * i);
        want[i] = whole(&s[i]);
    }
    size_t stride = s[0].q_stride;
    float *q = constant(80 * stride, 0.0f), *out = constant(80 * stride, 0.0f);
    struct attend_span span[3];
    for (size_t i = 0; i < 3; i++) {
        span[i] = (struct attend_span){FIRST_ROW[i], N_ROW[i], POSITION[i],
                                       s[i].block, NULL};
        memcpy(q + FIRST_ROW[i] * stride, s[i].q + POSITION[i] * stride,
               N_ROW[i] * stride * sizeof(float));
    }
    struct attend_args args = args_of(&s[0], span, out);
    args.q = q;
    args.n_span = 3;
    EACH_BACKEND(backend)
    for (uint32_t p = 0; p < N_POOL; p++) {
        for (size_t i = 0; i < 80 * stride; i++)
            out[i] = 0.0f;
        backend->attend(pools[p], &args);
        for (size_t i = 0; i < 3; i++)
            assert_same(out + FIRST_ROW[i] * stride,
                        want[i] + POSITION[i] * stride, N_ROW[i] * stride,
                        backend->name);
    }
    drop(q);
    drop(out);
    for (size_t i = 0; i < 3; i++) {
        drop(want[i]);
        session_release(&s[i]);
    }
}

Test(attend, a_batch_gives_each_session_its_own_bits)
{
    struct pool *pools[N_POOL];

    pools_create(pools);
    for (size_t i = 1; i < N_CASE; i += COUNT(SHAPES))
        check_batch(case_of(i), pools);
    pools_destroy(pools);
}

/*
 * Rows in calls for ranges of blocks, as random as `seed` makes them: some end
 * a row, some lie behind all rows. What the calls keep is NaN before the first.
 */
static void run_in_ranges(const struct backend *backend, struct pool *pool,
                          struct attend_args args, uint64_t seed)
{
    uint64_t first = 0, end = 0;

    for (uint32_t i = 0; i < args.n_span; i++) {
        uint64_t last =
            (args.span[i].position + args.span[i].n_row - 1) / KV_BLOCK;
        end = last + 1 > end ? last + 1 : end;
    }
    args.stat_stride = 2 * args.shape.n_head + 1;
    args.stat = constant(N_TOKEN * args.stat_stride, NAN);
    for (uint64_t i = 0; first < end; i++) {
        args.first_block = first;
        args.end_block = first + 1 + mix(seed + i) % 3;
        if (mix(seed + i) % 7 == 0)
            args.end_block = 0;
        backend->attend(pool, &args);
        first = args.end_block ? args.end_block : end;
    }
    drop(args.stat);
}

/* ref is slow. It knows no threads, and its calls know no arithmetic. */
static bool is_skipped(const struct backend *backend, size_t i, uint32_t pool)
{
    return backend == backend_ref_found() &&
           (i >= COUNT(SHAPES) || pool % N_POOL);
}

Test(attend, ranges_of_blocks_give_the_bits_of_one_call)
{
    static const uint32_t N_ROW[] = {N_TOKEN, 130, 65, 9, 2, 1};
    struct pool *pools[N_POOL];

    pools_create(pools);
    for (size_t i = 0; i < N_CASE; i++) {
        struct session s;
        session_init(&s, case_of(i), 10 * i);
        clear_blocks(&s, BROKEN); /* of what lies behind the rows, all stays */
        float *want = constant(out_floats(&s), 0.0f);
        run(&s, backend_ref_found(), NULL, 0, N_TOKEN, want);
        EACH_BACKEND(backend)
        for (uint32_t c = 0; c < COUNT(N_ROW) * N_POOL; c++) {
            uint32_t n = N_ROW[c / N_POOL], first = N_TOKEN - n;
            struct attend_span span = {first, n, first, s.block, NULL};
            if (is_skipped(backend, i, c))
                continue;
            float *out = constant(out_floats(&s), 0.0f);
            memcpy(out, want, first * s.q_stride * sizeof(float));
            for (uint32_t r = first; r < N_TOKEN; r++)
                for (uint32_t e = 0; e < s.q_stride - 1; e++)
                    out[r * s.q_stride + e] = NAN;
            run_in_ranges(backend, pools[c % N_POOL], args_of(&s, &span, out),
                          97 * i + c);
            assert_same(out, want, out_floats(&s), backend->name);
            drop(out);
        }
        drop(want);
        session_release(&s);
    }
    pools_destroy(pools);
}

/* As under flush modes, where gates make a subnormal. */
static float flushed(float x)
{
    return fabsf(x) < FLT_MIN ? copysignf(0.0f, x) : x;
}

/* Rows of `plain` gated by q, then rounded if `rounded`, to floats. */
static void end_rows(const struct session *s, const float *plain, bool is_gated,
                     bool is_rounded, float *out)
{
    for (uint32_t r = 0; r < N_TOKEN; r++)
        for (uint32_t e = 0; e < s->q_stride - 1; e++) {
            size_t at = r * s->q_stride + e;
            float x = plain[at];
            x = is_gated ? flushed(x * flushed(scalar_sigmoid(s->q[at]))) : x;
            out[at] = is_rounded ? scalar_from_bf16(scalar_to_bf16(x)) : x;
        }
}

/* The last n rows in ranges of blocks; of earlier ones nothing is touched. */
static void check_ends(const struct session *s, const struct backend *backend,
                       struct pool *pool, const float *plain, uint32_t n,
                       uint64_t seed)
{
    const uint32_t first = N_TOKEN - n, width = (uint32_t)s->q_stride - 1;
    const struct attend_span span = {first, n, first, s->block, NULL};

    for (int end = 1; end < 4; end++) {
        const bool is_gated = end & 1, is_rounded = end & 2;
        float *want = constant(out_floats(s), 0.0f);
        float *out = constant(out_floats(s), 0.0f);
        uint16_t *rounded = calloc(N_TOKEN * width, sizeof(*rounded));
        struct attend_args args = args_of(s, &span, out);

        end_rows(s, plain, is_gated, is_rounded, want);
        memset(want, 0, first * s->q_stride * sizeof(*want));
        args.gate = is_gated ? s->q : NULL;
        args.gate_stride = s->q_stride;
        args.out_rounded = is_rounded ? rounded : NULL;
        run_in_ranges(backend, pool, args, seed);
        for (uint32_t r = 0; r < N_TOKEN && is_rounded; r++)
            for (uint32_t e = 0; e < width; e++)
                out[r * s->q_stride + e] =
                    scalar_from_bf16(rounded[r * width + e]);
        assert_same(out, want, out_floats(s), backend->name);
        free(rounded);
        drop(out);
        drop(want);
    }
}

Test(attend, rows_are_gated_and_rounded_once_in_ranges_of_blocks_too)
{
    static const uint32_t N_ROW[] = {N_TOKEN, 65, 9, 1};
    struct pool *pools[N_POOL];

    pools_create(pools);
    for (size_t i = 0; i < N_CASE; i++) {
        struct session s;
        session_init(&s, case_of(i), 10 * i);
        float *plain = whole(&s);
        EACH_BACKEND(backend)
        for (uint32_t c = 0; c < COUNT(N_ROW) * N_POOL; c++)
            if (!is_skipped(backend, i, c) &&
                (backend != backend_ref_found() || c < 2 * N_POOL))
                check_ends(&s, backend, pools[c % N_POOL], plain,
                           N_ROW[c / N_POOL], 31 * i + c);
        drop(plain);
        session_release(&s);
    }
    pools_destroy(pools);
}

/*
 * One session far ahead of the others, so that threads share its blocks; the
 * others are one row, some drafts, and a prompt's end that is not shared.
 */
Test(attend, unequal_sessions_share_the_threads_and_keep_their_bits)
{
    static const uint32_t N_ROW[] = {1, 1, 5, 90},
                          POSITION[] = {190, 3, 60, 30};
    struct pool *pools[N_POOL];
    struct session s;

    pools_create(pools);
    for (size_t i = 0; i < N_CASE; i++) {
        session_init(&s, case_of(i), 7 * i);
        float *want = whole(&s), *q = constant(97 * s.q_stride, 0.0f);
        struct attend_span span[4];
        for (uint32_t k = 0, row = 0; k < 4; row += N_ROW[k++]) {
            span[k] =
                (struct attend_span){row, N_ROW[k], POSITION[k], s.block, NULL};
            memcpy(q + row * s.q_stride, s.q + POSITION[k] * s.q_stride,
                   N_ROW[k] * s.q_stride * sizeof(float));
        }
        EACH_BACKEND(backend)
        for (uint32_t c = 0; c < 2 * N_POOL; c++) {
            if (is_skipped(backend, i, c))
                continue;
            float *out = constant(97 * s.q_stride, 0.0f);
            struct attend_args args = args_of(&s, span, out);
            args.q = q;
            args.n_span = 4;
            if (c < N_POOL)
                backend->attend(pools[c], &args);
            else
                run_in_ranges(backend, pools[c - N_POOL], args, c + i);
            for (uint32_t k = 0; k < 4; k++)
                assert_same(out + span[k].first_row * s.q_stride,
                            want + POSITION[k] * s.q_stride,
                            N_ROW[k] * s.q_stride, backend->name);
            drop(out);
        }
        drop(q);
        drop(want);
        session_release(&s);
    }
    pools_destroy(pools);
}

/* One thread's spans are longer than the other's. */
static void check_rounds(struct pool *pool, enum arithmetic arithmetic)
{
    enum { N_SPAN = 45 };
    struct session s;
    struct attend_span span[N_SPAN];

    session_init(&s, (struct shape){{64, 1, 1024, arithmetic, 0}, 0}, 11);
    struct attend_span all = {0, N_TOKEN, 0, s.block, NULL};
    backend_ref_found()->kv_append(
        NULL, &(struct kv_append_args){s.shape, s.k, s.v, s.k_stride,
                                       s.v_stride, &all, 1});
    for (uint32_t i = 0; i < N_SPAN; i++)
        span[i] =
            (struct attend_span){i, 1, i % 2 ? i : 149 + i, s.block, NULL};
    EACH_BACKEND(backend)
    {
        if (backend == backend_ref_found())
            continue; /* it takes seconds and knows no threads */
        float *want = constant(N_SPAN * s.q_stride, 0.0f);
        float *out = constant(N_SPAN * s.q_stride, 0.0f);
        struct attend_args args = args_of(&s, span, want);
        args.n_span = N_SPAN;
        backend->attend(NULL, &args);
        args.out = out;
        backend->attend(pool, &args);
        assert_same(out, want, N_SPAN * s.q_stride, backend->name);
        drop(out);
        drop(want);
    }
    session_release(&s);
}

/* More partial results than shared memory holds: they are merged in rounds. */
Test(attend, many_wide_rows_share_the_threads_in_rounds)
{
    struct pool *pool = NULL;

    must(pool_create(2, &pool));
    for (int i = 0; i < N_CPU_ARITHMETIC; i++)
        check_rounds(pool, (enum arithmetic)i);
    pool_destroy(pool);
}

static void check_mean(enum arithmetic arithmetic)
{
    struct session s;
    session_init(&s, (struct shape){{1, 1, 16, arithmetic, 0}, 0}, 3);

    for (size_t i = 0; i < N_TOKEN * s.v_stride; i++)
        s.v[i] = (float)kept(&s, (double)s.v[i]);
    for (size_t t = 0; t < N_TOKEN; t++)
        for (size_t d = 0; d < 16; d++)
            s.k[t * s.k_stride + d] = 1.0f;
    EACH_BACKEND(backend)
    {
        float *out = constant(out_floats(&s), 0.0f);
        clear_blocks(&s, EMPTY);
        run(&s, backend, NULL, 0, N_TOKEN, out);
        assert_same(out, s.v, 16, backend->name);
        double mean[16] = {0};
        for (size_t t = 0; t < N_TOKEN; t++)
            for (size_t d = 0; d < 16; d++)
                mean[d] += (double)s.v[t * s.v_stride + d] / N_TOKEN;
        assert_near(out + (N_TOKEN - 1) * s.q_stride, mean, 16, 1e-6,
                    backend->name);
        drop(out);
    }
    session_release(&s);
}

Test(attend, one_key_returns_its_value_and_equal_keys_the_mean)
{
    for (int i = 0; i < N_CPU_ARITHMETIC; i++)
        check_mean((enum arithmetic)i);
}
