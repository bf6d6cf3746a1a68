#ifndef SCHEDULER_ENGINE_CALLS_H
#define SCHEDULER_ENGINE_CALLS_H
/*
 * What the engine's files call of each other, file by file; nobody else
 * includes it.
 */
#include "scheduler/engine_parts.h"

/* Memory for a few bytes is not to be had: nothing can be told to anyone, so
 * stop; the journal has everything. Returns its argument otherwise. */
void *engine_need(void *block);
uint64_t engine_now_us(const struct engine *engine);
uint64_t engine_wall_ms(const struct engine *engine);

/* --- table.c --- */
struct session *table_find(const struct engine *engine, const char *name);
/* Index of the first session whose name is not below `name`. */
uint64_t table_seek(const struct engine *engine, const char *name);
void table_add(struct engine *engine, struct session *session);
void table_remove(struct engine *engine, struct session *session);
/* In order of nothing; table_sort() once at the end. */
void table_load(struct engine *engine, struct session *session);
void table_sort(struct engine *engine);
struct session *session_create(const struct session_meta *meta);
/* Free it if nothing points to it any more. */
void session_put(struct session *session);
void session_meta_get(const struct session *session, struct session_meta *out);
void session_meta_set(struct session *session, const struct session_meta *meta);
/* Its log: what it appends to; and all that it reads. */
struct uid session_log(const struct session *session);
void session_path(const struct session *session, struct log_path *out);
void session_etag(const struct session *session, char out[24]);
void session_info_get(const struct engine *engine,
                      const struct session *session, struct session_info *out);

/* --- resident.c --- */
/* Room for so many more.
 *   RESOURCE_EXHAUSTED */
MUST_CHECK enum status tokens_reserve(struct ids *tokens, uint64_t n_token);
MUST_CHECK enum status tokens_append(struct ids *tokens, const uint32_t *token,
                                     uint64_t n_token);
uint64_t resident_position(const struct resident *resident);
/* Empty, for a session without tokens. */
void resident_make(struct engine *engine, struct session *session);
/*
 * Let go of its memory, stored first if that is worth it, once nothing of it is
 * under way; not if it has a request, nor its log elsewhere.
 */
void resident_park(struct engine *engine, struct session *session);
/* Let go of everything in memory; jobs under way finish without us. */
void resident_drop(struct engine *engine, struct session *session);
/* It is not to be evicted any more. */
void resident_stay(struct engine *engine, struct session *session);
/* Answer what waits for a snapshot, or take the image for it. */
void resident_answer(struct engine *engine, struct resident *resident);
/* Are its memory's bytes a lane's now? */
bool session_is_in_pass(const struct session *session);
/* Move a session into or out of the list of evictable ones, as it is now. */
void resident_touch(struct engine *engine, struct session *session);
/* It has served another one: if it is in that list, the others leave first. */
void resident_use(struct engine *engine, struct session *session);
/* Back to the first n_token tokens of the log; images of more are dropped. */
void resident_truncate(struct engine *engine, struct session *session,
                       uint64_t n_token);
/*
 * True if the session may hold so many bytes now; else room is being made:
 * idle sessions leave, then what requests hold that do not run is stored and
 * freed, then running ones of lower priority go back to the queue.
 */
bool resident_room(struct engine *engine, struct session *session,
                   size_t bytes);
/* Is what sessions have within the budget, maybe now that pages of idle ones
 * went? */
bool resident_trim(struct engine *engine);
/* What a session holds when it has n_token tokens; NULL: one that sees all. */
size_t resident_bytes(const struct engine *engine,
                      const struct session *session, uint64_t n_token);
/* The same with a memory that is to be made for it. */
size_t resident_fresh_bytes(const struct engine *engine,
                            const struct session *session, uint64_t n_token);
/* Back to its log alone; not in a pass. */
void resident_forget(struct engine *engine, struct session *session);
/* An empty memory under the session's policy.  RESOURCE_EXHAUSTED  no memory */
MUST_CHECK enum status resident_memory(const struct engine *engine,
                                       const struct session *session,
                                       struct memory **out);
