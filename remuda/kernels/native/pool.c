/* A small fork-join thread pool: persistent workers that spin for a bounded time and then sleep on a futex.
 *
 * A step is a chain of kernels a few microseconds apart, so a worker that has just finished expects more work at once;
 * spinning makes the fork cost about one microsecond. With one thread (several ranks per core) there are no workers. */
#define _GNU_SOURCE
#include "common.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MAX_THREADS 256

static struct {
    int threads; /* including the caller */
    int64_t spin_ns;
    pid_t pid; /* workers do not survive fork: a child starts its own */
    _Alignas(64) _Atomic uint32_t generation;
    _Atomic int sleepers;
    task_fn fn;
    void *context;
    int64_t tasks;
    _Alignas(64) _Atomic int64_t next_task;
    _Alignas(64) _Atomic int running; /* workers that have not finished this generation */
    _Atomic int alive;                /* workers of this pool; a worker whose index is not below threads - 1 leaves */
    _Atomic bool busy;                /* a second caller of the same process computes alone */
} pool = {.threads = 1, .spin_ns = 50000};

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void futex_wait(_Atomic uint32_t *word, uint32_t expected) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0);
}

static void futex_wake_all(_Atomic uint32_t *word) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1 << 30, NULL, NULL, 0); }

static void take_tasks(void) {
    task_fn fn = pool.fn;
    void *context = pool.context;
    const int64_t tasks = pool.tasks;
    for (int64_t task; (task = atomic_fetch_add_explicit(&pool.next_task, 1, memory_order_relaxed)) < tasks;) fn(context, task);
}

static uint32_t wait_for_generation(uint32_t seen) {
    uint32_t current;
    const int64_t deadline = now_ns() + pool.spin_ns;
    do {
        for (int i = 0; i < 32; i++) {
            current = atomic_load_explicit(&pool.generation, memory_order_acquire);
            if (current != seen) return current;
            _mm_pause();
        }
    } while (now_ns() < deadline);
    atomic_fetch_add(&pool.sleepers, 1);
    while ((current = atomic_load(&pool.generation)) == seen) futex_wait(&pool.generation, seen);
    atomic_fetch_sub(&pool.sleepers, 1);
    return current;
}

static void *worker(void *argument) {
    const int index = (int)(intptr_t)argument;
    uint32_t seen = 0;
    for (;;) {
        seen = wait_for_generation(seen);
        const bool leave = index >= pool.threads - 1;
        if (!leave) take_tasks();
        atomic_fetch_sub_explicit(&pool.running, 1, memory_order_release);
        if (leave) return NULL;
    }
}

static void start_generation(int workers) {
    atomic_store_explicit(&pool.next_task, 0, memory_order_relaxed);
    atomic_store_explicit(&pool.running, workers, memory_order_relaxed);
    atomic_fetch_add(&pool.generation, 1); /* sequentially consistent: a worker about to sleep is seen in `sleepers` */
    if (atomic_load(&pool.sleepers) > 0) futex_wake_all(&pool.generation);
}

static void wait_for_workers(void) {
    for (int64_t spins = 1; atomic_load_explicit(&pool.running, memory_order_acquire) > 0; spins++) {
        _mm_pause();
        if (spins % 512 == 0) sched_yield(); /* the worker may have lost its core */
    }
}

/* Workers get no signals: those belong to the Python interpreter's main thread. */
static void start_workers(void) {
    pool.pid = getpid();
    atomic_store(&pool.generation, 0);
    atomic_store(&pool.sleepers, 0);
    atomic_store(&pool.alive, 0);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    for (int i = 0; i < pool.threads - 1; i++) {
        pthread_t thread;
        if (pthread_create(&thread, &attributes, worker, (void *)(intptr_t)i) != 0) break;
        atomic_fetch_add(&pool.alive, 1);
    }
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void run_tasks(task_fn fn, void *context, int64_t tasks) {
    if (pool.threads == 1 || tasks <= 1 || atomic_exchange(&pool.busy, true)) {
        for (int64_t task = 0; task < tasks; task++) fn(context, task);
        return;
    }
    if (pool.pid != getpid()) start_workers();
    pool.fn = fn;
    pool.context = context;
    pool.tasks = tasks;
    start_generation(atomic_load(&pool.alive));
    take_tasks();
    wait_for_workers();
    atomic_store(&pool.busy, false);
}

int pool_threads(void) { return pool.threads; }

/* `threads` counts the caller; `spin_us`: how long an idle worker spins before it sleeps. Only between kernels. */
EXPORT void remuda_set_threads(int threads, int spin_us) {
    threads = threads < 1 ? 1 : threads > MAX_THREADS ? MAX_THREADS : threads;
    pool.spin_ns = (int64_t)spin_us * 1000;
    if (threads == pool.threads) return;
    if (pool.pid == getpid()) { /* every worker leaves; the next kernel starts the new ones */
        pool.threads = 1;
        start_generation(atomic_load(&pool.alive));
        wait_for_workers();
    }
    pool.pid = 0;
    pool.threads = threads;
}

EXPORT int remuda_threads(void) { return pool.threads; }

/* ---------------------------------------------------------------- scratch memory */

static __thread struct {
    void *data;
    size_t bytes;
} arenas[SCRATCH_SLOTS];

void *scratch(enum scratch_slot slot, size_t bytes) {
    if (arenas[slot].bytes < bytes) {
        free(arenas[slot].data);
        arenas[slot].bytes = (bytes + bytes / 4 + 4095) & ~(size_t)4095;
        arenas[slot].data = aligned_alloc(4096, arenas[slot].bytes);
        if (!arenas[slot].data) abort(); /* out of memory: nothing sensible is left to do in the middle of a step */
    }
    return arenas[slot].data;
}

/* ---------------------------------------------------------------- AMX state */

#define ARCH_REQ_XCOMP_PERM 0x1023
#define XFEATURE_XTILEDATA 18

/* Ask the kernel for the use of AMX tiles (threads made later inherit it). Returns 0, or an errno. */
EXPORT int remuda_init(void) { return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 ? 0 : errno; }

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;

#define EIGHT(x) x, x, x, x, x, x, x, x
static const tile_config whole_tiles = {.palette = 1, .row_bytes = {EIGHT(64)}, .rows = {EIGHT(TILE)}};

void tiles_begin(void) { __asm__ volatile("ldtilecfg %0" : : "m"(whole_tiles)); }
void tiles_end(void) { __asm__ volatile("tilerelease" : :); }
