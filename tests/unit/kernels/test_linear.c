/*
 * Products against a plain double loop over the weights as they were given
 * (not as they were packed), the orders of linear.h written out by hand, then
 * every backend against ref by bits, in every arithmetic and type of weights.
 */
#include "base/rooms.h"
#include "kernels/scalar.h"
#include "tests/unit/kernels/fixture.h"

static const uint32_t DIMS[] = {1, 2, 3, 15, 16, 17, 63, 65, 96, 192};
static const uint32_t ROWS[] = {1,  2,  3,  4,  5,  6,  7,
                                11, 12, 13, 25, 63, 65, 130};

static bool has_orders(enum linear_type type)
{
    return type != LINEAR_F32 && type != LINEAR_W8A8;
}

/* Every type of weights in every arithmetic. */
#define EACH_KIND(type, order)                                                 \
    for (enum linear_type type = 0; type < N_LINEAR_TYPE; type++)              \
        for (enum arithmetic order = 0;                                        \
             order < (has_orders(type) ? N_CPU_ARITHMETIC : 1); order++)

static uint16_t to_bf16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    return (uint16_t)(bits >> 16);
}

/* Weights of a shape, packed in two goes from an odd address. */
static void make(struct linear *w, uint32_t n_in, uint32_t n_out,
                 enum linear_type type, enum arithmetic order, float *plain)
{
    size_t size = type == LINEAR_BF16 ? 2 : 4, n = (size_t)n_in * n_out;
    unsigned char *raw = malloc(n * size + 1);
    uint32_t half = n_out / 2;

    must(linear_init(n_in, n_out, type, order, w));
    for (size_t i = 0; i < n; i++) {
        plain[i] = noise(n_in * 1000 + n_out, i);
        uint16_t bits = to_bf16(plain[i]);
        if (type == LINEAR_BF16)
            plain[i] = scalar_from_bf16(bits);
        memcpy(raw + 1 + i * size,
               type == LINEAR_BF16 ? (void *)&bits : &plain[i], size);
    }
    void (*pack)(struct linear *, uint32_t, uint32_t, const void *) =
        type == LINEAR_BF16 ? linear_pack_bf16 : linear_pack_f32;
    pack(w, half, n_out - half, raw + 1 + (size_t)half * n_in * size);
    pack(w, 0, half, raw + 1);
    free(raw);
}

static void oracle(double *y, const float *x, const float *w, uint32_t n_row,
                   uint32_t n_in, uint32_t n_out)
{
    for (size_t r = 0; r < n_row; r++)
        for (size_t o = 0; o < n_out; o++) {
            double sum = 0.0;
            for (size_t i = 0; i < n_in; i++)
                sum += (double)x[r * n_in + i] * (double)w[o * n_in + i];
            y[r * n_out + o] = sum;
        }
}

/* What rounding inputs to bf16 and weights to 8 bits may add, for inputs and
 * weights within [-1, 1]. */
static double bound_of(uint32_t n_in, const struct linear *w)
{
    double bound = 1e-5;

    if (w->arithmetic != ARITHMETIC_FP32)
        bound += n_in / 256.0; /* half a bf16 ulp of 1, a pair */
    if (w->type == LINEAR_W8 || w->type == LINEAR_W8A8)
        bound += n_in / 254.0; /* half a step of 1 / 127 */
    if (w->type == LINEAR_W8A8)
        bound += n_in / 254.0;
    return bound;
}

static void check_shape(uint32_t n_in, uint32_t n_out, enum linear_type type,
                        enum arithmetic order)
{
    enum { N_ROW = 5 };
    const struct backend *ref = backend_ref_found();
    float *plain = room((size_t)n_in * n_out);
    float *x = filled((size_t)N_ROW * n_in, 7);
    float *y = constant((size_t)N_ROW * n_out, NAN);
    double *want = malloc(sizeof(double) * N_ROW * n_out);
    struct linear w;

