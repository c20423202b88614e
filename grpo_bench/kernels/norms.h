/* Included once per pair of types: root-mean-square norms in training. X, LOADX, STOREX: what comes in; Y, LOADY, STOREY:
 * what goes out (under autocast the products' type); weights are fp32, ``shift`` is added to them. */

/* out = x / sqrt(mean(x^2) + eps) * (shift + weight), row by row */
void NAME(normed)(const X *x, const float *weight, Y *out, int64_t rows, int64_t width, float eps, float shift,
                  int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t row = 0; row < rows; row++) {
    const X *in = x + row * width;
    Y *to = out + row * width;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; i++) sum += LOADX(in[i]) * LOADX(in[i]);
    const float scale = 1.0f / sqrtf(sum / (float)width + eps);
#pragma omp simd
    for (int64_t i = 0; i < width; i++) to[i] = STOREY(LOADX(in[i]) * scale * (shift + weight[i]));
  }
}

/* Of that: of_x (rows,width), and of_weight (blocks,width), the sum over each block of ``some`` rows. Blocks are the same
 * whatever the threads, so their sum is too. With y = x s: dx = s (g w - y mean(g w y)), dw = sum of g y over rows. */
void NAME(norm_gradient)(const X *x, const float *weight, const Y *grad, X *of_x, float *of_weight, int64_t rows,
                         int64_t width, float eps, float shift, int64_t some, int threads) {
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
    }
  }
}
