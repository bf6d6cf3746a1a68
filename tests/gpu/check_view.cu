/*
 * Memory policies on the GPU, standalone: kv_view against one view after the
 * other on the host, by ref's functions and plain loops, to the last bit:
 * lists, places, sums of queries, scores, choices and indices. Sessions of one
 * shape and other policies go on side by side in calls of random rows, some
 * calls in pieces, some as a recorded step launches them.
 *
 *     check_view check            every shape; exit status 0 if all holds
 *     check_view least            few of it, for compute-sanitizer
 *     check_view time [I]         beside the bounds, all or one
 */
#include "tests/gpu/rate.h"
#include "tests/gpu/view_session.h"

#include "kernels/cuda/ops.h"

#include <stdio.h>

#define COUNT(x) (sizeof(x) / sizeof(*(x)))
#define SESSIONS 4u
#define CALL_VIEWS 1600u

static uint32_t n_checked, n_failed;

static void claim(bool is_true, const char *what, const struct session *s)
{
    n_checked++;
    if (is_true)
        return;
    if (n_failed++ < 20)
        printf("FAILED: %s, %u heads of %u on %u, index %u, keys %u, placed "
               "%u, sink %u window %u pick %u step %u reuse %u, at %lu\n",
               what, s->shape.n_head, s->shape.d_head, s->shape.n_kv_head,
               s->rule.index, s->rule.keys, s->rule.is_placed, s->rule.n_sink,
               s->rule.n_window, s->rule.n_pick, s->rule.step, s->rule.reuse,
               s->position);
}

/* ------------------------------------------------------------------- a call
 */

struct call {
    struct session *session; /* [SESSIONS] */
    struct kv_view view[CALL_VIEWS];
    uint32_t of[CALL_VIEWS]; /* session of each view */
    uint32_t n_view, n_row;
    uint64_t n_seen;
    float *q; /* [n_row][stride] */
    size_t stride;
    float *score; /* of all look-ups that make any */
    size_t n_score;
    struct seen *seen; /* [n_seen] */
};

static uint64_t n_listed(const struct kv_view *v)
{
    return v->n_sink + v->n_pick + (v->chunk - v->window) + 1;
}

/* The next n rows of a session as views, some of them shorter than they
 * might be. */
static void add_rows(struct call *call, uint32_t of, uint32_t n)
{
    struct session *s = &call->session[of];

    while (n) {
        const uint32_t cut = draw(5) ? n : 1 + draw(n);
        const struct kv_view v = next_view(s, call->n_row, cut, call->n_seen);

        call->of[call->n_view] = of;
        call->view[call->n_view++] = v;
        call->n_row += v.n_row;
        call->n_seen += n_listed(&v);
        n -= v.n_row;
    }
    if (draw(4) == 0) { /* a row under full: nothing of it is looked at */
        memset(&call->view[call->n_view], 0x5a, sizeof(*call->view));
        call->view[call->n_view].n_row = 0;
        call->of[call->n_view++] = of;
        call->n_row++;
    }
}

static struct call make_call(struct session *session, uint32_t most)
{
    struct call call = {};
    const struct session *s = &session[0];
    uint32_t order = draw(SESSIONS);

    call.session = session;
    for (uint32_t i = 0; i < SESSIONS; i++, order++) {
        struct session *each = &session[order % SESSIONS];
        const uint64_t left =
            (uint64_t)each->n_block * KV_BLOCK - 1 - each->position;
        uint32_t n = draw(3) ? draw(5) : draw(most);

        n = left < n ? (uint32_t)left : n;
        if (n)
            add_rows(&call, order % SESSIONS, n);
    }
    call.stride = query_floats(s) + 4;
    call.q = (float *)malloc((call.n_row + 1) * call.stride * 4);
    for (size_t i = 0; i < call.n_row * call.stride; i++)
        call.q[i] = number(s->is_coarse);
    return call;
}

/* All that the call shall have done. */
static void foretell(struct call *call, float scale)
{
    size_t n_score = 1;
    float *score;

    for (uint32_t i = 0; i < call->n_view; i++)
        if (call->view[i].n_row && call->view[i].looks_up)
            n_score += call->view[i].end - call->view[i].first;
    score = call->score = (float *)malloc(n_score * 4);
    call->seen = (struct seen *)calloc(call->n_seen + 1, sizeof(*call->seen));
    for (uint32_t i = 0; i < call->n_view; i++) {
        const struct kv_view *v = &call->view[i];
        struct session *s = &call->session[call->of[i]];

        if (!v->n_row)
            continue;
        if (v->is_seen)
            oracle_list(s, v, call->seen + v->first_seen);
        oracle_view(s, v, call->q, call->stride, scale, &score);
    }
    call->n_score = (size_t)(score - call->score);
}

