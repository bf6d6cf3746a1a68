/*
 * The bits behind arithmetic_id(). Sessions on disk trust that a build with the
 * same numerics id continues them exactly; this test is what makes that id a
 * promise. Its judge is a digest of results taken when the id was made: if it
 * fails, either a kernel broke, or the id needs a new name.
 */
#include "kernels/scalar.h"
#include "tests/unit/kernels/fixture.h"

/* FNV-1a over bytes, so that no other module can change the judgement. */
static uint64_t digest(uint64_t hash, const void *data, size_t n)
{
    const unsigned char *bytes = data;

    for (size_t i = 0; i < n; i++)
        hash = (hash ^ bytes[i]) * 0x100000001b3u;
    return hash;
}

static uint64_t digest_scalars(uint64_t hash)
{
    for (int i = -90000; i <= 90000; i++) {
        float x = (float)i * 0x1.004p-10f;
        float y[5] = {scalar_exp(x), scalar_sigmoid(x), scalar_silu(x),
                      scalar_softplus(x), scalar_log(1e-3f + x * x)};
        hash = digest(hash, y, sizeof(y));
    }
    return hash;
}

static uint64_t digest_linear(const struct backend *b, uint64_t hash)
{
    float *x = filled(3 * 77, 1), *y = room(3 * 33),
          *weight = filled(77 * 33, 2);
    struct linear w;

    must(linear_init(77, 33, LINEAR_F32, ARITHMETIC_FP32, &w));
    linear_pack_f32(&w, 0, 33, weight);
    b->linear(NULL, &(struct linear_args){y, 33, x, 77, 3, &w, NULL});
    b->linear_add(NULL, &(struct linear_args){y, 33, x, 77, 3, &w, NULL});
    b->rms_norm(
        NULL, &(struct norm_args){y, 33, y, 33, weight, 3, 1, 33, 1e-6f, NULL});
    hash = digest(hash, y, 3 * 33 * sizeof(float));
    linear_release(&w);
    drop(x);
    drop(y);
    drop(weight);
    return hash;
}

/* Angles are noise, because libm is no part of the promise. */
static uint64_t digest_attend(const struct backend *b, uint64_t hash,
                              enum arithmetic order, uint32_t n_rot)
{
    enum { N_ROW = 130, D = 24 };
    struct attend_shape shape = {2, 1, D, order, 0};
    float *q = filled(N_ROW * 2 * D, 3), *kv = filled(N_ROW * 2 * D, 4);
    float *out = room(N_ROW * 2 * D);
    void *block[3];
    float *angle = filled(192 * D, 13);
    struct rope_table table = {n_rot, 192, angle, angle + 192 * D / 2, NULL};

    for (size_t i = 0; i < 3; i++)
        block[i] = constant(kv_block_bytes(shape) / sizeof(float), 0.0f);
    struct attend_span span = {0, N_ROW, 0, block, NULL};
    b->kv_append(NULL, &(struct kv_append_args){shape, kv, kv + D, 2 * D, 2 * D,
                                                &span, 1});
    b->attend(NULL, &(struct attend_args){.shape = shape,
                                          .out = out,
                                          .out_stride = 2 * D,
                                          .q = q,
                                          .q_stride = 2 * D,
                                          .table = &table,
                                          .scale = 3.0f,
                                          .span = &span,
                                          .n_span = 1});
    hash = digest(hash, out, N_ROW * 2 * D * sizeof(float));
    for (size_t i = 0; i < 3; i++)
        drop(block[i]);
    drop(angle);
    drop(q);
    drop(kv);
    drop(out);
    return hash;
}