    make(&w, n_in, n_out, type, order, plain);
    oracle(want, x, plain, N_ROW, n_in, n_out);
    struct linear_args args = {y, n_out, x, n_in, N_ROW, &w, NULL};
    ref->linear(NULL, &args);
    assert_near(y, want, (size_t)N_ROW * n_out, bound_of(n_in, &w), "linear");
    ref->linear_add(NULL, &args);
    for (size_t i = 0; i < (size_t)N_ROW * n_out; i++)
        want[i] *= 2.0;
    assert_near(y, want, (size_t)N_ROW * n_out, 2 * bound_of(n_in, &w),
                "linear_add");
    linear_release(&w);
    drop(plain);
    drop(x);
    drop(y);
    free(want);
}

Test(linear, ref_is_the_product)
{
    for (size_t i = 0; i < COUNT(DIMS); i++)
        for (size_t o = 0; o < COUNT(DIMS); o++) {
            EACH_KIND(type, order)
            check_shape(DIMS[i], DIMS[o], type, order);
        }
}

/* The chain written out: three inputs, each step rounded once. */
Test(linear, ref_sums_in_ascending_order_from_zero)
{
    float weight[3] = {1.0f, 0x1.000002p+0f, -1.0f}, y;
    float x[3] = {0x1p+24f, 1.0f, 0x1p+24f};
    struct linear w;

    must(linear_init(3, 1, LINEAR_F32, ARITHMETIC_FP32, &w));
    linear_pack_f32(&w, 0, 1, weight);
    struct linear_args args = {&y, 1, x, 3, 1, &w, NULL};
    EACH_BACKEND(backend)
    {
        backend->linear(NULL, &args);
        float want = fmaf(x[2], weight[2],
                          fmaf(x[1], weight[1], fmaf(x[0], weight[0], 0.0f)));
        assert_same(&y, &want, 1, backend->name);
    }
    linear_release(&w);
}

/* Rows wider than their content, whose gaps must stay as they were. */
static void run(const struct backend *backend, struct pool *pool,
                const struct linear *w, const float *x, float *y,
                uint32_t n_row)
{
    struct linear_args args = {y, w->n_out + 3, x, w->n_in + 1, n_row, w, NULL};

    for (size_t i = 0; i < (size_t)n_row * (w->n_out + 3); i++)
        y[i] = 9.5f;
    backend->linear(pool, &args);
    backend->linear_add(pool, &args);
}

static void compare_backends(uint32_t n_in, uint32_t n_out, uint32_t n_row,
                             enum linear_type type, enum arithmetic order,
                             struct pool **pools)
{
    size_t n = (size_t)n_row * (n_out + 3);
    float *x = filled((size_t)n_row * (n_in + 1), n_row);
    float *want = room(n), *y = room(n), *plain = room((size_t)n_in * n_out);
    struct linear w;
    char what[96];

    make(&w, n_in, n_out, type, order, plain);
    /* Products that are subnormal, which are flushed. */
    for (size_t i = 0; i < n_in; i += 3)
        x[i] = ldexpf(x[i], -125 - (int)(i % 20));
    run(backend_ref_found(), NULL, &w, x, want, n_row);
    for (size_t r = 0; r < n_row; r++)
        for (size_t o = 0; o < 3; o++)
            cr_assert(eq(flt, want[r * (n_out + 3) + n_out + o], 9.5f));
    EACH_BACKEND(backend)
    for (uint32_t p = 0; p < N_POOL; p++) {
        if (backend == backend_ref_found() && p != 2)
            continue; /* it knows no threads */
        snprintf(what, sizeof(what),
                 "%s %s, type %d, %u -> %u, %u rows, pool %u", backend->name,
                 arithmetic_name(order), (int)type, n_in, n_out, n_row, p);
        run(backend, pools[p], &w, x, y, n_row);
        assert_same(y, want, n, what);
        /* Row by row, from the last to the first. */
        for (uint32_t r = n_row; r-- > 0 && p == 2;)
            run(backend, pools[p], &w, x + (size_t)r * (n_in + 1),
                y + (size_t)r * (n_out + 3), 1);
        assert_same(y, want, n, what);
    }
    linear_release(&w);
    drop(plain);
    drop(x);
    drop(y);
    drop(want);
}

