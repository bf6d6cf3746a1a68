#include "state/shelf.h"

#include <stdlib.h>
#include <string.h>

#define PLACE_FIRST 256u

static bool is_same(const struct page_wanted *a, const struct page_wanted *b)
{
    return a->block == b->block && a->layer == b->layer &&
           uid_equal(a->log, b->log) && digest_equal(a->policy, b->policy);
}

static struct page **place_of(const struct shelf *shelf,
                              const struct page_wanted *wanted)
{
    const uint64_t word[] = {wanted->log.hi,    wanted->log.lo,
                             wanted->block,     wanted->layer,
                             wanted->policy.hi, wanted->policy.lo};

    return &shelf->place[digest_64(word, sizeof(word)) & (shelf->n_place - 1)];
}

static void link_page(const struct shelf *shelf, struct page *page)
{
    struct page **place = place_of(shelf, &page->wanted);

    page->next_named = *place;
    *place = page;
}

/* Lists stay short. Without memory they get longer, but there must be some. */
static void widen(struct shelf *shelf)
{
    const struct shelf narrow = *shelf;
    const size_t n_place = narrow.n_place ? 2 * narrow.n_place : PLACE_FIRST;
    struct page **place;

    if (narrow.n_page < narrow.n_place)
        return;
    place = calloc(n_place, sizeof(struct page *));
    if (!place)
        return;
    shelf->place = place;
    shelf->n_place = n_place;
    for (size_t i = 0; i < narrow.n_place; i++)
        for (struct page *page = narrow.place[i], *next; page; page = next) {
            next = page->next_named;
            link_page(shelf, page);
        }
    free(narrow.place);
}

bool shelf_put(struct shelf *shelf, struct page *page)
{
    widen(shelf);
    if (shelf->n_place == 0 || shelf_find(shelf, &page->wanted))
        return false;
    link_page(shelf, page);
    shelf->n_page++;
    return true;
}

struct page *shelf_find(const struct shelf *shelf,
                        const struct page_wanted *wanted)
{
    struct page *page = shelf->n_place ? *place_of(shelf, wanted) : NULL;

    while (page && !is_same(&page->wanted, wanted))
        page = page->next_named;
    return page;
}

void shelf_take(struct shelf *shelf, struct page *page)
{
    struct page **at = place_of(shelf, &page->wanted);

    while (*at != page)
        at = &(*at)->next_named;
    *at = page->next_named;
    shelf->n_page--;
}

void shelf_release(struct shelf *shelf)
{
    free(shelf->place);
    *shelf = (struct shelf){0};
}
