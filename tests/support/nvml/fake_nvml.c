/* libnvidia-ml.so.1 for tests: what squall's agent asks NVIDIA's driver, answered out of the file that FAKE_NVML names.
 * Read again at every call, so that a test changes the machine while an agent runs. One device a line:
 *
 *     uuid;name;memory MiB;used MiB;mig 0|1;uncorrected errors;remapping failed 0|1;pid,pid or -;state
 *
 * state: ok, lost (every query says so), or xid=N (a critical error, told once). A line "driver gone": no driver.
 * After a device that is in MIG mode, a line for each of its instances:
 *
 *     mig uuid;slices;compute slices;memory MiB;used MiB;pid,pid or - */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID = 2, NOT_FOUND = 6, TOO_SMALL = 7, DRIVER_NOT_LOADED = 9, TIMEOUT = 10, GPU_IS_LOST = 15 };
enum { MOST = 32, MOST_INSTANCES = 7 };

typedef struct {
    char uuid[80], name[96], pids[64], state[24];
    unsigned memory, used, mig, uncorrected, remap_failed, slices, compute;
} Gpu;

typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned sms, copies, decoders, encoders, jpegs, ofas, slices, compute; unsigned long long memory; } Attributes;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } Process;
typedef struct { void *device; unsigned long long type, data; unsigned gpu_instance, compute_instance; } Event;

static int initialised, registered[MOST], told[MOST];

/* The number of devices, or -1 when there is no driver. */
static int machine(Gpu *gpus)
{
    char line[512];
    int n = 0;
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!file)
        return -1;
    while (n < MOST && fgets(line, sizeof line, file)) {
        Gpu *g = gpus + n;
        memset(g, 0, sizeof *g);
        if (!strncmp(line, "driver gone", 11)) {
            n = -1;
            break;
        }
        if (sscanf(line, "%79[^;];%95[^;];%u;%u;%u;%u;%u;%63[^;];%23[^;\n]", g->uuid, g->name, &g->memory, &g->used,
                   &g->mig, &g->uncorrected, &g->remap_failed, g->pids, g->state) == 9)
            n++;
    }
    fclose(file);
    return n;
}

/* One instance of the device at that position. */
static int instance(long device, long number, Gpu *found)
{
    char line[512];
    long at = -1, n = 0;
    int code = NOT_FOUND;
    FILE *file = fopen(getenv("FAKE_NVML"), "r");
    while (file && code && fgets(line, sizeof line, file)) {
        if (strncmp(line, "mig ", 4)) {
            at++;
            n = 0;
        } else if (at == device && n++ == number) {
            memset(found, 0, sizeof *found);
            if (sscanf(line + 4, "%79[^;];%u;%u;%u;%u;%63[^;\n]", found->uuid, &found->slices, &found->compute,
                       &found->memory, &found->used, found->pids) == 6)
                code = SUCCESS;
        }
    }
    if (file)
        fclose(file);
    return code;
}

/* Handles are positions, counted from 1; of an instance there is its own in the upper half. */
static int look(void *handle, Gpu *found)
{
    Gpu gpus[MOST];
    long i = ((long)handle & 0xffff) - 1, part = ((long)handle >> 16) - 1;
    int n;
    if (!initialised)
        return UNINITIALIZED;
    if ((n = machine(gpus)) < 0)
        return DRIVER_NOT_LOADED;
    if (i < 0 || i >= n)
        return INVALID;
    if (!strcmp(gpus[i].state, "lost"))
        return GPU_IS_LOST;
    if (part >= 0)
        return instance(i, part, found);
    *found = gpus[i];
    return SUCCESS;
}

static int text(char *buffer, unsigned size, const char *value)
{
    if (strlen(value) >= size)
        return TOO_SMALL;
    strcpy(buffer, value);
    return SUCCESS;
}

int nvmlInitWithFlags(unsigned flags)
{
    Gpu gpus[MOST];
    (void)flags;
    if (machine(gpus) < 0)
        return DRIVER_NOT_LOADED;
    initialised = 1;
    return SUCCESS;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) { initialised = 0; return SUCCESS; }

const char *nvmlErrorString(int code)
{
    switch (code) {
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case GPU_IS_LOST: return "GPU is lost";
    case TIMEOUT: return "Timeout";
    default: return "Error";
    }
}

