#include "model/mlp.h"

#include "model/mixer.h"

#include <string.h>

enum status mlp_init(const struct config *config,
                     const struct weight_source *weights, const char *prefix,
                     struct mlp *out)
{
    const struct weight_part gate_up[2] = {
        weight_whole("mlp.gate_proj.weight", config->n_ff),
        weight_whole("mlp.up_proj.weight", config->n_ff),
    };
    const struct weight_part down =
        weight_whole("mlp.down_proj.weight", config->hidden);
    enum status st;

    memset(out, 0, sizeof(*out));
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
    memset(mlp, 0, sizeof(*mlp));
}

size_t mlp_bytes(const struct mlp *mlp)
{
    return linear_bytes(&mlp->gate_up) + linear_bytes(&mlp->down);
}

size_t mlp_row_floats(const struct config *config)
{
    return row_stride(2 * (size_t)config->n_ff) + row_stride(config->n_ff);
}

void mlp_rows(const struct mlp *mlp, const struct mlp_args *args)
{
    const struct backend *backend = args->backend;
    const uint32_t n_ff = mlp->down.n_in, hidden = mlp->down.n_out;
    const size_t wide = row_stride(2 * (size_t)n_ff), narrow = row_stride(n_ff);
    float *gate_up = args->work, *act = args->work + args->n_row * wide;

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