static void check_lists(const struct call *call, void *const *far_block,
                        const struct key_place *far_place)
{
    const size_t n = call->n_seen;
    void **block = (void **)malloc(n * sizeof(*block) + 1);
    struct key_place *place =
        (struct key_place *)malloc(n * sizeof(*place) + 1);

    CUDA(cudaMemcpy(block, far_block, n * sizeof(*block),
                    cudaMemcpyDeviceToHost));
    CUDA(cudaMemcpy(place, far_place, n * sizeof(*place),
                    cudaMemcpyDeviceToHost));
    for (uint32_t i = 0; i < call->n_view; i++) {
        const struct kv_view *v = &call->view[i];
        bool is_same = true;

        if (!v->n_row)
            continue;
        for (uint64_t j = v->first_seen; j < v->first_seen + n_listed(v); j++)
            is_same &= v->is_seen
                           ? block[j] == call->seen[j].block &&
                                 place[j].position == call->seen[j].position &&
                                 place[j].is_flat == call->seen[j].is_flat
                           : block[j] == (void *)-1;
        claim(is_same, "list", &call->session[call->of[i]]);
    }
    free(block);
    free(place);
}

static void check_kept(const struct session *s)
{
    const size_t sums = n_sum_of(&s->rule) * query_floats(s) * 4;
    float *queries = (float *)malloc(sums + 1);
    uint32_t pick[PICK_WORDS];

    if (!s->rule.index) {
        free(queries);
        return;
    }
    CUDA(cudaMemcpy(queries, s->far_queries, sums, cudaMemcpyDeviceToHost));
    CUDA(cudaMemcpy(pick, s->far_pick, sizeof(pick), cudaMemcpyDeviceToHost));
    claim(memcmp(queries, s->queries, sums) == 0, "sums", s);
    claim(memcmp(pick, s->pick, (1 + s->pick[0]) * 4) == 0, "choice", s);
    free(queries);
}

static void check_indices(const struct session *s)
{
    unsigned char *index = (unsigned char *)malloc(s->index_bytes + 1);
    bool is_same = true;

    for (uint32_t b = 0; b < s->n_block && s->index_bytes; b++) {
        CUDA(cudaMemcpy(index, (char *)s->to[b] + s->block_bytes,
                        s->index_bytes, cudaMemcpyDeviceToHost));
        is_same &= memcmp(index, s->index[b], s->index_bytes) == 0;
    }
    claim(is_same, "indices", s);
    free(index);
}

/* They lie in scratch memory, behind the queries (kernels/cuda/view.cu). */
static void check_scores(const struct gpu *gpu, const struct call *call)
{
    const size_t n_q = query_floats(&call->session[0]);
    float *score = (float *)malloc(call->n_score * 4 + 1);
    size_t n_row = 0;

    for (uint32_t i = 0; i < call->n_view; i++) {
        const struct kv_view *v = &call->view[i];

        if (v->n_row && v->looks_up && v->n_choose &&
            v->n_choose < v->end - v->first)
            n_row += v->index == INDEX_MASS ? v->n_sum : 1;
    }
    if (n_row) {
        CUDA(cudaMemcpy(score,
                        gpu->scratch + (n_row * n_q * 4 + 255) / 256 * 256,
                        call->n_score * 4, cudaMemcpyDeviceToHost));
        claim(memcmp(score, call->score, call->n_score * 4) == 0, "scores",
              &call->session[0]);
    }
    free(score);
}

static bool has_mass(const struct call *call)
{
    for (uint32_t i = 0; i < call->n_view; i++)
        if (call->view[i].n_row && call->view[i].looks_up &&
            call->view[i].index == INDEX_MASS)
            return true;
    return false;
}

