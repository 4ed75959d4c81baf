/* Makes files of random numbers for llm.c's CPU program: GPT-2 124M's weights, or tokens. Only sizes matter for time.
     llmc_files weights FILE
     llmc_files tokens FILE COUNT */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CHANNELS = 768, LAYERS = 12, HEADS = 12, POSITIONS = 1024, VOCAB = 50257, PADDED = 50304, BLOCK = 65521 };

static uint64_t state = 88172645463325252ull;

static uint32_t bits(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32);
}

static void fail(const char *what) {
    fprintf(stderr, "llmc_files: %s\n", what);
    exit(1);
}

/* Writes `count` values: all `fixed` if that is 0 or 1, otherwise random ones in (-0.035, 0.035). */
static void fill(FILE *file, size_t count, float fixed) {
    static float block[BLOCK];
    for (size_t i = 0; i < BLOCK; i++) {
        block[i] = fixed == 0.0f || fixed == 1.0f ? fixed : ((float)(bits() >> 8) / 16777216.0f - 0.5f) * 0.07f;
    }
    while (count > 0) {
        size_t n = count < BLOCK ? count : BLOCK;
        if (fwrite(block, sizeof(float), n, file) != n) fail("the disk is full");
        count -= n;
    }
}

static void weights(FILE *file) {
    const size_t c = CHANNELS, l = LAYERS;
    const float random = -1.0f;
    int32_t header[256] = {20240326, 3, POSITIONS, VOCAB, LAYERS, HEADS, CHANNELS, PADDED};
    if (fwrite(header, sizeof header, 1, file) != 1) fail("the disk is full");
    fill(file, VOCAB * c, random);
    fill(file, (PADDED - VOCAB) * c, 0.0f);
    fill(file, POSITIONS * c, random);
    fill(file, l * c, 1.0f);             /* ln1w */
    fill(file, l * c, 0.0f);             /* ln1b */
    fill(file, l * 3 * c * c, random);   /* qkvw */
    fill(file, l * 3 * c, 0.0f);         /* qkvb */
    fill(file, l * c * c, random);       /* attprojw */
    fill(file, l * c, 0.0f);             /* attprojb */
    fill(file, l * c, 1.0f);             /* ln2w */
    fill(file, l * c, 0.0f);             /* ln2b */
    fill(file, l * 4 * c * c, random);   /* fcw */
    fill(file, l * 4 * c, 0.0f);         /* fcb */
    fill(file, l * 4 * c * c, random);   /* fcprojw */
    fill(file, l * c, 0.0f);             /* fcprojb */
    fill(file, c, 1.0f);                 /* lnfw */
    fill(file, c, 0.0f);                 /* lnfb */
}

static void tokens(FILE *file, long count) {
    int32_t header[256] = {20240520, 1, (int32_t)count};
    if (fwrite(header, sizeof header, 1, file) != 1) fail("the disk is full");
    for (long i = 0; i < count; i++) {
        uint16_t token = (uint16_t)(bits() % VOCAB);
        if (fwrite(&token, sizeof token, 1, file) != 1) fail("the disk is full");
    }
}

int main(int argc, char **argv) {
    if (argc < 3) fail("expected weights FILE, or tokens FILE COUNT");
    FILE *file = fopen(argv[2], "wb");
    if (!file) fail("the file cannot be written");
    if (strcmp(argv[1], "weights") == 0) weights(file);
    else if (argc > 3) tokens(file, atol(argv[3]));
    else fail("expected a count");
    return fclose(file) == 0 ? 0 : 1;
}
