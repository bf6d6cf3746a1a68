/*
 * A session's memory: layout held to the plan, growth held to zeroed, aligned,
 * stable blocks, byte counts held to each other, and every allocation made to
 * fail in turn.
 */
#include "state/memory.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define DIR_MIXED "tests/golden/qwen3_5_text" /* both kinds of layer */
#define DIR_SOFTMAX "tests/golden/llama"

/* The n-th aligned allocation, room or mapping from now on fails; 0: none does.
 * Where a room comes from is not counted once more. */
static unsigned fail_at;
static unsigned n_taken;
static size_t n_taken_bytes;
static bool is_in_room;

/* Counts it; true when it is to fail. */
static bool fails(size_t bytes)
{
    if (is_in_room)
        return false;
    n_taken++;
    n_taken_bytes += bytes;
    errno = ENOMEM;
    return fail_at && n_taken == fail_at;
}

void *aligned_alloc(size_t alignment, size_t bytes)
{
    void *room = NULL;

    if (fails(bytes))
        return NULL;
    return posix_memalign(&room, alignment, bytes) ? NULL : room;
}

void *mmap(void *at, size_t bytes, int prot, int flags, int fd, off_t from)
{
    if (fails(bytes))
        return MAP_FAILED;
    return (void *)syscall(SYS_mmap, at, bytes, prot, flags, fd, from);
}

/* The linker puts it before the one of base/rooms.h. */
enum status __real_rooms_take(struct rooms *rooms, size_t bytes, void **out);
enum status __wrap_rooms_take(struct rooms *rooms, size_t bytes, void **out);

enum status __wrap_rooms_take(struct rooms *rooms, size_t bytes, void **out)
{
    enum status st;

    if (fails(bytes))
        return status_fail(STATUS_RESOURCE_EXHAUSTED, "no room");
    is_in_room = true;
    st = __real_rooms_take(rooms, bytes, out);
    is_in_room = false;
    if (!st)
        memset(*out, 0xa5, bytes); /* nobody said that it is clear */
    return st;
}

static struct model *open_model(const char *dir, uint64_t n_context)
{
    struct model_options options = {.n_context = n_context};
    struct model *model;

    cr_assert_eq(backend_find("ref", &options.backend), STATUS_OK);
    cr_assert_eq(model_load(dir, &options, &model), STATUS_OK, "%s",
                 status_reason());
    return model;
}

static bool is_zero(const void *bytes, size_t n)
{
    const char *c = bytes;

    for (size_t i = 0; i < n; i++)
        if (c[i])
            return false;
    return true;
}

static void assert_layout(const struct model *model,
                          const struct memory *memory, uint64_t n_token)
{
    const struct layer_memory *layer = memory_layers(memory);

    for (uint32_t i = 0; i < model_config(model)->n_layer; i++) {
        const struct mixer_plan *plan = model_plan(model, i);

        cr_assert_eq(layer[i].state != NULL, plan->state_bytes > 0);
        cr_assert_eq((uintptr_t)layer[i].state % 64, 0);
        for (uint64_t b = 0; plan->block_bytes && b * KV_BLOCK < n_token; b++)
            cr_assert_eq((uintptr_t)layer[i].block[b] % 64, 0);
        cr_assert(plan->block_bytes || !layer[i].block);
    }
}

Test(memory, an_empty_session_is_zeroed_and_aligned)
{
    struct model *model = open_model(DIR_MIXED, 0);
    struct memory *memory;

    cr_assert_eq(memory_create(model, &memory), STATUS_OK);
    assert_layout(model, memory, 0);
    cr_assert_eq(memory_position(memory), 0);
    for (uint32_t i = 0; i < model_config(model)->n_layer; i++)
        if (model_plan(model, i)->state_bytes)
            cr_assert(is_zero(memory_layers(memory)[i].state,
                              model_plan(model, i)->state_bytes));
    cr_assert_eq(memory_bytes(memory), memory_bytes_for(model, NULL, 0));
    memory_destroy(memory);
    model_destroy(model);
}

