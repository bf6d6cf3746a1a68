/*
 * Layers of experts. What is chosen is held to a count of betters and equals
 * before it, weights and sums to double arithmetic, products to linear() row
 * by row, all written without the helpers of what they judge; then every
 * backend, pool and cut to ref by bits.
 */
#include "kernels/scalar.h"
#include "tests/unit/kernels/fixture.h"

/* n_expert, n_chosen */
static const uint32_t CHOICES[][2] = {{1, 1},  {2, 1},   {3, 3},   {7, 3},
                                      {8, 2},  {16, 16}, {17, 5},  {63, 10},
                                      {65, 8}, {256, 8}, {512, 10}};
static const uint32_t ROWS[] = {1, 2, 7, 64, 130};

static struct routing new_routing(uint32_t n_row, uint32_t n_expert,
                                  uint32_t n_chosen)
{
    const size_t n = (size_t)n_row * n_chosen;

    return (struct routing){
        .n_row = n_row,
        .n_expert = n_expert,
        .n_chosen = n_chosen,
        .expert = (uint32_t *)(void *)constant(n, NAN),
        .weight = constant(n, NAN),
        .place = (uint32_t *)(void *)constant(n, NAN),
        .row = (uint32_t *)(void *)constant(n, NAN),
        .first = (uint32_t *)(void *)constant(n_expert + 1, NAN)};
}

static void drop_routing(struct routing *r)
{
    drop((float *)(void *)r->expert);
    drop(r->weight);
    drop((float *)(void *)r->place);
    drop((float *)(void *)r->row);
    drop((float *)(void *)r->first);
}

/* Eighths in [-4, 4], so that some are equal and none nearly so. */
static float *some_logits(uint32_t n_row, size_t stride, uint64_t seed)
{
    float *x = filled(n_row * stride, seed);

    for (size_t i = 0; i < n_row * stride; i++)
        x[i] = roundf(x[i] * 32.0f) * 0.125f;
    return x;
}

static void route(const struct backend *b, struct pool *pool,
                  const float *logit, size_t stride, bool is_renormalised,
                  struct routing *to)
{
    b->route(pool, &(struct route_args){.to = *to,
                                        .logit = logit,
                                        .logit_stride = stride,
                                        .is_renormalised = is_renormalised});
}

static uint32_t n_better(const float *logit, uint32_t n, uint32_t e)
{
    uint32_t better = 0;

    for (uint32_t i = 0; i < n; i++)
        better += logit[i] > logit[e] || (logit[i] == logit[e] && i < e);
    return better;
}

static void check_choice(const float *logit, const struct routing *r,
                         uint32_t row, bool is_renormalised)
{
    const uint32_t n = r->n_chosen;
    const float *weight = r->weight + (size_t)row * n;
    const uint32_t *expert = r->expert + (size_t)row * n;
    double all = 0.0, chosen = 0.0;
    uint32_t found = 0;

    for (uint32_t e = 0; e < r->n_expert; e++) {
        all += exp((double)logit[e]);
        if (n_better(logit, r->n_expert, e) < n) {
            cr_assert(found < n && expert[found] == e, "expert %u", e);
            chosen += exp((double)logit[e]);
            found++;
        }
    }
    cr_assert(eq(u32, found, n));
    for (uint32_t i = 0; i < n; i++) {
        const double want =
            exp((double)logit[expert[i]]) / (is_renormalised ? chosen : all);

        cr_assert(fabs((double)weight[i] - want) < 1e-6 * want);
    }
}

/* Every turn of a row at an expert has a place of its own, in order. */
static void check_places(const struct routing *r)
{
    const uint32_t n = r->n_row * r->n_chosen;
    uint32_t n_turn = 0;

    cr_assert(r->first[0] == 0 && r->first[r->n_expert] == n);
    for (uint32_t e = 0; e < r->n_expert; e++)
        for (uint32_t i = r->first[e]; i < r->first[e + 1]; i++) {
            const uint32_t *turn = r->expert + (size_t)r->row[i] * r->n_chosen;
            uint32_t t = 0;

            cr_assert(i == r->first[e] || r->row[i - 1] < r->row[i]);
            while (t < r->n_chosen && turn[t] != e)
                t++;
            cr_assert(t < r->n_chosen);
            cr_assert(
                eq(u32, r->place[(size_t)r->row[i] * r->n_chosen + t], i));
            n_turn++;
        }
    cr_assert(eq(u32, n_turn, n));
}