static uint64_t digest_delta(const struct backend *b, enum arithmetic order,
                             uint64_t hash)
{
    enum { N_ROW = 130, D = 24, N = N_ROW * 4 * D };
    struct delta_shape shape = {1, 2, D, D, order};
    float *qkv = filled(N, 5), *out = room(N_ROW * 2 * D);
    float *ab = filled(4 * N_ROW, 6), *gates = room(4 * N_ROW);
    float *tail = constant(3 * 4 * D, 0.0f), *y = room(N);
    float *s = constant(2 * D * D, 0.0f), *ring = room((D + 2 * D) * GRID);
    double g[2 * GRID];
    struct conv_span rows = {0, N_ROW, tail};
    struct delta_span span = {
        .n_row = N_ROW,
        .state = {
            .s = s, .ring_k = ring, .ring_u = ring + D * GRID, .ring_g = g}};

    b->delta_gate(NULL, &(struct delta_gate_args){gates, gates + 2 * N_ROW, ab,
                                                  ab + 2, 4, 4, ab, ab + 7,
                                                  N_ROW, 2});
    for (size_t i = 2 * N_ROW; i < 4 * N_ROW; i++)
        gates[i] = -fabsf(gates[i]);
    b->conv(NULL, &(struct conv_args){.y = y,
                                      .y_stride = 4 * D,
                                      .x = qkv,
                                      .x_stride = 4 * D,
                                      .weight = qkv + 17,
                                      .n_channel = 4 * D,
                                      .width = 4,
                                      .span = &rows,
                                      .n_span = 1});
    b->delta(NULL, &(struct delta_args){.shape = shape,
                                        .out = out,
                                        .out_stride = 2 * D,
                                        .q = y,
                                        .k = y + D,
                                        .v = y + 2 * D,
                                        .qkv_stride = 4 * D,
                                        .beta = gates,
                                        .log_decay = gates + 2 * N_ROW,
                                        .span = &span,
                                        .n_span = 1});
    hash = digest(digest(hash, out, N_ROW * 2 * D * sizeof(float)), s,
                  2 * D * D * sizeof(float));
    drop(qkv);
    drop(out);
    drop(ab);
    drop(gates);
    drop(tail);
    drop(y);
    drop(s);
    drop(ring);
    return hash;
}

/* Products of one arithmetic, in types [first, last], of inputs of all sizes.
 */
static uint64_t digest_products(const struct backend *b, enum arithmetic order,
                                enum linear_type first, enum linear_type last)
{
    enum { N_IN = 301, N_OUT = 33, N_ROW = 7 };
    float *x = filled(N_ROW * N_IN, 8), *y = room(N_ROW * N_OUT);
    float *weight = filled(N_IN * N_OUT, 9);
    uint64_t hash = 0xcbf29ce484222325u;

    for (size_t i = 0; i < N_IN; i++) /* row 0 comes to subnormal products */
        x[i] = ldexpf(x[i], -(int)(i % 140));
    for (size_t i = 0; i < N_IN; i++)
        weight[i] = ldexpf(weight[i], -(int)(i % 31));
    for (enum linear_type type = first; type <= last; type++) {
        struct linear w;

        must(linear_init(N_IN, N_OUT, type, order, &w));
        linear_pack_f32(&w, 0, N_OUT, weight);
        struct linear_args args = {y, N_OUT, x, N_IN, N_ROW, &w, NULL};
        b->linear(NULL, &args);
        hash = digest(hash, y, N_ROW * N_OUT * sizeof(float));
        b->linear_add(NULL, &args);
        hash = digest(hash, y, N_ROW * N_OUT * sizeof(float));
        linear_release(&w);
    }
    drop(x);
    drop(y);
    drop(weight);
    return hash;
}

