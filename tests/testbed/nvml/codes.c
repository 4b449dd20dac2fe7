/* NVML's return codes by name, and the texts of nvmlErrorString. */
#include "sim.h"

#include <stdlib.h>
#include <string.h>

static const struct {
	int number;
	const char *name, *text;
} codes[] = {
	{ 0, "SUCCESS", "Success" },
	{ 1, "UNINITIALIZED", "Uninitialized" },
	{ 2, "INVALID_ARGUMENT", "Invalid Argument" },
	{ 3, "NOT_SUPPORTED", "Not Supported" },
	{ 4, "NO_PERMISSION", "Insufficient Permissions" },
	{ 6, "NOT_FOUND", "Not Found" },
	{ 7, "INSUFFICIENT_SIZE", "Insufficient Size" },
	{ 9, "DRIVER_NOT_LOADED", "Driver Not Loaded" },
	{ 10, "TIMEOUT", "Timeout" },
	{ 13, "FUNCTION_NOT_FOUND", "Function Not Found" },
	{ 15, "GPU_IS_LOST", "GPU is lost" },
	{ 16, "RESET_REQUIRED", "GPU requires restart" },
	{ 17, "OPERATING_SYSTEM", "The operating system has blocked the request." },
	{ 18, "LIB_RM_VERSION_MISMATCH", "RM has detected an NVML/RM version mismatch." },
	{ 19, "IN_USE", "In use by another client" },
	{ 20, "MEMORY", "Insufficient Memory" },
	{ 23, "INSUFFICIENT_RESOURCES", "Insufficient Resources" },
	{ 25, "ARGUMENT_VERSION_MISMATCH", "Argument version mismatch" },
	{ 999, "UNKNOWN", "Unknown Error" },
};

#define CODES (sizeof(codes) / sizeof(codes[0]))

const char *code_text(int code)
{
	for (unsigned i = 0; i < CODES; i++)
		if (codes[i].number == code)
			return codes[i].text;
	return "Unknown Error";
}

int code_number(const char *name)
{
	char *end;
	long number = strtol(name, &end, 10);

	if (*name && !*end)
		return (int)number;
	if (!strncmp(name, "NVML_", 5))
		name += 5;
	if (!strncmp(name, "ERROR_", 6))
		name += 6;
	for (unsigned i = 0; i < CODES; i++)
		if (!strcmp(codes[i].name, name))
			return codes[i].number;
	return -1;
}