Test(experts, route_chooses_the_largest_and_the_first_of_equals)
{
    for (size_t c = 0; c < COUNT(CHOICES); c++)
        for (size_t i = 0; i < 2 * COUNT(ROWS); i++) {
            const uint32_t n_row = ROWS[i / 2], n_expert = CHOICES[c][0];
            const size_t stride = n_expert + 3;
            float *logit = some_logits(n_row, stride, c + n_row);
            struct routing r = new_routing(n_row, n_expert, CHOICES[c][1]);

            route(backend_ref_found(), NULL, logit, stride, i % 2, &r);
            for (uint32_t row = 0; row < n_row; row++)
                check_choice(logit + row * stride, &r, row, i % 2);
            check_places(&r);
            drop_routing(&r);
            drop(logit);
        }
}

static void assert_same_choice(const struct routing *a, const struct routing *b,
                               uint32_t first, const char *what)
{
    const size_t n = (size_t)a->n_row * a->n_chosen, at = first * a->n_chosen;

    assert_same(a->weight, b->weight + at, n, what);
    cr_assert(memcmp(a->expert, b->expert + at, n * 4) == 0, "%s", what);
}

static void assert_same_routing(const struct routing *a,
                                const struct routing *b, const char *what)
{
    const size_t n = (size_t)a->n_row * a->n_chosen;

    assert_same_choice(a, b, 0, what);
    cr_assert(memcmp(a->place, b->place, n * 4) == 0, "%s", what);
    cr_assert(memcmp(a->row, b->row, n * 4) == 0, "%s", what);
    cr_assert(memcmp(a->first, b->first, (a->n_expert + 1) * 4u) == 0, "%s",
              what);
}

static void compare_routes(uint32_t n_row, const uint32_t choice[2],
                           struct pool **pools)
{
    float *logit = filled((size_t)n_row * choice[0], n_row);
    struct routing want = new_routing(n_row, choice[0], choice[1]);

    for (size_t i = 0; i < (size_t)n_row * choice[0]; i++)
        logit[i] *= i % 7 ? 6.0f : 100.0f; /* some weights vanish: equals */
    route(backend_ref_found(), NULL, logit, choice[0], true, &want);
    EACH_BACKEND(backend)
    {
        for (uint32_t p = 0; p < N_POOL; p++) {
            struct routing got = new_routing(n_row, choice[0], choice[1]);

            route(backend, pools[p], logit, choice[0], true, &got);
            assert_same_routing(&got, &want, backend->name);
            drop_routing(&got);
        }
        for (uint32_t row = 0; row < n_row; row += 3) {
            struct routing one = new_routing(1, choice[0], choice[1]);

            route(backend, NULL, logit + (size_t)row * choice[0], choice[0],
                  true, &one);
            assert_same_choice(&one, &want, row, "alone");
            drop_routing(&one);
        }
    }
    drop_routing(&want);
    drop(logit);
}

Test(experts, every_backend_cut_and_thread_count_routes_alike)
{
    struct pool *pools[N_POOL];

    pools_create(pools);
    for (size_t c = 0; c < COUNT(CHOICES); c++)
        for (size_t i = 0; i < COUNT(ROWS); i++)
            compare_routes(ROWS[i], CHOICES[c], pools);
    pools_destroy(pools);
}

Test(experts, a_row_of_no_numbers_chooses_for_itself_and_nobody_else)
{
    enum { N_ROW = 3, N = 20, K = 6 };
    float logit[N_ROW * N];

    EACH_BACKEND(backend)
    for (int bad = 0; bad < 3; bad++) {
        static const float BAD[3] = {NAN, INFINITY, -INFINITY};
        struct routing r = new_routing(N_ROW, N, K);

        for (uint32_t i = 0; i < COUNT(logit); i++)
            logit[i] = i / N == 1 ? BAD[bad] : (float)(i % N);
        route(backend, NULL, logit, N, true, &r);
        check_places(&r);
        for (uint32_t i = 0; i < K; i++)
            cr_assert(r.expert[i] == N - K + i && isfinite(r.weight[i]) &&
                      r.expert[2 * K + i] == N - K + i);
        drop_routing(&r);
    }
}

