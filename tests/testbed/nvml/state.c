/* The mapped state, its lock, and the rules that NVML's answers follow. */
#include "sim.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tables.h"

static int lock_fd = -1;

const char *sim_path(void)
{
	const char *path = getenv("NVML_SIM_STATE");

	return path && *path ? path : DEFAULT_STATE;
}

static struct state *map(int fd)
{
	void *at = mmap(NULL, sizeof(struct state), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (at == MAP_FAILED) {
		close(fd);
		return NULL;
	}
	lock_fd = fd;
	return at;
}

struct state *sim_open(const char *path)
{
	struct stat info;
	int fd = open(path, O_RDWR | O_CLOEXEC);
	struct state *state;

	if (fd < 0)
		return NULL;
	if (fstat(fd, &info) || info.st_size != (off_t)sizeof(struct state)) {
		close(fd);
		return NULL;
	}
	state = map(fd);
	if (state && (state->magic != SIM_MAGIC || state->size != sizeof(struct state)))
		return NULL;
	return state;
}

struct state *sim_create(const char *path)
{
	struct state *state;
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);

	/* Everybody may count as a process; that only root changes instances is checked by the call. */
	if (fd < 0 || fchmod(fd, 0666) || ftruncate(fd, sizeof(struct state)))
		return NULL;
	state = map(fd);
	if (!state)
		return NULL;
	memset(state, 0, sizeof(*state));
	state->magic = SIM_MAGIC;
	state->size = sizeof(*state);
	return state;
}

void sim_close(struct state *state)
{
	munmap(state, sizeof(*state));
	close(lock_fd);
	lock_fd = -1;
}

void sim_lock(void)
{
	flock(lock_fd, LOCK_EX);
}

void sim_unlock(void)
{
	flock(lock_fd, LOCK_UN);
}

const struct model *sim_model(const struct gpu *gpu)
{
	return &models[gpu->model];
}

int sim_find_model(const char *name)
{
	for (unsigned i = 0; i < sizeof(models) / sizeof(models[0]); i++)
		if (!strcmp(models[i].name, name))
			return (int)i;
	return -1;
}

const struct profile *sim_profile(const struct gpu *gpu, const struct gi *gi)
{
	return &sim_model(gpu)->profile[gi->profile];
}

unsigned sim_size(const struct gpu *gpu, const struct gi *gi)
{
	return sim_profile(gpu, gi)->place[0].size;
}

/*
 * The GI id follows from the share of memory: full 0, halves 1 and 2, quarters 3 to 6, eighths 7 to
 * 14 (open kernel module, kmigmgr_ga100.c). On some boards NVML's start is turned by half a GPU.
 */
int sim_gi_id(const struct gpu *gpu, unsigned start, unsigned size)
{
	unsigned parts = sim_model(gpu)->memory_slices / size;
	unsigned at = start / size;

	if (gpu->flipped)
		at = (at + parts / 2) % parts;
	switch (parts) {
	case 1:
		return 0;
	case 2:
		return 1 + (int)at;
	case 4:
		return 3 + (int)at;
	default:
		return 7 + (int)at;
	}
}

static int is_media(const struct profile *profile)
{
	return strstr(profile->name, "+me") != NULL;
}

/* Both must hold: no memory slice is shared, and the compute slices are enough. */
int sim_fits(const struct gpu *gpu, const struct profile *profile, unsigned start, unsigned size)
{
	unsigned slices = profile->slices, same = 0;

	for (unsigned i = 0; i < MAX_GI; i++) {
		const struct gi *gi = &gpu->gi[i];
		const struct profile *other;

		if (!gi->used)
			continue;
		other = sim_profile(gpu, gi);
		if (gi->start < start + size && start < gi->start + sim_size(gpu, gi))
			return 0;
		slices += other->slices;
		same += other->id == profile->id;
		if (is_media(profile) && is_media(other))
			return 0;
	}
	return slices <= sim_model(gpu)->compute_slices && same < profile->max;
}

/* nv-caps.c of the open kernel module: 135 minors a GPU, 9 a GPU instance. */
unsigned sim_gi_minor(const struct gpu *gpu, unsigned gi)
{
	return 3 + 135 * gpu->minor + 9 * gi;
}

unsigned sim_ci_minor(const struct gpu *gpu, unsigned gi, unsigned ci)
{
	return sim_gi_minor(gpu, gi) + 1 + ci;
}

/* A name-based UUID whose version nibble is 5, as the driver's. The hash need not be SHA-1. */
void sim_uuid(char out[64], const char *prefix, const char *seed, unsigned gi, unsigned ci)
{
	char text[256];
	uint64_t half[2];

	snprintf(text, sizeof(text), "%s/%u/%u", seed, gi, ci);
	for (unsigned i = 0; i < 2; i++) {
		half[i] = 14695981039346656037ull + i * 1099511628211ull * 7919;
		for (const char *c = text; *c; c++)
			half[i] = (half[i] ^ (unsigned char)*c) * 1099511628211ull;
		half[i] ^= half[i] >> 29;
		half[i] *= 0xbf58476d1ce4e5b9ull;
		half[i] ^= half[i] >> 32;
	}
	half[0] = (half[0] & ~0xf000ull) | 0x5000ull;
	half[1] = (half[1] & ~(3ull << 62)) | (2ull << 62);
	snprintf(out, 64, "%s%08x-%04x-%04x-%04x-%012llx", prefix, (unsigned)(half[0] >> 32),
		 (unsigned)(half[0] >> 16 & 0xffff), (unsigned)(half[0] & 0xffff),
		 (unsigned)(half[1] >> 48), (unsigned long long)(half[1] & 0xffffffffffffull));
}

void sim_mig_uuid(char out[64], const struct gpu *gpu, unsigned gi, unsigned ci)
{
	sim_uuid(out, "MIG-", gpu->uuid, gi, ci);
}
