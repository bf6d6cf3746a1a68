#include "model/excerpt.h"

#include "kernels/device.h"
#include "model/mixer.h"
#include "model/model.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------- texts */

static bool parse_number(const char *text, uint32_t *out)
{
    char *end;
    const unsigned long n = strtoul(text, &end, 10);

    if (text[0] < '0' || text[0] > '9' || *end || n >= EXCERPT_LAYER_ANY)
        return false;
    *out = (uint32_t)n;
    return true;
}

static enum status parse_part(const char *text, struct excerpt *out)
{
    if (strncmp(text, "layer=", 6) == 0 && parse_number(text + 6, &out->layer))
        return STATUS_OK;
    if (strncmp(text, "pool=", 5) == 0 &&
        parse_number(text + 5, &out->n_pool) && out->n_pool % 2 &&
        out->n_pool <= EXCERPT_POOL_MAX)
        return STATUS_OK;
    return status_fail(STATUS_INVALID_ARGUMENT,
                       "gemfilter has '%s', allowed behind its tokens are "
                       "layer=N and pool=N with an odd N up to %u",
                       text, EXCERPT_POOL_MAX);
}

enum status excerpt_parse(const char *text, struct excerpt *out)
{
    struct excerpt it = {.layer = EXCERPT_LAYER_ANY, .n_pool = EXCERPT_POOL};
    char copy[EXCERPT_TEXT_SIZE], *save = NULL;
    enum status st = STATUS_OK;

    if (strlen(text) >= sizeof(copy))
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "gemfilter has %zu characters, at most %zu are "
                           "allowed",
                           strlen(text), sizeof(copy) - 1);
    memcpy(copy, text, strlen(text) + 1);
    const char *first = strtok_r(copy, ",", &save);
    if (!first || !parse_number(first, &it.n_keep) || it.n_keep == 0)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "gemfilter is '%s', expected how many tokens to "
                           "keep, at least 1",
                           text);
    for (const char *part = strtok_r(NULL, ",", &save); part && !st;
         part = strtok_r(NULL, ",", &save))
        st = parse_part(part, &it);
    if (!st)
        *out = it;
    return st;
}

void excerpt_format(const struct excerpt *excerpt, char out[EXCERPT_TEXT_SIZE])
{
    if (excerpt->layer == EXCERPT_LAYER_ANY)
        (void)snprintf(out, EXCERPT_TEXT_SIZE, "%u,pool=%u", excerpt->n_keep,
                       excerpt->n_pool);
    else
        (void)snprintf(out, EXCERPT_TEXT_SIZE, "%u,layer=%u,pool=%u",
                       excerpt->n_keep, excerpt->layer, excerpt->n_pool);
}

/* ----------------------------------------------------------------- a model */

static enum status unsupported(const char *why)
{
    status_fail(STATUS_FAILED_PRECONDITION, "%s", why);
    status_because("GEMFILTER_UNSUPPORTED");
    return status_field("gemfilter");
}

/* EXCERPT_LAYER_ANY: it has no softmax layer. */
static uint32_t own_layer(const struct config *config)
{
    uint32_t best = EXCERPT_LAYER_ANY;

    for (uint32_t i = 0; i < config->n_layer; i++) {
        if (config->layer[i] != LAYER_SOFTMAX)
            continue;
        best = i;
        if (8 * i >= 3 * config->n_layer)
            break;
    }
    return best;
}

enum status excerpt_check(const struct model *model, struct excerpt *excerpt)
{
    const struct config *config = model_config(model);
    const uint32_t own = own_layer(config);

    if (own == EXCERPT_LAYER_ANY)
        return unsupported("the model has no softmax layer, and gemfilter "
                           "chooses by the keys of one");
    if (model_kv_format(model) != KV_WIDE)
        return unsupported("gemfilter looks at keys, which are not to be in "
                           "int8 for it: --kv-format auto");
    if (excerpt->layer == EXCERPT_LAYER_ANY)
        excerpt->layer = own;
    if (excerpt->layer < config->n_layer &&
        config->layer[excerpt->layer] == LAYER_SOFTMAX)
        return STATUS_OK;
    status_fail(STATUS_INVALID_ARGUMENT,
                "gemfilter has layer=%u, which is no softmax layer of this "
                "model of %u layers; %u is one",
                excerpt->layer, config->n_layer, own);
    return status_field("gemfilter");
}

