#include "node/peak.h"

#include "base/clock.h"

#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define N_RUN 5u
/* Times what a loop does in one go: threads need milliseconds to spread. */
#define N_LOOP (1u << 20)
#define N_CHAIN 12u      /* independent sums: latency 4 x 2 units, spare */
#define N_BYTES_CHAIN 8u /* of vpaddd, beside what its products need */
#define LINE_BYTES 64u
#define HUGE_PAGE ((size_t)2 << 20)
#define READ_BYTES_MIN ((size_t)256 << 20) /* that a run reads at least */
#define READ_BYTES_MAX ((size_t)1 << 30)   /* that are taken at most */

/* ------------------------------------------------------- multiply and add */

typedef float flop_loop(float x, uint32_t n);

static float loop_scalar(float x, uint32_t n)
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

__attribute__((target("avx2,fma"))) static float loop_avx2(float x, uint32_t n)
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

__attribute__((target("avx512f"))) static float loop_avx512(float x, uint32_t n)
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

__attribute__((target("avx512f,avx512bf16"))) static float loop_pair(float x,
                                                                     uint32_t n)
{
    const __m512bh a = (__m512bh)_mm512_set1_epi32(0x3f803f80); /* ones */
    const __m512bh b = (__m512bh)_mm512_castps_si512(_mm512_set1_ps(x));
    __m512 sum[N_CHAIN];

    for (uint32_t c = 0; c < N_CHAIN; c++)
        sum[c] = _mm512_set1_ps((float)c);
    for (uint32_t i = 0; i < n; i++)
#pragma GCC unroll 12
        for (uint32_t c = 0; c < N_CHAIN; c++)
            sum[c] = _mm512_dpbf16_ps(sum[c], a, b);
    for (uint32_t c = 1; c < N_CHAIN; c++)
        sum[0] = _mm512_add_ps(sum[0], sum[c]);
    return _mm512_reduce_add_ps(sum[0]);
}

/*
 * Eight tiles of 16 rows of 64 bytes. A constant, because stores to a local
 * struct were dropped by gcc 12 in front of ldtilecfg.
 */
static const struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t n_row[16];
} TILES = {
    .palette = 1,
    .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
    .n_row = {16, 16, 16, 16, 16, 16, 16, 16},
};

/* Four sums from two tiles on each side, as a kernel would hold them. */
__attribute__((target("amx-tile"))) static void set_tiles(const void *in)
{
    _tile_loadconfig(&TILES);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(4, in, 64);
    _tile_loadd(5, in, 64);
    _tile_loadd(6, in, 64);
    _tile_loadd(7, in, 64);
}

__attribute__((target("amx-tile,amx-bf16"))) static float loop_tile(float x,
                                                                    uint32_t n)
{
    float in[16 * 16], out[16 * 16];

    for (uint32_t i = 0; i < 16 * 16; i++)
        in[i] = x;
    set_tiles(in);
    for (uint32_t i = 0; i < n; i++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, out, 64);
    _tile_release();
    return out[0];
}

/* What makes 32 products of bytes, some of either sign, a sum. */
__attribute__((target("avx2"))) static float loop_bytes(float x, uint32_t n)
{
    const __m256i w = _mm256_set1_epi8((char)(4 * x)),
                  one = _mm256_set1_epi16(1);
    const __m256i size = _mm256_abs_epi8(w);
    __m256i sum[N_BYTES_CHAIN], by = _mm256_set1_epi8(3);

    for (uint32_t c = 0; c < N_BYTES_CHAIN; c++)
        sum[c] = _mm256_set1_epi32((int32_t)c);
    for (uint32_t i = 0; i < n; i++)
#pragma GCC unroll 8
        for (uint32_t c = 0; c < N_BYTES_CHAIN; c++) {
            __asm__ volatile("" : "+x"(by)); /* another x */
            const __m256i pair =
                _mm256_maddubs_epi16(size, _mm256_sign_epi8(by, w));
            const __m256i four = _mm256_madd_epi16(pair, one);
            __m256i in_place = sum[c]; /* or gcc keeps it in memory */

            __asm__("vpaddd %1, %0, %0" : "+x"(in_place) : "x"(four));
            sum[c] = in_place;
        }
    for (uint32_t c = 1; c < N_BYTES_CHAIN; c++)
        sum[0] = _mm256_add_epi32(sum[0], sum[c]);
    return (float)_mm256_extract_epi32(sum[0], 0);
}

