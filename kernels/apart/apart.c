#include "kernels/apart/apart.h"

#include "kernels/apart/apart_run.h"
#include "kernels/apart/fault.h"

#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define N_RECORD 4u

/* An operator that was asked for, with its own copy of its host array. */
struct call {
    enum apart_op op;
    union apart_args args; /* names `array` */
    void *array;           /* owned; NULL: it has none */
};

/* One repeatable step. */
struct record {
    struct device_step step;
    uint32_t n_seen; /* 0: free; it is recorded when seen the second time */
    size_t n_call, capacity;
    struct call *call; /* owned */
};

/* What was read and waits to be told. */
struct late {
    struct late *next;
    void *to;
    size_t bytes;
    unsigned char byte[];
};

/* What the shuttle has still to carry, up to this mark. */
struct cargo {
    struct cargo *next;
    void *to;
    const void *from; /* both as the host has them */
    size_t bytes;
    uint64_t mark;
};

/* MODE_SHORT: a step that had no scratch memory; the rest of it is not run. */
enum mode { MODE_DIRECT, MODE_REFUSE, MODE_RECORD, MODE_REPLAY, MODE_SHORT };

/* Memory, which all queues share. */
struct store {
    pthread_mutex_t lock;
    size_t limit, used;
    size_t scratch_limit; /* of the used, for what steps need in between */
    uint64_t n_taken;
    bool is_lost, is_held;
};

struct queue {
    struct device device; /* first: callers hold pointers to it */
    struct store *store;  /* owned by the device, borrowed by the others */
    const struct backend *backend;
    struct late *late, **end;
    struct cargo *cargo, **cargo_end;
    uint64_t n_mark;
    bool is_shuttle;
    enum mode mode;
    struct record record[N_RECORD], *now;
    size_t at;      /* next call of a replay */
    uint32_t fresh; /* record to be given up next */
    void *scratch;  /* [scratch_bytes]: only that it is taken matters */
    size_t scratch_bytes;
    bool was_short; /* it is what was refused last */
    uint64_t n_replay;
};

/* Before every piece of memory, so that it is known when given. */
struct head {
    size_t bytes;
};

static struct queue *queue_of(const struct device *device)
{
    return (struct queue *)device;
}

/* ---------------------------------------------------------------------- life
 */

static void give(struct device *device, void *memory);

static enum status probe(char out_why[DEVICE_WHY_SIZE])
{
    (void)out_why;
    return STATUS_OK;
}

/* The host's operators: their bits are the arithmetic's. */
static void generation(char out[DEVICE_GENERATION_SIZE])
{
    out[0] = 0;
}

static void forget(struct record *record)
{
    for (size_t i = 0; i < record->n_call; i++)
        free(record->call[i].array);
    free(record->call);
    *record = (struct record){0};
}

static void tell_late(struct queue *queue)
{
    while (queue->late) {
        struct late *late = queue->late;

        memcpy(late->to, late->byte, late->bytes);
        queue->late = late->next;
        free(late);
    }
    queue->end = &queue->late;
}

/* The next piece arrives, or is let go. */
static void unload(struct queue *queue, bool arrives)
{
    struct cargo *cargo = queue->cargo;

    if (arrives)
        memcpy(cargo->to, cargo->from, cargo->bytes);
    queue->cargo = cargo->next;
    if (!queue->cargo)
        queue->cargo_end = &queue->cargo;
    free(cargo);
}

static void destroy_queue(struct queue *queue)
{
    if (!queue)
        return;
    while (queue->cargo)
        unload(queue, false);
    while (queue->late) {
        struct late *late = queue->late;

        queue->late = late->next;
        free(late);
    }
    for (uint32_t i = 0; i < N_RECORD; i++)
        forget(&queue->record[i]);
    free(queue);
}

static void destroy(struct device *device)
{
    struct queue *queue = queue_of(device);

    if (queue->scratch)
        give(device, queue->scratch);
    assert(queue->store->n_taken == 0);
    destroy_queue(queue_of(device->side));
    destroy_queue(queue_of(device->shuttle));
    (void)pthread_mutex_destroy(&queue->store->lock);
    free(queue->store);
    destroy_queue(queue);
}

static void why(struct device *device, char out[DEVICE_WHY_SIZE])
{
    const struct queue *queue = queue_of(device);

    (void)snprintf(out, DEVICE_WHY_SIZE, "%s",
                   queue->store->is_lost ? "device 'apart' is lost"
                   : queue->was_short
                       ? "device 'apart' has no memory for what a step needs "
                         "in between"
                       : "device 'apart' has no memory left");
}

/* -------------------------------------------------------------------- memory
 */

static size_t left_in(const struct store *store)
{
    return store->used < store->limit ? store->limit - store->used : 0;
}

