#include "scheduler/engine_calls.h"

#include <stdlib.h>

void logs_hold(struct engine *engine, const struct log_path *path)
{
    if (lineage_add(&engine->lineage, path))
        (void)engine_need(NULL);
}

void logs_release(struct engine *engine, const struct log_path *path)
{
    uint64_t before[LOG_PATH_MAX];

    for (uint32_t i = 0; i < path->n; i++)
        before[i] = lineage_need(&engine->lineage, path->piece[i].log);
    lineage_remove(&engine->lineage, path);
    for (uint32_t i = 0; i < path->n; i++) {
        struct uid log = path->piece[i].log;
        uint64_t need = lineage_need(&engine->lineage, log);

        if (need == before[i])
            continue;
        flight_trim(engine, log, need);
        jobs_delete(engine, log);
    }
}

struct sweep {
    const struct lineage *lineage;
    struct journal_batch *batch;
    uint64_t n_log;
};

static enum status sweep_log(void *context, struct uid log)
{
    struct sweep *sweep = context;
    uint64_t need = lineage_need(sweep->lineage, log);

    if (need == UINT64_MAX)
        return STATUS_OK;
    journal_trim_log(sweep->batch, log, need);
    sweep->n_log += need == 0;
    return STATUS_OK;
}

enum status logs_sweep(struct engine *engine)
{
    struct journal *journal = engine->options.journal;
    struct sweep sweep = {.lineage = &engine->lineage,
                          .batch = engine_need(journal_batch_create(journal))};
    enum status st = journal_each_log(journal, sweep_log, &sweep);

    if (!st && !journal_batch_is_empty(sweep.batch))
        st = journal_commit(journal, &sweep.batch, 1, false);
    journal_batch_destroy(sweep.batch);
    if (!st && sweep.n_log > 0)
        log_line(LOG_INFO, "engine", "",
                 "%lu logs that no session reads deleted", sweep.n_log);
    return st;
}

/* Ancestors store on: what they have by now need not be written again. */
static void extend(const struct engine *engine, const struct session *session,
                   struct log_path *base)
{
    uint64_t limit = resident_position(session->resident), begin = 0;

    for (uint32_t i = 0; i + 1 < session->n_piece; i++) {
        const struct log_piece *piece = &session->piece[i];
        uint64_t end = prefix_newest(engine->prefix, piece->log);

        end = end < piece->end ? end : piece->end;
        end = (end < limit ? end : limit) / KV_BLOCK * KV_BLOCK;
        /* It has no block of tokens before its begin, unless by chance. */
        if (log_pieces_end(base) >= begin / KV_BLOCK * KV_BLOCK)
            log_pieces_add(base, piece->log, end);
        begin = piece->end;
    }
}

uint64_t logs_stored(const struct engine *engine, const struct session *session,
                     struct log_path *out_base)
{
    const struct resident *resident = session->resident;
    uint64_t stored = resident->snapshot_position, kept;
    struct log_path path;

    *out_base = resident->base;
    session_path(session, &path);
    kept = log_path_keeps(&path, out_base) / KV_BLOCK * KV_BLOCK;
    if (kept < log_pieces_end(out_base)) {
        log_pieces_cut(out_base, kept);
        stored = kept;
    }
    if (stored / KV_BLOCK * KV_BLOCK <= log_pieces_end(out_base))
        extend(engine, session, out_base);
    return stored > log_pieces_end(out_base) ? stored
                                             : log_pieces_end(out_base);
}

static void lose(struct engine *engine, struct session *session,
                 const struct scrub_loss *loss)
{
    struct resident *resident = session->resident;
    uint64_t kept = resident->snapshot_position;

    for (uint32_t i = 0; i < resident->base.n; i++)
        if (uid_equal(resident->base.piece[i].log, loss->log) &&
            loss->blocks < kept)
            kept = loss->blocks;
    if (uid_equal(session_log(session), loss->log)) {
        kept = kept < loss->newest ? kept : loss->newest;
        kept = kept < loss->blocks ? kept : loss->blocks;
    }
    if (kept == resident->snapshot_position)
        return;
    paged_lose(resident);
    log_pieces_cut(&resident->base, kept / KV_BLOCK * KV_BLOCK);
    resident->snapshot_position = kept;
    resident->snapshot_chain =
        digest_tokens(engine->empty_chain, resident->tokens.id, kept);
}

void logs_lose(struct engine *engine, const struct scrub_loss *loss)
{
    for (uint64_t i = 0; i < engine->n_session; i++)
        if (engine->table[i]->resident)
            lose(engine, engine->table[i], loss);
}
