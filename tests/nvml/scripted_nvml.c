/* A libnvidia-ml.so.1 that plays a scenario: what each GPU does at each time, which calls fail
 * when. The Python above the C boundary is then exactly what runs on a GPU.
 *
 * The scenario is read by the first nvmlInit from the file named by NVML_SCENARIO; its grammar
 * stands in scripted.py. The time is what the 8-byte file (a double, seconds) named by NVML_CLOCK
 * holds, or, without one, the seconds since that nvmlInit. Energy is the exact integral of the
 * scripted power, so true joules are known. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <fnmatch.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#ifdef HAVE_NVML_H
#define NVML_NO_UNVERSIONED_FUNC_DEFS
#include "nvml.h"
#else
#include "nvml_types.h"
#endif

_Static_assert(sizeof(nvmlMemory_t) == 24, "memory v1");
_Static_assert(sizeof(nvmlMemory_v2_t) == 40, "memory v2");
_Static_assert(sizeof(nvmlProcessInfo_v1_t) == 16, "process v1");
_Static_assert(sizeof(nvmlProcessInfo_t) == 24, "process v2 and v3");
_Static_assert(sizeof(nvmlAccountingStats_t) == 56, "accounting");
_Static_assert(sizeof(nvmlPciInfo_t) == 68, "PCI");
_Static_assert(sizeof(nvmlTemperature_t) == 12, "temperature");
_Static_assert(sizeof(nvmlFieldValue_t) == 40, "field value");
_Static_assert(sizeof(nvmlViolationTime_t) == 16, "violation time");

typedef unsigned int u32;
typedef unsigned long long u64;
typedef nvmlReturn_t R;
typedef nvmlDevice_t D;

enum { MAX_GPUS = 16, MAX_POINTS = 2048, MAX_PROCS = 64, MAX_FAULTS = 64 };
enum { MEM, POWER, UTIL, BUSUTIL, TEMP, SMCLK, MEMCLK, REASONS, ECC, ECCU, N_SERIES };
static const char *SERIES[] = {"mem", "power", "util", "busutil", "temp", "smclk", "memclk", "reasons", "ecc", "eccu"};

typedef struct { int n, linear; double t[MAX_POINTS], v[MAX_POINTS]; } series;
typedef struct nvmlDevice_st {
  char name[96], uuid[96], bus[32];
  u64 total, reserved, energy_start_mj;
  int parent, gi, ci, mig, ecc, acct, arch, major, minor; /* parent -1: a whole GPU */
  double energy_reset;
  series s[N_SERIES];
} gpu;
typedef struct { int gpu, gi, graphics; u32 pid; double t0, t1; series mem; } proc;
typedef struct { char fn[64]; int gpu, code; double t0, t1; } fault; /* code -1: hangs */

static gpu gpus[MAX_GPUS];
static proc procs[MAX_PROCS];
static fault faults[MAX_FAULTS];
static int n_gpus, n_procs, n_faults, legacy_v3, cuda_version;
static char driver[80], nvml_version[80];
static double power_period, power_window, power_average, energy_period, t_init;
static volatile double *clock_file;
static _Atomic int inits, calls;

static double mono(void) { struct timespec s; clock_gettime(CLOCK_MONOTONIC, &s); return s.tv_sec + s.tv_nsec * 1e-9; }
static double now(void) { return clock_file ? *clock_file : mono() - t_init; }
static double hold(double t, double period) { return period > 0 ? floor(t / period + 1e-9) * period : t; }

