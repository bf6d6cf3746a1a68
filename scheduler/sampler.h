#ifndef SCHEDULER_SAMPLER_H
#define SCHEDULER_SAMPLER_H
/*
 * The next token from logits: a pure function of (logits, sampling parameters,
 * tokens so far, seed, position).
 *
 * Order: logit bias, repetition penalty (divide positive, multiply negative
 * logits of tokens seen in the session; Keskar et al. 2019, arXiv:1909.05858),
 * presence and frequency penalties (of this turn's output), min_tokens (ends
 * are barred), temperature, top-k, top-p, min-p (each over what the one before
 * left, ties broken by lower id), then Gumbel-max: argmax of
 * logit / T + g(seed, position, token) with g = -log(-log(u)), u from a
 * counter-based generator (Philox 4x32-10, Salmon et al. 2011) keyed by seed
 * with counter (position, token / 4) and word token % 4: no generator state
 * exists. Temperature 0 is argmax. Every elementary function is
 * kernels/scalar.h's. A logit that is NaN counts as minus infinity.
 *
 * top-p keeps the shortest run of tokens in falling order whose probability
 * reaches top_p (Holtzman et al. 2019, arXiv:1904.09751); min-p keeps tokens
 * at least min_p times as probable as the best (Nguyen et al. 2024,
 * arXiv:2407.01082). Log probabilities are the model's own: of the logits as
 * they came, before all of the above.
 */
#include "base/status.h"
#include "kernels/backend.h"
#include "scheduler/event.h"
#include "state/session.h"

struct sampler; /* scratch for one vocabulary; one thread */

/* The backend's bits are those of any other.
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status sampler_create(const struct backend *backend,
                                      uint32_t n_vocab, struct sampler **out);
void sampler_destroy(struct sampler *sampler);

/* What "tokens so far" means to the penalties; tokens are borrowed. */
struct sampler_history {
    const uint32_t *token; /* [n_token] all of the session's log */
    uint64_t n_token;      /* also the position of the token to choose */
    uint64_t output_start; /* first sampled token of this turn */
    const uint32_t *end;   /* [n_end] ids that end the turn */
    uint32_t n_end;
};

/* logits: [n_vocab], not changed. out_logprobs may be NULL. */
uint32_t sampler_pick(struct sampler *sampler, const struct sampling *sampling,
                      const float *logits,
                      const struct sampler_history *history,
                      struct logprobs *out_logprobs);

/*
 * The same token, and log probabilities, from the best logits alone; false
 * where they do not decide it. They do for temperature 0, top-k of less than
 * TOPS_MAX with whatever comes behind it, and min-p, but not where logits are
 * changed before, and, once in some thousand times, not for log probabilities.
 */
MUST_CHECK bool sampler_pick_tops(struct sampler *sampler,
                                  const struct sampling *sampling,
                                  const struct tops *tops,
                                  const struct sampler_history *history,
                                  struct logprobs *out_logprobs,
                                  uint32_t *out_token);

/* Defaults: greedy off (temperature 1), everything else off. */
void sampling_init(struct sampling *sampling);
/*
 * INVALID_ARGUMENT  a value out of range or NaN (SAMPLING_OUT_OF_RANGE); the
 *                   cause's field is "sampling_params.top_p" etc.
 */
MUST_CHECK enum status sampling_check(const struct sampling *sampling,
                                      uint32_t n_vocab);
#endif