static enum status take(struct device *device, size_t bytes, void **out)
{
    struct store *store = queue_of(device)->store;
    enum status st = STATUS_OK;
    struct head *head = NULL;

    queue_of(device)->was_short = false;
    pthread_mutex_lock(&store->lock);
    if (store->is_lost)
        st = STATUS_UNAVAILABLE;
    else if (bytes > left_in(store) ||
             !(head = aligned_alloc(DEVICE_ALIGN,
                                    (bytes + 2 * (size_t)DEVICE_ALIGN - 1) /
                                        DEVICE_ALIGN * DEVICE_ALIGN)))
        st = STATUS_RESOURCE_EXHAUSTED;
    if (!st) {
        store->used += bytes;
        store->n_taken++;
        head->bytes = bytes;
        memset((char *)head + DEVICE_ALIGN, 0, bytes);
        *out = apart_far((char *)head + DEVICE_ALIGN);
    }
    pthread_mutex_unlock(&store->lock);
    return st;
}

static void give(struct device *device, void *memory)
{
    struct store *store = queue_of(device)->store;
    struct head *head =
        (struct head *)(void *)((char *)apart_near(memory) - DEVICE_ALIGN);

    pthread_mutex_lock(&store->lock);
    store->used -= head->bytes;
    store->n_taken--;
    pthread_mutex_unlock(&store->lock);
    free(head);
}

static enum status take_host(struct device *device, size_t bytes, void **out)
{
    if (queue_of(device)->store->is_lost)
        return STATUS_UNAVAILABLE;
    *out = malloc(bytes + 1);
    return *out ? STATUS_OK : STATUS_RESOURCE_EXHAUSTED;
}

static void give_host(struct device *device, void *memory)
{
    (void)device;
    free(memory);
}

static size_t available(struct device *device)
{
    const struct store *store = queue_of(device)->store;
    const size_t host = device_available(NULL);
    const size_t left = left_in(store);

    return left < host ? left : host;
}

/* --------------------------------------------------------------------- order
 */

static enum status wait(struct device *device)
{
    struct queue *queue = queue_of(device);

    if (queue->store->is_lost)
        return STATUS_UNAVAILABLE;
    tell_late(queue);
    while (queue->cargo)
        unload(queue, true);
    return STATUS_OK;
}

static uint64_t mark(struct device *device)
{
    return ++queue_of(device)->n_mark;
}

static enum status reached(struct device *device, uint64_t mark, bool *out)
{
    struct queue *queue = queue_of(device);

    if (queue->store->is_lost)
        return STATUS_UNAVAILABLE;
    if (queue->cargo && !queue->store->is_held)
        unload(queue, true);
    *out = !queue->cargo || queue->cargo->mark > mark;
    return STATUS_OK;
}

static void carry(struct queue *queue, void *to, const void *from, size_t bytes)
{
    struct cargo *cargo = malloc(sizeof(*cargo));

    assert(cargo);
    *cargo = (struct cargo){
        .to = to, .from = from, .bytes = bytes, .mark = queue->n_mark + 1};
    *queue->cargo_end = cargo;
    queue->cargo_end = &cargo->next;
}

static void follow(struct device *device, struct device *other)
{
    (void)device;
    (void)other; /* all has happened already */
}

static bool same_step(const struct device_step *a, const struct device_step *b)
{
    return a->owner == b->owner && a->n_row == b->n_row &&
           a->has_views == b->has_views;
}

/* Its record; a new one takes the place of the oldest. */
static struct record *find_record(struct queue *queue,
                                  const struct device_step *step)
{
    struct record *record;

    for (uint32_t i = 0; i < N_RECORD; i++)
        if (queue->record[i].n_seen && same_step(&queue->record[i].step, step))
            return &queue->record[i];
    record = &queue->record[queue->fresh++ % N_RECORD];
    forget(record);
    record->step = *step;
    return record;
}

/* Directly, then refused once, then recorded, then run from the record. */
static void begin(struct device *device, const struct device_step *step)
{
    static const enum mode MODE[] = {MODE_DIRECT, MODE_REFUSE, MODE_RECORD,
                                     MODE_REPLAY};
    struct queue *queue = queue_of(device);

    queue->now = NULL;
    queue->mode = MODE_DIRECT;
    queue->at = 0;
    if (!step->is_repeatable)
        return;
    queue->now = find_record(queue, step);
    queue->mode = MODE[queue->now->n_seen < 3 ? queue->now->n_seen : 3];
    queue->now->n_seen++;
}

static void read_now(struct queue *queue, const struct apart_read *read)
{
    struct late *late = malloc(sizeof(*late) + read->bytes);

    assert(late);
    *late = (struct late){.to = read->to, .bytes = read->bytes};
    memcpy(late->byte, apart_near(read->from), read->bytes);
    *queue->end = late;
    queue->end = &late->next;
}

