#ifndef KERNELS_BACKEND_H
#define KERNELS_BACKEND_H
/*
 * The table of operators that a device implements: `ref` (readable, slow),
 * `avx2`, `avx512`, later CUDA. Each is held to ref by one test over a table
 * of shapes; on the CPU to the last bit, because every operator below fixes
 * its order of operations (docs/NUMERICS.md). So all CPU backends share their
 * numerics ids (arithmetic_id()), and a session may move between machines of
 * different age.
 *
 * Common rules. All activations are float, row-major; a row is one token of
 * one session. Row r of a matrix with stride s starts at x + r * s. A result
 * row depends on its own inputs and its session's state only, never on other
 * rows of the batch, on how rows were cut into calls, or on threads: E1, E2,
 * E3 and E7 hold for each operator alone. Operators run under flush modes
 * (kernels/flush.h), split themselves over the pool, never allocate and cannot
 * fail: shapes are checked by assert. A span is a run of consecutive rows that
 * belong to one session.
 */
#include "kernels/linear.h"
#include "kernels/pool.h"
#include "kernels/sampling.h"

#include <stdbool.h>
#include <stdint.h>

#define GRID 64u     /* tokens: recurrent states are folded at its multiples */
#define KV_BLOCK 64u /* tokens of one KV block */
#define HEAD_DIM_MAX 1024u
#define CONV_WIDTH_MAX 8u
#define EXPERT_MAX 1024u /* experts of one layer */

/*
 * Rounded rows: rows of n floats as scalar_to_bf16() rounds them, [n_row][n]
 * without a stride, n a multiple of LINEAR_TILE, where all products of a row
 * would round it (any arithmetic but FP32). With a backend that
 * has_rounded_rows an operator may leave such rows for a product, which then
 * reads them instead of floats. NULL everywhere else.
 */

/* y[r] = x[r] W^T, or y[r] += (x[r] W^T) for linear_add. */
struct linear_args {
    float *y;
    size_t y_stride;
    const float *x;
    size_t x_stride;
    uint32_t n_row;
    const struct linear *w;
    const uint16_t *x_rounded; /* x is not read then */
};

/*
 * y = x / sqrt(mean(x^2) + eps) * weight for each of n_group groups of dim
 * consecutive floats in a row; one weight [dim] for all groups. In place is
 * allowed. Sum by scalar_sum_squares, then 1 / sqrtf(sum / dim + eps), then
 * (x * that) * weight. Zhang and Sennrich 2019, arXiv:1910.07467.
 */
struct norm_args {
    float *y; /* NULL where rounded rows are all that is wanted */
    size_t y_stride;
    const float *x;
    size_t x_stride;
    const float *weight; /* a (1 + w) norm has the 1 added at load */
    uint32_t n_row, n_group, dim;
    float eps;
    uint16_t *y_rounded; /* of n_group * dim */
};

/* y = silu(gate) * up; x rows are [gate(n_ff) | up(n_ff)]. */
struct swiglu_args {
    float *y;
    size_t y_stride;
    const float *x;
    size_t x_stride;
    uint32_t n_row, n_ff;
};

/*
 * y = (silu(x gate^T) * (x up^T)) down^T, or y += for ffn_add, with the bits of
 * linear, swiglu and linear (linear_add) one after the other. Shazeer 2020,
 * arXiv:2002.05202. What lies between the products goes nowhere far.
 */
struct ffn_args {
    float *y;
    size_t y_stride;
    const float *x;
    size_t x_stride;
    uint32_t n_row;
    const struct linear *gate, *up; /* [n_ff, n_in], of one type */
    const struct linear *down;      /* [n_out, n_ff] */
    const uint16_t *x_rounded;      /* x is not read then */
};

/* Rows of an embedding table; bf16 widens exactly. */
struct embed_args {
    float *y; /* [n_row, dim] */
    const uint32_t *token;
    const void *table; /* [n_vocab, dim], may be unaligned */
    enum linear_type type;
    uint32_t n_row, dim;
};

/*
 * Rotary angles for positions 0 .. n_position - 1, in blocks of KV_BLOCK:
 * cos and sin are [n_position / KV_BLOCK][n_rot / 2][KV_BLOCK]. Pair i of a
 * head is (i, i + n_rot / 2), as in rotate_half. Su et al., arXiv:2104.09864.
 */
