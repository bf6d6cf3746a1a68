#include "kernels/cpu/delta_rounded.h"
#include "kernels/cpu/delta_rows.h"
#include "kernels/cpu/pairs.h"

#include <math.h>

/*
 * One row has nothing to share a right side with, so its products are made
 * where their operands pass by, in words of two bf16: S0 is rounded once for
 * both a and c, the ring read once for both u and o. Between two folds S0
 * stands still: the first step rounds it into the session's copy, if it has
 * one, and the others read that, half of the bytes.
 */
#if defined(LANES_AVX512)
#define WIDTH_PAIR 8u /* panels side by side */
#define WIDTH_TILE 4u
#else
#define WIDTH_PAIR 2u
#define WIDTH_TILE 1u
#endif
#define AHEAD_WORDS 1024u /* of S0, from those in use to those asked for */
#define WIDTH_MAX 8u
#define STEP_PAIRS (LINEAR_STEP / 2u)
#define WORDS (GRID / 2u)

/* What all heads of the row share. */
struct shared {
    const struct delta_one *one;
    uint32_t d_k, d_v, i;
    uint32_t *k, *q;   /* [n_pair] words */
    float *kk, *qk;    /* [GRID] dots with the ring's keys */
    const uint32_t *u; /* the first v-head's ring, which comes behind them */
};

/* What a session remembers of one v-head. */
struct place {
    const float *s;
    uint32_t *copy;    /* [d_k / 2][d_v] of S0; or NULL */
    uint64_t *made_of; /* which chunk's it is */
    uint32_t *key;     /* [n_pair][GRID], of its k-head */
    uint32_t *u;       /* [GRID / 2][d_v] */
    double *g;         /* [GRID] */
};

struct weights {
    float w[GRID];                 /* w_ij */
    uint32_t far[WORDS], x[WORDS]; /* ~w_ij, ~x_ij with zeros behind */
    float since_grid;
};

/* One v-head. */
struct head {
    const struct shared *of;
    struct place at, next; /* and the one that this thread reads next */
    const struct weights *by;
    const float *v;
    float *out;
    float beta;
    bool is_copied; /* S0 is read from the copy */
};

/* Sums of a few panels. TILE has two chains for 32 steps, which then join the
 * sum; in the other order `even` is the sum. */
struct sums {
    v16 even[WIDTH_MAX], odd[WIDTH_MAX], sum[WIDTH_MAX];
};

LANES_INLINE void clear(struct sums *s, uint32_t width)
{
#pragma GCC unroll 8
    for (uint32_t p = 0; p < width; p++)
        s->even[p] = s->odd[p] = s->sum[p] = v16_zero();
}

/* Two steps of panel p: words x of factors by words y. */
LANES_INLINE void add_pair(struct sums *s, uint32_t p, enum arithmetic order,
                           v16 x, v16 y)
{
    if (order == ARITHMETIC_PAIR) {
        s->even[p] = v16_dot(x, y, s->even[p]);
    } else {
        s->even[p] = v16_fma(v16_low(x), v16_low(y), s->even[p]);
        s->odd[p] = v16_fma(v16_high(x), v16_high(y), s->odd[p]);
    }
}

LANES_INLINE v16 load_words(const uint32_t *x)
{
    return v16_load((const float *)(const void *)x);
}

/* At the end of 32 steps, or of all. */
LANES_INLINE void close(struct sums *s, uint32_t width, enum arithmetic order)
{
    if (order == ARITHMETIC_PAIR)
        return;
#pragma GCC unroll 8
    for (uint32_t p = 0; p < width; p++) {
        s->sum[p] = v16_add(s->sum[p], v16_add(s->even[p], s->odd[p]));
        s->even[p] = s->odd[p] = v16_zero();
    }
}

/* Padding would add products of +0, of which only the sign of a zero shows:
 * and that is what the +0 at the end of every product is there for. */
LANES_INLINE v16 total(const struct sums *s, uint32_t p, enum arithmetic order)
{
    return v16_add(order == ARITHMETIC_PAIR ? s->even[p] : s->sum[p],
                   v16_zero());
}

