/* The processor's matrix tiles (AMX), on and off, all eight as 16 rows of 64 bytes, and how what they read is fetched and
 * laid out. Only where they are compiled for. */
#include <immintrin.h>
#include <stdint.h>

enum { TILE = 16 }; /* rows */

/* Compilers' headers do not say that tiles read and write memory: stores before must have been made, loads after wait. */
#define MEMORY(p) __asm__ volatile("" : : "r"(p) : "memory")

struct __attribute__((packed)) config {
  uint8_t palette, start, reserved[14];
  uint16_t bytes[16];
  uint8_t rows[16];
};

/* The thread's own tiles; ``before`` is what they were, as another library may count on what it set. */
static inline __attribute__((always_inline)) void tiles_on(struct config *before) {
  struct config own = {.palette = 1};
  for (int i = 0; i < 8; i++) own.bytes[i] = 64, own.rows[i] = TILE;
  _tile_storeconfig(before);
  MEMORY(&own);
  _tile_loadconfig(&own);
}

static inline __attribute__((always_inline)) void tiles_off(const struct config *before) {
  MEMORY(before);
  if (before->palette) _tile_loadconfig(before);
  else _tile_release();
}

/* Ask for a quarter of a block (32 by 32, 2 KB), into the first cache or only the second. All of it at once would fill the
 * few places that a core has for lines on their way, and the loads that come next would wait for them: asked for in turns
 * with these, products that read their weights from memory took a third less time (measured). */
static inline __attribute__((always_inline)) void fetch_quarter(const uint16_t *block, int quarter, int cache) {
  const char *from = (const char *)block + quarter * 512;
  for (int i = 0; i < 512; i += 64)
    if (cache == 1) _mm_prefetch(from + i, _MM_HINT_T0);
    else _mm_prefetch(from + i, _MM_HINT_T1);
}

/* 16 x 16 words, in place: rows become columns */
static inline __attribute__((always_inline)) void turn(__m512i *r) {
  __m512i t[16];
  for (int i = 0; i < 8; i++) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 4; i++) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 8; i++) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
  }
}
