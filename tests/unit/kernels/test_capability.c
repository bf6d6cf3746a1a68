/* Which GPUs are served, in which way, and what their bits are called; by what
 * their makers call them. */
#include "kernels/cuda/capability.h"

#include <criterion/criterion.h>

static const struct gpu_kind {
    const char *name;
    int major, minor;
    enum way way;
    const char *generation;
} GPU[] = {
    {"Tesla V100-SXM2-16GB", 7, 0, WAY_NONE, NULL},
    {"Tesla T4", 7, 5, WAY_NONE, NULL},
    {"NVIDIA A100-SXM4-80GB", 8, 0, WAY_SM80, "-sm80"},
    {"NVIDIA A10", 8, 6, WAY_SM80, "-sm86"},
    {"NVIDIA L40S", 8, 9, WAY_SM80, "-sm89"},
    {"NVIDIA H100 80GB HBM3", 9, 0, WAY_SM90, ""},
    {"NVIDIA B200", 10, 0, WAY_SM80, "-sm100"},
    {"NVIDIA GeForce RTX 5090", 12, 0, WAY_SM80, "-sm120"},
};
#define N_GPU (sizeof(GPU) / sizeof(*GPU))

Test(capability, each_gpu_has_its_way)
{
    for (size_t i = 0; i < N_GPU; i++)
        cr_assert_eq(capability_way(GPU[i].major, GPU[i].minor), GPU[i].way,
                     "%s", GPU[i].name);
}

Test(capability, gpus_that_are_too_old_are_refused_by_name_and_capability)
{
    char why[DEVICE_WHY_SIZE];

    for (size_t i = 0; i < N_GPU; i++) {
        const bool is_old = GPU[i].way == WAY_NONE;

        why[0] = 0;
        cr_assert_eq(
            capability_check(GPU[i].name, GPU[i].major, GPU[i].minor, why),
            is_old ? STATUS_FAILED_PRECONDITION : STATUS_OK);
        cr_assert_eq(why[0] != 0, is_old);
    }
    cr_assert_eq(capability_check("Tesla T4", 7, 5, why),
                 STATUS_FAILED_PRECONDITION);
    cr_assert_str_eq(why, "Tesla T4 has compute capability 7.5, needed is 8.0 "
                          "or more (A100, H100 and later)");
}

/* No state may go from one generation to another under the same id. */
Test(capability, each_generation_has_an_id_of_its_own)
{
    char id[DEVICE_GENERATION_SIZE], other[DEVICE_GENERATION_SIZE];

    for (size_t i = 0; i < N_GPU; i++) {
        if (!GPU[i].generation)
            continue;
        capability_generation(GPU[i].major, GPU[i].minor, id);
        cr_assert_str_eq(id, GPU[i].generation);
        for (size_t j = 0; j < i; j++) {
            capability_generation(GPU[j].major, GPU[j].minor, other);
            cr_assert_str_neq(id, other);
        }
    }
}
