/* Included once per type of element: T, LOAD to float, NAME for the symbols. */

/* (rows, words) logits -> (rows,) tokens and log-probs: the first word whose cumulative probability at ``temperature``
 * exceeds the row's uniform number; with temperature 0 the likeliest word and its log-prob at temperature 1. */
void NAME(draw)(const T *logits, int64_t stride, int64_t rows, int64_t words, float temperature, const double *uniforms,
                int64_t *tokens, float *logps, int threads) {
  const float divisor = temperature > 0 ? temperature : 1.0f;
  const int64_t blocks = (words + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t row = 0; row < rows; row++) {
    const T *x = logits + row * stride;
    float top = -INFINITY;
#pragma omp simd reduction(max : top)
    for (int64_t i = 0; i < words; i++) top = LOAD(x[i]) > top ? LOAD(x[i]) : top;
    const float most = top / divisor;
    double sums[blocks], total = 0;
    for (int64_t b = 0; b < blocks; b++) {
      const T *part = x + b * BLOCK;
      const int64_t size = words - b * BLOCK < BLOCK ? words - b * BLOCK : BLOCK;
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < size; i++) sum += exponential(LOAD(part[i]) / divisor - most);
      total += sum;
      sums[b] = total;
    }
    int64_t token = 0;
    if (temperature > 0) {
      const double target = fmin(uniforms[row] * total, below(total));
      int64_t b = 0;
      while (b < blocks - 1 && sums[b] <= target) b++;
      const T *part = x + b * BLOCK;
      const int64_t size = words - b * BLOCK < BLOCK ? words - b * BLOCK : BLOCK;
      float likely[BLOCK];
      double weights[BLOCK], inner = 0;
#pragma omp simd
      for (int64_t i = 0; i < size; i++) likely[i] = exponential(LOAD(part[i]) / divisor - most);
      for (int64_t i = 0; i < size; i++) weights[i] = inner += likely[i];
      const double rest = fmin(target - (b ? sums[b - 1] : 0.0), below(inner));
      int64_t i = 0;
      while (i < size - 1 && weights[i] <= rest) i++;
      token = b * BLOCK + i;
    } else {
      while (token < words - 1 && LOAD(x[token]) != top) token++;
    }
    tokens[row] = token;
    logps[row] = (float)((double)(LOAD(x[token]) / divisor - most) - log(total));
  }
}

CALLED(NAME(draw), PTR(0), INT(1), INT(2), INT(3), REAL(4), PTR(5), PTR(6), PTR(7), (int)INT(8))
