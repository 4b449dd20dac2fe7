/* The whole state as JSON, on stdout. */
#include "sim.h"

#include <stdio.h>

static void text(const char *key, const char *value)
{
	printf("\"%s\": \"", key);
	for (; *value; value++) {
		if (*value == '"' || *value == '\\')
			putchar('\\');
		if ((unsigned char)*value < 0x20)
			printf("\\u%04x", (unsigned)*value);
		else
			putchar(*value);
	}
	printf("\", ");
}

static void number(const char *key, unsigned long long value)
{
	printf("\"%s\": %llu, ", key, value);
}

static void dump_ci(const struct gpu *gpu, unsigned gi, unsigned id, const char *comma)
{
	const struct ci *ci = &gpu->gi[gi].ci[id];
	char value[64];

	printf("%s{", comma);
	sim_mig_uuid(value, gpu, gi, id);
	text("uuid", value);
	sim_device_name(value, sizeof(value), gpu, &gpu->gi[gi], ci->width);
	text("name", value);
	number("profile_id", ci->profile);
	number("start", ci->start);
	number("slices", ci->width);
	number("minor", sim_ci_minor(gpu, gi, id));
	number("generation", ci->generation);
	printf("\"ci\": %u}", id);
}

static void dump_gi(const struct gpu *gpu, unsigned id, const char *comma)
{
	const struct gi *gi = &gpu->gi[id];
	const char *sep = "";

	printf("%s{\"gi\": %u, ", comma, id);
	text("profile", sim_profile_name(gpu, sim_profile(gpu, gi)));
	number("profile_id", sim_profile(gpu, gi)->id);
	number("start", gi->start);
	number("size", sim_size(gpu, gi));
	number("minor", sim_gi_minor(gpu, id));
	number("generation", gi->generation);
	printf("\"compute_instances\": [");
	for (unsigned ci = 0; ci < MAX_CI; ci++)
		if (gi->ci[ci].used) {
			dump_ci(gpu, id, ci, sep);
			sep = ", ";
		}
	printf("]}");
}

static void dump_gpu(const struct gpu *gpu)
{
	const char *sep = "";

	printf("{");
	text("model", sim_model(gpu)->name);
	text("uuid", gpu->uuid);
	text("layout", gpu->flipped ? "F" : "N");
	number("minor", gpu->minor);
	printf("\"mig\": %s, \"pending\": %s, \"instances\": [", gpu->mig ? "true" : "false",
	       gpu->pending ? "true" : "false");
	for (unsigned gi = 0; gi < MAX_GI; gi++)
		if (gpu->gi[gi].used) {
			dump_gi(gpu, gi, sep);
			sep = ", ";
		}
	printf("]}");
}

static void dump_processes(const struct state *state)
{
	const char *sep = "";

	printf("\"processes\": [");
	for (unsigned i = 0; i < MAX_PROCESSES; i++) {
		const struct process *p = &state->process[i];

		if (!p->pid)
			continue;
		printf("%s{\"pid\": %d, \"started\": %llu, \"gpu\": %u, \"gi\": %d, \"ci\": %d}",
		       sep, (int)p->pid, p->started, p->gpu, p->gi, p->ci);
		sep = ", ";
	}
	printf("], ");
}

static void dump_faults(const struct state *state)
{
	const char *sep = "";

	printf("\"faults\": [");
	for (unsigned i = 0; i < MAX_FAULTS; i++) {
		const struct fault *f = &state->fault[i];

		if (!f->times)
			continue;
		printf("%s{", sep);
		text("call", f->call);
		printf("\"code\": %d, \"gpu\": %d, \"times\": %d}", f->code, f->gpu, f->times);
		sep = ", ";
	}
	printf("]}\n");
}

void dump(struct state *state)
{
	sim_prune(state);
	printf("{");
	text("driver", state->driver);
	text("dev_root", state->dev_root);
	text("proc_root", state->proc_root);
	text("timing", state->hardware_timing ? "hardware" : "none");
	number("caps_major", state->caps_major);
	number("generation", state->generation);
	number("created", state->created);
	number("destroyed", state->destroyed);
	number("compute_created", state->ci_created);
	number("compute_destroyed", state->ci_destroyed);
	number("mode_changes", state->mode_changes);
	number("calls", state->calls);
	printf("\"gpus\": [");
	for (unsigned g = 0; g < state->gpus; g++) {
		printf("%s", g ? ", " : "");
		dump_gpu(&state->gpu[g]);
	}
	printf("], ");
	dump_processes(state);
	dump_faults(state);
}
