/* NVML's calls on the library and on whole devices; handles. */
#include "api.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

struct state *sim;
static struct handle *handles;

struct handle *handle_for(enum kind kind, unsigned gpu, unsigned gi, unsigned ci)
{
	uint64_t generation = kind == GPU ? 0 : sim->gpu[gpu].gi[gi].generation;
	struct handle *h;

	for (h = handles; h; h = h->next)
		if (h->kind == kind && h->gpu == gpu && h->gi == gi && h->ci == ci &&
		    h->generation == generation)
			return h;
	h = calloc(1, sizeof(*h));
	*h = (struct handle){ kind, gpu, gi, ci, generation, handles };
	handles = h;
	return h;
}

static int known(const struct handle *handle)
{
	for (const struct handle *h = handles; h; h = h->next)
		if (h == handle)
			return 1;
	return 0;
}

static int injected(const char *call, unsigned gpu)
{
	for (unsigned i = 0; i < MAX_FAULTS; i++) {
		struct fault *fault = &sim->fault[i];

		if (fault->times && !strcmp(fault->call, call) &&
		    (fault->gpu < 0 || (unsigned)fault->gpu == gpu)) {
			if (fault->times > 0)
				fault->times--;
			return fault->code;
		}
	}
	return OK;
}

int enter(const char *call, struct handle *handle, enum kind kind)
{
	int code;

	if (!sim)
		return UNINITIALIZED;
	if (handle && !known(handle))
		return INVALID_ARGUMENT;
	sim_lock();
	sim->calls++;
	code = injected(call, handle ? handle->gpu : 0);
	if (code)
		return leave_with(code);
	if (!kind)
		return OK;
	if (!handle)
		return leave_with(INVALID_ARGUMENT);
	if (handle->kind != kind && !(kind == GPU && handle->kind == MIG_DEVICE))
		return leave_with(INVALID_ARGUMENT);
	if (handle->gpu >= sim->gpus)
		return leave_with(INVALID_ARGUMENT);
	if (handle->kind != GPU &&
	    (!gi_of(handle)->used || gi_of(handle)->generation != handle->generation))
		return leave_with(NOT_FOUND);
	if (handle->kind >= COMPUTE_INSTANCE && !ci_of(handle)->used)
		return leave_with(NOT_FOUND);
	return OK;
}

int leave_with(int code)
{
	sim_unlock();
	return code;
}

struct gpu *gpu_of(const struct handle *handle)
{
	return &sim->gpu[handle->gpu];
}

struct gi *gi_of(const struct handle *handle)
{
	return &gpu_of(handle)->gi[handle->gi];
}

struct ci *ci_of(const struct handle *handle)
{
	return &gi_of(handle)->ci[handle->ci];
}

int copy_text(char *out, unsigned size, const char *text)
{
	if (!out)
		return INVALID_ARGUMENT;
	if (strlen(text) + 1 > size)
		return INSUFFICIENT_SIZE;
	strcpy(out, text);
	return OK;
}

/* -- the library ------------------------------------------------------------------------------ */

static int users;

API int nvmlInit_v2(void)
{
	if (!sim)
		sim = sim_open(sim_path());
	if (!sim)
		return DRIVER_NOT_LOADED;
	users++;
	return OK;
}
ALIAS(nvmlInit_v2) int nvmlInit(void);

API int nvmlInitWithFlags(unsigned flags)
{
	(void)flags;
	return nvmlInit_v2();
}

/* The last user's end: handles of before are good for nothing after the next nvmlInit. */
API int nvmlShutdown(void)
{
	if (!sim)
		return UNINITIALIZED;
	if (--users == 0) {
		sim_close(sim);
		sim = NULL;
		handles = NULL;
	}
	return OK;
}

