/*
 * nvml-sim: makes and looks at the simulated GPUs of a node. Not part of NVML.
 *
 *   nvml-sim create [--state PATH] [--dev-root DIR] [--proc-root DIR] [--caps-major N]
 *                   [--driver VERSION] [--timing none|hardware] [--seed TEXT] GPU...
 *            GPU is MODEL[:mig=on|off][:layout=N|F][:minor=M]
 *   nvml-sim dump | reboot | timing none|hardware
 *   nvml-sim process add|remove PID [GPU GI]
 *   nvml-sim fault CALL CODE [TIMES] [GPU] | fault --clear
 */
#include "sim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int die(const char *what, const char *which)
{
	fprintf(stderr, "nvml-sim: %s %s\n", what, which);
	return 2;
}

static int add_gpu(struct state *state, char *word, const char *seed)
{
	struct gpu *gpu = &state->gpu[state->gpus];
	char *option = strchr(word, ':');
	int model;

	if (option)
		*option++ = 0;
	model = sim_find_model(word);
	if (model < 0 || state->gpus == MAX_GPUS)
		return die("no such model:", word);
	memset(gpu, 0, sizeof(*gpu));
	gpu->model = (unsigned)model;
	gpu->minor = state->gpus;
	for (option = strtok(option, ":"); option; option = strtok(NULL, ":")) {
		if (!strcmp(option, "mig=on"))
			gpu->mig = gpu->pending = sim_model(gpu)->memory_slices != 0;
		else if (!strcmp(option, "layout=F"))
			gpu->flipped = 1;
		else if (!strncmp(option, "minor=", 6))
			gpu->minor = (unsigned)atoi(option + 6);
		else if (strcmp(option, "mig=off") && strcmp(option, "layout=N"))
			return die("unknown option:", option);
	}
	sim_uuid(gpu->uuid, "GPU-", seed, state->gpus, gpu->model);
	state->gpus++;
	return 0;
}

static int create(const char *path, int argc, char **argv)
{
	struct state *state = sim_create(path);
	const char *seed = "slurm-mig";
	int i;

	if (!state)
		return die("cannot make", path);
	strcpy(state->driver, "580.95.05");
	strcpy(state->dev_root, "/dev");
	strcpy(state->proc_root, "/proc/driver");
	state->caps_major = 508;
	for (i = 0; i + 1 < argc && !strncmp(argv[i], "--", 2); i += 2) {
		const char *value = argv[i + 1];

		if (!strcmp(argv[i], "--dev-root"))
			snprintf(state->dev_root, sizeof(state->dev_root), "%s", value);
		else if (!strcmp(argv[i], "--proc-root"))
			snprintf(state->proc_root, sizeof(state->proc_root), "%s", value);
		else if (!strcmp(argv[i], "--caps-major"))
			state->caps_major = (unsigned)atoi(value);
		else if (!strcmp(argv[i], "--driver"))
			snprintf(state->driver, sizeof(state->driver), "%s", value);
		else if (!strcmp(argv[i], "--timing"))
			state->hardware_timing = !strcmp(value, "hardware");
		else if (!strcmp(argv[i], "--seed"))
			seed = value;
		else
			return die("unknown option:", argv[i]);
	}
	for (; i < argc; i++)
		if (add_gpu(state, argv[i], seed))
			return 2;
	return files_static(state) ? die("cannot make the driver's files under", state->dev_root) : 0;
}

static void dump_gi(const struct gpu *gpu, unsigned id, const char *comma)
{
	const struct gi *gi = &gpu->gi[id];
	char uuid[64];
	const char *sep = "";

	printf("%s{\"gi\": %u, \"profile\": \"%s\", \"start\": %u, \"size\": %u, \"generation\": %llu, "
	       "\"compute_instances\": [", comma, id, sim_profile(gpu, gi)->name, gi->start,
	       sim_size(gpu, gi), (unsigned long long)gi->generation);
	for (unsigned ci = 0; ci < MAX_CI; ci++) {
		if (!gi->ci[ci].used)
			continue;
		sim_mig_uuid(uuid, gpu, id, ci);
		printf("%s{\"ci\": %u, \"slices\": %u, \"uuid\": \"%s\"}", sep, ci,
		       gi->ci[ci].width, uuid);
		sep = ", ";
	}
	printf("]}");
}