/* Names the cause of one that was not given: is there no room, or no device? */
void resident_no_memory(void);
/*
 * Take an image of the memory now and save it when it is committed; not if
 * there is one under way or nothing new. Unless is_wanted it is skipped when
 * many wait. True if an image is under way now.
 */
bool resident_save(struct engine *engine, struct session *session,
                   bool is_wanted);
/* Is a snapshot of it worth writing, or a replay as good? Or is it under way?
 */
bool resident_is_worth(const struct resident *resident);
/*
 * The same for a turn that has ended, when resident_save_later() is called
 * behind the step's commits: an image is copied for up to a millisecond, and
 * the last tokens of all turns that end together would wait for all of them.
 */
void resident_later(struct engine *engine, struct session *session);
void resident_save_later(struct engine *engine);
/* Answer the reply by a snapshot of all that memory has consumed. */
void resident_checkpoint(struct engine *engine, struct session *session,
                         uint64_t reply);
/* What a LOAD brought becomes the session's; taken out of the job. */
void resident_install(struct engine *engine, struct session *session,
                      struct store_job *job);
/* A SAVE is over, well or not. */
void resident_saved(struct engine *engine, const struct store_job *job);
/* One that leaves, when it is stored and nothing carries it. */
void resident_go(struct engine *engine, struct session *session);
/* The store thread needs its image, which was no snapshot, no more. */
void resident_compared(struct engine *engine, struct resident *resident);

/*
 * A snapshot for others, at the point where the memory is now: the session's
 * own if it is durable, else a loose one.
 */
void resident_save_shared(struct engine *engine, struct session *session);

/* What evicts it from memory: it is stored first, if that is worth it; one that
 * is not durable keeps its tokens. */
void resident_leave(struct engine *engine, struct session *session);
/* Its image, if that is its own and the store thread has not got it. */
bool resident_drop_image(struct engine *engine, struct resident *resident);

/* --- swap.c --- */
/* RESOURCE_EXHAUSTED  no such host memory */
MUST_CHECK enum status swap_open(struct engine *engine);
void swap_close(struct engine *engine);
/* Once a step: what has arrived, and what is carried next. */
void swap_step(struct engine *engine);
/* True: its memory is on its way aside, and it leaves. False: it must go to the
 * store. */
bool swap_out(struct engine *engine, struct session *session);
/* True: its session's memory is aside and comes back first, or it has failed.
 */
bool swap_back(struct engine *engine, struct request *request);
bool swap_is_aside(const struct resident *resident);
bool swap_comes_back(const struct resident *resident);
/* If its memory is on its way out, it stays. */
void swap_stay(struct resident *resident);
/* Free its memory, once nothing carries it. */
void swap_let_go(struct engine *engine, struct resident *resident);
/* One that is aside leaves for the store, for its tokens count as well; none
 * while a session's commit is all that keeps more than that from making room.
 */
bool swap_evict_one(struct engine *engine);

/* --- paged.c --- */
/* Has a session of this policy and durability, or has its memory, pages? */
bool paged_is(const struct engine *engine, const struct session *session);
/* Give an empty memory its pages, if the session is to have some. */
MUST_CHECK enum status paged_begin(const struct engine *engine,
                                   const struct session *session,
                                   struct memory *memory);
/* What it may come to hold, with the pages that it may have now, or with those
 * of a memory that is to be made. */
size_t paged_bytes(const struct engine *engine, const struct session *session,
                   uint64_t n_token);
size_t paged_fresh_bytes(const struct engine *engine,
                         const struct session *session, uint64_t n_token);
/*
 * Before it counts room: pages of its memory are limited to what this turn
 * needs, unless more are free. Then promise is of these.
 */
void paged_begin_turn(const struct engine *engine, struct request *request);
/* An idle one's pages go that can be read again. Was there any? */
bool paged_trim(struct session *session);
/* False: blocks in RAM are not stored, which are its alone. */
bool paged_may_fork(const struct resident *resident);
/* Look which of its pages others hold, too. */
void paged_count_shared(const struct resident *resident);
/* So many leading tokens of its memory were saved. */
void paged_stored(struct session *session, uint64_t n_token,
                  const struct log_path *base);
