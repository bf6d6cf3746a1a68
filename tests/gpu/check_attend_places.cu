/*
 * Attention over lists of blocks with places (memory policies), standalone.
 *
 * Judges: softmax in double on the CPU over the blocks of the list, keys turned
 * to where their places say; then laws in bits: all ways (few rows, many, those
 * of other GPUs than Hopper) agree, however spans are cut into rows and calls;
 * places that say what is so anyway change nothing; and a recorded step gives
 * what a direct one gives, with rows that have places in one run and none in
 * the next.
 *
 *     check_attend_places check   every shape; exit status 0 if all hold
 *     check_attend_places least [D]  a few, for compute-sanitizer
 *     check_attend_places time    prompts and steps under a policy, and bounds
 *     check_attend_places one D Q KV SPANS ROWS BLOCKS ALIKE    one of them
 */
#include "kernels/cuda/attend.cuh"
#include "kernels/cuda/capability.h"
#include "kernels/cuda/way.h"
#include "tests/gpu/attend_session.cuh"
#include "tests/gpu/rate.h"

#define LIST_MAX 50u /* blocks of a view: a fourth chain has begun */
#define VIEW_MAX 12u
#define N_POOL 90u /* blocks */
#define N_CROWD 40u
#define N_JUDGED 6u /* views of a case, by the oracle */

/* In place of the library's: a Hopper goes both ways here. */
static bool is_hopper, goes_sm80;
bool way_is_sm80(void)
{
    return goes_sm80 || !is_hopper;
}

static void find_way(void)
{
    int major = 0, minor = 0;

    CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
    CUDA(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0));
    is_hopper = capability_way(major, minor) != WAY_SM80;
}

/* NONE: no places, so entry i is taken to lie at i * KV_BLOCK. */
enum rule { NONE, RANK, FAR, TRUE, N_RULE };

/* Rows of one block, and what they see: blocks of the pool, the own one last.
 */
struct view {
    struct attend_span span;
    uint32_t n, block[LIST_MAX];
    struct key_place place[LIST_MAX];
};

struct world {
    struct gpu *gpu;
    struct shape shape;
    struct rope_table table;
    struct session pool; /* its rows are what lies in the blocks */
    struct view view[VIEW_MAX];
    struct attend_span span[VIEW_MAX];
    uint32_t n_view, n_row;
    struct rows rows; /* of the views */
    void **block;     /* lists of all views, LIST_MAX apart, on the device */
    struct key_place *place;
};

static size_t row_floats(struct shape s)
{
    return (size_t)s.n_kv_head * s.group * s.d_head;
}

/* ----------------------------------------------------------------- what is so
 */

/* n of the blocks [0, end), ascending. */
static void draw_blocks(uint32_t *to, uint32_t n, uint32_t end)
{
    for (uint32_t b = 0, left = n; left; b++)
        if (draw(end - b) < left) {
            *to++ = b;
            left--;
        }
}

static void place_blocks(struct view *v, enum rule rule)
{
    uint32_t own = v->block[v->n - 1], n_far = draw(v->n);
    uint64_t far = v->block[n_far] * (uint64_t)KV_BLOCK;

    far = far ? draw((uint32_t)far) | 1 : 0; /* an odd position */
    for (uint32_t i = 0; i < v->n; i++) {
        struct key_place *place = &v->place[i];

        *place = {v->block[i] * (uint64_t)KV_BLOCK, false};
        if (rule == RANK)
            place->position = (own - (v->n - 1 - i)) * (uint64_t)KV_BLOCK;
        else if (rule == NONE)
            place->position = i * (uint64_t)KV_BLOCK;
        else if (rule == FAR && i < n_far)
            *place = {far, true};
    }
}

/* At most so many rows and blocks. */
static void draw_view(struct view *v, enum rule rule, uint32_t most,
                      uint32_t n_block)
{
    uint32_t n_row = 1 + draw(most), begin = draw(KV_BLOCK - n_row + 1);
    uint32_t n = 1 + draw(draw(4) ? n_block : 3);
    uint32_t own = n - 1 + draw(N_POOL - n + 1);

    v->n = n;
    draw_blocks(v->block, n - 1, own);
    v->block[n - 1] = own;
    place_blocks(v, rule);
    v->span = {0, n_row, (n - 1) * (uint64_t)KV_BLOCK + begin, NULL, NULL};
}

