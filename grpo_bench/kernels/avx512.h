/* Of processors with AVX-512 and its conversions to bfloat16: vectors of 16 floats from and to it, and 2^x. The conversions
 * take numbers below 2^-126 for zeros. */
#pragma once
#include <immintrin.h>
#include <stdint.h>

static inline __mmask16 first_16(int64_t count) { return count < 16 ? (__mmask16)((1u << count) - 1) : (__mmask16)0xffff; }

static inline __attribute__((always_inline)) __m512 widened_16(const uint16_t *x, __mmask16 there) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, x)), 16));
}

static inline __attribute__((always_inline)) void narrowed_16(__m512 x, uint16_t *to, __mmask16 there) {
  _mm256_mask_storeu_epi16(to, there, (__m256i)_mm512_cvtneps_pbh(x));
}

/* 2^x to about 2e-7 of its size, for x up to 127; 2^-126 below that, NaN stays */
static inline __attribute__((always_inline)) __m512 power_of_2(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-126.0f), x); /* the second where one is NaN */
  const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = _mm512_sub_ps(x, n);
  __m512 p = _mm512_set1_ps(1.326472731e-3f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.671512991e-3f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.550733581e-2f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.402224243e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.931470037e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, n);
}

#define LOG2E 1.44269504088896341f
#define LN2 0.69314718055994531f

static inline __attribute__((always_inline)) __m512 sigmoid_16(__m512 x) { /* as sigmoid() of vectors.h is */
  const __mmask16 some = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_NLE_UQ);
  const __m512 power = _mm512_min_ps(_mm512_set1_ps(125.0f), _mm512_mul_ps(x, _mm512_set1_ps(-LOG2E)));
  const __m512 y = _mm512_add_ps(_mm512_set1_ps(1.0f), power_of_2(power)), near = _mm512_rcp14_ps(y);
  return _mm512_maskz_mul_ps(some, near, _mm512_fnmadd_ps(y, near, _mm512_set1_ps(2.0f))); /* a step of Newton's */
}

/* silu(g) u */
static inline __attribute__((always_inline)) __m512 gated_16(__m512 g, __m512 u) {
  return _mm512_mul_ps(_mm512_mul_ps(g, sigmoid_16(g)), u);
}
