/*
 * Merging as in Hugging Face: of all neighbours the pair of lowest rank, the
 * leftmost among equals, again and again. Short pieces (nearly all) scan an
 * array for it; long ones keep a heap, so that a hostile piece of n bytes
 * costs O(n log n). A heap entry holds rank and position alone: a rank names
 * one pair, so an entry is stale when the pair at its position has another.
 */
#include "model/tokenizer_parts.h"

#include <stdlib.h>
#include <string.h>

#define SHORT_MAX 40u      /* bytes; longer pieces use the heap */
#define NOWHERE UINT32_MAX /* no neighbour */
#define KEY_NONE UINT64_MAX

static uint32_t hash_key(uint64_t key)
{
    key ^= key >> 31;
    key *= 0x9e3779b97f4a7c15u;
    return (uint32_t)(key >> 32);
}

static uint64_t pair_key(uint32_t left, uint32_t right)
{
    return (uint64_t)left << 32 | right;
}

const struct pair_slot *pair_map_find(const struct pair_map *map, uint64_t key)
{
    uint32_t i;

    if (!map->capacity)
        return NULL;
    for (i = hash_key(key) & (map->capacity - 1); map->slot[i].key != KEY_NONE;
         i = (i + 1) & (map->capacity - 1))
        if (map->slot[i].key == key)
            return &map->slot[i];
    return NULL;
}

static void put(struct pair_map *map, struct pair_slot value)
{
    uint32_t i = hash_key(value.key) & (map->capacity - 1);

    while (map->slot[i].key != KEY_NONE && map->slot[i].key != value.key)
        i = (i + 1) & (map->capacity - 1);
    map->n += map->slot[i].key == KEY_NONE;
    map->slot[i] = value;
}

enum status pair_map_put(struct pair_map *map, uint64_t key, uint32_t first,
                         uint32_t second)
{
    if (2 * (map->n + 1) > map->capacity) {
        struct pair_map grown = {.capacity =
                                     map->capacity ? 2 * map->capacity : 64};

        grown.slot = malloc(grown.capacity * sizeof(*grown.slot));
        if (!grown.slot)
            return status_fail(STATUS_RESOURCE_EXHAUSTED,
                               "no memory for a table of %u pairs",
                               grown.capacity);
        memset(grown.slot, 0xff, grown.capacity * sizeof(*grown.slot));
        for (uint32_t i = 0; i < map->capacity; i++)
            if (map->slot[i].key != KEY_NONE)
                put(&grown, map->slot[i]);
        free(map->slot);
        *map = grown;
    }
    put(map, (struct pair_slot){key, first, second});
    return STATUS_OK;
}

void pair_map_release(struct pair_map *map)
{
    free(map->slot);
    *map = (struct pair_map){0};
}

enum status ids_append(struct ids *ids, const uint32_t *id, size_t n,
                       size_t max_token)
{
    if (ids->n > max_token || n > max_token - ids->n)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "text has more than %zu tokens, limit %zu",
                           max_token, max_token);
    if (n > ids->capacity - ids->n) {
        const size_t capacity = 2 * ids->capacity + n + 32;
        uint32_t *grown = realloc(ids->id, capacity * sizeof(*grown));

        if (!grown)
            return status_fail(STATUS_RESOURCE_EXHAUSTED,
                               "no memory for %zu tokens", capacity);
        ids->id = grown;
        ids->capacity = capacity;
    }
    memcpy(ids->id + ids->n, id, n * sizeof(*id));
    ids->n += n;
    return STATUS_OK;
}

void bpe_release(struct bpe *bpe)
{
    free(bpe->id);
    free(bpe->before);
    free(bpe->after);
    free(bpe->heap);
    *bpe = (struct bpe){0};
}

/* Merge n ids in place by scanning; gives how many are left. */
static size_t merge_short(const struct tokenizer *tokenizer, uint32_t *id,
                          size_t n)
{
    uint32_t rank[SHORT_MAX], merged[SHORT_MAX];

    for (size_t i = 0; i + 1 < n; i++) {
        const struct pair_slot *slot =
            pair_map_find(&tokenizer->merges, pair_key(id[i], id[i + 1]));

        rank[i] = slot ? slot->first : TOKENIZER_RANK_NONE;
        merged[i] = slot ? slot->second : 0;
    }
    while (n > 1) {
        size_t best = 0;

        for (size_t i = 1; i + 1 < n; i++)
            if (rank[i] < rank[best])
                best = i;
        if (rank[best] == TOKENIZER_RANK_NONE)
            break;
        id[best] = merged[best];
        n--;
        for (size_t i = best + 1; i < n; i++) {
            id[i] = id[i + 1];
            if (i + 1 < n) {
                rank[i] = rank[i + 1];
                merged[i] = merged[i + 1];
            }
        }
        for (size_t i = best ? best - 1 : 0; i <= best && i + 1 < n; i++) {
            const struct pair_slot *slot =
                pair_map_find(&tokenizer->merges, pair_key(id[i], id[i + 1]));

            rank[i] = slot ? slot->first : TOKENIZER_RANK_NONE;
            merged[i] = slot ? slot->second : 0;
        }
    }
    return n;
}

