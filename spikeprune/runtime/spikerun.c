/* A spiking BERT, event by event; see spikerun.h. The formulas are those of models/modeling.py, the legend of letters is
 * in model.h. */
#include <math.h>
#include <string.h>

#include "model.h"

typedef struct {
    uint32_t first, last; /* frames that a reader sums up, */
    float norm;           /* and by what it divides their sum */
} window;

/* ------------------------------------------------------------------------------------------------ vectors and sums */

/* What one spike adds to a panel of outputs is one vector; the compiler splits it into the processor's own. The sums stay
 * in registers over all events of a token, four at a time, so that none waits for the one before; event e goes to sum
 * e mod 4, on every processor alike. */
#if defined(__GNUC__) && !defined(SPIKERUN_SCALAR)
typedef float vec __attribute__((vector_size(64), aligned(4), may_alias));
typedef int8_t codes_vec __attribute__((vector_size(64), aligned(1), may_alias));
#define PREFETCH(at) __builtin_prefetch(at)
#define AT(e) (panel[list[e]])
#define EVENTS(from, to, op)                                        \
    for (e = (from); e + 4 <= (to); e += 4) {                       \
        a op AT(e), b op AT(e + 1), c op AT(e + 2), d op AT(e + 3); \
    }                                                               \
    if (e < (to)) a op AT(e);                                       \
    if (e + 1 < (to)) b op AT(e + 1);                               \
    if (e + 2 < (to)) c op AT(e + 2);

static void add_events(const float *rows, const uint16_t *list, span s, float *sum) {
    const vec *panel = (const vec *)rows;
    vec a = *(vec *)sum, b = {0}, c = {0}, d = {0};
    uint32_t e;
    EVENTS(s.begin, s.negative, +=)
    EVENTS(s.negative, s.end, -=)
    *(vec *)sum = (a + b) + (c + d);
}

static void add_counts(const float *rows, const uint16_t *list, const int8_t *n, span s, float *sum) {
    const vec *panel = (const vec *)rows;
    vec a = *(vec *)sum, b = {0}, c = {0}, d = {0};
    uint32_t e;
#undef AT
#define AT(e) ((float)n[e] * panel[list[e]])
    EVENTS(s.begin, s.end, +=)
#undef AT
#define AT(e) (panel[list[e]])
    *(vec *)sum = (a + b) + (c + d);
}

/* Codes of -1, 0 and 1, at most 4 · 127 of them: each sum is one byte. */
static void add_signs(const int8_t *rows, const uint16_t *list, span s, int32_t *sum) {
    const codes_vec *panel = (const codes_vec *)rows;
    codes_vec a = {0}, b = {0}, c = {0}, d = {0};
    uint32_t e;
    EVENTS(s.begin, s.negative, +=)
    EVENTS(s.negative, s.end, -=)
    for (uint32_t i = 0; i < CODE_LANES; i++) sum[i] += (a[i] + b[i]) + (c[i] + d[i]);
}

static void add_block(const float *row, float k, float *sum) {
    if (k == 1.0f)
        *(vec *)sum += *(const vec *)row;
    else if (k == -1.0f)
        *(vec *)sum -= *(const vec *)row;
    else
        *(vec *)sum += k * *(const vec *)row;
}
#else
#define PREFETCH(at) ((void)(at))
static void add_block(const float *row, float k, float *sum) {
    for (uint32_t i = 0; i < LANES; i++) sum[i] = k == 1.0f ? sum[i] + row[i] : k == -1.0f ? sum[i] - row[i] : sum[i] + k * row[i];
}

static void add_four(const float *rows, const uint16_t *list, const int8_t *n, uint32_t from, uint32_t to, float k,
                     float part[4][LANES]) {
    for (uint32_t e = from; e < to; e++) add_block(rows + (size_t)list[e] * LANES, n ? (float)n[e] : k, part[(e - from) % 4]);
}

static void sum_four(float part[4][LANES], float *sum) {
    for (uint32_t i = 0; i < LANES; i++) sum[i] = (part[0][i] + part[1][i]) + (part[2][i] + part[3][i]);
}

static void add_events(const float *rows, const uint16_t *list, span s, float *sum) {
    float part[4][LANES] = {{0}};
    memcpy(part[0], sum, sizeof part[0]);
    add_four(rows, list, NULL, s.begin, s.negative, 1.0f, part);
    add_four(rows, list, NULL, s.negative, s.end, -1.0f, part);
    sum_four(part, sum);
}

