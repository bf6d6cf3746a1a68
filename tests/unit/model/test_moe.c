/*
 * Layers of experts as a model has them: the two ways in which checkpoints
 * hold them, what is counted, and a router that no format or arithmetic
 * touches. That the numbers are right is judged by golden.qwen3_5_moe_text,
 * golden.qwen3_next and golden.qwen3_moe.
 */
#include "model/model.h"

#include "model/moe.h"

#include <criterion/criterion.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NEXT "tests/golden/qwen3_next"
#define PLAIN "tests/golden/qwen3_moe"
#define N_ROW 33u

static enum status load(const char *dir, enum weight_format format,
                        struct model **out)
{
    struct model_options options = {.weight_format = format};

    cr_assert_eq(backend_find("auto", &options.backend), STATUS_OK);
    return model_load(dir, &options, out);
}

static struct model *must_load(const char *dir, enum weight_format format)
{
    struct model *model;

    cr_assert_eq(load(dir, format, &model), STATUS_OK, "%s", status_reason());
    return model;
}

/* ----------------------------------------------------- the fused spelling */

/* A safetensors file in the making. */
struct writer {
    json_t *header;
    char *data;
    size_t n;
};

static void put(struct writer *to, const struct tensor *tensor)
{
    cr_assert_eq(tensor->type, TENSOR_F32);
    memcpy(to->data + to->n, tensor->data, tensor->n_bytes);
    to->n += tensor->n_bytes;
}

static void name_tensor(struct writer *to, const char *name, json_t *shape,
                        const char *type, size_t first)
{
    json_object_set_new(to->header, name,
                        json_pack("{s:s, s:o, s:[I,I]}", "dtype", type, "shape",
                                  shape, "data_offsets", (json_int_t)first,
                                  (json_int_t)to->n));
}

static void copy_tensor(struct writer *to, const struct tensor *tensor)
{
    json_t *shape = json_array();
    const size_t first = to->n;

    for (uint32_t d = 0; d < tensor->n_dim; d++)
        json_array_append_new(shape, json_integer((json_int_t)tensor->dim[d]));
    put(to, tensor);
    name_tensor(to, tensor->name, shape, "F32", first);
}

/* All experts of a layer in one tensor: their parts one behind the other. */
static void fuse(struct writer *to, const struct safetensors *from,
                 uint32_t layer, const char *const *part, uint32_t n_part,
                 const char *name)
{
    const struct tensor *tensor = NULL;
    const size_t first = to->n;
    char text[128];
    uint32_t n = 0;

    for (;; n++)
        for (uint32_t p = 0; p < n_part; p++) {
            (void)snprintf(text, sizeof(text),
                           "model.layers.%u.mlp.experts.%u.%s.weight", layer, n,
                           part[p]);
            if (!safetensors_find(from, text))
                goto done;
            tensor = safetensors_find(from, text);
            put(to, tensor);
        }
done:
    if (!n)
        return;
    (void)snprintf(text, sizeof(text), "model.layers.%u.mlp.experts.%s", layer,
                   name);
    name_tensor(to, text,
                json_pack("[I,I,I]", (json_int_t)n,
                          (json_int_t)(n_part * tensor->dim[0]),
                          (json_int_t)tensor->dim[1]),
                "F32", first);
}

static void write_bytes(const char *dir, const char *name, const void *data,
                        size_t n, const char *mode)
{
    char path[128];
    FILE *file;

    (void)snprintf(path, sizeof(path), "%s/%s", dir, name);
    file = fopen(path, mode);
    cr_assert(file);
    cr_assert_eq(fwrite(data, 1, n, file), n);
    (void)fclose(file);
}

/* dir's config beside the written weights, in a directory of its own. */
static void finish(struct writer *writer, const char *dir, char out[32])
{
    char *text = json_dumps(writer->header, JSON_COMPACT), path[128];
    const uint64_t n = strlen(text);
    json_t *config;

    (void)snprintf(out, 32, "/tmp/godwit-moe-XXXXXX");
    cr_assert(mkdtemp(out));
    write_bytes(out, "model.safetensors", &n, 8, "wb");
    write_bytes(out, "model.safetensors", text, n, "ab");
    write_bytes(out, "model.safetensors", writer->data, writer->n, "ab");
    free(text);
    (void)snprintf(path, sizeof(path), "%s/config.json", dir);
    config = json_load_file(path, 0, NULL);
    cr_assert(config);
    text = json_dumps(config, 0);
    write_bytes(out, "config.json", text, strlen(text), "wb");
    free(text);
    json_decref(config);
    json_decref(writer->header);
    free(writer->data);
}