/* Writes a mark into each block as it comes and finds them all at the end. */
Test(memory, growth_keeps_what_was_there_and_adds_zeros)
{
    static const uint64_t STEP[] = {1, 63, 64, 65, 128, 129, 1000, 1025, 4096};
    struct model *model = open_model(DIR_MIXED, 0);
    struct memory *memory;
    uint64_t n_marked = 0;

    cr_assert_eq(memory_create(model, &memory), STATUS_OK);
    for (size_t s = 0; s < sizeof(STEP) / sizeof(STEP[0]); s++) {
        const uint64_t n_block = (STEP[s] + KV_BLOCK - 1) / KV_BLOCK;

        cr_assert_eq(memory_reserve(memory, STEP[s]), STATUS_OK);
        assert_layout(model, memory, STEP[s]);
        cr_assert_eq(memory_bytes(memory),
                     memory_bytes_for(model, NULL, STEP[s]));
        for (uint32_t i = 0; i < model_config(model)->n_layer; i++) {
            const size_t n = model_plan(model, i)->block_bytes / sizeof(float);
            void *const *block = memory_layers(memory)[i].block;

            for (uint64_t b = 0; n && b < n_marked; b++) {
                const float *marked = block[b];

                cr_assert(marked[0] == (float)(1 + b + 1000 * i) &&
                          marked[n - 1] == -marked[0]);
            }
            for (uint64_t b = n_marked; n && b < n_block; b++) {
                float *fresh = block[b];

                cr_assert(is_zero(fresh, n * sizeof(float)));
                fresh[0] = (float)(1 + b + 1000 * i);
                fresh[n - 1] = -fresh[0];
            }
        }
        n_marked = n_block;
    }
    /* Asking for less takes nothing away. */
    cr_assert_eq(memory_reserve(memory, 1), STATUS_OK);
    cr_assert_eq(memory_bytes(memory), memory_bytes_for(model, NULL, 4096));
    memory_destroy(memory);
    model_destroy(model);
}

Test(memory, a_sealed_block_stays_where_it_is_while_the_session_grows)
{
    struct model *model = open_model(DIR_SOFTMAX, 0);
    struct memory *memory;
    const float *first;

    cr_assert_eq(memory_create(model, &memory), STATUS_OK);
    cr_assert_eq(memory_reserve(memory, 64), STATUS_OK);
    first = memory_layers(memory)[0].block[0];
    cr_assert_eq(memory_reserve(memory, 4096), STATUS_OK);
    cr_assert_eq(memory_layers(memory)[0].block[0], first);
    memory_destroy(memory);
    model_destroy(model);
}

Test(memory, bytes_are_what_the_layers_plan)
{
    struct model *model = open_model(DIR_MIXED, 0);
    size_t state = 0, block = 0;
    double growth;

    for (uint32_t i = 0; i < model_config(model)->n_layer; i++) {
        state += model_plan(model, i)->state_bytes +
                 model_plan(model, i)->copy_bytes;
        block += model_plan(model, i)->block_bytes;
    }
    cr_assert_geq(memory_bytes_for(model, NULL, 0), state);
    cr_assert_lt(memory_bytes_for(model, NULL, 0), state + 4096);
    growth = (double)(memory_bytes_for(model, NULL, 4096) -
                      memory_bytes_for(model, NULL, 0));
    cr_assert(growth >= (double)block * 4096 / KV_BLOCK);
    cr_assert(growth < 1.05 * (double)block * 4096 / KV_BLOCK + 4096);
    model_destroy(model);
}

Test(memory, bytes_are_those_taken_from_the_allocator)
{
    struct model *model = open_model(DIR_MIXED, 0);
    struct memory *memory;

    n_taken = 0;
    n_taken_bytes = 0;
    cr_assert_eq(memory_create(model, &memory), STATUS_OK);
    cr_assert_eq(memory_reserve(memory, 4096), STATUS_OK);
    cr_assert_geq(n_taken_bytes, memory_bytes(memory));
    cr_assert_lt(n_taken_bytes, memory_bytes(memory) + 64 * n_taken);
    memory_destroy(memory);
    model_destroy(model);
}

