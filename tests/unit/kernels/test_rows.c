/*
 * The operators of one pass over rows. ref is held to double arithmetic and
 * libm, written without ref's helpers; then every backend and pool to ref by
 * bits, over dimensions that fill no vector and rows with gaps between them,
 * which must stay as they were.
 */
#include "kernels/scalar.h"
#include "tests/unit/kernels/fixture.h"

static const uint32_t DIMS[] = {1, 3, 15, 16, 17, 63, 64, 65, 96, 192};
static const uint32_t ROWS[] = {1, 2, 7, 8, 9, 63, 64, 65, 130};

static double sigmoid(double x)
{
    return 1.0 / (1.0 + exp(-x));
}

/* One shape of one operator: buffers with a gap of 1 to 3 floats a row. */
struct setting {
    uint32_t n_row, n_group, dim;
    size_t n, x_stride, y_stride; /* n = n_group * dim */
    float *x, *z, *w, *y;
};

static void setting_init(struct setting *s, uint32_t n_row, uint32_t n_group,
                         uint32_t dim)
{
    s->n_row = n_row;
    s->n_group = n_group;
    s->dim = dim;
    s->n = (size_t)n_group * dim;
    s->x_stride = 2 * s->n + 1; /* wide enough for gate and up */
    s->y_stride = s->n + 3;
    s->x = filled(n_row * s->x_stride, dim);
    s->z = filled(n_row * s->x_stride, dim + 1);
    s->w = filled(dim, dim + 2);
    s->y = filled(n_row * s->y_stride, dim + 3);
    for (size_t i = 0; i < n_row * s->x_stride; i++)
        s->z[i] *= i % 5 ? 8.0f : 120.0f; /* into both ends of exp */
}

static void setting_release(struct setting *s)
{
    drop(s->x);
    drop(s->z);
    drop(s->w);
    drop(s->y);
}

typedef void operate(const struct setting *s, const struct backend *backend,
                     struct pool *pool, float *y, uint32_t first, uint32_t n);
typedef double expect(const struct setting *s, uint32_t row, uint32_t i);

static void norm(const struct setting *s, const struct backend *backend,
                 struct pool *pool, float *y, uint32_t first, uint32_t n)
{
    struct norm_args a = {y + first * s->y_stride,
                          s->y_stride,
                          s->x + first * s->x_stride,
                          s->x_stride,
                          s->w,
                          n,
                          s->n_group,
                          s->dim,
                          1e-6f,
                          NULL};
    backend->rms_norm(pool, &a);
}

static double norm_true(const struct setting *s, uint32_t row, uint32_t i)
{
    const float *x = s->x + row * s->x_stride, *group = x + i / s->dim * s->dim;
    double sum = 0.0;

    for (uint32_t j = 0; j < s->dim; j++)
        sum += (double)group[j] * (double)group[j];
    return (double)x[i] / sqrt(sum / s->dim + 1e-6) * (double)s->w[i % s->dim];
}

static void gated(const struct setting *s, const struct backend *backend,
                  struct pool *pool, float *y, uint32_t first, uint32_t n)
{
    struct gated_norm_args a = {{y + first * s->y_stride, s->y_stride,
                                 s->x + first * s->x_stride, s->x_stride, s->w,
                                 n, s->n_group, s->dim, 1e-6f, NULL},
                                s->z + first * s->x_stride,
                                s->x_stride};
    backend->gated_norm(pool, &a);
}

static double gated_true(const struct setting *s, uint32_t row, uint32_t i)
{
    double z = (double)s->z[row * s->x_stride + i];
    return norm_true(s, row, i) * (z * sigmoid(z));
}

static void swiglu(const struct setting *s, const struct backend *backend,
                   struct pool *pool, float *y, uint32_t first, uint32_t n)
{
    struct swiglu_args a = {y + first * s->y_stride,
                            s->y_stride,
                            s->z + first * s->x_stride,
                            s->x_stride,
                            n,
                            (uint32_t)s->n};
    backend->swiglu(pool, &a);
}

static double swiglu_true(const struct setting *s, uint32_t row, uint32_t i)
{
    const float *x = s->z + row * s->x_stride;
    return (double)x[i] * sigmoid((double)x[i]) * (double)x[s->n + i];
}

static const struct {
    const char *name;
    operate *run;
    expect *truth;
} OPERATORS[] = {
    {"rms_norm", norm, norm_true},
    {"gated_norm", gated, gated_true},
    {"swiglu", swiglu, swiglu_true},
};

