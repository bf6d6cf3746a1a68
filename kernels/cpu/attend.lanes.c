#include "kernels/cpu/attend.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/ops.h"
#include "kernels/scalar.h"

#include <assert.h>
#include <math.h>

/*
 * Spans of many rows are cut into tasks of one KV head and some consecutive
 * positions: each block of keys is rotated once and met by all their rows.
 *
 * Spans of few rows (decode, verification) are bound by the way from memory.
 * Their task takes all KV heads of a block together, so that the block is read
 * from front to back and the rotary angles once. Where whole spans would keep
 * the threads unequally busy, a task is a range of blocks instead: it leaves
 * each block's own (m, l, o) in shared memory, and a second job merges them in
 * ascending order. That is the definition itself, only later.
 */

/* Rows of a task at most: positions times the query heads of one KV head.
 * Many rows pay well for a block's way from memory and for its rotation. */
#define TASK_ROWS 512u
#define TASK_ROWS_LEAST 64u /* below, the way from memory is too dear */
#define TASKS_A_THREAD 2u   /* at least, before tasks grow to TASK_ROWS */
#define SPLITS_A_THREAD 4u  /* ranges of blocks, unless they are too long: */
#define SPLIT_BLOCKS 32u
#define HEADS_AT_ONCE 64u /* KV heads of one task, by its scratch as well */
#define FEW_SPAN_ROWS 64u /* rows of one KV head; or one position */
#define MERGE_AT_ONCE 64u /* blocks; their factors lie on the stack */
#define MERGE_WIDTH 8u    /* vectors of a result that stay in registers */

struct job {
    const struct attend_args *args;
    const struct attend_kernel *kernel;
    uint32_t n_query;    /* query heads of one KV head */
    uint32_t n_position; /* most positions of one task; a power of two */
    uint64_t end;        /* of the call's blocks */
    uint64_t first;      /* of the blocks of this round of a split, */
    uint32_t n_block;    /* their number, and of those of one task */
    uint32_t n_split;
    float
        *stat; /* [rows of few spans][2 n_head], as in args, and maybe there */
    size_t stat_stride;
    float *part; /* [few span][n_block] records, see part_floats() */
};

/* One task: some positions of a span, some KV heads. */
struct piece {
    const struct attend_span *span;
    uint64_t position, end;
    uint32_t head, n_head;
};

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static size_t rounded(size_t n)
{
    return (n + LANES - 1) / LANES * LANES;
}

static bool is_few(const struct job *job, const struct attend_span *span)
{
    return span->n_row == 1 || span->n_row * job->n_query <= FEW_SPAN_ROWS;
}

/* Behind the last block that a row of the span sees, within this call. */
static uint64_t blocks_end(const struct job *job,
                           const struct attend_span *span)
{
    uint64_t last = (span->position + span->n_row - 1) / KV_BLOCK;

    return least(last + 1, job->end);
}

/* Blocks that the span meets in this call. */
static uint64_t n_block_of(const struct job *job,
                           const struct attend_span *span)
{
    uint64_t end = span->n_row ? blocks_end(job, span) : 0;

    return end > job->args->first_block ? end - job->args->first_block : 0;
}

/* What an earlier call left of the rows. Those that it finished are not met
 * any more, so nothing is made of theirs. */
static void resume(const struct rows *rows)
{
    const struct attend_args *a = rows->args;
    uint32_t d_head = a->shape.d_head, n_head = a->shape.n_head;

    for (uint32_t r = 0; r < rows->n_row; r++) {
        const float *from = a->out + attend_row_at(rows, r, a->out_stride);
        size_t row = rows->span->first_row + r / rows->n_query +
                     (rows->position - rows->span->position);
        const float *stat = a->stat + row * a->stat_stride +
                            rows->head * rows->n_query + r % rows->n_query;

        rows->max[r] = stat[0];
        rows->sum[r] = stat[n_head];
        for (uint32_t e = 0; e < d_head; e += LANES)
            v16_store_part(rows->out + (size_t)r * d_head,
                           v16_load_part(from, e, d_head), e, d_head);
    }
}

