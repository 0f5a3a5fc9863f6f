/* model.spk: checks the file and lays the model out in the arena; see spikerun.h. The file's layout and the names of its
 * tensors are those of docs/runtime.md. */
#include <string.h>

#include "model.h"

#define ALIGNMENT 64u
#define HEADER 128u
#define RECORD 48u
#define VERSION 1u
#define LONGEST 127u /* time steps: a number of spikes is one byte */
#define WIDEST 65535u /* channels of a matrix: an event is two bytes */

const char *spikerun_message(int code) {
    static const char *const messages[] = {
        "no error",
        "the file is no model.spk: export the run again",
        "the file has another version of the format: export the run again with this program's version",
        "the processor or the file is big-endian: this program reads little-endian files on little-endian processors",
        "the file has another length than its header says: copy it again",
        "the file is damaged, its checksum differs: copy it again",
        "a size or a setting in the file's header is out of range: export the run again",
        "the file asks for a setting that this program does not have: export a student without it",
        "a tensor in the file has a value that it cannot have: export the run again",
        "file and arena must lie at addresses that are multiples of 8",
        "the model needs more memory than this processor addresses: open it for fewer tokens",
        "the arena is smaller than spikerun_arena says",
        "a sentence needs at least one token and at most those that the model was opened for: cut it",
        "a token id is none of the model's vocabulary: use the tokenizer that was exported with it",
        "a segment is none of the model's",
        "the loop counts needs the coding accumulate and neurons that do not leak: use events",
    };
    int known = code >= 0 && (size_t)code < sizeof messages / sizeof *messages;
    return known ? messages[code] : "unknown code";
}

typedef struct {
    const uint8_t *file;
    size_t size, at;
    uint8_t *arena; /* NULL: only its size is wanted */
    size_t used, room;
    int code; /* of the first fault */
} loader;

static size_t times(size_t a, size_t b) { return b && a > SIZE_MAX / b ? SIZE_MAX : a * b; }

static void fault(loader *in, int code) {
    if (in->code == SPIKERUN_OK) in->code = code;
}

/* The next tensor of the file, at a multiple of 64; NULL after a fault. */
static const void *take(loader *in, size_t count, size_t each) {
    size_t bytes = times(count, each), skip = (ALIGNMENT - in->at % ALIGNMENT) % ALIGNMENT;
    if (in->code != SPIKERUN_OK) return NULL;
    if (skip > in->size - in->at || bytes > in->size - in->at - skip) {
        fault(in, SPIKERUN_SHORT);
        return NULL;
    }
    const uint8_t *found = in->file + in->at + skip;
    in->at += skip + bytes;
    return found;
}

/* Numbers that must be finite, and above 0 where they are thresholds. */
static const float *take_floats(loader *in, size_t count, int positive) {
    const float *found = take(in, count, sizeof *found);
    for (size_t i = 0; found && i < count; i++)
        if (!(found[i] >= -3.4028235e38f && found[i] <= 3.4028235e38f) || (positive && !(found[i] > 0)))
            return fault(in, SPIKERUN_TENSOR), (const float *)NULL;
    return found;
}

/* Memory of the arena, at a multiple of 64; NULL where only the size is wanted, and after a fault. */
static void *carve(loader *in, size_t count, size_t each) {
    size_t bytes = times(count, each);
    if (in->code != SPIKERUN_OK) return NULL;
    if (bytes > SIZE_MAX - 2 * ALIGNMENT - in->used) return fault(in, SPIKERUN_TOO_LARGE), (void *)NULL;
    size_t at = in->used;
    in->used += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (in->arena && in->used > in->room) return fault(in, SPIKERUN_ARENA), (void *)NULL;
    return in->arena ? in->arena + at : NULL;
}

static uint32_t number(const uint8_t *at) {
    uint32_t x;
    memcpy(&x, at, sizeof x);
    return x;
}

static uint32_t checksum(const uint8_t *data, size_t size) {
    static const uint32_t table[16] = {0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4,
                                       0x4db26158, 0x5005713c, 0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c,
                                       0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c};
    uint32_t crc = 0xffffffffu;
    for (size_t i = 0; i < size; i++) {
        crc ^= data[i];
        crc = (crc >> 4) ^ table[crc & 15u];
        crc = (crc >> 4) ^ table[crc & 15u];
    }
    return ~crc;
}