API const char *nvmlErrorString(int code)
{
	switch (code) {
	case OK: return "Success";
	case UNINITIALIZED: return "Uninitialized";
	case INVALID_ARGUMENT: return "Invalid Argument";
	case NOT_SUPPORTED: return "Not Supported";
	case NO_PERMISSION: return "Insufficient Permissions";
	case NOT_FOUND: return "Not Found";
	case INSUFFICIENT_SIZE: return "Insufficient Size";
	case DRIVER_NOT_LOADED: return "Driver Not Loaded";
	case 15: return "GPU is lost";
	case 16: return "GPU requires reset";
	case IN_USE: return "In use by another client";
	case INSUFFICIENT_RESOURCES: return "Insufficient Resources";
	case ARGUMENT_VERSION_MISMATCH: return "Argument version mismatch";
	default: return "Unknown Error";
	}
}

API int nvmlSystemGetDriverVersion(char *out, unsigned size)
{
	int code = enter(__func__, NULL, 0);

	return code ? code : leave_with(copy_text(out, size, sim->driver));
}

API int nvmlSystemGetNVMLVersion(char *out, unsigned size)
{
	char text[48];
	int code = enter(__func__, NULL, 0);

	if (code)
		return code;
	snprintf(text, sizeof(text), "13.%s", sim->driver);
	return leave_with(copy_text(out, size, text));
}

API int nvmlSystemGetCudaDriverVersion_v2(int *version)
{
	int code = enter(__func__, NULL, 0);

	if (code)
		return code;
	*version = 13000;
	return leave_with(OK);
}
ALIAS(nvmlSystemGetCudaDriverVersion_v2) int nvmlSystemGetCudaDriverVersion(int *version);

/* -- finding devices -------------------------------------------------------------------------- */

API int nvmlDeviceGetCount_v2(unsigned *count)
{
	int code = enter(__func__, NULL, 0);

	if (code)
		return code;
	*count = sim->gpus;
	return leave_with(OK);
}
ALIAS(nvmlDeviceGetCount_v2) int nvmlDeviceGetCount(unsigned *count);

API int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct handle **out)
{
	int code = enter(__func__, NULL, 0);

	if (code)
		return code;
	if (index >= sim->gpus)
		return leave_with(INVALID_ARGUMENT);
	code = injected("nvmlDeviceGetHandleByIndex", index);
	*out = handle_for(GPU, index, 0, 0);
	return leave_with(code);
}
ALIAS(nvmlDeviceGetHandleByIndex_v2) int nvmlDeviceGetHandleByIndex(unsigned i, struct handle **out);

API int nvmlDeviceGetHandleByUUID(const char *uuid, struct handle **out)
{
	char text[64];
	int code = enter(__func__, NULL, 0);

	if (code)
		return code;
	for (unsigned g = 0; g < sim->gpus; g++) {
		struct gpu *gpu = &sim->gpu[g];

		if (!strcmp(gpu->uuid, uuid)) {
			*out = handle_for(GPU, g, 0, 0);
			return leave_with(OK);
		}
		for (unsigned gi = 0; gi < MAX_GI; gi++)
			for (unsigned ci = 0; gpu->gi[gi].used && ci < MAX_CI; ci++) {
				sim_mig_uuid(text, gpu, gi, ci);
				if (gpu->gi[gi].ci[ci].used && !strcmp(text, uuid)) {
					*out = handle_for(MIG_DEVICE, g, gi, ci);
					return leave_with(OK);
				}
			}
	}
	return leave_with(NOT_FOUND);
}

static void bus_id(char out[32], unsigned gpu)
{
	snprintf(out, 32, "00000000:%02X:00.0", 0x10 + gpu);
}

API int nvmlDeviceGetHandleByPciBusId_v2(const char *text, struct handle **out)
{
	char id[32];
	int code = enter(__func__, NULL, 0);

	if (code)
		return code;
	for (unsigned g = 0; g < sim->gpus; g++) {
		bus_id(id, g);
		if (!strcasecmp(id, text) || !strcasecmp(id + 4, text)) {
			*out = handle_for(GPU, g, 0, 0);
			return leave_with(OK);
		}
	}
	return leave_with(NOT_FOUND);
}
ALIAS(nvmlDeviceGetHandleByPciBusId_v2)
int nvmlDeviceGetHandleByPciBusId(const char *text, struct handle **out);