LANES_INLINE void fetch(const void *at, uint32_t n_word)
{
    for (uint32_t i = 0; i < n_word; i += LANES)
        _mm_prefetch((const char *)at + i * sizeof(uint32_t), _MM_HINT_T0);
}

/* -------------------------------------------------------------------- dots */

/* k and q with the keys of tokens [at, at + 16 width) of the ring. */
LANES_INLINE void dot_tokens(const struct shared *h, const uint32_t *ring,
                             uint32_t at, uint32_t width, enum arithmetic order)
{
    const uint32_t n_pair = (h->d_k + 1) / 2;
    struct sums k, q;

    clear(&k, width);
    clear(&q, width);
    for (uint32_t d = 0; d < n_pair; d++) {
        const v16 by_k = v16_set1_word(h->k + d);
        const v16 by_q = v16_set1_word(h->q + d);

        if (at == 0 && d <= h->i / 2)
            fetch(h->u + d * (size_t)h->d_v, h->d_v);
#pragma GCC unroll 4
        for (uint32_t p = 0; p < width; p++) {
            const v16 key = load_words(ring + d * GRID + at + p * LANES);

            add_pair(&k, p, order, by_k, key);
            add_pair(&q, p, order, by_q, key);
        }
        if ((d + 1) % STEP_PAIRS == 0 || d + 1 == n_pair) {
            close(&k, width, order);
            close(&q, width, order);
        }
    }
#pragma GCC unroll 4
    for (uint32_t p = 0; p < width; p++) {
        v16_store(h->kk + at + p * LANES, total(&k, p, order));
        v16_store(h->qk + at + p * LANES, total(&q, p, order));
    }
}

LANES_INLINE void dot_ring(const struct shared *h, const uint32_t *ring,
                           enum arithmetic order)
{
    uint32_t at = 0;

#if defined(LANES_AVX512)
    for (; at + 2 * LANES <= h->i; at += 2 * LANES)
        dot_tokens(h, ring, at, 2, order);
#endif
    for (; at <= h->i; at += LANES)
        dot_tokens(h, ring, at, 1, order);
}

/* Normalised and scaled, as words; the other half of an odd last one is +0. */
LANES_INLINE void round_unit(const float *x, uint32_t d_k, float scale,
                             uint32_t *to)
{
    const struct delta_unit by = delta_unit(x, d_k, scale);
    uint16_t *half = (uint16_t *)to;

    for (uint32_t d = 0; d < d_k; d += LANES)
        pairs_store_row(half + d, delta_unit_part(by, x, d, d_k));
}

/* k and q rounded, and all their dots; the key joins the ring. */
LANES_INLINE void prepare(const struct shared *h, uint32_t *ring,
                          enum arithmetic order)
{
    const struct delta_one *one = h->one;
    const struct delta_args *a = one->args;
    const uint32_t d_k = h->d_k;
    const size_t at = (size_t)one->k_head * d_k;
    float x[HEAD_DIM_MAX];

    round_unit(delta_rows(one->source, a->k + at, d_k, one->t, 1, x).at, d_k,
               1.0f, h->k);
    round_unit(delta_rows(one->source, a->q + at, d_k, one->t, 1, x).at, d_k,
               1.0f / sqrtf((float)d_k), h->q);
    for (uint32_t d = 0; d < (d_k + 1) / 2; d++)
        ring[d * GRID + h->i] = h->k[d];
    dot_ring(h, ring, order);
}

/* ----------------------------------------------------------------- v-heads */

/* 16 outputs from e on; of one panel alone some may not exist. */
LANES_INLINE v16 load_at(const float *x, uint32_t e, uint32_t d_v,
                         uint32_t width)
{
    return width > 1 ? v16_load(x + e) : v16_load_part(x, e, d_v);
}

/* S0, or its copy. */
LANES_INLINE const uint32_t *words_of(const struct place *place, bool is_copied)
{
    return is_copied && place->copy ? place->copy
                                    : (const uint32_t *)(const void *)place->s;
}

