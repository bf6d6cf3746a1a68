/*
 * Loading: bad model files give one clear error, and other spellings of the
 * same weights (another float type, nested, tied) give the same logits. The
 * judge of the latter is a second checkpoint written here whose values are
 * equal by construction: a rewriter of safetensors that shares no code with
 * the loader.
 */
#include "model/model.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define N_TOKEN 70u

/* The n-th aligned allocation from now on fails; 0: none does. */
static unsigned fail_at;
static unsigned n_taken;

void *aligned_alloc(size_t alignment, size_t bytes)
{
    void *room = NULL;

    n_taken++;
    /* ASan ends the program rather than refuse what no machine has. */
    if ((fail_at && n_taken == fail_at) || bytes > (size_t)1 << 38) {
        errno = ENOMEM;
        return NULL;
    }
    return posix_memalign(&room, alignment, bytes) ? NULL : room;
}

/* ------------------------------------------------------------------ files */

struct bytes {
    char *data; /* owned */
    size_t n;
};

static struct bytes read_file(const char *dir, const char *name)
{
    struct bytes bytes = {.data = malloc(8u << 20)};
    char path[256];
    FILE *file;

    (void)snprintf(path, sizeof(path), "%s/%s", dir, name);
    file = fopen(path, "rb");
    cr_assert(file, "%s", path);
    bytes.n = fread(bytes.data, 1, (8u << 20) - 1, file);
    bytes.data[bytes.n] = '\0';
    (void)fclose(file);
    return bytes;
}

static void write_file(const char *dir, const char *name, struct bytes bytes)
{
    char path[256];
    FILE *file;

    (void)snprintf(path, sizeof(path), "%s/%s", dir, name);
    file = fopen(path, "wb");
    cr_assert(file);
    cr_assert_eq(fwrite(bytes.data, 1, bytes.n, file), bytes.n);
    (void)fclose(file);
}

static void make_dir(char out[32])
{
    (void)snprintf(out, 32, "/tmp/godwit-load-XXXXXX");
    cr_assert(mkdtemp(out));
}

static void drop_dir(const char *dir)
{
    static const char *const NAME[] = {"config.json", "model.safetensors"};
    char path[256];

    for (int i = 0; i < 2; i++) {
        (void)snprintf(path, sizeof(path), "%s/%s", dir, NAME[i]);
        (void)unlink(path);
    }
    cr_assert_eq(rmdir(dir), 0);
}

/* Replace the first `from` behind `after` by `to`, both equally long. */
static void patch(struct bytes bytes, const char *after, const char *from,
                  const char *to)
{
    char *at = memmem(bytes.data, bytes.n, after, strlen(after));

    cr_assert(at, "%s", after);
    cr_assert_eq(strlen(from), strlen(to));
    at = memmem(at, bytes.n - (size_t)(at - bytes.data), from, strlen(from));
    cr_assert(at, "%s", from);
    for (size_t i = 0; to[i]; i++)
        at[i] = to[i];
}

static enum status load(const char *dir, uint64_t n_context, struct model **out)
{
    struct model_options options = {.n_context = n_context};

    cr_assert_eq(backend_find("ref", &options.backend), STATUS_OK);
    *out = NULL;
    return model_load(dir, &options, out);
}

/* ----------------------------------------------------------------- errors */

struct bad {
    const char *what, *dir;
    const char *file; /* that is patched */
    const char *after, *from, *to;
    enum status status;
    const char *says[3]; /* each is in the message */
};

