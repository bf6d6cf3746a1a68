#include "model/policy.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const RULE[N_KEY_RULE] = {"true", "rank", "far"};

static const char *const INDEX[N_INDEX] = {"none", "keys", "bounds", "mass"};

/* Their own numbers: a sixteenth of what the papers' models see, for ours has
 * a sixteenth of their context. snapkv's are those of its paper's code. */
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
    [POLICY_SNAPKV] = {"snapkv",
                       {POLICY_SNAPKV, KEYS_TRUE, 0, 1, 32, 1, INDEX_MASS}},
    [POLICY_SIRLLM] = {"sirllm",
                       {.kind = POLICY_SIRLLM,
                        .keys = KEYS_RANK,
                        .n_sink = 1,
                        .n_window = 16,
                        .n_pick = 32,
                        .index = INDEX_SURPRISE,
                        .decay = 90,
                        .turn = POLICY_TURN_OPEN}},
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
    for (uint32_t i = INDEX_KEYS; i <= INDEX_BOUNDS; i++)
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

static enum status parse_end(const char *text, uint64_t *out)
{
    char *end;
    const unsigned long n = strtoul(text, &end, 10);

    if (end == text || *end || n == 0 || n > POLICY_END_MAX)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "policy has end=%s, allowed are 1 to %lu, the "
                           "tokens of the prompt",
                           text, POLICY_END_MAX);
    *out = n;
    return STATUS_OK;
}

static enum status parse_decay(const char *text, uint32_t *out)
{
    char *end;
    const unsigned long n = strtoul(text, &end, 10);

    if (end == text || *end || n > 100)
        return status_fail(
            STATUS_INVALID_ARGUMENT,
            "policy has decay=%s, allowed are 0 to 100, the "
            "percent of a surprise that the end of a turn leaves",
            text);
    *out = (uint32_t)n;
    return STATUS_OK;
}

static enum status parse_turn(const char *text, int64_t *out)
{
    char *end;
    const unsigned long n = strtoul(text, &end, 10);

    if (strcmp(text, "none") == 0) {
        *out = POLICY_TURN_NONE;
        return STATUS_OK;
    }
    if (end == text || *end || n > UINT32_MAX)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "policy has turn=%s, allowed are none and the id of "
                           "the token that ends a turn",
                           text);
    *out = (int64_t)n;
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
    const bool has_pick = policy->index != INDEX_NONE;
    const bool has_step = policy->base != POLICY_FULL;
    const bool has_end = policy->kind == POLICY_SNAPKV;
    const bool has_index = policy->base == POLICY_INFLLM;
    const bool has_base = policy->kind == POLICY_RECYCLE;
    const bool has_turn = policy->kind == POLICY_SIRLLM;
    char *value = strchr(text, '=');

    if (value) {
        *value++ = '\0';
        if (strcmp(text, "sink") == 0)
            return parse_blocks(text, value, &policy->n_sink);
        if (strcmp(text, "window") == 0)
            return parse_blocks(text, value, &policy->n_window);
        if (strcmp(text, "keys") == 0)
            return parse_rule(value, &policy->keys);
        if (has_pick && strcmp(text, "pick") == 0)
            return parse_blocks(text, value, &policy->n_pick);
        if (has_step && strcmp(text, "step") == 0)
            return parse_step(value, &policy->step);
        if (has_index && strcmp(text, "index") == 0)
            return parse_index(value, &policy->index);
        if (has_base && strcmp(text, "base") == 0)
            return parse_base(value, is_first, policy);
        if (has_base && strcmp(text, "reuse") == 0)
            return parse_reuse(value, &policy->reuse);
        if (has_end && strcmp(text, "end") == 0)
            return parse_end(value, &policy->end);
        if (has_turn && strcmp(text, "decay") == 0)
            return parse_decay(value, &policy->decay);
        if (has_turn && strcmp(text, "turn") == 0)
            return parse_turn(value, &policy->turn);
    }
    return status_fail(STATUS_INVALID_ARGUMENT,
                       "policy %s has no parameter '%s', there are: sink, "
                       "window, keys%s%s%s%s%s%s",
                       KIND[policy->kind].name, text, has_pick ? ", pick" : "",
                       has_step ? ", step" : "", has_index ? ", index" : "",
                       has_base ? ", base, reuse" : "", has_end ? ", end" : "",
                       has_turn ? ", decay, turn" : "");
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

