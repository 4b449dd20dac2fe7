/*
 * fake-cuda: what a CUDA program is to the rest of the system.
 *
 *   fake-cuda [--seconds S] [--until-file PATH] [--report PATH] [--probe UUID]...
 *
 * Takes the first device of CUDA_VISIBLE_DEVICES, as CUDA does with MIG; opens the device files it
 * needs; counts as a compute process of the instance; and computes until told to stop. The nodes
 * have no driver behind them: ENXIO means that opening was allowed.
 *
 * Exit: 0 ended as told, 2 no usable device, 3 a device file may not be opened, 4 the instance
 * vanished under it, 5 a probed instance of somebody else could be opened.
 */
#include "sim.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t told;

static void tell(int number)
{
	(void)number;
	told = 1;
}

struct found {
	unsigned gpu;
	int gi, ci;
	uint64_t generation;
};

static int find(const struct state *state, const char *uuid, struct found *found)
{
	char text[64];

	for (unsigned g = 0; g < state->gpus; g++) {
		const struct gpu *gpu = &state->gpu[g];

		if (!strcmp(gpu->uuid, uuid) && !gpu->mig) {
			*found = (struct found){ g, -1, -1, 0 };
			return 1;
		}
		for (unsigned gi = 0; gi < MAX_GI; gi++)
			for (unsigned ci = 0; gpu->gi[gi].used && ci < MAX_CI; ci++) {
				sim_mig_uuid(text, gpu, gi, ci);
				if (gpu->gi[gi].ci[ci].used && !strcmp(text, uuid)) {
					*found = (struct found){ g, (int)gi, (int)ci,
								 gpu->gi[gi].generation };
					return 1;
				}
			}
	}
	return 0;
}

/* 0 when the file may be opened; otherwise errno. */
static int try_open(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd >= 0) {
		close(fd);
		return 0;
	}
	return errno == ENXIO || errno == ENODEV ? 0 : errno;
}

static void device_files(const struct state *state, const struct found *f, char files[4][160])
{
	const struct gpu *gpu = &state->gpu[f->gpu];

	memset(files, 0, 4 * 160);
	snprintf(files[0], 160, "%s/nvidiactl", state->dev_root);
	snprintf(files[1], 160, "%s/nvidia%u", state->dev_root, gpu->minor);
	if (f->gi < 0)
		return;
	snprintf(files[2], 160, "%s/nvidia-caps/nvidia-cap%u", state->dev_root,
		 sim_gi_minor(gpu, (unsigned)f->gi));
	snprintf(files[3], 160, "%s/nvidia-caps/nvidia-cap%u", state->dev_root,
		 sim_ci_minor(gpu, (unsigned)f->gi, (unsigned)f->ci));
}

/* 0, or the first file that may not be opened. */
static const char *blocked(const struct state *state, const struct found *f, int *why)
{
	static char files[4][160];

	device_files(state, f, files);
	for (unsigned i = 0; i < 4 && files[i][0]; i++) {
		*why = try_open(files[i]);
		if (*why)
			return files[i];
	}
	return NULL;
}

static int alive(const struct state *state, const struct found *f)
{
	const struct gi *gi;

	if (f->gi < 0)
		return !state->gpu[f->gpu].mig;
	gi = &state->gpu[f->gpu].gi[f->gi];
	return gi->used && gi->generation == f->generation && gi->ci[f->ci].used;
}

static void report(const struct state *state, const struct found *f, const char *uuid,
		   const char *path)
{
	const struct gpu *gpu = &state->gpu[f->gpu];
	FILE *out = path ? fopen(path, "a") : stdout;

	if (!out)
		return;
	fprintf(out, "{\"uuid\": \"%s\", \"gpu\": %u, \"gi\": %d, \"ci\": %d, \"profile\": \"%s\", "
		"\"pid\": %d}\n", uuid, f->gpu, f->gi, f->ci,
		f->gi < 0 ? "whole" : sim_profile(gpu, &gpu->gi[f->gi])->name, (int)getpid());
	fflush(out);
	if (path)
		fclose(out);
}

static int compute(struct state *state, const struct found *f, double seconds, const char *until)
{
	struct timespec begin, now, tick = { 0, 20 * 1000 * 1000 };

	clock_gettime(CLOCK_MONOTONIC, &begin);
	for (;;) {
		if (!alive(state, f)) {
			fprintf(stderr, "fake-cuda: the instance vanished under me\n");
			return 4;
		}
		clock_gettime(CLOCK_MONOTONIC, &now);
		if (told || (until && !access(until, F_OK)) ||
		    (seconds >= 0 && (double)(now.tv_sec - begin.tv_sec) +
			     (double)(now.tv_nsec - begin.tv_nsec) / 1e9 >= seconds))
			return 0;
		nanosleep(&tick, NULL);
	}
}

static int probe(const struct state *state, const char *uuid)
{
	struct found other;
	const char *file;
	int why;

	if (!find(state, uuid, &other)) {
		printf("probe %s: not there\n", uuid);
		return 0;
	}
	file = blocked(state, &other, &why);
	if (file)
		printf("probe %s: denied at %s\n", uuid, file);
	else
		printf("probe %s: ALLOWED\n", uuid);
	return file ? 0 : 5;
}

static int run(struct state *state, const char *uuid, double seconds, const char *until,
	       const char *path)
{
	struct found mine;
	const char *file;
	int why, code;

	if (!find(state, uuid, &mine)) {
		fprintf(stderr, "fake-cuda: no CUDA-capable device is detected: "
			"CUDA_VISIBLE_DEVICES names %s, which is no MIG device or GPU here\n", uuid);
		return 2;
	}
	file = blocked(state, &mine, &why);
	if (file) {
		fprintf(stderr, "fake-cuda: cannot open %s: %s\n", file, strerror(why));
		return 3;
	}
	sim_lock();
	sim_attach(state, getpid(), mine.gpu, mine.gi, mine.ci);
	sim_unlock();
	report(state, &mine, uuid, path);
	code = compute(state, &mine, seconds, until);
	sim_lock();
	sim_detach(state, getpid());
	sim_unlock();
	return code;
}

int main(int argc, char **argv)
{
	const char *visible = getenv("CUDA_VISIBLE_DEVICES"), *until = NULL, *path = NULL;
	struct state *state = sim_open(sim_path());
	double seconds = -1;
	char uuid[128];
	int code = 0, probes = 0;

	signal(SIGTERM, tell);
	signal(SIGINT, tell);
	if (!state) {
		fprintf(stderr, "fake-cuda: the driver is not loaded\n");
		return 2;
	}
	for (int i = 1; i + 1 < argc; i += 2) {
		if (!strcmp(argv[i], "--seconds"))
			seconds = atof(argv[i + 1]);
		else if (!strcmp(argv[i], "--until-file"))
			until = argv[i + 1];
		else if (!strcmp(argv[i], "--report"))
			path = argv[i + 1];
		else if (!strcmp(argv[i], "--probe")) {
			probes = 1;
			code |= probe(state, argv[i + 1]);
		}
	}
	if (probes)
		return code;
	if (!visible || !*visible) {
		fprintf(stderr, "fake-cuda: no CUDA-capable device is detected: "
			"CUDA_VISIBLE_DEVICES is empty\n");
		return 2;
	}
	snprintf(uuid, sizeof(uuid), "%.*s", (int)strcspn(visible, ","), visible);
	return run(state, uuid, seconds, until, path);
}
