/* The one table of options; a command takes the groups that it needs. */
#include "ops/ctl.h"

#define AT(field) offsetof(struct ctl_options, field)

struct grouped {
    unsigned groups;
    struct setting row;
};

static const struct grouped TABLE[] = {
    {CTL_ROWS_CALL,
     {"endpoint", SETTING_TEXT, "127.0.0.1:50051", 0, 0, NULL, "HOST:PORT",
      "the node to call; or unix:/path", AT(endpoint)}},
    {CTL_ROWS_CALL,
     {"timeout", SETTING_REAL, "0", 0, 1e6, NULL, "seconds",
      "give up after this; 0: 30, and never for generate and checkpoint",
      AT(timeout)}},
    {CTL_ROWS_CALL,
     {"tls-ca", SETTING_TEXT, "", 0, 0, NULL, "FILE",
      "PEM of the authority that signed the node's certificate", AT(tls_ca)}},
    {CTL_ROWS_CALL,
     {"tls-cert", SETTING_TEXT, "", 0, 0, NULL, "FILE",
      "PEM certificate that shows who we are", AT(tls_cert)}},
    {CTL_ROWS_CALL,
     {"tls-key", SETTING_TEXT, "", 0, 0, NULL, "FILE",
      "PEM key of that certificate", AT(tls_key)}},
    {CTL_ROWS_OUTPUT,
     {"output", SETTING_CHOICE, "table", 0, 0, "table|tsv|json", "",
      "form of what stdout gets", AT(output)}},
    {CTL_ROWS_PROMPT,
     {"prompt", SETTING_TEXT, "", 0, 0, NULL, "TEXT", "the text", AT(prompt)}},
    {CTL_ROWS_PROMPT,
     {"prompt-file", SETTING_TEXT, "", 0, 0, NULL, "FILE",
      "read the text from a file; - reads stdin", AT(prompt_file)}},
    {CTL_ROWS_PROMPT | CTL_ROWS_SPECIAL,
     {"special", SETTING_SWITCH, "false", 0, 0, NULL, "",
      "special tokens spelled in the text (<|im_start|>) count as such",
      AT(has_special)}},
    {CTL_ROWS_GENERATE,
     {"session", SETTING_TEXT, "", 0, 0, NULL, "ID",
      "the conversation to go on with, made if it does not exist; without one "
      "nothing is kept",
      AT(session)}},
    {CTL_ROWS_GENERATE,
     {"create", SETTING_SWITCH, "true", 0, 0, NULL, "",
      "--create=false: fail when the session does not exist", AT(creates)}},
    {CTL_ROWS_GENERATE,
     {"chat", SETTING_SWITCH, "false", 0, 0, NULL, "",
      "send the prompt as the user's message of a ChatML conversation",
      AT(is_chat)}},
    {CTL_ROWS_GENERATE,
     {"system", SETTING_TEXT, "", 0, 0, NULL, "TEXT",
      "a system message before it; implies --chat", AT(system)}},
    {CTL_ROWS_GENERATE,
     {"max-tokens", SETTING_NUMBER, "0", 0, 4294967295.0, NULL, "tokens",
      "end the reply after so many; 0 is the node's default", AT(max_tokens)}},
    {CTL_ROWS_GENERATE,
     {"temperature", SETTING_TEXT, "", 0, 0, NULL, "REAL",
      "0 takes the likeliest token; absent: the model's default",
      AT(temperature)}},
    {CTL_ROWS_GENERATE,
     {"top-p", SETTING_TEXT, "", 0, 0, NULL, "REAL",
      "sample from the likeliest tokens of this total probability", AT(top_p)}},
    {CTL_ROWS_GENERATE,
     {"top-k", SETTING_TEXT, "", 0, 0, NULL, "COUNT",
      "sample from so many likeliest tokens", AT(top_k)}},
    {CTL_ROWS_GENERATE,
     {"min-p", SETTING_TEXT, "", 0, 0, NULL, "REAL",
      "drop tokens below this share of the likeliest one's probability",
      AT(min_p)}},
    {CTL_ROWS_GENERATE,
     {"seed", SETTING_TEXT, "", 0, 0, NULL, "NUMBER",
      "same seed, same tokens; absent: the node draws one", AT(seed)}},
    {CTL_ROWS_GENERATE,
     {"stop", SETTING_TEXT, "", 0, 0, NULL, "TEXT",
      "end the reply before this text; one only, of two the last counts",
      AT(stop)}},
    {CTL_ROWS_GENERATE,
     {"ignore-eos", SETTING_SWITCH, "false", 0, 0, NULL, "",
      "do not end where the model would", AT(ignores_eos)}},
    {CTL_ROWS_GENERATE,
     {"request-id", SETTING_TEXT, "", 0, 0, NULL, "ID",
      "names this turn, so that it can be asked for again; absent: drawn",
      AT(request_id)}},
    {CTL_ROWS_GENERATE,
     {"resume-from", SETTING_TEXT, "", 0, 0, NULL, "POSITION",
      "go on with the turn --request-id, whose tokens before this are known",
      AT(resume_from)}},
    {CTL_ROWS_GENERATE,
     {"progress", SETTING_CHOICE, "auto", 0, 0, "auto|bar|lines|none", "",
      "how stderr shows a long prefill; auto: a bar on a terminal, else lines",
      AT(progress)}},
    {CTL_ROWS_GENERATE,
     {"stats", SETTING_SWITCH, "false", 0, 0, NULL, "",
      "say tokens and times on stderr at the end", AT(wants_stats)}},
    {CTL_ROWS_SETTINGS,
     {"labels", SETTING_TEXT, "", 0, 0, NULL, "K=V,...", "marks of your own",
      AT(labels)}},
    {CTL_ROWS_SETTINGS,
     {"ttl", SETTING_NUMBER, "0", 0, 1e10, NULL, "seconds",
      "the node may delete the session after this; 0 never", AT(ttl)}},
    {CTL_ROWS_SETTINGS,
     {"durability", SETTING_CHOICE, "default", 0, 0, "default|none|local", "",
      "when a token counts as kept", AT(durability)}},
    {CTL_ROWS_LIST,
     {"prefix", SETTING_TEXT, "", 0, 0, NULL, "TEXT", "only ids that begin so",
      AT(prefix)}},
    {CTL_ROWS_LIST | CTL_ROWS_RANGE,
     {"limit", SETTING_NUMBER, "0", 0, 1e15, NULL, "count",
      "at most so many; 0 is all", AT(limit)}},
    {CTL_ROWS_RANGE,
     {"from", SETTING_NUMBER, "0", 0, 1e15, NULL, "POSITION", "the first token",
      AT(from)}},
    {CTL_ROWS_DELETE,
     {"allow-missing", SETTING_SWITCH, "false", 0, 0, NULL, "",
      "succeed when there is no such session", AT(allows_missing)}},
    {CTL_ROWS_DELETE | CTL_ROWS_SETTINGS,
     {"etag", SETTING_TEXT, "", 0, 0, NULL, "ETAG",
      "only if the session has not changed since", AT(etag)}},
};

static const struct setting HELP = {
    "help", SETTING_SWITCH,   "false",       0, 0, NULL,
    "",     "show this help", AT(wants_help)};

size_t ctl_rows(unsigned groups, struct setting out[CTL_ROW_MAX])
{
    size_t n = 0;

    for (size_t i = 0; i < sizeof(TABLE) / sizeof(TABLE[0]); i++)
        if (TABLE[i].groups & groups)
            out[n++] = TABLE[i].row;
    out[n++] = HELP;
    return n;
}
