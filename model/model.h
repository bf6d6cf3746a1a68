#ifndef MODEL_MODEL_H
#define MODEL_MODEL_H
/*
 * A loaded model: config, packed weights, layer graph, tables. Immutable after
 * loading; any number of workspaces may run on it. Knows nothing of sessions
 * beyond the pointers in a span.
 */
#include "base/digest.h"
#include "base/rooms.h"
#include "base/status.h"
#include "kernels/backend.h"
#include "model/config.h"
#include "model/mixer.h"
#include "model/weights.h"

struct model;

struct model_options {
    const struct backend *backend;
    uint64_t n_context; /* tokens a session may have; 0: the model's own */
    enum arithmetic arithmetic;
    enum weight_format weight_format;
    enum kv_format kv_format;
    float state_cap; /* of recurrent states: model/state_cap.h; 0: none */
};

/* The same as flags name it. */
struct model_choice {
    const char *backend;       /* as backend_find() */
    const char *numerics;      /* "fp32", "bf16-pair", "bf16-tile", "bf16-mma",
                                  "bf16-mma-fast"; "auto": where the backend's
                                  products are fastest, and exact */
    const char *weight_format; /* "auto" (as in the file), "bf16", "w8",
                                  "w8a8", "f8" */
    const char *kv_format;     /* "auto" (as the arithmetic has them), "int8" */
    double state_cap;          /* 0: none */
};

/*
 * Set the fields of `out` that the names stand for.
 *   as backend_find() and backend_check()
 *   INVALID_ARGUMENT  no such name: lists them; or a cap out of its range
 */
MUST_CHECK enum status model_options_find(const struct model_choice *choice,
                                          struct model_options *out);

/*
 * Load DIR (config.json, safetensors; the tokenizer is loaded apart). The files
 * are not needed any more once this returns.
 *   as config_load(), safetensors_open() and safetensors_need(); every message
 *   names the file and the tensor and what was expected
 *   INVALID_ARGUMENT    n_context above the model's own
 *   RESOURCE_EXHAUSTED  no memory
 *   as backend_check() and device_create(); FAILED_PRECONDITION  the arithmetic
 *   or the backend has no products of weights, or blocks, in that format; a
 *   cap of states on a device, or where no layer has such
 */
MUST_CHECK enum status model_load(const char *dir,
                                  const struct model_options *options,
                                  struct model **out);

/*
 * The same of the config in the file `path` with weights that are made from
 * `seed` (model/synthetic.h): any supported architecture in its real shape,
 * without files. Takes the memory of the model and of one fused product.
 *   as model_load(), but for what is said of safetensors
 */
MUST_CHECK enum status model_load_synthetic(const char *path, uint64_t seed,
                                            const struct model_options *options,
                                            struct model **out);
void model_destroy(struct model *model);

const struct config *model_config(const struct model *model);
uint64_t model_n_context(const struct model *model); /* tokens, the limit */
const struct mixer_plan *model_plan(const struct model *model, uint32_t layer);
/* The same for sessions whose policy makes look-ups. */
const struct mixer_plan *model_plan_for(const struct model *model,
                                        uint32_t layer, enum index_kind index);
/* FAILED_PRECONDITION  POLICY_UNSUPPORTED: its backend has no such policy */
MUST_CHECK enum status model_check_policy(const struct model *model,
                                          const struct policy *policy);
size_t model_weight_bytes(const struct model *model);
const struct backend *model_backend(const struct model *model);
enum arithmetic model_arithmetic(const struct model *model);
/* In whose memory weights, workspaces and sessions lie; NULL: the host's. */
struct device *model_device(const struct model *model);
/* For sessions, and for weights that share huge pages; NULL with a device. */
struct rooms *model_rooms(const struct model *model);

/* Elements of the text model's tensors, as the file has them. */
uint64_t model_n_parameter(const struct model *model);

/* Of these, how many work on one row: all but the experts not chosen. */
uint64_t model_n_active(const struct model *model);

/* Bytes of tables made from the config (rotary angles), beside the weights. */
size_t model_table_bytes(const struct model *model);

/*
 * Weight bytes that one step of n_row rows reads: all but the embedding
 * table's, and of experts as many as are expected to be chosen if rows choose
 * evenly: n_expert (1 - (1 - n_chosen / n_expert)^n_row).
 */
size_t model_step_bytes(const struct model *model, uint32_t n_row);

/*
 * FLOPs of one row without attention over the past: 2 x weights it meets, and
 * the recurrences. Included is what only logit rows cost: the last mlp and the
 * head, model_logit_flops().
 */
double model_row_flops(const struct model *model);
double model_logit_flops(const struct model *model);

/*
 * What two sessions must share to have the same bits. The fingerprint digests
 * weights and config; numerics is text such as
 * "fp32-chain-2/bf16/kv-f32/rope-1a2b3c4d".
 */
struct digest model_fingerprint(const struct model *model);
const char *model_numerics(const struct model *model);
enum weight_format model_weight_format(const struct model *model);
enum kv_format model_kv_format(const struct model *model);

/* Buffers for one engine thread's steps; allocated once. */
struct workspace;
/*
 *   RESOURCE_EXHAUSTED  no memory for max_row rows and max_logit logit rows
 */
MUST_CHECK enum status workspace_create(const struct model *model,
                                        uint32_t max_row, uint32_t max_span,
                                        uint32_t max_logit,
                                        struct workspace **out);
void workspace_destroy(struct workspace *workspace);
size_t workspace_bytes(const struct workspace *workspace);
/* How many heads' states its passes have scaled down (model/state_cap.h). */
uint64_t workspace_n_capped(const struct workspace *workspace);

/* One step: rows of any number of sessions. */
struct batch {
    const uint32_t *token; /* [n_row], each below n_vocab */
    uint32_t n_row;
    const struct span *span; /* in order, covering all rows */
    uint32_t n_span;
    const uint32_t *logit_row; /* rows whose logits are wanted, ascending */
    uint32_t n_logit;
    uint32_t n_layer; /* rows go no further than the mixer of the last of so
                         many layers, and have no logits; 0: through all */
    bool is_sampled;  /* pass_tops() will do, where there are any */
};

/*
 * Advance the spans' memories by their rows. Blocks up to the last row's
 * position must exist. Returns the logits, [n_logit, n_vocab], in host memory,
 * owned by the workspace and valid until its next step. Limits are asserted.
 * Cannot fail, but for a device: NULL and a cause when that is lost, and with
 * it the memories.
 */
const float *model_forward(const struct model *model, struct pool *pool,
                           struct workspace *workspace,
                           const struct batch *batch);
#endif
