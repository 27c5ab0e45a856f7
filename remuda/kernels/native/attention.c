/* Attention over paged keys and values, mixed prompts and decodes.
 *
 * All queries of one (row, key head) pair form *lanes*: lane l is query head l % group of token l / group. Sixteen lanes
 * are computed together. Scores are kept transposed, [keys][16 lanes], so that keys are read from the pages as they lie
 * and the running maximum and sum of the softmax are plain vectors. A tile of lanes sees keys of one contiguous range, with
 * a mask where a lane sees less. Rows of at most sixteen lanes (decodes) read values from the pages (and may be split along the
 * context); longer ones transpose the values once and multiply with AMX. */
#include "kv.h"

#include <math.h>
#include <stdlib.h>

#define BLOCK_KEYS 128
#define SUBTILES (BLOCK_KEYS / TILE)
#define MAX_HEAD_DIM 256
#define SPLIT_KEYS 512  /* a decode's context is split only into parts at least this long */
#define TASK_LANE_TILES 16

typedef struct {
    const kv_layer *layer;
    const kv_step *step;
    const bf16 *q;
    bf16 *out; /* [tokens, heads, head_dim] */
    int64_t q_step, group, d, padded_d;
    bool gathered; /* keys and values are copied out of the pages first: block size or head dim do not fit tiles */
    struct unit *units;
    float *parts;
} attention_job;

/* A piece of work: lane tiles [first_tile, last_tile) of a row and key head, keys [first_key, last_key). */
typedef struct unit {
    int32_t row, head;
    int64_t first_tile, last_tile, first_key, last_key;
    int64_t part;  /* index of the partial result of a split, or -1 */
    int64_t parts; /* of the first part of a split: how many there are; else 0 */
} unit;

typedef struct {
    __m512 maximum, sum; /* per lane; maximum in units of log2 */
} softmax_state;

/* Sixteen lanes with the keys each may see: lane l sees keys low[l] .. high[l]. */
typedef struct {
    __m512i low, high;
    int32_t low_least, low_most, high_least, high_most;
    _Alignas(64) bf16 tiles[MAX_HEAD_DIM / TILE_K * TILE_SIZE]; /* [head_dim / 2][16 lanes][2] */
} lane_tile;

/* Where 16 keys and their values begin, for each sixteen keys of a block; rows are `stride` values apart. */
typedef struct {
    const bf16 *k[SUBTILES], *v[SUBTILES];
    int64_t stride, keys, subtiles;
} key_block;

