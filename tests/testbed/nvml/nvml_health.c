/*
 * NVML's calls on how a device is doing: what monitors ask for. The values are constants of an idle
 * GPU; what real ones do not support under MIG is not supported here.
 */
#include "api.h"

/* The device of a call about a whole GPU; a MIG device has none of it. */
static int whole(const char *call, struct handle *device)
{
	int code = enter(call, device, DEVICE);

	if (!code && device->kind == MIG_DEVICE)
		return leave_with(NOT_SUPPORTED);
	return code;
}

#define WHOLE_GPU_SAYS(name, number)                              \
	API int name(struct handle *device, unsigned *out)        \
	{                                                         \
		int code = whole(#name, device);                  \
		if (code)                                         \
			return code;                              \
		*out = number;                                    \
		return leave_with(OK);                            \
	}

WHOLE_GPU_SAYS(nvmlDeviceGetPowerUsage, 60000)
WHOLE_GPU_SAYS(nvmlDeviceGetPowerManagementLimit, 400000)
WHOLE_GPU_SAYS(nvmlDeviceGetEnforcedPowerLimit, 400000)
WHOLE_GPU_SAYS(nvmlDeviceGetPerformanceState, 0)
WHOLE_GPU_SAYS(nvmlDeviceGetComputeMode, 0)
WHOLE_GPU_SAYS(nvmlDeviceGetDisplayMode, 0)
WHOLE_GPU_SAYS(nvmlDeviceGetDisplayActive, 0)

API int nvmlDeviceGetTemperature(struct handle *device, unsigned sensor, unsigned *out)
{
	int code = whole(__func__, device);

	if (code)
		return code;
	if (sensor)
		return leave_with(INVALID_ARGUMENT);
	*out = 31;
	return leave_with(OK);
}

struct utilization {
	unsigned gpu, memory;
};

API int nvmlDeviceGetUtilizationRates(struct handle *device, struct utilization *out)
{
	int code = enter(__func__, device, DEVICE);

	if (code)
		return code;
	if (device->kind == MIG_DEVICE || gpu_of(device)->mig)
		return leave_with(NOT_SUPPORTED);
	*out = (struct utilization){ 0, 0 };
	return leave_with(OK);
}

struct bar1 {
	unsigned long long total, free, used;
};

#define BAR1_USED (1ull << 20)

/* As large as the memory, on a MIG device too. */
API int nvmlDeviceGetBAR1MemoryInfo(struct handle *device, struct bar1 *out)
{
	unsigned long long total;
	int code = enter(__func__, device, DEVICE);

	if (code)
		return code;
	total = sim_model(gpu_of(device))->memory_mb << 20;
	if (device->kind == MIG_DEVICE)
		total = sim_profile(gpu_of(device), gi_of(device))->memory_mb << 20;
	*out = (struct bar1){ total, total - BAR1_USED, BAR1_USED };
	return leave_with(OK);
}

NOT_THERE(nvmlDeviceGetFanSpeed)
NOT_THERE(nvmlDeviceGetTotalEccErrors)
NOT_THERE(nvmlDeviceGetEncoderUtilization)
NOT_THERE(nvmlDeviceGetDecoderUtilization)
NOT_THERE(nvmlDeviceGetPcieThroughput)
NOT_THERE(nvmlDeviceGetDriverModel)
NOT_THERE(nvmlDeviceGetDriverModel_v2)
NOT_THERE(nvmlDeviceGetConfComputeMemSizeInfo)
NOT_THERE(nvmlDeviceGetRunningProcessDetailList)
NOT_THERE(nvmlDeviceGetTemperatureV)