/* -- what a device says of itself ------------------------------------------------------------- */

API int nvmlDeviceGetIndex(struct handle *device, unsigned *index)
{
	int code = enter(__func__, device, GPU);

	if (code)
		return code;
	*index = device->gpu;
	return leave_with(OK);
}

API int nvmlDeviceGetName(struct handle *device, char *out, unsigned size)
{
	char text[160];
	int code = enter(__func__, device, GPU);

	if (code)
		return code;
	snprintf(text, sizeof(text), "%s", sim_model(gpu_of(device))->name);
	if (device->kind == MIG_DEVICE)
		snprintf(text, sizeof(text), "%s MIG %s", sim_model(gpu_of(device))->name,
			 sim_profile(gpu_of(device), gi_of(device))->name);
	return leave_with(copy_text(out, size, text));
}

API int nvmlDeviceGetUUID(struct handle *device, char *out, unsigned size)
{
	char text[64];
	int code = enter(__func__, device, GPU);

	if (code)
		return code;
	snprintf(text, sizeof(text), "%s", gpu_of(device)->uuid);
	if (device->kind == MIG_DEVICE)
		sim_mig_uuid(text, gpu_of(device), device->gi, device->ci);
	return leave_with(copy_text(out, size, text));
}

API int nvmlDeviceGetMinorNumber(struct handle *device, unsigned *minor)
{
	int code = enter(__func__, device, GPU);

	if (code)
		return code;
	*minor = gpu_of(device)->minor;
	return leave_with(OK);
}

struct pci_info {
	char legacy[16];
	unsigned domain, bus, device, id, subsystem;
	char bus_id[32];
};

API int nvmlDeviceGetPciInfo_v3(struct handle *device, struct pci_info *pci)
{
	int code = enter(__func__, device, GPU);

	if (code)
		return code;
	memset(pci, 0, sizeof(*pci));
	pci->bus = 0x10 + device->gpu;
	pci->id = sim_model(gpu_of(device))->pci_device << 16 | 0x10de;
	bus_id(pci->bus_id, device->gpu);
	snprintf(pci->legacy, sizeof(pci->legacy), "%.15s", pci->bus_id + 4);
	return leave_with(OK);
}
ALIAS(nvmlDeviceGetPciInfo_v3) int nvmlDeviceGetPciInfo(struct handle *d, struct pci_info *pci);
ALIAS(nvmlDeviceGetPciInfo_v3) int nvmlDeviceGetPciInfo_v2(struct handle *d, struct pci_info *pci);

struct memory {
	unsigned long long total, free, used;
};

API int nvmlDeviceGetMemoryInfo(struct handle *device, struct memory *memory)
{
	unsigned long long mib;
	int code = enter(__func__, device, GPU);

	if (code)
		return code;
	mib = sim_model(gpu_of(device))->memory_mb;
	if (device->kind == MIG_DEVICE)
		mib = sim_profile(gpu_of(device), gi_of(device))->memory_mb;
	*memory = (struct memory){ mib << 20, mib << 20, 0 };
	return leave_with(OK);
}

struct memory_v2 {
	unsigned version;
	unsigned long long total, reserved, free, used;
};

API int nvmlDeviceGetMemoryInfo_v2(struct handle *device, struct memory_v2 *memory)
{
	struct memory plain;
	int code;

	if (memory->version != 0x02000028)
		return ARGUMENT_VERSION_MISMATCH;
	code = nvmlDeviceGetMemoryInfo(device, &plain);
	if (!code)
		*memory = (struct memory_v2){ 0x02000028, plain.total, 0, plain.free, 0 };
	return code;
}

