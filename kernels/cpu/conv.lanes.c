#include "kernels/cpu/conv.h"
#include "kernels/cpu/ops.h"

#include <assert.h>

/* Channels that go together, so that weights and the last few rows of them stay
 * in the first-level cache; or fewer, so that all threads have some. */
#define CHANNELS_MAX 512u
#define CHANNELS_MIN 64u
#define TASKS_A_THREAD 4u
#define FETCH_AHEAD 4u /* rows */

struct job {
    const struct conv_args *args;
    uint32_t channels; /* of one task */
    uint32_t n_task, n_thread;
};

/* Raw input at row t of the span; t < 0 is in the tail. */
static const float *input(const struct conv_args *a,
                          const struct conv_span *span, int64_t t)
{
    if (t < 0)
        return span->tail + (size_t)(t + a->width - 1) * a->n_channel;
    return a->x + (span->first_row + (size_t)t) * a->x_stride;
}

/* What one row reads and writes; y has its channels from `first` on. */
struct row {
    const float *x[CONV_WIDTH_MAX]; /* oldest first */
    const float *next;              /* to be fetched */
    float *y;
    uint32_t first;
};

/* One vector of channels from c on; `end` cuts it. */
static void cut_vector(const struct conv_args *a, const struct row *row,
                       uint32_t c, uint32_t end)
{
    v16 sum = v16_zero();

    for (uint32_t i = 0; i < a->width; i++) {
        const float *w = a->weight + (size_t)i * a->n_channel;
        sum = v16_fma(v16_load_part(w, c, end),
                      v16_load_part(row->x[i], c, end), sum);
    }
    v16_store_part(row->y, v16_silu(sum), c - row->first, end - row->first);
}

/* Whole vectors; the number of taps may be known where this is inlined. */
LANES_INLINE void vectors(const struct conv_args *a, const struct row *row,
                          uint32_t end, uint32_t width)
{
    for (uint32_t c = row->first; c < end; c += LANES) {
        v16 sum = v16_zero();

        _mm_prefetch((const char *)(row->next + c), _MM_HINT_T0);
        for (uint32_t i = 0; i < width; i++)
            sum = v16_fma(v16_load(a->weight + (size_t)i * a->n_channel + c),
                          v16_load(row->x[i] + c), sum);
        v16_store(row->y + c - row->first, v16_silu(sum));
    }
}

/* Row t of the span. */
static void conv_row(const struct conv_piece *p, uint32_t t)
{
    const struct conv_args *a = p->args;
    const uint32_t last = p->span->n_row - 1, ahead = t + FETCH_AHEAD;
    const uint32_t next = ahead < last ? ahead : last;
    const uint32_t whole = p->first + (p->end - p->first) / LANES * LANES;
    struct row row = {.next = input(a, p->span, next),
                      .y = p->y + (t - p->from) * p->y_stride,
                      .first = p->first};

    for (uint32_t i = 0; i < a->width; i++)
        row.x[i] = input(a, p->span, (int64_t)t - a->width + 1 + i);
    if (a->width == 4)
        vectors(a, &row, whole, 4);
    else
        vectors(a, &row, whole, a->width);
    if (whole < p->end)
        cut_vector(a, &row, whole, p->end);
}

void CONV_NAME(conv_piece)(const struct conv_piece *piece)
{
    for (uint32_t t = piece->from; t < piece->to; t++)
        conv_row(piece, t);
}

/* What a task covers: some channels of one span. Spans change fastest, so that
 * the weights of those channels stay where they are. */
struct piece {
    const struct conv_span *span;
    uint32_t first, end;
};

static struct piece piece_of(const struct job *job, uint32_t task)
{
    const struct conv_args *a = job->args;
    const uint32_t first = task / a->n_span * job->channels;
    const uint32_t left = a->n_channel - first;

    return (struct piece){&a->span[task % a->n_span], first,
                          first +
                              (left < job->channels ? left : job->channels)};
}

/* A row alone reads more of its tail, which no cache holds, than it computes:
 * ask for the one that this thread is likely to take next. */
static void fetch_tail(const struct job *job, uint32_t task)
{
    const struct conv_args *a = job->args;

    if (task >= job->n_task)
        return;
    const struct piece piece = piece_of(job, task);
    for (uint32_t i = 0; i + 1 < a->width && piece.span->n_row == 1; i++) {
        const float *tail = piece.span->tail + (size_t)i * a->n_channel;

        for (uint32_t c = piece.first; c < piece.end; c += LANES)
            _mm_prefetch((const char *)(tail + c), _MM_HINT_T0);
    }
}

/* Oldest first: each is read before its place is written. */
void CONV_NAME(conv_keep)(const struct conv_args *a,
                          const struct conv_span *span, uint32_t first,
                          uint32_t end)
{
    for (uint32_t i = 0; i + 1 < a->width; i++) {
        float *tail = span->tail + (size_t)i * a->n_channel;
        const float *x =
            input(a, span, (int64_t)span->n_row - a->width + 1 + i);
        for (uint32_t c = first; c < end; c += LANES)
            v16_store_part(tail, v16_load_part(x, c, end), c, end);
    }
}

static void channel_task(void *arg, uint32_t task, void *scratch)
{
    const struct job *job = arg;
    const struct conv_args *a = job->args;
    const struct piece piece = piece_of(job, task);

    (void)scratch;
    fetch_tail(job, task + job->n_thread);
    CONV_NAME(conv_piece)
    (&(struct conv_piece){.args = a,
                          .span = piece.span,
                          .to = piece.span->n_row,
                          .first = piece.first,
                          .end = piece.end,
                          .y = a->y + piece.span->first_row * a->y_stride +
                               piece.first,
                          .y_stride = a->y_stride});
    CONV_NAME(conv_keep)(a, piece.span, piece.first, piece.end);
}

static void run_channels(struct pool *pool, struct job *job)
{
    const struct conv_args *a = job->args;
    const uint64_t n_each = (uint64_t)TASKS_A_THREAD * pool_n_thread(pool);

    while (job->channels > CHANNELS_MIN &&
           (uint64_t)a->n_channel / job->channels * a->n_span < n_each)
        job->channels /= 2;
    job->n_task =
        a->n_span * ((a->n_channel + job->channels - 1) / job->channels);
    job->n_thread = pool_n_thread(pool);
    pool_run(pool, job->n_task, channel_task, job);
}

void LANES_NAME(conv)(struct pool *pool, const struct conv_args *args)
{
    struct job job = {.args = args, .channels = CHANNELS_MAX};
    uint64_t n_row = 0;

    assert(args->width >= 1 && args->width <= CONV_WIDTH_MAX && !args->unit);
    for (uint32_t i = 0; i < args->n_span; i++)
        n_row += args->span[i].n_row;
    run_channels(pool_for_floats(pool, n_row * args->n_channel), &job);
}
