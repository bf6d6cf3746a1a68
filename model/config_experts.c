/*
 * Which layers of a model have experts, how many, and how they are weighted.
 */
#include "model/config_parts.h"

/*
 * A number that may have either of two names. It may have both, but then one
 * value.
 */
static enum status need_alias_u32(const json_t *text, const char *const key[2],
                                  uint32_t max, uint32_t *out)
{
    uint32_t first;
    enum status st;

    if (!config_member(text, key[0]) && config_member(text, key[1]))
        return config_need_u32(text, key[1], 1, max, out);
    st = config_need_u32(text, key[0], 1, max, out);
    if (st)
        return st;
    first = *out;
    st = config_get_u32(text, key[1], 1, max, out);
    if (!st && *out != first)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: %s is %u but %s is %u, expected one value",
                           FILE_NAME, key[0], first, key[1], *out);
    return st;
}

static enum status read_expert_sizes(const json_t *text,
                                     const struct config_family *family,
                                     struct config *config)
{
    /* transformers 5.17 writes the first name, 5.24 the second. */
    static const char *const COUNT[2] = {"num_experts", "num_local_experts"};
    enum status st;

    st = need_alias_u32(text, COUNT, CONFIG_EXPERT_MAX, &config->n_expert);
    if (!st)
        st = config_need_u32(text, "num_experts_per_tok", 1, CONFIG_EXPERT_MAX,
                             &config->n_chosen);
    if (!st)
        st = config_need_u32(text, "moe_intermediate_size", 1, CONFIG_FF_MAX,
                             &config->n_expert_ff);
    if (!st && family->has_shared_expert)
        st = config_need_u32(text, "shared_expert_intermediate_size", 1,
                             CONFIG_FF_MAX, &config->n_shared_ff);
    if (st)
        return st;
    if (config->n_chosen > config->n_expert)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: num_experts_per_tok is %u, expected 1 to "
                           "num_experts %u",
                           FILE_NAME, config->n_chosen, config->n_expert);
    return STATUS_OK;
}

/* Layers that a list names are dense. */
static enum status read_mlp_only(const json_t *text, struct config *config)
{
    const json_t *list = config_member(text, "mlp_only_layers");

    if (list && !json_is_array(list))
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: mlp_only_layers is no list, expected one",
                           FILE_NAME);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *entry = json_array_get(list, i);
        const json_int_t layer = json_integer_value(entry);

        if (!json_is_integer(entry) || layer < 0 ||
            layer >= (json_int_t)config->n_layer)
            return status_fail(STATUS_INVALID_ARGUMENT,
                               "%s: mlp_only_layers[%zu] is no layer, expected "
                               "integers 0 to %u",
                               FILE_NAME, i, config->n_layer - 1);
        config->has_experts[layer] = false;
    }
    return STATUS_OK;
}

static enum status read_expert_layers(const json_t *text,
                                      const struct config_family *family,
                                      struct config *config)
{
    uint32_t step = 1;
    enum status st;

    st =
        config_get_u32(text, "decoder_sparse_step", 1, CONFIG_LAYER_MAX, &step);
    if (st)
        return st;
    for (uint32_t i = 0; i < config->n_layer; i++)
        config->has_experts[i] = (i + 1) % step == 0;
    st = read_mlp_only(text, config);
    if (st || family->experts == EXPERTS_STEPPED)
        return st;
    for (uint32_t i = 0; i < config->n_layer; i++)
        if (!config->has_experts[i])
            return status_fail(STATUS_UNIMPLEMENTED,
                               "%s: decoder_sparse_step or mlp_only_layers "
                               "makes layer %u dense, known in %s: experts in "
                               "every layer",
                               FILE_NAME, i, config->model_type);
    return STATUS_OK;
}

enum status config_read_experts(const json_t *text,
                                const struct config_family *family,
                                struct config *config)
{
    bool has_any = false;
    enum status st;

    if (family->experts == EXPERTS_NONE)
        return STATUS_OK;
    st = read_expert_layers(text, family, config);
    for (uint32_t i = 0; i < config->n_layer; i++)
        has_any = has_any || config->has_experts[i];
    if (st || !has_any)
        return st;
    st = read_expert_sizes(text, family, config);
    if (st)
        return st;
    if (family->experts == EXPERTS_EVERYWHERE)
        st = config_need_switch(text, "norm_topk_prob", true);
    config->is_renormalised = family->is_renormalised;
    if (!st)
        st = json_get_bool(FILE_NAME, text, "norm_topk_prob",
                           &config->is_renormalised);
    return st;
}

enum status config_read_dense(const json_t *text, struct config *config)
{
    for (uint32_t i = 0; i < config->n_layer; i++)
        if (!config->has_experts[i])
            return config_need_u32(text, "intermediate_size", 1, CONFIG_FF_MAX,
                                   &config->n_ff);
    return STATUS_OK;
}