static void add_counts(const float *rows, const uint16_t *list, const int8_t *n, span s, float *sum) {
    float part[4][LANES] = {{0}};
    memcpy(part[0], sum, sizeof part[0]);
    add_four(rows, list, n, s.begin, s.end, 0.0f, part);
    sum_four(part, sum);
}

static void add_signs(const int8_t *rows, const uint16_t *list, span s, int32_t *sum) {
    for (uint32_t e = s.begin; e < s.end; e++)
        for (uint32_t i = 0; i < CODE_LANES; i++) {
            int8_t code = rows[(size_t)list[e] * CODE_LANES + i];
            sum[i] += e < s.negative ? code : -code;
        }
}
#endif

/* A panel of few-bit rows, as whole numbers. */
static void add_codes(const int8_t *rows, uint32_t bits, const uint16_t *list, const int8_t *n, span s, float *sum) {
    int32_t total[CODE_LANES] = {0};
    if (n && bits != 8) {
        int16_t part[CODE_LANES] = {0}; /* products of 127 at most */
        for (uint32_t e = s.begin; e < s.end; e++) {
            const int8_t *row = rows + (size_t)list[e] * CODE_LANES;
            for (uint32_t i = 0; i < CODE_LANES; i++) part[i] = (int16_t)(part[i] + n[e] * row[i]);
            if ((e - s.begin) % 256 < 255 && e + 1 < s.end) continue;
            for (uint32_t i = 0; i < CODE_LANES; i++) total[i] += part[i], part[i] = 0;
        }
    } else if (bits == 8) {
        for (uint32_t e = s.begin; e < s.end; e++) {
            const int8_t *row = rows + (size_t)list[e] * CODE_LANES;
            if (n)
                for (uint32_t i = 0; i < CODE_LANES; i++) total[i] += n[e] * row[i];
            else if (e < s.negative)
                for (uint32_t i = 0; i < CODE_LANES; i++) total[i] += row[i];
            else
                for (uint32_t i = 0; i < CODE_LANES; i++) total[i] -= row[i];
        }
    } else {
        for (uint32_t at = s.begin; at < s.end;) {
            span some = {at, s.negative, s.end - at < 500 ? s.end : at + 500};
            some.negative = some.negative < at ? at : some.negative > some.end ? some.end : some.negative;
            add_signs(rows, list, some, total);
            at = some.end;
        }
    }
    for (uint32_t i = 0; i < CODE_LANES; i++) sum[i] += (float)total[i];
}

static void add_entries(const matrix *w, uint32_t channel, float k, float *sum) {
    uint32_t to = w->start[channel + 1u];
    for (uint32_t at = w->start[channel]; w->kind == LISTS && at < to; at++) {
        float *one = sum + w->index[at], entry = w->entries[at];
        *one = k == 1.0f ? *one + entry : k == -1.0f ? *one - entry : *one + k * entry;
    }
    for (uint32_t at = w->start[channel]; w->kind == BLOCKS && at < to; at++)
        add_block(w->entries + (size_t)at * LANES, k, sum + (size_t)w->index[at] * LANES);
}

/* --------------------------------------------------------------------------------------------------------- events */

/* Lists a token's events: channels of positive spikes, then of negative ones, one that fired n times n times; in the
 * loop `counts` once, with n beside it. The list has room for 4 more. */
static uint32_t list_events(const spikerun *m, const int8_t *spikes, uint32_t channels, uint32_t at, span *found) {
    uint16_t *list = m->list;
    found->begin = at;
    if (m->loop == SPIKERUN_COUNTS) {
        for (uint32_t c = 0; c < channels; c++) {
            list[at] = (uint16_t)c, m->list_counts[at] = spikes[c];
            at += spikes[c] != 0;
        }
        found->negative = found->end = at;
        return at;
    }
    for (int sign = 1; sign >= -1; sign -= 2) {
        for (uint32_t c = 0; c < channels; c++) {
            int n = sign * spikes[c];
            uint64_t four = c * UINT64_C(0x0001000100010001);
            for (; n > 4; n--) list[at++] = (uint16_t)c;
            memcpy(list + at, &four, sizeof four); /* no branch for few spikes */
            at += n > 0 ? (uint32_t)n : 0u;
        }
        if (sign > 0) found->negative = at;
    }
    found->end = at;
    return at;
}