/* The lists on the device, and rows for all. */
static void world_fill(struct world *w, const enum rule *rule)
{
    void *pool[N_POOL], *list[LIST_MAX];

    CUDA(cudaMemcpy(pool, w->pool.table, sizeof(pool), cudaMemcpyDeviceToHost));
    w->n_row = 0;
    for (uint32_t i = 0; i < w->n_view; i++) {
        struct view *v = &w->view[i];

        for (uint32_t b = 0; b < v->n; b++)
            list[b] = pool[v->block[b]];
        CUDA(cudaMemcpy(w->block + i * LIST_MAX, list, v->n * sizeof(void *),
                        cudaMemcpyHostToDevice));
        CUDA(cudaMemcpy(w->place + i * LIST_MAX, v->place,
                        v->n * sizeof(v->place[0]), cudaMemcpyHostToDevice));
        v->span.first_row = w->n_row;
        v->span.block = w->block + i * LIST_MAX;
        v->span.place = rule[i] == NONE ? NULL : w->place + i * LIST_MAX;
        w->span[i] = v->span;
        w->n_row += v->span.n_row;
    }
}

static struct world world_make(struct gpu *gpu, struct shape shape)
{
    struct world w = {.gpu = gpu, .shape = shape};
    struct attend_span all = {0, N_POOL * KV_BLOCK, 0, NULL, NULL};
    size_t n_q = row_floats(shape);

    w.table = table_make(shape, N_POOL * KV_BLOCK + KV_BLOCK);
    w.pool = session_make(shape, N_POOL * KV_BLOCK);
    all.block = w.pool.table;
    append(gpu, shape, rows_of(&w.pool), &all, 1);
    w.rows.q = numbers(VIEW_MAX * KV_BLOCK * n_q, 1.5f);
    w.rows.out = numbers(VIEW_MAX * KV_BLOCK * n_q, 1.0f);
    CUDA(cudaMalloc((void **)&w.block, VIEW_MAX * LIST_MAX * sizeof(void *)));
    CUDA(cudaMalloc((void **)&w.place,
                    VIEW_MAX * LIST_MAX * sizeof(struct key_place)));
    return w;
}

static void world_release(struct world *w)
{
    session_release(&w->pool);
    table_release(&w->table);
    cudaFree(w->rows.q);
    cudaFree(w->rows.out);
    cudaFree(w->block);
    cudaFree(w->place);
}

/* --------------------------------------------------------------------- oracle
 */

/* Score of key j of entry b for a scaled query. */
static double score_of(struct shape s, const struct view *v, const float *k,
                       const float *q, uint32_t b, uint32_t j, uint32_t kv)
{
    uint32_t d = s.d_head, half = s.n_rot / 2;
    size_t token = v->block[b] * (size_t)KV_BLOCK + j;
    const float *y = k + (token * s.n_kv_head + kv) * d;
    double at = (double)(v->place[b].position + (v->place[b].is_flat ? 0 : j));
    float by = 1.0f / sqrtf((float)d);
    double sum = 0;

    for (uint32_t e = 0; e < half; e++) {
        double angle = at * inv_freq(s, e), c = cos(angle), i = sin(angle);
        double low = bf16(y[e]), high = bf16(y[e + half]);

        sum += (low * c - high * i) * bf16(q[e] * by) +
               (high * c + low * i) * bf16(q[e + half] * by);
    }
    for (uint32_t e = 2 * half; e < d; e++)
        sum += (double)bf16(y[e]) * bf16(q[e] * by);
    return sum;
}

