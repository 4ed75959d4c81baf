// Preloaded before Mesa's stand-in for NVIDIA's kernel driver, for tools/isa. Adds the classes of chips that the
// stand-in does not know (Hopper 0x18x, Ada 0x19x, Blackwell 0x1ax and 0x1bx), 80 GiB of memory, and the number of SMs
// of each generation's best-known card, by which kernels are chosen.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#define NR_GETPARAM 0x40
#define NR_NVIF 0x47
#define GETPARAM_FB_SIZE 8
#define GETPARAM_GRAPH_UNITS 13
#define NVIF_SCLASS 1
#define NVIF_MTHD 4
#define MOST_CLASSES 5

int ioctl(int fd, unsigned long request, ...) {
    static int (*next)(int, unsigned long, ...);
    if (!next) next = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
    va_list list;
    va_start(list, request);
    uint8_t *arg = va_arg(list, uint8_t *);
    va_end(list);
    const char *chip_text = getenv("NOUVEAU_CHIPSET");
    if (!chip_text || _IOC_TYPE(request) != 'd' || (_IOC_NR(request) != NR_NVIF && _IOC_NR(request) != NR_GETPARAM)) return next(fd, request, arg);
    uint64_t memory = (uint64_t)80 << 30;
    long chip = strtol(chip_text, NULL, 16);
    if (_IOC_NR(request) == NR_GETPARAM) {
        int r = next(fd, request, arg);
        uint64_t param;
        memcpy(&param, arg, 8);
        if (param == GETPARAM_FB_SIZE && r == 0) memcpy(arg + 8, &memory, 8);
        if (param == GETPARAM_GRAPH_UNITS) { // bits 0-7: groups of TPCs; from bit 8: TPCs, of two SMs each
            uint64_t tpcs = chip >= 0x1b0 ? 85 : chip >= 0x1a0 ? 74 : chip >= 0x190 ? 64 : chip >= 0x180 ? 66
                : chip >= 0x170 ? 54 : 34;
            uint64_t units = tpcs << 8 | 8;
            memcpy(arg + 8, &units, 8);
            return 0;
        }
        return r;
    }
    // struct nvif_ioctl_v0 { u8 version, type; ... } of 24 bytes; after it, for SCLASS,
    // { u8 version, count, pad[6]; { s32 class; s16 least, most; } [] }
    int type = arg[1];
    int asked = arg[25];
    int r = next(fd, request, arg);
    if (r == 0 && type == NVIF_MTHD && asked == 0) { // the device's description: ram_size, ram_user, chip[16], name[64]
        const char *name = chip >= 0x1a0 ? "Blackwell (stand-in)" : chip >= 0x190 ? "Ada (stand-in)"
            : chip >= 0x180 ? "Hopper (stand-in)" : chip >= 0x170 ? "Ampere (stand-in)" : "Turing (stand-in)";
        memcpy(arg + 40, &memory, 8);
        memcpy(arg + 48, &memory, 8);
        strncpy((char *)arg + 72, name, 63);
    }
    if (r == 0 && type == NVIF_SCLASS && asked >= MOST_CLASSES) {
        int32_t copy = 0, draw = 0, compute = 0;
        switch (chip & ~0xfL) {
            case 0x180: copy = 0xc8b5; draw = 0xcb97; compute = 0xcbc0; break;
            case 0x190: copy = 0xc7b5; draw = 0xc997; compute = 0xc9c0; break;
            case 0x1a0: copy = 0xc9b5; draw = 0xcd97; compute = 0xcdc0; break;
            case 0x1b0: copy = 0xcab5; draw = 0xce97; compute = 0xcec0; break;
        }
        int32_t classes[MOST_CLASSES] = {0xa140, copy, 0x902d, draw, compute};
        for (int i = 0; compute && i < MOST_CLASSES; i++) {
            memcpy(arg + 32 + 8 * i, &classes[i], 4);
            memset(arg + 32 + 8 * i + 4, 0xff, 4);
        }
    }
    return r;
}
