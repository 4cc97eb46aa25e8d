/* Takes more large blocks than the counter's table holds. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <stddef.h>
enum { N = 200000, SIZE = 33001 };
static void *blocks[N];
int main(void) {
    ptrdiff_t (*live)(void) = (ptrdiff_t (*)(void))dlsym(RTLD_DEFAULT, "zometer_heap_live");
    ptrdiff_t start = live();
    for (int i = 0; i < N; i++) blocks[i] = malloc(SIZE);
    ptrdiff_t held = live() - start;
    for (int i = N; i--;) free(blocks[i]);
    printf("%.6f %td\n", (double)held / N / SIZE, live() - start);
    return 0;
}
