#ifndef STATE_PAGING_PARTS_H
#define STATE_PAGING_PARTS_H
/*
 * What a paging is made of (state/paging.h), for paging.c, which moves blocks,
 * and paging_sizes.c, which counts their bytes.
 */
#include "state/lineage.h"
#include "state/paging.h"

#define TABLE_FIRST 16u /* blocks that the first tables can name */
/* Indices of so many blocks of a layer lie one behind the other: look-ups read
 * them in order. */
#define INDEX_RUN 64u
#define BLOCKS_AHEAD 4u /* that may be new, beside what a step sees */

/* Where a block is. Not in RAM: no page. */
struct place {
    struct page *page; /* its seat's */
    bool is_held;
    bool is_used;  /* since the clock's hand was here */
    bool is_fresh; /* read, and no step has seen it since */
};

/* Indices of INDEX_RUN blocks of a layer. Forks share those of which all blocks
 * are stored. The engine's thread does. */
struct index_run {
    uint32_t n_holder;
    bool is_shared; /* it was: the pager counts it */
    _Alignas(64) char at[];
};

struct paged_layer { /* block_bytes 0: it has no blocks */
    const struct mixer_plan *plan;
    void **block;           /* [capacity] bytes of its page, or NULL */
    void **index;           /* [capacity] */
    struct place *place;    /* [capacity] */
    struct index_run **run; /* [capacity / INDEX_RUN] held */
    uint64_t *held;         /* [n_held] of max_page */
    uint32_t n_held;
    struct paging_use use;
};

struct seat {          /* a page and whose it is */
    struct page *page; /* held; others may hold it too. NULL: none */
    uint32_t layer;
    uint64_t block;
    bool is_taken;
    bool is_known;  /* to the pager, by its name */
    bool is_shared; /* so it was when it was looked at: n_shared */
};

struct paging {
    struct block_source source; /* first: it is all that a mixer knows */
    const struct model *model;
    struct policy policy;
    struct digest policy_digest;
    struct pager *pager;
    uint64_t n_block, capacity, n_stored;
    struct log_path base;
    struct uid own;
    bool adopts; /* in the next load */
    bool is_lost;
    size_t page_room;
    uint32_t n_paged;  /* layers that have blocks */
    uint32_t max_page; /* ever */
    uint32_t n_page;   /* now: paging_limit() */
    uint32_t n_seat, hand;
    uint32_t n_shared;  /* of the seats */
    size_t shared_runs; /* bytes of runs that are counted as shared */
    struct seat *seat;  /* [max_page] the first n_seat are in use; owned */
    struct policy_view *seen; /* [POLICY_SEEN_MAX] scratch */
    uint32_t n_layer;
    struct paged_layer layer[];
};

struct extent_of_blocks {
    size_t room, page_bytes; /* of the largest block, and what that takes */
    size_t index_bytes;      /* of all layers */
    uint32_t n_paged;
};

/* Of one block's index in RAM. */
size_t paging_index_bytes(const struct mixer_plan *plan,
                          const struct policy *policy);

struct extent_of_blocks paging_measure(const struct model *model,
                                       const struct policy *policy);

/* Blocks that a step sees in a layer at most. */
uint64_t paging_n_seen(const struct policy *policy);

/* Blocks that tables for n_block can name, and runs of indices they need. */
uint64_t paging_capacity(uint64_t n_block);
uint64_t paging_n_run(uint64_t n_block);
#endif
