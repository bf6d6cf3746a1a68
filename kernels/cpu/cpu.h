#ifndef KERNELS_CPU_CPU_H
#define KERNELS_CPU_CPU_H
/*
 * The vector backends. avx2 and avx512 are compiled from the same *.lanes.c
 * files over the 16-float vector of lanes.h: one 512-bit register or two of 256
 * bits. avx512-vnni is avx512 with products of W8A8 by dot products of bytes,
 * avx512-bf16 is that with products of PAIR by its own instruction, and amx is
 * that with products of TILE and of W8A8 by tiles.
 */
#include "kernels/backend.h"

/* Does this machine have the instructions? Compiled without them. */
bool cpu_has_avx2(void);
bool cpu_has_avx512(void);
bool cpu_has_avx512_vnni(void);
bool cpu_has_avx512_bf16(void);
/* Asks Linux for the tiles, which the process then keeps. */
bool cpu_has_amx(void);

/* Their operators with products, of which delta is avx512's in FP32; all others
 * are those of avx512. */
void delta_avx512(struct pool *pool, const struct delta_args *args);
void delta_avx512_bf16(struct pool *pool, const struct delta_args *args);
void delta_amx(struct pool *pool, const struct delta_args *args);
void linear_avx512_vnni(struct pool *pool, const struct linear_args *args);
void linear_add_avx512_vnni(struct pool *pool, const struct linear_args *args);
void expert_avx512_vnni(struct pool *pool, const struct expert_args *args);
void ffn_avx512_vnni(struct pool *pool, const struct ffn_args *args);
void ffn_add_avx512_vnni(struct pool *pool, const struct ffn_args *args);
void linear_avx512_bf16(struct pool *pool, const struct linear_args *args);
void linear_add_avx512_bf16(struct pool *pool, const struct linear_args *args);
void expert_avx512_bf16(struct pool *pool, const struct expert_args *args);
void ffn_avx512_bf16(struct pool *pool, const struct ffn_args *args);
void ffn_add_avx512_bf16(struct pool *pool, const struct ffn_args *args);
void attend_avx512_bf16(struct pool *pool, const struct attend_args *args);
void linear_amx(struct pool *pool, const struct linear_args *args);
void linear_add_amx(struct pool *pool, const struct linear_args *args);
void expert_amx(struct pool *pool, const struct expert_args *args);
void ffn_amx(struct pool *pool, const struct ffn_args *args);
void ffn_add_amx(struct pool *pool, const struct ffn_args *args);
void attend_amx(struct pool *pool, const struct attend_args *args);

extern const struct backend backend_avx2, backend_avx512, backend_avx512_vnni,
    backend_avx512_bf16, backend_amx;
#endif
