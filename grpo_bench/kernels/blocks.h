/* Small matrix products in fp32 and what attention over a block of queries does between them, whatever the type of element:
 * all of it in scratch that stays in a core's cache.
 *
 * Keys of a sequence are columns 0, 1, ... of a block's scores; a row's own keys follow its prompt's. A query stands at the
 * column of its own key and sees the columns from seen() on up to its own. */

enum { TALL = 8, SCORES = 65536 }; /* rows of a product's tile; floats of a block's scores, where columns are few enough */

static inline int64_t down(int64_t x, int64_t step) { return x / step * step; }

/* The columns that TALL queries look at, from a whole vector's start on. */
typedef struct {
  int64_t from, to;
} span;

/* ``tokens`` queries of each of ``heads`` heads that share their keys, the first at ``column``; query i is of token i / heads.
 * Scores are ``across`` apart, queries, keys and values ``wide`` (a multiple of LANES), zeros behind what a head has. */
typedef struct {
  int64_t column, tokens, heads, window, across, wide;
  span *spans; /* of each TALL queries */
} block;

static inline int64_t queries(block b) { return b.tokens * b.heads; }
static inline int64_t seen(block b, int64_t column) {
  return b.window > 0 && column >= b.window ? column + 1 - b.window : 0;
}

static inline void measure(block b) {
  for (int64_t i = 0; i < queries(b); i += TALL) {
    const int64_t last = b.column + (smaller(i + TALL, queries(b)) - 1) / b.heads;
    b.spans[i / TALL] = (span){down(seen(b, b.column + i / b.heads), LANES), last + 1};
  }
}

/* A wide in memory, at the place of any float. Sums that were copied by memcpy would be kept on the stack. */
typedef float anywhere __attribute__((vector_size(64), aligned(4), may_alias));

/* c[rows x vectors] = a[rows x depth] b[depth x vectors], or added to what is there, once summed. Inlined with constants
 * for ``rows``, ``vectors``, ``add`` and one of the steps of a. */
static inline __attribute__((always_inline)) void tile(const float *a, int64_t a_row, int64_t a_step, const float *b,
                                                       int64_t b_step, float *c, int64_t c_row, int64_t depth, int rows,
                                                       int vectors, int add) {
  wide sums[TALL][2];
  for (int i = 0; i < rows; i++)
    for (int n = 0; n < vectors; n++) sums[i][n] = (wide){0};
  for (int64_t k = 0; k < depth; k++) {
    wide right[2];
    for (int n = 0; n < vectors; n++) right[n] = load(b + k * b_step + n * LANES);
    for (int i = 0; i < rows; i++)
      for (int n = 0; n < vectors; n++) sums[i][n] += a[i * a_row + k * a_step] * right[n];
  }
  for (int i = 0; i < rows; i++)
    for (int n = 0; n < vectors; n++) {
      float *to = c + i * c_row + n * LANES;
      if (add) sums[i][n] += load(to);
      *(anywhere *)to = sums[i][n];
    }
}

/* Of up to TALL rows; rows that are not there are computed too, and not looked at. */
static inline __attribute__((always_inline)) void some(const float *a, int64_t a_row, int64_t a_step, const float *b,
                                                       int64_t b_step, float *c, int64_t c_row, int64_t depth,
                                                       int64_t rows, int64_t columns, int add) {
  if (rows > TALL / 2) {
    if (columns > LANES) tile(a, a_row, a_step, b, b_step, c, c_row, depth, TALL, 2, add);
    else tile(a, a_row, a_step, b, b_step, c, c_row, depth, TALL, 1, add);
  } else {
    if (columns > LANES) tile(a, a_row, a_step, b, b_step, c, c_row, depth, TALL / 2, 2, add);
    else tile(a, a_row, a_step, b, b_step, c, c_row, depth, TALL / 2, 1, add);
  }
}

/* scores = rows (queries, wide) turned (wide, across), where a query of the same tile looks. */
static inline __attribute__((always_inline)) void scored_at(block b, const float *rows, const float *turned,
                                                            float *scores, int64_t wide) {
  const int64_t count = queries(b), end = b.column + b.tokens;
  for (int64_t j = down(seen(b, b.column), LANES); j < end; j += 2 * LANES)
    for (int64_t i = 0; i < count; i += TALL) {
      const span at = b.spans[i / TALL];
      if (j + 2 * LANES > at.from && j < at.to)
        some(rows + i * wide, wide, 1, turned + j, b.across, scores + i * b.across + j, b.across, wide, count - i,
             at.to - j, 0);
    }
}

