#ifndef KERNELS_CUDA_WGMMA_CUH
#define KERNELS_CUDA_WGMMA_CUH
/*
 * Products by a warpgroup (PTX ISA, wgmma.mma_async and its matrix
 * descriptors): one step of k = 16 for 64 rows of a and N columns of b, bf16
 * with float sums. Every N gives the same bits, and those of mma.cuh.
 *
 * Operands in shared memory lie in tiles of 64 columns, 128 bytes a row, of
 * which 16-byte unit u of row r lies at place u ^ r % 8: the 128-byte swizzle
 * of tensor maps. Tiles begin at multiples of 1024 bytes.
 *
 * acc: thread t of the warpgroup, warp w = t / 32, lane l = t % 32, holds for
 * each j < N / 8 the columns 8 j + l % 4 * 2 and the next one, of row
 * 16 w + l / 4 in acc[4 j] and acc[4 j + 1], of the row 8 below in the next
 * two. An a in registers: of these two rows two words, columns l % 4 * 2 and
 * the next one, then those 8 to the right (both rows' first words come first).
 *
 * Products run beside the threads: wgmma_fence() before the first one, then
 * wgmma_commit() makes a group of them, which wgmma_wait() waits for.
 */
#include <stdint.h>

/* Of tiles [row][k] or [column][k], 8 rows of which lie 1024 bytes apart from
 * the next 8. */
static __device__ __forceinline__ uint64_t wgmma_descriptor(uint32_t address)
{
    return (uint64_t)1 << 62 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 16 |
           (address & 0x3ffff) >> 4;
}

/* Of tiles [k][column] likewise; `lead` bytes from 64 columns to the next. */
static __device__ __forceinline__ uint64_t
wgmma_descriptor_across(uint32_t address, uint32_t lead)
{
    return (uint64_t)1 << 62 | (uint64_t)(1024 >> 4) << 32 |
           (uint64_t)(lead >> 4) << 16 | (address & 0x3ffff) >> 4;
}

/* From one step of 16 columns of a row to the next, in a descriptor. */
#define WGMMA_STEP (16u * 2 >> 4)

static __device__ __forceinline__ void wgmma_fence(void)
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

static __device__ __forceinline__ void wgmma_commit(void)
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Until at most N_LEFT of the committed groups are still running. */
template <int N_LEFT> static __device__ __forceinline__ void wgmma_wait(void)
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N_LEFT) : "memory");
}

/* The compiler must not move accumulators while a product may write them, */
template <int N> static __device__ __forceinline__ void wgmma_pin(float *acc)
{
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+f"(acc[i])::"memory");
}

/* nor words of an a in registers while one may read them. */
template <int N>
static __device__ __forceinline__ void wgmma_pin_words(uint32_t *a)
{
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+r"(a[i])::"memory");
}

/* Registers of a thread, for the whole warpgroup: those that copy give some up,
 * those that multiply take more. */
template <int N> static __device__ __forceinline__ void registers_give(void)
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

template <int N> static __device__ __forceinline__ void registers_take(void)
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

/* acc = a b^T (is_sum: acc +=), b [column][k]; both in shared memory. */
template <int N>
static __device__ void wgmma_ss(float *acc, uint64_t a, uint64_t b,
                                uint32_t is_sum);
/* The same with a in registers. */
template <int N>
static __device__ void wgmma_rs(float *acc, const uint32_t a[4], uint64_t b,
                                uint32_t is_sum);
/* acc += a b, b [k][column]; a in registers. */
template <int N>
static __device__ void wgmma_rs_add(float *acc, const uint32_t a[4],
                                    uint64_t b);

/* clang-format off: lists of operands, and the numbers of those behind them */
#define R0 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define R16 "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define R32 "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define R48 "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define R64 "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"
#define R80 "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define R96                                                                    \
    "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%" \
    "111"
#define R112                                                                   \
    "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%"  \
    "126,%127"
#define A4(i)                                                                  \
    "+f"(acc[i]), "+f"(acc[(i) + 1]), "+f"(acc[(i) + 2]), "+f"(acc[(i) + 3])
#define A16(i) A4(i), A4((i) + 4), A4((i) + 8), A4((i) + 12)
#define A32(i) A16(i), A16((i) + 16)
#define A64(i) A32(i), A32((i) + 32)

#define WGMMA_SS(N, LIST, A, B, IS_SUM, ...)                                   \
    template <>                                                                \
    __device__ __forceinline__ void wgmma_ss<N>(float *acc, uint64_t a,        \
                                                uint64_t b, uint32_t is_sum)   \
    {                                                                          \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #IS_SUM ", 0;\n"     \
                     "wgmma.mma_async.sync.aligned.m64n" #N                    \
                     "k16.f32.bf16.bf16 {" LIST "}, %" #A ", %" #B             \
                     ", p, 1, 1, 0, 0;\n}"                                     \
                     : __VA_ARGS__                                             \
                     : "l"(a), "l"(b), "r"(is_sum));                           \
    }
WGMMA_SS(8, "%0,%1,%2,%3", 4, 5, 6, A4(0))
WGMMA_SS(16, "%0,%1,%2,%3,%4,%5,%6,%7", 8, 9, 10, A4(0), A4(4))
WGMMA_SS(32, R0, 16, 17, 18, A16(0))
WGMMA_SS(64, R0 "," R16, 32, 33, 34, A32(0))
WGMMA_SS(96, R0 "," R16 "," R32, 48, 49, 50, A32(0), A16(32))
WGMMA_SS(128, R0 "," R16 "," R32 "," R48, 64, 65, 66, A64(0))
WGMMA_SS(192, R0 "," R16 "," R32 "," R48 "," R64 "," R80, 96, 97, 98, A64(0),
         A32(64))
WGMMA_SS(256, R0 "," R16 "," R32 "," R48 "," R64 "," R80 "," R96 "," R112, 128,
         129, 130, A64(0), A64(64))

template <>
__device__ __forceinline__ void wgmma_rs<128>(float *acc, const uint32_t a[4],
                                              uint64_t b, uint32_t is_sum)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" R0
                 "," R16 "," R32 "," R48 "}, {%64, %65, %66, %67}, %68"
                 ", p, 1, 1, 0;\n}"
                 : A64(0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b),
                   "r"(is_sum));
}

#define WGMMA_RS_ADD(N, LIST, A, B, ...)                                       \
    template <>                                                                \
    __device__ __forceinline__ void wgmma_rs_add<N>(                           \
        float *acc, const uint32_t a[4], uint64_t b)                           \
    {                                                                          \
        asm volatile("{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"                \
                     "wgmma.mma_async.sync.aligned.m64n" #N                    \
                     "k16.f32.bf16.bf16 {" LIST "}, {" A "}, %" #B             \
                     ", p, 1, 1, 1;\n}"                                        \
                     : __VA_ARGS__                                             \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));    \
    }
WGMMA_RS_ADD(64, R0 "," R16, "%32,%33,%34,%35", 36, A32(0))
WGMMA_RS_ADD(128, R0 "," R16 "," R32 "," R48, "%64,%65,%66,%67", 68, A64(0))
WGMMA_RS_ADD(256, R0 "," R16 "," R32 "," R48 "," R64 "," R80 "," R96 "," R112,
             "%128,%129,%130,%131", 132, A64(0), A64(64))

#undef R0
#undef R16
#undef R32
#undef R48
#undef R64
#undef R80
#undef R96
#undef R112
#undef A4
#undef A16
#undef A32
#undef A64
#undef WGMMA_SS
#undef WGMMA_RS_ADD
/* clang-format on */
#endif