/* Who is chosen, with which weights, and what comes of it. */
static uint64_t digest_experts(const struct backend *b, uint64_t hash)
{
    enum { N_ROW = 37, N = 67, K = 9, DIM = 33 };
    float *logit = filled(N_ROW * N, 10), *weight = room(N_ROW * K);
    float *x = filled(N_ROW * K * DIM, 11), *y = filled(N_ROW * DIM, 12);
    uint32_t expert[N_ROW * K], place[N_ROW * K], row[N_ROW * K], first[N + 1];
    const struct routing by = {N_ROW, N, K, expert, weight, place, row, first};

    for (size_t i = 0; i < N_ROW * N; i++)
        logit[i] *= 5.0f;
    for (int is_renormalised = 0; is_renormalised < 2; is_renormalised++) {
        b->route(NULL, &(struct route_args){by, logit, N, is_renormalised});
        b->combine(NULL, &(struct combine_args){y, DIM, &by, x, DIM, x + 7, DIM,
                                                logit, N, DIM});
        hash = digest(hash, weight, N_ROW * K * sizeof(*weight));
        hash = digest(hash, place, sizeof(place));
        hash = digest(hash, row, sizeof(row));
        hash = digest(hash, y, N_ROW * DIM * sizeof(*y));
    }
    drop(logit);
    drop(weight);
    drop(x);
    drop(y);
    return hash;
}

Test(numerics, the_bits_are_those_that_the_ids_were_given_for)
{
    static const struct {
        const char *id;
        uint64_t products, attend, delta;
    } PIN[N_CPU_ARITHMETIC] = {
        [ARITHMETIC_FP32] = {"fp32-chain-2", UINT64_C(0xf44d7730215236c2),
                             UINT64_C(0xb389026ea6799b63),
                             UINT64_C(0x003423e66479d7ec)},
        [ARITHMETIC_PAIR] = {"bf16-pair-2", UINT64_C(0xb7801835f15cb7e4),
                             UINT64_C(0xb39f9f25dc5c0d91),
                             UINT64_C(0xff5daf145f10eb85)},
        [ARITHMETIC_TILE] = {"bf16-tile-2", UINT64_C(0x81725526048e64e0),
                             UINT64_C(0x18c20b73a4e6053c),
                             UINT64_C(0xf10c060b5a52dd8d)},
    };

    const uint64_t W8A8 = UINT64_C(0x17843ab6f1d7e380);

    EACH_BACKEND(backend)
    {
        uint64_t hash = digest_scalars(0xcbf29ce484222325u);
        hash = digest_linear(backend, hash);
        hash = digest_attend(backend, hash, ARITHMETIC_FP32, 0);
        hash = digest_delta(backend, ARITHMETIC_FP32, hash);
        cr_assert(eq(u64, hash, UINT64_C(0xe0dd74862ac9c457)),
                  "%s: digest is %lx", backend->name, hash);
        hash = digest_experts(backend, 0xcbf29ce484222325u);
        cr_assert(eq(u64, hash, UINT64_C(0xc4e2eab81baacc0f)),
                  "%s: digest is %lx", backend->name, hash);
        for (int i = 0; i < N_CPU_ARITHMETIC; i++) {
            cr_assert_str_eq(arithmetic_id((enum arithmetic)i), PIN[i].id);
            hash = digest_products(backend, (enum arithmetic)i, LINEAR_F32,
                                   LINEAR_W8);
            cr_expect(eq(u64, hash, PIN[i].products), "%s %s: digest is %lx",
                      backend->name, PIN[i].id, hash);
            hash = digest_products(backend, (enum arithmetic)i, LINEAR_W8A8,
                                   LINEAR_W8A8);
            cr_expect(eq(u64, hash, W8A8), "%s w8a8-128: digest is %lx",
                      backend->name, hash);
            hash = digest_attend(backend, 0xcbf29ce484222325u,
                                 (enum arithmetic)i, 20);
            cr_expect(eq(u64, hash, PIN[i].attend), "%s %s: attend's is %lx",
                      backend->name, PIN[i].id, hash);
            hash =
                digest_delta(backend, (enum arithmetic)i, 0xcbf29ce484222325u);
            cr_expect(eq(u64, hash, PIN[i].delta),
                      "%s %s: delta's digest is %lx", backend->name, PIN[i].id,
                      hash);
        }
    }
}