static void drop_dir(const char *dir)
{
    char path[128];

    (void)snprintf(path, sizeof(path), "%s/config.json", dir);
    (void)unlink(path);
    (void)snprintf(path, sizeof(path), "%s/model.safetensors", dir);
    (void)unlink(path);
    cr_assert_eq(rmdir(dir), 0);
}

static void write_fused(const char *dir, char out[32])
{
    static const char *const GATE_UP[2] = {"gate_proj", "up_proj"};
    static const char *const DOWN[1] = {"down_proj"};
    struct writer writer = {.header = json_object(), .data = malloc(8u << 20)};
    struct safetensors *file;

    cr_assert_eq(safetensors_open(dir, &file), STATUS_OK);
    for (uint32_t i = 0; i < safetensors_count(file); i++)
        if (!strstr(safetensors_at(file, i)->name, "mlp.experts."))
            copy_tensor(&writer, safetensors_at(file, i));
    for (uint32_t layer = 0; layer < 8; layer++) {
        fuse(&writer, file, layer, GATE_UP, 2, "gate_up_proj");
        fuse(&writer, file, layer, DOWN, 1, "down_proj");
    }
    safetensors_close(file);
    finish(&writer, dir, out);
}

/* Logits of single rows of empty sessions: as many as there are tokens. */
static float *play(const struct model *model)
{
    const struct config *config = model_config(model);
    const uint32_t n_layer = config->n_layer;
    struct layer_memory *layer = calloc(N_ROW * n_layer, sizeof(*layer));
    void **block = calloc(N_ROW * n_layer, sizeof(*block));
    const size_t n = (size_t)N_ROW * config->n_vocab * sizeof(float);
    struct span span[N_ROW];
    uint32_t token[N_ROW], row[N_ROW];
    struct workspace *workspace;
    float *out = malloc(n);

    for (uint32_t i = 0; i < N_ROW * n_layer; i++) {
        const struct mixer_plan *plan = model_plan(model, i % n_layer);

        layer[i].state = aligned_alloc(64, plan->state_bytes + 64);
        block[i] = aligned_alloc(64, plan->block_bytes + 64);
        memset(layer[i].state, 0, plan->state_bytes);
        memset(block[i], 0, plan->block_bytes);
        layer[i].block = &block[i];
    }
    for (uint32_t i = 0; i < N_ROW; i++) {
        token[i] = i * 37 % config->n_vocab;
        row[i] = i;
        span[i] = (struct span){
            .first_row = i, .n_row = 1, .layer = layer + i * n_layer};
    }
    cr_assert_eq(workspace_create(model, N_ROW, N_ROW, N_ROW, &workspace),
                 STATUS_OK);
    memcpy(out,
           model_forward(model, NULL, workspace,
                         &(struct batch){.token = token,
                                         .n_row = N_ROW,
                                         .span = span,
                                         .n_span = N_ROW,
                                         .logit_row = row,
                                         .n_logit = N_ROW}),
           n);
    workspace_destroy(workspace);
    for (uint32_t i = 0; i < N_ROW * n_layer; i++) {
        free(layer[i].state);
        free(block[i]);
    }
    free(layer);
    free(block);
    return out;
}

Test(moe, experts_in_one_tensor_are_the_same_experts)
{
    static const char *const DIR[] = {NEXT, PLAIN,
                                      "tests/golden/qwen3_5_moe_text"};

    for (int i = 0; i < 3; i++) {
        struct model *single = must_load(DIR[i], WEIGHT_AUTO), *fused;
        float *a, *b;
        char dir[32];

        write_fused(DIR[i], dir);
        fused = must_load(dir, WEIGHT_AUTO);
        drop_dir(dir);
        a = play(single);
        b = play(fused);
        cr_assert_eq(memcmp(a, b,
                            (size_t)N_ROW * model_config(single)->n_vocab *
                                sizeof(float)),
                     0);
        cr_assert_eq(model_n_parameter(single), model_n_parameter(fused));
        cr_assert_eq(model_n_active(single), model_n_active(fused));
        free(a);
        free(b);
        model_destroy(single);
        model_destroy(fused);
    }
}

