/*
 * The state of one node's simulated GPUs: a file, mapped by every process that uses it.
 *
 * The library, the control program and the fake CUDA program share this. One lock guards all.
 */
#ifndef SLURM_MIG_SIM_H
#define SLURM_MIG_SIM_H

#include <stdint.h>
#include <sys/types.h>

#define DEFAULT_STATE "/run/nvml-sim/state"
#define SIM_MAGIC 0x4d49474fu
#define MAX_GPUS 16
#define MAX_GI 15 /* GI ids 0..14: one full, two halves, four quarters, eight eighths */
#define MAX_CI 8
#define MAX_PROCESSES 512
#define MAX_FAULTS 16
#define MAX_PROFILES 16
#define ROOT_LENGTH 256

struct placement {
	unsigned start, size;
};

struct profile {
	const char *name;
	unsigned number; /* NVML_GPU_INSTANCE_PROFILE_*: argument of ProfileInfo only */
	unsigned id;     /* what nvidia-smi prints: argument of every other call */
	unsigned slices, max, sm, ce, dec, enc, jpeg, ofa;
	unsigned long long memory_mb;
	unsigned double_memory;
	unsigned places;
	struct placement place[8];
};

struct model {
	const char *name;
	unsigned pci_device;
	unsigned long long memory_mb;
	const char *arch;
	unsigned compute_slices, memory_slices; /* 0 without MIG */
	unsigned needs_reset;
	unsigned profiles;
	struct profile profile[MAX_PROFILES];
};

struct ci {
	int used;
	unsigned profile; /* compute instance profile id */
	unsigned start, width;
	uint64_t generation;
};

struct gi {
	int used;
	unsigned profile; /* index into the model's profiles */
	unsigned start;
	uint64_t generation;
	struct ci ci[MAX_CI];
};

struct gpu {
	unsigned model;
	unsigned minor;
	char uuid[64];
	int mig, pending;
	int persistence;
	int passthrough; /* given to a virtual machine, which cannot reset it */
	int flipped; /* placement layout F: NVML starts turned by half a GPU */
	int renamed; /* this driver calls its profiles otherwise: made up, no real one has done it */
	struct gi gi[MAX_GI];
};

struct process {
	pid_t pid;
	unsigned long long started;
	unsigned gpu;
	int gi, ci; /* -1: the whole GPU */
	int hidden; /* holds, but NVML does not list it: a daemon with a leaked handle, a driver */
};

/* Codes of faults that are none of NVML's. */
#define FAULT_SLOW -2 /* the call does what it does, after the delay */
#define FAULT_LIE -3  /* a call that destroys says OK and does nothing */

struct fault {
	char call[64]; /* "*": every call */
	int code;
	int gpu; /* -1: any */
	int times; /* -1: until cleared; 0: no fault here */
	int after; /* so many calls are let through first */
	unsigned delay_ms;
	uint64_t until_ms; /* of the monotonic clock; 0: for ever */
};

uint64_t sim_now_ms(void);

struct state {
	uint32_t magic;
	uint32_t size;
	char driver[32];
	char dev_root[ROOT_LENGTH];
	char proc_root[ROOT_LENGTH];
	unsigned caps_major;
	int hardware_timing;
	unsigned gpus;
	uint64_t generation;
	uint64_t created, destroyed; /* GPU instances */
	uint64_t ci_created, ci_destroyed, mode_changes, calls;
	struct gpu gpu[MAX_GPUS];
	struct process process[MAX_PROCESSES];
	struct fault fault[MAX_FAULTS];
};

/* state.c */
const char *sim_path(void);
struct state *sim_open(const char *path);   /* NULL: no such state */
struct state *sim_create(const char *path); /* not seen by others before sim_publish */
int sim_publish(const char *path);
void sim_close(struct state *state);
void sim_lock(void);
void sim_unlock(void);

const struct model *sim_model(const struct gpu *gpu);
int sim_find_model(const char *name);
const char *sim_profile_name(const struct gpu *gpu, const struct profile *profile);
const struct profile *sim_profile(const struct gpu *gpu, const struct gi *gi);
unsigned sim_size(const struct gpu *gpu, const struct gi *gi);
int sim_gi_id(const struct gpu *gpu, unsigned start, unsigned size);
int sim_fits(const struct gpu *gpu, const struct profile *profile, unsigned start, unsigned size);
unsigned sim_gi_minor(const struct gpu *gpu, unsigned gi);
unsigned sim_ci_minor(const struct gpu *gpu, unsigned gi, unsigned ci);
int sim_has_instances(const struct gpu *gpu);
void sim_device_name(char *out, size_t size, const struct gpu *gpu, const struct gi *gi,
		     unsigned width);

/* compute instances: state.c */
unsigned sim_ci_width(const struct gpu *gpu, const struct gi *gi, unsigned profile);
unsigned sim_ci_sm(const struct gpu *gpu, const struct gi *gi, unsigned width);
unsigned sim_ci_places(const struct profile *p, unsigned width, struct placement out[MAX_CI]);
int sim_ci_fits(const struct gi *gi, struct placement at);

/* codes.c */
const char *code_text(int code);
int code_number(const char *name); /* a number, IN_USE or NVML_ERROR_IN_USE; -1: unknown */

/* uuid.c */
void sim_uuid(char out[64], const char *prefix, const char *seed, unsigned gi, unsigned ci);
void sim_mig_uuid(char out[64], const struct gpu *gpu, unsigned gi, unsigned ci);

/* dump.c */
void dump(struct state *state);

/* processes.c */
int sim_holders(struct state *state, unsigned gpu, int gi, int ci);
int sim_attach(struct state *state, pid_t pid, unsigned gpu, int gi, int ci, int hidden);
void sim_detach(struct state *state, pid_t pid, int gpu, int gi); /* -1: wherever it is */
void sim_prune(struct state *state);

/* files.c: what the driver shows in /proc and /dev */
void files_parents(const char *path);
int files_static(const struct state *state);
void files_reboot(const struct state *state);
void files_gi(const struct state *state, const struct gpu *gpu, unsigned gi, int there);
void files_ci(const struct state *state, const struct gpu *gpu, unsigned gi, unsigned ci, int there);

#endif