/* The result of head `head` of row `row` of the matrices: O, which may lie
 * there already, times `scale`, gated and rounded as the call says. */
static void end_row(const struct attend_args *a, size_t row, size_t head,
                    const float *o, float scale)
{
    uint32_t n = a->shape.d_head;
    size_t at = head * n;
    float *to = a->out + row * a->out_stride + at;
    const float *gate = a->gate ? a->gate + row * a->gate_stride + at : NULL;
    v16 by = v16_set1(scale);

    for (uint32_t e = 0; e < n; e += LANES) {
        v16 x = v16_mul(v16_load_part(o, e, n), by);
        if (gate)
            x = v16_mul(x, v16_sigmoid(v16_load_part(gate, e, n)));
        v16_store_part(to, x, e, n);
    }
    if (a->out_rounded) {
        uint16_t *rounded = a->out_rounded + row * a->shape.n_head * n + at;
        for (uint32_t e = 0; e < n; e++)
            rounded[e] = scalar_to_bf16(to[e]);
    }
}

/* Rows whose last block was met get their result, others what resume() takes;
 * those that an earlier call finished keep theirs. */
static void finish(const struct rows *rows, uint64_t first, uint64_t end)
{
    const struct attend_args *a = rows->args;
    uint32_t d_head = a->shape.d_head;

    for (uint32_t r = 0; r < rows->n_row; r++) {
        float *to = a->out + attend_row_at(rows, r, a->out_stride);
        const float *out = rows->out + (size_t)r * d_head;
        uint64_t position = rows->position + r / rows->n_query;
        uint64_t last = position / KV_BLOCK;
        size_t row = rows->span->first_row + (position - rows->span->position);
        size_t head = (size_t)rows->head * rows->n_query + r % rows->n_query;

        if (last < first)
            continue;
        if (last < end) {
            end_row(a, row, head, out, 1.0f / rows->sum[r]);
            continue;
        }
        float *stat = a->stat + row * a->stat_stride + head;
        stat[0] = rows->max[r];
        stat[a->shape.n_head] = rows->sum[r];
        for (uint32_t e = 0; e < d_head; e += LANES)
            v16_store_part(to, v16_load_part(out, e, d_head), e, d_head);
    }
}

/* Rows of KV heads head .. in scratch, their queries scaled; as many heads as
 * fit, up to n. */
static uint32_t open_rows(const struct job *job, const struct piece *piece,
                          uint32_t head, struct rows *rows, float *scratch)
{
    const struct attend_args *a = job->args;
    uint32_t n_row = (uint32_t)(piece->end - piece->position) * job->n_query;
    size_t each = LANES_NAME(attend_rows_floats)(n_row, a->shape);
    size_t room = POOL_SCRATCH_BYTES / sizeof(float) -
                  LANES_NAME(attend_group_floats)(a->shape);
    uint32_t n = piece->head + piece->n_head - head;

    assert(each <= room);
    n = (uint32_t)least(least(n, HEADS_AT_ONCE), room / each);
    for (uint32_t h = 0; h < n; h++) {
        rows[h] = (struct rows){.args = a,
                                .kernel = job->kernel,
                                .span = piece->span,
                                .head = head + h,
                                .n_query = job->n_query,
                                .n_row = n_row,
                                .position = piece->position};
        scratch = LANES_NAME(attend_place_rows)(&rows[h], scratch);
        job->kernel->scale(&rows[h]);
    }
    return n;
}

