/* Included once per type of element, as typed.h is: the softmax over the vocabulary in training, and its gradient, each in
 * one pass over memory: a row of logits stays in a processor's cache meanwhile, all of them do not. */

#ifndef FASTER /* bfloat16.h */
/* Row by row, in place: logits x (rows, words) become probabilities at ``temperature``; also the log-probs of ``targets``
 * and the entropies. A row with a logit that is not a number, or with an infinite largest one, becomes NaN as a whole.
 * scratch: (threads, words) floats. */
void NAME(soften)(T *x, int64_t rows, int64_t words, const int64_t *targets, float temperature, float *logps,
                  float *entropies, float *scratch, int threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    float *weights = scratch + thread() * words;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
      T *logits = x + row * words;
      float top = -INFINITY;
      int32_t wrong = 0;
#pragma omp simd reduction(max : top) reduction(| : wrong)
      for (int64_t i = 0; i < words; i++) {
        const float logit = LOAD(logits[i]);
        top = logit > top ? logit : top;
        wrong |= logit != logit;
      }
      const float own = (LOAD(logits[targets[row]]) - top) / temperature;
      double total = 0, moment = 0;
      for (int64_t start = 0; start < words; start += BLOCK) {
        const int64_t end = words - start < BLOCK ? words : start + BLOCK;
        float sum = 0, product = 0;
#pragma omp simd reduction(+ : sum, product)
        for (int64_t i = start; i < end; i++) {
          const float z = (LOAD(logits[i]) - top) / temperature, weight = exponential(z);
          weights[i] = weight;
          sum += weight;
          product += z > -87.0f ? weight * z : 0.0f;
        }
        total += sum;
        moment += product;
      }
      const float scale = wrong || top - top != 0.0f ? NAN : (float)(1.0 / total);
#pragma omp simd
      for (int64_t i = 0; i < words; i++) logits[i] = STORE(weights[i] * scale);
      logps[row] = (float)(own - log(total)) * (scale == scale ? 1.0f : NAN);
      entropies[row] = (float)(log(total) - moment / total) * (scale == scale ? 1.0f : NAN);
    }
  }
}
#endif

/* Row by row, in place: probabilities p (rows, words) become ``scales`` (rows) times the gradient of the log-prob of
 * ``targets`` by the logits: 1 at the target, less p. */
void NAME(logp_gradient)(T *p, int64_t rows, int64_t words, const int64_t *targets, const float *scales, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t row = 0; row < rows; row++) {
    T *to = p + row * words;
    const float scale = scales[row], own = LOAD(to[targets[row]]);
#pragma omp simd
    for (int64_t i = 0; i < words; i++) to[i] = STORE(-scale * LOAD(to[i]));
    to[targets[row]] = STORE(scale - scale * own);
  }
}
