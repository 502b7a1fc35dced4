/* libnvidia-ml.so.1 without a GPU: the calls of NVML that measuring tools make, answered from a world (world.h) in the
 * file that $NVML_WORLD names. Without that variable there is no driver, and nvmlInit says so.
 *
 * Names and structures are those that nvidia-ml-py asks for. What stands here but cannot be asked of a device gives
 * NVML_ERROR_NOT_SUPPORTED; what does not stand here is FUNCTION_NOT_FOUND to pynvml, as with an old driver.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "world.h"

typedef int Return;
enum { OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
       LIBRARY_NOT_FOUND = 12, UNKNOWN = 999 };

typedef struct { int device, part; } Handle; /* part 0: the board itself */
static Handle handles[MAX_DEVICES][MAX_PARTS + 1];
static const World *world;
static char world_path[4096];
static int users;

/* The error that rules demand of a call now, or OK. A rule without a version speaks for all versions of a call. */
static Return demanded(const char *name, int device) {
    double now = now_s(world);
    for (int i = 0; i < world->rules; i++) {
        const Rule *r = &world->rule[i];
        size_t length = strnlen(r->name, TEXT);
        int named = !strcmp(r->name, "*") || (!strncmp(name, r->name, length) &&
                    (!name[length] || (name[length] == '_' && name[length + 1] == 'v')));
        int mine = r->device == -1 || r->device == device;
        if (named && mine && r->start_s <= now && now < r->end_s) return (Return)r->code;
    }
    return OK;
}

static Return board_error(const char *name, const Handle *handle) {
    if (!world) return UNINITIALIZED;
    if (handle < &handles[0][0] || handle >= &handles[0][0] + MAX_DEVICES * (MAX_PARTS + 1)) return INVALID_ARGUMENT;
    return demanded(name, handle->device);
}

#define SYSTEM                                      \
    if (!world) return UNINITIALIZED;               \
    Return error = demanded(__func__, -1);          \
    if (error) return error
#define BOARD                                       \
    Return error = board_error(__func__, handle);   \
    if (error) return error;                        \
    const Device *d = &world->device[handle->device]
#define WHOLE /* a part of a board has no meters of its own */ \
    BOARD;                                          \
    if (handle->part) return NOT_SUPPORTED

static Return text(char *out, unsigned size, const char *value) {
    if (strlen(value) >= size) return INSUFFICIENT_SIZE;
    strcpy(out, value);
    return OK;
}

/* -- the library -- */

static Return enter(void) {
    const char *path = getenv("NVML_WORLD");
    if (!path || strlen(path) >= sizeof world_path) return LIBRARY_NOT_FOUND;
    if (!world || strcmp(path, world_path)) {
        int file = open(path, O_RDONLY);
        struct stat found;
        if (file < 0) return LIBRARY_NOT_FOUND;
        void *map = fstat(file, &found) || found.st_size < (off_t)sizeof(World)
                        ? MAP_FAILED : mmap(NULL, sizeof(World), PROT_READ, MAP_SHARED, file, 0);
        close(file);
        if (map == MAP_FAILED || memcmp(map, "NVMLSIM1", 8)) return UNKNOWN;
        world = map; /* an earlier world stays mapped: another thread may be reading it */
        strcpy(world_path, path);
        users = 0;
        for (int i = 0; i < MAX_DEVICES; i++)
            for (int j = 0; j <= MAX_PARTS; j++) handles[i][j] = (Handle){i, j};
    }
    return OK;
}

static Return init(const char *name) {
    Return error = enter();
    if (!error) error = demanded(name, -1);
    if (!error) users++;
    return error;
}

int nvmlSimulated(void) { return 1; }

Return nvmlInitWithFlags(unsigned flags) { (void)flags; return init("nvmlInit"); }
Return nvmlInit_v2(void) { return init("nvmlInit"); }

Return nvmlShutdown(void) {
    SYSTEM;
    if (--users == 0) world = NULL;
    return OK;
}

const char *nvmlErrorString(Return code) {
    switch (code) {
        case OK: return "Success";
        case UNINITIALIZED: return "Uninitialized";
        case NOT_SUPPORTED: return "Not Supported";
        case 20: return "Insufficient Memory";
        case 21: return "No data";
        case 28: return "GPU not found";
        default: return "Unknown Error";
    }
}

Return nvmlSystemGetDriverVersion(char *out, unsigned size) { SYSTEM; return text(out, size, world->driver); }
Return nvmlSystemGetNVMLVersion(char *out, unsigned size) { SYSTEM; return text(out, size, "13.580.65"); }
Return nvmlSystemGetCudaDriverVersion(int *out) { SYSTEM; *out = 13000; return OK; }
Return nvmlSystemGetCudaDriverVersion_v2(int *out) { SYSTEM; *out = 13000; return OK; }

/* -- boards and their parts -- */

Return nvmlDeviceGetCount_v2(unsigned *out) { SYSTEM; *out = (unsigned)world->devices; return OK; }

