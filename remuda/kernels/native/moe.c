/* Routing and routed experts. Tokens are sorted by expert; each expert's rows are packed once, and the two products run over
 * all threads. A token's score multiplies its rows as they are packed (Llama 4 scales the expert's input) or as they are
 * added to the result. */
#include "gemm.h"

#include <math.h>

#define TASK_BYTES (256 << 10)
#define TASK_PANELS 8

/* ---------------------------------------------------------------- routing */

/* What a chosen expert's weight is, of its logit: softmax is over all experts, or over the chosen alone. */
enum scoring { SIGMOID, SOFTMAX, SOFTMAX_OF_CHOSEN };

typedef struct {
    const bf16 *logits;
    int64_t *expert;
    float *weight;
    int64_t experts, top_k;
    int32_t scoring;
} route_job;

/* The top_k largest logits, first index first among equals. */
static void choose(const bf16 *logits, int64_t experts, int64_t top_k, int64_t *chosen) {
    bool taken[experts];
    memset(taken, 0, sizeof taken);
    for (int64_t choice = 0; choice < top_k; choice++) {
        int64_t best = -1;
        for (int64_t e = 0; e < experts; e++) {
            if (!taken[e] && (best < 0 || to_float(logits[e]) > to_float(logits[best]))) best = e;
        }
        taken[chosen[choice] = best] = true;
    }
}

static void route_token(const route_job *job, int64_t token) {
    const bf16 *logits = job->logits + token * job->experts;
    int64_t *chosen = job->expert + token * job->top_k;
    float *weight = job->weight + token * job->top_k, sum = 0;
    choose(logits, job->experts, job->top_k, chosen);
    const float largest = to_float(logits[chosen[0]]);
    if (job->scoring == SOFTMAX) {
        for (int64_t e = 0; e < job->experts; e++) sum += expf(to_float(logits[e]) - largest);
    } else if (job->scoring == SOFTMAX_OF_CHOSEN) {
        for (int64_t c = 0; c < job->top_k; c++) sum += expf(to_float(logits[chosen[c]]) - largest);
    }
    for (int64_t c = 0; c < job->top_k; c++) {
        const float logit = to_float(logits[chosen[c]]);
        weight[c] = job->scoring == SIGMOID ? 1.0f / (1.0f + expf(-logit)) : expf(logit - largest) / sum;
    }
}

/* logits [tokens, experts] bf16 -> expert [tokens, top_k] int64, weight [tokens, top_k] float32 by enum scoring. */
EXPORT void remuda_route(const bf16 *logits, int64_t *expert, float *weight, int64_t tokens, int64_t experts, int64_t top_k,
                         int32_t scoring) {
    const route_job job = {logits, expert, weight, experts, top_k, scoring};
    for (int64_t token = 0; token < tokens; token++) route_token(&job, token);
}

/* ---------------------------------------------------------------- experts */

/* The rows that chose one expert: entries [first, first + rows) of the sorted order, tiles from first_tile on. */
typedef struct {
    int32_t expert;
    int64_t first, rows, first_tile;
} run;

typedef struct {
    const packed_weight *gate_up, *down;
    const bf16 *x;
    int64_t x_step;
    run *runs;
    int64_t count;    /* runs */
    int32_t *token;   /* of each sorted entry */
    float *weight;    /* of each sorted entry */
    bool weigh_output;
    bf16 *input, *hidden;
    output_view out;
    struct piece *pieces;
} experts_job;

/* A task of a product: rows [row, row + rows) of a run and panels [first, last) of its expert's weight. */
typedef struct piece {
    const run *run;
    int64_t row, rows, first, last;
} piece;

/* Sort the choices by expert, keeping token order within one. Returns the number of tiles that hold them. */
static int64_t sort_choices(experts_job *job, const int64_t *expert, const float *weight, int64_t choices, int64_t top_k,
                            int64_t experts) {
    int64_t counts[experts], tiles = 0, first = 0;
    memset(counts, 0, sizeof counts);
    for (int64_t i = 0; i < choices; i++) {
        if (expert[i] >= 0) counts[expert[i]]++;
    }
    for (int64_t e = 0; e < experts; e++) {
        if (!counts[e]) continue;
        job->runs[job->count++] = (run){(int32_t)e, first, counts[e], tiles};
        tiles += ceil_div(counts[e], TILE);
        first += counts[e];
        counts[e] = first - counts[e]; /* from now on: where the next of this expert goes */
    }
    for (int64_t i = 0; i < choices; i++) {
        if (expert[i] < 0) continue;
        const int64_t at = counts[expert[i]]++;
        job->token[at] = (int32_t)(i / top_k);
        job->weight[at] = weight[i];
    }
    return tiles;
}

static void pack_task(void *context, int64_t task) {
    const experts_job *job = context;
    const run *r = job->runs + task;
    bf16 *tiles = job->input + r->first_tile * job->gate_up->k_tiles * TILE_SIZE;
    const float *factor = job->weigh_output ? NULL : job->weight + r->first;
    pack_rows(tiles, job->x, job->x_step, job->token + r->first, factor, r->rows, job->gate_up->k);
}

