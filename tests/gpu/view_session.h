#ifndef TESTS_GPU_VIEW_SESSION_H
#define TESTS_GPU_VIEW_SESSION_H
/*
 * Sessions under memory policies for the check of kv_view: what they hold on
 * the device, the same on the host, where ref's functions and plain loops do
 * one view after the other, and the views that their rows have.
 */
extern "C" {
#include "kernels/index.h"
#include "kernels/ref/ref.h"
#include "kernels/scalar.h"
}
#include "kernels/cuda/view.cuh"
#include "tests/gpu/recorded_device.h"

#include <math.h>
#include <string.h>

static uint64_t seed = 1;
static uint32_t draw(uint32_t n) /* below n */
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(((seed >> 32) * n) >> 32);
}

/* In [-2, 2); coarse ones are often equal, and zero. */
static float number(bool is_coarse)
{
    const float x = (float)draw(1u << 16) * 0x1p-14f - 2.0f;

    return is_coarse ? rintf(x) * (draw(2) ? 1.0f : -0.0f) : x;
}

struct rule { /* a policy */
    enum index_kind index;
    enum key_rule keys;
    bool is_placed;
    uint32_t n_sink, n_window, n_pick, step, reuse;
    uint64_t end; /* of INDEX_MASS */
};

#define N_SUM 16u
#define PICK_WORDS (1 + VIEW_PICK_MAX)

struct session {
    struct attend_shape shape; /* as the host's blocks: floats */
    struct rule rule;
    const struct rope_table *table; /* on the host */
    bool is_coarse;
    uint32_t n_block;
    uint64_t position;     /* rows so far */
    uint32_t n_now;        /* picks in force */
    size_t block_bytes;    /* on the device, without the index */
    size_t index_bytes;    /* of a block */
    unsigned char *memory; /* of all blocks on the device */
    void **far_block;      /* on the device: where they are, as in to[] */
    void **to;
    void **block; /* the same on the host, [n_block] floats */
    void **index;
    float *queries, *far_queries;
    uint32_t *pick, *far_pick;
};

static uint32_t n_sum_of(const struct rule *r)
{
    return r->step == 0 ? 0 : r->step < N_SUM ? N_SUM / r->step : 1;
}

static size_t query_floats(const struct session *s)
{
    return (size_t)s->shape.n_head * s->shape.d_head;
}

static uint32_t padded(uint32_t d)
{
    return d <= 64 ? 64u : d <= 128 ? 128u : 256u;
}

static float rounded(float x)
{
    return scalar_from_bf16(scalar_to_bf16(x));
}

/* Keys of a block at random, on the host as floats and as tiles for the
 * device; `like` another one, so that their scores tie. */
static void make_block(const struct session *s, uint32_t b, uint32_t like,
                       unsigned char *tiles)
{
    const uint32_t d = s->shape.d_head, d_padded = padded(d);

    for (uint32_t h = 0; h < s->shape.n_kv_head; h++) {
        float *k = (float *)s->block[b] + (size_t)h * d * KV_BLOCK;
        const float *as =
            (const float *)s->block[like] + (size_t)h * d * KV_BLOCK;

        for (uint32_t i = 0; i < d * KV_BLOCK; i++) {
            const uint32_t e = i / KV_BLOCK, j = i % KV_BLOCK;
            const uint32_t at = h * d_padded * 128 + e / 64 * 64 * 128 +
                                j * 128 + ((e % 64 / 8) ^ (j % 8)) * 16 +
                                e % 8 * 2;

            k[i] = like != b ? as[i] : rounded(number(s->is_coarse));
            const uint16_t bits = scalar_to_bf16(k[i]);
            memcpy(tiles + at, &bits, 2);
        }
    }
}

static void seal(const struct session *s, uint64_t b)
{
    struct kv_seal_args a = {s->shape,    s->rule.index, NULL,
                             s->block[b], b * KV_BLOCK,  s->index[b]};

    a.table = s->rule.is_placed ? s->table : NULL;
    index_seal(NULL, &a);
}

