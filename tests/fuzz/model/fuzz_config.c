/*
 * config.json, a NUL, and generation_config.json. What loads must keep the
 * promises that the rest of the program builds on.
 */
#include "model/config.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char dir[] = "/tmp/godwit-fuzz-XXXXXX";
static char config_path[64], generation_path[64];

static void drop_dir(void)
{
    (void)unlink(config_path);
    (void)unlink(generation_path);
    (void)rmdir(dir);
}

static void make_dir(void)
{
    if (config_path[0])
        return;
    if (!mkdtemp(dir))
        abort();
    (void)snprintf(config_path, sizeof(config_path), "%s/config.json", dir);
    (void)snprintf(generation_path, sizeof(generation_path),
                   "%s/generation_config.json", dir);
    (void)atexit(drop_dir);
}

static void write_file(const char *path, const uint8_t *data, size_t size)
{
    FILE *file;

    (void)unlink(path); /* truncating would wait for the disk */
    file = fopen(path, "wb");
    if (!file || fwrite(data, 1, size, file) != size || fclose(file))
        abort();
}

static void check(const struct config *c)
{
    assert(c->n_layer >= 1 && c->n_layer <= CONFIG_LAYER_MAX);
    assert(c->hidden >= 1 && c->hidden <= CONFIG_HIDDEN_MAX);
    assert(c->n_ff <= CONFIG_FF_MAX);
    assert(c->n_vocab >= 1 && c->n_vocab <= CONFIG_VOCAB_MAX);
    assert(c->n_context >= 1 && c->n_context <= CONFIG_CONTEXT_MAX);
    assert(c->n_head >= 1 && c->n_head <= CONFIG_HEAD_MAX);
    assert(c->n_kv_head >= 1 && c->n_head % c->n_kv_head == 0);
    assert(c->d_head >= 1 && c->d_head <= CONFIG_HEAD_DIM_MAX);
    assert(c->rope.n_rot >= 2 && c->rope.n_rot <= c->d_head &&
           c->rope.n_rot % 2 == 0);
    assert(c->rope.theta >= 1.0 && c->rms_eps > 0.0);
    assert(c->rope.kind == ROPE_PLAIN ||
           c->rope.high_freq_factor > c->rope.low_freq_factor);
    for (uint32_t i = 0; i < c->n_layer; i++)
        assert(c->has_experts[i] ? c->n_chosen >= 1 && c->n_expert_ff >= 1
                                 : c->n_ff >= 1);
    assert(c->n_chosen <= c->n_expert && c->n_expert <= CONFIG_EXPERT_MAX);
    assert(c->n_expert_ff <= CONFIG_FF_MAX && c->n_shared_ff <= CONFIG_FF_MAX);
    assert(c->n_eos <= CONFIG_EOS_MAX);
    for (uint32_t i = 0; i < c->n_eos; i++)
        assert(c->eos[i] < c->n_vocab);
    for (uint32_t i = 0; i < c->n_layer; i++)
        assert(c->layer[i] == LAYER_SOFTMAX ||
               (c->n_k_head && c->n_v_head % c->n_k_head == 0 && c->d_k &&
                c->d_v && c->conv_width));
    assert(c->top_k >= 0 && c->top_p >= 0.0f && c->top_p <= 1.0f);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *end = size ? memchr(data, 0, size) : NULL;
    const size_t n = end ? (size_t)(end - data) : size;
    struct config config;

    make_dir();
    write_file(config_path, data, n);
    if (end)
        write_file(generation_path, end + 1, size - n - 1);
    else
        (void)unlink(generation_path);
    if (config_load(dir, &config) == STATUS_OK)
        check(&config);
    else
        assert(status_reason()[0]);
    return 0;
}
