/* Starting and stopping the library, its handles, and how every call begins and ends. */
#include "api.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct state *sim;
static struct handle *handles;
static unsigned users, session;
static pthread_mutex_t starting = PTHREAD_MUTEX_INITIALIZER;

/* -- handles ---------------------------------------------------------------------------------- */

static uint64_t generation_of(enum kind kind, unsigned gpu, unsigned gi, unsigned ci)
{
	switch (kind) {
	case GPU_INSTANCE:
		return sim->gpu[gpu].gi[gi].generation;
	case COMPUTE_INSTANCE:
	case MIG_DEVICE:
		return sim->gpu[gpu].gi[gi].ci[ci].generation;
	default:
		return 0;
	}
}

/* Never freed: a caller may show a stale one for as long as it lives. */
struct handle *handle_for(enum kind kind, unsigned gpu, unsigned gi, unsigned ci)
{
	uint64_t generation = generation_of(kind, gpu, gi, ci);
	struct handle *h;

	for (h = handles; h; h = h->next)
		if (h->kind == kind && h->gpu == gpu && h->gi == gi && h->ci == ci &&
		    h->generation == generation && h->session == session)
			return h;
	h = calloc(1, sizeof(*h));
	if (!h)
		abort();
	*h = (struct handle){ kind, gpu, gi, ci, generation, session, handles };
	handles = h;
	return h;
}

struct gpu *gpu_of(const struct handle *handle)
{
	return &sim->gpu[handle->gpu];
}

struct gi *gi_of(const struct handle *handle)
{
	return &gpu_of(handle)->gi[handle->gi];
}

struct ci *ci_of(const struct handle *handle)
{
	return &gi_of(handle)->ci[handle->ci];
}

/* Compared before it is looked into: it may be anything. */
static int known(const struct handle *handle)
{
	for (const struct handle *h = handles; h; h = h->next)
		if (h == handle)
			return h->session == session && h->gpu < sim->gpus;
	return 0;
}

/* What the handle stands for is still there, and is the same that it was made for. */
static int current(const struct handle *handle)
{
	if (handle->kind == GPU)
		return 1;
	if (!gi_of(handle)->used || (handle->kind != GPU_INSTANCE && !ci_of(handle)->used))
		return 0;
	return handle->generation ==
	       generation_of(handle->kind, handle->gpu, handle->gi, handle->ci);
}

static int fits(enum kind kind, enum kind wanted)
{
	return kind == wanted || (wanted == DEVICE && (kind == GPU || kind == MIG_DEVICE));
}

/* -- faults ----------------------------------------------------------------------------------- */

/* nvmlDeviceGetCount and nvmlDeviceGetCount_v2 are one call to who asks for a fault. */
static size_t stem(const char *call)
{
	const char *version = strstr(call, "_v");

	return version && strspn(version + 2, "0123456789") == strlen(version + 2) ?
		       (size_t)(version - call) : strlen(call);
}

static int is_meant(const struct fault *fault, const char *call, int gpu)
{
	if (!fault->times || (fault->gpu >= 0 && fault->gpu != gpu))
		return 0;
	return !strcmp(fault->call, "*") ||
	       (stem(fault->call) == stem(call) && !strncmp(fault->call, call, stem(call)));
}

static void wait_ms(unsigned milliseconds)
{
	struct timespec left = { milliseconds / 1000, milliseconds % 1000 * 1000000l };

	while (nanosleep(&left, &left) && errno == EINTR)
		;
}

int injected(const char *call, int gpu)
{
	for (unsigned i = 0; i < MAX_FAULTS; i++) {
		struct fault *fault = &sim->fault[i];

		if (fault->times && fault->until_ms && sim_now_ms() > fault->until_ms)
			memset(fault, 0, sizeof(*fault));
		if (!is_meant(fault, call, gpu))
			continue;
		if (fault->after) {
			fault->after--;
			continue;
		}
		if (fault->times > 0)
			fault->times--;
		if (fault->delay_ms)
			wait_ms(fault->delay_ms);
		if (fault->code != FAULT_SLOW)
			return fault->code;
	}
	return OK;
}

/* -- every call ------------------------------------------------------------------------------- */

/* Whether a call only asks: by NVML's own naming, and nothing else is let through. */
static int asks(const char *call)
{
	return strstr(call, "Get") || strstr(call, "IsMig") || strstr(call, "nvmlInit") ||
	       strstr(call, "nvmlShutdown");
}

/*
 * With NVML_SIM_LOG every call is written down there. With NVML_SIM_READ_ONLY a call that does more
 * than ask ends the process: for proofs that nothing makes one.
 */
static void record(const char *call)
{
	const char *path = getenv("NVML_SIM_LOG");
	FILE *log = path && *path ? fopen(path, "a") : NULL;

	if (log) {
		fprintf(log, "%s\n", call);
		fclose(log);
	}
	if (!asks(call) && getenv("NVML_SIM_READ_ONLY")) {
		fprintf(stderr, "nvml-sim: %s in a read-only run\n", call);
		abort();
	}
}

static int refusal(const char *call, const struct handle *handle, enum kind kind)
{
	int code;

	if (kind && !known(handle))
		return INVALID_ARGUMENT;
	code = injected(call, kind ? (int)handle->gpu : -1);
	if (code || !kind)
		return code;
	if (!fits(handle->kind, kind))
		return INVALID_ARGUMENT;
	return current(handle) ? OK : NOT_FOUND;
}

int enter(const char *call, struct handle *handle, enum kind kind)
{
	int code;

	if (!sim || !users)
		return UNINITIALIZED;
	record(call);
	sim_lock();
	sim->calls++;
	code = refusal(call, handle, kind);
	return code ? leave_with(code) : OK;
}

int leave_with(int code)
{
	sim_unlock();
	return code;
}

int copy_text(char *out, unsigned size, const char *text)
{
	if (!out)
		return INVALID_ARGUMENT;
	if (strlen(text) + 1 > size)
		return INSUFFICIENT_SIZE;
	strcpy(out, text);
	return OK;
}

void pause_ms(unsigned milliseconds)
{
	if (sim->hardware_timing)
		wait_ms(milliseconds);
}

/* -- start and stop --------------------------------------------------------------------------- */

/* Opens the state anew: it may be another node's now. Handles of before are good for nothing. */
static int load(void)
{
	sim = sim_open(sim_path());
	session++;
	return sim ? OK : DRIVER_NOT_LOADED;
}

API int nvmlInit_v2(void)
{
	int code = OK;

	pthread_mutex_lock(&starting);
	record(__func__);
	if (!users)
		code = load();
	if (!code) {
		sim_lock();
		code = injected(__func__, -1);
		sim_unlock();
	}
	users += !code;
	if (!users && sim) {
		sim_close(sim);
		sim = NULL;
	}
	pthread_mutex_unlock(&starting);
	return code;
}
ALIAS(nvmlInit_v2) int nvmlInit(void);

API int nvmlInitWithFlags(unsigned flags)
{
	(void)flags;
	return nvmlInit_v2();
}

API int nvmlShutdown(void)
{
	int code = UNINITIALIZED;

	pthread_mutex_lock(&starting);
	if (users) {
		code = OK;
		if (!--users) {
			sim_close(sim);
			sim = NULL;
		}
	}
	pthread_mutex_unlock(&starting);
	return code;
}

API const char *nvmlErrorString(int code)
{
	return code_text(code);
}
