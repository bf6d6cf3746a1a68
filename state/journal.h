#ifndef STATE_JOURNAL_H
#define STATE_JOURNAL_H
/*
 * The truth: for every session its meta data, its tokens in order and its
 * turns. Records are framed (proto/frame.h: magic, version, digest) under keys
 * that start with a uid, big-endian, so that one log is one range and one seek
 * finds its end.
 *
 *   'm' session         session_meta; its path says which logs it reads
 *   'k' log be64(pos)   tokens [pos, pos + n) and the chain hash after them
 *   't' log be64(pos)   turn that begins at pos; written again at its end
 *
 * A log begins where its path leaves the logs before it, so its positions are
 * the session's. Turns are never inherited.
 *
 * Records of one engine step are gathered in a journal_batch by the engine
 * thread and written by the journal thread with one sync (group commit):
 * a token is sent only after its batch is durable.
 */
#include "base/digest.h"
#include "model/tokenizer.h"
#include "state/session.h"
#include "state/store.h"

struct journal;

/*
 * Open the journal in a store, which must outlive it. The empty chain is the
 * model's fingerprint; a journal made with another model opens, too: its
 * sessions are kept and refused at use (FAILED_PRECONDITION,
 * MODEL_FINGERPRINT_MISMATCH).
 */
MUST_CHECK enum status journal_open(struct store *store,
                                    struct digest fingerprint,
                                    struct journal **out);
void journal_close(struct journal *journal);

/* One step's records. Filled by one thread, then handed over. */
struct journal_batch;
/* NULL: no memory. A put that finds none later makes the commit fail. */
struct journal_batch *journal_batch_create(struct journal *journal);
void journal_batch_destroy(struct journal_batch *batch);
void journal_batch_clear(struct journal_batch *batch);
bool journal_batch_is_empty(const struct journal_batch *batch);

void journal_put_session(struct journal_batch *batch,
                         const struct session_meta *meta);
/* The session is gone; its log stays. */
void journal_delete_session(struct journal_batch *batch, struct uid uid);
/*
 * Nobody appends to this log any more, and only its positions below n_token are
 * read: forget its turns, and the rows of tokens behind.
 */
void journal_trim_log(struct journal_batch *batch, struct uid log,
                      uint64_t n_token);
/* chain: digest_tokens() of everything up to and including these. */
void journal_put_tokens(struct journal_batch *batch, struct uid log,
                        uint64_t position, const uint32_t *token,
                        uint32_t n_token, struct digest chain);
void journal_put_turn(struct journal_batch *batch, struct uid log,
                      const struct turn *turn);

/*
 * As store_write_all(): one batch or several, in order, all or nothing, with
 * one sync if `sync`.
 */
MUST_CHECK enum status journal_commit(struct journal *journal,
                                      struct journal_batch *const *batch,
                                      uint32_t n_batch, bool sync);

/*
 * Call visit for every session, in order of uid, with the number of its tokens
 * (one seek each, of its own log). A record that fails its digest is logged,
 * counted in *out_n_bad and skipped; if it was the last of a session's tokens,
 * n_token ends at the last sound one and reading the session will say
 * DATA_LOSS. Stops when visit returns non-zero and returns that. as
 * store_scan_open() and store_scan_status()
 */
typedef enum status
journal_visit(void *context, const struct session_meta *meta, uint64_t n_token);
MUST_CHECK enum status journal_each_session(struct journal *journal,
                                            journal_visit *visit, void *context,
                                            uint64_t *out_n_bad);

/*
 * Call visit for every log that has tokens, in order of uid. Stops when visit
 * returns non-zero and returns that.
 *   as store_scan_open() and store_scan_status()
 */
typedef enum status journal_visit_log(void *context, struct uid log);
MUST_CHECK enum status journal_each_log(struct journal *journal,
                                        journal_visit_log *visit,
                                        void *context);

/*
 * Append all tokens of a path to *out and give their chain hash, checked
 * record by record. No tokens, and the fingerprint, for unknown logs.
 *   DATA_LOSS            a gap, a bad record or a piece that ends too early:
 *                        names the last good position (reason
 *                        SESSION_LOG_LOST); *out holds what was good
 *   FAILED_PRECONDITION  another model's chain (MODEL_FINGERPRINT_MISMATCH):
 *                        the first record is sound but its chain is not ours
 *   RESOURCE_EXHAUSTED   no memory
 *   INTERNAL             the disk failed
 */
MUST_CHECK enum status journal_read_tokens(struct journal *journal,
                                           const struct log_path *path,
                                           struct ids *out,
                                           struct digest *out_chain);

/*
 * For who checks or copies a log: its rows as they are stored, in order, from
 * `from` on. Stops when visit returns non-zero and returns that.
 *   as store_scan_open() and store_scan_status()
 */
enum journal_rows { JOURNAL_TOKENS = 'k', JOURNAL_TURNS = 't' };
typedef enum status journal_visit_row(void *context, uint64_t position,
                                      const void *bytes, size_t n_bytes);
MUST_CHECK enum status journal_each_row(struct journal *journal, struct uid log,
                                        enum journal_rows rows, uint64_t from,
                                        journal_visit_row *visit,
                                        void *context);
/* The record of a session as it is stored; free() it.  as store_get() */
MUST_CHECK enum status journal_get_record(struct journal *journal,
                                          struct uid session, void **out,
                                          size_t *out_bytes);
/* Of no tokens. */
struct digest journal_empty_chain(const struct journal *journal);

/* NOT_FOUND: the log has no turn yet.  DATA_LOSS: its record is bad. */
MUST_CHECK enum status journal_last_turn(struct journal *journal,
                                         struct uid log, struct turn *out);
#endif
