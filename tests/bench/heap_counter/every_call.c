/* Calls everything that takes or gives back memory: to the byte, in threads, amid forks. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
typedef ptrdiff_t (*reader)(void);
enum { THREADS = 8, SLOTS = 4096, ROUNDS = 20000, BIG = 1 << 20 };
static _Atomic(char *) slots[SLOTS]; /* any thread releases what another took */
static void fail(const char *what) { printf("%s\n", what); exit(1); }
static void *take(int how, size_t n) {
    void *p = NULL;
    switch (how % 9) {
    case 0: return malloc(n);
    case 1: p = calloc(n, 1);
            for (size_t i = 0; i < n; i++) if (((char *)p)[i]) fail("calloc is not zero");
            return p;
    case 2: return realloc(NULL, n);
    case 3: if (posix_memalign(&p, 64, n)) fail("posix_memalign"); break;
    case 4: p = aligned_alloc(64, n); break;
    case 5: p = memalign(64, n); break;
    case 6: p = valloc(n); break;
    case 7: p = pvalloc(n); break;
    case 8: return reallocarray(malloc(5), n, 1);
    }
    if ((uintptr_t)p % 64) fail("not aligned");
    return p;
}
static void *churn(void *seed) {
    unsigned state = (unsigned)(uintptr_t)seed;
    for (int i = 0; i < ROUNDS; i++) {
        unsigned r = rand_r(&state);
        size_t n = r % 100 < 97 ? r % 5000 : r % 300000;
        char *p = n % 5 == 4 ? NULL : take(r >> 7, n + 16);
        if (p) { memset(p, n & 127, n + 16); memcpy(p, &n, sizeof n); }
        char *old = __atomic_exchange_n(&slots[r % SLOTS], p, __ATOMIC_ACQ_REL);
        if (!old) continue;
        memcpy(&n, old, sizeof n);
        if (n + 16 > sizeof n && old[n + 15] != (char)(n & 127)) fail("overwritten");
        if (r & 8) {
            old = realloc(old, n * 2 + 16);
            if (old[n + 15] != (char)(n & 127)) fail("not kept by realloc");
        }
        free(old);
    }
    return NULL;
}
int main(void) {
    reader live = (reader)dlsym(RTLD_DEFAULT, "zometer_heap_live");
    reader peak = (reader)dlsym(RTLD_DEFAULT, "zometer_heap_peak");
    void (*reset)(void) = (void (*)(void))dlsym(RTLD_DEFAULT, "zometer_heap_reset");
    if (!live) fail("not preloaded");
    setvbuf(stdout, NULL, _IONBF, 0);
    ptrdiff_t start = live();
    for (int how = 0; how < 9; how++) { /* to the byte, one call at a time */
        reset();
        void *p = take(how, BIG + 1);
        if (live() - start != BIG + 1) fail("not the bytes asked for");
        p = realloc(p, 3 * BIG + 7);
        if (live() - start != 3 * BIG + 7) fail("not the bytes grown to");
        p = realloc(p, 1000);
        /* glibc keeps a page of a mapped block */
        if (live() - start < 1000 || live() - start > 5000) fail("not the bytes shrunk to");
        free(p);
        if (live() != start) fail("not released");
        ptrdiff_t most = peak() - start; /* case 8 first holds 5 bytes more */
        if (most < 3 * BIG + 7 || most > 3 * BIG + 64) fail("not the peak");
        reset();
        if (peak() != start) fail("the reset forgets");
    }
    char *kept = malloc(BIG);
    volatile size_t many = SIZE_MAX / 2;
    errno = 0;
    if (realloc(kept, PTRDIFF_MAX) || errno != ENOMEM) fail("an impossible realloc");
    if (malloc(PTRDIFF_MAX) || calloc(many, 4)) fail("an impossible block");
    void *none = NULL;
    if (posix_memalign(&none, 3, 8) != EINVAL || none) fail("an impossible alignment");
    if (live() - start != BIG) fail("a refusal is counted");
    free(kept);
    free(NULL);
    pthread_t threads[THREADS];
    for (uintptr_t i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, churn, (void *)(i + 1));
    for (int i = 0; i < 20; i++) { /* a fork amid it all must neither hang nor tell the parent */
        pid_t child = fork();
        if (!child) { reset(); free(memset(malloc(BIG), 1, BIG)); _exit(peak() - live() < BIG); }
        int status;
        waitpid(child, &status, 0);
        if (status) fail("a forked child");
    }
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    if (live() - start < BIG) fail("nothing was left to release");
    for (int i = 0; i < SLOTS; i++) free(slots[i]);
    ptrdiff_t left = live() - start; /* the threads' own stacks' bookkeeping is glibc's */
    printf("%td\n", left);
    return left < 0 || left > THREADS * 4096;
}
