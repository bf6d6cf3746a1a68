#include "state/paging_parts.h"

#include "model/view.h"
#include "state/snapshot_value.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------- life */

static enum status no_memory(void)
{
    return status_fail(STATUS_RESOURCE_EXHAUSTED,
                       "no memory for the blocks of a session");
}

static void *hold(struct block_source *source, uint32_t layer, uint64_t block);
static bool is_ready(struct block_source *source, uint32_t layer);
static void wait_for(struct block_source *source, uint32_t layer);
static void release(struct block_source *source, uint32_t layer);

enum status paging_create(const struct model *model,
                          const struct policy *policy, struct pager *pager,
                          size_t max_bytes, struct paging **out)
{
    const uint32_t n_layer = model_config(model)->n_layer;
    const struct extent_of_blocks it = paging_measure(model, policy);
    struct paging *paging =
        calloc(1, sizeof(*paging) + n_layer * sizeof(paging->layer[0]));

    if (!paging)
        return no_memory();
    assert(max_bytes >= paging_least(model, policy));
    paging->source = (struct block_source){hold, is_ready, wait_for, release};
    paging->model = model;
    paging->policy = *policy;
    paging->policy_digest = policy_digest(policy);
    paging->pager = pager;
    paging->page_room = it.room;
    paging->n_paged = it.n_paged;
    paging->max_page = it.n_paged ? (uint32_t)(max_bytes / it.page_bytes) : 0;
    paging->n_page = paging->max_page;
    paging->n_layer = n_layer;
    paging->seat = calloc(paging->max_page + 1, sizeof(*paging->seat));
    paging->seen = calloc(paging_n_seen(policy) + 1, sizeof(*paging->seen));
    for (uint32_t i = 0; i < n_layer; i++) {
        struct paged_layer *layer = &paging->layer[i];

        layer->plan = model_plan_for(model, i, policy->index);
        if (layer->plan->block_bytes)
            layer->held = calloc(paging->max_page + 1, sizeof(*layer->held));
        if (layer->plan->block_bytes && !layer->held) {
            paging_destroy(paging);
            return no_memory();
        }
    }
    if (!paging->seat || !paging->seen) {
        paging_destroy(paging);
        return no_memory();
    }
    *out = paging;
    return STATUS_OK;
}

static size_t run_bytes(const struct paging *paging,
                        const struct paged_layer *layer)
{
    return (sizeof(struct index_run) +
            INDEX_RUN * paging_index_bytes(layer->plan, &paging->policy) + 63) /
           64 * 64;
}

/* How many bytes are free by that. */
static size_t let_run_go(struct paging *paging, const struct paged_layer *layer,
                         struct index_run *run)
{
    const size_t bytes = run_bytes(paging, layer);

    if (!run || --run->n_holder > 0)
        return 0;
    if (run->is_shared)
        pager_uncount(paging->pager, bytes);
    free(run);
    return bytes;
}

void paging_clear(struct paging *paging)
{
    size_t n_freed = 0;

    paging->shared_runs = 0;
    for (uint32_t i = 0; i < paging->n_layer; i++) {
        struct paged_layer *layer = &paging->layer[i];

        for (uint64_t r = 0; layer->run && r < paging_n_run(paging->capacity);
             r++)
            n_freed += let_run_go(paging, layer, layer->run[r]);
        free(layer->block);
        free(layer->index);
        free(layer->place);
        free(layer->run);
        layer->block = layer->index = NULL;
        layer->place = NULL;
        layer->run = NULL;
        layer->n_held = 0;
        layer->use = (struct paging_use){0};
    }
    while (paging->n_seat > 0) {
        struct seat *seat = &paging->seat[--paging->n_seat];

        if (seat->page)
            pager_give(paging->pager, seat->page);
        *seat = (struct seat){0};
    }
    /* Last: the pager may have the system take back what is free by then. */
    pager_freed(paging->pager, n_freed);
    paging->n_shared = 0;
    paging->hand = 0;
    paging->n_block = paging->capacity = paging->n_stored = 0;
    paging->base = (struct log_path){0};
}

