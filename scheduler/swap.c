/*
 * Sessions whose memory is aside: in host memory that the device reaches,
 * between the device and the store. The shuttle (kernels/device.h) carries it
 * there and back, some pieces ahead of what it has done, while steps go on: the
 * engine asks how far it has come once a step and never waits.
 *
 * Until a memory is wholly carried the one that it comes from is the session's.
 * So a way out can be given up at any time, and whatever fails leaves things as
 * they were. A memory that the shuttle may still touch is not freed before it
 * has come so far: then the move owns it.
 */
#include "scheduler/engine_calls.h"
#include "scheduler/offload.h"

#include <stdlib.h>

#define CARRY_BYTES ((size_t)32 << 20) /* asked of the shuttle in one go */
#define CARRY_AHEAD 4u                 /* of those, under way at a time */
#define PAGE_BYTES 4096u               /* a room has whole ones: base/rooms.h */

_Static_assert(CARRY_AHEAD <= DEVICE_MARK_MAX, "");

struct move {
    struct move *next;
    struct resident *resident; /* NULL: it has gone, and `from` is ours */
    struct memory *from, *to;
    bool is_back; /* to the device */
    bool is_over; /* given up: only what is under way is waited for */
    bool
        had_image; /* that was not sent: another is taken when it has arrived */
    uint64_t n_piece, n_asked;
    uint64_t mark; /* behind what was asked */
    uint64_t start_us;
};

static struct device *shuttle_of(const struct engine *engine)
{
    return device_shuttle(model_device(engine->options.model));
}

enum status swap_open(struct engine *engine)
{
    struct device *device = model_device(engine->options.model);
    const size_t bytes = engine->options.host_bytes;
    enum status st;

    engine->swap.end = &engine->swap.first;
    if (!device || bytes == 0)
        return STATUS_OK;
    st = device_take_host(device, bytes, &engine->swap.memory);
    if (st)
        return st;
    return rooms_create_in(engine->swap.memory, bytes, &engine->swap.rooms);
}

bool swap_is_aside(const struct resident *resident)
{
    return resident && resident->memory && memory_is_aside(resident->memory);
}

bool swap_comes_back(const struct resident *resident)
{
    return resident && resident->move && resident->move->is_back;
}

/* --- ways --- */

static void unlink_move(struct engine *engine, struct move **at)
{
    struct move *move = *at;

    *at = move->next;
    if (!*at)
        engine->swap.end = at;
    if (move->resident)
        move->resident->move = NULL;
    free(move);
}

/* Nothing is left of it but what the session had before. */
static void drop_move(struct engine *engine, struct move **at)
{
    struct move *move = *at;

    memory_destroy(move->to);
    if (!move->resident)
        memory_destroy(move->from);
    unlink_move(engine, at);
}

void swap_close(struct engine *engine)
{
    /* One that fails carries nothing any more either. */
    if (engine->swap.first && device_wait(shuttle_of(engine)))
        log_line(LOG_WARN, "engine", "", "%s", status_reason());
    while (engine->swap.first)
        drop_move(engine, &engine->swap.first);
    rooms_destroy(engine->swap.rooms);
    device_give_host(model_device(engine->options.model), engine->swap.memory);
}

/* As much as the resident has. */
static enum status prepare_aside(struct memory *to,
                                 const struct resident *resident)
{
    const struct policy *policy = memory_policy(resident->memory);
    const enum status st = policy ? memory_set_policy(to, policy) : STATUS_OK;

    return st ? st : memory_reserve(to, resident_position(resident));
}

static enum status begin(struct engine *engine, struct resident *resident,
                         bool is_back)
{
    struct memory *to;
    struct move *move;
    enum status st = is_back ? resident_memory(engine, resident->session, &to)
                             : memory_create_aside(engine->options.model,
                                                   engine->swap.rooms, &to);

    if (st)
        return st;
    if (!is_back && (st = prepare_aside(to, resident))) {
        memory_destroy(to);
        return st;
    }
    move = engine_need(calloc(1, sizeof(*move)));
    move->resident = resident;
    move->from = resident->memory;
    move->to = to;
    move->is_back = is_back;
    move->n_piece = memory_n_piece(move->from);
    move->start_us = engine_now_us(engine);
    resident->move = move;
    *engine->swap.end = move;
    engine->swap.end = &move->next;
    return STATUS_OK;
}

void swap_stay(struct resident *resident)
{
    if (resident->move && !resident->move->is_back)
        resident->move->is_over = true;
}