Test(memory, the_position_moves_by_what_was_consumed)
{
    struct model *model = open_model(DIR_MIXED, 0);
    struct memory *memory;

    cr_assert_eq(memory_create(model, &memory), STATUS_OK);
    cr_assert_eq(memory_reserve(memory, 100), STATUS_OK);
    memory_advance(memory, 64);
    memory_advance(memory, 1);
    cr_assert_eq(memory_position(memory), 65);
    memory_destroy(memory);
    model_destroy(model);
}

Test(memory, more_tokens_than_the_context_are_refused_and_change_nothing)
{
    struct model *model = open_model(DIR_SOFTMAX, 100);
    struct memory *memory;
    size_t before;

    cr_assert_eq(memory_create(model, &memory), STATUS_OK);
    cr_assert_eq(memory_reserve(memory, 100), STATUS_OK);
    before = memory_bytes(memory);
    cr_assert_eq(memory_reserve(memory, 101), STATUS_RESOURCE_EXHAUSTED);
    cr_assert_str_eq(status_reason(),
                     "session of 101 tokens, the model's context has 100");
    cr_assert_eq(memory_reserve(memory, UINT64_MAX), STATUS_RESOURCE_EXHAUSTED);
    cr_assert_eq(memory_bytes(memory), before);
    memory_destroy(memory);
    model_destroy(model);
}

Test(memory, every_failing_allocation_of_create_is_reported)
{
    struct model *model = open_model(DIR_MIXED, 0);
    struct memory *memory = NULL;
    unsigned n = 0;

    do {
        fail_at = ++n;
        n_taken = 0;
    } while (memory_create(model, &memory) == STATUS_RESOURCE_EXHAUSTED &&
             !memory);
    cr_assert_eq(n, 5); /* struct, layers, states, their room; success */
    memory_destroy(memory);
    model_destroy(model);
}

Test(memory, a_reserve_that_fails_keeps_what_was_there_and_can_go_on)
{
    struct model *model = open_model(DIR_MIXED, 0);
    struct memory *memory;
    enum status st;
    unsigned n_failed = 0;

    fail_at = 0;
    cr_assert_eq(memory_create(model, &memory), STATUS_OK);
    cr_assert_eq(memory_reserve(memory, 64), STATUS_OK);
    ((float *)memory_layers(memory)[3].block[0])[5] = 7;
    do {
        /* the table first, then each slab and its blocks: every call gets one
         * slab further */
        fail_at = n_failed ? 3 : 1;
        n_taken = 0;
        st = memory_reserve(memory, 20 * KV_BLOCK);
        cr_assert(((float *)memory_layers(memory)[3].block[0])[5] == 7);
        n_failed += st != STATUS_OK;
    } while (st == STATUS_RESOURCE_EXHAUSTED && n_failed < 100);
    cr_assert_eq(st, STATUS_OK);
    cr_assert_eq(n_failed, 20); /* the table; slab 1; each further slab */
    cr_assert_eq(memory_bytes(memory),
                 memory_bytes_for(model, NULL, 20 * KV_BLOCK));
    assert_layout(model, memory, 20 * KV_BLOCK);
    memory_destroy(memory);
    model_destroy(model);
}

/* Every byte of blocks and states is that of its place. */
static void mark(struct model *model, struct memory *memory, uint64_t position)
{
    cr_assert_eq(memory_reserve(memory, position), STATUS_OK);
    for (uint32_t i = 0; i < model_config(model)->n_layer; i++) {
        const struct mixer_plan *plan = model_plan(model, i);
        const struct layer_memory *layer = &memory_layers(memory)[i];

        if (layer->state)
            memset(layer->state, (int)(100 + i), plan->state_bytes);
        for (uint64_t b = 0; plan->block_bytes && b * KV_BLOCK < position; b++)
            memset(layer->block[b], (int)(10 * i + b), plan->block_bytes);
    }
    memory_advance(memory, position);
}

