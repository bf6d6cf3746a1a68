#include "model/batch.h"

#include "model/graph.h"
#include "model/weights.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

void batch_check(const struct model *model, const struct batch *batch)
{
    uint32_t n_row = 0;

    for (uint32_t i = 0; i < batch->n_row; i++)
        assert(batch->token[i] < model->config.n_vocab);
    for (uint32_t i = 0; i < batch->n_span; i++) {
        const struct span *span = &batch->span[i];

        assert(span->first_row == n_row && span->n_row);
        assert(span->position + span->n_row <= model->n_context);
        assert(span->position + span->n_row <=
               policy_pass_end(span->policy, span->position));
        n_row += span->n_row;
    }
    assert(n_row == batch->n_row);
    assert(batch->n_layer == 0 || batch->n_logit == 0);
    for (uint32_t i = 0; i < batch->n_logit; i++)
        assert(batch->logit_row[i] < n_row &&
               (i == 0 || batch->logit_row[i - 1] < batch->logit_row[i]));
}

/* ------------------------------------------------------------------- strips */

enum status strips_init(struct strips *strips, uint32_t max_row,
                        uint32_t max_span)
{
    *strips = (struct strips){
        .span =
            weights_room(max_span * STRIPS_GROUP_MAX * sizeof(*strips->span)),
        .token = weights_room(max_row * sizeof(*strips->token)),
        .logit_row = weights_room(max_span * sizeof(*strips->logit_row))};
    return strips->span && strips->token && strips->logit_row
               ? STATUS_OK
               : STATUS_RESOURCE_EXHAUSTED;
}

void strips_release(struct strips *strips)
{
    free(strips->span);
    free(strips->token);
    free(strips->logit_row);
}

size_t strips_bytes(uint32_t max_row, uint32_t max_span)
{
    return max_span * STRIPS_GROUP_MAX * sizeof(struct span) +
           ((size_t)max_row + max_span) * sizeof(uint32_t);
}

/* Does it matter to nobody which rows of other spans come between its own? */
static bool is_loose(const struct span *span)
{
    return !span->policy && !span->source && !span->match;
}

bool batch_is_loose(const struct batch *batch)
{
    for (uint32_t i = 0; i < batch->n_span; i++)
        if (!is_loose(&batch->span[i]))
            return false;
    return true;
}

/* Spans' last rows come in the last group, in order of spans. */
static bool may_arrange(const struct batch *batch)
{
    uint32_t l = 0;

    for (uint32_t i = 0; i < batch->n_span; i++) {
        const struct span *span = &batch->span[i];
        const uint32_t last = span->first_row + span->n_row - 1;

        if (!is_loose(span))
            return false;
        if (l < batch->n_logit && batch->logit_row[l] <= last &&
            batch->logit_row[l++] != last)
            return false;
    }
    return l == batch->n_logit;
}

/* Into how many groups: strips are whole chunks of the grid, and a group is
 * about a piece. */
static uint32_t count_groups(const struct batch *batch, uint32_t piece_rows)
{
    const uint32_t n_span = batch->n_span;
    const uint32_t strip =
        (piece_rows / n_span + GRID - 1) / GRID * GRID; /* 0: too many */
    uint32_t n;

    if (!strip || n_span * strip >= 2 * piece_rows)
        return 1;
    n = (batch->n_row + n_span * strip - 1) / (n_span * strip);
    return n < STRIPS_GROUP_MAX ? n : STRIPS_GROUP_MAX;
}

/* Rows of the span before group `group` of n: the same share of each span, but
 * cut at the grid. */
static uint32_t rows_before(const struct span *span, uint32_t group, uint32_t n)
{
    const uint64_t end = span->position + (uint64_t)span->n_row * group / n;

    if (group == n)
        return span->n_row;
    return end / GRID * GRID > span->position
               ? (uint32_t)(end / GRID * GRID - span->position)
               : 0;
}

bool strips_arrange(struct strips *strips, uint32_t piece_rows,
                    struct batch *batch)
{
    const uint32_t n = batch->n_span > 1 ? count_groups(batch, piece_rows) : 1;
    uint32_t n_span = 0, row = 0, l = 0;

    strips->n_group = 0;
    if (n < 2 || !may_arrange(batch))
        return false;
    for (uint32_t g = 0; g < n; g++) {
        for (uint32_t i = 0; i < batch->n_span; i++) {
            const struct span *from = &batch->span[i];
            const uint32_t first = rows_before(from, g, n);
            const uint32_t n_row = rows_before(from, g + 1, n) - first;
            struct span strip = *from;

            strip.first_row = row;
            strip.n_row = n_row;
            strip.position += first;
            if (n_row)
                strips->span[n_span++] = strip;
            memcpy(strips->token + row, batch->token + from->first_row + first,
                   n_row * sizeof(*strips->token));
            row += n_row;
            if (g + 1 == n && l < batch->n_logit &&
                batch->logit_row[l] == from->first_row + from->n_row - 1)
                strips->logit_row[l++] = row - 1;
        }
        strips->end[g] = row;
    }
    strips->n_group = n;
    batch->token = strips->token;
    batch->span = strips->span;
    batch->n_span = n_span;
    batch->logit_row = strips->logit_row;
    return true;
}

uint32_t strips_end(const struct strips *strips, uint32_t row, uint32_t n_row)
{
    for (uint32_t g = 0; g < strips->n_group; g++)
        if (strips->end[g] > row)
            return strips->end[g];
    return n_row;
}
