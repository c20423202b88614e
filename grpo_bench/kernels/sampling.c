/* Sampling between the matrix products, for one token of each row: attention over a shared prompt and a row's own tokens,
 * norms, and the choice of a token. Sums are in fp32 (of probabilities: in double), whatever is stored; work is split by
 * rows, so the number of threads changes nothing in a result. */
#include "vectors.h"

enum { QUERIES = 4 }; /* that look at the same keys at once */

/* Keys and values that are looked at next, asked for a few lines at a time: many at once would hold up the loads of now. */
enum { RUNS = 4, MOST_LINES = 32 }; /* keys and values, a row's own and its prompt's; of a run at a time */
typedef struct {
  const char *from[RUNS];
  int64_t lines[RUNS], some; /* lines of each, not yet asked for, and how many of one run to ask for at a time */
  int run;
} ahead;

static inline void fetch(ahead *next) {
  while (next->run < RUNS && next->lines[next->run] <= 0) next->run++;
  if (next->run == RUNS) return;
  const char *from = next->from[next->run];
  for (int64_t n = 0; n < next->some && n < next->lines[next->run]; n++) __builtin_prefetch(from + n * 64);
  next->from[next->run] += next->some * 64;
  next->lines[next->run] -= next->some;
}

#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (words8){__VA_ARGS__})
#endif

/* The sums of four vectors' elements, as trees: pairs of vectors are merged before they are folded. */
static inline wide4 across_4(const wide *x) {
  const wide8 a = halves(x[0]), b = halves(x[1]), c = halves(x[2]), d = halves(x[3]);
  const wide8 ab = SHUFFLE(a, b, 0, 8, 1, 9, 4, 12, 5, 13) + SHUFFLE(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
  const wide8 cd = SHUFFLE(c, d, 0, 8, 1, 9, 4, 12, 5, 13) + SHUFFLE(c, d, 2, 10, 3, 11, 6, 14, 7, 15);
  const wide8 all = SHUFFLE(ab, cd, 0, 1, 8, 9, 4, 5, 12, 13) + SHUFFLE(ab, cd, 2, 3, 10, 11, 6, 7, 14, 15);
  wide4 q[2];
  memcpy(q, &all, sizeof all);
  return q[0] + q[1];
}

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
#undef T
#undef LOAD
#undef STORE
#undef PAIR
#undef PLACE
#undef MORE
#undef NAME

#define T uint16_t
#define LOAD from_bfloat16
#define STORE to_bfloat16
#define PAIR pair_bfloat16
#define PLACE place_bfloat16
#define MORE more_bfloat16
#define NAME(x) x##_bfloat16
#include "typed.h"

enum { BLOCK = 256 }; /* words summed in fp32 before they are summed in double */

static double below(double x) { return nextafter(x, 0.0); }

/* (rows, words) logits -> (rows,) tokens and log-probs: the first word whose cumulative probability at ``temperature``
 * exceeds the row's uniform number; with temperature 0 the likeliest word and its log-prob at temperature 1. */
void draw(const float *logits, int64_t stride, int64_t rows, int64_t words, float temperature, const double *uniforms,
          int64_t *tokens, float *logps, int threads) {
  const float divisor = temperature > 0 ? temperature : 1.0f;
  const int64_t blocks = (words + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t row = 0; row < rows; row++) {
    const float *x = logits + row * stride;
    float top = -INFINITY;
#pragma omp simd reduction(max : top)
    for (int64_t i = 0; i < words; i++) top = x[i] > top ? x[i] : top;
    const float most = top / divisor;
    double sums[blocks], total = 0;
    for (int64_t b = 0; b < blocks; b++) {
      const float *part = x + b * BLOCK;
      const int64_t size = words - b * BLOCK < BLOCK ? words - b * BLOCK : BLOCK;
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < size; i++) sum += exponential(part[i] / divisor - most);
      total += sum;
      sums[b] = total;
    }
    int64_t token = 0;
    if (temperature > 0) {
      const double target = fmin(uniforms[row] * total, below(total));
      int64_t b = 0;
      while (b < blocks - 1 && sums[b] <= target) b++;
      const float *part = x + b * BLOCK;
      const int64_t size = words - b * BLOCK < BLOCK ? words - b * BLOCK : BLOCK;
      double weights[BLOCK], inner = 0;
      for (int64_t i = 0; i < size; i++) weights[i] = inner += exponential(part[i] / divisor - most);
      const double rest = fmin(target - (b ? sums[b - 1] : 0.0), below(inner));
      int64_t i = 0;
      while (i < size - 1 && weights[i] <= rest) i++;
      token = b * BLOCK + i;
    } else {
      while (token < words - 1 && x[token] != top) token++;
    }
    tokens[row] = token;
    logps[row] = (float)((double)(x[token] / divisor - most) - log(total));
  }
}