/* The file of PLAIN with expert 2 of layer 3 in half precision. */
Test(moe, experts_of_different_types_are_refused)
{
    struct writer writer = {.header = json_object(),
                            .data = calloc(8u << 20, 1)};
    struct safetensors *file;
    struct model *model;
    char dir[32];

    cr_assert_eq(safetensors_open(PLAIN, &file), STATUS_OK);
    for (uint32_t i = 0; i < safetensors_count(file); i++) {
        const struct tensor *tensor = safetensors_at(file, i);
        const size_t first = writer.n;

        if (!strstr(tensor->name, "layers.3.mlp.experts.2.down_proj")) {
            copy_tensor(&writer, tensor);
            continue;
        }
        writer.n += tensor->n_bytes / 2;
        name_tensor(&writer, tensor->name,
                    json_pack("[I,I]", (json_int_t)tensor->dim[0],
                              (json_int_t)tensor->dim[1]),
                    "BF16", first);
    }
    safetensors_close(file);
    finish(&writer, PLAIN, dir);
    cr_assert_eq(load(dir, WEIGHT_AUTO, &model), STATUS_INVALID_ARGUMENT);
    cr_assert(strstr(status_reason(), "model.layers.3.mlp: weights of experts "
                                      "0 and 2 differ in type"),
              "%s", status_reason());
    /* Where all become one type, they may come as they like. */
    model_destroy(must_load(dir, WEIGHT_BF16));
    drop_dir(dir);
}

/* ------------------------------------------------------------------- facts */

/* Known from the shapes: 2 dense layers and 2 of 7 experts, 3 chosen. */
Test(moe, what_is_counted_is_what_works)
{
    const uint64_t attention = 64 * 64 + 2 * 32 * 64 + 64 * 64;
    const uint64_t expert = 3 * 24 * 64, router = 7 * 64, dense = 3 * 96 * 64;
    const uint64_t norms = 2 * 64 + 2 * 16, rest = 4 * (attention + norms) + 64;
    const uint64_t table = 512 * 64;
    struct model *model = must_load(PLAIN, WEIGHT_AUTO);
    /* Panels are padded: 7 logits to 16, 2 x 24 outputs to 48, 24 to 24. */
    const double fixed =
        4.0 * (double)(rest + table + 2 * dense) + 4.0 * 2 * 16 * 64;
    const double each = 4.0 * (double)expert;

    cr_assert_eq(model_n_parameter(model),
                 2 * table + rest + 2 * dense + 2 * (router + 7 * expert));
    cr_assert_eq(model_n_active(model),
                 2 * table + rest + 2 * dense + 2 * (router + 3 * expert));
    cr_assert_float_eq(model_row_flops(model),
                       2.0 * (double)(4 * attention + 2 * dense +
                                      2 * (router + 3 * expert) + table),
                       0.5);
    cr_assert_float_eq(model_logit_flops(model),
                       2.0 * (double)(router + 3 * expert + table), 0.5);
    cr_assert_float_eq((double)model_step_bytes(model, 1), fixed + 2 * 3 * each,
                       1.0);
    cr_assert_float_eq((double)model_step_bytes(model, 2),
                       fixed + 2 * 7 * (1.0 - 16.0 / 49.0) * each, 1.0);
    cr_assert_float_eq((double)model_step_bytes(model, 1000),
                       fixed + 2 * 7 * each, 1.0);
    cr_assert_float_eq((double)model_weight_bytes(model),
                       fixed + 2 * 7 * each + 4.0 * (double)table, 0.5);
    model_destroy(model);
}

/* The shared expert works on every row, as do the logits and its gate. */
Test(moe, a_shared_expert_is_always_active)
{
    struct model *model = must_load(NEXT, WEIGHT_AUTO);
    const struct config *config = model_config(model);
    const uint64_t idle = 6 * 3 * 32 * 64;

    cr_assert_eq(model_n_parameter(model) - model_n_active(model), 5 * idle);
    cr_assert_float_eq(moe_row_flops(config),
                       2.0 * 64 * (8 + 1 + 3 * (2 * 32 + 48)), 0.5);
    cr_assert_float_eq(mlp_row_flops(config, 0), moe_row_flops(config), 0.5);
    cr_assert_float_eq(mlp_row_flops(config, 1), 6.0 * 64 * 128, 0.5);
    model_destroy(model);
}

