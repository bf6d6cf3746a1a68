#include "base/log.h"
#include "kernels/device.h"
#include "state/lineage.h"
#include "state/snapshot_chain.h"
#include "state/snapshot_parts.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* One attempt to fill a memory from one snapshot. */
struct attempt {
    struct snapshots *snapshots;
    struct chains *chains;
    const struct manifest *manifest;
    uint64_t position;
    struct memory *memory;
};

static void *state_of(const struct attempt *attempt, uint32_t layer)
{
    return memory_layers(attempt->memory)[layer].state;
}

static enum restore_reason damaged(const char *what, uint64_t place,
                                   uint32_t layer)
{
    char why[STATUS_TEXT_SIZE];

    (void)strncpy(why, status_reason(), sizeof(why) - 1);
    why[sizeof(why) - 1] = 0;
    (void)status_fail(STATUS_DATA_LOSS, "%s %lu of layer %u: %.280s", what,
                      place, layer, why);
    return RESTORE_DAMAGED;
}

/* RESTORE_HIT, or in what it differs from the memory that it would fill. */
static enum restore_reason check_numerics(const struct snapshots *snapshots,
                                          const struct memory *memory,
                                          struct numerics its)
{
    if (!digest_equal(its.fingerprint, snapshots->numerics.fingerprint)) {
        (void)status_fail(STATUS_FAILED_PRECONDITION, "it is of another model");
        return RESTORE_WEIGHTS;
    }
    if (!digest_equal(its.id, snapshots->numerics.id)) {
        (void)status_fail(STATUS_FAILED_PRECONDITION,
                          "it is of another numerics id");
        return RESTORE_NUMERICS;
    }
    if (!digest_equal(its.policy, policy_digest(memory_policy(memory)))) {
        (void)status_fail(STATUS_FAILED_PRECONDITION,
                          "it was made under another memory policy");
        return RESTORE_POLICY;
    }
    return RESTORE_HIT;
}

/* What a value must say of itself; its bytes then go to `to`. */
struct wanted {
    struct uid owner;
    enum frame_kind kind;
    const char *what; /* for messages */
    uint64_t place;
    uint32_t layer, n_token;
    uint64_t min_position; /* of the snapshot that wrote it */
    size_t data_bytes;
    void *to; /* NULL: it is a sealed block, and memory_put() knows */
    const struct mixer_plan *live_plan; /* of a state, else NULL */
};

/* What is not stored of a state stays as it is in an empty memory. */
static void put_data(struct device *device, const struct wanted *wanted,
                     const char *data)
{
    struct mixer_part part[MIXER_FIELD_MAX] = {{.bytes = wanted->data_bytes}};
    uint32_t n_part = 1;

    if (wanted->live_plan)
        n_part = mixer_live(wanted->live_plan, wanted->place, part);
    for (uint32_t i = 0; i < n_part; i++) {
        device_write(device, (char *)wanted->to + part[i].offset, data,
                     part[i].bytes);
        data += part[i].bytes;
    }
}

static enum restore_reason take_value(struct attempt *attempt,
                                      const struct wanted *wanted,
                                      const void *bytes, size_t n_bytes)
{
    struct value_head head;
    const void *data;
    size_t data_bytes;
    enum restore_reason reason;

    if (value_get(bytes, n_bytes, wanted->kind, &head, &data, &data_bytes))
        return damaged(wanted->what, wanted->place, wanted->layer);
    reason = check_numerics(attempt->snapshots, attempt->memory, head.numerics);
    if (reason != RESTORE_HIT) {
        struct cause cause = *status_cause();

        (void)status_fail(STATUS_FAILED_PRECONDITION,
                          "%s %lu of layer %u: %.200s", wanted->what,
                          wanted->place, wanted->layer, cause.text);
        return reason;
    }
    if (!uid_equal(head.uid, wanted->owner) || head.place != wanted->place ||
        head.layer != wanted->layer || head.n_token != wanted->n_token ||
        data_bytes != wanted->data_bytes) {
        (void)status_fail(STATUS_DATA_LOSS,
                          "it is place %lu, layer %u, %u tokens, %zu bytes, "
                          "expected %u tokens, %zu bytes",
                          head.place, head.layer, head.n_token, data_bytes,
                          wanted->n_token, wanted->data_bytes);
        return damaged(wanted->what, wanted->place, wanted->layer);
    }
    if (head.position < wanted->min_position ||
        !chains_match(attempt->chains, head.position, head.chain)) {
        (void)status_fail(STATUS_FAILED_PRECONDITION,
                          "%s %lu of layer %u was made from other tokens",
                          wanted->what, wanted->place, wanted->layer);
        return RESTORE_CHAIN;
    }
    if (wanted->to)
        put_data(attempt->snapshots->device, wanted, data);
    else if (memory_put(attempt->memory, wanted->layer, wanted->place,
                        attempt->snapshots->device, data))
        return damaged(wanted->what, wanted->place, wanted->layer);
    return RESTORE_HIT;
}

