/* What the driver shows: capability files under /proc/driver and device nodes under /dev. */
#include "sim.h"

#include <dirent.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define NVIDIA_MAJOR 195
#define NVIDIA_UVM_MAJOR 510
#define PATH_LENGTH (ROOT_LENGTH + 128)

void files_parents(const char *path)
{
	char copy[PATH_LENGTH];

	snprintf(copy, sizeof(copy), "%s", path);
	for (char *slash = copy + 1; (slash = strchr(slash, '/')); slash++) {
		*slash = 0;
		mkdir(copy, 0755);
		*slash = '/';
	}
}

static int write_file(const char *path, const char *format, ...)
{
	va_list args;
	FILE *file;

	files_parents(path);
	file = fopen(path, "w");
	if (!file)
		return -1;
	va_start(args, format);
	vfprintf(file, format, args);
	va_end(args);
	return fclose(file);
}

static int make_node(const char *path, unsigned major_number, unsigned minor_number, mode_t mode)
{
	dev_t number = makedev(major_number, minor_number);
	struct stat there;

	files_parents(path);
	/* Left by an earlier state with another major. */
	if (!stat(path, &there) && S_ISCHR(there.st_mode) && there.st_rdev != number)
		unlink(path);
	if (mknod(path, S_IFCHR | mode, number) && errno != EEXIST)
		return -1;
	return chmod(path, mode);
}

static void capability(const struct state *state, const char *name, unsigned minor_number,
		       mode_t mode, int there)
{
	char path[PATH_LENGTH];

	snprintf(path, sizeof(path), "%s/nvidia/capabilities/%s", state->proc_root, name);
	if (!there) {
		unlink(path);
		*strrchr(path, '/') = 0;
		rmdir(path);
		return;
	}
	write_file(path, "DeviceFileMinor: %u\nDeviceFileMode: %u\nDeviceFileModify: 1\n",
		   minor_number, (unsigned)mode);
	snprintf(path, sizeof(path), "%s/nvidia-caps/nvidia-cap%u", state->dev_root, minor_number);
	make_node(path, state->caps_major, minor_number, mode);
}

void files_gi(const struct state *state, const struct gpu *gpu, unsigned gi, int there)
{
	char name[128];

	snprintf(name, sizeof(name), "gpu%u/mig/gi%u/access", gpu->minor, gi);
	capability(state, name, sim_gi_minor(gpu, gi), 0444, there);
}

void files_ci(const struct state *state, const struct gpu *gpu, unsigned gi, unsigned ci, int there)
{
	char name[128];

	snprintf(name, sizeof(name), "gpu%u/mig/gi%u/ci%u/access", gpu->minor, gi, ci);
	capability(state, name, sim_ci_minor(gpu, gi, ci), 0444, there);
}

static int mig_minors(const struct state *state)
{
	char path[PATH_LENGTH];
	FILE *file;

	snprintf(path, sizeof(path), "%s/nvidia-caps/mig-minors", state->proc_root);
	files_parents(path);
	file = fopen(path, "w");
	if (!file)
		return -1;
	fprintf(file, "config 1\nmonitor 2\n");
	for (unsigned n = 0; n < 32; n++) {
		struct gpu gpu = { .minor = n };

		for (unsigned gi = 0; gi < MAX_GI; gi++) {
			fprintf(file, "gpu%u/gi%u/access %u\n", n, gi, sim_gi_minor(&gpu, gi));
			for (unsigned ci = 0; ci < MAX_CI; ci++)
				fprintf(file, "gpu%u/gi%u/ci%u/access %u\n", n, gi, ci,
					sim_ci_minor(&gpu, gi, ci));
		}
	}
	return fclose(file);
}

int files_static(const struct state *state)
{
	char path[PATH_LENGTH];

	if (mig_minors(state))
		return -1;
	capability(state, "mig/config", 1, 0400, 1);
	capability(state, "mig/monitor", 2, 0444, 1);
	for (unsigned i = 0; i < state->gpus; i++) {
		snprintf(path, sizeof(path), "%s/nvidia/capabilities/gpu%u/mig/", state->proc_root,
			 state->gpu[i].minor);
		files_parents(path);
		snprintf(path, sizeof(path), "%s/nvidia%u", state->dev_root, state->gpu[i].minor);
		if (make_node(path, NVIDIA_MAJOR, state->gpu[i].minor, 0666))
			return -1;
	}
	snprintf(path, sizeof(path), "%s/nvidiactl", state->dev_root);
	make_node(path, NVIDIA_MAJOR, 255, 0666);
	snprintf(path, sizeof(path), "%s/nvidia-uvm", state->dev_root);
	make_node(path, NVIDIA_UVM_MAJOR, 0, 0666);
	snprintf(path, sizeof(path), "%s/nvidia-uvm-tools", state->dev_root);
	return make_node(path, NVIDIA_UVM_MAJOR, 1, 0666);
}

/* /dev is empty after a boot: the nodes of instances go, which destroying them does not do. */
void files_reboot(const struct state *state)
{
	char path[PATH_LENGTH + 64];
	struct dirent *entry;
	unsigned number;
	DIR *dir;

	snprintf(path, sizeof(path), "%s/nvidia-caps", state->dev_root);
	dir = opendir(path);
	while (dir && (entry = readdir(dir)))
		if (sscanf(entry->d_name, "nvidia-cap%u", &number) == 1 && number > 2)
			unlinkat(dirfd(dir), entry->d_name, 0);
	if (dir)
		closedir(dir);
}
