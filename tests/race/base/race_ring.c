/*
 * Several producers, one consumer that sleeps whenever it can. Judged by count
 * and by order per producer; a lost wake-up shows as a wait without end, which
 * the alarm turns into a failure. Items are larger than a word and carry a
 * check, so that a torn copy shows without TSan, too.
 */
#include "base/ring.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { N_PRODUCER = 4, N_ITEM = 20000, LIMIT_S = 120 };

struct item {
    uint32_t producer;
    uint64_t number, check;
    char rest[40];
};

struct producer {
    pthread_t thread;
    struct ring *ring;
    uint32_t id;
    uint32_t pause_every; /* lets the consumer fall asleep; 0: never */
    _Atomic uint64_t *n_seen;
};

static uint64_t check_of(uint32_t producer, uint64_t number)
{
    return (number + 1) * 0x9e3779b97f4a7c15u ^ producer;
}

/* Push all; when told to pause, go on only after all of ours were seen. */
static void *produce(void *arg)
{
    const struct producer *self = arg;

    for (uint64_t n = 0; n < N_ITEM; n++) {
        struct item item = {self->id, n, check_of(self->id, n), {0}};

        while (!ring_push(self->ring, &item))
            sched_yield();
        if (self->pause_every && n % self->pause_every == 0)
            while (atomic_load(&self->n_seen[self->id]) <= n)
                sched_yield();
    }
    return NULL;
}

static void fail(const char *what)
{
    (void)fprintf(stderr, "race_ring: %s\n", what);
    exit(1);
}

static void run(uint32_t capacity, uint32_t pause_every)
{
    struct producer producer[N_PRODUCER];
    _Atomic uint64_t n_seen[N_PRODUCER] = {0};
    uint64_t n_left = (uint64_t)N_PRODUCER * N_ITEM, n_wait = 0;
    struct ring *ring = NULL;
    struct item item;

    if (ring_create(capacity, sizeof(struct item), &ring))
        fail(status_reason());
    for (uint32_t i = 0; i < N_PRODUCER; i++) {
        producer[i] = (struct producer){
            .ring = ring, .id = i, .pause_every = pause_every};
        producer[i].n_seen = n_seen;
        if (pthread_create(&producer[i].thread, NULL, produce, &producer[i]))
            fail("no thread");
    }
    while (n_left > 0) {
        if (!ring_pop(ring, &item)) {
            ring_wait(ring, -1);
            n_wait++;
            continue;
        }
        if (item.producer >= N_PRODUCER ||
            item.check != check_of(item.producer, item.number))
            fail("a torn item");
        if (item.number != n_seen[item.producer])
            fail("an item is lost, doubled or out of order");
        (void)atomic_fetch_add(&n_seen[item.producer], 1);
        n_left--;
    }
    for (uint32_t i = 0; i < N_PRODUCER; i++)
        (void)pthread_join(producer[i].thread, NULL);
    if (ring_pop(ring, &item) || ring_count(ring) != 0)
        fail("more items than were pushed");
    printf("capacity %u, pause every %u: %u items, %lu waits\n", capacity,
           pause_every, N_PRODUCER * N_ITEM, n_wait);
    ring_destroy(ring);
}

static void *kick(void *ring)
{
    for (int i = 0; i < N_ITEM; i++)
        ring_kick(ring);
    return NULL;
}

/* Kicks among pushes: the consumer must not lose an item over them. */
static void run_kicks(void)
{
    struct producer producer = {.id = 0};
    _Atomic uint64_t n_seen[N_PRODUCER] = {0};
    struct ring *ring = NULL;
    pthread_t kicker;
    struct item item;

    if (ring_create(2, sizeof(struct item), &ring))
        fail(status_reason());
    producer.ring = ring;
    producer.pause_every = 3;
    producer.n_seen = n_seen;
    if (pthread_create(&producer.thread, NULL, produce, &producer) ||
        pthread_create(&kicker, NULL, kick, ring))
        fail("no thread");
    while (n_seen[0] < N_ITEM) {
        if (!ring_pop(ring, &item))
            ring_wait(ring, -1);
        else if (item.number != atomic_fetch_add(&n_seen[0], 1))
            fail("an item is lost among kicks");
    }
    (void)pthread_join(producer.thread, NULL);
    (void)pthread_join(kicker, NULL);
    ring_kick(ring);
    ring_wait(ring, -1);
    ring_destroy(ring);
}

int main(void)
{
    (void)alarm(LIMIT_S);
    run(1, 0);
    run(2, 1);
    run(64, 0);
    run(64, 7);
    run(1024, 100);
    run_kicks();
    return 0;
}
