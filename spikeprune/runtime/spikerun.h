/* spikerun: runs a compressed spiking BERT, event by event. C99, libm only.
 *
 * A model is one file, `model.spk` (its layout: docs/runtime.md), read in place: the caller has it in memory, aligned to
 * 8 bytes, for as long as the model is used; so it may lie in flash. All else is in one block of memory, the arena, whose
 * size is known before. Nothing is allocated. A model is not shared between threads; the file may be.
 *
 *     size_t bytes;
 *     spikerun *model;
 *     if ((code = spikerun_arena(file, file_bytes, 64, &bytes))) puts(spikerun_message(code));
 *     if ((code = spikerun_open(&model, file, file_bytes, 64, malloc(bytes), bytes))) …
 *     if ((code = spikerun_run(model, ids, NULL, n, logits))) …
 */
#ifndef SPIKERUN_H
#define SPIKERUN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct spikerun spikerun;

enum spikerun_code {
    SPIKERUN_OK,
    SPIKERUN_NO_MODEL,      /* not a model.spk */
    SPIKERUN_VERSION,       /* another version of the format */
    SPIKERUN_ENDIAN,        /* this processor, or the file, is big-endian */
    SPIKERUN_SHORT,         /* fewer bytes than the header names, or more */
    SPIKERUN_CHECKSUM,      /* bytes are damaged */
    SPIKERUN_HEADER,        /* a size or setting is out of range */
    SPIKERUN_UNSUPPORTED,   /* a setting that the format has and this program has not */
    SPIKERUN_TENSOR,        /* a tensor has a value that it cannot have */
    SPIKERUN_ALIGNMENT,     /* file or arena do not lie at a multiple of 8 */
    SPIKERUN_TOO_LARGE,     /* more memory than this processor addresses */
    SPIKERUN_ARENA,         /* the arena is smaller than spikerun_arena says */
    SPIKERUN_LENGTH,        /* no token, or more than the model was opened for */
    SPIKERUN_TOKEN,         /* a token id is none of the vocabulary */
    SPIKERUN_SEGMENT,       /* a segment is none of the model's */
    SPIKERUN_LOOP           /* the loop `counts` needs the coding accumulate and a leak of 1 */
};

/* A spike adds a row of weights, or a count of spikes, not zero, times a row is added. */
enum spikerun_loop { SPIKERUN_EVENTS, SPIKERUN_COUNTS };

enum spikerun_site {
    SPIKERUN_KEY,
    SPIKERUN_VALUE,
    SPIKERUN_CONTEXT,
    SPIKERUN_ATTENTION,
    SPIKERUN_INTERMEDIATE,
    SPIKERUN_OUTPUT,
    SPIKERUN_EMBEDDING
};

typedef struct {
    uint32_t vocab, positions, segments, hidden, layers, classes, max_tokens;
} spikerun_shape;

/* Operations of the last run, as `cost/operations.py` counts them. */
typedef struct {
    uint64_t additions, multiplications, elementwise;
} spikerun_operations;

/* Called after a spiking layer has fired: at step `step` from 0 in {-1, 0, 1}, or, where a layer's current is constant
 * and its neurons do not leak, once for the whole train with signed numbers of spikes. `layer` is -1 for the embedding.
 * spikes[token * stride + channel]; what the observer writes there is what the network continues with (at most T). */
typedef void (*spikerun_observer)(void *context, int layer, int population, int step, int8_t *spikes, int tokens,
                                  int channels, size_t stride);

/* A sentence for a code. */
const char *spikerun_message(int code);

/* Checks the whole file; bytes of the arena for sentences of up to max_tokens (cut to the model's positions). */
int spikerun_arena(const void *file, size_t bytes, uint32_t max_tokens, size_t *arena_bytes);

/* The same checks, then a model in the arena. */
int spikerun_open(spikerun **model, const void *file, size_t bytes, uint32_t max_tokens, void *arena, size_t arena_bytes);

/* Logits [classes] of n token ids, no padding. segments [n] may be NULL: all 0. */
int spikerun_run(spikerun *model, const int32_t *ids, const int32_t *segments, uint32_t n, float *logits);

int spikerun_set_loop(spikerun *model, int loop);
void spikerun_observe(spikerun *model, spikerun_observer observer, void *context);
spikerun_shape spikerun_shape_of(const spikerun *model);
/* Of the embedding, the layers and the head: layers + 2. */
const spikerun_operations *spikerun_operations_of(const spikerun *model);
/* Bytes of the arena that the model takes. */
size_t spikerun_used(const spikerun *model);

#ifdef __cplusplus
}
#endif
#endif
