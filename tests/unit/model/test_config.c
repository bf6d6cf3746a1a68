/*
 * The judges: what Hugging Face's own config files say (their numbers are
 * written out here), and a table of one-field changes, each of which must be
 * refused with its code and with words that name the field and the limit.
 */
#include "model/config.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define must(call) cr_assert(eq(int, (call), STATUS_OK), "%s", status_reason())

static char dir[] = "/tmp/godwit-config-XXXXXX";

static void make_dir(void)
{
    cr_assert(mkdtemp(dir) != NULL);
}

static void drop_dir(void)
{
    char path[128];

    snprintf(path, sizeof(path), "%s/config.json", dir);
    (void)unlink(path);
    snprintf(path, sizeof(path), "%s/generation_config.json", dir);
    (void)unlink(path);
    (void)rmdir(dir);
}

TestSuite(config, .init = make_dir, .fini = drop_dir);

static void write_file(const char *name, const char *text)
{
    char path[128];
    FILE *file;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    (void)unlink(path); /* truncating would wait for the disk */
    file = fopen(path, "w");
    cr_assert(file != NULL);
    cr_assert(fputs(text, file) >= 0);
    cr_assert(fclose(file) == 0);
}

/* Write `golden`'s config.json with the members of `patch` laid over it; a
 * null in the patch is as good as absent. */
static void write_patched(const char *golden, const char *patch)
{
    char path[128], *text;
    json_error_t error;
    json_t *root, *over;

    snprintf(path, sizeof(path), "tests/golden/%s/config.json", golden);
    root = json_load_file(path, 0, &error);
    over = json_loads(patch, 0, &error);
    cr_assert(root && over, "%s", error.text);
    cr_assert(json_object_update_recursive(root, over) == 0);
    text = json_dumps(root, 0);
    write_file("config.json", text);
    free(text);
    json_decref(root);
    json_decref(over);
}

/* The load is refused with this code and these words, and writes nothing. */
static void assert_refused(enum status code, const char *words)
{
    struct config config, before;

    memset(&config, 0x5a, sizeof(config));
    memcpy(&before, &config, sizeof(config));
    cr_assert(eq(int, config_load(dir, &config), code), "%s: %s", words,
              status_reason());
    cr_assert(strstr(status_reason(), words) != NULL, "'%s' lacks '%s'",
              status_reason(), words);
    cr_assert(memcmp(&config, &before, sizeof(config)) == 0);
}

Test(config, reads_qwen3_5_text)
{
    struct config c;

    must(config_load("tests/golden/qwen3_5_text", &c));
    cr_assert(eq(str, c.model_type, "qwen3_5_text"));
    cr_assert(not(c.is_nested));
    cr_assert(eq(u32, c.n_layer, 6));
    cr_assert(eq(u32, c.hidden, 64));
    cr_assert(eq(u32, c.n_ff, 128));
    cr_assert(eq(u32, c.n_vocab, 512));
    cr_assert(eq(u32, c.n_context, 4096));
    cr_assert(eq(dbl, c.rms_eps, 1e-6));
    cr_assert(not(c.is_tied));
    for (uint32_t i = 0; i < 6; i++)
        cr_assert(eq(int, c.layer[i],
                     i == 3 || i == 5 ? LAYER_SOFTMAX : LAYER_DELTA));
    cr_assert(eq(u32, c.n_head, 4));
    cr_assert(eq(u32, c.n_kv_head, 2));
    cr_assert(eq(u32, c.d_head, 32));
    cr_assert(c.has_qk_norm && c.has_output_gate && c.has_unit_offset);
    cr_assert(eq(int, c.rope.kind, ROPE_PLAIN));
    cr_assert(eq(u32, c.rope.n_rot, 8));
    cr_assert(eq(dbl, c.rope.theta, 1e6));
    cr_assert(eq(u32, c.n_k_head, 2));
    cr_assert(eq(u32, c.n_v_head, 4));
    cr_assert(eq(u32, c.d_k, 16));
    cr_assert(eq(u32, c.d_v, 16));
    cr_assert(eq(u32, c.conv_width, 4));
    cr_assert(eq(u32, c.n_eos, 0));
    cr_assert(not(c.has_sampling));
}

