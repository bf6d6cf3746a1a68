#ifndef STATE_PAGER_H
#define STATE_PAGER_H
/*
 * Threads that read KV blocks back from the store, so that the engine never
 * waits for a disk. A page is room in RAM for one layer's block of one session;
 * who owns it asks for what it shall have, does something else, and looks
 * again. A page that is given back while it is being read stays until that is
 * done.
 */
#include "base/ring.h"
#include "model/model.h"
#include "state/session.h"
#include "state/store.h"

#include <stdatomic.h>

/* A sealed block, as snapshots store it (state/snapshot.h). */
struct page_wanted {
    struct uid log; /* under which it lies */
    uint64_t block;
    uint32_t layer;
    struct digest policy; /* of the session: policy_digest() */
};

enum page_state {
    PAGE_THERE, /* nothing is being read */
    PAGE_READING,
    PAGE_LOST /* it could not be read, or is another one: zeros */
};

struct page {
    void *bytes; /* [n_bytes] 64-byte aligned; not touched while it is read */
    size_t n_bytes;
    /* The pager's: */
    _Atomic enum page_state state;
    struct page_wanted wanted;
    struct page *next;
    bool is_queued, is_orphan; /* under its lock */
};

struct pager;
struct pager_options {
    struct store *store;       /* outlives it, as the model does */
    const struct model *model; /* whose blocks they are */
    struct ring *engine;       /* kicked when pages are there */
    uint32_t n_thread;
};
/* RESOURCE_EXHAUSTED  no memory, or the system gives no thread */
MUST_CHECK enum status pager_start(const struct pager_options *options,
                                   struct pager **out);
/* Behind all its pages; accepts NULL. */
void pager_stop(struct pager *pager);

/* Zeroed; NULL and the cause when there is no memory. */
struct page *page_create(size_t n_bytes);
/* Gone, at once or when it is read. */
void pager_give(struct pager *pager, struct page *page);

/* Read this into a page that is not being read. */
void pager_ask(struct pager *pager, struct page *page,
               const struct page_wanted *wanted);
static inline enum page_state page_look(const struct page *page)
{
    return atomic_load_explicit(&page->state, memory_order_acquire);
}
/* Until it is not being read any more. */
void pager_wait(struct pager *pager, const struct page *page);
/* Reads that were asked for so far. */
uint64_t pager_n_read(const struct pager *pager);
/* Blocks that steps saw and that had not to be read for them, of all sessions.
 */
void pager_count_hits(struct pager *pager, uint64_t n);
uint64_t pager_n_hit(const struct pager *pager);
#endif
