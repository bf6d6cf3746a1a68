#ifndef SCHEDULER_FAIR_H
#define SCHEDULER_FAIR_H
/*
 * What each tenant has been served: virtual token counters (Sheng et al. 2023,
 * arXiv:2401.00588). A prompt token that was computed counts FAIR_PROMPT, a
 * generated one FAIR_OUTPUT; who has the smallest counter goes first. Between
 * two tenants that both always have work, counters never drift apart by more
 * than what one pass brings; a tenant that comes
 * back is lifted to the smallest
 * of those that are active, so nobody saves up a claim by being away. Nobody
 * waits while there is room: counters only order what waits.
 */
#include "base/status.h"

#include <stdint.h>

#define FAIR_PROMPT 1u /* weights of the paper's evaluation */
#define FAIR_OUTPUT 2u
#define FAIR_NAME_SIZE 64u

struct fair; /* opaque, because every field is private */

/*
 * For at most n_tenant tenants with requests at the same time; as many more
 * that have none are remembered.  RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status fair_create(uint32_t n_tenant, struct fair **out);
void fair_destroy(struct fair *fair);

/*
 * One request more of a tenant; "" is a tenant as well. Its number stays the
 * same until as many fair_leave() as there were fair_enter(). At most n_tenant
 * tenants at the same time: a mistake of the caller's otherwise. The name is
 * cut to FAIR_NAME_SIZE - 1 bytes.
 */
uint32_t fair_enter(struct fair *fair, const char *name);
void fair_leave(struct fair *fair, uint32_t tenant);
/*
 * One request more of the tenant waits for prompt tokens to be computed; one
 * less, since they are or since it is gone. The tenant is lifted when it had
 * none: who only generates has no claim on what others use meanwhile.
 */
void fair_want(struct fair *fair, uint32_t tenant);
void fair_satisfy(struct fair *fair, uint32_t tenant);
/* Tokens were computed for one of its requests. */
void fair_charge(struct fair *fair, uint32_t tenant, uint64_t n_prompt,
                 uint64_t n_output);
uint64_t fair_counter(const struct fair *fair, uint32_t tenant);
/* All numbers of tenants are below it. */
uint32_t fair_places(const struct fair *fair);
#endif
