/* Products of bfloat16 rows with a fixed matrix, by the processor's matrix tiles (AMX), sums in fp32. The matrix is packed
 * beforehand, in the order in which it is read: a step of decoding reads each weight once for few rows, so that the speed
 * of memory decides, and a library that must first rearrange the weights at each call takes about twice as long (measured). */
#include <stdint.h>
#include <string.h>

#if defined(__AMX_BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__linux__)
#include "tiles.h"
#include <sys/syscall.h>
#include <unistd.h>

enum { DEEP = 32, WIDE = 32, PAIR = WIDE * DEEP, AHEAD = 3 }; /* a block: 32 columns, 32 deep; blocks fetched ahead */

/* Linux gives a process the tiles on request; 0 where it does not. */
int can_multiply(void) { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

static int64_t up(int64_t x, int64_t step) { return (x + step - 1) / step * step; }

/* Elements of a packed (columns, depth) matrix. */
int64_t packed_size(int64_t columns, int64_t depth) { return up(columns, WIDE) * up(depth, DEEP); }

/* 16 numbers to bfloat16, to nearest, ties to even; a NaN stays one. */
static inline __m256i rounded_16(__m512 x) {
  const __m512i u = _mm512_castps_si512(x), odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i half = _mm512_add_epi32(_mm512_set1_epi32(0x7fff), odd);
  const __m512i upper = _mm512_srli_epi32(_mm512_add_epi32(u, half), 16);
  const __mmask16 none = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(upper, none, _mm512_set1_epi32(0x7fc0)));
}

/* 32 elements in bfloat16, zeros from ``count`` on */
static inline __m512i row_float32(const float *w, int64_t count) {
  const __mmask16 a = count >= 16 ? 0xffff : (__mmask16)((1u << count) - 1);
  const __mmask16 b = count >= 32 ? 0xffff : count > 16 ? (__mmask16)((1u << (count - 16)) - 1) : 0;
  const __m512i low = _mm512_castsi256_si512(rounded_16(_mm512_maskz_loadu_ps(a, w)));
  return _mm512_inserti64x4(low, rounded_16(_mm512_maskz_loadu_ps(b, w + 16)), 1);
}

static inline __m512i row_bfloat16(const uint16_t *w, int64_t count) {
  return _mm512_maskz_loadu_epi16(count >= 32 ? ~(__mmask32)0 : ((__mmask32)1 << count) - 1, w);
}

/* (columns, depth) fp32 or bfloat16 -> tiles: [columns / 32][depth / 32][2 tiles][16 pairs of depth][16 columns][2] */
#define PACK(type, name, row_of)                                                                                       \
  void name(const type *w, int64_t columns, int64_t depth, uint16_t *packed, int threads) {                            \
    const int64_t deep = up(depth, DEEP) / DEEP, tiles = up(columns, WIDE) / TILE;                                     \
    _Pragma("omp parallel for num_threads(threads) schedule(static) if (threads > 1)")                                 \
    for (int64_t tile = 0; tile < tiles; tile++)                                                                       \
      for (int64_t k = 0; k < deep; k++) {                                                                             \
        uint16_t *to = packed + (tile / 2 * deep + k) * PAIR + tile % 2 * TILE * DEEP;                                 \
        __m512i rows[TILE];                                                                                            \
        for (int c = 0; c < TILE; c++) {                                                                               \
          const int64_t column = tile * TILE + c;                                                                      \
          rows[c] = column < columns ? row_of(w + column * depth + k * DEEP, depth - k * DEEP)                         \
                                     : _mm512_setzero_si512();                                                         \
        }                                                                                                              \
        turn(rows);                                                                                                    \
        for (int c = 0; c < TILE; c++) _mm512_storeu_si512(to + c * DEEP, rows[c]);                                    \
      }                                                                                                                \
  }
PACK(float, pack_float32, row_float32)
PACK(uint16_t, pack_bfloat16, row_bfloat16)

/* 32 rows of x by a block of 32 columns, sums left in tiles 0 to 3. ``fetch``: the weights are read for the first time;
 * what lies behind them is the next block. */
static inline __attribute__((always_inline)) void sum(const uint16_t *a, int64_t stride, const uint16_t *w, int64_t deep,
                                                      int fetch) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < deep; k++, a += DEEP, w += PAIR) {
    if (fetch) fetch_quarter(w + AHEAD * PAIR, 0);
    _tile_loadd(4, a, stride * 2);
    if (fetch) fetch_quarter(w + AHEAD * PAIR, 1);
    _tile_loadd(6, w, 64);
    _tile_loadd(7, w + TILE * DEEP, 64);
    _tile_loadd(5, a + TILE * stride, stride * 2);
    if (fetch) fetch_quarter(w + AHEAD * PAIR, 2);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (fetch) fetch_quarter(w + AHEAD * PAIR, 3);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

/* x (rows, depth) bfloat16, dense, by a packed (columns, depth) matrix -> out (rows, columns) bfloat16, dense, plus bias
 * (columns) unless it is null. ``padded``: room for whole tiles, rows and depth rounded up to 32, where they are not. */
void multiply(const uint16_t *x, const uint16_t *packed, const uint16_t *bias, uint16_t *out,
              uint16_t *padded, int64_t rows, int64_t columns, int64_t depth, int threads) {
  const int64_t deep = up(depth, DEEP) / DEEP, high = up(rows, 32), stride = up(depth, DEEP);
  /* rows and depth in whole tiles: what is beyond them is zero */
  const uint16_t *in = x;
  if (high != rows || stride != depth) {
    for (int64_t r = 0; r < high; r++) {
      const int64_t size = r < rows ? depth : 0;
      memcpy(padded + r * stride, x + r * depth, (size_t)size * 2);
      memset(padded + r * stride + size, 0, (size_t)(stride - size) * 2);
    }
    in = padded;
  }
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    struct config before;
    MEMORY(in);
    tiles_on(&before);
    float sums[2][32][TILE] __attribute__((aligned(64))); /* the left and the right half of a block's columns */
#pragma omp for schedule(static)
    for (int64_t block = 0; block < up(columns, WIDE) / WIDE; block++) {
      const uint16_t *w = packed + block * deep * PAIR;
      for (int64_t row = 0; row < high; row += 32) {
        if (row) sum(in + row * stride, stride, w, deep, 0);
        else sum(in, stride, w, deep, 1);
        _tile_stored(0, sums[0], 64);
        _tile_stored(1, sums[1], 64);
        _tile_stored(2, sums[0][TILE], 64);
        _tile_stored(3, sums[1][TILE], 64);
        MEMORY(sums);
        const int64_t tall = rows - row < 32 ? rows - row : 32;
        for (int half = 0; half < 2; half++) {
          const int64_t first = block * WIDE + half * TILE, count = columns - first;
          const __mmask16 there = count >= TILE ? 0xffff : count > 0 ? (__mmask16)((1u << count) - 1) : 0;
          const __m256i low = bias ? _mm256_maskz_loadu_epi16(there, bias + first) : _mm256_setzero_si256();
          const __m512 plus = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(low), 16));
          for (int64_t r = 0; r < tall; r++) {
            const __m512 with = _mm512_add_ps(_mm512_load_ps(sums[half][r]), plus);
            _mm256_mask_storeu_epi16(out + (row + r) * columns + first, there, rounded_16(with));
          }
        }
      }
    }
    tiles_off(&before);
  }
}
#else
int can_multiply(void) { return 0; }
#endif
