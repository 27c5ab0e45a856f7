/* From a fused QKV projection to finished queries (in place) and KV pages. */
#include "kv.h"

#include <math.h>

#define MAX_HEAD_DIM 256
#define TASK_VALUES 8192

/* cos, sin: [d / 2]. Pairs (2j, 2j + 1). */
static void rotate_interleaved(float *x, const float *cos, const float *sin, int64_t d) {
    const __m512i twice = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    for (int64_t i = 0; i < d; i += 16) {
        const __m512 v = _mm512_loadu_ps(x + i), swapped = _mm512_permute_ps(v, 0xB1);
        const __m512 c = _mm512_permutexvar_ps(twice, _mm512_castps256_ps512(_mm256_loadu_ps(cos + i / 2)));
        const __m512 s = _mm512_permutexvar_ps(twice, _mm512_castps256_ps512(_mm256_loadu_ps(sin + i / 2)));
        _mm512_storeu_ps(x + i, _mm512_fmaddsub_ps(v, c, _mm512_mul_ps(swapped, s)));
    }
}

/* Pairs (j, j + d / 2). */
static void rotate_halves(float *x, const float *cos, const float *sin, int64_t d) {
    for (int64_t i = 0; i < d / 2; i += 8) {
        const __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + d / 2 + i);
        const __m256 c = _mm256_loadu_ps(cos + i), s = _mm256_loadu_ps(sin + i);
        _mm256_storeu_ps(x + i, _mm256_fmsub_ps(a, c, _mm256_mul_ps(b, s)));
        _mm256_storeu_ps(x + d / 2 + i, _mm256_fmadd_ps(b, c, _mm256_mul_ps(a, s)));
    }
}

typedef struct {
    const kv_layer *layer;
    const kv_step *step;
    bf16 *qkv;
    int64_t qkv_step;
    const float *cos_sin;     /* [tokens, head_dim], or NULL */
    const float *temperature; /* [tokens], or NULL */
    int64_t tokens_per_task;
} rope_job;

static float rms(const float *x, int64_t d, float eps) {
    __m512 squares = _mm512_setzero_ps();
    for (int64_t i = 0; i < d; i += 16) squares = _mm512_fmadd_ps(_mm512_load_ps(x + i), _mm512_load_ps(x + i), squares);
    return sqrtf(_mm512_reduce_add_ps(squares) / (float)d + eps);
}

/* x / rms(x) * weight. */
static void norm_head(float *x, const bf16 *weight, int64_t d, float eps) {
    const __m512 factor = _mm512_set1_ps(1.0f / rms(x, d, eps));
    for (int64_t i = 0; i < d; i += 16) {
        const __m512 normed = _mm512_mul_ps(_mm512_load_ps(x + i), factor);
        _mm512_store_ps(x + i, weight ? _mm512_mul_ps(normed, load_bf16(weight + i)) : normed);
    }
}

/* Rotate, norm and scale one head of source into target. */
static void finish_head(const rope_job *job, int64_t token, const bf16 *source, const bf16 *weight, bf16 *target, float factor) {
    const kv_layer *layer = job->layer;
    const int64_t d = layer->head_dim;
    _Alignas(64) float x[MAX_HEAD_DIM];
    for (int64_t i = 0; i < d; i += 16) _mm512_store_ps(x + i, load_bf16(source + i));
    if (layer->norm_eps >= 0 && layer->norm_first) norm_head(x, weight, d, layer->norm_eps);
    if (job->cos_sin) {
        const float *cos = job->cos_sin + token * d, *sin = cos + d / 2;
        if (layer->interleaved) rotate_interleaved(x, cos, sin, d);
        else rotate_halves(x, cos, sin, d);
    }
    if (layer->norm_eps >= 0 && !layer->norm_first) {
        if (weight) norm_head(x, weight, d, layer->norm_eps);
        else factor /= rms(x, d, layer->norm_eps);
    }
    for (int64_t i = 0; i < d; i += 16) store_bf16(target + i, _mm512_mul_ps(_mm512_load_ps(x + i), _mm512_set1_ps(factor)));
}

static void rope_token(const rope_job *job, int64_t token) {
    const kv_layer *layer = job->layer;
    const int64_t d = layer->head_dim, block = layer->block_size, place = job->step->places[token];
    bf16 *q = job->qkv + token * job->qkv_step, *key = q + layer->heads * d, *value = key + layer->kv_heads * d;
    const bool plain = !job->cos_sin && layer->norm_eps < 0;
    const float temperature = job->temperature ? job->temperature[token] : 1.0f;
    if (!plain || temperature != 1.0f) {
        for (int64_t h = 0; h < layer->heads; h++) finish_head(job, token, q + h * d, layer->q_norm, q + h * d, temperature);
    }
    for (int64_t h = 0; h < layer->kv_heads; h++) {
        const int64_t at = place / block * layer->page_step + (h * block + place % block) * d;
        if (plain) memcpy(layer->k + at, key + h * d, d * sizeof(bf16));
        else finish_head(job, token, key + h * d, layer->k_norm, layer->k + at, 1.0f);
        memcpy(layer->v + at, value + h * d, d * sizeof(bf16));
    }
}

static void rope_task(void *context, int64_t task) {
    const rope_job *job = context;
    const int64_t last = min_i64((task + 1) * job->tokens_per_task, job->step->tokens);
    for (int64_t token = task * job->tokens_per_task; token < last; token++) rope_token(job, token);
}

/* qkv [tokens, (heads + 2 kv_heads) * head_dim]: queries are finished in place, keys and values go to the pages. */
EXPORT void remuda_rope_kv(const kv_layer *layer, const kv_step *step, bf16 *qkv, int64_t qkv_step, const float *cos_sin,
                           const float *temperature) {
    rope_job job = {layer, step, qkv, qkv_step, cos_sin, temperature, max_i64(1, TASK_VALUES / qkv_step)};
    run_tasks(rope_task, &job, ceil_div(step->tokens, job.tokens_per_task));
}
