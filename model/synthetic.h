#ifndef MODEL_SYNTHETIC_H
#define MODEL_SYNTHETIC_H
/*
 * Tensors that are made when they are asked for, so that models of real shapes
 * are measured and tested without files: BF16, each value a pure function of
 * seed, tensor's name and index. No architecture is known here; a tensor's kind
 * is told from its name, and scales are such that activations stay near one:
 * norms about 1 (0 where weights mean 1 + w), decays of the delta rule as at
 * initialisation, everything else uniform with deviation 1 / sqrt(last
 * dimension). Used through struct safetensors; one thread.
 */
#include "base/digest.h"
#include "base/status.h"
#include "model/safetensors.h"

#include <stdbool.h>
#include <stdint.h>

struct synthetic;

/*
 * has_unit_offset: norms mean 1 + w, but for the delta rule's own.
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status synthetic_create(uint64_t seed, bool has_unit_offset,
                                        struct synthetic **out);
void synthetic_destroy(struct synthetic *synthetic); /* accepts NULL */

/*
 * The tensor of this name, made now unless it still is. Its record lives as
 * long as `synthetic`, its bytes until synthetic_forget().
 *   INVALID_ARGUMENT    it was asked for with another shape before
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status synthetic_need(struct synthetic *synthetic,
                                      const char *name, uint32_t n_dim,
                                      const uint64_t *dim,
                                      const struct tensor **out);

/*
 * Take the bytes of all tensors back; asked for again, they are made again. At
 * most as many as two forgets had between them are kept for the next ones.
 */
void synthetic_forget(struct synthetic *synthetic);

/* Tensors asked for so far, in the order of their first time. */
uint32_t synthetic_count(const struct synthetic *synthetic);
const struct tensor *synthetic_at(const struct synthetic *synthetic,
                                  uint32_t i);
/* NULL when it was not asked for yet. */
const struct tensor *synthetic_find(const struct synthetic *synthetic,
                                    const char *name);

/* Of the seed, the rules here, and the names and shapes so far. */
struct digest synthetic_digest(const struct synthetic *synthetic);
#endif
