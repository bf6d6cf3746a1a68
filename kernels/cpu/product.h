#ifndef KERNELS_CPU_PRODUCT_H
#define KERNELS_CPU_PRODUCT_H
/*
 * How a product is shared out: rows are brought into the form that a
 * micro-kernel reads (rounded to bf16, gathered), then units of some rows times
 * some panels go to the threads. Nothing here touches the order of a sum; that
 * is the micro-kernel's, one for each arithmetic and type of weights. An
 * instruction set is a table of them.
 */
#include "kernels/backend.h"

/* Of the thread's scratch, free for a micro-kernel, 64-byte aligned. */
#define PRODUCT_SCRATCH_BYTES (POOL_SCRATCH_BYTES / 2)

/* What a sum goes onto: c = fma(keep, from, sum + 0). */
struct product_onto {
    const float *from; /* has the form of c, and may be it; NULL: no such */
    size_t from_stride;
    const float *keep;  /* of each row */
    size_t keep_stride; /* 0: one for all */
};

/* The same for what stands some rows below and columns to the right. */
static inline struct product_onto product_onto_at(struct product_onto onto,
                                                  size_t row, size_t column)
{
    if (onto.from) {
        onto.from += row * onto.from_stride + column;
        onto.keep += row * onto.keep_stride;
    }
    return onto;
}

/* One call of a micro-kernel: c = or += a times panels, by contract linear.h.
 */
struct product_tile {
    float *c; /* [n_row] rows of n_col; may end inside a panel */
    size_t c_stride;
    const void *a;   /* [n_row] rows as take() made them, or of x itself */
    size_t a_stride; /* in elements of take(), or floats of x */
    const void *b;   /* first panel */
    size_t b_stride; /* bytes from panel to panel */
    uint32_t n_row, n_col;
    uint32_t n_in, n_step; /* inputs, and those with their padding */
    bool is_add;
    struct product_onto onto; /* of LINEAR_BF16 alone, not with is_add */
    bool is_near;             /* b was just made, or read: caches have it */
    bool is_streamed;         /* c is whole lines of more than caches hold */
    void *scratch;            /* PRODUCT_SCRATCH_BYTES */
};
typedef void product_work(const struct product_tile *tile);

/* silu(gate) * up of some rows, and zeros behind n_col. */
struct product_swiglu {
    void *to;        /* [n_row] rows of n_step elements */
    void *to_group;  /* what lies behind rows, of the first group of these */
    size_t to_bytes; /* from row to row */
    const float *gate, *up;
    size_t stride;
    uint32_t n_row, n_col, n_step;
};
typedef void product_gate(const struct product_swiglu *swiglu);

/* Rows and panels of one unit. Of matters of speed alone. */
struct product_shape {
    uint32_t n_row, n_panel; /* at least 1 */
};

struct product_kernel {
    product_work *work;
    /* Make one row of n_step elements of the n floats x: zeros at the end, and
     * behind them what groups have.
     * NULL: the kernel reads floats as they are, n_in of them. */
    void (*take)(void *to, const float *x, uint32_t n, uint32_t n_step);
    product_gate *swiglu;   /* the same of silu(gate) * up; never NULL */
    uint32_t element_bytes; /* of what take() makes */
    /* For a product of n_row rows, of which a unit may take fewer. */
    struct product_shape (*shape)(uint32_t n_row, uint32_t n_step);
    /* Of large products; 0: one. More of them level threads that run unlike, as
     * tiles do where physical cores are shared, but share fewer panels: pairs
     * lost a seventh by it. Those of one may go by rows. */
    uint32_t tasks_a_thread;
    /* Weights of a task, about, where tasks of one thread are a run; 0: the run
     * is one task. It levels threads that memory serves unlike. Few rows are
     * then made before the threads start, as each task would make them again.
     */
    uint32_t task_bytes;
    /* Behind a row, of each LINEAR_GROUP elements; not 0: swiglu makes whole
     * groups. */
    uint32_t group_bytes;
};

struct product_kernels {
    struct product_kernel of[N_CPU_ARITHMETIC][N_LINEAR_TYPE];
    const struct product_kernels *base; /* has what is not here; or NULL */
};

/* The weights that rows [first_row, first_row + n_row) of y meet. */
struct product_part {
    const struct linear *w;
    uint32_t first_row, n_row;
};

struct product {
    float *y;
    size_t y_stride;
    const float *x;
    size_t x_stride;
    const uint32_t *row; /* [n_row] row of x for each of y; NULL: the same */
    /* In place of x and row: all rows as product_form_of() has them. */
    const void *made;
    uint32_t n_row;
    /* Ascending and without overlap; weights of one shape, type, arithmetic. */
    const struct product_part *part;
    uint32_t n_part;
    bool is_add;
};

/* How rows lie in memory for a kernel that multiplies them by w. */
struct product_form {
    void (*take)(void *to, const float *x, uint32_t n, uint32_t n_step);
    uint32_t element_bytes;
    size_t row_bytes; /* from row to row */
};
struct product_form product_form_of(const struct product_kernel *kernel,
                                    const struct linear *w);
const struct product_kernel *
product_kernel_of(const struct product_kernels *kernels,
                  const struct linear *w);

/* The pool, or NULL for a product of so many rows that it is not worth it. */
struct pool *product_pool(struct pool *pool, const struct linear *w,
                          uint32_t n_row);

/* Into how many tasks a product is cut whose rows are made once for all. */
uint32_t product_n_task(const struct pool *pool,
                        const struct product_kernel *kernel,
                        const struct linear *w, uint32_t n_row);

/* Into how many tasks n_run of them are cut by task_bytes, of `bytes` of
 * weights: cut_turn(task, this, n_run) is where each stands. */
uint32_t product_in_runs(const struct product_kernel *kernel, uint32_t n_run,
                         size_t bytes);

/*
 * So many rows of small weights go by rows: a task is up to PRODUCT_ROWS of
 * them and does all of the product, from caches of its own (kernels/cpu/cut.h).
 * bytes: of all weights that they meet.
 */
#define PRODUCT_ROWS 96u
bool product_is_by_rows(const struct pool *pool,
                        const struct product_kernel *kernel, size_t bytes,
                        uint32_t n_row);

/* All of it, whose rows are made, on the calling thread. */
void product_run_alone(const struct product *product,
                       const struct product_kernels *kernels, void *scratch);

/* Rows that belong to no part are not touched. */
void product_run(struct pool *pool, const struct product *product,
                 const struct product_kernels *kernels);

/* The operators linear and linear_add. */
void product_linear(struct pool *pool, const struct linear_args *args,
                    bool is_add, const struct product_kernels *kernels);

/*
 * The operator expert: all experts are shared out together, because one alone
 * has few rows and few outputs.
 */
void product_expert(struct pool *pool, const struct expert_args *args,
                    const struct product_kernels *kernels);

/* The operators ffn and ffn_add. */
void product_ffn(struct pool *pool, const struct ffn_args *args, bool is_add,
                 const struct product_kernels *kernels);

/* The take() of bf16 rows: as scalar_to_bf16(), by the instruction for it. */
void take_bf16(void *to, const float *x, uint32_t n, uint32_t n_step);
product_gate swiglu_halves_avx512_bf16;

/* W8A8 with AVX512-VNNI, which tiles leave very few rows to. */
product_work work_w8a8_vnni;

extern const struct product_kernels product_kernels_avx2,
    product_kernels_avx512, product_kernels_avx512_vnni,
    product_kernels_avx512_bf16, product_kernels_amx;
#endif