/*
 * Of what a prompt could start from: such as are its own, which it reads for as
 * long as it runs, so their logs must be kept for it; else those that fit into
 * its pages, as if it had computed them. Not of both kinds.
 */
void paged_sources(const struct engine *engine, const struct session *session,
                   struct prefix_answer *answer);
/* A memory is about to be filled from one of these. */
void paged_fetch(const struct session *session, struct memory *memory,
                 const struct snapshot_source *best);
/* Its memory is of this snapshot now. */
void paged_fetched(struct session *session,
                   const struct snapshot_source *source);
/* Its memory goes. What was not stored by it must be stored again, if it has
 * pages the next time. */
void paged_forget(const struct engine *engine, struct resident *resident);
/* Could an image be taken of all behind `from`? */
bool paged_has(const struct resident *resident, uint64_t from);
/* Bytes in RAM of a layer's n_block blocks. */
size_t paged_in_ram(const struct resident *resident, uint32_t layer,
                    uint64_t n_block, const struct mixer_plan *plan);
/* What its steps found of that layer; zeros of a session without pages. */
struct paging_use paged_use(const struct resident *resident, uint32_t layer);
/* What it would read is not there any more. */
void paged_lose(struct resident *resident);
/*
 * Can its next row be computed now? If not, either its blocks are on their way,
 * or it has to be saved first, which is asked for, or it goes back to the queue
 * to be computed again.
 */
bool paged_ready(struct engine *engine, struct request *request);
/* Tokens that its next pass may bring: as many as it has, unless it has pages.
 * 0 as for paged_ready(). */
uint64_t paged_room(struct engine *engine, struct request *request);
/* True: what was computed of it means nothing; it is in the queue again or, if
 * that was so before, has failed. */
bool paged_is_lost(struct engine *engine, struct request *request);

/* --- keep.c --- */
/* This log has so many bytes in the store now; if that is too much with all
 * others, least recently used sessions lose theirs. */
void keep_stored(struct engine *engine, struct uid log, size_t bytes);
void keep_within(struct engine *engine);
void keep_evicted(struct engine *engine, const struct store_job *job);
void keep_release(struct engine *engine);
/*
 * May this tenant have so many sessions and tokens more?
 *   RESOURCE_EXHAUSTED  TENANT_QUOTA, with the quota's name as its field
 */
MUST_CHECK enum status keep_quota(struct engine *engine, const char *tenant,
                                  uint64_t n_session, uint64_t n_token);

/* --- prefix.c --- */
/* The owner has these snapshots now. */
void prefix_listed(struct engine *engine, const struct store_job *job);
/* The index, from what the store has; what no session owns is deleted.
 *   as prefix_create() and snapshots_each() */
MUST_CHECK enum status prefix_open(struct engine *engine);
/*
 * True: the request waits, since a snapshot that serves it better than its
 * memory is being read. Also notes where to take one on the way.
 */
bool prefix_seek(struct engine *engine, struct request *request);
/* The end of the next chunk of tokens that would reach to `target`. */
uint64_t prefix_stop(const struct request *request, uint64_t position,
                     uint64_t target);
/* Its memory stands at `position` now. */
void prefix_passed(struct engine *engine, struct request *request,
                   uint64_t position);
/* The request begins to compute: say what it starts from. */
void prefix_started(struct engine *engine, struct request *request);
/* Its input is consumed. */
void prefix_measure(struct engine *engine, const struct request *request);
/* A job goes to the store thread, or comes back. */
void prefix_job_sent(struct engine *engine, struct store_job *job,
                     uint64_t n_byte);
void prefix_job_done(struct engine *engine, const struct store_job *job);
/* A DELETE is over. */
void prefix_trimmed(struct engine *engine, const struct store_job *job);
void prefix_saved(struct engine *engine, const struct store_job *job);
/* A session was made together with a snapshot. */
void prefix_imported(struct engine *engine, const struct session *session,
                     const struct snapshot_entry *entry);
void prefix_fetched(struct engine *engine, struct store_job *job);
void prefix_deleted(struct engine *engine, const struct session *session);
enum restore_reason_code prefix_word(enum restore_reason reason);
/* Prompts find snapshots of their own tenant only; where sharing is off, of
 * their own session. */
