#ifndef TESTS_FAKE_ENGINE_H
#define TESTS_FAKE_ENGINE_H
/*
 * An engine that is a script, on a thread of its own: what it answers follows
 * from the command alone, so that a test knows every byte beforehand.
 *
 *   Generate, by session: "missing" NOT_FOUND; "busy" QUEUE_FULL with a retry;
 *     "silent" is accepted and then nothing; else Accepted, two progress
 *     events, max_tokens (3) tokens and Complete. Token i is the id i; its text
 *     is "<i> ", or TEXT_BYTES times 'x' for session "large". For "deaf" a
 *     pause is not obeyed. No seed becomes seed 42.
 *   GetNode: its counters, as running (replies alive), prompt_tokens (pauses),
 *     generated_tokens (resumes), steps (detaches); waiting: the last deadline
 *     in ms from now.
 *   everything else: one event that repeats what was asked.
 */
#include "base/clock.h"
#include "base/ring.h"
#include "scheduler/command.h"
#include "scheduler/event.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define FAKE_REPLIES 64u
#define FAKE_TEXT_BYTES 4096u
#define FAKE_AHEAD                                                             \
    16u /* events not yet taken: a real engine makes few a step */
#define FAKE_SESSIONS 5u /* that ListSessions finds: s0 .. s4 */

struct fake_reply {
    uint64_t reply; /* 0: free */
    uint32_t next, n_token;
    bool is_paused, is_large, is_deaf, is_append, is_silent;
};

struct fake_engine {
    struct ring *inbox, *outbox;
    pthread_t thread;
    struct fake_reply running[FAKE_REPLIES];
    struct command last; /* a copy; pointers dangle */
    _Atomic uint32_t n_pause, n_resume, n_detach, n_command, n_dropped;
    _Atomic uint64_t n_token; /* token events made */
};

static void fake_push(struct fake_engine *fake, struct event *event)
{
    while (!ring_push(fake->outbox, &event))
        ring_wait(fake->inbox, 1);
}

static struct event *fake_event(enum event_kind kind, uint64_t reply,
                                size_t extra, void **out_extra)
{
    struct event *event = event_create(kind, reply, extra, out_extra);

    if (!event)
        abort();
    return event;
}

static void fake_fail(struct fake_engine *fake, uint64_t reply,
                      enum status code, const char *reason, uint32_t retry_ms)
{
    struct event *event = fake_event(EVENT_ERROR, reply, 0, NULL);

    event->is_last = true;
    event->cause.code = code;
    event->cause.retry_ms = retry_ms;
    strcpy(event->cause.reason, reason);
    strcpy(event->cause.text, "the fake engine says no");
    fake_push(fake, event);
}

static void fake_generate(struct fake_engine *fake,
                          const struct command *command)
{
    const struct generate_command *generate = &command->generate;
    struct fake_reply *slot = NULL;
    struct event *event;

    if (strcmp(generate->session, "missing") == 0) {
        fake_fail(fake, command->reply, STATUS_NOT_FOUND, "SESSION_NOT_FOUND",
                  0);
        return;
    }
    for (uint32_t i = 0; i < FAKE_REPLIES && !slot; i++)
        if (fake->running[i].reply == 0)
            slot = &fake->running[i];
    if (!slot || strcmp(generate->session, "busy") == 0) {
        fake_fail(fake, command->reply, STATUS_RESOURCE_EXHAUSTED, "QUEUE_FULL",
                  1500);
        return;
    }
    *slot = (struct fake_reply){
        .reply = command->reply,
        .n_token =
            generate->sampling.max_tokens ? generate->sampling.max_tokens : 3,
        .is_large = strcmp(generate->session, "large") == 0 ||
                    strcmp(generate->session, "deaf") == 0,
        .is_deaf = strcmp(generate->session, "deaf") == 0,
        .is_silent = strcmp(generate->session, "silent") == 0,
        .is_append = generate->is_append,
    };
    event = fake_event(EVENT_ACCEPTED, command->reply, 0, NULL);
    memcpy(event->accepted.session, generate->session, SESSION_NAME_SIZE);
    memcpy(event->accepted.request_id, generate->request_id, REQUEST_ID_SIZE);
    event->accepted.position = generate->n_token;
    event->accepted.seed = generate->has_seed ? generate->sampling.seed : 42;
    fake_push(fake, event);
    for (uint32_t i = 1; i <= 2 && generate->wants_progress; i++) {
        event = fake_event(EVENT_PROGRESS, command->reply, 0, NULL);
        event->progress.n_total = 2 * generate->n_token;
        event->progress.n_processed = i * generate->n_token;
        event->progress.elapsed_us = i * 1500000;
        fake_push(fake, event);
    }
}