/* 2^x for x <= 0, relative error below 3e-6: far below bf16's. */
ALWAYS_INLINE __m512 exp2_ps(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-127.0f));
    const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 r = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(1.3390860e-3f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.6181291e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.5504109e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.4022651e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.9314718e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

/* ---------------------------------------------------------------- queries, keys and values */

static void load_lanes(const attention_job *job, const unit *u, int64_t tile, lane_tile *lanes) {
    const int64_t first_token = job->step->query_start[u->row], tokens = job->step->query_start[u->row + 1] - first_token;
    const int64_t first_position = job->step->context[u->row] - tokens, chunk = job->layer->chunk;
    _Alignas(64) int32_t low[16], high[16];
    const bf16 *queries[16];
    lanes->low_least = lanes->high_least = INT32_MAX;
    lanes->low_most = lanes->high_most = 0;
    for (int64_t i = 0; i < 16; i++) {
        const int64_t lane = tile * 16 + i, token = lane / job->group;
        queries[i] = NULL;
        low[i] = high[i] = -1; /* an absent lane sees nothing */
        if (token >= tokens) continue;
        queries[i] = job->q + (first_token + token) * job->q_step + (u->head * job->group + lane % job->group) * job->d;
        high[i] = (int32_t)(first_position + token);
        low[i] = chunk ? (int32_t)(high[i] / chunk * chunk) : 0;
        lanes->low_least = (int32_t)min_i64(lanes->low_least, low[i]);
        lanes->low_most = (int32_t)max_i64(lanes->low_most, low[i]);
        lanes->high_least = (int32_t)min_i64(lanes->high_least, high[i]);
        lanes->high_most = (int32_t)max_i64(lanes->high_most, high[i]);
    }
    lanes->low = _mm512_load_si512(low);
    lanes->high = _mm512_load_si512(high);
    for (int64_t i = 0; i < job->padded_d; i += TILE_K) {
        __m512i rows[16];
        const __mmask32 mask = job->d - i >= TILE_K ? 0xFFFFFFFF : 0xFFFF;
        for (int l = 0; l < 16; l++) rows[l] = queries[l] ? _mm512_maskz_loadu_epi16(mask, queries[l] + i) : _mm512_setzero_si512();
        transpose_16x16(rows);
        for (int pair = 0; pair < 16; pair++) _mm512_store_si512(lanes->tiles + i * TILE + pair * 32, rows[pair]);
    }
}

static const bf16 *page_row(const attention_job *job, const unit *u, const bf16 *pages, int64_t key) {
    const int64_t block = job->layer->block_size;
    const int64_t page = job->step->tables[u->row * job->step->table_step + key / block];
    return pages + page * job->layer->page_step + (u->head * block + key % block) * job->d;
}

/* Copy a block's rows out of the pages, padded to whole tiles with zeros. */
static void gather_block(const attention_job *job, const unit *u, int64_t first, key_block *block) {
    bf16 *copy = scratch(SCRATCH_TASK, 2 * BLOCK_KEYS * job->padded_d * sizeof(bf16));
    memset(copy, 0, 2 * BLOCK_KEYS * job->padded_d * sizeof(bf16));
    for (int64_t i = 0; i < block->keys; i++) {
        memcpy(copy + i * job->padded_d, page_row(job, u, job->layer->k, first + i), job->d * sizeof(bf16));
        memcpy(copy + (BLOCK_KEYS + i) * job->padded_d, page_row(job, u, job->layer->v, first + i), job->d * sizeof(bf16));
    }
    for (int64_t i = 0; i < block->subtiles; i++) {
        block->k[i] = copy + i * TILE * job->padded_d;
        block->v[i] = copy + (BLOCK_KEYS + i * TILE) * job->padded_d;
    }
    block->stride = job->padded_d;
}

/* Up to 128 keys from `first` (a multiple of 16), ending before `last`. */
static void find_block(const attention_job *job, const unit *u, int64_t first, int64_t last, key_block *block) {
    block->keys = min_i64(BLOCK_KEYS, last - first);
    block->subtiles = ceil_div(block->keys, TILE);
    if (job->gathered) {
        gather_block(job, u, first, block);
        return;
    }
    for (int64_t i = 0; i < block->subtiles; i++) {
        block->k[i] = page_row(job, u, job->layer->k, first + i * TILE);
        block->v[i] = page_row(job, u, job->layer->v, first + i * TILE);
    }
    block->stride = job->d;
}

/* Ask for a block's rows: pages lie scattered, and no hardware guesses where the next one is. */
static void fetch_rows(const key_block *block, const bf16 *const rows[SUBTILES], int64_t d) {
    for (int64_t i = 0; i < block->subtiles; i++) {
        const char *first = (const char *)rows[i], *last = (const char *)(rows[i] + min_i64(TILE, block->keys - i * TILE) * d);
        for (; first < last; first += 64) _mm_prefetch(first, _MM_HINT_T0);
    }
}

/* ---------------------------------------------------------------- scores and softmax */

/* scores[key][lane] of a block, by AMX: keys x head_dim times head_dim x lanes. */
static void score_block(const attention_job *job, const lane_tile *lanes, const key_block *block, float *scores) {
    const int64_t stride = block->stride * 2;
    int64_t i = 0;
    for (; i + 1 < block->subtiles; i += 2) {
        tile_zero(0);
        tile_zero(1);
        for (int64_t c = 0; c < job->padded_d; c += TILE_K) {
            tile_load(6, lanes->tiles + c * TILE, 64);
            tile_load(4, block->k[i] + c, stride);
            tile_load(5, block->k[i + 1] + c, stride);
            tile_dot(0, 4, 6);
            tile_dot(1, 5, 6);
        }
        tile_store(0, scores + i * 256, 64);
        tile_store(1, scores + (i + 1) * 256, 64);
    }
    if (i < block->subtiles) {
        tile_zero(0);
        for (int64_t c = 0; c < job->padded_d; c += TILE_K) {
            tile_load(6, lanes->tiles + c * TILE, 64);
            tile_load(4, block->k[i] + c, stride);
            tile_dot(0, 4, 6);
        }
        tile_store(0, scores + i * 256, 64);
    }
}

static void mask_scores(const lane_tile *lanes, int64_t first, int64_t rows, float *scores) {
    const __m512 never = _mm512_set1_ps(-INFINITY);
    for (int64_t i = 0; i < rows; i++) {
        const __m512i key = _mm512_set1_epi32((int32_t)(first + i));
        const __mmask16 seen = _mm512_cmple_epi32_mask(lanes->low, key) & _mm512_cmple_epi32_mask(key, lanes->high);
        _mm512_store_ps(scores + i * 16, _mm512_mask_mov_ps(never, seen, _mm512_load_ps(scores + i * 16)));
    }
}

/* Softmax weights of a block as [key / 2][16 lanes][2] bf16. Returns by how much earlier sums must be multiplied. */
static __m512 weigh_block(float *scores, int64_t rows, float scale, softmax_state *state, bf16 *weights) {
    __m512 most[4] = {state->maximum, state->maximum, state->maximum, state->maximum};
    const __m512 factor = _mm512_set1_ps(scale * 1.44269504f); /* scores in units of log2 */
    for (int64_t i = 0; i < rows; i += 4) {
        for (int j = 0; j < 4; j++) {
            const __m512 s = _mm512_mul_ps(_mm512_load_ps(scores + (i + j) * 16), factor);
            _mm512_store_ps(scores + (i + j) * 16, s);
            most[j] = _mm512_max_ps(most[j], s);
        }
    }
    const __m512 maximum = _mm512_max_ps(_mm512_max_ps(most[0], most[1]), _mm512_max_ps(most[2], most[3]));
    /* A lane that has seen no key yet keeps -inf; 0 stands in so that differences stay numbers. */
    const __mmask16 nothing = _mm512_cmp_ps_mask(maximum, _mm512_set1_ps(-INFINITY), _CMP_EQ_OQ);
    const __m512 reference = _mm512_mask_mov_ps(maximum, nothing, _mm512_setzero_ps());
    const __m512 shrink = exp2_ps(_mm512_sub_ps(state->maximum, reference));
    __m512 sums[2] = {_mm512_mul_ps(state->sum, shrink), _mm512_setzero_ps()};
    for (int64_t i = 0; i < rows; i += 2) {
        const __m512 even = exp2_ps(_mm512_sub_ps(_mm512_load_ps(scores + i * 16), reference));
        const __m512 odd = exp2_ps(_mm512_sub_ps(_mm512_load_ps(scores + i * 16 + 16), reference));
        sums[0] = _mm512_add_ps(sums[0], even);
        sums[1] = _mm512_add_ps(sums[1], odd);
        _mm512_store_si512(weights + i * 16, interleave(narrow(even), narrow(odd)));
    }
    state->maximum = maximum;
    state->sum = _mm512_add_ps(sums[0], sums[1]);
    return shrink;
}

/* Scores and softmax of one block: fills weights (zero-padded to whole pairs of subtiles). */
static __m512 attend_block(const attention_job *job, const lane_tile *lanes, const key_block *block, int64_t first,
                           softmax_state *state, bf16 *weights) {
    _Alignas(64) float scores[BLOCK_KEYS * 16];
    const int64_t rows = block->subtiles * TILE;
    score_block(job, lanes, block, scores);
    if (first < lanes->low_most || first + rows - 1 > lanes->high_least) mask_scores(lanes, first, rows, scores);
    if (block->subtiles % 2) memset(weights + rows * 16, 0, TILE_SIZE);
    return weigh_block(scores, rows, job->layer->scale, state, weights);
}

/* ---------------------------------------------------------------- a decode: values straight from the pages */

/* sums[lane][d] += weights x values for up to eight lanes and 32 columns of a block. Columns within `sums` are in the order
 * of unpacklo / unpackhi until finish_columns. */
ALWAYS_INLINE void add_values(const key_block *block, int64_t column, const bf16 *weights, const int lanes, float *sums, int64_t d) {
    __m512 low[8], high[8];
    for (int l = 0; l < lanes; l++) {
        low[l] = _mm512_loadu_ps(sums + l * d + column);
        high[l] = _mm512_loadu_ps(sums + l * d + column + 16);
    }
    for (int64_t key = 0; key < block->keys; key += 2) {
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

static void add_block(const attention_job *job, const key_block *block, const bf16 *weights, int64_t lanes, float *sums) {
    for (int64_t l = 0; l < lanes; l += 8) {
        for (int64_t c = 0; c < job->padded_d; c += 32) {
            float *s = sums + l * job->padded_d;
            switch (min_i64(lanes - l, 8)) {
            case 1: add_values(block, c, weights + l * 2, 1, s, job->padded_d); break;
            case 2: add_values(block, c, weights + l * 2, 2, s, job->padded_d); break;
            case 3: add_values(block, c, weights + l * 2, 3, s, job->padded_d); break;
            case 4: add_values(block, c, weights + l * 2, 4, s, job->padded_d); break;
            case 5: add_values(block, c, weights + l * 2, 5, s, job->padded_d); break;
            case 6: add_values(block, c, weights + l * 2, 6, s, job->padded_d); break;
            case 7: add_values(block, c, weights + l * 2, 7, s, job->padded_d); break;
            default: add_values(block, c, weights + l * 2, 8, s, job->padded_d); break;
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
static int64_t part_size(const attention_job *job) { return 32 + 16 * job->padded_d; }

static void decode_unit(const attention_job *job, const unit *u) {
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
    if (!job->gathered) fetch_rows(&block, block.k, job->d);
    for (int64_t first = u->first_key; first < u->last_key; first += BLOCK_KEYS, block = next) {
        if (!job->gathered) fetch_rows(&block, block.v, job->d);
        const __m512 factor = attend_block(job, &lanes, &block, first, &state, weights);
        const bool more = first + BLOCK_KEYS < u->last_key;
        if (more && !job->gathered) {
            find_block(job, u, first + BLOCK_KEYS, u->last_key, &next);
            fetch_rows(&next, next.k, job->d);
        }
        if (first > u->first_key && _mm512_cmp_ps_mask(factor, _mm512_set1_ps(1.0f), _CMP_NEQ_OQ)) {
            _mm512_store_ps(shrink, factor);
            for (int64_t l = 0; l < count; l++) {
                for (int64_t c = 0; c < job->padded_d; c++) sums[l * job->padded_d + c] *= shrink[l];
            }
        }
        add_block(job, &block, weights, count, sums);
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
static void merge_parts(const attention_job *job, const unit *u) {
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

/* ---------------------------------------------------------------- a prompt: values transposed once, then AMX */

/* Values of keys [first_key, last_key) as [32 keys][head_dim / 16] tiles of 16 dims x 32 keys; zeros beyond last_key. */
static void transpose_values(const attention_job *job, const unit *u, bf16 *values) {
    for (int64_t first = u->first_key; first < u->last_key; first += BLOCK_KEYS) {
        key_block block;
        find_block(job, u, first, u->last_key, &block);
        for (int64_t key = 0; key < block.keys; key += 32) {
            for (int64_t c = 0; c < job->padded_d; c += 16, values += TILE_SIZE) {
                __m512i rows[16];
                for (int64_t i = 0; i < 16; i++) {
                    const int64_t even = key + 2 * i;
                    const bf16 *row = block.v[min_i64(even / TILE, block.subtiles - 1)] + even % TILE * block.stride + c;
                    rows[i] = interleave(even < block.keys ? _mm256_loadu_si256((const __m256i *)row) : _mm256_setzero_si256(),
                                         even + 1 < block.keys ? _mm256_loadu_si256((const __m256i *)(row + block.stride))
                                                               : _mm256_setzero_si256());
                }
                transpose_16x16(rows);
                for (int i = 0; i < 16; i++) _mm512_store_si512(values + i * 32, rows[i]);
            }
        }
    }
}

/* sums[head_dim][16 lanes] += values x weights over the key pairs of a block, four tiles of dims at a time. */
static void multiply_values(const attention_job *job, const bf16 *values, const bf16 *weights, int64_t keys, float *sums) {
    const int64_t tiles = job->padded_d / TILE;
    for (int64_t t = 0; t < tiles; t += 2) {
        tile_load(0, sums + t * 256, 64);
        tile_load(1, sums + (t + 1) * 256, 64);
        for (int64_t key = 0; key < keys; key += 32) {
            const bf16 *v = values + (key / 32 * tiles + t) * TILE_SIZE;
            tile_load(6, weights + key * 16, 64);
            tile_load(4, v, 64);
            tile_load(5, v + TILE_SIZE, 64);
            tile_dot(0, 4, 6);
            tile_dot(1, 5, 6);
        }
        tile_store(0, sums + t * 256, 64);
        tile_store(1, sums + (t + 1) * 256, 64);
    }
}

static void store_lanes(const attention_job *job, const unit *u, int64_t tile, const float *sums, __m512 divisors) {
    const int64_t first_token = job->step->query_start[u->row], tokens = job->step->query_start[u->row + 1] - first_token;
    const __m512 factors = _mm512_div_ps(_mm512_set1_ps(1.0f), divisors);
    for (int64_t c = 0; c < job->d; c += 16) {
        __m512i rows[16];
        for (int i = 0; i < 16; i++) rows[i] = _mm512_castps_si512(_mm512_mul_ps(_mm512_load_ps(sums + (c + i) * 16), factors));
        transpose_16x16(rows);
        for (int64_t i = 0; i < 16; i++) {
            const int64_t lane = tile * 16 + i, token = lane / job->group;
            if (token >= tokens) break;
            const int64_t head = u->head * job->group + lane % job->group;
            store_bf16(job->out + ((first_token + token) * job->layer->heads + head) * job->d + c, _mm512_castsi512_ps(rows[i]));
        }
    }
}

static void prompt_tile(const attention_job *job, const unit *u, int64_t tile, const bf16 *values) {
    _Alignas(64) lane_tile lanes;
    _Alignas(64) bf16 weights[BLOCK_KEYS * 16];
    _Alignas(64) float sums[MAX_HEAD_DIM * 16];
    load_lanes(job, u, tile, &lanes);
    softmax_state state = {_mm512_set1_ps(-INFINITY), _mm512_setzero_ps()};
    memset(sums, 0, job->padded_d * 16 * sizeof(float));
    const int64_t begin = u->first_key + (lanes.low_least - u->first_key) / 32 * 32, last = lanes.high_most + 1;
    for (int64_t first = begin; first < last; first += BLOCK_KEYS) {
        key_block block;
        find_block(job, u, first, last, &block);
        const __m512 factor = attend_block(job, &lanes, &block, first, &state, weights);
        if (first > begin && _mm512_cmp_ps_mask(factor, _mm512_set1_ps(1.0f), _CMP_NEQ_OQ)) {
            for (int64_t c = 0; c < job->padded_d; c++) _mm512_store_ps(sums + c * 16, _mm512_mul_ps(_mm512_load_ps(sums + c * 16), factor));
        }
        multiply_values(job, values + (first - u->first_key) * job->padded_d, weights, block.subtiles * TILE, sums);
    }
    store_lanes(job, u, tile, sums, state.sum);
}

static void prompt_unit(const attention_job *job, const unit *u) {
    bf16 *values = scratch(SCRATCH_HIDDEN, ceil_div(u->last_key - u->first_key, BLOCK_KEYS) * BLOCK_KEYS * job->padded_d * sizeof(bf16));
    transpose_values(job, u, values);
    for (int64_t tile = u->first_tile; tile < u->last_tile; tile++) prompt_tile(job, u, tile, values);
}

/* ---------------------------------------------------------------- dealing out the work */

static int64_t first_visible_key(const attention_job *job, int64_t row, int64_t token) {
    const int64_t tokens = job->step->query_start[row + 1] - job->step->query_start[row];
    const int64_t position = job->step->context[row] - tokens + token, chunk = job->layer->chunk;
    return chunk ? position / chunk * chunk / TILE * TILE : 0;
}

static unit *plan_decode(const attention_job *job, unit *next, int64_t row, int64_t *parts) {
    const kv_layer *layer = job->layer;
    const int64_t first = first_visible_key(job, row, 0), last = job->step->context[row];
    const int64_t wanted = ceil_div(2 * pool_threads(), job->step->rows * layer->kv_heads);
    const int64_t splits = pool_threads() == 1 ? 1 : max_i64(1, min_i64(wanted, (last - first) / SPLIT_KEYS));
    const int64_t keys = ceil_div(ceil_div(last - first, splits), BLOCK_KEYS) * BLOCK_KEYS;
    const int64_t count = ceil_div(last - first, keys);
    for (int32_t head = 0; head < layer->kv_heads; head++) {
        for (int64_t i = 0; i < count; i++) {
            const int64_t key = first + i * keys;
            *next++ = (unit){(int32_t)row, head, 0, 1, key, min_i64(last, key + keys), count > 1 ? (*parts)++ : -1, i || count == 1 ? 0 : count};
        }
    }
    return next;
}

static unit *plan_prompt(const attention_job *job, unit *next, int64_t row) {
    const int64_t tokens = job->step->query_start[row + 1] - job->step->query_start[row];
    const int64_t tiles = ceil_div(tokens * job->group, TILE), past = job->step->context[row] - tokens;
    for (int64_t tile = 0; tile < tiles; tile += TASK_LANE_TILES) {
        const int64_t last_tile = min_i64(tiles, tile + TASK_LANE_TILES);
        const int64_t last_token = min_i64(tokens - 1, (last_tile * TILE - 1) / job->group);
        const int64_t first_key = first_visible_key(job, row, tile * TILE / job->group);
        for (int32_t head = 0; head < job->layer->kv_heads; head++) {
            *next++ = (unit){(int32_t)row, head, tile, last_tile, first_key, past + last_token + 1, -1, 0};
        }
    }
    return next;
}

static bool is_decode(const attention_job *job, int64_t row) {
    return (job->step->query_start[row + 1] - job->step->query_start[row]) * job->group <= TILE;
}

static void unit_task(void *context, int64_t task) {
    const attention_job *job = context;
    const unit *u = job->units + task;
    tiles_begin();
    if (is_decode(job, u->row)) decode_unit(job, u);
    else prompt_unit(job, u);
    tiles_end();
}

static void merge_task(void *context, int64_t task) {
    const attention_job *job = context;
    if (job->units[task].parts) merge_parts(job, job->units + task);
}

/* q: [tokens, heads, head_dim], tokens q_step values apart; out: the same, dense. */
EXPORT void remuda_attention(const kv_layer *layer, const kv_step *step, const bf16 *q, int64_t q_step, bf16 *out) {
    attention_job job = {.layer = layer, .step = step, .q = q, .q_step = q_step, .out = out};
    job.group = layer->heads / layer->kv_heads;
    job.d = layer->head_dim;
    job.padded_d = ceil_div(job.d, TILE_K) * TILE_K;
    job.gathered = layer->block_size % TILE != 0 || job.d % TILE_K != 0;
    const int64_t most = step->rows * layer->kv_heads * (2 + 2 * pool_threads()) +
                         ceil_div(step->tokens * job.group, TILE * TASK_LANE_TILES) * layer->kv_heads;
    unit *next = job.units = scratch(SCRATCH_INDEX, most * sizeof(unit));
    int64_t parts = 0;
    for (int64_t row = 0; row < step->rows; row++) {
        if (step->query_start[row + 1] == step->query_start[row]) continue;
        next = is_decode(&job, row) ? plan_decode(&job, next, row, &parts) : plan_prompt(&job, next, row);
    }
    if (parts) job.parts = scratch(SCRATCH_INPUT, parts * part_size(&job) * sizeof(float));
    run_tasks(unit_task, &job, next - job.units);
    if (parts) run_tasks(merge_task, &job, next - job.units);
}