uint64_t prefix_scope(const struct engine *engine,
                      const struct session *session, const char *tenant);

/* --- jobs.c --- */
MUST_CHECK struct store_job *jobs_create(enum store_job_kind kind,
                                         struct uid uid, void *owner);
/* False when too many are out; the job is freed then. */
bool jobs_push(struct engine *engine, struct store_job *job);
/* Its snapshots are to be deleted, so far as its log is not needed. */
void jobs_delete(struct engine *engine, struct uid uid);
/* Send images that have become durable, loads and deletes that wait. */
void jobs_send(struct engine *engine);
/* Take what the store thread has finished. */
void jobs_receive(struct engine *engine);
/*
 * Read a parked session's log for READ_TOKENS.
 *   RESOURCE_EXHAUSTED  QUEUE_FULL
 */
MUST_CHECK enum status jobs_read(struct engine *engine, struct session *session,
                                 uint64_t reply, uint64_t from, uint64_t limit);
/* Cut a range of tokens into EVENT_LOG pieces. */
void jobs_log(struct engine *engine, uint64_t reply, const uint32_t *token,
              uint64_t n_token, uint64_t from, uint64_t limit);

/* --- flight.c --- */
/* event->reply 0: the event is destroyed. */
void flight_event(struct engine *engine, struct event *event);
void flight_error(struct engine *engine, uint64_t reply,
                  const struct cause *cause);
void flight_done(struct engine *engine, uint64_t reply);
/* Records of durable sessions; nothing for others. */
void flight_create(struct engine *engine, struct session *session);
void flight_update(struct engine *engine, struct session *session,
                   const struct session_meta *earlier);
void flight_delete(struct engine *engine, struct session *session);
/* It has another path, and nothing of it in memory that is not in the log. */
void flight_lineage(struct engine *engine, struct session *session,
                    const struct session_meta *earlier, uint64_t n_committed);
/* Nobody appends to this log, and only so many of its positions are read. */
void flight_trim(struct engine *engine, struct uid log, uint64_t n_token);
/* Its durability has just become more than NONE: journal all there is. */
void flight_upgrade(struct engine *engine, struct session *session,
                    const struct session_meta *earlier);
/* Tokens [from, n_token) of the log; chain: of those before them. */
void flight_tokens(struct engine *engine, struct session *session,
                   uint64_t from, struct digest chain);
void flight_turn(struct engine *engine, struct session *session);
/* One of a session that is created with its log. */
void flight_past_turn(struct engine *engine, const struct session *session,
                      const struct turn *turn);
/* Hand over what was gathered; true if all is with the journal thread. */
bool flight_send(struct engine *engine);
/* Take the journal thread's reports. */
void flight_receive(struct engine *engine);
void flight_destroy_all(struct engine *engine);

/* --- request.c --- */
/* A copy of `asked`, which schedule_admit() has let in: linked into the queue,
 * the session's request from now on. */
struct request *request_create(struct engine *engine,
                               const struct request *asked);
/* Take it out of the queue and let its session be idle. */
void request_free(struct engine *engine, struct request *request);
/* Start, or go on with, the session's last turn: it waits for a place now. */
void request_begin(struct engine *engine, struct request *request);
void request_accepted(struct engine *engine, struct request *request);
/* Send the turn's output from `from` on, and leave text at its end. */
void request_replay(struct engine *engine, struct request *request,
                    uint64_t from);
/* PROGRESS, when it is time, after a step that consumed n_token. */
void request_progress(struct engine *engine, struct request *request,
                      uint32_t n_token);
/* One more token of its output; frees the request when the turn ends so. */
void request_sampled(struct engine *engine, struct request *request,
                     uint32_t token, const struct logprobs *logprobs);
/* The turn is over: journal that, tell the reader, free the request. */
void request_finish(struct engine *engine, struct request *request,
                    enum finish_reason finish);
/* COMPLETE to the reader, nothing else. */
void request_complete(struct engine *engine, struct request *request,
                      enum finish_reason finish);
/* End with an error for the reader. An admitted turn is closed as `finish`;
 * but after FINISH_ERROR one with a request_id stays open for a retry. */