void paging_destroy(struct paging *paging)
{
    if (!paging)
        return;
    paging_clear(paging);
    for (uint32_t i = 0; i < paging->n_layer; i++)
        free(paging->layer[i].held);
    free(paging->seat);
    free(paging->seen);
    free(paging);
}

/* ------------------------------------------------------------------ tables */

static bool widen(void *table, size_t element, uint64_t from, uint64_t to)
{
    void **at = table;
    char *wide = realloc(*at, to * element);

    if (!wide)
        return false;
    memset(wide + from * element, 0, (to - from) * element);
    *at = wide;
    return true;
}

static enum status widen_tables(struct paging *paging, uint64_t n_block)
{
    const uint64_t from = paging->capacity, to = paging_capacity(n_block);

    if (n_block <= from)
        return STATUS_OK;
    for (uint32_t i = 0; i < paging->n_layer; i++) {
        struct paged_layer *l = &paging->layer[i];

        if (l->plan->block_bytes == 0)
            continue;
        if (!widen(&l->block, sizeof(*l->block), from, to) ||
            !widen(&l->index, sizeof(*l->index), from, to) ||
            !widen(&l->place, sizeof(*l->place), from, to) ||
            !widen(&l->run, sizeof(*l->run), paging_n_run(from),
                   paging_n_run(to)))
            return no_memory();
    }
    paging->capacity = to;
    return STATUS_OK;
}

/* Where its index is; of a run that is there by now. */
static enum status set_index(const struct paging *paging,
                             struct paged_layer *layer, uint64_t block)
{
    const size_t n = paging_index_bytes(layer->plan, &paging->policy);
    struct index_run **run = &layer->run[block / INDEX_RUN];

    if (n == 0)
        return STATUS_OK;
    if (!*run) {
        *run = aligned_alloc(64, run_bytes(paging, layer));
        if (!*run)
            return no_memory();
        memset(*run, 0, run_bytes(paging, layer));
        (*run)->n_holder = 1;
    }
    layer->index[block] = (*run)->at + block % INDEX_RUN * n;
    return STATUS_OK;
}

/* ------------------------------------------------------------------- pages */

/* Whoever had the seat finds its block in the store. */
static bool may_leave(const struct paging *paging, struct seat *seat)
{
    struct place *place = &paging->layer[seat->layer].place[seat->block];

    if (place->is_held || seat->block >= paging->n_stored ||
        page_look(seat->page) == PAGE_READING)
        return false;
    if (place->is_used) {
        place->is_used = false;
        return false;
    }
    return true;
}

/* By the clock: whoever was not used for a turn of its hand goes. */
static struct seat *find_seat(struct paging *paging)
{
    if (paging->n_seat < paging->n_page)
        return &paging->seat[paging->n_seat++];
    for (uint32_t i = 0; i < 2 * paging->n_seat; i++) {
        struct seat *seat = &paging->seat[paging->hand];

        paging->hand = (paging->hand + 1) % paging->n_seat;
        if (!seat->is_taken || may_leave(paging, seat))
            return seat;
    }
    (void)status_fail(STATUS_RESOURCE_EXHAUSTED,
                      "all %u pages of a session are in use", paging->n_page);
    return NULL;
}

/* Its page stays with it, but for the next block. */
static void empty_seat(struct paging *paging, struct seat *seat)
{
    if (seat->is_taken) {
        struct paged_layer *was = &paging->layer[seat->layer];

        was->place[seat->block].page = NULL;
        was->block[seat->block] = NULL;
    }
    paging->n_shared -= seat->is_shared;
    *seat = (struct seat){.page = seat->page};
}

/* `page` instead of the one that it has, if any. */
static void seat_page(struct paging *paging, struct seat *seat,
                      struct page *page)
{
    if (seat->page)
        pager_give(paging->pager, seat->page);
    seat->page = page;
}

/* A nameless page in which anything may be. */
static struct page *blank_page(struct paging *paging, struct seat *seat)
{
    if (!seat->page || !pager_reuse(paging->pager, seat->page))
        seat_page(paging, seat, pager_page(paging->pager, paging->page_room));
    return seat->page;
}

