/*
 * The feed-forward operators. ref is held to a plain double computation, then
 * every backend, arithmetic and type of weights to the bits of ref's own
 * linear, swiglu and linear one after the other, on any number of threads and
 * row by row.
 */
#include "kernels/scalar.h"
#include "tests/unit/kernels/fixture.h"

/* Inputs, inner width, outputs: on both sides of panels, depths and groups; of
 * the last, weights of several tasks a thread, which few rows meet. */
static const uint32_t SHAPE[][3] = {
    {1, 1, 1},     {17, 15, 3},     {64, 63, 65},  {65, 129, 16},
    {96, 300, 33}, {130, 272, 257}, {257, 1000, 5}};
static const uint32_t ROWS[] = {1, 2, 5, 13, 17, 300, 64};

struct layer {
    struct linear gate, up, down;
    uint32_t n_in, n_ff, n_out;
};

static void make(struct linear *w, uint32_t n_in, uint32_t n_out,
                 enum linear_type type, enum arithmetic order)
{
    float *weight = filled((size_t)n_in * n_out, n_in * 7 + n_out);

    must(linear_init(n_in, n_out, type, order, w));
    linear_pack_f32(w, 0, n_out, weight);
    drop(weight);
}

static struct layer layer_of(const uint32_t shape[3], enum linear_type type,
                             enum arithmetic order)
{
    struct layer layer = {
        .n_in = shape[0], .n_ff = shape[1], .n_out = shape[2]};

    make(&layer.gate, shape[0], shape[1], type, order);
    make(&layer.up, shape[0], shape[1], type, order);
    make(&layer.down, shape[1], shape[2], type, order);
    return layer;
}

static void layer_release(struct layer *layer)
{
    linear_release(&layer->gate);
    linear_release(&layer->up);
    linear_release(&layer->down);
}

/* Rows with a gap of one float that nobody may touch. */
static struct ffn_args args_of(const struct layer *layer, const float *x,
                               float *y, uint32_t n_row)
{
    return (struct ffn_args){.y = y,
                             .y_stride = layer->n_out + 1,
                             .x = x,
                             .x_stride = layer->n_in + 1,
                             .n_row = n_row,
                             .gate = &layer->gate,
                             .up = &layer->up,
                             .down = &layer->down};
}

/* The three operators that ffn stands for. */
static void one_by_one(const struct layer *layer, const float *x, float *y,
                       uint32_t n_row, bool is_add)
{
    const struct backend *ref = backend_ref_found();
    const size_t wide = 2 * (size_t)layer->n_ff;
    float *both = room(n_row * wide), *act = room(n_row * wide / 2);
    struct linear_args in = {both,  wide,         x,   layer->n_in + 1,
                             n_row, &layer->gate, NULL};
    const struct linear_args down = {y,     layer->n_out + 1, act, layer->n_ff,
                                     n_row, &layer->down,     NULL};

    ref->linear(NULL, &in);
    in.y += layer->n_ff;
    in.w = &layer->up;
    ref->linear(NULL, &in);
    ref->swiglu(NULL, &(struct swiglu_args){act, layer->n_ff, both, wide, n_row,
                                            layer->n_ff});
    if (is_add)
        ref->linear_add(NULL, &down);
    else
        ref->linear(NULL, &down);
    drop(both);
    drop(act);
}

/* ffn, then ffn_add behind it, from rows of y that all hold 0.25. */
static void check(const struct backend *backend, struct pool *const *pool,
                  const struct ffn_args *want)
{
    const uint32_t n_row = want->n_row;
    const size_t n = n_row * want->y_stride;
    float *got = constant(n, 0.25f);
    struct ffn_args all = *want;

    all.y = got;
    for (uint32_t p = 0; p < N_POOL; p++) {
        backend->ffn(pool[p], &all);
        backend->ffn_add(pool[p], &all);
        assert_same(got, want->y, n, backend->name);
    }
    for (uint32_t r = 0; r < n_row; r++) {
        struct ffn_args row = all;

        row.y += r * row.y_stride;
        row.x += r * row.x_stride;
        row.n_row = 1;
        backend->ffn(pool[2], &row);
        backend->ffn_add(NULL, &row);
    }
    assert_same(got, want->y, n, backend->name);
    drop(got);
}

Test(ffn, ref_computes_the_formula)
{
    for (size_t s = 0; s < COUNT(SHAPE); s++) {
        const uint32_t n_in = SHAPE[s][0], n_ff = SHAPE[s][1];
        const uint32_t n_out = SHAPE[s][2];
        struct layer layer = layer_of(SHAPE[s], LINEAR_F32, ARITHMETIC_FP32);
        float *x = filled(n_in + 1, 3), *y = constant(n_out + 1, 2.0f);
        float *w_in = filled((size_t)n_in * n_ff, n_in * 7 + n_ff);
        float *w_out = filled((size_t)n_ff * n_out, n_ff * 7 + n_out);
        double *want = calloc(n_out, sizeof(*want));
        const struct ffn_args args = args_of(&layer, x, y, 1);

        for (uint32_t f = 0; f < n_ff; f++) { /* up has the weights of gate */
            double g = 0;

            for (uint32_t i = 0; i < n_in; i++)
                g += (double)x[i] * (double)w_in[(size_t)f * n_in + i];
            for (uint32_t o = 0; o < n_out; o++)
                want[o] +=
                    g / (1 + exp(-g)) * g * (double)w_out[(size_t)o * n_ff + f];
        }
        backend_ref_found()->ffn(NULL, &args);
        assert_near(y, want, n_out, 1e-5, "ffn");
        for (uint32_t o = 0; o < n_out; o++)
            want[o] *= 2;
        backend_ref_found()->ffn_add(NULL, &args);
        assert_near(y, want, n_out, 1e-5, "ffn_add");
        cr_assert(eq(flt, y[n_out], 2.0f)); /* the gap */
        free(want);
        drop(x);
        drop(y);
        drop(w_in);
        drop(w_out);
        layer_release(&layer);
    }
}

Test(ffn, every_backend_gives_the_bits_of_its_three_operators, .timeout = 480)
{
    struct pool *pool[N_POOL];
    size_t turn = 0;

    pools_create(pool);
    for (size_t s = 0; s < COUNT(SHAPE); s++)
        for (enum linear_type type = 0; type < N_LINEAR_TYPE; type++)
            for (enum arithmetic order = 0;
                 order < (type == LINEAR_F32 || type == LINEAR_W8A8
                              ? 1
                              : N_CPU_ARITHMETIC);
                 order++) {
                const uint32_t most = s + 1 < COUNT(SHAPE) ? UINT32_MAX : 17;
                const uint32_t n = ROWS[turn++ % COUNT(ROWS)];
                const uint32_t n_row = n < most ? n : most;
                struct layer layer = layer_of(SHAPE[s], type, order);
                float *x = filled(n_row * ((size_t)layer.n_in + 1), turn);
                float *y = constant(n_row * ((size_t)layer.n_out + 1), 0.25f);
                const struct ffn_args want = args_of(&layer, x, y, n_row);

                one_by_one(&layer, x, y, n_row, false);
                one_by_one(&layer, x, y, n_row, true);
                for (const struct backend *const *b = backend_all(); *b; b++)
                    if ((*b)->is_supported())
                        check(*b, pool, &want);
                drop(x);
                drop(y);
                layer_release(&layer);
            }
    pools_destroy(pool);
}
