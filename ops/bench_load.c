#include "ops/bench_load.h"

#include "base/clock.h"

#include <stdlib.h>
#include <string.h>

#define LOOK_US 100000u /* how soon a wish to stop is seen */

static uint64_t now_us(void)
{
    return clock_real()->now_us(clock_real());
}

/* Send request i. */
static enum status send_one(struct ctl *ctl, const struct bench_load *load,
                            uint32_t i, bool is_alone,
                            struct bench_reply *reply)
{
    const struct bench_request *request = &load->plan->request[i];
    struct bench_prompt prompt = {.seed = load->seed,
                                  .number = i,
                                  .n_token = request->n_prompt,
                                  .n_shared = load->n_shared};
    struct bench_ask ask = {.n_id = request->n_prompt,
                            .tenant = request->tenant,
                            .priority = is_alone ? 0 : request->priority,
                            .n_reply = request->n_reply,
                            .temperature = load->temperature,
                            .seed = load->seed + i,
                            .timeout_ms = is_alone ? 0 : request->deadline_ms};
    uint32_t *id = NULL;
    char *text = NULL;
    enum status st;

    if (load->is_text)
        ask.text = text = bench_prompt_text(load->words, &prompt);
    else
        ask.id = id = bench_prompt_ids(load->words, &prompt);
    st = id || text
             ? bench_reply_begin(ctl->client, &ask, reply)
             : status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for a prompt");
    free(id);
    free(text);
    return st;
}

/* A run on its way. */
struct drive {
    struct ctl *ctl;
    const struct bench_load *load;
    struct bench_run *run;
    struct bench_flight flight;
    uint32_t next; /* to be sent */
};

/* When the next request is to be sent; UINT64_MAX: not before one ends. */
static uint64_t next_us(const struct drive *drive)
{
    const struct bench_load *load = drive->load;

    if (load->at_once)
        return drive->flight.n < load->at_once ? 0 : UINT64_MAX;
    return drive->run->begin_us + load->plan->request[drive->next].arrive_us;
}

static enum status send_next(struct drive *drive, uint64_t due_us)
{
    struct bench_reply *reply = &drive->run->reply[drive->next];
    enum status st;

    reply->flight = &drive->flight;
    reply->begin_us = due_us ? due_us : now_us();
    if (drive->flight.n >= drive->load->max_flight) {
        reply->outcome = BENCH_SKIPPED;
        drive->next++;
        return STATUS_OK;
    }
    st = samples_init(&reply->gaps,
                      drive->load->plan->request[drive->next].n_reply);
    return st ? st
              : send_one(drive->ctl, drive->load, drive->next++, false, reply);
}

static enum status send_all(struct drive *drive)
{
    struct client *client = drive->ctl->client;
    enum status st = STATUS_OK;

    while (!st && drive->next < drive->load->plan->n &&
           !drive->flight.has_lost && !client_is_cancelled(client)) {
        uint64_t now = now_us(), due = next_us(drive);

        if (due <= now)
            st = send_next(drive, due);
        else
            (void)client_poll(client,
                              due - now < LOOK_US ? due - now : LOOK_US);
    }
    return st;
}

/* Every reply comes to its end: by itself, or because the time is over. */
static void drain(struct drive *drive)
{
    uint64_t until_us = now_us() + (uint64_t)(drive->load->drain_s * 1e6);
    bool is_stopped = false;

    while (drive->flight.n > 0) {
        if (now_us() >= until_us && !is_stopped) {
            for (uint32_t i = 0; i < drive->next; i++)
                bench_reply_stop(&drive->run->reply[i]);
            is_stopped = true;
        }
        (void)client_poll(drive->ctl->client, LOOK_US);
    }
}

/* Why nothing more was sent: of the first call that found no node. */
static enum status judge_loss(const struct drive *drive)
{
    for (uint32_t i = 0; i < drive->next; i++)
        if (drive->run->reply[i].status == STATUS_UNAVAILABLE)
            return bench_reply_judge(&drive->run->reply[i]);
    if (client_is_cancelled(drive->ctl->client))
        return status_fail(STATUS_CANCELLED, "interrupted");
    return STATUS_OK;
}

enum status bench_run(struct ctl *ctl, const struct bench_load *load,
                      struct bench_run *out)
{
    struct drive drive = {.ctl = ctl, .load = load, .run = out};
    uint32_t n = load->plan->n;
    enum status st;

    *out = (struct bench_run){.n = n};
    out->reply = calloc((size_t)n + 1, sizeof(*out->reply));
    out->check = calloc((size_t)n + 1, sizeof(*out->check));
    if (!out->reply || !out->check)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for %u replies", n);
    out->begin_us = now_us();
    st = send_all(&drive);
    drain(&drive);
    out->end_us = now_us();
    return st ? st : judge_loss(&drive);
}

static bool is_same(const struct bench_reply *a, const struct bench_reply *b)
{
    return a->n_token == b->n_token && digest_equal(a->tokens, b->tokens);
}

enum status bench_run_verify(struct ctl *ctl, const struct bench_load *load,
                             struct bench_run *run)
{
    for (uint32_t i = 0; i < load->plan->n; i++) {
        struct bench_reply again = {0};
        enum status st;

        if (run->reply[i].outcome != BENCH_OK)
            continue;
        st = send_one(ctl, load, i, true, &again);
        if (st)
            return st;
        bench_reply_await(ctl->client, &again);
        st = bench_reply_judge(&again);
        if (st)
            return st;
        run->check[i] =
            is_same(&again, &run->reply[i]) ? BENCH_SAME : BENCH_DIFFERING;
    }
    return STATUS_OK;
}

void bench_run_release(struct bench_run *run)
{
    for (uint32_t i = 0; run->reply && i < run->n; i++)
        samples_release(&run->reply[i].gaps);
    free(run->reply);
    free(run->check);
    memset(run, 0, sizeof(*run));
}
