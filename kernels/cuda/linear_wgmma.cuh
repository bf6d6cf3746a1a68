#ifndef KERNELS_CUDA_LINEAR_WGMMA_CUH
#define KERNELS_CUDA_LINEAR_WGMMA_CUH
/*
 * One step of k = 16 of a product by a warpgroup: acc += a b^T for 64 rows of a
 * and N rows of b, both bf16 in shared memory, in tiles of 64 columns (128
 * bytes a row, swizzled by the copy engine's 128-byte pattern; PTX ISA,
 * wgmma.mma_async and its matrix descriptors). Every N gives the same bits.
 *
 * acc: thread t of the warpgroup, warp w = t / 32, lane l = t % 32, holds for
 * each j < N / 8 the columns 8 j + l % 4 * 2 and the next one, of row
 * 16 w + l / 4 in acc[4 j] and acc[4 j + 1], of the row 8 below in the next
 * two.
 */
#include <stdint.h>

#define TILE_K 64u          /* columns of a tile */
#define TILE_ROW_BYTES 128u /* of one row */

/* A tile at a multiple of 1024 bytes; 8 rows lie 1024 bytes apart. */
static __device__ __forceinline__ uint64_t tile_descriptor(uint32_t address)
{
    return (uint64_t)1 << 62 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 16 |
           (address & 0x3ffff) >> 4;
}

/* From one step of 16 columns to the next. */
#define TILE_STEP (16u * 2 >> 4)

static __device__ __forceinline__ void product_begin(void)
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

static __device__ __forceinline__ void product_commit(void)
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Until at most N_LEFT of the committed groups are still running. */
template <int N_LEFT> static __device__ __forceinline__ void product_wait(void)
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N_LEFT) : "memory");
}

/* The compiler must not move accumulators while a product may write them. */
template <int N> static __device__ __forceinline__ void product_pin(float *acc)
{
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+f"(acc[i])::"memory");
}

template <int N>
static __device__ void product_step(float *acc, uint64_t a, uint64_t b,
                                    uint32_t is_sum);

/*
 * The same with a's 16 columns from registers: of rows r and r + 8, r as for
 * acc above, two words, columns l % 4 * 2 and the next one, then those 8 to the
 * right (both rows' first words come first).
 */
template <int N>
static __device__ void product_step_left(float *acc, const uint32_t a[4],
                                         uint64_t b, uint32_t is_sum);

/* Lists of operands. */
/* clang-format off */
#define R0 "%0, %1, %2, %3"
#define R4 "%4, %5, %6, %7"
#define R8 "%8, %9, %10, %11"
#define R12 "%12, %13, %14, %15"
#define R16 "%16, %17, %18, %19"
#define R20 "%20, %21, %22, %23"
#define R24 "%24, %25, %26, %27"
#define R28 "%28, %29, %30, %31"
#define R32 "%32, %33, %34, %35"
#define R36 "%36, %37, %38, %39"
#define R40 "%40, %41, %42, %43"
#define R44 "%44, %45, %46, %47"
#define R48 "%48, %49, %50, %51"
#define R52 "%52, %53, %54, %55"
#define R56 "%56, %57, %58, %59"
#define R60 "%60, %61, %62, %63"
#define R64 "%64, %65, %66, %67"
#define R68 "%68, %69, %70, %71"
#define R72 "%72, %73, %74, %75"
#define R76 "%76, %77, %78, %79"
#define R80 "%80, %81, %82, %83"
#define R84 "%84, %85, %86, %87"
#define R88 "%88, %89, %90, %91"
#define R92 "%92, %93, %94, %95"
#define R96 "%96, %97, %98, %99"
#define R100 "%100, %101, %102, %103"
#define R104 "%104, %105, %106, %107"
#define R108 "%108, %109, %110, %111"
#define R112 "%112, %113, %114, %115"
#define R116 "%116, %117, %118, %119"
#define R120 "%120, %121, %122, %123"
#define R124 "%124, %125, %126, %127"
#define A4(i) "+f"(acc[i]), "+f"(acc[(i) + 1]), "+f"(acc[(i) + 2]), "+f"(acc[(i) + 3])
#define A16(i) A4(i), A4((i) + 4), A4((i) + 8), A4((i) + 12)
#define L0 R0 ", " R4 ", " R8 ", " R12
#define L16 R16 ", " R20 ", " R24 ", " R28
#define L32 R32 ", " R36 ", " R40 ", " R44
#define L48 R48 ", " R52 ", " R56 ", " R60
#define L64 R64 ", " R68 ", " R72 ", " R76
#define L80 R80 ", " R84 ", " R88 ", " R92
#define L96 R96 ", " R100 ", " R104 ", " R108
#define L112 R112 ", " R116 ", " R120 ", " R124

