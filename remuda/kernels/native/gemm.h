/* Products with packed weights: the blocks that linear.c and moe.c are built from. */
#ifndef REMUDA_GEMM_H
#define REMUDA_GEMM_H

#include "common.h"

/* A packed weight [N, K]: N in panels of 32 columns, each panel [K / 32] times the lines of two
 * blocks of columns as tiles.h has them, so that the 32 values of K of a block are one tile (16 lines of 64 bytes). K is padded with
 * zeros to a multiple of 32, N to a multiple of 32. A gated weight alternates blocks of gate and of up columns; its product has N / 2 columns. */
typedef struct {
    const uint8_t *data; /* bf16, or with `fp8` bytes of float8_e4m3fn in the order of fp8.h */
    const float *scale;  /* per column in packed order, or NULL */
    const float *bias;   /* per column in packed order, or NULL */
    int64_t n;           /* columns of the product (before padding; of a gated weight: of silu(gate) * up) */
    int64_t k;
    int32_t k_tiles; /* padded k / 32 */
    int32_t panels;  /* padded columns / 32: pairs of blocks */
    int32_t gated;
    int32_t fp8;
} packed_weight;

/* Rows of bf16 input, row-major or in tiles: value (row r, column c) lies at
 * data[r / 16 * tile_rows_step + r % 16 * row_step + c / 32 * tile_step + c % 32]. */
typedef struct {
    const bf16 *data;
    int64_t row_step, tile_step, tile_rows_step;
} row_view;

ALWAYS_INLINE row_view row_major(const bf16 *x, int64_t leading) { return (row_view){x, leading, TILE_K, TILE * leading}; }
ALWAYS_INLINE row_view tiled(const bf16 *x, int64_t k_tiles) { return (row_view){x, TILE_K, TILE_SIZE, k_tiles * TILE_SIZE}; }

enum output_kind { STORE_BF16, STORE_FLOAT, ADD_BF16 };

/* Where a product goes. Row r is written at row rows[r] of data (or r), columns as they come; or, `tiled`, in tiles. */
typedef struct {
    void *data;
    int64_t leading;
    const int32_t *rows;
    const float *factor; /* with ADD_BF16: what row r is multiplied by, or NULL */
    int32_t kind;
    int32_t tiled_k; /* > 0: data is in tiles of this many k tiles */
} output_view;

/* product of rows [0, m) of x with panels [first, last) of w, streamed for few rows, in tiles (tiles.h) for many. */
void multiply(const packed_weight *w, row_view x, int64_t m, int64_t first_panel, int64_t last_panel, const output_view *out);

/* Rows that need no tiles; with more, the input must be readable in whole tiles. */
#define FEW_ROWS 4

/* Copy rows (index[r] or r, times factor[r] where given) into tiles, columns padded with zeros to whole tiles. Rows that
 * fill up the last tile are left as they are: no row's product depends on another row. */
void pack_rows(bf16 *tiles, const bf16 *x, int64_t leading, const int32_t *index, const float *factor, int64_t m, int64_t k);

/* Bytes of 32 inputs x 16 columns, and of one panel: all inputs x 32 columns. */
ALWAYS_INLINE int64_t tile_bytes(const packed_weight *w) { return w->fp8 ? TILE_SIZE : TILE_SIZE * (int64_t)sizeof(bf16); }
ALWAYS_INLINE int64_t panel_size(const packed_weight *w) { return w->k_tiles * 2 * tile_bytes(w); }

#define K_BLOCK 8 /* k tiles (256 values) of a panel, 16 KiB: they stay in the first-level cache */

/* Rows that one core takes at a time: they stay in its second-level cache (1 of 2 MiB) while the weight streams past. The
 * third level is not much faster than memory, so that this, not the arithmetic, decides how fast a long batch runs. */
ALWAYS_INLINE int64_t rows_per_task(int64_t k_tiles) {
    return min_i64(512, (1 << 20) / (min_i64(k_tiles, 64) * TILE_K * (int64_t)sizeof(bf16)) / 32 * 32);
}

#endif