/* Error of row t of a view and one head. */
static double error_of(struct shape s, const struct view *v, const float *k,
                       const float *value, const float *q, const float *out,
                       uint32_t t, uint32_t head)
{
    uint32_t d = s.d_head, n = (uint32_t)v->span.position + t + 1;
    uint32_t kv = head / s.group;
    size_t at = (v->span.first_row + t) * row_floats(s) + (size_t)head * d;
    double *p = (double *)malloc(n * sizeof(double)), max = -1e300, sum = 0;
    double wrong = 0, norm = 0;

    for (uint32_t i = 0; i < n; i++) {
        p[i] = score_of(s, v, k, q + at, i / KV_BLOCK, i % KV_BLOCK, kv);
        max = p[i] > max ? p[i] : max;
    }
    for (uint32_t i = 0; i < n; i++)
        sum += p[i] = exp(p[i] - max);
    for (uint32_t e = 0; e < d; e++) {
        double o = 0;

        for (uint32_t i = 0; i < n; i++) {
            size_t token = v->block[i / KV_BLOCK] * (size_t)KV_BLOCK + i % 64;
            o += p[i] * bf16(value[(token * s.n_kv_head + kv) * d + e]);
        }
        o /= sum;
        wrong += (o - out[at + e]) * (o - out[at + e]);
        norm += o * o;
    }
    free(p);
    return isfinite(wrong) ? sqrt(wrong / norm) : 1e9;
}

static double largest_error(const struct world *w, const float *out)
{
    struct shape s = w->shape;
    size_t n_k = (size_t)N_POOL * KV_BLOCK * s.n_kv_head * s.d_head;
    float *k = fetch(w->pool.k, n_k), *v = fetch(w->pool.v, n_k);
    float *q = fetch(w->rows.q, w->n_row * row_floats(s));
    double worst = 0;

    for (uint32_t i = 0; i < w->n_view && i < N_JUDGED; i++) {
        const struct view *view = &w->view[i];
        double e = error_of(s, view, k, v, q, out, draw(view->span.n_row),
                            draw(s.n_kv_head * s.group));

        worst = e > worst ? e : worst;
    }
    free(k);
    free(v);
    free(q);
    return worst;
}

/* ----------------------------------------------------------------------- laws
 */

static uint32_t n_bad;

static void expect(bool is_good, struct shape s, const char *law)
{
    if (is_good)
        return;
    if (++n_bad <= 20)
        printf("FAILED d %u kv %u group %u: %s\n", s.d_head, s.n_kv_head,
               s.group, law);
}

static void poison(const struct world *w)
{
    const size_t n = w->n_row * row_floats(w->shape);

    CUDA(cudaMemset(w->rows.out, 0xff, n * sizeof(float)));
    if (w->rows.rounded)
        CUDA(cudaMemset(w->rows.rounded, 0xff, n * sizeof(uint16_t)));
}

static void ask(const struct world *w, const struct attend_span *span,
                uint32_t n_span, bool is_recorded)
{
    w->gpu->is_recording = w->gpu->has_views = is_recorded;
    w->gpu->block_bound = 64;
    attend(w->gpu, w->shape, &w->table, w->rows, span, n_span);
    w->gpu->is_recording = w->gpu->has_views = false;
}

static float *result(const struct world *w)
{
    CUDA(cudaDeviceSynchronize());
    return fetch_results(w->rows, 0, w->n_row * row_floats(w->shape));
}

static bool is_same(const struct world *w, const float *whole)
{
    float *out = result(w);
    bool same =
        !memcmp(out, whole, w->n_row * row_floats(w->shape) * sizeof(float));

    free(out);
    return same;
}

/* All in one call, each in one of its own, and cut into calls of some rows of
 * some of them; with `plain` by the kernel for small tests. */
