/*
 * The ground that the exact arithmetic of the CUDA backend stands on: a sum of
 * products that is carried out by tensor cores, sixteen inner steps at a time
 * in ascending order, has the same bits whichever instruction does it. mma.sync
 * (16 x 8 outputs, what decode uses), the same with its operands swapped, and
 * wgmma with 64 x 8 to 64 x 256 outputs, its left operand in shared memory or
 * in registers (what prefill uses), are compared bit by bit over numbers of
 * several mixes of exponents. NVIDIA documents no order of additions inside one
 * instruction, so this must be run on every kind of GPU that is to be exact.
 *
 *     nvcc -gencode=arch=compute_90a,code=sm_90a -o check_mma check_mma.cu
 */
#include <cuda_bf16.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define N_M 64
#define N_N 256
#define N_K 1024
#define STEP 16

static void check(cudaError_t error, const char *what)
{
    if (error != cudaSuccess) {
        fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
        exit(2);
    }
}

__device__ static uint32_t pair_at(const __nv_bfloat16 *p, int row, int k)
{
    return *(const uint32_t *)&p[(size_t)row * N_K + k];
}

/* The four registers of a 16 x 16 left operand: rows row and row + 8. */
__device__ static void load_left(uint32_t r[4], const __nv_bfloat16 *p, int row,
                                 int k)
{
    r[0] = pair_at(p, row, k);
    r[1] = pair_at(p, row + 8, k);
    r[2] = pair_at(p, row, k + 8);
    r[3] = pair_at(p, row + 8, k + 8);
}

/* One warp for 16 x 8 outputs; swapped: the columns are the left operand. */
__global__ static void by_mma(const __nv_bfloat16 *a, const __nv_bfloat16 *b,
                              float *out, bool is_swapped)
{
    const int lane = (int)threadIdx.x, group = lane / 4, pair = 2 * (lane % 4);
    const __nv_bfloat16 *left = is_swapped ? b : a, *right = is_swapped ? a : b;
    const int first_left = (int)blockIdx.x * 16,
              first_right = (int)blockIdx.y * 8;
    float d[4] = {0, 0, 0, 0};

    for (int k = 0; k < N_K; k += STEP) {
        uint32_t l[4];
        load_left(l, left, first_left + group, k + pair);
        uint32_t r0 = pair_at(right, first_right + group, k + pair);
        uint32_t r1 = pair_at(right, first_right + group, k + pair + 8);
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                     "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(l[0]), "r"(l[1]), "r"(l[2]), "r"(l[3]), "r"(r0),
                       "r"(r1));
    }
    for (int e = 0; e < 4; e++) {
        int i = first_left + group + 8 * (e / 2);
        int j = first_right + pair + e % 2;
        out[is_swapped ? j * N_N + i : i * N_N + j] = d[e];
    }
}

/* 8 x 8 matrices of 128 bytes, the two of a step side by side: no swizzle. */
__device__ static uint64_t descriptor(const void *shared)
{
    uint32_t at = (uint32_t)__cvta_generic_to_shared(shared);
    return (uint64_t)(at & 0x3ffff) >> 4 | (uint64_t)(128 >> 4) << 16 |
           (uint64_t)(256 >> 4) << 32;
}

__device__ static void fill(__nv_bfloat16 *shared, const __nv_bfloat16 *p,
                            int n_row, int k)
{
    for (int i = (int)threadIdx.x; i < n_row * STEP; i += (int)blockDim.x) {
        int row = i / STEP, step = i % STEP;
        shared[(row / 8 * 2 + step / 8) * 64 + row % 8 * 8 + step % 8] =
            p[(size_t)row * N_K + k + step];
    }
}

#define OUT_4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define OUT_32(d, i)                                                           \
    OUT_4(d, i), OUT_4(d, i + 4), OUT_4(d, i + 8), OUT_4(d, i + 12),           \
        OUT_4(d, i + 16), OUT_4(d, i + 20), OUT_4(d, i + 24), OUT_4(d, i + 28)
