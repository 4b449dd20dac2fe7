/* NVML's calls on compute instances and MIG devices. */
#include "api.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define COMPUTE_INSTANCE_PROFILE_COUNT 9

struct ci_profile_info {
	unsigned id, slices, count, sm, ce, dec, enc, jpeg, ofa;
};

struct ci_profile_info_v2 {
	unsigned version, id, slices, count, sm, ce, dec, enc, jpeg, ofa;
	char name[96];
};

static int ci_profile(struct handle *instance, unsigned id, unsigned engine,
		      struct ci_profile_info *info)
{
	const struct profile *p = sim_profile(gpu_of(instance), gi_of(instance));
	struct placement places[MAX_CI];
	unsigned width;

	if (id >= COMPUTE_INSTANCE_PROFILE_COUNT || engine)
		return INVALID_ARGUMENT;
	width = sim_ci_width(gpu_of(instance), gi_of(instance), id);
	if (!width)
		return NOT_SUPPORTED;
	*info = (struct ci_profile_info){ id, width, sim_ci_places(p, width, places),
					  sim_ci_sm(gpu_of(instance), gi_of(instance), width),
					  p->ce, p->dec, p->enc, p->jpeg, p->ofa };
	return OK;
}

API int nvmlGpuInstanceGetComputeInstanceProfileInfo(struct handle *instance, unsigned id,
						     unsigned engine, struct ci_profile_info *info)
{
	int code = enter(__func__, instance, GPU_INSTANCE);

	return code ? code : leave_with(ci_profile(instance, id, engine, info));
}

API int nvmlGpuInstanceGetComputeInstanceProfileInfoV(struct handle *instance, unsigned id,
						      unsigned engine,
						      struct ci_profile_info_v2 *info)
{
	struct ci_profile_info i;
	char name[48];
	int code = enter(__func__, instance, GPU_INSTANCE);

	if (code)
		return code;
	if (info->version != VERSION(struct ci_profile_info_v2, 2))
		return leave_with(ARGUMENT_VERSION_MISMATCH);
	code = ci_profile(instance, id, engine, &i);
	if (code)
		return leave_with(code);
	*info = (struct ci_profile_info_v2){ info->version, i.id, i.slices, i.count, i.sm, i.ce,
					     i.dec, i.enc, i.jpeg, i.ofa, "" };
	sim_device_name(name, sizeof(name), gpu_of(instance), gi_of(instance), i.slices);
	snprintf(info->name, sizeof(info->name), "MIG %s", name);
	return leave_with(OK);
}

/* All places of a profile on this instance; 0 when it does not offer the profile. */
static unsigned places_of(const struct handle *instance, unsigned id, struct placement out[MAX_CI])
{
	unsigned width = sim_ci_width(gpu_of(instance), gi_of(instance), id);

	return width ? sim_ci_places(sim_profile(gpu_of(instance), gi_of(instance)), width, out) : 0;
}

API int nvmlGpuInstanceGetComputeInstanceRemainingCapacity(struct handle *instance, unsigned id,
							   unsigned *count)
{
	struct placement places[MAX_CI];
	unsigned n;
	int code = enter(__func__, instance, GPU_INSTANCE);

	if (code)
		return code;
	n = places_of(instance, id, places);
	if (!n)
		return leave_with(NOT_SUPPORTED);
	*count = 0;
	for (unsigned i = 0; i < n; i++)
		*count += sim_ci_fits(gi_of(instance), places[i]);
	return leave_with(OK);
}

API int nvmlGpuInstanceGetComputeInstancePossiblePlacements(struct handle *instance, unsigned id,
							    struct placement *out, unsigned *count)
{
	struct placement places[MAX_CI];
	unsigned n;
	int code = enter(__func__, instance, GPU_INSTANCE);

	if (code)
		return code;
	n = places_of(instance, id, places);
	if (!n)
		return leave_with(NOT_SUPPORTED);
	if (out && *count < n)
		return leave_with(INSUFFICIENT_SIZE);
	*count = n;
	if (out)
		memcpy(out, places, n * sizeof(*out));
	return leave_with(OK);
}

static int create_compute(struct handle *instance, unsigned id, struct placement at,
			  struct handle **out)
{
	struct gi *gi = gi_of(instance);
	unsigned ci = 0;

	while (ci < MAX_CI && gi->ci[ci].used)
		ci++;
	if (ci == MAX_CI || !sim_ci_fits(gi, at))
		return INSUFFICIENT_RESOURCES;
	gi->ci[ci] = (struct ci){ 1, id, at.start, at.size, ++sim->generation };
	sim->ci_created++;
	files_ci(sim, gpu_of(instance), instance->gi, ci, 1);
	*out = handle_for(COMPUTE_INSTANCE, instance->gpu, instance->gi, ci);
	return OK;
}

/* `at` NULL: the lowest place that is free. */
static int create_somewhere(const char *call, struct handle *instance, unsigned id,
			    const struct placement *at, struct handle **out)
{
	struct placement places[MAX_CI];
	unsigned n;
	int code = enter(call, instance, GPU_INSTANCE);

	if (code)
		return code;
	if (geteuid())
		return leave_with(NO_PERMISSION);
	n = places_of(instance, id, places);
	if (!n)
		return leave_with(NOT_SUPPORTED);
	code = at ? INVALID_ARGUMENT : INSUFFICIENT_RESOURCES;
	for (unsigned i = 0; i < n; i++) {
		if (at ? places[i].start == at->start && places[i].size == at->size :
			 sim_ci_fits(gi_of(instance), places[i]))
			return leave_with(create_compute(instance, id, places[i], out));
	}
	return leave_with(code);
}

