/* An allocator that a user preloads. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
extern void *__libc_malloc(size_t);
static int calls;
void *malloc(size_t n) { calls++; return __libc_malloc(n); }
int users_calls(void) { return calls; }