/* Few-bit rows as one byte a code, in the arena. A code is what its bits say less `low`, by steps of `step`. */
static void unpack(loader *in, matrix *w) {
    size_t packed = (times(w->out, w->bits) + 31) / 32 * 4;
    const uint8_t *data = take(in, w->in, packed);
    int8_t *to = carve(in, times(w->in, w->stride), 1);
    if (to) memset(to, 0, times(w->in, w->stride));
    int low = w->bits == 8 ? 0 : -1, by = w->bits == 1 ? 2 : 1, mask = (1 << w->bits) - 1;
    for (size_t row = 0; data && row < w->in; row++)
        for (uint32_t c = 0; c < w->out; c++) {
            int field = data[row * packed + c * w->bits / 8] >> (c * w->bits % 8) & mask;
            if (w->bits == 2 && field == 3) fault(in, SPIKERUN_TENSOR);
            if (to) to[(c / CODE_LANES * w->in + row) * CODE_LANES + c % CODE_LANES] = (int8_t)(w->bits == 8 ? (field ^ 128) - 128 : field * by + low);
        }
    w->codes = to;
}

static void take_entries(loader *in, matrix *w, uint32_t entries) {
    uint32_t places = w->kind == LISTS ? w->out : w->stride / LANES;
    w->start = take(in, (size_t)w->in + 1, sizeof *w->start);
    w->index = take(in, entries, sizeof *w->index);
    w->entries = take_floats(in, times(entries, w->kind == LISTS ? 1 : LANES), 0);
    if (in->code != SPIKERUN_OK) return;
    for (uint32_t c = 0; c < w->in; c++)
        if (w->start[c] > w->start[c + 1]) fault(in, SPIKERUN_TENSOR);
    if (w->start[0] != 0 || w->start[w->in] != entries) fault(in, SPIKERUN_TENSOR);
    for (uint32_t i = 0; i < entries; i++)
        if (w->index[i] >= places) fault(in, SPIKERUN_TENSOR);
}

static void take_matrix(loader *in, matrix *w, uint32_t inputs, uint32_t outputs, uint32_t bits, uint32_t kind,
                        uint32_t entries) {
    memset(w, 0, sizeof *w);
    w->in = inputs, w->out = outputs, w->bits = bits, w->kind = kind;
    w->stride = padded(outputs, bits == 32 ? LANES : CODE_LANES);
    w->bias = take_floats(in, outputs, 0);
    if (kind > BLOCKS || (kind != ROWS && bits != 32)) fault(in, SPIKERUN_HEADER);
    if (bits != 32) {
        w->scale = take_floats(in, outputs, 0);
        unpack(in, w);
    } else if (kind <= COUNTED_ROWS) {
        w->rows = take_floats(in, times(inputs, w->stride), 0);
    } else {
        take_entries(in, w, entries);
    }
    if (kind == COUNTED_ROWS || kind == BLOCKS) w->fan_out = take(in, inputs, sizeof *w->fan_out);
    for (uint32_t c = 0; w->fan_out && c < inputs; c++)
        if (w->fan_out[c] > outputs) fault(in, SPIKERUN_TENSOR);
}

static void take_layer(loader *in, const spikerun *m, const uint8_t *record, layer *l) {
    uint32_t size = m->shape.hidden;
    memset(l, 0, sizeof *l);
    l->t_steps = number(record), l->heads = number(record + 4), l->ffn = number(record + 8);
    if (l->t_steps < 1 || l->t_steps > LONGEST || l->heads > WIDEST / m->head_size || l->ffn > WIDEST ||
        l->heads * m->head_size > WIDEST / 4) {
        fault(in, SPIKERUN_HEADER);
        return;
    }
    l->inner = l->heads * m->head_size;
    matrix *const own[] = {&l->qkv, &l->out, &l->up, &l->down};
    uint32_t inputs[] = {size, l->inner, size, l->ffn}, outputs[] = {3 * l->inner, size, l->ffn, size};
    for (int k = 0; k < 4; k++)
        take_matrix(in, own[k], inputs[k], outputs[k], m->weight_bits, number(record + 12 + 8 * k),
                    number(record + 16 + 8 * k));
    l->attention_weight = take_floats(in, size, 0), l->attention_bias = take_floats(in, size, 0);
    l->output_weight = take_floats(in, size, 0), l->output_bias = take_floats(in, size, 0);
    uint32_t channels[] = {l->inner, l->inner, l->inner, size, l->ffn, size};
    for (int k = 0; k < 6; k++) l->theta[k] = take_floats(in, channels[k], 1);
    if (m->reach) l->relative_bias = take_floats(in, times(l->heads, 2 * m->reach + 1), 0);
}

static void carve_train(loader *in, train *s, uint32_t channels, uint32_t frames, uint32_t tokens) {
    s->channels = channels, s->stride = padded(channels, 8), s->frames = frames;
    s->frame = times(tokens, s->stride);
    s->spikes = carve(in, frames, s->frame);
}

