/* fuzz_spikerun COUNT SECONDS SEED FILE…
 *
 * Opens and runs COUNT mutants of the files, for at most SECONDS: bytes and whole numbers changed, parts moved, cut off or
 * added, half of them with length and checksum made to fit. Built with AddressSanitizer and UBSan, which end the program at
 * the first fault. Prints how many there were and how often each code came back. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "spikerun.h"

#define CODES 32
#define ROOM (1 << 20)

static uint64_t state;

static uint32_t below(uint32_t bound) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return bound ? (uint32_t)(state >> 16) % bound : 0;
}

static uint32_t crc(const unsigned char *data, size_t size) {
    uint32_t sum = 0xffffffffu;
    for (size_t i = 0; i < size; i++) {
        sum ^= data[i];
        for (int k = 0; k < 8; k++) sum = (sum >> 1) ^ (0xedb88320u & (0u - (sum & 1u)));
    }
    return ~sum;
}

static void put(unsigned char *data, size_t at, uint32_t value) { memcpy(data + at, &value, 4); }

/* Header and records are hit as often as all the rest. */
static size_t place(size_t size) {
    size_t head = size < 512 ? size : 512;
    return below(2) ? below((uint32_t)head) : below((uint32_t)size);
}

static size_t mutate(unsigned char *data, size_t size) {
    static const uint32_t numbers[] = {0,      1,      2,          3,          7,          16,         64,        127,
                                       128,    255,    256,        16383,      32767,      65535,      65536,     1u << 20,
                                       1u << 24, 1u << 28, 0x7fffffffu, 0x80000000u, 0xfffffff0u, 0xffffffffu, 0x7f800000u,
                                       0x7fc00000u, 0xff800000u, 0x7f7fffffu, 0x00000001u, 0x3f800000u};
    for (uint32_t times = 1 + below(4); times && size; times--) {
        size_t at = place(size), word = at & ~(size_t)3;
        switch (below(8)) {
            case 0: data[at] ^= (unsigned char)(1u << below(8)); break;
            case 1: data[at] = (unsigned char)below(256); break;
            case 2:
            case 3:
                if (word + 4 <= size) put(data, word, numbers[below(sizeof numbers / sizeof *numbers)]);
                break;
            case 4:
                if (word + 4 <= size) {
                    uint32_t value;
                    memcpy(&value, data + word, 4);
                    put(data, word, value + below(9) - 4);
                }
                break;
            case 5: size = at; break;
            case 6: {
                size_t more = below(256);
                if (size + more < ROOM) memset(data + size, (int)below(256), more), size += more;
                break;
            }
            default: {
                size_t from = place(size), count = below(64);
                if (from + count <= size && at + count <= size) memmove(data + at, data + from, count);
            }
        }
    }
    return size;
}

static int try(const unsigned char *data, size_t size) {
    unsigned char *file = malloc(size ? size : 1); /* of just this size, so that a byte beyond it is seen */
    size_t bytes = 0;
    uint32_t tokens = 1 + below(20);
    spikerun *model = NULL;
    memcpy(file, data, size);
    int code = spikerun_arena(file, size, tokens, &bytes);
    if (code == SPIKERUN_OK && bytes < ((size_t)1 << 28)) {
        unsigned char *arena = malloc(bytes);
        size_t less = below(8) ? bytes : below((uint32_t)bytes);
        code = spikerun_open(&model, file, size, tokens, arena, less);
        if ((code == SPIKERUN_OK) != (less == bytes)) abort();
        for (int k = 0; k < 3 && model; k++) {
            int32_t ids[24], segments[24];
            uint32_t n = below(24), vocabulary = spikerun_shape_of(model).vocab;
            float *logits = malloc(spikerun_shape_of(model).classes * sizeof *logits);
            for (int i = 0; i < 24; i++) {
                ids[i] = below(64) ? (int32_t)below(vocabulary) : (int32_t)below(0xffffffffu);
                segments[i] = (int32_t)below(below(32) ? 2 : 0xffffffffu);
            }
            spikerun_set_loop(model, (int)below(3));
            spikerun_run(model, ids, below(2) ? segments : NULL, n, logits);
            free(logits);
        }
        free(arena);
    }
    free(file);
    return code;
}

int main(int count, char **words) {
    long wanted = count > 4 ? atol(words[1]) : 0, seconds = count > 4 ? atol(words[2]) : 0, done = 0, seen[CODES] = {0};
    static unsigned char original[ROOM], data[ROOM];
    time_t start = time(NULL);
    state = 88172645463325252u + (count > 4 ? (uint64_t)atol(words[3]) : 0);
    for (; done < wanted && time(NULL) - start < seconds; done++) {
        FILE *file = fopen(words[4 + done % (count - 4)], "rb");
        size_t size = file ? fread(original, 1, ROOM, file) : 0;
        if (file) fclose(file);
        memcpy(data, original, size);
        size = done < count - 4 ? size : mutate(data, size); /* first the files as they are */
        if (done % 2 && size >= 24) {
            put(data, 8, (uint32_t)size), put(data, 12, 0);
            put(data, 16, crc(data + 20, size - 20));
        }
        int code = try(data, size);
        if (code < 0 || code >= CODES) abort();
        seen[code]++;
    }
    printf("%ld", done);
    for (int i = 0; i < CODES; i++) printf(" %ld", seen[i]);
    printf("\n");
    return 0;
}
