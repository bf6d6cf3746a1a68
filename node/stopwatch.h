#ifndef NODE_STOPWATCH_H
#define NODE_STOPWATCH_H
/*
 * Where a step's time goes, without a line in the kernels: a table of operators
 * that call another backend's and, while the stopwatch runs, add up their time
 * by part. Operators get no context but their pool, so there is one stopwatch
 * per process; it is for `bench`, whose only thread uses it.
 */
#include "kernels/backend.h"

enum stopwatch_part {
    STOPWATCH_PRODUCTS,  /* of weights, experts too */
    STOPWATCH_DELTA,     /* delta rule, its gates and convolution */
    STOPWATCH_ATTENTION, /* over the past, rotation and storing */
    STOPWATCH_REST,      /* norms, gates, activations, embedding, routing */
    N_STOPWATCH_PART
};

struct stopwatch {
    double seconds[N_STOPWATCH_PART];
    double product_flops;
};

/*
 * The table that times `backend`: same name, same results. Load the model with
 * it. One backend at a time.
 */
const struct backend *stopwatch_backend(const struct backend *backend);

/* From here on time is added up, from zero. */
void stopwatch_start(void);
/* Stop, and read what was added up. */
struct stopwatch stopwatch_stop(void);
#endif
