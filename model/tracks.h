#ifndef MODEL_TRACKS_H
#define MODEL_TRACKS_H
/*
 * Prompts of a pass that go apart. Where it has enough of them, each thread
 * takes some through all layers alone: a track is a workspace of consecutive
 * spans, in those parts of the pass's own that their rows have. Then no
 * operator is a barrier, and no line goes from core to core; the track that is
 * done first leaves what the others have left to all threads together. Each
 * thread reads all weights for itself, so they must be few. No bit depends on
 * it (E2, E7).
 */
#include "base/status.h"
#include "model/model.h"

#include <stdbool.h>

#define TRACKS_MAX 16u
/* Pieces of a track, in those that a pass has for each thread: rows enough for
 * products that go by rows. */
#define TRACKS_PIECE 2u

struct tracks {
    uint32_t n, max;         /* of the pass; 0: it has none */
    struct workspace *track; /* [max] */
};

/*
 * Room for the tracks of a workspace; none where they would never pay.
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status tracks_init(struct workspace *workspace);
void tracks_release(struct tracks *tracks);
size_t tracks_bytes(const struct tracks *tracks);

/* For so many threads, of a pass that begins: true, and each track has one of
 * its own that begins; false: it stays whole. */
bool tracks_open(struct workspace *workspace, uint32_t n_thread);
#endif
