#include "model/config_parts.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define GENERATION_NAME "generation_config.json"
#define KNOWN_TYPES                                                            \
    "qwen3_5_text, qwen3_5, qwen3_5_moe_text, qwen3_5_moe, qwen3_next, "       \
    "qwen3_moe, qwen3, llama"

/* What is being read: the text model's object and the one around it, if any. */
struct source {
    const json_t *text;
    const json_t *outer; /* NULL unless nested */
};

static const struct config_family FAMILY[] = {
    {.type = "qwen3_5_text",
     .outer = "qwen3_5",
     .has_qk_norm = true,
     .is_hybrid = true},
    {.type = "qwen3_5_moe_text",
     .outer = "qwen3_5_moe",
     .has_qk_norm = true,
     .is_hybrid = true,
     .experts = EXPERTS_EVERYWHERE,
     .has_shared_expert = true,
     .is_renormalised = true},
    {.type = "qwen3_next",
     .has_qk_norm = true,
     .is_hybrid = true,
     .is_delta_grouped = true,
     .experts = EXPERTS_STEPPED,
     .has_shared_expert = true,
     .is_renormalised = true},
    {.type = "qwen3_moe", .has_qk_norm = true, .experts = EXPERTS_STEPPED},
    {.type = "qwen3", .has_qk_norm = true},
    {.type = "llama"},
};
#define N_FAMILY (sizeof(FAMILY) / sizeof(FAMILY[0]))

const json_t *config_member(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);

    return json_is_null(value) ? NULL : value;
}

enum status config_get_u32(const json_t *object, const char *key, uint32_t min,
                           uint32_t max, uint32_t *out)
{
    uint64_t value = *out;
    const enum status st =
        json_get_u64(FILE_NAME, object, key, min, max, &value);

    if (!st)
        *out = (uint32_t)value;
    return st;
}

enum status config_need_u32(const json_t *object, const char *key, uint32_t min,
                            uint32_t max, uint32_t *out)
{
    if (!config_member(object, key))
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: %s is missing, expected an integer %u to %u",
                           FILE_NAME, key, min, max);
    return config_get_u32(object, key, min, max, out);
}

/* A double in [min, max]; *out is kept when the key is absent. */
static enum status get_real(const char *name, const json_t *object,
                            const char *key, const double range[2], double *out)
{
    double value = *out;
    const enum status st = json_get_double(name, object, key, &value);

    if (st)
        return st;
    if (!(value >= range[0] && value <= range[1]))
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: %s is %g, expected %g to %g", name, key, value,
                           range[0], range[1]);
    *out = value;
    return STATUS_OK;
}

/*
 * Read a number that may stand in two places. It may stand in both, but then
 * with one value: which one would be meant cannot be known.
 */
static enum status get_twin(const json_t *a, const json_t *b, const char *key,
                            const double range[2], double *out)
{
    double first = *out, second;
    enum status st;

    st = get_real(FILE_NAME, a, key, range, &first);
    if (st)
        return st;
    second = config_member(a, key) ? first : *out;
    st = get_real(FILE_NAME, b, key, range, &second);
    if (st)
        return st;
    if (config_member(a, key) && second != first)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: %s is %g at top level but %g in the rope's own "
                           "object, expected one value",
                           FILE_NAME, key, second, first);
    *out = second;
    return STATUS_OK;
}

enum status config_need_switch(const json_t *object, const char *key,
                               bool wanted)
{
    bool value = wanted;
    const enum status st = json_get_bool(FILE_NAME, object, key, &value);

    if (st)
        return st;
    if (value != wanted)
        return status_fail(STATUS_UNIMPLEMENTED, "%s: %s is %s, known: %s",
                           FILE_NAME, key, value ? "true" : "false",
                           wanted ? "true" : "false");
    return STATUS_OK;
}

/* NULL: unknown. A nested model is found by the type around it. */
static const struct config_family *find_family(const char *type, bool is_outer)
{
    for (size_t i = 0; i < N_FAMILY; i++) {
        const char *name = is_outer ? FAMILY[i].outer : FAMILY[i].type;

        if (name && strcmp(name, type) == 0)
            return &FAMILY[i];
    }
    return NULL;
}

