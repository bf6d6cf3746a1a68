/* Which GPUs are refused, by what their makers call them. */
#include "kernels/cuda/capability.h"

#include <criterion/criterion.h>

Test(capability, other_gpus_are_refused_by_name_and_capability)
{
    static const struct {
        const char *name;
        int major, minor;
        const char *why;
    } GPU[] = {
        {"NVIDIA A100-SXM4-80GB", 8, 0,
         "NVIDIA A100-SXM4-80GB has compute capability 8.0, needed is 9.0 "
         "(H100, H200)"},
        {"NVIDIA L40S", 8, 9,
         "NVIDIA L40S has compute capability 8.9, needed is 9.0 (H100, H200)"},
        {"NVIDIA B200", 10, 0,
         "NVIDIA B200 has compute capability 10.0, needed is 9.0 (H100, H200)"},
    };
    char why[DEVICE_WHY_SIZE] = "";

    for (size_t i = 0; i < sizeof(GPU) / sizeof(*GPU); i++) {
        cr_assert_eq(
            capability_check(GPU[i].name, GPU[i].major, GPU[i].minor, why),
            STATUS_FAILED_PRECONDITION);
        cr_assert_str_eq(why, GPU[i].why);
    }
    why[0] = 0;
    cr_assert_eq(capability_check("NVIDIA H100 80GB HBM3", 9, 0, why),
                 STATUS_OK);
    cr_assert_str_eq(why, "");
}
