/* Products of bf16 rows with packed weights: two streams of dot products for up to four rows, tiles for more. */
#include "gemm.h"
#include "fp8.h"
#include "tiles.h"

#define AHEAD_PER_PASS 8192 /* bytes between what is multiplied and what is fetched meanwhile */
#define AHEAD_OF_EACH 4096  /* the same, of each of two streams */

/* ---------------------------------------------------------------- what happens to a finished panel
 * `sums` holds float32 [rows][32]: two blocks of 16 columns. */

ALWAYS_INLINE __m512 scaled(const packed_weight *w, int64_t column, __m512 v) {
    if (w->scale) v = _mm512_mul_ps(v, _mm512_loadu_ps(w->scale + column));
    if (w->bias) v = _mm512_add_ps(v, _mm512_loadu_ps(w->bias + column));
    return v;
}

ALWAYS_INLINE bf16 *place(const output_view *out, int64_t row, int64_t column) {
    if (out->tiled_k) {
        bf16 *tile = (bf16 *)out->data + ((row / TILE) * out->tiled_k + column / TILE_K) * TILE_SIZE;
        return tile + (row % TILE) * TILE_K + column % TILE_K;
    }
    return (bf16 *)out->data + (out->rows ? out->rows[row] : row) * out->leading + column;
}

ALWAYS_INLINE void store_block(const output_view *out, int64_t row, int64_t column, int64_t columns, __m512 v) {
    const __mmask16 mask = tail_mask(columns - column);
    if (out->kind == STORE_FLOAT) {
        _mm512_mask_storeu_ps((float *)out->data + row * out->leading + column, mask, v);
    } else if (out->kind == ADD_BF16) {
        bf16 *p = place(out, row, column);
        if (out->factor) v = _mm512_mul_ps(v, _mm512_set1_ps(out->factor[row]));
        store_bf16_mask(p, _mm512_add_ps(load_bf16_mask(p, mask), v), mask);
    } else {
        store_bf16_mask(place(out, row, column), v, out->tiled_k ? 0xFFFF : mask); /* padded columns of tiles are zeros */
    }
}

ALWAYS_INLINE void finish_row(const packed_weight *w, int64_t panel, int64_t row, __m512 low, __m512 high, const output_view *out) {
    low = scaled(w, panel * 32, low);
    high = scaled(w, panel * 32 + 16, high);
    if (w->gated) {
        store_block(out, row, panel * 16, w->n, _mm512_mul_ps(silu_ps(low), high));
        return;
    }
    store_block(out, row, panel * 32, w->n, low);
    store_block(out, row, panel * 32 + 16, w->n, high);
}

/* ---------------------------------------------------------------- the weight */

/* A panel over some tiles of inputs, as bf16. Weights in fp8 are widened into `widened`, which must hold 2 x tiles. */
ALWAYS_INLINE const bf16 *read_panel(const packed_weight *w, int64_t panel, int64_t first_tile, int64_t tiles, const bool fp8,
                                     const fp8_tables *tables, bf16 *widened) {
    const uint8_t *data = w->data + panel * panel_size(w) + first_tile * 2 * tile_bytes(w);
    if (!fp8) return (const bf16 *)data;
    widen_tiles(widened, data, 2 * tiles, tables, AHEAD_OF_EACH);
    return widened;
}

/* ---------------------------------------------------------------- few rows: bound by the memory that holds the weight */

