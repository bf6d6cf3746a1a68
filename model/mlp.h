#ifndef MODEL_MLP_H
#define MODEL_MLP_H
/*
 * The feed-forward half of a layer: residual += down(silu(gate(h)) * up(h)).
 * Shazeer 2020, arXiv:2002.05202. Or experts in its place, model/moe.h.
 */
#include "base/status.h"
#include "kernels/backend.h"
#include "model/config.h"
#include "model/weights.h"

struct moe;

struct mlp {
    struct linear gate, up; /* [n_ff, hidden] */
    struct linear down;     /* [hidden, n_ff] */
    struct moe *moe;        /* owned; then those above are empty */
};

/*
 * Pack the weights of a layer, whose names begin with prefix
 * ("model.layers.3.").
 *   as weights_linear() and moe_create()
 */
MUST_CHECK enum status mlp_init(const struct config *config,
                                const struct weight_source *weights,
                                const char *prefix, uint32_t layer,
                                struct mlp *out);
/*
 * A dense one, from PREFIXgate_proj.weight and so on.
 *   INVALID_ARGUMENT  gate and up of different types; as weights_linear()
 */
MUST_CHECK enum status mlp_load(const struct weight_source *weights,
                                const char *prefix, uint32_t hidden,
                                uint32_t n_ff, struct mlp *out);
void mlp_release(struct mlp *mlp);
size_t mlp_bytes(const struct mlp *mlp);
enum linear_type mlp_type(const struct mlp *mlp); /* of the weights */

/* Bytes that n_row rows read, of experts those expected. */
double mlp_step_bytes(const struct mlp *mlp, double n_row);

/* Of one row in this layer, 2 x the weights that it meets. */
double mlp_row_flops(const struct config *config, uint32_t layer);

/* Floats of workspace per row, enough for all layers. */
size_t mlp_row_floats(const struct config *config);

/* Does it read x as floats where there are rounded rows, too? */
bool mlp_wants_floats(const struct mlp *mlp);

/*
 * residual [n_row, hidden] += mlp(x [n_row, hidden]); work is
 * [n_row, mlp_row_floats()], 64-byte aligned.
 */
struct mlp_args {
    const struct backend *backend;
    struct pool *pool;
    const float *x;            /* NULL where mlp_wants_floats() says so */
    const uint16_t *x_rounded; /* the same for products that round, or NULL */
    float *residual;
    float *work;
    uint32_t n_row;
};
void mlp_rows(const struct mlp *mlp, const struct mlp_args *args);
#endif
