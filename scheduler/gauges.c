#include "scheduler/engine_calls.h"

#include <stdio.h>
#include <string.h>

#define STATE_RMS_FIRST (1.0 / 1024) /* 26 buckets reach 2^15 */
#define STATE_RMS_BUCKETS 26u
#define SECONDS_FIRST 0.0005 /* first bucket; 20 of them reach 262 s */
#define SECONDS_BUCKETS 20u

static const char *const rejection[] = {
    "QUEUE_FULL",
    "KV_MEMORY",
    "STATE_SLOTS",
    "NODE_DRAINING",
    "CONTEXT_LENGTH_EXCEEDED",
    "POSITION_MISMATCH",
    "OPERATION_IN_PROGRESS",
    "TENANT_QUOTA",
    "DEADLINE",
    "SHED",
};
#define N_REJECTION (sizeof(rejection) / sizeof(rejection[0]))

static struct metric *seconds(struct metrics *metrics, const char *name,
                              const char *help)
{
    return metrics_histogram(metrics, name, "", help, SECONDS_FIRST,
                             SECONDS_BUCKETS);
}

static void histograms(struct metrics *r, struct engine_metrics *m)
{
    m->first_token = seconds(r, "godwit_time_to_first_token_seconds",
                             "From arrival to the first sampled token.");
    m->inter_token = seconds(r, "godwit_inter_token_latency_seconds",
                             "Between two sampled tokens of a request.");
    m->queue_time = seconds(r, "godwit_request_queue_time_seconds",
                            "From arrival to the first place in a batch.");
    m->prefill_time = seconds(r, "godwit_request_prefill_time_seconds",
                              "From the first batch to the first token.");
    m->decode_time = seconds(r, "godwit_request_decode_time_seconds",
                             "From the first token to the end.");
    m->latency = seconds(r, "godwit_e2e_request_latency_seconds",
                         "From arrival to the end.");
    m->commit_lag = seconds(r, "godwit_commit_lag_seconds",
                            "Write and sync of one group commit.");
    m->iteration_tokens = metrics_histogram(r, "godwit_iteration_tokens", "",
                                            "Rows of one engine step.", 1, 13);
    m->state_rms = metrics_histogram(
        r, "godwit_state_rms", "",
        "Of each snapshot, the largest root mean square of a head's recurrent "
        "state; infinite if it has a number that is none.",
        STATE_RMS_FIRST, STATE_RMS_BUCKETS);
}

static void counters(struct metrics *r, struct engine_metrics *m)
{
    static const char *const finish[] = {
        NULL,        "stop",    "length", "stop_sequence",
        "cancelled", "drained", "error"};
    char labels[96];

    m->prompt_tokens = metrics_counter(r, "godwit_prompt_tokens_total", "",
                                       "Input tokens accepted.");
    m->generation_tokens = metrics_counter(r, "godwit_generation_tokens_total",
                                           "", "Tokens sampled.");
    m->cache_queries =
        metrics_counter(r, "godwit_prefix_cache_queries_total", "",
                        "Tokens that requests needed in memory.");
    m->cache_hits =
        metrics_counter(r, "godwit_prefix_cache_hits_total", "",
                        "Those of them that were resident or restored.");
    m->state_capped = metrics_counter(
        r, "godwit_state_capped_total", "",
        "Times that a head's recurrent state was scaled down to --state-cap.");
    for (int i = 0; i < REUSE_REASON_COUNT; i++) {
        (void)snprintf(labels, sizeof(labels), "reason=\"%s\"",
                       reuse_name((enum restore_reason_code)i));
        if (i > REUSE_NOT_NEEDED)
            m->reuse[i] =
                metrics_counter(r, "godwit_prefix_reuse_total", labels,
                                "Requests by what they began from.");
        if (i >= REUSE_EVICTED)
            m->refused[i] =
                metrics_counter(r, "godwit_snapshot_refusals_total", labels,
                                "Snapshots that were read and not used.");
    }
    m->prefix_tokens =
        metrics_counter(r, "godwit_prefix_reuse_tokens_total", "",
                        "Tokens not computed since another's snapshot has "
                        "them.");
    m->expired = metrics_counter(r, "godwit_sessions_expired_total", "",
                                 "Sessions deleted since their time was over.");
    m->block_reads =
        metrics_counter(r, "godwit_kv_block_reads_total", "",
                        "Blocks of one layer that came back from the store.");
    m->block_hits = metrics_counter(
        r, "godwit_kv_block_hits_total", "",
        "Blocks of one layer that a step saw and that were in RAM.");
    m->block_bytes = metrics_gauge(r, "godwit_kv_block_bytes", "",
                                   "RAM of blocks that may leave it.");
    m->block_bytes_shared =
        metrics_gauge(r, "godwit_kv_block_bytes_shared", "",
                      "Of these, what several sessions see, counted once.");
    m->store_evictions =
        metrics_counter(r, "godwit_store_evictions_total", "",
                        "Sessions that lost snapshots for --store-limit.");
    m->preemptions =
        metrics_counter(r, "godwit_num_preemptions_total", "",
                        "Sessions and requests that made room for others.");
    for (int i = 1; i < 7; i++) {
        (void)snprintf(labels, sizeof(labels), "finish_reason=\"%s\"",
                       finish[i]);
        m->success[i] = metrics_counter(r, "godwit_request_success_total",
                                        labels, "Turns that ended.");
    }
    for (size_t i = 0; i < N_REJECTION; i++) {
        (void)snprintf(labels, sizeof(labels), "reason=\"%s\"", rejection[i]);
        m->rejections[i] =
            metrics_counter(r, "godwit_admission_rejections_total", labels,
                            "Requests that were refused.");
    }
}

