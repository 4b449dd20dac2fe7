/* NVML's calls on the system, and on devices: whole GPUs and, most of them, MIG devices. */
#include "api.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

/* -- the system ------------------------------------------------------------------------------- */

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
	*out = handle_for(GPU, index, 0, 0);
	return leave_with(OK);
}
ALIAS(nvmlDeviceGetHandleByIndex_v2)
int nvmlDeviceGetHandleByIndex(unsigned index, struct handle **out);

/* MIG-<uuid>, or MIG-<UUID of the GPU>/<gi>/<ci> as drivers before 470.42.01 wrote it. */
static int names_mig_device(const char *uuid, const struct gpu *gpu, unsigned gi, unsigned ci)
{
	char now[64], before[96];

	if (!gpu->gi[gi].used || !gpu->gi[gi].ci[ci].used)
		return 0;
	sim_mig_uuid(now, gpu, gi, ci);
	snprintf(before, sizeof(before), "MIG-%s/%u/%u", gpu->uuid, gi, ci);
	return !strcmp(uuid, now) || !strcmp(uuid, before);
}

static struct handle *by_uuid(const char *uuid, unsigned g)
{
	for (unsigned gi = 0; gi < MAX_GI; gi++)
		for (unsigned ci = 0; ci < MAX_CI; ci++)
			if (names_mig_device(uuid, &sim->gpu[g], gi, ci))
				return handle_for(MIG_DEVICE, g, gi, ci);
	return strcmp(sim->gpu[g].uuid, uuid) ? NULL : handle_for(GPU, g, 0, 0);
}

API int nvmlDeviceGetHandleByUUID(const char *uuid, struct handle **out)
{
	int code = enter(__func__, NULL, 0);

	if (code)
		return code;
	if (!uuid || !out)
		return leave_with(INVALID_ARGUMENT);
	for (unsigned g = 0; g < sim->gpus; g++) {
		*out = by_uuid(uuid, g);
		if (*out)
			return leave_with(OK);
	}
	return leave_with(NOT_FOUND);
}

#define FIRST_BUS 0x10u

static void bus_id(char out[32], unsigned gpu)
{
	snprintf(out, 32, "00000000:%02X:00.0", FIRST_BUS + gpu);
}

