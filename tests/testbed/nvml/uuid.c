/* Name-based UUIDs of version 5 (RFC 9562), as the driver makes them for MIG devices. */
#include "sim.h"

#include <stdio.h>
#include <string.h>

static uint32_t rotated(uint32_t value, unsigned bits)
{
	return value << bits | value >> (32 - bits);
}

/* One 64-byte block of SHA-1 (FIPS 180-4). */
static void sha1_block(uint32_t hash[5], const unsigned char *block)
{
	static const uint32_t constants[] = { 0x5a827999, 0x6ed9eba1, 0x8f1bbcdc, 0xca62c1d6 };
	uint32_t w[80], a = hash[0], b = hash[1], c = hash[2], d = hash[3], e = hash[4];

	for (unsigned t = 0; t < 80; t++) {
		uint32_t f, next;

		if (t < 16)
			w[t] = (uint32_t)block[4 * t] << 24 | (uint32_t)block[4 * t + 1] << 16 |
			       (uint32_t)block[4 * t + 2] << 8 | block[4 * t + 3];
		else
			w[t] = rotated(w[t - 3] ^ w[t - 8] ^ w[t - 14] ^ w[t - 16], 1);
		if (t < 20)
			f = (b & c) | (~b & d);
		else if (t < 40 || t >= 60)
			f = b ^ c ^ d;
		else
			f = (b & c) | (b & d) | (c & d);
		next = rotated(a, 5) + f + e + constants[t / 20] + w[t];
		e = d;
		d = c;
		c = rotated(b, 30);
		b = a;
		a = next;
	}
	hash[0] += a;
	hash[1] += b;
	hash[2] += c;
	hash[3] += d;
	hash[4] += e;
}

static void sha1(const unsigned char *data, size_t length, unsigned char out[20])
{
	uint32_t hash[5] = { 0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0 };
	unsigned char last[128] = { 0 };
	size_t whole = length / 64 * 64, rest = length - whole, padded = rest < 56 ? 64 : 128;

	for (size_t at = 0; at < whole; at += 64)
		sha1_block(hash, data + at);
	memcpy(last, data + whole, rest);
	last[rest] = 0x80;
	for (unsigned i = 0; i < 8; i++)
		last[padded - 1 - i] = (unsigned char)((uint64_t)length * 8 >> 8 * i);
	for (size_t at = 0; at < padded; at += 64)
		sha1_block(hash, last + at);
	for (unsigned i = 0; i < 20; i++)
		out[i] = (unsigned char)(hash[i / 4] >> (24 - 8 * (i % 4)));
}

/* uuid5 of "SEED/GI/CI" in the nil namespace. */
void sim_uuid(char out[64], const char *prefix, const char *seed, unsigned gi, unsigned ci)
{
	unsigned char name[16 + 256] = { 0 }, u[20];
	int length = snprintf((char *)name + 16, 256, "%s/%u/%u", seed, gi, ci);

	sha1(name, 16 + (size_t)(length < 256 ? length : 255), u);
	u[6] = (unsigned char)((u[6] & 0x0f) | 0x50);
	u[8] = (unsigned char)((u[8] & 0x3f) | 0x80);
	snprintf(out, 64, "%s%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x",
		 prefix, u[0], u[1], u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11],
		 u[12], u[13], u[14], u[15]);
}

/*
 * By GPU instance id and, for the driver's syspipe, compute instance id: nothing of the profile is
 * in it, and an instance that is made again where one was has that one's UUID.
 */
void sim_mig_uuid(char out[64], const struct gpu *gpu, unsigned gi, unsigned ci)
{
	sim_uuid(out, "MIG-", gpu->uuid, gi, ci);
}