/* ---- series: steps, or straight lines between the points ---- */
static double at(const series *s, double t) {
  int i = -1;
  while (i + 1 < s->n && s->t[i + 1] <= t + 1e-12) i++;
  if (i < 0) return 0;
  if (!s->linear || i + 1 == s->n) return s->v[i];
  return s->v[i] + (s->v[i + 1] - s->v[i]) * (t - s->t[i]) / (s->t[i + 1] - s->t[i]);
}
static double integral(const series *s, double a, double b) {
  double sum = 0;
  for (int i = 0; i < s->n; i++) {
    double lo = fmax(a, s->t[i]), hi = fmin(b, i + 1 < s->n ? s->t[i + 1] : b);
    if (hi > lo) sum += s->linear && i + 1 < s->n ? (at(s, lo) + at(s, hi - 1e-11)) / 2 * (hi - lo) : s->v[i] * (hi - lo);
  }
  return sum;
}
static double mean(const series *s, double t, double window) {
  double lo = fmax(0, t - window);
  return t > lo ? integral(s, lo, t) / (t - lo) : at(s, t);
}
static double held_for(const series *s, double t, u64 mask) { /* seconds with any of these bits */
  double sum = 0;
  for (int i = 0; i < s->n && s->t[i] < t; i++)
    if ((u64)s->v[i] & mask) sum += fmin(t, i + 1 < s->n ? s->t[i + 1] : t) - s->t[i];
  return sum;
}
static double highest(const series *s, double t) {
  double top = at(s, t);
  for (int i = 0; i < s->n && s->t[i] <= t; i++) top = fmax(top, s->v[i]);
  return top;
}

