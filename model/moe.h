#ifndef MODEL_MOE_H
#define MODEL_MOE_H
/*
 * A feed-forward half made of experts: a router chooses n_chosen of n_expert
 * for each row, their outputs are added by weight, and an expert that all rows
 * share may be added under a gate of its own. kernels/backend.h states the
 * order. The router's product is fp32 whatever the other weights are: a row
 * that another arithmetic sends to another expert is another model.
 *
 * Checkpoints hold experts one by one (mlp.experts.3.gate_proj.weight) or all
 * in one tensor (mlp.experts.gate_up_proj); both are read.
 */
#include "model/mlp.h"

struct moe;

/*
 * Pack the weights of the layer that prefix names. moe_destroy() it.
 *   as weights_linear()
 *   INVALID_ARGUMENT  experts of different types
 */
MUST_CHECK enum status moe_create(const struct config *config,
                                  const struct weight_source *weights,
                                  const char *prefix, struct moe **out);
void moe_destroy(struct moe *moe); /* accepts NULL */
size_t moe_bytes(const struct moe *moe);

/* Bytes of those that n_row rows read: so many experts are expected to be
 * chosen by any of them, if they choose evenly. */
double moe_step_bytes(const struct moe *moe, double n_row);

size_t moe_row_floats(const struct config *config);

/* Of one row, which meets n_chosen experts. */
double moe_row_flops(const struct config *config);

/* Weights that a row does not meet. */
uint64_t moe_n_idle(const struct config *config);

void moe_rows(const struct moe *moe, const struct mlp_args *args);

/* Type of the experts' weights. */
enum linear_type moe_type(const struct moe *moe);
#endif