/* Whole, in pieces, or as a recorded step does it. */
static void run_call(struct gpu *gpu, struct call *call,
                     const struct rope_table *table, float scale)
{
    const uint32_t way = has_mass(call) ? draw(2) : draw(3);
    struct kv_view_args a = {};
    const size_t q_bytes = call->n_row * call->stride * 4;

    CUDA(cudaMalloc((void **)&a.q, q_bytes + 4));
    CUDA(cudaMemcpy((void *)a.q, call->q, q_bytes, cudaMemcpyHostToDevice));
    CUDA(cudaMalloc((void **)&a.block, call->n_seen * 8 + 8));
    CUDA(cudaMalloc((void **)&a.place, call->n_seen * sizeof(*a.place) + 8));
    CUDA(cudaMemset(a.block, 0xff, call->n_seen * 8 + 8));
    a.shape = call->session[0].shape;
    a.table = table;
    a.scale = scale;
    a.q_stride = call->stride;
    gpu->is_recording = way == 2;
    for (uint32_t i = 0, n; i < call->n_view; i += n) {
        n = way == 1 ? 1 + draw(call->n_view - i) : call->n_view;
        a.view = call->view + i;
        a.n_view = n;
        cuda_kv_view(gpu, &a);
    }
    gpu->is_recording = false;
    CUDA(cudaStreamSynchronize(gpu->stream));
    CUDA(cudaGetLastError());
    check_lists(call, a.block, a.place);
    if (way == 0 && call->n_view <= VIEW_MAX)
        check_scores(gpu, call);
    for (uint32_t i = 0; i < SESSIONS; i++)
        check_kept(&call->session[i]);
    cudaFree((void *)a.q);
    cudaFree(a.block);
    cudaFree(a.place);
}

/* ------------------------------------------------------------------ trials
 */

struct trial {
    uint32_t n_kv_head, group, d_head, n_rot;
    uint32_t n_sink, n_window, n_pick; /* at most */
    uint32_t position, n_token;        /* nearly */
};

/* Any policy, with numbers up to the trial's. */
static struct rule rule_draw(const struct trial *t, uint32_t position)
{
    static const enum index_kind INDICES[] = {INDEX_KEYS,   INDEX_BOUNDS,
                                              INDEX_BOUNDS, INDEX_BOUNDS,
                                              INDEX_NONE,   INDEX_MASS};
    struct rule r = {};

    r.index = INDICES[draw(COUNT(INDICES))];
    if (r.index == INDEX_MASS && position > 1000) /* the oracle is slow */
        r.index = INDEX_BOUNDS;
    r.keys = (enum key_rule)draw(N_KEY_RULE);
    r.n_sink = draw(t->n_sink + 1);
    r.n_window = draw(t->n_window + 1);
    if (!r.index)
        return r;
    r.n_pick =
        draw(4) ? t->n_pick - draw(t->n_pick / 4 + 1) : draw(t->n_pick + 1);
    r.is_placed = r.index == INDEX_BOUNDS && draw(2);
    r.step = r.index == INDEX_MASS ? 1 : 1u << draw(7);
    r.reuse = r.index == INDEX_MASS || draw(2) ? 1 : 1u << draw(5);
    r.end = position + 1 + draw(t->n_token);
    return r;
}

static struct rope_table far_table(const struct rope_table *table)
{
    const size_t n = table->n_position * (table->n_rot / 2) * 4;
    struct rope_table far = *table;

    CUDA(cudaMalloc((void **)&far.cos, n + 4));
    CUDA(cudaMalloc((void **)&far.sin, n + 4));
    CUDA(cudaMemcpy(far.cos, table->cos, n, cudaMemcpyHostToDevice));
    CUDA(cudaMemcpy(far.sin, table->sin, n, cudaMemcpyHostToDevice));
    return far;
}

static void check_trial(struct gpu *gpu, const struct trial *t)
{
    const struct attend_shape shape = {t->n_kv_head * t->group, t->n_kv_head,
                                       t->d_head, ARITHMETIC_FP32, KV_WIDE};
    const bool is_coarse = draw(3) == 0;
    const float scale = 1.0f / sqrtf((float)t->d_head);
    struct rope_table table, far;
    struct session session[SESSIONS];
    double inverse[VIEW_DIM_MAX / 2];
    uint32_t n_call = 0;

    for (uint32_t i = 0; i < t->n_rot / 2; i++)
        inverse[i] = pow(1e4, -2.0 * i / t->n_rot);
    if (rope_table_init(t->n_rot,
                        (t->position + 2 * t->n_token + 128) / 64 * 64, inverse,
                        &table))
        exit(2);
    far = far_table(&table);
    for (uint32_t i = 0; i < SESSIONS; i++) {
        const uint32_t at = draw(3) ? t->position + draw(70) : draw(130);

        session[i] = session_make(shape, rule_draw(t, at), &table, at,
                                  t->n_token / 2 + draw(t->n_token), is_coarse);
    }
    for (bool goes_on = true; goes_on && n_call < 400; n_call++) {
        struct call call = make_call(session, t->n_token / 2);

        foretell(&call, scale);
        run_call(gpu, &call, &far, scale);
        goes_on = false;
        for (uint32_t i = 0; i < SESSIONS; i++)
            goes_on |= session[i].position + 1 <
                       (uint64_t)session[i].n_block * KV_BLOCK;
        free(call.q);
        free(call.score);
        free(call.seen);
    }
    for (uint32_t i = 0; i < SESSIONS; i++) {
        check_indices(&session[i]);
        session_release(&session[i]);
    }
    cudaFree(far.cos);
    cudaFree(far.sin);
    rope_table_release(&table);
}