void swap_let_go(struct engine *engine, struct resident *resident)
{
    struct move *move = resident->move;

    engine->swap.n_aside -= swap_is_aside(resident);
    if (!move) {
        memory_destroy(resident->memory);
    } else {
        move->is_over = true;
        move->resident = NULL; /* `from` is what it had */
        resident->move = NULL;
    }
    resident->memory = NULL;
}

/* --- out --- */

/* That a memory takes aside. */
static size_t bytes_aside(const struct memory *memory)
{
    size_t n = 0;

    for (uint64_t i = 0; i < memory_n_piece(memory); i++)
        n += (memory_piece_bytes(memory, i) + PAGE_BYTES - 1) / PAGE_BYTES *
             PAGE_BYTES;
    return n;
}

static bool is_busy(const struct session *session)
{
    const struct resident *resident = session->resident;

    return resident->leaves || resident->image || resident->move ||
           session->n_flight > 0 || resident->n_checkpoint > 0;
}

/* Idle sessions that are aside leave for the store, as offload_choose() says.
 */
static bool make_room(struct engine *engine, size_t bytes)
{
    const uint64_t n_max = engine->swap.n_aside;
    struct offload_session *entry =
        engine_need(calloc(n_max + 1, sizeof(*entry)));
    struct session **session =
        engine_need(calloc(n_max + 1, sizeof(struct session *)));
    uint64_t n = 0;
    bool fits;

    for (struct session *s = engine->oldest; s && n < n_max; s = s->newer) {
        if (!swap_is_aside(s->resident))
            continue;
        session[n] = s;
        entry[n++] = (struct offload_session){
            .bytes = bytes_aside(s->resident->memory),
            .is_stored = s->durability == DURABILITY_NONE ||
                         !resident_is_worth(s->resident),
            .is_busy = is_busy(s),
            .is_pinned = s->is_pinned};
    }
    fits = offload_choose(bytes,
                          (struct offload_room){rooms_left(engine->swap.rooms),
                                                engine->options.host_bytes},
                          entry, n);
    for (uint64_t i = 0; i < n; i++)
        if (entry[i].goes)
            resident_leave(engine, session[i]);
    free(entry);
    free(session);
    return fits;
}

/* Has an idle session memory on the device that only waits for its commit, or
 * for a checkpoint, to make room? */
static bool is_awaited(const struct engine *engine)
{
    for (const struct session *s = engine->oldest; s; s = s->newer)
        if (s->resident->memory && !s->resident->leaves &&
            !swap_is_aside(s->resident) &&
            (s->n_flight > 0 || s->resident->n_checkpoint > 0))
            return true;
    return false;
}

bool swap_evict_one(struct engine *engine)
{
    if (is_awaited(engine))
        return false;
    for (struct session *s = engine->oldest; s; s = s->newer)
        if (swap_is_aside(s->resident) && !is_busy(s) &&
            s->durability != DURABILITY_NONE) {
            resident_leave(engine, s);
            return true;
        }
    return false;
}

bool swap_out(struct engine *engine, struct session *session)
{
    struct resident *resident = session->resident;

    if (!engine->swap.rooms || !resident->memory || resident->move ||
        swap_is_aside(resident) || resident_position(resident) == 0 ||
        !make_room(engine, bytes_aside(resident->memory)))
        return false;
    if (begin(engine, resident, false)) {
        log_limited(&engine->store_log, LOG_WARN, "engine", session->name,
                    "not to the host's memory but to the store: %s",
                    status_reason());
        return false;
    }
    /* Its blocks are borrowed by an image that may take long to be sent: one
     * of what is aside is as good. */
    resident->move->had_image = resident_drop_image(engine, resident);
    charge_leaving(engine, session);
    return true;
}

/* False while the store thread reads what would be freed. */
static bool arrive_aside(struct engine *engine, struct move **at)
{
    struct move *move = *at;
    struct resident *resident = move->resident;
    const bool had_image = move->had_image;

    if (resident->image)
        return false;
    resident->memory = move->to;
    memory_destroy(move->from);
    unlink_move(engine, at);
    engine->swap.n_aside++;
    resident_stay(engine, resident->session);
    charge_settle(engine, resident->session);
    if (had_image)
        (void)resident_save(engine, resident->session, false);
    return true;
}

/* --- back --- */

/* It stays aside, and its request ends. */
static void refuse(struct engine *engine, struct resident *resident)
{
    struct request *request = resident->session->request;

    resident_no_memory();
    if (request)
        request_fail(engine, request, FINISH_ERROR, status_cause());
}

