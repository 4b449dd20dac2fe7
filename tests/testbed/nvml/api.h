/* What the two halves of the library share: return codes, handles, and how a call begins. */
#ifndef SLURM_MIG_API_H
#define SLURM_MIG_API_H

#include "sim.h"

/* NVML's return codes (nvml.h). */
enum {
	OK = 0,
	UNINITIALIZED = 1,
	INVALID_ARGUMENT = 2,
	NOT_SUPPORTED = 3,
	NO_PERMISSION = 4,
	NOT_FOUND = 6,
	INSUFFICIENT_SIZE = 7,
	DRIVER_NOT_LOADED = 9,
	GPU_IS_LOST = 15,
	RESET_REQUIRED = 16,
	OPERATING_SYSTEM = 17,
	IN_USE = 19,
	INSUFFICIENT_RESOURCES = 23,
	ARGUMENT_VERSION_MISMATCH = 25,
	UNKNOWN = 999,
};

#define API __attribute__((visibility("default")))
#define ALIAS(name) __attribute__((visibility("default"), alias(#name)))

/* DEVICE is for calls only: a whole GPU or a MIG device. */
enum kind { GPU = 1, GPU_INSTANCE, COMPUTE_INSTANCE, MIG_DEVICE, DEVICE };

/* NVML's version field of a structure. */
#define VERSION(type, n) ((unsigned)(sizeof(type) | (n) << 24))

/* What a caller's opaque pointer points to. A handle of an instance is good for one generation. */
struct handle {
	enum kind kind;
	unsigned gpu, gi, ci;
	uint64_t generation;
	unsigned session; /* of the state that it belongs to */
	struct handle *next;
};

extern struct state *sim; /* NULL before nvmlInit */

/* A handle for this; the same one for the same thing. */
struct handle *handle_for(enum kind kind, unsigned gpu, unsigned gi, unsigned ci);

/* Locks the state and checks the handle's kind and generation; 0, or NVML's return code. */
int enter(const char *call, struct handle *handle, enum kind kind);
int leave_with(int code);

/* A fault that a test asked for; OK when there is none. GPU -1: the call is about no GPU. */
int injected(const char *call, int gpu);

/* As long as the real thing takes, when the state says so. The lock stays held, as the driver's. */
void pause_ms(unsigned milliseconds);

struct gpu *gpu_of(const struct handle *handle);
struct gi *gi_of(const struct handle *handle);
struct ci *ci_of(const struct handle *handle);

/* Drivers after R535 answer about profiles with MIG off too. */
int mode_independent_queries(void);

int copy_text(char *out, unsigned size, const char *text);

/* A call that exists and that no GPU here supports. */
#define NOT_THERE(name)                                                  \
	API int name(struct handle *device)                              \
	{                                                                \
		int code = enter(#name, device, DEVICE);                    \
		return code ? code : leave_with(NOT_SUPPORTED);          \
	}

#endif