struct rope_table {
    uint32_t n_rot;
    uint64_t n_position;   /* multiple of KV_BLOCK */
    float *cos, *sin;      /* owned */
    struct device *device; /* in whose memory they lie; NULL: the host's */
};

/*
 * x' = fma(x, cos, -(y * sin)), y' = fma(y, cos, x * sin) for the leading
 * n_rot dims of n_head heads of d_head, in place. One position per row.
 */
struct rope_args {
    float *x;
    size_t x_stride;
    const uint64_t *position; /* [n_row] */
    uint32_t n_row, n_head, d_head;
    const struct rope_table *table;
};

/*
 * Softmax attention over KV blocks (GQA). A block holds KV_BLOCK tokens of all
 * KV heads of one layer, keys after QK-norm and BEFORE rotation. In FP32 as
 * floats:
 *     k [n_kv_head][d_head][KV_BLOCK]
 *     v [n_kv_head][KV_BLOCK][d_head]
 * in PAIR and TILE as bf16, rounded once, by kv_append:
 *     k [n_kv_head][d_head / 2, rounded up][KV_BLOCK][2]
 *     v [n_kv_head][KV_BLOCK / 2][d_head][2]
 * The last 2 are neighbours of the inner dimension (dims of keys, +0 behind the
 * last; tokens of values) in one 32-bit word, as the instructions read them.
 * k lies transposed so that lanes are keys. In MMA both are tiles of bf16,
 * their rows tokens, d_head padded to 64, 128, 256, ...: k, v
 * [n_kv_head][KV_BLOCK tokens of d_head] A row reads no token behind its own
 * position into its result, so what lies there (nothing yet, or rejected
 * drafts) does not matter.
 *
 * A span whose rows see only some blocks of their past (model/policy.h) has
 * those in `block`, in the order in which they merge, and the rows' own block
 * last. Its position counts the keys that the rows meet, so it is a multiple of
 * KV_BLOCK plus the place in the own block, and its rows are of one grid chunk.
 * `place` then says at which positions the keys are rotated.
 */
struct key_place {
    uint64_t position; /* of the first key */
    bool is_flat;      /* all 64 lie there; else one behind the other, and
                          position is a multiple of KV_BLOCK */
};
struct attend_span {
    uint32_t first_row, n_row;
    uint64_t position;  /* of the first row */
    void *const *block; /* blocks of tokens [0, position + n_row); with a device
                           this array lies there, too */
    const struct key_place *place; /* of each; NULL: block b at b * KV_BLOCK;
                                      with a device it lies there, too */
};
static inline struct key_place key_place_of(const struct attend_span *span,
                                            uint64_t block)
{
    const struct key_place own = {block * KV_BLOCK, false};

    return span->place ? span->place[block] : own;
}
/*
 * How blocks keep keys and values. KV_INT8: KV_TILE_DIMS dims of a token share
 * a scale, largest |x| / 127, or 0 where that is not normal, NaN where one is
 * not finite; q = x * (1 / scale), rounded to even. Done once, by kv_append,
 * for the token alone, so that no row can tell how it was cut. What is read is
 * q * scale, rounded to float and, but for FP32, by scalar_to_bf16() again;
 * then all goes on as for a key or value that had lain there as that number.
 */
enum kv_format {
    KV_WIDE, /* as the arithmetic has them: float or bf16 */
    KV_INT8,
    N_KV_FORMAT
};
#define KV_TILE_DIMS 64u

/* Of a KV head's keys, or values, of a block: 64 dims of its tokens. Dims of a
 * head are padded to 64, 128 or 256. */
struct kv_tile {
    int8_t q[KV_BLOCK][KV_TILE_DIMS]; /* -127 .. 127 */
    float scale[KV_BLOCK];
};

struct attend_shape {
    uint32_t n_head, n_kv_head, d_head; /* head h reads KV head h / (n/n_kv) */
    enum arithmetic arithmetic; /* of its products; decides the blocks */
    enum kv_format kv;          /* so does this */
};
size_t kv_block_bytes(struct attend_shape shape);
/* Bytes from a block's start to the keys or values of one KV head. */
size_t kv_keys_at(struct attend_shape shape, size_t head);
size_t kv_values_at(struct attend_shape shape, size_t head);

/* Write the rows' keys and values into their sessions' blocks. */
struct kv_append_args {
    struct attend_shape shape;
    const float *k; /* rows [n_kv_head * d_head] */
    const float *v;
    size_t k_stride, v_stride;
    const struct attend_span *span;
    uint32_t n_span;
};

