/* Products of bfloat16 rows with a fixed matrix, by the processor's matrix tiles or its dot products of pairs (panels.h), sums
 * in fp32. The matrix is packed beforehand, in the order in which it is read: a step of decoding reads each weight once for
 * few rows, so that the speed of memory decides, and a library that must first rearrange the weights at each call takes about
 * twice as long (measured). */
#include "vectors.h"

#ifdef PANELS
#include "panels.h"
#ifdef __AVX512BF16__
#include "avx512.h"
#endif
#ifdef TILES
#include <sys/syscall.h>
#include <unistd.h>
#endif

enum { DEEP = 32, WIDE = 32, PAIR = WIDE * DEEP, AHEAD = 3 }; /* a block: 32 columns, 32 deep; blocks fetched ahead */
enum { CACHED = 1 << 18 }; /* elements of x by which each block is multiplied in turn: they stay in a core's cache */

/* Linux gives a process the tiles on request; 0 where it does not. */
int can_multiply_bfloat16(void) {
#ifdef TILES
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
  return 1;
#endif
}

/* Elements of a packed (columns, depth) matrix. */
int64_t packed_size_bfloat16(int64_t columns, int64_t depth) { return up(columns, WIDE) * up(depth, DEEP); }

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

/* (columns, depth) fp32 or bfloat16 -> tiles: [columns / 32][depth / 32][2 tiles][16 pairs of depth][16 columns][2].
 * ``tiles``: of 16 columns, zeros beyond those there are; the i-th becomes the (first + step i)-th of ``packed``, which may
 * hold several matrices of one depth. Written past the caches: packed matrices are read later. Asked for ahead: 16 rows at
 * a time are more than the processor foresees (a quarter less time, measured). */
#define PACK(type, name, row_of)                                                                                       \
  void name(const type *w, int64_t columns, int64_t depth, uint16_t *packed, int64_t tiles, int64_t first,             \
            int64_t step, int threads) {                                                                               \
    const int64_t deep = up(depth, DEEP) / DEEP;                                                                       \
    const int aligned = ((uintptr_t)packed & 63) == 0;                                                                 \
    _Pragma("omp parallel for num_threads(threads) schedule(static) if (threads > 1)")                                 \
    for (int64_t tile = 0; tile < tiles; tile++) {                                                                     \
      const int64_t place = first + tile * step;                                                                       \
      for (int64_t k = 0; k < deep; k++) {                                                                             \
        uint16_t *to = packed + (place / 2 * deep + k) * PAIR + place % 2 * TILE * DEEP;                               \
        __m512i rows[TILE];                                                                                            \
        for (int c = 0; c < TILE; c++) {                                                                               \
          const int64_t column = tile * TILE + c;                                                                      \
          const type *from = w + column * depth + k * DEEP;                                                            \
          for (size_t line = 0; line < DEEP * sizeof *w; line += 64)                                                   \
            _mm_prefetch((const char *)(from + 8 * DEEP) + line, _MM_HINT_T0);                                         \
          rows[c] = column < columns ? row_of(from, depth - k * DEEP) : _mm512_setzero_si512();                        \
        }                                                                                                              \
        turn(rows);                                                                                                    \
        if (aligned)                                                                                                   \
          for (int c = 0; c < TILE; c++) _mm512_stream_si512((void *)(to + c * DEEP), rows[c]);                        \
        else                                                                                                           \
          for (int c = 0; c < TILE; c++) _mm512_storeu_si512(to + c * DEEP, rows[c]);                                  \
      }                                                                                                                \
      _mm_sfence();                                                                                                    \
    }                                                                                                                  \
  }
PACK(float, pack_float32_bfloat16, row_float32)
PACK(uint16_t, pack_bfloat16_bfloat16, row_bfloat16)

static inline __m512 widened(__m256i low) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(low), 16));
}

/* Where the sums of a product go: see multiply_bfloat16 */
struct target {
  const uint16_t *bias, *plus;
  uint16_t *out, *sum;
  int64_t columns;
};

/* The sums of 32 rows by a block, which wait to be put where they go: the left and the right half of its columns. */
struct made {
  struct target to;
  float (*sums)[32][TILE];
  int64_t row, tall, block;
  int gated;
};

