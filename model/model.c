#include "model/model.h"

#include "model/arch.h"
#include "model/graph.h"
#include "model/moe.h"
#include "model/safetensors.h"
#include "model/state_cap.h"
#include "model/weights.h"

#include <assert.h>
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * Positions whose angles go into the numerics id, so that it is the same for
 * any context limit; the table has at least these.
 */
#define ROPE_PROBE 4096u
#define FINGERPRINT_TEXT_SIZE (1024u + CONFIG_LAYER_MAX)

/* ------------------------------------------------------------------ rope */

/*
 * The frequency of one pair, after Llama 3.1's rescale: long waves are slowed
 * by `factor`, short ones kept, those between are mixed. transformers:
 * modeling_rope_utils.py, _compute_llama3_parameters.
 */
static double rescale_llama3(const struct rope_config *rope, double freq)
{
    const double context = rope->original_context;
    const double wave = 2.0 * acos(-1.0) / freq;
    double smooth;

    if (wave > context / rope->low_freq_factor)
        return freq / rope->factor;
    if (wave < context / rope->high_freq_factor)
        return freq;
    smooth = (context / wave - rope->low_freq_factor) /
             (rope->high_freq_factor - rope->low_freq_factor);
    return (1.0 - smooth) * freq / rope->factor + smooth * freq;
}

static enum status init_rope(struct model *model)
{
    const struct rope_config *rope = &model->config.rope;
    const uint32_t n_pair = rope->n_rot / 2;
    const uint64_t n_want =
        model->n_context > ROPE_PROBE ? model->n_context : ROPE_PROBE;
    double *freq = weights_room(n_pair * sizeof(*freq));
    enum status st;

    if (!freq)
        return STATUS_RESOURCE_EXHAUSTED;
    for (uint32_t i = 0; i < n_pair; i++) {
        freq[i] = pow(rope->theta, -2.0 * i / (double)rope->n_rot);
        if (rope->kind == ROPE_LLAMA3)
            freq[i] = rescale_llama3(rope, freq[i]);
    }
    st = rope_table_init(rope->n_rot,
                         (n_want + KV_BLOCK - 1) / KV_BLOCK * KV_BLOCK, freq,
                         &model->rope);
    free(freq);
    return st;
}

/* ------------------------------------------------------------- identities */

/*
 * Everything in the config that changes a logit, as text: a struct's bytes
 * would hold padding and fields that do not. The context limit is left out, so
 * that nodes with other limits may share sessions.
 */
static struct digest digest_config(struct digest weights,
                                   const struct config *c)
{
    const struct rope_config *r = &c->rope;
    char text[FINGERPRINT_TEXT_SIZE];
    int n = snprintf(
        text, sizeof(text),
        "%s %u %u %u %u eps=%a tied=%d softmax=%u/%u/%u norm=%d gate=%d "
        "unit=%d rope=%d %u %a %a %a %a %u delta=%u/%u/%u/%u conv=%u ",
        c->model_type, c->n_layer, c->hidden, c->n_ff, c->n_vocab, c->rms_eps,
        c->is_tied, c->n_head, c->n_kv_head, c->d_head, c->has_qk_norm,
        c->has_output_gate, c->has_unit_offset, (int)r->kind, r->n_rot,
        r->theta, r->factor, r->low_freq_factor, r->high_freq_factor,
        r->original_context, c->n_k_head, c->n_v_head, c->d_k, c->d_v,
        c->conv_width);

    assert(n > 0 && (size_t)n < sizeof(text));
    /* Models without experts keep the text, and so the sessions, they had. */
    if (c->n_expert)
        n += snprintf(text + n, sizeof(text) - (size_t)n,
                      "experts=%u/%u/%u/%u norm=%d ", c->n_chosen, c->n_expert,
                      c->n_expert_ff, c->n_shared_ff, c->is_renormalised);
    assert(n > 0 && (size_t)n + c->n_layer < sizeof(text));
    for (uint32_t i = 0; i < c->n_layer; i++) {
        const char kind = c->layer[i] == LAYER_DELTA ? 'd' : 's';

        text[n++] = (char)(c->has_experts[i] ? toupper(kind) : kind);
    }
    return digest_chain(weights, text, (size_t)n);
}