/*
 * While two rows of S0 pass by, dims d on: what is needed some KiB later, of
 * the next head at last; the next ring of keys; the ring of u of a next head
 * that has the same keys. Lines in bursts, because one for each panel as it
 * passes by takes a fifth longer. Of half a ring of keys or more the core reads
 * ahead by itself.
 */
LANES_INLINE void fetch_early(const struct head *h, uint32_t d)
{
    const uint32_t d_v = h->of->d_v, i = h->of->i;
    const uint32_t n_pair = (h->of->d_k + 1) / 2;
    const uint32_t n_word = (h->is_copied ? 1 : 2) * d_v; /* of two rows */
    const uint32_t to = d / 2 + (AHEAD_WORDS + n_word - 1) / n_word;

    fetch(to < n_pair ? words_of(&h->at, h->is_copied) + (size_t)to * n_word
                      : words_of(&h->next, h->is_copied) +
                            (size_t)(to - n_pair) * n_word,
          n_word);
    if (h->next.key == h->at.key && d <= i)
        fetch(h->next.u + d / 2 * (size_t)d_v, d_v);
    if (h->next.key != h->at.key && i < GRID / 2)
        fetch(h->next.key + d / 2 * GRID, i + 1);
    if (d < GRID && d % 8 == 0)
        fetch(h->next.g + d, 1);
}

/* What k and q read of S0. */
struct reading {
    v16 a[WIDTH_MAX], c[WIDTH_MAX];
};

/* a and c of `width` panels from output e on. */
LANES_INLINE void read_state(const struct head *h, uint32_t e, uint32_t width,
                             enum arithmetic order, bool is_copied,
                             struct reading *out)
{
    const struct shared *of = h->of;
    const uint32_t d_k = of->d_k, d_v = of->d_v;
    const float *s = h->at.s;
    uint32_t *copy = h->at.copy ? h->at.copy + e : NULL;
    struct sums k, q;

    clear(&k, width);
    clear(&q, width);
    for (uint32_t d = 0; d < d_k; d += 2, s += 2 * (size_t)d_v) {
        /* An odd last row stands for its partner, whose factors are 0. */
        const float *next = d + 1 < d_k ? s + d_v : s;
        const v16 by_k = v16_set1_word(of->k + d / 2);
        const v16 by_q = v16_set1_word(of->q + d / 2);

        if (e == 0)
            fetch_early(h, d);
#pragma GCC unroll 8
        for (uint32_t p = 0; p < width; p++) {
            const uint32_t at = e + p * LANES;
            const v16 two = is_copied
                                ? load_words(copy + p * LANES)
                                : v16_words(load_at(s, at, d_v, width),
                                            load_at(next, at, d_v, width));

            if (!is_copied && copy)
                v16_store((float *)(void *)(copy + p * LANES), two);
            add_pair(&k, p, order, by_k, two);
            add_pair(&q, p, order, by_q, two);
        }
        if (copy)
            copy += d_v;
        if ((d + 2) % LINEAR_STEP == 0 || d + 2 >= d_k) {
            close(&k, width, order);
            close(&q, width, order);
        }
    }
#pragma GCC unroll 8
    for (uint32_t p = 0; p < width; p++) {
        out->a[p] = total(&k, p, order);
        out->c[p] = total(&q, p, order);
    }
}

/* Token pair m of the ring, outputs from e on. */
LANES_INLINE v16 load_u(const struct head *h, uint32_t m, uint32_t e,
                        uint32_t width)
{
    const uint32_t d_v = h->of->d_v, n = width > 1 ? LANES : d_v - e;
    const uint32_t *u = h->at.u + (size_t)m * d_v + e;
    uint32_t last[LANES] = {0};

    if (n < LANES) {
        for (uint32_t i = 0; i < n; i++)
            last[i] = u[i];
        u = last;
    }
    return load_words(u);
}