/*
 * Row at position p attends to tokens 0 .. p. Per block of keys, ascending:
 *   rotate k by its position (as rope);  q' = q * scale
 *   s_j = fma chain over d ascending of q'[d] * k[d][j]
 *   m = max s_j;  p_j = exp(s_j - m), 0 for keys after p
 *   l = scalar_sum order of p_j;  o[e] = fma chain over j ascending p_j v[j][e]
 * and blocks merge in ascending order into (M, L, O), block 0 giving the start:
 *   M' = max(M, m); a = exp(M - M'); c = exp(m - M')
 *   L = fma(L, a, l * c);  O = fma(O, a, o * c)
 * out = O * (1 / L), and with a gate out = out * sigmoid(gate), elementwise.
 * FlashAttention's merge (arXiv:2205.14135) on a fixed grid.
 *
 * In PAIR and TILE the two products are of that arithmetic (kernels/linear.h),
 * and what enters them is rounded by scalar_to_bf16():
 *   keys are widened, rotated as floats, and rounded again
 *   q' = bf16(q * scale);  s_j = (product over d of q' and k_j) + 0
 *   w_j = bf16(p_j);  o[e] = (product over j of w_j and v_j[e]) + 0
 * l is the sum of the p_j as they were before. Adding +0 makes -0 a +0, whence
 * padding with zeros never shows, nor does a weight of +0 of a finite v: steps
 * fma(+0, v, acc) change at most the sign of an acc that is zero, and two sums
 * that differ in the sign of zeros alone still do after the next step. So a key
 * is left out or multiplied by zero, as is faster; unless its v is not finite.
 *
 * A call may be for key blocks [first_block, end_block) alone, so that a long
 * attention can be carried out in pieces. Calls for a row come with adjoining
 * ranges from block 0 on, with the same q, positions and blocks. Until the call
 * with the block of a row's own position, which gives its result, out holds its
 * O and stat its M and L; both belong to the operator. Later calls leave the
 * row alone. So a row is gated and rounded by one call; where its result is
 * rounded, what out then holds belongs to the operator, too.
 */
struct attend_args {
    struct attend_shape shape;
    float *out; /* rows [n_head * d_head] */
    size_t out_stride;
    uint16_t *out_rounded; /* of n_head * d_head; NULL: results come to out */
    const float *gate;     /* rows [n_head * d_head], or NULL: none */
    size_t gate_stride;
    const float *q; /* rows [n_head * d_head], already rotated */
    size_t q_stride;
    const struct rope_table *table;
    float scale;
    const struct attend_span *span;
    uint32_t n_span;
    uint64_t first_block, end_block; /* 0, 0: all */
    float *stat; /* rows [M n_head | L n_head]; NULL will do for all blocks */
    size_t stat_stride;
};

/*
 * What a look-up reads of a full block instead of all its keys:
 *
 * INDEX_KEYS: [n_kv_head][INDEX_CHOSEN] keys in bf16, some of a head's, not
 * rotated, chosen to be far from each other (kernels/index.h says how one lies)
 *
 * INDEX_BOUNDS: [n_kv_head][2][d_head] floats, least and largest of each
 * dimension of a head's keys, which may be rotated by their true positions
 *
 * INDEX_MASS: nothing, for it reads all keys of all blocks (kv_mass)
 *
 * INDEX_SURPRISE: nothing, for it reads what tokens did, not keys (surprise)
 */
enum index_kind {
    INDEX_NONE,
    INDEX_KEYS,
    INDEX_BOUNDS,
    INDEX_MASS,
    INDEX_SURPRISE,
    N_INDEX
};
#define INDEX_CHOSEN 8u
size_t kv_index_bytes(struct attend_shape shape, enum index_kind kind);
/*
 * Bounds of keys that are bf16, and were not rotated, are bf16 themselves, so
 * they can be kept in half the room: each of [n_kv_head][2] lies as a key of
 * INDEX_KEYS does. They score the same bits.
 */
size_t kv_short_bounds_bytes(struct attend_shape shape);
void kv_shorten_bounds(struct attend_shape shape, const void *bounds,
                       void *out);

/*
 * Make the index of a full block.
 *
 * INDEX_KEYS: the first is the key farthest from the mean of all 64 (sum over
 * keys ascending, * (1 / 64)), each next one the key whose least distance to
 * those before it is largest; of equals the earlier. Distance: s = s + x * x
 * over d ascending, x the difference. (Representatives: InfLLM,
 * arXiv:2402.04617)
 *
 * INDEX_BOUNDS: rotated as floats, as attend does before it rounds. (Quest,
 * arXiv:2406.10774)
 */
