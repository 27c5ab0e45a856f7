/* What the files of the attention kernel share: its vocabulary and the scores of a block of keys. */
#ifndef REMUDA_ATTENTION_H
#define REMUDA_ATTENTION_H

#include "kv.h"

#define BLOCK_KEYS 128
#define SUBTILES (BLOCK_KEYS / TILE)
#define MAX_HEAD_DIM 256

typedef struct {
    const kv_layer *layer;
    const kv_step *step;
    const bf16 *q;
    bf16 *out; /* [tokens, heads, head_dim] */
    int64_t q_step, group, d, padded_d;
    bool gathered; /* keys and values are copied out of the pages first: block size or head dim do not fit tiles */
    struct unit *units;
    int64_t count, units_per_task;
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

/* Lines of scattered pages that will be wanted next. Asked for a few at a time among the arithmetic: all at once they would
 * fill the core's sixteen line buffers and it would wait. */
typedef struct {
    const char *row[2 * SUBTILES]; /* where the keys' and the values' subtiles begin */
    int64_t rows, bytes;           /* of a subtile */
    int64_t at, offset;
} line_fetch;

ALWAYS_INLINE void fetch_lines(line_fetch *f, int64_t lines) {
    for (int64_t i = 0; i < lines && f->at < f->rows; i++) {
        _mm_prefetch(f->row[f->at] + f->offset, _MM_HINT_T1);
        f->offset += 64;
        if (f->offset >= f->bytes) f->offset = 0, f->at++;
    }
}

/* attention.c */
void load_lanes(const attention_job *job, const unit *u, int64_t tile, lane_tile *lanes);
void find_block(const attention_job *job, const unit *u, int64_t first, int64_t last, key_block *block);
line_fetch plan_fetch_block(const key_block *block, int64_t d);
__m512 attend_block(const attention_job *job, const lane_tile *lanes, const key_block *block, int64_t first, softmax_state *state,
                    bf16 *weights, line_fetch *fetch);

/* attention_decode.c */
int64_t part_size(const attention_job *job);
void decode_unit(const attention_job *job, const unit *u, const unit *following);
void merge_parts(const attention_job *job, const unit *u);

/* attention_prompt.c */
void prompt_unit(const attention_job *job, const unit *u);

#endif