Test(linear, every_backend_cut_and_thread_count_gives_refs_bits)
{
    struct pool *pools[N_POOL];

    pools_create(pools);
    for (size_t i = 0; i < COUNT(DIMS); i++)
        for (size_t r = 0; r < COUNT(ROWS); r++) {
            uint32_t n_out = DIMS[(i * 7 + r * 3) % COUNT(DIMS)];
            EACH_KIND(type, order)
            if (order == ARITHMETIC_FP32 || (i + r) % 2)
                compare_backends(DIMS[i], n_out, ROWS[r], type, order, pools);
        }
    /* Large enough that the pool is woken, with a cut last panel and group. */
    for (size_t r = 0; r < COUNT(ROWS); r++)
        EACH_KIND(type, order)
    compare_backends(129 + (uint32_t)r, 209, ROWS[r], type, order, pools);
    pools_destroy(pools);
}

/* Micro-kernels have a case for every number of rows up to some: past that. */
#define HEIGHTS 26u

Test(linear, every_number_of_rows_gives_refs_bits)
{
    struct pool *pools[N_POOL];

    pools_create(pools);
    for (uint32_t n_row = 1; n_row <= HEIGHTS; n_row++)
        EACH_KIND(type, order)
    compare_backends(290, 70 + n_row, n_row, type, order, pools);
    pools_destroy(pools);
}

Test(linear, an_infinite_input_stays_in_its_row)
{
    float x[2 * 17], y[2 * 17], plain[17 * 17];
    struct linear w;

    for (size_t i = 0; i < COUNT(x); i++)
        x[i] = i < 17 ? INFINITY : 0.5f;
    EACH_KIND(type, order)
    {
        make(&w, 17, 17, type, order, plain);
        EACH_BACKEND(backend)
        {
            struct linear_args args = {y, 17, x, 17, 2, &w, NULL};
            backend->linear(NULL, &args);
            for (size_t o = 0; o < 17; o++)
                cr_assert(isfinite(y[17 + o]) && !isfinite(y[o]), "%s",
                          backend->name);
        }
        linear_release(&w);
    }
}

/*
 * The orders of linear.h by hand, for one output, from inputs and weights that
 * every type holds exactly.
 */
#define N_HAND 256u

static float by_hand_sum(const float *x, const float *w, size_t n,
                         enum arithmetic order)
{
    float acc = 0.0f;

    if (order == ARITHMETIC_FP32) {
        for (size_t k = 0; k < n; k++)
            acc = fmaf(x[k], w[k], acc);
    } else if (order == ARITHMETIC_PAIR) {
        for (size_t k = 0; k < n; k++)
            acc = fmaf(x[k ^ 1], w[k ^ 1], acc);
    } else {
        float part[2] = {0.0f, 0.0f};
        for (size_t k = 0; k < n; k += 2) {
            if (k % 32 == 0)
                part[0] = part[1] = 0.0f;
            part[0] = fmaf(x[k], w[k], part[0]);
            part[1] = fmaf(x[k + 1], w[k + 1], part[1]);
            if (k % 32 == 30)
                acc += part[0] + part[1];
        }
    }
    return acc;
}

