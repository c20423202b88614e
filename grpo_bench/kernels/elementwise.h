/* Included once per type of element, as typed.h is: what stands between a layer's products and looks at one token at a
 * time, forward and backward. In fp32 whatever is stored, rounded once at the end. */

/* out = x + y */
void NAME(add)(const T *x, const T *y, T *out, int64_t count, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t start = 0; start < count; start += CHUNK) {
    const int64_t end = count - start < CHUNK ? count : start + CHUNK;
#pragma omp simd
    for (int64_t i = start; i < end; i++) out[i] = STORE(LOAD(x[i]) + LOAD(y[i]));
  }
}

#ifndef FASTER /* bfloat16.h */
/* Rotary embedding (arXiv 2104.09864, eq. 34, in halves): out_i = x_i cos_i - x_(i+d/2) sin_i for the first half,
 * x_i cos_i + x_(i-d/2) sin_i for the second. x and out (heads,rows,d) by strides, last dimension dense; cos and sin
 * (rows,d), dense. ``back``: the transposed map, which takes the gradient of out to that of x. */
void NAME(rotate)(const T *x, int64_t x_head, int64_t x_row, const float *cosines, const float *sines, T *out,
                  int64_t out_head, int64_t out_row, int64_t heads, int64_t rows, int64_t d, int back, int threads) {
  const int64_t half = d / 2;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t row = 0; row < rows; row++) {
    const float *c = cosines + row * d, *s = sines + row * d;
    for (int64_t head = 0; head < heads; head++) {
      const T *in = x + head * x_head + row * x_row;
      T *to = out + head * out_head + row * out_row;
      if (back) {
#pragma omp simd
        for (int64_t i = 0; i < half; i++) {
          const float a = LOAD(in[i]), b = LOAD(in[i + half]);
          to[i] = STORE(a * c[i] + b * s[i + half]);
          to[i + half] = STORE(b * c[i + half] - a * s[i]);
        }
      } else {
#pragma omp simd
        for (int64_t i = 0; i < half; i++) {
          const float a = LOAD(in[i]), b = LOAD(in[i + half]);
          to[i] = STORE(a * c[i] - b * s[i]);
          to[i + half] = STORE(b * c[i + half] + a * s[i + half]);
        }
      }
    }
  }
}

/* out = gate * sigmoid(gate) * up: (rows,width), the rows of gate and up ``apart`` from each other, out's dense. */
void NAME(gate)(const T *gate, const T *up, T *out, int64_t rows, int64_t width, int64_t apart, int threads) {
  const int64_t parts = (width + CHUNK - 1) / CHUNK;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t n = 0; n < rows * parts; n++) {
    const int64_t row = n / parts, start = n % parts * CHUNK, end = width - start < CHUNK ? width : start + CHUNK;
    const T *g_row = gate + row * apart, *u_row = up + row * apart;
    T *to = out + row * width;
#pragma omp simd
    for (int64_t i = start; i < end; i++) {
      const float g = LOAD(g_row[i]);
      to[i] = STORE(g * sigmoid(g) * LOAD(u_row[i]));
    }
  }
}

/* Of that, by gate and by up, whose rows are as far apart; grad's are dense. Into product, dense too, which may be NULL, or
 * grad itself, comes what gate() makes, bit for bit. */
void NAME(gate_gradient)(const T *gate, const T *up, const T *grad, T *of_gate, T *of_up, T *product, int64_t rows,
                         int64_t width, int64_t apart, int threads) {
  const int64_t parts = (width + CHUNK - 1) / CHUNK;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t n = 0; n < rows * parts; n++) {
    const int64_t row = n / parts, start = n % parts * CHUNK, end = width - start < CHUNK ? width : start + CHUNK;
    const int64_t far = row * apart, near = row * width;
#pragma omp simd
    for (int64_t i = start; i < end; i++) {
      const float g = LOAD(gate[far + i]), u = LOAD(up[far + i]), out = LOAD(grad[near + i]), s = sigmoid(g);
      of_gate[far + i] = STORE(out * u * s * (1.0f + g * (1.0f - s)));
      of_up[far + i] = STORE(out * g * s);
      if (product) product[near + i] = STORE(g * s * u);
    }
  }
}
#endif

CALLED(NAME(rotate), PTR(0), INT(1), INT(2), PTR(3), PTR(4), PTR(5), INT(6), INT(7), INT(8), INT(9), INT(10),
       (int)INT(11), (int)INT(12))
CALLED(NAME(add), PTR(0), PTR(1), PTR(2), INT(3), (int)INT(4))
CALLED(NAME(gate), PTR(0), PTR(1), PTR(2), INT(3), INT(4), INT(5), (int)INT(6))
