/*
 * fake-cuda: what a CUDA program is to the rest of the system.
 *
 *   fake-cuda [--seconds S] [--until-file PATH] [--report PATH] [--probe UUID]...
 *
 * Takes the first device of CUDA_VISIBLE_DEVICES, as CUDA does with MIG; opens the device files it
 * needs; counts as a compute process of the instance; and computes until told to stop. The nodes
 * have no driver behind them: ENXIO means that opening was allowed.
 *
 * --probe tries the files of other instances instead of computing, and says of each whether it may
 * be opened. An instance counts as open when all its files are: CUDA needs every one.
 *
 * Exit: 0 ended as told, 1 wrong usage, 2 no usable device, 3 a device file may not be opened,
 * 4 the instance vanished under it, 5 a probed instance of somebody else could be opened.
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

#define FILES 4
#define PATH_LENGTH (ROOT_LENGTH + 64)

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

static int find_instance(const struct state *state, unsigned g, const char *uuid, struct found *f)
{
	const struct gpu *gpu = &state->gpu[g];
	char text[64];

	for (unsigned gi = 0; gi < MAX_GI; gi++)
		for (unsigned ci = 0; gpu->gi[gi].used && ci < MAX_CI; ci++) {
			sim_mig_uuid(text, gpu, gi, ci);
			if (!gpu->gi[gi].ci[ci].used || strcmp(text, uuid))
				continue;
			*f = (struct found){ g, (int)gi, (int)ci, gpu->gi[gi].ci[ci].generation };
			return 1;
		}
	return 0;
}

static int is_index(const char *word)
{
	return *word && strspn(word, "0123456789") == strlen(word);
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

/* CUDA counts the GPUs that the process may open: with devices constrained, "0" is a job's first. */
static int is_ordinal_of(const struct state *state, const char *word, unsigned g)
{
	char path[PATH_LENGTH];
	int before = 0;

	for (unsigned other = 0; other <= g; other++) {
		snprintf(path, sizeof(path), "%s/nvidia%u", state->dev_root, state->gpu[other].minor);
		if (try_open(path)) {
			if (other == g)
				return 0;
		} else if (other < g) {
			before++;
		}
	}
	return atoi(word) == before;
}

/* NULL when found; else what is wrong with the word. */
static const char *find(const struct state *state, const char *word, struct found *found)
{
	for (unsigned g = 0; g < state->gpus; g++) {
		const struct gpu *gpu = &state->gpu[g];

		if (find_instance(state, g, word, found))
			return NULL;
		if (is_index(word) ? !is_ordinal_of(state, word, g) : strcmp(gpu->uuid, word) != 0)
			continue;
		/* Real CUDA takes a GPU's first MIG device then; nobody should rely on that. */
		if (gpu->mig)
			return "is not a MIG UUID";
		*found = (struct found){ g, -1, -1, 0 };
		return NULL;
	}
	return "names no MIG device or GPU of this node";
}

static void device_files(const struct state *state, const struct found *f,
			 char files[FILES][PATH_LENGTH])
{
	const struct gpu *gpu = &state->gpu[f->gpu];

	memset(files, 0, FILES * sizeof(files[0]));
	snprintf(files[0], PATH_LENGTH, "%s/nvidiactl", state->dev_root);
	snprintf(files[1], PATH_LENGTH, "%s/nvidia%u", state->dev_root, gpu->minor);
	if (f->gi < 0)
		return;
	snprintf(files[2], PATH_LENGTH, "%s/nvidia-caps/nvidia-cap%u", state->dev_root,
		 sim_gi_minor(gpu, (unsigned)f->gi));
	snprintf(files[3], PATH_LENGTH, "%s/nvidia-caps/nvidia-cap%u", state->dev_root,
		 sim_ci_minor(gpu, (unsigned)f->gi, (unsigned)f->ci));
}

