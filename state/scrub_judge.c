#include "state/scrub_parts.h"

#include "state/lineage.h"
#include "state/snapshot_image.h"
#include "state/snapshot_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct ids *scrub_tokens(const struct scrub *scrub)
{
    return &scrub->tokens;
}

const struct policy *scrub_policy(const struct scrub *scrub)
{
    return &scrub->source.policy;
}

uint64_t scrub_stop(const struct scrub *scrub, uint64_t after)
{
    uint64_t stop = (after / SNAPSHOT_GRID + 1) * SNAPSHOT_GRID;

    for (uint32_t i = 0; i < scrub->source.path.n; i++)
        for (uint32_t j = 0; j < scrub->logs[i].n; j++) {
            const struct scrub_entry *entry = &scrub->logs[i].entry[j];

            if (!entry->is_bad && !entry->is_gone && entry->position > after &&
                entry->position < stop)
                stop = entry->position;
        }
    return stop < scrub->tokens.n ? stop : scrub->tokens.n;
}

/* --- beside a replay --- */

/* Bytes of a state that nobody reads may differ, or are not stored. */
static bool same_state(const struct scrub *scrub, const struct value_place *at,
                       const char *stored, const void *computed)
{
    const struct mixer_plan *plan = model_plan_for(
        scrub->source.snapshots->model, at->layer, scrub->source.policy.index);
    struct mixer_part part[MIXER_FIELD_MAX];
    const uint32_t n_part = mixer_live(plan, at->place, part);
    char *copy = malloc(2 * plan->state_bytes), *other;
    bool same = true;

    if (!copy)
        return true; /* no memory to judge */
    other = copy + plan->state_bytes;
    for (uint32_t i = 0; i < n_part; i++) {
        memcpy(copy + part[i].offset, stored, part[i].bytes);
        stored += part[i].bytes;
    }
    memcpy(other, computed, plan->state_bytes);
    mixer_clear_moot(plan, at->place, copy);
    mixer_clear_moot(plan, at->place, other);
    for (uint32_t i = 0; i < n_part; i++)
        same &= memcmp(copy + part[i].offset, other + part[i].offset,
                       part[i].bytes) == 0;
    free(copy);
    return same;
}

static size_t computed_bytes(const struct scrub *scrub,
                             const struct value_place *at)
{
    const struct snapshots *snapshots = scrub->source.snapshots;

    return at->letter == 's' ? model_plan_for(snapshots->model, at->layer,
                                              scrub->source.policy.index)
                                   ->state_bytes
                             : value_bytes(snapshots, at);
}

/* False: it is there, and other. What cannot be read was reported before; what
 * a lost device has computed is no judge. */
static bool is_same(struct scrub *scrub, const struct value_place *at,
                    const struct image *image, const void *computed)
{
    struct snapshots *snapshots = scrub->source.snapshots;
    char name[VALUE_NAME_SIZE];
    const void *data;
    size_t n_bytes;
    void *bytes;
    bool same;

    if (!computed ||
        snapshots_bring(snapshots, image, computed_bytes(scrub, at),
                        &computed) ||
        value_read(snapshots, at, &scrub->chains, &bytes, &n_bytes, &data))
        return true;
    same = at->letter == 's'
               ? same_state(scrub, at, data, computed)
               : memcmp(data, computed, computed_bytes(scrub, at)) == 0;
    free(bytes);
    scrub->report.n_compared++;
    if (same)
        return true;
    scrub->report.n_different++;
    value_name(at, name);
    (void)status_fail(STATUS_DATA_LOSS,
                      "a replay of the journal gives other bits");
    scrub_note(scrub, scrub_kind_of(at->letter), STATUS_DATA_LOSS, name);
    return false;
}

static void compare_entry(struct scrub *scrub, const struct scrub_log *log,
                          struct scrub_entry *entry, const struct image *image)
{
    const struct policy *policy = &scrub->source.policy;

    for (uint32_t i = 0; i < image->n_layer; i++) {
        const struct value_place state = {'s', log->uid, entry->position, i,
                                          policy};
        const struct value_place open = {'o', log->uid, entry->position, i,
                                         policy};

        entry->is_bad |= !is_same(scrub, &state, image, image->layer[i].state);
        entry->is_bad |= !is_same(scrub, &open, image, image->layer[i].open);
    }
}

