/* Attention of a prompt: values transposed once, then tiles for both products. */
#include "attention.h"
#include "tiles.h"

#include <math.h>

#define TILES_TOGETHER 4

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

/* sums[head_dim][16 lanes] += values x weights over the key pairs of a block, two tiles of dims at a time. */
static void multiply_values(const attention_job *job, const bf16 *values, const bf16 *weights, int64_t keys, float *sums) {
    const int64_t tiles = job->padded_d / TILE;
    for (int64_t t = 0; t < tiles; t += 2) {
        const row_tiles dims = {values + t * TILE_SIZE, values + (t + 1) * TILE_SIZE, TILE_K, tiles * TILE_SIZE};
        multiply_tiles(dims, true, weights, false, 2 * TILE, ceil_div(keys, 32), true, NULL, sums + t * 256);
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

/* What a tile of lanes carries from block to block. */
typedef struct {
    lane_tile lanes;
    softmax_state state;
    _Alignas(64) float sums[MAX_HEAD_DIM * 16]; /* [head_dim][16 lanes] */
} prompt_tile;

static void advance_tile(const attention_job *job, prompt_tile *t, const key_block *whole, int64_t first, const bf16 *values) {
    _Alignas(64) bf16 weights[BLOCK_KEYS * 16];
    if (first > t->lanes.high_most || first + whole->keys <= t->lanes.low_least) return;
    key_block block = *whole;
    block.keys = min_i64(whole->keys, t->lanes.high_most + 1 - first);
    block.subtiles = ceil_div(block.keys, TILE);
    line_fetch nothing = {.rows = 0};
    const __m512 factor = attend_block(job, &t->lanes, &block, first, &t->state, weights, &nothing);
    if (_mm512_cmp_ps_mask(factor, _mm512_set1_ps(1.0f), _CMP_NEQ_OQ)) {
        for (int64_t c = 0; c < job->padded_d; c++) {
            _mm512_store_ps(t->sums + c * 16, _mm512_mul_ps(_mm512_load_ps(t->sums + c * 16), factor));
        }
    }
    multiply_values(job, values, weights, block.subtiles * TILE, t->sums);
}

/* A few tiles go through the keys together, so that a long context comes from memory less often. */
static void prompt_tiles(const attention_job *job, const unit *u, int64_t first_tile, int64_t count, const bf16 *values) {
    prompt_tile tiles[TILES_TOGETHER];
    for (int64_t i = 0; i < count; i++) {
        load_lanes(job, u, first_tile + i, &tiles[i].lanes);
        tiles[i].state = (softmax_state){_mm512_set1_ps(-INFINITY), _mm512_setzero_ps()};
        memset(tiles[i].sums, 0, job->padded_d * 16 * sizeof(float));
    }
    const int64_t begin = u->first_key + (tiles[0].lanes.low_least - u->first_key) / 32 * 32;
    const int64_t last = tiles[count - 1].lanes.high_most + 1;
    for (int64_t first = begin; first < last; first += BLOCK_KEYS) {
        key_block block;
        find_block(job, u, first, last, &block);
        if (!job->gathered) {
            line_fetch fetch = plan_fetch_block(&block, job->d);
            fetch.rows = block.subtiles; /* the values are transposed by now */
            fetch_lines(&fetch, block.subtiles * fetch.bytes / 64);
        }
        for (int64_t i = 0; i < count; i++) advance_tile(job, tiles + i, &block, first, values + (first - u->first_key) * job->padded_d);
    }
    for (int64_t i = 0; i < count; i++) store_lanes(job, u, first_tile + i, tiles[i].sums, tiles[i].state.sum);
}

void prompt_unit(const attention_job *job, const unit *u) {
    bf16 *values = scratch(SCRATCH_HIDDEN, ceil_div(u->last_key - u->first_key, BLOCK_KEYS) * BLOCK_KEYS * job->padded_d * sizeof(bf16));
    transpose_values(job, u, values);
    for (int64_t tile = u->first_tile; tile < u->last_tile; tile += TILES_TOGETHER) {
        prompt_tiles(job, u, tile, min_i64(TILES_TOGETHER, u->last_tile - tile), values);
    }
}