/* The row's own pair of tokens: its u, and the o that sees it. */
LANES_INLINE v16 finish(const struct head *h, uint32_t e, v16 r, v16 pair)
{
    const uint32_t d_v = h->of->d_v, n = d_v - e, i = h->of->i;
    uint32_t *to = h->at.u + (size_t)(i / 2) * d_v + e;
    const v16 u = v16_mul(v16_set1(h->beta), r);
    uint32_t last[LANES];

    pair = i % 2 ? v16_words(v16_low(pair), u) : v16_words(u, v16_zero());
    v16_store((float *)(void *)(n < LANES ? last : to), pair);
    for (uint32_t j = 0; j < n && n < LANES; j++)
        to[j] = last[j];
    return pair;
}

/* u and o of `width` panels from output e on. */
LANES_INLINE void solve(const struct head *h, uint32_t e, uint32_t width,
                        enum arithmetic order)
{
    const uint32_t d_v = h->of->d_v, i = h->of->i;
    const uint32_t near = i / DELTA_BLOCK * DELTA_BLOCK;
    const v16 decay = v16_set1(h->by->since_grid);
    struct reading read;
    v16 *const r = read.a, *const c = read.c, pair;
    struct sums far, all;

    if (h->is_copied)
        read_state(h, e, width, order, true, &read);
    else
        read_state(h, e, width, order, false, &read);
    clear(&far, width);
    clear(&all, width);
    for (uint32_t m = 0; m < near / 2; m++) {
        const v16 w = v16_set1_word(h->by->far + m);
        const v16 x = v16_set1_word(h->by->x + m);
#pragma GCC unroll 8
        for (uint32_t p = 0; p < width; p++) {
            pair = load_u(h, m, e + p * LANES, width);
            add_pair(&far, p, order, w, pair);
            add_pair(&all, p, order, x, pair);
        }
        if ((m + 1) % STEP_PAIRS == 0)
            close(&all, width, order);
        if ((m + 1) % STEP_PAIRS == 0 || m + 1 == near / 2)
            close(&far, width, order);
    }
#pragma GCC unroll 8
    for (uint32_t p = 0; p < width; p++) {
        v16 v = load_at(h->v, e + p * LANES, d_v, width);
        r[p] = v16_fnma(decay, r[p], v);
        r[p] = v16_sub(r[p], total(&far, p, order));
    }
    for (uint32_t m = near / 2; m <= i / 2; m++) {
        const v16 w[2] = {v16_set1(h->by->w[2 * m]),
                          v16_set1(h->by->w[2 * m + 1])};
        const v16 x = v16_set1_word(h->by->x + m);
#pragma GCC unroll 8
        for (uint32_t p = 0; p < width; p++) {
            pair = load_u(h, m, e + p * LANES, width);
            if (2 * m < i)
                r[p] = v16_fnma(w[0], v16_low(pair), r[p]);
            if (2 * m + 1 < i)
                r[p] = v16_fnma(w[1], v16_high(pair), r[p]);
            if (m == i / 2)
                pair = finish(h, e + p * LANES, r[p], pair);
            add_pair(&all, p, order, x, pair);
        }
    }
    close(&all, width, order);
#pragma GCC unroll 8
    for (uint32_t p = 0; p < width; p++)
        v16_store_part(h->out, v16_fma(decay, c[p], total(&all, p, order)),
                       e + p * LANES, d_v);
}

LANES_INLINE void solve_all(const struct head *h, enum arithmetic order,
                            uint32_t width)
{
    const uint32_t d_v = h->of->d_v;
    uint32_t e = 0;

    for (; e + width * LANES <= d_v; e += width * LANES)
        solve(h, e, width, order);
    if (width > 4)
        for (; e + 4 * LANES <= d_v; e += 4 * LANES)
            solve(h, e, 4, order);
    for (; e < d_v; e += LANES)
        solve(h, e, 1, order);
}