/* Two caps that differ have two names: nine digits tell all floats apart, and
 * most that anybody asks for need fewer. Without one the id is what it was. */
static void name_cap(float cap, size_t size, char *out)
{
    char text[32];
    int n;

    (void)snprintf(text, sizeof(text), "%g", (double)cap);
    if (strtof(text, NULL) != cap)
        (void)snprintf(text, sizeof(text), "%.9g", (double)cap);
    n = snprintf(out, size, "/cap-%s-%u", text, STATE_CAP_GRID);
    assert(n > 0 && (size_t)n < size);
}

static void name_numerics(struct model *model)
{
    const size_t n_probe = (size_t)ROPE_PROBE * (model->rope.n_rot / 2);
    const char *format = model->format == WEIGHT_W8     ? "w8-128"
                         : model->format == WEIGHT_W8A8 ? "w8a8-128"
                         : model->format == WEIGHT_F8   ? "f8-128"
                         : model->format == WEIGHT_BF16 || !model->has_f32
                             ? "bf16"
                         : model->has_bf16 ? "mixed"
                                           : "f32";
    const char *kv = model->kv == KV_INT8                   ? "int8-64"
                     : model->arithmetic == ARITHMETIC_FP32 ? "f32"
                                                            : "bf16";
    char generation[DEVICE_GENERATION_SIZE];
    struct digest rope = {0};
    int n;

    device_generation(model->device, generation);
    if (model->rope.cos) {
        rope = digest_bytes(model->rope.cos, n_probe * sizeof(float));
        rope = digest_chain(rope, model->rope.sin, n_probe * sizeof(float));
    }
    n = snprintf(model->numerics, sizeof(model->numerics),
                 "%s%s/%s/kv-%s/rope-%08x", arithmetic_id(model->arithmetic),
                 generation, format, kv, (uint32_t)rope.lo);
    assert(n > 0 && (size_t)n < sizeof(model->numerics));
    if (model->state_cap > 0)
        name_cap(model->state_cap, sizeof(model->numerics) - (size_t)n,
                 model->numerics + n);
}

/* ---------------------------------------------------------------- weights */

static void note_type(struct model *model, enum linear_type type)
{
    model->has_bf16 |= type == LINEAR_BF16;
    model->has_f32 |= type == LINEAR_F32;
}

static size_t embedding_bytes(const struct model *model)
{
    const size_t element =
        model->embedding_type == LINEAR_BF16 ? sizeof(uint16_t) : sizeof(float);

    return element * model->config.n_vocab * model->config.hidden;
}

static enum status move_embedding(struct model *model)
{
    void *host = model->embedding, *moved = NULL;
    enum status st;

    if (!model->device)
        return STATUS_OK;
    st = device_take(model->device, embedding_bytes(model), &moved);
    if (!st)
        device_write(model->device, moved, host, embedding_bytes(model));
    free(host);
    model->embedding = moved;
    return st;
}

/*
 * The table is copied, so that the file is not needed, nor trusted to keep its
 * length, once loading is over.
 */
static enum status load_embedding(struct model *model,
                                  const struct weight_source *weights,
                                  const char *name)
{
    const uint64_t dim[2] = {model->config.n_vocab, model->config.hidden};
    const struct tensor *tensor;
    enum status st;

    st = safetensors_need(weights->file, name, 2, dim, &tensor);
    if (st)
        return st;
    model->embedding_type =
        tensor->type == TENSOR_BF16 ? LINEAR_BF16 : LINEAR_F32;
    note_type(model, model->embedding_type);
    if (model->embedding_type == LINEAR_BF16) {
        model->embedding = weights_room(tensor->n_bytes);
        if (model->embedding)
            memcpy(model->embedding, tensor->data, tensor->n_bytes);
    } else {
        model->embedding = weights_room(dim[0] * dim[1] * sizeof(float));
        if (model->embedding)
            tensor_read_f32(tensor, 0, dim[0] * dim[1], model->embedding);
    }
    safetensors_forget(weights->file);
    if (!model->embedding)
        return STATUS_RESOURCE_EXHAUSTED;
    return move_embedding(model);
}

