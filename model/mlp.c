#include "model/mlp.h"

#include "model/mixer.h"
#include "model/moe.h"

#include <string.h>

enum status mlp_init(const struct config *config,
                     const struct weight_source *weights, const char *prefix,
                     uint32_t layer, struct mlp *out)
{
    const struct weight_part gate_up[2] = {
        weight_whole("mlp.gate_proj.weight", config->n_ff),
        weight_whole("mlp.up_proj.weight", config->n_ff),
    };
    const struct weight_part down =
        weight_whole("mlp.down_proj.weight", config->hidden);
    enum status st;

    memset(out, 0, sizeof(*out));
    if (config->has_experts[layer])
        return moe_create(config, weights, prefix, &out->moe);
    st = weights_linear(weights, prefix, gate_up, 2, config->hidden,
                        &out->gate_up);
    if (!st)
        st =
            weights_linear(weights, prefix, &down, 1, config->n_ff, &out->down);
    if (st)
        mlp_release(out);
    return st;
}

void mlp_release(struct mlp *mlp)
{
    linear_release(&mlp->gate_up);
    linear_release(&mlp->down);
    moe_destroy(mlp->moe);
    memset(mlp, 0, sizeof(*mlp));
}

size_t mlp_bytes(const struct mlp *mlp)
{
    if (mlp->moe)
        return moe_bytes(mlp->moe);
    return linear_bytes(&mlp->gate_up) + linear_bytes(&mlp->down);
}

enum linear_type mlp_type(const struct mlp *mlp)
{
    return mlp->moe ? moe_type(mlp->moe) : mlp->gate_up.type;
}

double mlp_step_bytes(const struct mlp *mlp, double n_row)
{
    return mlp->moe ? moe_step_bytes(mlp->moe, n_row) : (double)mlp_bytes(mlp);
}

double mlp_row_flops(const struct config *config, uint32_t layer)
{
    if (config->has_experts[layer])
        return moe_row_flops(config);
    return 6.0 * (double)config->hidden * (double)config->n_ff;
}

size_t mlp_row_floats(const struct config *config)
{
    const size_t dense =
        row_stride(2 * (size_t)config->n_ff) + row_stride(config->n_ff);
    const size_t experts = config->n_expert ? moe_row_floats(config) : 0;

    return dense > experts ? dense : experts;
}

void mlp_rows(const struct mlp *mlp, const struct mlp_args *args)
{
    const struct backend *backend = args->backend;
    const uint32_t n_ff = mlp->down.n_in, hidden = mlp->down.n_out;
    const size_t wide = row_stride(2 * (size_t)n_ff), narrow = row_stride(n_ff);
    float *gate_up = args->work, *act = args->work + args->n_row * wide;

    if (mlp->moe) {
        moe_rows(mlp->moe, args);
        return;
    }
    backend->linear(args->pool, &(struct linear_args){.y = gate_up,
                                                      .y_stride = wide,
                                                      .x = args->x,
                                                      .x_stride = hidden,
                                                      .n_row = args->n_row,
                                                      .w = &mlp->gate_up});
    backend->swiglu(args->pool, &(struct swiglu_args){.y = act,
                                                      .y_stride = narrow,
                                                      .x = gate_up,
                                                      .x_stride = wide,
                                                      .n_row = args->n_row,
                                                      .n_ff = n_ff});
    backend->linear_add(args->pool, &(struct linear_args){.y = args->residual,
                                                          .y_stride = hidden,
                                                          .x = act,
                                                          .x_stride = narrow,
                                                          .n_row = args->n_row,
                                                          .w = &mlp->down});
}
