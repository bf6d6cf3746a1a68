/*
 * What policies and excerpts ask of all keys of a past, on the GPU: kv_mass, as
 * a look-up of kv_view with INDEX_MASS wants it, and kv_match. Judged by bits:
 * the CPU's operators on blocks in PAIR that hold the same keys.
 *     check_mass check|small|time
 * "time": 131,072 tokens in the shape of Qwen3.5-9B, beside the time that fmas
 * or bytes take.
 */
extern "C" {
#include "kernels/ref/ref.h"
}
#include "kernels/cuda/ops.h"
#include "kernels/cuda/view_mass.cuh"
#include "tests/gpu/gpu_test.cuh"
#include "tests/gpu/rate.h"
#include "tests/gpu/small_device.h"

#include <vector>

#define N_SUM 16u
#define N_TIME 9

struct sizes {
    uint32_t n_head, n_kv_head, d_head, n_rot;
    uint64_t position; /* of the last row */
    uint64_t first, end;
    float scale; /* of scores, beside 1 / sqrt(d_head) */
};

static const struct sizes SMALL[] = {
    {4, 2, 64, 64, 130, 0, 2, 1.0f},
    {3, 1, 96, 20, 64, 0, 1, 1.0f},
};
static const struct sizes CASES[] = {
    {4, 1, 64, 16, 0, 0, 1, 1.0f},         /* one token */
    {4, 1, 64, 16, 14, 0, 1, 1.0f},        /* fewer rows than sums */
    {8, 2, 64, 64, 63, 0, 1, 1.0f},        /* a block, just full */
    {8, 2, 128, 128, 64, 0, 1, 1.0f},      /* and one row behind it */
    {8, 2, 128, 128, 70, 1, 2, 1.0f},      /* rows before and behind an edge */
    {16, 4, 256, 64, 2111, 1, 32, 1.0f},   /* 32 blocks and more are merged */
    {16, 4, 256, 64, 2111, 1, 32, 200.0f}, /* most weights are zero */
    {32, 2, 128, 128, 1030, 0, 15, 1.0f},  /* two CTAs for a KV head */
    {14, 2, 64, 32, 700, 2, 9, 1.0f},      /* half of a warp's heads */
    {8, 8, 128, 64, 500, 0, 7, 1.0f},      /* each head its own keys */
    {6, 2, 96, 24, 333, 0, 5, 1.0f},       /* dims and pairs of odd numbers */
    {3, 3, 16, 0, 200, 0, 3, 1.0f},        /* nothing is rotated */
    {10, 5, 40, 20, 200, 0, 3, 1.0f},      /* more KV heads than at a time */
    {5, 1, 256, 256, 4500, 3, 70, 8.0f},
};

static int n_failed, n_checked;

static void claim(bool is_true, const char *what, const struct sizes *s)
{
    n_checked++;
    if (is_true)
        return;
    n_failed++;
    printf("FAILED: %s, %u/%u heads of %u, %u rotated, position %llu\n", what,
           s->n_head, s->n_kv_head, s->d_head, s->n_rot,
           (unsigned long long)s->position);
}

/* A session of one layer, its keys, and sums of queries by their slots. */
struct session {
    struct sizes s;
    struct attend_shape shape, host_shape; /* in MMA, in PAIR */
    uint64_t n_block;
    std::vector<float> freq_cos, freq_sin, sums, key_row;
    std::vector<void *> host_block; /* in PAIR */
    std::vector<void *> block;      /* on the device, as the table: */
    void **table;
    unsigned char *all; /* the blocks' memory */
    float *queries;
    struct rope_table host_rope, rope;
};

/* Where kernels/cuda/attend.cuh puts dim e of token j of a KV head. */
static size_t place_of(uint32_t j, uint32_t e)
{
    return e / 64 * 8192 + j * 128 + ((e % 64 / 8) ^ (j % 8)) * 16 + e % 8 * 2;
}

static uint32_t padded(uint32_t d)
{
    return d <= 64 ? 64 : d <= 128 ? 128 : 256;
}