Test(linear, each_order_is_the_one_that_linear_h_states)
{
    float x[N_HAND], weight[N_HAND], q[N_HAND], want[N_CPU_ARITHMETIC], y;
    struct linear w;

    for (size_t k = 0; k < N_HAND; k++) {
        x[k] = ldexpf(scalar_from_bf16(to_bf16(noise(11, k))), -(int)(k % 11));
        q[k] = k % 128 == 5 ? 127.0f : (float)(mix(k) % 255) - 127.0f;
    }
    EACH_KIND(type, order)
    {
        float scale = type == LINEAR_W8 ? 0x1p-9f : 1.0f;

        if (type == LINEAR_W8A8)
            continue; /* below */

        for (size_t k = 0; k < N_HAND; k++)
            weight[k] = q[k] * scale;
        must(linear_init(N_HAND, 1, type, order, &w));
        cr_assert_eq(w.arithmetic,
                     type == LINEAR_F32 ? ARITHMETIC_FP32 : order);
        linear_pack_f32(&w, 0, 1, weight);
        want[order] = by_hand_sum(x, q, N_HAND, w.arithmetic);
        if (type == LINEAR_W8) {
            want[order] = by_hand_sum(x, q, 128, order) * scale;
            want[order] = fmaf(by_hand_sum(x + 128, q + 128, 128, order), scale,
                               want[order]);
        }
        EACH_BACKEND(backend)
        {
            struct linear_args args = {&y, 1, x, N_HAND, 1, &w, NULL};
            backend->linear(NULL, &args);
            assert_same(&y, &want[order], 1, backend->name);
        }
        linear_release(&w);
        if (type != LINEAR_F32 && order == ARITHMETIC_TILE)
            cr_assert(want[0] != want[1] && want[1] != want[2] &&
                          want[0] != want[2],
                      "the inputs do not tell the orders apart");
    }
}

/* A group of W8A8 onto acc, by hand: the scales that linear.h states, and whole
 * numbers summed as such. */
static float by_hand_group(const float *x, const float *w, size_t n, float acc)
{
    float top[2] = {0.0f, 0.0f}, scale[2], inverse[2], both;
    int d = 0;

    for (size_t k = 0; k < n; k++) {
        if (!isfinite(x[k]) || !isfinite(w[k]))
            return NAN;
        top[0] = fmaxf(top[0], fabsf(x[k]));
        top[1] = fmaxf(top[1], fabsf(w[k]));
    }
    for (int i = 0; i < 2; i++) {
        scale[i] = top[i] / 127.0f >= 0x1p-126f ? top[i] / 127.0f : 0.0f;
        inverse[i] = scale[i] > 0.0f ? 1.0f / scale[i] : 0.0f;
    }
    for (size_t k = 0; k < n; k++)
        d += (int)rintf(x[k] * inverse[0]) * (int)rintf(w[k] * inverse[1]);
    both = scale[0] * scale[1] < 0x1p-126f ? 0.0f : scale[0] * scale[1];
    return fmaf((float)d, both, acc);
}

/* What 300 inputs look like. */
static float look_of(int look, size_t k)
{
    switch (look) {
    case 0: /* all at the end of the range: the largest sums that there are */
        return k % 3 ? 3.0f : -3.0f;
    case 1:
        return -5.0f;
    case 2:
        return k < 128 ? 0.0f : noise(5, k);
    case 3: /* scales that are not normal, or barely */
        return ldexpf(noise(6, k), k < 128 ? -121 : -118);
    case 4:
        return k == 200 ? INFINITY : noise(7, k);
    case 5:
        return k == 299 ? NAN : noise(8, k);
    case 6: /* one beside which most are nothing */
        return k % 128 == 77 ? 1e6f : noise(9, k) * 1e4f;
    default:
        return noise((uint64_t)look, k);
    }
}