void request_fail(struct engine *engine, struct request *request,
                  enum finish_reason finish, const struct cause *cause);
/* When its reader goes or its time is over: has it no turn to close, or one
 * that a retry can name? */
bool request_stays_open(const struct request *request);
/* Is it a turn that its session's log knows of, or will? */
bool request_is_turn(const struct request *request);
/* The commit that carried its tokens is lost: tell the reader, write nothing.
 */
void request_lose(struct engine *engine, struct request *request,
                  const struct cause *cause);
/* Stop computing; the turn stays open. FINISH_NONE: tell nobody. */
void request_interrupt(struct engine *engine, struct request *request,
                       enum finish_reason finish);
/* Out of the batch: it waits in its place of the queue, counted as it is. */
void request_step_back(struct engine *engine, struct request *request);
void request_pause(struct request *request, struct engine *engine);
/* In front of its equals, since it was served before. */
void request_resume(struct request *request, struct engine *engine);
struct request *request_by_reply(const struct engine *engine, uint64_t reply);
/* Position that its memory has to reach. */
uint64_t request_target(const struct request *request);
/* Bytes that a log of n_token tokens may grow to with max_tokens more. */
size_t request_promise(const struct engine *engine,
                       const struct session *session, uint64_t n_token,
                       uint64_t max_tokens);

/* --- generate.c --- */
/* Owns the command. */
void generate_arrive(struct engine *engine, struct command *command);
/* Its session is in memory: check and accept, or refuse. */
void generate_admit(struct engine *engine, struct request *request);
/* A new session's uid and times; the name becomes the uid's text if it is "".
 *   INTERNAL  as uid_make() */
MUST_CHECK enum status generate_meta(struct engine *engine,
                                     struct session_meta *meta);
/* Close an interrupted turn as cancelled: another one begins. */
void generate_close(struct engine *engine, struct session *session);

/* --- reread.c --- */
/* Tokens that a turn feeds, what is read again among them; of a session that is
 * not in memory maybe an opening more. */
uint64_t reread_input(const struct engine *engine,
                      const struct session *session,
                      const struct generate_command *g);
/* Is there anything to be read again?
 *   INVALID_ARGUMENT  REREAD_EMPTY */
MUST_CHECK enum status reread_check(const struct engine *engine,
                                    const struct session *session,
                                    const struct generate_command *g);
/* Append what the turn feeds to its tokens in memory: all of it, or nothing.
 *   RESOURCE_EXHAUSTED */
MUST_CHECK enum status reread_append(const struct engine *engine,
                                     const struct session *session,
                                     const struct generate_command *g);

/* --- excerpt.c --- */
/* Whose log and turn it is, whatever session it works with. */
struct session *request_asker(const struct request *request);
/* Bytes that such a reply takes beside the session's own. */
size_t excerpt_promise(const struct engine *engine,
                       const struct excerpt *excerpt, uint64_t n_token,
                       uint64_t max_tokens);
/* Tokens that the turn's reply is made from. */
uint64_t excerpt_count(const struct turn *turn);
/* Layers that its rows go through; 0: all. */
uint32_t excerpt_layers(const struct request *request);
/* Behind request_begin() of any turn.  RESOURCE_EXHAUSTED */
MUST_CHECK enum status excerpt_begin(struct engine *engine,
                                     struct request *request);
/* Its memory has come to the end of its stage: it waits for a place again, or
 * has failed. */
void excerpt_next(struct engine *engine, struct request *request);
/* The asker's log has one token more.  RESOURCE_EXHAUSTED */
MUST_CHECK enum status excerpt_sampled(struct request *request, uint32_t token);
/* It works for nobody but its own session any more: it is about to go. */
void excerpt_leave(struct engine *engine, struct request *request);

/* --- control.c --- */
void control_command(struct engine *engine, struct command *command);
/* Its expiry is over: delete it, if it has no request. */
void control_expire(struct engine *engine, struct session *session);
/* Carry out what waited for the end of a pass. */
void control_release(struct engine *engine);
/* Find a session that has not expired, and that the command may see: another
 * tenant's is as if it were not there.  NOT_FOUND  SESSION_NOT_FOUND */
