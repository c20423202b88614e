/* Sampling between the matrix products, for one token of each row: attention over a shared prompt and a row's own tokens,
 * norms, and the choice of a token. Sums are in fp32 (of probabilities: in double), whatever is stored; work is split by
 * rows, so the number of threads changes nothing in a result. */
#include "decode.h"

/* Floats that a thread of decode_attention needs where a row sees ``most`` tokens. */
int64_t scores_room(int64_t most) { return QUERIES * most; }

#define T float
#define LOAD same
#define STORE same
#define PAIR pair_float32
#define PLACE place_float32
#define MORE more_float32
#define NAME(x) x##_float32
#include "typed.h"

enum { BLOCK = 256 }; /* words summed in fp32 before they are summed in double */

static double below(double x) { return nextafter(x, 0.0); }

#include "draw.h"
#undef T
#undef LOAD
#undef NAME

#define T uint16_t
#define LOAD from_bfloat16
#define NAME(x) x##_bfloat16
#include "draw.h"

/* Each row's uniform number for the token that it takes next: from (numbers, columns), row n's being numbers[n], counts[n]. */
void look_up(const double *uniforms, int64_t columns, const int64_t *numbers, const int64_t *counts, int64_t rows,
             double *out) {
  for (int64_t n = 0; n < rows; n++) out[n] = uniforms[numbers[n] * columns + counts[n]];
}

/* Tokens and their log-probs are written down where their rows stand, (numbers, columns), and rows that were running have one
 * more; one that took an end, a word of which ``is_end`` is true, or has ``limits`` of them, runs no longer. */
void settle(const int64_t *tokens, const float *logps, int64_t rows, int64_t columns, const int64_t *numbers,
            const int64_t *limits, const uint8_t *is_end, int64_t *counts, uint8_t *running, int64_t *out,
            double *all_logps, int64_t *latest) {
  for (int64_t n = 0; n < rows; n++) {
    const int64_t at = numbers[n] * columns + counts[n];
    out[at] = tokens[n];
    all_logps[at] = logps[n];
    counts[n] += running[n];
    running[n] = running[n] && !is_end[tokens[n]] && counts[n] < limits[n];
    latest[n] = tokens[n];
  }
}

CALLED(look_up, PTR(0), INT(1), PTR(2), PTR(3), INT(4), PTR(5))
CALLED(settle, PTR(0), PTR(1), INT(2), INT(3), PTR(4), PTR(5), PTR(6), PTR(7), PTR(8), PTR(9), PTR(10), PTR(11))
