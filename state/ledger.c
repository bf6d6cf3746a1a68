#include "state/ledger.h"

#include <stdlib.h>
#include <string.h>

void ledger_release(struct ledger *ledger)
{
    free(ledger->row);
    memset(ledger, 0, sizeof(*ledger));
}

static bool is_less(struct uid a, struct uid b)
{
    return a.hi != b.hi ? a.hi < b.hi : a.lo < b.lo;
}

/* The first row that is not below. */
static uint64_t seek(const struct ledger *ledger, struct uid log)
{
    uint64_t low = 0, high = ledger->n;

    while (low < high) {
        uint64_t middle = low + (high - low) / 2;

        if (is_less(ledger->row[middle].log, log))
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static bool is_at(const struct ledger *ledger, uint64_t i, struct uid log)
{
    return i < ledger->n && uid_equal(ledger->row[i].log, log);
}

/* Uids begin with their time, so that a new one is nearly the last. */
static enum status insert(struct ledger *ledger, uint64_t i, struct uid log)
{
    if (ledger->n == ledger->capacity) {
        uint64_t capacity = 2 * ledger->capacity + 64;
        struct ledger_row *row =
            realloc(ledger->row, capacity * sizeof(*ledger->row));

        if (!row)
            return status_fail(STATUS_RESOURCE_EXHAUSTED,
                               "no memory for a ledger of %lu logs", ledger->n);
        ledger->row = row;
        ledger->capacity = capacity;
    }
    memmove(&ledger->row[i + 1], &ledger->row[i],
            (ledger->n - i) * sizeof(*ledger->row));
    ledger->row[i] = (struct ledger_row){.log = log};
    ledger->n++;
    return STATUS_OK;
}

static void erase(struct ledger *ledger, uint64_t i)
{
    ledger->total -= ledger->row[i].bytes;
    ledger->n--;
    memmove(&ledger->row[i], &ledger->row[i + 1],
            (ledger->n - i) * sizeof(*ledger->row));
}

enum status ledger_set(struct ledger *ledger, struct uid log, size_t bytes)
{
    uint64_t i = seek(ledger, log);
    bool is_there = is_at(ledger, i, log);

    if (!is_there && bytes == 0)
        return STATUS_OK;
    if (!is_there) {
        enum status st = insert(ledger, i, log);
        if (st)
            return st;
    }
    if (bytes == 0) {
        erase(ledger, i);
        return STATUS_OK;
    }
    ledger->total += bytes - ledger->row[i].bytes;
    ledger->row[i].bytes = bytes;
    return STATUS_OK;
}

size_t ledger_get(const struct ledger *ledger, struct uid log)
{
    uint64_t i = seek(ledger, log);

    return is_at(ledger, i, log) ? ledger->row[i].bytes : 0;
}
