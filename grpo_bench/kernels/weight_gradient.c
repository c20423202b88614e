/* The gradient of a linear layer's weights in training, dW = dY^T X, by the processor's matrix tiles (AMX): bfloat16 factors,
 * sums in fp32, which are the result: weights are trained in fp32, and a library would round the sums to bfloat16 first.
 *
 * Tokens are the depth of this product and lie the wrong way for it in both factors. Each is first laid out in the order
 * in which tiles read it ("panels" of 32 by 32), which costs one pass over it; a library that turns one of them element by
 * element takes about 1.4 times as long (measured). */
#include <stdint.h>
#include <string.h>

#if defined(__AMX_BF16__) && defined(__AVX512BW__) && defined(__linux__)
#include "tiles.h"

enum { SIDE = 32, HALF = TILE, PANEL = SIDE * SIDE, GROUP = 8 }; /* GROUP: blocks of rows that one pass over columns serves */

static inline int64_t blocks(int64_t x) { return (x + SIDE - 1) / SIDE; }

/* 32 elements of a token, zeros for tokens and elements that are not there */
static inline __m512i row_of(const uint16_t *x, int64_t stride, int64_t rows, __mmask32 there, int64_t i) {
  return i < rows ? _mm512_maskz_loadu_epi16(there, x + i * stride) : _mm512_setzero_si512();
}

static inline __mmask32 mask(int64_t count) { return count < SIDE ? ((__mmask32)1 << count) - 1 : ~(__mmask32)0; }

/* Two rows of 32 elements -> 32 pairs, the first 16 and the others. */
static inline __attribute__((always_inline)) void pairs(__m512i a, __m512i b, __m512i *first, __m512i *second) {
  const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5,
                                       36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  *first = _mm512_permutex2var_epi16(a, low, b);
  *second = _mm512_permutex2var_epi16(a, high, b);
}

/* ``rows`` tokens of up to 32 elements -> 32 rows that are 32 tokens deep (two tiles: elements 0-15, 16-31). */
static inline void left_panel(const uint16_t *x, int64_t stride, int64_t rows, int64_t count, uint16_t *to) {
  const __mmask32 there = mask(count);
  __m512i one[16], two[16];
  for (int i = 0; i < 16; i++)
    pairs(row_of(x, stride, rows, there, 2 * i), row_of(x, stride, rows, there, 2 * i + 1), one + i, two + i);
  turn(one);
  turn(two);
  for (int i = 0; i < 16; i++) {
    _mm512_store_si512(to + i * SIDE, one[i]);
    _mm512_store_si512(to + (HALF + i) * SIDE, two[i]);
  }
}

/* ``rows`` tokens of up to 32 elements -> 16 pairs of tokens by 16 elements (two tiles: elements 0-15, 16-31). */
static inline void right_panel(const uint16_t *x, int64_t stride, int64_t rows, int64_t count, uint16_t *to) {
  const __mmask32 there = mask(count);
  for (int i = 0; i < 16; i++) {
    __m512i low, high;
    pairs(row_of(x, stride, rows, there, 2 * i), row_of(x, stride, rows, there, 2 * i + 1), &low, &high);
    _mm512_store_si512(to + i * SIDE, low);
    _mm512_store_si512(to + (HALF + i) * SIDE, high);
  }
}

/* One block of ``tall`` rows by ``wide`` columns, up to 32 each, ``deep`` panels, to fp32 rows that are ``width`` long. */
static inline __attribute__((always_inline)) void block(const uint16_t *a, const uint16_t *b, int64_t deep, float *to,
                                                        int64_t width, int64_t tall, int64_t wide) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < deep; k++, a += PANEL, b += PANEL) {
    fetch_quarter(a + 2 * PANEL, 0);
    _tile_loadd(4, a, 64);
    fetch_quarter(a + 2 * PANEL, 1);
    _tile_loadd(6, b, 64);
    _tile_loadd(7, b + PANEL / 2, 64);
    fetch_quarter(a + 2 * PANEL, 2);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, a + PANEL / 2, 64);
    _tile_dpbf16ps(1, 4, 7);
    fetch_quarter(a + 2 * PANEL, 3);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  float sums[SIDE * SIDE] __attribute__((aligned(64)));
  const int whole = tall >= SIDE && wide >= SIDE;
  float *out = whole ? to : sums;
  const int64_t step = whole ? width : SIDE;
  _tile_stored(0, out, step * 4);
  _tile_stored(1, out + HALF, step * 4);
  _tile_stored(2, out + HALF * step, step * 4);
  _tile_stored(3, out + HALF * step + HALF, step * 4);
  if (whole) return;
  MEMORY(sums);
  for (int64_t r = 0; r < tall && r < SIDE; r++)
    memcpy(to + r * width, sums + r * SIDE, (size_t)(wide < SIDE ? wide : SIDE) * 4);
}

/* Elements of bfloat16 that the panels take; 0 where this was compiled without tiles. */
int64_t weight_gradient_room(int64_t rows, int64_t columns, int64_t depth) {
  return blocks(rows) * (blocks(columns) + blocks(depth)) * PANEL;
}

/* dy (rows, columns) bfloat16, ``stride`` from row to row, and x (rows, depth), dense -> dw (columns, depth) fp32, dense:
 * dy^T x. scratch is aligned to 64 bytes. ``made``: it still holds x laid out, from a call with the same x before. */
void weight_gradient(const uint16_t *dy, int64_t stride, const uint16_t *x, float *dw, uint16_t *scratch, int64_t rows,
                     int64_t columns, int64_t depth, int made, int threads) {
  const int64_t deep = blocks(rows), high = blocks(columns), across = blocks(depth), groups = (high + GROUP - 1) / GROUP;
  uint16_t *right = scratch, *left = scratch + across * deep * PANEL;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp for schedule(static) nowait
    for (int64_t k = 0; k < (made ? 0 : deep); k++)
      for (int64_t c = 0; c < across; c++)
        right_panel(x + k * SIDE * depth + c * SIDE, depth, rows - k * SIDE, depth - c * SIDE,
                    right + (c * deep + k) * PANEL);
#pragma omp for schedule(static)
    for (int64_t k = 0; k < deep; k++)
      for (int64_t r = 0; r < high; r++)
        left_panel(dy + k * SIDE * stride + r * SIDE, stride, rows - k * SIDE, columns - r * SIDE,
                   left + (r * deep + k) * PANEL);
    struct config before;
    MEMORY(scratch);
    tiles_on(&before);
#pragma omp for schedule(static)
    for (int64_t item = 0; item < groups * across; item++) { /* a group's panels stay in a core's cache meanwhile */
      const int64_t c = item % across, start = item / across * GROUP;
      for (int64_t r = start; r < start + GROUP && r < high; r++)
        block(left + r * deep * PANEL, right + c * deep * PANEL, deep, dw + r * SIDE * depth + c * SIDE, depth,
              columns - r * SIDE, depth - c * SIDE);
    }
    tiles_off(&before);
    MEMORY(dw);
  }
}
#else
int64_t weight_gradient_room(int64_t rows, int64_t columns, int64_t depth) {
  return (void)rows, (void)columns, (void)depth, 0;
}
#endif
