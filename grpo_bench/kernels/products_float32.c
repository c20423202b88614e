/* Products of fp32 rows with a fixed matrix, sums in fp32. The matrix is packed beforehand, in the order in which it is read:
 * of a step of decoding's few rows a library's products spend much of their time on laying it out at each call (measured:
 * 0.7 of torch's time at 256 rows and 0.75 at 64, of a model whose matrices do not fit into a core's cache). */
#include "signatures.h"
#include "vectors.h"

#if defined(__AVX512F__)
#include <immintrin.h>

#include "turn.h"

enum { TILE = 16, WIDE = 2 * TILE, TALL = 14, DEEP = 8 }; /* a block: 32 columns; rows at once, whose sums fill registers */
enum { CACHED = 1 << 18 }; /* elements of x by which each block is multiplied in turn: they stay in a core's cache */
enum { PARTS = 4 };        /* blocks by rows that a thread has at least, where there are rows enough */

int can_multiply_float32(void) { return 1; }

/* Elements of a packed (columns, depth) matrix. */
int64_t packed_size_float32(int64_t columns, int64_t depth) { return up(columns, WIDE) * depth; }

static inline __mmask16 first_of(int64_t count) {
  return count >= TILE ? 0xffff : count > 0 ? (__mmask16)((1u << count) - 1) : 0;
}

/* (columns, depth) -> [columns / 32][depth][2 tiles][16 columns]. ``tiles``: of 16 columns, zeros beyond those there are; the
 * i-th becomes the (first + step i)-th of ``packed``, which may hold several matrices of one depth. */
void pack_float32_float32(const float *w, int64_t columns, int64_t depth, float *packed, int64_t tiles, int64_t first,
                         int64_t step, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t tile = 0; tile < tiles; tile++) {
    const int64_t place = first + tile * step;
    float *to = packed + place / 2 * WIDE * depth + place % 2 * TILE;
    for (int64_t k = 0; k < depth; k += TILE) {
      __m512i rows[TILE];
      for (int64_t c = 0; c < TILE; c++) {
        const int64_t column = tile * TILE + c;
        rows[c] = _mm512_maskz_loadu_epi32(column < columns ? first_of(depth - k) : 0, w + column * depth + k);
      }
      turn(rows);
      for (int64_t i = 0; i < smaller(depth - k, TILE); i++) _mm512_storeu_si512(to + (k + i) * WIDE, rows[i]);
    }
  }
}

/* The same of a whole matrix that lies the other way: w (depth, columns). */
void pack_turned_float32(const float *w, int64_t columns, int64_t depth, float *packed, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t block = 0; block < up(columns, WIDE); block += WIDE) {
    const __mmask16 one = first_of(columns - block), two = first_of(columns - block - TILE);
    const float *from = w + block;
    float *to = packed + block * depth;
    for (int64_t k = 0; k < depth; k++, from += columns, to += WIDE) {
      _mm512_storeu_ps(to, _mm512_maskz_loadu_ps(one, from));
      _mm512_storeu_ps(to + TILE, _mm512_maskz_loadu_ps(two, from + TILE));
    }
  }
}

/* ``rows`` rows of x by a block -> sums. ``next`` is asked for along the way, ``lines`` of 64 bytes. Rows are found from every
 * third one's address: with an address of each, the processor would run out of registers for them. */
static inline __attribute__((always_inline)) void add_up(const float *x, int64_t depth, const float *w, int rows,
                                                         const char *next, int64_t lines, float sums[TALL][WIDE]) {
  __m512 left[TALL], right[TALL];
  for (int r = 0; r < rows; r++) left[r] = right[r] = _mm512_setzero_ps();
  const int64_t stride = depth * (int64_t)sizeof *x;
  const char *at[(TALL + 2) / 3], *end = next + lines * 64;
  for (int i = 0; i < (rows + 2) / 3; i++) {
    at[i] = (const char *)(x + 3 * i * depth);
    __asm__("" : "+r"(at[i])); /* else the compiler makes an address of each row after all */
  }
#define STEP(k)                                                                                                        \
  {                                                                                                                    \
    const __m512 a = _mm512_loadu_ps(w + (k) * WIDE), b = _mm512_loadu_ps(w + (k) * WIDE + TILE);                      \
    for (int r = 0; r < rows; r++) {                                                                                   \
      const __m512 one = _mm512_set1_ps(*(const float *)(at[r / 3] + r % 3 * stride + (k) * (int64_t)sizeof *x));      \
      left[r] = _mm512_fmadd_ps(one, a, left[r]);                                                                      \
      right[r] = _mm512_fmadd_ps(one, b, right[r]);                                                                    \
    }                                                                                                                  \
  }
#define ON(count)                                                                                                      \
  w += (count) * WIDE;                                                                                                 \
  for (int i = 0; i < (rows + 2) / 3; i++) {                                                                           \
    at[i] += (count) * sizeof *x;                                                                                      \
    __asm__("" : "+r"(at[i]));                                                                                         \
  }
  int64_t k = 0;
  for (; k + DEEP <= depth; k += DEEP) {
#pragma GCC unroll 8
    for (int i = 0; i < DEEP; i++) STEP(i)
    ON(DEEP)
    if (next < end) {
      _mm_prefetch(next, _MM_HINT_T1);
      next += 64;
    }
  }
  for (; k < depth; k++) {
    STEP(0)
    ON(1)
  }
#undef STEP
#undef ON
  for (int r = 0; r < rows; r++) {
    _mm512_store_ps(sums[r], left[r]);
    _mm512_store_ps(sums[r] + TILE, right[r]);
  }
}

