/* Products of bf16 rows with packed weights: one stream of dot products for up to four rows, tiles for more. */
#include "gemm.h"
#include "tiles.h"

#define PREFETCH_AHEAD 4096 /* bytes */

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

/* ---------------------------------------------------------------- few rows: bound by the memory that holds the weight */

ALWAYS_INLINE void few_rows_panel(const packed_weight *w, row_view x, const int rows, int64_t panel, const output_view *out) {
    const int64_t block = (int64_t)w->k_tiles * TILE_SIZE;
    const bf16 *low = w->data + panel * 2 * block, *high = low + block;
    __m512 sums[4][2][2];
    for (int r = 0; r < rows; r++) {
        for (int i = 0; i < 4; i++) sums[r][i / 2][i % 2] = _mm512_setzero_ps();
    }
    for (int64_t tile = 0; tile < w->k_tiles; tile++) {
        const bf16 *x_tile = x.data + tile * x.tile_step;
#pragma GCC unroll 16
        for (int pair = 0; pair < TILE; pair++) {
            const bf16 *a = low + tile * TILE_SIZE + pair * 32, *b = high + tile * TILE_SIZE + pair * 32;
            _mm_prefetch((const char *)a + PREFETCH_AHEAD, _MM_HINT_T0);
            _mm_prefetch((const char *)b + PREFETCH_AHEAD, _MM_HINT_T0);
            const __m512bh wa = (__m512bh)_mm512_loadu_si512(a), wb = (__m512bh)_mm512_loadu_si512(b);
            for (int r = 0; r < rows; r++) {
                int32_t two;
                memcpy(&two, x_tile + r * x.row_step + pair * 2, 4);
                const __m512bh xs = (__m512bh)_mm512_set1_epi32(two);
                sums[r][0][pair % 2] = _mm512_dpbf16_ps(sums[r][0][pair % 2], wa, xs);
                sums[r][1][pair % 2] = _mm512_dpbf16_ps(sums[r][1][pair % 2], wb, xs);
            }
        }
    }
    for (int r = 0; r < rows; r++) {
        finish_row(w, panel, r, _mm512_add_ps(sums[r][0][0], sums[r][0][1]), _mm512_add_ps(sums[r][1][0], sums[r][1][1]), out);
    }
}

static void few_rows(const packed_weight *w, row_view x, int64_t m, int64_t first, int64_t last, const output_view *out) {
    for (int64_t panel = first; panel < last; panel++) {
        switch (m) {
        case 1: few_rows_panel(w, x, 1, panel, out); break;
        case 2: few_rows_panel(w, x, 2, panel, out); break;
        case 3: few_rows_panel(w, x, 3, panel, out); break;
        default: few_rows_panel(w, x, 4, panel, out); break;
        }
    }
}

/* ---------------------------------------------------------------- many rows: tiles */

/* A weight that is used once streams: fetch a little ahead. One that is used by many rows leaves time to bring the whole
 * next panel into the second-level cache. */
static stream_fetch plan_fetch(const bf16 *low, const bf16 *high, int64_t pairs) {
    if (pairs == 1) return (stream_fetch){(const char *)low + PREFETCH_AHEAD, (const char *)high + PREFETCH_AHEAD, 16};
    const int64_t next_panel = 2 * (high - low);
    return (stream_fetch){(const char *)(low + next_panel), (const char *)(high + next_panel), ceil_div(16, pairs)};
}

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

static void many_rows(const packed_weight *w, row_view x, int64_t m, int64_t first, int64_t last, const output_view *out) {
    const int64_t tile_count = ceil_div(m, TILE), pairs = ceil_div(tile_count, 2);
    const bool blocked = w->k_tiles > K_BLOCK && pairs > 2; /* sums wait in memory between blocks of k */
    const int64_t k_step = blocked ? K_BLOCK : w->k_tiles;
    const int64_t block = (int64_t)w->k_tiles * TILE_SIZE;
    float *sums = scratch(SCRATCH_TASK, 4096 * (size_t)(blocked ? pairs * (last - first) : 1));
    tiles_begin();
    for (int64_t k = 0; k < w->k_tiles; k += k_step) {
        const int64_t tiles = min_i64(k_step, w->k_tiles - k);
        for (int64_t panel = first; panel < last; panel++) {
            const bf16 *low = w->data + panel * 2 * block + k * TILE_SIZE, *high = low + block;
            stream_fetch fetch = plan_fetch(low, high, pairs);
            for (int64_t pair = 0; pair < pairs; pair++) {
                float *s = sums + (blocked ? ((panel - first) * pairs + pair) * 1024 : 0);
                const bf16 *top = x.data + pair * 2 * x.tile_rows_step + k * x.tile_step;
                const row_tiles rows = {top, top + x.tile_rows_step, x.row_step, x.tile_step};
                const column_blocks columns = {low, high};
                const bool finish = k + tiles == w->k_tiles;
                if (finish) fetch_output(w, panel, pair * 32, m, out);
                if (pair * 2 + 1 < tile_count) multiply_tiles(rows, true, columns, true, m - pair * 32, tiles, k > 0, &fetch, s);
                else multiply_tiles(rows, false, columns, true, m - pair * 32, tiles, k > 0, &fetch, s);
                if (finish) finish_tiles(w, panel, pair * 32, m, s, out);
            }
        }
    }
    tiles_end();
}

void multiply(const packed_weight *w, row_view x, int64_t m, int64_t first, int64_t last, const output_view *out) {
    if (m <= FEW_ROWS) few_rows(w, x, m, first, last, out);
    else many_rows(w, x, m, first, last, out);
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