static void sit(struct paging *paging, struct seat *seat, uint32_t layer,
                uint64_t block)
{
    struct paged_layer *it = &paging->layer[layer];

    seat->is_taken = true;
    seat->is_shared = page_is_shared(seat->page);
    paging->n_shared += seat->is_shared;
    seat->layer = layer;
    seat->block = block;
    it->place[block].is_fresh = false;
    it->place[block].page = seat->page;
    it->block[block] = seat->page->bytes;
}

/* `found` for this block, or a page of its own in which anything may be. */
static struct seat *take_seat(struct paging *paging, uint32_t layer,
                              uint64_t block, struct page *found)
{
    struct seat *seat = find_seat(paging);

    if (seat)
        empty_seat(paging, seat);
    if (seat && found)
        seat_page(paging, seat, found);
    else if (found)
        pager_give(paging->pager, found);
    if (!seat || !(found || blank_page(paging, seat)))
        return NULL;
    if (!found)
        seat->page->n_bytes = paging->layer[layer].plan->block_bytes;
    sit(paging, seat, layer, block);
    return seat;
}

static struct page *take_page(struct paging *paging, uint32_t layer,
                              uint64_t block)
{
    const struct seat *seat = take_seat(paging, layer, block, NULL);

    return seat ? seat->page : NULL;
}

static struct uid log_of(const struct paging *paging, uint64_t block)
{
    for (uint32_t i = 0; i < paging->base.n; i++)
        if (block * KV_BLOCK < paging->base.piece[i].end)
            return paging->base.piece[i].log;
    return paging->own;
}

static struct page_wanted name_of(const struct paging *paging, uint32_t layer,
                                  uint64_t block)
{
    return (struct page_wanted){.log = log_of(paging, block),
                                .block = block,
                                .layer = layer,
                                .policy = paging->policy_digest};
}

/* The page of this stored block that somebody has, or one into which it is
 * being read. */
static bool fetch_page(struct paging *paging, uint32_t layer, uint64_t block)
{
    const struct page_wanted name = name_of(paging, layer, block);
    struct paged_layer *it = &paging->layer[layer];
    struct page *found = pager_find(paging->pager, &name);
    struct seat *seat = take_seat(paging, layer, block, found);

    if (!seat)
        return false;
    seat->is_known = true;
    if (found)
        return true;
    pager_ask(paging->pager, seat->page, &name);
    it->use.n_fetched++;
    it->place[block].is_fresh = true;
    return true;
}

/* What is stored of what is in RAM can be found there by others, and is let go
 * where others have it already. What a step holds it may be reading. */
static void make_known(struct paging *paging, struct seat *seat)
{
    const struct page_wanted name = name_of(paging, seat->layer, seat->block);
    struct page *found = pager_find(paging->pager, &name);

    seat->is_known = true;
    if (!found) {
        pager_name(paging->pager, seat->page, &name);
    } else if (page_look(found) == PAGE_THERE &&
               !paging->layer[seat->layer].place[seat->block].is_held) {
        const uint32_t layer = seat->layer;
        const uint64_t block = seat->block;

        empty_seat(paging, seat);
        seat_page(paging, seat, found);
        sit(paging, seat, layer, block);
        seat->is_known = true;
    } else {
        pager_give(paging->pager, found);
    }
}

/* One more, in RAM in all layers. What fails half-way is tried again. */
static enum status add_block(struct paging *paging)
{
    const uint64_t b = paging->n_block;

    for (uint32_t i = 0; i < paging->n_layer; i++) {
        struct paged_layer *layer = &paging->layer[i];
        struct page *page;
        enum status st;

        if (layer->plan->block_bytes == 0)
            continue;
        st = set_index(paging, layer, b);
        if (st)
            return st;
        page = layer->place[b].page ? layer->place[b].page
                                    : take_page(paging, i, b);
        if (!page)
            return STATUS_RESOURCE_EXHAUSTED;
        memset(page->bytes, 0, page->n_bytes);
        layer->place[b].is_used = true;
    }
    paging->n_block++;
    return STATUS_OK;
}

