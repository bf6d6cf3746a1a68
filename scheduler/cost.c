#include "scheduler/cost.h"

#include "kernels/backend.h"

#include <assert.h>
#include <math.h>

#define KEEP 0.98         /* a pass counts so much less after each later one */
#define HOLD 0.02         /* weight of the prior among them */
#define SPREAD_START 4.0  /* the prior is rough: nothing is an outlier yet */
#define SPREAD_LEAST 0.05 /* timers and other processes */
#define SPREAD_KEEP 0.9
#define OUTLIER 3.0 /* errors above so many spreads count as that many */
#define SWEEP_MAX 64u
#define SWEEP_END 1e-9

static const struct cost_fit *fit_of(const struct cost *cost,
                                     enum cost_kind kind)
{
    return kind == COST_DECODE ? &cost->decode : &cost->prompt;
}

static void terms(const struct cost_pass *pass, double out[COST_TERM])
{
    out[0] = 1;
    out[1] = pass->n_row;
    out[2] = pass->n_attended;
    out[3] = pass->n_logit;
}

static double dot(const double *a, const double *b)
{
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3];
}

static void fit_init(struct cost_fit *fit, const double prior[COST_TERM])
{
    *fit = (struct cost_fit){.spread = SPREAD_START};
    for (uint32_t i = 0; i < COST_TERM; i++) {
        assert(prior[i] > 0 && isfinite(prior[i]));
        fit->prior[i] = fit->weight[i] = prior[i];
    }
}

void cost_init(struct cost *cost, const struct cost_prior *p)
{
    double stream = p->weight_bytes / p->byte_per_us;
    double row = p->row_flop / p->flop_per_us;
    double logit = p->logit_flop / p->flop_per_us;

    fit_init(
        &cost->decode,
        (double[]){stream, row, p->attended_bytes / p->byte_per_us, logit});
    fit_init(&cost->prompt,
             (double[]){stream, row, p->attended_flop / p->flop_per_us, logit});
}

double cost_us(const struct cost *cost, const struct cost_pass *pass)
{
    double x[COST_TERM];

    terms(pass, x);
    return dot(fit_of(cost, pass->kind)->weight, x);
}

/*
 * Minimise over w >= 0, in units u[i] = w[i] / prior[i]:
 *   u' moment u / 2 - product' u + HOLD / 2 * sum (u[i] / scale - 1)^2
 * one coordinate after the other, from where the last pass left it.
 */
static void solve(struct cost_fit *fit)
{
    double scale = fit->measured / fit->expected, u[COST_TERM];
    double hold = HOLD / (scale * scale);

    for (uint32_t i = 0; i < COST_TERM; i++)
        u[i] = fit->weight[i] / fit->prior[i];
    for (uint32_t sweep = 0; sweep < SWEEP_MAX; sweep++) {
        double moved = 0;
        for (uint32_t i = 0; i < COST_TERM; i++) {
            double rest = dot(fit->moment[i], u) - fit->moment[i][i] * u[i];
            double best = (fit->product[i] + hold * scale - rest) /
                          (fit->moment[i][i] + hold);
            best = best > 0 ? best : 0;
            moved += fabs(best - u[i]);
            u[i] = best;
        }
        if (moved < SWEEP_END * scale)
            break;
    }
    for (uint32_t i = 0; i < COST_TERM; i++)
        fit->weight[i] = u[i] * fit->prior[i];
}

void cost_observe(struct cost *cost, const struct cost_pass *pass, double us)
{
    struct cost_fit *fit =
        pass->kind == COST_DECODE ? &cost->decode : &cost->prompt;
    double x[COST_TERM], expected, guess, error, weight;

    if (!(us > 0) || !isfinite(us))
        return;
    terms(pass, x);
    expected = dot(fit->prior, x);
    guess = dot(fit->weight, x);
    guess = guess > 0 ? guess : expected;
    error = us / guess - 1;
    if (error > OUTLIER * fit->spread)
        error = OUTLIER * fit->spread;
    us = guess * (1 + error);
    fit->spread = SPREAD_KEEP * fit->spread + (1 - SPREAD_KEEP) * fabs(error);
    fit->spread = fit->spread > SPREAD_LEAST ? fit->spread : SPREAD_LEAST;
    weight = 1 / (us > guess ? us : guess);
    for (uint32_t i = 0; i < COST_TERM; i++)
        x[i] *= fit->prior[i] * weight;
    for (uint32_t i = 0; i < COST_TERM; i++) {
        for (uint32_t j = 0; j < COST_TERM; j++)
            fit->moment[i][j] = KEEP * fit->moment[i][j] + x[i] * x[j];
        fit->product[i] = KEEP * fit->product[i] + x[i] * us * weight;
    }
    expected *= weight;
    fit->measured = KEEP * fit->measured + us * weight * expected;
    fit->expected = KEEP * fit->expected + expected * expected;
    fit->n_pass++;
    solve(fit);
}

double cost_attended(uint64_t position, uint64_t n)
{
    return (double)n * (double)position + (double)n * ((double)n + 1) / 2;
}

double cost_add_us(const struct cost *cost, uint64_t position, uint64_t n)
{
    const double *weight = cost->prompt.weight;

    return weight[1] * (double)n + weight[2] * cost_attended(position, n);
}

double cost_prefill_us(const struct cost *cost, uint64_t from, uint64_t to,
                       uint32_t pass_rows)
{
    const double *weight = cost->prompt.weight;
    uint64_t n_pass;

    if (from >= to)
        return 0;
    n_pass = (to - from + pass_rows - 1) / pass_rows;
    return weight[0] * (double)n_pass + cost_add_us(cost, from, to - from) +
           weight[3];
}

uint64_t cost_chunk(const struct cost *cost, uint64_t position, uint64_t n_max,
                    double budget_us)
{
    uint64_t low = 1, high = n_max, end;

    if (n_max == 0 || cost_add_us(cost, position, n_max) <= budget_us)
        return n_max;
    while (high - low > 1) { /* low fits or is 1, high does not */
        uint64_t middle = low + (high - low) / 2;
        if (cost_add_us(cost, position, middle) <= budget_us)
            low = middle;
        else
            high = middle;
    }
    end = (position + low) / GRID * GRID;
    return end > position ? end - position : low;
}
