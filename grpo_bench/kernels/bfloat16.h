/* What softmax.h and elementwise.h do, in bfloat16, where that is arithmetic rather than memory: with AVX-512. */
#include "avx512.h"

void rotate_bfloat16(const uint16_t *x, int64_t x_head, int64_t x_row, const float *cosines, const float *sines,
                     uint16_t *out, int64_t out_head, int64_t out_row, int64_t heads, int64_t rows, int64_t d, int back,
                     int threads) {
  const int64_t half = d / 2;
  const __m512 sign = _mm512_set1_ps(back ? -1.0f : 1.0f);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t row = 0; row < rows; row++) {
    const float *c = cosines + row * d, *s = sines + row * d;
    for (int64_t i = 0; i < half; i += LANES) {
      const __mmask16 there = first_16(half - i);
      const __m512 c0 = _mm512_maskz_loadu_ps(there, c + i), c1 = _mm512_maskz_loadu_ps(there, c + i + half);
      const __m512 s0 = _mm512_maskz_loadu_ps(there, s + i), s1 = _mm512_maskz_loadu_ps(there, s + i + half);
      const __m512 by = _mm512_mul_ps(sign, back ? s1 : s0), other = _mm512_mul_ps(sign, back ? s0 : s1);
      for (int64_t head = 0; head < heads; head++) {
        const uint16_t *in = x + head * x_head + row * x_row + i;
        uint16_t *to = out + head * out_head + row * out_row + i;
        const __m512 a = widened_16(in, there), b = widened_16(in + half, there);
        narrowed_16(_mm512_fnmadd_ps(b, by, _mm512_mul_ps(a, c0)), to, there);
        narrowed_16(_mm512_fmadd_ps(a, other, _mm512_mul_ps(b, c1)), to + half, there);
      }
    }
  }
}

void gate_bfloat16(const uint16_t *gate, const uint16_t *up, uint16_t *out, int64_t rows, int64_t width,
                   int64_t apart, int threads) {
  const int64_t parts = (width + CHUNK - 1) / CHUNK;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t n = 0; n < rows * parts; n++) {
    const int64_t row = n / parts, start = n % parts * CHUNK, end = width - start < CHUNK ? width : start + CHUNK;
    const int64_t far = row * apart, near = row * width;
    for (int64_t i = start; i < end; i += LANES) {
      const __mmask16 there = first_16(end - i);
      const __m512 g = widened_16(gate + far + i, there), u = widened_16(up + far + i, there);
      narrowed_16(gated_16(g, u), out + near + i, there);
    }
  }
}

void gate_gradient_bfloat16(const uint16_t *gate, const uint16_t *up, const uint16_t *grad, uint16_t *of_gate,
                            uint16_t *of_up, uint16_t *product, int64_t rows, int64_t width, int64_t apart,
                            int threads) {
  const __m512 one = _mm512_set1_ps(1.0f);
  const int64_t parts = (width + CHUNK - 1) / CHUNK;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t n = 0; n < rows * parts; n++) {
    const int64_t row = n / parts, start = n % parts * CHUNK, end = width - start < CHUNK ? width : start + CHUNK;
    const int64_t far = row * apart, near = row * width;
    for (int64_t i = start; i < end; i += LANES) {
      const __mmask16 there = first_16(end - i);
      const __m512 g = widened_16(gate + far + i, there), u = widened_16(up + far + i, there);
      const __m512 d = widened_16(grad + near + i, there), s = sigmoid_16(g);
      const __m512 slope = _mm512_mul_ps(s, _mm512_fmadd_ps(g, _mm512_sub_ps(one, s), one));
      narrowed_16(_mm512_mul_ps(_mm512_mul_ps(d, u), slope), of_gate + far + i, there);
      narrowed_16(_mm512_mul_ps(_mm512_mul_ps(d, g), s), of_up + far + i, there);
      if (product) narrowed_16(_mm512_mul_ps(_mm512_mul_ps(g, s), u), product + near + i, there);
    }
  }
}