MUST_CHECK enum status control_find(struct engine *engine,
                                    const struct command *command,
                                    const char *name, struct session **out);

/* Has the etag the session's value?  ABORTED  ETAG_MISMATCH */
MUST_CHECK enum status control_check_etag(const struct session *session,
                                          const char *etag);
/* UNAVAILABLE  NODE_DRAINING */
MUST_CHECK enum status control_check_draining(const struct engine *engine);
/* May a session of this name ("": any) be made?
 *   ALREADY_EXISTS SESSION_EXISTS, RESOURCE_EXHAUSTED STATE_SLOTS */
MUST_CHECK enum status control_check_new(struct engine *engine,
                                         const char *name);
/* Bring its memory up to its log and store it; the reply gets a checkpoint.
 * Under another policy from now on, unless that is NULL.
 *   as schedule_admit(), change_check(); FAILED_PRECONDITION, ABORTED */
MUST_CHECK enum status control_checkpoint(struct engine *engine,
                                          struct session *session,
                                          const struct policy *policy,
                                          uint64_t reply, uint64_t deadline_us);
/* Answer with the session as it is. */
void control_send(struct engine *engine, const struct session *session,
                  uint64_t reply);

/* --- fork.c --- */
MUST_CHECK enum status fork_session(struct engine *engine,
                                    const struct command *command);
MUST_CHECK enum status fork_rewind(struct engine *engine,
                                   const struct command *command);
/* A path that can take no more pieces: copy the log before tokens are added. */
void fork_flatten(struct engine *engine, struct session *session);
/* What was read into memory need not be there twice. */
void fork_share(struct engine *engine, struct session *session);

/* --- charge.c --- */
/* Count so many bytes, of which those it shares are nobody's. */
void charge_bytes(struct engine *engine, struct session *session, size_t bytes);
/* What it has been charged with, and what it shares. */
size_t charge_holds(const struct session *session);
/* Bytes of all memories, shared blocks counted once. */
size_t charge_total(const struct engine *engine);
/* Count what is in memory, no more. */
void charge_settle(struct engine *engine, struct session *session);
/* The same for idle ones, some of whose pages others may hold now. */
void charge_settle_shared(struct engine *engine);
/* States of fixed size of its memory. */
size_t charge_state_bytes(const struct engine *engine,
                          const struct session *session);
/* It is to go, once it is stored or aside: resident_stay() takes that back. */
void charge_leaving(struct engine *engine, struct session *session);
/* Does so much more, of which so much are states, not fit beside what there is,
 * or beside what stays of it? */
bool charge_is_over(const struct engine *engine, size_t bytes, size_t states,
                    bool counts_leaving);

/* --- change.c --- */
/* Is it another one than it has? NULL: none is asked for. */
bool change_is(const struct session *session, const struct policy *policy);
/* request_promise() of the session as it is then. */
size_t change_promise(const struct engine *engine,
                      const struct session *session,
                      const struct policy *policy, uint64_t n_token,
                      uint64_t max_tokens);
/* FAILED_PRECONDITION POLICY_UNSUPPORTED, ABORTED OPERATION_IN_PROGRESS */
MUST_CHECK enum status change_check(const struct engine *engine,
                                    const struct session *session,
                                    const struct policy *policy);
/*
 * Its log is in memory, and no pass has it. Nothing else of it is afterwards.
 *   as change_check(); nothing has changed
 */
MUST_CHECK enum status change_policy(struct engine *engine,
                                     struct session *session,
                                     const struct policy *policy);

/* --- logs.c --- */
/* Count the path of a durable session, and take it back: what no path leads
 * through any more is deleted. */
void logs_hold(struct engine *engine, const struct log_path *path);
void logs_release(struct engine *engine, const struct log_path *path);
/* At start: delete what no session reads.  As journal_each_log() */
MUST_CHECK enum status logs_sweep(struct engine *engine);
/*
 * What of the memory's blocks is stored: *out_base by other logs; returns the
 * position up to which, by them and by the session's own log.
 */
uint64_t logs_stored(const struct engine *engine, const struct session *session,
                     struct log_path *out_base);