static void check_calls(const struct world *w, const float *whole,
                        const char *one, const char *alone, const char *cut)
{
    struct attend_span span[VIEW_MAX];
    uint32_t n_done[VIEW_MAX] = {0};
    bool is_left = true;

    poison(w);
    ask(w, w->span, w->n_view, false);
    expect(is_same(w, whole), w->shape, one);
    poison(w);
    for (uint32_t i = 0; i < w->n_view; i++)
        ask(w, &w->span[i], 1, false);
    expect(is_same(w, whole), w->shape, alone);
    poison(w);
    while (is_left) {
        uint32_t n = 0, most = draw(2) ? 3 : KV_BLOCK;

        is_left = false;
        for (uint32_t i = 0; i < w->n_view; i++) {
            const struct attend_span *all = &w->span[i];
            uint32_t left = all->n_row - n_done[i], n_row = 1 + draw(most);

            n_row = n_row < left ? n_row : left;
            if (n_row && draw(3)) {
                span[n] = *all;
                span[n].first_row += n_done[i];
                span[n].position += n_done[i];
                span[n++].n_row = n_row;
                n_done[i] += n_row;
            }
            is_left |= n_done[i] < all->n_row;
        }
        ask(w, span, n, false);
    }
    expect(is_same(w, whole), w->shape, cut);
}

/* So many spans that they go the way of lists, the same rows more than once:
 * the other way keeps unfinished rows where the result goes. */
static void check_crowd(const struct world *w, const float *whole)
{
    static struct attend_span span[N_CROWD];

    if (way_is_sm80())
        return;

    for (uint32_t i = 0; i < N_CROWD; i++)
        span[i] = w->span[i % w->n_view];
    poison(w);
    ask(w, span, N_CROWD, false);
    expect(is_same(w, whole), w->shape, "in a crowd");
}

/* A step is recorded while no row has places, and run when those of the views
 * have, from which nothing is staged anew but the spans. */
static void check_replay(const struct world *w, const float *whole)
{
    struct gpu *gpu = w->gpu;
    struct attend_span span[VIEW_MAX];
    cudaGraph_t graph;
    cudaGraphExec_t exec;

    memcpy(span, w->span, sizeof(span));
    for (uint32_t i = 0; i < w->n_view; i++)
        span[i].place = NULL;
    CUDA(cudaDeviceSynchronize());
    gpu->staged = 0;
    gpu->is_frozen = true;
    CUDA(cudaStreamBeginCapture(gpu->stream, cudaStreamCaptureModeGlobal));
    ask(w, span, w->n_view, true);
    CUDA(cudaStreamEndCapture(gpu->stream, &graph));
    gpu->is_frozen = false;
    CUDA(cudaGraphInstantiate(&exec, graph, 0));
    gpu->staged = 0; /* to the same places */
    ask(w, w->span, w->n_view, true);
    CUDA(cudaDeviceSynchronize());
    poison(w);
    CUDA(cudaGraphLaunch(exec, gpu->stream));
    expect(is_same(w, whole), w->shape, "another run of a recorded step");
    CUDA(cudaGraphExecDestroy(exec));
    CUDA(cudaGraphDestroy(graph));
}

/* Entry i at i * KV_BLOCK: said by places, by none, by some. */
static void check_identity(struct world *w)
{
    enum rule none[VIEW_MAX] = {NONE}, some[VIEW_MAX];

    for (uint32_t i = 0; i < w->n_view; i++) {
        place_blocks(&w->view[i], NONE);
        some[i] = draw(2) ? TRUE : NONE; /* all but NONE have them */
    }
    some[0] = TRUE;
    world_fill(w, none);
    poison(w);
    ask(w, w->span, w->n_view, false);
    float *whole = result(w);

    world_fill(w, some);
    check_calls(w, whole, "places of no effect", "places of no effect, alone",
                "places of no effect, cut");
    check_crowd(w, whole);
    poison(w);
    ask(w, w->span, w->n_view, true);
    expect(is_same(w, whole), w->shape, "places of no effect, recorded");
    free(whole);
}

static void plain(const struct world *w, const struct attend_span *span,
                  uint32_t n_span)
{
    struct attend_args args = attend_args_of(w->shape, &w->table, w->rows);

    args.span = span;
    args.n_span = n_span;
    cuda_attend_plain(w->gpu, &args);
}

/* Rows that are gated, rounded and both: `check` gets what plain_rows are then.
 */