/* Decays and weights. */
static void weigh(const struct head *h, float step, struct weights *out)
{
    const struct shared *of = h->of;
    const uint32_t i = of->i, near = i / DELTA_BLOCK * DELTA_BLOCK;
    double *const g = h->at.g;

    g[i] = (i ? g[i - 1] : 0.0) + (double)step;
    for (uint32_t j = 0; j <= i; j += LANES) {
        const v16 decay = v16_exp(v16_difference(g[i], g + j));
        const v16 w = v16_mul(decay, v16_load(of->kk + j));
        const v16 x = v16_mul(decay, v16_load(of->qk + j));

        v16_store(out->w + j, w);
        if (j < near)
            pairs_store_row((uint16_t *)out->far + j, w);
        pairs_store_row((uint16_t *)out->x + j,
                        v16_first(x, v16_zero(), i + 1 - j));
    }
    /* -(0 - G) is G to the last bit. */
    const v16 since =
        v16_exp(v16_negate(v16_difference(0.0, g + i / LANES * LANES)));
    float lane[LANES];
    v16_store(lane, since);
    out->since_grid = lane[i % LANES];
}

static struct place place_of(const struct delta_one *one,
                             const struct delta_state *state, size_t head)
{
    const struct delta_shape shape = one->args->shape;
    const size_t d_k = shape.d_k, d_v = shape.d_v;
    const size_t k_head = head / (shape.n_v_head / shape.n_k_head);
    const bool has_copy = one->is_step && state->copy;

    return (struct place){
        .copy = has_copy ? state->copy + head * d_k / 2 * d_v : NULL,
        .made_of = has_copy ? state->made_of + head : NULL,
        .s = state->s + head * d_k * d_v,
        .key = (uint32_t *)state->ring_k + k_head * ((d_k + 1) / 2) * GRID,
        .u = (uint32_t *)state->ring_u + head * WORDS * d_v,
        .g = state->ring_g + head * GRID};
}

LANES_INLINE void run(const struct shared *of, enum arithmetic order,
                      uint32_t width)
{
    const struct delta_one *one = of->one;
    const struct delta_args *a = one->args;
    const struct delta_shape shape = a->shape;
    const size_t per_k = shape.n_v_head / shape.n_k_head;
    const size_t first = one->k_head * per_k, end = first + per_k;
    struct weights by;
    float v[HEAD_DIM_MAX];

    prepare(of, place_of(one, one->state, first).key, order);
    for (size_t h = first; h < end; h++) {
        const size_t gate = one->row * shape.n_v_head + h;
        const struct place at = place_of(one, one->state, h);
        const struct head head = {
            .of = of,
            .at = at,
            .next = h + 1 < end
                        ? place_of(one, one->state, h + 1)
                        : place_of(one, one->next, one->next_k_head * per_k),
            .by = &by,
            .v = delta_rows(one->source, a->v + h * of->d_v, of->d_v, one->t, 1,
                            v)
                     .at,
            .out = a->out + one->row * a->out_stride + h * of->d_v,
            .beta = a->beta[gate],
            .is_copied = at.copy && *at.made_of == one->chunk};

        weigh(&head, a->log_decay[gate], &by);
        solve_all(&head, order, width);
        if (at.copy)
            *at.made_of = one->chunk;
    }
}

void LANES_NAME(delta_one)(const struct delta_one *one)
{
    const struct delta_shape shape = one->args->shape;
    uint32_t word[2][HEAD_DIM_MAX / 2];
    float dot[2][GRID];
    const struct place first = place_of(
        one, one->state, (size_t)one->k_head * shape.n_v_head / shape.n_k_head);
    const struct shared of = {.one = one,
                              .d_k = shape.d_k,
                              .d_v = shape.d_v,
                              .i = one->i,
                              .k = word[0],
                              .q = word[1],
                              .kk = dot[0],
                              .qk = dot[1],
                              .u = first.u};

    if (shape.arithmetic == ARITHMETIC_PAIR)
        run(&of, ARITHMETIC_PAIR, WIDTH_PAIR);
    else
        run(&of, ARITHMETIC_TILE, WIDTH_TILE);
}
