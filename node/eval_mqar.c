#include "node/eval_mqar.h"

#include <assert.h>

#define WEIGHT_OF_GAP_1 (1u << 26)

/* Of the slot-th even place behind the pairs: the power law with a -> 0. */
static uint32_t weight(uint32_t slot)
{
    return WEIGHT_OF_GAP_1 / (slot + 1);
}

static bool is_taken(const uint32_t *slot, uint32_t n, uint32_t candidate)
{
    for (uint32_t i = 0; i < n; i++)
        if (slot[i] == candidate)
            return true;
    return false;
}

/* Slots without repeats, each chosen by weight among those left. */
static void choose_slots(const struct draw *draw, uint32_t n_slot, uint32_t n,
                         uint32_t *slot)
{
    uint32_t total = 0;

    for (uint32_t i = 0; i < n_slot; i++)
        total += weight(i);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t left = draw_below(draw, DRAW_PLACE, i, total);
        uint32_t at = 0;

        while (is_taken(slot, i, at) || left >= weight(at)) {
            left -= is_taken(slot, i, at) ? 0 : weight(at);
            at++;
        }
        slot[i] = at;
        total -= weight(at);
    }
}

void eval_make_mqar(const struct eval_item *item, uint32_t n_vocabulary,
                    uint32_t *token, struct eval_mqar *out)
{
    const struct draw own = eval_draw_own(item);
    const uint32_t half = n_vocabulary / 2, n = item->length;
    struct eval_mqar mqar = {.n_pair = n / 8};
    uint32_t slot[EVAL_MQAR_PAIR_MAX];

    assert(n % 2 == 0 && n >= EVAL_LENGTH_MIN &&
           n_vocabulary >= EVAL_MQAR_VOCABULARY_MIN);
    if (mqar.n_pair > EVAL_MQAR_PAIR_MAX)
        mqar.n_pair = EVAL_MQAR_PAIR_MAX;
    choose_slots(&own, (n - 2 * mqar.n_pair) / 2, mqar.n_pair, slot);
    for (uint32_t i = 2 * mqar.n_pair; i < n; i++)
        token[i] = draw_below(&own, DRAW_FILLER, i, n_vocabulary);
    for (uint32_t i = 0; i < mqar.n_pair; i++) {
        mqar.key[i] = 1 + draw_distinct(&own, DRAW_KEY, i, half - 1);
        mqar.value[i] =
            half + draw_distinct(&own, DRAW_VALUE, i, n_vocabulary - half);
        mqar.position[i] = 2 * mqar.n_pair + 2 * slot[i];
        token[2 * i] = mqar.key[i];
        token[2 * i + 1] = mqar.value[i];
        token[mqar.position[i]] = mqar.key[i];
    }
    *out = mqar;
}