/* One of its rows, to the 32 columns of its block */
static inline __attribute__((always_inline)) void put(const struct made *m, int64_t r) {
  for (int half = 0; half < 2; half++) {
    const int64_t first = m->block * WIDE + half * TILE, count = m->to.columns - first;
    const __mmask16 there = count >= TILE ? 0xffff : count > 0 ? (__mmask16)((1u << count) - 1) : 0;
    const __m256i none = _mm256_setzero_si256();
    const __m512 more = widened(m->to.bias ? _mm256_maskz_loadu_epi16(there, m->to.bias + first) : none);
    const int64_t at = (m->row + r) * m->to.columns + first;
    const __m256i made = rounded_16(_mm512_add_ps(_mm512_load_ps(m->sums[half][r]), more));
    _mm256_mask_storeu_epi16(m->to.out + at, there, made);
    if (m->to.sum) {
      const __m512 both = _mm512_add_ps(widened(_mm256_maskz_loadu_epi16(there, m->to.plus + at)), widened(made));
      _mm256_mask_storeu_epi16(m->to.sum + at, there, rounded_16(both));
    }
  }
}

#ifdef __AVX512BF16__
static inline __attribute__((always_inline)) __m512 rounded_and_back(const float *x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded_16(_mm512_load_ps(x))), 16));
}
#endif

/* The same where a block's first 16 columns are gates and its last 16 what they let through: 16 columns of the result.
 * Rounded where the product and the gate by themselves round (elementwise.h, bfloat16.h). */
static inline __attribute__((always_inline)) void put_gated(const struct made *m, int64_t r) {
  const int64_t first = m->block * TILE, count = m->to.columns - first < TILE ? m->to.columns - first : TILE;
  const __mmask16 there = (__mmask16)((1u << count) - 1);
  uint16_t *out = m->to.out + (m->row + r) * m->to.columns + first;
#ifdef __AVX512BF16__
  narrowed_16(gated_16(rounded_and_back(m->sums[0][r]), rounded_and_back(m->sums[1][r])), out, there);
#else
  float made[TILE] __attribute__((aligned(64)));
#pragma omp simd
  for (int i = 0; i < TILE; i++) {
    const float g = from_bfloat16(to_bfloat16(m->sums[0][r][i])), u = from_bfloat16(to_bfloat16(m->sums[1][r][i]));
    made[i] = g * sigmoid(g) * u;
  }
  _mm256_mask_storeu_epi16(out, there, rounded_16(_mm512_load_ps(made)));
#endif
}

static inline __attribute__((always_inline)) void put_rows(const struct made *m, int64_t from, int64_t end) {
  for (int64_t r = from; r < end && m->gated; r++) put_gated(m, r);
  for (int64_t r = from; r < end && !m->gated; r++) put(m, r);
}

#ifdef TILES
/* 32 rows of x by a block of 32 columns, sums left in tiles 0 to 3. ``fetch``: the weights are read for the first time;
 * what lies behind them is the next block. Meanwhile what was ``made`` before is put where it goes: by itself that would
 * leave memory idle for a seventh of the time. Weights pass the first cache by, which keeps x. */
static inline __attribute__((always_inline)) void add_up(const uint16_t *a, int64_t stride, const uint16_t *w,
                                                         int64_t deep, int fetch, const struct made *made) {
  const int64_t tall = made->tall, some = (tall + deep - 1) / deep;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0, done = 0; k < deep; k++, a += DEEP, w += PAIR) {
    if (fetch) fetch_quarter(w + AHEAD * PAIR, 0, 2);
    _tile_loadd(4, a, stride * 2);
    if (fetch) fetch_quarter(w + AHEAD * PAIR, 1, 2);
    _tile_stream_loadd(6, w, 64);
    _tile_stream_loadd(7, w + TILE * DEEP, 64);
    _tile_loadd(5, a + TILE * stride, stride * 2);
    if (fetch) fetch_quarter(w + AHEAD * PAIR, 2, 2);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    const int64_t end = smaller(done + some, tall);
    put_rows(made, done, end);
    done = end;
    if (fetch) fetch_quarter(w + AHEAD * PAIR, 3, 2);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

/* The same, and the sums to ``next``, which is then what was ``made``. */
static inline __attribute__((always_inline)) void advance(const uint16_t *a, int64_t stride, const uint16_t *w, int64_t deep,
                                                          int fetch, struct made *made, struct made next) {
  if (fetch) add_up(a, stride, w, deep, 1, made);
  else add_up(a, stride, w, deep, 0, made);
  _tile_stored(0, next.sums[0], 64);
  _tile_stored(1, next.sums[1], 64);
  _tile_stored(2, next.sums[0][TILE], 64);
  _tile_stored(3, next.sums[1][TILE], 64);
  MEMORY(next.sums);
  *made = next;
}
#else
/* Up to 32 rows of x by a block of 32 columns, and the sums to where they go: nothing stays ``made``. */
static void advance(const uint16_t *a, int64_t stride, const uint16_t *w, int64_t deep, int fetch, struct made *made,
                    struct made next) {
  const int64_t parts = (next.tall + MOST_DOTTED - 1) / MOST_DOTTED;
  const char *ahead = (const char *)(w + deep * PAIR);
  const int64_t lines = fetch ? (deep * PAIR * 2 / 64 + parts - 1) / parts : 0;
  for (int64_t i = 0; i < parts; i++, ahead += lines * 64) {
    const int64_t row = i * next.tall / parts, tall = (i + 1) * next.tall / parts - row;
    __m512 left[MOST_DOTTED], right[MOST_DOTTED];
#define ROWS(count)                                                                                                    \
  case count:                                                                                                          \
    for (int r = 0; r < count; r++) left[r] = right[r] = _mm512_setzero_ps();                                          \
    dots(a + row * stride, stride, DEEP, w, PAIR, deep, count, left, right, ahead, lines);                             \
    for (int r = 0; r < count; r++) {                                                                                  \
      _mm512_store_ps(next.sums[0][row + r], left[r]);                                                                 \
      _mm512_store_ps(next.sums[1][row + r], right[r]);                                                                \
    }                                                                                                                  \
    break;
    switch (tall) {
      ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12) ROWS(13) ROWS(14)
    }
#undef ROWS
  }
  put_rows(&next, 0, next.tall);
  made->tall = 0;
}
#endif

