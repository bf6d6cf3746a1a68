#include "kernels/cuda/tensor_map.h"

#include <assert.h>
#include <cuda_runtime_api.h>

typedef CUresult encode_tiled(CUtensorMap *, CUtensorMapDataType, cuuint32_t,
                              void *, const cuuint64_t *, const cuuint64_t *,
                              const cuuint32_t *, const cuuint32_t *,
                              CUtensorMapInterleave, CUtensorMapSwizzle,
                              CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

/*
 * The one function of the driver that the runtime does not offer. It is looked
 * up when it is first called: a library that named libcuda itself could not
 * even be loaded where there is no driver, to say so.
 */
static encode_tiled *find_encode(void)
{
    cudaDriverEntryPointQueryResult result;
    void *entry = NULL;

    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry,
                                         12000, cudaEnableDefault, &result) ||
        result != cudaDriverEntryPointSuccess)
        return NULL;
    return (encode_tiled *)entry;
}

static CUtensorMapDataType type_of(enum tensor_element element)
{
    switch (element) {
    case TENSOR_U8:
        return CU_TENSOR_MAP_DATA_TYPE_UINT8;
    case TENSOR_BF16:
        return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    default:
        return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
    }
}

void tensor_map_encode(const struct tensor *tensor, CUtensorMap *out)
{
    static encode_tiled *const encode = find_encode();
    const cuuint32_t n_dim = tensor->n_matrix ? 3 : 2;
    const cuuint64_t size[3] = {tensor->n_column, tensor->n_row,
                                tensor->n_matrix};
    const cuuint64_t stride[2] = {tensor->row_bytes, tensor->matrix_bytes};
    const cuuint32_t box[3] = {TENSOR_BOX_BYTES / tensor->element,
                               tensor->box_rows, 1};
    const cuuint32_t each[3] = {1, 1, 1};
    const CUresult result =
        encode
            ? encode(out, type_of(tensor->element), n_dim, (void *)tensor->at,
                     size, stride, box, each, CU_TENSOR_MAP_INTERLEAVE_NONE,
                     tensor->is_swizzled ? CU_TENSOR_MAP_SWIZZLE_128B
                                         : CU_TENSOR_MAP_SWIZZLE_NONE,
                     CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                     CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE)
            : CUDA_ERROR_NOT_FOUND;

    assert(result == CUDA_SUCCESS);
    (void)result;
}