/* A parameter behind what the text has. */
static void add_word(char text[POLICY_TEXT_SIZE], const char *name,
                     const char *value)
{
    const size_t n = strlen(text);
    const int n_new =
        snprintf(text + n, POLICY_TEXT_SIZE - n, ":%s=%s", name, value);

    assert(n_new > 0 && n + (size_t)n_new < POLICY_TEXT_SIZE);
}

static void add_number(char text[POLICY_TEXT_SIZE], const char *name,
                       uint64_t value)
{
    char number[21];

    (void)snprintf(number, sizeof(number), "%lu", value);
    add_word(text, name, number);
}

void policy_format(const struct policy *policy, char out[POLICY_TEXT_SIZE])
{
    (void)snprintf(out, POLICY_TEXT_SIZE, "%s", KIND[policy->kind].name);
    if (policy->kind == POLICY_FULL)
        return;
    if (policy->kind == POLICY_RECYCLE)
        add_word(out, "base", KIND[policy->base].name);
    add_number(out, "sink", (uint64_t)policy->n_sink * KV_BLOCK);
    add_number(out, "window", (uint64_t)policy->n_window * KV_BLOCK);
    if (policy->index)
        add_number(out, "pick", (uint64_t)policy->n_pick * KV_BLOCK);
    if (policy->base)
        add_number(out, "step", policy->step);
    if (policy->kind == POLICY_RECYCLE)
        add_number(out, "reuse", policy->reuse);
    add_word(out, "keys", RULE[policy->keys]);
    if (policy->base == POLICY_INFLLM)
        add_word(out, "index", INDEX[policy->index]);
    if (policy->end)
        add_number(out, "end", policy->end);
    if (policy->kind == POLICY_SIRLLM) {
        add_number(out, "decay", policy->decay);
        if (policy->turn == POLICY_TURN_NONE)
            add_word(out, "turn", "none");
        else if (policy->turn != POLICY_TURN_OPEN)
            add_number(out, "turn", (uint64_t)policy->turn);
    }
}

bool policy_equal(const struct policy *a, const struct policy *b)
{
    return a->kind == b->kind && a->keys == b->keys && a->n_sink == b->n_sink &&
           a->n_window == b->n_window && a->n_pick == b->n_pick &&
           a->step == b->step && a->index == b->index && a->base == b->base &&
           a->reuse == b->reuse && a->end == b->end && a->decay == b->decay &&
           a->turn == b->turn;
}

/* ---------------------------------------------------- what others have to say
 */

static bool wants_end(const struct policy *policy)
{
    return policy->kind == POLICY_SNAPKV && policy->end == 0;
}

void policy_end_prompt(struct policy *policy, uint64_t n_token)
{
    if (wants_end(policy))
        policy->end = n_token;
}

enum status policy_check_end(const struct policy *policy)
{
    return wants_end(policy)
               ? status_fail(STATUS_INVALID_ARGUMENT,
                             "policy %s chooses at the end of the prompt: name "
                             "it in the request that brings the prompt, or say "
                             "where that ends, as in %s:end=1000",
                             KIND[policy->kind].name, KIND[policy->kind].name)
               : STATUS_OK;
}

void policy_end_turns(struct policy *policy, const uint32_t *token, uint32_t n)
{
    if (policy->turn == POLICY_TURN_OPEN)
        policy->turn = n ? (int64_t)token[0] : POLICY_TURN_NONE;
}

bool policy_is_asked(const struct policy *asked, const struct policy *other)
{
    struct policy ended = *asked;

    policy_end_prompt(&ended, other->end);
    if (ended.turn == POLICY_TURN_OPEN)
        ended.turn = other->turn;
    return policy_equal(&ended, other);
}

bool policy_looks_at_positions(const struct policy *policy)
{
    return policy->base == POLICY_QUEST;
}

/* ----------------------------------------------------------------- choices */

bool policy_is_bounded(const struct policy *policy)
{
    return policy->kind != POLICY_FULL && policy->kind != POLICY_SNAPKV;
}

bool policy_sees_all(const struct policy *policy, uint64_t position)
{
    return policy->kind == POLICY_SNAPKV &&
           (policy->end == 0 || position < policy->end);
}

