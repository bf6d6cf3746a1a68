#include "state/pager.h"

#include "base/log.h"
#include "state/snapshot_parts.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define PAGER_THREAD_MAX 16u

struct pager {
    struct pager_options options;
    struct numerics numerics; /* without a policy */
    pthread_mutex_t lock;
    pthread_cond_t asked, done;
    struct page *first, *last; /* that wait to be read */
    bool is_stopping;
    uint32_t n_thread;
    pthread_t thread[PAGER_THREAD_MAX];
    _Atomic uint64_t n_read, n_hit;
    struct log_limit log;
};

/* ------------------------------------------------------------------- pages */

struct page *page_create(size_t n_bytes)
{
    struct page *page = calloc(1, sizeof(*page));
    const size_t rounded = (n_bytes + 63) / 64 * 64;

    if (page)
        page->bytes = aligned_alloc(64, rounded);
    if (!page || !page->bytes) {
        free(page);
        (void)status_fail(STATUS_RESOURCE_EXHAUSTED,
                          "no memory for a block of %zu bytes", n_bytes);
        return NULL;
    }
    memset(page->bytes, 0, rounded);
    page->n_bytes = n_bytes;
    return page;
}

static void page_free(struct page *page)
{
    free(page->bytes);
    free(page);
}

static void unlink_page(struct pager *pager, struct page *page)
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

void pager_give(struct pager *pager, struct page *page)
{
    if (page_look(page) != PAGE_READING) {
        page_free(page);
        return;
    }
    (void)pthread_mutex_lock(&pager->lock);
    if (page->is_queued) {
        unlink_page(pager, page);
        page_free(page);
    } else if (page_look(page) == PAGE_READING) {
        page->is_orphan = true;
    } else {
        page_free(page);
    }
    (void)pthread_mutex_unlock(&pager->lock);
}

void pager_ask(struct pager *pager, struct page *page,
               const struct page_wanted *wanted)
{
    assert(page_look(page) != PAGE_READING);
    page->wanted = *wanted;
    page->next = NULL;
    atomic_store(&page->state, PAGE_READING);
    atomic_fetch_add(&pager->n_read, 1);
    (void)pthread_mutex_lock(&pager->lock);
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

/* With the lock. */
static struct page *next_page(struct pager *pager)
{
    struct page *page;

    while (!pager->first && !pager->is_stopping)
        (void)pthread_cond_wait(&pager->asked, &pager->lock);
    page = pager->first;
    if (page) {
        pager->first = page->next;
        page->is_queued = false;
    }
    return page;
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
        if (page->is_orphan)
            page_free(page);
        else
            atomic_store_explicit(&page->state, state, memory_order_release);
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
    free(pager);
}
