/* Attention of a decode: few lanes, values straight from the pages, long contexts split among the threads. */
#include "attention.h"

#include <math.h>

/* sums[lane][d] += weights x values for up to eight lanes and 32 columns of a block. Columns within `sums` are in the order
 * of unpacklo / unpackhi until finish_columns. */
ALWAYS_INLINE void add_values(const key_block *block, int64_t column, const bf16 *weights, const int lanes, float *sums, int64_t d, line_fetch *fetch) {
    __m512 low[8], high[8];
    for (int l = 0; l < lanes; l++) {
        low[l] = _mm512_loadu_ps(sums + l * d + column);
        high[l] = _mm512_loadu_ps(sums + l * d + column + 16);
    }
    for (int64_t key = 0; key < block->keys; key += 2) {
        fetch_lines(fetch, 2);
        const bf16 *row = block->v[key / TILE] + key % TILE * block->stride + column;
        const __m512i even = _mm512_loadu_si512(row);
        const __m512i odd = key + 1 < block->keys ? _mm512_loadu_si512(row + block->stride) : _mm512_setzero_si512();
        const __m512bh a = (__m512bh)_mm512_unpacklo_epi16(even, odd), b = (__m512bh)_mm512_unpackhi_epi16(even, odd);
        for (int l = 0; l < lanes; l++) {
            int32_t pair;
            memcpy(&pair, weights + key * 16 + l * 2, 4);
            const __m512bh w = (__m512bh)_mm512_set1_epi32(pair);
            low[l] = _mm512_dpbf16_ps(low[l], a, w);
            high[l] = _mm512_dpbf16_ps(high[l], b, w);
        }
    }
    for (int l = 0; l < lanes; l++) {
        _mm512_storeu_ps(sums + l * d + column, low[l]);
        _mm512_storeu_ps(sums + l * d + column + 16, high[l]);
    }
}

static void add_block(const attention_job *job, const key_block *block, const bf16 *weights, int64_t lanes, float *sums,
                      line_fetch *fetch) {
    for (int64_t l = 0; l < lanes; l += 8) {
        for (int64_t c = 0; c < job->padded_d; c += 32) {
            float *s = sums + l * job->padded_d;
            switch (min_i64(lanes - l, 8)) {
            case 1: add_values(block, c, weights + l * 2, 1, s, job->padded_d, fetch); break;
            case 2: add_values(block, c, weights + l * 2, 2, s, job->padded_d, fetch); break;
            case 3: add_values(block, c, weights + l * 2, 3, s, job->padded_d, fetch); break;
            case 4: add_values(block, c, weights + l * 2, 4, s, job->padded_d, fetch); break;
            case 5: add_values(block, c, weights + l * 2, 5, s, job->padded_d, fetch); break;
            case 6: add_values(block, c, weights + l * 2, 6, s, job->padded_d, fetch); break;
            case 7: add_values(block, c, weights + l * 2, 7, s, job->padded_d, fetch); break;
            default: add_values(block, c, weights + l * 2, 8, s, job->padded_d, fetch); break;
            }
        }
    }
}