/* PLAIN, whose layer 1 has the dense weights of layer 0 beside its experts. */
static void write_both(char out[32])
{
    struct writer writer = {.header = json_object(), .data = malloc(8u << 20)};
    struct safetensors *file;

    cr_assert_eq(safetensors_open(PLAIN, &file), STATUS_OK);
    for (uint32_t i = 0; i < safetensors_count(file); i++) {
        struct tensor tensor = *safetensors_at(file, i);
        char name[128];

        copy_tensor(&writer, &tensor);
        if (!strstr(tensor.name, "layers.0.mlp."))
            continue;
        (void)snprintf(name, sizeof(name), "model.layers.1.mlp.%s",
                       tensor.name + strlen("model.layers.0.mlp."));
        tensor.name = name;
        copy_tensor(&writer, &tensor);
    }
    safetensors_close(file);
    finish(&writer, PLAIN, out);
}

/* The fingerprint of dir's model with this member in its config. */
static struct digest fingerprint_with(const char *dir, const char *key,
                                      json_t *value)
{
    json_t *config = json_load_file(PLAIN "/config.json", 0, NULL);
    struct digest digest;
    struct model *model;
    char *text;

    json_object_set_new(config, key, value);
    text = json_dumps(config, 0);
    write_bytes(dir, "config.json", text, strlen(text), "wb");
    model = must_load(dir, WEIGHT_AUTO);
    digest = model_fingerprint(model);
    model_destroy(model);
    free(text);
    json_decref(config);
    return digest;
}

/* A config that says other things of experts is another model. */
Test(moe, the_fingerprint_knows_how_experts_are_weighted_and_where_they_are)
{
    struct digest found[4];
    char dir[32];

    write_both(dir);
    found[0] = fingerprint_with(dir, "mlp_only_layers", json_array());
    found[1] = fingerprint_with(dir, "num_experts_per_tok", json_integer(2));
    found[2] = fingerprint_with(dir, "norm_topk_prob", json_true());
    found[3] = fingerprint_with(dir, "mlp_only_layers", json_pack("[i]", 1));
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < i; j++)
            cr_assert_not(digest_equal(found[i], found[j]), "%d %d", i, j);
    cr_assert(digest_equal(found[0],
                           fingerprint_with(dir, "use_cache", json_false())));
    drop_dir(dir);
}

/* ------------------------------------------------------------------ router */

/* One layer of NEXT, bound in this format. */
static struct moe *bind(const struct config *config, enum weight_format format,
                        enum arithmetic arithmetic)
{
    struct weight_source source = {.format = format, .arithmetic = arithmetic};
    struct safetensors *file;
    struct moe *moe;

    cr_assert_eq(safetensors_open(NEXT, &file), STATUS_OK);
    source.file = file;
    cr_assert_eq(moe_create(config, &source, "model.layers.2.", &moe),
                 STATUS_OK, "%s", status_reason());
    safetensors_close(file);
    return moe;
}