static int check_all(struct gpu *gpu, bool is_least)
{
    static const struct trial TRIAL[] = {
        {1, 1, 64, 64, 2, 3, 4, 300, 200},
        {2, 4, 256, 64, 2, 4, 8, 1500, 200},
        {1, 8, 128, 128, 2, 4, 8, 1000, 300},
        {2, 3, 96, 32, 1, 2, 16, 2000, 200},
        {1, 1, 64, 32, 3, 16, 32, 8000, 500},
        {3, 2, 72, 16, 0, 1, 5, 700, 150},
        {1, 7, 64, 64, 1, 1, 12, 4000, 700},
        {2, 1, 64, 48, 5, 4, 1024, 70000, 100},
        {1, 2, 64, 64, 1, 2, 1024, 69000, 300},
        {4, 4, 256, 64, 1, 16, 32, 6000, 100},
    };

    for (size_t i = 0; i < COUNT(TRIAL); i++) {
        const struct trial *t = &TRIAL[i];
        const uint32_t n = is_least ? i % 3 == 0 : t->position > 9000 ? 2 : 12;

        for (uint32_t k = 0; k < n && (!is_least || t->position < 5000); k++)
            check_trial(gpu, t);
        printf("%u heads of %u on %u: %u of %u checks failed so far\n",
               t->group * t->n_kv_head, t->d_head, t->n_kv_head, n_failed,
               n_checked);
    }
    printf("%u of %u checks failed\n", n_failed, n_checked);
    return n_failed != 0;
}

/* -------------------------------------------------------------------- time */

#define N_TIME 9
static double copy_bytes_us;

struct timing {
    const char *name;
    uint32_t n_session, n_layer, n_row, step;
    enum index_kind index;
    bool is_placed, looks_up;
};

/* Indices of all blocks, one behind the other; what lies before each, where a
 * block's keys would, are those of others. */
struct blocks {
    unsigned char *memory;
    void **block; /* [n_layer][n_session][n_block] on the device */
    size_t n;     /* of a session and layer */
};

static __global__ void fill(float *x, size_t n)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x) {
        uint64_t z = (i + 1) * 0x9e3779b97f4a7c15u;

        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        x[i] = (float)(int32_t)(z >> 32) * 0x1p-31f;
    }
}

static void *filled(size_t bytes)
{
    void *x;

    CUDA(cudaMalloc(&x, bytes));
    fill<<<1024, 256>>>((float *)x, bytes / 4);
    CUDA(cudaDeviceSynchronize());
    return x;
}

static struct blocks blocks_make(const struct session *s, size_t n_all)
{
    struct blocks b = {};
    void **host = (void **)malloc(n_all * sizeof(void *));

    b.memory = (unsigned char *)filled(n_all * s->index_bytes + s->block_bytes);
    for (size_t i = 0; i < n_all; i++)
        host[i] = b.memory + i * s->index_bytes;
    CUDA(cudaMalloc((void **)&b.block, n_all * sizeof(void *)));
    CUDA(cudaMemcpy(b.block, host, n_all * sizeof(void *),
                    cudaMemcpyHostToDevice));
    free(host);
    return b;
}

static float median(float *x)
{
    for (int i = 1; i < N_TIME; i++)
        for (int j = i; j > 0 && x[j] < x[j - 1]; j--) {
            const float t = x[j];

            x[j] = x[j - 1];
            x[j - 1] = t;
        }
    return x[N_TIME / 2];
}

