/* The gradient of a linear layer's weights in training, dW = dY^T X, in fp32, for processors with AVX-512.
 *
 * Tokens are the depth of this product. A part of them at a time is laid out, of both factors, in the order in which it is
 * read: the right one in blocks of 32 columns, which stay in a core's first cache, the left one in tiles of up to 14 rows of
 * the result. An element is summed over tokens in their order, whatever the number of threads. */
#include "signatures.h"
#include "vectors.h"

#if defined(__AVX512F__)
#include <immintrin.h>

enum { TILE = 16, WIDE = 2 * TILE, TALL = 14 };
enum { DEEP = 256, GROUP = 12 }; /* tokens of a part; tiles of rows that are laid out at a time, for the second cache */

/* Whether training's products in fp32 are made by these kernels: torch's are MKL's, which on processors of other vendors than
 * its own uses half the width of their vectors (measured: 115 GFLOP/s, where these reach 230 to 255). */
int can_train_float32(void) {
  __builtin_cpu_init();
  return !__builtin_cpu_is("intel");
}

static inline int64_t tiles_of(int64_t columns) { return (columns + TALL - 1) / TALL; }

static inline __mmask16 first_of(int64_t count) {
  return count >= TILE ? 0xffff : count > 0 ? (__mmask16)((1u << count) - 1) : 0;
}

/* ``rows`` rows of the result by 32 columns: ``deep`` tokens more. a (deep, TALL), b (deep, 32), both laid out. */
static inline __attribute__((always_inline)) void add_up(const float *a, const float *b, int64_t deep, int rows, float *to,
                                                         int64_t stride, __mmask16 one, __mmask16 two, int first) {
  __m512 left[TALL], right[TALL];
  for (int r = 0; r < rows; r++) {
    left[r] = _mm512_maskz_loadu_ps(first ? 0 : one, to + r * stride);
    right[r] = _mm512_maskz_loadu_ps(first ? 0 : two, to + r * stride + TILE);
  }
#pragma GCC unroll 4
  for (int64_t k = 0; k < deep; k++) {
    const __m512 x = _mm512_loadu_ps(b + k * WIDE), y = _mm512_loadu_ps(b + k * WIDE + TILE);
    for (int r = 0; r < rows; r++) {
      const __m512 all = _mm512_set1_ps(a[k * TALL + r]);
      left[r] = _mm512_fmadd_ps(all, x, left[r]);
      right[r] = _mm512_fmadd_ps(all, y, right[r]);
    }
  }
  for (int r = 0; r < rows; r++) {
    _mm512_mask_storeu_ps(to + r * stride, one, left[r]);
    _mm512_mask_storeu_ps(to + r * stride + TILE, two, right[r]);
  }
}

/* Floats of scratch. */
int64_t weight_gradient_room_float32(int64_t columns, int64_t depth, int threads) {
  return (up(depth, WIDE) + threads * smaller(tiles_of(columns), GROUP) * TALL) * DEEP;
}

/* dy (rows, columns), ``stride`` from row to row, and x (rows, depth), dense -> dw (columns, depth), dense: dy^T x. */
void weight_gradient_float32(const float *dy, int64_t stride, const float *x, float *dw, float *scratch, int64_t rows,
                             int64_t columns, int64_t depth, int threads) {
  const int64_t tiles = tiles_of(columns), blocks = (depth + WIDE - 1) / WIDE;
  const int64_t needed = (tiles + GROUP - 1) / GROUP, groups = (needed + threads - 1) / threads * threads; /* as many each */
  if (rows == 0) memset(dw, 0, (size_t)(columns * depth) * sizeof *dw);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    float *right = scratch, *own = scratch + (blocks * WIDE + thread() * smaller(tiles, GROUP) * TALL) * DEEP;
    for (int64_t start = 0; start < rows; start += DEEP) {
      const int64_t deep = smaller(rows - start, DEEP);
#pragma omp for schedule(static)
      for (int64_t block = 0; block < blocks; block++) {
        const float *from = x + start * depth + block * WIDE;
        float *to = right + block * WIDE * DEEP;
        const __mmask16 one = first_of(depth - block * WIDE), two = first_of(depth - block * WIDE - TILE);
        for (int64_t k = 0; k < deep; k++, from += depth, to += WIDE) {
          _mm512_storeu_ps(to, _mm512_maskz_loadu_ps(one, from));
          _mm512_storeu_ps(to + TILE, _mm512_maskz_loadu_ps(two, from + TILE));
        }
      }
#pragma omp for schedule(static)
      for (int64_t group = 0; group < groups; group++) {
        const int64_t low = tiles * group / groups, high = tiles * (group + 1) / groups;
        for (int64_t tile = low; tile < high; tile++) {
          const int64_t row = tile * columns / tiles, tall = (tile + 1) * columns / tiles - row;
          const float *from = dy + start * stride + row;
          float *to = own + (tile - low) * TALL * DEEP;
          for (int64_t k = 0; k < deep; k++, from += stride, to += TALL)
            _mm512_mask_storeu_ps(to, first_of(tall), _mm512_maskz_loadu_ps(first_of(tall), from));
        }
        for (int64_t block = 0; block < blocks; block++) {
          const __mmask16 one = first_of(depth - block * WIDE), two = first_of(depth - block * WIDE - TILE);
          for (int64_t tile = low; tile < high; tile++) {
            const int64_t row = tile * columns / tiles, tall = (tile + 1) * columns / tiles - row;
            const float *a = own + (tile - low) * TALL * DEEP, *b = right + block * WIDE * DEEP;
            float *to = dw + row * depth + block * WIDE;
#define ROWS(count)                                                                                                    \
  case count: add_up(a, b, deep, count, to, depth, one, two, start == 0); break;
            switch (tall) {
              ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12) ROWS(13)
              ROWS(14)
            }
#undef ROWS
          }
        }
      }
    }
  }
}
#else
int can_train_float32(void) { return 0; }
#endif
