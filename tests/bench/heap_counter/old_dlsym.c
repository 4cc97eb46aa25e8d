/* A dlsym as glibc had it before 2.34. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
void *dlsym(void *handle, const char *name) {
    static void *(*real)(void *, const char *);
    free(calloc(1, 32)); /* as glibc before 2.34, for its error messages */
    if (!real) real = dlvsym(RTLD_NEXT, "dlsym", "GLIBC_2.34");
    return real(handle, name);
}
