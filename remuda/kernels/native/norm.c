/* RMS norm, alone or after a residual addition; gated SiLU. Rows are independent: long batches are dealt to the threads. */
#include "common.h"

#include <math.h>

#define TASK_VALUES 16384 /* below this a row batch is not worth a fork */

typedef struct {
    const bf16 *x;
    bf16 *residual; /* NULL: no addition */
    const bf16 *weight; /* NULL: ones */
    bf16 *y;
    int64_t rows, hidden, rows_per_task;
    float eps;
} norm_job;

static void norm_row(const norm_job *job, int64_t row) {
    const int64_t hidden = job->hidden;
    const bf16 *x = job->x + row * hidden;
    bf16 *y = job->y + row * hidden;
    __m512 squares = _mm512_setzero_ps();
    if (job->residual) {
        bf16 *residual = job->residual + row * hidden;
        for (int64_t i = 0; i < hidden; i += 16) {
            const __mmask16 mask = tail_mask(hidden - i);
            const __m256i sum = narrow(_mm512_add_ps(load_bf16_mask(x + i, mask), load_bf16_mask(residual + i, mask)));
            _mm256_mask_storeu_epi16(residual + i, mask, sum);
            squares = _mm512_fmadd_ps(widen(sum), widen(sum), squares);
        }
        x = residual;
    } else {
        for (int64_t i = 0; i < hidden; i += 16) {
            const __m512 v = load_bf16_mask(x + i, tail_mask(hidden - i));
            squares = _mm512_fmadd_ps(v, v, squares);
        }
    }
    const __m512 factor = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(squares) / (float)hidden + job->eps));
    for (int64_t i = 0; i < hidden; i += 16) {
        const __mmask16 mask = tail_mask(hidden - i);
        __m512 v = _mm512_mul_ps(load_bf16_mask(x + i, mask), factor);
        if (job->weight) v = _mm512_mul_ps(v, load_bf16_mask(job->weight + i, mask));
        store_bf16_mask(y + i, v, mask);
    }
}

static void norm_task(void *context, int64_t task) {
    const norm_job *job = context;
    const int64_t last = min_i64((task + 1) * job->rows_per_task, job->rows);
    for (int64_t row = task * job->rows_per_task; row < last; row++) norm_row(job, row);
}

/* y = x / rms(x) * weight; with a residual first residual += x (rounded to bf16), then the norm of that. All [rows, hidden]. */
EXPORT void remuda_rms_norm(const bf16 *x, bf16 *residual, const bf16 *weight, bf16 *y, int64_t rows, int64_t hidden, float eps) {
    norm_job job = {x, residual, weight, y, rows, hidden, max_i64(1, TASK_VALUES / hidden), eps};
    run_tasks(norm_task, &job, ceil_div(rows, job.rows_per_task));
}

typedef struct {
    const bf16 *gate_up;
    bf16 *y;
    int64_t rows, width, rows_per_task;
} silu_job;

static void silu_task(void *context, int64_t task) {
    const silu_job *job = context;
    const int64_t last = min_i64((task + 1) * job->rows_per_task, job->rows);
    for (int64_t row = task * job->rows_per_task; row < last; row++) {
        const bf16 *gate = job->gate_up + row * 2 * job->width, *up = gate + job->width;
        for (int64_t i = 0; i < job->width; i += 16) {
            const __mmask16 mask = tail_mask(job->width - i);
            const __m512 v = _mm512_mul_ps(silu_ps(load_bf16_mask(gate + i, mask)), load_bf16_mask(up + i, mask));
            store_bf16_mask(job->y + row * job->width + i, v, mask);
        }
    }
}

/* gate_up [rows, 2 * width], gate first -> y [rows, width]. */
EXPORT void remuda_silu_mul(const bf16 *gate_up, bf16 *y, int64_t rows, int64_t width) {
    silu_job job = {gate_up, y, rows, width, max_i64(1, TASK_VALUES / (2 * width))};
    run_tasks(silu_task, &job, ceil_div(rows, job.rows_per_task));
}