static const struct bad BAD[] = {
    {"missing tensor of the mlp",
     "tests/golden/llama",
     "model.safetensors",
     "model.layers.1.mlp",
     "up_proj",
     "uq_proj",
     STATUS_NOT_FOUND,
     {"model.safetensors", "model.layers.1.mlp.up_proj.weight", "[128, 64]"}},
    {"missing tensor of the softmax mixer",
     "tests/golden/qwen3",
     "model.safetensors",
     "model.layers.2.self_attn",
     "k_norm",
     "l_norm",
     STATUS_NOT_FOUND,
     {"model.safetensors", "model.layers.2.self_attn.k_norm.weight", "[16]"}},
    {"missing tensor of the delta mixer",
     "tests/golden/qwen3_5_text",
     "model.safetensors",
     "model.layers.4.linear_attn.A_log",
     "A_log",
     "B_log",
     STATUS_NOT_FOUND,
     {"model.safetensors", "model.layers.4.linear_attn.A_log", "[4]"}},
    {"missing final norm",
     "tests/golden/llama",
     "model.safetensors",
     "model.norm",
     "norm",
     "nurm",
     STATUS_NOT_FOUND,
     {"model.safetensors", "model.norm.weight", "[64]"}},
    {"missing head",
     "tests/golden/llama",
     "model.safetensors",
     "lm_head",
     "lm_head",
     "lm_hood",
     STATUS_NOT_FOUND,
     {"model.safetensors", "lm_head.weight", "[512, 64]"}},
    {"transposed projection",
     "tests/golden/qwen3_5_text",
     "model.safetensors",
     "model.layers.0.mlp.down_proj.weight",
     "[64,128]",
     "[128,64]",
     STATUS_INVALID_ARGUMENT,
     {"model.safetensors", "model.layers.0.mlp.down_proj.weight", "[64, 128]"}},
    {"convolution of another layout",
     "tests/golden/qwen3_5_text",
     "model.safetensors",
     "model.layers.0.linear_attn.conv1d.weight",
     "[128,1,4]",
     "[128,4,1]",
     STATUS_INVALID_ARGUMENT,
     {"model.safetensors", "conv1d.weight", "[128, 1, 4]"}},
    {"integers as weights",
     "tests/golden/llama",
     "model.safetensors",
     "model.embed_tokens.weight",
     "\"F32\"",
     "\"I32\"",
     STATUS_INVALID_ARGUMENT,
     {"model.safetensors", "model.embed_tokens.weight", "F32"}},
    {"more heads in the config than in the file",
     "tests/golden/llama",
     "config.json",
     "num_attention_heads",
     "4",
     "8",
     STATUS_INVALID_ARGUMENT,
     {"model.safetensors", "model.layers.0.self_attn.q_proj.weight",
      "[128, 64]"}},
    {"missing expert",
     "tests/golden/qwen3_moe",
     "model.safetensors",
     "model.layers.3.mlp.experts.5",
     "down",
     "town",
     STATUS_NOT_FOUND,
     {"model.safetensors", "model.layers.3.mlp.experts.5.down_proj.weight",
      "[64, 24]"}},
    {"missing router",
     "tests/golden/qwen3_next",
     "model.safetensors",
     "model.layers.2.mlp.gate.weight",
     "gate",
     "date",
     STATUS_NOT_FOUND,
     {"model.safetensors", "model.layers.2.mlp.gate.weight", "[8, 64]"}},
    {"missing gate of the shared expert",
     "tests/golden/qwen3_5_moe_text",
     "model.safetensors",
     "model.layers.5.mlp.shared_expert_gate",
     "gate",
     "date",
     STATUS_NOT_FOUND,
     {"model.safetensors", "model.layers.5.mlp.shared_expert_gate.weight",
      "[1, 64]"}},
    {"projections that are not interleaved",
     "tests/golden/qwen3_next",
     "model.safetensors",
     "model.layers.0.linear_attn.in_proj_qkvz.weight",
     "[192,64]",
     "[64,192]",
     STATUS_INVALID_ARGUMENT,
     {"model.safetensors", "model.layers.0.linear_attn.in_proj_qkvz.weight",
      "[192, 64]"}},
    {"more experts in the config than in the file",
     "tests/golden/qwen3_moe",
     "config.json",
     "num_local_experts",
     "7",
     "8",
     STATUS_INVALID_ARGUMENT,
     {"model.safetensors", "model.layers.1.mlp.gate.weight", "[8, 64]"}},
    {"unknown type",
     "tests/golden/llama",
     "config.json",
     "model_type",
     "llama",
     "lamma",
     STATUS_UNIMPLEMENTED,
     {"config.json", "lamma", "qwen3"}},
    {"a convolution wider than the kernels",
     "tests/golden/qwen3_5_text",
     "config.json",
     "linear_conv_kernel_dim",
     "4",
     "9",
     STATUS_UNIMPLEMENTED,
     {"config.json", "linear_conv_kernel_dim is 9", "1 to 8"}},
};