static void gate_up_task(void *context, int64_t task) {
    const experts_job *job = context;
    const piece *p = job->pieces + task;
    const packed_weight *w = job->gate_up + p->run->expert;
    const int64_t tile = p->run->first_tile + p->row / TILE, hidden_tiles = job->down->k_tiles;
    const output_view out = {.data = job->hidden + tile * hidden_tiles * TILE_SIZE, .tiled_k = (int32_t)hidden_tiles};
    multiply(w, tiled(job->input + tile * w->k_tiles * TILE_SIZE, w->k_tiles), p->rows, p->first, p->last, &out);
}

static void down_piece(const experts_job *job, const run *r, int64_t row, int64_t rows, int64_t first, int64_t last) {
    const packed_weight *w = job->down + r->expert;
    const int64_t tile = r->first_tile + row / TILE;
    output_view out = job->out;
    out.rows = job->token + r->first + row;
    if (job->weigh_output) out.factor = job->weight + r->first + row;
    multiply(w, tiled(job->hidden + tile * w->k_tiles * TILE_SIZE, w->k_tiles), rows, first, last, &out);
}

static void down_task(void *context, int64_t task) {
    const experts_job *job = context;
    const piece *p = job->pieces + task;
    down_piece(job, p->run, p->row, p->rows, p->first, p->last);
}

/* With several choices per token two experts add to one row: a task takes some columns through all experts, in order. */
static void down_columns_task(void *context, int64_t task) {
    const experts_job *job = context;
    for (int64_t i = 0; i < job->count; i++) down_piece(job, job->runs + i, 0, job->runs[i].rows, task, task + 1);
}

static int64_t cut_runs(const experts_job *job, const packed_weight *w, bool few_rows) {
    const int64_t streamed = max_i64(1, min_i64(TASK_BYTES / panel_size(w), ceil_div(w->panels * job->count, pool_threads() * 3)));
    const int64_t panels = few_rows ? streamed : TASK_PANELS;
    const int64_t rows = rows_per_task(w->k_tiles);
    piece *next = job->pieces;
    for (int64_t i = 0; i < job->count; i++) {
        const run *r = job->runs + i;
        for (int64_t row = 0; row < r->rows; row += rows) {
            for (int64_t p = 0; p < w->panels; p += panels) {
                *next++ = (piece){r, row, min_i64(rows, r->rows - row), p, min_i64(w->panels, p + panels)};
            }
        }
    }
    return next - job->pieces;
}

/* y [tokens, hidden] = the sum over each token's choices of expert(weight * x), or with weigh_output weight * expert(x).
 * Expert -1 is skipped. gate_up, down: one packed weight per expert. */
EXPORT void remuda_experts(const packed_weight *gate_up, const packed_weight *down, int64_t experts, const bf16 *x, int64_t x_step,
                           const int64_t *expert, const float *weight, int64_t tokens, int64_t top_k, bf16 *y, int64_t y_step,
                           int32_t weigh_output) {
    const int64_t choices = tokens * top_k, most_runs = min_i64(choices, experts);
    const int64_t most_pieces = (choices / min_i64(rows_per_task(gate_up->k_tiles), rows_per_task(down->k_tiles)) + most_runs) * max_i64(gate_up->panels, down->panels);
    for (int64_t t = 0; t < tokens; t++) memset(y + t * y_step, 0, down->n * sizeof(bf16));
    char *index = scratch(SCRATCH_INDEX, most_pieces * sizeof(piece) + most_runs * sizeof(run) + choices * 8);
    experts_job job = {.gate_up = gate_up, .down = down, .x = x, .x_step = x_step, .weigh_output = weigh_output};
    job.pieces = (piece *)index;
    job.runs = (run *)(job.pieces + most_pieces);
    job.token = (int32_t *)(job.runs + most_runs);
    job.weight = (float *)(job.token + choices);
    job.out = (output_view){.data = y, .leading = y_step, .kind = ADD_BF16};
    const int64_t tiles = sort_choices(&job, expert, weight, choices, top_k, experts);
    job.input = scratch(SCRATCH_INPUT, tiles * gate_up->k_tiles * TILE_SIZE * sizeof(bf16));
    job.hidden = scratch(SCRATCH_HIDDEN, tiles * down->k_tiles * TILE_SIZE * sizeof(bf16));
    if (choices * gate_up->k < 16384) { /* not worth a fork */
        for (int64_t i = 0; i < job.count; i++) pack_task(&job, i);
    } else {
        run_tasks(pack_task, &job, job.count);
    }
    const bool few_rows = choices <= 64;
    run_tasks(gate_up_task, &job, cut_runs(&job, gate_up, few_rows));
    if (top_k == 1) run_tasks(down_task, &job, cut_runs(&job, down, few_rows));
    else run_tasks(down_columns_task, &job, down->panels);
}