static enum status end(struct device *device, bool *out_again)
{
    struct queue *queue = queue_of(device);
    const enum mode mode = queue->mode;

    queue->mode = MODE_DIRECT;
    *out_again = mode == MODE_REFUSE;
    if (mode == MODE_SHORT) {
        if (queue->now)
            forget(queue->now);
        return wait(device) ? STATUS_UNAVAILABLE : STATUS_RESOURCE_EXHAUSTED;
    }
    assert(mode != MODE_REPLAY || queue->at == queue->now->n_call);
    if (mode == MODE_RECORD || mode == MODE_REPLAY)
        for (size_t i = 0; i < queue->now->n_call; i++) {
            const struct call *call = &queue->now->call[i];

            if (call->op == APART_READ)
                read_now(queue, &call->args.read);
            else
                apart_run(queue->backend, call->op, &call->args);
        }
    queue->n_replay += mode == MODE_REPLAY;
    return wait(device);
}

/* ----------------------------------------------------------------- operators
 */

static void record_call(struct queue *queue, enum apart_op op,
                        const union apart_args *args)
{
    struct record *record = queue->now;
    struct apart_array array;
    struct call *call;

    if (record->n_call == record->capacity) {
        record->capacity = record->capacity ? 2 * record->capacity : 64;
        record->call =
            realloc(record->call, record->capacity * sizeof(*record->call));
        assert(record->call);
    }
    call = &record->call[record->n_call++];
    *call = (struct call){.op = op, .args = *args};
    array = apart_array(op, &call->args);
    if (!array.at)
        return;
    call->array = malloc(array.bytes + 1);
    assert(call->array);
    memcpy(call->array, *array.at, array.bytes);
    *array.at = call->array;
}

static bool same_bytes(const void *a, const void *b, size_t n)
{
    return memcmp(a, b, n) == 0;
}

/* The record's arguments with new contents of its array. */
static void replay_call(struct queue *queue, enum apart_op op,
                        const union apart_args *args)
{
    struct call *call = &queue->now->call[queue->at++];
    union apart_args wanted = call->args, given = *args;
    const struct apart_array array = apart_array(op, &given);

    assert(queue->at <= queue->now->n_call && call->op == op);
    if (array.at) {
        memcpy(call->array, *array.at, array.bytes);
        *array.at = *apart_array(op, &wanted).at;
    }
    assert(same_bytes(&given, &wanted, sizeof(given)));
}

/* A step takes what it needs in between when it comes to it, as on a GPU:
 * here floats of all keys and values that attention sees. */
static void take_scratch(struct queue *queue, const struct attend_args *args)
{
    const size_t floats =
        2 * (size_t)args->shape.n_kv_head * args->shape.d_head * sizeof(float);
    size_t bytes = 0;

    for (uint32_t i = 0; i < args->n_span; i++)
        bytes += (args->span[i].position + args->span[i].n_row) * floats;
    if (bytes <= queue->scratch_bytes)
        return;
    if (queue->scratch)
        give(&queue->device, queue->scratch);
    queue->scratch = NULL;
    queue->scratch_bytes = 0;
    if (bytes <= queue->store->scratch_limit &&
        !take(&queue->device, bytes, &queue->scratch)) {
        queue->scratch_bytes = bytes;
        return;
    }
    queue->was_short = true;
    queue->mode = MODE_SHORT;
}

static void ask(struct device *device, enum apart_op op,
                const union apart_args *args)
{
    struct queue *queue = queue_of(device);

    if (op == APART_attend && queue->mode != MODE_REFUSE &&
        queue->mode != MODE_SHORT)
        take_scratch(queue, &args->attend);
    switch (queue->mode) {
    case MODE_DIRECT:
        if (op == APART_READ)
            read_now(queue, &args->read);
        else
            apart_run(queue->backend, op, args);
        return;
    case MODE_REFUSE:
    case MODE_SHORT:
        return;
    case MODE_RECORD:
        record_call(queue, op, args);
        return;
    case MODE_REPLAY:
        replay_call(queue, op, args);
        return;
    }
}

