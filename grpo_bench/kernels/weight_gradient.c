/* The gradient of a linear layer's weights in training, dW = dY^T X, by products of panels (panels.h): bfloat16 factors,
 * sums in fp32, which are the result: weights are trained in fp32, and a library would round the sums to bfloat16 first.
 *
 * Tokens are the depth of this product and lie the wrong way for it in both factors. Each is first laid out in the order
 * in which it is read ("panels" of 32 by 32), which costs one pass over it; a library that turns one of them element by
 * element takes about 1.4 times as long (measured). All of both laid out first, and then multiplied, took 1.1 to 1.25 times
 * as long as a part of the left one at a time. */
#include "signatures.h"
#include "vectors.h"

#ifdef PANELS
#include "panels.h"

enum { HALF = TILE };
#ifdef TILES
enum { GROUP = 8, DEEP = 64 }; /* blocks of the result's rows and panels of tokens at a time: what is laid out of the left
                                * factor stays in a core's second cache, and the right factor comes ahead of its use */
#else
enum { GROUP = 8, DEEP = 8 }; /* the same; and what is multiplied at once stays in the first */
#endif

static inline int64_t blocks(int64_t x) { return (x + SIDE - 1) / SIDE; }

/* 32 elements of a token, zeros for tokens and elements that are not there */
static inline __m512i row_of(const uint16_t *x, int64_t stride, int64_t rows, __mmask32 there, int64_t i) {
  return i < rows ? _mm512_maskz_loadu_epi16(there, x + i * stride) : _mm512_setzero_si512();
}

static inline __mmask32 mask(int64_t count) { return count < SIDE ? ((__mmask32)1 << count) - 1 : ~(__mmask32)0; }

/* ``rows`` tokens of up to 32 elements -> 32 rows that are 32 tokens deep (two tiles: elements 0-15, 16-31). */
static inline void left_panel(const uint16_t *x, int64_t stride, int64_t rows, int64_t count, uint16_t *to) {
  const __mmask32 there = mask(count);
  __m512i one[16], two[16]; /* pairs of tokens, of the elements 0-3, 8-11, 16-19, 24-27 and of those between them */
  for (int i = 0; i < 16; i++) {
    const __m512i a = row_of(x, stride, rows, there, 2 * i), b = row_of(x, stride, rows, there, 2 * i + 1);
    one[i] = _mm512_unpacklo_epi16(a, b);
    two[i] = _mm512_unpackhi_epi16(a, b);
  }
  turn(one);
  turn(two);
  for (int i = 0; i < 16; i++) {
    const int row = i / 4 * 8 + i % 4;
    _mm512_store_si512(to + row * SIDE, one[i]);
    _mm512_store_si512(to + (row + 4) * SIDE, two[i]);
  }
}

/* ``rows`` tokens of up to 32 elements -> 16 pairs of tokens by 16 elements (two tiles: elements 0-15, 16-31). */
static inline void right_panel(const uint16_t *x, int64_t stride, int64_t rows, int64_t count, uint16_t *to) {
  const __m512i first = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0), second = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);
  const __mmask32 there = mask(count);
  for (int i = 0; i < 16; i++) {
    const __m512i a = row_of(x, stride, rows, there, 2 * i), b = row_of(x, stride, rows, there, 2 * i + 1);
    const __m512i one = _mm512_unpacklo_epi16(a, b), two = _mm512_unpackhi_epi16(a, b);
    _mm512_store_si512(to + i * SIDE, _mm512_permutex2var_epi64(one, first, two));
    _mm512_store_si512(to + (HALF + i) * SIDE, _mm512_permutex2var_epi64(one, second, two));
  }
}

/* Sums of a block, 32 by 32, rows ``step`` apart: ``deep`` panels more of them, or the first. Meanwhile ``lines`` of 64 bytes
 * from ``next`` on are asked for, a few at each step. */
#ifdef TILES
static inline __attribute__((always_inline)) void block(const uint16_t *a, const uint16_t *b, int64_t deep, float *sums,
                                                        int64_t step, int first, const char *next, int64_t lines) {
  if (first) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, sums, step * 4);
    _tile_loadd(1, sums + HALF, step * 4);
    _tile_loadd(2, sums + HALF * step, step * 4);
    _tile_loadd(3, sums + HALF * step + HALF, step * 4);
  }
  const char *end = next + lines * 64;
  const int64_t some = (lines + deep - 1) / deep;
  for (int64_t k = 0; k < deep; k++, a += PANEL, b += PANEL) {
    fetch_quarter(a + 2 * PANEL, 0, 1);
    _tile_loadd(4, a, 64);
    fetch_quarter(a + 2 * PANEL, 1, 1);
    _tile_loadd(6, b, 64);
    _tile_loadd(7, b + PANEL / 2, 64);
    fetch_quarter(a + 2 * PANEL, 2, 1);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, a + PANEL / 2, 64);
    _tile_dpbf16ps(1, 4, 7);
    fetch_quarter(a + 2 * PANEL, 3, 1);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    for (int64_t i = 0; i < some && next < end; i++, next += 64) _mm_prefetch(next, _MM_HINT_T1);
  }
  _tile_stored(0, sums, step * 4);
  _tile_stored(1, sums + HALF, step * 4);
  _tile_stored(2, sums + HALF * step, step * 4);
  _tile_stored(3, sums + HALF * step + HALF, step * 4);
}
#else
static inline __attribute__((always_inline)) void block(const uint16_t *a, const uint16_t *b, int64_t deep, float *sums,
                                                        int64_t step, int first, const char *next, int64_t lines) {
  for (int64_t i = 0; i < lines; i++) _mm_prefetch(next + i * 64, _MM_HINT_T1);
  if (first) multiply_panels(a, 1, b, 1, deep, sums, step, 0);
  else multiply_panels(a, 1, b, 1, deep, sums, step, 1);
}
#endif

