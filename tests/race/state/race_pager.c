/*
 * Sessions of one store under TSan: the engine's thread holds and lets go of
 * blocks while a second thread loads the same session again and again, as the
 * store thread does, and the pager's threads read. All of them share pages.
 * Judged by: a held block has the bytes that were stored, and at the end there
 * are no pages.
 */
#include "base/log.h"
#include "state/paging.h"
#include "state/snapshot_value.h"
#include "state/store_key.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_BLOCK = 60, N_LOAD = 60, N_HOLD = 3000 };

static const struct uid log_uid = {7, 1};
static struct model *model;
static struct store *store;
static struct ring *engine;
static struct pager *pager;
static struct policy policy;

static void check(bool is_true, const char *what)
{
    if (is_true)
        return;
    (void)fprintf(stderr, "race_pager: %s: %s\n", what, status_reason());
    exit(1);
}

static const struct mixer_plan *plan_of(uint32_t layer)
{
    return model_plan_for(model, layer, policy.index);
}

static uint32_t n_layer(void)
{
    return model_config(model)->n_layer;
}

static void store_block(uint64_t block, uint32_t layer, unsigned char *bytes)
{
    const size_t n = plan_of(layer)->block_bytes;
    const char *numerics = model_numerics(model);
    const struct value_head head = {
        .uid = log_uid,
        .numerics = {model_fingerprint(model),
                     digest_bytes(numerics, strlen(numerics)),
                     policy_digest(&policy)},
        .position = (block + 1) * KV_BLOCK,
        .place = block,
        .layer = layer,
        .n_token = KV_BLOCK};
    struct store_batch *batch = store_batch_create(store);
    struct key key = key_at('b', log_uid, block);
    struct writer writer;

    key_add_number(&key, layer, 2);
    memset(bytes, (int)(block + layer), n);
    writer_init(&writer, 1u << 24);
    check(!value_put(&writer, FRAME_BLOCK, &head, bytes, n), "value");
    store_batch_put(batch, key.bytes, key.n, writer.bytes, writer.n);
    check(!store_write(store, batch, false), "write");
    writer_release(&writer);
    store_batch_destroy(batch);
}

static struct paging *load(unsigned char *bytes)
{
    const struct log_path none = {0};
    struct paging *paging;

    check(!paging_create(model, &policy, pager, paging_least(model, &policy),
                         &paging),
          "create");
    check(!paging_expect(paging, N_BLOCK), "expect");
    for (uint64_t b = 0; b < N_BLOCK; b++)
        for (uint32_t i = 0; i < n_layer(); i++) {
            memset(bytes, (int)(b + i), plan_of(i)->block_bytes);
            if (plan_of(i)->block_bytes)
                check(!paging_put(paging, i, b, bytes), "put");
        }
    paging_loaded(paging, N_BLOCK, &none, log_uid);
    return paging;
}

static void *load_often(void *arg)
{
    for (int i = 0; i < N_LOAD; i++)
        paging_destroy(load(arg));
    return NULL;
}

static void hold_often(struct paging *const *paging, uint32_t layer)
{
    uint64_t x = 1;

    for (int i = 0; i < N_HOLD; i++) {
        struct block_source *source = paging_source(paging[i % 2]);
        const unsigned char *at;
        uint64_t block;

        x = x * 6364136223846793005u + 1;
        block = (x >> 33) % N_BLOCK;
        at = source->hold(source, layer, block);
        check(at, "hold");
        source->wait(source, layer);
        check(source->is_ready(source, layer), "ready");
        check(at[0] == (unsigned char)(block + layer), "bytes");
        source->release(source, layer);
    }
}

static void begin(unsigned char *bytes)
{
    struct model_options options = {.backend = NULL};

    log_set_level(LOG_ERROR);
    check(!backend_find("ref", &options.backend), "backend");
    check(!model_load("tests/golden/qwen3_5_text", &options, &model), "model");
    check(!policy_parse("quest:sink=64:window=128:pick=256:step=8", &policy),
          "policy");
    check(!store_open_memory(&store), "store");
    check(!ring_create(4, 8, &engine), "ring");
    check(
        !pager_start(&(struct pager_options){store, model, engine, 3}, &pager),
        "pager");
    for (uint64_t b = 0; b < N_BLOCK; b++)
        for (uint32_t i = 0; i < n_layer(); i++)
            if (plan_of(i)->block_bytes)
                store_block(b, i, bytes);
}

int main(void)
{
    unsigned char *bytes[2] = {malloc(1u << 20), malloc(1u << 20)};
    struct paging *paging[2];
    pthread_t thread;
    uint32_t layer = 0;

    begin(bytes[0]);
    while (plan_of(layer)->block_bytes == 0)
        layer++;
    paging[0] = load(bytes[0]);
    check(!paging_fork(paging[0], &paging[1]), "fork");
    check(pthread_create(&thread, NULL, load_often, bytes[1]) == 0, "thread");
    hold_often(paging, layer);
    (void)pthread_join(thread, NULL);
    paging_destroy(paging[0]);
    paging_destroy(paging[1]);
    check(pager_bytes(pager) == 0 && pager_shared_bytes(pager) == 0, "pages");
    pager_stop(pager);
    ring_destroy(engine);
    store_close(store);
    model_destroy(model);
    free(bytes[0]);
    free(bytes[1]);
    return 0;
}
