/*
 * nvml-sim: makes and looks at the simulated GPUs of a node. Not part of NVML.
 *
 *   nvml-sim create [--dev-root DIR] [--proc-root DIR] [--caps-major N] [--driver VERSION]
 *                   [--timing none|hardware] [--seed TEXT] GPU...
 *            GPU is MODEL[:mig=on|off][:layout=N|F][:minor=M][:vm=passthrough]
 *   nvml-sim dump
 *   nvml-sim reboot
 *   nvml-sim timing none|hardware
 *   nvml-sim process add --pid P --gpu I [--gi G [--ci C]]       (no --gi: the GPU as a whole)
 *                    [--hidden]                 (holds, but is not listed: a leaked handle)
 *   nvml-sim process remove --pid P [--gpu I [--gi G]]
 *   nvml-sim fault CALL --code NAME|NUMBER [--gpu I] [--times N]      (N -1: until cleared)
 *                  [--after N] [--for-ms T] [--delay-ms T]
 *            CALL may be '*'. SLOW is no error but a delay; LIE, for calls that destroy, is a
 *            success that left everything there.
 *   nvml-sim fault --clear
 *
 * Each takes --state PATH; else NVML_SIM_STATE; else /run/nvml-sim/state.
 */
#include "sim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_WORDS 32
#define DEFAULT_CAPS_MAJOR 508

/* What the command line says: a value by option's name, NULL when not given, and the rest. */
static const char *option_names[] = {
	"state", "dev-root", "proc-root", "caps-major", "driver", "timing", "seed",
	"gpu", "gi", "ci", "pid", "code", "times", "after", "for-ms", "delay-ms",
};
#define OPTIONS (sizeof(option_names) / sizeof(option_names[0]))

static const char *values[OPTIONS];
static char *words[MAX_WORDS];
static int count, clear, hidden;

static int die(const char *what, const char *which)
{
	fprintf(stderr, "nvml-sim: %s %s\n", what, which);
	return 2;
}

static const char *option(const char *name)
{
	for (unsigned i = 0; i < OPTIONS; i++)
		if (!strcmp(option_names[i], name))
			return values[i];
	return NULL;
}

static int number(const char *name, int otherwise)
{
	const char *value = option(name);

	return value ? atoi(value) : otherwise;
}

static int take_option(const char *name, const char *value)
{
	if (!value)
		return die("no value for", name);
	for (unsigned i = 0; i < OPTIONS; i++)
		if (!strcmp(option_names[i], name + 2)) {
			values[i] = value;
			return 0;
		}
	return die("unknown option:", name);
}

static int read_words(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--clear"))
			clear = 1;
		else if (!strcmp(argv[i], "--hidden"))
			hidden = 1;
		else if (!strncmp(argv[i], "--", 2)) {
			if (take_option(argv[i], i + 1 < argc ? argv[i + 1] : NULL))
				return 2;
			i++;
		} else if (count < MAX_WORDS)
			words[count++] = argv[i];
	}
	return count ? 0 : die("usage:", "create | dump | reboot | hardware | timing | process | fault");
}

/* -- create ----------------------------------------------------------------------------------- */

static int gpu_option(struct gpu *gpu, const char *word)
{
	int has_mig = sim_model(gpu)->memory_slices != 0;

	if (!strcmp(word, "mig=on") && has_mig)
		gpu->mig = gpu->pending = 1;
	else if (!strcmp(word, "mig=on"))
		return die("no MIG on", sim_model(gpu)->name);
	else if (!strcmp(word, "vm=passthrough"))
		gpu->passthrough = 1;
	else if (!strcmp(word, "layout=F"))
		gpu->flipped = 1;
	else if (!strncmp(word, "minor=", 6))
		gpu->minor = (unsigned)atoi(word + 6);
	else if (strcmp(word, "mig=off") && strcmp(word, "layout=N") && strcmp(word, "vm=none"))
		return die("unknown option:", word);
	return 0;
}