Test(load, each_bad_file_gives_an_error_that_names_file_tensor_and_expected)
{
    for (size_t i = 0; i < sizeof(BAD) / sizeof(BAD[0]); i++) {
        const struct bad *bad = &BAD[i];
        struct bytes config = read_file(bad->dir, "config.json");
        struct bytes weights = read_file(bad->dir, "model.safetensors");
        struct model *model;
        char dir[32];
        enum status st;

        make_dir(dir);
        patch(bad->file[0] == 'c' ? config : weights, bad->after, bad->from,
              bad->to);
        write_file(dir, "config.json", config);
        write_file(dir, "model.safetensors", weights);
        st = load(dir, 0, &model);
        cr_assert_eq(st, bad->status, "%s: %s: %s", bad->what, status_name(st),
                     status_reason());
        cr_assert_null(model);
        for (int s = 0; s < 3; s++)
            cr_assert(strstr(status_reason(), bad->says[s]),
                      "%s: no '%s' in: %s", bad->what, bad->says[s],
                      status_reason());
        drop_dir(dir);
        free(config.data);
        free(weights.data);
    }
}

Test(load, a_file_truncated_anywhere_is_refused)
{
    static const size_t KEEP[] = {0, 7, 8, 500, 6000, 100000};
    struct bytes config = read_file("tests/golden/llama", "config.json");
    struct bytes weights = read_file("tests/golden/llama", "model.safetensors");
    struct model *model;
    char dir[32];

    make_dir(dir);
    write_file(dir, "config.json", config);
    for (size_t i = 0; i < sizeof(KEEP) / sizeof(KEEP[0]); i++) {
        write_file(dir, "model.safetensors",
                   (struct bytes){weights.data, KEEP[i]});
        cr_assert_eq(load(dir, 0, &model), STATUS_INVALID_ARGUMENT, "%zu",
                     KEEP[i]);
        cr_assert(strstr(status_reason(), "model.safetensors"), "%s",
                  status_reason());
    }
    write_file(dir, "model.safetensors",
               (struct bytes){weights.data, weights.n - 1});
    cr_assert_eq(load(dir, 0, &model), STATUS_INVALID_ARGUMENT);
    drop_dir(dir);
    free(config.data);
    free(weights.data);
}

Test(load, a_directory_without_a_model_is_not_found)
{
    struct model *model;

    cr_assert_eq(load("/nonexistent", 0, &model), STATUS_NOT_FOUND);
    cr_assert_eq(load("tests/golden/godwit-tiny", 0, &model), STATUS_NOT_FOUND);
    cr_assert(strstr(status_reason(), "config.json"), "%s", status_reason());
}

Test(load, a_context_beyond_the_model_is_refused_and_a_smaller_one_kept)
{
    struct model *model;

    cr_assert_eq(load("tests/golden/llama", 4097, &model),
                 STATUS_INVALID_ARGUMENT);
    cr_assert(strstr(status_reason(), "4097") &&
              strstr(status_reason(), "4096"));
    cr_assert_eq(load("tests/golden/llama", 100, &model), STATUS_OK);
    cr_assert_eq(model_n_context(model), 100);
    model_destroy(model);
    cr_assert_eq(load("tests/golden/llama", 0, &model), STATUS_OK);
    cr_assert_eq(model_n_context(model), 4096);
    model_destroy(model);
}

static void fail_each_allocation(const char *dir, unsigned n_least)
{
    struct model *model = NULL;
    unsigned n = 0;
    enum status st;

    do {
        fail_at = ++n;
        n_taken = 0;
        st = load(dir, 0, &model);
        cr_assert(!st || st == STATUS_RESOURCE_EXHAUSTED, "n=%u %s", n,
                  status_reason());
        cr_assert_eq(st != 0, model == NULL);
    } while (st);
    cr_assert_gt(n, n_least);
    model_destroy(model);
}

Test(load, every_failing_allocation_is_reported_and_leaks_nothing)
{
    /* six layers of at least ten; two layers of seven experts of four */
    fail_each_allocation("tests/golden/qwen3_5_text", 60);
    fail_each_allocation("tests/golden/qwen3_moe", 56);
}

Test(load, every_failing_allocation_of_a_workspace_is_reported)
{
    struct workspace *workspace = NULL;
    struct model *model;
    unsigned n = 0;

    cr_assert_eq(load("tests/golden/qwen3_5_text", 0, &model), STATUS_OK);
    do {
        fail_at = ++n;
        n_taken = 0;
    } while (workspace_create(model, 256, 2, 4, &workspace) ==
                 STATUS_RESOURCE_EXHAUSTED &&
             !workspace);
    cr_assert_eq(n, 26);
    fail_at = 0;
    workspace_destroy(workspace);
    cr_assert_eq(workspace_create(model, UINT32_MAX, 1, UINT32_MAX, &workspace),
                 STATUS_RESOURCE_EXHAUSTED);
    model_destroy(model);
}

/* ------------------------------------------------------ other spellings */