/* All blocks of the call, block by block. */
static void attend_piece(const struct job *job, const struct piece *piece,
                         float *scratch)
{
    uint64_t first = job->args->first_block;
    uint64_t end = least((piece->end - 1) / KV_BLOCK + 1, job->end);
    struct rows rows[HEADS_AT_ONCE];
    struct group group;

    if (first >= end)
        return;
    scratch = LANES_NAME(attend_place_group)(&group, job->args->shape, scratch);
    for (uint32_t head = 0, n; head < piece->n_head; head += n) {
        n = open_rows(job, piece, piece->head + head, rows, scratch);
        for (uint32_t h = 0; h < n && first; h++)
            resume(&rows[h]);
        for (uint64_t block = first; block < end; block++)
            for (uint32_t h = 0; h < n; h++)
                LANES_NAME(attend_block)(&rows[h], &group, block);
        for (uint32_t h = 0; h < n; h++)
            finish(&rows[h], first, job->end);
    }
}

/* ---------------------------------------------------------- spans of many */

/* Pieces of `n` aligned positions that a span touches; none of few rows. */
static uint32_t n_piece(const struct job *job, const struct attend_span *span)
{
    uint64_t n = job->n_position;

    assert(n);
    if (n_block_of(job, span) == 0 || is_few(job, span))
        return 0;
    return (uint32_t)((span->position + span->n_row - 1) / n -
                      span->position / n + 1);
}

static void many_task(void *arg, uint32_t task, void *scratch)
{
    const struct job *job = arg;
    const struct attend_span *span = job->args->span;
    uint32_t n_kv = job->args->shape.n_kv_head, n = job->n_position;

    while (task >= n_piece(job, span) * n_kv)
        task -= n_piece(job, span++) * n_kv;
    uint64_t first = (span->position / n + task / n_kv) * n, end = first + n;
    attend_piece(
        job,
        &(struct piece){.span = span,
                        .position =
                            first > span->position ? first : span->position,
                        .end = least(end, span->position + span->n_row),
                        .head = task % n_kv,
                        .n_head = 1},
        scratch);
}

/* The largest tasks that are enough, but no small ones for their number alone:
 * they rotate keys too often. */
static void run_many(struct pool *pool, struct job *job)
{
    const struct attend_args *a = job->args;
    uint32_t n_enough = TASKS_A_THREAD * pool_n_thread(pool);
    uint32_t n = 1, n_task = 0;

    while (n * 2 * job->n_query <= TASK_ROWS)
        n *= 2;
    for (;; n /= 2) {
        job->n_position = n;
        n_task = 0;
        for (uint32_t i = 0; i < a->n_span; i++)
            n_task += n_piece(job, &a->span[i]) * a->shape.n_kv_head;
        if (n_task >= n_enough || n * job->n_query <= TASK_ROWS_LEAST)
            break;
    }
    pool_run(pool, n_task, many_task, job);
}

/* ----------------------------------------------------------- spans of few */

static bool is_few_met(const struct job *job, const struct attend_span *span)
{
    return n_block_of(job, span) && is_few(job, span);
}

static void few_task(void *arg, uint32_t task, void *scratch)
{
    const struct job *job = arg;
    const struct attend_span *span = job->args->span;

    while (!is_few_met(job, span) || task--)
        span++;
    attend_piece(job,
                 &(struct piece){.span = span,
                                 .position = span->position,
                                 .end = span->position + span->n_row,
                                 .n_head = job->args->shape.n_kv_head},
                 scratch);
}

/*
 * Record of a block and a span: out [n_kv_head][n_row * n_query][d_head], then
 * max and sum of the same rows.
 */
static size_t part_floats(const struct attend_args *a, uint32_t n_row)
{
    size_t n = (size_t)n_row * a->shape.n_head;

    return rounded(n * a->shape.d_head) + 2 * rounded(n);
}

/* Blocks of the span in this round: [job->first, this). */
static uint64_t round_end(const struct job *job, const struct attend_span *span)
{
    uint64_t end = least(blocks_end(job, span), job->first + job->n_block);

    return end > job->first ? end : job->first;
}

static uint32_t n_split_task(const struct job *job,
                             const struct attend_span *span)
{
    if (!is_few_met(job, span))
        return 0;
    return (uint32_t)((round_end(job, span) - job->first + job->n_split - 1) /
                      job->n_split);
}