Test(linear, w8a8_is_what_linear_h_states)
{
    enum { N = 300, N_LOOK = 9 };
    float x[N_LOOK][N], weight[N_LOOK][N], y[N_LOOK * N_LOOK];
    struct linear w;

    for (size_t k = 0; k < N_LOOK * N; k++) {
        x[k / N][k % N] = look_of((int)(k / N), k % N);
        weight[k / N][k % N] = look_of((int)(k / N), k % N ^ 1);
    }
    must(linear_init(N, N_LOOK, LINEAR_W8A8, ARITHMETIC_TILE, &w));
    cr_assert(eq(int, (int)w.arithmetic, ARITHMETIC_FP32));
    linear_pack_f32(&w, 0, N_LOOK, weight);
    EACH_BACKEND(backend)
    {
        backend->linear(
            NULL, &(struct linear_args){y, N_LOOK, x[0], N, N_LOOK, &w, NULL});
        for (size_t i = 0; i < COUNT(y); i++) {
            const float *row = x[i / N_LOOK], *of = weight[i % N_LOOK];
            float want = 0.0f;

            for (size_t k = 0; k < N; k += 128)
                want = by_hand_group(row + k, of + k, N - k < 128 ? N - k : 128,
                                     want);
            cr_assert(isnan(want) ? isnan(y[i]) : want == y[i],
                      "%s: %zu is %a, not %a", backend->name, i, (double)y[i],
                      (double)want);
        }
    }
    linear_release(&w);
}

Test(linear, w8a8_has_the_weights_of_w8)
{
    enum { N = 290, N_OUT = 21 };
    float *plain = room(N * N_OUT);
    struct linear w, quads;

    make(&w, N, N_OUT, LINEAR_W8, ARITHMETIC_FP32, plain);
    make(&quads, N, N_OUT, LINEAR_W8A8, ARITHMETIC_FP32, plain);
    cr_assert(eq(sz, linear_bytes(&w), linear_bytes(&quads)));
    for (size_t o = 0; o < N_OUT; o++)
        for (size_t k = 0; k < N; k++) {
            const size_t at = o / 16 * 3 + k / 128;
            const struct linear_group *a = (struct linear_group *)w.panel + at;
            const struct linear_quads *b =
                (struct linear_quads *)quads.panel + at;

            cr_assert(eq(flt, a->scale[o % 16], b->scale[o % 16]));
            cr_assert(eq(int, a->q[k % 128][o % 16],
                         b->q[k % 128 / 4][o % 16][k % 4]));
        }
    linear_release(&w);
    linear_release(&quads);
    drop(plain);
}

/* Each with 127 beside it, which makes the scale 1. */
Test(linear, every_whole_number_of_w8_is_multiplied_as_it_is)
{
    enum { N = 255 };
    const float x[2] = {0.0f, 1.0f};
    float weight[N][2], y[N];
    struct linear w;

    for (int i = 0; i < N; i++) {
        weight[i][0] = 127.0f;
        weight[i][1] = (float)(i - 127);
    }
    EACH_BACKEND(backend)
    for (enum arithmetic order = 0; order < N_CPU_ARITHMETIC; order++) {
        must(linear_init(2, N, LINEAR_W8, order, &w));
        linear_pack_f32(&w, 0, N, weight);
        backend->linear(NULL, &(struct linear_args){y, N, x, 2, 1, &w, NULL});
        for (int i = 0; i < N; i++)
            cr_assert(eq(flt, y[i], weight[i][1]), "%s", backend->name);
        linear_release(&w);
    }
}

/* One weight and one input: what becomes of their product. */
static float product_of(const struct backend *backend, enum arithmetic order,
                        float x, float weight)
{
    struct linear w;
    float y;

    must(linear_init(1, 1, LINEAR_BF16, order, &w));
    linear_pack_f32(&w, 0, 1, &weight);
    struct linear_args args = {&y, 1, &x, 1, 1, &w, NULL};
    backend->linear(NULL, &args);
    linear_release(&w);
    return y;
}

Test(linear, bf16_orders_round_inputs_and_all_flush_subnormals)
{
    const float more = 1.00390625f; /* between two bf16: ties go to even */

    EACH_BACKEND(backend)
    for (enum arithmetic order = 0; order < N_CPU_ARITHMETIC; order++) {
        const bool is_exact = order == ARITHMETIC_FP32;
        const float y = product_of(backend, order, more, 1.0f);
        const float tiny = product_of(backend, order, 0x1p-70f, 0x1p-60f);
        const float sub = product_of(backend, order, 0x1p-127f, 0x1p+20f);

        cr_assert(eq(flt, y, is_exact ? more : 1.0f));
        cr_assert(eq(flt, tiny, 0.0f));
        cr_assert(eq(flt, sub, 0.0f));
        cr_assert(isnan(product_of(backend, order, NAN, 1.0f)));
        /* The modes end with the product: this one is subnormal. */
        volatile float a = 0x1p-70f, b = 0x1p-60f;
        cr_assert(a * b > 0.0f, "%s left its flush modes on", backend->name);
    }
}

