#ifndef KERNELS_CPU_CONV_H
#define KERNELS_CPU_CONV_H
/* The convolution by pieces, for operators that go on with what it makes while
 * a thread's own caches hold it. */
#include "kernels/backend.h"
#include "kernels/cpu/lanes.h"

/* Nothing of it rounds to bf16: those who do use that of AVX-512. */
#if defined(LANES_BF16)
#define CONV_NAME(name) name##_avx512
#else
#define CONV_NAME(name) LANES_NAME(name)
#endif

/* Rows [from, to) of a span, channels [first, end). */
struct conv_piece {
    const struct conv_args *args; /* of which y and the spans are not read */
    const struct conv_span *span;
    uint32_t from, to, first, end;
    float *y; /* row `from`, channel `first` */
    size_t y_stride;
};
void CONV_NAME(conv_piece)(const struct conv_piece *piece);

/* What the row behind the span will read, once all its rows are made. */
void CONV_NAME(conv_keep)(const struct conv_args *args,
                          const struct conv_span *span, uint32_t first,
                          uint32_t end);
#endif