/* Go from the config around a text model to its text_config. */
static enum status enter_text_config(struct source *source,
                                     const struct config_family *family)
{
    const char *inner = family->type;
    enum status st;

    source->outer = source->text;
    source->text = config_member(source->outer, "text_config");
    if (!json_is_object(source->text))
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: text_config is missing or no object, expected "
                           "one in model_type %s",
                           FILE_NAME, family->outer);
    st = json_get_string(FILE_NAME, source->text, "model_type", &inner);
    if (st)
        return st;
    if (strcmp(inner, family->type) != 0)
        return status_fail(STATUS_UNIMPLEMENTED,
                           "%s: text_config.model_type is '%.64s', known: %s",
                           FILE_NAME, inner, family->type);
    return STATUS_OK;
}

static enum status read_family(struct source *source, struct config *config,
                               const struct config_family **out)
{
    const struct config_family *family;
    const char *type = NULL;
    enum status st;

    if (!json_is_object(source->text))
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: not an object, expected one", FILE_NAME);
    st = json_get_string(FILE_NAME, source->text, "model_type", &type);
    if (st)
        return st;
    if (!type)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: model_type is missing, known: %s", FILE_NAME,
                           KNOWN_TYPES);

    family = find_family(type, true);
    if (family) {
        st = enter_text_config(source, family);
        if (st)
            return st;
        config->is_nested = true;
    } else {
        family = find_family(type, false);
    }
    if (!family)
        return status_fail(STATUS_UNIMPLEMENTED,
                           "%s: model_type is '%.64s', known: %s", FILE_NAME,
                           type, KNOWN_TYPES);
    (void)snprintf(config->model_type, sizeof(config->model_type), "%s",
                   family->type);
    *out = family;
    return STATUS_OK;
}

static enum status refuse_unknown_arithmetic(const json_t *text,
                                             const json_t *outer)
{
    const char *act = "silu";
    enum status st;

    if (config_member(text, "quantization_config") ||
        (outer && config_member(outer, "quantization_config")))
        return status_fail(STATUS_UNIMPLEMENTED,
                           "%s: quantization_config is given, known: weights "
                           "in F32, F16 or BF16",
                           FILE_NAME);
    st = json_get_string(FILE_NAME, text, "hidden_act", &act);
    if (st)
        return st;
    if (strcmp(act, "silu") != 0)
        return status_fail(STATUS_UNIMPLEMENTED,
                           "%s: hidden_act is '%.64s', known: silu", FILE_NAME,
                           act);
    st = config_need_switch(text, "attention_bias", false);
    if (!st)
        st = config_need_switch(text, "mlp_bias", false);
    if (!st)
        st = config_need_switch(text, "use_sliding_window", false);
    if (!st)
        st = config_need_switch(text, "attn_output_gate", true);
    return st;
}

static enum status read_tie(const struct source *source, struct config *config)
{
    bool inner = false, outer;
    enum status st;

    st = json_get_bool(FILE_NAME, source->text, "tie_word_embeddings", &inner);
    if (st)
        return st;
    outer = inner;
    if (source->outer) {
        st = json_get_bool(FILE_NAME, source->outer, "tie_word_embeddings",
                           &outer);
        if (st)
            return st;
        if (config_member(source->text, "tie_word_embeddings") &&
            inner != outer)
            return status_fail(STATUS_INVALID_ARGUMENT,
                               "%s: tie_word_embeddings is %s but %s in "
                               "text_config, expected one value",
                               FILE_NAME, outer ? "true" : "false",
                               inner ? "true" : "false");
    }
    config->is_tied = outer;
    return STATUS_OK;
}

static enum status read_sizes(const json_t *text, struct config *config)
{
    static const double EPS[2] = {1e-12, 1.0};
    enum status st;

    st = config_need_u32(text, "num_hidden_layers", 1, CONFIG_LAYER_MAX,
                         &config->n_layer);
    if (!st)
        st = config_need_u32(text, "hidden_size", 1, CONFIG_HIDDEN_MAX,
                             &config->hidden);
    if (!st)
        st = config_need_u32(text, "vocab_size", 1, CONFIG_VOCAB_MAX,
                             &config->n_vocab);
    if (!st)
        st = config_need_u32(text, "max_position_embeddings", 1,
                             CONFIG_CONTEXT_MAX, &config->n_context);
    if (!st)
        st = config_need_u32(text, "num_attention_heads", 1, CONFIG_HEAD_MAX,
                             &config->n_head);
    if (st)
        return st;

