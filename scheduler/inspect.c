#include "scheduler/errand_parts.h"

#include <stdlib.h>

enum status inspect_session(struct engine *engine,
                            const struct command *command)
{
    struct session *session;
    struct errand *errand;
    enum status st =
        control_find(engine, command, command->target.session, &session);

    if (!st)
        st = errand_create(engine, ERRAND_INSPECT, session, command->reply,
                           &errand);
    if (st)
        return st;
    errand->stored = engine_need(calloc(LOG_PATH_MAX, sizeof(*errand->stored)));
    errand->norm =
        engine_need(calloc(engine->config->n_layer, sizeof(*errand->norm)));
    return STATUS_OK;
}

bool inspect_send(struct engine *engine, struct errand *errand)
{
    const struct uid log = errand->path.n > 0 ? log_path_own(&errand->path)
                                              : session_log(errand->session);
    struct store_job *job = jobs_create(STORE_INSPECT, log, errand);

    job->path = errand->path; /* empty for what is in memory alone */
    job->stored = errand->stored;
    job->norm = errand->norm;
    errand->is_out = jobs_push(engine, job);
    return errand->is_out;
}

static void take_layers(const struct engine *engine,
                        const struct errand *errand,
                        const struct store_job *job,
                        struct inspected_layer *out)
{
    const struct resident *resident = errand->session->resident;
    const bool has_memory = resident && resident->memory;
    uint64_t n_block = (resident_position(resident) + KV_BLOCK - 1) / KV_BLOCK;
    struct log_stored own = {0};
    uint64_t n_open = 0;

    if (errand->path.n > 0)
        own = errand->stored[errand->path.n - 1];
    for (uint32_t e = 0; e < job->n_entry; e++)
        n_open += job->entry[e].position % KV_BLOCK != 0;
    for (uint32_t i = 0; i < engine->config->n_layer; i++) {
        const struct mixer_plan *plan = model_plan_for(
            engine->options.model, i, errand->session->policy.index);
        const struct paging_use use = paged_use(resident, i);

        out[i] = (struct inspected_layer){
            .kind =
                engine->config->layer[i] == LAYER_SOFTMAX ? "softmax" : "delta",
            .memory_state = has_memory ? plan->state_bytes : 0,
            .memory_kv =
                has_memory ? paged_in_ram(resident, i, n_block, plan) : 0,
            .stored_kv =
                (own.n_block - own.first_block + n_open) * plan->block_bytes,
            .norm = errand->norm[i],
            .n_step = use.n_step,
            .n_hit = use.n_hit,
            .n_fetched = use.n_fetched,
            .fetched_bytes = use.n_fetched * plan->block_bytes};
        for (uint32_t e = 0; e < job->n_entry; e++)
            out[i].stored_state +=
                mixer_live_bytes(plan, job->entry[e].position);
    }
}

static void take_snapshots(const struct engine *engine,
                           const struct policy *policy,
                           const struct store_job *job,
                           struct inspected_snapshot *out)
{
    for (uint32_t i = 0; i < job->n_entry; i++)
        out[i] = (struct inspected_snapshot){
            .position = job->entry[i].position,
            .chain = job->entry[i].chain,
            .create_ms = job->entry[i].create_ms,
            .bytes = snapshot_bytes(engine->options.model, policy,
                                    job->entry[i].position)};
}

static void take_logs(const struct errand *errand, struct inspected_log *out)
{
    uint64_t begin = 0;

    for (uint32_t i = 0; i < errand->path.n; i++) {
        out[i] =
            (struct inspected_log){.uid = errand->path.piece[i].log,
                                   .begin = begin,
                                   .end = errand->path.piece[i].end,
                                   .n_snapshot = errand->stored[i].n_snapshot,
                                   .bytes = errand->stored[i].bytes};
        begin = errand->path.piece[i].end;
    }
}

static const char *tier_of(const struct resident *resident,
                           const struct store_job *job)
{
    if (resident && resident->memory)
        return memory_device(resident->memory) ? "device" : "host";
    return job->n_entry > 0 ? "store" : "log";
}

static void answer(struct engine *engine, struct errand *errand,
                   const struct store_job *job)
{
    const uint32_t n_layer = engine->config->n_layer;
    struct {
        struct inspected_layer layer[CONFIG_LAYER_MAX];
        struct inspected_snapshot snapshot[SNAPSHOT_KEEP_MAX];
        struct inspected_log log[LOG_PATH_MAX];
    } * extra;
    struct event *event = engine_need(event_create(
        EVENT_INSPECTED, errand->reply, sizeof(*extra), (void **)&extra));

    take_layers(engine, errand, job, extra->layer);
    take_snapshots(engine, &errand->session->policy, job, extra->snapshot);
    take_logs(errand, extra->log);
    event->is_last = true;
    session_info_get(engine, errand->session, &event->inspected.session);
    event->inspected.tier = tier_of(errand->session->resident, job);
    event->inspected.n_layer = n_layer;
    event->inspected.layer = extra->layer;
    event->inspected.n_snapshot = job->n_entry;
    event->inspected.snapshot = extra->snapshot;
    event->inspected.n_log = errand->path.n;
    event->inspected.log = extra->log;
    flight_event(engine, event);
    errand_end(errand);
}

void inspect_received(struct engine *engine, const struct store_job *job)
{
    struct errand *errand = job->owner;

    errand_rest(engine, errand, job);
    if (errand->is_over)
        return;
    if (job->status)
        errand_fail(engine, errand, &job->cause);
    else
        answer(engine, errand, job);
}
