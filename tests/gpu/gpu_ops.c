/*
 * The small operators of a device, judged by kernels/ref over shapes of which
 * most are odd: to the last bit where the arithmetic is the CPU's (embed, rope,
 * the router's product, route, combine, state_cap), otherwise to a few
 * roundings. The heavy ones have programs of their own (tests/gpu/check_*.cu).
 *
 *     gpu_ops BACKEND             exit status 0: all agree; 1: some do not; 2:
 * it could not be tried
 *
 * A program without models, so it needs no library but libc.
 */
#include "base/status.h"
#include "kernels/device.h"
#include "kernels/state_cap.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(x) (sizeof(x) / sizeof(*(x)))
#define FEW_ROUNDINGS 2e-6 /* of the largest */

struct bench {
    struct device *device;
    struct pool *pool;
    const struct backend *gpu, *ref;
    uint32_t n_bad, n_case;
};

/* Floats in host memory and the same on the device. */
struct both {
    size_t n;
    float *host, *far, *back;
};

static uint64_t seed = 1;

static float noise(void) /* in [-1, 1) */
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(seed >> 32) * 0x1p-31f;
}

/* A program of tests without memory has nothing to say. */
static void must(enum status st)
{
    if (st == STATUS_OK)
        return;
    printf("gpu_ops: %s\n", status_reason());
    exit(2);
}

static struct both make(const struct bench *bench, size_t n)
{
    struct both it = {.n = n, .host = malloc(n * sizeof(float) + 1)};
    void *far, *back;

    must(device_take(bench->device, n * sizeof(float), &far));
    must(device_take_host(bench->device, n * sizeof(float), &back));
    it.far = far;
    it.back = back;
    for (size_t i = 0; i < n; i++)
        it.host[i] = noise();
    device_write(bench->device, it.far, it.host, n * sizeof(float));
    return it;
}

static void drop(const struct bench *bench, struct both *both)
{
    free(both->host);
    device_give(bench->device, both->far);
    device_give_host(bench->device, both->back);
}

/* The device's numbers against the host's; limit 0: all bits. */
static void judge(struct bench *bench, struct both *both, double limit,
                  const char *what, uint32_t a, uint32_t b)
{
    double most = 0, size = 0;

    device_read(bench->device, both->back, both->far, both->n * sizeof(float));
    must(device_wait(bench->device));
    for (size_t i = 0; i < both->n; i++) {
        const double d = fabs((double)both->host[i] - (double)both->back[i]);

        most = d > most || isnan(d) ? d : most;
        size = fabs((double)both->host[i]) > size ? fabs((double)both->host[i])
                                                  : size;
    }
    bench->n_case++;
    if (limit > 0
            ? most <= limit * size
            : memcmp(both->host, both->back, both->n * sizeof(float)) == 0)
        return;
    bench->n_bad++;
    printf("FAILED: %s of %u x %u is off by %g of %g\n", what, a, b, most,
           size);
}

static void fail_case(struct bench *bench, const char *what, uint32_t a,
                      uint32_t b)
{
    bench->n_bad++;
    printf("FAILED: %s of %u x %u\n", what, a, b);
}

/* ---------------------------------------------------------------------- rows
 */

static const struct {
    uint32_t n_row, n_group, dim;
} ROWS[] = {{1, 1, 1},    {3, 2, 17},   {5, 4, 64},    {2, 3, 96},
            {9, 16, 128}, {1, 8, 256},  {70, 1, 1000}, {3, 1, 1024},
            {2, 1, 1028}, {4, 1, 4096}, {3, 1, 5121}};

static void check_norm(struct bench *bench, uint32_t n_row, uint32_t n_group,
                       uint32_t dim)
{
    const size_t stride = (size_t)n_group * dim + 3;
    struct both x = make(bench, n_row * stride), y = make(bench, x.n);
    struct both weight = make(bench, dim);
    struct norm_args a = {.y = y.host,
                          .y_stride = stride,
                          .x = x.host,
                          .x_stride = stride,
                          .weight = weight.host,
                          .n_row = n_row,
                          .n_group = n_group,
                          .dim = dim,
                          .eps = 1e-6f};

    bench->ref->rms_norm(NULL, &a);
    a.y = y.far;
    a.x = x.far;
    a.weight = weight.far;
    bench->gpu->rms_norm(bench->pool, &a);
    judge(bench, &y, FEW_ROUNDINGS, "rms_norm", n_row * n_group, dim);
    drop(bench, &x);
    drop(bench, &y);
    drop(bench, &weight);
}

