#include "model/surprise.h"

#include <assert.h>
#include <string.h>

/* Blocks that may still be in a window, and the open one. */
#define RING (POLICY_BLOCK_MAX + 1)

struct memory_of {
    uint32_t *pick;  /* [1 + POLICY_BLOCK_MAX] how many are kept, then which,
                        ascending */
    float *weight;   /* [POLICY_BLOCK_MAX] their surprises, shrunk so far */
    uint32_t *chunk; /* whose rows see them: one number */
    float *sum;      /* [RING] surprise of block b at b % RING, */
    uint32_t *turns; /* and how many turns ended in it */
    float *last;     /* [hidden] */
};

enum {
    FIELD_PICK,
    FIELD_WEIGHT,
    FIELD_CHUNK,
    FIELD_SUM,
    FIELD_TURNS,
    FIELD_LAST, /* the only one whose size differs */
    N_SURPRISE_FIELD
};

static const struct mixer_field FIELD[N_SURPRISE_FIELD] = {
    [FIELD_PICK] = {"pick", FIELD_U32, 1, {1 + POLICY_BLOCK_MAX}},
    [FIELD_WEIGHT] = {"weight", FIELD_F32, 1, {POLICY_BLOCK_MAX}},
    [FIELD_CHUNK] = {"chunk", FIELD_U32, 1, {1}},
    [FIELD_SUM] = {"sum", FIELD_F32, 1, {RING}},
    [FIELD_TURNS] = {"turns", FIELD_U32, 1, {RING}},
    [FIELD_LAST] = {"last", FIELD_F32, 1, {0}},
};

/* Where the field begins, or, behind the last but one, that one. */
static size_t offset_of(uint32_t field)
{
    size_t offset = 0;

    for (uint32_t i = 0; i < field; i++)
        offset += (FIELD[i].dim[0] * field_element_bytes(FIELD[i].type) + 63) /
                  64 * 64;
    return offset;
}

void surprise_plan(uint32_t hidden, struct mixer_plan *plan)
{
    static_assert(N_SURPRISE_FIELD <= MIXER_FIELD_MAX, "all fields are named");
    plan->n_field = N_SURPRISE_FIELD;
    for (uint32_t i = 0; i < N_SURPRISE_FIELD; i++) {
        plan->field[i] = FIELD[i];
        plan->field[i].offset = offset_of(i);
    }
    plan->field[FIELD_LAST].dim[0] = hidden;
    plan->state_bytes = offset_of(FIELD_LAST) + hidden * sizeof(float);
}

static void *field_of(void *state, uint32_t field)
{
    return (char *)state + offset_of(field);
}

static struct memory_of memory_of(void *state)
{
    return (struct memory_of){.pick = field_of(state, FIELD_PICK),
                              .weight = field_of(state, FIELD_WEIGHT),
                              .chunk = field_of(state, FIELD_CHUNK),
                              .sum = field_of(state, FIELD_SUM),
                              .turns = field_of(state, FIELD_TURNS),
                              .last = field_of(state, FIELD_LAST)};
}

float *surprise_last(void *state)
{
    return memory_of(state).last;
}

/* ---------------------------------------------------------------- the kept */

/* Of equals the later one: as policy_choose() has it. */
static uint32_t least(const float *weight, uint32_t n)
{
    uint32_t at = 0;

    for (uint32_t i = 1; i < n; i++)
        if (!(weight[i] > weight[at]))
            at = i;
    return at;
}

static void shrink(const struct policy *policy, uint32_t n_turn, float *weight,
                   uint32_t n)
{
    const float factor = (float)policy->decay / 100.0f;

    for (uint32_t t = 0; t < n_turn; t++)
        for (uint32_t i = 0; i < n; i++)
            weight[i] *= factor;
}

/* A block that is later than all that are kept. */
static void consider(const struct policy *policy, const struct memory_of *it,
                     uint32_t block, float weight)
{
    uint32_t n = it->pick[0], *kept = it->pick + 1, at;

    if (policy->n_pick == 0)
        return;
    if (n == policy->n_pick) {
        at = least(it->weight, n--);
        if (!(weight > it->weight[at]))
            return;
        memmove(kept + at, kept + at + 1, (n - at) * sizeof(*kept));
        memmove(it->weight + at, it->weight + at + 1,
                (n - at) * sizeof(*it->weight));
    }
    kept[n] = block;
    it->weight[n] = weight;
    it->pick[0] = n + 1;
}

/* What leaves the window before rows of the chunk. */
static void leave(const struct policy *policy, const struct memory_of *it,
                  uint64_t chunk)
{
    const struct block_range among = policy_candidates(policy, chunk);
    const uint64_t block = among.end - 1;

    if (among.first >= among.end)
        return;
    shrink(policy, it->turns[block % RING], it->weight, it->pick[0]);
    consider(policy, it, (uint32_t)block, it->sum[block % RING]);
}

static void leave_all(const struct policy *policy, const struct memory_of *it,
                      uint64_t chunk)
{
    while (*it->chunk < chunk)
        leave(policy, it, ++*it->chunk);
}

const uint32_t *surprise_kept(const struct policy *policy, void *state,
                              uint64_t chunk)
{
    const struct memory_of it = memory_of(state);

    leave_all(policy, &it, chunk);
    assert(*it.chunk == chunk);
    return it.pick;
}

void surprise_tell(const struct policy *policy, void *state,
                   struct surprised it)
{
    const struct memory_of memory = memory_of(state);
    const uint64_t at = it.position / KV_BLOCK % RING;

    if (it.position % KV_BLOCK == 0) {
        memory.sum[at] = 0.0f;
        memory.turns[at] = 0;
    }
    memory.sum[at] += it.surprise;
    if (policy->turn == it.token) {
        shrink(policy, 1, &memory.sum[at], 1);
        memory.turns[at]++;
    }
    leave_all(policy, &memory, (it.position + 1) / GRID);
}