/* x (rows, depth) bfloat16, dense, by a packed (columns, depth) matrix -> out (rows, columns) bfloat16, dense, plus bias
 * (columns) unless it is null; with ``plus`` (rows, columns) also ``sum``, out + plus. ``gated``: the matrix is two, whose
 * tiles take turns, and out is silu(x by the first) times x by the second; no bias, no plus. ``padded``: room for whole
 * tiles, depth rounded up to 32, of the rows that do not fill 32, or of all where depth is not in whole tiles. */
void multiply_bfloat16(const uint16_t *x, const uint16_t *packed, const uint16_t *bias, uint16_t *out,
                       const uint16_t *plus, uint16_t *sum, uint16_t *padded, int64_t rows, int64_t columns, int64_t depth,
                       int gated, int threads) {
  const int64_t deep = up(depth, DEEP) / DEEP, high = up(rows, 32), stride = up(depth, DEEP);
  const int64_t there = stride == depth ? rows / 32 * 32 : 0; /* rows that are read where they lie */
  for (int64_t r = there; r < high; r++) {
    const int64_t size = r < rows ? depth : 0;
    uint16_t *to = padded + (r - there) * stride;
    if (size) memcpy(to, x + r * depth, (size_t)size * 2);
    memset(to + size, 0, (size_t)(stride - size) * 2);
  }
  const int64_t fitting = CACHED / stride / 32 * 32, chunk = fitting > 32 ? fitting : 32;
  const int64_t blocks = gated ? up(columns, TILE) / TILE : up(columns, WIDE) / WIDE;
  const struct target to = {bias, plus, out, sum, columns};
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    struct config before;
    MEMORY(x);
    MEMORY(padded);
    tiles_on(&before);
    float sums[2][2][32][TILE] __attribute__((aligned(64))); /* in turns: what is made and what was made before */
    struct made made = {.gated = gated};
    for (int64_t start = 0; start < high; start += chunk) {
      const int64_t end = high - start < chunk ? high : start + chunk;
#pragma omp for schedule(static) nowait
      for (int64_t block = 0; block < blocks; block++) {
        const uint16_t *w = packed + block * deep * PAIR;
        for (int64_t row = start; row < end; row += 32) {
          const uint16_t *in = row < there ? x + row * stride : padded + (row - there) * stride;
          float(*own)[32][TILE] = made.sums == sums[0] ? sums[1] : sums[0];
          advance(in, stride, w, deep, row == start, &made, (struct made){to, own, row, smaller(rows - row, 32), block, gated});
        }
      }
    }
    put_rows(&made, 0, made.tall);
    tiles_off(&before);
  }
}

CALLED(multiply_bfloat16, PTR(0), PTR(1), PTR(2), PTR(3), PTR(4), PTR(5), PTR(6), INT(7), INT(8), INT(9), (int)INT(10),
       (int)INT(11))
#else
int can_multiply_bfloat16(void) { return 0; }
#endif