static bool is_all(const void *bytes, size_t n, int value)
{
    for (size_t i = 0; i < n; i++)
        if (((const char *)bytes)[i] != value)
            return false;
    return true;
}

static void assert_marked(struct model *model, const struct memory *memory,
                          uint64_t position)
{
    cr_assert_eq(memory_position(memory), position);
    for (uint32_t i = 0; i < model_config(model)->n_layer; i++) {
        const struct mixer_plan *plan = model_plan(model, i);
        const struct layer_memory *layer = &memory_layers(memory)[i];

        if (layer->state)
            cr_assert(is_all(layer->state, plan->state_bytes, (int)(100 + i)));
        for (uint64_t b = 0; plan->block_bytes && b * KV_BLOCK < position; b++)
            cr_assert(
                is_all(layer->block[b], plan->block_bytes, (int)(10 * i + b)));
    }
}

Test(memory, a_fork_shares_sealed_blocks_and_nothing_else)
{
    static const uint64_t POSITION[] = {1, 63, 64, 65, 200, 256};
    struct model *model = open_model(DIR_MIXED, 0);
    const size_t one = memory_bytes_for(model, NULL, KV_BLOCK) -
                       memory_bytes_for(model, NULL, 0);
    const uint32_t n_layer = model_config(model)->n_layer;

    for (size_t p = 0; p < sizeof(POSITION) / sizeof(POSITION[0]); p++) {
        struct memory *memory, *fork, *second;
        size_t shared = 0, slab;
        uint64_t n = POSITION[p] / KV_BLOCK;

        cr_assert_eq(memory_create(model, &memory), STATUS_OK);
        mark(model, memory, POSITION[p]);
        cr_assert_eq(memory_fork(memory, &shared, &fork), STATUS_OK);
        cr_assert_eq(memory_fork(fork, &shared, &second), STATUS_OK);
        assert_marked(model, fork, POSITION[p]);
        assert_marked(model, second, POSITION[p]);
        slab = n ? shared / n : 0;
        cr_assert_leq(slab, one);
        cr_assert_eq(memory_bytes(fork), memory_bytes(memory));
        cr_assert_eq(memory_shared_bytes(fork), shared, "counted once");
        cr_assert_eq(memory_shared_bytes(memory), shared);
        for (uint32_t i = 0; i < n_layer; i++) {
            size_t bytes = model_plan(model, i)->block_bytes;

            for (uint64_t b = 0; bytes && b * KV_BLOCK < POSITION[p]; b++)
                cr_assert_eq(memory_layers(memory)[i].block[b] ==
                                 memory_layers(fork)[i].block[b],
                             b < n);
            /* what the one writes on, the other does not see */
            if (bytes && POSITION[p] % KV_BLOCK)
                memset(memory_layers(memory)[i].block[n], 77, bytes);
            if (memory_layers(memory)[i].state)
                memset(memory_layers(memory)[i].state, 77,
                       model_plan(model, i)->state_bytes);
        }
        assert_marked(model, fork, POSITION[p]);
        memory_destroy(memory);
        assert_marked(model, fork, POSITION[p]);
        cr_assert_eq(shared, n * slab, "two hold them yet");
        memory_destroy(second);
        cr_assert_eq(memory_reserve(fork, 1000), STATUS_OK);
        assert_marked(model, fork, POSITION[p]);
        memory_destroy(fork);
        cr_assert_eq(shared, 0);
    }
    model_destroy(model);
}

