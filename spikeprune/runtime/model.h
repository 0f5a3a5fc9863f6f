/* model.spk as a model in memory: what model.c lays out and spikerun.c runs.
 *
 * Legend: n tokens, D hidden, h heads of a layer, d channels of a head, I = h d, F feed-forward neurons, T time steps.
 * A train of spikes is int8 [frames][token][channel]: a frame for each step, or one frame of signed numbers of spikes
 * where currents are constant and neurons do not leak. */
#ifndef SPIKERUN_MODEL_H
#define SPIKERUN_MODEL_H

#include "spikerun.h"

#define LANES 16u      /* outputs of a panel of float rows: 64 bytes, */
#define CODE_LANES 64u /* and of few-bit rows */
#define TOKENS 32u /* tokens whose events are listed at a time: they share what the cache has of the rows */

enum { ROWS, COUNTED_ROWS, LISTS, BLOCKS }; /* forms of a matrix */
enum { ACCUMULATE, PER_STEP };
enum { MEAN, CLS };
enum { GELU, GELU_NEW, RELU };
enum { SPIKES, MEMBRANE };

typedef struct {
    uint32_t in, out, stride, bits;
    uint32_t kind;
    const float *rows;       /* [panels][in][LANES]: all that a panel's outputs need lies together */
    const int8_t *codes;     /* [panels][in][CODE_LANES], unpacked */
    const float *scale;      /* [out] of codes */
    const float *bias;       /* [out] */
    const uint32_t *start;   /* [in + 1] of a row's entries: LISTS, BLOCKS */
    const uint16_t *index;   /* output of an entry, or the number of its block of LANES outputs */
    const float *entries;    /* [entries], or [entries][LANES] */
    const uint32_t *fan_out; /* [in] synapses of a channel; NULL: all outputs, or as LISTS have it */
} matrix;

typedef struct {
    int8_t *spikes; /* [frames][max_tokens][stride] */
    uint32_t channels, stride, frames;
    size_t frame; /* max_tokens * stride */
} train;

typedef struct {
    uint32_t t_steps, heads, inner, ffn;
    matrix qkv, out, up, down;
    const float *attention_weight, *attention_bias, *output_weight, *output_bias;
    const float *theta[6];         /* by spikerun_site */
    const float *relative_bias;    /* [heads][2 reach + 1] by the distance of a key from the query; NULL: none */
} layer;

typedef struct {
    uint32_t begin, negative, end; /* of a list: events of positive spikes, then of negative ones */
} span;

struct spikerun {
    spikerun_shape shape;
    uint32_t head_size, coding, ternary, pooling, pooler_act, act, residual, weight_bits, word_bits, reach;
    float leak, eps;
    int loop;
    uint32_t t_embedding;
    const float *word, *position, *segment, *norm_weight, *norm_bias, *theta; /* of the embedding */
    const int8_t *word_codes; /* [vocab][D], with word_scale [vocab], instead of word */
    const float *word_scale;
    layer *layers;
    matrix pooler;
    const float *classifier, *classifier_bias;
    spikerun_operations *operations, *here; /* [layers + 2]; the layer being computed */
    spikerun_observer observer;
    void *observed;
    size_t used;
    /* buffers of a run */
    train below, above, key, value, context, hidden, wide;
    float *currents, *summed, *held, *held_past; /* [max_tokens][channels] */
    float *drive, *next_drive, *drive_hidden;    /* currents that a membrane shortcut reads, [steps][max_tokens][D] */
    float *membrane[6];                          /* [max_tokens][channels], by population: per_step */
    float *query, *scores, *mixed;               /* [d][lanes], [tokens][lanes], [d][lanes] of one head */
    uint16_t *list;
    int8_t *list_counts;
    span *spans;
    float *row;
};

static inline uint32_t padded(uint32_t x, uint32_t lanes) { return (x + lanes - 1) / lanes * lanes; }

#endif