static void check(const struct setting *s, size_t op, struct pool **pools)
{
    size_t n = s->n_row * s->y_stride;
    float *want = copied(s->y, n);
    char what[96];

    OPERATORS[op].run(s, backend_ref_found(), NULL, want, 0, s->n_row);
    for (uint32_t r = 0; r < s->n_row; r++) {
        for (uint32_t i = 0; i < s->n; i++) {
            double truth = OPERATORS[op].truth(s, r, i);
            assert_near(&want[r * s->y_stride + i], &truth, 1, 2e-6,
                        OPERATORS[op].name);
        }
        assert_same(want + r * s->y_stride + s->n,
                    s->y + r * s->y_stride + s->n, 3, "gap");
    }
    EACH_BACKEND(backend)
    for (uint32_t p = 0; p < N_POOL; p++) {
        float *y = copied(s->y, n);
        /* In two calls where there are two rows. */
        uint32_t cut = p == 2 ? s->n_row / 2 : 0;
        OPERATORS[op].run(s, backend, pools[p], y, 0, cut);
        OPERATORS[op].run(s, backend, pools[p], y, cut, s->n_row - cut);
        snprintf(what, sizeof(what), "%s %s, %u rows of %u x %u, pool %u",
                 backend->name, OPERATORS[op].name, s->n_row, s->n_group,
                 s->dim, p);
        assert_same(y, want, n, what);
        drop(y);
    }
    drop(want);
}

Test(rows, elementwise_operators_are_true_and_equal_on_every_backend)
{
    struct pool *pools[N_POOL];
    struct setting s;

    pools_create(pools);
    for (size_t d = 0; d < COUNT(DIMS); d++)
        for (size_t r = 0; r < COUNT(ROWS); r++) {
            setting_init(&s, ROWS[r], 1 + (uint32_t)(d + r) % 3, DIMS[d]);
            for (size_t op = 0; op < COUNT(OPERATORS); op++)
                check(&s, op, pools);
            setting_release(&s);
        }
    pools_destroy(pools);
}

Test(rows, norm_works_in_place)
{
    EACH_BACKEND(backend)
    {
        struct setting s;
        setting_init(&s, 5, 2, 65);
        float *want = room(5 * s.x_stride);
        memcpy(want, s.x, 5 * s.x_stride * sizeof(float));
        struct norm_args a = {want, s.x_stride, s.x, s.x_stride, s.w,
                              5,    2,          65,  1e-6f,      NULL};
        backend_ref_found()->rms_norm(NULL, &a);
        a.y = s.x;
        backend->rms_norm(NULL, &a);
        assert_same(s.x, want, 5 * s.x_stride, backend->name);
        drop(want);
        setting_release(&s);
    }
}

Test(rows, delta_gates_follow_libm)
{
    struct pool *pools[N_POOL];
    static const uint32_t HEADS[] = {1, 3, 8, 16, 17, 48};

    pools_create(pools);
    for (size_t c = 0; c < COUNT(HEADS); c++) {
        uint32_t n_head = HEADS[c];
        enum { N_ROW = 130 };
        size_t n = (size_t)N_ROW * n_head, stride = 2 * n_head + 1;
        float *ab = filled(N_ROW * stride, c), *dt = filled(n_head, c + 1);
        float *scale = filled(n_head, c + 2), *beta = room(n), *decay = room(n);
        for (size_t i = 0; i < N_ROW * stride; i++)
            ab[i] *= 30.0f;
        struct delta_gate_args a = {beta,   decay, ab, ab + n_head, stride,
                                    stride, scale, dt, N_ROW,       n_head};
        backend_ref_found()->delta_gate(NULL, &a);
        float *want_beta = copied(beta, n), *want_decay = copied(decay, n);
        for (size_t i = 0; i < n; i++) {
            size_t h = i % n_head, row = i / n_head * stride;
            double step = (double)(ab[row + h] + dt[h]);
            double b = sigmoid((double)ab[row + n_head + h]);
            double g =
                (double)scale[h] * (step > 20.0 ? step : log1p(exp(step)));
            cr_assert(epsilon_eq(dbl, (double)beta[i], b, 1e-6 * b));
            cr_assert(epsilon_eq(dbl, (double)decay[i], g, 1e-6 * fabs(g)));
        }
        EACH_BACKEND(backend)
        for (uint32_t p = 0; p < N_POOL; p++) {
            memset(beta, 0, n * sizeof(float));
            memset(decay, 0, n * sizeof(float));
            backend->delta_gate(pools[p], &a);
            assert_same(beta, want_beta, n, backend->name);
            assert_same(decay, want_decay, n, backend->name);
        }
        drop(ab);
        drop(dt);
        drop(scale);
        drop(beta);
        drop(decay);
        drop(want_beta);
        drop(want_decay);
    }
    pools_destroy(pools);
}