API int nvmlGpuInstanceCreateComputeInstance(struct handle *instance, unsigned id,
					     struct handle **out)
{
	return create_somewhere(__func__, instance, id, NULL, out);
}

API int nvmlGpuInstanceCreateComputeInstanceWithPlacement(struct handle *instance, unsigned id,
							  const struct placement *at,
							  struct handle **out)
{
	if (!at)
		return INVALID_ARGUMENT;
	return create_somewhere(__func__, instance, id, at, out);
}

API int nvmlComputeInstanceDestroy(struct handle *compute)
{
	int code = enter(__func__, compute, COMPUTE_INSTANCE);

	if (code)
		return code == FAULT_LIE ? OK : code;
	if (geteuid())
		return leave_with(NO_PERMISSION);
	if (sim_holders(sim, compute->gpu, (int)compute->gi, (int)compute->ci))
		return leave_with(IN_USE);
	files_ci(sim, gpu_of(compute), compute->gi, compute->ci, 0);
	memset(ci_of(compute), 0, sizeof(struct ci));
	sim->ci_destroyed++;
	return leave_with(OK);
}

API int nvmlGpuInstanceGetComputeInstances(struct handle *instance, unsigned id,
					   struct handle **out, unsigned *count)
{
	int code = enter(__func__, instance, GPU_INSTANCE);

	if (code)
		return code;
	if (!sim_ci_width(gpu_of(instance), gi_of(instance), id))
		return leave_with(NOT_SUPPORTED);
	*count = 0;
	for (unsigned ci = 0; ci < MAX_CI; ci++)
		if (gi_of(instance)->ci[ci].used && gi_of(instance)->ci[ci].profile == id)
			out[(*count)++] =
				handle_for(COMPUTE_INSTANCE, instance->gpu, instance->gi, ci);
	return leave_with(OK);
}

API int nvmlGpuInstanceGetComputeInstanceById(struct handle *instance, unsigned ci,
					      struct handle **out)
{
	int code = enter(__func__, instance, GPU_INSTANCE);

	if (code)
		return code;
	if (ci >= MAX_CI || !gi_of(instance)->ci[ci].used)
		return leave_with(NOT_FOUND);
	*out = handle_for(COMPUTE_INSTANCE, instance->gpu, instance->gi, ci);
	return leave_with(OK);
}

struct compute_info {
	struct handle *device, *instance;
	unsigned id, profile;
	struct placement placement;
};

API int nvmlComputeInstanceGetInfo_v2(struct handle *compute, struct compute_info *info)
{
	int code = enter(__func__, compute, COMPUTE_INSTANCE);

	if (code)
		return code;
	*info = (struct compute_info){ handle_for(MIG_DEVICE, compute->gpu, compute->gi, compute->ci),
				       handle_for(GPU_INSTANCE, compute->gpu, compute->gi, 0),
				       compute->ci, ci_of(compute)->profile,
				       { ci_of(compute)->start, ci_of(compute)->width } };
	return leave_with(OK);
}
ALIAS(nvmlComputeInstanceGetInfo_v2)
int nvmlComputeInstanceGetInfo(struct handle *compute, struct compute_info *info);

/* -- MIG devices ------------------------------------------------------------------------------ */

/* In order of GPU instance id, then compute instance id. */
API int nvmlDeviceGetMigDeviceHandleByIndex(struct handle *device, unsigned index,
					    struct handle **out)
{
	int code = enter(__func__, device, GPU);

	if (code)
		return code;
	for (unsigned gi = 0; gi < MAX_GI; gi++)
		for (unsigned ci = 0; ci < MAX_CI; ci++)
			if (gpu_of(device)->gi[gi].used && gpu_of(device)->gi[gi].ci[ci].used &&
			    !index--) {
				*out = handle_for(MIG_DEVICE, device->gpu, gi, ci);
				return leave_with(OK);
			}
	return leave_with(NOT_FOUND);
}

API int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(struct handle *mig, struct handle **out)
{
	int code = enter(__func__, mig, MIG_DEVICE);

	if (code)
		return code;
	*out = handle_for(GPU, mig->gpu, 0, 0);
	return leave_with(OK);
}

API int nvmlDeviceGetGpuInstanceId(struct handle *mig, unsigned *id)
{
	int code = enter(__func__, mig, MIG_DEVICE);

	if (code)
		return code;
	*id = mig->gi;
	return leave_with(OK);
}

API int nvmlDeviceGetComputeInstanceId(struct handle *mig, unsigned *id)
{
	int code = enter(__func__, mig, MIG_DEVICE);

	if (code)
		return code;
	*id = mig->ci;
	return leave_with(OK);
}

struct attributes {
	unsigned sm, ce, dec, enc, jpeg, ofa, gi_slices, ci_slices;
	unsigned long long memory_mb;
};

API int nvmlDeviceGetAttributes_v2(struct handle *mig, struct attributes *a)
{
	const struct profile *p;
	unsigned width;
	int code = enter(__func__, mig, MIG_DEVICE);

	if (code)
		return code;
	p = sim_profile(gpu_of(mig), gi_of(mig));
	width = ci_of(mig)->width;
	*a = (struct attributes){ sim_ci_sm(gpu_of(mig), gi_of(mig), width), p->ce, p->dec, p->enc,
				  p->jpeg, p->ofa, p->slices, width, p->memory_mb };
	return leave_with(OK);
}
ALIAS(nvmlDeviceGetAttributes_v2)
int nvmlDeviceGetAttributes(struct handle *mig, struct attributes *a);