Test(linear, w8_is_within_half_a_step_and_says_when_it_cannot)
{
    enum { N = 300 };
    float weight[N] = {0}, x[N] = {0}, y;
    struct linear w;

    for (size_t i = 0; i < N; i++)
        weight[i] = i < 128 ? noise(3, i) * ldexpf(1.0f, (int)(i % 9)) : 0.0f;
    weight[299] = -3.5f;
    must(linear_init(N, 1, LINEAR_W8, ARITHMETIC_FP32, &w));
    linear_pack_f32(&w, 0, 1, weight);
    const struct linear_group *group = w.panel;
    cr_assert(eq(flt, group[1].scale[0], 0.0f));
    cr_assert(eq(int, group[2].q[299 - 256][0], -127));
    struct linear_args args = {&y, 1, x, N, 1, &w, NULL};
    for (size_t i = 0; i < N; i++) {
        x[i] = 1.0f;
        backend_ref_found()->linear(NULL, &args);
        x[i] = 0.0f;
        cr_assert_leq(fabsf(y - weight[i]), group[i / 128].scale[0] * 0.50001f);
    }
    weight[7] = INFINITY;
    linear_pack_f32(&w, 0, 1, weight);
    cr_assert(isnan(group[0].scale[0]));
    cr_assert(eq(int, group[0].q[7][0], 0));
    linear_release(&w);
}

Test(linear, bf16_rounding_is_to_even_and_keeps_signs)
{
    static const struct {
        float x;
        uint16_t bits;
    } CASE[] = {
        {1.0f, 0x3f80},        {-1.00390625f, 0xbf80},
        {1.01171875f, 0x3f82}, {0x1.010002p+0f, 0x3f81},
        {-0.0f, 0x8000},       {-0x1.fffffcp-127f, 0x8000},
        {0x1p-126f, 0x0080},   {0x1.fffffep+127f, 0x7f80},
        {-INFINITY, 0xff80},   {0x1.fep+127f, 0x7f7f},
    };

    for (size_t i = 0; i < COUNT(CASE); i++)
        cr_assert_eq(scalar_to_bf16(CASE[i].x), CASE[i].bits, "%a is %x",
                     (double)CASE[i].x, scalar_to_bf16(CASE[i].x));
    cr_assert(isnan(scalar_from_bf16(scalar_to_bf16(NAN))));
}

Test(linear, bytes_are_whole_panels)
{
    struct linear w;

    must(linear_init(3, 17, LINEAR_BF16, ARITHMETIC_FP32, &w));
    cr_assert(eq(sz, linear_bytes(&w), 2 * 32 * 16 * 2));
    linear_release(&w);
    must(linear_init(129, 17, LINEAR_W8, ARITHMETIC_FP32, &w));
    cr_assert(eq(sz, linear_bytes(&w), 2 * 2 * (128 * 16 + 64)));
    linear_release(&w);
    must(linear_init(129, 17, LINEAR_W8A8, ARITHMETIC_FP32, &w));
    cr_assert(eq(sz, linear_bytes(&w), 2 * 2 * (128 * 16 + 64)));
    linear_release(&w);
    must(linear_init(3, 17, LINEAR_F32, ARITHMETIC_FP32, &w));
    cr_assert(eq(sz, linear_bytes(&w), 2 * 3 * 16 * 4));
    linear_release(&w);
    cr_assert(eq(ptr, w.panel, NULL));
    linear_release(&w);
}

