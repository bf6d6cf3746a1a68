#include "node/peak.h"

#include "base/clock.h"

#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define N_RUN 5u
#define N_FMA_LOOP (1u << 20) /* times N_CHAIN fmas: some milliseconds */
#define N_CHAIN 12u           /* independent sums: latency 4 x 2 units, spare */
#define LINE_BYTES 64u
#define READ_BYTES_MIN (256u << 20) /* that a run reads at least */

/* ------------------------------------------------------------------- fma */

typedef float fma_loop(float x, uint32_t n);

__attribute__((target("avx512f"))) static float fma_avx512(float x, uint32_t n)
{
    __m512 sum[N_CHAIN], a = _mm512_set1_ps(x), b = _mm512_set1_ps(0.5f);

    for (uint32_t c = 0; c < N_CHAIN; c++)
        sum[c] = _mm512_set1_ps((float)c);
    for (uint32_t i = 0; i < n; i++)
#pragma GCC unroll 12
        for (uint32_t c = 0; c < N_CHAIN; c++)
            sum[c] = _mm512_fmadd_ps(sum[c], a, b);
    for (uint32_t c = 1; c < N_CHAIN; c++)
        sum[0] = _mm512_add_ps(sum[0], sum[c]);
    return _mm512_reduce_add_ps(sum[0]);
}

__attribute__((target("avx2,fma"))) static float fma_avx2(float x, uint32_t n)
{
    __m256 sum[N_CHAIN], a = _mm256_set1_ps(x), b = _mm256_set1_ps(0.5f);
    float lane[8];

    for (uint32_t c = 0; c < N_CHAIN; c++)
        sum[c] = _mm256_set1_ps((float)c);
    for (uint32_t i = 0; i < n; i++)
#pragma GCC unroll 12
        for (uint32_t c = 0; c < N_CHAIN; c++)
            sum[c] = _mm256_fmadd_ps(sum[c], a, b);
    for (uint32_t c = 1; c < N_CHAIN; c++)
        sum[0] = _mm256_add_ps(sum[0], sum[c]);
    _mm256_storeu_ps(lane, sum[0]);
    return lane[0] + lane[7];
}

static float fma_scalar(float x, uint32_t n)
{
    float sum[N_CHAIN] = {0};

    for (uint32_t i = 0; i < n; i++)
#pragma GCC unroll 12
        for (uint32_t c = 0; c < N_CHAIN; c++)
            sum[c] = sum[c] * x + 0.5f;
    for (uint32_t c = 1; c < N_CHAIN; c++)
        sum[0] += sum[c];
    return sum[0];
}

struct fma_job {
    fma_loop *loop;
    float *out; /* one line per task: what the loop's result is for */
};

static void run_fma(void *arg, uint32_t task, void *scratch)
{
    const struct fma_job *job = arg;

    (void)scratch;
    job->out[task * (LINE_BYTES / sizeof(float))] = job->loop(0.5f, N_FMA_LOOP);
}

double peak_flops(struct pool *pool, const char *backend)
{
    const struct clock *clock = clock_real();
    const uint32_t n_thread = pool_n_thread(pool);
    float out[POOL_THREAD_MAX * (LINE_BYTES / sizeof(float))];
    struct fma_job job = {.loop = fma_scalar, .out = out};
    double lanes = 1, best = 0;

    if (strcmp(backend, "avx512") == 0) {
        job.loop = fma_avx512;
        lanes = 16;
    } else if (strcmp(backend, "avx2") == 0) {
        job.loop = fma_avx2;
        lanes = 8;
    }
    for (uint32_t i = 0; i < N_RUN; i++) {
        const uint64_t start = clock->now_us(clock);
        double seconds, rate;

        pool_run(pool, n_thread, run_fma, &job);
        seconds = (double)(clock->now_us(clock) - start + 1) / 1e6;
        rate = 2.0 * lanes * N_CHAIN * N_FMA_LOOP * n_thread / seconds;
        best = rate > best ? rate : best;
    }
    return best;
}

/* ------------------------------------------------------------------ reads */

struct read_job {
    const uint64_t *word; /* [n_task][n_word] */
    size_t n_word;
    uint32_t n_round;
    uint64_t *out; /* one line per task */
};

/* Vector extension: any x86-64 reads it with the widest loads it is given. */
typedef uint64_t word8 __attribute__((vector_size(64)));

__attribute__((target_clones("avx512f", "avx2", "default"))) static uint64_t
sum_words(const uint64_t *word, size_t n_word)
{
    word8 sum[4] = {{0}};

    for (size_t i = 0; i + 32 <= n_word; i += 32)
        for (size_t c = 0; c < 4; c++)
            sum[c] ^= *(const word8 *)(word + i + 8 * c);
    sum[0] ^= sum[1] ^ sum[2] ^ sum[3];
    return sum[0][0] ^ sum[0][1] ^ sum[0][2] ^ sum[0][3] ^ sum[0][4] ^
           sum[0][5] ^ sum[0][6] ^ sum[0][7];
}

static void run_read(void *arg, uint32_t task, void *scratch)
{
    const struct read_job *job = arg;
    uint64_t sum = 0;

    (void)scratch;
    for (uint32_t i = 0; i < job->n_round; i++)
        sum += sum_words(job->word + task * job->n_word, job->n_word);
    job->out[task * (LINE_BYTES / sizeof(uint64_t))] = sum;
}

enum status peak_read_bytes(struct pool *pool, size_t n_bytes, double *out)
{
    const struct clock *clock = clock_real();
    const uint32_t n_thread = pool_n_thread(pool);
    const size_t each = (n_bytes / n_thread + 255) / 256 * 256;
    uint64_t line[POOL_THREAD_MAX * (LINE_BYTES / sizeof(uint64_t))];
    uint64_t *word = aligned_alloc(LINE_BYTES, each * n_thread);
    struct read_job job = {.word = word,
                           .n_word = each / sizeof(uint64_t),
                           .n_round = (uint32_t)(READ_BYTES_MIN / n_bytes + 1),
                           .out = line};
    double best = 0;

    if (!word)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for %zu bytes to read", each * n_thread);
    memset(word, 1, each * n_thread);
    for (uint32_t i = 0; i < N_RUN; i++) {
        const uint64_t start = clock->now_us(clock);
        double seconds, rate;

        pool_run(pool, n_thread, run_read, &job);
        seconds = (double)(clock->now_us(clock) - start + 1) / 1e6;
        rate = (double)each * n_thread * job.n_round / seconds;
        best = rate > best ? rate : best;
    }
    free(word);
    *out = best;
    return STATUS_OK;
}