/* ---- the scenario ---- */
static void refuse(const char *line) { fprintf(stderr, "scripted NVML: can't read: %s", line); abort(); }
static series *series_of(int g, const char *name, const char *line) {
  for (int k = 0; k < N_SERIES; k++) if (!strcmp(name, SERIES[k]) && g >= 0 && g < n_gpus) return &gpus[g].s[k];
  refuse(line); return 0;
}
static void point(series *s, double t, double v) {
  if (s->n == MAX_POINTS || (s->n && t < s->t[s->n - 1])) { fprintf(stderr, "scripted NVML: times must rise\n"); abort(); }
  s->t[s->n] = t; s->v[s->n++] = v;
}
static void device(char *rest, int parent) {
  gpu *g = &gpus[n_gpus++]; memset(g, 0, sizeof *g);
  g->parent = parent; g->total = 80ull << 30; g->reserved = 600ull << 20; g->arch = 9; g->major = 9; g->ecc = 1;
  g->energy_start_mj = 1000000; g->energy_reset = -1;
  snprintf(g->bus, sizeof g->bus, "00000000:%02X:00.0", 0x18 + n_gpus);
  if (parent >= 0) strcpy(g->bus, gpus[parent].bus);
  for (char *w = strtok(rest, " \n"); w; w = strtok(0, " \n")) {
    char *v = strchr(w, '='); if (!v) refuse(w);
    *v++ = 0;
    if (!strcmp(w, "name")) { strcpy(g->name, v); for (char *c = g->name; *c; c++) if (*c == '_') *c = ' '; }
    else if (!strcmp(w, "uuid")) strcpy(g->uuid, v);
    else if (!strcmp(w, "bus")) strcpy(g->bus, v);
    else if (!strcmp(w, "total")) g->total = strtoull(v, 0, 10);
    else if (!strcmp(w, "reserved")) g->reserved = strtoull(v, 0, 10);
    else if (!strcmp(w, "energy_start_mj")) g->energy_start_mj = strtoull(v, 0, 10);
    else if (!strcmp(w, "arch")) g->arch = atoi(v);
    else if (!strcmp(w, "cc")) sscanf(v, "%d.%d", &g->major, &g->minor);
    else if (!strcmp(w, "mig")) g->mig = atoi(v);
    else if (!strcmp(w, "ecc")) g->ecc = atoi(v);
    else if (!strcmp(w, "acct")) g->acct = atoi(v);
    else if (!strcmp(w, "gi")) g->gi = atoi(v);
    else if (!strcmp(w, "ci")) g->ci = atoi(v);
    else refuse(w);
  }
}
static int which(const char *word) { return *word == '*' ? -1 : atoi(word); }
static void statement(char *line) {
  char w[32], a[96], b[32], c[32]; int g, used = 0; double t, v;
  if (sscanf(line, " %31s%n", w, &used) != 1 || *w == '#') return;
  char *rest = line + used;
  if (!strcmp(w, "driver")) sscanf(rest, "%79s", driver);
  else if (!strcmp(w, "nvml")) sscanf(rest, "%79s", nvml_version);
  else if (!strcmp(w, "cuda")) cuda_version = atoi(rest);
  else if (!strcmp(w, "power_period")) power_period = atof(rest);
  else if (!strcmp(w, "power_window")) power_window = atof(rest);
  else if (!strcmp(w, "power_average")) power_average = atof(rest);
  else if (!strcmp(w, "energy_period")) energy_period = atof(rest);
  else if (!strcmp(w, "legacy_v3")) legacy_v3 = 1;
  else if (!strcmp(w, "gpu")) device(rest, -1);
  else if (!strcmp(w, "mig") && sscanf(rest, "%d%n", &g, &used) == 1) device(rest + used, g);
  else if (!strcmp(w, "at") && sscanf(rest, "%d %lf %31s %lf", &g, &t, b, &v) == 4) point(series_of(g, b, line), t, v);
  else if (!strcmp(w, "linear") && sscanf(rest, "%d %31s", &g, b) == 2) series_of(g, b, line)->linear = 1;
  else if (!strcmp(w, "energy_reset") && sscanf(rest, "%d %lf", &g, &t) == 2) gpus[g].energy_reset = t;
  else if ((!strcmp(w, "proc") || !strcmp(w, "graphics")) && n_procs < MAX_PROCS) {
    proc *p = &procs[n_procs++]; memset(p, 0, sizeof *p); p->gi = -1; p->graphics = *w == 'g';
    if (sscanf(rest, "%d %u %lf %31s %d", &p->gpu, &p->pid, &p->t0, b, &p->gi) < 4) refuse(line);
    p->t1 = *b == '-' ? INFINITY : atof(b); if (!p->pid) p->pid = getpid();
  }
  else if (!strcmp(w, "pmem") && n_procs && sscanf(rest, "%lf %lf", &t, &v) == 2) point(&procs[n_procs - 1].mem, t, v);
  else if ((!strcmp(w, "fault") || !strcmp(w, "hang")) && n_faults < MAX_FAULTS) {
    fault *f = &faults[n_faults++]; int hang = *w == 'h'; strcpy(b, "-"); strcpy(c, "-"); f->code = -1;
    int got = hang ? sscanf(rest, "%63s %95s %31s %31s", f->fn, a, b, c)
                   : sscanf(rest, "%63s %95s %d %31s %31s", f->fn, a, &f->code, b, c);
    if (got < 3 - hang) refuse(line);
    f->gpu = which(a); f->t0 = *b == '-' ? -INFINITY : atof(b); f->t1 = *c == '-' ? INFINITY : atof(c);
  }
  else refuse(line);
}
static void load(void) {
  char line[512]; const char *path = getenv("NVML_SCENARIO"), *clock = getenv("NVML_CLOCK");
  n_gpus = n_procs = n_faults = legacy_v3 = 0; cuda_version = 13000; t_init = mono(); clock_file = 0;
  power_period = power_window = energy_period = 0; power_average = -1;
  strcpy(driver, "580.95.05"); strcpy(nvml_version, "13.580.95.05");
  FILE *f = path ? fopen(path, "r") : 0;
  if (f) { while (fgets(line, sizeof line, f)) statement(line); fclose(f); }
  int fd = clock ? open(clock, O_RDONLY) : -1;
  if (fd >= 0) { clock_file = mmap(0, sizeof(double), PROT_READ, MAP_SHARED, fd, 0); close(fd); }
}

/* ---- every call: counted, then failed or held up as the scenario says ---- */
static R failing(const char *fn, int g) {
  R code = 0; calls++;
  for (fault *f = faults; f < faults + n_faults; f++) {
    if (fnmatch(f->fn, fn, 0) || (f->gpu >= 0 && f->gpu != g)) continue;
    if (f->code < 0) while (now() >= f->t0 && now() < f->t1) usleep(500);
    else if (now() >= f->t0 && now() < f->t1) code = (R)f->code;
  }
  return code;
}
int scripted_inits(void) { return inits; }
int scripted_calls(void) { return calls; }

