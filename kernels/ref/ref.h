#ifndef KERNELS_REF_REF_H
#define KERNELS_REF_REF_H
/*
 * The definition of every operator of kernels/backend.h: plain loops over
 * fmaf and kernels/scalar.h, in the order that every other backend must
 * reproduce to the last bit. Everything runs on the calling thread; the pool
 * is ignored.
 */
#include "kernels/backend.h"

/* Where fmaf is most of the work, also compiled with the instruction in place
 * of the library's function: half the time, the same bits. TSan cannot start
 * with a function that is chosen when the program is loaded. */
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__)
#define REF_FUSED __attribute__((target_clones("fma", "default")))
#else
#define REF_FUSED
#endif

void ref_linear(struct pool *pool, const struct linear_args *args);
void ref_linear_add(struct pool *pool, const struct linear_args *args);
void ref_ffn(struct pool *pool, const struct ffn_args *args);
void ref_ffn_add(struct pool *pool, const struct ffn_args *args);
void ref_rms_norm(struct pool *pool, const struct norm_args *args);
void ref_gated_norm(struct pool *pool, const struct gated_norm_args *args);
void ref_swiglu(struct pool *pool, const struct swiglu_args *args);
void ref_rope(struct pool *pool, const struct rope_args *args);
void ref_attend(struct pool *pool, const struct attend_args *args);
void ref_kv_score(struct pool *pool, const struct kv_score_args *args);
void ref_kv_mass(struct pool *pool, const struct kv_mass_args *args);
void ref_surprise(struct pool *pool, const struct surprise_args *args);
void ref_kv_match(struct pool *pool, const struct kv_match_args *args);
void ref_conv(struct pool *pool, const struct conv_args *args);
void ref_delta_gate(struct pool *pool, const struct delta_gate_args *args);
void ref_delta(struct pool *pool, const struct delta_args *args);
void ref_route(struct pool *pool, const struct route_args *args);
void ref_expert(struct pool *pool, const struct expert_args *args);
void ref_combine(struct pool *pool, const struct combine_args *args);
void ref_tops(struct pool *pool, const struct tops_args *args);
uint32_t ref_draw(const struct draw_args *args);
void ref_peaks(const struct peaks_args *args);

/* The right side of LINEAR_PANEL products at once. */
struct ref_steps {
    const float *w;   /* of step k and output o at k * stride + o */
    size_t stride, n; /* in PAIR and TILE n is a multiple of LINEAR_STEP */
};

/*
 * The products of n steps summed onto acc, [LINEAR_PANEL], each output in the
 * order of the arithmetic (kernels/linear.h).
 */
void ref_products(const float *x, const struct ref_steps *steps,
                  enum arithmetic order, float *acc);

extern const struct backend backend_ref;
#endif
