/* spikerun MODEL [--counts] [--repeat N] [--vocab FILE] [--layers]
 *
 * Reads sentences from standard input, one a line, and prints label, logits, operations and milliseconds of processor time
 * of each. A line is token ids; those behind a `|` are of segment 1. With a vocabulary, one entry a line, it is lower-case
 * English (ASCII), which is split into word pieces as BERT does. Exit code 2: bad input, with a sentence. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "spikerun.h"

#define LINE 65536
#define MOST_TOKENS 65536
#define LONGEST_WORD 100 /* longer ones are unknown, as in BERT's tokenizer */

typedef struct {
    char *text, **entries; /* sorted */
    int32_t *ids;
    size_t count;
} vocabulary;

typedef struct {
    int32_t ids[MOST_TOKENS], segments[MOST_TOKENS];
    uint32_t count;
} sentence;

static int fail(const char *place, const char *words) {
    fprintf(stderr, "error: %s: %s\n", place, words);
    return 2;
}

/* A file in memory at a multiple of 64, as wide vectors like it; *block is what to free. */
static unsigned char *read_file(const char *path, size_t *size, void **block) {
    FILE *file = fopen(path, "rb");
    long end = -1;
    if (file && fseek(file, 0, SEEK_END) == 0) end = ftell(file);
    *block = end >= 0 ? malloc((size_t)end + 65) : NULL;
    unsigned char *at = *block;
    if (at) at += 64 - (uintptr_t)at % 64;
    if (at && (fseek(file, 0, SEEK_SET) != 0 || fread(at, 1, (size_t)end, file) != (size_t)end)) at = NULL;
    if (file) fclose(file);
    if (at) at[end] = 0;
    *size = end >= 0 ? (size_t)end : 0;
    return at;
}

/* ------------------------------------------------------------------------------------------------------- word pieces */