/* Buffers for the widest layer and the longest train. */
static void carve_buffers(loader *in, spikerun *m, uint32_t inner, uint32_t ffn, uint32_t widest, uint32_t t_most) {
    uint32_t n = m->shape.max_tokens, size = m->shape.hidden, lanes = padded(n, LANES), d = m->head_size;
    int closed = m->coding == ACCUMULATE && m->leak == 1.0f, synchronous = m->coding == PER_STEP;
    uint32_t outside = closed ? 1 : t_most, own = closed || synchronous ? 1 : t_most;
    uint32_t most = size > ffn ? size : ffn, tokens = n < TOKENS ? n : TOKENS;
    most = most > inner ? most : inner;
    carve_train(in, &m->below, size, outside, n);
    carve_train(in, &m->above, size, outside, n);
    carve_train(in, &m->key, inner, own, n);
    carve_train(in, &m->value, inner, own, n);
    carve_train(in, &m->context, inner, own, n);
    carve_train(in, &m->hidden, size, own, n);
    carve_train(in, &m->wide, ffn, own, n);
    uint32_t middle = padded(size > inner ? size : inner, LANES);
    m->currents = carve(in, times(n, widest), sizeof(float));
    m->summed = carve(in, times(n, middle), sizeof(float));
    m->drive = carve(in, times(times(n, size), synchronous && m->residual == MEMBRANE ? t_most : 1), sizeof(float));
    m->next_drive = m->residual == MEMBRANE ? carve(in, times(times(n, size), synchronous ? t_most : 1), sizeof(float))
                                            : m->drive;
    m->drive_hidden = carve(in, times(n, size), sizeof(float));
    if (synchronous) {
        uint32_t channels[] = {inner, inner, inner, size, ffn, size};
        for (int k = 0; k < 6; k++) m->membrane[k] = carve(in, times(n, channels[k]), sizeof(float));
        m->held = carve(in, times(n, widest), sizeof(float));
        m->held_past = carve(in, times(n, size), sizeof(float));
    }
    m->query = carve(in, times(d, lanes), sizeof(float));
    m->mixed = carve(in, times(d, lanes), sizeof(float));
    m->scores = carve(in, times(n, lanes), sizeof(float));
    size_t events = times(times(tokens, most), t_most);
    m->list = carve(in, events < SIZE_MAX - 4 ? events + 4 : SIZE_MAX, sizeof *m->list);
    m->list_counts = closed ? carve(in, times(tokens, most) + 4, 1) : NULL;
    m->spans = carve(in, times(tokens, closed ? 1 : t_most), sizeof *m->spans);
    m->row = carve(in, (most > 2 * lanes ? most : 2 * lanes), sizeof *m->row);
}

static int same_endian(const uint8_t *file) { return number(file + 20) == 0x01020304u; }

static int read_header(const uint8_t *file, size_t bytes, spikerun *m) {
    if (bytes < HEADER || memcmp(file, "SPKR", 4) != 0) return SPIKERUN_NO_MODEL;
    if (!same_endian(file)) return SPIKERUN_ENDIAN;
    if (number(file + 4) != VERSION) return SPIKERUN_VERSION;
    if (number(file + 8) != (uint32_t)bytes || number(file + 12) != (uint32_t)((uint64_t)bytes >> 32))
        return SPIKERUN_SHORT;
    if (checksum(file + 20, bytes - 20) != number(file + 16)) return SPIKERUN_CHECKSUM;
    const uint8_t *at = file + 24;
    m->shape.vocab = number(at), m->shape.positions = number(at + 4), m->shape.segments = number(at + 8);
    m->shape.hidden = number(at + 12), m->shape.layers = number(at + 16), m->head_size = number(at + 20);
    m->shape.classes = number(at + 24), m->coding = number(at + 28), m->ternary = number(at + 32);
    m->pooling = number(at + 36), m->act = number(at + 40), m->residual = number(at + 44);
    m->weight_bits = number(at + 48);
    uint32_t query = number(at + 60);
    m->word_bits = number(at + 52), m->reach = number(at + 56), m->pooler_act = number(at + 72);
    memcpy(&m->leak, at + 64, sizeof m->leak), memcpy(&m->eps, at + 68, sizeof m->eps);
    const spikerun_shape *s = &m->shape;
    int sizes = s->vocab >= 1 && s->vocab <= INT32_MAX && s->positions >= 1 && s->positions <= 65536 &&
                s->segments >= 1 && s->segments <= INT32_MAX && s->hidden >= 1 && s->hidden <= WIDEST / 4 &&
                s->layers >= 1 && s->layers <= 1024 && m->head_size >= 1 && m->head_size <= s->hidden &&
                s->classes >= 1 && s->classes <= 65536;
    int settings = m->coding <= PER_STEP && m->ternary <= 1 && m->pooling <= CLS && m->act <= RELU && m->pooler_act <= 1 && m->reach <= 65536 &&
                   m->residual <= MEMBRANE && m->leak > 0.0f && m->leak <= 1.0f && m->eps > 0.0f && m->eps < 1.0f &&
                   (m->weight_bits == 32 || m->weight_bits == 8 || m->weight_bits == 2 || m->weight_bits == 1);
    if (!sizes || !settings) return SPIKERUN_HEADER;
    return (m->word_bits != 32 && m->word_bits != 8) || query ? SPIKERUN_UNSUPPORTED : SPIKERUN_OK;
}

