#include "state/pager.h"

#include "base/log.h"
#include "state/shelf.h"
#include "state/snapshot_parts.h"

#include <assert.h>
#include <malloc.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define PAGER_THREAD_MAX 16u
/* The system gets free memory back when so much was given: threads that come by
 * pages in turn have a heap each, and what is free in one no other takes. */
#define TRIM_BYTES ((size_t)4 << 20)

struct pager {
    struct pager_options options;
    struct numerics numerics; /* without a policy */
    pthread_mutex_t lock;
    pthread_cond_t asked, done;
    struct page *first, *last; /* that wait to be read */
    struct shelf shelf;        /* those that have names */
    bool is_stopping;
    uint32_t n_thread;
    pthread_t thread[PAGER_THREAD_MAX];
    _Atomic uint64_t n_read, n_hit;
    _Atomic size_t bytes, shared_bytes; /* of pages */
    size_t given;                       /* bytes, since the last trim */
    struct log_limit log;
};

/* ------------------------------------------------------------------- pages */

static size_t rounded(size_t room)
{
    return (room + 63) / 64 * 64;
}

size_t page_size(size_t room)
{
    return rounded(room) + sizeof(struct page);
}

struct page *pager_page(struct pager *pager, size_t room)
{
    struct page *page = calloc(1, sizeof(*page));

    if (page)
        page->bytes = aligned_alloc(64, rounded(room));
    if (!page || !page->bytes) {
        free(page);
        (void)status_fail(STATUS_RESOURCE_EXHAUSTED,
                          "no memory for a block of %zu bytes", room);
        return NULL;
    }
    memset(page->bytes, 0, rounded(room));
    page->n_bytes = page->room = room;
    page->n_holder = 1;
    atomic_fetch_add(&pager->bytes, page_size(room));
    return page;
}

/* With the lock. A trim is due when that is much. */
static void count_given(struct pager *pager, size_t bytes)
{
    pager->given += bytes;
    if (pager->given >= TRIM_BYTES)
        (void)pthread_cond_signal(&pager->asked);
}

/* With the lock. */
static void page_free(struct pager *pager, struct page *page)
{
    const size_t bytes = page_size(page->room);

    count_given(pager, bytes);
    atomic_fetch_sub(&pager->bytes, bytes);
    if (page_is_shared(page))
        atomic_fetch_sub(&pager->shared_bytes, bytes);
    free(page->bytes);
    free(page);
}

static void unqueue(struct pager *pager, struct page *page)
{
    struct page **at = &pager->first, *before = NULL;

    while (*at != page) {
        before = *at;
        at = &before->next;
    }
    *at = page->next;
    if (pager->last == page)
        pager->last = before;
}

static void forget_name(struct pager *pager, struct page *page)
{
    if (page->is_named)
        shelf_take(&pager->shelf, page);
    page->is_named = false;
}

void pager_give(struct pager *pager, struct page *page)
{
    (void)pthread_mutex_lock(&pager->lock);
    if (--page->n_holder == 0) {
        forget_name(pager, page);
        if (page->is_queued) {
            unqueue(pager, page);
            page_free(pager, page);
        } else if (page_look(page) != PAGE_READING) {
            page_free(pager, page);
        } /* else whoever reads it frees it */
    }
    (void)pthread_mutex_unlock(&pager->lock);
}

void pager_freed(struct pager *pager, size_t n_bytes)
{
    (void)pthread_mutex_lock(&pager->lock);
    count_given(pager, n_bytes);
    (void)pthread_mutex_unlock(&pager->lock);
}

bool pager_reuse(struct pager *pager, struct page *page)
{
    bool is_alone;

    (void)pthread_mutex_lock(&pager->lock);
    is_alone = page->n_holder == 1 && page_look(page) != PAGE_READING;
    if (is_alone) {
        forget_name(pager, page);
        if (atomic_exchange(&page->is_shared, false))
            atomic_fetch_sub(&pager->shared_bytes, page_size(page->room));
        atomic_store(&page->state, PAGE_THERE);
    }
    (void)pthread_mutex_unlock(&pager->lock);
    return is_alone;
}