/* N, its accumulators as text and as operands, the numbers behind them */
#define PRODUCT_STEP(N, LIST, A, B, P, ...)                                    \
    template <>                                                                \
    __device__ __forceinline__ void product_step<N>(                           \
        float *acc, uint64_t a, uint64_t b, uint32_t is_sum)                   \
    {                                                                          \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #P ", 0;\n"           \
                     "wgmma.mma_async.sync.aligned.m64n" #N                    \
                     "k16.f32.bf16.bf16 {" LIST "}, %" #A ", %" #B             \
                     ", p, 1, 1, 0, 0;\n}"                                     \
                     : __VA_ARGS__                                             \
                     : "l"(a), "l"(b), "r"(is_sum));                           \
    }
PRODUCT_STEP(8, R0, 4, 5, 6, A4(0))
PRODUCT_STEP(16, R0 ", " R4, 8, 9, 10, A4(0), A4(4))
PRODUCT_STEP(32, L0, 16, 17, 18, A16(0))
PRODUCT_STEP(64, L0 ", " L16, 32, 33, 34, A16(0), A16(16))
PRODUCT_STEP(96, L0 ", " L16 ", " L32, 48, 49, 50, A16(0), A16(16), A16(32))
PRODUCT_STEP(128, L0 ", " L16 ", " L32 ", " L48, 64, 65, 66, A16(0), A16(16), A16(32), A16(48))
PRODUCT_STEP(192, L0 ", " L16 ", " L32 ", " L48 ", " L64 ", " L80, 96, 97, 98, A16(0), A16(16), A16(32), A16(48), A16(64), A16(80))
PRODUCT_STEP(256, L0 ", " L16 ", " L32 ", " L48 ", " L64 ", " L80 ", " L96 ", " L112, 128, 129, 130, A16(0), A16(16), A16(32), A16(48), A16(64), A16(80), A16(96), A16(112))

template <>
__device__ __forceinline__ void
product_step_left<128>(float *acc, const uint32_t a[4], uint64_t b, uint32_t is_sum)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
                 L0 ", " L16 ", " L32 ", " L48 "}, {%64, %65, %66, %67}, %68"
                 ", p, 1, 1, 0;\n}"
                 : A16(0), A16(16), A16(32), A16(48)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(is_sum));
}

#undef R0
#undef R4
#undef R8
#undef R12
#undef R16
#undef R20
#undef R24
#undef R28
#undef R32
#undef R36
#undef R40
#undef R44
#undef R48
#undef R52
#undef R56
#undef R60
#undef R64
#undef R68
#undef R72
#undef R76
#undef R80
#undef R84
#undef R88
#undef R92
#undef R96
#undef R100
#undef R104
#undef R108
#undef R112
#undef R116
#undef R120
#undef R124
#undef L0
#undef L16
#undef L32
#undef L48
#undef L64
#undef L80
#undef L96
#undef L112
#undef A4
#undef A16
#undef PRODUCT_STEP
/* clang-format on */
#endif