bool swap_back(struct engine *engine, struct request *request)
{
    struct resident *resident = request->session->resident;

    if (!swap_is_aside(resident))
        return false;
    if (!resident->move && begin(engine, resident, true))
        refuse(engine, resident);
    return true;
}

static void arrive_back(struct engine *engine, struct move **at)
{
    struct move *move = *at;
    struct resident *resident = move->resident;
    struct session *session = resident->session;

    metric_observe(engine->metrics.swap_wait,
                   (double)(engine_now_us(engine) - move->start_us) * 1e-6);
    resident->memory = move->to;
    if (resident->image) /* which reads it */
        resident->lent = move->from;
    else
        memory_destroy(move->from);
    unlink_move(engine, at);
    engine->swap.n_aside--;
    fork_share(engine, session);
    if (session->request)
        session->request->has_fetched = true;
    else
        charge_settle(engine, session);
    resident_go(engine, session);
}

/* --- both --- */

static enum status ask(struct engine *engine, struct move *move)
{
    const uint64_t position = memory_position(move->from);
    uint64_t end = move->n_asked, n_token;
    size_t bytes = 0;
    enum status st = STATUS_OK;

    while (end < move->n_piece && bytes < CARRY_BYTES)
        bytes += memory_piece_bytes(move->from, end++);
    n_token = (end - 1) * KV_BLOCK;
    if (move->is_back)
        st = memory_reserve(move->to, n_token < position ? n_token : position);
    if (st)
        return st;
    device_follow(shuttle_of(engine), model_device(engine->options.model));
    memory_carry(move->to, move->from, move->n_asked, end - move->n_asked);
    move->n_asked = end;
    move->mark = engine->swap.marked = device_mark(shuttle_of(engine));
    metric_add(move->is_back ? engine->metrics.swap_in
                             : engine->metrics.swap_out,
               bytes);
    return STATUS_OK;
}

static enum status look(struct engine *engine)
{
    bool is_there = true;
    enum status st = STATUS_OK;

    while (!st && is_there && engine->swap.reached < engine->swap.marked) {
        st = device_reached(shuttle_of(engine), engine->swap.reached + 1,
                            &is_there);
        engine->swap.reached += !st && is_there;
    }
    return st;
}

/* What is on the device is lost; what is aside is not, but nothing can run. */
static void lose(struct engine *engine)
{
    const struct cause cause = *status_cause();

    log_line(LOG_ERROR, "engine", "", "%s", cause.text);
    while (engine->swap.first) {
        struct move *move = engine->swap.first;
        struct resident *resident = move->is_over ? NULL : move->resident;
        struct session *session = resident ? resident->session : NULL;
        const bool is_back = move->is_back;

        drop_move(engine, &engine->swap.first);
        if (!session)
            continue;
        status_fail(STATUS_UNAVAILABLE, "%s", cause.text);
        if (is_back) {
            refuse(engine, resident);
        } else {
            resident_stay(engine, session);
            resident_forget(engine, session);
        }
    }
    engine->swap.reached = engine->swap.marked;
}

/* Given up, or whose it was is gone. */
static bool is_over(const struct move *move)
{
    return move->is_over || !move->resident || !move->resident->session;
}

/* True: it is gone from the list. */
static bool settle(struct engine *engine, struct move **at)
{
    struct move *move = *at;

    if (move->mark > engine->swap.reached ||
        (!is_over(move) && move->n_asked < move->n_piece))
        return false;
    if (is_over(move)) {
        struct session *session =
            move->resident ? move->resident->session : NULL;
        const bool is_back = move->is_back;

        drop_move(engine, at);
        if (session && is_back) /* the room on the device it was to have */
            charge_settle(engine, session);
        if (session)
            resident_go(engine, session);
        return true;
    }
    if (!move->is_back)
        return arrive_aside(engine, at);
    arrive_back(engine, at);
    return true;
}

void swap_step(struct engine *engine)
{
    struct move **at = &engine->swap.first;

    if (!*at)
        return;
    if (look(engine)) {
        lose(engine);
        return;
    }
    while (*at)
        if (!settle(engine, at))
            at = &(*at)->next;
    for (struct move *move = engine->swap.first; move; move = move->next)
        while (!is_over(move) && move->n_asked < move->n_piece &&
               engine->swap.marked - engine->swap.reached < CARRY_AHEAD) {
            if (!ask(engine, move))
                continue;
            move->is_over = true;
            refuse(engine, move->resident);
        }
}
