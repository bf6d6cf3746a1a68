/*
 * Our server before the scripted engine, as a program for check_server.py.
 * Prints its port; on a line "drain" it drains; when stdin ends it stops.
 *
 * usage: fake_server [CERT KEY [CA]]
 */
#include "model/tokenizer.h"
#include "rpc/server.h"

#include <stdio.h>

#include "tests/unit/rpc/fake_engine.h"

int main(int argc, char **argv)
{
    struct fake_engine fake;
    struct tokenizer *tokenizer = NULL;
    struct server *server = NULL;
    struct server_options options = {
        .listen = "127.0.0.1:0",
        .tls_cert = argc > 1 ? argv[1] : "",
        .tls_key = argc > 2 ? argv[2] : "",
        .tls_ca = argc > 3 ? argv[3] : "",
        .max_message_bytes = 1 << 20,
        .max_streams = 100,
        .reply_bytes = 64 << 10,
        .has_reflection = true,
        .model_name = "godwit-tiny",
        .n_vocab = 4096,
        .n_context = 32768,
        .durability = DURABILITY_LOCAL,
        .clock = clock_real(),
    };
    char line[64];

    fake_start(&fake, 256);
    options.inbox = fake.inbox;
    options.outbox = fake.outbox;
    if (tokenizer_load("assets/models/godwit-tiny", &tokenizer)) {
        fprintf(stderr, "fake_server: %s\n", status_reason());
        return 1;
    }
    options.tokenizer = tokenizer;
    if (server_start(&options, &server)) {
        fprintf(stderr, "fake_server: %s\n", status_reason());
        return 1;
    }
    printf("%u\n", server_port(server));
    fflush(stdout);
    while (fgets(line, sizeof(line), stdin))
        if (strcmp(line, "drain\n") == 0)
            server_drain(server);
    server_drain(server);
    fake_drain(&fake);
    server_stop(server, 2000);
    fake_release(&fake);
    tokenizer_destroy(tokenizer);
    return 0;
}