/* Checks the file and lays the model out, in in->arena if there is one. */
static spikerun *load(loader *in, uint32_t max_tokens) {
    spikerun parsed, *m = &parsed;
    memset(m, 0, sizeof *m);
    fault(in, read_header(in->file, in->size, m));
    if (max_tokens < 1) fault(in, SPIKERUN_LENGTH);
    spikerun *made = carve(in, 1, sizeof *made);
    if (in->code != SPIKERUN_OK) return NULL;
    uint32_t size = m->shape.hidden, layers = m->shape.layers, inner = 0, ffn = 0, most = 0, t_most;
    m->shape.max_tokens = max_tokens < m->shape.positions ? max_tokens : m->shape.positions;
    m->layers = carve(in, layers, sizeof *m->layers);
    m->operations = carve(in, (size_t)layers + 2, sizeof *m->operations);
    in->at = HEADER;
    const uint8_t *records = take(in, (size_t)layers + 1, RECORD);
    if (in->code != SPIKERUN_OK) return NULL;
    m->t_embedding = t_most = number(records);
    if (t_most < 1 || t_most > LONGEST) fault(in, SPIKERUN_HEADER);
    if (m->word_bits == 8) {
        m->word_scale = take_floats(in, m->shape.vocab, 0);
        m->word_codes = take(in, m->shape.vocab, size);
    } else {
        m->word = take_floats(in, times(m->shape.vocab, size), 0);
    }
    m->position = take_floats(in, times(m->shape.positions, size), 0);
    m->segment = take_floats(in, times(m->shape.segments, size), 0);
    m->norm_weight = take_floats(in, size, 0), m->norm_bias = take_floats(in, size, 0);
    m->theta = take_floats(in, size, 1);
    most = padded(size, CODE_LANES);
    for (uint32_t i = 0; i < layers; i++) {
        layer here;
        take_layer(in, m, records + (size_t)(i + 1) * RECORD, &here);
        if (in->code != SPIKERUN_OK) return NULL;
        const uint32_t strides[] = {here.qkv.stride, here.out.stride, here.up.stride, here.down.stride};
        for (int k = 0; k < 4; k++) most = strides[k] > most ? strides[k] : most;
        inner = here.inner > inner ? here.inner : inner, ffn = here.ffn > ffn ? here.ffn : ffn;
        t_most = here.t_steps > t_most ? here.t_steps : t_most;
        if (in->arena) m->layers[i] = here;
    }
    if (m->pooling == CLS) take_matrix(in, &m->pooler, size, size, 32, ROWS, 0);
    m->classifier = take_floats(in, times(m->shape.classes, size), 0);
    m->classifier_bias = take_floats(in, m->shape.classes, 0);
    if (in->at != in->size) fault(in, SPIKERUN_SHORT);
    carve_buffers(in, m, inner, ffn, most, t_most);
    m->used = in->used;
    if (made && in->code == SPIKERUN_OK) *made = *m;
    return made;
}

int spikerun_arena(const void *file, size_t bytes, uint32_t max_tokens, size_t *arena_bytes) {
    loader in = {file, bytes, 0, NULL, 0, 0, SPIKERUN_OK};
    if (!file || (uintptr_t)file % 8) return file ? SPIKERUN_ALIGNMENT : SPIKERUN_NO_MODEL;
    load(&in, max_tokens);
    *arena_bytes = in.used;
    return in.code;
}

int spikerun_open(spikerun **model, const void *file, size_t bytes, uint32_t max_tokens, void *arena, size_t arena_bytes) {
    loader in = {file, bytes, 0, arena, 0, arena_bytes, SPIKERUN_OK};
    *model = NULL;
    if (!file || !arena) return file ? SPIKERUN_ARENA : SPIKERUN_NO_MODEL;
    if ((uintptr_t)file % 8 || (uintptr_t)arena % 8) return SPIKERUN_ALIGNMENT;
    spikerun *made = load(&in, max_tokens);
    if (in.code == SPIKERUN_OK) *model = made;
    return in.code;
}
