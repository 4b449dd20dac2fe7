/* The mapped state, its lock, and the rules that NVML's answers follow. */
#include "sim.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "tables.h"

static int lock_fd = -1;
static pid_t lock_owner;
static pthread_mutex_t threads = PTHREAD_MUTEX_INITIALIZER;

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
	if (lock_fd >= 0)
		close(lock_fd);
	lock_fd = fd;
	lock_owner = getpid();
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
	if (state && (state->magic != SIM_MAGIC || state->size != sizeof(struct state))) {
		munmap(state, sizeof(*state));
		return NULL;
	}
	return state;
}

static const char *unpublished(const char *path)
{
	static char name[PATH_MAX];

	snprintf(name, sizeof(name), "%s.new", path);
	return name;
}

/* A new file: whoever has the old one mapped must not see it shrink under him (SIGBUS). */
struct state *sim_create(const char *path)
{
	struct state *state;
	int fd;

	files_parents(path);
	unlink(unpublished(path));
	fd = open(unpublished(path), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);

	/* Everybody may count as a process; that only root changes instances is checked by the call. */
	if (fd < 0 || fchmod(fd, 0666) || ftruncate(fd, sizeof(struct state)))
		return NULL;
	state = map(fd);
	if (!state)
		return NULL;
	state->magic = SIM_MAGIC;
	state->size = sizeof(*state);
	return state;
}

int sim_publish(const char *path)
{
	return rename(unpublished(path), path);
}

void sim_close(struct state *state)
{
	munmap(state, sizeof(*state));
	close(lock_fd);
	lock_fd = -1;
}

/* flock belongs to the open file, which a forked child shares: the child opens its own. */
static void own_lock_after_fork(void)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", lock_fd);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return;
	close(lock_fd);
	lock_fd = fd;
	lock_owner = getpid();
}

static void child_after_fork(void)
{
	/* Another thread of the parent may have held it. */
	threads = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
}

__attribute__((constructor)) static void watch_forks(void)
{
	pthread_atfork(NULL, NULL, child_after_fork);
}

/* Among threads by the mutex, among processes by flock: each is blind to the other's kind. */
void sim_lock(void)
{
	pthread_mutex_lock(&threads);
	if (lock_owner != getpid())
		own_lock_after_fork();
	while (flock(lock_fd, LOCK_EX) && errno == EINTR)
		;
}

void sim_unlock(void)
{
	flock(lock_fd, LOCK_UN);
	pthread_mutex_unlock(&threads);
}

uint64_t sim_now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
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

	if (gpu->flipped && sim_model(gpu)->memory_slices == 8)
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

int sim_has_instances(const struct gpu *gpu)
{
	for (unsigned gi = 0; gi < MAX_GI; gi++)
		if (gpu->gi[gi].used)
			return 1;
	return 0;
}

/* 3g.20gb, or 1c.3g.20gb when the compute instance is only a part. */
/* A renamed profile has a gigabyte more in its name: 1g.6gb for 1g.5gb. */
const char *sim_profile_name(const struct gpu *gpu, const struct profile *profile)
{
	static _Thread_local char text[32];
	unsigned slices, gigabytes;
	int length = 0;

	if (!gpu->renamed || sscanf(profile->name, "%ug.%u%n", &slices, &gigabytes, &length) != 2)
		return profile->name;
	snprintf(text, sizeof(text), "%ug.%u%s", slices, gigabytes + 1, profile->name + length);
	return text;
}

void sim_device_name(char *out, size_t size, const struct gpu *gpu, const struct gi *gi,
		     unsigned width)
{
	const struct profile *p = sim_profile(gpu, gi);

	if (width == p->slices)
		snprintf(out, size, "%s", sim_profile_name(gpu, p));
	else
		snprintf(out, size, "%uc.%s", width, sim_profile_name(gpu, p));
}

/* Compute slices of a compute instance profile here; 0 when the instance does not offer it. */
unsigned sim_ci_width(const struct gpu *gpu, const struct gi *gi, unsigned id)
{
	/* By NVML_COMPUTE_INSTANCE_PROFILE_*; 7 is the one of a GPU instance with double memory. */
	static const unsigned widths[] = { 1, 2, 3, 4, 7, 0, 0, 1, 0 };
	const struct profile *p = sim_profile(gpu, gi);
	unsigned width;

	if (id >= sizeof(widths) / sizeof(widths[0]))
		return 0;
	width = widths[id];
	if (p->double_memory)
		return id == 7;
	if (id == 7 || width > p->slices)
		return 0;
	/* -lcip of real GPUs has no 3c on a 4g. */
	if (p->slices == 4 && width == 3)
		return 0;
	return width;
}

/* A part has so many slices' SMs; the whole has all, also those left over by the division. */
unsigned sim_ci_sm(const struct gpu *gpu, const struct gi *gi, unsigned width)
{
	const struct profile *p = sim_profile(gpu, gi);
	const struct model *model = sim_model(gpu);

	if (width == p->slices)
		return p->sm;
	for (unsigned i = 0; i < model->profiles; i++)
		if (model->profile[i].number == 0)
			return model->profile[i].sm * width;
	return p->sm / p->slices * width;
}

/*
 * Starts in compute slices, aligned so that the counts are those of real -lcip outputs (7g: seven
 * 1c, three 2c, two 3c, one 4c).
 */
unsigned sim_ci_places(const struct profile *p, unsigned width, struct placement out[MAX_CI])
{
	unsigned step = width > 2 ? 4 : width, n = 0;

	for (unsigned start = 0; start + width <= p->slices; start += step)
		out[n++] = (struct placement){ start, width };
	return n;
}

int sim_ci_fits(const struct gi *gi, struct placement at)
{
	for (unsigned i = 0; i < MAX_CI; i++)
		if (gi->ci[i].used && gi->ci[i].start < at.start + at.size &&
		    at.start < gi->ci[i].start + gi->ci[i].width)
			return 0;
	return 1;
}