/* Blocks up to the position are full and have their indices. */
static void make_blocks(struct session *s)
{
    const size_t stride = s->block_bytes + s->index_bytes;
    const size_t host = kv_block_bytes(s->shape);
    unsigned char *tiles = (unsigned char *)malloc(stride);
    uint32_t *place = (uint32_t *)malloc(s->n_block * sizeof(*place));
    const bool is_sealed =
        s->rule.index == INDEX_KEYS || s->rule.index == INDEX_BOUNDS;

    for (uint32_t i = 0; i < s->n_block; i++) { /* anywhere in memory */
        const uint32_t j = draw(i + 1);

        place[i] = place[j];
        place[j] = i;
    }
    for (uint32_t b = 0; b < s->n_block; b++) {
        s->block[b] = malloc(host);
        s->index[b] = calloc(1, s->index_bytes + 4);
        s->to[b] = s->memory + place[b] * stride;
        memset(tiles, 0, stride);
        make_block(s, b, b && draw(3) == 0 ? draw(b) : b, tiles);
        if (is_sealed && b < s->position / KV_BLOCK) {
            seal(s, b);
            memcpy(tiles + s->block_bytes, s->index[b], s->index_bytes);
        }
        CUDA(cudaMemcpy(s->to[b], tiles, stride, cudaMemcpyHostToDevice));
    }
    CUDA(cudaMemcpy(s->far_block, s->to, s->n_block * sizeof(void *),
                    cudaMemcpyHostToDevice));
    free(tiles);
    free(place);
}

/* ------------------------------------------------------------------- views */

static uint64_t window_start(const struct rule *r, uint64_t chunk)
{
    const uint32_t period = r->step * r->reuse;
    const uint32_t still = period / GRID > 1 ? period / GRID : 1;
    const uint64_t since =
        r->index == INDEX_MASS ? r->end / GRID : chunk - chunk % still;

    return since > r->n_window ? since - r->n_window : 0;
}

static bool sees_all(const struct rule *r, uint64_t position)
{
    return r->index == INDEX_MASS && position < r->end;
}

/* Blocks to choose from when rows before `end` are done. */
static void candidates(const struct rule *r, uint64_t end, uint64_t *from,
                       uint64_t *to)
{
    *to = window_start(r, end / GRID);
    *from = r->n_sink < *to ? r->n_sink : *to;
}

static uint32_t n_choice(const struct rule *r, uint64_t end)
{
    uint64_t from, to;

    candidates(r, end, &from, &to);
    return to - from < r->n_pick ? (uint32_t)(to - from) : r->n_pick;
}

static uint64_t view_end(const struct rule *r, uint64_t position)
{
    const uint32_t period = r->step * r->reuse;
    const uint32_t n =
        period && period < GRID && r->index != INDEX_MASS ? period : GRID;
    const uint64_t end = (position / n + 1) * n;

    return sees_all(r, position) && end > r->end ? r->end : end;
}

static bool looks_up(const struct rule *r, uint64_t end)
{
    if (r->index == INDEX_MASS)
        return end == r->end;
    return r->index && end % (r->step * r->reuse) == 0;
}

/* The next view of up to n rows; the session goes on by as many. */
static struct kv_view next_view(struct session *s, uint32_t row, uint32_t n,
                                uint64_t first_seen)
{
    const struct rule *r = &s->rule;
    const uint64_t at = s->position, left = view_end(r, at) - at;
    struct kv_view v = {};

    v.first_row = row;
    v.n_row = left < n ? (uint32_t)left : n;
    v.position = at;
    v.block = s->far_block;
    v.first_seen = first_seen;
    v.chunk = at / GRID;
    v.window = sees_all(r, at) ? v.chunk : window_start(r, v.chunk);
    v.n_sink = sees_all(r, at)        ? 0
               : r->n_sink < v.window ? r->n_sink
                                      : (uint32_t)v.window;
    v.n_pick = s->n_now;
    v.keys = r->keys;
    v.is_seen = !sees_all(r, at) && draw(8);
    v.index = r->index;
    s->position += v.n_row;
    if (!r->index)
        return v;
    v.pick = s->far_pick;
    if (r->index == INDEX_MASS && !sees_all(r, at))
        return v;
    v.queries = s->far_queries;
    v.step = r->step;
    v.n_sum = n_sum_of(r);
    v.is_placed = r->is_placed;
    v.is_full = s->position % GRID == 0 && r->index != INDEX_MASS;
    v.looks_up = looks_up(r, s->position);
    if (!v.looks_up)
        return v;
    candidates(r, s->position, &v.first, &v.end);
    v.n_choose = s->n_now = n_choice(r, s->position);
    v.look_position =
        r->is_placed ? s->position - 1 : (uint64_t)r->n_window * KV_BLOCK;
    return v;
}