static Return give(const char *name, int device, int part, Handle **out) {
    *out = &handles[device][part];
    return demanded(name, device);
}

Return nvmlDeviceGetHandleByIndex_v2(unsigned index, Handle **out) {
    SYSTEM;
    return index < world->devices ? give(__func__, (int)index, 0, out) : INVALID_ARGUMENT;
}

Return nvmlDeviceGetHandleByUUID(const char *uuid, Handle **out) {
    SYSTEM;
    for (int i = 0; i < world->devices; i++) {
        const Device *d = &world->device[i];
        if (!strcmp(uuid, d->uuid)) return give(__func__, i, 0, out);
        for (int j = 0; j < d->part_count; j++)
            if (!strcmp(uuid, d->parts[j])) return give(__func__, i, j + 1, out);
    }
    return NOT_FOUND;
}

Return nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, Handle **out) {
    SYSTEM;
    for (int i = 0; i < world->devices; i++)
        if (!strcasecmp(bus_id, world->device[i].bus_id)) return give(__func__, i, 0, out);
    return NOT_FOUND;
}

Return nvmlDeviceIsMigDeviceHandle(Handle *handle, unsigned *out) { BOARD; (void)d; *out = handle->part > 0; return OK; }
Return nvmlDeviceGetMaxMigDeviceCount(Handle *handle, unsigned *out) { BOARD; *out = (unsigned)d->part_count; return OK; }

Return nvmlDeviceGetMigDeviceHandleByIndex(Handle *handle, unsigned index, Handle **out) {
    WHOLE;
    if (index >= d->part_count) return NOT_FOUND;
    *out = handle + 1 + index;
    return OK;
}

Return nvmlDeviceGetDeviceHandleFromMigDeviceHandle(Handle *handle, Handle **out) {
    BOARD;
    (void)d;
    if (!handle->part) return INVALID_ARGUMENT;
    *out = handle - handle->part;
    return OK;
}

Return nvmlDeviceGetName(Handle *handle, char *out, unsigned size) { BOARD; return text(out, size, d->name); }
Return nvmlDeviceGetIndex(Handle *handle, unsigned *out) { BOARD; (void)d; *out = (unsigned)handle->device; return OK; }

Return nvmlDeviceGetUUID(Handle *handle, char *out, unsigned size) {
    BOARD;
    return text(out, size, handle->part ? d->parts[handle->part - 1] : d->uuid);
}

typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } Pci;
Return nvmlDeviceGetPciInfo_v3(Handle *handle, Pci *out) {
    WHOLE;
    memset(out, 0, sizeof *out);
    if (sscanf(d->bus_id, "%x:%x:%x", &out->domain, &out->bus, &out->device) != 3) return UNKNOWN;
    snprintf(out->legacy, sizeof out->legacy, "%04X:%02X:%02X.0", out->domain, out->bus, out->device);
    return text(out->bus_id, sizeof out->bus_id, d->bus_id);
}

/* A fact that a board may not have: -1 in the world. */
#define FACT(name, type, value)                                      \
    Return name(Handle *handle, type *out) {                         \
        BOARD;                                                       \
        (void)d;                                                     \
        if ((value) < 0) return NOT_SUPPORTED;                       \
        *out = (type)(value);                                        \
        return OK;                                                   \
    }
FACT(nvmlDeviceGetVirtualizationMode, uint64_t, d->virtualization)
FACT(nvmlDeviceGetArchitecture, unsigned, d->architecture)
FACT(nvmlDeviceGetBrand, unsigned, d->brand)
FACT(nvmlDeviceGetEnforcedPowerLimit, unsigned, d->power_limit_mw)
FACT(nvmlDeviceGetPowerManagementLimit, unsigned, d->power_limit_mw)
FACT(nvmlDeviceGetPowerManagementDefaultLimit, unsigned, d->power_limit_mw)
FACT(nvmlDeviceGetPersistenceMode, unsigned, 1)
FACT(nvmlDeviceGetComputeMode, unsigned, 0)
FACT(nvmlDeviceGetPerformanceState, unsigned, 0)

Return nvmlDeviceGetPowerManagementLimitConstraints(Handle *handle, unsigned *low, unsigned *high) {
    WHOLE;
    if (d->power_limit_mw < 0) return NOT_SUPPORTED;
    *low = (unsigned)d->min_limit_mw, *high = (unsigned)d->power_limit_mw;
    return OK;
}

Return nvmlDeviceGetCudaComputeCapability(Handle *handle, int *major, int *minor) {
    BOARD;
    *major = (int)d->major, *minor = (int)d->minor;
    return OK;
}

Return nvmlDeviceGetMigMode(Handle *handle, unsigned *current, unsigned *pending) {
    BOARD;
    if (d->mig < 0) return NOT_SUPPORTED;
    *current = *pending = (unsigned)d->mig;
    return OK;
}

