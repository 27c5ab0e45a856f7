/* Shared vocabulary of the native kernels: bf16 vectors, the thread pool, scratch memory.
 *
 * Everything is C11 with AVX-512 (bf16) intrinsics, and AMX (bf16) where there is AMX. Activations and weights are bfloat16,
 * sums are float32.
 * Letters used throughout: T tokens, H hidden, N output columns, K input columns, D head dim, S sequences. */
#ifndef REMUDA_COMMON_H
#define REMUDA_COMMON_H

#include <immintrin.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define ALWAYS_INLINE static inline __attribute__((always_inline))

typedef uint16_t bf16;

ALWAYS_INLINE int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }
ALWAYS_INLINE int64_t max_i64(int64_t a, int64_t b) { return a > b ? a : b; }
ALWAYS_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* ---------------------------------------------------------------- 16 bf16 values as one float32 vector */

ALWAYS_INLINE __m512 widen(__m256i v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16)); }
ALWAYS_INLINE __m512 load_bf16(const bf16 *p) { return widen(_mm256_loadu_si256((const __m256i *)p)); }
ALWAYS_INLINE __m512 load_bf16_mask(const bf16 *p, __mmask16 m) { return widen(_mm256_maskz_loadu_epi16(m, p)); }
ALWAYS_INLINE __m256i narrow(__m512 v) { return (__m256i)_mm512_cvtneps_pbh(v); }
ALWAYS_INLINE void store_bf16(bf16 *p, __m512 v) { _mm256_storeu_si256((__m256i *)p, narrow(v)); }
ALWAYS_INLINE void store_bf16_mask(bf16 *p, __m512 v, __mmask16 m) { _mm256_mask_storeu_epi16(p, m, narrow(v)); }
ALWAYS_INLINE __mmask16 tail_mask(int64_t left) { return left >= 16 ? 0xFFFF : left <= 0 ? 0 : (__mmask16)((1u << left) - 1); }
ALWAYS_INLINE float to_float(bf16 v) {
    uint32_t bits = (uint32_t)v << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

/* exp(x), relative error below 2e-7; 0 and infinity far outside. */
ALWAYS_INLINE __m512 exp_ps(__m512 x) {
    const __m512 log2e = _mm512_set1_ps(1.44269504088896341f);
    x = _mm512_max_ps(_mm512_min_ps(x, _mm512_set1_ps(104.0f)), _mm512_set1_ps(-104.0f));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, log2e), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693145751953125f), x); /* ln 2 in two parts */
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(1.42860682030941723e-6f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

/* x * sigmoid(x); the reciprocal's 14 bits are more than the result keeps as bf16. */
ALWAYS_INLINE __m512 silu_ps(__m512 x) {
    __m512 denominator = _mm512_add_ps(_mm512_set1_ps(1.0f), exp_ps(_mm512_sub_ps(_mm512_setzero_ps(), x)));
    return _mm512_mul_ps(x, _mm512_rcp14_ps(denominator));
}

/* Two rows of 16 bf16 as 16 pairs (a0 b0 a1 b1 ...): neighbours along the summed dimension lie together. */
ALWAYS_INLINE __m512i interleave(__m256i a, __m256i b) {
    return _mm512_or_si512(_mm512_cvtepu16_epi32(a), _mm512_slli_epi32(_mm512_cvtepu16_epi32(b), 16));
}

/* Transpose 16 x 16 values of 32 bits in place: value (i, j) of rows[i] goes to (j, i). */
ALWAYS_INLINE void transpose_16x16(__m512i rows[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        rows[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        rows[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        rows[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        rows[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        rows[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        rows[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        rows[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        rows[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

/* ---------------------------------------------------------------- tiles: see tiles.h */

#define TILE 16         /* rows of a tile; also output columns of a weight block */
#define TILE_K 32       /* bf16 values in a tile row */
#define TILE_SIZE 512   /* bf16 values in a tile */

/* ---------------------------------------------------------------- thread pool (pool.c) */

typedef void (*task_fn)(void *context, int64_t task);

/* Run fn(context, 0 .. tasks-1) on all threads, tasks handed out one by one; returns when all are done. */
void run_tasks(task_fn fn, void *context, int64_t tasks);
int pool_threads(void);

/* 4 KiB aligned memory of at least `bytes`, kept and reused by the calling thread. Valid until it asks again for `slot`. */
enum scratch_slot { SCRATCH_TASK, SCRATCH_INPUT, SCRATCH_HIDDEN, SCRATCH_INDEX, SCRATCH_SLOTS };
void *scratch(enum scratch_slot slot, size_t bytes);

#endif