static void fill_block(struct session *s, uint64_t b, unsigned char *to)
{
    const struct sizes *z = &s->s;
    uint16_t *pair = (uint16_t *)calloc(1, kv_block_bytes(s->host_shape));

    for (uint32_t h = 0; h < z->n_kv_head; h++)
        for (uint32_t j = 0; j < KV_BLOCK; j++)
            for (uint32_t e = 0; e < z->d_head; e++) {
                const uint16_t x = test_bf16(test_normal());

                pair[kv_keys_at(s->host_shape, h) / 2 +
                     (e / 2 * KV_BLOCK + j) * 2 + e % 2] = x;
                memcpy(to + (size_t)h * padded(z->d_head) * 128 +
                           place_of(j, e),
                       &x, sizeof(x));
            }
    s->host_block[b] = pair;
}

static void fill_blocks(struct session *s)
{
    const size_t bytes = kv_block_bytes(s->shape);
    std::vector<unsigned char> far(bytes * s->n_block);

    s->host_block.resize(s->n_block);
    for (uint64_t b = 0; b < s->n_block; b++)
        fill_block(s, b, far.data() + b * bytes);
    s->all = (unsigned char *)test_device(far.data(), far.size());
    for (uint64_t b = 0; b < s->n_block; b++)
        s->block.push_back(s->all + b * bytes);
    s->table = (void **)test_device(s->block.data(), s->n_block * 8);
}

static void session_init(struct session *s, const struct sizes *sizes)
{
    const struct sizes *z = &s->s;
    const uint32_t n_rot = sizes->n_rot;
    double freq[HEAD_DIM_MAX];

    s->s = *sizes;
    s->shape = {z->n_head, z->n_kv_head, z->d_head, ARITHMETIC_MMA, KV_WIDE};
    s->host_shape = s->shape;
    s->host_shape.arithmetic = ARITHMETIC_PAIR;
    s->n_block = z->position / KV_BLOCK + 1;
    for (uint32_t i = 0; i < n_rot / 2; i++)
        freq[i] = pow(10000.0, -2.0 * i / n_rot);
    if (rope_table_init(n_rot, s->n_block * KV_BLOCK, freq, &s->host_rope))
        exit(1);
    const size_t angles = s->n_block * KV_BLOCK * (n_rot / 2) * sizeof(float);
    s->rope = s->host_rope;
    s->rope.cos = (float *)test_device(s->host_rope.cos, angles);
    s->rope.sin = (float *)test_device(s->host_rope.sin, angles);
    fill_blocks(s);
    s->sums.resize((size_t)N_SUM * z->n_head * z->d_head);
    for (float &x : s->sums)
        x = test_normal();
    s->queries = (float *)test_device(s->sums.data(), s->sums.size() * 4);
}

static void session_release(struct session *s)
{
    for (void *block : s->host_block)
        free(block);
    rope_table_release(&s->host_rope);
    test_cuda(cudaFree(s->rope.cos));
    test_cuda(cudaFree(s->rope.sin));
    test_cuda(cudaFree(s->all));
    test_cuda(cudaFree(s->table));
    test_cuda(cudaFree(s->queries));
}

static float scale_of(const struct sizes *z)
{
    return z->scale * (float)(1.0 / sqrt((double)z->d_head));
}

/* Rotated queries of the last rows, as ref has them. */
static std::vector<float> rows_of(const struct session *s, uint32_t n_row,
                                  uint64_t position)
{
    const size_t n = (size_t)s->s.n_head * s->s.d_head;
    std::vector<float> q(n_row * n);
    std::vector<uint64_t> at(n_row);

    for (uint32_t r = 0; r < n_row; r++) {
        at[r] = position + r;
        memcpy(&q[r * n], &s->sums[at[r] % N_SUM * n], n * 4);
    }
    const struct rope_args a = {q.data(),    n,           at.data(),    n_row,
                                s->s.n_head, s->s.d_head, &s->host_rope};
    ref_rope(NULL, &a);
    return q;
}

static const struct backend *host_backend(void)
{
    const struct backend *const *all = backend_all();

    while (!(*all)->is_supported())
        all++;
    return *all;
}