static enum status load_layer(struct model *model, const struct arch *arch,
                              const struct weight_source *weights, uint32_t i)
{
    const struct config *config = &model->config;
    const struct mixer_numerics numerics = {weights->arithmetic, weights->kv};
    struct layer *layer = &model->layer[i];
    char prefix[WEIGHTS_NAME_SIZE];
    enum status st;

    layer->mixer = arch->mixer[config->layer[i]];
    assert(layer->mixer);
    for (int k = 0; k < N_INDEX; k++)
        layer->mixer->plan(config, numerics, (enum index_kind)k,
                           &layer->plan[k]);
    (void)snprintf(prefix, sizeof(prefix), "%slayers.%u.",
                   arch_prefix(arch, config), i);
    st = weights_norm(weights, prefix, arch->mixer_norm, config->hidden,
                      config->has_unit_offset, &layer->mixer_norm);
    if (!st)
        st = layer->mixer->bind(config, weights, prefix, &layer->mixing);
    if (!st)
        st = weights_norm(weights, prefix, arch->mlp_norm, config->hidden,
                          config->has_unit_offset, &layer->mlp_norm);
    if (!st)
        st = mlp_init(config, weights, prefix, i, &layer->mlp);
    if (!st)
        note_type(model, mlp_type(&layer->mlp));
    return st;
}

static enum status load_weights(struct model *model, const struct arch *arch,
                                const struct weight_source *weights)
{
    const struct config *config = &model->config;
    const char *prefix = arch_prefix(arch, config);
    const struct weight_part head = weight_whole(
        config->is_tied ? arch->embedding : arch->head, config->n_vocab);
    char name[WEIGHTS_NAME_SIZE];
    enum status st;

    (void)snprintf(name, sizeof(name), "%s%s", prefix, arch->embedding);
    st = load_embedding(model, weights, name);
    for (uint32_t i = 0; i < config->n_layer && !st; i++)
        st = load_layer(model, arch, weights, i);
    if (!st)
        st = weights_norm(weights, prefix, arch->final_norm, config->hidden,
                          config->has_unit_offset, &model->final_norm);
    if (!st)
        st = weights_linear(weights, config->is_tied ? prefix : "", &head, 1,
                            config->hidden, &model->head);
    if (!st)
        note_type(model, model->head.type);
    return st;
}

/* Elements of the tensors that belong to the text model. */
static uint64_t count_parameters(const struct arch *arch,
                                 const struct config *config,
                                 const struct safetensors *weights)
{
    const char *prefix = arch_prefix(arch, config);
    uint64_t n_all = 0;

    for (uint32_t i = 0; i < safetensors_count(weights); i++) {
        const struct tensor *tensor = safetensors_at(weights, i);
        uint64_t n = 1;

        if (tensor_is_scale(tensor->name))
            continue;
        if (strncmp(tensor->name, prefix, strlen(prefix)) != 0 &&
            (config->is_tied || strcmp(tensor->name, arch->head) != 0))
            continue;
        for (uint32_t d = 0; d < tensor->n_dim; d++)
            n *= tensor->dim[d];
        n_all += n;
    }
    return n_all;
}

/* ------------------------------------------------------------------- life */

/* A cap that would do nothing is a mistake to hear of. */
static enum status check_state_cap(const struct model *model)
{
    bool has_state = false;

    for (uint32_t i = 0; i < model->config.n_layer; i++)
        has_state |= model->config.layer[i] == LAYER_DELTA;
    if (!has_state)
        return status_fail(STATUS_FAILED_PRECONDITION,
                           "a cap of recurrent states is asked for, and no "
                           "layer of this model has such a state");
    return STATUS_OK;
}