API int nvmlDeviceGetHandleByPciBusId_v2(const char *text, struct handle **out)
{
	char id[32];
	int code = enter(__func__, NULL, 0);

	if (code)
		return code;
	if (!text || !out)
		return leave_with(INVALID_ARGUMENT);
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

/* The index that nvmlDeviceGetMigDeviceHandleByIndex takes. */
static unsigned mig_index(const struct handle *device)
{
	unsigned index = 0;

	for (unsigned gi = 0; gi <= device->gi; gi++)
		for (unsigned ci = 0; gpu_of(device)->gi[gi].used && ci < MAX_CI; ci++)
			index += gpu_of(device)->gi[gi].ci[ci].used &&
				 (gi < device->gi || ci < device->ci);
	return index;
}

API int nvmlDeviceGetIndex(struct handle *device, unsigned *index)
{
	int code = enter(__func__, device, DEVICE);

	if (code)
		return code;
	*index = device->kind == MIG_DEVICE ? mig_index(device) : device->gpu;
	return leave_with(OK);
}

API int nvmlDeviceGetName(struct handle *device, char *out, unsigned size)
{
	char text[160], profile[48];
	int code = enter(__func__, device, DEVICE);

	if (code)
		return code;
	snprintf(text, sizeof(text), "%s", sim_model(gpu_of(device))->name);
	if (device->kind == MIG_DEVICE) {
		sim_device_name(profile, sizeof(profile), gpu_of(device), gi_of(device),
				ci_of(device)->width);
		snprintf(text, sizeof(text), "%s MIG %s", sim_model(gpu_of(device))->name, profile);
	}
	return leave_with(copy_text(out, size, text));
}

API int nvmlDeviceGetUUID(struct handle *device, char *out, unsigned size)
{
	char text[64];
	int code = enter(__func__, device, DEVICE);

	if (code)
		return code;
	snprintf(text, sizeof(text), "%s", gpu_of(device)->uuid);
	if (device->kind == MIG_DEVICE)
		sim_mig_uuid(text, gpu_of(device), device->gi, device->ci);
	return leave_with(copy_text(out, size, text));
}

API int nvmlDeviceGetMinorNumber(struct handle *device, unsigned *minor)
{
	int code = enter(__func__, device, DEVICE);

	if (code)
		return code;
	if (device->kind == MIG_DEVICE)
		return leave_with(NOT_SUPPORTED);
	*minor = gpu_of(device)->minor;
	return leave_with(OK);
}

/* The first 36 bytes are those of all versions; only the third has room for a long bus id. */
struct pci_info_v2 {
	char legacy[16];
	unsigned domain, bus, device, id, subsystem;
};

struct pci_info {
	struct pci_info_v2 common;
	char bus_id[32];
};

API int nvmlDeviceGetPciInfo_v2(struct handle *device, struct pci_info_v2 *pci)
{
	char id[32];
	int code = enter(__func__, device, DEVICE);

	if (code)
		return code;
	memset(pci, 0, sizeof(*pci));
	pci->bus = FIRST_BUS + device->gpu;
	pci->id = sim_model(gpu_of(device))->pci_device << 16 | 0x10de;
	bus_id(id, device->gpu);
	snprintf(pci->legacy, sizeof(pci->legacy), "%.15s", id + 4);
	return leave_with(OK);
}
ALIAS(nvmlDeviceGetPciInfo_v2) int nvmlDeviceGetPciInfo(struct handle *d, struct pci_info_v2 *pci);

API int nvmlDeviceGetPciInfo_v3(struct handle *device, struct pci_info *pci)
{
	int code = nvmlDeviceGetPciInfo_v2(device, &pci->common);

	if (!code)
		bus_id(pci->bus_id, device->gpu);
	return code;
}

/* What a simulated process is said to use. */
#define PROCESS_MEMORY (1ull << 28)

struct memory {
	unsigned long long total, free, used;
};

static int concerns(const struct process *process, const struct handle *device)
{
	return process->pid && !process->hidden && process->gpu == device->gpu &&
	       (device->kind == GPU ||
		(process->gi == (int)device->gi && process->ci == (int)device->ci));
}

static unsigned long long memory_used(const struct handle *device)
{
	unsigned long long used = 0;

	sim_prune(sim);
	for (unsigned i = 0; i < MAX_PROCESSES; i++)
		if (concerns(&sim->process[i], device))
			used += PROCESS_MEMORY;
	return used;
}

API int nvmlDeviceGetMemoryInfo(struct handle *device, struct memory *memory)
{
	unsigned long long total, used;
	int code = enter(__func__, device, DEVICE);

	if (code)
		return code;
	total = sim_model(gpu_of(device))->memory_mb << 20;
	if (device->kind == MIG_DEVICE)
		total = sim_profile(gpu_of(device), gi_of(device))->memory_mb << 20;
	used = memory_used(device);
	*memory = (struct memory){ total, used < total ? total - used : 0, used };
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

	if (memory->version != VERSION(struct memory_v2, 2))
		return ARGUMENT_VERSION_MISMATCH;
	code = nvmlDeviceGetMemoryInfo(device, &plain);
	if (!code)
		*memory = (struct memory_v2){ memory->version, plain.total, 0, plain.free,
					      plain.used };
	return code;
}

API int nvmlDeviceGetCpuAffinity(struct handle *device, unsigned words, unsigned long *set)
{
	int code = enter(__func__, device, DEVICE);

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
	*mode = (unsigned)gpu_of(device)->persistence;
	return leave_with(OK);
}

API int nvmlDeviceSetPersistenceMode(struct handle *device, unsigned mode)
{
	int code = enter(__func__, device, GPU);

	if (code)
		return code;
	if (geteuid())
		return leave_with(NO_PERMISSION);
	gpu_of(device)->persistence = mode != 0;
	return leave_with(OK);
}

/* NVML_DEVICE_ARCH_* and the compute capability, by the architecture's name in the data. */
static const struct architecture {
	const char *name;
	unsigned number;
	int major, minor;
} architectures[] = {
	{ "ampere", 7, 8, 0 },
	{ "ada", 8, 8, 9 },
	{ "hopper", 9, 9, 0 },
	{ "blackwell", 10, 10, 0 },
};

static const struct architecture *architecture_of(const struct handle *device)
{
	for (unsigned i = 0; i < sizeof(architectures) / sizeof(architectures[0]); i++)
		if (!strcmp(architectures[i].name, sim_model(gpu_of(device))->arch))
			return &architectures[i];
	return NULL;
}

API int nvmlDeviceGetArchitecture(struct handle *device, unsigned *out)
{
	const struct architecture *found;
	int code = enter(__func__, device, DEVICE);

	if (code)
		return code;
	found = architecture_of(device);
	*out = found ? found->number : 0xffffffffu;
	return leave_with(OK);
}

API int nvmlDeviceGetCudaComputeCapability(struct handle *device, int *major, int *minor)
{
	const struct architecture *found;
	int code = enter(__func__, device, DEVICE);

	if (code)
		return code;
	found = architecture_of(device);
	if (!found)
		return leave_with(NOT_SUPPORTED);
	*major = found->major;
	*minor = found->minor;
	return leave_with(OK);
}

/* -- field values ----------------------------------------------------------------------------- */

struct field_value {
	unsigned field, scope;
	long long timestamp, latency;
	unsigned type, code;
	unsigned long long value;
};

enum { IS_RESETLESS_MIG_SUPPORTED = 184, IS_MIG_MODE_INDEPENDENT_MIG_QUERY_CAPABLE = 199 };

static void field(const struct handle *device, struct field_value *f)
{
	f->type = 1; /* unsigned int */
	f->code = OK;
	f->value = 0;
	if (f->field == IS_RESETLESS_MIG_SUPPORTED)
		f->value = sim_model(gpu_of(device))->memory_slices &&
			   !sim_model(gpu_of(device))->needs_reset;
	else if (f->field == IS_MIG_MODE_INDEPENDENT_MIG_QUERY_CAPABLE)
		f->value = (unsigned long long)mode_independent_queries();
	else
		f->code = NOT_SUPPORTED;
}

API int nvmlDeviceGetFieldValues(struct handle *device, int count, struct field_value *values)
{
	int code = enter(__func__, device, DEVICE);

	if (code)
		return code;
	for (int i = 0; i < count; i++)
		field(device, &values[i]);
	return leave_with(OK);
}

/* -- processes -------------------------------------------------------------------------------- */

struct process_info_v1 {
	unsigned pid;
	unsigned long long memory;
};

struct process_info {
	unsigned pid;
	unsigned long long memory;
	unsigned gi, ci; /* 0xFFFFFFFF without MIG */
};

/* How many there are; those that fit are written, in the layout of the caller's version. */
static unsigned list_processes(const struct handle *device, void *out, unsigned room, int v1)
{
	unsigned found = 0;

	sim_prune(sim);
	for (unsigned i = 0; i < MAX_PROCESSES; i++) {
		const struct process *p = &sim->process[i];

		if (!concerns(p, device))
			continue;
		if (found < room && v1)
			((struct process_info_v1 *)out)[found] =
				(struct process_info_v1){ (unsigned)p->pid, PROCESS_MEMORY };
		else if (found < room)
			((struct process_info *)out)[found] =
				(struct process_info){ (unsigned)p->pid, PROCESS_MEMORY,
						       (unsigned)p->gi, (unsigned)p->ci };
		found++;
	}
	return found;
}

static int processes(const char *call, struct handle *device, unsigned *count, void *out, int v1)
{
	unsigned room;
	int code = enter(call, device, DEVICE);

	if (code)
		return code;
	room = out ? *count : 0;
	*count = list_processes(device, out, room, v1);
	return leave_with(*count > room ? INSUFFICIENT_SIZE : OK);
}

API int nvmlDeviceGetComputeRunningProcesses_v3(struct handle *device, unsigned *count,
						struct process_info *out)
{
	return processes(__func__, device, count, out, 0);
}
ALIAS(nvmlDeviceGetComputeRunningProcesses_v3)
int nvmlDeviceGetComputeRunningProcesses_v2(struct handle *d, unsigned *n, struct process_info *o);

API int nvmlDeviceGetComputeRunningProcesses(struct handle *device, unsigned *count,
					     struct process_info_v1 *out)
{
	return processes(__func__, device, count, out, 1);
}

API int nvmlDeviceGetGraphicsRunningProcesses_v3(struct handle *device, unsigned *count,
						 void *out)
{
	int code = enter(__func__, device, DEVICE);

	(void)out;
	if (code)
		return code;
	*count = 0;
	return leave_with(OK);
}
ALIAS(nvmlDeviceGetGraphicsRunningProcesses_v3)
int nvmlDeviceGetGraphicsRunningProcesses_v2(struct handle *d, unsigned *n, void *out);
ALIAS(nvmlDeviceGetGraphicsRunningProcesses_v3)
int nvmlDeviceGetGraphicsRunningProcesses(struct handle *d, unsigned *n, void *out);
ALIAS(nvmlDeviceGetGraphicsRunningProcesses_v3)
int nvmlDeviceGetMPSComputeRunningProcesses_v3(struct handle *d, unsigned *n, void *out);

/* -- what this node does not have -------------------------------------------------------------- */

NOT_THERE(nvmlDeviceGetNvLinkState)
NOT_THERE(nvmlDeviceGetNvLinkRemotePciInfo_v2)
NOT_THERE(nvmlDeviceGetNvLinkRemotePciInfo)
NOT_THERE(nvmlDeviceGetSupportedMemoryClocks)
NOT_THERE(nvmlDeviceGetSupportedGraphicsClocks)
NOT_THERE(nvmlDeviceSetApplicationsClocks)
NOT_THERE(nvmlDeviceGetApplicationsClock)
NOT_THERE(nvmlDeviceResetApplicationsClocks)
NOT_THERE(nvmlDeviceGetClockInfo)
NOT_THERE(nvmlDeviceGetProcessUtilization)
NOT_THERE(nvmlDeviceGetTotalEnergyConsumption)
NOT_THERE(nvmlDeviceGetClock)
NOT_THERE(nvmlDeviceGetMaxClockInfo)
NOT_THERE(nvmlDeviceSetGpuLockedClocks)
NOT_THERE(nvmlDeviceResetGpuLockedClocks)
NOT_THERE(nvmlDeviceSetMemoryLockedClocks)
NOT_THERE(nvmlDeviceResetMemoryLockedClocks)
NOT_THERE(nvmlDeviceGetEccMode)
NOT_THERE(nvmlDeviceGetSerial)
