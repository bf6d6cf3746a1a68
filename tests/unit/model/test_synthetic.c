/*
 * Tensors that are made on demand: held to what their header says, value by
 * value where a rule is stated, by moments where a distribution is. Models made
 * of them: tests/unit/state/test_synthetic.c.
 */
#include "model/synthetic.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static struct safetensors *synthesise(uint64_t seed, bool has_unit_offset)
{
    struct safetensors *file;

    cr_assert_eq(safetensors_synthesise(seed, has_unit_offset, &file),
                 STATUS_OK);
    return file;
}

/* A tensor's values; free() them. */
static float *values(const struct safetensors *file, const char *name,
                     uint64_t n_row, uint64_t n_in)
{
    const uint64_t dim[2] = {n_row, n_in};
    const struct tensor *tensor;
    float *out = malloc(n_row * n_in * sizeof(*out));

    cr_assert_eq(safetensors_need(file, name, n_row > 1 ? 2 : 1,
                                  n_row > 1 ? dim : dim + 1, &tensor),
                 STATUS_OK);
    cr_assert_eq(tensor->type, TENSOR_BF16);
    cr_assert_eq(tensor->n_bytes, 2 * n_row * n_in);
    tensor_read_f32(tensor, 0, n_row * n_in, out);
    safetensors_forget(file);
    return out;
}

Test(synthetic, values_are_a_function_of_seed_name_and_index)
{
    struct safetensors *a = synthesise(7, true), *b = synthesise(7, true);
    struct safetensors *c = synthesise(8, true);
    float *first = values(a, "x.weight", 33, 17);
    float *again = values(a, "x.weight", 33, 17);
    float *other_name = values(b, "y.weight", 33, 17);
    float *same = values(b, "x.weight", 33, 17);
    float *other_seed = values(c, "x.weight", 33, 17);
    const size_t bytes = sizeof(float) * 33 * 17;

    cr_assert(memcmp(first, again, bytes) == 0);
    cr_assert(memcmp(first, same, bytes) == 0);
    cr_assert(memcmp(first, other_name, bytes) != 0);
    cr_assert(memcmp(first, other_seed, bytes) != 0);
    free(first);
    free(again);
    free(other_name);
    free(same);
    free(other_seed);
    safetensors_close(a);
    safetensors_close(b);
    safetensors_close(c);
}

Test(synthetic, products_are_centred_with_deviation_one_over_root_of_inputs)
{
    struct safetensors *file = synthesise(1, false);
    const size_t n = 300u * 400u;
    float *w = values(file, "mlp.up_proj.weight", 300, 400);
    double sum = 0, squares = 0, neighbours = 0;

    for (size_t i = 0; i < n; i++) {
        sum += w[i];
        squares += (double)w[i] * w[i];
        neighbours += i ? (double)w[i] * w[i - 1] : 0;
    }
    cr_assert_lt(fabs(sum / (double)n), 0.001);
    cr_assert_float_eq(squares / (double)n, 1.0 / 400, 0.02 / 400);
    cr_assert_lt(fabs(neighbours) / squares, 0.02);
    free(w);
    safetensors_close(file);
}

static void assert_range(const struct safetensors *file, const char *name,
                         float low, float high)
{
    float *w = values(file, name, 1, 512);
    float least = w[0], most = w[0];

    for (size_t i = 0; i < 512; i++) {
        least = fminf(least, w[i]);
        most = fmaxf(most, w[i]);
    }
    /* BF16 rounds by up to a 256th */
    cr_assert(least >= low - 0.004f * fabsf(low) &&
                  most <= high + 0.004f * fabsf(high),
              "%s: %g to %g", name, least, most);
    cr_assert_gt(most - least, 0.8f * (high - low), "%s", name);
    free(w);
}

Test(synthetic, the_name_decides_the_range)
{
    struct safetensors *plain = synthesise(3, false);
    struct safetensors *offset = synthesise(3, true);

    assert_range(plain, "model.norm.weight", 0.9f, 1.1f);
    assert_range(offset, "model.norm.weight", -0.1f, 0.1f);
    assert_range(offset, "layers.0.input_layernorm.weight", -0.1f, 0.1f);
    assert_range(offset, "layers.0.linear_attn.norm.weight", 0.9f, 1.1f);
    assert_range(offset, "layers.0.linear_attn.A_log", 0.0f, 2.78f);
    assert_range(offset, "layers.0.linear_attn.dt_bias", -6.0f, -2.0f);
    safetensors_close(plain);
    safetensors_close(offset);
}

Test(synthetic, what_was_asked_for_is_counted_once_and_found)
{
    struct safetensors *file = synthesise(1, false);

    cr_assert_null(safetensors_find(file, "a"));
    free(values(file, "a", 2, 3));
    free(values(file, "b", 1, 5));
    free(values(file, "a", 2, 3));
    cr_assert_eq(safetensors_count(file), 2);
    cr_assert_str_eq(safetensors_at(file, 1)->name, "b");
    cr_assert_eq(safetensors_find(file, "a"), safetensors_at(file, 0));
    safetensors_close(file);
}

Test(synthetic, the_digest_tells_seeds_names_shapes_and_rules_apart)
{
    struct safetensors *file[5] = {synthesise(1, false), synthesise(1, false),
                                   synthesise(2, false), synthesise(1, true),
                                   synthesise(1, false)};

    for (int i = 0; i < 4; i++)
        free(values(file[i], i == 1 ? "b" : "a", 2, 3));
    free(values(file[4], "a", 3, 2));
    for (int i = 0; i < 5; i++)
        for (int j = 0; j < i; j++)
            cr_assert(!digest_equal(safetensors_digest(file[i]),
                                    safetensors_digest(file[j])),
                      "%d %d", i, j);
    for (int i = 0; i < 5; i++)
        safetensors_close(file[i]);
}

Test(synthetic, one_name_in_two_shapes_is_refused_and_changes_nothing)
{
    struct safetensors *file = synthesise(1, false);
    const uint64_t dim[2] = {3, 2};
    const struct tensor *tensor = NULL;

    free(values(file, "a", 2, 3));
    cr_assert_eq(safetensors_need(file, "a", 2, dim, &tensor),
                 STATUS_INVALID_ARGUMENT);
    cr_assert_null(tensor);
    cr_assert_eq(safetensors_count(file), 1);
    safetensors_close(file);
}

Test(synthetic, a_shape_that_no_machine_holds_is_refused)
{
    struct safetensors *file = synthesise(1, false);
    const uint64_t dim[3] = {1ull << 40, 1ull << 40, 4};
    const struct tensor *tensor = NULL;

    cr_assert_eq(safetensors_need(file, "a", 3, dim, &tensor),
                 STATUS_RESOURCE_EXHAUSTED);
    cr_assert_null(tensor);
    safetensors_close(file);
}