static void swaps(struct metrics *r, struct engine_metrics *m)
{
    m->swap_out =
        metrics_counter(r, "godwit_swap_bytes_total", "way=\"out\"",
                        "Of sessions, carried between device and host.");
    m->swap_in =
        metrics_counter(r, "godwit_swap_bytes_total", "way=\"in\"",
                        "Of sessions, carried between device and host.");
    m->swap_wait = seconds(r, "godwit_swap_wait_seconds",
                           "That a request waited for its session's memory to "
                           "come back to the device.");
    m->on_device = metrics_gauge(r, "godwit_sessions_tier", "tier=\"device\"",
                                 "Sessions by where what is theirs lies.");
    m->on_host = metrics_gauge(r, "godwit_sessions_tier", "tier=\"host\"",
                               "Sessions by where what is theirs lies.");
    m->in_store = metrics_gauge(r, "godwit_sessions_tier", "tier=\"store\"",
                                "Sessions by where what is theirs lies.");
}

void gauges_init(struct engine *engine)
{
    struct metrics *r = engine->options.metrics;
    struct engine_metrics *m = &engine->metrics;

    if (!r)
        return;
    m->running = metrics_gauge(r, "godwit_num_requests_running", "",
                               "Requests in the batch.");
    m->waiting = metrics_gauge(r, "godwit_num_requests_waiting", "",
                               "Requests that wait for a place.");
    m->cache_usage = metrics_gauge(r, "godwit_kv_cache_usage_ratio", "",
                                   "Share of the memory for sessions in use.");
    m->slots_used =
        metrics_gauge(r, "godwit_state_slots_used", "", "Sessions in memory.");
    m->state_bytes =
        metrics_gauge(r, "godwit_state_bytes", "",
                      "States of sessions in memory, and images of them.");
    m->state_bytes_max = metrics_gauge(r, "godwit_state_bytes_max", "",
                                       "Of them at most; 0: no limit.");
    m->sessions = metrics_gauge(r, "godwit_sessions", "state=\"all\"",
                                "Sessions that exist.");
    m->prefix_entries =
        metrics_gauge(r, "godwit_prefix_snapshots", "",
                      "Stored snapshots that a prompt may begin from.");
    m->prefix_bytes =
        metrics_gauge(r, "godwit_prefix_store_bytes", "",
                      "Of the store: snapshots of prompts without a session.");
    m->stored_bytes = metrics_gauge(r, "godwit_store_bytes", "",
                                    "Of snapshots and blocks in the store.");
    histograms(r, m);
    counters(r, m);
    if (model_device(engine->options.model))
        swaps(r, m);
}

static void count_capped(struct engine *engine)
{
    const uint64_t n = workspace_n_capped(engine->decode.workspace) +
                       workspace_n_capped(engine->prompt.workspace);

    metric_add(engine->metrics.state_capped, n - engine->n_capped);
    engine->n_capped = n;
}

void gauges_set(struct engine *engine)
{
    const struct engine_metrics *m = &engine->metrics;
    struct prefix_stats stats = prefix_stats(engine->prefix);

    metric_set(m->running, engine->n_running);
    metric_set(m->waiting, engine->n_request - engine->n_running);
    metric_set(m->cache_usage, (double)charge_total(engine) /
                                   (double)engine->options.session_bytes);
    metric_set(m->slots_used, (double)engine->n_resident);
    metric_set(m->state_bytes, (double)engine->state_charged);
    metric_set(m->state_bytes_max, (double)engine->options.state_bytes);
    metric_set(m->sessions, (double)engine->n_session);
    metric_set(m->on_device,
               (double)(engine->n_resident - engine->swap.n_aside));
    metric_set(m->on_host, (double)engine->swap.n_aside);
    /* Those without a name are in memory alone. */
    metric_set(m->in_store,
               engine->n_session > engine->n_resident
                   ? (double)(engine->n_session - engine->n_resident)
                   : 0);
    metric_set(m->stored_bytes, (double)engine->stored.total);
    if (engine->options.pager) {
        const uint64_t n_read = pager_n_read(engine->options.pager);
        const uint64_t n_hit = pager_n_hit(engine->options.pager);

        metric_add(m->block_reads, n_read - engine->n_block_read);
        metric_add(m->block_hits, n_hit - engine->n_block_hit);
        engine->n_block_read = n_read;
        engine->n_block_hit = n_hit;
        metric_set(m->block_bytes, (double)pager_bytes(engine->options.pager));
        metric_set(m->block_bytes_shared,
                   (double)pager_shared_bytes(engine->options.pager));
    }
    count_capped(engine);
    metric_set(m->prefix_entries, stats.n_entry);
    metric_set(m->prefix_bytes, (double)stats.loose_bytes);
}

void gauges_reject(struct engine *engine, const struct cause *cause)
{
    for (size_t i = 0; i < N_REJECTION; i++)
        if (strcmp(cause->reason, rejection[i]) == 0)
            metric_add(engine->metrics.rejections[i], 1);
}
