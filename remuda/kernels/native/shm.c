/* Collectives among ranks of one host over a shared memory segment.
 *
 * Every operation is one meeting: each rank writes its part into its slot, adds itself to the arrival counter and waits until
 * all have arrived; then everybody reads whatever it needs. Slots alternate between two halves: when all have arrived at
 * meeting n + 1, all have finished reading meeting n, so its half may be written again in n + 2. A large all-reduce takes two
 * meetings: ranks first add up one share each, then collect the shares. Sums run in rank order in float32: every rank
 * gets the same bits. Longer messages go in pieces. */
#define _GNU_SOURCE
#include "common.h"

#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SLOT_BYTES (1 << 20)
#define TWO_STEP_BYTES (64 << 10) /* from here on, sharing the additions is worth a second meeting */
#define YIELDS 4

typedef struct {
    _Alignas(64) _Atomic uint32_t arrived; /* in all meetings so far, modulo 2^32; a futex */
    _Alignas(64) _Atomic int32_t sleepers;
    _Atomic int32_t closed;
    _Alignas(64) char slots[]; /* [2 halves][ranks + 1][SLOT_BYTES]; the last for shared sums */
} segment;

/* One rank's view. Mirrored in structs.py. */
typedef struct {
    segment *shared;
    int32_t rank, size;
    uint32_t meeting; /* number of the last meeting, modulo 2^32 */
    int32_t spin_us;
    int64_t timeout_ms;
} peer_group;

EXPORT int64_t remuda_shm_bytes(int32_t size) { return sizeof(segment) + 2LL * (size + 1) * SLOT_BYTES; }

static int64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

static char *slot(const peer_group *g, int32_t rank) {
    return g->shared->slots + ((int64_t)(g->meeting & 1) * (g->size + 1) + rank) * SLOT_BYTES;
}

static bool complete(const peer_group *g) {
    const uint32_t target = g->meeting * (uint32_t)g->size;
    return (int32_t)(atomic_load_explicit(&g->shared->arrived, memory_order_acquire) - target) >= 0;
}

static int sleep_until_complete(const peer_group *g, int64_t deadline_us) {
    segment *s = g->shared;
    int result = 0;
    atomic_fetch_add(&s->sleepers, 1);
    for (;;) {
        const uint32_t arrived = atomic_load(&s->arrived);
        if (complete(g)) break;
        const int64_t left = deadline_us - now_us();
        if (atomic_load(&s->closed)) result = ECANCELED;
        else if (left <= 0) result = ETIMEDOUT;
        if (result) break;
        const struct timespec wait = {left / 1000000, left % 1000000 * 1000};
        syscall(SYS_futex, &s->arrived, FUTEX_WAIT, arrived, &wait, NULL, 0);
    }
    atomic_fetch_sub(&s->sleepers, 1);
    return result;
}

/* Arrive and wait for all. Spins while every rank can have a core of its own, then sleeps. */
static int meet(peer_group *g) {
    segment *s = g->shared;
    const uint32_t arrived = atomic_fetch_add(&s->arrived, 1) + 1;
    if (arrived == g->meeting * (uint32_t)g->size) {
        if (atomic_load(&s->sleepers) > 0) syscall(SYS_futex, &s->arrived, FUTEX_WAKE, 1 << 30, NULL, NULL, 0);
        return 0;
    }
    const int64_t start = now_us();
    while (g->spin_us > 0) {
        for (int i = 0; i < 64; i++) {
            if (complete(g)) return 0;
            _mm_pause();
        }
        if (now_us() - start > g->spin_us) break;
    }
    for (int i = 0; i < YIELDS; i++) {
        if (complete(g)) return 0;
        sched_yield();
    }
    return complete(g) ? 0 : sleep_until_complete(g, start + g->timeout_ms * 1000);
}

/* ---------------------------------------------------------------- sums */

/* target[i] = sum over ranks of values [first + i] of their slots, for count values of bf16 or float32. */
static void add_slots(const peer_group *g, char *target, int64_t first, int64_t count, bool is_float) {
    const int64_t width = is_float ? 4 : 2;
    for (int64_t i = 0; i < count; i += 16) {
        const __mmask16 mask = tail_mask(count - i);
        __m512 sum = _mm512_setzero_ps();
        for (int32_t r = 0; r < g->size; r++) {
            const char *p = slot(g, r) + (first + i) * width;
            sum = _mm512_add_ps(sum, is_float ? _mm512_maskz_loadu_ps(mask, p) : load_bf16_mask((const bf16 *)p, mask));
        }
        if (is_float) _mm512_mask_storeu_ps((float *)target + i, mask, sum);
        else store_bf16_mask((bf16 *)target + i, sum, mask);
    }
}

static int reduce_piece(peer_group *g, char *x, int64_t count, bool is_float) {
    const int64_t width = is_float ? 4 : 2;
    g->meeting++;
    memcpy(slot(g, g->rank), x, count * width);
    int error = meet(g);
    if (error) return error;
    if (g->size == 2 || count * width < TWO_STEP_BYTES) {
        add_slots(g, x, 0, count, is_float);
        return 0;
    }
    const int64_t share = ceil_div(ceil_div(count, g->size), 32) * 32; /* whole cache lines */
    const int64_t first = min_i64(count, share * g->rank), own = min_i64(count - first, share);
    char *sums = slot(g, g->size);
    add_slots(g, sums + first * width, first, own, is_float);
    g->meeting++;
    if ((error = meet(g))) return error;
    memcpy(x, sums, count * width);
    return 0;
}

/* x = sum of x over all ranks, in place. Returns 0, ETIMEDOUT or ECANCELED. */
EXPORT int remuda_shm_all_reduce(peer_group *g, char *x, int64_t count, int32_t is_float) {
    const int64_t width = is_float ? 4 : 2, piece = SLOT_BYTES / width;
    int error = 0;
    for (int64_t i = 0; i < count && !error; i += piece) error = reduce_piece(g, x + i * width, min_i64(piece, count - i), is_float);
    return error;
}

/* ---------------------------------------------------------------- copies */

/* target [size, bytes] = everybody's x; a NULL target only contributes. */
EXPORT int remuda_shm_gather(peer_group *g, const char *x, char *target, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += SLOT_BYTES) {
        const int64_t piece = min_i64(SLOT_BYTES, bytes - i);
        g->meeting++;
        memcpy(slot(g, g->rank), x + i, piece);
        const int error = meet(g);
        if (error) return error;
        for (int32_t r = 0; target && r < g->size; r++) memcpy(target + r * bytes + i, slot(g, r), piece);
    }
    return 0;
}

/* x = rank `source`'s x. */
EXPORT int remuda_shm_broadcast(peer_group *g, char *x, int64_t bytes, int32_t source) {
    for (int64_t i = 0; i < bytes; i += SLOT_BYTES) {
        const int64_t piece = min_i64(SLOT_BYTES, bytes - i);
        g->meeting++;
        if (g->rank == source) memcpy(slot(g, source), x + i, piece);
        const int error = meet(g);
        if (error) return error;
        if (g->rank != source) memcpy(x + i, slot(g, source), piece);
    }
    return 0;
}

EXPORT int remuda_shm_barrier(peer_group *g) {
    g->meeting++;
    return meet(g);
}

/* Whoever waits, or comes to wait, in a collective returns ECANCELED. */
EXPORT void remuda_shm_close(peer_group *g) {
    atomic_store(&g->shared->closed, 1);
    syscall(SYS_futex, &g->shared->arrived, FUTEX_WAKE, 1 << 30, NULL, NULL, 0);
}
