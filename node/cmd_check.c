/*
 * godwitd check: does this model load, what is it, and does it compute what
 * its authors' code computes?
 */
#include "node/commands.h"
#include "node/golden.h"
#include "node/subcommand.h"

#include <stddef.h>

struct check {
    const char *model, *golden;
    struct model_choice choice;
    uint64_t threads, max_length;
};

static const struct setting ROW[] = {
    {.name = "model",
     .kind = SETTING_TEXT,
     .unit = "DIR",
     .help = "Hugging Face directory of the model",
     .offset = offsetof(struct check, model)},
    {.name = "golden",
     .kind = SETTING_TEXT,
     .preset = "",
     .unit = "DIR",
     .help = "an oracle's golden.safetensors and cases.json to compare with",
     .offset = offsetof(struct check, golden)},
    SUBCOMMAND_MODEL_ROWS(offsetof(struct check, choice)),
    {.name = "threads",
     .kind = SETTING_NUMBER,
     .preset = "0",
     .max = POOL_THREAD_MAX,
     .unit = "threads",
     .help = "worker threads; 0 for one per CPU",
     .offset = offsetof(struct check, threads)},
    {.name = "max-length",
     .kind = SETTING_NUMBER,
     .preset = "0",
     .max = CONFIG_CONTEXT_MAX,
     .unit = "tokens",
     .help = "leave out golden cases with longer prompts; 0 for none",
     .offset = offsetof(struct check, max_length)},
};

static const struct settings SETTINGS = {
    .program = "godwitd check",
    .about = "Load a model and show what it is, or compare every logit with an "
             "oracle's.\nExit code 0: within tolerance, 1: beyond, 2: bad "
             "input.",
    .row = ROW,
    .n_row = sizeof(ROW) / sizeof(ROW[0]),
};

static void print_summary(const struct model *model)
{
    const struct config *config = model_config(model);
    const uint64_t n_context = model_n_context(model);
    const size_t empty = memory_bytes_for(model, NULL, 0);
    char fingerprint[DIGEST_TEXT_SIZE];
    uint32_t n_delta = 0, n_expert_layer = 0;

    for (uint32_t i = 0; i < config->n_layer; i++) {
        n_delta += config->layer[i] == LAYER_DELTA;
        n_expert_layer += config->has_experts[i];
    }
    digest_format(model_fingerprint(model), fingerprint);
    printf("name\tvalue\n");
    printf("type\t%s\n", config->model_type);
    printf("layers\t%u delta, %u softmax\n", n_delta,
           config->n_layer - n_delta);
    if (n_expert_layer)
        printf("experts\t%u of %u%s, in %u layers\n", config->n_chosen,
               config->n_expert, config->n_shared_ff ? " and a shared one" : "",
               n_expert_layer);
    printf("parameters\t%lu\n", model_n_parameter(model));
    printf("active_parameters\t%lu\n", model_n_active(model));
    printf("vocabulary\t%u\n", config->n_vocab);
    printf("context_tokens\t%lu\n", n_context);
    printf("backend\t%s\n", model_backend(model)->name);
    printf("weight_bytes\t%zu\n", model_weight_bytes(model));
    printf("table_bytes\t%zu\n", model_table_bytes(model));
    printf("session_bytes\t%zu\n", empty);
    printf("token_bytes\t%.1f\n",
           (double)(memory_bytes_for(model, NULL, n_context) - empty) /
               (double)n_context);
    printf("fingerprint\t%s\n", fingerprint);
    printf("numerics\t%s\n", model_numerics(model));
}

static const struct golden_tolerance *tolerance_of(const struct model *model)
{
    if (model_weight_format(model) == WEIGHT_W8 ||
        model_weight_format(model) == WEIGHT_W8A8)
        return &golden_tolerance_w8;
    if (model_weight_format(model) == WEIGHT_F8)
        return &golden_tolerance_f8;
    if (model_arithmetic(model) != ARITHMETIC_FP32 ||
        model_weight_format(model) != WEIGHT_AUTO ||
        model_kv_format(model) != KV_WIDE)
        return &golden_tolerance_bf16;
    return &golden_tolerance_exact;
}

static enum status compare(const struct check *check,
                           const struct engine_parts *parts,
                           bool *out_is_within)
{
    struct tokenizer *tokenizer = NULL;
    struct solo solo = {0};
    struct golden_options options = {.dir = check->golden,
                                     .max_length = check->max_length};
    enum status st;

    /* A random checkpoint has no tokenizer; its goldens hold no text either. */
    st = tokenizer_load(check->model, &tokenizer);
    if (st && st != STATUS_NOT_FOUND)
        return st;
    options.tokenizer = tokenizer;
    options.tolerance = tolerance_of(parts->model);
    st = solo_init(parts->model, parts->pool, &solo);
    if (!st)
        st = golden_check(&solo, &options, stdout, out_is_within);
    solo_release(&solo);
    tokenizer_destroy(tokenizer);
    return st;
}

int cmd_check(int argc, char **argv)
{
    struct check check;
    struct settings_store *store = NULL;
    struct engine_parts parts = {0};
    bool is_within = true;
    enum status st;
    int code;

    if (!subcommand_read(&SETTINGS, argc, argv, &check, &store, &code))
        return code;
    st = engine_parts_init(check.model, &check.choice, check.threads, &parts);
    if (!st && check.golden[0])
        st = compare(&check, &parts, &is_within);
    else if (!st)
        print_summary(parts.model);
    if (st)
        code = subcommand_fail(&SETTINGS, SUBCOMMAND_BAD_INPUT);
    else
        code = is_within ? SUBCOMMAND_DONE : SUBCOMMAND_FAILED;
    engine_parts_release(&parts);
    settings_release(store);
    return code;
}
