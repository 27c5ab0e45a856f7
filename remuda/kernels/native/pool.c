/* A small fork-join thread pool: persistent workers that spin for a bounded time and then sleep on a futex.
 *
 * A step is a chain of kernels a few microseconds apart, so a worker that has just finished expects more work at once;
 * spinning makes the fork cost about one microsecond. The caller works too and waits only for tasks that a worker has
 * begun: a worker that has lost its core delays nobody. With one thread (several ranks per core) there are no workers. */
#define _GNU_SOURCE
#include "common.h"
#include "fp8.h"

#include <errno.h>
#include <linux/futex.h>
#include <malloc.h>
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
    pid_t pid;                  /* workers do not survive fork: a child starts its own */
    _Atomic uint32_t crew;      /* workers of an earlier crew leave */
    _Atomic bool busy;          /* a second caller of the same process computes alone */
    _Atomic(task_fn) fn;        /* the job: written before its ticket, so whoever holds a ticket has read it whole */
    void *_Atomic context;
    _Atomic uint32_t tasks;
    _Alignas(64) _Atomic uint64_t ticket; /* job number << 32 | next task of it */
    _Alignas(64) _Atomic uint32_t job;    /* futex: idle workers wait for it to change */
    _Atomic int sleepers;
    _Alignas(64) _Atomic uint32_t done; /* tasks of this job that are finished */
} pool = {.threads = 1, .spin_ns = 50000};

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* Run tasks of the current job until none is left. A ticket is only had while its job goes on. */
static void take_tasks(void) {
    for (;;) {
        uint64_t ticket = atomic_load_explicit(&pool.ticket, memory_order_acquire);
        task_fn fn = atomic_load_explicit(&pool.fn, memory_order_relaxed);
        void *context = atomic_load_explicit(&pool.context, memory_order_relaxed);
        if ((uint32_t)ticket >= atomic_load_explicit(&pool.tasks, memory_order_relaxed)) return;
        if (!atomic_compare_exchange_strong(&pool.ticket, &ticket, ticket + 1)) continue;
        fn(context, (uint32_t)ticket);
        atomic_fetch_add_explicit(&pool.done, 1, memory_order_release);
    }
}

static void wait_for_job(uint32_t seen) {
    const int64_t deadline = now_ns() + pool.spin_ns;
    do {
        for (int i = 0; i < 32; i++) {
            if (atomic_load_explicit(&pool.job, memory_order_acquire) != seen) return;
            _mm_pause();
        }
    } while (now_ns() < deadline);
    atomic_fetch_add(&pool.sleepers, 1);
    while (atomic_load(&pool.job) == seen) syscall(SYS_futex, &pool.job, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
    atomic_fetch_sub(&pool.sleepers, 1);
}

static void *worker(void *argument) {
    const uint32_t crew = (uint32_t)(uintptr_t)argument;
    for (;;) {
        const uint32_t seen = atomic_load(&pool.job);
        if (atomic_load(&pool.crew) != crew) return NULL;
        take_tasks();
        wait_for_job(seen);
    }
}

/* Workers get no signals: those belong to the Python interpreter's main thread. */
static void start_workers(void) {
    pool.pid = getpid();
    atomic_store(&pool.sleepers, 0);
    const uint32_t crew = atomic_fetch_add(&pool.crew, 1) + 1;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    for (int i = 0; i < pool.threads - 1; i++) {
        pthread_t thread;
        if (pthread_create(&thread, &attributes, worker, (void *)(uintptr_t)crew) != 0) break;
    }
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void announce_job(void) {
    atomic_fetch_add(&pool.job, 1); /* sequentially consistent: a worker about to sleep is seen in `sleepers` */
    if (atomic_load(&pool.sleepers) > 0) syscall(SYS_futex, &pool.job, FUTEX_WAKE_PRIVATE, MAX_THREADS, NULL, NULL, 0);
}

void run_tasks(task_fn fn, void *context, int64_t tasks) {
    if (pool.threads == 1 || tasks <= 1 || atomic_exchange(&pool.busy, true)) {
        for (int64_t task = 0; task < tasks; task++) fn(context, task);
        return;
    }
    if (pool.pid != getpid()) start_workers();
    const uint64_t ticket = (atomic_load(&pool.ticket) >> 32) + 1;
    atomic_store_explicit(&pool.tasks, 0, memory_order_relaxed); /* until the job is whole, there is nothing to take */
    atomic_store(&pool.ticket, ticket << 32);
    atomic_store(&pool.fn, fn);
    atomic_store(&pool.context, context);
    atomic_store(&pool.done, 0);
    atomic_store(&pool.ticket, (ticket + 1) << 32);
    atomic_store(&pool.tasks, (uint32_t)tasks);
    announce_job();
    take_tasks();
    for (int64_t spins = 1; atomic_load_explicit(&pool.done, memory_order_acquire) < tasks; spins++) {
        _mm_pause();
        if (spins % 512 == 0) sched_yield(); /* the worker may have lost its core in the middle of a task */
    }
    atomic_store(&pool.busy, false);
}

int pool_threads(void) { return pool.threads; }

/* `threads` counts the caller; `spin_us`: how long an idle worker spins before it sleeps. Only between kernels. */
EXPORT void remuda_set_threads(int threads, int spin_us) {
    threads = threads < 1 ? 1 : threads > MAX_THREADS ? MAX_THREADS : threads;
    pool.spin_ns = (int64_t)spin_us * 1000;
    if (threads == pool.threads) return;
    pool.threads = threads;
    pool.pid = 0; /* the next kernel starts a new crew */
    atomic_fetch_add(&pool.crew, 1);
    announce_job();
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

/* ---------------------------------------------------------------- this process */

#define ARCH_REQ_XCOMP_PERM 0x1023
#define XFEATURE_XTILEDATA 18

/* Ask the kernel for the use of AMX tiles (threads made later inherit it). Returns 0, or an errno.
 *
 * A long prompt's activations are tens of megabytes that every layer frees and allocates again: the C library shall keep them
 * instead of returning them to the kernel, whose page faults would cost as much as some kernels. */
EXPORT int remuda_init(void) {
    mallopt(M_MMAP_THRESHOLD, 32 << 20);
    mallopt(M_TRIM_THRESHOLD, 256 << 20);
    fp8_init();
#ifdef REMUDA_AMX
    if (syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) != 0) return errno;
#endif
    return 0;
}