static enum restore_reason fetch_value(struct attempt *attempt, char letter,
                                       const struct wanted *wanted)
{
    struct key key =
        value_key(letter, wanted->owner, wanted->place, wanted->layer);
    enum restore_reason reason;
    void *bytes;
    size_t n_bytes;

    if (store_get(attempt->snapshots->store, key.bytes, key.n, &bytes,
                  &n_bytes))
        return damaged(wanted->what, wanted->place, wanted->layer);
    reason = take_value(attempt, wanted, bytes, n_bytes);
    free(bytes);
    return reason;
}

static enum restore_reason load_layers(struct attempt *attempt)
{
    uint64_t position = attempt->position;
    enum restore_reason reason = RESTORE_HIT;

    for (uint32_t i = 0; !reason && i < attempt->snapshots->n_layer; i++) {
        const struct mixer_plan *plan = memory_plan(attempt->memory, i);
        struct wanted wanted = {.owner = attempt->manifest->uid,
                                .kind = FRAME_STATE,
                                .what = "state",
                                .place = position,
                                .layer = i,
                                .min_position = position,
                                .data_bytes = mixer_live_bytes(plan, position),
                                .live_plan = plan,
                                .to = state_of(attempt, i)};

        if (plan->state_bytes > 0)
            reason = fetch_value(attempt, 's', &wanted);
        if (reason || plan->block_bytes == 0 || position % KV_BLOCK == 0)
            continue;
        wanted.kind = FRAME_OPEN;
        wanted.what = "open block";
        wanted.live_plan = NULL;
        wanted.n_token = position % KV_BLOCK;
        wanted.data_bytes = plan->block_bytes;
        wanted.to = memory_block(attempt->memory, i, position / KV_BLOCK);
        reason = fetch_value(attempt, 'o', &wanted);
    }
    return reason;
}

/* The next value of the scan must be the one wanted. */
static enum restore_reason scan_value(struct attempt *attempt,
                                      struct store_scan *scan,
                                      const struct wanted *wanted)
{
    struct key key =
        value_key('b', wanted->owner, wanted->place, wanted->layer);
    const void *its_key, *bytes;
    size_t its_key_bytes, n_bytes;

    if (!store_scan_next(scan, &its_key, &its_key_bytes, &bytes, &n_bytes)) {
        if (!store_scan_status(scan))
            (void)status_fail(STATUS_NOT_FOUND, "it is missing");
        return damaged(wanted->what, wanted->place, wanted->layer);
    }
    if (its_key_bytes != key.n || memcmp(its_key, key.bytes, key.n) != 0) {
        (void)status_fail(STATUS_NOT_FOUND, "it is missing");
        return damaged(wanted->what, wanted->place, wanted->layer);
    }
    return take_value(attempt, wanted, bytes, n_bytes);
}

/* Blocks [first, n) of one owner. */
static enum restore_reason load_piece(struct attempt *attempt, struct uid owner,
                                      uint64_t first, uint64_t n)
{
    struct key from = key_at('b', owner, first);
    struct key to = key_at('b', owner, n);
    struct store_scan *scan;
    enum restore_reason reason = RESTORE_HIT;

    if (store_scan_open(
            attempt->snapshots->store,
            &(struct store_range){from.bytes, from.n, to.bytes, to.n}, false,
            &scan))
        return damaged("block", first, 0);
    for (uint64_t b = first; !reason && b < n; b++)
        for (uint32_t i = 0; !reason && i < attempt->snapshots->n_layer; i++) {
            const struct mixer_plan *plan = memory_plan(attempt->memory, i);
            struct wanted wanted = {.owner = owner,
                                    .kind = FRAME_BLOCK,
                                    .what = "block",
                                    .place = b,
                                    .layer = i,
                                    .n_token = KV_BLOCK,
                                    .min_position = (b + 1) * KV_BLOCK,
                                    .data_bytes = plan->block_bytes};

            if (plan->block_bytes == 0)
                continue;
            reason = scan_value(attempt, scan, &wanted);
        }
    store_scan_close(scan);
    return reason;
}

/* Those of other logs, then its own. */
static enum restore_reason load_blocks(struct attempt *attempt)
{
    const struct log_path *base = &attempt->manifest->base;
    uint64_t first = 0, n_block = attempt->position / KV_BLOCK;
    enum restore_reason reason = RESTORE_HIT;

