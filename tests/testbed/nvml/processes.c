/* Compute processes: who holds which instance. A process that died holds nothing. */
#include "sim.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

/* Field 22 of /proc/PID/stat: with the pid it names a process for good. 0: there is none. */
static unsigned long long start_time(pid_t pid)
{
	char path[64], text[1024], *end;
	unsigned long long when = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	file = fopen(path, "r");
	if (!file)
		return 0;
	if (fgets(text, sizeof(text), file) && (end = strrchr(text, ')')))
		sscanf(end + 2, "%*c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s "
				"%*s %*s %llu", &when);
	fclose(file);
	return when;
}

void sim_prune(struct state *state)
{
	for (unsigned i = 0; i < MAX_PROCESSES; i++) {
		struct process *process = &state->process[i];

		if (process->pid && start_time(process->pid) != process->started)
			memset(process, 0, sizeof(*process));
	}
}

/* How many processes hold this: gi -1 means anything of the GPU, ci -1 anything of the instance. */
int sim_holders(struct state *state, unsigned gpu, int gi, int ci)
{
	int found = 0;

	sim_prune(state);
	for (unsigned i = 0; i < MAX_PROCESSES; i++) {
		const struct process *process = &state->process[i];

		if (process->pid && process->gpu == gpu && (gi < 0 || process->gi == gi) &&
		    (ci < 0 || process->ci == ci))
			found++;
	}
	return found;
}

int sim_attach(struct state *state, pid_t pid, unsigned gpu, int gi, int ci, int hidden)
{
	sim_prune(state);
	for (unsigned i = 0; i < MAX_PROCESSES; i++) {
		struct process *process = &state->process[i];

		if (process->pid)
			continue;
		process->started = start_time(pid);
		if (!process->started)
			return -1;
		process->gpu = gpu;
		process->gi = gi;
		process->ci = ci;
		process->hidden = hidden;
		process->pid = pid;
		return 0;
	}
	return -1;
}

void sim_detach(struct state *state, pid_t pid, int gpu, int gi)
{
	for (unsigned i = 0; i < MAX_PROCESSES; i++) {
		struct process *process = &state->process[i];

		if (process->pid == pid && (gpu < 0 || (int)process->gpu == gpu) &&
		    (gi < 0 || process->gi == gi))
			memset(process, 0, sizeof(*process));
	}
}