struct kv_seal_args {
    struct attend_shape shape;
    enum index_kind kind;
    const struct rope_table *table; /* NULL: keys are not rotated */
    const void *block;
    uint64_t position; /* of its first key */
    void *index;
};

/*
 * How well blocks [first, end) match a query [n_head, d_head]; larger is
 * better. The sum over heads, ascending, of
 *   INDEX_KEYS    the largest q . k of the head's keys
 *   INDEX_BOUNDS  sum of max(q * low, q * high): what no key's q . k exceeds
 * Element d adds its product to lane d % 16, two roundings; lanes fold as in
 * scalar_sum().
 */
struct kv_score_args {
    struct attend_shape shape;
    enum index_kind kind;
    bool is_short; /* BOUNDS as kv_shorten_bounds() makes them */
    const float *q;
    void *const *index; /* by block */
    uint64_t first, end;
    float *score; /* [end - first] */
};

/*
 * How much of the attention of n_row rows from `position` on falls on each of
 * blocks [first, end): over heads ascending, of each over rows ascending, the
 * sum of l_b * (1 / L), where for a row, and the keys that are not behind it,
 *   s_j = (fma chain over d ascending from +0 of q[d] * k[d][j]) * scale
 *   M, L as attend has them over all blocks, of l in the order of scalar_sum()
 *   l_b = scalar_sum order of exp(s_j - M) over the block's keys
 * Keys are rotated as floats by their true positions and not rounded again.
 * (SnapKV, arXiv:2404.14469; a block takes the place of its pooling.)
 */
struct kv_mass_args {
    struct attend_shape shape;
    const struct rope_table *table;
    float scale;
    const float *q; /* [n_row][n_head * d_head], already rotated */
    uint32_t n_row;
    uint64_t position;
    void *const *block; /* all up to the last row's */
    uint64_t first, end;
    float *stat; /* [n_row][n_head][2] room for M and 1 / L */
    float *mass; /* [end - first] */
};

/*
 * How well each of keys [0, n_key) matches one row's query: over KV heads
 * ascending from +0, the sum of
 *   fma chain over d ascending from +0 of u[d] * k[d],
 *   u the sum over the KV head's query heads, ascending, of q
 * Keys are rotated as for kv_mass. (GemFilter, arXiv:2409.17422; a sum of
 * products is the product of the sum.)
 */
struct kv_match_args {
    struct attend_shape shape;
    const struct rope_table *table;
    const float *q; /* [n_head * d_head], already rotated */
    void *const *block;
    uint64_t n_key;
    float *match; /* [n_key] */
};

/*
 * Where the keys of other blocks than the own one are taken to lie. Queries
 * have their true position under each rule: only distances matter to RoPE.
 */
enum key_rule {
    KEYS_TRUE, /* where they are */
    KEYS_RANK, /* as if the blocks that are seen were all there are */
    KEYS_FAR,  /* in the window where they are; all keys before it just before
                  it, at one position for all rows of a grid chunk */
    N_KEY_RULE
};

/*
 * Memory policies on a device: what model/view.c does on the host, for a host
 * that sees neither queries nor indices. A view is a run of rows of one session
 * that see the same blocks before their own, and what is done when they are
 * through; it is a part of one grid chunk, its rows' own. Views come in order,
 * those of one session one behind the other, each as if the others before it
 * had happened:
 *
 * 1. If it is seen by attend: entries [first_seen, first_seen + n) of `block`
 *    and `place` of the arguments become the list of an attend_span: blocks
 *    [0, n_sink), pick[1] .. pick[n_pick], [window, chunk]; `chunk` is the own
 *    one. Places are by the rule: RANK, entry i of n: (chunk - (n - 1 - i)) *
 *    KV_BLOCK; FAR: blocks before `window` flat at window * KV_BLOCK; others
 *    where they are.
 * 2. Queries are added up, in order of rows, to the sum of the step in which
 *    they lie: sum number t / step % n_sum of `queries`, set to zero before a
 *    row t that begins a step.
 * 3. With is_full the block `chunk` is full, and its index is made behind it:
 *    kv_seal, with the rope table if is_placed.
 * 4. With looks_up blocks are chosen from [first, end): those n_choose with the
 *    largest scores, of equals the earlier, in ascending order, become pick[1]
 *    .. pick[n_choose], their number pick[0]. If there are no more than
 *    n_choose, all of them, and nothing is scored. BOUNDS and KEYS: kv_score of
 *    the query that is the sum over s ascending from +0 of sum number s,
 *    rotated as one row at look_position. MASS: kv_mass (with `scale`) of the
 *    sums of the last n_sum (or fewer) positions up to the last row, each
 *    rotated at its own position.
 */