/* ---------------------------------------------------------------- products */

struct product {
    struct linear *w; /* [n_expert] */
    uint32_t n_expert, n_in, n_out;
    struct routing by;
    float *x; /* [n_row, n_in + 1] */
};

/* What weights may be: F32 and W8A8 have one arithmetic, the others all. */
static const struct format {
    enum linear_type type;
    enum arithmetic arithmetic;
} FORMATS[] = {
    {LINEAR_F32, ARITHMETIC_FP32},  {LINEAR_BF16, ARITHMETIC_FP32},
    {LINEAR_BF16, ARITHMETIC_PAIR}, {LINEAR_BF16, ARITHMETIC_TILE},
    {LINEAR_W8, ARITHMETIC_FP32},   {LINEAR_W8, ARITHMETIC_PAIR},
    {LINEAR_W8, ARITHMETIC_TILE},   {LINEAR_W8A8, ARITHMETIC_FP32},
};

static void make_weights(struct product *p, struct format format)
{
    p->w = calloc(p->n_expert, sizeof(*p->w));
    for (uint32_t e = 0; e < p->n_expert; e++) {
        float *raw = filled((size_t)p->n_in * p->n_out, 100 + e);

        must(linear_init(p->n_in, p->n_out, format.type, format.arithmetic,
                         &p->w[e]));
        linear_pack_f32(&p->w[e], 0, p->n_out, raw);
        drop(raw);
    }
}

/* Rows that favour few experts, so that some have many and some have none. */
static struct product make_product(uint32_t n_row, const uint32_t choice[2],
                                   const uint32_t shape[2],
                                   struct format format)
{
    struct product p = {.n_expert = choice[0],
                        .n_in = shape[0],
                        .n_out = shape[1],
                        .by = new_routing(n_row, choice[0], choice[1]),
                        .x = filled((size_t)n_row * (shape[0] + 1), 9)};
    float *logit = filled((size_t)n_row * choice[0], n_row + 5);

    for (size_t i = 0; i < (size_t)n_row * choice[0]; i++)
        logit[i] += i % choice[0] % 3 ? 0.0f : 1.5f;
    route(backend_ref_found(), NULL, logit, choice[0], true, &p.by);
    make_weights(&p, format);
    drop(logit);
    return p;
}

static void drop_product(struct product *p)
{
    for (uint32_t e = 0; e < p->n_expert; e++)
        linear_release(&p->w[e]);
    free(p->w);
    drop_routing(&p->by);
    drop(p->x);
}

/* What linear() makes of each place alone; gaps stay 9.5. */
static float *wanted(const struct product *p, bool is_gathered)
{
    const size_t n_place = (size_t)p->by.n_row * p->by.n_chosen;
    float *y = constant(n_place * (p->n_out + 3), 9.5f);

    for (uint32_t e = 0; e < p->n_expert; e++)
        for (size_t i = p->by.first[e]; i < p->by.first[e + 1]; i++) {
            const size_t row = is_gathered ? p->by.row[i] : i;
            const struct linear_args one = {y + i * (p->n_out + 3),
                                            p->n_out + 3,
                                            p->x + row * (p->n_in + 1),
                                            p->n_in + 1,
                                            1,
                                            &p->w[e],
                                            NULL};

            backend_ref_found()->linear(NULL, &one);
        }
    return y;
}

static void compare_products(const struct product *p, bool is_gathered,
                             struct pool **pools)
{
    const size_t n = (size_t)p->by.n_row * p->by.n_chosen * (p->n_out + 3);
    float *want = wanted(p, is_gathered);
    char what[96];