uint32_t excerpt_depth(const struct excerpt *excerpt)
{
    return excerpt->layer + 1;
}

/* -------------------------------------------------------------- the match */

enum status excerpt_match_init(const struct excerpt *excerpt,
                               const struct model *model, uint64_t n,
                               struct key_match *out)
{
    struct device *device = model_device(model);
    struct key_match it = {.layer = excerpt->layer, .position = n - 1};
    void *match, *far = NULL;
    enum status st = device_take_host(device, n * sizeof(float), &match);

    if (st)
        return st;
    it.match = match;
    if (device)
        st = device_take(device, n * sizeof(float), &far);
    it.far = far;
    if (st)
        excerpt_match_release(model, &it);
    else
        *out = it;
    return st;
}

void excerpt_match_release(const struct model *model, struct key_match *match)
{
    struct device *device = model_device(model);

    device_give(device, match->far);
    device_give_host(device, match->match);
    *match = (struct key_match){0};
}

/* ------------------------------------------------------------- the choice */

/* Floats in their order as whole numbers; 0 is NaN's. */
static uint32_t rank_of(float x)
{
    uint32_t bits;

    if (isnan(x))
        return 0;
    x += 0.0f; /* -0 is not less than +0 */
    memcpy(&bits, &x, sizeof(bits));
    return bits >> 31 ? ~bits : bits | 1u << 31;
}

static uint32_t pooled_rank(const struct excerpt *excerpt, const float *match,
                            uint32_t n, uint32_t at)
{
    const uint32_t side = excerpt->n_pool / 2;
    const uint32_t first = at < side ? 0 : at - side;
    const uint32_t end = n - at <= side ? n : at + side + 1;
    float sum = 0.0f;

    for (uint32_t i = first; i < end; i++)
        sum += match[i];
    return rank_of(sum);
}

/*
 * The n_keep-th largest of n ranks, byte by byte from the top, and in
 * *out_equal how many of those that are equal to it are among the n_keep.
 */
static uint32_t threshold(const uint32_t *rank, uint32_t n, uint32_t n_keep,
                          uint32_t *out_equal)
{
    uint32_t prefix = 0, left = n_keep;

    for (int shift = 24; shift >= 0; shift -= 8) {
        const uint64_t above = (uint64_t)prefix >> 8;
        uint32_t count[256] = {0}, byte = 255;

        for (uint32_t i = 0; i < n; i++)
            if ((uint64_t)rank[i] >> (shift + 8) == above)
                count[rank[i] >> shift & 255]++;
        for (; count[byte] < left; byte--)
            left -= count[byte];
        prefix = (prefix | byte) << (shift ? 8 : 0);
    }
    *out_equal = left;
    return prefix;
}

uint32_t excerpt_choose(const struct excerpt *excerpt, const float *match,
                        uint32_t n, uint32_t *out)
{
    uint32_t n_kept = 0, n_equal, least;

    assert(n > 0 && excerpt->n_keep > 0 && excerpt->n_pool % 2);
    if (n <= excerpt->n_keep) {
        for (uint32_t i = 0; i < n; i++)
            out[i] = i;
        return n;
    }
    for (uint32_t i = 0; i < n; i++) /* where a rank is read before an index
                                        comes to lie there */
        out[i] = pooled_rank(excerpt, match, n, i);
    out[n - 1] = UINT32_MAX;
    least = threshold(out, n, excerpt->n_keep, &n_equal);
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t rank = out[i];

        if (rank < least || (rank == least && n_equal == 0))
            continue;
        n_equal -= rank == least;
        out[n_kept++] = i;
    }
    return n_kept;
}