Test(memory, what_is_there_twice_is_shared_afterwards)
{
    struct model *model = open_model(DIR_MIXED, 0);
    struct memory *a, *b;
    size_t shared = 0;

    cr_assert_eq(memory_create(model, &a), STATUS_OK);
    cr_assert_eq(memory_create(model, &b), STATUS_OK);
    mark(model, a, 300);
    mark(model, b, 200);
    memory_share(b, a, 150, &shared);
    cr_assert_eq(memory_layers(a)[3].block[1], memory_layers(b)[3].block[1]);
    cr_assert_neq(memory_layers(a)[3].block[2], memory_layers(b)[3].block[2]);
    cr_assert_eq(memory_shared_bytes(a), shared);
    memory_share(b, a, 150, &shared); /* once more changes nothing */
    cr_assert_eq(memory_shared_bytes(b), shared);
    assert_marked(model, a, 300);
    memory_destroy(a);
    assert_marked(model, b, 200);
    memory_destroy(b);
    cr_assert_eq(shared, 0);
    model_destroy(model);
}

Test(memory, held_states_stay_as_they_are_while_the_memory_goes_on)
{
    struct model *model = open_model(DIR_MIXED, 0);
    struct memory *memory;
    struct states *held;
    const void *state;
    size_t bytes;

    cr_assert_eq(memory_create(model, &memory), STATUS_OK);
    mark(model, memory, 200);
    bytes = memory_bytes(memory);
    state = memory_layers(memory)[0].state;
    held = memory_hold_states(memory);
    cr_assert_eq(memory_layers(memory)[0].state, state, "nothing is copied");
    cr_assert_eq(memory_reserve(memory, 201), STATUS_OK);
    assert_marked(model, memory, 200);
    cr_assert_neq(memory_layers(memory)[0].state, state);
    cr_assert_eq(memory_bytes(memory), bytes);
    memset(memory_layers(memory)[0].state, 1,
           model_plan(model, 0)->state_bytes);
    cr_assert(is_all(state, model_plan(model, 0)->state_bytes, 100));
    memory_let_go_states(model, held);

    state = memory_layers(memory)[0].state;
    cr_assert_eq(memory_reserve(memory, 202), STATUS_OK);
    cr_assert_eq(memory_layers(memory)[0].state, state, "nobody holds them");
    held = memory_hold_states(memory);
    memory_destroy(memory);
    cr_assert(is_all(state, model_plan(model, 0)->state_bytes, 1));
    memory_let_go_states(model, held);
    memory_let_go_states(model, NULL);
    model_destroy(model);
}

Test(memory, without_room_for_copies_held_states_are_not_written)
{
    struct model *model = open_model(DIR_MIXED, 0);
    struct memory *memory;
    struct states *held;
    const void *state;

    fail_at = 0;
    cr_assert_eq(memory_create(model, &memory), STATUS_OK);
    mark(model, memory, 200);
    state = memory_layers(memory)[0].state;
    held = memory_hold_states(memory);
    for (fail_at = 1; fail_at <= 2; fail_at++) {
        n_taken = 0;
        cr_assert_eq(memory_reserve(memory, 201), STATUS_RESOURCE_EXHAUSTED);
        cr_assert_eq(memory_layers(memory)[0].state, state);
        assert_marked(model, memory, 200);
    }
    n_taken = 0;
    cr_assert_eq(memory_reserve(memory, 201), STATUS_OK);
    assert_marked(model, memory, 200);
    memory_let_go_states(model, held);
    memory_destroy(memory);
    model_destroy(model);
}

Test(memory, every_failing_allocation_of_a_fork_is_reported)
{
    struct model *model = open_model(DIR_MIXED, 0);
    struct memory *memory, *fork = NULL;
    size_t shared = 0;
    unsigned n = 0;
    enum status st;

    fail_at = 0;
    cr_assert_eq(memory_create(model, &memory), STATUS_OK);
    mark(model, memory, 200);
    do {
        fail_at = ++n;
        n_taken = 0;
        st = memory_fork(memory, &shared, &fork);
    } while (st == STATUS_RESOURCE_EXHAUSTED && !fork && n < 20);
    fail_at = 0;
    cr_assert_eq(st, STATUS_OK);
    cr_assert_eq(n,
                 8); /* struct, layers, states and room, table, slab, blocks */
    assert_marked(model, memory, 200);
    memory_destroy(memory);
    assert_marked(model, fork, 200);
    memory_destroy(fork);
    cr_assert_eq(shared, 0);
    model_destroy(model);
}
