/* Products of bfloat16 factors in panels of 32 by 32, sums in fp32: by the processor's matrix tiles (AMX, tiles.h), or where
 * it has none by its dot products of pairs (AVX512_BF16, dots.h). A left factor's panel is 32 rows, each 32 deep; a right
 * one's 16 pairs of depth by 16 columns, twice. And how such factors are fetched and laid out. Only where PANELS is defined
 * (vectors.h). */
#pragma once
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "turn.h"

enum { TILE = 16, SIDE = 32, PANEL = SIDE * SIDE };

#ifdef TILES
#include "tiles.h"
#else
#include "dots.h"
#endif

/* Ask for a quarter of a block (32 by 32, 2 KB), into the first cache or only the second. All of it at once would fill the
 * few places that a core has for lines on their way, and the loads that come next would wait for them: asked for in turns
 * with these, products that read their weights from memory took a third less time (measured). */
static inline __attribute__((always_inline)) void fetch_quarter(const uint16_t *block, int quarter, int cache) {
  const char *from = (const char *)block + quarter * 512;
  for (int i = 0; i < 512; i += 64)
    if (cache == 1) _mm_prefetch(from + i, _MM_HINT_T0);
    else _mm_prefetch(from + i, _MM_HINT_T1);
}
