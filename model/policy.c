#include "model/policy.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const RULE[N_KEY_RULE] = {"true", "rank", "far"};

/* Their own numbers: a sixteenth of what the papers' models see, for ours has
 * a sixteenth of their context. */
static const char *const INDEX[N_INDEX] = {"none", "keys", "bounds"};

static const struct kind {
    const char *name;
    struct policy policy;
} KIND[N_POLICY_KIND] = {
    [POLICY_FULL] = {"full", {.kind = POLICY_FULL}},
    [POLICY_WINDOW] = {"window",
                       {POLICY_WINDOW, KEYS_RANK, 1, 16, 0, 0, INDEX_NONE}},
    [POLICY_INFLLM] = {"infllm",
                       {POLICY_INFLLM, KEYS_FAR, 1, 16, 32, 8, INDEX_BOUNDS,
                        POLICY_INFLLM, 1}},
    [POLICY_QUEST] = {"quest",
                      {POLICY_QUEST, KEYS_TRUE, 1, 16, 32, 8, INDEX_BOUNDS,
                       POLICY_QUEST, 1}},
    [POLICY_RECYCLE] = {"recycle",
                        {POLICY_RECYCLE, KEYS_TRUE, 1, 16, 32, 8, INDEX_BOUNDS,
                         POLICY_QUEST, 8}},
};

/* ------------------------------------------------------------------- texts */

static enum status parse_blocks(const char *name, const char *text,
                                uint32_t *out)
{
    char *end;
    const unsigned long n = strtoul(text, &end, 10);

    if (end == text || *end || n % KV_BLOCK ||
        n > (unsigned long)POLICY_BLOCK_MAX * KV_BLOCK)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "policy has %s=%s, allowed are multiples of %u up "
                           "to %u",
                           name, text, KV_BLOCK, POLICY_BLOCK_MAX * KV_BLOCK);
    *out = (uint32_t)(n / KV_BLOCK);
    return STATUS_OK;
}

static enum status parse_step(const char *text, uint32_t *out)
{
    char *end;
    const unsigned long n = strtoul(text, &end, 10);

    if (end == text || *end || n == 0 || n > GRID || GRID % n)
        return status_fail(
            STATUS_INVALID_ARGUMENT,
            "policy has step=%s, allowed are 1 to %u that divide "
            "it",
            text, GRID);
    *out = (uint32_t)n;
    return STATUS_OK;
}

static enum status parse_rule(const char *text, enum key_rule *out)
{
    for (uint32_t i = 0; i < N_KEY_RULE; i++)
        if (strcmp(text, RULE[i]) == 0) {
            *out = (enum key_rule)i;
            return STATUS_OK;
        }
    return status_fail(STATUS_INVALID_ARGUMENT,
                       "policy has keys=%s, allowed are true, rank, far", text);
}

static enum status parse_index(const char *text, enum index_kind *out)
{
    for (uint32_t i = INDEX_NONE + 1; i < N_INDEX; i++)
        if (strcmp(text, INDEX[i]) == 0) {
            *out = (enum index_kind)i;
            return STATUS_OK;
        }
    return status_fail(STATUS_INVALID_ARGUMENT,
                       "policy has index=%s, allowed are keys, bounds", text);
}

static enum status parse_reuse(const char *text, uint32_t *out)
{
    char *end;
    const unsigned long n = strtoul(text, &end, 10);

    if (end == text || *end || n == 0 || n > POLICY_REUSE_MAX || (n & (n - 1)))
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "policy has reuse=%s, allowed are powers of two up "
                           "to %u",
                           text, POLICY_REUSE_MAX);
    *out = (uint32_t)n;
    return STATUS_OK;
}

/* All numbers become the base's own, so it comes before those that change. */
static enum status parse_base(const char *text, bool is_first,
                              struct policy *policy)
{
    const struct policy was = *policy;
    enum policy_kind base = POLICY_INFLLM;

    while (base <= POLICY_QUEST && strcmp(text, KIND[base].name) != 0)
        base++;
    if (base > POLICY_QUEST)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "policy has base=%s, allowed are infllm, quest",
                           text);
    if (!is_first)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "policy has base=%s behind other parameters, it "
                           "has to be the first",
                           text);
    *policy = KIND[base].policy;
    policy->kind = was.kind;
    policy->reuse = was.reuse;
    return STATUS_OK;
}