#define KNOWN(d) ((d) >= gpus && (d) < gpus + n_gpus)
#define SYSTEM() do { R e_ = failing(__func__, -2); if (e_) return e_; if (!inits) return NVML_ERROR_UNINITIALIZED; } while (0)
#define ENTER(d) \
  do { if (!inits) return NVML_ERROR_UNINITIALIZED; if (!KNOWN(d)) return NVML_ERROR_INVALID_ARGUMENT; \
       R e_ = failing(__func__, (int)((d) - gpus)); if (e_) return e_; } while (0)
#define BOARD(d) do { ENTER(d); if ((d)->parent >= 0) return NVML_ERROR_NOT_SUPPORTED; } while (0)
#define GIVE(where, what) do { if (!(where)) return NVML_ERROR_INVALID_ARGUMENT; *(where) = (what); return NVML_SUCCESS; } while (0)
static R text(char *out, u32 n, const char *s) {
  if (strlen(s) + 1 > n) return NVML_ERROR_INSUFFICIENT_SIZE;
  strcpy(out, s); return NVML_SUCCESS;
}
static double value(D d, int k) { return at(&d->s[k], now()); }
static D parent(D d) { return d->parent >= 0 ? &gpus[d->parent] : d; }

static R start(const char *fn) {
  R e; if (!inits) load();
  if ((e = failing(fn, -2))) return e;
  inits++; return NVML_SUCCESS;
}
R nvmlInit(void) { return start(__func__); }
R nvmlInit_v2(void) { return start(__func__); }
R nvmlInitWithFlags(u32 flags) { (void)flags; return start(__func__); }
R nvmlShutdown(void) { if (!inits) return NVML_ERROR_UNINITIALIZED; inits--; return NVML_SUCCESS; }
const char *nvmlErrorString(R e) { return e == NVML_ERROR_NOT_SUPPORTED ? "Not Supported" : "scripted error"; }
R nvmlSystemGetDriverVersion(char *s, u32 n) { SYSTEM(); return text(s, n, driver); }
R nvmlSystemGetNVMLVersion(char *s, u32 n) { return text(s, n, nvml_version); }
R nvmlSystemGetCudaDriverVersion(int *v) { SYSTEM(); GIVE(v, cuda_version); }
R nvmlSystemGetCudaDriverVersion_v2(int *v) { SYSTEM(); GIVE(v, cuda_version); }
R nvmlSystemGetProcessName(u32 pid, char *s, u32 n) { SYSTEM(); (void)pid; return text(s, n, "scripted"); }