enum status paging_reserve(struct paging *paging, uint64_t n_block)
{
    enum status st = widen_tables(paging, n_block);

    while (!st && paging->n_block < n_block)
        st = add_block(paging);
    return st;
}

uint64_t paging_room(const struct paging *paging)
{
    const uint64_t in_use =
        paging_n_seen(&paging->policy) + paging->n_block - paging->n_stored;
    const uint64_t n =
        paging->n_paged ? paging->n_page / paging->n_paged : UINT32_MAX;

    return n > in_use ? n - in_use : 0;
}

void paging_limit(struct paging *paging, uint64_t n_block)
{
    uint64_t n_new =
        n_block > paging->n_stored ? n_block - paging->n_stored : 0;
    uint64_t n;

    n_new = n_new < paging->max_page ? n_new : paging->max_page;
    n = paging->n_paged *
        (paging_n_seen(&paging->policy) + BLOCKS_AHEAD + n_new);
    paging->n_page = n < paging->max_page ? (uint32_t)n : paging->max_page;
    if (paging->n_page < paging->n_seat)
        paging->n_page = paging->n_seat;
}

uint64_t paging_n_block(const struct paging *paging)
{
    return paging->n_block;
}

void **paging_blocks(const struct paging *paging, uint32_t layer)
{
    return paging->layer[layer].block;
}

void **paging_indices(const struct paging *paging, uint32_t layer)
{
    return paging->layer[layer].index;
}

bool paging_is_short(const struct paging *paging, uint32_t layer)
{
    const struct mixer_plan *plan = paging->layer[layer].plan;

    return paging_index_bytes(plan, &paging->policy) < plan->index_bytes;
}

/* -------------------------------------------------------- what is stored */

enum status paging_expect(struct paging *paging, uint64_t n_block)
{
    enum status st = widen_tables(paging, n_block);

    assert(paging->n_block == 0);
    for (uint32_t i = 0; i < paging->n_layer; i++)
        for (uint64_t b = 0;
             !st && paging->layer[i].plan->block_bytes && b < n_block; b++)
            st = set_index(paging, &paging->layer[i], b);
    if (!st)
        paging->n_block = n_block;
    if (!st && !paging->adopts)
        paging->n_stored = n_block;
    return st;
}

/* Is it not in the store, or does any step from the end on see it? */
static bool is_near(const struct paging *paging, uint64_t block)
{
    return block >= paging->n_stored || block < paging->policy.n_sink ||
           block + policy_kept(&paging->policy) + 1 >=
               paging->n_stored + paging->policy.n_sink;
}

enum status paging_put(struct paging *paging, uint32_t layer, uint64_t block,
                       const void *bytes)
{
    struct paged_layer *it = &paging->layer[layer];
    const size_t n = it->plan->block_bytes, n_index = it->plan->index_bytes;
    const void *index = (const char *)bytes + n - n_index;

    assert(block < paging->n_block);
    if (paging_is_short(paging, layer))
        view_shorten(it->plan, index, it->index[block]);
    else if (n_index)
        memcpy(it->index[block], index, n_index);
    if (!is_near(paging, block))
        return STATUS_OK;
    if (!it->place[block].page && !take_page(paging, layer, block))
        return STATUS_RESOURCE_EXHAUSTED;
    memcpy(it->place[block].page->bytes, bytes, n);
    return STATUS_OK;
}

void paging_adopt(struct paging *paging)
{
    paging->adopts = true;
}

void paging_loaded(struct paging *paging, uint64_t n_block,
                   const struct log_path *base, struct uid own)
{
    if (!paging->adopts)
        paging_stored(paging, n_block, base, own);
    paging->adopts = false;
}

void paging_stored(struct paging *paging, uint64_t n_block,
                   const struct log_path *base, struct uid own)
{
    paging->base = *base;
    paging->own = own;
    if (n_block > paging->n_stored)
        paging->n_stored = n_block;
    for (uint32_t i = 0; i < paging->n_seat; i++) {
        struct seat *seat = &paging->seat[i];

        if (seat->is_taken && !seat->is_known &&
            seat->block < paging->n_stored && !paging->is_lost)
            make_known(paging, seat);
    }
}