/* Everything that the config decides. */
static enum status prepare(struct model *model,
                           const struct model_options *options,
                           const struct arch **out_arch)
{
    enum status st = arch_find(&model->config, out_arch);

    if (!st)
        st = backend_check(options->backend, options->arithmetic);
    if (st)
        return st;
    if (options->n_context > model->config.n_context)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "context of %lu tokens is asked for, the model has "
                           "max_position_embeddings %u",
                           options->n_context, model->config.n_context);
    model->backend = options->backend;
    model->arithmetic = options->arithmetic;
    model->format = options->weight_format;
    model->kv = options->kv_format;
    model->n_context =
        options->n_context ? options->n_context : model->config.n_context;
    if (arithmetic_is_mma(model->arithmetic) &&
        (model->format == WEIGHT_W8 || model->format == WEIGHT_W8A8))
        return status_fail(STATUS_FAILED_PRECONDITION,
                           "numerics %s has no products of weights in %s, only "
                           "in bf16 and f8",
                           arithmetic_name(model->arithmetic),
                           model->format == WEIGHT_W8 ? "w8" : "w8a8");
    if (model->format == WEIGHT_F8 && !model->backend->has_f8)
        return status_fail(STATUS_FAILED_PRECONDITION,
                           "backend '%s' has no products of weights in f8: "
                           "cuda has, and ref, the slow one; w8 is for CPUs",
                           model->backend->name);
    if (model->kv == KV_INT8 && !model->backend->has_kv_int8)
        return status_fail(STATUS_FAILED_PRECONDITION,
                           "backend '%s' keeps no keys and values in int8: "
                           "cuda does, and ref, the slow one",
                           model->backend->name);
    model->state_cap = options->state_cap;
    if (model->state_cap > 0 && (st = check_state_cap(model)))
        return st;
    if (arithmetic_is_mma(model->arithmetic) && model->format == WEIGHT_AUTO)
        model->format = WEIGHT_BF16;
    model->layer = weights_room(model->config.n_layer * sizeof(struct layer));
    if (!model->layer)
        return STATUS_RESOURCE_EXHAUSTED;
    if (!model->backend->find_device)
        return rooms_create(&model->rooms);
    st = device_create(model->backend, &model->device);
    return st ? st : pool_create_device(model->device, &model->pool);
}

static enum status load(struct model *model, const struct arch *arch,
                        const struct safetensors *weights)
{
    const struct weight_source source = {.file = weights,
                                         .device = model->device,
                                         .rooms = model->rooms,
                                         .format = model->format,
                                         .arithmetic = model->arithmetic,
                                         .kv = model->kv};
    enum status st = load_weights(model, arch, &source);

    if (!st && model->config.rope.n_rot)
        st = init_rope(model);
    if (!st) {
        model->n_parameter = count_parameters(arch, &model->config, weights);
        model->fingerprint =
            digest_config(safetensors_digest(weights), &model->config);
        name_numerics(model);
        st = rope_table_move(&model->rope, model->device);
    }
    return st ? st : device_wait(model->device);
}

/* Place of `name` in a list of n; n when it is not there. */
static uint32_t find_name(const char *name, const char *const *list, uint32_t n)
{
    uint32_t i = 0;

    while (i < n && strcmp(name, list[i]) != 0)
        i++;
    return i;
}

enum status model_options_find(const struct model_choice *choice,
                               struct model_options *out)
{
    static const char *const FORMAT[N_WEIGHT_FORMAT] = {"auto", "bf16", "w8",
                                                        "w8a8", "f8"};
    const char *numerics[N_ARITHMETIC];
    struct model_options options = *out;
    static const char *const KV[N_KV_FORMAT] = {"auto", "int8"};
    uint32_t arithmetic, format, kv;
    enum status st;