static void check_pairs(struct bench *bench, uint32_t n_row, uint32_t n)
{
    struct both x = make(bench, (size_t)n_row * 2 * n);
    struct both y = make(bench, (size_t)n_row * n);
    struct swiglu_args swiglu = {y.host, n, x.host, 2 * (size_t)n, n_row, n};

    bench->ref->swiglu(NULL, &swiglu);
    swiglu.y = y.far;
    swiglu.x = x.far;
    bench->gpu->swiglu(bench->pool, &swiglu);
    judge(bench, &y, FEW_ROUNDINGS, "swiglu", n_row, n);
    drop(bench, &x);
    drop(bench, &y);
}

static void check_embed(struct bench *bench, uint32_t n_row, uint32_t dim,
                        enum linear_type type)
{
    const uint32_t n_vocab = 50;
    uint32_t token[128];
    struct both table = make(bench, (size_t)n_vocab * dim);
    struct both y = make(bench, (size_t)n_row * dim);
    struct embed_args a = {y.host, token, table.host, type, n_row, dim};

    for (uint32_t i = 0; i < n_row; i++)
        token[i] = i * 7 % n_vocab;
    bench->ref->embed(NULL, &a);
    a.y = y.far;
    a.table = table.far;
    bench->gpu->embed(bench->pool, &a);
    judge(bench, &y, 0, "embed", n_row, dim);
    drop(bench, &table);
    drop(bench, &y);
}

static void check_rope(struct bench *bench, uint32_t n_row, uint32_t n_head,
                       uint32_t d_head)
{
    const double freq[] = {1, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4};
    const size_t stride = (size_t)n_head * d_head + 5;
    struct both x = make(bench, n_row * stride);
    struct rope_table table, far;
    uint64_t position[128];
    struct rope_args a = {x.host, stride, position, n_row,
                          n_head, d_head, &table};

    for (uint32_t i = 0; i < n_row; i++)
        position[i] = (uint64_t)i * 37 % 128;
    must(rope_table_init(16, 128, freq, &table));
    must(rope_table_init(16, 128, freq, &far));
    must(rope_table_move(&far, bench->device));
    bench->ref->rope(NULL, &a);
    a.x = x.far;
    a.table = &far;
    bench->gpu->rope(bench->pool, &a);
    judge(bench, &x, 0, "rope", n_row, d_head);
    rope_table_release(&table);
    rope_table_release(&far);
    drop(bench, &x);
}

/* Two spans' states of n_head matrices; one head is at the cap, one has what is
 * no number, of the others most are above it. */
static void check_cap(struct bench *bench, uint32_t n_head, uint32_t d_k,
                      uint32_t d_v)
{
    const size_t n = (size_t)d_k * d_v;
    struct both s = make(bench, 2 * n_head * n);
    struct delta_span span[2] = {{.state.s = s.host},
                                 {.state.s = s.host + n_head * n}};
    uint64_t n_scaled = 0;
    struct state_cap_args a = {.shape = {1, n_head, d_k, d_v, 0},
                               .span = span,
                               .n_span = 2,
                               .cap = 1.5f,
                               .n_scaled = &n_scaled};
    void *far, *back;

    for (size_t i = 0; i < s.n; i++)
        s.host[i] =
            i < n ? (i % 2 ? 1.5f : -1.5f) : s.host[i] * (float)(1 + i / n % 7);
    s.host[s.n - n] = NAN;
    device_write(bench->device, s.far, s.host, s.n * sizeof(float));
    must(device_take(bench->device, sizeof(n_scaled), &far));
    must(device_take_host(bench->device, sizeof(n_scaled), &back));
    bench->ref->state_cap(NULL, &a);
    span[0].state.s = s.far;
    span[1].state.s = s.far + n_head * n;
    a.n_scaled = far;
    bench->gpu->state_cap(bench->pool, &a);
    device_read(bench->device, back, far, sizeof(n_scaled));
    judge(bench, &s, 0, "state_cap", n_head, d_k);
    if (*(uint64_t *)back != n_scaled)
        fail_case(bench, "the number of state_cap", n_head, d_k);
    device_give(bench->device, far);
    device_give_host(bench->device, back);
    drop(bench, &s);
}