static int add_gpu(struct state *state, char *word, const char *seed)
{
	struct gpu *gpu = &state->gpu[state->gpus];
	char *rest = strchr(word, ':');
	int model;

	if (state->gpus == MAX_GPUS)
		return die("too many GPUs:", word);
	if (rest)
		*rest++ = 0;
	model = sim_find_model(word);
	if (model < 0)
		return die("no such model:", word);
	gpu->model = (unsigned)model;
	gpu->minor = state->gpus;
	gpu->persistence = 1;
	for (rest = strtok(rest, ":"); rest; rest = strtok(NULL, ":"))
		if (gpu_option(gpu, rest))
			return 2;
	sim_uuid(gpu->uuid, "GPU-", seed, state->gpus, 0);
	state->gpus++;
	return 0;
}

static int set_timing(struct state *state, const char *value)
{
	if (strcmp(value, "none") && strcmp(value, "hardware"))
		return die("timing is none or hardware, not", value);
	state->hardware_timing = !strcmp(value, "hardware");
	return 0;
}

static int set_text(char *out, size_t size, const char *name, const char *otherwise)
{
	const char *value = option(name) ? option(name) : otherwise;

	if (strlen(value) >= size)
		return die("too long:", value);
	strcpy(out, value);
	return 0;
}

static int settings(struct state *state)
{
	int caps_major = number("caps-major", DEFAULT_CAPS_MAJOR);

	state->caps_major = (unsigned)caps_major;
	return set_text(state->driver, sizeof(state->driver), "driver", "580.95.05") ||
			       set_text(state->dev_root, ROOT_LENGTH, "dev-root", "/dev") ||
			       set_text(state->proc_root, ROOT_LENGTH, "proc-root",
					"/proc/driver") ||
			       (option("timing") && set_timing(state, option("timing"))) ?
		       2 : 0;
}

static int create(const char *path)
{
	struct state *state = sim_create(path);
	char seed[128] = "";

	if (!state)
		return die("cannot make", path);
	gethostname(seed, sizeof(seed) - 1);
	if (set_text(seed, sizeof(seed), "seed", seed[0] ? seed : "node") || settings(state))
		return 2;
	for (int i = 1; i < count; i++)
		if (add_gpu(state, words[i], seed))
			return 2;
	if (files_static(state))
		return die("cannot make the driver's files under", state->dev_root);
	return sim_publish(path) ? die("cannot make", path) : 0;
}

/* -- the other commands ------------------------------------------------------------------------ */

static void forget_instances(const struct state *state, struct gpu *gpu)
{
	for (unsigned gi = 0; gi < MAX_GI; gi++) {
		for (unsigned ci = 0; ci < MAX_CI; ci++)
			if (gpu->gi[gi].ci[ci].used)
				files_ci(state, gpu, gi, ci, 0);
		if (gpu->gi[gi].used)
			files_gi(state, gpu, gi, 0);
	}
	memset(gpu->gi, 0, sizeof(gpu->gi));
}

/* Instances never survive; the mode does on Ampere only, where a pending one takes effect. */
static int reboot(struct state *state)
{
	memset(state->process, 0, sizeof(state->process));
	for (unsigned g = 0; g < state->gpus; g++) {
		struct gpu *gpu = &state->gpu[g];

		forget_instances(state, gpu);
		if (!sim_model(gpu)->needs_reset)
			gpu->pending = 0;
		gpu->mig = gpu->pending;
	}
	files_reboot(state);
	return 0;
}

/* What is done to the machine while it is off: GPUs change places, one is replaced by another of
 * its model, a new driver has other names. Instances are gone, as after every boot. */
static int exchange(struct state *state, unsigned one, unsigned other)
{
	struct gpu *a = &state->gpu[one], *b = &state->gpu[other], kept;
	unsigned minor = a->minor;

	forget_instances(state, a);
	forget_instances(state, b);
	kept = *a;
	*a = *b;
	*b = kept;
	b->minor = a->minor;
	a->minor = minor;
	return 0;
}

static int replace(struct state *state, struct gpu *gpu)
{
	forget_instances(state, gpu);
	gpu->mig = gpu->pending = 0;
	sim_uuid(gpu->uuid, "GPU-", option("seed") ? option("seed") : "new", gpu->minor, 0);
	return 0;
}

