#ifndef MODEL_GRAPH_H
#define MODEL_GRAPH_H
/*
 * What struct model holds inside. Known to model.c, which builds it, and to
 * forward.c, piece.c, batch.c and head.c, which run it; nobody else includes
 * this.
 */
#include "model/mlp.h"
#include "model/model.h"

#include <stdbool.h>

#define NUMERICS_SIZE 96u

struct layer {
    const struct mixer *mixer;
    struct mixer_plan plan[N_INDEX];
    struct mixer_layer *mixing; /* owned, as are the norms, [hidden] */
    float *mixer_norm, *mlp_norm;
    struct mlp mlp;
};

struct model {
    struct config config;
    const struct backend *backend;
    struct device *device; /* where weights lie; NULL: the host; owned */
    struct pool *pool;     /* that names it, or NULL; owned */
    struct rooms *rooms;   /* on the host; owned */
    uint64_t n_context;
    uint64_t n_parameter;
    void *embedding; /* [n_vocab, hidden]; owned */
    enum linear_type embedding_type;
    struct layer *layer; /* [n_layer]; owned */
    float *final_norm;   /* [hidden]; owned */
    struct linear head;  /* [n_vocab, hidden]; tied: the embedding, packed */
    enum arithmetic arithmetic;
    enum weight_format format;
    enum kv_format kv;
    float state_cap;        /* model/state_cap.h; 0: none */
    bool has_f32, has_bf16; /* weights among those that keep the file's type */
    struct rope_table rope; /* empty when no layer is softmax */
    struct digest fingerprint;
    char numerics[NUMERICS_SIZE];
};
#endif
