#ifndef STATE_SHELF_H
#define STATE_SHELF_H
/*
 * Pages by the names of the blocks in them. It owns no page; whoever calls
 * holds the pager's lock.
 */
#include "state/pager.h"

struct shelf {
    struct page **place; /* [n_place] first of a list each; owned */
    size_t n_place;      /* a power of two, or 0 */
    size_t n_page;
};

/* False: another page has that name, or there is no memory to list it. */
bool shelf_put(struct shelf *shelf, struct page *page);
/* NULL: none has that name. */
struct page *shelf_find(const struct shelf *shelf,
                        const struct page_wanted *wanted);
void shelf_take(struct shelf *shelf, struct page *page); /* that is on it */
void shelf_release(struct shelf *shelf);
#endif