static enum status parse_parameter(char *text, bool is_first,
                                   struct policy *policy)
{
    const bool has_look_up = policy->index != INDEX_NONE;
    const bool has_index = policy->base == POLICY_INFLLM;
    const bool has_base = policy->kind == POLICY_RECYCLE;
    char *value = strchr(text, '=');

    if (value) {
        *value++ = '\0';
        if (strcmp(text, "sink") == 0)
            return parse_blocks(text, value, &policy->n_sink);
        if (strcmp(text, "window") == 0)
            return parse_blocks(text, value, &policy->n_window);
        if (strcmp(text, "keys") == 0)
            return parse_rule(value, &policy->keys);
        if (has_look_up && strcmp(text, "pick") == 0)
            return parse_blocks(text, value, &policy->n_pick);
        if (has_look_up && strcmp(text, "step") == 0)
            return parse_step(value, &policy->step);
        if (has_index && strcmp(text, "index") == 0)
            return parse_index(value, &policy->index);
        if (has_base && strcmp(text, "base") == 0)
            return parse_base(value, is_first, policy);
        if (has_base && strcmp(text, "reuse") == 0)
            return parse_reuse(value, &policy->reuse);
    }
    return status_fail(
        STATUS_INVALID_ARGUMENT,
        "policy %s has no parameter '%s', there are: sink, "
        "window, keys%s%s%s",
        KIND[policy->kind].name, text, has_look_up ? ", pick, step" : "",
        has_index ? ", index" : "", has_base ? ", base, reuse" : "");
}

enum status policy_parse(const char *text, struct policy *out)
{
    char copy[POLICY_TEXT_SIZE], *save = NULL, *parameters;
    const struct kind *kind = NULL;
    struct policy policy;
    enum status st = STATUS_OK;

    if (strlen(text) >= sizeof(copy))
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "policy has %zu characters, at most %zu are allowed",
                           strlen(text), sizeof(copy) - 1);
    memcpy(copy, text, strlen(text) + 1);
    parameters = strchr(copy, ':');
    if (parameters)
        *parameters++ = '\0';
    for (uint32_t i = 0; i < N_POLICY_KIND; i++)
        if (strcmp(copy, KIND[i].name) == 0)
            kind = &KIND[i];
    if (!kind)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "no policy '%s', there are: " POLICY_NAMES, copy);
    policy = kind->policy;
    if (parameters && policy.kind == POLICY_FULL)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "policy full has no parameters");
    for (char *each = parameters ? strtok_r(parameters, ":", &save) : NULL;
         each && !st; each = strtok_r(NULL, ":", &save))
        st = parse_parameter(each, each == parameters, &policy);
    if (!st)
        *out = policy;
    return st;
}

void policy_format(const struct policy *policy, char out[POLICY_TEXT_SIZE])
{
    const struct kind *kind = &KIND[policy->kind];
    int n = snprintf(out, POLICY_TEXT_SIZE, "%s", kind->name);

    if (policy->kind == POLICY_RECYCLE)
        n += snprintf(out + n, POLICY_TEXT_SIZE - (size_t)n, ":base=%s",
                      KIND[policy->base].name);
    if (policy->kind != POLICY_FULL)
        n += snprintf(out + n, POLICY_TEXT_SIZE - (size_t)n,
                      ":sink=%u:window=%u", policy->n_sink * KV_BLOCK,
                      policy->n_window * KV_BLOCK);
    if (policy->index)
        n += snprintf(out + n, POLICY_TEXT_SIZE - (size_t)n, ":pick=%u:step=%u",
                      policy->n_pick * KV_BLOCK, policy->step);
    if (policy->kind == POLICY_RECYCLE)
        n += snprintf(out + n, POLICY_TEXT_SIZE - (size_t)n, ":reuse=%u",
                      policy->reuse);
    if (policy->kind != POLICY_FULL)
        n += snprintf(out + n, POLICY_TEXT_SIZE - (size_t)n, ":keys=%s",
                      RULE[policy->keys]);
    if (policy->base == POLICY_INFLLM)
        n += snprintf(out + n, POLICY_TEXT_SIZE - (size_t)n, ":index=%s",
                      INDEX[policy->index]);
    assert(n > 0 && n < (int)POLICY_TEXT_SIZE);
}

bool policy_equal(const struct policy *a, const struct policy *b)
{
    return a->kind == b->kind && a->keys == b->keys && a->n_sink == b->n_sink &&
           a->n_window == b->n_window && a->n_pick == b->n_pick &&
           a->step == b->step && a->index == b->index && a->base == b->base &&
           a->reuse == b->reuse;
}

