/* Products of bfloat16 rows with a fixed matrix, by the processor's matrix tiles (AMX), sums in fp32. The matrix is packed
 * beforehand, in the order in which it is read: a step of decoding reads each weight once for few rows, so that the speed
 * of memory decides, and a library that must first rearrange the weights at each call takes about twice as long (measured). */
#include <stdint.h>
#include <string.h>

#if defined(__AMX_BF16__) && defined(__linux__)
#include "tiles.h"
#include <sys/syscall.h>
#include <unistd.h>

enum { DEEP = 32, WIDE = 32, AHEAD = 6 }; /* a block: 32 columns, 32 deep */

/* Linux gives a process the tiles on request; 0 where it does not. */
int can_multiply(void) { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

static inline uint16_t rounded(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return f == f ? (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16) : (uint16_t)0x7fc0u;
}

static int64_t up(int64_t x, int64_t step) { return (x + step - 1) / step * step; }

/* Elements of a packed (columns, depth) matrix. */
int64_t packed_size(int64_t columns, int64_t depth) { return up(columns, WIDE) * up(depth, DEEP); }

/* (columns, depth) fp32 or bfloat16 -> tiles: [columns / 32][depth / 32][2 tiles][16 pairs of depth][16 columns][2] */
#define PACK(name, type, convert)                                                                                      \
  void name(const type *w, int64_t columns, int64_t depth, uint16_t *packed, int threads) {                            \
    const int64_t deep = up(depth, DEEP) / DEEP;                                                                       \
    _Pragma("omp parallel for num_threads(threads) schedule(static) if (threads > 1)")                                 \
    for (int64_t block = 0; block < up(columns, WIDE) / WIDE; block++)                                                 \
      for (int64_t k = 0; k < deep; k++) {                                                                             \
        uint16_t *to = packed + (block * deep + k) * WIDE * DEEP;                                                      \
        for (int64_t c = 0; c < WIDE; c++) {                                                                           \
          const int64_t column = block * WIDE + c;                                                                     \
          uint16_t *tile = to + (c / TILE) * TILE * DEEP + (c % TILE) * 2;                                             \
          for (int64_t i = 0; i < DEEP; i++) {                                                                         \
            const int64_t at = k * DEEP + i;                                                                           \
            tile[(i / 2) * DEEP + i % 2] = column < columns && at < depth ? convert(w[column * depth + at]) : 0;       \
          }                                                                                                            \
        }                                                                                                              \
      }                                                                                                                \
  }
#define AS_IS(x) (x)
PACK(pack_float32, float, rounded)
PACK(pack_bfloat16, uint16_t, AS_IS)

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
    float sums[4][TILE][TILE] __attribute__((aligned(64)));
#pragma omp for schedule(static)
    for (int64_t block = 0; block < up(columns, WIDE) / WIDE; block++) {
      const uint16_t *w = packed + block * deep * WIDE * DEEP;
      for (int64_t row = 0; row < high; row += 32) {
        const uint16_t *a = in + row * stride;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int64_t k = 0; k < deep; k++) {
          const char *ahead = (const char *)(w + (k + AHEAD < deep ? k + AHEAD : deep - 1) * WIDE * DEEP);
          for (int i = 0; i < WIDE * DEEP * 2; i += 64) _mm_prefetch(ahead + i, _MM_HINT_T0);
          _tile_loadd(4, a + k * DEEP, stride * 2);
          _tile_loadd(6, w + k * WIDE * DEEP, 64);
          _tile_loadd(7, w + k * WIDE * DEEP + TILE * DEEP, 64);
          _tile_loadd(5, a + k * DEEP + TILE * stride, stride * 2);
          _tile_dpbf16ps(0, 4, 6);
          _tile_dpbf16ps(1, 4, 7);
          _tile_dpbf16ps(2, 5, 6);
          _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, sums[0], 64);
        _tile_stored(1, sums[1], 64);
        _tile_stored(2, sums[2], 64);
        _tile_stored(3, sums[3], 64);
        const int64_t tall = rows - row < 32 ? rows - row : 32;
        for (int t = 0; t < 2; t++) {
          const int64_t first = block * WIDE + t * TILE;
          const int64_t wide = columns - first < TILE ? columns - first : TILE;
          for (int64_t r = 0; r < tall; r++) {
            const float *sum = sums[(r / TILE) * 2 + t][r % TILE];
            uint16_t *to = out + (row + r) * columns + first;
            for (int64_t c = 0; c < wide; c++) {
              float plus = 0;
              if (bias) {
                const uint32_t u = (uint32_t)bias[first + c] << 16;
                memcpy(&plus, &u, 4);
              }
              to[c] = rounded(sum[c] + plus);
            }
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
