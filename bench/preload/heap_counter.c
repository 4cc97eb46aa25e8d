/* Counts the live bytes of a process' heap and keeps their peak; preloaded (see heap_counter.py).
 *
 * Every call is passed on to the next allocator: libc's, or that of a library the user preloads.
 * A block of 32 KiB or more counts as the bytes asked for, kept in a table beside the heap; a
 * smaller one as the bytes it got (up to 24 more in glibc). Nothing is added to the blocks and no
 * lock is taken, so addresses, alignment, resident memory and fork() are as without it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LARGE ((size_t)32 << 10)
#define SETS_LOG2 12
#define WAYS 16 /* room for 65,536 large blocks; one that finds its set full counts as it is held */

static void *(*next_malloc)(size_t);
static void *(*next_calloc)(size_t, size_t);
static void *(*next_realloc)(void *, size_t);
static void *(*next_memalign)(size_t, size_t);
static void *(*next_aligned_alloc)(size_t, size_t);
static int (*next_posix_memalign)(void **, size_t, size_t);
static void *(*next_valloc)(size_t);
static void *(*next_pvalloc)(size_t);
static size_t (*next_usable)(void *);
static void (*next_free)(void *);

static _Atomic ptrdiff_t live, peak;

static struct {
    _Atomic uintptr_t block; /* 0: free; TAKEN: being filled in */
    size_t asked;
} sets[1 << SETS_LOG2][WAYS];
#define TAKEN ((uintptr_t)1)

static volatile int resolving; /* volatile: gcc takes it that dlsym never calls back */

static void *next(const char *name) { return dlsym(RTLD_NEXT, name); }

static void resolve(void) {
    resolving = 1;
    next_malloc = next("malloc");
    next_calloc = next("calloc");
    next_realloc = next("realloc");
    next_memalign = next("memalign");
    next_aligned_alloc = next("aligned_alloc");
    next_posix_memalign = next("posix_memalign");
    next_valloc = next("valloc");
    next_pvalloc = next("pvalloc"); /* absent in musl */
    next_usable = next("malloc_usable_size");
    next_free = next("free"); /* last: its presence says that all are there */
    resolving = 0;
}

/* dlsym of an old glibc (before 2.34) allocates, which leads here again; it bears a refusal. */
static int ready(void) {
    if (!next_free && !resolving) resolve();
    return !resolving;
}

static void changed(ptrdiff_t by) {
    ptrdiff_t now = atomic_fetch_add(&live, by) + by, most = atomic_load(&peak);
    while (now > most && !atomic_compare_exchange_weak(&peak, &most, now)) {
    }
}

static unsigned set_of(uintptr_t block) {
    return (unsigned)(((uint64_t)block >> 4) * 0x9E3779B97F4A7C15u >> (64 - SETS_LOG2));
}

/* Returns the bytes that `p` counts as until it leaves. */
static size_t enter(void *p, size_t asked) {
    size_t held = next_usable(p);
    if (held < LARGE) return held;
    unsigned set = set_of((uintptr_t)p);
    for (int way = 0; way < WAYS; way++) {
        uintptr_t none = 0;
        if (atomic_load(&sets[set][way].block) == 0 &&
            atomic_compare_exchange_strong(&sets[set][way].block, &none, TAKEN)) {
            sets[set][way].asked = asked;
            atomic_store(&sets[set][way].block, (uintptr_t)p);
            return asked;
        }
    }
    return held;
}

/* Before the block is released: afterwards its address may be another thread's. */
static size_t leave(void *p) {
    size_t held = next_usable(p);
    if (held < LARGE) return held;
    unsigned set = set_of((uintptr_t)p);
    for (int way = 0; way < WAYS; way++) {
        if (atomic_load(&sets[set][way].block) == (uintptr_t)p) {
            size_t asked = sets[set][way].asked;
            atomic_store(&sets[set][way].block, 0);
            return asked;
        }
    }
    return held;
}

static void *counted(void *p, size_t asked) {
    if (p) changed((ptrdiff_t)enter(p, asked));
    return p;
}

void *malloc(size_t n) { return ready() ? counted(next_malloc(n), n) : NULL; }

void *calloc(size_t count, size_t size) { /* the product overflows only where p is NULL */
    return ready() ? counted(next_calloc(count, size), count * size) : NULL;
}

void *memalign(size_t alignment, size_t n) {
    return ready() ? counted(next_memalign(alignment, n), n) : NULL;
}

void *aligned_alloc(size_t alignment, size_t n) {
    return ready() ? counted(next_aligned_alloc(alignment, n), n) : NULL;
}

void *valloc(size_t n) { return ready() ? counted(next_valloc(n), n) : NULL; }

void *pvalloc(size_t n) {
    return ready() && next_pvalloc ? counted(next_pvalloc(n), n) : NULL;
}

int posix_memalign(void **out, size_t alignment, size_t n) {
    if (!ready()) return ENOMEM;
    int error = next_posix_memalign(out, alignment, n);
    if (!error) counted(*out, n);
    return error;
}

void free(void *p) {
    if (!p || !ready()) return;
    changed(-(ptrdiff_t)leave(p));
    next_free(p);
}

void free_sized(void *p, size_t n) { /* C23 */
    (void)n;
    free(p);
}

void free_aligned_sized(void *p, size_t alignment, size_t n) { /* C23 */
    (void)alignment, (void)n;
    free(p);
}

/* Counts as its growth alone, also where the allocator holds both copies for a moment. */
void *realloc(void *p, size_t n) {
    if (!p) return malloc(n);
    if (!ready()) return NULL;
    size_t before = leave(p), after = 0;
    void *q = next_realloc(p, n);
    if (q) after = enter(q, n);
    else if (n) after = enter(p, before); /* refused: p lives on */
    changed((ptrdiff_t)after - (ptrdiff_t)before);
    return q;
}

/* Takes this library out of LD_PRELOAD, so that programs this one starts are not counted. */
static void not_in_children(void) {
    Dl_info self;
    char *list = getenv("LD_PRELOAD");
    if (!list || !dladdr(&live, &self)) return;
    size_t length = strlen(self.dli_fname);
    char *at = strstr(list, self.dli_fname);
    if (!at || !strchr(" :", at[length])) return; /* strchr also finds the end of the string */
    char *rest = at + length + (at[length] != '\0');
    memmove(at, rest, strlen(rest) + 1);
    if (!*list) unsetenv("LD_PRELOAD");
}

__attribute__((constructor)) static void begin(void) {
    ready();
    not_in_children();
}

/* For ctypes. */
ptrdiff_t zometer_heap_live(void) { return atomic_load(&live); }

ptrdiff_t zometer_heap_peak(void) { /* a reset may have raced with an allocation: never below */
    ptrdiff_t now = atomic_load(&live), most = atomic_load(&peak);
    return now > most ? now : most;
}

void zometer_heap_reset(void) { atomic_store(&peak, atomic_load(&live)); }

const char *zometer_heap_allocator(void) { /* the file of the allocator that is counted */
    Dl_info below;
    return dladdr((void *)next_malloc, &below) ? below.dli_fname : "?";
}