/* ------------------------------------------------------------------ oracle */

struct seen { /* an entry of a list */
    void *block;
    uint64_t position;
    bool is_flat;
};

static uint32_t oracle_list(const struct session *s, const struct kv_view *v,
                            struct seen *out)
{
    uint32_t n = 0;

    for (uint64_t b = 0; b < v->n_sink; b++)
        out[n++].position = b;
    for (uint32_t i = 0; i < v->n_pick; i++)
        out[n++].position = s->pick[1 + i];
    for (uint64_t b = v->window; b <= v->chunk; b++)
        out[n++].position = b;
    for (uint32_t i = 0; i < n; i++) {
        const uint64_t b = out[i].position;
        const bool is_far = v->keys == KEYS_FAR && b < v->window;

        out[i].block = s->to[b];
        out[i].is_flat = is_far;
        out[i].position =
            KV_BLOCK * (v->keys == KEYS_RANK ? v->chunk - (n - 1 - i)
                        : is_far             ? v->window
                                             : b);
    }
    return n;
}

static void oracle_add(struct session *s, const struct kv_view *v,
                       const float *q, size_t stride)
{
    const size_t n_q = query_floats(s);

    for (uint32_t r = 0; r < v->n_row; r++) {
        const uint64_t t = v->position + r;
        float *sum = s->queries + t / v->step % v->n_sum * n_q;

        for (size_t i = 0; i < n_q; i++) {
            if (t % v->step == 0)
                sum[i] = 0.0f;
            sum[i] += q[(v->first_row + r) * stride + i];
        }
    }
}

static void rotate(const struct session *s, float *query, uint64_t *position,
                   uint32_t n_row)
{
    const struct rope_args a = {query,   query_floats(s), position,
                                n_row,   s->shape.n_head, s->shape.d_head,
                                s->table};

    ref_rope(NULL, &a);
}

static void oracle_mass(const struct session *s, const struct kv_view *v,
                        float scale, float *score)
{
    const size_t n_q = query_floats(s);
    const uint64_t end = v->position + v->n_row;
    const uint32_t n = end < v->n_sum ? (uint32_t)end : v->n_sum;
    float *query = (float *)malloc(n * n_q * 4);
    float *stat = (float *)malloc(n * s->shape.n_head * 8);
    uint64_t at[N_SUM];

    for (uint32_t r = 0; r < n; r++) {
        at[r] = end - n + r;
        memcpy(query + r * n_q, s->queries + at[r] % v->n_sum * n_q, n_q * 4);
    }
    rotate(s, query, at, n);
    const struct kv_mass_args a = {s->shape, s->table, scale,    query,
                                   n,        at[0],    s->block, v->first,
                                   v->end,   stat,     score};
    ref_kv_mass(NULL, &a);
    free(query);
    free(stat);
}

static void oracle_score(const struct session *s, const struct kv_view *v,
                         float *score)
{
    const size_t n_q = query_floats(s);
    float *query = (float *)calloc(n_q, 4);
    uint64_t at = v->look_position;

    for (uint32_t i = 0; i < v->n_sum; i++)
        for (size_t e = 0; e < n_q; e++)
            query[e] += s->queries[i * n_q + e];
    rotate(s, query, &at, 1);
    const struct kv_score_args a = {s->shape, v->index, false,  query,
                                    s->index, v->first, v->end, score};
    ref_kv_score(NULL, &a);
    free(query);
}