static void compare_block(struct scrub *scrub, struct scrub_log *log,
                          uint64_t b, const struct image *image)
{
    for (uint32_t i = 0; i < image->n_layer; i++) {
        const struct value_place at = {'b', log->uid, b, i,
                                       &scrub->source.policy};
        const struct mixer_plan *plan = model_plan_for(
            scrub->source.snapshots->model, i, scrub->source.policy.index);

        if (plan->block_bytes > 0 &&
            !is_same(scrub, &at, image,
                     image->layer[i].block[b - image->first_block]) &&
            log->first_bad > b)
            log->first_bad = b;
    }
}

void scrub_compare(struct scrub *scrub, const struct image *image)
{
    for (uint32_t i = 0; i < scrub->source.path.n; i++) {
        struct scrub_log *log = &scrub->logs[i];

        for (uint32_t j = 0; j < log->n; j++)
            if (log->entry[j].position == image->position &&
                !log->entry[j].is_bad && !log->entry[j].is_gone)
                compare_entry(scrub, log, &log->entry[j], image);
        for (uint64_t b = image->first_block; b < image->n_block; b++)
            if (scrub_has_block(log, b))
                compare_block(scrub, log, b, image);
    }
}

/* --- what is bad goes --- */

/* The first bad block of a log, if that is before block n of the session. */
static bool has_bad_block(const struct scrub *scrub, struct uid uid, uint64_t n)
{
    for (uint32_t i = 0; i < scrub->source.path.n; i++)
        if (uid_equal(scrub->logs[i].uid, uid))
            return scrub->logs[i].first_bad < n;
    return false;
}

/* Blocks of other logs that its snapshots begin with, and its own. */
static bool lacks_blocks(const struct scrub *scrub, const struct scrub_log *log,
                         uint64_t position)
{
    uint64_t n = position / KV_BLOCK, end;

    for (uint32_t i = 0; i < log->base.n; i++) {
        end = log->base.piece[i].end / KV_BLOCK;
        if (has_bad_block(scrub, log->base.piece[i].log, end < n ? end : n))
            return true;
    }
    return log->first_bad < n;
}

static enum status add_drop(struct scrub_report *report, struct uid log,
                            uint64_t position)
{
    struct scrub_drop *drop =
        realloc(report->drop, (report->n_drop + 1u) * sizeof(*drop));

    if (!drop)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for a list of bad snapshots");
    report->drop = drop;
    drop[report->n_drop++] = (struct scrub_drop){log, position};
    return STATUS_OK;
}

static enum status heal_log(struct scrub *scrub, const struct scrub_log *log)
{
    struct scrub_report *report = &scrub->report;
    uint64_t position[SNAPSHOT_KEEP_MAX];
    struct scrub_loss loss = {.log = log->uid, .blocks = UINT64_MAX};
    uint32_t n = 0;
    enum status st = STATUS_OK;

    for (uint32_t i = 0; !st && i < log->n; i++) {
        const struct scrub_entry *entry = &log->entry[i];

        if (entry->is_bad || lacks_blocks(scrub, log, entry->position)) {
            position[n++] = entry->position;
            st = add_drop(report, log->uid, entry->position);
        } else if (entry->position > loss.newest) {
            loss.newest = entry->position;
        }
    }
    if (log->first_bad < UINT64_MAX)
        loss.blocks = log->first_bad * KV_BLOCK;
    if (!st && log->is_bad)
        st = snapshot_trim(scrub->source.snapshots, log->uid, 0);
    else if (!st && n > 0)
        st = snapshot_drop(scrub->source.snapshots, log->uid, position, n);
    if (log->is_bad)
        loss.blocks = 0;
    if (!st && (n > 0 || loss.blocks < UINT64_MAX))
        report->loss[report->n_loss++] = loss;
    return st;
}

enum status scrub_heal(struct scrub *scrub)
{
    enum status st = STATUS_OK;

    if (scrub->phase != SCRUB_PHASE_DONE)
        return STATUS_OK;
    for (uint32_t i = 0; !st && i < scrub->source.path.n; i++)
        st = heal_log(scrub, &scrub->logs[i]);
    return st;
}