struct kv_view {
    uint32_t first_row, n_row; /* n_row 0: nothing at all, not even a list */
    uint64_t position;         /* of the first row, in the session */
    void *const *block;        /* all blocks of the session; lies there, too */
    float *queries; /* [n_sum][n_head, d_head]; NULL: 2 to 4 are left out */
    uint32_t *pick; /* [1 + most]; NULL: n_pick is 0, as is queries NULL */
    uint64_t first_seen;
    uint64_t window, chunk; /* blocks */
    uint32_t n_sink, n_pick;
    enum key_rule keys;
    bool is_seen; /* false: its rows see every block, by another span */
    bool is_full, looks_up, is_placed;
    enum index_kind index;
    uint32_t step, n_sum;   /* rows of a sum; sums */
    uint64_t first, end;    /* blocks to choose from */
    uint32_t n_choose;      /* of them; at most end - first */
    uint64_t look_position; /* of the query */
};
struct kv_view_args {
    struct attend_shape shape;
    const struct rope_table *table;
    float scale;
    const float *q; /* rows [n_head * d_head], not rotated; by row of a view */
    size_t q_stride;
    const struct kv_view *view; /* on the host */
    uint32_t n_view;
    void **block; /* [n_seen] */
    struct key_place *place;
};

/* Heads of the delta rule; v-head h reads k-head h / (n_v_head / n_k_head). */
struct delta_shape {
    uint32_t n_k_head, n_v_head, d_k, d_v;
    enum arithmetic arithmetic; /* of its products; decides rings and rows */
};

/*
 * Causal depthwise convolution with SiLU behind it:
 *   y[c] = silu(fma chain over i = 0 .. width-1 of w[c][i] * x[t-width+1+i][c])
 * oldest input first, starting from w*x of the oldest (product rounded once as
 * fma with 0). Inputs before the session's start are zero. tail holds the last
 * width - 1 raw inputs, [width - 1][n_channel], oldest first; updated.
 *
 * Where the delta rule wants unit rows (below) the leading channels are its
 * queries and keys, which come to `unit` and not to y: y then has the others.
 */
struct conv_span {
    uint32_t first_row, n_row;
    float *tail;
};
struct conv_args {
    float *y;
    size_t y_stride;
    const float *x; /* must not overlap y or unit */
    size_t x_stride;
    const float *weight; /* [width][n_channel]: transposed at load */
    uint32_t n_channel, width;
    const struct conv_span *span;
    uint32_t n_span;
    uint16_t *unit;           /* NULL: all channels come to y */
    struct delta_shape shape; /* whose unit rows these are */
};

/*
 * Gates of the delta rule from projections a, b, [n_v_head] a row:
 *   beta = sigmoid(b);  log_decay = decay_scale * softplus(a + dt_bias)
 * with decay_scale = -exp(A_log), made at load.
 */
struct delta_gate_args {
    float *beta, *log_decay; /* [n_row, n_v_head] */
    const float *a, *b;
    size_t a_stride, b_stride;
    const float *decay_scale, *dt_bias; /* [n_v_head] */
    uint32_t n_row, n_v_head;
};