Test(rows, embedding_rows_are_copied_or_widened)
{
    enum { N_VOCAB = 5, DIM = 67, N_ROW = 40 };
    unsigned char raw[N_VOCAB * DIM * 4 + 1]; /* read from an odd address */
    uint32_t token[N_ROW];
    float y[N_ROW * DIM], want[N_ROW * DIM];
    struct pool *pools[N_POOL];

    pools_create(pools);
    for (size_t i = 0; i < sizeof(raw); i++)
        raw[i] = (unsigned char)(mix(i) % 120); /* no NaN, no infinity */
    for (uint32_t r = 0; r < N_ROW; r++)
        token[r] = r * 3 % N_VOCAB;
    for (int is_f32 = 0; is_f32 < 2; is_f32++) {
        for (size_t i = 0; i < N_ROW * DIM; i++) {
            size_t at = token[i / DIM] * (size_t)DIM + i % DIM;
            uint32_t bits = 0;
            if (is_f32)
                memcpy(&bits, raw + 1 + at * 4, 4);
            else
                bits = (uint32_t)raw[1 + at * 2] << 16 |
                       (uint32_t)raw[2 + at * 2] << 24;
            memcpy(&want[i], &bits, 4);
        }
        struct embed_args a = {
            y, token, raw + 1, is_f32 ? LINEAR_F32 : LINEAR_BF16, N_ROW, DIM};
        EACH_BACKEND(backend)
        for (uint32_t p = 0; p < N_POOL; p++) {
            memset(y, 0, sizeof(y));
            backend->embed(pools[p], &a);
            assert_same(y, want, N_ROW * DIM, backend->name);
        }
    }
    pools_destroy(pools);
}

static void check_rope(uint32_t d_head, uint32_t n_rot, struct pool **pools)
{
    enum { N_ROW = 200, N_HEAD = 3 };
    size_t stride = N_HEAD * (size_t)d_head + 1, n = N_ROW * stride;
    float *x = filled(n, d_head), *want = copied(x, n);
    uint64_t position[N_ROW];
    double inv_freq[HEAD_DIM_MAX], truth;
    struct rope_table table;

    for (uint32_t i = 0; i < n_rot / 2; i++)
        inv_freq[i] = pow(1000.0, -2.0 * i / n_rot);
    must(rope_table_init(n_rot, 64 * KV_BLOCK, inv_freq, &table));
    for (size_t r = 0; r < N_ROW; r++)
        position[r] = r < 100 ? r : mix(r) % (64 * KV_BLOCK);
    struct rope_args a = {want,   stride, position, N_ROW,
                          N_HEAD, d_head, &table};
    backend_ref_found()->rope(NULL, &a);
    for (size_t r = 0; r < N_ROW; r++)
        for (size_t i = 0; i < N_HEAD * d_head; i++) {
            const float *head = x + r * stride + i / d_head * d_head;
            uint32_t d = (uint32_t)(i % d_head), half = n_rot / 2;
            truth = (double)head[d];
            if (d < n_rot) {
                double angle = (double)position[r] * inv_freq[d % half];
                double other = (double)head[d < half ? d + half : d - half];
                truth = truth * cos(angle) +
                        (d < half ? -other : other) * sin(angle);
            }
            assert_near(&want[r * stride + i], &truth, 1, 1e-6, "rope");
        }
    EACH_BACKEND(backend)
    for (uint32_t p = 0; p < N_POOL; p++) {
        float *y = copied(x, n);
        a.x = y;
        backend->rope(pools[p], &a);
        assert_same(y, want, n, backend->name);
        drop(y);
    }
    rope_table_release(&table);
    drop(x);
    drop(want);
}

Test(rows, rotation_turns_pairs_by_their_position)
{
    struct pool *pools[N_POOL];

    pools_create(pools);
    check_rope(1, 0, pools);
    check_rope(2, 2, pools);
    check_rope(64, 16, pools);
    check_rope(64, 64, pools);
    check_rope(63, 34, pools);
    check_rope(128, 128, pools);
    pools_destroy(pools);
}

/* Angles as large as those of the longest contexts, and none at all. */
Test(rows, a_rope_table_has_the_floats_of_libm)
{
    enum { N_PAIR = 7, N_POSITION = 1 << 16 };
    const double inv_freq[N_PAIR] = {1.0, 0.3, 1e-3, 1e-9, 0.0, 250.0, -1.0};
    struct rope_table table;

    must(rope_table_init(2 * N_PAIR, N_POSITION, inv_freq, &table));
    for (uint64_t p = 0; p < N_POSITION; p++)
        for (size_t i = 0; i < N_PAIR; i++) {
            size_t at = (p / KV_BLOCK * N_PAIR + i) * KV_BLOCK + p % KV_BLOCK;
            double angle = (double)p * inv_freq[i];
            float want[2] = {(float)cos(angle), (float)sin(angle)};
            float got[2] = {table.cos[at], table.sin[at]};

            cr_assert(memcmp(got, want, sizeof(want)) == 0,
                      "position %lu, pair %zu: %a and %a, not %a and %a", p, i,
                      (double)got[0], (double)got[1], (double)want[0],
                      (double)want[1]);
        }
    rope_table_release(&table);
}

Test(rows, rope_table_refuses_what_no_machine_holds)
{
    struct rope_table table = {.n_rot = 7};
    double inv_freq[1] = {1.0};

    cr_assert(eq(int, rope_table_init(2, UINT64_C(1) << 60, inv_freq, &table),
                 STATUS_RESOURCE_EXHAUSTED));
    cr_assert(eq(u32, table.n_rot, 7));
    table = (struct rope_table){0};
    rope_table_release(&table);
}
