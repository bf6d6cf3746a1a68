#ifndef MODEL_CONFIG_PARTS_H
#define MODEL_CONFIG_PARTS_H
/*
 * What the readers of config.json share: how a member is read, and what a
 * model_type implies without saying so. Known to config.c and
 * config_experts.c; nobody else includes this.
 */
#include "base/json.h"
#include "model/config.h"

#define FILE_NAME "config.json"

/* Which layers have experts, and whose configs say so. */
enum expert_rule {
    EXPERTS_NONE,
    EXPERTS_EVERYWHERE, /* no key of another choice, weights renormalised */
    EXPERTS_STEPPED     /* decoder_sparse_step, mlp_only_layers */
};

/* What a model_type implies without saying so in its config. */
struct config_family {
    const char *type;
    const char *outer; /* model_type it may be the text_config of, or NULL */
    bool has_qk_norm;
    bool is_hybrid; /* delta layers; gated softmax; a quarter rotated; 1 + w */
    bool is_delta_grouped;
    enum expert_rule experts;
    bool has_shared_expert;
    bool is_renormalised; /* where norm_topk_prob is absent */
};

/* A key that holds null counts as absent, as in transformers. */
const json_t *config_member(const json_t *object, const char *key);

/* An integer in [min, max]; *out is kept when the key is absent. */
MUST_CHECK enum status config_get_u32(const json_t *object, const char *key,
                                      uint32_t min, uint32_t max,
                                      uint32_t *out);
MUST_CHECK enum status config_need_u32(const json_t *object, const char *key,
                                       uint32_t min, uint32_t max,
                                       uint32_t *out);

/* Refuse a switch that asks for arithmetic which is not written. */
MUST_CHECK enum status config_need_switch(const json_t *object, const char *key,
                                          bool wanted);

/* Everything about experts, of layers whose number is known. */
MUST_CHECK enum status config_read_experts(const json_t *text,
                                           const struct config_family *family,
                                           struct config *config);

/* After that: the dense layers' width, where there are any. */
MUST_CHECK enum status config_read_dense(const json_t *text,
                                         struct config *config);
#endif
