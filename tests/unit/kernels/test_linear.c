/*
 * Products against a plain double loop over the weights as they were given
 * (not as they were packed), then every backend against ref by bits.
 */
#include "kernels/scalar.h"
#include "tests/unit/kernels/fixture.h"

static const uint32_t DIMS[] = {1, 2, 3, 15, 16, 17, 63, 65, 96, 192};
static const uint32_t ROWS[] = {1,  2,  3,  4,  5,  6,  7,
                                11, 12, 13, 25, 63, 65, 130};

static uint16_t to_bf16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    return (uint16_t)(bits >> 16);
}

/* Weights of a shape, packed in two goes from an odd address. */
static void make(struct linear *w, uint32_t n_in, uint32_t n_out,
                 enum linear_type type, float *plain)
{
    size_t size = type == LINEAR_F32 ? 4 : 2, n = (size_t)n_in * n_out;
    unsigned char *raw = malloc(n * size + 1);
    uint32_t half = n_out / 2;

    must(linear_init(n_in, n_out, type, ARITHMETIC_FP32, w));
    for (size_t i = 0; i < n; i++) {
        plain[i] = noise(n_in * 1000 + n_out, i);
        uint16_t bits = to_bf16(plain[i]);
        if (type == LINEAR_BF16)
            plain[i] = scalar_from_bf16(bits);
        memcpy(raw + 1 + i * size,
               type == LINEAR_F32 ? (void *)&plain[i] : &bits, size);
    }
    void (*pack)(struct linear *, uint32_t, uint32_t, const void *) =
        type == LINEAR_F32 ? linear_pack_f32 : linear_pack_bf16;
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

static void check_shape(uint32_t n_in, uint32_t n_out, enum linear_type type)
{
    enum { N_ROW = 5 };
    const struct backend *ref = backend_ref_found();
    float *plain = room((size_t)n_in * n_out);
    float *x = filled((size_t)N_ROW * n_in, 7);
    float *y = constant((size_t)N_ROW * n_out, NAN);
    double *want = malloc(sizeof(double) * N_ROW * n_out);
    struct linear w;

    make(&w, n_in, n_out, type, plain);
    oracle(want, x, plain, N_ROW, n_in, n_out);
    struct linear_args args = {y, n_out, x, n_in, N_ROW, &w};
    ref->linear(NULL, &args);
    assert_near(y, want, (size_t)N_ROW * n_out, 1e-5, "linear");
    ref->linear_add(NULL, &args);
    for (size_t i = 0; i < (size_t)N_ROW * n_out; i++)
        want[i] *= 2.0;
    assert_near(y, want, (size_t)N_ROW * n_out, 1e-5, "linear_add");
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
            check_shape(DIMS[i], DIMS[o], LINEAR_F32);
            check_shape(DIMS[i], DIMS[o], LINEAR_BF16);
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
    struct linear_args args = {&y, 1, x, 3, 1, &w};
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
    struct linear_args args = {y, w->n_out + 3, x, w->n_in + 1, n_row, w};

    for (size_t i = 0; i < (size_t)n_row * (w->n_out + 3); i++)
        y[i] = 9.5f;
    backend->linear(pool, &args);
    backend->linear_add(pool, &args);
}

static void compare_backends(uint32_t n_in, uint32_t n_out, uint32_t n_row,
                             enum linear_type type, struct pool **pools)
{
    size_t n = (size_t)n_row * (n_out + 3);
    float *x = filled((size_t)n_row * (n_in + 1), n_row);
    float *want = room(n), *y = room(n), *plain = room((size_t)n_in * n_out);
    struct linear w;
    char what[96];

    make(&w, n_in, n_out, type, plain);
    run(backend_ref_found(), NULL, &w, x, want, n_row);
    for (size_t r = 0; r < n_row; r++)
        for (size_t o = 0; o < 3; o++)
            cr_assert(eq(flt, want[r * (n_out + 3) + n_out + o], 9.5f));
    EACH_BACKEND(backend)
    for (uint32_t p = 0; p < N_POOL; p++) {
        snprintf(what, sizeof(what), "%s %s %u -> %u, %u rows, pool %u",
                 backend->name, type == LINEAR_F32 ? "f32" : "bf16", n_in,
                 n_out, n_row, p);
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
            compare_backends(DIMS[i], n_out, ROWS[r], LINEAR_F32, pools);
            compare_backends(DIMS[i], n_out, ROWS[r], LINEAR_BF16, pools);
        }
    /* Large enough that the pool is woken, with a cut last panel. */
    for (size_t r = 0; r < COUNT(ROWS); r++) {
        compare_backends(65, 305, ROWS[r], LINEAR_BF16, pools);
        compare_backends(64, 257, ROWS[r], LINEAR_F32, pools);
    }
    pools_destroy(pools);
}

Test(linear, an_infinite_input_stays_in_its_row)
{
    float x[2 * 17], y[2 * 17], plain[17 * 17];
    struct linear w;

    make(&w, 17, 17, LINEAR_BF16, plain);
    for (size_t i = 0; i < COUNT(x); i++)
        x[i] = i < 17 ? INFINITY : 0.5f;
    EACH_BACKEND(backend)
    {
        struct linear_args args = {y, 17, x, 17, 2, &w};
        backend->linear(NULL, &args);
        for (size_t o = 0; o < 17; o++)
            cr_assert(isfinite(y[17 + o]), "%s", backend->name);
    }
    linear_release(&w);
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