static void oracle_choose(struct session *s, const struct kv_view *v,
                          const float *score)
{
    const uint32_t n = (uint32_t)(v->end - v->first);
    bool *is_in = (bool *)calloc(n + 1, 1);

    for (uint32_t k = 0; k < v->n_choose; k++) {
        uint32_t best = n;

        for (uint32_t i = 0; i < n; i++)
            if (!is_in[i] &&
                (best == n || (v->n_choose < n && score[i] > score[best])))
                best = i;
        is_in[best] = true;
    }
    s->pick[0] = 0;
    for (uint32_t i = 0; i < n; i++)
        if (is_in[i])
            s->pick[++s->pick[0]] = (uint32_t)v->first + i;
    free(is_in);
}

/* What a view does; scores behind *score if it makes any. */
static void oracle_view(struct session *s, const struct kv_view *v,
                        const float *q, size_t stride, float scale,
                        float **score)
{
    const uint64_t n = v->end - v->first;

    if (!v->queries)
        return;
    oracle_add(s, v, q, stride);
    if (v->is_full)
        seal(s, v->chunk);
    if (!v->looks_up)
        return;
    if (v->n_choose && v->n_choose < n) {
        if (v->index == INDEX_MASS)
            oracle_mass(s, v, scale, *score);
        else
            oracle_score(s, v, *score);
    }
    oracle_choose(s, v, *score);
    if (v->n_choose && v->n_choose < n)
        *score += n;
}

/* ---------------------------------------------------------------- sessions */

/* Somewhere in its life, with n_token rows to come. */
static struct session session_make(struct attend_shape shape, struct rule rule,
                                   const struct rope_table *table,
                                   uint64_t position, uint32_t n_token,
                                   bool is_coarse)
{
    struct session s = {};
    const uint32_t period = rule.step * rule.reuse;

    s.shape = shape;
    s.rule = rule;
    s.table = table;
    s.is_coarse = is_coarse;
    s.position = position;
    s.n_block = (uint32_t)((position + n_token) / KV_BLOCK + 1);
    s.block_bytes = (size_t)shape.n_kv_head * padded(shape.d_head) * 256;
    s.index_bytes = kv_index_bytes(shape, rule.index);
    CUDA(cudaMalloc((void **)&s.memory,
                    s.n_block * (s.block_bytes + s.index_bytes)));
    CUDA(cudaMalloc((void **)&s.far_block, s.n_block * sizeof(void *)));
    s.block = (void **)malloc(s.n_block * sizeof(void *));
    s.index = (void **)malloc(s.n_block * sizeof(void *));
    s.to = (void **)malloc(s.n_block * sizeof(void *));
    make_blocks(&s);
    const size_t sums = N_SUM * query_floats(&s);
    s.queries = (float *)malloc(sums * 4);
    s.pick = (uint32_t *)calloc(PICK_WORDS, 4);
    for (size_t i = 0; i < sums; i++)
        s.queries[i] = number(is_coarse);
    if (period && rule.index != INDEX_MASS)
        s.n_now = n_choice(&rule, position / period * period);
    for (uint32_t i = 0; i < s.n_now; i++)
        s.pick[1 + i] = rule.n_sink + i;
    s.pick[0] = s.n_now;
    CUDA(cudaMalloc((void **)&s.far_queries, sums * 4));
    CUDA(cudaMalloc((void **)&s.far_pick, PICK_WORDS * 4));
    CUDA(
        cudaMemcpy(s.far_queries, s.queries, sums * 4, cudaMemcpyHostToDevice));
    CUDA(
        cudaMemcpy(s.far_pick, s.pick, PICK_WORDS * 4, cudaMemcpyHostToDevice));
    return s;
}

static void session_release(struct session *s)
{
    for (uint32_t b = 0; b < s->n_block; b++) {
        free(s->block[b]);
        free(s->index[b]);
    }
    free(s->block);
    free(s->index);
    free(s->to);
    free(s->queries);
    free(s->pick);
    cudaFree(s->memory);
    cudaFree(s->far_block);
    cudaFree(s->far_queries);
    cudaFree(s->far_pick);
}
#endif