    for (uint32_t i = 0; !reason && i < base->n && first < n_block; i++) {
        uint64_t n = base->piece[i].end / KV_BLOCK;

        n = n < n_block ? n : n_block;
        reason = load_piece(attempt, base->piece[i].log, first, n);
        first = n;
    }
    if (!reason && first < n_block)
        reason = load_piece(attempt, attempt->manifest->uid, first, n_block);
    return reason;
}

/* RESTORE_HIT: the memory stands at the attempt's position. A device gets it
 * all by its side, and has it when this returns. */
static enum status fill(struct attempt *attempt, struct memory *memory,
                        enum restore_reason *out)
{
    struct device *device = attempt->snapshots->device;
    struct device *before = model_device(attempt->snapshots->model);
    enum status st;

    memory_use(memory, device);
    st = memory_expect(memory, attempt->position);
    if (!st) {
        *out = load_layers(attempt);
        if (*out == RESTORE_HIT)
            *out = load_blocks(attempt);
        if (*out == RESTORE_HIT && memory_paging(memory))
            paging_loaded(memory_paging(memory), attempt->position / KV_BLOCK,
                          &attempt->manifest->base, attempt->manifest->uid);
        if (*out == RESTORE_HIT)
            memory_advance(memory, attempt->position);
        else
            memory_wipe(memory, device);
        st = device_wait(device);
    }
    memory_use(memory, before);
    return st;
}

/* RESTORE_HIT: the memory stands at the entry's position. */
static enum status try_entry(struct snapshots *snapshots,
                             const struct manifest *manifest,
                             const struct snapshot_entry *entry,
                             struct chains *chains, struct memory *memory,
                             enum restore_reason *out)
{
    struct attempt attempt = {.snapshots = snapshots,
                              .chains = chains,
                              .manifest = manifest,
                              .position = entry->position,
                              .memory = memory};

    *out = check_numerics(snapshots, memory, manifest->numerics);
    if (*out != RESTORE_HIT)
        return STATUS_OK;
    if (!chains_match(chains, entry->position, entry->chain)) {
        (void)status_fail(STATUS_FAILED_PRECONDITION,
                          "it was made from other tokens");
        *out = RESTORE_CHAIN;
        return STATUS_OK;
    }
    return fill(&attempt, memory, out);
}

static void log_refused(struct uid uid, uint64_t position, uint64_t n_token,
                        const char *why)
{
    char about[UID_TEXT_SIZE + 2] = "u=";

    uid_format(uid, about + 2);
    log_line(LOG_WARN, "state", about, "%s, recomputing %lu tokens", why,
             n_token - position);
}

/* Why the newest was not used, or RESTORE_HIT. */
struct refusal {
    enum restore_reason reason;
    struct cause cause;
};

/* Entries from the newest, up to the first that fits. */
static enum status try_entries(struct snapshots *snapshots,
                               const struct manifest *manifest,
                               struct chains *chains, uint64_t limit,
                               struct memory *memory, struct refusal *out)
{
    *out = (struct refusal){.reason = RESTORE_NONE};
    for (uint32_t i = 0; i < manifest->n; i++) {
        const struct snapshot_entry *entry = &manifest->entry[i];
        enum restore_reason reason;
        enum status st;

        if (entry->position > limit)
            continue;
        st = try_entry(snapshots, manifest, entry, chains, memory, &reason);
        if (st)
            return st;
        if (out->reason == RESTORE_NONE) {
            out->reason = reason;
            if (reason != RESTORE_HIT) {
                struct cause first = *status_cause();

                (void)status_fail(STATUS_DATA_LOSS,
                                  "snapshot at token %lu is not used: %.300s",
                                  entry->position, first.text);
                out->cause = *status_cause();
            }
        }
        if (reason == RESTORE_HIT)
            break;
    }
    return STATUS_OK;
}

/* A snapshot is saved behind the journal, so a log that is shorter lost its
 * end: going on from there would be fluent and wrong. */
static enum status check_log(const struct manifest *manifest, uint64_t n_token)
{
    for (uint32_t i = 0; i < manifest->n; i++)
        if (manifest->entry[i].position > n_token) {
            status_fail(STATUS_DATA_LOSS,
                        "the log has %lu tokens, but a snapshot was made "
                        "behind token %lu: committed tokens are lost",
                        n_token, manifest->entry[i].position);
            return status_because("SESSION_LOG_LOST");
        }
    return STATUS_OK;
}

/* Where the blocks lie of what the manifest's snapshot gave to the memory,
 * seen from a log behind piece. */
static struct log_path base_from(const struct manifest *manifest, bool is_own,
                                 uint64_t position)
{
    struct log_path base = manifest->base;

    if (is_own)
        return base;
    position = position / KV_BLOCK * KV_BLOCK;
    log_pieces_cut(&base, position);
    log_pieces_add(&base, manifest->uid, position);
    return base;
}