int nvmlSystemGetDriverVersion(char *buffer, unsigned size) { return text(buffer, size, "580.95.05"); }

int nvmlDeviceGetCount_v2(unsigned *count)
{
    Gpu gpus[MOST];
    int n = machine(gpus);
    if (!initialised)
        return UNINITIALIZED;
    if (n < 0)
        return DRIVER_NOT_LOADED;
    *count = n;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle)
{
    Gpu g;
    *handle = (void *)(long)(index + 1);
    return look(*handle, &g);
}

int nvmlDeviceGetUUID(void *handle, char *buffer, unsigned size)
{
    Gpu g;
    int code = look(handle, &g);
    return code ? code : text(buffer, size, g.uuid);
}

int nvmlDeviceGetName(void *handle, char *buffer, unsigned size)
{
    Gpu g;
    int code = look(handle, &g);
    return code ? code : text(buffer, size, g.name);
}

int nvmlDeviceGetMemoryInfo(void *handle, Memory *memory)
{
    Gpu g;
    int code = look(handle, &g);
    if (!code) {
        memory->total = (unsigned long long)g.memory << 20;
        memory->used = (unsigned long long)g.used << 20;
        memory->free = memory->total - memory->used;
    }
    return code;
}

int nvmlDeviceGetMigMode(void *handle, unsigned *now, unsigned *pending)
{
    Gpu g;
    int code = look(handle, &g);
    if (!code)
        *now = *pending = g.mig;
    return code;
}

int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *count)
{
    Gpu g;
    *count = MOST_INSTANCES;
    return look(handle, &g);
}

int nvmlDeviceGetMigDeviceHandleByIndex(void *device, unsigned index, void **handle)
{
    Gpu g;
    *handle = (void *)((long)device | (long)(index + 1) << 16);
    return look(*handle, &g);
}

int nvmlDeviceGetAttributes_v2(void *handle, Attributes *attributes)
{
    Gpu g;
    int code = look(handle, &g);
    if (!code)
        *attributes = (Attributes){.slices = g.slices, .compute = g.compute, .memory = g.memory};
    return code;
}

int nvmlDeviceGetTotalEccErrors(void *handle, int type, int counter, unsigned long long *count)
{
    Gpu g;
    int code = look(handle, &g);
    if (!code)
        *count = type == 1 && counter == 0 ? g.uncorrected : 0; /* uncorrected, since the driver was loaded */
    return code;
}

int nvmlDeviceGetRemappedRows(void *handle, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failed)
{
    Gpu g;
    int code = look(handle, &g);
    if (!code) {
        *corrected = *uncorrected = *pending = 0;
        *failed = g.remap_failed;
    }
    return code;
}

/* Called first with room for none, to learn the number; then with room for more. */
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, Process *processes)
{
    Gpu g;
    unsigned room = *count;
    int code = look(handle, &g);
    char *rest = NULL, *pid;
    if (code)
        return code;
    *count = 0;
    for (pid = strtok_r(g.pids, ",", &rest); pid; pid = strtok_r(NULL, ",", &rest)) {
        if (!strcmp(pid, "-"))
            break;
        if (processes && *count < room)
            processes[*count] = (Process){(unsigned)atoi(pid), 1ull << 30, ~0u, ~0u};
        ++*count;
    }
    return *count > room ? TOO_SMALL : SUCCESS;
}

int nvmlEventSetCreate(void **set)
{
    *set = (void *)1;
    memset(registered, 0, sizeof registered);
    return SUCCESS;
}

int nvmlDeviceRegisterEvents(void *handle, unsigned long long types, void *set)
{
    Gpu g;
    int code = look(handle, &g);
    (void)set;
    if (!code && types & 8)
        registered[(long)handle - 1] = 1;
    return code;
}

int nvmlEventSetWait_v2(void *set, Event *event, unsigned timeout_ms)
{
    Gpu gpus[MOST];
    int n = machine(gpus), xid;
    (void)set;
    (void)timeout_ms;
    for (int i = 0; i < n; i++) {
        if (registered[i] && sscanf(gpus[i].state, "xid=%d", &xid) == 1 && told[i] != xid) {
            told[i] = xid;
            *event = (Event){(void *)(long)(i + 1), 8, (unsigned)xid, 0, 0};
            return SUCCESS;
        }
    }
    return TIMEOUT;
}
