/* Tiles as AVX-512 dot products, sixteen sums in registers at a time: eight rows x two blocks, or sixteen rows x one. Included
 * by tiles.h alone. */

#define ROWS_PER_PASS 8 /* over two blocks */
#define PAIR_STEP 64    /* everything is read in one sequence */
#define BLOCK_STEP 32

ALWAYS_INLINE void tiles_begin(void) {}
ALWAYS_INLINE void tiles_end(void) {}

/* sums[block][count][16] (+)= `count` rows x one or two blocks; the blocks of `sums` are a tile apart. */
ALWAYS_INLINE void multiply_rows(const bf16 *x, int64_t row_step, int64_t tile_step, const int count, column_tiles columns,
                                 const bool wide, int64_t tiles, bool resume, stream_fetch *fetch, float *sums) {
    __m512 low[16], high[8];
#pragma GCC unroll 16
    for (int r = 0; r < count; r++) {
        low[r] = resume ? _mm512_loadu_ps(sums + r * 16) : _mm512_setzero_ps();
        if (wide) high[r] = resume ? _mm512_loadu_ps(sums + 256 + r * 16) : _mm512_setzero_ps();
    }
    for (int64_t t = 0; t < tiles; t++, x += tile_step, columns += wide ? 2 * TILE_SIZE : TILE_SIZE) {
        if (fetch) fetch_lines_of(fetch);
#pragma GCC unroll 2
        for (int pair = 0; pair < TILE; pair++) {
            const __m512bh a = (__m512bh)_mm512_loadu_si512(columns + pair * (wide ? PAIR_STEP : 32));
            const __m512bh b = wide ? (__m512bh)_mm512_loadu_si512(columns + pair * PAIR_STEP + BLOCK_STEP) : a;
#pragma GCC unroll 16
            for (int r = 0; r < count; r++) {
                int32_t two;
                memcpy(&two, x + r * row_step + pair * 2, 4);
                const __m512bh xs = (__m512bh)_mm512_set1_epi32(two);
                low[r] = _mm512_dpbf16_ps(low[r], a, xs);
                if (wide) high[r] = _mm512_dpbf16_ps(high[r], b, xs);
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < count; r++) {
        _mm512_storeu_ps(sums + r * 16, low[r]);
        if (wide) _mm512_storeu_ps(sums + 256 + r * 16, high[r]);
    }
}

ALWAYS_INLINE void multiply_tiles(row_tiles rows, const bool tall, column_tiles columns, const bool wide, int64_t used,
                                  int64_t tiles, bool resume, stream_fetch *fetch, float *sums) {
    const int together = wide ? ROWS_PER_PASS : 2 * ROWS_PER_PASS;
    for (int tile = 0; tile <= tall; tile++) {
        const bf16 *x = tile ? rows.second : rows.first;
        for (int r = 0; r < TILE && tile * TILE + r < used; r += together) {
            float *s = sums + tile * (wide ? 512 : 256) + r * 16;
            if (rows.row_step == TILE_K) multiply_rows(x + r * TILE_K, TILE_K, rows.tile_step, together, columns, wide, tiles, resume, fetch, s);
            else multiply_rows(x + r * rows.row_step, rows.row_step, rows.tile_step, together, columns, wide, tiles, resume, fetch, s);
        }
    }
}