/* ---- which devices ---- */
static u32 boards(void) { u32 n = 0; for (int i = 0; i < n_gpus; i++) n += gpus[i].parent < 0; return n; }
static R by_index(u32 i, D *d) {
  for (gpu *g = gpus; g < gpus + n_gpus; g++) if (g->parent < 0 && !i--) GIVE(d, g);
  return NVML_ERROR_INVALID_ARGUMENT;
}
static u32 index_of(D d) { u32 n = 0; for (gpu *g = gpus; g < parent(d); g++) n += g->parent < 0; return n; }
R nvmlDeviceGetCount(u32 *n) { SYSTEM(); GIVE(n, boards()); }
R nvmlDeviceGetCount_v2(u32 *n) { SYSTEM(); GIVE(n, boards()); }
R nvmlDeviceGetHandleByIndex(u32 i, D *d) { SYSTEM(); return by_index(i, d); }
R nvmlDeviceGetHandleByIndex_v2(u32 i, D *d) { SYSTEM(); return by_index(i, d); }
R nvmlDeviceGetHandleByUUID(const char *uuid, D *d) {
  SYSTEM();
  for (gpu *g = gpus; g < gpus + n_gpus; g++) if (!strcmp(uuid, g->uuid)) GIVE(d, g);
  return NVML_ERROR_NOT_FOUND;
}
R nvmlDeviceGetHandleByPciBusId_v2(const char *bus, D *d) {
  SYSTEM();
  for (gpu *g = gpus; g < gpus + n_gpus; g++) if (g->parent < 0 && !strcmp(bus, g->bus)) GIVE(d, g);
  return NVML_ERROR_NOT_FOUND;
}
R nvmlDeviceGetName(D d, char *s, u32 n) { ENTER(d); return text(s, n, d->name); }
R nvmlDeviceGetUUID(D d, char *s, u32 n) { ENTER(d); return text(s, n, d->uuid); }
R nvmlDeviceGetIndex(D d, u32 *i) { BOARD(d); GIVE(i, index_of(d)); }
R nvmlDeviceGetMinorNumber(D d, u32 *i) { BOARD(d); GIVE(i, index_of(d)); }
R nvmlDeviceGetVbiosVersion(D d, char *s, u32 n) { ENTER(d); return text(s, n, "96.00.74.00.01"); }
R nvmlDeviceGetArchitecture(D d, nvmlDeviceArchitecture_t *a) { ENTER(d); GIVE(a, (nvmlDeviceArchitecture_t)d->arch); }
R nvmlDeviceGetCudaComputeCapability(D d, int *a, int *b) { ENTER(d); *a = d->major; GIVE(b, d->minor); }
static R pci(D d, nvmlPciInfo_t *p) {
  memset(p, 0, sizeof *p); strcpy(p->busId, d->bus); sscanf(d->bus, "%x:%x:%x", &p->domain, &p->bus, &p->device);
  snprintf(p->busIdLegacy, sizeof p->busIdLegacy, "%04x:%02x:%02x.0", p->domain & 0xffff, p->bus & 0xff, p->device & 0x1f);
  return NVML_SUCCESS;
}
R nvmlDeviceGetPciInfo(D d, nvmlPciInfo_t *p) { ENTER(d); return pci(d, p); }
R nvmlDeviceGetPciInfo_v3(D d, nvmlPciInfo_t *p) { ENTER(d); return pci(d, p); }
R nvmlDeviceGetMigMode(D d, u32 *current, u32 *pending) { ENTER(d); *pending = d->mig; GIVE(current, d->mig); }
R nvmlDeviceIsMigDeviceHandle(D d, u32 *is) { ENTER(d); GIVE(is, d->parent >= 0); }
R nvmlDeviceGetGpuInstanceId(D d, u32 *id) { ENTER(d); if (d->parent < 0) return NVML_ERROR_NOT_SUPPORTED; GIVE(id, d->gi); }
R nvmlDeviceGetComputeInstanceId(D d, u32 *id) { ENTER(d); if (d->parent < 0) return NVML_ERROR_NOT_SUPPORTED; GIVE(id, d->ci); }
R nvmlDeviceGetMaxMigDeviceCount(D d, u32 *n) { ENTER(d); GIVE(n, d->mig ? 7 : 0); }
R nvmlDeviceGetMigDeviceHandleByIndex(D d, u32 i, D *m) {
  ENTER(d);
  for (gpu *g = gpus; g < gpus + n_gpus; g++) if (g->parent == (int)(d - gpus) && !i--) GIVE(m, g);
  return NVML_ERROR_NOT_FOUND;
}
R nvmlDeviceGetDeviceHandleFromMigDeviceHandle(D m, D *d) { ENTER(m); GIVE(d, parent(m)); }
R nvmlDeviceGetNumaNodeId(D d, u32 *n) { ENTER(d); (void)n; return NVML_ERROR_NOT_SUPPORTED; }