static std::vector<float> mass_of_host(const struct session *s)
{
    const struct sizes *z = &s->s;
    const uint32_t n_row =
        z->position + 1 < N_SUM ? (uint32_t)z->position + 1 : N_SUM;
    const uint64_t position = z->position + 1 - n_row;
    std::vector<float> q = rows_of(s, n_row, position);
    std::vector<float> stat((size_t)n_row * z->n_head * 2);
    std::vector<float> mass(z->end - z->first);
    struct kv_mass_args a = {};

    a.shape = s->host_shape;
    a.table = &s->host_rope;
    a.scale = scale_of(z);
    a.q = q.data();
    a.n_row = n_row;
    a.position = position;
    a.block = s->host_block.data();
    a.first = z->first;
    a.end = z->end;
    a.stat = stat.data();
    a.mass = mass.data();
    host_backend()->kv_mass(NULL, &a);
    return mass;
}

/* A view whose last row is the one that looks up. */
static struct kv_view view_of(const struct session *s)
{
    struct kv_view view = {};

    view.n_row = 1 + (uint32_t)(s->s.position % 5 % (s->s.position + 1));
    view.position = s->s.position + 1 - view.n_row;
    view.block = s->table;
    view.queries = s->queries;
    view.looks_up = true;
    view.index = INDEX_MASS;
    view.step = 1;
    view.n_sum = N_SUM;
    view.first = s->s.first;
    view.end = s->s.end;
    return view;
}

static void mass_on_device(struct gpu *gpu, const struct session *s,
                           float *score)
{
    const struct kv_view view = view_of(s);
    struct kv_view_args args = {};

    args.shape = s->shape;
    args.table = &s->rope;
    args.scale = scale_of(&s->s);
    const struct view_mass_call call = {
        &args, &view, s->queries, score,
        gpu_scratch(gpu, view_mass_bytes(&s->shape, &view))};
    view_mass(gpu, &call);
}

static struct kv_match_args match_args(const struct session *s, float *match)
{
    struct kv_match_args a = {};

    a.shape = s->shape;
    a.table = &s->rope;
    a.q = s->queries; /* the first of the sums will do */
    a.block = s->table;
    a.n_key = s->s.position + 1;
    a.match = match;
    return a;
}

static bool is_same(const char *what, const std::vector<float> &got,
                    const std::vector<float> &want)
{
    for (size_t i = 0; i < want.size(); i++)
        if (memcmp(&got[i], &want[i], 4) != 0) {
            printf("  %s %zu of %zu: %.9g, wanted %.9g\n", what, i, want.size(),
                   got[i], want[i]);
            return false;
        }
    return true;
}

static void check_mass(struct gpu *gpu, const struct session *s)
{
    const std::vector<float> want = mass_of_host(s);
    std::vector<float> got(want.size());
    float *score = (float *)test_device(NULL, got.size() * 4);
    double sum = 0.0;

    mass_on_device(gpu, s, score);
    test_read(got.data(), score, got.size() * 4);
    claim(is_same("mass of block", got, want), "mass", &s->s);
    for (float x : want)
        sum += x;
    claim(sum > 0.0 && sum < 1.001 * N_SUM * s->s.n_head,
          "the oracle is a share of all heads' attention", &s->s);
    test_cuda(cudaFree(score));
}

static void check_match(struct gpu *gpu, const struct session *s)
{
    std::vector<float> want(s->s.position + 1), got(want.size());
    float *match = (float *)test_device(NULL, got.size() * 4);
    const struct kv_match_args a = match_args(s, match);
    struct kv_match_args host = a;

    cuda_kv_match(gpu, &a);
    test_read(got.data(), match, got.size() * 4);
    host.shape = s->host_shape;
    host.table = &s->host_rope;
    host.q = s->sums.data();
    host.block = s->host_block.data();
    host.match = want.data();
    host_backend()->kv_match(NULL, &host);
    claim(is_same("match of key", got, want), "match", &s->s);
    test_cuda(cudaFree(match));
}

static void check_all(struct gpu *gpu, const struct sizes *sizes, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        struct session s;

        session_init(&s, &sizes[i]);
        check_mass(gpu, &s);
        check_match(gpu, &s);
        session_release(&s);
    }
}

/* ------------------------------------------------------------------- time */

static int compare(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;

    return x < y ? -1 : x > y;
}

