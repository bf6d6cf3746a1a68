#ifndef STATE_MEMORY_H
#define STATE_MEMORY_H
/*
 * What the layers remember of one session after `position` tokens: a fixed
 * state per recurrent layer and growing KV blocks per softmax layer. All of it
 * is a cache: the session's truth is its journal. A block that lies wholly
 * below `position` is sealed: its bytes never change again, so the store
 * thread may read it while the engine goes on. With a device (kernels/device.h)
 * states and blocks lie in its memory, and so do the tables that name blocks.
 */
#include "base/status.h"
#include "model/model.h"

#include <stddef.h>
#include <stdint.h>

struct memory;

/* The empty memory, position 0.  RESOURCE_EXHAUSTED  no memory; with a device
 * all that can fail here may also say UNAVAILABLE, as device_take() */
MUST_CHECK enum status memory_create(const struct model *model,
                                     struct memory **out);
void memory_destroy(struct memory *memory);

/*
 * A second memory of the same tokens, at the same position, that shares the
 * first one's sealed blocks and has copies of its states and of its open block.
 * Bytes of blocks that are, or once were, shared belong to no memory: they are
 * counted in *shared_bytes, once, until their last holder is destroyed.
 * Memories that share are touched by one thread.
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status memory_fork(struct memory *memory, size_t *shared_bytes,
                                   struct memory **out);
/*
 * Give up the blocks of the first n_token tokens, which both have consumed from
 * the same tokens, for those of `from`: the same bits by the arithmetic of the
 * model. No image has borrowed them. Accounts as memory_fork().
 */
void memory_share(struct memory *memory, struct memory *from, uint64_t n_token,
                  size_t *shared_bytes);

/*
 * Make room for tokens [0, n_token), zeroed; never gives room back. On failure
 * what was there stays valid, and a later call goes on from there.
 *   RESOURCE_EXHAUSTED  no memory, or more tokens than model_n_context()
 */
MUST_CHECK enum status memory_reserve(struct memory *memory, uint64_t n_token);

/* Tokens consumed so far; the caller moves it after model_forward(). */
uint64_t memory_position(const struct memory *memory);
void memory_advance(struct memory *memory, uint64_t n_token);

/* [n_layer], for struct span; valid until the next reserve or destroy. */
const struct layer_memory *memory_layers(const struct memory *memory);

/* Block b of a layer that has blocks, and layers' states, for the functions of
 * kernels/device.h: a model with a device has them there. */
void *memory_block(const struct memory *memory, uint32_t layer, uint64_t b);

/*
 * From now on another queue of the model's device asks for its memory: its
 * side, while another thread than the engine's has it. Who gives it back has
 * waited for that queue.
 */
void memory_use(struct memory *memory, struct device *device);

/* Bytes held now; of them, those of shared blocks; and what a session of
   n_token tokens would hold: the same, for a session that grew to n_token in
   any number of reserves. */
size_t memory_bytes(const struct memory *memory);
size_t memory_shared_bytes(const struct memory *memory);
size_t memory_bytes_for(const struct model *model, uint64_t n_token);
#endif