/* Elements of bfloat16 that the panels take; 0 where this was compiled without panels. */
int64_t weight_gradient_room(int64_t rows, int64_t columns, int64_t depth, int threads) {
  return (blocks(rows) * blocks(depth) + threads * smaller(blocks(columns), GROUP) * smaller(blocks(rows), DEEP)) * PANEL;
}

/* dy (rows, columns) bfloat16, ``stride`` from row to row, and x (rows, depth), dense -> dw (columns, depth) fp32, dense:
 * dy^T x. scratch is aligned to 64 bytes. ``made``: it still holds x laid out, from a call with the same x before. */
void weight_gradient(const uint16_t *dy, int64_t stride, const uint16_t *x, float *dw, uint16_t *scratch, int64_t rows,
                     int64_t columns, int64_t depth, int made, int threads) {
  const int64_t deep = blocks(rows), high = blocks(columns), across = blocks(depth);
  const int64_t needed = (high + GROUP - 1) / GROUP, groups = (needed + threads - 1) / threads * threads; /* as many each */
  if (rows == 0) memset(dw, 0, (size_t)(columns * depth) * sizeof *dw);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const int64_t own = smaller(high, GROUP) * smaller(deep, DEEP) * PANEL;
    uint16_t *right = scratch, *left = scratch + across * deep * PANEL + thread() * own;
    float edge[SIDE * SIDE] __attribute__((aligned(64))) = {0}; /* a block that reaches beyond the result */
#pragma omp for collapse(2) schedule(static)
    for (int64_t k = 0; k < (made ? 0 : deep); k++)
      for (int64_t c = 0; c < across; c++)
        right_panel(x + k * SIDE * depth + c * SIDE, depth, rows - k * SIDE, depth - c * SIDE,
                    right + (c * deep + k) * PANEL);
    struct config before;
    tiles_on(&before);
#pragma omp for schedule(static)
    for (int64_t g = 0; g < groups; g++)
      for (int64_t k = 0; k < deep; k += DEEP) {
        const int64_t start = high * g / groups, group = high * (g + 1) / groups - start, some = smaller(deep - k, DEEP);
        for (int64_t i = 0; i < some; i++)
          for (int64_t r = 0; r < group; r++)
            left_panel(dy + (k + i) * SIDE * stride + (start + r) * SIDE, stride, rows - (k + i) * SIDE,
                       columns - (start + r) * SIDE, left + (r * some + i) * PANEL);
        MEMORY(scratch);
        for (int64_t c = 0; c < across; c++)
          for (int64_t r = 0; r < group; r++) {
            const int64_t tall = smaller(columns - (start + r) * SIDE, SIDE), wide = smaller(depth - c * SIDE, SIDE);
            const uint16_t *a = left + r * some * PANEL, *b = right + (c * deep + k) * PANEL;
            float *to = dw + (start + r) * SIDE * depth + c * SIDE;
            const int64_t lines = c + 1 < across ? (some * PANEL * 2 / 64 + group - 1) / group : 0; /* of the next column's */
            const char *next = (const char *)(b + deep * PANEL) + r * lines * 64;
            if (tall == SIDE && wide == SIDE) {
              block(a, b, some, to, depth, k == 0, next, lines);
              continue;
            }
            for (int64_t i = 0; i < tall && k; i++) memcpy(edge + i * SIDE, to + i * depth, (size_t)wide * 4);
            MEMORY(edge);
            block(a, b, some, edge, SIDE, k == 0, next, lines);
            MEMORY(edge);
            for (int64_t i = 0; i < tall; i++) memcpy(to + i * depth, edge + i * SIDE, (size_t)wide * 4);
          }
      }
    tiles_off(&before);
    MEMORY(dw);
  }
}
#else
int64_t weight_gradient_room(int64_t rows, int64_t columns, int64_t depth, int threads) {
  return (void)rows, (void)columns, (void)depth, (void)threads, 0;
}
#endif
