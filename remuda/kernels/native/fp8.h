/* Weights kept as float8_e4m3fn (four exponent bits, three of mantissa, no infinity) and widened to bf16, which is exact, in the
 * first-level cache on their way to a product: half the memory, and half the traffic of a decode.
 *
 * Each 64 bytes become two vectors of 32 values; they are stored in the order in which unpacklo and unpackhi give them back. */
#ifndef REMUDA_FP8_H
#define REMUDA_FP8_H

#include "common.h"

/* High and low bytes of the bf16 of each magnitude 0 .. 127: two tables of 128 bytes, as vpermi2b looks them up. */
typedef struct {
    __m512i high[2], low[2];
} fp8_tables;

extern uint8_t fp8_high_bytes[128], fp8_low_bytes[128]; /* filled by remuda_init */
void fp8_init(void);

ALWAYS_INLINE fp8_tables load_fp8_tables(void) {
    return (fp8_tables){{_mm512_loadu_si512(fp8_high_bytes), _mm512_loadu_si512(fp8_high_bytes + 64)},
                        {_mm512_loadu_si512(fp8_low_bytes), _mm512_loadu_si512(fp8_low_bytes + 64)}};
}

/* Widen `tiles` tiles of 512 values. */
ALWAYS_INLINE void widen_tiles(bf16 *target, const uint8_t *source, int64_t tiles, const fp8_tables *t, int64_t ahead) {
    const __m512i sign = _mm512_set1_epi8((char)0x80);
    for (int64_t i = 0; i < tiles * TILE_SIZE; i += 64) {
        _mm_prefetch((const char *)source + i + ahead, _MM_HINT_T0);
        const __m512i code = _mm512_loadu_si512(source + i);
        /* vpermi2b looks at the seven low bits: the sign needs no clearing */
        const __m512i magnitude = _mm512_permutex2var_epi8(t->high[0], code, t->high[1]);
        const __m512i high = _mm512_ternarylogic_epi32(magnitude, code, sign, 0xF8); /* magnitude | (code & sign) */
        const __m512i low = _mm512_permutex2var_epi8(t->low[0], code, t->low[1]);
        _mm512_store_si512(target + i, _mm512_unpacklo_epi8(low, high));
        _mm512_store_si512(target + i + 32, _mm512_unpackhi_epi8(low, high));
    }
}

/* Where value i of 64 is stored. */
ALWAYS_INLINE int64_t fp8_place(int64_t i) { return i % 32 / 8 * 16 + i / 32 * 8 + i % 8; }

#endif
