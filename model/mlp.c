#include "model/mlp.h"

#include "model/moe.h"

#include <stdio.h>
#include <string.h>

static enum status load_one(const struct weight_source *weights,
                            const char *prefix, const char *name,
                            uint32_t n_out, uint32_t n_in, struct linear *out)
{
    const struct weight_part part = weight_whole(name, n_out);

    return weights_linear(weights, prefix, &part, 1, n_in, out);
}

enum status mlp_load(const struct weight_source *weights, const char *prefix,
                     uint32_t hidden, uint32_t n_ff, struct mlp *out)
{
    struct mlp it = {.moe = NULL};
    enum status st =
        load_one(weights, prefix, "gate_proj.weight", n_ff, hidden, &it.gate);

    if (!st)
        st = load_one(weights, prefix, "up_proj.weight", n_ff, hidden, &it.up);
    if (!st)
        st = load_one(weights, prefix, "down_proj.weight", hidden, n_ff,
                      &it.down);
    if (!st && it.gate.type != it.up.type)
        st = status_fail(STATUS_INVALID_ARGUMENT,
                         "%sgate_proj.weight and up_proj.weight differ in "
                         "type, expected one",
                         prefix);
    if (st)
        mlp_release(&it);
    else
        *out = it;
    return st;
}

enum status mlp_init(const struct config *config,
                     const struct weight_source *weights, const char *prefix,
                     uint32_t layer, struct mlp *out)
{
    char name[WEIGHTS_NAME_SIZE];

    memset(out, 0, sizeof(*out));
    if (config->has_experts[layer])
        return moe_create(config, weights, prefix, &out->moe);
    (void)snprintf(name, sizeof(name), "%smlp.", prefix);
    return mlp_load(weights, name, config->hidden, config->n_ff, out);
}

void mlp_release(struct mlp *mlp)
{
    linear_release(&mlp->gate);
    linear_release(&mlp->up);
    linear_release(&mlp->down);
    moe_destroy(mlp->moe);
    memset(mlp, 0, sizeof(*mlp));
}

size_t mlp_bytes(const struct mlp *mlp)
{
    if (mlp->moe)
        return moe_bytes(mlp->moe);
    return linear_bytes(&mlp->gate) + linear_bytes(&mlp->up) +
           linear_bytes(&mlp->down);
}

enum linear_type mlp_type(const struct mlp *mlp)
{
    return mlp->moe ? moe_type(mlp->moe) : mlp->gate.type;
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
    return config->n_expert ? moe_row_floats(config) : 0;
}

bool mlp_wants_floats(const struct mlp *mlp)
{
    return mlp->moe || !linear_rounds(&mlp->gate);
}

void mlp_rows(const struct mlp *mlp, const struct mlp_args *args)
{
    if (mlp->moe) {
        moe_rows(mlp->moe, args);
        return;
    }
    args->backend->ffn_add(
        args->pool, &(struct ffn_args){.y = args->residual,
                                       .y_stride = mlp->down.n_out,
                                       .x = args->x,
                                       .x_stride = mlp->gate.n_in,
                                       .n_row = args->n_row,
                                       .gate = &mlp->gate,
                                       .up = &mlp->up,
                                       .down = &mlp->down,
                                       .x_rounded = linear_rounds(&mlp->gate)
                                                        ? args->x_rounded
                                                        : NULL});
}
