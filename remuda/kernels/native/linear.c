/* Linear layers: packing a weight, and y = (x W^T) * scale + bias over all threads. */
#include "gemm.h"
#include "fp8.h"
#include "tiles.h"

/* ---------------------------------------------------------------- packing, once per weight */

typedef struct {
    uint8_t *target;
    const uint8_t *source;
    int64_t n, k, row_step, column_step; /* source value of (column n, input k): number n * row_step + k * column_step */
    int64_t k_tiles;
    int32_t gated, fp8;
} pack_job;

/* Source column of packed column c, or -1 for padding. Gated: blocks of 16 alternate between the two halves of n. */
static int64_t source_column(int64_t c, int64_t n, int64_t gated) {
    if (!gated) return c < n ? c : -1;
    const int64_t half = n / 2, j = c / 32 * 16 + c % 16;
    if (j >= half) return -1;
    return c % 32 < 16 ? j : half + j;
}

/* Source contiguous along k, whole tile: 16 columns x 32 inputs, transposed as pairs. */
static void pack_tile_rows(bf16 *target, const bf16 *source, int64_t row_step) {
    __m512i rows[TILE];
    for (int c = 0; c < TILE; c++) rows[c] = _mm512_loadu_si512(source + c * row_step);
    transpose_16x16(rows);
    for (int pair = 0; pair < TILE; pair++) _mm512_storeu_si512(target + pair * PAIR_STEP, rows[pair]);
}

/* Source contiguous along n, whole tile: two inputs interleaved. */
static void pack_tile_columns(bf16 *target, const bf16 *source, int64_t column_step) {
    for (int pair = 0; pair < TILE; pair++) {
        const __m256i even = _mm256_loadu_si256((const __m256i *)(source + pair * 2 * column_step));
        const __m256i odd = _mm256_loadu_si256((const __m256i *)(source + (pair * 2 + 1) * column_step));
        _mm512_storeu_si512(target + pair * PAIR_STEP, interleave(even, odd));
    }
}

/* Any tile of bf16 or fp8, value by value. */
static void pack_tile_values(const pack_job *job, uint8_t *target, int64_t block, int64_t first_k) {
    for (int64_t c = 0; c < TILE; c++) {
        const int64_t n = source_column(block * TILE + c, job->n, job->gated);
        for (int64_t k = first_k; k < first_k + TILE_K; k++) {
            const int64_t at = (k - first_k) / 2 * PAIR_STEP + block % 2 * BLOCK_STEP + c * 2 + k % 2;
            const int64_t from = n >= 0 && k < job->k ? n * job->row_step + k * job->column_step : -1;
            if (job->fp8) target[at / 64 * 64 + fp8_place(at % 64)] = from < 0 ? 0 : job->source[from];
            else ((bf16 *)target)[at] = from < 0 ? 0 : ((const bf16 *)job->source)[from];
        }
    }
}

static void pack_block(void *context, int64_t block) {
    const pack_job *job = context;
    const int64_t bytes = TILE_SIZE * (job->fp8 ? 1 : (int64_t)sizeof(bf16));
    const int64_t first = source_column(block * TILE, job->n, job->gated);
    const bool whole_columns = first >= 0 && source_column(block * TILE + 15, job->n, job->gated) == first + 15;
    for (int64_t t = 0; t < job->k_tiles; t++) {
        uint8_t *target = job->target + (block / 2 * job->k_tiles + t) * 2 * bytes; /* both blocks of the panel */
        const bf16 *source = (const bf16 *)job->source + first * job->row_step + t * TILE_K * job->column_step;
        const bool whole = !job->fp8 && whole_columns && (t + 1) * TILE_K <= job->k;
        if (whole && job->column_step == 1) pack_tile_rows((bf16 *)target + block % 2 * BLOCK_STEP, source, job->row_step);
        else if (whole && job->row_step == 1) pack_tile_columns((bf16 *)target + block % 2 * BLOCK_STEP, source, job->column_step);
        else pack_tile_values(job, target, block, t * TILE_K);
    }
}

/* Values of the packed form of [n, k]. */
EXPORT int64_t remuda_packed_size(int64_t n, int64_t k, int32_t gated) {
    const int64_t columns = gated ? ceil_div(n / 2, 32) * 64 : ceil_div(n, 32) * 32;
    return columns * ceil_div(k, TILE_K) * TILE_K;
}

