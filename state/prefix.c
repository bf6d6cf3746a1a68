#include "state/prefix.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define NONE UINT32_MAX
#define SEEN_WAYS 4u

uint64_t policy_scope(const struct policy *policy, uint64_t scope)
{
    char key[POLICY_TEXT_SIZE + sizeof(scope)] = {0};

    if (policy->kind == POLICY_FULL)
        return scope;
    memcpy(key, &scope, sizeof(scope));
    policy_format(policy, key + sizeof(scope));
    return digest_64(key, sizeof(key));
}

enum kind { KIND_LIVE, KIND_LOOSE, KIND_GONE, KIND_COUNT };

struct entry {
    struct digest chain;
    uint64_t position, scope;
    uint32_t owner;
    uint32_t after;   /* of the same bucket, or of the free ones */
    uint32_t sibling; /* of the same owner */
};

struct owner {
    struct uid uid, session;
    enum kind kind;
    bool is_usable;
    size_t bytes;
    uint32_t entry; /* first */
    uint32_t after; /* of the same bucket, or of the free ones */
    uint32_t older, newer;
};

struct place { /* how many entries stand at a position */
    uint64_t position;
    uint32_t n_entry;
};

struct seen {
    uint64_t key; /* 0: free */
    uint64_t tick;
};

struct expected {
    struct digest chain;
    uint64_t scope;
};

/* Arrays of n_entry places; an owner has at least one entry. */
struct prefix_index {
    struct prefix_limits limits;
    uint32_t n_bucket; /* a power of two */
    struct entry *entry;
    struct owner *owner;
    uint32_t *entry_bucket, *owner_bucket; /* [n_bucket] */
    uint32_t free_entry, free_owner;
    uint32_t n_entry, n_owner;
    uint32_t oldest[KIND_COUNT], newest[KIND_COUNT], n_of[KIND_COUNT];
    size_t loose_bytes;
    struct place *place; /* [n_place] ascending */
    uint32_t n_place;
    struct seen *seen; /* [n_seen] */
    uint32_t n_seen;   /* a power of two */
    uint64_t tick;
    struct expected expected[PREFIX_EXPECT_MAX];
    uint32_t n_expected;
};

static uint32_t power_of_two(uint32_t n)
{
    uint32_t power = SEEN_WAYS;

    while (power < n && power < 1u << 31)
        power *= 2;
    return power;
}

enum status prefix_create(const struct prefix_limits *limits,
                          struct prefix_index **out)
{
    struct prefix_index *index = calloc(1, sizeof(*index));
    uint32_t n = limits->n_entry;

    assert(n >= PREFIX_ENTRY_MIN);
    if (!index)
        goto no_memory;
    index->limits = *limits;
    index->n_bucket = power_of_two(n);
    index->n_seen = power_of_two(limits->n_seen);
    index->entry = calloc(n, sizeof(*index->entry));
    index->owner = calloc(n, sizeof(*index->owner));
    index->place = calloc(n, sizeof(*index->place));
    index->entry_bucket = malloc(index->n_bucket * sizeof(uint32_t));
    index->owner_bucket = malloc(index->n_bucket * sizeof(uint32_t));
    index->seen = calloc(index->n_seen, sizeof(*index->seen));
    if (!index->entry || !index->owner || !index->place ||
        !index->entry_bucket || !index->owner_bucket || !index->seen)
        goto no_memory;
    memset(index->entry_bucket, 0xff, index->n_bucket * sizeof(uint32_t));
    memset(index->owner_bucket, 0xff, index->n_bucket * sizeof(uint32_t));
    index->free_entry = index->free_owner = NONE;
    for (uint32_t i = n; i-- > 0;) {
        index->entry[i].after = index->free_entry;
        index->owner[i].after = index->free_owner;
        index->free_entry = index->free_owner = i;
    }
    for (int kind = 0; kind < KIND_COUNT; kind++)
        index->oldest[kind] = index->newest[kind] = NONE;
    *out = index;
    return STATUS_OK;

no_memory:
    prefix_destroy(index);
    return status_fail(STATUS_RESOURCE_EXHAUSTED,
                       "no memory for an index of %u snapshots",
                       limits->n_entry);
}

void prefix_destroy(struct prefix_index *index)
{
    if (!index)
        return;
    free(index->entry);
    free(index->owner);
    free(index->place);
    free(index->entry_bucket);
    free(index->owner_bucket);
    free(index->seen);
    free(index);
}