/*
 * Gated delta rule (Yang, Kautz, Hatamizadeh 2024, arXiv:2412.06464) on the
 * absolute grid. A session keeps the state S0 at the last grid point (position
 * rounded down to GRID) and a ring of records since then. Row t with index i
 * inside its grid chunk, v-head h of k-head g = h / (n_v / n_k):
 *   k = k / sqrt(sum k^2 + 1e-6), q likewise, then q * (1 / sqrtf(d_k))
 *   G_i = G_{i-1} + log_decay                       (double; G_-1 = 0)
 *   a[e] = chain over d of S0[d][e] k[d];  c[e] same with q
 *   r[e] = fma(-exp(G_i), a[e], v[e])
 *   u[e] = beta * (chain over j < i ascending: r = fma(-w_ij, u_j[e], r)),
 *          w_ij = exp(G_i - G_j) * (k_i . k_j)
 *   o[e] = exp(G_i) * c[e], then chain over j <= i: fma(x_ij, u_j[e], o),
 *          x_ij = exp(G_i - G_j) * (q_i . k_j)
 *   k_i . k_j and q_i . k_j: fma chain over d ascending
 * Differences of G are taken in double and rounded to float before exp. When
 * i = GRID - 1 the ring is folded, per element, ascending j:
 *   S0[d][e] = exp(G_i) * S0[d][e], then fma(exp(G_i - G_j) * k_j[d], u_j[e],
 * .) Decode, prefill and verification are this one operator: a row is the same
 * chain of operations whichever call brought it (E2, E3). Ring entries from
 * the row's own index on are never read before they are written: rejecting a
 * draft inside a chunk is moving the position back.
 * Sum of k^2 by scalar_sum_squares; normalised as k * (1 / sqrtf(sum + 1e-6)).
 *
 * That is FP32. In PAIR and TILE k and q, once normalised (and q scaled), are
 * rounded by scalar_to_bf16(), the rings keep bf16, and all but the triangle
 * next to the diagonal are sums P of bf16 times bf16 in the order of the
 * arithmetic (kernels/linear.h): from zero, both sides padded with +0 to
 * LINEAR_STEP, and +0 added at the end, so that no zero weight shows in a bit
 * whatever finite number it meets. ~ rounds to bf16, b = i - i % DELTA_BLOCK:
 *   a[e] = P over d of k[d] ~S0[d][e];  c[e] same with q
 *   w_ij = exp(G_i - G_j) * (P of k_i, k_j);  x_ij same with q_i
 *   r = fma(-exp(G_i), a[e], v[e]);  r = r - (P over j < b of ~w_ij u_j[e])
 *   then for j = b .. i - 1 ascending r = fma(-w_ij, u_j[e], r)
 *   u_i[e] = ~(beta * r)
 *   o[e] = fma(exp(G_i), c[e], P over j <= i of ~x_ij u_j[e])
 * and the fold of a full chunk is
 *   S0[d][e] = fma(exp(G_63), S0[d][e],
 *                  P over j of ~(exp(G_63 - G_j) * k_j[d]) u_j[e])
 *
 * In MMA the convolution leaves k and q as they enter products, and they are
 * read nowhere else: unit rows, [n_row][2 * n_k_head * d_k] of bf16 without a
 * stride, a row's queries, then its keys.
 */
#define DELTA_BLOCK 16u

/*
 * The rings in FP32, as floats, and in PAIR and TILE, as bf16 with two inner
 * steps side by side, as the right side of a product wants them:
 *     ring_k  [n_k_head][d_k][GRID]   [n_k_head][d_k/2, rounded up][GRID][2]
 *     ring_u  [n_v_head][GRID][d_v]   [n_v_head][GRID/2][d_v][2]
 * In MMA they are plain rows of bf16, [n_k_head][GRID][d_k] and
 * [n_v_head][GRID][d_v + DELTA_BLOCK]; ring_u has not u but what its blocks are
 * solved from, right sides and a row of the inverse (kernels/cuda/delta.cuh).
 */
struct delta_state {
    float *s;       /* [n_v_head][d_k][d_v] S0 */
    void *ring_k;   /* normalised keys, lanes are tokens */
    void *ring_u;   /* lanes are outputs */
    double *ring_g; /* [n_v_head][GRID] */
    /*
     * ~S0 as words of two steps, which a CPU's steps of one row read in place
     * of S0 while it stands still; NULL: none. Made by the step that finds it
     * missing, so it belongs to no state that is stored: whoever writes S0 sets
     * made_of to zero. Only in PAIR and TILE, if d_k is even and d_v whole
     * vectors.
     */
    uint32_t *copy;    /* [n_v_head][d_k / 2][d_v] */
    uint64_t *made_of; /* [n_v_head] position / GRID + 1; 0: not made */
    float *tail;       /* of the convolution, if that is made here */
};
struct delta_span {
    uint32_t first_row, n_row;
    uint64_t position; /* of the first row */
    struct delta_state state;
};
struct delta_args {
    struct delta_shape shape;
    float *out; /* rows [n_v_head * d_v] */
    size_t out_stride;
    const float *q, *k, *v;        /* rows [n_k*d_k], [n_k*d_k], [n_v*d_v] */
    size_t qkv_stride;             /* one stride: they are parts of one row */
    const uint16_t *unit;          /* in MMA, and q and k are NULL then */
    const float *beta, *log_decay; /* [n_row, n_v_head] */
    /*
     * Not NULL: q, k and v, which stand side by side in this order, are inputs
     * of conv(), and the operator convolves them as that does: these are its
     * weights, and each span has its tail. Where backend.delta_convolves.
     */
    const float *conv; /* [conv_width][channels of q, k and v] */
    const struct delta_span *span;
    uint32_t n_span, conv_width;
};

