#ifndef MODEL_CONFIG_H
#define MODEL_CONFIG_H
/*
 * What config.json (and generation_config.json) say, checked once here so that
 * nothing behind it needs to doubt a number. One struct serves all
 * architectures; a field that an architecture lacks has its neutral value.
 */
#include "base/status.h"

#include <stdbool.h>
#include <stdint.h>

#define CONFIG_LAYER_MAX 512u
#define CONFIG_HIDDEN_MAX 65536u
#define CONFIG_FF_MAX 1048576u
#define CONFIG_VOCAB_MAX 1048576u
#define CONFIG_HEAD_MAX 1024u
#define CONFIG_HEAD_DIM_MAX 1024u
#define CONFIG_CONV_MAX 16u /* taps of the short convolution */
#define CONFIG_EXPERT_MAX 1024u
#define CONFIG_EOS_MAX 16u
#define CONFIG_CONTEXT_MAX (1u << 24)

enum layer_kind { LAYER_SOFTMAX, LAYER_DELTA }; /* full / linear attention */

enum rope_kind { ROPE_PLAIN, ROPE_LLAMA3 };

struct rope_config {
    enum rope_kind kind;
    uint32_t n_rot; /* leading dims of a head that are rotated; even */
    double theta;
    /* ROPE_LLAMA3: frequency rescale, as in transformers' modeling_rope_utils
     */
    double factor, low_freq_factor, high_freq_factor;
    uint32_t original_context; /* tokens */
};

struct config {
    char model_type[32]; /* "qwen3_5_text", "qwen3_moe", "llama" */
    bool is_nested;      /* was text_config inside another config: weights
                            then stand under model.language_model. */
    uint32_t n_layer, hidden, n_vocab, n_context;
    uint32_t n_ff; /* of dense layers; 0 where there are none */
    double rms_eps;
    bool is_tied; /* the head is the embedding */
    enum layer_kind layer[CONFIG_LAYER_MAX];

    /* softmax layers */
    uint32_t n_head, n_kv_head, d_head;
    bool has_qk_norm, has_output_gate;
    bool has_unit_offset; /* norm weights mean 1 + w (not the delta norm) */
    struct rope_config rope;

    /* Gated DeltaNet layers; 0 where there are none */
    uint32_t n_k_head, n_v_head, d_k, d_v, conv_width;
    bool is_delta_grouped; /* the file has q k v z, and b a, by k-head */

    /* layers of experts; 0 where there are none */
    bool has_experts[CONFIG_LAYER_MAX]; /* the other layers are dense */
    uint32_t n_expert, n_chosen;        /* n_chosen of them work on a row */
    uint32_t n_expert_ff;
    uint32_t n_shared_ff; /* of the expert that works on all rows; 0: none */
    bool is_renormalised; /* weights of the chosen sum to one */

    /* generation_config.json; defaults of the checkpoint, may be absent */
    uint32_t eos[CONFIG_EOS_MAX];
    uint32_t n_eos;
    bool has_sampling; /* do_sample true: the three below were given */
    float temperature, top_p;
    int32_t top_k; /* 0: off */
};

/*
 * Read DIR/config.json and, when there, DIR/generation_config.json.
 * rope_theta may stand at top level (older files, with rope_scaling) or in
 * rope_parameters (newer).
 *   NOT_FOUND         no such directory or no config.json in it
 *   INVALID_ARGUMENT  not JSON; a field missing, of another type or out of
 *                     range; numbers that contradict each other
 *                     (n_head % n_kv_head, n_v_head % n_k_head, odd n_rot,
 *                     more experts chosen than there are);
 *                     "config.json: n_head is 0, expected 1 to 1024"
 *   PERMISSION_DENIED a file may not be read
 *   UNIMPLEMENTED     unknown model_type, layer type, activation, rope type,
 *                     biases: names it and lists what is known
 */
MUST_CHECK enum status config_load(const char *dir, struct config *out);

/* The same of one file of any name, and of nothing beside it. */
MUST_CHECK enum status config_load_file(const char *path, struct config *out);
#endif
