/* What sampling does between the matrix products, for one token of each row: attention over a shared prompt and a row's
 * own tokens, root-mean-square norms, and the choice of a token. One pass over memory each, where tensor operations
 * make dozens. Sums are in fp32 (of probabilities: in double), whatever is stored; work is split by rows, so the number
 * of threads changes nothing in a result. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static inline float bits(uint32_t u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}

static inline uint32_t unbits(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return u;
}

/* exp(x) to about 1e-7 of its size, for x up to 88; 0 below -87: a form that compilers turn into vector code. */
static inline float exponential(float x) {
  const float low = x > -87.0f ? x : -87.0f;
  const float n = rintf(low * 1.44269504088896341f);
  const float r = (low - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const float y = p * bits((uint32_t)((int32_t)n + 127) << 23);
  return x > -87.0f ? y : 0.0f;
}

static void *room(size_t floats) {
  void *p = aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64);
  if (!p) abort();
  return p;
}

static inline float same(float x) { return x; }
static inline float from_bfloat16(uint16_t x) { return bits((uint32_t)x << 16); }
static inline uint16_t to_bfloat16(float f) { /* to nearest, ties to even; a NaN stays one */
  const uint32_t u = unbits(f);
  return f == f ? (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16) : (uint16_t)0x7fc0u;
}

#define T float
#define LOAD same
#define STORE same
#define NAME(x) x##_float32
#include "typed.h"
#undef T
#undef LOAD
#undef STORE
#undef NAME

#define T uint16_t
#define LOAD from_bfloat16
#define STORE to_bfloat16
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
