#ifndef STATE_PAGER_H
#define STATE_PAGER_H
/*
 * Threads that read KV blocks back from the store, so that the engine never
 * waits for a disk, and the pages that they read into. A page is room in RAM
 * for one layer's block. One with a stored block, which nothing can change, is
 * known by where that lies: sessions that see the same block, as forks do, hold
 * the same page. Who wants a page asks for it, does something else, and looks
 * again. The last holder frees it; while it is being read it stays until that
 * is done.
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
    void *bytes; /* [n_bytes] 64-byte aligned; not touched while it is read,
                    and only read once it has a name */
    size_t n_bytes;
    size_t room; /* that n_bytes may be */
    /* The pager's: */
    _Atomic enum page_state state;
    struct page_wanted wanted;
    struct page *next;       /* of those that wait to be read */
    struct page *next_named; /* of the same place on the shelf */
    uint32_t n_holder;       /* all of these under its lock */
    bool is_named, is_queued;
    _Atomic bool is_shared; /* more than one has held it; counted as such */
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

/* A nameless one for one holder, zeroed; NULL and the cause when there is no
 * memory. */
struct page *pager_page(struct pager *pager, size_t room);
/* What a page of that room takes. */
size_t page_size(size_t room);
/* One holder less. */
void pager_give(struct pager *pager, struct page *page);
/* So much else of a session's was free()d: the system gets it back, too. */
void pager_freed(struct pager *pager, size_t n_bytes);
/* Has it no other holder? Then it is nameless from now on, with any bytes. */
bool pager_reuse(struct pager *pager, struct page *page);

/* The page of a stored block, for one more holder; maybe one that is still
 * being read. NULL: nobody has it. */
struct page *pager_find(struct pager *pager, const struct page_wanted *wanted);
/* Read this into a nameless page, which has that name from now on. */
void pager_ask(struct pager *pager, struct page *page,
               const struct page_wanted *wanted);
/* What is in a nameless page is stored now: this is its name. */
void pager_name(struct pager *pager, struct page *page,
                const struct page_wanted *wanted);
static inline enum page_state page_look(const struct page *page)
{
    return atomic_load_explicit(&page->state, memory_order_acquire);
}
static inline bool page_is_shared(const struct page *page)
{
    return atomic_load_explicit(&page->is_shared, memory_order_relaxed);
}
/* Until it is not being read any more. */
void pager_wait(struct pager *pager, const struct page *page);

/* Reads that were asked for so far. */
uint64_t pager_n_read(const struct pager *pager);
/* Blocks that steps saw and that had not to be read for them, of all sessions.
 */
void pager_count_hits(struct pager *pager, uint64_t n);
uint64_t pager_n_hit(const struct pager *pager);
/* Something else that sessions share, by its bytes. */
void pager_count(struct pager *pager, size_t n_bytes);
void pager_uncount(struct pager *pager, size_t n_bytes);
/* What all pages take; and what is or was shared, such as is counted, too. */
size_t pager_bytes(const struct pager *pager);
size_t pager_shared_bytes(const struct pager *pager);
#endif
