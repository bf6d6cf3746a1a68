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
#include "state/paging.h"

#include <stddef.h>
#include <stdint.h>

struct memory;

/* The empty memory, position 0.  RESOURCE_EXHAUSTED  no memory; with a device
 * all that can fail here may also say UNAVAILABLE, as device_take() */
MUST_CHECK enum status memory_create(const struct model *model,
                                     struct memory **out);
void memory_destroy(struct memory *memory);

/*
 * Aside: one in `rooms`, host memory that the model's device reaches. It holds
 * what another memory of the same tokens holds, as long as that has no room on
 * the device. Nothing is computed with it and what is in it is undefined before
 * memory_carry(). Images may be taken of it; it is neither forked nor shared.
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status memory_create_aside(const struct model *model,
                                           struct rooms *rooms,
                                           struct memory **out);
bool memory_is_aside(const struct memory *memory);
/* In whose memory all lies; NULL: in the host's. */
struct device *memory_device(const struct memory *memory);
/*
 * Ask the shuttle to carry pieces [from, from + n) of the memory_n_piece() that
 * a memory's tokens are, to another one that has room for as many tokens; one
 * of the two is aside. They stay until the shuttle has come so far. `to` stands
 * where the other stands.
 */
uint64_t memory_n_piece(const struct memory *memory);
size_t memory_piece_bytes(const struct memory *memory, uint64_t piece);
void memory_carry(struct memory *to, const struct memory *from, uint64_t first,
                  uint64_t n);

/*
 * What its softmax layers shall see of the past; full, unless this is called,
 * which is before the first reserve.
 *   RESOURCE_EXHAUSTED  no memory; nothing has changed
 */
MUST_CHECK enum status memory_set_policy(struct memory *memory,
                                         const struct policy *policy);
/* As policy_end_prompt(), of which less than n_token was consumed. */
void memory_end_prompt(struct memory *memory, uint64_t n_token);
/* For struct span: NULL if that is full. */
const struct policy *memory_policy(const struct memory *memory);

/*
 * Only some of its blocks are in RAM, at most max_bytes of them; the others are
 * read from the store (state/paging.h, which says what max_bytes may be and
 * what may be asked of memory_paging() besides). Once, before the first
 * reserve; the policy is bounded, and the model's memory is the host's. Such a
 * memory is neither forked nor shared.
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status memory_page(struct memory *memory, struct pager *pager,
                                   size_t max_bytes);
struct paging *memory_paging(const struct memory *memory); /* NULL: all are */
/* For struct span. */
struct block_source *memory_source(const struct memory *memory);
/*
 * For a load, instead of memory_reserve(): room for tokens [0, n_token), of
 * which sealed blocks come by memory_put(), in any order.
 *   as memory_reserve()
 */
MUST_CHECK enum status memory_expect(struct memory *memory, uint64_t n_token);
MUST_CHECK enum status memory_put(struct memory *memory, uint32_t layer,
                                  uint64_t b, struct device *device,
                                  const void *bytes);
/* Empty again, after a load that failed half-way. */
void memory_wipe(struct memory *memory, struct device *device);

/* What lies where in a layer of this memory. */
const struct mixer_plan *memory_plan(const struct memory *memory,
                                     uint32_t layer);

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
 * The states as they are now, for a reader: they stay while it holds them, and
 * memory_layers() says where. Until the memory's next reserve they are its own
 * as well; that gives it copies. Held and let go by the thread that reserves.
 */
struct states;
struct states *memory_hold_states(const struct memory *memory);
void memory_let_go_states(const struct model *model,
                          struct states *states); /* accepts NULL */

/*
 * Make room for tokens [0, n_token), zeroed; never gives room back. Before any
 * token is consumed, also of those that there was room for. On failure what was
 * there stays valid, and a later call goes on from there.
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
   any number of reserves. policy NULL is full. */
size_t memory_bytes(const struct memory *memory);
size_t memory_shared_bytes(const struct memory *memory);
size_t memory_bytes_for(const struct model *model, const struct policy *policy,
                        uint64_t n_token);
/* The same for one with pages of max_bytes. */
size_t memory_paged_bytes(const struct model *model,
                          const struct policy *policy, size_t max_bytes,
                          uint64_t n_token);
/* And for this one, which has pages, under its paging_limit(). */
size_t memory_grown_bytes(const struct memory *memory, uint64_t n_token);
#endif