/* ---- memory: v1 counts the driver's own as used, v2 tells it apart ---- */
R nvmlDeviceGetMemoryInfo(D d, nvmlMemory_t *m) {
  ENTER(d); m->total = d->total; m->used = (u64)value(d, MEM) + d->reserved; m->free = m->total - m->used;
  return NVML_SUCCESS;
}
R nvmlDeviceGetMemoryInfo_v2(D d, nvmlMemory_v2_t *m) {
  ENTER(d); if (m->version != (sizeof *m | 2u << 24)) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
  m->total = d->total; m->reserved = d->reserved; m->used = (u64)value(d, MEM); m->free = m->total - m->used - m->reserved;
  return NVML_SUCCESS;
}

/* ---- power, energy, load, clocks ---- */
static u32 milliwatts(D d, double window) { return (u32)llround(1e3 * mean(&d->s[POWER], hold(now(), power_period), window)); }
static u32 average_power(D d) { return milliwatts(d, power_average < 0 ? power_window : power_average); }
static u64 millijoules(D d) {
  double t = hold(now(), energy_period), from = d->energy_reset >= 0 && t >= d->energy_reset ? d->energy_reset : 0;
  return (from > 0 ? 0 : d->energy_start_mj) + (u64)llround(1e3 * integral(&d->s[POWER], from, t));
}
R nvmlDeviceGetPowerUsage(D d, u32 *mw) { BOARD(d); GIVE(mw, average_power(d)); }
R nvmlDeviceGetEnforcedPowerLimit(D d, u32 *mw) { BOARD(d); GIVE(mw, 700000); }
R nvmlDeviceGetPowerManagementLimit(D d, u32 *mw) { BOARD(d); GIVE(mw, 700000); }
R nvmlDeviceGetPowerManagementDefaultLimit(D d, u32 *mw) { BOARD(d); GIVE(mw, 700000); }
R nvmlDeviceGetTotalEnergyConsumption(D d, u64 *mj) { BOARD(d); GIVE(mj, millijoules(d)); }
R nvmlDeviceGetUtilizationRates(D d, nvmlUtilization_t *u) { BOARD(d); u->memory = (u32)value(d, BUSUTIL); GIVE(&u->gpu, (u32)value(d, UTIL)); }
R nvmlDeviceGetTemperature(D d, nvmlTemperatureSensors_t s, u32 *c) { ENTER(d); (void)s; GIVE(c, (u32)value(parent(d), TEMP)); }
R nvmlDeviceGetTemperatureV(D d, nvmlTemperature_t *t) {
  ENTER(d); if (t->version != (sizeof *t | 1u << 24)) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
  GIVE(&t->temperature, (int)value(parent(d), TEMP));
}
R nvmlDeviceGetClockInfo(D d, nvmlClockType_t k, u32 *mhz) { ENTER(d); GIVE(mhz, (u32)value(parent(d), k == NVML_CLOCK_MEM ? MEMCLK : SMCLK)); }
R nvmlDeviceGetMaxClockInfo(D d, nvmlClockType_t k, u32 *mhz) { ENTER(d); GIVE(mhz, k == NVML_CLOCK_MEM ? 2619 : 1980); }
R nvmlDeviceGetPerformanceState(D d, nvmlPstates_t *p) { ENTER(d); GIVE(p, NVML_PSTATE_0); }
R nvmlDeviceGetFanSpeed(D d, u32 *p) { ENTER(d); (void)p; return NVML_ERROR_NOT_SUPPORTED; }
R nvmlDeviceGetCurrPcieLinkGeneration(D d, u32 *n) { ENTER(d); GIVE(n, 5); }
R nvmlDeviceGetCurrPcieLinkWidth(D d, u32 *n) { ENTER(d); GIVE(n, 16); }
R nvmlDeviceGetEncoderUtilization(D d, u32 *u, u32 *us) { BOARD(d); *us = 0; GIVE(u, 0); }
R nvmlDeviceGetDecoderUtilization(D d, u32 *u, u32 *us) { BOARD(d); *us = 0; GIVE(u, 0); }