static void fake_token(struct fake_engine *fake, struct fake_reply *slot)
{
    const size_t text_max = slot->is_large ? FAKE_TEXT_BYTES : 16;
    struct event *event;
    void *extra;
    char *text;
    uint32_t *token;

    if (slot->is_append || slot->next == slot->n_token) {
        event = fake_event(EVENT_COMPLETE, slot->reply, 0, NULL);
        event->is_last = true;
        event->complete.finish = FINISH_LENGTH;
        event->complete.n_completion = slot->next;
        event->complete.committed_position = 100 + slot->next;
        event->complete.timing.queued_us = 1;
        event->complete.timing.prefill_us = 2000000;
        event->complete.reuse = REUSE_RESTORED;
        event->complete.n_cached = 7;
        event->complete.n_restored = 7;
        slot->reply = 0;
        fake_push(fake, event);
        return;
    }
    event = fake_event(EVENT_TOKENS, slot->reply, sizeof(*token) + text_max + 1,
                       &extra);
    token = extra;
    text = (char *)(token + 1);
    *token = slot->next;
    if (slot->is_large)
        memset(text, 'x', text_max);
    else
        snprintf(text, text_max, "%u ", slot->next);
    event->tokens.position = 100 + slot->next;
    event->tokens.n_token = 1;
    event->tokens.token = token;
    event->tokens.text = text;
    event->tokens.text_bytes = (uint32_t)strlen(text);
    slot->next++;
    atomic_fetch_add(&fake->n_token, 1);
    fake_push(fake, event);
}

static void fake_info(struct session_info *info, const char *name)
{
    snprintf(info->meta.name, sizeof(info->meta.name), "%s", name);
    info->meta.uid = (struct uid){1, 2};
    info->meta.create_ms = 1700000000123;
    info->meta.durability = DURABILITY_LOCAL;
    info->state = SESSION_IDLE;
    info->position = info->committed_position = 100;
    info->kv_bytes = 4096;
    strcpy(info->etag, "e-1");
}

static void fake_session(struct fake_engine *fake, uint64_t reply,
                         const char *name)
{
    struct event *event = fake_event(EVENT_SESSION, reply, 0, NULL);

    event->is_last = true;
    fake_info(&event->session, name);
    fake_push(fake, event);
}

static void fake_list(struct fake_engine *fake, const struct command *command)
{
    struct session_info *info;
    struct event *event;
    uint32_t n = 0;
    void *extra;

    event = fake_event(EVENT_SESSIONS, command->reply,
                       FAKE_SESSIONS * sizeof(*info), &extra);
    info = extra;
    event->is_last = true;
    event->sessions.session = info;
    event->sessions.n_total = FAKE_SESSIONS;
    for (uint32_t i = 0; i < FAKE_SESSIONS; i++) {
        char name[8];
        snprintf(name, sizeof(name), "s%u", i);
        if (strcmp(name, command->list.after) <= 0)
            continue;
        if (n == command->list.page_size) {
            event->sessions.has_more = true;
            break;
        }
        fake_info(&info[n++], name);
    }
    event->sessions.n_session = n;
    fake_push(fake, event);
}

static void fake_read(struct fake_engine *fake, const struct command *command)
{
    struct event *event;
    void *extra;

    event = fake_event(EVENT_LOG, command->reply, 3 * sizeof(uint32_t), &extra);
    memcpy(extra, (uint32_t[]){7, 8, 9}, 3 * sizeof(uint32_t));
    event->tokens.position = command->target.from;
    event->tokens.token = extra;
    event->tokens.n_token = 3;
    fake_push(fake, event);
    event = fake_event(EVENT_COMPLETE, command->reply, 0, NULL);
    event->is_last = true;
    fake_push(fake, event);
}

static void fake_node(struct fake_engine *fake, const struct command *command)
{
    struct event *event = fake_event(EVENT_NODE, command->reply, 0, NULL);
    const uint64_t now = clock_real()->now_us(clock_real());
    const uint64_t deadline = command->deadline_us;

    event->is_last = true;
    strcpy(event->node.name, "fake");
    strcpy(event->node.model, "llama");
    for (uint32_t i = 0; i < FAKE_REPLIES; i++)
        event->node.n_running += fake->running[i].reply != 0;
    event->node.n_waiting = deadline > now ? (deadline - now) / 1000 : 0;
    event->node.prompt_tokens = atomic_load(&fake->n_pause);
    event->node.generated_tokens = atomic_load(&fake->n_resume);
    event->node.steps = atomic_load(&fake->n_detach);
    fake_push(fake, event);
}

