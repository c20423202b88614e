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