static __attribute__((noinline)) void scored(block b, const float *rows, const float *turned, float *scores) {
  if (b.wide == 64) scored_at(b, rows, turned, scores, 64);
  else if (b.wide == 32) scored_at(b, rows, turned, scores, 32);
  else scored_at(b, rows, turned, scores, b.wide);
}

/* out (queries, wide) = weights values, the latter (columns, wide) */
static __attribute__((noinline)) void summed(block b, const float *weights, const float *values, float *out) {
  const int64_t count = queries(b);
  for (int64_t n = 0; n < b.wide; n += 2 * LANES)
    for (int64_t i = 0; i < count; i += TALL) {
      const span at = b.spans[i / TALL];
      some(weights + i * b.across + at.from, b.across, 1, values + at.from * b.wide + n, b.wide, out + i * b.wide + n,
           b.wide, at.to - at.from, count - i, b.wide - n, 0);
    }
}

/* out (columns, wide) += weights^T rows, the latter (queries, wide): at each column from the queries that may see it. */
static __attribute__((noinline)) void gathered(block b, const float *weights, const float *rows, float *out) {
  const int64_t end = b.column + b.tokens;
  for (int64_t n = 0; n < b.wide; n += 2 * LANES)
    for (int64_t j = down(seen(b, b.column), TALL); j < end; j += TALL) {
      const int64_t first = j > b.column ? j - b.column : 0, past = j + TALL - 1 + b.window - b.column;
      const int64_t from = first * b.heads, to = (b.window > 0 ? smaller(past, b.tokens) : b.tokens) * b.heads;
      some(weights + from * b.across + j, 1, b.across, rows + from * b.wide + n, b.wide, out + j * b.wide + n, b.wide,
           to - from, end - j, b.wide - n, 1);
    }
}

typedef int32_t whole __attribute__((vector_size(64)));
typedef uint32_t words4 __attribute__((vector_size(16)));

static inline wide chosen(words where, wide x, wide y) { return (wide)((where & (words)x) | (~where & (words)y)); }

/* exponential() of a vector, but a NaN stays one. */
static inline wide powers(wide x) {
  const words near = ~(words)(x <= -87.0f);
  x = (wide)((words)x & near);
  const wide t = x * 1.44269504088896341f + 12582912.0f, n = t - 12582912.0f; /* rounded: 1.5 * 2^23 leaves no fraction */
  const wide r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  wide p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  p *= (wide)(((words)t << 23) + (127u << 23));
  return (wide)((words)p & near);
}

static inline float across(wide x) {
  const wide8 h = halves(x);
  wide4 q[2];
  memcpy(q, &h, sizeof q);
  q[0] += q[1];
  return (q[0][0] + q[0][1]) + (q[0][2] + q[0][3]);
}

static inline float largest(wide x) {
  wide8 h[2];
  memcpy(h, &x, sizeof x);
  const words8 more = (words8)(h[0] > h[1]), most = (more & (words8)h[0]) | (~more & (words8)h[1]);
  wide4 q[2];
  memcpy(q, &most, sizeof most);
  const words4 larger = (words4)(q[0] > q[1]), y = (larger & (words4)q[0]) | (~larger & (words4)q[1]);
  const wide4 z = (wide4)y;
  const float a = z[0] > z[1] ? z[0] : z[1], b = z[2] > z[3] ? z[2] : z[3];
  return a > b ? a : b;
}

/* Scores of columns j to j + LANES - 1, minus infinity where a query that sees ``first`` to ``last`` does not look. */
static inline wide shown(const float *scores, int64_t j, int64_t first, int64_t last) {
  const whole lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const whole at = lane + (int32_t)j;
  return chosen((words)((at < (int32_t)first) | (at > (int32_t)last)), (wide){0} - INFINITY, load(scores + j));
}

/* The scores of the query at ``column`` become weights, not yet divided by their sum, which is returned; ``top`` is the
 * largest score. */
static inline float weighed(block b, float *scores, span at, int64_t column, float *top) {
  const int64_t first = seen(b, column);
  wide most = (wide){0} - INFINITY, total = {0};
  for (int64_t j = at.from; j < at.to; j += LANES) {
    const wide x = shown(scores, j, first, column);
    most = chosen((words)(x > most), x, most);
  }
  *top = largest(most);
  for (int64_t j = at.from; j < at.to; j += LANES) {
    const wide x = powers(shown(scores, j, first, column) - *top);
    *(anywhere *)(scores + j) = x;
    total += x;
  }
  return across(total);
}

