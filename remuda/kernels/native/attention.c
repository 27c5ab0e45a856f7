/* Attention over paged keys and values, mixed prompts and decodes.
 *
 * All queries of one (row, key head) pair form *lanes*: lane l is query head l % group of token l / group. Sixteen lanes
 * are computed together. Scores are kept transposed, [keys][16 lanes], so that keys are read from the pages as they lie
 * and the running maximum and sum of the softmax are plain vectors. A tile of lanes sees keys of one contiguous range, with
 * a mask where a lane sees less. Rows of at most sixteen lanes (decodes) read values from the pages (and may be split along the
 * context); longer ones transpose the values once and multiply in tiles. */
#include "attention.h"
#include "tiles.h"

#include <math.h>

#define SPLIT_KEYS 512     /* a decode's context is split only into parts at least this long */
#define TASK_LANE_TILES 32 /* of a prompt, after which values are transposed anew */

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

void load_lanes(const attention_job *job, const unit *u, int64_t tile, lane_tile *lanes) {
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
void find_block(const attention_job *job, const unit *u, int64_t first, int64_t last, key_block *block) {
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

/* Pages lie scattered, and no hardware guesses where the next one is. */
line_fetch plan_fetch_block(const key_block *block, int64_t d) {
    line_fetch fetch = {.rows = 2 * block->subtiles, .bytes = TILE * d * (int64_t)sizeof(bf16)};
    for (int64_t i = 0; i < block->subtiles; i++) {
        fetch.row[i] = (const char *)block->k[i];
        fetch.row[block->subtiles + i] = (const char *)block->v[i];
    }
    return fetch;
}

/* ---------------------------------------------------------------- scores and softmax */

/* scores[key][lane] of a block: keys x head_dim times head_dim x lanes. */
static void score_block(const attention_job *job, const lane_tile *lanes, const key_block *block, float *scores) {
    const int64_t tiles = job->padded_d / TILE_K;
    int64_t i = 0;
    for (; i + 1 < block->subtiles; i += 2) {
        const row_tiles keys = {block->k[i], block->k[i + 1], block->stride, TILE_K};
        multiply_tiles(keys, true, lanes->tiles, false, 2 * TILE, tiles, false, NULL, scores + i * 256);
    }
    if (i < block->subtiles) {
        const row_tiles keys = {block->k[i], NULL, block->stride, TILE_K};
        multiply_tiles(keys, false, lanes->tiles, false, TILE, tiles, false, NULL, scores + i * 256);
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
static __m512 weigh_block(float *scores, int64_t rows, float scale, softmax_state *state, bf16 *weights, line_fetch *fetch) {
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
        fetch_lines(fetch, 4);
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
__m512 attend_block(const attention_job *job, const lane_tile *lanes, const key_block *block, int64_t first, softmax_state *state,
                    bf16 *weights, line_fetch *fetch) {
    _Alignas(64) float scores[BLOCK_KEYS * 16];
    const int64_t rows = block->subtiles * TILE;
    score_block(job, lanes, block, scores);
    if (first < lanes->low_most || first + rows - 1 > lanes->high_least) mask_scores(lanes, first, rows, scores);
    if (block->subtiles % 2) memset(weights + rows * 16, 0, TILE_SIZE);
    return weigh_block(scores, rows, job->layer->scale, state, weights, fetch);
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

static bool same_kind(const attention_job *job, const unit *a, const unit *b) { return is_decode(job, a->row) == is_decode(job, b->row); }

/* A few units in a row, so that the pages of one can be fetched while the one before is computed. */
static void unit_task(void *context, int64_t task) {
    const attention_job *job = context;
    const int64_t last = min_i64(job->count, (task + 1) * job->units_per_task);
    tiles_begin();
    for (int64_t i = task * job->units_per_task; i < last; i++) {
        const unit *u = job->units + i, *following = i + 1 < last && same_kind(job, u, u + 1) ? u + 1 : NULL;
        if (is_decode(job, u->row)) decode_unit(job, u, following);
        else prompt_unit(job, u);
    }
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
    job.count = next - job.units;
    const bool decodes = step->tokens == step->rows;
    job.units_per_task = decodes ? max_i64(1, min_i64(8, job.count / (pool_threads() * 4))) : 1;
    run_tasks(unit_task, &job, ceil_div(job.count, job.units_per_task));
    if (parts) run_tasks(merge_task, &job, job.count);
}
