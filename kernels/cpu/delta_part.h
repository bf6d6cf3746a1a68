#ifndef KERNELS_CPU_DELTA_PART_H
#define KERNELS_CPU_DELTA_PART_H
/* A part of the rounded delta rule: its operands, and their way from and to the
 * rings and the state. */
#include "kernels/cpu/delta_rounded.h"
#include "kernels/cpu/delta_rows.h"
#include "kernels/cpu/pairs.h"

#define FOLD_ROWS 64u /* dims of S0 at once */
#define WORDS (GRID / 2u)

/*
 * Task: one k-head of one span with its v-heads. Rows are taken in parts that
 * end at grid points, so that within a part the state S0 stands still and all
 * but the triangle next to the diagonal are products, given to the kernel that
 * multiplies activations with packed weights: left sides are rows of its
 * elements, right sides panels of words like LINEAR_BF16. The rings are such
 * right sides but for their panels; a part works on copies, whose steps
 * behind the part are zero, and a chunk that it fills never sees the rings.
 */
struct part {
    const struct delta_args *args;
    const struct delta_span *span;
    const struct delta_source *source;
    struct product_kernel kernel;
    uint32_t k_head;
    uint32_t n_each;     /* v-heads of a k-head */
    uint32_t t;          /* first row, of the span */
    size_t row;          /* the same of the whole batch */
    uint32_t first, end; /* indices in the grid chunk */
    uint32_t n_row;
    uint32_t n_step;   /* d_k with its padding */
    uint32_t n_panel;  /* of d_v */
    void *kq;          /* [2 n_row][n_step]: keys, then queries */
    uint16_t *k;       /* [n_row][n_step]: keys again, as bf16 */
    uint32_t *key;     /* [GRID / 16][n_step / 2][16] */
    uint32_t *s;       /* [n_panel][n_step / 2][16]: S0 of a v-head */
    float *k_room;     /* [n_row] convolved rows of k before there is s */
    float *q_room;     /* the same of q */
    float *v_room;     /* and of one v-head */
    uint32_t *u;       /* [n_panel][WORDS][16] */
    float *dot;        /* [2 n_row][GRID]: k_i . k_j, then q_i . k_j */
    float *read;       /* [2 n_row][d_v]: a, then c */
    float *w;          /* [n_row][DELTA_BLOCK]: w_ij of its own block */
    void *far, *x;     /* [n_row][GRID]: ~w_ij of former blocks, ~x_ij */
    float *acc;        /* [DELTA_BLOCK][d_v] */
    void *aged;        /* [FOLD_ROWS][GRID] exp(G_63 - G_j) k_j, for the fold */
    float *since_grid; /* [GRID] exp(G_j) */
    void *scratch;     /* the kernel's */
};

/* One v-head of a part. */
struct head {
    float *s;    /* [d_k][d_v] */
    uint32_t *u; /* [WORDS][d_v] of its ring */
    double *g;   /* [GRID] */
    struct delta_rows v;
    float *out; /* rows of out_stride */
    size_t at;  /* v-head, index into beta and log_decay */
};

/* Rounded, into a left side's elements from `at` on; halves are bf16, others
 * floats. Who calls it in a loop makes is_half a constant. */
LANES_INLINE void put(bool is_half, void *rows, size_t at, v16 v)
{
    if (is_half)
        pairs_store_row((uint16_t *)rows + at, v);
    else
        v16_store((float *)rows + at, pairs_round(v));
}

static inline bool has_halves(const struct part *p)
{
    return p->kernel.element_bytes == sizeof(uint16_t);
}

static inline const void *element_at(const struct part *p, const void *rows,
                                     size_t at)
{
    return (const char *)rows + at * p->kernel.element_bytes;
}

/* Word `pair` of token j in the panels of keys. */
static inline uint32_t *key_at(const struct part *p, size_t pair, size_t j)
{
    return p->key + (j / LANES * (p->n_step / 2) + pair) * LANES + j % LANES;
}

static inline uint32_t *u_at(const struct part *p, size_t panel, size_t word)
{
    return p->u + (panel * WORDS + word) * LANES;
}

/* Word `pair` of a panel of S0. */
static inline uint32_t *s_at(const struct part *p, size_t panel, size_t pair)
{
    return p->s + (panel * (p->n_step / 2) + pair) * LANES;
}

/* Share the scratch out. */
void LANES_NAME(delta_place)(struct part *p, char *scratch);
/* What the ring has of this chunk; the padding is zero. */
void LANES_NAME(delta_load_keys)(const struct part *p);
/* The part's keys from rows into panels. */
void LANES_NAME(delta_turn_keys)(const struct part *p);
void LANES_NAME(delta_store_keys)(const struct part *p);
/* Words of known tokens, a half of the last perhaps; zero behind them. */
void LANES_NAME(delta_load_u)(const struct part *p, const struct head *head);
void LANES_NAME(delta_store_u)(const struct part *p, const struct head *head);
/* S0 as a right side, from memory. */
void LANES_NAME(delta_take_state)(const struct part *p,
                                  const struct head *head);
#endif
