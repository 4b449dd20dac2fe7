/* NVML's MIG calls on a GPU: mode, profiles, placements, GPU instances. */
#include "api.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GPU_INSTANCE_PROFILE_COUNT 0x12

/* -- mode ------------------------------------------------------------------------------------- */

API int nvmlDeviceGetMigMode(struct handle *device, unsigned *current, unsigned *pending)
{
	int code = enter(__func__, device, GPU);

	if (code)
		return code;
	if (!sim_model(gpu_of(device))->memory_slices)
		return leave_with(NOT_SUPPORTED);
	*current = (unsigned)gpu_of(device)->mig;
	*pending = (unsigned)gpu_of(device)->pending;
	return leave_with(OK);
}

/* Measured on a cloud A100 80GB with driver 580; no figure was published for resetless GPUs. */
#define RESET_MS 6460

/*
 * Returns OK also when the mode only becomes pending: the second code says why (the GPU is in use,
 * or a virtual machine must be rebooted). Nothing is ever
 * destroyed. Ampere stores the mode on the board and resets the idle GPU; later ones do not reset.
 */
API int nvmlDeviceSetMigMode(struct handle *device, unsigned mode, int *activation)
{
	struct gpu *gpu;
	int code = enter(__func__, device, GPU);

	if (code)
		return code;
	gpu = gpu_of(device);
	if (!sim_model(gpu)->memory_slices)
		return leave_with(NOT_SUPPORTED);
	if (mode > 1 || !activation)
		return leave_with(INVALID_ARGUMENT);
	if (geteuid())
		return leave_with(NO_PERMISSION);
	gpu->pending = (int)mode;
	*activation = OK;
	if (gpu->pending == gpu->mig)
		return leave_with(OK);
	if (sim_has_instances(gpu) || sim_holders(sim, device->gpu, -1, -1)) {
		*activation = IN_USE;
		return leave_with(OK);
	}
	if (sim_model(gpu)->needs_reset && gpu->passthrough) {
		*activation = RESET_REQUIRED;
		return leave_with(OK);
	}
	if (sim_model(gpu)->needs_reset)
		pause_ms(RESET_MS);
	gpu->mig = gpu->pending;
	sim->mode_changes++;
	return leave_with(OK);
}

API int nvmlDeviceIsMigDeviceHandle(struct handle *device, unsigned *is)
{
	int code = enter(__func__, device, DEVICE);

	if (code)
		return code;
	*is = device->kind == MIG_DEVICE;
	return leave_with(OK);
}

API int nvmlDeviceGetMaxMigDeviceCount(struct handle *device, unsigned *count)
{
	int code = enter(__func__, device, GPU);

	if (code)
		return code;
	*count = gpu_of(device)->mig ? sim_model(gpu_of(device))->compute_slices : 0;
	return leave_with(OK);
}

/* -- profiles --------------------------------------------------------------------------------- */

int mode_independent_queries(void)
{
	return atoi(sim->driver) > 535;
}

/* Whether the driver talks about profiles now. */
static int profiles_known(const struct gpu *gpu)
{
	return sim_model(gpu)->memory_slices && (gpu->mig || mode_independent_queries());
}

static const struct profile *by_number(const struct gpu *gpu, unsigned number)
{
	const struct model *model = sim_model(gpu);

	for (unsigned i = 0; profiles_known(gpu) && i < model->profiles; i++)
		if (model->profile[i].number == number)
			return &model->profile[i];
	return NULL;
}

static const struct profile *by_id(const struct gpu *gpu, unsigned id)
{
	const struct model *model = sim_model(gpu);

	for (unsigned i = 0; profiles_known(gpu) && i < model->profiles; i++)
		if (model->profile[i].id == id)
			return &model->profile[i];
	return NULL;
}

struct profile_info {
	unsigned id, p2p, slices, count, sm, ce, dec, enc, jpeg, ofa;
	unsigned long long memory_mb;
};

