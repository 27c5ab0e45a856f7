/* The product that all work on many rows is made of: tiles of 16 rows x 32 inputs, times blocks of 16 packed columns.
 *
 * Two forms, chosen when the library is built: AMX where the processor has it (REMUDA_AMX), else AVX-512 dot products with the
 * sums in registers. Each says in PAIR_STEP, BLOCK_STEP and ROWS_PER_PASS how it wants weights packed and passes cut; nothing
 * else knows which one serves. */
#ifndef REMUDA_TILES_H
#define REMUDA_TILES_H

#include "common.h"

/* One or two tiles of rows: value (row r, input c) of one lies at r * row_step + c / 32 * tile_step + c % 32. */
typedef struct {
    const bf16 *first, *second; /* second: unused with one tile of rows */
    int64_t row_step, tile_step;
} row_tiles;

/* One or two blocks of 16 columns. Of one block: [pairs of inputs][16 columns][2], a line of memory per pair. Of two: per 32
 * inputs 32 such lines, those of a block PAIR_STEP apart, those of a pair BLOCK_STEP. */
typedef const bf16 *column_tiles;

/* What will be wanted soon, fetched a few lines at a time among the arithmetic. */
typedef struct {
    const char *next;
    int64_t lines_per_tile; /* of rows */
} stream_fetch;

ALWAYS_INLINE void fetch_lines_of(stream_fetch *fetch) {
    for (int64_t i = 0; i < fetch->lines_per_tile; i++, fetch->next += 64) _mm_prefetch(fetch->next, _MM_HINT_T1);
}

/* multiply_tiles: sums[row tile][block][16][16] (+)= rows x columns over `tiles` x 32 inputs.
 *
 * Rows from `used` on may be left out; they must be readable all the same. `tall` (two tiles of rows) and `wide` (two blocks)
 * are constants of the caller; `fetch` may be NULL. Between tiles_begin and tiles_end. */
#ifdef REMUDA_AMX
#include "tiles_amx.h"
#else
#include "tiles_avx512.h"
#endif

#endif