/* Something of what a log has stored is gone: sessions in memory that count on
 * it store it again. */
void logs_lose(struct engine *engine, const struct scrub_loss *loss);

/* --- errand.c --- */
/* Send jobs of those whose turn it is; free those that are over. */
void errands_send(struct engine *engine);
/* When one has waited too long for its client; UINT64_MAX: none waits. */
uint64_t errands_deadline_us(const struct engine *engine);
/* They end with an error: the node stops; and then they are freed. */
void errands_drain(struct engine *engine);
void errands_destroy(struct engine *engine);

/* --- batch.c --- */
/* Buffers for the limits in options.  RESOURCE_EXHAUSTED */
MUST_CHECK enum status batch_init(struct engine *engine);
void batch_release(struct engine *engine);
/* Start what waits, then a whole pass of all rows that replies wait for. True
 * if there were any, or if something ended that others may have waited for: to
 * be called again. */
bool batch_decode(struct engine *engine);
/*
 * A slice of the pass of prompts; one is begun, from what batch_decode() has
 * left, if none is under way and it may. True if there was one.
 */
bool batch_prompt(struct engine *engine, bool may_begin);
/* Does it wait for nothing but a place and room? */
bool request_may_start(const struct request *request);
/* Before its equals: its stream has stopped, or what it starts from is there.
 */
bool request_comes_first(const struct request *request);
/* Run the pass of prompts to its end: something must not wait for it. */
void batch_finish(struct engine *engine);

/* --- schedule.c --- */
/* RESOURCE_EXHAUSTED  no memory */
MUST_CHECK enum status schedule_init(struct engine *engine);
void schedule_release(struct engine *engine);
/*
 * May this request, which is not yet in the queue, wait there? Fills in when
 * its first token should come, and will. Its tenant has entered then, until
 * schedule_leave(). A sheddable one may have to go for it.
 *   RESOURCE_EXHAUSTED  QUEUE_FULL, KV_MEMORY, TENANT_QUOTA, DEADLINE, SHED;
 *                       with a time to retry, but for KV_MEMORY
 */
MUST_CHECK enum status schedule_admit(struct engine *engine,
                                      struct request *request,
                                      const char *tenant);
/* Its prompt is in memory: it has no claim on the time of prompts any more. */
void schedule_prefilled(struct engine *engine, struct request *request);
void schedule_leave(struct engine *engine, const struct request *request);
/* Its reply came to its own end after so many tokens. */
void schedule_replied(struct engine *engine, const struct request *request,
                      uint64_t n_token);
/* Those that may be shed and cannot be in time any more need wait no longer. */
void schedule_shed_late(struct engine *engine);
/* Who gets the next free place; NULL: nobody waits. */
struct request *schedule_next(struct engine *engine);
/* It got it; and then, once per step: no more can be started. */
void schedule_started(struct engine *engine);
void schedule_blocked(struct engine *engine);
/* One more of those [n_entrant] from whom the next pass of prompts is made:
 * returns how many chunks of them. */
void schedule_entrant(struct engine *engine, struct request *request);
uint32_t schedule_prompt(struct engine *engine);
/* How long prompts may run on before the next rows of replies. */
struct pass_slice schedule_slice(struct engine *engine);
/* A step with these decode rows begins. */
void schedule_step(struct engine *engine, const struct lane *lane);
/* A lane's pass is done; rows of a request were computed in it. */
void schedule_observe(struct engine *engine, const struct lane *lane);
void schedule_charge(struct engine *engine, const struct request *request,
                     const struct lane *lane, uint32_t n_token);

/* --- preempt.c --- */
/*
 * A running request of lower priority goes back to the queue, so that this one
 * gets its place, or its memory. False: there is none that may be.
 */
bool preempt_one(struct engine *engine, const struct request *request);
/* Would there be one? */
bool preempt_finds(const struct engine *engine, const struct request *request);

/* --- gauges.c --- */
void gauges_init(struct engine *engine);
/* The gauges, once per step. */
void gauges_set(struct engine *engine);
void gauges_reject(struct engine *engine, const struct cause *cause);
#endif
