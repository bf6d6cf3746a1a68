#include "kernels/ref/ref.h"
#include "kernels/scalar.h"

void ref_swiglu(struct pool *pool, const struct swiglu_args *a)
{
    (void)pool;
    for (size_t r = 0; r < a->n_row; r++) {
        const float *gate = a->x + r * a->x_stride, *up = gate + a->n_ff;
        for (size_t i = 0; i < a->n_ff; i++)
            a->y[r * a->y_stride + i] = scalar_silu(gate[i]) * up[i];
    }
}

void ref_delta_gate(struct pool *pool, const struct delta_gate_args *a)
{
    (void)pool;
    for (size_t r = 0; r < a->n_row; r++) {
        for (size_t h = 0; h < a->n_v_head; h++) {
            size_t at = r * a->n_v_head + h;
            float step = a->a[r * a->a_stride + h] + a->dt_bias[h];
            a->beta[at] = scalar_sigmoid(a->b[r * a->b_stride + h]);
            a->log_decay[at] = a->decay_scale[h] * scalar_softplus(step);
        }
    }
}