Test(config, reads_qwen3_and_llama)
{
    struct config c;

    must(config_load("tests/golden/qwen3", &c));
    cr_assert(eq(str, c.model_type, "qwen3"));
    cr_assert(eq(u32, c.n_layer, 3));
    cr_assert(eq(u32, c.d_head, 16));
    cr_assert(eq(u32, c.rope.n_rot, 16));
    cr_assert(c.has_qk_norm && !c.has_output_gate && !c.has_unit_offset);
    cr_assert(eq(u32, c.n_k_head + c.n_v_head + c.d_k + c.d_v, 0));
    cr_assert(eq(u32, c.conv_width, 0));

    must(config_load("tests/golden/llama", &c));
    cr_assert(eq(str, c.model_type, "llama"));
    cr_assert(not(c.has_qk_norm || c.has_output_gate || c.has_unit_offset));
    cr_assert(eq(int, c.rope.kind, ROPE_LLAMA3));
    cr_assert(eq(dbl, c.rope.theta, 500000.0));
    cr_assert(eq(dbl, c.rope.factor, 8.0));
    cr_assert(eq(dbl, c.rope.low_freq_factor, 1.0));
    cr_assert(eq(dbl, c.rope.high_freq_factor, 4.0));
    cr_assert(eq(u32, c.rope.original_context, 64));
    for (uint32_t i = 0; i < 3; i++)
        cr_assert(eq(int, c.layer[i], LAYER_SOFTMAX));
}

Test(config, reads_layers_of_experts)
{
    struct config c;

    must(config_load("tests/golden/qwen3_5_moe_text", &c));
    cr_assert(eq(str, c.model_type, "qwen3_5_moe_text"));
    cr_assert(c.has_qk_norm && c.has_output_gate && c.has_unit_offset);
    cr_assert(not(c.is_delta_grouped));
    cr_assert(eq(u32, c.n_ff, 0)); /* no layer is dense */
    cr_assert(eq(u32, c.n_expert, 8));
    cr_assert(eq(u32, c.n_chosen, 2));
    cr_assert(eq(u32, c.n_expert_ff, 32));
    cr_assert(eq(u32, c.n_shared_ff, 48));
    cr_assert(c.is_renormalised);
    for (uint32_t i = 0; i < 6; i++)
        cr_assert(c.has_experts[i]);

    must(config_load("tests/golden/qwen3_next", &c));
    cr_assert(eq(str, c.model_type, "qwen3_next"));
    cr_assert(c.has_qk_norm && c.has_output_gate && c.has_unit_offset);
    cr_assert(c.is_delta_grouped && c.is_renormalised);
    cr_assert(eq(u32, c.n_ff, 128));
    cr_assert(eq(u32, c.n_shared_ff, 48));
    cr_assert(eq(u32, c.rope.n_rot, 8));
    for (uint32_t i = 0; i < 6; i++) {
        cr_assert(c.has_experts[i] == (i != 1));
        cr_assert(eq(int, c.layer[i],
                     i == 3 || i == 5 ? LAYER_SOFTMAX : LAYER_DELTA));
    }

    must(config_load("tests/golden/qwen3_moe", &c));
    cr_assert(eq(str, c.model_type, "qwen3_moe"));
    cr_assert(c.has_qk_norm && !c.has_output_gate && !c.has_unit_offset);
    cr_assert(eq(u32, c.n_ff, 96));
    cr_assert(eq(u32, c.n_expert, 7)); /* as num_local_experts */
    cr_assert(eq(u32, c.n_chosen, 3));
    cr_assert(eq(u32, c.n_expert_ff, 24));
    cr_assert(eq(u32, c.n_shared_ff, 0));
    cr_assert(not(c.is_renormalised));
    for (uint32_t i = 0; i < 4; i++)
        cr_assert(c.has_experts[i] == (i % 2 == 1));

    must(config_load("tests/golden/qwen3", &c));
    cr_assert(eq(u32, c.n_expert + c.n_chosen + c.n_expert_ff, 0));
    cr_assert(not(c.has_experts[0] || c.is_renormalised));
}