__attribute__((target("avx512f,avx512vnni"))) static float loop_vnni(float x,
                                                                     uint32_t n)
{
    const __m512i a = _mm512_set1_epi32((int32_t)(8 * x));
    const __m512i b = _mm512_set1_epi32((int32_t)(4 * x));
    __m512i sum[N_CHAIN];

    for (uint32_t c = 0; c < N_CHAIN; c++)
        sum[c] = _mm512_set1_epi32((int32_t)c);
    for (uint32_t i = 0; i < n; i++)
#pragma GCC unroll 12
        for (uint32_t c = 0; c < N_CHAIN; c++)
            sum[c] = _mm512_dpbusd_epi32(sum[c], a, b);
    for (uint32_t c = 1; c < N_CHAIN; c++)
        sum[0] = _mm512_add_epi32(sum[0], sum[c]);
    return (float)_mm512_reduce_add_epi32(sum[0]);
}

__attribute__((target("amx-tile,amx-int8"))) static float loop_tile8(float x,
                                                                     uint32_t n)
{
    int32_t in[16 * 16], out[16 * 16];

    for (uint32_t i = 0; i < 16 * 16; i++)
        in[i] = (int32_t)(4 * x);
    set_tiles(in);
    for (uint32_t i = 0; i < n; i++) {
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    }
    _tile_stored(0, out, 64);
    _tile_release();
    return (float)out[0];
}

static const struct {
    const char *name;
    flop_loop *loop;
    double flops; /* each time round */
} PEAK[N_PEAK_KIND] = {
    [PEAK_SCALAR] = {"scalar", loop_scalar, 2.0 * N_CHAIN},
    [PEAK_AVX2] = {"fma avx2", loop_avx2, 2.0 * 8 * N_CHAIN},
    [PEAK_AVX512] = {"fma avx512", loop_avx512, 2.0 * 16 * N_CHAIN},
    [PEAK_PAIR] = {"avx512-bf16", loop_pair, 2.0 * 32 * N_CHAIN},
    [PEAK_TILE] = {"amx", loop_tile, 4 * 2.0 * 16 * 16 * 32},
    [PEAK_BYTES] = {"bytes avx2", loop_bytes, 2.0 * 32 * N_BYTES_CHAIN},
    [PEAK_VNNI] = {"avx512-vnni", loop_vnni, 2.0 * 64 * N_CHAIN},
    [PEAK_TILE8] = {"amx-int8", loop_tile8, 4 * 2.0 * 16 * 16 * 64},
};

/* Of W8A8. Who has tiles of bf16 has those of bytes. */
static enum peak_kind kind_of_bytes(const char *backend)
{
    if (strcmp(backend, "amx") == 0)
        return PEAK_TILE8;
    if (strncmp(backend, "avx512-", strlen("avx512-")) == 0)
        return PEAK_VNNI;
    return strncmp(backend, "avx", strlen("avx")) == 0 ? PEAK_BYTES
                                                       : PEAK_SCALAR;
}

enum peak_kind peak_kind_of(const char *backend, enum arithmetic arithmetic,
                            enum linear_type type)
{
    const bool has_tile = strcmp(backend, "amx") == 0;
    const bool has_pair = has_tile || strcmp(backend, "avx512-bf16") == 0;

    if (type == LINEAR_W8A8)
        return kind_of_bytes(backend);
    if (has_tile && arithmetic == ARITHMETIC_TILE)
        return PEAK_TILE;
    if (has_pair && arithmetic == ARITHMETIC_PAIR)
        return PEAK_PAIR;
    if (has_pair || strncmp(backend, "avx512", 6) == 0)
        return PEAK_AVX512;
    return strcmp(backend, "avx2") == 0 ? PEAK_AVX2 : PEAK_SCALAR;
}

const char *peak_name(enum peak_kind kind)
{
    return PEAK[kind].name;
}

struct flop_job {
    flop_loop *loop;
    float *out; /* one line per task: what the loop's result is for */
};

static void run_flops(void *arg, uint32_t task, void *scratch)
{
    const struct flop_job *job = arg;

    (void)scratch;
    job->out[task * (LINE_BYTES / sizeof(float))] = job->loop(0.5f, N_LOOP);
}

double peak_flops(struct pool *pool, enum peak_kind kind, uint32_t n_run)
{
    const struct clock *clock = clock_real();
    const uint32_t n_thread = pool_n_thread(pool);
    float out[POOL_THREAD_MAX * (LINE_BYTES / sizeof(float))];
    struct flop_job job = {.loop = PEAK[kind].loop, .out = out};
    double best = 0;

    for (uint32_t i = 0; i < n_run; i++) {
        const uint64_t start = clock->now_us(clock);
        double seconds, rate;

        pool_run(pool, n_thread, run_flops, &job);
        seconds = (double)(clock->now_us(clock) - start + 1) / 1e6;
        rate = PEAK[kind].flops * N_LOOP * n_thread / seconds;
        best = rate > best ? rate : best;
    }
    return best;
}