static void time_copy(void)
{
    const size_t n = (size_t)1 << 30;
    char *a = (char *)filled(n), *b = (char *)filled(n);
    cudaEvent_t from, to;
    float ms[N_TIME];

    CUDA(cudaEventCreate(&from));
    CUDA(cudaEventCreate(&to));
    for (int i = -2; i < N_TIME; i++) {
        CUDA(cudaEventRecord(from));
        CUDA(cudaMemcpyAsync(a, b, n, cudaMemcpyDeviceToDevice));
        CUDA(cudaEventRecord(to));
        CUDA(cudaEventSynchronize(to));
        if (i >= 0)
            CUDA(cudaEventElapsedTime(&ms[i], from, to));
    }
    copy_bytes_us = 2.0 * (double)n / median(ms) / 1e3;
    printf("copy: %.0f GB/s read and written\n", copy_bytes_us / 1e3);
    cudaFree(a);
    cudaFree(b);
}

/* The rows of all sessions behind n_token tokens, as views. */
static void make_views(struct call *call, const struct session *one,
                       const struct timing *t, void **block, size_t n_block)
{
    const size_t n_q = query_floats(one);

    call->n_view = call->n_row = 0;
    call->n_seen = 0;
    for (uint32_t i = 0; i < t->n_session; i++) {
        struct session s = *one;

        s.far_block = block + i * n_block;
        s.far_queries += i * N_SUM * n_q;
        s.far_pick += (size_t)i * PICK_WORDS;
        for (uint32_t left = t->n_row; left;) {
            struct kv_view v = next_view(&s, call->n_row, left, call->n_seen);

            v.is_seen = true;
            v.looks_up = v.looks_up && t->looks_up;
            call->view[call->n_view++] = v;
            call->n_row += v.n_row;
            call->n_seen += n_listed(&v);
            left -= v.n_row;
        }
    }
}

static cudaGraphExec_t record(struct gpu *gpu, struct kv_view_args *a,
                              struct call *call, const struct session *s,
                              const struct timing *t, const struct blocks *b)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;

    gpu->is_recording = t->n_row == 1;
    for (uint32_t turn = 0; turn < 2; turn++) {
        gpu->staged = 0;
        gpu->is_frozen = turn;
        if (turn)
            CUDA(cudaStreamBeginCapture(gpu->stream,
                                        cudaStreamCaptureModeGlobal));
        for (uint32_t l = 0; l < t->n_layer; l++) {
            make_views(call, s, t, b->block + l * t->n_session * b->n, b->n);
            a->view = call->view;
            a->n_view = call->n_view;
            cuda_kv_view(gpu, a);
        }
        if (turn)
            CUDA(cudaStreamEndCapture(gpu->stream, &graph));
        else
            CUDA(cudaStreamSynchronize(gpu->stream));
    }
    gpu->is_recording = gpu->is_frozen = false;
    CUDA(cudaGraphInstantiate(&exec, graph, 0));
    CUDA(cudaGraphDestroy(graph));
    return exec;
}

/* In us: reading the indices once, or three instructions a dim, as many as an
 * H100 has for floats. */
static double bound_of(const struct session *s, const struct call *call,
                       const struct timing *t)
{
    const double instructions = s->rule.index == INDEX_KEYS ? 16.0 : 3.0;
    double n = 0.0, bytes, products;

    for (uint32_t i = 0; i < call->n_view; i++)
        if (call->view[i].looks_up)
            n += (double)(call->view[i].end - call->view[i].first);
    products = n * (double)query_floats(s) * instructions / 30e6;
    bytes = n / (t->n_row == 1 ? 1 : VIEW_GROUP_MAX) * (double)s->index_bytes /
            copy_bytes_us;
    return products > bytes ? products : bytes;
}