static int dump(struct state *state)
{
	const char *sep = "";

	sim_prune(state);
	printf("{\"driver\": \"%s\", \"created\": %llu, \"destroyed\": %llu, \"calls\": %llu, \"gpus\": [",
	       state->driver, (unsigned long long)state->created,
	       (unsigned long long)state->destroyed, (unsigned long long)state->calls);
	for (unsigned g = 0; g < state->gpus; g++) {
		const struct gpu *gpu = &state->gpu[g];
		const char *comma = "";

		printf("%s{\"model\": \"%s\", \"minor\": %u, \"uuid\": \"%s\", \"mig\": %s, "
		       "\"instances\": [", g ? ", " : "", sim_model(gpu)->name, gpu->minor,
		       gpu->uuid, gpu->mig ? "true" : "false");
		for (unsigned gi = 0; gi < MAX_GI; gi++)
			if (gpu->gi[gi].used) {
				dump_gi(gpu, gi, comma);
				comma = ", ";
			}
		printf("]}");
	}
	printf("], \"processes\": [");
	for (unsigned i = 0; i < MAX_PROCESSES; i++)
		if (state->process[i].pid) {
			printf("%s{\"pid\": %d, \"gpu\": %u, \"gi\": %d, \"ci\": %d}", sep,
			       (int)state->process[i].pid, state->process[i].gpu,
			       state->process[i].gi, state->process[i].ci);
			sep = ", ";
		}
	printf("]}\n");
	return 0;
}

/* Instances never survive; the mode does on Ampere only. */
static int reboot(struct state *state)
{
	memset(state->process, 0, sizeof(state->process));
	for (unsigned g = 0; g < state->gpus; g++) {
		struct gpu *gpu = &state->gpu[g];

		for (unsigned gi = 0; gi < MAX_GI; gi++) {
			for (unsigned ci = 0; ci < MAX_CI; ci++)
				if (gpu->gi[gi].ci[ci].used)
					files_ci(state, gpu, gi, ci, 0);
			if (gpu->gi[gi].used)
				files_gi(state, gpu, gi, 0);
		}
		memset(gpu->gi, 0, sizeof(gpu->gi));
		if (!sim_model(gpu)->needs_reset)
			gpu->mig = gpu->pending = 0;
		gpu->mig = gpu->pending;
	}
	return 0;
}

static int process(struct state *state, int argc, char **argv)
{
	pid_t pid = argc > 1 ? atoi(argv[1]) : 0;

	if (argc == 2 && !strcmp(argv[0], "remove")) {
		sim_detach(state, pid);
		return 0;
	}
	if (argc != 4 || strcmp(argv[0], "add"))
		return die("usage:", "process add PID GPU GI | process remove PID");
	return sim_attach(state, pid, (unsigned)atoi(argv[2]), atoi(argv[3]), 0) ?
		       die("no such process:", argv[1]) : 0;
}

static int fault(struct state *state, int argc, char **argv)
{
	if (argc == 1 && !strcmp(argv[0], "--clear")) {
		memset(state->fault, 0, sizeof(state->fault));
		return 0;
	}
	if (argc < 2)
		return die("usage:", "fault CALL CODE [TIMES] [GPU] | fault --clear");
	for (unsigned i = 0; i < MAX_FAULTS; i++) {
		struct fault *f = &state->fault[i];

		if (f->times)
			continue;
		snprintf(f->call, sizeof(f->call), "%s", argv[0]);
		f->code = atoi(argv[1]);
		f->times = argc > 2 ? atoi(argv[2]) : 1;
		f->gpu = argc > 3 ? atoi(argv[3]) : -1;
		return 0;
	}
	return die("too many faults:", argv[0]);
}

static int command(struct state *state, const char *verb, int argc, char **argv)
{
	if (!strcmp(verb, "dump"))
		return dump(state);
	if (!strcmp(verb, "reboot"))
		return reboot(state);
	if (!strcmp(verb, "process"))
		return process(state, argc, argv);
	if (!strcmp(verb, "fault") && argc)
		return fault(state, argc, argv);
	if (!strcmp(verb, "timing") && argc == 1) {
		state->hardware_timing = !strcmp(argv[0], "hardware");
		return 0;
	}
	return die("unknown command:", verb);
}

int main(int argc, char **argv)
{
	const char *path = sim_path();
	struct state *state;
	int code, skip = 2;

	if (argc < 2)
		return die("usage:", "create | dump | reboot | timing | process | fault");
	if (argc > 3 && !strcmp(argv[2], "--state")) {
		path = argv[3];
		skip = 4;
	}
	if (!strcmp(argv[1], "create"))
		return create(path, argc - skip, argv + skip);
	state = sim_open(path);
	if (!state)
		return die("no state at", path);
	sim_lock();
	code = command(state, argv[1], argc - skip, argv + skip);
	sim_unlock();
	return code;
}
