/*
 * The delta rule of few rows on GPUs whose CTAs have no clusters: in pieces
 * that end at multiples of DELTA_FEW, so that none passes a grid point. Where
 * there is not the shared memory for recur, many rows come this way as well. A
 * cut shows in no bit.
 */
#include "kernels/cuda/delta.cuh"

#include <assert.h>

#define LIST_MAX 64u /* spans of a launch */

static_assert(GRID % DELTA_FEW == 0, "pieces end at grid points");

/* Piece number i of a span; without rows if it has fewer. */
static struct delta_span piece_of(const struct delta_span *span, uint32_t i)
{
    const uint32_t lead = (uint32_t)(span->position % DELTA_FEW);
    const uint64_t end = (uint64_t)lead + span->n_row;
    const uint64_t from = i ? (uint64_t)i * DELTA_FEW : lead;
    const uint64_t to = (uint64_t)(i + 1) * DELTA_FEW;
    struct delta_span piece = *span;

    piece.first_row += (uint32_t)(from - lead);
    piece.position += from - lead;
    piece.n_row = from >= end ? 0 : (uint32_t)((to < end ? to : end) - from);
    return piece;
}

/* Of spans of at most n_row rows, wherever they begin: a recorded step is
 * replayed at other positions. */
static uint32_t n_piece_of(uint32_t n_row)
{
    return (n_row + 2 * DELTA_FEW - 2) / DELTA_FEW;
}

static void run(struct gpu *gpu, const struct delta_args *args,
                const struct delta_span *span, uint32_t n_span, uint32_t n_max)
{
    struct delta_span list[LIST_MAX];
    struct delta_args few = *args;
    uint32_t n_row = 0;

    for (uint32_t i = 0; i < n_span; i++)
        if (span[i].n_row <= n_max && span[i].n_row > n_row)
            n_row = span[i].n_row;
    few.n_span = n_span;
    for (uint32_t piece = 0; n_row && piece < n_piece_of(n_row); piece++) {
        for (uint32_t i = 0; i < n_span; i++) {
            list[i] = piece_of(&span[i], piece);
            if (span[i].n_row > n_max)
                list[i].n_row = 0;
        }
        few.span = (const struct delta_span *)gpu_stage(gpu, list,
                                                        n_span * sizeof(*list));
        if (!gpu_is_replaying(gpu))
            delta_few(gpu, &few, n_row < DELTA_FEW ? n_row : DELTA_FEW);
    }
}

void delta_pieces(struct gpu *gpu, const struct delta_args *args,
                  uint32_t n_max)
{
    for (uint32_t first = 0; first < args->n_span; first += LIST_MAX) {
        const uint32_t n_left = args->n_span - first;

        run(gpu, args, args->span + first,
            n_left < LIST_MAX ? n_left : LIST_MAX, n_max);
    }
}
