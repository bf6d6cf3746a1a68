/*
 * The one function of the driver that the runtime does not offer. It is looked
 * up when it is first called: a library that named libcuda itself could not
 * even be loaded where there is no driver, to say so.
 */
#include <cuda.h>
#include <cuda_runtime_api.h>

typedef CUresult encode_tiled(CUtensorMap *, CUtensorMapDataType, cuuint32_t,
                              void *, const cuuint64_t *, const cuuint64_t *,
                              const cuuint32_t *, const cuuint32_t *,
                              CUtensorMapInterleave, CUtensorMapSwizzle,
                              CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

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

extern "C" CUresult cuTensorMapEncodeTiled(
    CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
    const cuuint64_t *size, const cuuint64_t *stride, const cuuint32_t *box,
    const cuuint32_t *element_stride, CUtensorMapInterleave interleave,
    CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
    CUtensorMapFloatOOBfill fill)
{
    static encode_tiled *const encode = find_encode();

    return encode ? encode(map, type, rank, address, size, stride, box,
                           element_stride, interleave, swizzle, promotion, fill)
                  : CUDA_ERROR_NOT_FOUND;
}