struct page *pager_find(struct pager *pager, const struct page_wanted *wanted)
{
    struct page *page;

    (void)pthread_mutex_lock(&pager->lock);
    page = shelf_find(&pager->shelf, wanted);
    if (page) {
        page->n_holder++;
        if (!atomic_exchange(&page->is_shared, true))
            atomic_fetch_add(&pager->shared_bytes, page_size(page->room));
    }
    (void)pthread_mutex_unlock(&pager->lock);
    return page;
}

/* Two may come by the same block apart from each other; one of them is found
 * then. */
static void set_name(struct pager *pager, struct page *page,
                     const struct page_wanted *wanted)
{
    assert(!page->is_named && page->n_holder == 1);
    page->wanted = *wanted;
    page->is_named = shelf_put(&pager->shelf, page);
}

void pager_name(struct pager *pager, struct page *page,
                const struct page_wanted *wanted)
{
    (void)pthread_mutex_lock(&pager->lock);
    set_name(pager, page, wanted);
    (void)pthread_mutex_unlock(&pager->lock);
}

void pager_ask(struct pager *pager, struct page *page,
               const struct page_wanted *wanted)
{
    assert(page_look(page) != PAGE_READING);
    page->next = NULL;
    atomic_store(&page->state, PAGE_READING);
    atomic_fetch_add(&pager->n_read, 1);
    (void)pthread_mutex_lock(&pager->lock);
    set_name(pager, page, wanted);
    page->is_queued = true;
    if (pager->first)
        pager->last->next = page;
    else
        pager->first = page;
    pager->last = page;
    (void)pthread_cond_signal(&pager->asked);
    (void)pthread_mutex_unlock(&pager->lock);
}

void pager_wait(struct pager *pager, const struct page *page)
{
    (void)pthread_mutex_lock(&pager->lock);
    while (page_look(page) == PAGE_READING)
        (void)pthread_cond_wait(&pager->done, &pager->lock);
    (void)pthread_mutex_unlock(&pager->lock);
}

uint64_t pager_n_read(const struct pager *pager)
{
    return atomic_load(&pager->n_read);
}

void pager_count_hits(struct pager *pager, uint64_t n)
{
    atomic_fetch_add(&pager->n_hit, n);
}

uint64_t pager_n_hit(const struct pager *pager)
{
    return atomic_load(&pager->n_hit);
}

void pager_count(struct pager *pager, size_t n_bytes)
{
    atomic_fetch_add(&pager->shared_bytes, n_bytes);
}

void pager_uncount(struct pager *pager, size_t n_bytes)
{
    atomic_fetch_sub(&pager->shared_bytes, n_bytes);
}

size_t pager_bytes(const struct pager *pager)
{
    return atomic_load(&pager->bytes);
}

size_t pager_shared_bytes(const struct pager *pager)
{
    return atomic_load(&pager->shared_bytes);
}

/* ------------------------------------------------------------------- reads */

/*
 * Its digest and what it says of itself; the chain of its tokens was checked
 * when the session was loaded, and a log is never written over.
 */
static enum status check(const struct pager *pager, const struct page *page,
                         const void *bytes, size_t n_bytes)
{
    const struct page_wanted *wanted = &page->wanted;
    struct value_head head;
    const void *data;
    size_t data_bytes;
    enum status st =
        value_get(bytes, n_bytes, FRAME_BLOCK, &head, &data, &data_bytes);

    if (st)
        return st;
    if (!numerics_equal(head.numerics, pager->numerics) ||
        !digest_equal(head.numerics.policy, wanted->policy) ||
        !uid_equal(head.uid, wanted->log) || head.place != wanted->block ||
        head.layer != wanted->layer || head.n_token != KV_BLOCK ||
        data_bytes != page->n_bytes)
        return status_fail(STATUS_DATA_LOSS, "it is another block");
    memcpy(page->bytes, data, data_bytes);
    return STATUS_OK;
}