    for (uint32_t i = 0; i < N_ARITHMETIC; i++)
        numerics[i] = arithmetic_name((enum arithmetic)i);
    st = backend_find(choice->backend, &options.backend);
    if (st)
        return st;
    arithmetic = strcmp(choice->numerics, "auto") == 0
                     ? (uint32_t)options.backend->arithmetic
                     : find_name(choice->numerics, numerics, N_ARITHMETIC);
    if (arithmetic == N_ARITHMETIC)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "no numerics '%s', there are: auto, fp32, "
                           "bf16-pair, bf16-tile, bf16-mma, bf16-mma-fast",
                           choice->numerics);
    format = find_name(choice->weight_format, FORMAT, N_WEIGHT_FORMAT);
    if (format == N_WEIGHT_FORMAT)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "no weight format '%s', there are: auto, bf16, w8, "
                           "w8a8, f8",
                           choice->weight_format);
    kv = find_name(choice->kv_format, KV, N_KV_FORMAT);
    if (kv == N_KV_FORMAT)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "no KV format '%s', there are: auto, int8",
                           choice->kv_format);
    if (choice->state_cap != 0 && !(choice->state_cap >= STATE_CAP_MIN &&
                                    choice->state_cap <= STATE_CAP_MAX))
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "a cap of states of %g, expected 0 (none) or %g to "
                           "%g",
                           choice->state_cap, STATE_CAP_MIN, STATE_CAP_MAX);
    options.state_cap = (float)choice->state_cap;
    options.arithmetic = (enum arithmetic)arithmetic;
    options.kv_format = (enum kv_format)kv;
    options.weight_format = (enum weight_format)format;
    st = backend_check(options.backend, options.arithmetic);
    if (!st)
        *out = options;
    return st;
}

enum status model_load(const char *dir, const struct model_options *options,
                       struct model **out)
{
    struct model *model = weights_room(sizeof(*model));
    struct safetensors *weights = NULL;
    const struct arch *arch = NULL;
    enum status st;

    assert(options->backend);
    if (!model)
        return STATUS_RESOURCE_EXHAUSTED;
    st = config_load(dir, &model->config);
    if (!st)
        st = prepare(model, options, &arch);
    if (!st)
        st = safetensors_open(dir, &weights);
    if (!st)
        st = load(model, arch, weights);
    safetensors_close(weights);
    if (st)
        model_destroy(model);
    else
        *out = model;
    return st;
}

enum status model_load_synthetic(const char *path, uint64_t seed,
                                 const struct model_options *options,
                                 struct model **out)
{
    struct model *model = weights_room(sizeof(*model));
    struct safetensors *weights = NULL;
    const struct arch *arch = NULL;
    enum status st;

    assert(options->backend);
    if (!model)
        return STATUS_RESOURCE_EXHAUSTED;
    st = config_load_file(path, &model->config);
    if (!st)
        st = prepare(model, options, &arch);
    if (!st)
        st = safetensors_synthesise(seed, model->config.has_unit_offset,
                                    &weights);
    if (!st)
        st = load(model, arch, weights);
    safetensors_close(weights);
    if (st)
        model_destroy(model);
    else
        *out = model;
    return st;
}

void model_destroy(struct model *model)
{
    if (!model)
        return;
    for (uint32_t i = 0; model->layer && i < model->config.n_layer; i++) {
        struct layer *layer = &model->layer[i];

        if (layer->mixer)
            layer->mixer->release(layer->mixing);
        device_give(model->device, layer->mixer_norm);
        device_give(model->device, layer->mlp_norm);
        mlp_release(&layer->mlp);
    }
    free(model->layer);
    device_give(model->device, model->embedding);
    device_give(model->device, model->final_norm);
    linear_release(&model->head);
    rope_table_release(&model->rope);
    pool_destroy(model->pool);
    device_destroy(model->device);
    rooms_destroy(model->rooms);
    free(model);
}

/* ------------------------------------------------------------------ facts */

const struct config *model_config(const struct model *model)
{
    return &model->config;
}

uint64_t model_n_context(const struct model *model)
{
    return model->n_context;
}

