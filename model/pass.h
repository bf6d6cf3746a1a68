#ifndef MODEL_PASS_H
#define MODEL_PASS_H
/*
 * A step of the model that is carried out in slices. On a CPU the chunk of a
 * long prompt takes a hundred milliseconds and more while running replies want
 * their next token after two; so a prompt's pass lives in a workspace of its
 * own and is run on for a while between whole passes of the others. It can stop
 * between half layers of pieces of the rows, and inside attention between
 * ranges of key blocks: which call does what changes, the order of operations
 * of a row never does (E2).
 *
 * From pass_begin() until pass_run() has returned true the memories of the
 * batch's spans stand between two tokens and belong to the pass: nobody may
 * read, save, grow or drop them. A pass that was begun is finished, never
 * abandoned, because folded states cannot be taken back; how long that takes is
 * bounded by the rows of the batch.
 */
#include "base/clock.h"
#include "model/model.h"

#include <stdbool.h>

/*
 * Begin with the batch of model_forward(). Its arrays are borrowed until the
 * pass is done, its struct is copied. The workspace must have none under way.
 */
void pass_begin(struct workspace *workspace, const struct batch *batch);

/*
 * How long a slice may be. It ends when the clock says until_us or more, or at
 * once when the pass has to wait for blocks that are not in RAM. With a caller
 * that is_called() it goes on for linger_us at most, as long as nobody does.
 * Both are asked after each part of the work, by any thread of the pool.
 */
struct pass_slice {
    const struct clock *clock;
    uint64_t until_us, linger_us;
    bool (*is_called)(const void *caller); /* NULL: it does not linger */
    const void *caller;
};

/*
 * Run on until the pass is done: true; or until the slice ends: false. Makes
 * progress, unless it has to wait. NULL: to the end, in parts as large as they
 * come and waiting for blocks.
 *
 * Otherwise a part has about PASS_PIECE_FMA multiply-adds for each thread (a
 * millisecond, or less) but at least PASS_ROWS rows of a half layer,
 * PASS_ROWS_EXPERTS where that is made of experts (fewer would mostly wait for
 * its weights), or one block of keys of PASS_ROWS rows. The head takes all rows
 * whose logits are wanted, up to twice PASS_ROWS. Where threads take prompts
 * apart (model/tracks.h), a part is of one thread and twice as large. On a
 * device a part is half a layer, and each is waited for.
 */
#define PASS_PIECE_FMA (UINT64_C(64) << 20)
#define PASS_ROWS 64u
#define PASS_ROWS_EXPERTS 256u
bool pass_run(struct workspace *workspace, struct pool *pool,
              const struct pass_slice *slice);

/*
 * Of the pass that was done last.
 *   UNAVAILABLE  the device failed (kernels/device.h): there are no logits, and
 *                the memories of its spans are lost
 *   RESOURCE_EXHAUSTED  it had no room for what the pass needs in between:
 * there are no logits, and the memories of its spans are to be given up; all
 * others are whole
 */
MUST_CHECK enum status pass_check(const struct workspace *workspace);

/* Another number than PASS_PIECE_FMA, at least 1, from the next part on. */
void pass_set_piece(struct workspace *workspace, uint64_t n_fma);

bool pass_is_under_way(const struct workspace *workspace);
/* Is it stopped until a block is there? Whoever reads it wakes the engine. */
bool pass_is_waiting(const struct workspace *workspace);

/* Estimated share of its work that is done, in [0, 1]; 1 when none is under
 * way. Grows with each piece of rows that is through a half layer. */
double pass_progress(const struct workspace *workspace);

/* [n_logit, n_vocab] of the pass that was done last, as model_forward(); where
 * it has pass_tops(), of the rows alone that were fetched. */
const float *pass_logits(const struct workspace *workspace);

/* The best of these rows, if the batch is_sampled and its logits lie on a
 * device; otherwise NULL. */
const struct tops *pass_tops(const struct workspace *workspace);

/*
 * Row i of the logits also goes to where pass_logits() says; there after
 * pass_fetched().
 *   UNAVAILABLE  as pass_check()
 */
void pass_fetch(struct workspace *workspace, uint32_t i);
MUST_CHECK enum status pass_fetched(struct workspace *workspace);
#endif
