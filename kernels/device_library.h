#ifndef KERNELS_DEVICE_LIBRARY_H
#define KERNELS_DEVICE_LIBRARY_H
/*
 * The backend "cuda", whose operators come from libgodwit_cuda.so. That is
 * loaded when it is first asked for, so that one binary serves machines with
 * and without a GPU, and stays loaded.
 */
#include "kernels/device.h"

#define DEVICE_LIBRARY_NAME "libgodwit_cuda.so"

/*
 * Load the library at `path`; NULL: the one next to this program, in
 * ../lib/godwit beside it, or where the system's loader looks. Nothing happens
 * when one is loaded already.
 *   FAILED_PRECONDITION  there is none, or none that fits: says which were
 *                        tried
 */
MUST_CHECK enum status device_library_load(const char *path);

extern const struct backend backend_cuda;
#endif