static uint64_t additions_of(const matrix *w, const spikerun *m, span s) {
    uint64_t found = 0;
    if (!w->fan_out && w->kind != LISTS && !(m->loop == SPIKERUN_COUNTS)) return (uint64_t)(s.end - s.begin) * w->out;
    for (uint32_t e = s.begin; e < s.end; e++) {
        uint32_t c = m->list[e], n = 1;
        if (m->loop == SPIKERUN_COUNTS) n = (uint32_t)(m->list_counts[e] < 0 ? -m->list_counts[e] : m->list_counts[e]);
        uint32_t fan_out = w->fan_out ? w->fan_out[c] : w->kind == LISTS ? w->start[c + 1] - w->start[c] : w->out;
        found += (uint64_t)n * fan_out;
    }
    return found;
}

/* Adds to a token's sums, the panel of outputs from p on, what the events of one frame bring. */
static void add_frame(const spikerun *m, const matrix *w, span s, uint32_t p, float *sum) {
    const int8_t *n = m->loop == SPIKERUN_COUNTS ? m->list_counts : NULL;
    if (w->kind >= LISTS)
        for (uint32_t e = s.begin; e < s.end; e++)
            add_entries(w, m->list[e], n ? (float)n[e] : e < s.negative ? 1.0f : -1.0f, sum);
    else if (w->codes)
        add_codes(w->codes + (size_t)p * w->in, w->bits, m->list, n, s, sum);
    else if (n)
        add_counts(w->rows + (size_t)p * w->in, m->list, n, s, sum);
    else
        add_events(w->rows + (size_t)p * w->in, m->list, s, sum);
}

/* Asks for part i of `parts` of the panel that comes next, while this one is added. */
static void prefetch(const matrix *w, uint32_t p, uint32_t i, uint32_t parts) {
    size_t lines = w->in, to = lines * (i + 1) / parts;
    if (w->kind >= LISTS || p >= w->stride) return;
    const char *next = w->codes ? (const char *)(w->codes + (size_t)p * w->in) : (const char *)(w->rows + (size_t)p * w->in);
    for (size_t line = lines * i / parts; line < to; line++) PREFETCH(next + line * 64);
}

/* y [n][stride] = what the rows of w bring that spike in a window, over its norm; from one frame to the next the sum
 * leaks. Without bias. */
static void synapses(spikerun *m, const matrix *w, const train *s, window seen, uint32_t n, float *y) {
    uint32_t frames = seen.last - seen.first;
    uint32_t panel = w->kind >= LISTS ? w->stride : w->codes ? CODE_LANES : LANES;
    memset(y, 0, sizeof *y * w->stride * n);
    for (uint32_t block = 0; block < n; block += TOKENS) {
        uint32_t tokens = n - block < TOKENS ? n - block : TOKENS, at = 0;
        for (uint32_t i = 0; i < tokens; i++)
            for (uint32_t f = 0; f < frames; f++) {
                span *found = &m->spans[i * frames + f];
                const int8_t *spikes = s->spikes + (seen.first + f) * s->frame + (size_t)(block + i) * s->stride;
                at = list_events(m, spikes, s->channels, at, found);
                m->here->additions += additions_of(w, m, *found);
            }
        for (uint32_t p = 0; p < w->stride; p += panel)
            for (uint32_t i = 0; i < tokens; i++) {
                float *sum = y + (size_t)(block + i) * w->stride + p;
                prefetch(w, p + panel, i, tokens);
                for (uint32_t f = 0; f < frames; f++) {
                    for (uint32_t k = 0; f && m->leak != 1.0f && k < panel; k++) sum[k] *= m->leak;
                    add_frame(m, w, m->spans[i * frames + f], p, sum);
                }
            }
    }
    for (uint32_t i = 0; i < n; i++) {
        float *to = y + (size_t)i * w->stride;
        if (w->scale)
            for (uint32_t k = 0; k < w->out; k++) to[k] = to[k] * w->scale[k] / seen.norm;
        else if (seen.norm != 1.0f)
            for (uint32_t k = 0; k < w->out; k++) to[k] /= seen.norm;
    }
}

static void add_bias(const matrix *w, uint32_t n, float *y) {
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t k = 0; k < w->out; k++) y[(size_t)i * w->stride + k] += w->bias[k];
}