/* ------------------------------------------------------------------- experts
 */

static void check_router(struct bench *bench, uint32_t n_row, uint32_t n_out,
                         enum linear_type type)
{
    const uint32_t n_in = 129;
    float *weight = malloc((size_t)n_out * n_in * sizeof(float));
    struct both x = make(bench, (size_t)n_row * n_in);
    struct both y = make(bench, (size_t)n_row * n_out);
    struct linear here, there;
    struct linear_args a = {y.host, n_out, x.host, n_in, n_row, &here, NULL};

    for (size_t i = 0; i < (size_t)n_out * n_in; i++)
        weight[i] = noise();
    must(linear_init(n_in, n_out, type, ARITHMETIC_FP32, &here));
    must(linear_init(n_in, n_out, type, ARITHMETIC_FP32, &there));
    linear_pack_f32(&here, 0, n_out, weight);
    linear_pack_f32(&there, 0, n_out, weight);
    must(linear_move(&there, bench->device));
    bench->ref->linear(NULL, &a);
    a.y = y.far;
    a.x = x.far;
    a.w = &there;
    bench->gpu->linear(bench->pool, &a);
    judge(bench, &y, 0, "the router's product", n_row, n_out);
    linear_release(&here);
    linear_release(&there);
    free(weight);
    drop(bench, &x);
    drop(bench, &y);
}

/* Whole numbers of a routing, then what combine makes of it. */
static void check_experts(struct bench *bench, uint32_t n_row,
                          uint32_t n_expert, uint32_t n_chosen)
{
    const uint32_t n = n_row * n_chosen, dim = 77;
    struct both logit = make(bench, (size_t)n_row * n_expert);
    struct both part[5] = {make(bench, n), make(bench, n), make(bench, n),
                           make(bench, n), make(bench, n_expert + 1)};
    struct both x = make(bench, (size_t)n * dim);
    struct both shared = make(bench, (size_t)n_row * dim);
    struct both y = make(bench, (size_t)n_row * dim);
    struct routing by[2] = {{n_row, n_expert, n_chosen,
                             (uint32_t *)part[0].host, part[1].host,
                             (uint32_t *)part[2].host, (uint32_t *)part[3].host,
                             (uint32_t *)part[4].host},
                            {n_row, n_expert, n_chosen, (uint32_t *)part[0].far,
                             part[1].far, (uint32_t *)part[2].far,
                             (uint32_t *)part[3].far, (uint32_t *)part[4].far}};

    if (n_row > 2) /* equals, so that the lower index must win */
        for (uint32_t e = 0; e < n_expert; e++)
            logit.host[e] = (float)(e % 3);
    device_write(bench->device, logit.far, logit.host, logit.n * sizeof(float));
    for (int on = 0; on < 2; on++) {
        const struct backend *b = on ? bench->gpu : bench->ref;

        b->route(bench->pool,
                 &(struct route_args){.to = by[on],
                                      .logit = on ? logit.far : logit.host,
                                      .logit_stride = n_expert,
                                      .is_renormalised = n_row % 2});
        b->combine(bench->pool, &(struct combine_args){
                                    .y = on ? y.far : y.host,
                                    .y_stride = dim,
                                    .by = &by[on],
                                    .x = on ? x.far : x.host,
                                    .x_stride = dim,
                                    .shared = n_row % 2 ? NULL
                                              : on      ? shared.far
                                                        : shared.host,
                                    .shared_stride = dim,
                                    .shared_gate = on ? logit.far : logit.host,
                                    .gate_stride = n_expert,
                                    .dim = dim});
    }
    for (int i = 0; i < 5; i++) {
        judge(bench, &part[i], 0, "route", n_row, n_expert);
        drop(bench, &part[i]);
    }
    judge(bench, &y, 0, "combine", n_row, n_expert);
    drop(bench, &logit);
    drop(bench, &x);
    drop(bench, &shared);
    drop(bench, &y);
}

/* -------------------------------------------------------------------- logits
 */

static bool same_tops(const struct tops *a, const struct tops *b)
{
    return a->n == b->n && a->is_all == b->is_all &&
           memcmp(a->value, b->value, a->n * sizeof(float)) == 0 &&
           memcmp(a->id, b->id, a->n * sizeof(uint32_t)) == 0 &&
           fabs(a->mass - b->mass) <= a->mass * (double)0x1p-34;
}