#define OUT_8X OUT_4(d, 0)
#define OUT_64X OUT_32(d, 0)
#define OUT_128X OUT_32(d, 0), OUT_32(d, 32)
#define OUT_256X OUT_128X, OUT_32(d, 64), OUT_32(d, 96)
#define LIST_4 "%0,%1,%2,%3"
#define LIST_32                                                                \
    LIST_4 ",%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,"   \
           "%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define LIST_64                                                                \
    LIST_32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,"    \
            "%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62," \
            "%63"
#define LIST_128                                                               \
    LIST_64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,"    \
            "%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94," \
            "%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,"     \
            "%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,"     \
            "%120,%121,%122,%123,%124,%125,%126,%127"

/* One step of 64 x n outputs, the left operand from memory or registers. */
template <int n>
__device__ static void wgmma(float *d, const uint32_t *left, uint64_t a,
                             uint64_t b, bool is_left_in_registers);

#define WGMMA(n, list, outs, i0, i1, i2, i3, i4)                               \
    template <>                                                                \
    __device__ void wgmma<n>(float *d, const uint32_t *left, uint64_t a,       \
                             uint64_t b, bool is_left_in_registers)            \
    {                                                                          \
        if (is_left_in_registers)                                              \
            asm volatile("wgmma.mma_async.sync.aligned.m64n" #n                \
                         "k16.f32.bf16.bf16 {" list "}, {%" #i0 ",%" #i1       \
                         ",%" #i2 ",%" #i3 "}, %" #i4 ", 1, 1, 1, 0;"          \
                         : outs                                                \
                         : "r"(left[0]), "r"(left[1]), "r"(left[2]),           \
                           "r"(left[3]), "l"(b));                              \
        else                                                                   \
            asm volatile("wgmma.mma_async.sync.aligned.m64n" #n                \
                         "k16.f32.bf16.bf16 {" list "}, %" #i0 ", %" #i1       \
                         ", 1, 1, 1, 0, 0;"                                    \
                         : outs                                                \
                         : "l"(a), "l"(b));                                    \
    }
WGMMA(8, LIST_4, OUT_8X, 4, 5, 6, 7, 8)
WGMMA(64, LIST_32, OUT_64X, 32, 33, 34, 35, 36)
WGMMA(128, LIST_64, OUT_128X, 64, 65, 66, 67, 68)
WGMMA(256, LIST_128, OUT_256X, 128, 129, 130, 131, 132)

/* One warpgroup for 64 x n outputs at a time. */
template <int n>
__global__ static void by_wgmma(const __nv_bfloat16 *a, const __nv_bfloat16 *b,
                                float *out, bool is_left_in_registers)
{
    __shared__ __align__(128) __nv_bfloat16 left[N_M * STEP], right[n * STEP];
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    const int row = 16 * warp + lane / 4, pair = 2 * (lane % 4);
    const int first = (int)blockIdx.x * n;
    float d[n / 2];

    for (int i = 0; i < n / 2; i++)
        d[i] = 0;
    for (int k = 0; k < N_K; k += STEP) {
        uint32_t l[4];
        __syncthreads();
        fill(left, a, N_M, k);
        fill(right, b + (size_t)first * N_K, n, k);
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        __syncthreads();
        load_left(l, a, row, k + pair);
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
        wgmma<n>(d, l, descriptor(left), descriptor(right),
                 is_left_in_registers);
        asm volatile("wgmma.commit_group.sync.aligned;\n"
                     "wgmma.wait_group.sync.aligned 0;" ::
                         : "memory");
    }
    for (int i = 0; i < n / 2; i++)
        out[(row + 8 * (i % 4 / 2)) * N_N + first + i / 4 * 8 + pair + i % 2] =
            d[i];
}

#define N_MIX 4
static float draw(int mix)
{
    float u = (float)rand() / (float)RAND_MAX * 2 - 1;
    switch (mix) {
    case 1:
        return ldexpf(u, rand() % 41 - 20);
    case 2:
        return ldexpf(u, rand() % 4 ? -12 : 6);
    case 3:
        return ldexpf(u, rand() % 3 ? 0 : -70);
    default:
        return u;
    }
}