    EACH_BACKEND(backend)
    for (uint32_t i = 0; i < N_POOL; i++) {
        float *y = constant(n, 9.5f);

        backend->expert(pools[i], &(struct expert_args){
                                      .y = y,
                                      .y_stride = p->n_out + 3,
                                      .x = p->x,
                                      .x_stride = p->n_in + 1,
                                      .row = is_gathered ? p->by.row : NULL,
                                      .first = p->by.first,
                                      .w = p->w,
                                      .n_expert = p->n_expert,
                                      .n_place = p->by.n_row * p->by.n_chosen});
        snprintf(what, sizeof(what),
                 "%s %u -> %u, %u experts, %u rows, pool %u", backend->name,
                 p->n_in, p->n_out, p->n_expert, p->by.n_row, i);
        assert_same(y, want, n, what);
        drop(y);
    }
    drop(want);
}

static const uint32_t SHAPES[][2] = {{1, 1},   {17, 33},   {64, 16}, {65, 80},
                                     {96, 17}, {128, 192}, {300, 40}};

Test(experts, every_backend_and_thread_count_multiplies_as_linear_does)
{
    struct pool *pools[N_POOL];
    uint32_t at = 0;

    pools_create(pools);
    for (size_t c = 0; c + 2 < COUNT(CHOICES); c++)
        for (size_t i = 0; i < COUNT(ROWS); i++, at++) {
            const uint32_t *shape = SHAPES[at % COUNT(SHAPES)];

            struct product p = make_product(ROWS[i], CHOICES[c], shape,
                                            FORMATS[at % COUNT(FORMATS)]);

            compare_products(&p, true, pools);
            drop_product(&p);
        }
    pools_destroy(pools);
}

/* As the second product of a layer: rows lie by place already. */
Test(experts, rows_may_lie_by_place)
{
    static const uint32_t CHOICE[2] = {5, 1};
    struct pool *pools[N_POOL];

    pools_create(pools);
    for (size_t s = 0; s < COUNT(SHAPES); s++) {
        struct product p = make_product(65, CHOICE, SHAPES[s], FORMATS[s]);

        compare_products(&p, false, pools);
        drop_product(&p);
    }
    pools_destroy(pools);
}

/* Two experts, whose rows together fill the room for them more than once. */
Test(experts, more_rows_than_fit_beside_each_other)
{
    static const uint32_t CHOICE[2] = {2, 1}, SHAPE[2] = {20000, 1};
    struct pool *pools[N_POOL];
    struct product p = make_product(600, CHOICE, SHAPE, FORMATS[1]);

    cr_assert(gt(sz, (size_t)600 * 20000 * 4, POOL_SHARED_BYTES));
    pools_create(pools);
    compare_products(&p, true, pools);
    pools_destroy(pools);
    drop_product(&p);
}

/* An expert without rows has no part in anything: its weights may be absent. */
Test(experts, who_has_no_rows_is_not_touched)
{
    const uint32_t first[4] = {0, 0, 2, 2}, row[2] = {1, 0};
    float *x = filled(2 * 40, 3), *y = constant(2 * 24, NAN);
    float *raw = filled(40 * 24, 4);
    struct linear w[3];

    must(linear_init(40, 24, LINEAR_F32, ARITHMETIC_FP32, &w[1]));
    linear_pack_f32(&w[1], 0, 24, raw);
    w[0] = w[2] = w[1];
    w[0].panel = w[2].panel = NULL;
    EACH_BACKEND(backend)
    {
        backend->expert(
            NULL, &(struct expert_args){y, 24, x, 40, row, first, w, 3, 2});
        for (uint32_t i = 0; i < 2 * 24; i++)
            cr_assert(isfinite(y[i]));
    }
    linear_release(&w[1]);
    drop(raw);
    drop(x);
    drop(y);
}

/* ----------------------------------------------------------------- combine */

struct mixture {
    struct routing by;
    uint32_t dim;
    float *x, *shared, *gate, *start; /* rows with a gap of one */
};

static struct mixture make_mixture(uint32_t n_row, const uint32_t choice[2],
                                   uint32_t dim)
{
    struct mixture m = {
        .by = new_routing(n_row, choice[0], choice[1]),
        .dim = dim,
        .x = filled((size_t)n_row * choice[1] * (dim + 1), 1),
        .shared = filled((size_t)n_row * (dim + 1), 2),
        .gate = filled((size_t)n_row * 2, 3),
        .start = filled((size_t)n_row * (dim + 1), 4),
    };
    float *logit = some_logits(n_row, choice[0], dim);

    route(backend_ref_found(), NULL, logit, choice[0], false, &m.by);
    drop(logit);
    return m;
}