Test(config, what_experts_do_has_the_architectures_defaults)
{
    struct config c;

    write_patched("qwen3_moe", "{\"norm_topk_prob\": null,"
                               " \"decoder_sparse_step\": null,"
                               " \"intermediate_size\": null}");
    must(config_load(dir, &c));
    cr_assert(not(c.is_renormalised));
    cr_assert(c.has_experts[0] && c.has_experts[3]);
    cr_assert(eq(u32, c.n_ff, 0));
    write_patched("qwen3_next", "{\"norm_topk_prob\": null,"
                                " \"mlp_only_layers\": null}");
    must(config_load(dir, &c));
    cr_assert(c.is_renormalised && c.has_experts[1]);
    write_patched("qwen3_next", "{\"norm_topk_prob\": false,"
                                " \"num_local_experts\": 8}");
    must(config_load(dir, &c));
    cr_assert(eq(u32, c.n_expert, 8));
    cr_assert(not(c.is_renormalised));
    /* No layer has any: the rest is not looked at. */
    write_patched("qwen3_moe", "{\"decoder_sparse_step\": 5,"
                               " \"num_experts_per_tok\": null}");
    must(config_load(dir, &c));
    cr_assert(eq(u32, c.n_expert, 0));
    cr_assert(eq(u32, c.n_ff, 96));
}

Test(config, reads_the_default_model)
{
    struct config c;

    must(config_load("assets/models/godwit-tiny", &c));
    cr_assert(eq(u32, c.n_layer, 8));
    cr_assert(eq(u32, c.n_context, 1048576));
    cr_assert(c.is_tied);
    cr_assert(eq(u32, c.n_eos, 1));
    cr_assert(eq(u32, c.eos[0], 4088));
    cr_assert(eq(u32, c.rope.n_rot, 16));
    cr_assert(eq(dbl, c.rope.theta, 1e7));
}

Test(config, older_files_keep_rope_at_top_level)
{
    struct config c;

    write_patched("llama", "{\"rope_parameters\": null, \"head_dim\": null,"
                           " \"rope_theta\": 300000.0, \"rope_scaling\":"
                           " {\"type\": \"llama3\", \"factor\": 32.0,"
                           " \"low_freq_factor\": 2, \"high_freq_factor\": 3,"
                           " \"original_max_position_embeddings\": 8192}}");
    must(config_load(dir, &c));
    cr_assert(eq(int, c.rope.kind, ROPE_LLAMA3));
    cr_assert(eq(dbl, c.rope.theta, 300000.0));
    cr_assert(eq(dbl, c.rope.factor, 32.0));
    cr_assert(eq(dbl, c.rope.low_freq_factor, 2.0));
    cr_assert(eq(dbl, c.rope.high_freq_factor, 3.0));
    cr_assert(eq(u32, c.rope.original_context, 8192));
    cr_assert(eq(u32, c.d_head, 16)); /* hidden / heads */

    /* The oldest have neither grouped heads nor any word about rope. */
    write_patched("llama", "{\"rope_parameters\": null,"
                           " \"num_key_value_heads\": null}");
    must(config_load(dir, &c));
    cr_assert(eq(int, c.rope.kind, ROPE_PLAIN));
    cr_assert(eq(dbl, c.rope.theta, 10000.0));
    cr_assert(eq(u32, c.n_kv_head, 4));
}

Test(config, layers_and_rotation_have_the_architectures_defaults)
{
    struct config c;

    write_patched("qwen3_5_text", "{\"layer_types\": null,"
                                  " \"partial_rotary_factor\": null,"
                                  " \"rope_parameters\":"
                                  " {\"partial_rotary_factor\": null}}");
    must(config_load(dir, &c));
    cr_assert(eq(u32, c.rope.n_rot, 8)); /* a quarter of 32 */
    for (uint32_t i = 0; i < 6; i++)
        cr_assert(eq(int, c.layer[i], i == 3 ? LAYER_SOFTMAX : LAYER_DELTA));
    write_patched("qwen3_5_text", "{\"layer_types\": null,"
                                  " \"full_attention_interval\": 2}");
    must(config_load(dir, &c));
    for (uint32_t i = 0; i < 6; i++)
        cr_assert(eq(int, c.layer[i], i % 2 ? LAYER_SOFTMAX : LAYER_DELTA));
}