static int compare(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static int32_t lookup(const vocabulary *v, const char *word) {
    char **found = bsearch(&word, v->entries, v->count, sizeof *v->entries, compare);
    return found ? v->ids[found - v->entries] : -1;
}

static int read_vocabulary(const char *path, vocabulary *v) {
    size_t size, lines = 0;
    void *block;
    v->text = (char *)read_file(path, &size, &block);
    if (!v->text || memchr(v->text, 0, size)) return fail(path, "is no vocabulary of one entry a line");
    for (size_t i = 0; i < size; i++) lines += v->text[i] == '\n';
    char **plain = malloc((lines + 1) * sizeof *plain);
    v->entries = malloc((lines + 1) * sizeof *v->entries), v->ids = malloc((lines + 1) * sizeof *v->ids);
    if (!plain || !v->entries || !v->ids) return fail(path, "does not fit into memory");
    for (char *line = v->text; *line; v->count++) {
        size_t length = strcspn(line, "\r\n");
        char *next = line + length + strspn(line + length, "\r");
        next += *next == '\n';
        plain[v->count] = v->entries[v->count] = line;
        line[length] = 0;
        line = next;
        if (v->count == lines) break;
    }
    qsort(v->entries, v->count, sizeof *v->entries, compare);
    for (size_t i = 0; i < v->count; i++) {
        char **found = bsearch(&plain[i], v->entries, v->count, sizeof *v->entries, compare);
        v->ids[found - v->entries] = (int32_t)i;
    }
    free(plain);
    if (lookup(v, "[CLS]") < 0 || lookup(v, "[SEP]") < 0 || lookup(v, "[UNK]") < 0)
        return fail(path, "has no [CLS], [SEP] or [UNK]");
    return 0;
}

static void push(sentence *s, int32_t id, int32_t segment) {
    if (s->count < MOST_TOKENS) s->ids[s->count] = id, s->segments[s->count++] = segment;
}

/* The longest pieces that make up the word, from its start on; all of it is unknown where one is missing. */
static void push_word(const vocabulary *v, const char *word, size_t size, sentence *s) {
    uint32_t before = s->count;
    char piece[LONGEST_WORD + 3];
    for (size_t from = 0, to; from < size; from = to) {
        int32_t id = -1;
        for (to = size; size <= LONGEST_WORD && to > from; to--) {
            int inside = from > 0;
            memcpy(piece, "##", 2);
            memcpy(piece + 2 * inside, word + from, to - from);
            piece[2 * (size_t)inside + to - from] = 0;
            if ((id = lookup(v, piece)) >= 0) break;
        }
        if (id < 0) {
            s->count = before;
            push(s, lookup(v, "[UNK]"), 0);
            return;
        }
        push(s, id, 0);
    }
}

static int read_words(const vocabulary *v, const char *place, char *line, sentence *s) {
    push(s, lookup(v, "[CLS]"), 0);
    for (char *at = line; *at;) {
        if ((unsigned char)*at >= 128) return fail(place, "is not ASCII: give the ids of a complete tokenizer");
        size_t size = 0;
        while (isalnum((unsigned char)at[size])) at[size] = (char)tolower((unsigned char)at[size]), size++;
        if (size) push_word(v, at, size, s);
        if (!size && ispunct((unsigned char)*at)) push_word(v, at, 1, s);
        at += size ? size : 1;
    }
    if (s->count == 1) return fail(place, "is empty");
    push(s, lookup(v, "[SEP]"), 0);
    return 0;
}

static int read_ids(const char *place, char *line, sentence *s) {
    int32_t segment = 0;
    for (char *at = line;;) {
        at += strspn(at, " \t\r\n");
        if (!*at) return 0;
        char *end = at + 1;
        if (*at == '|') {
            segment++;
        } else {
            long id = strtol(at, &end, 10);
            if (end == at || id < 0 || id > INT32_MAX) return fail(place, "is no list of token ids, with | before segment 1");
            push(s, (int32_t)id, segment);
        }
        at = end;
    }
}

/* ------------------------------------------------------------------------------------------------------------ program */

static void print_answer(const spikerun *model, const float *logits, double ms, int layers) {
    spikerun_shape shape = spikerun_shape_of(model);
    const spikerun_operations *found = spikerun_operations_of(model);
    spikerun_operations sum = {0, 0, 0};
    uint32_t label = 0;
    for (uint32_t i = 0; i < shape.layers + 2; i++) {
        sum.additions += found[i].additions, sum.multiplications += found[i].multiplications;
        sum.elementwise += found[i].elementwise;
    }
    for (uint32_t k = 1; k < shape.classes; k++) label = logits[k] > logits[label] ? k : label;
    printf("label %lu logits", (unsigned long)label);
    for (uint32_t k = 0; k < shape.classes; k++) printf(" %.9g", (double)logits[k]);
    printf(" additions %.0f multiplications %.0f elementwise %.0f ms %.4f\n", (double)sum.additions,
           (double)sum.multiplications, (double)sum.elementwise, ms);
    for (uint32_t i = 0; layers && i < shape.layers + 2; i++)
        printf("  layer %ld additions %.0f multiplications %.0f elementwise %.0f\n", (long)i - 1, (double)found[i].additions,
               (double)found[i].multiplications, (double)found[i].elementwise);
}

static int answer(spikerun *model, const vocabulary *v, long number, char *line, long repeat, int layers, float *logits) {
    static sentence s;
    char place[32];
    s.count = 0;
    snprintf(place, sizeof place, "line %ld", number);
    int code = v->count ? read_words(v, place, line, &s) : read_ids(place, line, &s);
    if (code) return code;
    clock_t start = clock();
    for (long i = 0; i < repeat; i++)
        if ((code = spikerun_run(model, s.ids, s.segments, s.count, logits))) return fail(place, spikerun_message(code));
    print_answer(model, logits, 1e3 * (double)(clock() - start) / CLOCKS_PER_SEC / (double)repeat, layers);
    return 0;
}

int main(int count, char **words) {
    int loop = SPIKERUN_EVENTS, layers = 0, code;
    long repeat = 1;
    vocabulary v = {NULL, NULL, NULL, 0};
    const char *usage = "MODEL [--counts] [--repeat N] [--vocab FILE] [--layers] < sentences";
    if (count < 2 || words[1][0] == '-') return fail("usage", usage);
    for (int i = 2; i < count; i++) {
        if (!strcmp(words[i], "--counts"))
            loop = SPIKERUN_COUNTS;
        else if (!strcmp(words[i], "--layers"))
            layers = 1;
        else if (!strcmp(words[i], "--repeat") && i + 1 < count && (repeat = atol(words[i + 1])) > 0)
            i++;
        else if (!strcmp(words[i], "--vocab") && i + 1 < count) {
            if (read_vocabulary(words[++i], &v)) return 2;
        } else
            return fail("usage", usage);
    }
    size_t size, bytes = 0;
    void *block;
    unsigned char *file = read_file(words[1], &size, &block);
    if (!file) return fail(words[1], "cannot be read");
    if ((code = spikerun_arena(file, size, MOST_TOKENS, &bytes))) return fail(words[1], spikerun_message(code));
    unsigned char *arena = bytes <= SIZE_MAX - 64 ? malloc(bytes + 64) : NULL;
    if (!arena) return fail(words[1], "its arena does not fit into memory");
    arena += 64 - (uintptr_t)arena % 64;
    spikerun *model;
    if ((code = spikerun_open(&model, file, size, MOST_TOKENS, arena, bytes))) return fail(words[1], spikerun_message(code));
    if ((code = spikerun_set_loop(model, loop))) return fail(words[1], spikerun_message(code));
    float *logits = malloc(spikerun_shape_of(model).classes * sizeof *logits);
    static char line[LINE];
    if (!logits) return fail(words[1], "its logits do not fit into memory");
    printf("model %lu bytes, arena %lu bytes\n", (unsigned long)size, (unsigned long)bytes);
    for (long number = 1; fgets(line, sizeof line, stdin); number++)
        if ((code = answer(model, &v, number, line, repeat, layers, logits))) return code;
    return 0;
}
