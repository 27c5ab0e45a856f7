/* What rotary.c and attention.c know of a layer's KV pages and of a step's batch. Mirrored in native/structs.py. */
#ifndef REMUDA_KV_H
#define REMUDA_KV_H

#include "common.h"

/* One layer of one rank. k, v: [pages, kv_heads, block_size, head_dim] bf16, pages page_step values apart. */
typedef struct {
    bf16 *k, *v;
    const bf16 *q_norm, *k_norm; /* [head_dim] each: weights of the per-head norm, or NULL */
    int64_t page_step;
    int64_t chunk;   /* positions per attention chunk, 0: full attention */
    float scale;     /* of the scores */
    float norm_eps;  /* of the per-head norm; negative: none */
    int32_t heads, kv_heads, head_dim, block_size;
    int32_t interleaved, norm_first; /* norm_first: the norm comes before rope */
} kv_layer;

/* One step as one KV group sees it. Row s owns the query tokens [query_start[s], query_start[s + 1]). */
typedef struct {
    const int32_t *query_start, *context, *tables; /* context: tokens in the cache after this step */
    const int64_t *places;                         /* page * block_size + offset of each token */
    int64_t table_step, rows, tokens;
} kv_step;

#endif