static int hardware(struct state *state)
{
	int one = count > 2 ? atoi(words[2]) : -1, other = count > 3 ? atoi(words[3]) : 0;

	if (count > 1 && !strcmp(words[1], "rename")) {
		for (unsigned g = 0; g < state->gpus; g++)
			state->gpu[g].renamed = 1;
		return 0;
	}
	if (one < 0 || one >= (int)state->gpus || other < 0 || other >= (int)state->gpus)
		return die("usage:", "hardware exchange I J | replace I [--seed S] | rename");
	if (!strcmp(words[1], "exchange"))
		return exchange(state, (unsigned)one, (unsigned)other);
	return strcmp(words[1], "replace") ? die("unknown:", words[1]) :
					     replace(state, &state->gpu[one]);
}

static int process(struct state *state)
{
	/* The short form is `process add PID GPU GI` and `process remove PID`. */
	pid_t pid = number("pid", count > 2 ? atoi(words[2]) : 0);
	int gpu = number("gpu", count > 3 ? atoi(words[3]) : -1);
	int gi = number("gi", count > 4 ? atoi(words[4]) : -1);

	if (pid > 0 && count > 1 && !strcmp(words[1], "remove")) {
		sim_detach(state, pid, gpu, gi);
		return 0;
	}
	if (pid <= 0 || count < 2 || strcmp(words[1], "add") || gpu < 0)
		return die("usage:", "process add|remove --gpu I --gi G --pid P");
	if (gpu >= (int)state->gpus || gi >= MAX_GI ||
	    (gi >= 0 && !state->gpu[gpu].gi[gi].used))
		return die("no such instance for process", option("pid") ? option("pid") : "");
	return sim_attach(state, pid, (unsigned)gpu, gi, gi < 0 ? -1 : number("ci", 0), hidden) ?
		       die("no such process:", option("pid") ? option("pid") : words[2]) : 0;
}

static int fault_code(const char *word)
{
	if (!strcmp(word, "SLOW"))
		return FAULT_SLOW;
	return strcmp(word, "LIE") ? code_number(word) : FAULT_LIE;
}

static int fault(struct state *state)
{
	/* The short form is `fault CALL CODE [TIMES] [GPU]`. */
	const char *word = option("code") ? option("code") : count > 2 ? words[2] : "";
	int code = fault_code(word);

	if (clear) {
		memset(state->fault, 0, sizeof(state->fault));
		return 0;
	}
	if (count < 2 || code == -1 || (code == FAULT_LIE && !strstr(words[1], "Destroy")))
		return die("usage:", "fault CALL --code NAME|NUMBER [--gpu I] [--times N] | fault --clear");
	for (unsigned i = 0; i < MAX_FAULTS; i++) {
		struct fault *f = &state->fault[i];

		if (f->times)
			continue;
		snprintf(f->call, sizeof(f->call), "%s", words[1]);
		f->code = code;
		f->times = number("times", option("for-ms") ? -1 : count > 3 ? atoi(words[3]) : 1);
		f->after = number("after", 0);
		f->delay_ms = (unsigned)number("delay-ms", 0);
		f->until_ms = option("for-ms") ? sim_now_ms() + (uint64_t)number("for-ms", 0) : 0;
		f->gpu = number("gpu", count > 4 ? atoi(words[4]) : -1);
		return 0;
	}
	return die("too many faults:", words[1]);
}

static int command(struct state *state)
{
	if (!strcmp(words[0], "dump")) {
		dump(state);
		return 0;
	}
	if (!strcmp(words[0], "reboot"))
		return reboot(state);
	if (!strcmp(words[0], "hardware"))
		return hardware(state);
	if (!strcmp(words[0], "process"))
		return process(state);
	if (!strcmp(words[0], "fault"))
		return fault(state);
	if (!strcmp(words[0], "timing") && count == 2)
		return set_timing(state, words[1]);
	return die("unknown command:", words[0]);
}

int main(int argc, char **argv)
{
	struct state *state;
	const char *path;
	int code;

	if (read_words(argc, argv))
		return 2;
	path = option("state") ? option("state") : sim_path();
	if (!strcmp(words[0], "create"))
		return create(path);
	state = sim_open(path);
	if (!state)
		return die("no state at", path);
	sim_lock();
	code = command(state);
	sim_unlock();
	return code;
}