/* ------------------------------------------------------------------ reads */

struct read_job {
    const struct peak_reader *reader;
    uint32_t n_stream;
    uint64_t *out; /* one line per task */
};

/* Vector extension: any x86-64 reads it with the widest loads it is given. */
typedef uint64_t word8 __attribute__((vector_size(64)));

#define STREAM_MAX 4u
#define PIECE 32u          /* words read from one stream in turn */
#define AHEAD (4096u / 8u) /* words asked for early */

/* Read as n_stream runs side by side: which number is fastest, differs. */
__attribute__((target_clones("avx512f", "avx2", "default"))) static uint64_t
sum_words(const uint64_t *word, size_t n_word, uint32_t n_stream)
{
    const size_t each = n_word / n_stream / PIECE * PIECE;
    word8 sum[4] = {{0}};

    for (size_t i = 0; i < each; i += PIECE)
        for (uint32_t s = 0; s < n_stream; s++) {
            const uint64_t *at = word + s * each + i;

            for (size_t c = 0; c < 4; c++) {
                __builtin_prefetch(at + AHEAD + 8 * c);
                sum[c] ^= *(const word8 *)(at + 8 * c);
            }
        }
    sum[0] ^= sum[1] ^ sum[2] ^ sum[3];
    return sum[0][0] ^ sum[0][1] ^ sum[0][2] ^ sum[0][3] ^ sum[0][4] ^
           sum[0][5] ^ sum[0][6] ^ sum[0][7];
}

static void run_read(void *arg, uint32_t task, void *scratch)
{
    const struct read_job *job = arg;
    const struct peak_reader *reader = job->reader;
    uint64_t sum = 0;

    (void)scratch;
    for (uint32_t i = 0; i < reader->n_round; i++)
        sum += sum_words(reader->word + task * reader->n_word, reader->n_word,
                         job->n_stream);
    job->out[task * (LINE_BYTES / sizeof(uint64_t))] = sum;
}

enum status peak_reader_init(struct pool *pool, size_t n_bytes,
                             struct peak_reader *out)
{
    const uint32_t n_thread = pool_n_thread(pool);
    const size_t n_read = n_bytes < READ_BYTES_MAX ? n_bytes : READ_BYTES_MAX;
    const size_t each = (n_read / n_thread + 1023) / 1024 * 1024;
    const size_t room =
        (each * n_thread + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    struct peak_reader reader = {.pool = pool,
                                 .word = aligned_alloc(HUGE_PAGE, room),
                                 .n_word = each / sizeof(*reader.word),
                                 .n_round =
                                     (uint32_t)(READ_BYTES_MIN / n_read + 1)};

    if (!reader.word)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for %zu bytes to read", room);
    (void)madvise(reader.word, room, MADV_HUGEPAGE); /* as weights have them */
    memset(reader.word, 1, room);
    *out = reader;
    return STATUS_OK;
}

void peak_reader_release(struct peak_reader *reader)
{
    free(reader->word);
    *reader = (struct peak_reader){0};
}

double peak_reader_rate(const struct peak_reader *reader, uint32_t n_run)
{
    const struct clock *clock = clock_real();
    const uint32_t n_thread = pool_n_thread(reader->pool);
    const double bytes = (double)reader->n_word * sizeof(*reader->word) *
                         n_thread * reader->n_round;
    uint64_t line[POOL_THREAD_MAX * (LINE_BYTES / sizeof(uint64_t))];
    struct read_job job = {.reader = reader, .out = line};
    double best = 0;

    for (uint32_t i = 0; i < 2 * n_run; i++) {
        const uint64_t start = clock->now_us(clock);
        double rate;

        job.n_stream = i % 2 ? STREAM_MAX : 1;
        pool_run(reader->pool, n_thread, run_read, &job);
        rate = bytes * 1e6 / (double)(clock->now_us(clock) - start + 1);
        best = rate > best ? rate : best;
    }
    return best;
}

enum status peak_read_bytes(struct pool *pool, size_t n_bytes, double *out)
{
    struct peak_reader reader;
    const enum status st = peak_reader_init(pool, n_bytes, &reader);

    if (st)
        return st;
    *out = peak_reader_rate(&reader, N_RUN);
    peak_reader_release(&reader);
    return STATUS_OK;
}