static void point_apart(struct rows *rows, float *part)
{
    const struct attend_shape shape = rows->args->shape;
    size_t n = (size_t)rows->span->n_row * shape.n_head;
    size_t first = (size_t)rows->head * rows->n_row;

    rows->is_apart = true;
    rows->out = part + first * shape.d_head;
    part += rounded(n * shape.d_head);
    rows->max = part + first;
    rows->sum = part + rounded(n) + first;
}

/* A range of blocks of one span, each block for itself. */
static void split_task(void *arg, uint32_t task, void *scratch)
{
    const struct job *job = arg;
    const struct attend_span *span = job->args->span;
    float *part = job->part, *floats = scratch;
    struct rows rows[HEADS_AT_ONCE];
    struct group group;

    for (; task >= n_split_task(job, span); span++) {
        task -= n_split_task(job, span);
        if (is_few_met(job, span))
            part += part_floats(job->args, span->n_row) * job->n_block;
    }
    const struct piece piece = {.span = span,
                                .position = span->position,
                                .end = span->position + span->n_row,
                                .n_head = job->args->shape.n_kv_head};
    uint64_t first = job->first + (uint64_t)task * job->n_split;
    uint64_t end = least(first + job->n_split, round_end(job, span));
    size_t each = part_floats(job->args, span->n_row);

    floats = LANES_NAME(attend_place_group)(&group, job->args->shape, floats);
    for (uint32_t head = 0, n; head < piece.n_head; head += n) {
        n = open_rows(job, &piece, head, rows, floats);
        for (uint64_t block = first; block < end; block++)
            for (uint32_t h = 0; h < n; h++) {
                point_apart(&rows[h], part + (block - job->first) * each);
                LANES_NAME(attend_block)(&rows[h], &group, block);
            }
    }
}

/* One head of one row and the records of its blocks. */
struct merge {
    float *out;         /* [d_head] of all blocks so far */
    float max, sum;     /* the same */
    const float *o;     /* of the next block's record: out, */
    const float *m, *l; /* max and sum */
    size_t stride;      /* to the record behind */
    uint32_t n;         /* blocks that are taken at once, and their factors */
    float keep[MERGE_AT_ONCE], take[MERGE_AT_ONCE];
};

/* `width` vectors of the results of n blocks, the last of n_last lanes; width
 * is a constant where this is inlined. */
LANES_INLINE void merge_columns(const struct merge *merge, uint32_t e,
                                uint32_t width, uint32_t n_last)
{
    v16 out[MERGE_WIDTH];
    const float *o = merge->o + e;

#pragma GCC unroll 8
    for (uint32_t p = 0; p < width; p++)
        out[p] = v16_load_part(merge->out + e + p * LANES, 0, n_last);
    for (uint32_t b = 0; b < merge->n; b++, o += merge->stride) {
        v16 keep = v16_set1(merge->keep[b]), take = v16_set1(merge->take[b]);
#pragma GCC unroll 8
        for (uint32_t p = 0; p < width; p++) {
            v16 one = v16_load_part(o + p * LANES, 0, n_last);
            out[p] = v16_fma(out[p], keep, v16_mul(one, take));
        }
    }
#pragma GCC unroll 8
    for (uint32_t p = 0; p < width; p++)
        v16_store_part(merge->out + e + p * LANES, out[p], 0, n_last);
}

/* Take n <= MERGE_AT_ONCE blocks, as merge_sums() and tile_merge() would. */
static void merge_blocks(struct merge *merge, uint32_t n, uint32_t d_head)
{
    float *keep = merge->keep, *take = merge->take;
    uint32_t e = 0;

    for (uint32_t b = 0; b < n; b++) {
        float m = merge->m[b * merge->stride];
        float top = merge->max > m ? merge->max : m;
        keep[b] = merge->max - top;
        take[b] = m - top;
        merge->max = top;
    }
    for (uint32_t b = 0; b < n; b += LANES) {
        v16_store_part(keep, v16_exp(v16_load_part(keep, b, n)), b, n);
        v16_store_part(take, v16_exp(v16_load_part(take, b, n)), b, n);
    }
    for (uint32_t b = 0; b < n; b++)
        merge->sum =
            fmaf(merge->sum, keep[b], merge->l[b * merge->stride] * take[b]);
    merge->n = n;
    while (e + MERGE_WIDTH * LANES <= d_head) {
        merge_columns(merge, e, MERGE_WIDTH, LANES);
        e += MERGE_WIDTH * LANES;
    }
    for (; e < d_head; e += LANES)
        merge_columns(merge, e, 1, d_head - e);
    merge->o += n * merge->stride;
    merge->m += n * merge->stride;
    merge->l += n * merge->stride;
}