const struct log_path *paging_base(const struct paging *paging)
{
    return &paging->base;
}

uint64_t paging_n_stored(const struct paging *paging)
{
    return paging->n_stored;
}

void paging_lose(struct paging *paging)
{
    paging->is_lost = true;
}

bool paging_is_lost(const struct paging *paging)
{
    return paging->is_lost;
}

/* ------------------------------------------------------------------- forks */

static void share_run(struct paging *paging, struct paging *from,
                      uint32_t layer, uint64_t r)
{
    const size_t bytes = run_bytes(from, &from->layer[layer]);
    struct index_run *run = from->layer[layer].run[r];

    if (!run)
        return;
    if (!run->is_shared) {
        pager_count(from->pager, bytes);
        from->shared_runs += bytes;
    }
    run->is_shared = true;
    run->n_holder++;
    paging->layer[layer].run[r] = run;
    paging->shared_runs += bytes;
}

/* Those of the last run may become more. */
static enum status take_indices(struct paging *paging, struct paging *from,
                                uint32_t layer)
{
    struct paged_layer *it = &paging->layer[layer];
    const size_t n = paging_index_bytes(it->plan, &paging->policy);
    enum status st = STATUS_OK;

    for (uint64_t r = 0; r < from->n_stored / INDEX_RUN; r++)
        share_run(paging, from, layer, r);
    for (uint64_t b = 0; !st && n && b < from->n_stored; b++) {
        st = set_index(paging, it, b);
        if (!st && b >= from->n_stored / INDEX_RUN * INDEX_RUN)
            memcpy(it->index[b], from->layer[layer].index[b], n);
    }
    return st;
}

/* The block that is not full. */
static enum status copy_open(struct paging *paging, const struct paging *from)
{
    const uint64_t b = from->n_stored;
    enum status st = paging_reserve(paging, from->n_block);

    for (uint32_t i = 0; !st && b < from->n_block && i < from->n_layer; i++)
        if (from->layer[i].plan->block_bytes)
            memcpy(paging->layer[i].block[b], from->layer[i].block[b],
                   from->layer[i].plan->block_bytes);
    return st;
}

bool paging_may_fork(const struct paging *paging)
{
    return !paging->is_lost && paging->n_block <= paging->n_stored + 1;
}

enum status paging_fork(struct paging *from, struct paging **out)
{
    struct paging *paging;
    enum status st =
        paging_create(from->model, &from->policy, from->pager,
                      from->max_page * page_size(from->page_room), &paging);

    if (st)
        return st;
    assert(paging_may_fork(from));
    st = widen_tables(paging, from->n_block);
    for (uint32_t i = 0; !st && i < from->n_layer; i++)
        if (from->layer[i].plan->block_bytes)
            st = take_indices(paging, from, i);
    paging->n_block = paging->n_stored = from->n_stored;
    paging->base = from->base;
    if (log_pieces_end(&paging->base) < from->n_stored * KV_BLOCK)
        log_pieces_add(&paging->base, from->own, from->n_stored * KV_BLOCK);
    if (!st)
        st = copy_open(paging, from);
    if (st) {
        paging_destroy(paging);
        return st;
    }
    *out = paging;
    return STATUS_OK;
}

/* ------------------------------------------------------------------ source */

static struct paging *paging_of(struct block_source *source)
{
    return (struct paging *)(void *)source;
}

static void *hold(struct block_source *source, uint32_t layer, uint64_t block)
{
    struct paging *paging = paging_of(source);
    struct paged_layer *it = &paging->layer[layer];
    struct place *place = &it->place[block];

    assert(block < paging->n_block);
    if (!place->page && !fetch_page(paging, layer, block))
        return NULL;
    if (!place->is_held)
        it->held[it->n_held++] = block;
    place->is_held = place->is_used = true;
    return place->page->bytes;
}

