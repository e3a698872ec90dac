/* Scores binary PGM and PPM files of 8 or 16 bits: a line with verdict, score, name and reason for each.
 *
 *     cc -std=c99 station.c $(pkg-config --cflags --libs sprfast) -o station
 *     ./station screw.plan parts/1.ppm parts/2.pgm
 */
#include <sprfast.h>
#include <stdio.h>
#include <stdlib.h>

/* The picture of a file as a frame, in memory for the caller to free; its rows are padded as a camera's are. */
static int read_frame(const char* path, sprfast_frame* frame) {
    int kind, height, width, most, colour, deep, ok = 0;
    FILE* file = fopen(path, "rb");
    unsigned char* pixels = NULL;
    if (!file) return 0;
    if (fscanf(file, "P%d %d %d %d", &kind, &width, &height, &most) == 4 && (kind == 5 || kind == 6) && width > 0 &&
        height > 0 && width <= 65536 && height <= 65536 && fgetc(file) != EOF) {
        colour = kind == 6;
        deep = most > 255;
        const int64_t row = (int64_t)width * (colour ? 3 : 1) * (deep ? 2 : 1), pitch = (row + 63) / 64 * 64;
        ok = (pixels = malloc((size_t)(pitch * height))) != NULL;
        for (int y = 0; ok && y < height; y++) {
            unsigned char* values = pixels + y * pitch;
            ok = fread(values, 1, (size_t)row, file) == (size_t)row;
            for (int64_t i = 0; deep && i < row; i += 2) /* which the file has with the high byte first */
                *(uint16_t*)(values + i) = (uint16_t)(values[i] << 8 | values[i + 1]);
        }
        const int32_t format = colour ? (deep ? SPRFAST_RGB16 : SPRFAST_RGB8) : (deep ? SPRFAST_GREY16 : SPRFAST_GREY8);
        *frame = (sprfast_frame){sizeof *frame, format, pixels, (uint64_t)(pitch * height), height, width, pitch};
    }
    fclose(file);
    if (!ok) free(pixels);
    return ok;
}

int main(int count, char** arguments) {
    const char* const verdicts[] = {"ERROR", "PASS", "REJECT"};
    sprfast_error error = {.size = sizeof error};
    sprfast_engine* engine;
    if (count < 2) return fprintf(stderr, "usage: station EXPORT FILE...\n"), 2;
    if (sprfast_open(arguments[1], NULL, &engine, &error)) return fprintf(stderr, "station: %s\n", error.text), 2;
    for (int i = 2; i < count; i++) {
        sprfast_frame frame;
        sprfast_result result = {.size = sizeof result};
        if (!read_frame(arguments[i], &frame)) {
            printf("ERROR nan %s: cannot be read\n", arguments[i]);
            continue;
        }
        if (sprfast_score(engine, &frame, &result, &error)) return fprintf(stderr, "station: %s\n", error.text), 2;
        printf("%s %.17g %s: %s\n", verdicts[result.verdict], result.pred_score, arguments[i], result.reason);
        free((void*)frame.data);
    }
    sprfast_close(engine);
    return 0;
}