struct profile_info_v2 {
	unsigned version, id, p2p, slices, count, sm, ce, dec, enc, jpeg, ofa;
	unsigned long long memory_mb;
	char name[96];
};

struct profile_info_v3 {
	unsigned version, id, slices, count, sm, ce, dec, enc, jpeg, ofa;
	unsigned long long memory_mb;
	char name[96];
	unsigned capabilities;
};

API int nvmlDeviceGetGpuInstanceProfileInfo(struct handle *device, unsigned number,
					    struct profile_info *info)
{
	const struct profile *p;
	int code = enter(__func__, device, GPU);

	if (code)
		return code;
	if (number >= GPU_INSTANCE_PROFILE_COUNT)
		return leave_with(INVALID_ARGUMENT);
	p = by_number(gpu_of(device), number);
	if (!p)
		return leave_with(NOT_SUPPORTED);
	*info = (struct profile_info){ p->id, 0, p->slices, p->max, p->sm, p->ce, p->dec,
				       p->enc, p->jpeg, p->ofa, p->memory_mb };
	return leave_with(OK);
}

/* NVML_GPU_INSTANCE_PROFILE_CAPS_GFX */
#define CAN_GRAPHICS 2

static int profile_info(const struct gpu *gpu, const struct profile *p,
			struct profile_info_v2 *info)
{
	char name[96];

	if (!p)
		return NOT_SUPPORTED;
	snprintf(name, sizeof(name), "MIG %s", sim_profile_name(gpu, p));
	if (info->version == VERSION(struct profile_info_v2, 2)) {
		*info = (struct profile_info_v2){ info->version, p->id, 0, p->slices, p->max,
						  p->sm, p->ce, p->dec, p->enc, p->jpeg, p->ofa,
						  p->memory_mb, "" };
		strcpy(info->name, name);
		return OK;
	}
	if (info->version == VERSION(struct profile_info_v3, 3)) {
		struct profile_info_v3 *v3 = (void *)info;

		*v3 = (struct profile_info_v3){ info->version, p->id, p->slices, p->max, p->sm,
						p->ce, p->dec, p->enc, p->jpeg, p->ofa,
						p->memory_mb, "",
						strstr(p->name, "+gfx") ? CAN_GRAPHICS : 0 };
		strcpy(v3->name, name);
		return OK;
	}
	return ARGUMENT_VERSION_MISMATCH;
}

API int nvmlDeviceGetGpuInstanceProfileInfoV(struct handle *device, unsigned number,
					     struct profile_info_v2 *info)
{
	int code = enter(__func__, device, GPU);

	if (code)
		return code;
	if (number >= GPU_INSTANCE_PROFILE_COUNT)
		return leave_with(INVALID_ARGUMENT);
	return leave_with(profile_info(gpu_of(device), by_number(gpu_of(device), number), info));
}

API int nvmlDeviceGetGpuInstanceProfileInfoByIdV(struct handle *device, unsigned id,
						 struct profile_info_v2 *info)
{
	int code = enter(__func__, device, GPU);

	return code ? code : leave_with(profile_info(gpu_of(device), by_id(gpu_of(device), id), info));
}

/* All legal placements, whatever is there now. */
API int nvmlDeviceGetGpuInstancePossiblePlacements_v2(struct handle *device, unsigned id,
						      struct placement *out, unsigned *count)
{
	const struct profile *p;
	int code = enter(__func__, device, GPU);

	if (code)
		return code;
	p = by_id(gpu_of(device), id);
	if (!p)
		return leave_with(NOT_SUPPORTED);
	if (out && *count < p->places)
		return leave_with(INSUFFICIENT_SIZE);
	*count = p->places;
	if (out)
		memcpy(out, p->place, p->places * sizeof(*out));
	return leave_with(OK);
}

ALIAS(nvmlDeviceGetGpuInstancePossiblePlacements_v2)
int nvmlDeviceGetGpuInstancePossiblePlacements(struct handle *device, unsigned id,
					       struct placement *out, unsigned *count);