API int nvmlDeviceGetCpuAffinity(struct handle *device, unsigned words, unsigned long *set)
{
	int code = enter(__func__, device, GPU);

	if (code)
		return code;
	memset(set, 0, words * sizeof(*set));
	for (long cpu = 0; cpu < sysconf(_SC_NPROCESSORS_ONLN); cpu++)
		if ((unsigned long)cpu / 64 < words)
			set[cpu / 64] |= 1ul << cpu % 64;
	return leave_with(OK);
}

API int nvmlDeviceGetPersistenceMode(struct handle *device, unsigned *mode)
{
	int code = enter(__func__, device, GPU);

	if (code)
		return code;
	*mode = 1;
	return leave_with(OK);
}

/* -- processes -------------------------------------------------------------------------------- */

struct process_info {
	unsigned pid;
	unsigned long long memory;
	unsigned gi, ci;
};

API int nvmlDeviceGetComputeRunningProcesses_v3(struct handle *device, unsigned *count,
						struct process_info *out)
{
	unsigned room, found = 0;
	int code = enter(__func__, device, GPU);

	if (code)
		return code;
	room = out ? *count : 0;
	sim_prune(sim);
	for (unsigned i = 0; i < MAX_PROCESSES; i++) {
		const struct process *process = &sim->process[i];

		if (!process->pid || process->gpu != device->gpu)
			continue;
		if (device->kind == MIG_DEVICE && process->gi != (int)device->gi)
			continue;
		if (found < room)
			out[found] = (struct process_info){ (unsigned)process->pid, 1ull << 28,
							    (unsigned)process->gi,
							    (unsigned)process->ci };
		found++;
	}
	*count = found;
	return leave_with(found > room ? INSUFFICIENT_SIZE : OK);
}
ALIAS(nvmlDeviceGetComputeRunningProcesses_v3)
int nvmlDeviceGetComputeRunningProcesses_v2(struct handle *d, unsigned *n, struct process_info *out);
ALIAS(nvmlDeviceGetComputeRunningProcesses_v3)
int nvmlDeviceGetComputeRunningProcesses(struct handle *d, unsigned *n, struct process_info *out);

API int nvmlDeviceGetGraphicsRunningProcesses_v3(struct handle *device, unsigned *count,
						 struct process_info *out)
{
	int code = enter(__func__, device, GPU);

	(void)out;
	if (code)
		return code;
	*count = 0;
	return leave_with(OK);
}
ALIAS(nvmlDeviceGetGraphicsRunningProcesses_v3)
int nvmlDeviceGetGraphicsRunningProcesses_v2(struct handle *d, unsigned *n, struct process_info *o);
ALIAS(nvmlDeviceGetGraphicsRunningProcesses_v3)
int nvmlDeviceGetGraphicsRunningProcesses(struct handle *d, unsigned *n, struct process_info *o);

/* -- what this node does not have -------------------------------------------------------------- */

#define NOT_THERE(name)                                                  \
	API int name(struct handle *device)                              \
	{                                                                \
		int code = enter(#name, device, GPU);                    \
		return code ? code : leave_with(NOT_SUPPORTED);          \
	}

NOT_THERE(nvmlDeviceGetNvLinkState)
NOT_THERE(nvmlDeviceGetNvLinkRemotePciInfo_v2)
NOT_THERE(nvmlDeviceGetNvLinkRemotePciInfo)
NOT_THERE(nvmlDeviceGetFieldValues)
NOT_THERE(nvmlDeviceGetSupportedMemoryClocks)
NOT_THERE(nvmlDeviceGetSupportedGraphicsClocks)
NOT_THERE(nvmlDeviceSetApplicationsClocks)
NOT_THERE(nvmlDeviceGetApplicationsClock)
NOT_THERE(nvmlDeviceResetApplicationsClocks)
NOT_THERE(nvmlDeviceGetClockInfo)
NOT_THERE(nvmlDeviceGetUtilizationRates)
NOT_THERE(nvmlDeviceGetProcessUtilization)
NOT_THERE(nvmlDeviceGetTotalEnergyConsumption)
NOT_THERE(nvmlDeviceGetPowerUsage)