bool policy_looks_at_positions(const struct policy *policy)
{
    return policy->base == POLICY_QUEST;
}

/* ----------------------------------------------------------------- choices */

uint32_t policy_period(const struct policy *policy)
{
    return policy->index ? policy->step * policy->reuse : GRID;
}

/* Grid chunks in which the window does not move; 1: it moves with each. */
static uint32_t still_chunks(const struct policy *policy)
{
    const uint32_t n = policy_period(policy) / GRID;

    return n ? n : 1;
}

uint32_t policy_kept(const struct policy *policy)
{
    return policy->n_sink + policy->n_window + still_chunks(policy) - 1;
}

/* As it was when the look-up was made: what leaves it behind that could not be
 * chosen, so it stays. */
static uint64_t window_start(const struct policy *policy, uint64_t chunk)
{
    const uint64_t since = chunk - chunk % still_chunks(policy);

    return since > policy->n_window ? since - policy->n_window : 0;
}

struct block_range policy_candidates(const struct policy *policy,
                                     uint64_t chunk)
{
    const uint64_t end = window_start(policy, chunk);

    return (struct block_range){
        .first = policy->n_sink < end ? policy->n_sink : end, .end = end};
}

/* Is a better than b? Total: no two have one index. */
static bool is_better(const float *score, uint32_t a, uint32_t b)
{
    if (score[a] > score[b])
        return true;
    return !(score[b] > score[a]) && a < b;
}

/* Let the entry at `at` sink to its place; the worst of a heap is its root. */
static void sift(const float *score, uint32_t *heap, uint32_t n, uint32_t at)
{
    const uint32_t entry = heap[at];

    for (uint32_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && is_better(score, heap[child], heap[child + 1]))
            child++;
        if (!is_better(score, entry, heap[child]))
            break;
        heap[at] = heap[child];
    }
    heap[at] = entry;
}

static int ascending(const void *a, const void *b)
{
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return (x > y) - (x < y);
}

uint32_t policy_choose(const struct policy *policy, struct block_range among,
                       const float *score, uint32_t *out)
{
    const uint32_t n_among = (uint32_t)(among.end - among.first);
    const uint32_t n = n_among < policy->n_pick ? n_among : policy->n_pick;

    for (uint32_t i = 0; i < n; i++)
        out[i] = i;
    if (n && n < n_among) {
        for (uint32_t i = n / 2; i-- > 0;)
            sift(score, out, n, i);
        for (uint32_t i = n; i < n_among; i++)
            if (is_better(score, i, out[0])) {
                out[0] = i;
                sift(score, out, n, 0);
            }
        qsort(out, n, sizeof(*out), ascending);
    }
    for (uint32_t i = 0; i < n; i++)
        out[i] += (uint32_t)among.first;
    return n;
}

uint64_t policy_far_distance(const struct policy *policy)
{
    return (uint64_t)policy->n_window * KV_BLOCK;
}

/* Where a block before the own one is taken to lie; `behind` are seen after
 * it, the own one included. */
static struct key_place place_of(const struct policy *policy, uint64_t chunk,
                                 uint64_t block, uint32_t behind)
{
    const uint64_t window = window_start(policy, chunk);

    switch (policy->keys) {
    case KEYS_RANK:
        return (struct key_place){.position = (chunk - behind) * KV_BLOCK};
    case KEYS_FAR:
        if (block < window)
            return (struct key_place){.position = window * KV_BLOCK,
                                      .is_flat = true};
        break;
    case KEYS_TRUE:
    case N_KEY_RULE:
        break;
    }
    return (struct key_place){.position = block * KV_BLOCK};
}

uint32_t policy_see(const struct policy *policy, uint64_t chunk,
                    const uint32_t *pick, uint32_t n_pick,
                    struct policy_view *out)
{
    const uint64_t window = window_start(policy, chunk);
    const uint64_t n_sink = policy->n_sink < window ? policy->n_sink : window;
    const uint64_t n = n_sink + n_pick + (chunk - window) + 1;
    uint32_t at = 0;

    assert(policy->kind != POLICY_FULL);
    if (!out)
        return (uint32_t)n;
    for (uint64_t b = 0; b < n_sink; b++)
        out[at++].block = b;
    for (uint32_t i = 0; i < n_pick; i++)
        out[at++].block = pick[i];
    for (uint64_t b = window; b <= chunk; b++)
        out[at++].block = b;
    for (uint32_t i = 0; i < at; i++)
        out[i].place = place_of(policy, chunk, out[i].block, at - 1 - i);
    return at;
}