static void each_end(struct world *w, const float *plain_rows,
                     void (*check)(struct world *w, const float *whole))
{
    const size_t n = w->n_row * row_floats(w->shape);
    float *gate = gates(n);
    uint16_t *rounded;

    CUDA(cudaMalloc((void **)&rounded, n * sizeof(*rounded)));
    for (uint32_t how = 1; how < N_END; how++) {
        w->rows.gate = how & GATED ? gate : NULL;
        w->rows.rounded = how & ROUNDED ? rounded : NULL;
        float *whole = ended(plain_rows, w->rows.gate, n, how & ROUNDED);

        check(w, whole);
        free(whole);
    }
    w->rows.gate = NULL;
    w->rows.rounded = NULL;
    cudaFree(gate);
    cudaFree(rounded);
}

static void check_plain_end(struct world *w, const float *whole)
{
    poison(w);
    plain(w, w->span, w->n_view);
    expect(is_same(w, whole), w->shape, "plain: an end");
}

/* The plain kernel has an arithmetic of its own. */
static void check_plain(struct world *w)
{
    poison(w);
    plain(w, w->span, w->n_view);
    float *whole = result(w);

    expect(largest_error(w, whole) < 2 * TOLERANCE, w->shape, "plain: oracle");
    poison(w);
    for (uint32_t i = 0; i < w->n_view; i++)
        for (uint32_t t = 0; t < w->span[i].n_row; t++) {
            struct attend_span one = w->span[i];

            one.first_row += t;
            one.position += t;
            one.n_row = 1;
            plain(w, &one, 1);
        }
    expect(is_same(w, whole), w->shape, "plain: row by row");
    each_end(w, whole, check_plain_end);
    free(whole);
}

/* In all ways. */
static void check_end(struct world *w, const float *whole)
{
    for (int way = 0; way < 2; way++) {
        goes_sm80 = way;
        check_calls(w, whole, "an end", "an end, alone", "an end, cut");
        poison(w);
        ask(w, w->span, w->n_view, true);
        expect(is_same(w, whole), w->shape, "an end, recorded");
        check_crowd(w, whole);
    }
    goes_sm80 = false;
    check_replay(w, whole);
}

static double check_shape(struct gpu *gpu, struct shape shape, uint32_t n_view,
                          bool is_least)
{
    struct world w = world_make(gpu, shape);
    enum rule rule[VIEW_MAX];

    w.n_view = n_view;
    for (uint32_t i = 0; i < n_view; i++) {
        rule[i] = i < N_RULE ? (enum rule)i : (enum rule)draw(N_RULE);
        draw_view(&w.view[i], rule[i],
                  is_least     ? 3
                  : i % 3 == 0 ? 1
                  : i % 3 == 1 ? 9
                               : KV_BLOCK,
                  is_least ? 18 : LIST_MAX);
    }
    world_fill(&w, rule);
    poison(&w);
    ask(&w, w.span, n_view, false);
    float *whole = result(&w);
    double error = largest_error(&w, whole);

    expect(error < 2 * TOLERANCE, shape, "oracle");
    check_calls(&w, whole, "again", "alone", "cut");
    poison(&w);
    ask(&w, w.span, n_view, true);
    expect(is_same(&w, whole), shape, "recorded");
    check_crowd(&w, whole);
    check_replay(&w, whole);
    each_end(&w, whole, check_end);
    goes_sm80 = true;
    check_calls(&w, whole, "the other way", "the other way, alone",
                "the other way, cut");
    poison(&w);
    ask(&w, w.span, n_view, true);
    expect(is_same(&w, whole), shape, "the other way, recorded");
    if (!is_least)
        check_identity(&w);
    goes_sm80 = false;
    if (!is_least)
        check_identity(&w);
    if (shape.d_head == 96)
        check_plain(&w);
    free(whole);
    world_release(&w);
    return error;
}

