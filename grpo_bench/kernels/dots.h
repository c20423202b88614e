/* Products of panels by the processor's dot products of pairs (AVX512_BF16), for processors without matrix tiles. A pair of a
 * left factor's row goes to all lanes, which are a right factor's columns; sums stay in registers. Included by panels.h. */

enum { DOTTED = 8, MOST_DOTTED = 14 }; /* rows whose sums are in registers at once, of a panel and at most */

/* Tiles are set up and their loads are ordered by hand; here there is nothing to do. */
struct config {
  char none;
};
#define MEMORY(p) (void)(p)
static inline void tiles_on(struct config *before) { before->none = 0; }
static inline void tiles_off(const struct config *before) { (void)before; }

/* ``rows`` rows of a left factor, ``across`` elements from one to the next, by 32 columns of a right one, added to ``left``
 * and ``right``, 16 columns each; ``a_step`` and ``b_step`` elements further it is 32 deeper, ``deep`` times. Meanwhile
 * ``lines`` of 64 bytes from ``next`` on are asked for. Rows are found from every third one's address: with an address of
 * each, the processor would run out of registers for them. */
static inline __attribute__((always_inline)) void dots(const uint16_t *a, int64_t across, int64_t a_step,
                                                       const uint16_t *b, int64_t b_step, int64_t deep, int rows,
                                                       __m512 *left, __m512 *right, const char *next, int64_t lines) {
  const char *at[(MOST_DOTTED + 2) / 3], *end = next + lines * 64;
  const int64_t apart = across * 2, some = lines ? (lines + deep - 1) / deep : 0;
  for (int i = 0; i < (rows + 2) / 3; i++) at[i] = (const char *)(a + 3 * i * across);
  for (int64_t k = 0; k < deep; k++, b += b_step) {
    for (int i = 0; i < (rows + 2) / 3; i++) __asm__("" : "+r"(at[i])); /* else the compiler makes one of each row after all */
    for (int64_t i = 0; i < some && next < end; i++, next += 64) _mm_prefetch(next, _MM_HINT_T1);
#pragma GCC unroll 16
    for (int i = 0; i < TILE; i++) {
      const __m512bh one = (__m512bh)_mm512_loadu_si512(b + i * SIDE);
      const __m512bh two = (__m512bh)_mm512_loadu_si512(b + PANEL / 2 + i * SIDE);
      for (int r = 0; r < rows; r++) {
        int32_t both;
        memcpy(&both, at[r / 3] + r % 3 * apart + 4 * i, sizeof both);
        const __m512bh all = (__m512bh)_mm512_set1_epi32(both);
        left[r] = _mm512_dpbf16_ps(left[r], all, one);
        right[r] = _mm512_dpbf16_ps(right[r], all, two);
      }
    }
    for (int i = 0; i < (rows + 2) / 3; i++) at[i] += a_step * 2;
  }
}

/* 32 by 32 sums, ``width`` floats from row to row, = ``deep`` panels of a left factor by as many of a right one, steps in
 * panels; ``more``: added to what is there. */
static inline __attribute__((always_inline)) void multiply_panels(const uint16_t *a, int64_t a_step, const uint16_t *b,
                                                                  int64_t b_step, int64_t deep, float *sums,
                                                                  int64_t width, int more) {
  for (int at = 0; at < SIDE; at += DOTTED) {
    float *to = sums + at * width;
    __m512 left[DOTTED], right[DOTTED];
    for (int r = 0; r < DOTTED; r++) {
      left[r] = more ? _mm512_loadu_ps(to + r * width) : _mm512_setzero_ps();
      right[r] = more ? _mm512_loadu_ps(to + r * width + TILE) : _mm512_setzero_ps();
    }
    dots(a + at * SIDE, SIDE, a_step * PANEL, b, b_step * PANEL, deep, DOTTED, left, right, 0, 0);
    for (int r = 0; r < DOTTED; r++) {
      _mm512_storeu_ps(to + r * width, left[r]);
      _mm512_storeu_ps(to + r * width + TILE, right[r]);
    }
  }
}