/* ---- throttling: the reasons now, and how long each has held ---- */
R nvmlDeviceGetCurrentClocksEventReasons(D d, u64 *r) { ENTER(d); GIVE(r, (u64)value(parent(d), REASONS)); }
R nvmlDeviceGetCurrentClocksThrottleReasons(D d, u64 *r) { ENTER(d); GIVE(r, (u64)value(parent(d), REASONS)); }
static u64 held_ns(D d, u64 mask) { return (u64)llround(1e9 * held_for(&parent(d)->s[REASONS], now(), mask)); }
static const u64 POLICY[] = {0x4, 0x20 | 0x40, 0x10, 0x200, 0, 0x400};
R nvmlDeviceGetViolationStatus(D d, nvmlPerfPolicyType_t k, nvmlViolationTime_t *v) {
  BOARD(d); if ((u32)k >= 6) return NVML_ERROR_NOT_SUPPORTED;
  v->referenceTime = (u64)(now() * 1e6); GIVE(&v->violationTime, held_ns(d, POLICY[k]));
}
R nvmlDeviceGetFieldValues(D d, int n, nvmlFieldValue_t *f) {
  ENTER(d);
  for (; n--; f++) {
    char name[32]; snprintf(name, sizeof name, f->scopeId ? "field:%u:%u" : "field:%u", f->fieldId, f->scopeId);
    u32 k = f->fieldId; int module = f->scopeId == 1; f->valueType = NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
    if ((f->nvmlReturn = failing(name, (int)(d - gpus)))) continue;
    if (d->parent >= 0 || (f->scopeId && !(module && k == 186))) f->nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
    else if (k == 186) { f->valueType = NVML_VALUE_TYPE_UNSIGNED_INT; f->value.uiVal = milliwatts(d, power_window); }
    else if (k == 185) { f->valueType = NVML_VALUE_TYPE_UNSIGNED_INT; f->value.uiVal = average_power(d); }
    else if (k == 83) f->value.ullVal = millijoules(d);
    else if (k >= 74 && k <= 79) f->value.ullVal = held_ns(d, POLICY[k - 74]);
    else if (k >= 269 && k <= 271) f->value.ullVal = held_ns(d, 0x20ull << (k - 269));
    else f->nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
  }
  return NVML_SUCCESS;
}

/* ---- modes, error counts ---- */
static nvmlEnableState_t on(int yes) { return yes ? NVML_FEATURE_ENABLED : NVML_FEATURE_DISABLED; }
R nvmlDeviceGetEccMode(D d, nvmlEnableState_t *c, nvmlEnableState_t *p) { ENTER(d); *p = on(d->ecc); GIVE(c, on(d->ecc)); }
R nvmlDeviceGetTotalEccErrors(D d, nvmlMemoryErrorType_t k, nvmlEccCounterType_t c, u64 *n) {
  ENTER(d); (void)c; if (!d->ecc) return NVML_ERROR_NOT_SUPPORTED;
  GIVE(n, (u64)value(parent(d), k == NVML_MEMORY_ERROR_TYPE_CORRECTED ? ECC : ECCU));
}
R nvmlDeviceGetPersistenceMode(D d, nvmlEnableState_t *m) { ENTER(d); GIVE(m, NVML_FEATURE_ENABLED); }
R nvmlDeviceGetComputeMode(D d, nvmlComputeMode_t *m) { ENTER(d); GIVE(m, NVML_COMPUTEMODE_DEFAULT); }