static Return clock_mhz(const Device *d, unsigned kind, unsigned *out) { /* 0 graphics, 1 SM, 2 memory, 3 video */
    int64_t mhz = kind == 2 ? d->memory_mhz : d->sm_mhz;
    if (mhz < 0 || kind > 3) return NOT_SUPPORTED;
    *out = (unsigned)mhz;
    return OK;
}
Return nvmlDeviceGetClockInfo(Handle *handle, unsigned kind, unsigned *out) { WHOLE; return clock_mhz(d, kind, out); }
Return nvmlDeviceGetMaxClockInfo(Handle *handle, unsigned kind, unsigned *out) { WHOLE; return clock_mhz(d, kind, out); }

Return nvmlDeviceGetTemperature(Handle *handle, unsigned sensor, unsigned *out) {
    WHOLE;
    if (sensor != 0 || d->temperature_c < 0) return NOT_SUPPORTED;
    *out = (unsigned)d->temperature_c;
    return OK;
}

typedef struct { unsigned version; unsigned sensor; int celsius; } Temperature;
Return nvmlDeviceGetTemperatureV(Handle *handle, Temperature *out) {
    WHOLE;
    out->celsius = (int)d->temperature_c;
    return d->temperature_c < 0 ? NOT_SUPPORTED : OK;
}

typedef struct { unsigned gpu, memory; } Utilization;
Return nvmlDeviceGetUtilizationRates(Handle *handle, Utilization *out) {
    WHOLE;
    if (d->utilization < 0) return NOT_SUPPORTED;
    out->gpu = (unsigned)d->utilization, out->memory = (unsigned)d->utilization / 2;
    return OK;
}

/* Half of a board's memory is in use. */
typedef struct { uint64_t total, free, used; } Memory;
Return nvmlDeviceGetMemoryInfo(Handle *handle, Memory *out) {
    BOARD;
    if (d->memory_bytes < 0) return NOT_SUPPORTED;
    out->total = (uint64_t)d->memory_bytes, out->used = out->total / 2, out->free = out->total - out->used;
    return OK;
}

typedef struct { unsigned version; uint64_t total, reserved, free, used; } Memory2;
Return nvmlDeviceGetMemoryInfo_v2(Handle *handle, Memory2 *out) {
    Memory memory;
    Return error = nvmlDeviceGetMemoryInfo(handle, &memory);
    if (error) return error;
    out->total = memory.total, out->reserved = 0, out->free = memory.free, out->used = memory.used;
    return OK;
}

typedef struct { unsigned pid; uint64_t bytes; unsigned instance, compute_instance; } Process;
Return nvmlDeviceGetComputeRunningProcesses_v3(Handle *handle, unsigned *count, Process *out) {
    BOARD;
    unsigned room = *count;
    *count = (unsigned)d->process_count;
    if (room < *count) return INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < *count; i++)
        out[i] = (Process){(unsigned)d->processes[i], 1u << 30, UINT32_MAX, UINT32_MAX};
    return OK;
}

Return nvmlDeviceGetGraphicsRunningProcesses_v3(Handle *handle, unsigned *count, Process *out) {
    BOARD;
    (void)d, (void)out;
    *count = 0;
    return OK;
}

/* -- meters -- */

Return nvmlDeviceGetTotalEnergyConsumption(Handle *handle, uint64_t *out) {
    WHOLE;
    *out = (uint64_t)counter_mj(d, now_s(world), handle->device);
    return OK;
}

Return nvmlDeviceGetPowerUsage(Handle *handle, unsigned *out) {
    WHOLE;
    *out = (unsigned)(power_mw(d, now_s(world), d->average_window_s) + 0.5);
    return OK;
}

typedef struct {
    uint32_t id, scope;
    int64_t timestamp, latency;
    unsigned type; /* 1: unsigned int, 3: unsigned long long */
    Return error;
    union { unsigned ui; uint64_t ull; } value;
} Field;

static void answer_field(const Device *d, int index, Field *f) {
    char name[32];
    double now = now_s(world);
    snprintf(name, sizeof name, "field %u", f->id);
    f->timestamp = (int64_t)(now * 1e6), f->latency = 0, f->type = 1, f->value.ull = 0;
    f->error = f->scope ? NOT_SUPPORTED : demanded(name, index); /* scope 0: the GPU; others: module, memory */
    if (f->error) return;
    switch (f->id) {
        case 83: f->type = 3, f->value.ull = (uint64_t)counter_mj(d, now, index); return; /* TOTAL_ENERGY_CONSUMPTION */
        case 185: f->value.ui = (unsigned)(power_mw(d, now, d->average_window_s) + 0.5); return; /* POWER_AVERAGE */
        case 186: f->value.ui = (unsigned)(power_mw(d, now, d->instant_window_s) + 0.5); return; /* POWER_INSTANT */
        default: f->error = NOT_SUPPORTED;
    }
}

Return nvmlDeviceGetFieldValues(Handle *handle, int count, Field *fields) {
    WHOLE;
    for (int i = 0; i < count; i++) answer_field(d, handle->device, &fields[i]);
    return OK;
}