/* A chain is a digest, and a scope is one, so few bits of them are as good as
 * all. */
static uint64_t key_of(struct digest chain, uint64_t scope)
{
    return (chain.lo ^ scope) * 0x9e3779b97f4a7c15u;
}

static uint32_t *entry_bucket(const struct prefix_index *index,
                              struct digest chain, uint64_t scope)
{
    return &index->entry_bucket[(key_of(chain, scope) >> 32) &
                                (index->n_bucket - 1)];
}

static uint32_t *owner_bucket(const struct prefix_index *index, struct uid uid)
{
    uint64_t key = (uid.lo ^ uid.hi) * 0x9e3779b97f4a7c15u;

    return &index->owner_bucket[(key >> 32) & (index->n_bucket - 1)];
}

/* --- positions at which anything stands --- */

/* Index of the first place behind `position`. */
static uint32_t place_behind(const struct prefix_index *index,
                             uint64_t position)
{
    uint32_t low = 0, high = index->n_place;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;

        if (index->place[middle].position > position)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

static void place_add(struct prefix_index *index, uint64_t position)
{
    uint32_t i = place_behind(index, position);

    if (i > 0 && index->place[i - 1].position == position) {
        index->place[i - 1].n_entry++;
        return;
    }
    memmove(&index->place[i + 1], &index->place[i],
            (index->n_place - i) * sizeof(index->place[0]));
    index->place[i] = (struct place){position, 1};
    index->n_place++;
}

static void place_remove(struct prefix_index *index, uint64_t position)
{
    uint32_t i = place_behind(index, position) - 1;

    if (--index->place[i].n_entry > 0)
        return;
    index->n_place--;
    memmove(&index->place[i], &index->place[i + 1],
            (index->n_place - i) * sizeof(index->place[0]));
}

/* --- owners by age --- */

static void age_remove(struct prefix_index *index, uint32_t i)
{
    struct owner *owner = &index->owner[i];

    if (owner->older != NONE)
        index->owner[owner->older].newer = owner->newer;
    else
        index->oldest[owner->kind] = owner->newer;
    if (owner->newer != NONE)
        index->owner[owner->newer].older = owner->older;
    else
        index->newest[owner->kind] = owner->older;
    index->n_of[owner->kind]--;
    if (owner->kind == KIND_LOOSE)
        index->loose_bytes -= owner->bytes;
}

static void age_add(struct prefix_index *index, uint32_t i)
{
    struct owner *owner = &index->owner[i];

    owner->newer = NONE;
    owner->older = index->newest[owner->kind];
    if (owner->older != NONE)
        index->owner[owner->older].newer = i;
    else
        index->oldest[owner->kind] = i;
    index->newest[owner->kind] = i;
    index->n_of[owner->kind]++;
    if (owner->kind == KIND_LOOSE)
        index->loose_bytes += owner->bytes;
}

/* --- entries and owners --- */

static void entry_remove(struct prefix_index *index, uint32_t i)
{
    struct entry *entry = &index->entry[i];
    uint32_t *at = entry_bucket(index, entry->chain, entry->scope);

    while (*at != i)
        at = &index->entry[*at].after;
    *at = entry->after;
    place_remove(index, entry->position);
    entry->after = index->free_entry;
    index->free_entry = i;
    index->n_entry--;
}

static void entry_add(struct prefix_index *index, uint32_t owner,
                      const struct snapshot_entry *from)
{
    uint32_t i = index->free_entry;
    struct entry *entry = &index->entry[i];
    uint32_t *bucket = entry_bucket(index, from->chain, from->scope);

    index->free_entry = entry->after;
    *entry = (struct entry){.chain = from->chain,
                            .position = from->position,
                            .scope = from->scope,
                            .owner = owner,
                            .after = *bucket,
                            .sibling = index->owner[owner].entry};
    *bucket = index->owner[owner].entry = i;
    place_add(index, from->position);
    index->n_entry++;
}

static uint32_t owner_find(const struct prefix_index *index, struct uid uid)
{
    uint32_t i = *owner_bucket(index, uid);

    while (i != NONE && !uid_equal(index->owner[i].uid, uid))
        i = index->owner[i].after;
    return i;
}

static void owner_remove(struct prefix_index *index, uint32_t i)
{
    struct owner *owner = &index->owner[i];
    uint32_t *at = owner_bucket(index, owner->uid);

    while (*at != i)
        at = &index->owner[*at].after;
    *at = owner->after;
    for (uint32_t e = owner->entry, sibling; e != NONE; e = sibling) {
        sibling = index->entry[e].sibling;
        entry_remove(index, e);
    }
    age_remove(index, i);
    owner->after = index->free_owner;
    index->free_owner = i;
    index->n_owner--;
}

/* What is gone is the least loss. Loose ones, of which there are too few to be
 * in the way, stay: nobody else knows that the store has them. */
static void make_room(struct prefix_index *index, uint32_t n)
{
    static const enum kind order[] = {KIND_GONE, KIND_LIVE};

    for (uint32_t k = 0; k < 2; k++)
        while (index->limits.n_entry - index->n_entry < n &&
               index->oldest[order[k]] != NONE)
            owner_remove(index, index->oldest[order[k]]);
}

void prefix_put(struct prefix_index *index, const struct prefix_owner *owner,
                const struct snapshot_entry *entry, uint32_t n)
{
    uint32_t i = owner_find(index, owner->uid);
    uint32_t *bucket = owner_bucket(index, owner->uid);
    struct owner *mine;

    if (i != NONE)
        owner_remove(index, i);
    if (n == 0)
        return;
    make_room(index, n);
    i = index->free_owner;
    mine = &index->owner[i];
    index->free_owner = mine->after;
    *mine = (struct owner){
        .uid = owner->uid,
        .session = owner->session,
        .kind = uid_equal(owner->uid, owner->session) ? KIND_LIVE : KIND_LOOSE,
        .is_usable = owner->is_usable,
        .bytes = owner->bytes,
        .entry = NONE,
        .after = *bucket};
    *bucket = i;
    index->n_owner++;
    age_add(index, i);
    for (uint32_t e = 0; e < n; e++)
        entry_add(index, i, &entry[e]);
}

uint64_t prefix_newest(const struct prefix_index *index, struct uid uid)
{
    uint32_t i = owner_find(index, uid);
    uint64_t newest = 0;

    if (i == NONE || !index->owner[i].is_usable ||
        index->owner[i].kind != KIND_LIVE)
        return 0;
    for (uint32_t e = index->owner[i].entry; e != NONE;
         e = index->entry[e].sibling)
        if (index->entry[e].position > newest)
            newest = index->entry[e].position;
    return newest;
}

void prefix_remove(struct prefix_index *index, struct uid uid)
{
    uint32_t i = owner_find(index, uid);

    if (i != NONE && index->owner[i].kind != KIND_GONE)
        owner_remove(index, i);
}

void prefix_refuse(struct prefix_index *index, struct uid uid,
                   uint64_t position)
{
    uint32_t i = owner_find(index, uid);
    uint32_t *at;

    if (i == NONE)
        return;
    at = &index->owner[i].entry;
    while (*at != NONE && index->entry[*at].position != position)
        at = &index->entry[*at].sibling;
    if (*at != NONE) {
        uint32_t e = *at;

        *at = index->entry[e].sibling;
        entry_remove(index, e);
    }
    if (index->owner[i].entry == NONE)
        owner_remove(index, i);
}

bool prefix_take_loose(struct prefix_index *index, struct uid session,
                       struct uid *out)
{
    static const enum kind kinds[] = {KIND_LOOSE, KIND_GONE};

    for (uint32_t k = 0; k < 2; k++)
        for (uint32_t i = index->newest[kinds[k]]; i != NONE;
             i = index->owner[i].older)
            if (uid_equal(index->owner[i].session, session)) {
                *out = index->owner[i].uid;
                owner_remove(index, i);
                return true;
            }
    return false;
}

bool prefix_take_excess(struct prefix_index *index, struct uid *out)
{
    uint32_t i = index->oldest[KIND_LOOSE];

    if (i == NONE || (index->loose_bytes <= index->limits.loose_bytes &&
                      index->n_of[KIND_LOOSE] <= index->limits.n_entry / 2))
        return false;
    *out = index->owner[i].uid;
    age_remove(index, i);
    index->owner[i].kind = KIND_GONE;
    index->owner[i].bytes = 0;
    age_add(index, i);
    return true;
}

void prefix_touch(struct prefix_index *index, struct uid uid)
{
    uint32_t i = owner_find(index, uid);

    if (i == NONE)
        return;
    age_remove(index, i);
    age_add(index, i);
}

/* --- snapshots under way --- */

static uint32_t find_expected(const struct prefix_index *index,
                              struct digest chain, uint64_t scope)
{
    uint32_t i = 0;

    while (i < index->n_expected &&
           (index->expected[i].scope != scope ||
            !digest_equal(index->expected[i].chain, chain)))
        i++;
    return i;
}

static bool is_stored(const struct prefix_index *index, struct digest chain,
                      uint64_t scope)
{
    for (uint32_t i = *entry_bucket(index, chain, scope); i != NONE;
         i = index->entry[i].after) {
        const struct entry *entry = &index->entry[i];
        const struct owner *owner = &index->owner[entry->owner];

        if (entry->scope == scope && digest_equal(entry->chain, chain) &&
            owner->is_usable && owner->kind != KIND_GONE)
            return true;
    }
    return false;
}

bool prefix_expect(struct prefix_index *index, struct digest chain,
                   uint64_t scope)
{
    if (index->n_expected == PREFIX_EXPECT_MAX ||
        is_stored(index, chain, scope) ||
        find_expected(index, chain, scope) < index->n_expected)
        return false;
    index->expected[index->n_expected++] = (struct expected){chain, scope};
    return true;
}

void prefix_expect_over(struct prefix_index *index, struct digest chain,
                        uint64_t scope)
{
    uint32_t i = find_expected(index, chain, scope);

    if (i < index->n_expected)
        index->expected[i] = index->expected[--index->n_expected];
}

/* --- questions --- */

/* Was a prompt here before? It is from now on; the oldest of a set makes
 * room. */
static bool see(struct prefix_index *index, struct digest chain, uint64_t scope)
{
    uint64_t key = key_of(chain, scope) | 1;
    uint64_t set = (key >> 20) & (index->n_seen / SEEN_WAYS - 1);
    struct seen *way = &index->seen[set * SEEN_WAYS], *oldest = way;

    for (uint32_t i = 0; i < SEEN_WAYS; i++) {
        if (way[i].key == key) {
            way[i].tick = index->tick;
            return true;
        }
        if (way[i].tick < oldest->tick)
            oldest = &way[i];
    }
    *oldest = (struct seen){key, index->tick};
    return false;
}

/* Ascending positions: the best come last, and push the others out. */
static void add_hit(struct prefix_answer *out,
                    const struct snapshot_source *hit)
{
    uint32_t n =
        out->n_hit < SNAPSHOT_SOURCE_MAX ? out->n_hit : SNAPSHOT_SOURCE_MAX - 1;

    memmove(&out->hit[1], &out->hit[0], n * sizeof(*hit));
    out->hit[0] = *hit;
    out->n_hit = n + 1;
}

static void look(const struct prefix_index *index, uint64_t position,
                 struct digest chain, uint64_t scope, struct prefix_answer *out)
{
    for (uint32_t i = *entry_bucket(index, chain, scope); i != NONE;
         i = index->entry[i].after) {
        const struct entry *entry = &index->entry[i];
        const struct owner *owner = &index->owner[entry->owner];

        if (entry->position != position || entry->scope != scope ||
            !digest_equal(entry->chain, chain))
            continue;
        if (owner->kind == KIND_GONE)
            out->gone = position;
        else if (!owner->is_usable)
            out->other = position;
        else
            add_hit(out,
                    &(struct snapshot_source){owner->uid, position, chain});
    }
}

void prefix_find(struct prefix_index *index, const struct prefix_query *query,
                 struct prefix_answer *out)
{
    uint64_t position = query->from;
    uint32_t at = place_behind(index, position);
    struct digest chain = query->chain;

    *out = (struct prefix_answer){0};
    index->tick++;
    while (position < query->limit) {
        uint64_t next = (position / PREFIX_GRID + 1) * PREFIX_GRID;
        bool is_place =
            at < index->n_place && index->place[at].position <= next;

        if (is_place)
            next = index->place[at++].position;
        if (next > query->limit)
            break;
        chain = digest_tokens(chain, query->token + position, next - position);
        position = next;
        if (is_place)
            look(index, position, chain, query->scope, out);
        if (position % PREFIX_GRID == 0 && see(index, chain, query->scope))
            out->seen = position;
    }
}

struct prefix_stats prefix_stats(const struct prefix_index *index)
{
    return (struct prefix_stats){.n_entry = index->n_entry,
                                 .n_owner = index->n_owner,
                                 .n_loose = index->n_of[KIND_LOOSE],
                                 .loose_bytes = index->loose_bytes};
}