/* The shortcut of spikes: y [n][stride] += theta times what a channel sent, over norm. A spike is one addition. */
static void shortcut(spikerun *m, const train *s, window seen, const float *theta, uint32_t n, float *y,
                     uint32_t stride) {
    for (uint32_t i = 0; i < n; i++) {
        float *sum = m->row;
        memset(sum, 0, sizeof *sum * s->channels);
        for (uint32_t f = seen.first; f < seen.last; f++) {
            span found;
            if (f > seen.first && m->leak != 1.0f)
                for (uint32_t c = 0; c < s->channels; c++) sum[c] *= m->leak;
            list_events(m, s->spikes + f * s->frame + (size_t)i * s->stride, s->channels, 0, &found);
            for (uint32_t e = found.begin; e < found.end; e++) {
                uint32_t c = m->list[e];
                int k = m->loop == SPIKERUN_COUNTS ? m->list_counts[e] : e < found.negative ? 1 : -1;
                sum[c] += k == 1 ? theta[c] : k == -1 ? -theta[c] : (float)k * theta[c];
                m->here->additions += (uint64_t)(k < 0 ? -k : k);
            }
        }
        for (uint32_t c = 0; c < s->channels; c++) y[(size_t)i * stride + c] += sum[c] / seen.norm;
    }
}

/* -------------------------------------------------------------------------------------------- element-wise functions */