static void sift_down(uint64_t *heap, size_t n, size_t i)
{
    const uint64_t value = heap[i];

    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && heap[child + 1] < heap[child])
            child++;
        if (heap[child] >= value)
            break;
        heap[i] = heap[child];
    }
    heap[i] = value;
}

static uint64_t heap_pop(struct bpe *bpe)
{
    const uint64_t top = bpe->heap[0];

    bpe->heap[0] = bpe->heap[--bpe->n_heap];
    if (bpe->n_heap)
        sift_down(bpe->heap, bpe->n_heap, 0);
    return top;
}

static void heap_push(struct bpe *bpe, uint64_t value)
{
    size_t i = bpe->n_heap++;

    for (; i && bpe->heap[(i - 1) / 2] > value; i = (i - 1) / 2)
        bpe->heap[i] = bpe->heap[(i - 1) / 2];
    bpe->heap[i] = value;
}

/* Room for n symbols, and for the heap: each merge takes one entry and gives
 * at most two, so 2 n are never passed. */
static enum status reserve(struct bpe *bpe, size_t n)
{
    if (n <= bpe->capacity)
        return STATUS_OK;
    bpe_release(bpe);
    bpe->id = malloc(n * sizeof(*bpe->id));
    bpe->before = malloc(n * sizeof(*bpe->before));
    bpe->after = malloc(n * sizeof(*bpe->after));
    bpe->heap = malloc(2 * n * sizeof(*bpe->heap));
    if (!bpe->id || !bpe->before || !bpe->after || !bpe->heap)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory to tokenise a piece of %zu bytes", n);
    bpe->capacity = n;
    return STATUS_OK;
}

/* The merge of the symbol at `at` with the one behind it, or NULL. */
static const struct pair_slot *pair_at(const struct tokenizer *tokenizer,
                                       const struct bpe *bpe, uint32_t at)
{
    const uint32_t next = bpe->after[at];

    if (next == NOWHERE)
        return NULL;
    return pair_map_find(&tokenizer->merges,
                         pair_key(bpe->id[at], bpe->id[next]));
}

/* Merge the n symbols of bpe->id, which stay linked from position 0. */
static void merge_long(const struct tokenizer *tokenizer, struct bpe *bpe,
                       uint32_t n)
{
    const struct pair_slot *slot;

    for (uint32_t i = 0; i < n; i++) {
        bpe->before[i] = i ? i - 1 : NOWHERE;
        bpe->after[i] = i + 1 < n ? i + 1 : NOWHERE;
    }
    bpe->n_heap = 0;
    for (uint32_t i = 0; i < n; i++) {
        slot = pair_at(tokenizer, bpe, i);
        if (slot)
            bpe->heap[bpe->n_heap++] = pair_key(slot->first, i);
    }
    for (size_t i = bpe->n_heap / 2; i-- > 0;)
        sift_down(bpe->heap, bpe->n_heap, i);

    while (bpe->n_heap) {
        const uint64_t top = heap_pop(bpe);
        const uint32_t at = (uint32_t)top;
        uint32_t gone, next;

        /* A symbol that was merged away has no id and no neighbour. */
        slot = pair_at(tokenizer, bpe, at);
        if (!slot || slot->first != top >> 32)
            continue;
        gone = bpe->after[at];
        next = bpe->after[gone];
        bpe->id[at] = slot->second;
        bpe->after[at] = next;
        bpe->after[gone] = NOWHERE;
        if (next != NOWHERE)
            bpe->before[next] = at;

        slot = pair_at(tokenizer, bpe, at);
        if (slot)
            heap_push(bpe, pair_key(slot->first, at));
        if (bpe->before[at] == NOWHERE)
            continue;
        slot = pair_at(tokenizer, bpe, bpe->before[at]);
        if (slot)
            heap_push(bpe, pair_key(slot->first, bpe->before[at]));
    }
}

enum status bpe_encode(const struct tokenizer *tokenizer, struct bpe *bpe,
                       const uint8_t *piece, size_t n, size_t max_token,
                       struct ids *out)
{
    uint32_t id[SHORT_MAX], whole;
    size_t n_id = 0;
    enum status st;

    if (tokenizer->ignores_merges && vocab_find(tokenizer, piece, n, &whole))
        return ids_append(out, &whole, 1, max_token);

    /* A piece that is too long whatever its merges costs no work. */
    if (out->n > max_token || n / tokenizer->longest > max_token - out->n)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "text has more than %zu tokens, limit %zu",
                           max_token, max_token);
    if (n <= SHORT_MAX) {
        for (size_t i = 0; i < n; i++)
            id[i] = tokenizer->byte_id[piece[i]];
        return ids_append(out, id, merge_short(tokenizer, id, n), max_token);
    }

    st = reserve(bpe, n);
    if (st)
        return st;
    for (size_t i = 0; i < n; i++)
        bpe->id[i] = tokenizer->byte_id[piece[i]];
    merge_long(tokenizer, bpe, (uint32_t)n);
    for (uint32_t at = 0; at != NOWHERE; at = bpe->after[at])
        bpe->before[n_id++] = bpe->id[at]; /* `before` has served */
    return ids_append(out, bpe->before, n_id, max_token);
}