/* 0, or the first file that may not be opened. */
static const char *blocked(const struct state *state, const struct found *f, int *why)
{
	static char files[FILES][PATH_LENGTH];

	device_files(state, f, files);
	for (unsigned i = 0; i < FILES && files[i][0]; i++) {
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
	return gi->used && gi->ci[f->ci].used && gi->ci[f->ci].generation == f->generation;
}

static void report(const struct state *state, const struct found *f, const char *path)
{
	const struct gpu *gpu = &state->gpu[f->gpu];
	char files[FILES][PATH_LENGTH], name[64] = "whole", uuid[64];
	FILE *out = path ? fopen(path, "a") : stdout;

	if (!out) {
		fprintf(stderr, "fake-cuda: cannot write %s: %s\n", path, strerror(errno));
		return;
	}
	if (f->gi < 0)
		strcpy(uuid, gpu->uuid);
	else
		sim_mig_uuid(uuid, gpu, (unsigned)f->gi, (unsigned)f->ci);
	if (f->gi >= 0)
		sim_device_name(name, sizeof(name), gpu, &gpu->gi[f->gi],
				gpu->gi[f->gi].ci[f->ci].width);
	fprintf(out, "{\"uuid\": \"%s\", \"gpu\": %u, \"gi\": %d, \"ci\": %d, \"profile\": \"%s\", "
		"\"pid\": %d, \"files\": [", uuid, f->gpu, f->gi, f->ci, name, (int)getpid());
	device_files(state, f, files);
	for (unsigned i = 0; i < FILES && files[i][0]; i++)
		fprintf(out, "%s\"%s\"", i ? ", " : "", files[i]);
	fprintf(out, "]}\n");
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
			fprintf(stderr, "fake-cuda: instance vanished\n");
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

/* 5 when it could be used. */
static int probe(const struct state *state, const char *uuid)
{
	char files[FILES][PATH_LENGTH];
	const char *denied = NULL;
	struct found other;
	const char *problem = find(state, uuid, &other);

	if (problem) {
		printf("probe %s: not there: it %s\n", uuid, problem);
		return 0;
	}
	device_files(state, &other, files);
	for (unsigned i = 0; i < FILES && files[i][0]; i++) {
		int why = try_open(files[i]);

		printf("probe %s: %s %s\n", uuid, files[i], why ? strerror(why) : "allowed");
		if (why && !denied)
			denied = files[i];
	}
	if (denied)
		printf("probe %s: denied at %s\n", uuid, denied);
	else
		printf("probe %s: ALLOWED\n", uuid);
	return denied ? 0 : 5;
}

/* 0 when this process counts as one of the instance; found and entered under one lock. */
static int attach(struct state *state, const struct found *mine)
{
	int failed;

	sim_lock();
	failed = !alive(state, mine) ||
		 sim_attach(state, getpid(), mine->gpu, mine->gi, mine->ci, 0);
	sim_unlock();
	return failed;
}

static int run(struct state *state, const char *word, double seconds, const char *until,
	       const char *path)
{
	const char *file, *problem;
	struct found mine;
	int why, code;

	problem = find(state, word, &mine);
	if (problem) {
		fprintf(stderr, "fake-cuda: no CUDA-capable device is detected: "
			"CUDA_VISIBLE_DEVICES=%s %s\n", word, problem);
		return 2;
	}
	file = blocked(state, &mine, &why);
	if (file) {
		fprintf(stderr, "fake-cuda: cannot open %s: %s\n", file, strerror(why));
		return 3;
	}
	if (attach(state, &mine)) {
		fprintf(stderr, "fake-cuda: instance vanished\n");
		return 4;
	}
	report(state, &mine, path);
	code = compute(state, &mine, seconds, until);
	sim_lock();
	sim_detach(state, getpid(), -1, -1);
	sim_unlock();
	return code;
}

static int usage(const char *word)
{
	fprintf(stderr, "fake-cuda: %s\nusage: fake-cuda [--seconds S] [--until-file PATH] "
		"[--report PATH] [--probe UUID...]\n", word);
	return 1;
}

struct wishes {
	double seconds;
	const char *until, *path;
	int first_probe; /* index into argv; 0: none */
};

/* Every word after --probe that is no option is one more to probe. */
static int read_words(int argc, char **argv, struct wishes *w)
{
	for (int i = 1; i < argc; i++) {
		const char *value = i + 1 < argc ? argv[i + 1] : NULL;

		if (w->first_probe && strncmp(argv[i], "--", 2))
			continue;
		if (!value)
			return usage(argv[i]);
		if (!strcmp(argv[i], "--seconds"))
			w->seconds = atof(value);
		else if (!strcmp(argv[i], "--until-file"))
			w->until = value;
		else if (!strcmp(argv[i], "--report"))
			w->path = value;
		else if (!strcmp(argv[i], "--probe"))
			w->first_probe = w->first_probe ? w->first_probe : i + 1;
		else
			return usage(argv[i]);
		i++;
	}
	return 0;
}

static int probe_all(const struct state *state, int argc, char **argv, int first)
{
	int code = 0;

	for (int i = first; i < argc; i++)
		if (strncmp(argv[i], "--", 2))
			code |= probe(state, argv[i]);
		else if (strcmp(argv[i], "--probe"))
			i++;
	return code;
}

int main(int argc, char **argv)
{
	const char *visible = getenv("CUDA_VISIBLE_DEVICES");
	struct wishes wishes = { .seconds = -1 };
	struct state *state;
	char word[128];

	if (read_words(argc, argv, &wishes))
		return 1;
	signal(SIGTERM, tell);
	signal(SIGINT, tell);
	state = sim_open(sim_path());
	if (!state) {
		fprintf(stderr, "fake-cuda: the driver is not loaded\n");
		return 2;
	}
	if (wishes.first_probe)
		return probe_all(state, argc, argv, wishes.first_probe);
	if (!visible || !*visible) {
		fprintf(stderr, "fake-cuda: no CUDA-capable device is detected: "
			"CUDA_VISIBLE_DEVICES is empty\n");
		return 2;
	}
	snprintf(word, sizeof(word), "%.*s", (int)strcspn(visible, ","), visible);
	return run(state, word, wishes.seconds, wishes.until, wishes.path);
}