#define N_WAY 10
static const char *const way_name[N_WAY] = {
    "mma 16x8",         "mma 16x8, swapped", "wgmma 64x8",
    "wgmma 64x64",      "wgmma 64x128",      "wgmma 64x256",
    "wgmma 64x8, reg",  "wgmma 64x64, reg",  "wgmma 64x128, reg",
    "wgmma 64x256, reg"};

static void launch(int way, const __nv_bfloat16 *a, const __nv_bfloat16 *b,
                   float *out)
{
    bool is_reg = way >= 6;
    switch (is_reg ? way - 4 : way) {
    case 0:
        by_mma<<<dim3(N_M / 16, N_N / 8), 32>>>(a, b, out, false);
        break;
    case 1:
        by_mma<<<dim3(N_N / 16, N_M / 8), 32>>>(a, b, out, true);
        break;
    case 2:
        by_wgmma<8><<<N_N / 8, 128>>>(a, b, out, is_reg);
        break;
    case 3:
        by_wgmma<64><<<N_N / 64, 128>>>(a, b, out, is_reg);
        break;
    case 4:
        by_wgmma<128><<<N_N / 128, 128>>>(a, b, out, is_reg);
        break;
    default:
        by_wgmma<256><<<N_N / 256, 128>>>(a, b, out, is_reg);
        break;
    }
}

/* Largest error of the sums, in units of the sum of |products|. */
static double worst_error(const __nv_bfloat16 *a, const __nv_bfloat16 *b,
                          const float *out)
{
    double worst = 0;
    for (int i = 0; i < N_M * N_N; i++) {
        double sum = 0, size = 0;
        for (int k = 0; k < N_K; k++) {
            double p = (double)__bfloat162float(a[i / N_N * N_K + k]) *
                       __bfloat162float(b[i % N_N * N_K + k]);
            sum += p;
            size += fabs(p);
        }
        worst = fmax(worst, fabs(sum - out[i]) / size);
    }
    return worst;
}

int main(void)
{
    static __nv_bfloat16 host_a[N_M * N_K], host_b[N_N * N_K];
    static float first[N_M * N_N], other[N_M * N_N];
    __nv_bfloat16 *a, *b;
    float *out;
    int n_bad = 0;

    check(cudaMalloc((void **)&a, sizeof host_a), "cudaMalloc");
    check(cudaMalloc((void **)&b, sizeof host_b), "cudaMalloc");
    check(cudaMalloc((void **)&out, sizeof first), "cudaMalloc");
    for (int mix = 0; mix < N_MIX; mix++) {
        for (int i = 0; i < N_M * N_K; i++)
            host_a[i] = __float2bfloat16(draw(mix));
        for (int i = 0; i < N_N * N_K; i++)
            host_b[i] = __float2bfloat16(draw(mix));
        check(cudaMemcpy(a, host_a, sizeof host_a, cudaMemcpyDefault), "copy");
        check(cudaMemcpy(b, host_b, sizeof host_b, cudaMemcpyDefault), "copy");
        for (int way = 0; way < N_WAY; way++) {
            check(cudaMemset(out, 0xff, sizeof first), "cudaMemset");
            launch(way, a, b, out);
            check(cudaGetLastError(), way_name[way]);
            check(cudaMemcpy(other, out, sizeof other, cudaMemcpyDefault),
                  way_name[way]);
            if (way == 0) {
                memcpy(first, other, sizeof first);
                double error = worst_error(host_a, host_b, first);
                bool is_near = error < 1e-5;
                printf("mix %d: error %.1e of the sum of |products|%s\n", mix,
                       error, is_near ? "" : ": TOO LARGE");
                n_bad += !is_near;
            }
            int n_differ = 0;
            for (int i = 0; i < N_M * N_N; i++)
                n_differ += memcmp(&first[i], &other[i], sizeof first[i]) != 0;
            if (n_differ)
                printf("mix %d: %s differs from %s in %d of %d outputs\n", mix,
                       way_name[way], way_name[0], n_differ, N_M * N_N);
            n_bad += n_differ != 0;
        }
    }
    printf("check_mma: %d ways, %d mixes: %s\n", N_WAY, N_MIX,
           n_bad ? "NOT the same bits" : "the same bits");
    return n_bad ? 1 : 0;
}