/* Two panels side by side: two long streams keep a core's hardware prefetchers busier than one. */
ALWAYS_INLINE void few_rows_panels(const packed_weight *w, row_view x, const int rows, const int64_t panels[2], const bool fp8,
                                   const output_view *out) {
    _Alignas(64) bf16 widened[2][2 * (K_BLOCK / 2) * TILE_SIZE];
    const fp8_tables tables = load_fp8_tables();
    const int64_t step = fp8 ? (K_BLOCK / 2) : w->k_tiles;
    __m512 sums[FEW_ROWS][2][2];
    for (int i = 0; i < rows * 4; i++) sums[i / 4][i / 2 % 2][i % 2] = _mm512_setzero_ps();
    for (int64_t first = 0; first < w->k_tiles; first += step) {
        const int64_t tiles = min_i64(step, w->k_tiles - first);
        const bf16 *parts[2];
        for (int i = 0; i < 2; i++) parts[i] = read_panel(w, panels[i], first, tiles, fp8, &tables, widened[i]);
        const bf16 *x_tile = x.data + first * x.tile_step;
        for (int64_t tile = 0; tile < tiles; tile++, x_tile += x.tile_step) {
#pragma GCC unroll 4
            for (int pair = 0; pair < TILE; pair++) {
                __m512bh weights[2][2];
                for (int i = 0; i < 2; i++) {
                    const bf16 *at = parts[i] + tile * 2 * TILE_SIZE + pair * PAIR_STEP;
                    for (int block = 0; block < 2; block++, at += BLOCK_STEP) {
                        if (!fp8) _mm_prefetch((const char *)at + AHEAD_OF_EACH, _MM_HINT_T0);
                        weights[i][block] = (__m512bh)_mm512_loadu_si512(at);
                    }
                }
                for (int r = 0; r < rows; r++) {
                    int32_t two;
                    memcpy(&two, x_tile + r * x.row_step + pair * 2, 4);
                    const __m512bh xs = (__m512bh)_mm512_set1_epi32(two);
                    for (int i = 0; i < 4; i++) sums[r][i / 2][i % 2] = _mm512_dpbf16_ps(sums[r][i / 2][i % 2], weights[i / 2][i % 2], xs);
                }
            }
        }
    }
    for (int r = 0; r < rows; r++) {
        for (int i = 0; i < (panels[1] == panels[0] ? 1 : 2); i++) finish_row(w, panels[i], r, sums[r][i][0], sums[r][i][1], out);
    }
}

ALWAYS_INLINE void few_rows(const packed_weight *w, row_view x, int64_t m, int64_t first, int64_t last, const bool fp8,
                            const output_view *out) {
    const int64_t half = ceil_div(last - first, 2);
    for (int64_t i = first; i < first + half; i++) {
        const int64_t panels[2] = {i, i + half < last ? i + half : i}; /* an odd one goes alone, twice */
        switch (m) {
        case 1: few_rows_panels(w, x, 1, panels, fp8, out); break;
        case 2: few_rows_panels(w, x, 2, panels, fp8, out); break;
        case 3: few_rows_panels(w, x, 3, panels, fp8, out); break;
        default: few_rows_panels(w, x, 4, panels, fp8, out); break;
        }
    }
}

/* ---------------------------------------------------------------- many rows: tiles */

/* The common case, whole blocks of bf16 without scale or bias: nothing to decide per row. */
ALWAYS_INLINE void finish_whole(int64_t panel, int64_t row, int64_t rows, const bool gated, const float *sums, const output_view *out) {
    for (int64_t r = 0; r < rows; r++) {
        const __m512 low = _mm512_load_ps(sums + r / TILE * 512 + r % TILE * TILE);
        const __m512 high = _mm512_load_ps(sums + r / TILE * 512 + r % TILE * TILE + 256);
        bf16 *target = place(out, row + r, panel * (gated ? 16 : 32));
        if (gated) store_bf16(target, _mm512_mul_ps(silu_ps(low), high));
        else _mm512_storeu_si512(target, (__m512i)_mm512_cvtne2ps_pbh(high, low)); /* one cache line */
    }
}

static void finish_tiles(const packed_weight *w, int64_t panel, int64_t row, int64_t m, const float *sums, const output_view *out) {
    const bool whole = (panel + 1) * (w->gated ? 16 : 32) <= w->n;
    if (whole && !w->scale && !w->bias && out->kind == STORE_BF16) {
        if (w->gated) finish_whole(panel, row, min_i64(32, m - row), true, sums, out);
        else finish_whole(panel, row, min_i64(32, m - row), false, sums, out);
        return;
    }
    for (int64_t r = 0; r < min_i64(32, m - row); r++) {
        const float *low = sums + r / TILE * 512 + r % TILE * TILE;
        finish_row(w, panel, row + r, _mm512_load_ps(low), _mm512_load_ps(low + 256), out);
    }
}

/* Ask for the output's lines while the sums are being made: otherwise each store waits for its line. */
static void fetch_output(const packed_weight *w, int64_t panel, int64_t row, int64_t m, const output_view *out) {
    if (out->tiled_k || out->kind == STORE_FLOAT) return;
    for (int64_t r = row; r < min_i64(row + 32, m); r++) {
        __builtin_prefetch((bf16 *)out->data + (out->rows ? out->rows[r] : r) * out->leading + panel * (w->gated ? 16 : 32), 1);
    }
}