/* Blocks [job->first, end) of head `head` of the span's row `row`, whose
 * running maximum and sum lie in stat. */
static void merge_row(const struct job *job, const struct attend_span *span,
                      uint32_t row, uint32_t head, const float *part,
                      float *stat)
{
    const struct attend_args *a = job->args;
    uint32_t d_head = a->shape.d_head, n_head = a->shape.n_head;
    uint64_t last = (span->position + row) / KV_BLOCK;
    uint64_t at = job->first, end = least(last + 1, round_end(job, span));
    size_t n = (size_t)span->n_row * n_head;
    size_t place =
        ((size_t)(head / job->n_query) * span->n_row + row) * job->n_query +
        head % job->n_query;
    struct merge merge = {
        .out = a->out + (span->first_row + row) * a->out_stride +
               (size_t)head * d_head,
        .max = stat[head],
        .sum = stat[n_head + head],
        .o = part + place * d_head,
        .m = part + rounded(n * d_head) + place,
        .l = part + rounded(n * d_head) + rounded(n) + place,
        .stride = part_floats(a, span->n_row),
    };

    if (at >= end)
        return;
    if (at == 0) { /* the start of the merge */
        for (uint32_t e = 0; e < d_head; e += LANES)
            v16_store_part(merge.out, v16_load_part(merge.o, e, d_head), e,
                           d_head);
        merge.max = *merge.m;
        merge.sum = *merge.l;
        merge.o += merge.stride;
        merge.m += merge.stride;
        merge.l += merge.stride;
        at++;
    }
    for (uint32_t step; at < end; at += step) {
        step = (uint32_t)least(end - at, MERGE_AT_ONCE);
        merge_blocks(&merge, step, d_head);
    }
    stat[head] = merge.max;
    stat[n_head + head] = merge.sum;
    if (end == last + 1)
        end_row(a, span->first_row + row, head, merge.out, 1.0f / merge.sum);
}

/* Task: one head of one row. */
static void merge_task(void *arg, uint32_t task, void *scratch)
{
    const struct job *job = arg;
    const struct attend_args *a = job->args;
    const struct attend_span *span = a->span;
    const float *part = job->part;
    uint32_t n_head = a->shape.n_head, row = task / n_head, before = 0;

    (void)scratch;
    for (; !is_few_met(job, span) || row >= before + span->n_row; span++)
        if (is_few_met(job, span)) {
            before += span->n_row;
            part += part_floats(a, span->n_row) * job->n_block;
        }
    float *stat =
        a->stat ? a->stat + (span->first_row + row - before) * a->stat_stride
                : job->stat + (size_t)row * 2 * n_head;
    merge_row(job, span, row - before, task % n_head, part, stat);
}

/* What few spans come to. */
struct few {
    uint32_t n_span, n_row;
    uint64_t n_block, most;  /* of all spans, of one */
    uint64_t total, longest; /* rows times blocks: of all, of one thread */
    size_t part;             /* floats of one record of each */
};

static struct few count_few(const struct job *job, uint32_t n_thread)
{
    const struct attend_args *a = job->args;
    uint64_t load[POOL_THREAD_MAX] = {0};
    struct few few = {0};