/* Positions that one look-up serves; those without one: a grid chunk. */
static uint32_t period_of(const struct policy *policy)
{
    return policy->base ? policy->step * policy->reuse : GRID;
}

uint64_t policy_view_end(const struct policy *policy, uint64_t position)
{
    const uint32_t period = period_of(policy);
    const uint32_t n = period < GRID ? period : GRID;

    if (policy_sees_all(policy, position))
        return policy->end ? policy->end : UINT64_MAX;
    return (position / n + 1) * n;
}

uint64_t policy_pass_end(const struct policy *policy, uint64_t position)
{
    if (!policy || policy->kind != POLICY_SIRLLM)
        return UINT64_MAX;
    return (position / GRID + policy->n_window + 1) * GRID;
}

bool policy_looks_up(const struct policy *policy, uint64_t position)
{
    if (policy->kind == POLICY_SNAPKV)
        return position == policy->end;
    return policy->base && position % period_of(policy) == 0;
}

uint64_t policy_choices(const struct policy *policy, uint64_t n_token)
{
    return policy->n_pick ? n_token / period_of(policy) + 1 : 0;
}

/* Grid chunks in which the window does not move; 1: it moves with each. */
static uint32_t still_chunks(const struct policy *policy)
{
    const uint32_t n = period_of(policy) / GRID;

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
    const uint64_t since = policy->kind == POLICY_SNAPKV
                               ? policy->end / GRID
                               : chunk - chunk % still_chunks(policy);

    return since > policy->n_window ? since - policy->n_window : 0;
}

struct block_range policy_candidates(const struct policy *policy,
                                     uint64_t chunk)
{
    const uint64_t end = window_start(policy, chunk);

    return (struct block_range){
        .first = policy->n_sink < end ? policy->n_sink : end, .end = end};
}

uint32_t policy_n_chosen(const struct policy *policy, struct block_range among)
{
    const uint64_t n = among.end - among.first;

    return n < policy->n_pick ? (uint32_t)n : policy->n_pick;
}

uint32_t policy_n_picked(const struct policy *policy, uint64_t position)
{
    uint64_t looked_up = position;

    assert(policy->kind != POLICY_SIRLLM);
    if (policy->base)
        looked_up -= position % period_of(policy);
    else if (policy->kind != POLICY_SNAPKV)
        return 0;
    return policy_n_chosen(policy, policy_candidates(policy, looked_up / GRID));
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
    const uint32_t n = policy_n_chosen(policy, among);

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

uint64_t policy_look_position(const struct policy *policy, uint64_t position)
{
    return policy_looks_at_positions(policy)
               ? position
               : (uint64_t)policy->n_window * KV_BLOCK;
}

struct policy_sight policy_sight(const struct policy *policy, uint64_t chunk,
                                 uint32_t n_pick)
{
    const uint64_t window = window_start(policy, chunk);
    const uint64_t n_sink = policy->n_sink < window ? policy->n_sink : window;

    assert(policy->kind != POLICY_FULL &&
           !policy_sees_all(policy, (chunk + 1) * GRID - 1));
    return (struct policy_sight){
        .window = window,
        .chunk = chunk,
        .n_sink = (uint32_t)n_sink,
        .n_pick = n_pick,
        .n = (uint32_t)(n_sink + n_pick + (chunk - window) + 1)};
}

/* Where block `block` is taken to lie, if `behind` are seen after it. */
static struct key_place place_of(enum key_rule keys,
                                 const struct policy_sight *sight,
                                 uint64_t block, uint32_t behind)
{
    switch (keys) {
    case KEYS_RANK:
        return (struct key_place){.position =
                                      (sight->chunk - behind) * KV_BLOCK};
    case KEYS_FAR:
        if (block < sight->window)
            return (struct key_place){.position = sight->window * KV_BLOCK,
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
    const struct policy_sight sight = policy_sight(policy, chunk, n_pick);
    uint32_t at = 0;

    if (!out)
        return sight.n;
    for (uint64_t b = 0; b < sight.n_sink; b++)
        out[at++].block = b;
    for (uint32_t i = 0; i < n_pick; i++)
        out[at++].block = pick[i];
    for (uint64_t b = sight.window; b <= chunk; b++)
        out[at++].block = b;
    for (uint32_t i = 0; i < at; i++)
        out[i].place = place_of(policy->keys, &sight, out[i].block, at - 1 - i);
    return at;
}
