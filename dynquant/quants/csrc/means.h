/* The means of input channels, and the bias that errors of weights give a row's output. */
#pragma once

#include <stdint.h>
#include <string.h>

#include "codec.h"

/* The ridge below the importances, as a share of their mean: a channel of no importance would take
 * all of the correction. */
static const double RIDGE = 1e-3;

/* The input channels of one column range of a block: importances w and means, and by how much a
 * weight moves for a bias of one that is to be taken back, before it is shared among the columns
 * that follow. `sum` is what the range adds to the sum of mean^2 / importance. */
struct channels { float w[MAX_BLOCK]; double mean[MAX_BLOCK], pull[MAX_BLOCK], sum; };

static double ridge_of(const void *importance, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        float w;
        memcpy(&w, (const uint8_t *)importance + 4 * i, sizeof w);
        sum += w;
    }
    return RIDGE * sum / (double)n;
}

static void channels_of(struct channels *c, const void *importance, const void *mean, double ridge,
                        int64_t at, int n)
{
    c->sum = 0;
    memcpy(c->w, (const uint8_t *)importance + 4 * at, (size_t)n * sizeof *c->w);
    for (int i = 0; i < n; i++) {
        float of_channel;
        memcpy(&of_channel, (const uint8_t *)mean + 4 * (at + i), sizeof of_channel);
        double scale = c->w[i] + ridge;
        c->mean[i] = of_channel;
        c->pull[i] = scale > 0 ? of_channel / scale : 0;
        c->sum += c->pull[i] * of_channel;
    }
}

/* The sum of (x - y) * mean, in four parts so that additions need not wait for each other. */
static double bias_of(const float *x, const float *y, const double *mean, int n)
{
    double sum[4] = {0};
    for (int i = 0; i < n; i += 4)
        for (int k = 0; k < 4; k++)
            sum[k] += ((double)x[i + k] - y[i + k]) * mean[i + k];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}