    /* The first Llama files know no grouped heads and leave this out. */
    config->n_kv_head = config->n_head;
    st = config->has_qk_norm
             ? config_need_u32(text, "num_key_value_heads", 1, CONFIG_HEAD_MAX,
                               &config->n_kv_head)
             : config_get_u32(text, "num_key_value_heads", 1, CONFIG_HEAD_MAX,
                              &config->n_kv_head);
    if (st)
        return st;
    if (config->n_head % config->n_kv_head)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: num_attention_heads is %u, expected a multiple "
                           "of num_key_value_heads %u",
                           FILE_NAME, config->n_head, config->n_kv_head);
    config->rms_eps = 1e-6;
    return get_real(FILE_NAME, text, "rms_norm_eps", EPS, &config->rms_eps);
}

static enum status read_head_dim(const json_t *text, struct config *config)
{
    if (config_member(text, "head_dim"))
        return config_get_u32(text, "head_dim", 1, CONFIG_HEAD_DIM_MAX,
                              &config->d_head);
    if (config->hidden % config->n_head ||
        config->hidden / config->n_head > CONFIG_HEAD_DIM_MAX)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: head_dim is missing and hidden_size %u is no "
                           "multiple up to %u of num_attention_heads %u",
                           FILE_NAME, config->hidden, CONFIG_HEAD_DIM_MAX,
                           config->n_head);
    config->d_head = config->hidden / config->n_head;
    return STATUS_OK;
}

static enum status read_layer_types(const json_t *list,
                                    const struct config_family *family,
                                    struct config *config)
{
    if (!json_is_array(list) || json_array_size(list) != config->n_layer)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: layer_types has %zu entries, expected a list "
                           "of num_hidden_layers %u",
                           FILE_NAME, json_array_size(list), config->n_layer);
    for (uint32_t i = 0; i < config->n_layer; i++) {
        const json_t *entry = json_array_get(list, i);
        const char *kind = json_string_value(entry);

        if (!kind)
            return status_fail(STATUS_INVALID_ARGUMENT,
                               "%s: layer_types[%u] is no string, expected "
                               "one",
                               FILE_NAME, i);
        if (strcmp(kind, "full_attention") == 0)
            config->layer[i] = LAYER_SOFTMAX;
        else if (strcmp(kind, "linear_attention") == 0 && family->is_hybrid)
            config->layer[i] = LAYER_DELTA;
        else
            return status_fail(
                STATUS_UNIMPLEMENTED,
                "%s: layer_types[%u] is '%.64s', known in %s: full_attention%s",
                FILE_NAME, i, kind, config->model_type,
                family->is_hybrid ? ", linear_attention" : "");
    }
    return STATUS_OK;
}

static enum status read_layers(const json_t *text,
                               const struct config_family *family,
                               struct config *config)
{
    const json_t *list = config_member(text, "layer_types");
    uint32_t interval = 4; /* transformers' default */
    enum status st;

    if (list)
        return read_layer_types(list, family, config);
    if (!family->is_hybrid)
        return STATUS_OK; /* zero is LAYER_SOFTMAX */
    st = config_get_u32(text, "full_attention_interval", 1, CONFIG_LAYER_MAX,
                        &interval);
    if (st)
        return st;
    for (uint32_t i = 0; i < config->n_layer; i++)
        config->layer[i] = (i + 1) % interval ? LAYER_DELTA : LAYER_SOFTMAX;
    return STATUS_OK;
}

static enum status read_delta(const json_t *text, struct config *config)
{
    bool has_delta = false;
    enum status st;

    for (uint32_t i = 0; i < config->n_layer; i++)
        has_delta = has_delta || config->layer[i] == LAYER_DELTA;
    if (!has_delta)
        return STATUS_OK;

    st = config_need_u32(text, "linear_num_key_heads", 1, CONFIG_HEAD_MAX,
                         &config->n_k_head);
    if (!st)
        st = config_need_u32(text, "linear_num_value_heads", 1, CONFIG_HEAD_MAX,
                             &config->n_v_head);
    if (!st)
        st = config_need_u32(text, "linear_key_head_dim", 1,
                             CONFIG_HEAD_DIM_MAX, &config->d_k);
    if (!st)
        st = config_need_u32(text, "linear_value_head_dim", 1,
                             CONFIG_HEAD_DIM_MAX, &config->d_v);
    if (!st)
        st = config_need_u32(text, "linear_conv_kernel_dim", 1, CONFIG_CONV_MAX,
                             &config->conv_width);
    if (st)
        return st;
    if (config->n_v_head % config->n_k_head)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: linear_num_value_heads is %u, expected a "
                           "multiple of linear_num_key_heads %u",
                           FILE_NAME, config->n_v_head, config->n_k_head);
    return STATUS_OK;
}

