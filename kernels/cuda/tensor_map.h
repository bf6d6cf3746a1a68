#ifndef KERNELS_CUDA_TENSOR_MAP_H
#define KERNELS_CUDA_TENSOR_MAP_H
/*
 * Tensor maps: what the copy engine has to know of matrices in device memory to
 * bring boxes of them, by tensor_copy_*() of async_copy.cuh. Encoded on the
 * host for each launch, 128 bytes that go to the kernel as a
 * __grid_constant__ parameter. GPUs before Hopper have no use for them.
 */
#include <cuda.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Elements; the value is their bytes. */
enum tensor_element { TENSOR_U8 = 1, TENSOR_BF16 = 2, TENSOR_F32 = 4 };

/* Every box is as wide as this: bytes of one of its rows. */
#define TENSOR_BOX_BYTES 128u

/* A matrix, or several alike. What a box has outside of them is zeros. */
struct tensor {
    const void *at; /* device memory, a multiple of 16; of matrix 0 */
    enum tensor_element element;
    size_t n_column, n_row; /* of a matrix, in elements */
    size_t row_bytes;       /* from a row to the next, a multiple of 16 */
    /* Matrix number i lies i times so many bytes behind `at`. 0 of them: a map
     * of one matrix, for tensor_copy_2d*(); else for tensor_copy_3d*(). */
    uint32_t n_matrix;
    size_t matrix_bytes;
    uint32_t box_rows; /* at most 256 */
    /* In shared memory 16-byte unit u of a box's row r is at u ^ r % 8, by
     * addresses: the box begins at a multiple of 1024. */
    bool is_swizzled;
};

/* Asserts that the driver takes it: shapes are our own. */
void tensor_map_encode(const struct tensor *tensor, CUtensorMap *out);
#endif