/* Undo the column order of add_values, divide by the softmax sum, store one lane. */
static void store_lane(const attention_job *job, const unit *u, int64_t lane, const float *sums, float divisor) {
    const __m512i front = _mm512_set_epi32(23, 22, 21, 20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
    const __m512i back = _mm512_set_epi32(31, 30, 29, 28, 15, 14, 13, 12, 27, 26, 25, 24, 11, 10, 9, 8);
    const __m512 factor = _mm512_set1_ps(1.0f / divisor);
    const int64_t token = job->step->query_start[u->row] + lane / job->group;
    bf16 *out = job->out + (token * job->layer->heads + u->head * job->group + lane % job->group) * job->d;
    for (int64_t c = 0; c < job->d; c += 32) {
        const __m512 a = _mm512_loadu_ps(sums + c), b = _mm512_loadu_ps(sums + c + 16);
        store_bf16(out + c, _mm512_mul_ps(_mm512_permutex2var_ps(a, front, b), factor));
        if (c + 16 < job->d) store_bf16(out + c + 16, _mm512_mul_ps(_mm512_permutex2var_ps(a, back, b), factor));
    }
}

/* Partial result of a split: 16 maxima, 16 sums, [16][padded_d]. */
int64_t part_size(const attention_job *job) { return 32 + 16 * job->padded_d; }

void decode_unit(const attention_job *job, const unit *u, const unit *following) {
    _Alignas(64) lane_tile lanes;
    _Alignas(64) bf16 weights[BLOCK_KEYS * 16];
    _Alignas(64) float own[16 * MAX_HEAD_DIM], shrink[16];
    float *part = u->part >= 0 ? job->parts + u->part * part_size(job) : NULL, *sums = part ? part + 32 : own;
    const int64_t tokens = job->step->query_start[u->row + 1] - job->step->query_start[u->row], count = tokens * job->group;
    load_lanes(job, u, 0, &lanes);
    softmax_state state = {_mm512_set1_ps(-INFINITY), _mm512_setzero_ps()};
    memset(sums, 0, count * job->padded_d * sizeof(float));
    key_block block, next;
    find_block(job, u, u->first_key, u->last_key, &block);
    for (int64_t first = u->first_key; first < u->last_key; first += BLOCK_KEYS, block = next) {
        const bool more = first + BLOCK_KEYS < u->last_key;
        line_fetch fetch = {.rows = 0};
        if (!job->gathered && (more || following)) {
            if (more) find_block(job, u, first + BLOCK_KEYS, u->last_key, &next);
            else find_block(job, following, following->first_key, following->last_key, &next);
            fetch = plan_fetch_block(&next, job->d);
        }
        const __m512 factor = attend_block(job, &lanes, &block, first, &state, weights, &fetch);
        if (first > u->first_key && _mm512_cmp_ps_mask(factor, _mm512_set1_ps(1.0f), _CMP_NEQ_OQ)) {
            _mm512_store_ps(shrink, factor);
            for (int64_t l = 0; l < count; l++) {
                for (int64_t c = 0; c < job->padded_d; c++) sums[l * job->padded_d + c] *= shrink[l];
            }
        }
        add_block(job, &block, weights, count, sums, &fetch);
        if (more && job->gathered) find_block(job, u, first + BLOCK_KEYS, u->last_key, &next); /* reuses the copy's memory */
    }
    if (part) {
        _mm512_storeu_ps(part, state.maximum);
        _mm512_storeu_ps(part + 16, state.sum);
        return;
    }
    _Alignas(64) float divisors[16];
    _mm512_store_ps(divisors, state.sum);
    for (int64_t l = 0; l < count; l++) store_lane(job, u, l, sums + l * job->padded_d, divisors[l]);
}

/* Add up the `parts` partial results that begin at unit u's. Lanes that a part saw nothing of weigh nothing there. */
void merge_parts(const attention_job *job, const unit *u) {
    const int64_t tokens = job->step->query_start[u->row + 1] - job->step->query_start[u->row], step = part_size(job);
    float *first = job->parts + u->part * step;
    for (int64_t l = 0; l < tokens * job->group; l++) {
        float maximum = -INFINITY, divisor = 0;
        for (int64_t i = 0; i < u->parts; i++) maximum = fmaxf(maximum, first[i * step + l]);
        for (int64_t i = 0; i < u->parts; i++) {
            const float weight = exp2f(first[i * step + l] - maximum);
            divisor += weight * first[i * step + 16 + l];
            float *sums = first + 32 + l * job->padded_d, *other = sums + i * step;
            for (int64_t c = 0; c < job->padded_d; c++) sums[c] = (i ? sums[c] : 0) + weight * other[c];
        }
        store_lane(job, u, l, first + 32 + l * job->padded_d, divisor);
    }
}