Test(config, text_config_inside_qwen3_5_is_nested)
{
    struct config plain, nested;
    json_error_t error;
    json_t *inner, *outer;
    char *text;

    inner = json_load_file("tests/golden/qwen3_5_text/config.json", 0, &error);
    cr_assert(inner != NULL);
    (void)json_object_del(inner, "tie_word_embeddings");
    outer = json_pack("{s:s, s:O, s:b, s:[ii]}", "model_type", "qwen3_5",
                      "text_config", inner, "tie_word_embeddings", 1,
                      "eos_token_id", 7, 9);
    text = json_dumps(outer, 0);
    write_file("config.json", text);
    must(config_load("tests/golden/qwen3_5_text", &plain));
    must(config_load(dir, &nested));
    cr_assert(nested.is_nested && nested.is_tied);
    cr_assert(eq(str, nested.model_type, "qwen3_5_text"));
    cr_assert(eq(u32, nested.n_eos, 2));
    cr_assert(eq(u32, nested.eos[1], 9));
    cr_assert(eq(u32, nested.d_head, plain.d_head));
    cr_assert(memcmp(nested.layer, plain.layer, sizeof(plain.layer)) == 0);
    free(text);

    (void)json_object_set_new(inner, "tie_word_embeddings", json_false());
    text = json_dumps(outer, 0);
    write_file("config.json", text);
    assert_refused(STATUS_INVALID_ARGUMENT, "tie_word_embeddings is true but");
    free(text);
    (void)json_object_set_new(inner, "model_type", json_string("qwen9_text"));
    text = json_dumps(outer, 0);
    write_file("config.json", text);
    assert_refused(STATUS_UNIMPLEMENTED, "'qwen9_text', known: qwen3_5_text");
    free(text);
    json_decref(inner);
    json_decref(outer);
    write_file("config.json", "{\"model_type\": \"qwen3_5\"}");
    assert_refused(STATUS_INVALID_ARGUMENT, "text_config is missing");
}

Test(config, generation_defaults_are_read)
{
    struct config c;

    write_patched("llama", "{\"eos_token_id\": 5}");
    must(config_load(dir, &c));
    cr_assert(eq(u32, c.n_eos, 1));
    cr_assert(not(c.has_sampling));
    write_file("generation_config.json",
               "{\"eos_token_id\": [1, 2, 3], \"do_sample\": true,"
               " \"temperature\": 0.5, \"top_p\": 0.75, \"top_k\": 20}");
    must(config_load(dir, &c));
    cr_assert(eq(u32, c.n_eos, 3));
    cr_assert(eq(u32, c.eos[2], 3));
    cr_assert(c.has_sampling);
    cr_assert(eq(flt, c.temperature, 0.5f));
    cr_assert(eq(flt, c.top_p, 0.75f));
    cr_assert(eq(i32, c.top_k, 20));
    write_file("generation_config.json", "{\"temperature\": 0.5}");
    must(config_load(dir, &c));
    cr_assert(not(c.has_sampling));
    cr_assert(eq(u32, c.eos[0], 5));
}

Test(config, bad_generation_defaults_are_refused)
{
    static const struct {
        const char *text, *words;
    } ROW[] = {
        {"[]", "generation_config.json: not an object"},
        {"{", "generation_config.json line 1"},
        {"{\"do_sample\": 1}", "do_sample"},
        {"{\"temperature\": -1}", "temperature is -1, expected 0 to 100"},
        {"{\"top_p\": 1.5}", "top_p is 1.5, expected 0 to 1"},
        {"{\"top_k\": -1}", "top_k"},
        {"{\"eos_token_id\": 512}", "expected integers 0 to 511"},
        {"{\"eos_token_id\": \"x\"}", "eos_token_id is no token"},
        {"{\"eos_token_id\": [1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8]}",
         "has 17 entries, limit 16"},
    };

    write_patched("llama", "{}");
    for (size_t i = 0; i < sizeof(ROW) / sizeof(*ROW); i++) {
        write_file("generation_config.json", ROW[i].text);
        assert_refused(STATUS_INVALID_ARGUMENT, ROW[i].words);
    }
}