enum spelling { AS_F32, AS_BF16, AS_F16, AS_BF16_IN_F32, AS_F16_IN_F32 };

/* Nearest bf16 and its value, ties to even. */
static uint16_t to_bf16(float x)
{
    uint32_t bits;

    memcpy(&bits, &x, 4);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static float bf16_value(uint16_t half)
{
    const uint32_t bits = (uint32_t)half << 16;
    float x;

    memcpy(&x, &bits, 4);
    return x;
}

/* A normal f16 near x; its value is what both spellings hold. */
static uint16_t to_f16(float x)
{
    uint32_t bits, exponent;

    memcpy(&bits, &x, 4);
    exponent = (bits >> 23) & 255;
    if (exponent < 113) /* below 2^-14: zero, so that no subnormal is needed */
        return (uint16_t)(bits >> 16 & 0x8000);
    return (uint16_t)((bits >> 16 & 0x8000) | (exponent - 112) << 10 |
                      (bits >> 13 & 0x3ff));
}

static float f16_value(uint16_t half)
{
    const uint32_t exponent = half >> 10 & 31;
    const uint32_t bits =
        (uint32_t)(half & 0x8000) << 16 |
        (exponent ? (exponent + 112) << 23 | (uint32_t)(half & 0x3ff) << 13
                  : 0);
    float x;

    memcpy(&x, &bits, 4);
    return x;
}

/* One element in its new spelling; returns its size. */
static size_t respell(enum spelling as, float x, char *out)
{
    const bool is_brain = as == AS_BF16 || as == AS_BF16_IN_F32;
    const uint16_t half = is_brain ? to_bf16(x) : to_f16(x);
    const float value = is_brain ? bf16_value(half) : f16_value(half);

    if (as == AS_F32)
        memcpy(out, &x, 4);
    else if (as == AS_BF16 || as == AS_F16)
        memcpy(out, &half, 2);
    else
        memcpy(out, &value, 4);
    return as == AS_BF16 || as == AS_F16 ? 2 : 4;
}

struct rewrite {
    enum spelling as;
    const char *prefix;     /* instead of "model.", or NULL */
    bool is_head_embedding; /* the head's values are the embedding's */
    bool is_head_dropped;
};

/* The file of dir in another spelling; every source tensor is F32. */
static struct bytes rewrite(const char *dir, struct rewrite how)
{
    const struct bytes from = read_file(dir, "model.safetensors");
    const char *type = how.as == AS_BF16  ? "BF16"
                       : how.as == AS_F16 ? "F16"
                                          : "F32";
    struct bytes to = {.data = malloc(8u << 20)};
    char *data = malloc(8u << 20);
    json_t *old, *new = json_object(), *entry;
    uint64_t n_header;
    const char *name;
    size_t n = 0;
    char *text;

    memcpy(&n_header, from.data, 8);
    old = json_loadb(from.data + 8, n_header, 0, NULL);
    json_object_foreach(old, name, entry)
    {
        const bool is_head = strcmp(name, "lm_head.weight") == 0;
        const json_t *source = entry;
        const size_t first = n;
        size_t begin, end;
        char renamed[256];

        if (strcmp(name, "__metadata__") == 0 ||
            (is_head && how.is_head_dropped))
            continue;
        if (is_head && how.is_head_embedding)
            source = json_object_get(old, "model.embed_tokens.weight");
        source = json_object_get(source, "data_offsets");
        begin = (size_t)json_integer_value(json_array_get(source, 0));
        end = (size_t)json_integer_value(json_array_get(source, 1));
        for (size_t i = begin; i < end; i += 4) {
            float x;

            memcpy(&x, from.data + 8 + n_header + i, 4);
            n += respell(how.as, x, data + n);
        }
        (void)snprintf(renamed, sizeof(renamed), "%s%s",
                       how.prefix && !is_head ? how.prefix : "",
                       how.prefix && !is_head ? name + strlen("model.") : name);
        json_object_set_new(new, renamed,
                            json_pack("{s:s, s:O, s:[I,I]}", "dtype", type,
                                      "shape", json_object_get(entry, "shape"),
                                      "data_offsets", (json_int_t)first,
                                      (json_int_t)n));
    }
    text = json_dumps(new, JSON_COMPACT);
    n_header = strlen(text);
    memcpy(to.data, &n_header, 8);
    memcpy(to.data + 8, text, n_header);
    memcpy(to.data + 8 + n_header, data, n);
    to.n = 8 + n_header + n;
    free(text);
    free(data);
    free(from.data);
    json_decref(old);
    json_decref(new);
    return to;
}

/* config.json of dir, nested and/or tied. */
static struct bytes rewrite_config(const char *dir, bool is_nested,
                                   bool is_tied)
{
    struct bytes from = read_file(dir, "config.json"), to;
    json_t *config = json_loadb(from.data, from.n, 0, NULL);

    json_object_set_new(config, "tie_word_embeddings", json_boolean(is_tied));
    if (is_nested)
        config =
            json_pack("{s:s, s:b, s:o}", "model_type",
                      strstr(dir, "_moe") ? "qwen3_5_moe" : "qwen3_5",
                      "tie_word_embeddings", is_tied, "text_config", config);
    to.data = json_dumps(config, 0);
    to.n = strlen(to.data);
    json_decref(config);
    free(from.data);
    return to;
}

/* Logits of all rows of a fixed prompt, [N_TOKEN, n_vocab]; free() them. */
static float *play(const struct model *model)
{
    const struct config *config = model_config(model);
    struct layer_memory *layer = calloc(config->n_layer, sizeof(*layer));
    void *block[CONFIG_LAYER_MAX][2];
    uint32_t token[N_TOKEN], row[N_TOKEN];
    struct span span = {.n_row = N_TOKEN, .layer = layer};
    struct workspace *workspace;
    const size_t n = (size_t)N_TOKEN * config->n_vocab * sizeof(float);
    float *out = malloc(n);

    for (uint32_t i = 0; i < config->n_layer; i++) {
        const struct mixer_plan *plan = model_plan(model, i);

        for (int b = 0; b < 2 && plan->block_bytes; b++) {
            block[i][b] = aligned_alloc(64, plan->block_bytes);
            memset(block[i][b], 0, plan->block_bytes);
            layer[i].block = block[i];
        }
        if (plan->state_bytes) {
            layer[i].state = aligned_alloc(64, plan->state_bytes);
            memset(layer[i].state, 0, plan->state_bytes);
        }
    }
    for (uint32_t i = 0; i < N_TOKEN; i++) {
        token[i] = (i * 37 + 11) % config->n_vocab;
        row[i] = i;
    }
    cr_assert_eq(workspace_create(model, N_TOKEN, 1, N_TOKEN, &workspace),
                 STATUS_OK);
    memcpy(out,
           model_forward(model, NULL, workspace,
                         &(struct batch){.token = token,
                                         .n_row = N_TOKEN,
                                         .span = &span,
                                         .n_span = 1,
                                         .logit_row = row,
                                         .n_logit = N_TOKEN}),
           n);
    workspace_destroy(workspace);
    for (uint32_t i = 0; i < config->n_layer; i++) {
        free(layer[i].state);
        for (int b = 0; b < 2 && layer[i].block; b++)
            free(block[i][b]);
    }
    free(layer);
    return out;
}

static struct model *load_rewritten(const char *dir, struct rewrite how,
                                    bool is_nested, bool is_tied)
{
    struct bytes weights = rewrite(dir, how);
    struct bytes config = rewrite_config(dir, is_nested, is_tied);
    struct model *model;
    char at[32];

    make_dir(at);
    write_file(at, "config.json", config);
    write_file(at, "model.safetensors", weights);
    cr_assert_eq(load(at, 0, &model), STATUS_OK, "%s", status_reason());
    drop_dir(at); /* the files are not needed any more */
    free(weights.data);
    free(config.data);
    return model;
}

static void assert_same_logits(struct model *a, struct model *b, bool is_same)
{
    const size_t n = (size_t)N_TOKEN * model_config(a)->n_vocab;
    float *x = play(a), *y = play(b);

    cr_assert_eq(memcmp(x, y, n * sizeof(float)) == 0, is_same, "%s",
                 model_config(a)->model_type);
    free(x);
    free(y);
    model_destroy(a);
    model_destroy(b);
}

static const char *const DIR[] = {
    "tests/golden/qwen3_5_text", "tests/golden/qwen3",
    "tests/golden/llama",        "tests/golden/qwen3_5_moe_text",
    "tests/golden/qwen3_next",
};
#define N_DIR (sizeof(DIR) / sizeof(DIR[0]))

Test(load, half_precision_files_mean_the_same_as_their_values_in_f32)
{
    static const enum spelling PAIR[2][2] = {{AS_BF16, AS_BF16_IN_F32},
                                             {AS_F16, AS_F16_IN_F32}};

    for (size_t d = 0; d < N_DIR; d++)
        for (int p = 0; p < 2; p++) {
            struct model *half = load_rewritten(
                DIR[d], (struct rewrite){.as = PAIR[p][0]}, false, false);
            struct model *wide = load_rewritten(
                DIR[d], (struct rewrite){.as = PAIR[p][1]}, false, false);
            const bool is_brain = PAIR[p][0] == AS_BF16;

            cr_assert_str_eq(strstr(model_numerics(half), "/kv-f32"),
                             strstr(model_numerics(wide), "/kv-f32"));
            cr_assert(
                strstr(model_numerics(half), is_brain ? "/bf16/" : "/f32/"),
                "%s", model_numerics(half));
            cr_assert_eq(model_weight_bytes(half) < model_weight_bytes(wide),
                         is_brain);
            cr_assert_not(
                digest_equal(model_fingerprint(half), model_fingerprint(wide)));
            assert_same_logits(half, wide, true);
        }
}

Test(load, a_nested_model_is_the_same_model)
{
    for (int d = 0; d <= 3; d += 3) {
        struct model *plain,
            *nested = load_rewritten(
                DIR[d], (struct rewrite){.prefix = "model.language_model."},
                true, false);

        cr_assert_eq(load(DIR[d], 0, &plain), STATUS_OK);
        cr_assert_eq(model_n_parameter(plain), model_n_parameter(nested));
        assert_same_logits(plain, nested, true);
    }
}

Test(load, a_tied_head_is_the_embedding)
{
    for (size_t d = 0; d < N_DIR; d++) {
        struct model *tied = load_rewritten(
            DIR[d], (struct rewrite){.is_head_dropped = true}, false, true);
        struct model *copied = load_rewritten(
            DIR[d], (struct rewrite){.is_head_embedding = true}, false, false);
        struct model *plain;

        assert_same_logits(tied, copied, true);
        tied = load_rewritten(DIR[d], (struct rewrite){.is_head_dropped = true},
                              false, true);
        cr_assert_eq(load(DIR[d], 0, &plain), STATUS_OK);
        assert_same_logits(tied, plain, false);
    }
}

/* Known from the shapes: tests/golden/llama, 3 layers. */
Test(load, facts_are_those_of_the_file)
{
    const uint64_t layer = 64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 128 * 64;
    struct model *model, *other;

    cr_assert_eq(load(DIR[2], 0, &model), STATUS_OK);
    cr_assert_eq(model_n_parameter(model),
                 2 * 512 * 64 + 3 * (layer + 2 * 64) + 64);
    cr_assert_float_eq(model_row_flops(model), 2.0 * (3.0 * layer + 512 * 64),
                       0.5);
    cr_assert_float_eq(model_logit_flops(model),
                       2.0 * (3 * 128 * 64 + 512 * 64), 0.5);
    cr_assert_eq(model_weight_bytes(model), 4 * model_n_parameter(model));
    cr_assert_eq(model_step_bytes(model, 1),
                 model_weight_bytes(model) - 4 * 512 * 64);
    cr_assert_eq(model_table_bytes(model), 2 * 4 * 8 * 4096);

    /* The context limit is no part of what two sessions must share. */
    cr_assert_eq(load(DIR[2], 70, &other), STATUS_OK);
    cr_assert_str_eq(model_numerics(model), model_numerics(other));
    cr_assert(digest_equal(model_fingerprint(model), model_fingerprint(other)));
    model_destroy(other);
    model_destroy(model);
    model_destroy(NULL);
    workspace_destroy(NULL);
}

/* Angles are in the numerics id: another theta is another arithmetic. */
Test(load, another_theta_is_another_numerics_id_and_fingerprint)
{
    struct bytes config = read_file(DIR[1], "config.json");
    struct bytes weights = read_file(DIR[1], "model.safetensors");
    struct model *plain, *other;
    char dir[32];

    patch(config, "rope_theta", "1000000.0", "1000001.0");
    make_dir(dir);
    write_file(dir, "config.json", config);
    write_file(dir, "model.safetensors", weights);
    cr_assert_eq(load(dir, 0, &other), STATUS_OK, "%s", status_reason());
    cr_assert_eq(load(DIR[1], 0, &plain), STATUS_OK);
    cr_assert_str_neq(model_numerics(plain), model_numerics(other));
    cr_assert_not(
        digest_equal(model_fingerprint(plain), model_fingerprint(other)));
    drop_dir(dir);
    free(config.data);
    free(weights.data);
    assert_same_logits(plain, other, false);
}