/* What a load works on. */
struct loading {
    struct snapshots *snapshots;
    const struct log_path *path;
    const struct ids *tokens;
    uint64_t limit;
    struct memory *memory;
    struct chains chains;
    struct refusal refusal; /* of the newest snapshot */
};

/* The snapshots of one log of the path, if there are any. */
static enum status load_log(struct loading *loading, uint32_t piece,
                            struct restore *out)
{
    const struct log_piece *from = &loading->path->piece[piece];
    const bool is_own = piece + 1 == loading->path->n;
    uint64_t limit = from->end < loading->limit ? from->end : loading->limit;
    struct refusal refusal = {.reason = RESTORE_NONE};
    struct manifest manifest;
    enum status st = STATUS_OK;

    if (read_manifest(loading->snapshots, from->log, &manifest)) {
        refusal.cause = *status_cause();
        (void)status_fail(STATUS_DATA_LOSS,
                          "list of snapshots is not used: %.300s",
                          refusal.cause.text);
        refusal = (struct refusal){RESTORE_DAMAGED, *status_cause()};
    } else if (manifest.n > 0) {
        if (is_own)
            st = check_log(&manifest, loading->tokens->n);
        if (!st && !loading->chains.at)
            st = chains_init(&loading->chains,
                             loading->snapshots->numerics.fingerprint,
                             loading->tokens);
        if (!st)
            st = try_entries(loading->snapshots, &manifest, &loading->chains,
                             limit, loading->memory, &refusal);
        if (!st && memory_position(loading->memory) > 0)
            out->base =
                base_from(&manifest, is_own, memory_position(loading->memory));
    }
    if (loading->refusal.reason == RESTORE_NONE)
        loading->refusal = refusal;
    return st;
}

enum status snapshot_load(struct snapshots *snapshots,
                          const struct log_path *path, const struct ids *tokens,
                          uint64_t limit, struct memory *memory,
                          struct restore *out)
{
    struct loading loading = {.snapshots = snapshots,
                              .path = path,
                              .tokens = tokens,
                              .limit = limit,
                              .memory = memory,
                              .refusal = {.reason = RESTORE_NONE}};
    enum restore_reason reason;
    struct restore restore = {0};
    enum status st = STATUS_OK;

    assert(memory_position(memory) == 0 && limit <= tokens->n);
    for (uint32_t i = path->n; !st && i-- > 0 && !memory_position(memory);)
        st = load_log(&loading, i, &restore);
    chains_release(&loading.chains);
    if (st)
        return st;
    reason = loading.refusal.reason;
    if (reason != RESTORE_HIT && reason != RESTORE_NONE)
        log_refused(log_path_own(path), memory_position(memory), tokens->n,
                    loading.refusal.cause.text);
    restore.reason = reason;
    *out = restore;
    return STATUS_OK;
}

static const struct snapshot_entry *
find_entry(const struct manifest *manifest,
           const struct snapshot_source *wanted)
{
    for (uint32_t i = 0; i < manifest->n; i++)
        if (manifest->entry[i].position == wanted->position &&
            digest_equal(manifest->entry[i].chain, wanted->chain))
            return &manifest->entry[i];
    return NULL;
}

static enum status try_source(struct snapshots *snapshots,
                              const struct snapshot_source *source,
                              struct chains *chains, struct memory *memory,
                              enum restore_reason *out)
{
    const struct snapshot_entry *entry;
    struct manifest manifest;

    if (read_manifest(snapshots, source->uid, &manifest)) {
        *out = RESTORE_DAMAGED;
        return STATUS_OK;
    }
    entry = find_entry(&manifest, source);
    if (!entry) {
        *out = RESTORE_NONE;
        return STATUS_OK;
    }
    return try_entry(snapshots, &manifest, entry, chains, memory, out);
}

enum status snapshot_fetch(struct snapshots *snapshots,
                           const struct snapshot_source *source,
                           uint32_t n_source, const struct ids *tokens,
                           struct memory *memory, enum restore_reason *reason)
{
    struct chains chains;
    enum status st;

    assert(memory_position(memory) == 0);
    for (uint32_t i = 0; i < n_source; i++)
        reason[i] = RESTORE_NONE;
    st = chains_init(&chains, snapshots->numerics.fingerprint, tokens);
    for (uint32_t i = 0; !st && i < n_source; i++) {
        st = try_source(snapshots, &source[i], &chains, memory, &reason[i]);
        if (st || reason[i] == RESTORE_HIT)
            break;
        if (reason[i] != RESTORE_NONE)
            log_refused(source[i].uid, 0, source[i].position, status_reason());
    }
    chains_release(&chains);
    return st;
}
