/*
 * Indices of blocks against oracles in double, and attention over chosen blocks
 * against a softmax in double over the same keys at the same positions; then
 * every backend against ref by bits. In each arithmetic.
 */
#include "kernels/index.h"
#include "kernels/scalar.h"
#include "tests/unit/kernels/fixture.h"

enum { N_BLOCK = 6, N_CHOSEN = 4, N_ROW = 40 };

static const struct attend_shape SHAPES[] = {
    {4, 2, 64, 0, 0}, {3, 3, 16, 0, 0},  {6, 2, 63, 0, 0},
    {8, 1, 96, 0, 0}, {34, 2, 32, 0, 0},
};
static const uint32_t N_ROT[] = {16, 16, 20, 96, 0};

struct session {
    struct attend_shape shape;
    float *q, *k, *v; /* of N_BLOCK * KV_BLOCK tokens, packed */
    size_t q_stride, kv_stride;
    void *block[N_BLOCK];
    struct rope_table table;
    double freq[HEAD_DIM_MAX];
};

static void session_init(struct session *s, size_t i)
{
    const size_t n_token = (size_t)N_BLOCK * KV_BLOCK;
    const uint32_t n_rot = N_ROT[i % COUNT(SHAPES)];
    struct attend_span span = {0, n_token, 0, s->block, NULL};

    s->shape = SHAPES[i % COUNT(SHAPES)];
    s->shape.arithmetic = (enum arithmetic)(i / COUNT(SHAPES));
    s->q_stride = (size_t)s->shape.n_head * s->shape.d_head;
    s->kv_stride = (size_t)s->shape.n_kv_head * s->shape.d_head;
    s->q = filled(n_token * s->q_stride, i + 1);
    s->k = filled(n_token * s->kv_stride, i + 2);
    s->v = filled(n_token * s->kv_stride, i + 3);
    for (size_t f = 0; f < n_rot / 2; f++)
        s->freq[f] = pow(100.0, -2.0 * (double)f / n_rot);
    must(rope_table_init(n_rot, n_token, s->freq, &s->table));
    for (size_t b = 0; b < N_BLOCK; b++)
        s->block[b] = constant(kv_block_bytes(s->shape) / sizeof(float), 0.0f);
    backend_ref_found()->kv_append(
        NULL, &(struct kv_append_args){s->shape, s->k, s->v, s->kv_stride,
                                       s->kv_stride, &span, 1});
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

/* Key of a token as its block keeps it, dimension d of a head, rotated. */
static double key_at(const struct session *s, size_t token, size_t head,
                     size_t d, double position)
{
    const float *k = s->k + token * s->kv_stride + head * s->shape.d_head;
    const size_t n_pair = s->table.n_rot / 2;
    const bool is_bf16 = s->shape.arithmetic != ARITHMETIC_FP32;
    double x[2];

    if (n_pair == 0 || d >= 2 * n_pair)
        return is_bf16 ? scalar_from_bf16(scalar_to_bf16(k[d])) : k[d];
    for (size_t side = 0; side < 2; side++) {
        const float kept = k[d % n_pair + side * n_pair];

        x[side] = is_bf16 ? scalar_from_bf16(scalar_to_bf16(kept)) : kept;
    }
    const double angle = position * s->freq[d % n_pair];
    return d < n_pair ? x[0] * cos(angle) - x[1] * sin(angle)
                      : x[1] * cos(angle) + x[0] * sin(angle);
}

/* ------------------------------------------------------------------ indices */

Test(index, bounds_hold_every_rotated_key_and_are_reached)
{
    for (size_t i = 0; i < COUNT(SHAPES) * N_CPU_ARITHMETIC; i++) {
        struct session s;

        session_init(&s, i);
        const size_t d_head = s.shape.d_head, b = 3;
        float *index = constant(
            kv_index_bytes(s.shape, INDEX_BOUNDS) / sizeof(float), 0.0f);
        backend_ref_found()->kv_seal(
            NULL, &(struct kv_seal_args){.shape = s.shape,
                                         .kind = INDEX_BOUNDS,
                                         .table = &s.table,
                                         .block = s.block[b],
                                         .position = b * KV_BLOCK,
                                         .index = index});
        for (size_t h = 0; h < s.shape.n_kv_head; h++)
            for (size_t d = 0; d < d_head; d++) {
                double low = INFINITY, high = -INFINITY;

                for (size_t t = b * KV_BLOCK; t < (b + 1) * KV_BLOCK; t++) {
                    const double k = key_at(&s, t, h, d, (double)t);

                    low = k < low ? k : low;
                    high = k > high ? k : high;
                }
                cr_assert_float_eq(index[h * 2 * d_head + d], low, 1e-5);
                cr_assert_float_eq(index[(h * 2 + 1) * d_head + d], high, 1e-5);
            }
        drop(index);
        session_release(&s);
    }
}

static double distance(const struct session *s, size_t b, size_t head, size_t j,
                       const double *to)
{
    double sum = 0.0;

    for (size_t d = 0; d < s->shape.d_head; d++) {
        const double x = key_at(s, b * KV_BLOCK + j, head, d, 0.0) - to[d];

        sum += x * x;
    }
    return sum;
}

/* Of a dimension among the halves of a key's words. */
static size_t place(size_t d)
{
    return d / 32 * 32 + (d % 16) * 2 + d / 16 % 2;
}

/* Each chosen key is, but for rounding, as far as any from those before it. */
static void check_keys(const struct session *s, size_t b, size_t head,
                       const uint16_t *index)
{
    const size_t d_head = s->shape.d_head;
    double point[HEAD_DIM_MAX] = {0.0}, least[KV_BLOCK];

    for (size_t j = 0; j < KV_BLOCK; j++)
        for (size_t d = 0; d < d_head; d++)
            point[d] += key_at(s, b * KV_BLOCK + j, head, d, 0.0) / KV_BLOCK;
    for (size_t j = 0; j < KV_BLOCK; j++)
        least[j] = distance(s, b, head, j, point);
    for (uint32_t i = 0; i < INDEX_CHOSEN;
         i++, index += 2 * index_key_words(s->shape)) {
        size_t best = 0, chosen = KV_BLOCK;

        for (size_t j = 0; j < KV_BLOCK; j++) {
            bool is_it = true;

            for (size_t d = 0; d < d_head; d++)
                is_it &= index[place(d)] ==
                         scalar_to_bf16(
                             (float)key_at(s, b * KV_BLOCK + j, head, d, 0.0));
            chosen = is_it ? j : chosen;
            best = least[j] > least[best] ? j : best;
        }
        cr_assert_lt(chosen, KV_BLOCK);
        cr_assert_geq(least[chosen], least[best] * (1.0 - 1e-5));
        for (size_t d = 0; d < d_head; d++)
            point[d] = key_at(s, b * KV_BLOCK + chosen, head, d, 0.0);
        for (size_t j = 0; j < KV_BLOCK; j++) {
            const double far = distance(s, b, head, j, point);

            least[j] = i == 0 || far < least[j] ? far : least[j];
        }
    }
}

Test(index, chosen_keys_are_far_from_each_other)
{
    for (size_t i = 0; i < COUNT(SHAPES) * N_CPU_ARITHMETIC; i++) {
        struct session s;

        session_init(&s, i);
        float *index =
            constant(kv_index_bytes(s.shape, INDEX_KEYS) / sizeof(float), 0.0f);
        backend_ref_found()->kv_seal(
            NULL, &(struct kv_seal_args){.shape = s.shape,
                                         .kind = INDEX_KEYS,
                                         .table = &s.table,
                                         .block = s.block[2],
                                         .position = 2 * KV_BLOCK,
                                         .index = index});
        for (size_t h = 0; h < s.shape.n_kv_head; h++)
            check_keys(&s, 2, h,
                       (uint16_t *)(void *)index +
                           h * INDEX_CHOSEN * 2 * index_key_words(s.shape));
        drop(index);
        session_release(&s);
    }
}

static double score_of(struct attend_shape shape, enum index_kind kind,
                       const float *q, const void *index)
{
    const size_t d_head = shape.d_head;
    double sum = 0.0;

    for (size_t h = 0; h < shape.n_head; h++) {
        const size_t kv = h / (shape.n_head / shape.n_kv_head);
        const float *low = (const float *)index + kv * 2 * d_head;
        const uint16_t *k = (const uint16_t *)index +
                            kv * INDEX_CHOSEN * 2 * index_key_words(shape);
        double best = -INFINITY, bound = 0.0;

        for (size_t d = 0; kind == INDEX_BOUNDS && d < d_head; d++) {
            const double x = q[h * d_head + d];

            bound += fmax(x * low[d], x * low[d_head + d]);
        }
        for (size_t i = 0; kind == INDEX_KEYS && i < INDEX_CHOSEN; i++) {
            double x = 0.0;

            for (size_t d = 0; d < d_head; d++)
                x += q[h * d_head + d] *
                     scalar_from_bf16(
                         k[i * 2 * index_key_words(shape) + place(d)]);
            best = x > best ? x : best;
        }
        sum += kind == INDEX_KEYS ? best : bound;
    }
    return sum;
}

Test(index, scores_are_products_and_bounds_and_the_same_with_threads)
{
    enum { N = 700, FIRST = 3 };
    struct pool *pools[N_POOL];

    pools_create(pools);
    for (size_t i = 0; i < COUNT(SHAPES) * 2; i++) {
        const enum index_kind kind = i % 2 ? INDEX_BOUNDS : INDEX_KEYS;
        const struct attend_shape shape = SHAPES[i / 2];
        const size_t n = kv_index_bytes(shape, kind) / sizeof(float);
        float *all = filled(N * n, i), score[N], again[N];
        float *q = filled((size_t)shape.n_head * shape.d_head, i + 50);
        uint16_t *bits = (uint16_t *)(void *)all;
        void *index[N];

        for (size_t b = 0; b < N; b++)
            index[b] = all + b * n;
        for (size_t k = 0; kind == INDEX_KEYS && k < 2 * N * n; k++)
            bits[k] = scalar_to_bf16(noise(i + 9, k));
        struct kv_score_args args = {.shape = shape,
                                     .kind = kind,
                                     .q = q,
                                     .index = index,
                                     .first = FIRST,
                                     .end = N,
                                     .score = score};
        backend_ref_found()->kv_score(NULL, &args);
        for (size_t b = FIRST; b < N; b++)
            cr_assert_float_eq(score[b - FIRST],
                               score_of(shape, kind, q, index[b]), 1e-3);
        args.score = again;
        EACH_BACKEND(backend)
        for (size_t p = 0; p < N_POOL; p++) {
            memset(again, 0, sizeof(again));
            backend->kv_score(pools[p], &args);
            assert_same(again, score, N - FIRST, backend->name);
        }
        drop(all);
        drop(q);
    }
    pools_destroy(pools);
}

/* Of keys in bf16 they are the same numbers. */
Test(index, short_bounds_score_the_same)
{
    enum { N = 40 };

    for (size_t i = 0; i < COUNT(SHAPES); i++) {
        const struct attend_shape shape = SHAPES[i];
        const size_t n = kv_index_bytes(shape, INDEX_BOUNDS) / sizeof(float);
        const size_t n_short = kv_short_bounds_bytes(shape) / sizeof(float);
        float *all = filled(N * n, i), *brief = filled(N * n_short, i);
        float *q = filled((size_t)shape.n_head * shape.d_head, i + 50);
        float want[N], score[N];
        void *index[N], *in_brief[N];

        for (size_t k = 0; k < N * n; k++)
            all[k] = scalar_from_bf16(scalar_to_bf16(all[k]));
        for (size_t b = 0; b < N; b++) {
            index[b] = all + b * n;
            in_brief[b] = brief + b * n_short;
            kv_shorten_bounds(shape, index[b], in_brief[b]);
        }
        struct kv_score_args args = {.shape = shape,
                                     .kind = INDEX_BOUNDS,
                                     .q = q,
                                     .index = index,
                                     .end = N,
                                     .score = want};
        backend_ref_found()->kv_score(NULL, &args);
        args.is_short = true;
        args.index = in_brief;
        args.score = score;
        EACH_BACKEND(backend)
        {
            memset(score, 0, sizeof(score));
            backend->kv_score(NULL, &args);
            assert_same(score, want, N, backend->name);
        }
        drop(all);
        drop(brief);
        drop(q);
    }
}

/* ------------------------------------------------------- shares of blocks */

/* What share of the attention of row `row`, at token `token`, a block gets. */
static double share_of(const struct session *s, const float *q, size_t token,
                       size_t head, size_t block)
{
    const size_t n_query = s->shape.n_head / s->shape.n_kv_head;
    double all = 0.0, its = 0.0;

    for (size_t t = 0; t <= token; t++) {
        double sum = 0.0;

        for (size_t d = 0; d < s->shape.d_head; d++)
            sum += q[head * s->shape.d_head + d] *
                   key_at(s, t, head / n_query, d, (double)t);
        sum = exp(sum * 0.5);
        all += sum;
        its += t / KV_BLOCK == block ? sum : 0.0;
    }
    return its / all;
}

/* Rows that begin in the middle of a block that is asked for, too. */
Test(index, shares_of_attention_are_those_of_a_softmax)
{
    enum { N = 11, AT = 4 * KV_BLOCK - 5, FIRST_BLOCK = 1, END = 4 };
    struct pool *pools[N_POOL];

    pools_create(pools);
    for (size_t i = 0; i < COUNT(SHAPES) * N_CPU_ARITHMETIC; i++) {
        struct session s;

        session_init(&s, i);
        const size_t n_q = s.q_stride, n_head = s.shape.n_head;
        float mass[END - FIRST_BLOCK], again[END - FIRST_BLOCK];
        float *stat = constant(2 * N * n_head, 7.0f);
        struct kv_mass_args args = {.shape = s.shape,
                                    .table = &s.table,
                                    .scale = 0.5f,
                                    .q = s.q,
                                    .n_row = N,
                                    .position = AT,
                                    .block = s.block,
                                    .first = FIRST_BLOCK,
                                    .end = END,
                                    .stat = stat,
                                    .mass = mass};
        backend_ref_found()->kv_mass(NULL, &args);
        for (size_t b = FIRST_BLOCK; b < END; b++) {
            double want = 0.0;

            for (size_t row = 0; row < N; row++)
                for (size_t h = 0; h < n_head; h++)
                    want += share_of(&s, s.q + row * n_q, AT + row, h, b);
            cr_assert_float_eq(mass[b - FIRST_BLOCK], want, 1e-4 * want,
                               "shape %zu, block %zu: %g, %g", i, b,
                               (double)mass[b - FIRST_BLOCK], want);
        }
        args.mass = again;
        EACH_BACKEND(backend)
        for (size_t p = 0; p < N_POOL; p++) {
            memset(again, 0, sizeof(again));
            backend->kv_mass(pools[p], &args);
            assert_same(again, mass, END - FIRST_BLOCK, backend->name);
        }
        drop(stat);
        session_release(&s);
    }
    pools_destroy(pools);
}

/* ------------------------------------------------- attention over a choice */

/* Rows at the end of block 4 see blocks 0, 3 and 1, in this order, then their
 * own; one of them flat. */
static const uint64_t CHOSEN[N_CHOSEN] = {0, 3, 1, 4};
static const struct key_place PLACE[N_CHOSEN] = {
    {.position = 2 * KV_BLOCK},
    {.position = 77, .is_flat = true},
    {.position = KV_BLOCK},
    {.position = 4 * KV_BLOCK},
};
enum { FIRST = 4 * KV_BLOCK + 20 };

static double score_in_double(const struct session *s, size_t row, size_t head,
                              size_t i, size_t j)
{
    const size_t d_head = s->shape.d_head;
    const size_t kv_head = head / (s->shape.n_head / s->shape.n_kv_head);
    const float *q = s->q + (FIRST + row) * s->q_stride + head * d_head;
    const double position =
        (double)PLACE[i].position + (PLACE[i].is_flat ? 0.0 : (double)j);
    double sum = 0.0;

    for (size_t d = 0; d < d_head; d++)
        sum += q[d] * 0.1 *
               key_at(s, CHOSEN[i] * KV_BLOCK + j, kv_head, d, position);
    return sum;
}

static double expected(const struct session *s, size_t row, size_t head,
                       size_t e)
{
    const size_t d_head = s->shape.d_head;
    const size_t kv_head = head / (s->shape.n_head / s->shape.n_kv_head);
    double sum = 0.0, all = 0.0;

    for (size_t i = 0; i < N_CHOSEN; i++)
        for (size_t j = 0; j < KV_BLOCK; j++) {
            const size_t token = CHOSEN[i] * KV_BLOCK + j;
            double w;

            if (token > FIRST + row)
                break;
            w = exp(score_in_double(s, row, head, i, j));
            all += w;
            sum += w * s->v[token * s->kv_stride + kv_head * d_head + e];
        }
    return sum / all;
}

Test(index, attention_over_chosen_blocks_at_chosen_positions)
{
    struct pool *pools[N_POOL];

    pools_create(pools);
    for (size_t i = 0; i < COUNT(SHAPES) * N_CPU_ARITHMETIC; i++) {
        struct session s;

        session_init(&s, i);
        void *block[N_CHOSEN];
        float *want = constant(N_ROW * s.q_stride, 0.0f);
        float *got = constant(N_ROW * s.q_stride, 0.0f);
        const double bound = s.shape.arithmetic ? 2e-2 : 1e-5;

        for (size_t b = 0; b < N_CHOSEN; b++)
            block[b] = s.block[CHOSEN[b]];
        struct attend_span span = {0, N_ROW, 3 * KV_BLOCK + 20, block, PLACE};
        struct attend_args args = {.shape = s.shape,
                                   .out = want,
                                   .out_stride = s.q_stride,
                                   .q = s.q + FIRST * s.q_stride,
                                   .q_stride = s.q_stride,
                                   .table = &s.table,
                                   .scale = 0.1f,
                                   .span = &span,
                                   .n_span = 1};
        backend_ref_found()->attend(NULL, &args);
        for (size_t r = 0; r < N_ROW; r += 13)
            for (size_t at = 0; at < s.q_stride; at += 7)
                cr_assert_float_eq(
                    want[r * s.q_stride + at],
                    expected(&s, r, at / s.shape.d_head, at % s.shape.d_head),
                    bound);
        args.out = got;
        EACH_BACKEND(backend)
        for (size_t p = 0; p < N_POOL; p++)
            for (uint32_t n = 1; n <= N_ROW; n = n == 1   ? 7
                                                 : n == 7 ? N_ROW
                                                          : 41) {
                for (uint32_t r = 0; r < N_ROW; r += n) {
                    span = (struct attend_span){
                        r, n < N_ROW - r ? n : N_ROW - r, 3 * KV_BLOCK + 20 + r,
                        block, PLACE};
                    backend->attend(pools[p], &args);
                }
                assert_same(got, want, N_ROW * s.q_stride, backend->name);
            }
        drop(want);
        drop(got);
        session_release(&s);
    }
    pools_destroy(pools);
}
