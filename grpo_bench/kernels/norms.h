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

#ifndef FASTER_NORMS /* norms_avx512.h */
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
 * What may be NULL: with ``more`` it was of x + more; ``plus`` (rows,width), which may be of_x, is what else the gradient
 * consists of; ``low`` becomes all of it, rounded; ``made``, which may be grad, becomes what normed() made. */
void NAME(norm_gradient)(const X *x, const Y *more, const float *weight, const Y *grad, const X *plus, X *of_x, Y *low,
                         Y *made, float *of_weight, int64_t rows, int64_t width, float eps, float shift, int64_t some,
                         int threads) {
  const int64_t blocks = (rows + some - 1) / some;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t block = 0; block < blocks; block++) {
    X both[more ? width : 1];
    float *sums = of_weight + block * width;
    const int64_t end = (block + 1) * some < rows ? (block + 1) * some : rows;
    for (int64_t i = 0; i < width; i++) sums[i] = 0;
    for (int64_t row = block * some; row < end; row++) {
      const X *in = x + row * width;
      const Y *from = grad + row * width;
      X *to = of_x + row * width;
      if (more) {
        const Y *added = more + row * width;
#pragma omp simd
        for (int64_t i = 0; i < width; i++) both[i] = STOREX(LOADX(in[i]) + LOADY(added[i]));
        in = both;
      }
      float sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum) /* by itself, as above: the same bits */
      for (int64_t i = 0; i < width; i++) sum += LOADX(in[i]) * LOADX(in[i]);
#pragma omp simd reduction(+ : dot)
      for (int64_t i = 0; i < width; i++) dot += LOADY(from[i]) * (shift + weight[i]) * LOADX(in[i]);
      const float scale = 1.0f / sqrtf(sum / (float)width + eps);
      const float shared = dot * scale * scale / (float)width;
#pragma omp simd
      for (int64_t i = 0; i < width; i++) sums[i] += LOADY(from[i]) * LOADX(in[i]) * scale;
      if (plus) { /* added after it is rounded, as a sum of two tensors is */
        const X *other = plus + row * width;
        X alone[width];
#pragma omp simd
        for (int64_t i = 0; i < width; i++)
          alone[i] = STOREX(scale * (LOADY(from[i]) * (shift + weight[i]) - LOADX(in[i]) * shared));
#pragma omp simd
        for (int64_t i = 0; i < width; i++) to[i] = STOREX(LOADX(other[i]) + LOADX(alone[i]));
      } else {
#pragma omp simd
        for (int64_t i = 0; i < width; i++)
          to[i] = STOREX(scale * (LOADY(from[i]) * (shift + weight[i]) - LOADX(in[i]) * shared));
      }
      if (low) {
        Y *less = low + row * width;
#pragma omp simd
        for (int64_t i = 0; i < width; i++) less[i] = STOREY(LOADX(to[i]));
      }
      if (made) { /* last: grad is not read any more, and x + more lies elsewhere */
        Y *again = made + row * width;
#pragma omp simd
        for (int64_t i = 0; i < width; i++) again[i] = STOREY(LOADX(in[i]) * scale * (shift + weight[i]));
      }
    }
  }
}
#endif