/* ---- processes ---- */
static int alive(const proc *p, double t) { return t >= p->t0 && t < p->t1; }
static int of_device(const proc *p, D d) {
  return d->parent < 0 ? p->gpu == d - gpus : p->gpu == d->parent && p->gi == d->gi;
}
static R list(D d, u32 *n, void *out, size_t record, int graphics) {
  u32 k = 0, room = *n; double t = now();
  for (proc *p = procs; p < procs + n_procs; p++) k += alive(p, t) && of_device(p, d) && p->graphics == graphics;
  *n = k;
  if (!k) return NVML_SUCCESS;
  if (room < k || !out) return NVML_ERROR_INSUFFICIENT_SIZE;
  char *to = out;
  for (proc *p = procs; p < procs + n_procs; p++) {
    if (!alive(p, t) || !of_device(p, d) || p->graphics != graphics) continue;
    double b = at(&p->mem, t); nvmlProcessInfo_t i = {p->pid, b < 0 ? ~0ull : (u64)b, (u32)p->gi, p->gi < 0 ? ~0u : 0};
    memset(to, 0, record); memcpy(to, &i, record < sizeof i ? record : sizeof i); to += record;
  }
  return NVML_SUCCESS;
}
#define V3 (legacy_v3 ? 32 : 24)
R nvmlDeviceGetComputeRunningProcesses(D d, u32 *n, nvmlProcessInfo_v1_t *p) { ENTER(d); return list(d, n, p, 16, 0); }
R nvmlDeviceGetComputeRunningProcesses_v2(D d, u32 *n, nvmlProcessInfo_v2_t *p) { ENTER(d); return list(d, n, p, 24, 0); }
R nvmlDeviceGetComputeRunningProcesses_v3(D d, u32 *n, nvmlProcessInfo_t *p) { ENTER(d); return list(d, n, p, V3, 0); }
R nvmlDeviceGetGraphicsRunningProcesses(D d, u32 *n, nvmlProcessInfo_v1_t *p) { ENTER(d); return list(d, n, p, 16, 1); }
R nvmlDeviceGetGraphicsRunningProcesses_v2(D d, u32 *n, nvmlProcessInfo_v2_t *p) { ENTER(d); return list(d, n, p, 24, 1); }
R nvmlDeviceGetGraphicsRunningProcesses_v3(D d, u32 *n, nvmlProcessInfo_t *p) { ENTER(d); return list(d, n, p, V3, 1); }
R nvmlDeviceGetMPSComputeRunningProcesses(D d, u32 *n, nvmlProcessInfo_v1_t *p) { ENTER(d); return list(d, n, p, 16, 2); }
R nvmlDeviceGetMPSComputeRunningProcesses_v2(D d, u32 *n, nvmlProcessInfo_v2_t *p) { ENTER(d); return list(d, n, p, 24, 2); }
R nvmlDeviceGetMPSComputeRunningProcesses_v3(D d, u32 *n, nvmlProcessInfo_t *p) { ENTER(d); return list(d, n, p, V3, 2); }
/* Which of these two a driver exports tells its generation; nothing of ours calls them. */
R nvmlDeviceGetConfComputeMemSizeInfo(D d, nvmlConfComputeMemSizeInfo_t *m) { (void)m; ENTER(d); return NVML_ERROR_NOT_SUPPORTED; }
R nvmlDeviceGetRunningProcessDetailList(D d, nvmlProcessDetailList_t *l) { (void)l; ENTER(d); return NVML_ERROR_NOT_SUPPORTED; }

/* ---- accounting: exact peaks ---- */
R nvmlDeviceGetAccountingMode(D d, nvmlEnableState_t *m) { BOARD(d); GIVE(m, on(d->acct)); }
R nvmlDeviceGetAccountingBufferSize(D d, u32 *n) { BOARD(d); GIVE(n, 4000); }
R nvmlDeviceGetAccountingPids(D d, u32 *n, u32 *pids) {
  BOARD(d); u32 k = 0;
  for (proc *p = procs; p < procs + n_procs; p++) if (of_device(p, d) && now() >= p->t0 && k < *n) pids[k++] = p->pid;
  GIVE(n, k);
}
R nvmlDeviceGetAccountingStats(D d, u32 pid, nvmlAccountingStats_t *s) {
  BOARD(d); if (!d->acct) return NVML_ERROR_NOT_SUPPORTED;
  for (proc *p = procs; p < procs + n_procs; p++) {
    if (p->pid != pid || !of_device(p, d) || now() < p->t0) continue;
    memset(s, 0, sizeof *s); s->isRunning = alive(p, now());
    double top = highest(&p->mem, fmin(now(), p->t1));
    GIVE(&s->maxMemoryUsage, top < 0 ? ~0ull : (u64)top);
  }
  return NVML_ERROR_NOT_FOUND;
}