#define DEVICE_OPERATOR(name, type)                                            \
    static void ask_##name(struct device *device, const struct type *args)     \
    {                                                                          \
        union apart_args all;                                                  \
                                                                               \
        memset(&all, 0, sizeof(all));                                          \
        memcpy(&all.name, args, sizeof(*args));                                \
        apart_clear_padding(APART_##name, &all);                               \
        ask(device, APART_##name, &all);                                       \
    }
DEVICE_OPERATORS(DEVICE_OPERATOR)
#undef DEVICE_OPERATOR

static void read_far(struct device *device, void *to, const void *from,
                     size_t bytes)
{
    union apart_args all;

    if (queue_of(device)->is_shuttle) {
        carry(queue_of(device), to, apart_near(from), bytes);
        return;
    }
    memset(&all, 0, sizeof(all));
    all.read = (struct apart_read){to, from, bytes};
    ask(device, APART_READ, &all);
}

static void load_far(struct device *device, void *to, const void *from,
                     size_t bytes)
{
    assert(queue_of(device)->is_shuttle && (uintptr_t)from < APART_SHIFT);
    carry(queue_of(device), apart_near(to), from, bytes);
}

/* Neither belongs into a step that is recorded. */
static void copy_far(struct device *device, void *to, const void *from,
                     size_t bytes)
{
    assert(queue_of(device)->mode == MODE_DIRECT);
    memcpy(apart_near(to), apart_near(from), bytes);
}

static void write_far(struct device *device, void *to, const void *from,
                      size_t bytes)
{
    assert(queue_of(device)->mode == MODE_DIRECT);
    assert((uintptr_t)from < APART_SHIFT);
    memcpy(apart_near(to), from, bytes);
}

static void zero_far(struct device *device, void *to, size_t bytes)
{
    assert(queue_of(device)->mode == MODE_DIRECT);
    memset(apart_near(to), 0, bytes);
}

static enum status create(struct device **out, char out_why[DEVICE_WHY_SIZE]);

static const struct device_calls CALLS = {.probe = probe,
                                          .generation = generation,
                                          .create = create,
                                          .destroy = destroy,
                                          .why = why,
                                          .take = take,
                                          .give = give,
                                          .take_host = take_host,
                                          .give_host = give_host,
                                          .available = available,
                                          .write = write_far,
                                          .read = read_far,
                                          .load = load_far,
                                          .copy = copy_far,
                                          .zero = zero_far,
                                          .mark = mark,
                                          .reached = reached,
                                          .wait = wait,
                                          .follow = follow,
                                          .begin = begin,
                                          .end = end,
#define DEVICE_OPERATOR(name, type) .name = ask_##name,
                                          DEVICE_OPERATORS(DEVICE_OPERATOR)
#undef DEVICE_OPERATOR
};

static struct queue *create_queue(struct store *store)
{
    const struct backend *const *best = backend_all();
    struct queue *queue = calloc(1, sizeof(*queue));

    while (!(*best)->is_supported())
        best++;
    if (queue) {
        queue->device.calls = &CALLS;
        queue->store = store;
        queue->backend = *best;
        queue->end = &queue->late;
        queue->cargo_end = &queue->cargo;
    }
    return queue;
}

static enum status create(struct device **out, char out_why[DEVICE_WHY_SIZE])
{
    struct store *store = calloc(1, sizeof(*store));
    struct queue *queue = create_queue(store), *side = create_queue(store);
    struct queue *shuttle = create_queue(store);

    if (!store || !queue || !side || !shuttle) {
        free(store);
        free(queue);
        free(side);
        free(shuttle);
        (void)snprintf(out_why, DEVICE_WHY_SIZE, "no memory for it");
        return STATUS_RESOURCE_EXHAUSTED;
    }
    (void)pthread_mutex_init(&store->lock, NULL);
    store->limit = store->scratch_limit = SIZE_MAX;
    shuttle->is_shuttle = true;
    queue->device.side = &side->device;
    queue->device.shuttle = &shuttle->device;
    *out = &queue->device;
    return STATUS_OK;
}

void apart_limit(struct device *device, size_t bytes)
{
    queue_of(device)->store->limit = bytes;
}

void apart_squeeze(struct device *device, size_t bytes)
{
    queue_of(device)->store->scratch_limit = bytes;
}

void apart_lose(struct device *device)
{
    queue_of(device)->store->is_lost = true;
}

void apart_hold(struct device *device, bool holds)
{
    queue_of(device)->store->is_held = holds;
}

uint64_t apart_n_replay(const struct device *device)
{
    return queue_of(device)->n_replay;
}

static bool is_supported(void)
{
    return true;
}

static void fill(const struct device_calls *real, struct device *device,
                 size_t leave)
{
    struct store *store = queue_of(device)->store;

    (void)real;
    pthread_mutex_lock(&store->lock);
    store->limit = store->used + leave;
    pthread_mutex_unlock(&store->lock);
}

static enum status find_device(const struct device_calls **out)
{
    return fault_around(
        &CALLS, &(struct fault_ways){.fill = fill, .squeeze = apart_squeeze},
        out);
}

const struct backend backend_apart = {
    .name = "apart",
    .is_supported = is_supported,
    .arithmetics = ARITHMETICS_CPU,
    .has_f8 = true,
    .has_kv_int8 = true,
    .find_device = find_device,
    DEVICE_BACKEND_OPERATORS,
};