    for (uint32_t i = 0; i < a->n_span; i++) {
        const struct attend_span *span = &a->span[i];
        if (!is_few_met(job, span))
            continue;
        uint64_t n = n_block_of(job, span),
                 *mine = &load[few.n_span % n_thread];
        few.n_span++;
        few.n_row += span->n_row;
        few.n_block += n;
        few.most = n > few.most ? n : few.most;
        few.total += n * span->n_row;
        *mine += n * span->n_row;
        few.longest = *mine > few.longest ? *mine : few.longest;
        few.part += part_floats(a, span->n_row);
    }
    return few;
}

static void run_few(struct pool *pool, struct job *job)
{
    const struct attend_args *a = job->args;
    uint32_t n_thread = pool_n_thread(pool);
    struct few few = count_few(job, n_thread);
    size_t stat = rounded((size_t)few.n_row * 2 * a->shape.n_head);
    size_t room = POOL_SHARED_BYTES / sizeof(float);
    size_t n_round = 0;

    if (few.part && stat < room)
        n_round = (room - stat) / few.part;
    /* Unequal by less than a quarter is not worth two jobs. */
    if (n_round == 0 || few.most == 1 || few.longest * n_thread <= few.total ||
        few.longest * n_thread - few.total < few.total / 4) {
        pool_run(pool, few.n_span, few_task, job);
        return;
    }
    job->stat = pool_shared(pool);
    job->part = job->stat + stat;
    job->n_block = (uint32_t)least(n_round, few.most);
    uint64_t n = few.n_block / ((uint64_t)SPLITS_A_THREAD * n_thread) + 1;
    job->n_split = (uint32_t)least(n, SPLIT_BLOCKS);
    for (job->first = a->first_block; job->first < a->first_block + few.most;
         job->first += job->n_block) {
        uint32_t n_task = 0;
        for (uint32_t i = 0; i < a->n_span; i++)
            n_task += n_split_task(job, &a->span[i]);
        pool_run(pool, n_task, split_task, job);
        pool_run(pool, few.n_row * a->shape.n_head, merge_task, job);
    }
}

static void attend_with(struct pool *pool, const struct attend_args *args,
                        const struct attend_kernel *kernel)
{
    struct attend_shape shape = args->shape;
    struct job job = {.args = args,
                      .kernel = kernel,
                      .n_query = shape.n_head / shape.n_kv_head,
                      .end = args->end_block ? args->end_block : UINT64_MAX};
    uint64_t n_fma = 0;

    assert(shape.d_head <= HEAD_DIM_MAX);
    assert(args->table->n_rot <= shape.d_head);
    assert(shape.n_head % shape.n_kv_head == 0);
    for (uint32_t i = 0; i < args->n_span; i++) {
        const struct attend_span *span = &args->span[i];
        assert(span->position + span->n_row <= args->table->n_position);
        n_fma += span->n_row * n_block_of(&job, span) * KV_BLOCK *
                 shape.n_head * shape.d_head / 8;
    }
    pool = pool_for_fmas(pool, n_fma);
    run_few(pool, &job);
    run_many(pool, &job);
}

#define OPERATOR(name, f32, pair, tile)                                        \
    void name(struct pool *pool, const struct attend_args *args)               \
    {                                                                          \
        static const struct attend_kernel *const KERNEL[N_CPU_ARITHMETIC] = {  \
            [ARITHMETIC_FP32] = &(f32),                                        \
            [ARITHMETIC_PAIR] = &(pair),                                       \
            [ARITHMETIC_TILE] = &(tile)};                                      \
        attend_with(pool, args, KERNEL[args->shape.arithmetic]);               \
    }
#if defined(LANES_AVX512)
OPERATOR(attend_avx512, attend_f32_avx512, attend_pair_avx512,
         attend_tile_avx512)
OPERATOR(attend_avx512_bf16, attend_f32_avx512, attend_pair_avx512_bf16,
         attend_tile_avx512)
OPERATOR(attend_amx, attend_f32_avx512, attend_pair_avx512_bf16,
         attend_tile_amx)
#else
OPERATOR(attend_avx2, attend_f32_avx2, attend_pair_avx2, attend_tile_avx2)
#endif
