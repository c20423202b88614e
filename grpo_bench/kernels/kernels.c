/* What stands between the matrix products. In sampling, for one token of each row: attention over a shared prompt and a
 * row's own tokens, norms, and the choice of a token. In training: the softmax over the vocabulary, norms, rotary embeddings
 * and gates, forward and backward. One pass over memory each, where tensor operations make several. Sums are in fp32 (of
 * probabilities: in double), whatever is stored; work is split by rows, so the number of threads changes nothing in a
 * result. */
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

static inline float bits(uint32_t u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}

static inline uint32_t unbits(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return u;
}

/* exp(x) to about 1e-7 of its size, for x up to 88; 0 below -87: a form that compilers turn into vector code. */
static inline float exponential(float x) {
  const float low = x > -87.0f ? x : -87.0f;
  const float n = rintf(low * 1.44269504088896341f);
  const float r = (low - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const float y = p * bits((uint32_t)((int32_t)n + 127) << 23);
  return x > -87.0f ? y : 0.0f;
}

static inline float sigmoid(float x) { /* 0 below -87, where exponential() ends; a NaN stays one */
  const float low = x > -87.0f ? x : -87.0f, y = 1.0f / (1.0f + exponential(-low));
  return x > -87.0f ? y : x == x ? 0.0f : x;
}

/* Vectors by the compiler's extension: on processors without ones of 16 floats it makes several of them. */
enum { LANES = 16, BOTH = 2 * LANES, QUERIES = 4 }; /* QUERIES: that look at the same keys at once */
typedef float wide __attribute__((vector_size(64)));
typedef float wide8 __attribute__((vector_size(32)));
typedef float wide4 __attribute__((vector_size(16)));
typedef uint32_t words __attribute__((vector_size(64)));
typedef uint32_t words8 __attribute__((vector_size(32)));
typedef struct {
  wide a, b;
} pair;

static inline wide load(const float *x) {
  wide y;
  memcpy(&y, x, sizeof y);
  return y;
}

static inline pair pair_float32(const float *x) { return (pair){load(x), load(x + LANES)}; }

static inline int64_t place_float32(int64_t i, int64_t d) { return (void)d, i; }

/* A word holds two bfloat16, each the upper half of a float: the even elements, then the odd ones, for two operations
 * where one vector after the other costs many. */
static inline pair pair_bfloat16(const uint16_t *x) {
  words w;
  memcpy(&w, x, sizeof w);
  const words even = w << 16, odd = w & 0xffff0000u;
  pair y;
  memcpy(&y.a, &even, sizeof even);
  memcpy(&y.b, &odd, sizeof odd);
  return y;
}

static inline int64_t place_bfloat16(int64_t i, int64_t d) {
  return i < d / BOTH * BOTH ? i / BOTH * BOTH + i % 2 * LANES + i % BOTH / 2 : i;
}

/* One step more of a dot product: BOTH elements of each, in any order, to 16 sums. */
static inline wide more_float32(wide sum, const float *x, const float *y) {
  sum += load(x) * load(y);
  sum += load(x + LANES) * load(y + LANES);
  return sum;
}

static inline wide more_bfloat16(wide sum, const uint16_t *x, const uint16_t *y) {
#ifdef __AVX512BF16__
  __m512i a, b;
  memcpy(&a, x, sizeof a);
  memcpy(&b, y, sizeof b);
  return (wide)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
  const pair a = pair_bfloat16(x), b = pair_bfloat16(y);
  sum += a.a * b.a;
  sum += a.b * b.b;
  return sum;
#endif
}

/* Keys and values that are looked at next, asked for a few lines at a time: many at once would hold up the loads of now. */
enum { RUNS = 4 }; /* keys and values, a row's own and its prompt's */
typedef struct {
  const char *from[RUNS];
  int64_t lines[RUNS], some; /* lines of each, not yet asked for, and how many of one run to ask for at a time */
  int run;
} ahead;

static inline void fetch(ahead *next) {
  while (next->run < RUNS && next->lines[next->run] <= 0) next->run++;
  if (next->run == RUNS) return;
  const char *from = next->from[next->run];
  for (int64_t n = 0; n < next->some; n++) __builtin_prefetch(from + n * 64);
  next->from[next->run] += next->some * 64;
  next->lines[next->run] -= next->some;
}

static inline wide8 halves(wide x) {
  wide8 h[2];
  memcpy(h, &x, sizeof x);
  return h[0] + h[1];
}

#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (words8){__VA_ARGS__})
#endif

/* The sums of four vectors' elements, as trees: pairs of vectors are merged before they are folded. */
static inline wide4 across_4(const wide *x) {
  const wide8 a = halves(x[0]), b = halves(x[1]), c = halves(x[2]), d = halves(x[3]);
  const wide8 ab = SHUFFLE(a, b, 0, 8, 1, 9, 4, 12, 5, 13) + SHUFFLE(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
  const wide8 cd = SHUFFLE(c, d, 0, 8, 1, 9, 4, 12, 5, 13) + SHUFFLE(c, d, 2, 10, 3, 11, 6, 14, 7, 15);
  const wide8 all = SHUFFLE(ab, cd, 0, 1, 8, 9, 4, 5, 12, 13) + SHUFFLE(ab, cd, 2, 3, 10, 11, 6, 7, 14, 15);
  wide4 q[2];
  memcpy(q, &all, sizeof all);
  return q[0] + q[1];
}

/* Floats that a thread of decode_attention needs where a row sees ``most`` tokens. */
int64_t scores_room(int64_t most) { return QUERIES * most; }

#ifdef _OPENMP
#include <omp.h>
static inline int64_t thread(void) { return omp_get_thread_num(); }
#else
static inline int64_t thread(void) { return 0; }
#endif

static inline float same(float x) { return x; }
static inline float from_bfloat16(uint16_t x) { return bits((uint32_t)x << 16); }
static inline uint16_t to_bfloat16(float f) { /* to nearest, ties to even; a NaN stays one */
  const uint32_t u = unbits(f);
  return f == f ? (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16) : (uint16_t)0x7fc0u;
}

#include "blocks.h"

enum { BLOCK = 256 };  /* words summed in fp32 before they are summed in double */
enum { CHUNK = 4096 }; /* elements that a thread takes at once where each is on its own */

#define T float
#define LOAD same
#define STORE same
#define PAIR pair_float32
#define PLACE place_float32
#define MORE more_float32
#define NAME(x) x##_float32
#include "typed.h"
#include "softmax.h"
#include "elementwise.h"
#include "packed_attention.h"
#undef T
#undef LOAD
#undef STORE
#undef PAIR
#undef PLACE
#undef MORE
#undef NAME

#define T uint16_t
#define LOAD from_bfloat16
#define STORE to_bfloat16
#define PAIR pair_bfloat16
#define PLACE place_bfloat16
#define MORE more_bfloat16
#define NAME(x) x##_bfloat16
#include "typed.h"
#include "softmax.h"
#include "elementwise.h"
#include "packed_attention.h"
#undef NAME

#define X float
#define LOADX same
#define STOREX same
#define Y float
#define LOADY same
#define STOREY same
#define NAME(x) x##_float32_float32
#include "norms.h"
#undef Y
#undef LOADY
#undef STOREY
#undef NAME
#define Y uint16_t
#define LOADY from_bfloat16
#define STOREY to_bfloat16
#define NAME(x) x##_float32_bfloat16
#include "norms.h"
#undef X
#undef LOADX
#undef STOREX
#undef NAME
#define X uint16_t
#define LOADX from_bfloat16
#define STOREX to_bfloat16
#define NAME(x) x##_bfloat16_bfloat16
#include "norms.h"

static double below(double x) { return nextafter(x, 0.0); }

/* (rows, words) logits -> (rows,) tokens and log-probs: the first word whose cumulative probability at ``temperature``
 * exceeds the row's uniform number; with temperature 0 the likeliest word and its log-prob at temperature 1. */
void draw(const float *logits, int64_t stride, int64_t rows, int64_t words, float temperature, const double *uniforms,
          int64_t *tokens, float *logps, int threads) {
  const float divisor = temperature > 0 ? temperature : 1.0f;
  const int64_t blocks = (words + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t row = 0; row < rows; row++) {
    const float *x = logits + row * stride;
    float top = -INFINITY;
#pragma omp simd reduction(max : top)
    for (int64_t i = 0; i < words; i++) top = x[i] > top ? x[i] : top;
    const float most = top / divisor;
    double sums[blocks], total = 0;
    for (int64_t b = 0; b < blocks; b++) {
      const float *part = x + b * BLOCK;
      const int64_t size = words - b * BLOCK < BLOCK ? words - b * BLOCK : BLOCK;
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < size; i++) sum += exponential(part[i] / divisor - most);
      total += sum;
      sums[b] = total;
    }
    int64_t token = 0;
    if (temperature > 0) {
      const double target = fmin(uniforms[row] * total, below(total));
      int64_t b = 0;
      while (b < blocks - 1 && sums[b] <= target) b++;
      const float *part = x + b * BLOCK;
      const int64_t size = words - b * BLOCK < BLOCK ? words - b * BLOCK : BLOCK;
      double weights[BLOCK], inner = 0;
      for (int64_t i = 0; i < size; i++) weights[i] = inner += exponential(part[i] / divisor - most);
      const double rest = fmin(target - (b ? sums[b - 1] : 0.0), below(inner));
      int64_t i = 0;
      while (i < size - 1 && weights[i] <= rest) i++;
      token = b * BLOCK + i;
    } else {
      while (token < words - 1 && x[token] != top) token++;
    }
    tokens[row] = token;
    logps[row] = (float)((double)(x[token] / divisor - most) - log(total));
  }
}