static void fake_subject(struct fake_engine *fake,
                         const struct command *command)
{
    for (uint32_t i = 0; i < FAKE_REPLIES; i++) {
        struct fake_reply *slot = &fake->running[i];
        if (slot->reply != command->subject)
            continue;
        if (command->kind == COMMAND_DETACH)
            slot->reply = 0;
        else
            slot->is_paused = command->kind == COMMAND_PAUSE && !slot->is_deaf;
    }
    atomic_fetch_add(command->kind == COMMAND_PAUSE    ? &fake->n_pause
                     : command->kind == COMMAND_RESUME ? &fake->n_resume
                                                       : &fake->n_detach,
                     1);
}

/* False for a drain: the thread ends. */
static bool fake_command(struct fake_engine *fake,
                         const struct command *command)
{
    struct event *event;

    fake->last = *command;
    atomic_fetch_add(&fake->n_command, 1);
    switch (command->kind) {
    case COMMAND_GENERATE:
        fake_generate(fake, command);
        return true;
    case COMMAND_READ_TOKENS:
        fake_read(fake, command);
        return true;
    case COMMAND_CREATE_SESSION:
        fake_session(fake, command->reply,
                     command->create.name[0] ? command->create.name : "made");
        return true;
    case COMMAND_GET_SESSION:
        fake_session(fake, command->reply, command->target.session);
        return true;
    case COMMAND_UPDATE_SESSION:
        fake_session(fake, command->reply, command->update.session);
        return true;
    case COMMAND_LIST_SESSIONS:
        fake_list(fake, command);
        return true;
    case COMMAND_CHECKPOINT_SESSION:
        event = fake_event(EVENT_CHECKPOINT, command->reply, 0, NULL);
        event->is_last = true;
        memcpy(event->checkpoint.session, command->target.session,
               SESSION_NAME_SIZE);
        event->checkpoint.position = 64;
        fake_push(fake, event);
        return true;
    case COMMAND_GET_NODE:
        fake_node(fake, command);
        return true;
    case COMMAND_PAUSE:
    case COMMAND_RESUME:
    case COMMAND_DETACH:
        fake_subject(fake, command);
        return true;
    case COMMAND_DRAIN:
        return false;
    default: /* CANCEL, DELETE */
        event = fake_event(EVENT_DONE, command->reply, 0, NULL);
        event->is_last = true;
        fake_push(fake, event);
        return true;
    }
}

static void *fake_thread(void *argument)
{
    struct fake_engine *fake = argument;
    bool goes_on = true;

    while (goes_on) {
        struct command *command;
        bool is_busy = false;

        while (goes_on && ring_pop(fake->inbox, &command)) {
            goes_on = fake_command(fake, command);
            arena_destroy(command->arena);
        }
        for (uint32_t i = 0; i < FAKE_REPLIES; i++) {
            struct fake_reply *slot = &fake->running[i];
            if (slot->reply && !slot->is_paused && !slot->is_silent &&
                ring_count(fake->outbox) >= FAKE_AHEAD) {
                ring_wait(fake->inbox, 1);
                is_busy = true;
            } else if (slot->reply && !slot->is_paused && !slot->is_silent) {
                fake_token(fake, slot);
                is_busy = true;
            }
        }
        if (!is_busy && goes_on)
            ring_wait(fake->inbox, -1);
    }
    return NULL;
}

static void fake_start(struct fake_engine *fake, uint32_t inbox_capacity)
{
    memset(fake, 0, sizeof(*fake));
    if (ring_create(inbox_capacity, sizeof(struct command *), &fake->inbox) ||
        ring_create(4096, sizeof(struct event *), &fake->outbox) ||
        pthread_create(&fake->thread, NULL, fake_thread, fake))
        abort();
}

/* Ends the thread; the outbox keeps what it made. */
static void fake_drain(struct fake_engine *fake)
{
    struct arena *arena = NULL;
    struct command *command;

    if (arena_create(1 << 16, &arena))
        abort();
    command = arena_take(arena, sizeof(*command));
    command->kind = COMMAND_DRAIN;
    command->arena = arena;
    while (!ring_push(fake->inbox, &command))
        ring_kick(fake->inbox);
    pthread_join(fake->thread, NULL);
}

static void fake_release(struct fake_engine *fake)
{
    struct command *command;
    struct event *event;

    while (ring_pop(fake->inbox, &command))
        arena_destroy(command->arena);
    while (ring_pop(fake->outbox, &event))
        event_destroy(event);
    ring_destroy(fake->inbox);
    ring_destroy(fake->outbox);
}
#endif