/* moe_rows() begins its workspace with the logits, which are compared there. */
Test(moe, no_format_and_no_arithmetic_touches_the_router)
{
    static const struct {
        enum weight_format format;
        enum arithmetic arithmetic;
    } OTHER[] = {{WEIGHT_BF16, ARITHMETIC_PAIR},
                 {WEIGHT_W8, ARITHMETIC_FP32},
                 {WEIGHT_W8, ARITHMETIC_TILE},
                 {WEIGHT_W8A8, ARITHMETIC_FP32}};
    enum { N = 5, HIDDEN = 64, N_LOGIT = 8 + 1, STRIDE = 16 };
    const struct backend *backend;
    struct config config;
    float x[N * HIDDEN], residual[N * HIDDEN] = {0.0f}, *work[2];

    cr_assert_eq(backend_find("auto", &backend), STATUS_OK);
    cr_assert_eq(config_load(NEXT, &config), STATUS_OK);
    for (uint32_t i = 0; i < N * HIDDEN; i++)
        x[i] = sinf((float)(i * i));
    for (int w = 0; w < 2; w++)
        work[w] = aligned_alloc(64, N * moe_row_floats(&config) * 4);
    for (size_t i = 0; i < sizeof(OTHER) / sizeof(OTHER[0]); i++) {
        struct moe *moe[2] = {
            bind(&config, WEIGHT_AUTO, ARITHMETIC_FP32),
            bind(&config, OTHER[i].format, OTHER[i].arithmetic)};

        cr_assert_neq(moe_type(moe[0]), moe_type(moe[1]));
        for (int w = 0; w < 2; w++) {
            moe_rows(moe[w], &(struct mlp_args){.backend = backend,
                                                .x = x,
                                                .residual = residual,
                                                .work = work[w],
                                                .n_row = N});
            moe_destroy(moe[w]);
        }
        for (uint32_t row = 0; row < N; row++)
            cr_assert_eq(memcmp(work[0] + row * STRIDE, work[1] + row * STRIDE,
                                N_LOGIT * sizeof(float)),
                         0);
    }
    free(work[0]);
    free(work[1]);
}

/* ------------------------------------------------------------- exactness */

enum { N_EXACT = 37, HIDDEN_NEXT = 64 };

/* residual += what the layer makes of rows [first, first + n). */
static void feed(const struct moe *moe, const struct backend *backend,
                 struct pool *pool, const float *x, float *residual,
                 uint32_t first, uint32_t n, float *work)
{
    moe_rows(moe, &(struct mlp_args){.backend = backend,
                                     .pool = pool,
                                     .x = x + (size_t)first * HIDDEN_NEXT,
                                     .residual =
                                         residual + (size_t)first * HIDDEN_NEXT,
                                     .work = work,
                                     .n_row = n});
}

/* E1, E2, E7 and equal backends: cuts of 1, 4 and all rows, 0 to 3 threads. */
static void check_exact(const struct moe *moe, const float *x, float *work)
{
    static const uint32_t CUT[] = {1, 4, N_EXACT};
    static float want[N_EXACT * HIDDEN_NEXT], got[N_EXACT * HIDDEN_NEXT];
    const struct backend *ref;

    cr_assert_eq(backend_find("ref", &ref), STATUS_OK);
    memset(want, 0, sizeof(want));
    feed(moe, ref, NULL, x, want, 0, N_EXACT, work);
    for (const struct backend *const *b = backend_all(); *b; b++)
        for (uint32_t i = 0; i < 4 * 3 && (*b)->is_supported(); i++) {
            const uint32_t cut = CUT[i % 3];
            struct pool *pool = NULL;

            if (i / 3)
                cr_assert_eq(pool_create(i / 3, &pool), STATUS_OK);
            memset(got, 0, sizeof(got));
            for (uint32_t row = 0; row < N_EXACT; row += cut)
                feed(moe, *b, pool, x, got, row,
                     N_EXACT - row < cut ? N_EXACT - row : cut, work);
            cr_assert_eq(memcmp(got, want, sizeof(want)), 0,
                         "%s, %u threads, %u rows at a time", (*b)->name, i / 3,
                         cut);
            if (pool)
                pool_destroy(pool);
        }
}

Test(moe, rows_are_the_same_in_any_batch_arithmetic_format_and_thread_count)
{
    static float x[N_EXACT * HIDDEN_NEXT];
    struct config config;
    float *work;

    cr_assert_eq(config_load(NEXT, &config), STATUS_OK);
    cr_assert_eq(config.hidden, HIDDEN_NEXT);
    for (uint32_t i = 0; i < N_EXACT * HIDDEN_NEXT; i++)
        x[i] = sinf((float)(i * i % 4099));
    work = aligned_alloc(64, N_EXACT * moe_row_floats(&config) * 4);
    for (int format = 0; format <= WEIGHT_W8A8; format++) /* f8 has only ref */
        for (int order = 0; order < N_CPU_ARITHMETIC; order++) {
            struct moe *moe = bind(&config, (enum weight_format)format,
                                   (enum arithmetic)order);

            check_exact(moe, x, work);
            moe_destroy(moe);
        }
    free(work);
}
