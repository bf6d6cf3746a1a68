#ifndef PROTO_DESCRIPTORS_H
#define PROTO_DESCRIPTORS_H
/*
 * The public protos and all they import as one serialised
 * google.protobuf.FileDescriptorSet, embedded when the program is built, for
 * server reflection. A constant; any thread.
 */
#include <stddef.h>
#include <stdint.h>

/* Its bytes, static; *out_bytes is how many. */
const uint8_t *descriptors(size_t *out_bytes);
#endif
