/* Included once per pair of types: root-mean-square norms in training. X, LOADX, STOREX: what comes in; Y, LOADY, STOREY:
 * what goes out (under autocast the products' type); weights are fp32, ``shift`` is added to them. */

/* out = x + plus */
void NAME(summed)(const X *x, const Y *plus, X *out, int64_t count, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t start = 0; start < count; start += CHUNK) {
    const int64_t end = count - start < CHUNK ? count : start + CHUNK;
#pragma omp simd
    for (int64_t i = start; i < end; i++) out[i] = STOREX(LOADX(x[i]) + LOADY(plus[i]));
  }
}

/* out = x / sqrt(mean(x^2) + eps) * (shift + weight), row by row. With ``plus``, which is else NULL, of x + plus, which
 * comes to lie in ``both``. */
void NAME(normed)(const X *x, const Y *plus, X *both, const float *weight, Y *out, int64_t rows, int64_t width,
                  float eps, float shift, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t row = 0; row < rows; row++) {
    const X *in = x + row * width;
    Y *to = out + row * width;
    if (plus) {
      const Y *more = plus + row * width;
      X *made = both + row * width;
#pragma omp simd
      for (int64_t i = 0; i < width; i++) made[i] = STOREX(LOADX(in[i]) + LOADY(more[i]));
      in = made;
    }
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; i++) sum += LOADX(in[i]) * LOADX(in[i]);
    const float scale = 1.0f / sqrtf(sum / (float)width + eps);
#pragma omp simd
    for (int64_t i = 0; i < width; i++) to[i] = STOREY(LOADX(in[i]) * scale * (shift + weight[i]));
  }
}

/* Of that: of_x (rows,width), and of_weight (blocks,width), the sum over each block of ``some`` rows. Blocks are the same
 * whatever the threads, so their sum is too. With y = x s: dx = s (g w - y mean(g w y)), dw = sum of g y over rows.
 * ``plus`` (rows,width), or NULL, is what else x's gradient consists of; ``low``, or NULL, becomes all of it, rounded. */
void NAME(norm_gradient)(const X *x, const float *weight, const Y *grad, const X *plus, X *of_x, Y *low,
                         float *of_weight, int64_t rows, int64_t width, float eps, float shift, int64_t some,
                         int threads) {
  const int64_t blocks = (rows + some - 1) / some;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t block = 0; block < blocks; block++) {
    float *sums = of_weight + block * width;
    const int64_t end = (block + 1) * some < rows ? (block + 1) * some : rows;
    for (int64_t i = 0; i < width; i++) sums[i] = 0;
    for (int64_t row = block * some; row < end; row++) {
      const X *in = x + row * width;
      const Y *from = grad + row * width;
      X *to = of_x + row * width;
      float sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
      for (int64_t i = 0; i < width; i++) {
        const float a = LOADX(in[i]);
        sum += a * a;
        dot += LOADY(from[i]) * (shift + weight[i]) * a;
      }
      const float scale = 1.0f / sqrtf(sum / (float)width + eps);
      const float shared = dot * scale * scale / (float)width;
#pragma omp simd
      for (int64_t i = 0; i < width; i++) {
        const float a = LOADX(in[i]), g = LOADY(from[i]);
        sums[i] += g * a * scale;
        to[i] = STOREX(scale * (g * (shift + weight[i]) - a * shared));
      }
      if (plus) { /* in a loop of its own: rounded before, as a sum of two tensors is */
        const X *more = plus + row * width;
#pragma omp simd
        for (int64_t i = 0; i < width; i++) to[i] = STOREX(LOADX(to[i]) + LOADX(more[i]));
      }
      if (low) {
        Y *less = low + row * width;
#pragma omp simd
        for (int64_t i = 0; i < width; i++) less[i] = STOREY(LOADX(to[i]));
      }
    }
  }
}