static int check_all(struct gpu *gpu, bool is_least, uint32_t d_head)
{
    static const uint32_t head[][2] = {
        {64, 16}, {96, 96}, {128, 128}, {256, 64}};
    static const uint32_t group[] = {1, 3, 4, 8};

    for (uint32_t i = 0; i < 4; i++) {
        double worst = 0;
        uint32_t bad = n_bad;

        if (d_head && head[i][0] != d_head)
            continue;
        for (uint32_t g = is_least ? 3 : 0; g < 4; g++)
            for (uint32_t n = 0; n < (is_least ? 1 : 4); n++) {
                struct shape shape = {1 + g % 3, group[g], head[i][0],
                                      head[i][1]};
                double e = check_shape(
                    gpu, shape, is_least ? N_RULE : VIEW_MAX - n, is_least);

                worst = e > worst ? e : worst;
                CUDA(cudaGetLastError());
            }
        printf("places d %3u: largest error %.2e, %u failures\n", head[i][0],
               worst, n_bad - bad);
    }
    printf("%s\n", n_bad ? "CHECKS FAILED" : "all checks hold");
    return n_bad != 0;
}

/* ---------------------------------------------------------------------- times
 */

#define N_TIME_POOL 2048u
#define N_NEAR 17u /* the window's blocks and the own one */

/* Spans of n_row rows each that see n_block blocks of a pool. */
struct load {
    struct shape shape;
    uint32_t n_span, n_row, n_block;
    uint32_t n_alike; /* neighbours with the same blocks before the window */
    bool is_recorded;
};

static size_t block_bytes_of(struct shape s)
{
    return 2 * s.n_kv_head * (size_t)attend_padded(s.d_head) * KV_BLOCK * 2;
}

/* Lists as a far window has them; to be released. */
static struct attend_span *spans_of(const struct load *load,
                                    unsigned char *pool)
{
    size_t bytes = block_bytes_of(load->shape), at = 0;
    size_t n = (size_t)load->n_span * load->n_block;
    struct attend_span *span =
        (struct attend_span *)malloc(load->n_span * sizeof(*span));
    void **list = (void **)malloc(n * sizeof(void *)), **far_list;
    struct key_place *place = (struct key_place *)malloc(n * sizeof(*place));
    struct key_place *far_place;

    CUDA(cudaMalloc((void **)&far_list, n * sizeof(void *)));
    CUDA(cudaMalloc((void **)&far_place, n * sizeof(*place)));
    for (uint32_t i = 0; i < load->n_span; i++) {
        uint32_t row = i * load->n_row;
        uint32_t own = N_TIME_POOL / 2 + row / KV_BLOCK;
        uint64_t past = (load->n_block - 1) * (uint64_t)KV_BLOCK;

        span[i] = {row, load->n_row, past + row % KV_BLOCK, far_list + at,
                   far_place + at};
        for (uint32_t b = 0; b < load->n_block; b++, at++) {
            bool is_near = b + N_NEAR >= load->n_block;
            uint32_t block = is_near ? own - (load->n_block - 1 - b)
                                     : draw(N_TIME_POOL / 2 - N_NEAR);
            uint32_t seen = is_near ? block : own + 1 - N_NEAR;

            place[at] = {seen * (uint64_t)KV_BLOCK, !is_near};
            list[at] = !is_near && i % load->n_alike ? list[at - load->n_block]
                                                     : pool + block * bytes;
        }
    }
    CUDA(
        cudaMemcpy(far_list, list, n * sizeof(void *), cudaMemcpyHostToDevice));
    CUDA(cudaMemcpy(far_place, place, n * sizeof(*place),
                    cudaMemcpyHostToDevice));
    free(list);
    free(place);
    return span;
}

static void spans_release(struct attend_span *span)
{
    cudaFree((void *)span[0].block);
    cudaFree((void *)span[0].place);
    free(span);
}

/*
 * At best all lists' blocks come from the L2 cache, which gives about 5 TB/s,
 * and from memory those that no neighbour had just before, 3 TB/s.
 */