Test(linear, too_large_is_refused_and_nothing_is_written)
{
    struct linear w = {.n_in = 42};

    cr_assert(eq(
        int,
        linear_init(0xffffffffu, 0xffffffffu, LINEAR_F32, ARITHMETIC_FP32, &w),
        STATUS_RESOURCE_EXHAUSTED));
    cr_assert(eq(u32, w.n_in, 42));
    cr_assert(strstr(status_reason(), "4294967295") != NULL);
}

Test(linear, of_mma_are_plain_rows_padded_with_zeros)
{
    enum { N_IN = 131, N_OUT = 65, WIDE = 192, HIGH = 128 };
    static float w[N_OUT][N_IN];
    static uint16_t half[N_OUT][N_IN];
    struct linear from_f32, from_bf16;

    for (int o = 0; o < N_OUT; o++)
        for (int i = 0; i < N_IN; i++) {
            w[o][i] = (float)(o * 1000 + i) * 0.01f;
            half[o][i] = scalar_to_bf16(w[o][i]);
        }
    must(linear_init(N_IN, N_OUT, LINEAR_BF16, ARITHMETIC_MMA, &from_f32));
    must(linear_init(N_IN, N_OUT, LINEAR_BF16, ARITHMETIC_MMA, &from_bf16));
    cr_assert(eq(sz, linear_bytes(&from_f32), sizeof(uint16_t[HIGH][WIDE])));
    linear_pack_f32(&from_f32, 0, 1, w);
    linear_pack_f32(&from_f32, 1, N_OUT - 1, w[1]);
    linear_pack_bf16(&from_bf16, 0, N_OUT, half);
    for (int o = 0; o < HIGH; o++)
        for (int i = 0; i < WIDE; i++) {
            const size_t at = (size_t)o * WIDE + (size_t)i;
            const uint16_t want = o < N_OUT && i < N_IN ? half[o][i] : 0;

            cr_assert(eq(u16, ((const uint16_t *)from_f32.panel)[at], want));
            cr_assert(eq(u16, ((const uint16_t *)from_bf16.panel)[at], want));
        }
    linear_release(&from_f32);
    linear_release(&from_bf16);
}

/* A router stays in the fp32 chain's panels whatever the others are. */
Test(linear, of_f32_have_the_fp32_chain_also_beside_mma)
{
    struct linear w;

    must(linear_init(8, 8, LINEAR_F32, ARITHMETIC_MMA, &w));
    cr_assert(eq(int, w.arithmetic, ARITHMETIC_FP32));
    linear_release(&w);
}

/* What is left, before and after: a room is given back. */
static void settle(struct rooms *rooms, uint32_t n_out, bool has_own_pages)
{
    float weight[3] = {0.5f, -1.0f, 2.0f}, x[3] = {1.0f, 2.0f, 3.0f};
    float *y = malloc(n_out * sizeof(*y));
    struct linear w;
    size_t left;

    must(linear_init(3, n_out, LINEAR_F32, ARITHMETIC_FP32, &w));
    linear_pack_f32(&w, n_out - 1, 1, weight);
    left = rooms_left(rooms);
    must(linear_settle(&w, rooms));
    cr_assert_eq(w.rooms == NULL, has_own_pages);
    cr_assert_eq(rooms_left(rooms) < left, !has_own_pages);
    backend_ref_found()->linear(
        NULL, &(struct linear_args){y, n_out, x, 3, 1, &w, NULL});
    cr_assert_eq(y[0], 0.0f);
    cr_assert_eq(y[n_out - 1], 4.5f);
    linear_release(&w);
    cr_assert_eq(rooms_left(rooms), left);
    free(y);
}

Test(linear, small_weights_settle_in_rooms_and_large_ones_stay)
{
    struct rooms *rooms;
    void *kept;

    must(rooms_create(&rooms));
    must(rooms_take(rooms, (size_t)1 << 20, &kept)); /* a chunk is there */
    settle(rooms, 1u << 14, false);
    settle(rooms, 1u << 18, true);
    rooms_give(rooms, kept);
    rooms_destroy(rooms);
}