/* y = ((x / rms(x)) * weight) * silu(z) per group of dim: norm, then gate. */
struct gated_norm_args {
    struct norm_args norm;
    const float *z; /* rows [n_group * dim] */
    size_t z_stride;
};

/*
 * Layers of experts (Shazeer et al. 2017, arXiv:1701.06538): which experts
 * work on which row, and the rows put in order of experts, so that an expert's
 * weights are read once for all of its rows. A place is a row's turn at one of
 * its experts: places of expert e are first[e] .. first[e + 1] - 1, in order
 * of rows. Nothing in a row's results depends on the place it got.
 */
struct routing {
    uint32_t n_row, n_expert, n_chosen; /* 1 <= n_chosen <= n_expert */
    uint32_t *expert; /* [n_row, n_chosen] ascending within a row */
    float *weight;    /* [n_row, n_chosen] */
    uint32_t *place;  /* [n_row, n_chosen] */
    uint32_t *row;    /* [n_row * n_chosen]: the row at each place */
    uint32_t *first;  /* [n_expert + 1] */
};

/*
 * Fill the routing from the rows' logits, [n_expert] each. With m the largest
 * logit: p = exp(logit - m), w = p / (scalar_sum of p). Chosen are the
 * n_chosen largest w; of equals those with the lower index. Renormalised: each
 * weight divided by their sum, a chain of additions over the chosen in
 * ascending order of experts, from zero. A row whose logits are no numbers
 * still chooses n_chosen different experts.
 */
struct route_args {
    struct routing to;
    const float *logit;
    size_t logit_stride;
    bool is_renormalised;
};

/*
 * The products of all experts in one go: for place i of expert e
 *     y[i] = x[row[i]] w[e]^T
 * with the bits of linear(); row may be NULL for x[i]. Experts without rows
 * are not touched. On a device row and first lie in its memory, whence n_place.
 */
struct expert_args {
    float *y;
    size_t y_stride;
    const float *x;
    size_t x_stride;
    const uint32_t *row;        /* [first[n_expert]] */
    const uint32_t *first;      /* [n_expert + 1] */
    const struct linear *w;     /* [n_expert], of one shape and type */
    uint32_t n_expert, n_place; /* n_place: first[n_expert] */
};

/*
 * A layer's experts on their rows, in one go:
 *     y[i] = (silu(g) * u) down[e]^T,  [g | u] = x[row[i]] gate_up[e]^T
 * for place i of expert e, then, if there is a shared expert,
 *     y[n_place + r] = ffn of x[r]
 * with the bits of expert, swiglu, expert and ffn one after the other. All
 * weights are BF16, an expert's one behind the other's at equal distances.
 */
struct experts_args {
    float *y; /* [n_place + n_row] rows */
    size_t y_stride;
    const uint16_t *x_rounded; /* [n_row] rows */
    uint32_t n_row;
    const uint32_t *row, *first;         /* as expert_args */
    const struct linear *gate_up, *down; /* [n_expert], of an even n_ff */
    uint32_t n_expert, n_place;
    const struct linear *gate, *up, *out; /* the shared expert's, or NULL */
};

/*
 * Add what its experts made of each row, in ascending order of experts, then
 * the shared expert, if any:
 *   s = chain over the chosen i: fma(weight[i], x[place[i]], s), from zero
 *   s = fma(sigmoid(shared_gate), shared, s)
 *   y = y + s
 */
struct combine_args {
    float *y; /* [n_row] rows of dim */
    size_t y_stride;
    const struct routing *by;
    const float *x; /* rows of dim, by place */
    size_t x_stride;
    const float *shared; /* [n_row] rows of dim, or NULL */
    size_t shared_stride;
    const float *shared_gate; /* one float a row */
    size_t gate_stride;
    uint32_t dim;
};

struct device_calls;
struct state_cap_args; /* kernels/state_cap.h */