static void drop_mixture(struct mixture *m)
{
    drop_routing(&m->by);
    drop(m->x);
    drop(m->shared);
    drop(m->gate);
    drop(m->start);
}

static float *combine(const struct mixture *m, const struct backend *b,
                      struct pool *pool, bool has_shared)
{
    const size_t stride = m->dim + 1;
    float *y = copied(m->start, m->by.n_row * stride);

    b->combine(pool,
               &(struct combine_args){.y = y,
                                      .y_stride = stride,
                                      .by = &m->by,
                                      .x = m->x,
                                      .x_stride = stride,
                                      .shared = has_shared ? m->shared : NULL,
                                      .shared_stride = stride,
                                      .shared_gate = m->gate,
                                      .gate_stride = 2,
                                      .dim = m->dim});
    return y;
}

static void check_mixture(const struct mixture *m, bool has_shared,
                          struct pool **pools)
{
    const size_t stride = m->dim + 1, n = m->by.n_row * stride;
    float *want = combine(m, backend_ref_found(), NULL, has_shared);
    double *truth = malloc(n * sizeof(double));

    for (size_t i = 0; i < n; i++) {
        const size_t row = i / stride, d = i % stride;
        const double gate = 1.0 / (1.0 + exp(-(double)m->gate[2 * row]));

        truth[i] = (double)m->start[i];
        if (d == m->dim)
            continue; /* the gap */
        for (uint32_t k = 0; k < m->by.n_chosen; k++) {
            const size_t turn = row * m->by.n_chosen + k;

            truth[i] += (double)m->by.weight[turn] *
                        (double)m->x[m->by.place[turn] * stride + d];
        }
        if (has_shared)
            truth[i] += gate * (double)m->shared[i];
    }
    assert_near(want, truth, n, 1e-6, "combine");
    EACH_BACKEND(backend)
    for (uint32_t p = 0; p < N_POOL; p++) {
        float *y = combine(m, backend, pools[p], has_shared);

        assert_same(y, want, n, backend->name);
        drop(y);
    }
    free(truth);
    drop(want);
}

Test(experts, combine_adds_what_the_chosen_made)
{
    static const uint32_t DIMS[] = {1, 15, 64, 65, 511, 513, 2048};
    struct pool *pools[N_POOL];

    pools_create(pools);
    for (size_t c = 0; c + 2 < COUNT(CHOICES); c++)
        for (size_t i = 0; i < COUNT(DIMS); i++) {
            struct mixture m =
                make_mixture(ROWS[(c + i) % COUNT(ROWS)], CHOICES[c], DIMS[i]);

            check_mixture(&m, false, pools);
            check_mixture(&m, true, pools);
            drop_mixture(&m);
        }
    pools_destroy(pools);
}

/* The order written out: in double all orders would look alike. */
Test(experts, combine_goes_by_ascending_expert_and_rounds_once_a_step)
{
    const uint32_t place[3] = {0, 1, 2};
    float weight[3] = {1.0f, 0x1.000002p+0f, 1.0f};
    float x[3] = {0x1p+24f, 1.0f, -0x1p+24f}, shared = 3.0f, gate = 0.7f;
    const struct routing by = {.n_row = 1,
                               .n_expert = 3,
                               .n_chosen = 3,
                               .weight = weight,
                               .place = (uint32_t *)place};

    EACH_BACKEND(backend)
    {
        float y = 0.1f, want = fmaf(1.0f, x[0], 0.0f);

        want = fmaf(weight[1], x[1], want);
        want = fmaf(weight[2], x[2], want);
        want = fmaf(scalar_sigmoid(gate), shared, want);
        want = 0.1f + want;
        backend->combine(NULL, &(struct combine_args){&y, 1, &by, x, 1, &shared,
                                                      1, &gate, 1, 1});
        assert_same(&y, &want, 1, backend->name);
    }
}