/* e^x for x <= 0: 2^k times the series of the rest, |rest| <= ln 2 / 2. The same on every processor, unlike libm's. */
static float exp_negative(float x) {
    x = x > -87.0f ? x : -87.0f; /* NaN too */
    x = x < 0.0f ? x : 0.0f;
    int32_t k = (int32_t)(x * 1.44269504f - 0.5f);
    float r = (x - (float)k * 0.693145752f) - (float)k * 1.42860677e-6f;
    float p = 1.0f + r * (1.0f + r * (0.5f + r * (0.166666667f + r * (0.0416666667f +
              r * (8.33333333e-3f + r * (1.38888889e-3f + r * 1.98412698e-4f))))));
    uint32_t bits = (uint32_t)(k + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

/* A minimax quotient on |x| <= 3.92, beyond which erf is 1 in single precision. */
static float error_function(float x) {
    x = x < 3.92f ? x : 3.92f;
    x = x > -3.92f ? x : -3.92f;
    float z = x * x;
    float p = 1.12837911f + z * (0.190405726f + z * (0.0527486242f + z * (3.76558444e-3f + z * (2.84881855e-4f +
              z * 2.05009133e-6f))));
    float q = 1.0f + z * (0.502075434f + z * (0.114108808f + z * (0.0149691524f + z * (1.16252725e-3f +
              z * 3.80917118e-5f))));
    return x * p / q;
}

static float hyperbolic_tangent(float x) {
    float e = exp_negative(x < 0 ? 2.0f * x : -2.0f * x);
    float y = (1.0f - e) / (1.0f + e);
    return x < 0 ? -y : y;
}

static void activate(uint32_t act, float *x, uint32_t size) {
    if (act == GELU)
        for (uint32_t i = 0; i < size; i++) x[i] = 0.5f * x[i] * (1.0f + error_function(x[i] * 0.707106781f));
    else if (act == GELU_NEW)
        for (uint32_t i = 0; i < size; i++) {
            float inner = 0.797884561f * (x[i] + 0.044715f * x[i] * x[i] * x[i]);
            x[i] = 0.5f * x[i] * (1.0f + hyperbolic_tangent(inner));
        }
    else
        for (uint32_t i = 0; i < size; i++) x[i] = x[i] > 0.0f ? x[i] : 0.0f;
}

/* In a fixed order, so that all processors round alike. */
static float total(const float *x, uint32_t size) {
    float part[LANES] = {0};
    uint32_t i = 0;
    for (; i + LANES <= size; i += LANES)
        for (uint32_t k = 0; k < LANES; k++) part[k] += x[i + k];
    for (uint32_t k = 0; i + k < size; k++) part[k] += x[i + k];
    for (uint32_t half = LANES / 2; half; half /= 2)
        for (uint32_t k = 0; k < half; k++) part[k] += part[k + half];
    return part[0];
}

static void layer_norm(spikerun *m, float *x, const float *weight, const float *bias) {
    uint32_t size = m->shape.hidden;
    float mean = total(x, size) / (float)size, *square = m->row;
    for (uint32_t i = 0; i < size; i++) x[i] -= mean;
    for (uint32_t i = 0; i < size; i++) square[i] = x[i] * x[i];
    float factor = 1.0f / sqrtf(total(square, size) / (float)size + m->eps);
    for (uint32_t i = 0; i < size; i++) x[i] = x[i] * factor * weight[i] + bias[i];
}

/* ---------------------------------------------------------------------------------------------------------- neurons */

/* Signed spikes of T steps of the constant currents x, of neurons that do not leak: T x / theta, rounded to nearest
 * (`ternary_settled` and `binary_settled` of snn/neurons.py). */
static void settle(int ternary, uint32_t t_steps, const float *x, const float *theta, uint32_t size, int8_t *spikes) {
    float most = (float)t_steps;
    for (uint32_t c = 0; c < size; c++) {
        float y = most * (x[c] / theta[c]);
        float number = (y < 0 ? -y : y) + 0.5f;
        int32_t k = (int32_t)(number < most ? number : most);
        spikes[c] = (int8_t)(y < 0 ? (ternary ? -k : 0) : k);
    }
}

/* One step: u <- leak u + x, a spike where u reaches theta (half of it, either sign, if ternary), u <- u - theta s. */
static void step(const spikerun *m, const float *x, const float *theta, uint32_t size, float *u, int8_t *spikes) {
    if (m->ternary)
        for (uint32_t c = 0; c < size; c++) {
            float v = m->leak * u[c] + x[c], half = theta[c] / 2;
            int s = (v >= half) - (v <= -half);
            u[c] = v - theta[c] * (float)s, spikes[c] = (int8_t)s;
        }
    else
        for (uint32_t c = 0; c < size; c++) {
            float v = m->leak * u[c] + x[c];
            int s = v >= theta[c];
            u[c] = v - theta[c] * (float)s, spikes[c] = (int8_t)s;
        }
}

static void rest(const spikerun *m, const float *theta, uint32_t size, float *u) {
    for (uint32_t c = 0; c < size; c++) u[c] = m->ternary ? 0.0f : 0.5f * theta[c];
}

/* Neurons of all tokens on the currents x [n][stride]: their whole train where these are constant, else step `t`, which
 * goes to frame `frame`. */
static void fire(spikerun *m, int index, int population, const layer *l, const float *x, uint32_t stride, int constant,
                 uint32_t t, uint32_t frame, uint32_t n, train *s) {
    const float *theta = l ? l->theta[population] : m->theta;
    uint32_t t_steps = l ? l->t_steps : m->t_embedding;
    int closed = m->coding == ACCUMULATE && m->leak == 1.0f;
    uint32_t size = s->channels, first = closed ? 0 : constant ? 0 : t;
    uint32_t last = closed ? 1 : constant ? t_steps : t + 1;
    for (uint32_t i = 0; i < n; i++) {
        const float *current = x + (size_t)i * stride;
        int8_t *out = s->spikes + (size_t)i * s->stride;
        if (closed) {
            settle(m->ternary != 0, t_steps, current, theta, size, out);
            continue;
        }
        float *u = constant ? m->row : m->membrane[population] + (size_t)i * size;
        if (first == 0) rest(m, theta, size, u);
        for (uint32_t k = first; k < last; k++) step(m, current, theta, size, u, out + (constant ? k : frame) * s->frame);
    }
    for (uint32_t k = first; m->observer && k < last; k++)
        m->observer(m->observed, index, population, (int)k, s->spikes + (closed ? 0 : constant ? k : frame) * s->frame, (int)n,
                    (int)size, s->stride);
}

/* ------------------------------------------------------------------------------------------------------------ layers */

/* softmax(q k^T / sqrt d) v of one head into y [n][stride]. A key's spike adds its channel of all queries to the scores
 * of its token, a value's spike the weights of its token to its channel of all contexts: both are columns over queries.
 * `factor`: what a spike of a key or value weighs. */
static void attend(spikerun *m, const layer *l, uint32_t head, const float *q, uint32_t q_stride, float norm, uint32_t n,
                   float *y, uint32_t stride) {
    uint32_t d = m->head_size, lanes = padded(n, LANES), frames = m->key.frames, base = head * d;
    const float *theta_key = l->theta[SPIKERUN_KEY] + base, *theta_value = l->theta[SPIKERUN_VALUE] + base;
    float root = sqrtf((float)d);
    for (uint32_t c = 0; c < d; c++) {
        float factor = theta_key[c] / (root * norm);
        for (uint32_t i = 0; i < n; i++) m->query[c * lanes + i] = q[(size_t)i * q_stride + base + c] * factor;
        for (uint32_t i = n; i < lanes; i++) m->query[c * lanes + i] = 0.0f;
    }
    for (uint32_t j = 0; j < n; j++)
        for (uint32_t i = 0; i < lanes; i++) {
            int32_t far = (int32_t)m->reach, distance = (int32_t)j - (int32_t)i;
            distance = distance < -far ? -far : distance > far ? far : distance;
            m->scores[(size_t)j * lanes + i] =
                l->relative_bias ? l->relative_bias[head * (2 * m->reach + 1) + (uint32_t)(distance + far)] : 0.0f;
        }
    memset(m->mixed, 0, sizeof *m->mixed * d * lanes);
    for (int part = 0; part < 2; part++) {
        const train *s = part ? &m->value : &m->key;
        for (uint32_t j = 0; j < n; j++)
            for (uint32_t f = 0; f < frames; f++) {
                span found;
                list_events(m, s->spikes + f * s->frame + (size_t)j * s->stride + base, d, 0, &found);
                float decay = 1.0f; /* of this step's spikes until the train ends */
                for (uint32_t k = f + 1; k < frames; k++) decay *= m->leak;
                for (uint32_t e = found.begin; e < found.end; e++) {
                    uint32_t c = m->list[e];
                    int k = m->loop == SPIKERUN_COUNTS ? m->list_counts[e] : e < found.negative ? 1 : -1;
                    float weight = decay * (float)k;
                    float *sum = part ? m->mixed + c * lanes : m->scores + (size_t)j * lanes;
                    const float *column = part ? m->scores + (size_t)j * lanes : m->query + c * lanes;
                    for (uint32_t i = 0; i < lanes; i += LANES) add_block(column + i, weight, sum + i);
                    m->here->additions += (uint64_t)(k < 0 ? -k : k) * n;
                }
            }
        if (part) break;
        float *most = m->row, *sum = m->row + lanes; /* of each query over all keys */
        memcpy(most, m->scores, sizeof *most * lanes);
        memset(sum, 0, sizeof *sum * lanes);
        for (uint32_t j = 1; j < n; j++)
            for (uint32_t i = 0; i < lanes; i++) {
                float score = m->scores[(size_t)j * lanes + i];
                most[i] = score > most[i] ? score : most[i];
            }
        for (uint32_t j = 0; j < n; j++)
            for (uint32_t i = 0; i < lanes; i++) {
                float e = exp_negative(m->scores[(size_t)j * lanes + i] - most[i]);
                m->scores[(size_t)j * lanes + i] = e, sum[i] += e;
            }
        for (uint32_t j = 0; j < n; j++)
            for (uint32_t i = 0; i < lanes; i++) m->scores[(size_t)j * lanes + i] /= sum[i];
    }
    for (uint32_t c = 0; c < d; c++)
        for (uint32_t i = 0; i < n; i++)
            y[(size_t)i * stride + base + c] = m->mixed[c * lanes + i] * theta_value[c] / norm;
    m->here->elementwise += (uint64_t)n * n;
}

/* sum_{i<T} leak^i: by which a train's (leaking) sum is divided for its mean. */
static float norm_of(const spikerun *m, uint32_t t_steps) {
    float sum = 0.0f;
    for (uint32_t t = 0; t < t_steps; t++) sum = m->leak * sum + 1.0f;
    return sum;
}

/* y <- what a reader sees at step t of a source of `ended` steps: in per_step its synapses' input now, after the end the
 * mean of all that came, which `held` sums up. */
static void hold(const spikerun *m, uint32_t t, uint32_t ended, size_t size, float *y, float *held) {
    float norm = norm_of(m, ended);
    for (size_t i = 0; t < ended && i < size; i++) held[i] = (t ? m->leak * held[i] : 0.0f) + y[i];
    for (size_t i = 0; t >= ended && i < size; i++) y[i] = held[i] / norm;
}

/* The membrane shortcut: y [n][stride] += currents [n][D]. */
static void add_currents(spikerun *m, const float *currents, uint32_t n, float *y, uint32_t stride) {
    uint32_t size = m->shape.hidden;
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t c = 0; c < size; c++) y[(size_t)i * stride + c] += currents[(size_t)i * size + c];
}

static void norm_rows(spikerun *m, const float *y, uint32_t stride, const float *weight, const float *bias, uint32_t n,
                      float *x) {
    uint32_t size = m->shape.hidden;
    for (uint32_t i = 0; i < n; i++) {
        memcpy(x + (size_t)i * size, y + (size_t)i * stride, sizeof *x * size);
        layer_norm(m, x + (size_t)i * size, weight, bias);
    }
    m->here->elementwise += (uint64_t)n * size;
}

/* What the attention's shortcut adds at step t: `past` [n][D], from a source of `ended` steps. */
static const float *past_below(spikerun *m, const float *theta, uint32_t index, uint32_t t, uint32_t ended, int waits,
                               window seen, uint32_t n) {
    size_t size = (size_t)n * m->shape.hidden;
    float *past = m->summed;
    if (m->residual == SPIKES) {
        memset(past, 0, sizeof *past * size);
        if (t < ended) shortcut(m, &m->below, seen, theta, n, past, m->shape.hidden);
    } else if (m->coding == ACCUMULATE || index == 0) {
        return m->drive; /* constant */
    } else if (t < ended) {
        memcpy(past, m->drive + (size_t)t * m->shape.max_tokens * m->shape.hidden, sizeof *past * size);
    }
    if (waits) hold(m, t, ended, size, past, m->held_past);
    return past;
}

/* One encoder layer. Reads m->below, a train of `ended` steps, and m->drive, its currents; leaves its own there. */
static void run_layer(spikerun *m, uint32_t index, const float *theta_below, uint32_t ended, uint32_t n) {
    const layer *l = &m->layers[index];
    uint32_t T = l->t_steps, size = m->shape.hidden, stride = padded(l->inner, LANES);
    int constant = m->coding == ACCUMULATE, membrane = m->residual == MEMBRANE, at = (int)index;
    int closed = constant && m->leak == 1.0f, waits = !constant && T > ended;
    window own = {0, closed || !constant ? 1 : T, constant ? norm_of(m, T) : 1.0f};
    float *y = m->currents;
    train *const inside[] = {&m->key, &m->value, &m->context, &m->hidden, &m->wide};
    for (uint32_t k = 0; k < 5; k++) inside[k]->frames = own.last;
    m->key.channels = m->value.channels = m->context.channels = l->inner;
    m->wide.channels = l->ffn, m->above.frames = closed ? 1 : T;
    for (uint32_t t = 0; t < (constant ? 1 : T); t++) {
        window seen = {t, t + 1, 1.0f};
        if (constant) seen.first = 0, seen.last = m->below.frames, seen.norm = norm_of(m, ended);
        if (t < ended || constant) synapses(m, &l->qkv, &m->below, seen, n, y);
        if (waits) hold(m, t, ended, (size_t)n * l->qkv.stride, y, m->held);
        add_bias(&l->qkv, n, y);
        fire(m, at, SPIKERUN_KEY, l, y + l->inner, l->qkv.stride, constant, t, 0, n, &m->key);
        fire(m, at, SPIKERUN_VALUE, l, y + 2 * l->inner, l->qkv.stride, constant, t, 0, n, &m->value);
        for (uint32_t head = 0; head < l->heads; head++)
            attend(m, l, head, y, l->qkv.stride, own.norm, n, m->summed, stride);
        fire(m, at, SPIKERUN_CONTEXT, l, m->summed, stride, constant, t, 0, n, &m->context);

        synapses(m, &l->out, &m->context, own, n, y);
        add_bias(&l->out, n, y);
        add_currents(m, past_below(m, theta_below, index, constant ? 0 : t, ended, waits, seen, n), n, y, l->out.stride);
        norm_rows(m, y, l->out.stride, l->attention_weight, l->attention_bias, n, m->drive_hidden);
        fire(m, at, SPIKERUN_ATTENTION, l, m->drive_hidden, size, constant, t, 0, n, &m->hidden);

        synapses(m, &l->up, &m->hidden, own, n, y);
        add_bias(&l->up, n, y);
        for (uint32_t i = 0; i < n; i++) activate(m->act, y + (size_t)i * l->up.stride, l->ffn);
        m->here->elementwise += (uint64_t)n * l->ffn;
        fire(m, at, SPIKERUN_INTERMEDIATE, l, y, l->up.stride, constant, t, 0, n, &m->wide);

        synapses(m, &l->down, &m->wide, own, n, y);
        add_bias(&l->down, n, y);
        if (membrane)
            add_currents(m, m->drive_hidden, n, y, l->down.stride);
        else
            shortcut(m, &m->hidden, own, l->theta[SPIKERUN_ATTENTION], n, y, l->down.stride);
        if (membrane) m->here->additions += 2u * (uint64_t)n * size;
        float *drive = membrane ? m->next_drive + (size_t)t * m->shape.max_tokens * size : m->summed;
        norm_rows(m, y, l->down.stride, l->output_weight, l->output_bias, n, drive);
        fire(m, at, SPIKERUN_OUTPUT, l, drive, size, constant, t, t, n, &m->above);
    }
    train below = m->below;
    float *drive = m->drive;
    m->below = m->above, m->above = below;
    m->drive = m->next_drive, m->next_drive = drive;
}

/* Currents of the embedding: the normed sum of a token's rows. */
static void embed(spikerun *m, const int32_t *ids, const int32_t *segments, uint32_t n) {
    uint32_t size = m->shape.hidden;
    for (uint32_t i = 0; i < n; i++) {
        const float *position = m->position + (size_t)i * size;
        const float *segment = m->segment + (size_t)(segments ? segments[i] : 0) * size;
        float *x = m->drive + (size_t)i * size;
        size_t word = (size_t)ids[i] * size;
        for (uint32_t c = 0; c < size; c++)
            x[c] = m->word ? m->word[word + c] : m->word_scale[ids[i]] * (float)m->word_codes[word + c];
        for (uint32_t c = 0; c < size; c++) x[c] = x[c] + position[c] + segment[c];
        layer_norm(m, x, m->norm_weight, m->norm_bias);
    }
    m->here->elementwise += (uint64_t)n * size;
}

/* Logits of the last layer's train, of `ended` steps: of [CLS] through the pooler, or of the mean over tokens. */
static void classify(spikerun *m, const float *theta, uint32_t ended, uint32_t n, float *logits) {
    uint32_t size = m->shape.hidden;
    window seen = {0, m->below.frames, norm_of(m, ended)};
    float *value = m->currents;
    if (m->pooling == CLS) {
        synapses(m, &m->pooler, &m->below, seen, 1, value);
        add_bias(&m->pooler, 1, value);
        if (m->pooler_act)
            activate(GELU, value, size);
        else
            for (uint32_t c = 0; c < size; c++) value[c] = hyperbolic_tangent(value[c]);
        m->here->elementwise += size;
    } else {
        float *each = m->summed; /* [n][D] */
        memset(each, 0, sizeof *each * n * size);
        memset(value, 0, sizeof *value * size);
        shortcut(m, &m->below, seen, theta, n, each, size);
        for (uint32_t i = 0; i < n; i++)
            for (uint32_t c = 0; c < size; c++) value[c] += each[(size_t)i * size + c];
        for (uint32_t c = 0; c < size; c++) value[c] /= (float)n;
    }
    for (uint32_t k = 0; k < m->shape.classes; k++) {
        const float *weight = m->classifier + (size_t)k * size;
        for (uint32_t c = 0; c < size; c++) m->row[c] = weight[c] * value[c];
        logits[k] = total(m->row, size) + m->classifier_bias[k];
    }
    m->here->multiplications += (uint64_t)m->shape.classes * size;
}

int spikerun_run(spikerun *m, const int32_t *ids, const int32_t *segments, uint32_t n, float *logits) {
    if (n < 1 || n > m->shape.max_tokens) return SPIKERUN_LENGTH;
    for (uint32_t i = 0; i < n; i++) {
        if (ids[i] < 0 || (uint32_t)ids[i] >= m->shape.vocab) return SPIKERUN_TOKEN;
        if (segments && (segments[i] < 0 || (uint32_t)segments[i] >= m->shape.segments)) return SPIKERUN_SEGMENT;
    }
    memset(m->operations, 0, sizeof *m->operations * (m->shape.layers + 2));
    m->here = m->operations;
    embed(m, ids, segments, n);
    m->below.frames = m->coding == ACCUMULATE && m->leak == 1.0f ? 1 : m->t_embedding;
    fire(m, -1, SPIKERUN_EMBEDDING, NULL, m->drive, m->shape.hidden, 1, 0, 0, n, &m->below);
    const float *theta = m->theta;
    uint32_t ended = m->t_embedding;
    for (uint32_t i = 0; i < m->shape.layers; i++) {
        m->here++;
        run_layer(m, i, theta, ended, n);
        theta = m->layers[i].theta[SPIKERUN_OUTPUT], ended = m->layers[i].t_steps;
    }
    m->here++;
    classify(m, theta, ended, n, logits);
    return SPIKERUN_OK;
}

int spikerun_set_loop(spikerun *m, int loop) {
    int fits = loop == SPIKERUN_EVENTS || (loop == SPIKERUN_COUNTS && m->coding == ACCUMULATE && m->leak == 1.0f);
    if (fits) m->loop = loop;
    return fits ? SPIKERUN_OK : SPIKERUN_LOOP;
}

void spikerun_observe(spikerun *m, spikerun_observer observer, void *context) {
    m->observer = observer, m->observed = context;
}

spikerun_shape spikerun_shape_of(const spikerun *m) { return m->shape; }
const spikerun_operations *spikerun_operations_of(const spikerun *m) { return m->operations; }
size_t spikerun_used(const spikerun *m) { return m->used; }
