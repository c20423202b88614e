/* The processor's matrix tiles (AMX), on and off, all eight as 16 rows of 64 bytes, and products of panels by them. Included
 * by panels.h. */

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

/* 32 by 32 sums, ``width`` floats from row to row, = ``deep`` panels of a left factor by as many of a right one, steps in
 * panels; ``more``: added to what is there. */
static inline __attribute__((always_inline)) void multiply_panels(const uint16_t *a, int64_t a_step, const uint16_t *b,
                                                                  int64_t b_step, int64_t deep, float *sums,
                                                                  int64_t width, int more) {
  if (more) {
    _tile_loadd(0, sums, width * 4);
    _tile_loadd(1, sums + TILE, width * 4);
    _tile_loadd(2, sums + TILE * width, width * 4);
    _tile_loadd(3, sums + TILE * width + TILE, width * 4);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < deep; k++, a += a_step * PANEL, b += b_step * PANEL) {
    _tile_loadd(4, a, 64);
    _tile_loadd(6, b, 64);
    _tile_loadd(7, b + PANEL / 2, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, a + PANEL / 2, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums, width * 4);
  _tile_stored(1, sums + TILE, width * 4);
  _tile_stored(2, sums + TILE * width, width * 4);
  _tile_stored(3, sums + TILE * width + TILE, width * 4);
}
