#ifndef KERNELS_CUDA_MMA_CUH
#define KERNELS_CUDA_MMA_CUH
/*
 * Products by one warp: mma.sync.m16n8k16 of bf16 with float sums, and what
 * loads its operands (PTX ISA, "Matrix fragments for mma.m16n8k16"). With
 * g = lane / 4, t = lane % 4:
 *     A  a0 (g, 2t..) a1 (g+8, 2t..) a2 (g, 2t+8..) a3 (g+8, 2t+8..)
 *     B  b0 (2t.., g) b1 (2t+8.., g)          as (inner index, column)
 *     C  c0 c1 (g, 2t..) c2 c3 (g+8, 2t..)
 * where 2t.. stands for 2t and 2t+1, two bf16 in one word. All products with
 * k = 16, these and those of wgmma.cuh, give the same bits, whatever their M
 * and N, sources and orientation (measured, H100: tests/gpu/check_mma.cu).
 */
#include <stdint.h>

/* c += a b */
static __device__ __forceinline__ void mma(float c[4], const uint32_t a[4],
                                           uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Four 8 x 8 matrices in shared memory; lanes 8m .. 8m+7 point at the rows of
 * matrix m. */
static __device__ __forceinline__ void load_matrices(uint32_t out[4],
                                                     uint32_t row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 "
                 "{%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(row)
                 : "memory");
}

static __device__ __forceinline__ void load_transposed(uint32_t out[4],
                                                       uint32_t row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 "
                 "{%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(row)
                 : "memory");
}
#endif