struct backend {
    const char *name;           /* "ref", "avx2", ..., as --backend */
    bool (*is_supported)(void); /* by this machine */
    enum arithmetic arithmetic; /* in which its products are fastest */
    uint32_t arithmetics;       /* those it has, as ARITHMETIC_BIT()s */
    bool has_f8;                /* products of weights in LINEAR_F8 */
    bool has_kv_int8;           /* kv_append and attend of KV_INT8 */
    bool has_rounded_rows;      /* its operators make and take them */
    bool delta_convolves;       /* if it is given weights for it */

    /*
     * NULL: operators read and write host memory. Otherwise that of a device,
     * kernels/device.h, which the pool names.
     *   FAILED_PRECONDITION  not usable here: says what is missing
     */
    enum status (*find_device)(const struct device_calls **out);

    void (*linear)(struct pool *pool, const struct linear_args *args);
    void (*linear_add)(struct pool *pool, const struct linear_args *args);
    void (*ffn)(struct pool *pool, const struct ffn_args *args);
    void (*ffn_add)(struct pool *pool, const struct ffn_args *args);
    void (*rms_norm)(struct pool *pool, const struct norm_args *args);
    void (*gated_norm)(struct pool *pool, const struct gated_norm_args *args);
    void (*swiglu)(struct pool *pool, const struct swiglu_args *args);
    void (*embed)(struct pool *pool, const struct embed_args *args);
    void (*rope)(struct pool *pool, const struct rope_args *args);
    void (*kv_append)(struct pool *pool, const struct kv_append_args *args);
    /* Of devices alone; NULL of the host. */
    void (*kv_view)(struct pool *pool, const struct kv_view_args *args);
    void (*attend)(struct pool *pool, const struct attend_args *args);
    void (*kv_seal)(struct pool *pool, const struct kv_seal_args *args);
    void (*kv_score)(struct pool *pool, const struct kv_score_args *args);
    void (*kv_mass)(struct pool *pool, const struct kv_mass_args *args);
    void (*kv_match)(struct pool *pool, const struct kv_match_args *args);
    void (*conv)(struct pool *pool, const struct conv_args *args);
    void (*delta_gate)(struct pool *pool, const struct delta_gate_args *args);
    void (*delta)(struct pool *pool, const struct delta_args *args);
    void (*state_cap)(struct pool *pool, const struct state_cap_args *args);
    void (*route)(struct pool *pool, const struct route_args *args);
    void (*expert)(struct pool *pool, const struct expert_args *args);
    /* NULL: only one after the other. */
    void (*experts)(struct pool *pool, const struct experts_args *args);
    void (*combine)(struct pool *pool, const struct combine_args *args);
    void (*tops)(struct pool *pool, const struct tops_args *args); /* or NULL */
    /* Like kv_seal, kv_score and kv_mass of memory policies: NULL on devices.
     */
    void (*surprise)(struct pool *pool, const struct surprise_args *args);
    uint32_t (*draw)(const struct draw_args *args);
    void (*peaks)(const struct peaks_args *args);
};

#define ARITHMETIC_BIT(arithmetic) (1u << (arithmetic))
#define ARITHMETICS_CPU (ARITHMETIC_BIT(N_CPU_ARITHMETIC) - 1)

/* All backends of this build that work on host memory, best first, then those
 * with a device; both NULL-terminated. */
const struct backend *const *backend_all(void);
const struct backend *const *backend_devices(void);

/*
 * name: "auto" for the best that this machine supports, or a backend's name;
 * "cuda:PATH" is cuda with the library in the file PATH.
 *   NOT_FOUND            no such backend: lists them
 *   FAILED_PRECONDITION  this machine lacks its instructions, or its device:
 *                        says what is missing
 */
MUST_CHECK enum status backend_find(const char *name,
                                    const struct backend **out);

/*
 * FAILED_PRECONDITION  the backend has no products of this arithmetic: lists
 *                      those it has; or something is not installed that they
 *                      need: says what
 */
MUST_CHECK enum status backend_check(const struct backend *backend,
                                     enum arithmetic arithmetic);

/*
 * cos and sin of position * inv_freq[i], the angle in double, rounded to float
 * at the end. inv_freq is [n_rot / 2], from the model's config.
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status rope_table_init(uint32_t n_rot, uint64_t n_position,
                                       const double *inv_freq,
                                       struct rope_table *out);
void rope_table_release(struct rope_table *table);

/* To the memory of a device, as linear_move(). */
MUST_CHECK enum status rope_table_move(struct rope_table *table,
                                       struct device *device);
#endif