static int mig_profile(struct handle *device, unsigned id, const struct profile **p)
{
	if (!gpu_of(device)->mig)
		return NOT_SUPPORTED;
	*p = by_id(gpu_of(device), id);
	return *p ? OK : NOT_SUPPORTED;
}

API int nvmlDeviceGetGpuInstanceRemainingCapacity(struct handle *device, unsigned id, unsigned *n)
{
	const struct profile *p;
	struct gpu trial;
	int code = enter(__func__, device, GPU);

	if (code)
		return code;
	code = mig_profile(device, id, &p);
	if (code)
		return leave_with(code);
	trial = *gpu_of(device);
	*n = 0;
	for (unsigned i = 0; i < p->places; i++) {
		struct gi *gi = &trial.gi[sim_gi_id(&trial, p->place[i].start, p->place[i].size)];

		if (!sim_fits(&trial, p, p->place[i].start, p->place[i].size))
			continue;
		gi->used = 1;
		gi->profile = (unsigned)(p - sim_model(&trial)->profile);
		gi->start = p->place[i].start;
		(*n)++;
	}
	return leave_with(OK);
}

/* -- GPU instances ---------------------------------------------------------------------------- */

/*
 * Published times of creating an instance with its compute instance, and of destroying it, in
 * milliseconds by compute slices (constants of RL_MIG_scheduler, arXiv 2507.13601; sizes that it
 * does not list are interpolated). Newer models take Hopper's.
 */
static void pause_for(const struct gpu *gpu, unsigned slices, int destroying)
{
	static const unsigned a30[] = { 110, 120, 120, 130, 130, 130, 130 };
	static const unsigned ampere[] = { 160, 170, 200, 210, 220, 230, 240 };
	static const unsigned hopper[] = { 160, 210, 330, 380, 390, 400, 420 };
	const struct model *model = sim_model(gpu);
	const unsigned *create = hopper;
	unsigned destroy = 240;

	if (!strcmp(model->arch, "ampere")) {
		create = model->memory_slices == 4 ? a30 : ampere;
		destroy = model->memory_slices == 4 ? 100 : 210;
	}
	pause_ms(destroying ? destroy : create[slices - 1]);
}

static int create_at(struct handle *device, const struct profile *p, struct placement at,
		     struct handle **out)
{
	struct gpu *gpu = gpu_of(device);
	unsigned id = (unsigned)sim_gi_id(gpu, at.start, at.size);
	struct gi *gi = &gpu->gi[id];

	pause_for(gpu, p->slices, 0);
	memset(gi, 0, sizeof(*gi));
	gi->used = 1;
	gi->profile = (unsigned)(p - sim_model(gpu)->profile);
	gi->start = at.start;
	gi->generation = ++sim->generation;
	sim->created++;
	files_gi(sim, gpu, id, 1);
	*out = handle_for(GPU_INSTANCE, device->gpu, id, 0);
	return OK;
}

static int may_create(struct handle *device, unsigned id, const struct profile **p)
{
	if (geteuid())
		return NO_PERMISSION;
	/* The driver refuses the first instance while somebody holds the GPU as a whole. */
	if (!sim_has_instances(gpu_of(device)) && sim_holders(sim, device->gpu, -1, -1))
		return IN_USE;
	return mig_profile(device, id, p);
}

API int nvmlDeviceCreateGpuInstanceWithPlacement(struct handle *device, unsigned id,
						 const struct placement *at, struct handle **out)
{
	const struct profile *p;
	int code = enter(__func__, device, GPU);

	if (code)
		return code;
	code = may_create(device, id, &p);
	if (code)
		return leave_with(code);
	for (unsigned i = 0; i < p->places; i++) {
		if (p->place[i].start != at->start || p->place[i].size != at->size)
			continue;
		if (!sim_fits(gpu_of(device), p, at->start, at->size))
			return leave_with(INSUFFICIENT_RESOURCES);
		return leave_with(create_at(device, p, *at, out));
	}
	return leave_with(INVALID_ARGUMENT);
}