template <class F> static float median_ms(struct gpu *gpu, F run)
{
    float ms[N_TIME];
    cudaEvent_t begin, end;

    test_cuda(cudaEventCreate(&begin));
    test_cuda(cudaEventCreate(&end));
    run();
    for (int i = 0; i < N_TIME; i++) {
        test_cuda(cudaEventRecord(begin, gpu->stream));
        run();
        test_cuda(cudaEventRecord(end, gpu->stream));
        test_cuda(cudaEventSynchronize(end));
        test_cuda(cudaEventElapsedTime(&ms[i], begin, end));
    }
    qsort(ms, N_TIME, sizeof(*ms), compare);
    return ms[N_TIME / 2];
}

/* Blocks of the same keys again and again, in memory of their own. */
static void repeat_blocks(struct session *s, uint64_t n_block)
{
    const size_t bytes = kv_block_bytes(s->shape);
    unsigned char *all = (unsigned char *)test_device(NULL, n_block * bytes);

    for (uint64_t b = 0; b < n_block; b++) {
        test_cuda(cudaMemcpy(all + b * bytes, s->all + b % s->n_block * bytes,
                             bytes, cudaMemcpyDeviceToDevice));
        if (b < s->n_block)
            s->block[b] = all + b * bytes;
        else
            s->block.push_back(all + b * bytes);
    }
    test_cuda(cudaFree(s->all));
    test_cuda(cudaFree(s->table));
    s->all = all;
    s->table = (void **)test_device(s->block.data(), n_block * 8);
}

static void time_shape(struct gpu *gpu, const struct sizes *shape,
                       uint64_t n_token)
{
    struct sizes few = *shape;
    struct session s;
    const size_t angles = n_token * (shape->n_rot / 2) * sizeof(float);
    const double n_fma = 2.0 * N_SUM * shape->n_head * n_token * shape->d_head;
    const double bytes = 2.0 * shape->n_kv_head * n_token * shape->d_head;
    float *result = (float *)test_device(NULL, n_token * 4);

    few.position = 1023;
    session_init(&s, &few);
    repeat_blocks(&s, n_token / KV_BLOCK);
    test_cuda(cudaFree(s.rope.cos));
    test_cuda(cudaFree(s.rope.sin));
    s.rope.cos = (float *)test_device(NULL, angles);
    s.rope.sin = (float *)test_device(NULL, angles);
    test_cuda(cudaMemset(s.rope.cos, 0, angles));
    test_cuda(cudaMemset(s.rope.sin, 0, angles));
    s.s.position = n_token - 1;
    s.s.first = 1;
    s.s.end = n_token / KV_BLOCK - 8;
    const float mass = median_ms(gpu, [&] { mass_on_device(gpu, &s, result); });
    const struct kv_match_args a = match_args(&s, result);
    const float match = median_ms(gpu, [&] { cuda_kv_match(gpu, &a); });

    rate_print(n_fma / 30e6, mass * 1e3,
               "mass, %u dims, %u/%u heads, %llu tokens", shape->d_head,
               shape->n_head, shape->n_kv_head, (unsigned long long)n_token);
    rate_print(bytes / 3e6, match * 1e3,
               "match, %u dims, %u/%u heads, %llu tokens", shape->d_head,
               shape->n_head, shape->n_kv_head, (unsigned long long)n_token);
    test_cuda(cudaFree(result));
    session_release(&s);
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "check";
    struct gpu gpu = {};

    small_device_init(&gpu);
    if (strcmp(what, "time") == 0) {
        const struct sizes dense = {16, 4, 256, 64, 0, 0, 0, 1.0f};
        const struct sizes moe = {16, 2, 256, 64, 0, 0, 0, 1.0f};
        const struct sizes old = {32, 8, 128, 128, 0, 0, 0, 1.0f};

        time_shape(&gpu, &dense, 131072);
        time_shape(&gpu, &dense, 16384);
        time_shape(&gpu, &moe, 131072);
        time_shape(&gpu, &old, 131072);
        return 0;
    }
    check_all(&gpu, SMALL, sizeof(SMALL) / sizeof(*SMALL));
    if (strcmp(what, "check") == 0)
        check_all(&gpu, CASES, sizeof(CASES) / sizeof(*CASES));
    printf("check_mass: %d of %d claims failed\n", n_failed, n_checked);
    return n_failed != 0;
}