static void time_one(struct gpu *gpu, const struct timing *t)
{
    static struct call call;
    const struct attend_shape shape = {16, 4, 256, ARITHMETIC_FP32, KV_WIDE};
    const uint64_t position = t->n_row > 1 ? 131072 : 131072 - 57;
    struct rope_table table = {64, 262144, NULL, NULL};
    struct kv_view_args a = {};
    struct session s = {};
    cudaEvent_t from, to;
    float ms[N_TIME];

    s.shape = shape;
    s.rule = {t->index,     t->is_placed ? KEYS_TRUE : KEYS_FAR,
              t->is_placed, 1,
              16,           32,
              t->step,      1};
    s.position = position;
    s.n_now = 32;
    s.block_bytes = (size_t)shape.n_kv_head * 256 * 256;
    s.index_bytes = kv_index_bytes(shape, t->index);
    const size_t n_block = (position + t->n_row) / KV_BLOCK + 1;
    struct blocks b =
        blocks_make(&s, (size_t)t->n_layer * t->n_session * n_block);
    b.n = n_block;
    s.far_queries = (float *)filled(t->n_session * N_SUM * 4096 * 4);
    CUDA(cudaMalloc((void **)&s.far_pick, t->n_session * PICK_WORDS * 4));
    CUDA(cudaMemset(s.far_pick, 0, t->n_session * PICK_WORDS * 4));
    table.cos = (float *)filled(table.n_position * 32 * 4);
    table.sin = (float *)filled(table.n_position * 32 * 4);
    a.shape = shape;
    a.table = &table;
    a.q = (float *)filled((size_t)t->n_session * t->n_row * 4096 * 4);
    a.q_stride = 4096;
    make_views(&call, &s, t, b.block, b.n);
    CUDA(cudaMalloc((void **)&a.block, call.n_seen * 8));
    CUDA(cudaMalloc((void **)&a.place, call.n_seen * sizeof(*a.place)));
    cudaGraphExec_t exec = record(gpu, &a, &call, &s, t, &b);
    CUDA(cudaEventCreate(&from));
    CUDA(cudaEventCreate(&to));
    for (int i = -3; i < N_TIME; i++) {
        CUDA(cudaEventRecord(from, gpu->stream));
        CUDA(cudaGraphLaunch(exec, gpu->stream));
        CUDA(cudaEventRecord(to, gpu->stream));
        CUDA(cudaEventSynchronize(to));
        if (i >= 0)
            CUDA(cudaEventElapsedTime(&ms[i], from, to));
    }
    const double us = median(ms) * 1e3 / t->n_layer;
    const double bound = bound_of(&s, &call, t);
    rate_print(bound, us, "views, %s, %u sessions, %u rows, step %u", t->name,
               t->n_session, t->n_row, t->step);
    CUDA(cudaGraphExecDestroy(exec));
    cudaFree(b.memory);
    cudaFree(b.block);
    cudaFree(s.far_queries);
    cudaFree(s.far_pick);
    cudaFree(table.cos);
    cudaFree(table.sin);
    cudaFree((void *)a.q);
    cudaFree(a.block);
    cudaFree(a.place);
}

/* The 9B shape behind 131,072 tokens. */
static void time_all(struct gpu *gpu, const char *only)
{
    static const struct timing TIMING[] = {
        {"no look-up", 1, 8, 1, 8, INDEX_BOUNDS, false, false},
        {"no look-up", 64, 2, 1, 8, INDEX_BOUNDS, false, false},
        {"infllm, all look up", 1, 8, 1, 8, INDEX_BOUNDS, false, true},
        {"infllm, all look up", 8, 4, 1, 8, INDEX_BOUNDS, false, true},
        {"infllm, all look up", 64, 2, 1, 8, INDEX_BOUNDS, false, true},
        {"quest, all look up", 1, 8, 1, 8, INDEX_BOUNDS, true, true},
        {"quest, all look up", 64, 2, 1, 8, INDEX_BOUNDS, true, true},
        {"infllm of keys", 1, 8, 1, 8, INDEX_KEYS, false, true},
        {"infllm, a prompt's piece", 1, 4, 2048, 8, INDEX_BOUNDS, false, true},
        {"infllm, a prompt's piece", 1, 4, 2048, 64, INDEX_BOUNDS, false, true},
        {"quest, a prompt's piece", 1, 4, 2048, 8, INDEX_BOUNDS, true, true},
        {"infllm of keys", 1, 2, 2048, 8, INDEX_KEYS, false, true},
    };

    time_copy();
    for (size_t i = 0; i < COUNT(TIMING); i++)
        if (!only || strtoul(only, NULL, 10) == i)
            time_one(gpu, &TIMING[i]);
}

int main(int argc, char **argv)
{
    static struct gpu gpu;
    const char *what = argc > 1 ? argv[1] : "check";

    gpu_init(&gpu);
    gpu.block_bound = 1; /* candidates are more than rows see */
    if (!strcmp(what, "check") || !strcmp(what, "least"))
        return check_all(&gpu, !strcmp(what, "least"));
    time_all(&gpu, argc > 2 ? argv[2] : NULL);
    return 0;
}