/* A query's scores become weights by the logarithm of their sum, and what its weights' gradients were those of its scores;
 * ``mean``: of the weights' gradients, by weight. */
static inline void weighed_again(block b, float *scores, float *slopes, span at, int64_t column, float lse, float mean) {
  const int64_t first = seen(b, column);
  for (int64_t j = at.from; j < at.to; j += LANES) {
    const wide x = powers(shown(scores, j, first, column) - lse);
    *(anywhere *)(scores + j) = x;
    *(anywhere *)(slopes + j) = x * (load(slopes + j) - mean);
  }
}

#ifdef __clang__
#define MERGE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define MERGE(a, b, ...) __builtin_shuffle(a, b, (words){__VA_ARGS__})
#endif

/* Squares of ``step`` by ``step`` change places across the diagonal. */
#define SWAP(step, low, high)                                                                                          \
  for (int i = 0; i < LANES; i++)                                                                                      \
    if (!(i & step)) {                                                                                                 \
      const wide a = x[i], b = x[i + step];                                                                            \
      x[i] = MERGE(a, b, low);                                                                                         \
      x[i + step] = MERGE(a, b, high);                                                                                 \
    }
#define LOW_1 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30
#define HIGH_1 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31
#define LOW_2 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29
#define HIGH_2 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31
#define LOW_4 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27
#define HIGH_4 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31
#define LOW_8 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23
#define HIGH_8 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31

/* rows (count, width) -> to (width, across), zeros behind them up to whole vectors; width is a multiple of LANES */
static __attribute__((noinline)) void turned(const float *rows, int64_t count, int64_t width, float *to, int64_t across) {
  for (int64_t j = 0; j < count; j += LANES)
    for (int64_t k = 0; k < width; k += LANES) {
      wide x[LANES];
      for (int i = 0; i < LANES; i++) x[i] = j + i < count ? load(rows + (j + i) * width + k) : (wide){0};
      SWAP(1, LOW_1, HIGH_1)
      SWAP(2, LOW_2, HIGH_2)
      SWAP(4, LOW_4, HIGH_4)
      SWAP(8, LOW_8, HIGH_8)
      for (int i = 0; i < LANES; i++) memcpy(to + (k + i) * across + j, x + i, sizeof x[i]);
    }
}

/* A thread's scratch where a prompt and the longest of its rows have ``most`` tokens; ``made``: floats of it. */
typedef struct {
  int64_t across, tokens, made;
  float *keys, *values, *keys_turned, *values_turned, *of_keys, *of_values; /* of the columns */
  float *query, *grad, *out, *scores, *slopes;                             /* of a block's queries */
} room;

static inline float *part(float *scratch, int64_t *made, int64_t count) {
  float *at = scratch + *made;
  *made += up(count, LANES);
  return at;
}

static room rooms(float *scratch, int64_t most, int64_t heads, int64_t d, int back) {
  const int64_t wide = up(d, LANES), columns = up(most, LANES) + LANES;
  room r = {.across = columns / LANES % 2 ? columns : columns + LANES}; /* odd: no two rows at one place of a cache */
  const int64_t rows = SCORES / r.across > 64 ? 64 : SCORES / r.across < TALL ? TALL : SCORES / r.across;
  r.tokens = rows / heads > 1 ? rows / heads : 1;
  const int64_t tall = up(r.tokens * heads, TALL);
  r.keys = part(scratch, &r.made, columns * wide);
  r.values = part(scratch, &r.made, columns * wide);
  r.keys_turned = part(scratch, &r.made, wide * r.across);
  r.query = part(scratch, &r.made, tall * wide);
  r.out = part(scratch, &r.made, tall * wide);
  r.scores = part(scratch, &r.made, tall * r.across);
  if (!back) return r;
  r.values_turned = part(scratch, &r.made, wide * r.across);
  r.of_keys = part(scratch, &r.made, columns * wide);
  r.of_values = part(scratch, &r.made, columns * wide);
  r.grad = part(scratch, &r.made, tall * wide);
  r.slopes = part(scratch, &r.made, tall * r.across);
  return r;
}

/* Floats that a thread of packed_attention, or of its gradient, needs. */
int64_t attention_room(int64_t most, int64_t heads, int64_t d, int back) {
  static float none[1];
  return rooms(none, most, heads, d, back).made;
}