static bool is_ready(struct block_source *source, uint32_t layer)
{
    struct paging *paging = paging_of(source);
    struct paged_layer *it = &paging->layer[layer];
    bool is_all = true;

    for (uint32_t i = 0; i < it->n_held; i++) {
        const enum page_state state = page_look(it->place[it->held[i]].page);

        is_all &= state != PAGE_READING;
        paging->is_lost |= state == PAGE_LOST;
    }
    return is_all;
}

static void wait_for(struct block_source *source, uint32_t layer)
{
    struct paging *paging = paging_of(source);
    struct paged_layer *it = &paging->layer[layer];

    for (uint32_t i = 0; i < it->n_held; i++)
        pager_wait(paging->pager, it->place[it->held[i]].page);
}

static void let_go(struct paged_layer *it)
{
    for (uint32_t i = 0; i < it->n_held; i++)
        it->place[it->held[i]].is_held = false;
    it->n_held = 0;
}

/* A step is done with what it held. */
static void release(struct block_source *source, uint32_t layer)
{
    struct paging *paging = paging_of(source);
    struct paged_layer *it = &paging->layer[layer];
    uint64_t n_hit = 0;

    for (uint32_t i = 0; i < it->n_held; i++) {
        struct place *place = &it->place[it->held[i]];

        n_hit += !place->is_fresh;
        place->is_fresh = false;
    }
    it->use.n_step += it->n_held > 0;
    it->use.n_hit += n_hit;
    pager_count_hits(paging->pager, n_hit);
    let_go(it);
}

bool paging_trim(struct paging *paging)
{
    const uint32_t n_seat = paging->n_seat;

    for (uint32_t i = 0; i < paging->n_layer; i++)
        let_go(&paging->layer[i]);
    paging->n_seat = paging->hand = 0;
    for (uint32_t i = 0; i < n_seat; i++) {
        struct seat *seat = &paging->seat[i];

        if (seat->is_taken && (seat->block >= paging->n_stored ||
                               page_look(seat->page) == PAGE_READING)) {
            paging->seat[paging->n_seat++] = *seat;
            continue;
        }
        empty_seat(paging, seat);
        if (seat->page)
            pager_give(paging->pager, seat->page);
    }
    memset(paging->seat + paging->n_seat, 0,
           (n_seat - paging->n_seat) * sizeof(*paging->seat));
    return paging->n_seat < n_seat;
}

/* What a row at `position` sees; its own block may not be there yet. */
static bool hold_step(struct paging *paging, uint32_t layer, const void *state,
                      uint64_t position)
{
    const uint32_t *pick = view_pick(paging->layer[layer].plan, state);
    const uint32_t n =
        policy_see(&paging->policy, position / KV_BLOCK, pick ? pick + 1 : NULL,
                   pick ? pick[0] : 0, paging->seen);

    for (uint32_t i = 0; i < n; i++)
        if (paging->seen[i].block < paging->n_block &&
            !hold(&paging->source, layer, paging->seen[i].block))
            return false;
    return true;
}

bool paging_ready(struct paging *paging, const struct layer_memory *layer,
                  uint64_t position)
{
    bool is_all = true;

    for (uint32_t i = 0; i < paging->n_layer; i++) {
        if (paging->layer[i].plan->block_bytes == 0)
            continue;
        /* What was held for a step before it is not wanted any more. */
        let_go(&paging->layer[i]);
        is_all &= hold_step(paging, i, layer[i].state, position) &&
                  is_ready(&paging->source, i);
    }
    return is_all;
}

struct block_source *paging_source(struct paging *paging)
{
    return &paging->source;
}

size_t paging_in_ram(const struct paging *paging, uint32_t layer)
{
    size_t n = 0;

    for (uint32_t i = 0; i < paging->n_seat; i++)
        if (paging->seat[i].is_taken && paging->seat[i].layer == layer)
            n += paging->seat[i].page->n_bytes;
    return n;
}

struct paging_use paging_use(const struct paging *paging, uint32_t layer)
{
    return paging->layer[layer].use;
}