/* Where the sums of a product go: see multiply_float32 */
struct target {
  const float *bias, *plus;
  float *out, *sum;
  int64_t columns;
};

/* ``tall`` rows of sums, from ``row`` on, to the 32 columns of ``block`` */
static void put(struct target to, float sums[TALL][WIDE], int64_t row, int64_t tall, int64_t block) {
  for (int half = 0; half < 2; half++) {
    const int64_t first = block * WIDE + half * TILE, count = to.columns - first;
    const __mmask16 there = first_of(count);
    const __m512 more = to.bias ? _mm512_maskz_loadu_ps(there, to.bias + first) : _mm512_setzero_ps();
    for (int64_t r = 0; r < tall; r++) {
      const int64_t at = (row + r) * to.columns + first;
      const __m512 made = _mm512_add_ps(_mm512_load_ps(sums[r] + half * TILE), more);
      _mm512_mask_storeu_ps(to.out + at, there, made);
      if (to.sum) _mm512_mask_storeu_ps(to.sum + at, there, _mm512_add_ps(_mm512_maskz_loadu_ps(there, to.plus + at), made));
    }
  }
}

/* The same where a block's first 16 columns are gates and its last 16 what they let through: 16 columns of the result. */
static void put_gated(struct target to, float sums[TALL][WIDE], int64_t row, int64_t tall, int64_t block) {
  const int64_t first = block * TILE, count = smaller(to.columns - first, TILE);
  for (int64_t r = 0; r < tall; r++) {
    float made[TILE] __attribute__((aligned(64)));
#pragma omp simd
    for (int i = 0; i < TILE; i++) {
      const float g = sums[r][i];
      made[i] = g * sigmoid(g) * sums[r][TILE + i];
    }
    memcpy(to.out + (row + r) * to.columns + first, made, (size_t)count * sizeof *made);
  }
}

/* x (rows, depth), dense, by a packed (columns, depth) matrix -> out (rows, columns), dense, plus bias (columns) unless it is
 * null; with ``plus`` (rows, columns) also ``sum``, out + plus. ``gated``: the matrix is two, whose tiles take turns, and out
 * is silu(x by the first) times x by the second; no bias, no plus. An element is summed in one order, whatever the rows
 * beside it and the number of threads. */
void multiply_float32(const float *x, const float *packed, const float *bias, float *out, const float *plus, float *sum,
                      int64_t rows, int64_t columns, int64_t depth, int gated, int threads) {
  const int64_t blocks = gated ? up(columns, TILE) / TILE : up(columns, WIDE) / WIDE;
  const int64_t wanted = threads > 1 && blocks < PARTS * threads ? up(PARTS * threads, blocks) / blocks : 1;
  int64_t chunk = smaller(CACHED / depth, (rows + wanted - 1) / wanted);
  chunk = chunk > TALL ? chunk : TALL;
  const int64_t chunks = (rows + chunk - 1) / chunk;
  const struct target to = {bias, plus, out, sum, columns};
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    float sums[TALL][WIDE] __attribute__((aligned(64)));
#pragma omp for collapse(2) schedule(static)
    for (int64_t c = 0; c < chunks; c++)
      for (int64_t block = 0; block < blocks; block++) {
        const float *w = packed + block * depth * WIDE;
        const char *next = (const char *)(w + depth * WIDE);
        const int64_t start = c * chunk, high = smaller(rows - start, chunk), tiles = (high + TALL - 1) / TALL;
        const int64_t lines = (depth * WIDE * (int64_t)sizeof *w / 64 + tiles - 1) / tiles;
        for (int64_t i = 0; i < tiles; i++, next += lines * 64) {
          const int64_t row = start + i * high / tiles, tall = start + (i + 1) * high / tiles - row;
#define ROWS(count)                                                                                                    \
  case count: add_up(x + row * depth, depth, w, count, next, lines, sums); break;
          switch (tall) {
            ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12) ROWS(13)
            default: add_up(x + row * depth, depth, w, TALL, next, lines, sums);
          }
#undef ROWS
          if (gated) put_gated(to, sums, row, tall, block);
          else put(to, sums, row, tall, block);
        }
      }
  }
}

CALLED(multiply_float32, PTR(0), PTR(1), PTR(2), PTR(3), PTR(4), PTR(5), INT(6), INT(7), INT(8), (int)INT(9), (int)INT(10))
#else
int can_multiply_float32(void) { return 0; }
#endif
