#ifndef TESTS_SIM_SCENARIO_H
#define TESTS_SIM_SCENARIO_H
/*
 * Traces made from a seed, and the node that they are made for.
 */
#include "node.h"

struct scenario {
    const char *name, *what;
    void (*make)(struct trace *trace, uint64_t seed);
    void (*tune)(struct node_options *options); /* NULL: as they are */
};
extern const struct scenario scenarios[];
extern const uint32_t n_scenario;

/* A machine like two cores with matrix units and a model of 0.8 billion. */
void scenario_options(struct node_options *out);
const struct scenario *scenario_find(const char *name); /* or NULL */
#endif
