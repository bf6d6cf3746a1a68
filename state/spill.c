#include "state/spill.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct spill {
    int file;
    char *base; /* [n_slot][slot_bytes] mapped */
    size_t slot_bytes;
    uint64_t n_slot;
    uint64_t n_fresh; /* slots from here on were never taken */
    uint64_t n_free;
    uint32_t *free; /* [n_slot] the first n_free of them; owned */
};

static size_t page_bytes(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

enum status spill_create(const char *dir, size_t slot_bytes, uint64_t n_slot,
                         struct spill **out)
{
    const size_t page = page_bytes();
    struct spill *spill = calloc(1, sizeof(*spill));

    assert(slot_bytes && n_slot && n_slot <= UINT32_MAX);
    if (!spill)
        return status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for a tier");
    spill->slot_bytes = (slot_bytes + page - 1) / page * page;
    spill->n_slot = n_slot;
    spill->base = MAP_FAILED;
    spill->file = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (spill->file < 0) {
        const enum status st = status_fail(
            STATUS_INVALID_ARGUMENT, "no file in %s: %s", dir, strerror(errno));

        spill_destroy(spill);
        return st;
    }
    spill->free = malloc(n_slot * sizeof(*spill->free));
    if (spill->free &&
        ftruncate(spill->file, (off_t)(spill->slot_bytes * n_slot)) == 0)
        spill->base =
            mmap(NULL, spill->slot_bytes * n_slot, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_NORESERVE, spill->file, 0);
    if (spill->base == MAP_FAILED) {
        spill_destroy(spill);
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no room for %lu blocks of %zu bytes on disk",
                           n_slot, slot_bytes);
    }
    *out = spill;
    return STATUS_OK;
}

void spill_destroy(struct spill *spill)
{
    if (!spill)
        return;
    if (spill->base != MAP_FAILED)
        (void)munmap(spill->base, spill->slot_bytes * spill->n_slot);
    if (spill->file >= 0)
        (void)close(spill->file);
    free(spill->free);
    free(spill);
}

size_t spill_slot_bytes(const struct spill *spill)
{
    return spill->slot_bytes;
}

enum status spill_take(struct spill *spill, void **out)
{
    uint64_t slot;

    if (spill->n_free)
        slot = spill->free[--spill->n_free];
    else if (spill->n_fresh < spill->n_slot)
        slot = spill->n_fresh++;
    else
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "all %lu blocks on disk are taken", spill->n_slot);
    *out = spill->base + slot * spill->slot_bytes;
    return STATUS_OK;
}

static uint64_t number_of(const struct spill *spill, const void *slot)
{
    return (uint64_t)((const char *)slot - spill->base) / spill->slot_bytes;
}

void spill_put(struct spill *spill, void *slot)
{
    const uint64_t number = number_of(spill, slot);

    assert(number < spill->n_fresh && spill->n_free < spill->n_slot);
    /* Zeros again, and no disk; a file system without holes is written. */
    if (fallocate(spill->file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                  (off_t)(number * spill->slot_bytes),
                  (off_t)spill->slot_bytes))
        memset(slot, 0, spill->slot_bytes);
    spill->free[spill->n_free++] = (uint32_t)number;
}

void spill_release(struct spill *spill, void *const *slot, uint64_t n)
{
    for (uint64_t i = 0, end; i < n; i = end) {
        char *at = slot[i];

        end = i + 1;
        while (end < n &&
               (char *)slot[end] == at + (end - i) * spill->slot_bytes)
            end++;
        (void)madvise(at, (end - i) * spill->slot_bytes, MADV_DONTNEED);
    }
}