/* One part of a panel times all rows; sums go on from those of the part before. */
ALWAYS_INLINE void multiply_part(const packed_weight *w, row_view x, int64_t m, int64_t panel, const bf16 *part, int64_t first_tile,
                                 int64_t tiles, stream_fetch *fetch, float *sums, const output_view *out) {
    const bool finish = first_tile + tiles == w->k_tiles;
    for (int64_t row = 0; row < m; row += 32, sums += 1024) {
        const bf16 *top = x.data + row / TILE * x.tile_rows_step + first_tile * x.tile_step;
        const row_tiles rows = {top, top + x.tile_rows_step, x.row_step, x.tile_step};
        if (finish) fetch_output(w, panel, row, m, out);
        if (m - row > TILE) multiply_tiles(rows, true, part, true, m - row, tiles, first_tile > 0, fetch, sums);
        else multiply_tiles(rows, false, part, true, m - row, tiles, first_tile > 0, fetch, sums);
        if (finish) finish_tiles(w, panel, row, m, sums, out);
    }
}

/* Blocks of k, so that a panel's part stays in the first-level cache for all passes over the rows; sums wait in memory. Many
 * rows take all panels through a block before the next, so that they stay close too; fewer stream one panel after the other. */
ALWAYS_INLINE void many_rows(const packed_weight *w, row_view x, int64_t m, int64_t first, int64_t last, const bool fp8,
                             const output_view *out) {
    _Alignas(64) bf16 widened[2 * K_BLOCK * TILE_SIZE];
    const fp8_tables tables = load_fp8_tables();
    const int64_t pairs = ceil_div(m, 2 * TILE), passes = ceil_div(m, ROWS_PER_PASS);
    const bool streams = pairs <= 2;
    const int64_t k_step = passes > 1 || fp8 ? K_BLOCK : w->k_tiles;
    const int64_t together = streams ? 1 : last - first; /* panels */
    float *sums = scratch(SCRATCH_TASK, 4096 * (size_t)(pairs * together));
    tiles_begin();
    for (int64_t group = first; group < last; group += together) {
        for (int64_t k = 0; k < w->k_tiles; k += k_step) {
            const int64_t tiles = min_i64(k_step, w->k_tiles - k);
            for (int64_t panel = group; panel < group + together; panel++) {
                const bf16 *part = read_panel(w, panel, k, tiles, fp8, &tables, widened);
                /* every pass fetches its share; the more of them, the more of a part's lines are still being fetched */
                const int64_t ahead = streams ? min_i64(passes, 4) * AHEAD_PER_PASS : panel_size(w);
                stream_fetch fetch = {(const char *)part + ahead, ceil_div(32, passes)};
                float *s = sums + (panel - group) * pairs * 1024;
                multiply_part(w, x, m, panel, part, k, tiles, fp8 ? NULL : &fetch, s, out);
            }
        }
    }
    tiles_end();
}

void multiply(const packed_weight *w, row_view x, int64_t m, int64_t first, int64_t last, const output_view *out) {
    if (w->fp8) {
        if (m <= FEW_ROWS) few_rows(w, x, m, first, last, true, out);
        else many_rows(w, x, m, first, last, true, out);
    } else {
        if (m <= FEW_ROWS) few_rows(w, x, m, first, last, false, out);
        else many_rows(w, x, m, first, last, false, out);
    }
}

/* ---------------------------------------------------------------- input into tiles */

static void pack_row(bf16 *target, const bf16 *x, const float *factor, int64_t k) {
    for (int64_t c = 0; c < k; c += TILE_K, target += TILE_SIZE) {
        const __mmask32 mask = k - c >= TILE_K ? 0xFFFFFFFF : (1u << (k - c)) - 1;
        __m512i v = _mm512_maskz_loadu_epi16(mask, x + c);
        if (factor) {
            const __m512 f = _mm512_set1_ps(*factor);
            const __m256i low = narrow(_mm512_mul_ps(widen(_mm512_castsi512_si256(v)), f));
            const __m256i high = narrow(_mm512_mul_ps(widen(_mm512_extracti64x4_epi64(v, 1)), f));
            v = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
        }
        _mm512_storeu_si512(target, v);
    }
}

void pack_rows(bf16 *tiles, const bf16 *x, int64_t leading, const int32_t *index, const float *factor, int64_t m, int64_t k) {
    const int64_t k_tiles = ceil_div(k, TILE_K);
    for (int64_t row = 0; row < m; row++) {
        bf16 *target = tiles + row / TILE * k_tiles * TILE_SIZE + row % TILE * TILE_K;
        pack_row(target, x + (index ? index[row] : row) * leading, factor ? factor + row : NULL, k);
    }
}