/* The driver's own choice of place: outputs of real tools give this order of starts. */
static const unsigned *preferred(const struct model *model, const struct profile *p)
{
	static const unsigned eighths[] = { 6, 4, 5, 0, 1, 2, 3 };
	static const unsigned quarters[] = { 4, 0, 2, 6 };
	static const unsigned halves[] = { 4, 0 };

	if (model->memory_slices != 8)
		return NULL;
	switch (p->place[0].size) {
	case 1:
		return eighths;
	case 2:
		return quarters;
	case 4:
		return p->places == 2 ? halves : NULL;
	default:
		return NULL;
	}
}

API int nvmlDeviceCreateGpuInstance(struct handle *device, unsigned id, struct handle **out)
{
	const struct profile *p;
	const unsigned *order;
	int code = enter(__func__, device, GPU);

	if (code)
		return code;
	code = may_create(device, id, &p);
	if (code)
		return leave_with(code);
	order = preferred(sim_model(gpu_of(device)), p);
	for (unsigned i = 0; i < p->places; i++) {
		struct placement at = { order ? order[i] : p->place[i].start, p->place[0].size };

		if (sim_fits(gpu_of(device), p, at.start, at.size))
			return leave_with(create_at(device, p, at, out));
	}
	return leave_with(INSUFFICIENT_RESOURCES);
}

API int nvmlGpuInstanceDestroy(struct handle *instance)
{
	struct gpu *gpu;
	int code = enter(__func__, instance, GPU_INSTANCE);

	if (code)
		return code == FAULT_LIE ? OK : code;
	if (geteuid())
		return leave_with(NO_PERMISSION);
	gpu = gpu_of(instance);
	for (unsigned ci = 0; ci < MAX_CI; ci++)
		if (gi_of(instance)->ci[ci].used)
			return leave_with(IN_USE);
	if (sim_holders(sim, instance->gpu, (int)instance->gi, -1))
		return leave_with(IN_USE);
	pause_for(gpu, 1, 1);
	files_gi(sim, gpu, instance->gi, 0);
	memset(gi_of(instance), 0, sizeof(struct gi));
	sim->destroyed++;
	return leave_with(OK);
}

API int nvmlDeviceGetGpuInstances(struct handle *device, unsigned id, struct handle **out,
				  unsigned *count)
{
	const struct profile *p;
	int code = enter(__func__, device, GPU);

	if (code)
		return code;
	code = mig_profile(device, id, &p);
	if (code)
		return leave_with(code);
	*count = 0;
	for (unsigned gi = 0; gi < MAX_GI; gi++)
		if (gpu_of(device)->gi[gi].used &&
		    sim_profile(gpu_of(device), &gpu_of(device)->gi[gi]) == p)
			out[(*count)++] = handle_for(GPU_INSTANCE, device->gpu, gi, 0);
	return leave_with(OK);
}

API int nvmlDeviceGetGpuInstanceById(struct handle *device, unsigned id, struct handle **out)
{
	int code = enter(__func__, device, GPU);

	if (code)
		return code;
	if (!gpu_of(device)->mig)
		return leave_with(NOT_SUPPORTED);
	if (id >= MAX_GI || !gpu_of(device)->gi[id].used)
		return leave_with(NOT_FOUND);
	*out = handle_for(GPU_INSTANCE, device->gpu, id, 0);
	return leave_with(OK);
}

struct instance_info {
	struct handle *device;
	unsigned id, profile;
	struct placement placement;
};

API int nvmlGpuInstanceGetInfo(struct handle *instance, struct instance_info *info)
{
	int code = enter(__func__, instance, GPU_INSTANCE);

	if (code)
		return code;
	*info = (struct instance_info){ handle_for(GPU, instance->gpu, 0, 0), instance->gi,
					sim_profile(gpu_of(instance), gi_of(instance))->id,
					{ gi_of(instance)->start,
					  sim_size(gpu_of(instance), gi_of(instance)) } };
	return leave_with(OK);
}