/* sums += x, lane by lane, in double precision */
static inline __attribute__((always_inline)) void add_wide(__m512d *sums, __m512 x) {
  sums[0] = _mm512_add_pd(sums[0], _mm512_cvtps_pd(_mm512_castps512_ps256(x)));
  sums[1] = _mm512_add_pd(sums[1], _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)));
}

static inline float largest_of(const uint16_t *x, int64_t count) { /* NaN left aside */
  __m512 most[4];
  for (int j = 0; j < 4; j++) most[j] = _mm512_set1_ps(-INFINITY);
  int64_t i = 0;
  for (; i + 2 * BOTH <= count; i += 2 * BOTH)
    for (int j = 0; j < 2; j++) { /* the even elements and the odd ones, in place */
      const __m512i both = _mm512_loadu_si512(x + i + j * BOTH);
      const __m512i odd = _mm512_and_si512(both, _mm512_set1_epi32((int)0xffff0000u));
      most[2 * j] = _mm512_max_ps(_mm512_castsi512_ps(_mm512_slli_epi32(both, 16)), most[2 * j]);
      most[2 * j + 1] = _mm512_max_ps(_mm512_castsi512_ps(odd), most[2 * j + 1]);
    }
  for (; i < count; i += LANES) {
    const __mmask16 there = first_16(count - i);
    most[0] = _mm512_mask_max_ps(most[0], there, widened_16(x + i, there), most[0]);
  }
  for (int j = 1; j < 4; j++) most[0] = _mm512_max_ps(most[0], most[j]);
  return _mm512_reduce_max_ps(most[0]);
}

void soften_bfloat16(uint16_t *x, int64_t rows, int64_t words, const int64_t *targets, float temperature, float *logps,
                     float *entropies, float *scratch, int threads) {
  const __m512 by = _mm512_set1_ps(1.0f / temperature), to_2 = _mm512_set1_ps(LOG2E);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    float *weights = scratch + thread() * words;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
      uint16_t *logits = x + row * words;
      const float top = largest_of(logits, words), own = (from_bfloat16(logits[targets[row]]) - top) / temperature;
      __m512d totals[2] = {_mm512_setzero_pd(), _mm512_setzero_pd()}, moments[2] = {totals[0], totals[0]};
      for (int64_t start = 0; start < words; start += BLOCK) {
        const int64_t end = words - start < BLOCK ? words : start + BLOCK;
        __m512 sum = _mm512_setzero_ps(), product = _mm512_setzero_ps();
        for (int64_t i = start; i < end; i += LANES) {
          const __mmask16 there = first_16(end - i);
          const __m512 z = _mm512_mul_ps(_mm512_sub_ps(widened_16(logits + i, there), _mm512_set1_ps(top)), by);
          const __mmask16 near = _mm512_mask_cmp_ps_mask(there, z, _mm512_set1_ps(-87.0f), _CMP_NLE_UQ);
          const __m512 weight = _mm512_maskz_mov_ps(near, power_of_2(_mm512_mul_ps(z, to_2)));
          _mm512_mask_storeu_ps(weights + i, there, weight);
          sum = _mm512_add_ps(sum, weight);
          product = _mm512_mask3_fmadd_ps(weight, z, product, near);
        }
        add_wide(totals, sum);
        add_wide(moments, product);
      }
      const double total = _mm512_reduce_add_pd(_mm512_add_pd(totals[0], totals[1]));
      const double moment = _mm512_reduce_add_pd(_mm512_add_pd(moments[0], moments[1]));
      const float scale = total != total || top - top != 0.0f ? NAN : (float)(1.0 / total);
      for (int64_t i = 0; i < words; i += LANES) {
        const __mmask16 there = first_16(words - i);
        const __m512 weight = _mm512_maskz_loadu_ps(there, weights + i);
        narrowed_16(_mm512_mul_ps(weight, _mm512_set1_ps(scale)), logits + i, there);
      }
      logps[row] = (float)(own - log(total)) * (scale == scale ? 1.0f : NAN);
      entropies[row] = (float)(log(total) - moment / total) * (scale == scale ? 1.0f : NAN);
    }
  }
}
