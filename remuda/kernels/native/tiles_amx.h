/* Tiles in AMX registers: sums 0 to 3 (row tile x block), rows 4 and 5, columns 6 and 7. Included by tiles.h alone. */

#define ROWS_PER_PASS 32
#define PAIR_STEP 32          /* a tile's lines in sequence */
#define BLOCK_STEP TILE_SIZE

/* Own statements, not the compiler's intrinsics: gcc's do not tell it that they read or write memory. */
#define tile_load(t, base, stride) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t : : "r"(base), "r"((int64_t)(stride)) : "memory")
#define tile_store(t, base, stride) \
    __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" : : "r"(base), "r"((int64_t)(stride)) : "memory")
#define tile_zero(t) __asm__ volatile("tilezero %%tmm" #t : :)
#define tile_dot(sum, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #sum : :)

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;

/* One configuration serves every kernel: eight tiles of 16 rows x 64 bytes. Per thread. */
ALWAYS_INLINE void tiles_begin(void) {
#define EIGHT(x) x, x, x, x, x, x, x, x
    static const tile_config whole_tiles = {.palette = 1, .row_bytes = {EIGHT(64)}, .rows = {EIGHT(TILE)}};
#undef EIGHT
    __asm__ volatile("ldtilecfg %0" : : "m"(whole_tiles));
}
ALWAYS_INLINE void tiles_end(void) { __asm__ volatile("tilerelease" : :); }

ALWAYS_INLINE void multiply_tiles(row_tiles rows, const bool tall, column_tiles columns, const bool wide, int64_t used,
                                  int64_t tiles, bool resume, stream_fetch *fetch, float *sums) {
    (void)used; /* whole tiles cost no more */
    const int64_t stride = rows.row_step * 2;
    float *tall_sums = sums + (wide ? 512 : 256);
    if (resume) {
        tile_load(0, sums, 64);
        if (wide) tile_load(1, sums + 256, 64);
        if (tall) tile_load(2, tall_sums, 64);
        if (tall && wide) tile_load(3, tall_sums + 256, 64);
    } else {
        tile_zero(0);
        if (wide) tile_zero(1);
        if (tall) tile_zero(2);
        if (tall && wide) tile_zero(3);
    }
    for (int64_t t = 0; t < tiles; t++) {
        if (fetch) fetch_lines_of(fetch);
        tile_load(4, rows.first + t * rows.tile_step, stride);
        if (tall) tile_load(5, rows.second + t * rows.tile_step, stride);
        tile_load(6, columns, wide ? 2 * PAIR_STEP : 64);
        if (wide) tile_load(7, columns + BLOCK_STEP, 2 * PAIR_STEP);
        columns += wide ? 2 * TILE_SIZE : TILE_SIZE;
        tile_dot(0, 4, 6);
        if (wide) tile_dot(1, 4, 7);
        if (tall) tile_dot(2, 5, 6);
        if (tall && wide) tile_dot(3, 5, 7);
    }
    tile_store(0, sums, 64);
    if (wide) tile_store(1, sums + 256, 64);
    if (tall) tile_store(2, tall_sums, 64);
    if (tall && wide) tile_store(3, tall_sums + 256, 64);
}