static enum status read_rope_kind(const json_t *object,
                                  struct rope_config *rope)
{
    static const double FACTOR[2] = {1e-3, 1e6};
    const char *kind = "default";
    enum status st;

    st = json_get_string(FILE_NAME, object, "type", &kind); /* oldest name */
    if (!st)
        st = json_get_string(FILE_NAME, object, "rope_type", &kind);
    if (st)
        return st;
    if (strcmp(kind, "default") == 0)
        return STATUS_OK;
    if (strcmp(kind, "llama3") != 0)
        return status_fail(STATUS_UNIMPLEMENTED,
                           "%s: rope_type is '%.64s', known: default, llama3",
                           FILE_NAME, kind);

    rope->kind = ROPE_LLAMA3;
    if (!config_member(object, "factor") ||
        !config_member(object, "low_freq_factor") ||
        !config_member(object, "high_freq_factor"))
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: rope_type llama3 lacks a field, expected "
                           "factor, low_freq_factor, high_freq_factor",
                           FILE_NAME);
    st = get_real(FILE_NAME, object, "factor", FACTOR, &rope->factor);
    if (!st)
        st = get_real(FILE_NAME, object, "low_freq_factor", FACTOR,
                      &rope->low_freq_factor);
    if (!st)
        st = get_real(FILE_NAME, object, "high_freq_factor", FACTOR,
                      &rope->high_freq_factor);
    if (!st)
        st = config_need_u32(object, "original_max_position_embeddings", 1,
                             CONFIG_CONTEXT_MAX, &rope->original_context);
    if (st)
        return st;
    /* The ramp between the two divides by their difference. */
    if (rope->high_freq_factor <= rope->low_freq_factor)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: high_freq_factor is %g, expected above "
                           "low_freq_factor %g",
                           FILE_NAME, rope->high_freq_factor,
                           rope->low_freq_factor);
    return STATUS_OK;
}

static enum status find_rope_object(const json_t *text, const json_t **out)
{
    const json_t *newer = config_member(text, "rope_parameters");
    const json_t *older = config_member(text, "rope_scaling");
    const json_t *object = newer ? newer : older;

    if (newer && older && !json_equal(newer, older))
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: rope_parameters and rope_scaling differ, "
                           "expected one of them",
                           FILE_NAME);
    if (object && !json_is_object(object))
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: %s is no object, expected one", FILE_NAME,
                           newer ? "rope_parameters" : "rope_scaling");
    if (config_member(object, "full_attention"))
        return status_fail(STATUS_UNIMPLEMENTED,
                           "%s: rope_parameters differ by layer type, known: "
                           "one rope for all layers",
                           FILE_NAME);
    *out = object;
    return STATUS_OK;
}

static enum status read_rope(const json_t *text,
                             const struct config_family *family,
                             struct config *config)
{
    static const double THETA[2] = {1.0, 1e15}, PART[2] = {0.0, 1.0};
    struct rope_config *rope = &config->rope;
    double part = family->is_hybrid ? 0.25 : 1.0;
    const json_t *object = NULL;
    enum status st;

    rope->theta = 10000.0; /* transformers' default */
    rope->factor = rope->low_freq_factor = rope->high_freq_factor = 1.0;
    st = find_rope_object(text, &object);
    if (!st)
        st = get_twin(object, text, "rope_theta", THETA, &rope->theta);
    if (!st)
        st = get_twin(object, text, "partial_rotary_factor", PART, &part);
    if (!st)
        st = read_rope_kind(object, rope);
    if (st)
        return st;

    if (!family->is_hybrid && part < 1.0)
        return status_fail(STATUS_UNIMPLEMENTED,
                           "%s: partial_rotary_factor is %g, known in %s: 1",
                           FILE_NAME, part, config->model_type);
    rope->n_rot = (uint32_t)(config->d_head * part);
    if (rope->n_rot < 2 || rope->n_rot % 2)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: rope rotates %u of head_dim %u dimensions, "
                           "expected an even number from 2",
                           FILE_NAME, rope->n_rot, config->d_head);
    return STATUS_OK;
}

/* One id, a list of them, or nothing. */
static enum status read_eos(const char *name, const json_t *object,
                            struct config *config)
{
    const json_t *value = config_member(object, "eos_token_id");
    const size_t n = json_is_array(value) ? json_array_size(value) : 1;