static enum page_state read_page(struct pager *pager, struct page *page)
{
    const struct page_wanted *wanted = &page->wanted;
    struct key key = value_key('b', wanted->log, wanted->block, wanted->layer);
    void *bytes;
    size_t n_bytes;
    enum status st =
        store_get(pager->options.store, key.bytes, key.n, &bytes, &n_bytes);

    if (!st) {
        st = check(pager, page, bytes, n_bytes);
        free(bytes);
    }
    if (!st)
        return PAGE_THERE;
    memset(page->bytes, 0, page->n_bytes);
    log_limited(&pager->log, LOG_WARN, "state", "",
                "block %lu of layer %u is not read, its session is computed "
                "again: %s",
                wanted->block, wanted->layer, status_reason());
    return PAGE_LOST;
}

/* With the lock, but not meanwhile. */
static void trim(struct pager *pager)
{
    pager->given = 0;
    (void)pthread_mutex_unlock(&pager->lock);
    (void)malloc_trim(0);
    (void)pthread_mutex_lock(&pager->lock);
}

/* With the lock. */
static struct page *next_page(struct pager *pager)
{
    struct page *page;

    while (!pager->first && !pager->is_stopping)
        if (pager->given >= TRIM_BYTES)
            trim(pager);
        else
            (void)pthread_cond_wait(&pager->asked, &pager->lock);
    page = pager->first;
    if (page) {
        pager->first = page->next;
        page->is_queued = false;
    }
    return page;
}

/* With the lock. Who finds none asks again, as the store may be whole then. */
static void put_read(struct pager *pager, struct page *page,
                     enum page_state state)
{
    if (page->n_holder == 0) {
        page_free(pager, page);
        return;
    }
    if (state == PAGE_LOST)
        forget_name(pager, page);
    atomic_store_explicit(&page->state, state, memory_order_release);
}

static void *run(void *arg)
{
    struct pager *pager = arg;
    struct page *page;

    (void)pthread_mutex_lock(&pager->lock);
    while ((page = next_page(pager))) {
        enum page_state state;

        (void)pthread_mutex_unlock(&pager->lock);
        state = read_page(pager, page);
        (void)pthread_mutex_lock(&pager->lock);
        put_read(pager, page, state);
        (void)pthread_cond_broadcast(&pager->done);
        ring_kick(pager->options.engine);
    }
    (void)pthread_mutex_unlock(&pager->lock);
    return NULL;
}

enum status pager_start(const struct pager_options *options, struct pager **out)
{
    struct pager *pager = calloc(1, sizeof(*pager));
    const char *numerics = model_numerics(options->model);

    if (!pager)
        return status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for a pager");
    assert(options->n_thread && options->n_thread <= PAGER_THREAD_MAX);
    pager->options = *options;
    pager->numerics.fingerprint = model_fingerprint(options->model);
    pager->numerics.id = digest_bytes(numerics, strlen(numerics));
    (void)pthread_mutex_init(&pager->lock, NULL);
    (void)pthread_cond_init(&pager->asked, NULL);
    (void)pthread_cond_init(&pager->done, NULL);
    for (uint32_t i = 0; i < options->n_thread; i++) {
        if (pthread_create(&pager->thread[i], NULL, run, pager) != 0) {
            pager_stop(pager);
            return status_fail(STATUS_RESOURCE_EXHAUSTED,
                               "no thread to read blocks");
        }
        (void)pthread_setname_np(pager->thread[i], "pager");
        pager->n_thread++;
    }
    *out = pager;
    return STATUS_OK;
}

void pager_stop(struct pager *pager)
{
    if (!pager)
        return;
    (void)pthread_mutex_lock(&pager->lock);
    pager->is_stopping = true;
    (void)pthread_cond_broadcast(&pager->asked);
    (void)pthread_mutex_unlock(&pager->lock);
    for (uint32_t i = 0; i < pager->n_thread; i++)
        (void)pthread_join(pager->thread[i], NULL);
    (void)pthread_cond_destroy(&pager->asked);
    (void)pthread_cond_destroy(&pager->done);
    (void)pthread_mutex_destroy(&pager->lock);
    shelf_release(&pager->shelf);
    free(pager);
}
