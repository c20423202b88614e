/* Clipping and AdamW (arXiv 1711.05101, algorithm 2) on fp32 weights, each in one pass over memory, whose speed decides:
 * clipped gradients are not written. Tensors are dense, given by their addresses and counts of elements. Work is split by
 * elements, so the number of threads changes nothing in a result. */
#include "vectors.h"

enum { TAKEN = 1 << 14, SUMMED = 256 }; /* elements that a thread takes at once; of them, those summed in fp32 */

/* Places of ``sums`` that squared_sum needs. */
int64_t squared_sums(const int64_t *counts, int64_t tensors) {
  int64_t sums = 0;
  for (int64_t t = 0; t < tensors; t++) sums += (counts[t] + TAKEN - 1) / TAKEN;
  return sums;
}

/* The sum of the squares of all elements; those of others[t] are added first, in place, where it is not NULL. */
double squared_sum(float *const *grads, const float *const *others, const int64_t *counts, int64_t tensors,
                   double *sums, int threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    double *to = sums;
    for (int64_t t = 0; t < tensors; t++) {
      const int64_t parts = (counts[t] + TAKEN - 1) / TAKEN;
#pragma omp for schedule(static) nowait
      for (int64_t part = 0; part < parts; part++) {
        const int64_t end = counts[t] - part * TAKEN < TAKEN ? counts[t] : (part + 1) * TAKEN;
        double whole = 0;
        for (int64_t start = part * TAKEN; start < end; start += SUMMED) {
          const int64_t stop = end - start < SUMMED ? end : start + SUMMED;
          float *x = grads[t];
          if (others[t]) {
            const float *y = others[t];
#pragma omp simd
            for (int64_t i = start; i < stop; i++) x[i] += y[i];
          }
          float sum = 0;
#pragma omp simd reduction(+ : sum)
          for (int64_t i = start; i < stop; i++) sum += x[i] * x[i];
          whole += sum;
        }
        to[part] = whole;
      }
      to += parts;
    }
  }
  double sum = 0;
  const int64_t count = squared_sums(counts, tensors);
  for (int64_t i = 0; i < count; i++) sum += sums[i];
  return sum;
}

/* One step with gradients times ``scale``: m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2,
 * w = kept w - rate m / (sqrt(v) / root + eps). */
void adamw(float *const *weights, const float *const *grads, float *const *means, float *const *squares,
           const int64_t *counts, int64_t tensors, float scale, float beta1, float rest1, float beta2, float rest2,
           float kept, float rate, float root, float eps, int threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
  for (int64_t t = 0; t < tensors; t++) {
    const float *g = grads[t];
    float *w = weights[t], *m = means[t], *v = squares[t];
#pragma omp for schedule(static) nowait
    for (int64_t start = 0; start < counts[t]; start += TAKEN) {
      const int64_t end = counts[t] - start < TAKEN ? counts[t] : start + TAKEN;
#pragma omp simd
      for (int64_t i = start; i < end; i++) {
        const float clipped = g[i] * scale, mean = beta1 * m[i] + rest1 * clipped;
        const float square = beta2 * v[i] + rest2 * clipped * clipped;
        m[i] = mean;
        v[i] = square;
        w[i] = kept * w[i] - rate * mean / (sqrtf(square) / root + eps);
      }
    }
  }
}
