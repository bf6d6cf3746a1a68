#ifndef STATE_PAGING_H
#define STATE_PAGING_H
/*
 * The KV blocks of one session of which only some are in RAM: its own part of
 * the node's budget, in pages. What look-ups read, a few vectors for each
 * block, stays. A block is in RAM from its first key until it is stored; from
 * then on it may leave at any time, without being written again, and comes back
 * when a step of the session's policy sees it. No bit depends on that (E5).
 * Sessions that see the same stored block share its page (state/pager.h).
 *
 * A block that is needed is held: it has a page, maybe one that is still being
 * read, until it is released. The engine's thread does all of this; but a
 * session that is being loaded is the store thread's until it is handed over.
 */
#include "model/mixer.h"
#include "state/pager.h"

struct paging;

/*
 * For a session of this policy, which is not full, with at most max_bytes of
 * blocks in RAM.
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status paging_create(const struct model *model,
                                     const struct policy *policy,
                                     struct pager *pager, size_t max_bytes,
                                     struct paging **out);
void paging_destroy(struct paging *paging); /* accepts NULL */
/* The least that max_bytes can be. */
size_t paging_least(const struct model *model, const struct policy *policy);
/* What is held at most for n_block blocks: pages, tables and indices. */
size_t paging_bytes(const struct model *model, const struct policy *policy,
                    size_t max_bytes, uint64_t n_block);
/*
 * From now on it takes no more pages than it may need while it grows to n_block
 * blocks that are not stored meanwhile: of max_bytes, and it keeps what it has.
 * With fewer than that a session gets as far, but is stored more often.
 */
void paging_limit(struct paging *paging, uint64_t n_block);
/* As paging_bytes(), for this one and its limit. */
size_t paging_grown_bytes(const struct paging *paging, uint64_t n_block);
/* Pages of stored blocks go, while no step needs them. Was there any? */
bool paging_trim(struct paging *paging);
/* What is held now; of that, pages that others hold or held when
 * paging_count_shared() looked or they were taken: pager_shared_bytes() has
 * those, once. */
size_t paging_held_bytes(const struct paging *paging);
size_t paging_shared_bytes(const struct paging *paging);
void paging_count_shared(struct paging *paging);

/*
 * Room for blocks [0, n_block); the new ones are zeroed and in RAM.
 *   RESOURCE_EXHAUSTED  no memory, or no page: paging_room() says how many
 */
MUST_CHECK enum status paging_reserve(struct paging *paging, uint64_t n_block);
/* Blocks that are not stored that there may be in max_bytes, beside what one
 * step needs. */
uint64_t paging_most(const struct model *model, const struct policy *policy,
                     size_t max_bytes);
/* So many new blocks have pages now, or could have, beside what one step
 * needs. */
uint64_t paging_room(const struct paging *paging);
uint64_t paging_n_block(const struct paging *paging);
/* Tables for struct layer_memory; valid until the next reserve. */
void **paging_blocks(const struct paging *paging, uint32_t layer);
void **paging_indices(const struct paging *paging, uint32_t layer);
bool paging_is_short(const struct paging *paging, uint32_t layer);

/*
 * A load: blocks [0, n_block) are in the store, and are put one after the
 * other. Those that the next steps see for sure stay in RAM.
 *   RESOURCE_EXHAUSTED  no memory; paging_put(): or no page
 */
MUST_CHECK enum status paging_expect(struct paging *paging, uint64_t n_block);
MUST_CHECK enum status paging_put(struct paging *paging, uint32_t layer,
                                  uint64_t block, const void *bytes);
/* The next load is of blocks that others may delete: all of them stay in RAM,
 * as if the session had computed them, until it has stored them itself. */
void paging_adopt(struct paging *paging);
/* It is over: the blocks were read as paging_stored() says. */
void paging_loaded(struct paging *paging, uint64_t n_block,
                   const struct log_path *base, struct uid own);
/* None again. */
void paging_clear(struct paging *paging);

/*
 * The first n_block blocks are stored: those of `base` with its logs, the
 * others with `own`. Those that were stored before stay where they are, also
 * when n_block is less.
 */
void paging_stored(struct paging *paging, uint64_t n_block,
                   const struct log_path *base, struct uid own);
/*
 * The same blocks for another session, which goes on apart from this one: its
 * pages are shared as far as they are stored, so are indices. The engine's
 * thread.
 *   RESOURCE_EXHAUSTED  no memory
 */
bool paging_may_fork(const struct paging *paging); /* all is stored but for the
                                                      last block */
MUST_CHECK enum status paging_fork(struct paging *from, struct paging **out);
const struct log_path *paging_base(const struct paging *paging);
uint64_t paging_n_stored(const struct paging *paging);
/* What was stored is not to be relied on: the session is to be computed
 * again. */
void paging_lose(struct paging *paging);
/* Was it said so, or could a block not be read? What was computed since then
 * means nothing. */
bool paging_is_lost(const struct paging *paging);

/*
 * Hold what the next row, at `position`, sees in all layers; true when all of
 * it is there. State of a layer as struct layer_memory has it.
 */
bool paging_ready(struct paging *paging, const struct layer_memory *layer,
                  uint64_t position);
/* For struct span. */
struct block_source *paging_source(struct paging *paging);
/* Bytes of a layer's blocks that are in RAM. */
size_t paging_in_ram(const struct paging *paging, uint32_t layer);

/* Since the memory began. A step is a token that was sampled, or a piece of a
 * prompt that sees the same blocks. */
struct paging_use {
    uint64_t n_step;
    uint64_t n_hit;     /* blocks that a step saw and that were in RAM */
    uint64_t n_fetched; /* blocks that were read */
};
struct paging_use paging_use(const struct paging *paging, uint32_t layer);
#endif