static const struct {
    const char *golden, *patch;
    enum status code;
    const char *words;
} REFUSED[] = {
    {"llama", "{\"model_type\": \"bamba\"}", STATUS_UNIMPLEMENTED,
     "'bamba', known: qwen3_5_text, qwen3_5, qwen3_5_moe_text, qwen3_5_moe, "
     "qwen3_next, qwen3_moe, qwen3, llama"},
    {"llama", "{\"model_type\": null}", STATUS_INVALID_ARGUMENT,
     "model_type is missing"},
    {"llama", "{\"model_type\": 3}", STATUS_INVALID_ARGUMENT, "model_type"},
    {"llama", "{\"num_attention_heads\": 0}", STATUS_INVALID_ARGUMENT,
     "num_attention_heads is 0, expected an integer 1 to 1024"},
    {"llama", "{\"num_hidden_layers\": 513}", STATUS_INVALID_ARGUMENT,
     "num_hidden_layers is 513"},
    {"llama", "{\"num_hidden_layers\": null}", STATUS_INVALID_ARGUMENT,
     "num_hidden_layers is missing, expected an integer 1 to 512"},
    {"llama", "{\"hidden_size\": \"64\"}", STATUS_INVALID_ARGUMENT,
     "hidden_size is a string"},
    {"llama", "{\"hidden_size\": 65537}", STATUS_INVALID_ARGUMENT,
     "hidden_size"},
    {"llama", "{\"hidden_size\": -64}", STATUS_INVALID_ARGUMENT, "-64"},
    {"llama", "{\"hidden_size\": 65, \"head_dim\": null}",
     STATUS_INVALID_ARGUMENT, "head_dim is missing and hidden_size 65"},
    {"llama", "{\"intermediate_size\": 0}", STATUS_INVALID_ARGUMENT,
     "intermediate_size"},
    {"llama", "{\"vocab_size\": 1048577}", STATUS_INVALID_ARGUMENT,
     "vocab_size"},
    {"llama", "{\"max_position_embeddings\": 16777217}",
     STATUS_INVALID_ARGUMENT, "max_position_embeddings"},
    {"llama", "{\"num_key_value_heads\": 3}", STATUS_INVALID_ARGUMENT,
     "expected a multiple of num_key_value_heads 3"},
    {"qwen3", "{\"num_key_value_heads\": null}", STATUS_INVALID_ARGUMENT,
     "num_key_value_heads is missing"},
    {"llama", "{\"head_dim\": 1025}", STATUS_INVALID_ARGUMENT, "head_dim"},
    {"llama", "{\"head_dim\": 15}", STATUS_INVALID_ARGUMENT,
     "rotates 15 of head_dim 15 dimensions, expected an even"},
    {"qwen3_5_text", "{\"head_dim\": 4}", STATUS_INVALID_ARGUMENT,
     "rotates 1 of head_dim 4"},
    {"llama", "{\"rms_norm_eps\": 0}", STATUS_INVALID_ARGUMENT,
     "rms_norm_eps is 0"},
    {"llama", "{\"rms_norm_eps\": 1.5}", STATUS_INVALID_ARGUMENT,
     "rms_norm_eps"},
    {"llama", "{\"hidden_act\": \"gelu\"}", STATUS_UNIMPLEMENTED,
     "hidden_act is 'gelu', known: silu"},
    {"llama", "{\"attention_bias\": true}", STATUS_UNIMPLEMENTED,
     "attention_bias is true, known: false"},
    {"llama", "{\"mlp_bias\": true}", STATUS_UNIMPLEMENTED, "mlp_bias"},
    {"qwen3", "{\"use_sliding_window\": true}", STATUS_UNIMPLEMENTED,
     "use_sliding_window"},
    {"qwen3_5_text", "{\"attn_output_gate\": false}", STATUS_UNIMPLEMENTED,
     "attn_output_gate is false, known: true"},
    {"qwen3", "{\"quantization_config\": {\"bits\": 4}}", STATUS_UNIMPLEMENTED,
     "quantization_config"},
    {"llama", "{\"tie_word_embeddings\": 1}", STATUS_INVALID_ARGUMENT,
     "tie_word_embeddings"},
    {"qwen3", "{\"layer_types\": [\"full_attention\"]}",
     STATUS_INVALID_ARGUMENT, "layer_types has 1 entries"},
    {"qwen3", "{\"layer_types\": \"full_attention\"}", STATUS_INVALID_ARGUMENT,
     "layer_types"},
    {"qwen3", "{\"layer_types\": [\"full_attention\", 1, 2]}",
     STATUS_INVALID_ARGUMENT, "layer_types[1] is no string"},
    {"qwen3",
     "{\"layer_types\": [\"full_attention\", \"sliding_attention\", \"x\"]}",
     STATUS_UNIMPLEMENTED, "layer_types[1] is 'sliding_attention'"},
    {"qwen3",
     "{\"layer_types\": [\"linear_attention\", \"full_attention\", \"x\"]}",
     STATUS_UNIMPLEMENTED, "layer_types[0] is 'linear_attention'"},
    {"qwen3_5_text", "{\"layer_types\": null, \"full_attention_interval\": 0}",
     STATUS_INVALID_ARGUMENT, "full_attention_interval is 0"},
    {"qwen3_5_text", "{\"linear_num_value_heads\": 3}", STATUS_INVALID_ARGUMENT,
     "expected a multiple of linear_num_key_heads 2"},
    {"qwen3_5_text", "{\"linear_num_key_heads\": null}",
     STATUS_INVALID_ARGUMENT, "linear_num_key_heads is missing"},
    {"qwen3_5_text", "{\"linear_key_head_dim\": 0}", STATUS_INVALID_ARGUMENT,
     "linear_key_head_dim"},
    {"qwen3_5_text", "{\"linear_value_head_dim\": 2000}",
     STATUS_INVALID_ARGUMENT, "linear_value_head_dim"},
    {"qwen3_5_text", "{\"linear_conv_kernel_dim\": 17}",
     STATUS_INVALID_ARGUMENT, "linear_conv_kernel_dim"},
    {"llama", "{\"rope_parameters\": {\"rope_type\": \"yarn\"}}",
     STATUS_UNIMPLEMENTED, "rope_type is 'yarn', known: default, llama3"},
    {"llama", "{\"rope_parameters\": {\"factor\": null}}",
     STATUS_INVALID_ARGUMENT, "rope_type llama3 lacks a field"},
    {"llama", "{\"rope_parameters\": {\"high_freq_factor\": 1.0}}",
     STATUS_INVALID_ARGUMENT, "expected above low_freq_factor 1"},
    {"llama",
     "{\"rope_parameters\": {\"original_max_position_embeddings\": null}}",
     STATUS_INVALID_ARGUMENT, "original_max_position_embeddings is missing"},
    {"llama", "{\"rope_parameters\": {\"rope_theta\": 0}}",
     STATUS_INVALID_ARGUMENT, "rope_theta is 0"},
    {"llama", "{\"rope_parameters\": 7}", STATUS_INVALID_ARGUMENT,
     "rope_parameters is no object"},
    {"llama", "{\"rope_theta\": 10000.0}", STATUS_INVALID_ARGUMENT,
     "rope_theta is 10000 at top level but 500000"},
    {"llama", "{\"rope_scaling\": {\"rope_type\": \"default\"}}",
     STATUS_INVALID_ARGUMENT, "rope_parameters and rope_scaling differ"},
    {"qwen3", "{\"rope_parameters\": {\"full_attention\": {}}}",
     STATUS_UNIMPLEMENTED, "differ by layer type"},
    {"qwen3", "{\"partial_rotary_factor\": 0.5}", STATUS_UNIMPLEMENTED,
     "partial_rotary_factor is 0.5, known in qwen3: 1"},
    {"qwen3_5_text", "{\"partial_rotary_factor\": 0.5}",
     STATUS_INVALID_ARGUMENT, "partial_rotary_factor is 0.5 at top level"},
    {"qwen3_next", "{\"num_experts\": 0}", STATUS_INVALID_ARGUMENT,
     "num_experts is 0, expected an integer 1 to 1024"},
    {"qwen3_next", "{\"num_experts\": 1025}", STATUS_INVALID_ARGUMENT,
     "num_experts is 1025"},
    {"qwen3_next", "{\"num_experts\": null}", STATUS_INVALID_ARGUMENT,
     "num_experts is missing"},
    {"qwen3_moe", "{\"num_local_experts\": 4294967303}",
     STATUS_INVALID_ARGUMENT, "num_local_experts is 4294967303"},
    {"qwen3_moe", "{\"num_experts\": 8}", STATUS_INVALID_ARGUMENT,
     "num_experts is 8 but num_local_experts is 7"},
    {"qwen3_next", "{\"num_experts_per_tok\": 9}", STATUS_INVALID_ARGUMENT,
     "num_experts_per_tok is 9, expected 1 to num_experts 8"},
    {"qwen3_next", "{\"num_experts_per_tok\": 0}", STATUS_INVALID_ARGUMENT,
     "num_experts_per_tok is 0"},
    {"qwen3_5_moe_text", "{\"num_experts_per_tok\": null}",
     STATUS_INVALID_ARGUMENT, "num_experts_per_tok is missing"},
    {"qwen3_5_moe_text", "{\"moe_intermediate_size\": 0}",
     STATUS_INVALID_ARGUMENT, "moe_intermediate_size is 0"},
    {"qwen3_5_moe_text", "{\"moe_intermediate_size\": 1048577}",
     STATUS_INVALID_ARGUMENT, "moe_intermediate_size"},
    {"qwen3_5_moe_text", "{\"shared_expert_intermediate_size\": null}",
     STATUS_INVALID_ARGUMENT, "shared_expert_intermediate_size is missing"},
    {"qwen3_5_moe_text", "{\"norm_topk_prob\": false}", STATUS_UNIMPLEMENTED,
     "norm_topk_prob is false, known: true"},
    {"qwen3_5_moe_text", "{\"mlp_only_layers\": [2]}", STATUS_UNIMPLEMENTED,
     "makes layer 2 dense, known in qwen3_5_moe_text: experts in every layer"},
    {"qwen3_5_moe_text", "{\"decoder_sparse_step\": 2}", STATUS_UNIMPLEMENTED,
     "makes layer 0 dense"},
    {"qwen3_next", "{\"mlp_only_layers\": 1}", STATUS_INVALID_ARGUMENT,
     "mlp_only_layers is no list"},
    {"qwen3_next", "{\"mlp_only_layers\": [6]}", STATUS_INVALID_ARGUMENT,
     "mlp_only_layers[0] is no layer, expected integers 0 to 5"},
    {"qwen3_next", "{\"mlp_only_layers\": [1, -1]}", STATUS_INVALID_ARGUMENT,
     "mlp_only_layers[1] is no layer"},
    {"qwen3_next", "{\"mlp_only_layers\": [\"1\"]}", STATUS_INVALID_ARGUMENT,
     "mlp_only_layers[0] is no layer"},
    {"qwen3_next", "{\"decoder_sparse_step\": 0}", STATUS_INVALID_ARGUMENT,
     "decoder_sparse_step is 0"},
    {"qwen3_next", "{\"intermediate_size\": null}", STATUS_INVALID_ARGUMENT,
     "intermediate_size is missing"},
    {"qwen3_next", "{\"norm_topk_prob\": 1}", STATUS_INVALID_ARGUMENT,
     "norm_topk_prob"},
    {"llama", "{\"eos_token_id\": -1}", STATUS_INVALID_ARGUMENT,
     "eos_token_id"},
    {"llama", "{\"eos_token_id\": 1.5}", STATUS_INVALID_ARGUMENT,
     "eos_token_id"},
};

Test(config, every_wrong_field_is_refused_by_name)
{
    for (size_t i = 0; i < sizeof(REFUSED) / sizeof(*REFUSED); i++) {
        write_patched(REFUSED[i].golden, REFUSED[i].patch);
        assert_refused(REFUSED[i].code, REFUSED[i].words);
    }
}

Test(config, what_is_no_config_is_refused)
{
    assert_refused(STATUS_NOT_FOUND, "config.json");
    write_file("config.json", "");
    assert_refused(STATUS_INVALID_ARGUMENT, "config.json line 1");
    write_file("config.json", "{\"model_type\": \"llama\",\n\"x\": }");
    assert_refused(STATUS_INVALID_ARGUMENT, "config.json line 2");
    write_file("config.json", "[1]");
    assert_refused(STATUS_INVALID_ARGUMENT, "not an object");
}

Test(config, no_such_directory_is_not_found)
{
    char path[5000];
    struct config config;

    cr_assert(
        eq(int, config_load("/nonexistent/x", &config), STATUS_NOT_FOUND));
    memset(path, 'x', sizeof(path));
    path[sizeof(path) - 1] = '\0';
    cr_assert(eq(int, config_load(path, &config), STATUS_NOT_FOUND));
}