    if (!value)
        return STATUS_OK;
    if (n > CONFIG_EOS_MAX)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: eos_token_id has %zu entries, limit %u", name,
                           n, CONFIG_EOS_MAX);
    for (size_t i = 0; i < n; i++) {
        const json_t *id =
            json_is_array(value) ? json_array_get(value, i) : value;
        const json_int_t number = json_integer_value(id);

        if (!json_is_integer(id) || number < 0 ||
            number >= (json_int_t)config->n_vocab)
            return status_fail(STATUS_INVALID_ARGUMENT,
                               "%s: eos_token_id is no token, expected "
                               "integers 0 to %u",
                               name, config->n_vocab - 1);
        config->eos[i] = (uint32_t)number;
    }
    config->n_eos = (uint32_t)n;
    return STATUS_OK;
}

static enum status read_config(const json_t *root, struct config *config)
{
    struct source source = {.text = root};
    const struct config_family *family = NULL;
    enum status st;

    st = read_family(&source, config, &family);
    if (st)
        return st;
    config->has_qk_norm = family->has_qk_norm;
    config->has_output_gate = family->is_hybrid;
    config->has_unit_offset = family->is_hybrid;
    config->is_delta_grouped = family->is_delta_grouped;
    st = refuse_unknown_arithmetic(source.text, source.outer);
    if (!st)
        st = read_tie(&source, config);
    if (!st)
        st = read_sizes(source.text, config);
    if (!st)
        st = read_head_dim(source.text, config);
    if (!st)
        st = read_layers(source.text, family, config);
    if (!st)
        st = read_delta(source.text, config);
    if (!st)
        st = config_read_experts(source.text, family, config);
    if (!st)
        st = config_read_dense(source.text, config);
    if (!st)
        st = read_rope(source.text, family, config);
    if (!st)
        st = read_eos(FILE_NAME, source.text, config);
    if (!st && !config->n_eos)
        st = read_eos(FILE_NAME, source.outer, config);
    return st;
}

static enum status read_generation(const json_t *root, struct config *config)
{
    static const double TEMPERATURE[2] = {0.0, 100.0}, TOP_P[2] = {0.0, 1.0};
    double temperature = 1.0, top_p = 1.0;
    bool has_sampling = false;
    uint64_t top_k = 0;
    enum status st;

    if (!json_is_object(root))
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s: not an object, expected one", GENERATION_NAME);
    st = read_eos(GENERATION_NAME, root, config);
    if (!st)
        st = json_get_bool(GENERATION_NAME, root, "do_sample", &has_sampling);
    if (!st)
        st = get_real(GENERATION_NAME, root, "temperature", TEMPERATURE,
                      &temperature);
    if (!st)
        st = get_real(GENERATION_NAME, root, "top_p", TOP_P, &top_p);
    if (!st)
        st = json_get_u64(GENERATION_NAME, root, "top_k", 0, INT32_MAX, &top_k);
    if (st || !has_sampling)
        return st;
    config->has_sampling = true;
    config->temperature = (float)temperature;
    config->top_p = (float)top_p;
    config->top_k = (int32_t)top_k;
    return STATUS_OK;
}

/* Parse DIR/name. Free *out with json_decref(). */
static enum status load(const char *dir, const char *name, json_t **out)
{
    char path[PATH_MAX];
    const int n = snprintf(path, sizeof(path), "%s/%s", dir, name);

    if (n < 0 || (size_t)n >= sizeof(path))
        return status_fail(STATUS_NOT_FOUND,
                           "path of %s has %d bytes, limit %zu", name, n,
                           sizeof(path) - 1);
    return json_load(path, out);
}

enum status config_load_file(const char *path, struct config *out)
{
    struct config config = {.temperature = 1.0f, .top_p = 1.0f};
    json_t *root = NULL;
    enum status st = json_load(path, &root);

    if (!st)
        st = read_config(root, &config);
    if (!st)
        *out = config;
    json_decref(root);
    return st;
}

enum status config_load(const char *dir, struct config *out)
{
    struct config config = {.temperature = 1.0f, .top_p = 1.0f};
    json_t *root = NULL, *generation = NULL;
    enum status st;

    st = load(dir, FILE_NAME, &root);
    if (st)
        goto out;
    st = read_config(root, &config);
    if (st)
        goto out;
    st = load(dir, GENERATION_NAME, &generation);
    if (st == STATUS_NOT_FOUND)
        st = STATUS_OK; /* optional */
    else if (!st)
        st = read_generation(generation, &config);
    if (!st)
        *out = config;
out:
    json_decref(generation);
    json_decref(root);
    return st;
}
