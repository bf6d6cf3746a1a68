/*
 * The convolution against a double sum over the whole history, and every
 * backend, cut and thread count against one call of ref by bits, tails too.
 */
#include "tests/unit/kernels/fixture.h"

enum { N_TOKEN = 135 };

struct setting {
    uint32_t n_channel, width;
    size_t x_stride, y_stride;
    float *x, *w;
};

static const uint32_t SHAPES[][2] = {{1, 1},  {3, 2},   {16, 4},  {63, 4},
                                     {65, 3}, {192, 4}, {257, 8}, {1024, 4}};

static void setting_init(struct setting *s, const uint32_t shape[2])
{
    s->n_channel = shape[0];
    s->width = shape[1];
    s->x_stride = s->n_channel + 1u;
    s->y_stride = s->n_channel + 2u;
    s->x = filled(N_TOKEN * s->x_stride, s->n_channel);
    s->w = filled((size_t)s->n_channel * s->width, 5);
}

static void setting_release(struct setting *s)
{
    drop(s->x);
    drop(s->w);
}

static size_t tail_floats(const struct setting *s)
{
    return (size_t)(s->width - 1) * s->n_channel;
}

static struct conv_args args_of(const struct setting *s,
                                const struct conv_span *span, uint32_t n_span,
                                float *y)
{
    return (struct conv_args){.y = y,
                              .y_stride = s->y_stride,
                              .x = s->x,
                              .x_stride = s->x_stride,
                              .weight = s->w,
                              .n_channel = s->n_channel,
                              .width = s->width,
                              .span = span,
                              .n_span = n_span};
}

static void run(const struct setting *s, const struct backend *backend,
                struct pool *pool, uint32_t first, uint32_t n, float *tail,
                float *y)
{
    struct conv_span span = {first, n, tail};
    struct conv_args a = args_of(s, &span, 1, y);

    backend->conv(pool, &a);
}

static void check_truth(const struct setting *s, const float *y)
{
    for (size_t t = 0; t < N_TOKEN; t++)
        for (size_t c = 0; c < s->n_channel; c++) {
            double sum = 0.0, truth;
            for (size_t back = 0; back < s->width && back <= t; back++)
                sum += (double)s->w[(s->width - 1 - back) * s->n_channel + c] *
                       (double)s->x[(t - back) * s->x_stride + c];
            truth = sum / (1.0 + exp(-sum));
            assert_near(&y[t * s->y_stride + c], &truth, 1, 2e-6, "conv");
        }
}

Test(conv, every_backend_cut_and_thread_count_gives_refs_bits)
{
    static const uint32_t CUTS[] = {1, 2, 3, 7, 64, N_TOKEN};
    struct pool *pools[N_POOL];

    pools_create(pools);
    for (size_t i = 0; i < COUNT(SHAPES); i++) {
        struct setting s;
        setting_init(&s, SHAPES[i]);
        size_t n = N_TOKEN * s.y_stride;
        float *want = constant(n, 0.0f);
        float *want_tail = constant(tail_floats(&s), 0.0f);
        run(&s, backend_ref_found(), NULL, 0, N_TOKEN, want_tail, want);
        check_truth(&s, want);
        for (size_t k = 0; k + 1 < s.width; k++)
            assert_same(want_tail + k * s.n_channel,
                        s.x + (N_TOKEN - s.width + 1 + k) * s.x_stride,
                        s.n_channel, "tail");
        EACH_BACKEND(backend)
        for (uint32_t c = 0; c < COUNT(CUTS) * N_POOL; c++) {
            float *y = constant(n, 0.0f);
            float *tail = constant(tail_floats(&s), 0.0f);
            uint32_t cut = CUTS[c / N_POOL];
            for (uint32_t t = 0; t < N_TOKEN; t += cut)
                run(&s, backend, pools[c % N_POOL], t,
                    t + cut < N_TOKEN ? cut : N_TOKEN - t, tail, y);
            assert_same(y, want, n, backend->name);
            assert_same(tail, want_tail, tail_floats(&s), backend->name);
            drop(y);
            drop(tail);
        }
        drop(want);
        drop(want_tail);
        setting_release(&s);
    }
    pools_destroy(pools);
}

Test(conv, sessions_in_one_batch_do_not_see_each_other)
{
    struct setting s;
    struct pool *pools[N_POOL];

    pools_create(pools);
    setting_init(&s, SHAPES[7]);
    size_t n = N_TOKEN * s.y_stride, n_tail = tail_floats(&s);
    EACH_BACKEND(backend)
    for (uint32_t p = 0; p < N_POOL; p++) {
        float *want = constant(n, 0.0f), *y = constant(n, 0.0f);
        float *tail[4];
        for (uint64_t i = 0; i < 4; i++) /* a pair of equal tails each */
            tail[i] = filled(n_tail, 40 + i / 2);
        run(&s, backend, NULL, 100, 35, tail[0], want);
        run(&s, backend, NULL, 2, 1, tail[2], want);
        struct conv_span span[2] = {{100, 35, tail[1]}, {2, 1, tail[3]}};
        struct conv_args a = args_of(&s, span, 2, y);
        backend->conv(pools[p], &a);
        assert_same(y, want, n, backend->name);
        assert_same(tail[1], tail[0], n_tail, backend->name);
        assert_same(tail[3], tail[2], n_tail, backend->name);
        for (size_t i = 0; i < 4; i++)
            drop(tail[i]);
        drop(want);
        drop(y);
    }
    setting_release(&s);
    pools_destroy(pools);
}

/* Tasks of many rows are cut somewhere: also where the rows before read the
 * tail that is to be written. */
Test(conv, a_span_may_begin_anywhere_before_a_cut)
{
    const uint32_t n_row = 60;
    struct setting s;
    struct pool *pools[N_POOL];

    pools_create(pools);
    setting_init(&s, SHAPES[6]);
    size_t n = N_TOKEN * s.y_stride, n_tail = tail_floats(&s);
    for (uint32_t first = 0; first + n_row <= N_TOKEN; first++) {
        float *want = constant(n, 0.0f), *want_tail = filled(n_tail, 40);

        run(&s, backend_ref_found(), NULL, first, n_row, want_tail, want);
        EACH_BACKEND(backend)
        for (uint32_t p = 0; p < N_POOL; p++) {
            float *y = constant(n, 0.0f), *tail = filled(n_tail, 40);

            run(&s, backend, pools[p], first, n_row, tail, y);
            assert_same(y, want, n, backend->name);
            assert_same(tail, want_tail, n_tail, backend->name);
            drop(y);
            drop(tail);
        }
        drop(want);
        drop(want_tail);
    }
    setting_release(&s);
    pools_destroy(pools);
}