EXPORT void remuda_pack(void *target, const void *source, int64_t n, int64_t k, int64_t row_step, int64_t column_step, int32_t gated,
                        int32_t fp8) {
    pack_job job = {target, source, n, k, row_step, column_step, ceil_div(k, TILE_K), gated, fp8};
    run_tasks(pack_block, &job, remuda_packed_size(n, k, gated) / (job.k_tiles * TILE_SIZE));
}

/* ---------------------------------------------------------------- y = x W^T */

#define TASK_BYTES (256 << 10) /* weight bytes of a task where memory sets the pace */
#define TASK_PANELS 8          /* of a task where arithmetic does: see rows_per_task */

typedef struct {
    const packed_weight *w;
    row_view x;
    int64_t m, rows, panels, column_parts;
    output_view out;
} product_job;

static void product_task(void *context, int64_t task) {
    const product_job *job = context;
    const int64_t row = task / job->column_parts * job->rows, first = task % job->column_parts * job->panels;
    row_view x = job->x;
    x.data += row / TILE * x.tile_rows_step;
    output_view out = job->out;
    out.data = (char *)out.data + row * out.leading * (out.kind == STORE_FLOAT ? 4 : 2);
    multiply(job->w, x, min_i64(job->rows, job->m - row), first, min_i64(first + job->panels, job->w->panels), &out);
}

static void run_product(const packed_weight *w, row_view x, int64_t m, output_view out) {
    product_job job = {.w = w, .x = x, .m = m, .out = out};
    const int64_t threads = pool_threads();
    int64_t row_parts = 1;
    job.rows = m;
    if (m <= 64) { /* each weight is read once: a few long streams */
        job.panels = threads == 1 ? w->panels : max_i64(1, min_i64(TASK_BYTES / panel_size(w), w->panels / (threads * 3)));
    } else {
        job.rows = rows_per_task(w->k_tiles);
        job.panels = TASK_PANELS;
        while (job.panels > 2 && ceil_div(m, job.rows) * ceil_div(w->panels, job.panels) < threads * 4) job.panels /= 2;
        while (job.rows > 64 && ceil_div(m, job.rows) * ceil_div(w->panels, job.panels) < threads * 4) job.rows = job.rows / 64 * 32;
        row_parts = ceil_div(m, job.rows);
    }
    job.column_parts = ceil_div(w->panels, job.panels);
    run_tasks(product_task, &job, row_parts * job.column_parts);
}

typedef struct {
    bf16 *tiles;
    const bf16 *x;
    int64_t leading, m, k, tile_rows;
} pack_rows_job;

static void pack_rows_task(void *context, int64_t task) {
    const pack_rows_job *job = context;
    const int64_t first = task * job->tile_rows * TILE, rows = min_i64(job->m - first, job->tile_rows * TILE);
    bf16 *tiles = job->tiles + first * ceil_div(job->k, TILE_K) * TILE_K;
    pack_rows(tiles, job->x + first * job->leading, job->leading, NULL, NULL, rows, job->k);
}

/* Input rows as tiles want them: whole, zeros beyond k. Row-major input serves where it already is that. */
static row_view tiled_input(const bf16 *x, int64_t leading, int64_t m, int64_t k) {
    const bool whole_k = k % TILE_K == 0;
    if (whole_k && (m <= FEW_ROWS || (m <= 64 && m % TILE == 0))) return row_major(x, leading);
    const int64_t row_tiles = ceil_div(m, TILE), k_tiles = ceil_div(k, TILE_K);
    bf16 *tiles = scratch(SCRATCH_INPUT, row_tiles * k_tiles * TILE_SIZE * sizeof(bf16));
    const int64_t per_task = max_i64(1, (64 << 10) / (k_tiles * TILE_SIZE));
    pack_rows_job job = {tiles, x, leading, m, k, per_task};
    run_tasks(pack_rows_task, &job, ceil_div(row_tiles, per_task));
    return tiled(tiles, k_tiles);
}

/* x [m, k] bf16 with rows `x_step` apart -> y [m, n] with rows `y_step` apart, bf16 or float32. */
EXPORT void remuda_linear(const packed_weight *w, const bf16 *x, int64_t x_step, int64_t m, void *y, int64_t y_step, int32_t kind) {
    if (m == 0) return;
    output_view out = {.data = y, .leading = y_step, .kind = kind};
    run_product(w, tiled_input(x, x_step, m, w->k), m, out);
}
