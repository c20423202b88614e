/* What norms.h does from fp32 to bfloat16, with AVX-512: each row is read once from memory, and numbers are rounded by the
 * processor. Included once, with avx512.h before it. */

/* 16 of x (+ more, unless it is NULL) */
static inline __attribute__((always_inline)) __m512 both_16(const float *x, const uint16_t *more, int64_t i,
                                                            __mmask16 there) {
  const __m512 own = _mm512_maskz_loadu_ps(there, x + i);
  return more ? _mm512_add_ps(own, widened_16(more + i, there)) : own;
}

/* x + y of what was rounded before: compilers make one operation of a product and a sum, which rounds once */
static inline __attribute__((always_inline)) __m512 added_16(__m512 x, __m512 y) {
  return _mm512_add_round_ps(x, y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

static inline __attribute__((always_inline)) float squares(const float *x, int64_t width) {
  __m512 sums[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  for (int64_t i = 0; i < width; i += LANES) {
    const __m512 own = _mm512_maskz_loadu_ps(first_16(width - i), x + i);
    sums[i / LANES % 2] = _mm512_fmadd_ps(own, own, sums[i / LANES % 2]);
  }
  return _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1]));
}

void normed_float32_bfloat16(const float *x, const uint16_t *plus, float *both, const float *weight, uint16_t *out,
                             int64_t rows, int64_t width, float eps, float shift, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t row = 0; row < rows; row++) {
    const float *in = x + row * width;
    if (plus) {
      float *made = both + row * width;
      for (int64_t i = 0; i < width; i += LANES) {
        const __mmask16 there = first_16(width - i);
        _mm512_mask_storeu_ps(made + i, there, both_16(in, plus + row * width, i, there));
      }
      in = made;
    }
    const __m512 scale = _mm512_set1_ps(1.0f / sqrtf(squares(in, width) / (float)width + eps));
    for (int64_t i = 0; i < width; i += LANES) {
      const __mmask16 there = first_16(width - i);
      const __m512 w = _mm512_add_ps(_mm512_set1_ps(shift), _mm512_maskz_loadu_ps(there, weight + i));
      const __m512 own = _mm512_mul_ps(_mm512_maskz_loadu_ps(there, in + i), scale);
      narrowed_16(_mm512_mul_ps(own, w), out + row * width + i, there);
    }
  }
}

void norm_gradient_float32_bfloat16(const float *x, const uint16_t *more, const float *weight, const uint16_t *grad,
                                    const float *plus, float *of_x, uint16_t *low, uint16_t *made, float *of_weight,
                                    int64_t rows, int64_t width, float eps, float shift, int64_t some, int threads) {
  const int64_t blocks = (rows + some - 1) / some;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t block = 0; block < blocks; block++) {
    float both[width];
    float *sums = of_weight + block * width;
    const int64_t end = (block + 1) * some < rows ? (block + 1) * some : rows;
    for (int64_t i = 0; i < width; i++) sums[i] = 0;
    for (int64_t row = block * some; row < end; row++) {
      const float *in = x + row * width, *other = plus ? plus + row * width : 0;
      const uint16_t *from = grad + row * width;
      __m512 dots[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
      for (int64_t i = 0; i < width; i += LANES) {
        const __mmask16 there = first_16(width - i);
        const __m512 own = both_16(in, more ? more + row * width : 0, i, there);
        const __m512 w = _mm512_add_ps(_mm512_set1_ps(shift), _mm512_maskz_loadu_ps(there, weight + i));
        _mm512_mask_storeu_ps(both + i, there, own);
        const __m512 g = _mm512_mul_ps(widened_16(from + i, there), w);
        dots[i / LANES % 2] = _mm512_fmadd_ps(g, own, dots[i / LANES % 2]);
      }
      const float dot = _mm512_reduce_add_ps(_mm512_add_ps(dots[0], dots[1]));
      const float scale = 1.0f / sqrtf(squares(both, width) / (float)width + eps);
      const __m512 by = _mm512_set1_ps(scale), shared = _mm512_set1_ps(dot * scale * scale / (float)width);
      for (int64_t i = 0; i < width; i += LANES) {
        const __mmask16 there = first_16(width - i);
        const __m512 own = _mm512_maskz_loadu_ps(there, both + i), g = widened_16(from + i, there);
        const __m512 w = _mm512_add_ps(_mm512_set1_ps(shift), _mm512_maskz_loadu_ps(there, weight + i));
        const __m512 normal = _mm512_mul_ps(own, by);
        _mm512_mask_storeu_ps(sums + i, there, _mm512_fmadd_ps(g, normal, _mm512_maskz_loadu_ps(there, sums + i)));
        __m512 whole = _mm512_mul_ps(by, _mm512_fnmadd_ps(own, shared, _mm512_mul_ps(g, w)));
        if (other) whole = added_16(whole, _mm512_maskz_loadu_ps(there, other + i));
        _mm512_mask_storeu_ps(of_x + row * width + i, there, whole);
        if (low) narrowed_16(whole, low + row * width + i, there);
        if (made) narrowed_16(_mm512_mul_ps(normal, w), made + row * width + i, there); /* last: perhaps in grad's place */
      }
    }
  }
}
