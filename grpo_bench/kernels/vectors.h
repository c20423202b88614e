/* What several units share: numbers as bits, vectors by the compiler's extension, elements of both types, and threads. */
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "calls.h"
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

/* Where products in bfloat16 are made here (panels.h): by matrix tiles, or by dot products of pairs */
#if defined(__AMX_BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__linux__)
#define TILES
#define PANELS
#elif defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define PANELS
#endif
#if defined(PANELS) && defined(__AVX512BF16__)
#define TILED_ATTENTION /* attention.c compiles it, and decoder_layer.c calls it; avx512.h can be used */
#endif

static inline int64_t up(int64_t x, int64_t step) { return (x + step - 1) / step * step; }
static inline int64_t smaller(int64_t x, int64_t y) { return x < y ? x : y; }

static inline float bits(uint32_t u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}

static inline uint32_t unbits(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return u;
}

/* exp(x) to about 1e-7 of its size, for x up to 88; 0 below -87: a form that compilers turn into vector code. */
static inline float exponential(float x) {
  const float low = x > -87.0f ? x : -87.0f;
  const float n = rintf(low * 1.44269504088896341f);
  const float r = (low - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const float y = p * bits((uint32_t)((int32_t)n + 127) << 23);
  return x > -87.0f ? y : 0.0f;
}

static inline float sigmoid(float x) { /* 0 below -87, where exponential() ends; a NaN stays one */
  const float low = x > -87.0f ? x : -87.0f, y = 1.0f / (1.0f + exponential(-low));
  return x > -87.0f ? y : x == x ? 0.0f : x;
}

/* Vectors by the compiler's extension: on processors without ones of 16 floats it makes several of them. */
enum { LANES = 16, BOTH = 2 * LANES };
typedef float wide __attribute__((vector_size(64)));
typedef float wide8 __attribute__((vector_size(32)));
typedef float wide4 __attribute__((vector_size(16)));
typedef uint32_t words __attribute__((vector_size(64)));
typedef uint32_t words8 __attribute__((vector_size(32)));
typedef struct {
  wide a, b;
} pair;

static inline wide load(const float *x) {
  wide y;
  memcpy(&y, x, sizeof y);
  return y;
}

static inline pair pair_float32(const float *x) { return (pair){load(x), load(x + LANES)}; }

static inline int64_t place_float32(int64_t i, int64_t d) { return (void)d, i; }

/* A word holds two bfloat16, each the upper half of a float: the even elements, then the odd ones, for two operations
 * where one vector after the other costs many. */
static inline pair pair_bfloat16(const uint16_t *x) {
  words w;
  memcpy(&w, x, sizeof w);
  const words even = w << 16, odd = w & 0xffff0000u;
  pair y;
  memcpy(&y.a, &even, sizeof even);
  memcpy(&y.b, &odd, sizeof odd);
  return y;
}

static inline int64_t place_bfloat16(int64_t i, int64_t d) {
  return i < d / BOTH * BOTH ? i / BOTH * BOTH + i % 2 * LANES + i % BOTH / 2 : i;
}

/* One step more of a dot product: BOTH elements of each, in any order, to 16 sums. */
static inline wide more_float32(wide sum, const float *x, const float *y) {
  sum += load(x) * load(y);
  sum += load(x + LANES) * load(y + LANES);
  return sum;
}

static inline wide more_bfloat16(wide sum, const uint16_t *x, const uint16_t *y) {
#ifdef __AVX512BF16__
  __m512i a, b;
  memcpy(&a, x, sizeof a);
  memcpy(&b, y, sizeof b);
  return (wide)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
  const pair a = pair_bfloat16(x), b = pair_bfloat16(y);
  sum += a.a * b.a;
  sum += a.b * b.b;
  return sum;
#endif
}

static inline wide8 halves(wide x) {
  wide8 h[2];
  memcpy(h, &x, sizeof x);
  return h[0] + h[1];
}

#ifdef _OPENMP
#include <omp.h>
static inline int64_t thread(void) { return omp_get_thread_num(); }
#else
static inline int64_t thread(void) { return 0; }
#endif

static inline float same(float x) { return x; }
static inline float from_bfloat16(uint16_t x) { return bits((uint32_t)x << 16); }
static inline uint16_t to_bfloat16(float f) { /* to nearest, ties to even; a NaN stays one */
  const uint32_t u = unbits(f);
  return f == f ? (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16) : (uint16_t)0x7fc0u;
}