const struct mixer_plan *model_plan(const struct model *model, uint32_t layer)
{
    return model_plan_for(model, layer, INDEX_NONE);
}

const struct mixer_plan *model_plan_for(const struct model *model,
                                        uint32_t layer, enum index_kind index)
{
    assert(layer < model->config.n_layer && index < N_INDEX);
    return &model->layer[layer].plan[index];
}

const struct backend *model_backend(const struct model *model)
{
    return model->backend;
}

enum arithmetic model_arithmetic(const struct model *model)
{
    return model->arithmetic;
}

struct device *model_device(const struct model *model)
{
    return model->device;
}

struct rooms *model_rooms(const struct model *model)
{
    return model->rooms;
}

enum status model_check_policy(const struct model *model,
                               const struct policy *policy)
{
    const bool is_wide = model->kv == KV_WIDE;

    if (policy->kind == POLICY_FULL ||
        (is_wide && !(model->device && policy->kind == POLICY_SIRLLM)))
        return STATUS_OK;
    if (!is_wide)
        (void)status_fail(STATUS_FAILED_PRECONDITION,
                          "keys and values in int8 have no memory policies "
                          "but full: those of --kv-format auto have all");
    else
        (void)status_fail(STATUS_FAILED_PRECONDITION,
                          "backend '%s' has no memory policy sirllm, which "
                          "looks at logits that stay on the device: a CPU's "
                          "backends have it (--backend)",
                          model->backend->name);
    return status_because("POLICY_UNSUPPORTED");
}

uint64_t model_n_parameter(const struct model *model)
{
    return model->n_parameter;
}

uint64_t model_n_active(const struct model *model)
{
    const struct config *c = &model->config;
    uint64_t n = model->n_parameter;

    for (uint32_t i = 0; i < c->n_layer; i++)
        n -= c->has_experts[i] ? moe_n_idle(c) : 0;
    return n;
}

size_t model_table_bytes(const struct model *model)
{
    const size_t n_pair = model->rope.n_rot / 2;

    return 2 * sizeof(float) * n_pair * model->rope.n_position;
}

size_t model_weight_bytes(const struct model *model)
{
    const struct config *c = &model->config;
    size_t n = embedding_bytes(model) + linear_bytes(&model->head) +
               c->hidden * sizeof(float);

    for (uint32_t i = 0; i < c->n_layer; i++) {
        const struct layer *layer = &model->layer[i];

        n += layer->mixer->bytes(layer->mixing) + mlp_bytes(&layer->mlp) +
             2 * sizeof(float) * c->hidden;
    }
    return n;
}

size_t model_step_bytes(const struct model *model, uint32_t n_row)
{
    const struct config *c = &model->config;
    double n =
        (double)model_weight_bytes(model) - (double)embedding_bytes(model);

    for (uint32_t i = 0; i < c->n_layer; i++) {
        const struct mlp *mlp = &model->layer[i].mlp;

        n -= (double)mlp_bytes(mlp) - mlp_step_bytes(mlp, n_row);
    }
    return (size_t)n;
}

double model_row_flops(const struct model *model)
{
    const struct config *c = &model->config;
    double n = 2.0 * (double)c->hidden * (double)c->n_vocab;

    for (uint32_t i = 0; i < c->n_layer; i++)
        n += model->layer[i].plan[INDEX_NONE].row_flops + mlp_row_flops(c, i);
    return n;
}

double model_logit_flops(const struct model *model)
{
    const struct config *c = &model->config;

    return 2.0 * (double)c->hidden * (double)c->n_vocab +
           mlp_row_flops(c, c->n_layer - 1);
}

struct digest model_fingerprint(const struct model *model)
{
    return model->fingerprint;
}

const char *model_numerics(const struct model *model)
{
    return model->numerics;
}

enum weight_format model_weight_format(const struct model *model)
{
    return model->format;
}

enum kv_format model_kv_format(const struct model *model)
{
    return model->kv;
}
