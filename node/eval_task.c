#include "node/eval_task.h"

#include <assert.h>
#include <string.h>

#define REALM_ALL 0xe5547u /* haystacks are the same in all tasks */
#define CONTEXT_BIT 0x80000000u
#define NAMES_BYTES 512u

#define UNITS_ANY (1u << 24)
#define PAIRS (1u << 14) /* eval_n_kind(EVAL_PAIR) */

static const struct eval_task TASK[] = {
    {"passkey", "InfiniteBench: a 5-digit pass key among noise sentences",
     EVAL_FIRST_INTEGER, true, 6, 1, NEEDLE_PASSKEY, UNITS_ANY,
     eval_write_needle},
    {"number", "InfiniteBench: 10 digits with repeats among noise sentences",
     EVAL_FIRST_INTEGER, true, 12, 1, NEEDLE_NUMBER, UNITS_ANY,
     eval_write_needle},
    {"kv", "InfiniteBench: one of many UUID pairs of a JSON object", EVAL_WORD,
     true, 50, 2, LOOKUP_KV, UNITS_ANY, eval_write_lookup},
    {"niah_single_1", "RULER: word to number among noise sentences",
     EVAL_CONTAINS, true, 128, 1, NEEDLE_SINGLE_1, UNITS_ANY,
     eval_write_needle},
    {"niah_single_2", "RULER: word to number in an essay", EVAL_CONTAINS, true,
     128, 1, NEEDLE_SINGLE_2, UNITS_ANY, eval_write_needle},
    {"niah_single_3", "RULER: word to UUID in an essay", EVAL_CONTAINS, true,
     128, 1, NEEDLE_SINGLE_3, UNITS_ANY, eval_write_needle},
    {"niah_multikey_1", "RULER: one of four word needles in an essay",
     EVAL_CONTAINS, true, 128, 4, NEEDLE_MULTIKEY_1, UNITS_ANY,
     eval_write_needle},
    {"niah_multikey_2", "RULER: a haystack of word needles alone",
     EVAL_CONTAINS, true, 128, 2, LOOKUP_MULTIKEY_2, PAIRS, eval_write_lookup},
    {"niah_multikey_3", "RULER: a haystack of UUID needles alone",
     EVAL_CONTAINS, true, 128, 2, LOOKUP_MULTIKEY_3, UNITS_ANY,
     eval_write_lookup},
    {"niah_multivalue", "RULER: all four numbers of one word in an essay",
     EVAL_CONTAINS, false, 128, 4, NEEDLE_MULTIVALUE, UNITS_ANY,
     eval_write_needle},
    {"niah_multiquery", "RULER: the numbers of four words in an essay",
     EVAL_CONTAINS, false, 128, 4, NEEDLE_MULTIQUERY, UNITS_ANY,
     eval_write_needle},
    {"vt", "RULER: the five names of a chain of assignments", EVAL_CONTAINS,
     false, 30, 5, 0, UNITS_ANY, eval_write_trace},
    {"cwe", "RULER: the ten most common words of a numbered list",
     EVAL_CONTAINS, false, 120, 1, 0, EVAL_N_WORD / 2, eval_write_common},
    {"fwe", "RULER: the three most frequent coded words of a Zipf text",
     EVAL_CONTAINS, false, 50, 100, 0, UNITS_ANY, eval_write_frequent},
    {"mqar", "zoology: values of keys asked again later, as token ids",
     EVAL_POSITIONS, false, 0, 0, 0, 0, NULL},
    {"needle", "godwit-tiny's own wording: one number in an essay",
     EVAL_CONTAINS, true, 8, 1, NEEDLE_OWN, UNITS_ANY, eval_write_needle},
    {"needle_multikey", "the same with three other needles", EVAL_CONTAINS,
     true, 8, 4, NEEDLE_OWN_MULTIKEY, UNITS_ANY, eval_write_needle},
};

#define N_TASK ((uint32_t)(sizeof(TASK) / sizeof(TASK[0])))

uint32_t eval_n_task(void)
{
    return N_TASK;
}

const struct eval_task *eval_task_at(uint32_t i)
{
    assert(i < N_TASK);
    return &TASK[i];
}

enum status eval_task_find(const char *name, size_t n_name,
                           const struct eval_task **out)
{
    char names[NAMES_BYTES];
    size_t n = 0;

    for (uint32_t i = 0; i < N_TASK; i++) {
        if (strlen(TASK[i].name) == n_name &&
            memcmp(TASK[i].name, name, n_name) == 0) {
            *out = &TASK[i];
            return STATUS_OK;
        }
        if (n < sizeof(names))
            n += (size_t)snprintf(names + n, sizeof(names) - n, "%s%s",
                                  i ? ", " : "", TASK[i].name);
    }
    return status_fail(STATUS_NOT_FOUND, "no task '%.*s', expected some of: %s",
                       n_name < 64 ? (int)n_name : 64, name, names);
}

struct eval_item eval_item(const struct eval_task *task, uint64_t seed,
                           uint32_t index, uint32_t n_step, uint32_t length)
{
    struct eval_item item = {.task = task,
                             .seed = seed,
                             .index = index,
                             .depth = {0, 1},
                             .length = length};

    assert(n_step);
    if (task->has_depth)
        item.depth = (struct eval_depth){index % n_step, n_step};
    return item;
}

static uint32_t realm(const struct eval_item *item)
{
    return (uint32_t)(item->task - TASK);
}

struct draw eval_draw_own(const struct eval_item *item)
{
    return (struct draw){item->seed, realm(item), item->index};
}

struct draw eval_draw_context(const struct eval_item *item)
{
    return (struct draw){item->seed, realm(item),
                         item->index / item->depth.n_step | CONTEXT_BIT};
}

struct draw eval_draw_all(const struct eval_item *item)
{
    return (struct draw){item->seed, REALM_ALL, 0};
}

uint32_t eval_place(struct eval_depth depth, uint32_t n)
{
    assert(n && depth.step < depth.n_step);
    if (depth.n_step == 1)
        return (n - 1) / 2;
    return (
        uint32_t)(((uint64_t)(n - 1) * depth.step + (depth.n_step - 1) / 2) /
                  (depth.n_step - 1));
}
