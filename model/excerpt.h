#ifndef MODEL_EXCERPT_H
#define MODEL_EXCERPT_H
/*
 * An answer from an excerpt (GemFilter, arXiv:2409.17422): early layers know
 * already which tokens of a text matter to its end. So the text goes through
 * the layers up to one softmax layer; there the last token's query is held
 * against all keys, and the tokens whose keys match best, in their order and
 * as a text of their own, are what the whole model reads and goes on from.
 *
 * What is chosen is a function of the tokens, the weights and these numbers.
 * It is never a session's state, for the session has another text.
 */
#include "base/status.h"

#include <stdint.h>

struct model;
struct key_match;

struct excerpt {
    uint32_t n_keep; /* tokens at most; 0: no excerpt is asked for */
    uint32_t layer;  /* whose keys are looked at; EXCERPT_LAYER_ANY: the
                        model's own choice, before excerpt_check() */
    uint32_t n_pool; /* a key counts with those around it; odd */
};
#define EXCERPT_LAYER_ANY UINT32_MAX
#define EXCERPT_POOL 5u /* the paper's */
#define EXCERPT_POOL_MAX 255u
#define EXCERPT_TEXT_SIZE 64u

/*
 * "1024", "1024,layer=3", "1024,layer=3,pool=5".
 *   INVALID_ARGUMENT  says which part, and what is allowed
 */
MUST_CHECK enum status excerpt_parse(const char *text, struct excerpt *out);
/* Such that excerpt_parse() gives the same. */
void excerpt_format(const struct excerpt *excerpt, char out[EXCERPT_TEXT_SIZE]);

/*
 * Can this model make one? Fills in the layer: the first softmax layer behind
 * three eighths of all (the paper's are at 0.41 to 0.59), or else the last.
 *   INVALID_ARGUMENT     the layer is none, or not softmax
 *   FAILED_PRECONDITION  GEMFILTER_UNSUPPORTED: no softmax layers, or its keys
 *                        are in a form that nobody looks at
 */
MUST_CHECK enum status excerpt_check(const struct model *model,
                                     struct excerpt *excerpt);

/* Layers that rows must go through for it. */
uint32_t excerpt_depth(const struct excerpt *excerpt);

/*
 * What a pass is asked for (struct span): how the keys of n >= 1 tokens match
 * the last one's query. The floats lie where excerpt_choose() reads them, and
 * on a model's device beside it. release accepts what is all zero, and leaves
 * that.
 *   RESOURCE_EXHAUSTED, UNAVAILABLE  as device_take()
 */
MUST_CHECK enum status excerpt_match_init(const struct excerpt *excerpt,
                                          const struct model *model, uint64_t n,
                                          struct key_match *out);
void excerpt_match_release(const struct model *model, struct key_match *match);

/*
 * Of n >= 1 tokens, whose keys match as `match` says (kernels/backend.h,
 * kv_match): indices of those that are kept, ascending, in `out`, which has
 * room for n; returns how many. They are the last one, from which the answer
 * goes on, and those with the largest sum of `match` over n_pool neighbours
 * (none beyond the ends; ascending; of equals the earlier; NaN is less than
 * all).
 */
uint32_t excerpt_choose(const struct excerpt *excerpt, const float *match,
                        uint32_t n, uint32_t *out);
#endif