/* Logits of n_value different values; 0: as many as there are. */
static void check_tops(struct bench *bench, uint32_t n_row, uint32_t n,
                       uint32_t n_value)
{
    struct both x = make(bench, (size_t)n_row * n);
    struct tops *here = calloc(n_row, sizeof(*here));
    void *far, *back;

    for (size_t i = 0; i < x.n; i++) {
        x.host[i] *= 20;
        if (n_value)
            x.host[i] = roundf(x.host[i] / 40 * (float)n_value);
        if (i % 97 == 5)
            x.host[i] = i % 2 ? NAN : -INFINITY;
    }
    must(device_take(bench->device, n_row * sizeof(*here), &far));
    must(device_take_host(bench->device, n_row * sizeof(*here), &back));
    device_write(bench->device, x.far, x.host, x.n * sizeof(float));
    bench->ref->tops(NULL, &(struct tops_args){here, x.host, n, n_row, n});
    bench->gpu->tops(bench->pool, &(struct tops_args){far, x.far, n, n_row, n});
    device_read(bench->device, back, far, n_row * sizeof(*here));
    must(device_wait(bench->device));
    for (uint32_t r = 0; r < n_row; r++) {
        const struct tops *there = (const struct tops *)back + r;

        bench->n_case++;
        /* Too many equals may be too much to list. */
        if (!same_tops(&here[r], there) &&
            !(n_value && there->n == 0 && !there->is_all))
            fail_case(bench, "tops", n, n_value);
    }
    device_give(bench->device, far);
    device_give_host(bench->device, back);
    free(here);
    drop(bench, &x);
}

static void check_all(struct bench *bench)
{
    static const uint32_t EXPERTS[][3] = {
        {1, 1, 1},     {1, 8, 3},     {3, 16, 4},   {65, 60, 8},
        {2, 256, 8},   {33, 48, 8},   {64, 128, 8}, {64, 20, 20},
        {300, 256, 8}, {1, 1024, 10}, {1000, 33, 2}};

    for (size_t i = 0; i < COUNT(ROWS); i++) {
        check_norm(bench, ROWS[i].n_row, ROWS[i].n_group, ROWS[i].dim);
        check_pairs(bench, ROWS[i].n_row, ROWS[i].dim);
        check_embed(bench, ROWS[i].n_row, ROWS[i].dim, LINEAR_F32);
        check_embed(bench, ROWS[i].n_row, ROWS[i].dim, LINEAR_BF16);
        check_rope(bench, ROWS[i].n_row, ROWS[i].n_group, 16 + 4 * (uint32_t)i);
        check_router(bench, ROWS[i].n_row, ROWS[i].n_group * 15, LINEAR_F32);
        check_router(bench, ROWS[i].n_row, ROWS[i].n_group * 15, LINEAR_BF16);
    }
    check_tops(bench, 3, 1, 0);
    check_tops(bench, 2, 127, 0);
    check_tops(bench, 2, 130, 0);
    check_tops(bench, 5, 16384, 0);
    check_tops(bench, 5, 16385, 0);
    check_tops(bench, 3, 151936, 0);
    check_tops(bench, 7, 248320, 0);
    check_tops(bench, 3, 248320, 100000);
    check_tops(bench, 3, 248320, 3);
    check_cap(bench, 5, 3, 7);
    check_cap(bench, 32, 128, 128);
    check_cap(bench, 8, 64, 65);
    for (size_t i = 0; i < COUNT(EXPERTS); i++)
        check_experts(bench, EXPERTS[i][0], EXPERTS[i][1], EXPERTS[i][2]);
}

int main(int argc, char **argv)
{
    struct bench bench = {.n_bad = 0};

    if (argc != 2) {
        (void)fprintf(stderr, "usage: gpu_ops BACKEND\n");
        return 2;
    }
    must(backend_find(argv[1], &bench.gpu));
    must(backend_find("ref", &bench.ref));
    if (!bench.gpu->find_device) {
        printf("backend '%s' has no device\n", argv[1]);
        return 2;
    }
    must(device_create(bench.gpu, &bench.device));
    must(pool_create_device(bench.device, &bench.pool));
    check_all(&bench);
    printf("small operators: %u of %u cases differ from ref\n", bench.n_bad,
           bench.n_case);
    pool_destroy(bench.pool);
    device_destroy(bench.device);
    return bench.n_bad ? 1 : 0;
}
