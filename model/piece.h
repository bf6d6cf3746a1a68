#ifndef MODEL_PIECE_H
#define MODEL_PIECE_H
/* How a pass on the host is cut into pieces of rows, by what they compute. */
#include "model/workspace.h"

/* Rows that a half computes. */
uint32_t half_rows(const struct workspace *workspace, uint32_t half);

/* Multiply-adds of rows [first, end) of a half with their pasts. */
double piece_fma(const struct workspace *workspace, uint32_t half,
                 uint32_t first, uint32_t end);

/* Where a piece of about max_fma ends that begins at the pass's row. */
uint32_t piece_end(const struct workspace *workspace, uint64_t max_fma);

/*
 * Of a pass that begins and goes in pieces of about max_fma: prompts side by
 * side where that pays. Its rows are others if that is true.
 */
bool piece_arrange(struct workspace *workspace, uint64_t max_fma);
#endif