static void print_time(const struct load *load, float ms)
{
    struct shape s = load->shape;
    double bytes = (double)load->n_span * block_bytes_of(s);
    double l2 = load->n_block * bytes / 5e9;
    double memory = (load->n_block - N_NEAR) * bytes / load->n_alike / 3e9;
    double key = 4.0 * load->n_block * KV_BLOCK * s.d_head; /* operations */
    double core =
        key * load->n_span * load->n_row * s.n_kv_head * s.group / 790e9;
    double bound = fmax(fmax(l2, memory), core);

    rate_print(
        bound * 1e3, ms * 1e3,
        "lists, %u dims, %u/%u heads, %u%s x %u rows, %u blocks, %u alike "
        "(%s)",
        s.d_head, s.n_kv_head * s.group, s.n_kv_head, load->n_span,
        load->is_recorded ? " recorded" : "", load->n_row, load->n_block,
        load->n_alike,
        bound == core     ? "tensor cores"
        : bound == memory ? "memory"
                          : "L2 cache");
}

static void time_load(struct gpu *gpu, struct load load)
{
    struct shape s = load.shape;
    size_t bytes = N_TIME_POOL * block_bytes_of(s);
    size_t n_q = (size_t)load.n_span * load.n_row * row_floats(s);
    struct rope_table table = table_make(s, N_TIME_POOL * KV_BLOCK);
    struct rows rows = {numbers(n_q, 1.5f), NULL, NULL, numbers(n_q, 1.0f)};
    struct attend_args args = attend_args_of(s, &table, rows);
    cudaEvent_t from, to;
    unsigned char *pool;
    float ms[N_TIME];

    CUDA(cudaMalloc((void **)&pool, bytes));
    fill_bf16<<<(unsigned)(bytes / 512), 256>>>((__nv_bfloat16 *)pool);
    struct attend_span *span = spans_of(&load, pool);
    args.span = span;
    args.n_span = load.n_span;
    CUDA(cudaEventCreate(&from));
    CUDA(cudaEventCreate(&to));
    gpu->is_recording = gpu->has_views = load.is_recorded;
    gpu->block_bound = 64;
    for (int i = -2; i < N_TIME; i++) {
        CUDA(cudaEventRecord(from, gpu->stream));
        cuda_attend(gpu, &args);
        CUDA(cudaEventRecord(to, gpu->stream));
        CUDA(cudaEventSynchronize(to));
        if (i >= 0)
            CUDA(cudaEventElapsedTime(&ms[i], from, to));
    }
    gpu->is_recording = gpu->has_views = false;
    print_time(&load, median_ms(ms, N_TIME));
    spans_release(span);
    cudaFree(pool);
    cudaFree(rows.q);
    cudaFree(rows.out);
    table_release(&table);
}

static void time_all(struct gpu *gpu)
{
    static const struct shape d256 = {4, 4, 256, 64}, d128 = {2, 4, 128, 128};
    static const uint32_t load[][3] = {/* spans, rows, alike */
                                       {1024, 8, 1},
                                       {1024, 8, 8},
                                       {1024, 1, 8},
                                       {256, 32, 1},
                                       {128, 64, 1}};

    for (uint32_t i = 0; i < sizeof(load) / sizeof(load[0]); i++) {
        const uint32_t *x = load[i];

        time_load(gpu, {d256, x[0], x[1], 50, x[2], false});
        time_load(gpu, {d128, x[0], x[1], 50, x[2], false});
    }
    time_load(gpu, {d256, 1, 1, 50, 1, true});
    time_load(gpu, {d256, 64, 1, 50, 1, true});
}

static void time_one(struct gpu *gpu, char **number)
{
    uint32_t x[7];

    for (uint32_t i = 0; i < 7; i++)
        x[i] = (uint32_t)atoi(number[i]);
    struct shape shape = {x[2], x[1] / x[2], x[0], x[0] > 128 ? 64 : x[0]};
    time_load(gpu, {shape, x[3], x[4], x[5], x[6], false});
}

int main(int argc, char **argv)
{
    static struct gpu gpu;
    const char *what = argc > 1 ? argv[1] : "check";

    gpu_init(&gpu);
    find_way();
    if (!strcmp(what, "check") || !strcmp(what, "least"))
        return check_all(&gpu, !strcmp(what, "least"),
                         argc > 2 ? (uint32_t)atoi(argv[2]) : 0);
    if (!strcmp(what, "one") && argc == 9)
        time_one(&gpu, argv + 2);
    else
        time_all(&gpu);
    return 0;
}
