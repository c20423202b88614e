/* Attention of one new token of each row, in bfloat16, by the processor's matrix tiles (AMX) or its dot products of pairs
 * (AVX512_BF16): what typed.h does otherwise.
 *
 * Rows of a prompt look at the same keys. Their queries, of the heads that share a head of keys, are up to 16 columns
 * of scores (keys, 16): keys are rows of tiles as they lie, a prompt's for all columns at once, a row's own for its
 * columns. So the softmax over keys is of 16 columns side by side, in fp32. Weights are rounded to bfloat16 for their
 * products with values, sums are in fp32. Of values that are finite, what a column becomes depends on no other, so
 * neither on who stands beside it. */
#include "vectors.h"

#ifdef TILED_ATTENTION
#include "avx512.h"
#include "panels.h"

enum { DEEP = 32, PAIR = 2, ALIKE = 4 }; /* elements of a tile's row; keys of a pair; queries served at once */
#ifdef TILES
enum { ALONE = 0 };
#else
enum { ALONE = 2 }; /* so few queries look at a row's own keys one by one: 16 columns of scores would mostly be in vain */
#endif
enum { STEP = 16, RUNS = 4 * TILE + 3 }; /* keys between two looks ahead; runs of memory that are looked at next */

static inline int64_t larger(int64_t x, int64_t y) { return x > y ? x : y; }

/* A thread's scratch where a row sees ``most`` tokens at most, a prompt and its own, and heads have d elements. */
typedef struct {
  float *scores, *sums; /* (keys, 16); (d / 32, 2, 16, 16): of each 32 elements the halves that split() makes */
  uint32_t *weights;    /* (keys / 2, 16): two of a column after each other */
  uint16_t *queries, *values, *tail; /* tiles of queries and of a prompt's values; the last rows of keys */
  int64_t made;
} room;

static inline void *part(float *scratch, int64_t *made, int64_t bytes) {
  void *at = scratch + *made;
  *made += up(bytes, 64) / 4;
  return at;
}

static room rooms(float *scratch, int64_t most, int64_t d) {
  const int64_t keys = up(most, DEEP) + 2 * DEEP; /* a prompt's end and a row's are rounded up */
  room r = {0};
  r.scores = part(scratch, &r.made, keys * TILE * 4);
  r.sums = part(scratch, &r.made, d * TILE * 4);
  r.weights = part(scratch, &r.made, keys / PAIR * TILE * 4);
  r.queries = part(scratch, &r.made, d * TILE * 2);
  r.values = part(scratch, &r.made, keys * d * 2);
  r.tail = part(scratch, &r.made, TILE * d * 2);
  return r;
}

/* Floats that a thread of tiled_decode_attention needs; 0 where it is not compiled for this processor. */
int64_t tiled_decode_room(int64_t most, int64_t d) {
  static float none[1];
  return rooms(none, most, d).made;
}

/* Two rows of 32 elements -> 32 pairs in two halves, in the order of unpacking; joined() puts that right again. */
static inline __attribute__((always_inline)) void split(__m512i a, __m512i b, __m512i *low, __m512i *high) {
  *low = _mm512_unpacklo_epi16(a, b);
  *high = _mm512_unpackhi_epi16(a, b);
}

static inline __m512i joined(__m512 low, __m512 high) {
  const __m512i place = _mm512_set_epi16(31, 30, 29, 28, 15, 14, 13, 12, 27, 26, 25, 24, 11, 10, 9, 8, 23, 22, 21, 20,
                                         7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
  return _mm512_permutexvar_epi16(place, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}

/* Rows in the order of their prompts, into ``order`` (N), and where each chunk of up to ``tall`` of them begins, alike
 * in prompt and size, into ``starts`` (N + 1); returns how many chunks. ``ends``: P + 1. */
static int64_t chunks(const int64_t *places, const int64_t *sizes, int64_t N, int64_t P, int64_t tall, int64_t *order,
                      int64_t *starts, int64_t *ends) {
  memset(ends, 0, (size_t)(P + 1) * sizeof *ends);
  for (int64_t n = 0; n < N; n++) ends[places[n] + 1]++;
  for (int64_t p = 0; p < P; p++) ends[p + 1] += ends[p];
  for (int64_t n = 0; n < N; n++) order[ends[places[n]]++] = n;
  int64_t count = 0;
  for (int64_t i = 0; i < N;) {
    int64_t end = i + 1;
    while (end < N && places[order[end]] == places[order[i]] && sizes[order[end]] == sizes[order[i]]) end++;
    for (int64_t parts = (end - i + tall - 1) / tall; parts > 0; parts--) {
      starts[count++] = i;
      i += (end - i + parts - 1) / parts;
    }
  }
  starts[count] = N;
  return count;
}

#ifdef TILES
/* scores (16 keys, 16 columns) = keys (16, d) by the tiles of queries, of which 4 and 5 hold those of 64 elements; kept
 * are those of ``columns``. */
static inline __attribute__((always_inline)) void score(const uint16_t *keys, const uint16_t *queries, int64_t d,
                                                        __mmask16 columns, float *scores) {
  _tile_zero(0);
  if (d == 64) {
    _tile_loadd(2, keys, 128);
    _tile_loadd(3, keys + DEEP, 128);
    _tile_dpbf16ps(0, 2, 4);
    _tile_dpbf16ps(0, 3, 5);
  } else {
    for (int64_t c = 0; c < d; c += DEEP) {
      _tile_loadd(2, keys + c, d * 2);
      _tile_loadd(3, queries + c * TILE, 64);
      _tile_dpbf16ps(0, 2, 3);
    }
  }
  if (columns == 0xffff) {
    _tile_stored(0, scores, 64);
    MEMORY(scores);
    return;
  }
  float all[TILE * TILE] __attribute__((aligned(64)));
  _tile_stored(0, all, 64);
  MEMORY(all);
  for (int i = 0; i < TILE; i++)
    _mm512_mask_store_ps(scores + i * TILE, columns, _mm512_load_ps(all + i * TILE));
}
#else
/* scores (16 keys, 16 columns) = keys (16, d) by queries; kept are those of ``columns``. */
static inline __attribute__((always_inline)) void score(const uint16_t *keys, const uint16_t *queries, int64_t d,
                                                        __mmask16 columns, float *scores) {
  __m512 sums[TILE];
  for (int i = 0; i < TILE; i++) sums[i] = _mm512_setzero_ps();
#pragma GCC unroll 4
  for (int64_t e = 0; e < d; e += PAIR, queries += PAIR * TILE) {
    const __m512bh all = (__m512bh)_mm512_load_si512(queries);
    for (int i = 0; i < TILE; i++) {
      int32_t both;
      memcpy(&both, keys + i * d + e, sizeof both);
      sums[i] = _mm512_dpbf16_ps(sums[i], (__m512bh)_mm512_set1_epi32(both), all);
    }
  }
  for (int i = 0; i < TILE; i++) _mm512_mask_store_ps(scores + i * TILE, columns, sums[i]);
}

/* scores (16 keys, 16 columns) of one query (d) alone, into one ``column``, or where it is the first into all. */
static inline __attribute__((always_inline)) void score_alone(const uint16_t *keys, const uint16_t *query, int64_t d,
                                                              int64_t column, float *scores) {
  __m512 sums[TILE];
  for (int i = 0; i < TILE; i++) sums[i] = _mm512_setzero_ps();
  for (int64_t e = 0; e < d; e += DEEP) {
    const __m512bh part = (__m512bh)_mm512_loadu_si512(query + e);
    for (int i = 0; i < TILE; i++)
      sums[i] = _mm512_dpbf16_ps(sums[i], (__m512bh)_mm512_loadu_si512(keys + i * d + e), part);
  }
  turn((__m512i *)sums);
  for (int step = TILE / 2; step; step /= 2)
    for (int i = 0; i < step; i++) sums[i] = _mm512_add_ps(sums[i], sums[i + step]);
  if (column) {
    float found[TILE];
    _mm512_storeu_ps(found, sums[0]);
    for (int i = 0; i < TILE; i++) scores[i * TILE + column] = found[i];
  } else {
    for (int i = 0; i < TILE; i++)
      _mm512_store_ps(scores + i * TILE, _mm512_permutexvar_ps(_mm512_set1_epi32(i), sums[0]));
  }
}
#endif

/* What is looked at next, asked for a few lines at a time: many at once would hold up the loads of now. */
typedef struct {
  const uint16_t *from[RUNS];
  int64_t lines[RUNS], some; /* of each not yet asked for, and how many to ask for at a time */
  int runs, run;
} ahead;

static inline void add(ahead *next, const uint16_t *from, int64_t elements) {
  next->from[next->runs] = from;
  next->lines[next->runs++] = (elements + DEEP - 1) / DEEP;
}

static inline void fetch(ahead *next) {
  for (int64_t left = next->some; left > 0 && next->run < next->runs;) {
    const int64_t count = smaller(left, next->lines[next->run]);
    const uint16_t *from = next->from[next->run];
    for (int64_t i = 0; i < count; i++) _mm_prefetch((const char *)(from + i * DEEP), _MM_HINT_T1);
    next->from[next->run] = from + count * DEEP;
    left -= count;
    if (!(next->lines[next->run] -= count)) next->run++;
  }
}

/* scores (count, 16) of ``columns``; with a ``query`` alone, of one column: see score_alone. */
static inline __attribute__((always_inline)) void scored(room r, const uint16_t *keys, int64_t count, int64_t d,
                                                         __mmask16 columns, const uint16_t *query, int64_t column,
                                                         float *scores, ahead *next) {
  for (int64_t j = 0; j < count; j += TILE) {
    const int64_t some = smaller(count - j, TILE);
    const uint16_t *from = keys + j * d;
    if (some < TILE) { /* what lies behind may not be there, and would be read from memory */
      for (int64_t i = 0; i < some * d; i += DEEP) _mm512_store_si512(r.tail + i, _mm512_loadu_si512(from + i));
      MEMORY(r.tail);
      from = r.tail;
    }
    fetch(next);
#ifndef TILES
    if (query) {
      score_alone(from, query, d, column, scores + j * TILE);
      continue;
    }
#endif
    (void)query, (void)column;
    score(from, r.queries, d, columns, scores + j * TILE);
  }
}

/* A prompt's values (count, d) -> tiles (count / 32, d / 32, 2, 16 pairs, 16, 2), zeros behind them */
static void laid_out(const uint16_t *values, int64_t count, int64_t d, uint16_t *to) {
  const __m512i none = _mm512_setzero_si512();
  for (int64_t j = 0; j < count; j += DEEP)
    for (int64_t c = 0; c < d; c += DEEP, to += 2 * TILE * DEEP) {
      const uint16_t *from = values + j * d + c;
      for (int64_t i = 0; i < TILE; i++, from += 2 * d) {
        const __m512i a = j + 2 * i < count ? _mm512_loadu_si512(from) : none;
        const __m512i b = j + 2 * i + 1 < count ? _mm512_loadu_si512(from + d) : none;
        __m512i low, high;
        split(a, b, &low, &high);
        _mm512_store_si512(to + i * DEEP, low);
        _mm512_store_si512(to + (TILE + i) * DEEP, high);
      }
    }
}

/* sums (d / 32, 2, 16, 16) = weights (count / 2, 16, 2) by values in tiles, count rounded up to 32, of ``columns`` columns at
 * the least */
#ifdef TILES
static void weigh(room r, int64_t count, int64_t d, int64_t columns) {
  (void)columns;
  const int64_t blocks = (count + DEEP - 1) / DEEP;
  uint16_t *turned = (uint16_t *)r.weights; /* a block's pairs, turned in place */
  for (int64_t b = 0; b < blocks; b++) {
    __m512i rows[TILE];
    for (int i = 0; i < TILE; i++) rows[i] = _mm512_load_si512(turned + (b * TILE + i) * DEEP);
    turn(rows);
    for (int i = 0; i < TILE; i++) _mm512_store_si512(turned + (b * TILE + i) * DEEP, rows[i]);
  }
  MEMORY(turned);
  MEMORY(r.values);
  for (int64_t c = 0; c < d; c += DEEP) {
    _tile_zero(0);
    _tile_zero(1);
    for (int64_t b = 0; b < blocks; b++) {
      const uint16_t *values = r.values + (b * d + c) * DEEP;
      _tile_loadd(2, turned + b * TILE * DEEP, 64);
      _tile_loadd(3, values, 64);
      _tile_loadd(4, values + TILE * DEEP, 64);
      _tile_dpbf16ps(0, 2, 3);
      _tile_dpbf16ps(1, 2, 4);
    }
    _tile_stored(0, r.sums + c * TILE, 64);
    _tile_stored(1, r.sums + c * TILE + TILE * TILE, 64);
  }
  MEMORY(r.sums);
}
#else
static void weigh(room r, int64_t count, int64_t d, int64_t columns) {
  for (int64_t c = 0; c < d; c += DEEP)
    for (int64_t first = 0; first < columns; first += DOTTED) {
      __m512 low[DOTTED], high[DOTTED];
      for (int i = 0; i < DOTTED; i++) low[i] = high[i] = _mm512_setzero_ps();
      for (int64_t j = 0; j < count; j += DEEP) {
        const uint16_t *values = r.values + (j * d + c * DEEP);
        const uint32_t *weights = r.weights + j / PAIR * TILE + first;
        for (int p = 0; p < TILE; p++, values += DEEP, weights += TILE) {
          const __m512bh one = (__m512bh)_mm512_load_si512(values);
          const __m512bh two = (__m512bh)_mm512_load_si512(values + TILE * DEEP);
          for (int i = 0; i < DOTTED; i++) {
            const __m512bh all = (__m512bh)_mm512_set1_epi32((int)weights[i]);
            low[i] = _mm512_dpbf16_ps(low[i], all, one);
            high[i] = _mm512_dpbf16_ps(high[i], all, two);
          }
        }
      }
      for (int i = 0; i < DOTTED; i++) {
        _mm512_store_ps(r.sums + c * TILE + (first + i) * TILE, low[i]);
        _mm512_store_ps(r.sums + c * TILE + TILE * TILE + (first + i) * TILE, high[i]);
      }
    }
}
#endif

static inline __m512 more(__m512 sum, uint32_t weights, __m512i values) {
  return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32((int)weights), (__m512bh)values);
}

/* out (queries, d) = (sums + a row's own values (count, d) weighed) / totals. weights: (count / 2, 16, 2), from this
 * row's first column on, as sums (.., 16, 16) are. ``wide``: how many times 32 elements at once. */
static inline __attribute__((always_inline)) void finish(const float *sums, const uint32_t *weights,
                                                         const uint16_t *values, int64_t count, int64_t d, int queries,
                                                         int wide, const float *totals, uint16_t *out,
                                                         ahead *next) {
  for (int64_t c = 0; c < d; c += wide * DEEP) {
    __m512 low[ALIKE][2], high[ALIKE][2];
    const float *from = sums + c * TILE;
    for (int i = 0; i < queries; i++)
      for (int n = 0; n < wide; n++) {
        low[i][n] = _mm512_load_ps(from + (2 * n * TILE + i) * TILE);
        high[i][n] = _mm512_load_ps(from + ((2 * n + 1) * TILE + i) * TILE);
      }
    for (int64_t j = 0; j < count; j += 2) {
      if (j % STEP == 0) fetch(next);
      const uint16_t *at = values + j * d + c;
      for (int n = 0; n < wide; n++) {
        __m512i a = _mm512_loadu_si512(at + n * DEEP), b = _mm512_setzero_si512();
        if (j + 1 < count) b = _mm512_loadu_si512(at + d + n * DEEP);
        split(a, b, &a, &b);
        for (int i = 0; i < queries; i++) {
          const uint32_t w = weights[j / 2 * TILE + i];
          low[i][n] = more(low[i][n], w, a);
          high[i][n] = more(high[i][n], w, b);
        }
      }
    }
    for (int i = 0; i < queries; i++) {
      const __m512 part = _mm512_set1_ps(1.0f / totals[i]);
      for (int n = 0; n < wide; n++)
        _mm512_storeu_si512(out + i * d + c + n * DEEP,
                            joined(_mm512_mul_ps(low[i][n], part), _mm512_mul_ps(high[i][n], part)));
    }
  }
}

/* Which keys each column sees: low to high - 1, and all columns from - to - 1. */
typedef struct {
  __m512i low, high;
  int64_t from, to;
} view;

static inline __mmask16 sees(view seen, int64_t j) {
  if (j >= seen.from && j < seen.to) return 0xffff;
  const __m512i at = _mm512_set1_epi32((int)j);
  return _mm512_mask_cmplt_epi32_mask(_mm512_cmple_epi32_mask(seen.low, at), at, seen.high);
}

static void cap(float *scores, int64_t count, float scaling, float softcap) {
  for (int64_t i = 0; i < count * TILE; i++) scores[i] = softcap * tanhf(scores[i] * scaling / softcap);
}

/* The largest of scores (count, 16) times ``scaling`` in each column. */
static inline __m512 largest(const float *scores, int64_t count, view seen, __m512 scaling, __m512 top) {
  for (int64_t j = 0; j < count; j++, scores += TILE) {
    const __mmask16 there = sees(seen, j);
    top = _mm512_mask_max_ps(top, there, _mm512_mul_ps(_mm512_maskz_load_ps(there, scores), scaling), top);
  }
  return top;
}

/* Weights 2^(scores * scaling - top), not yet divided by their sum: returns ``total`` and them. count is even. */
static inline __m512 softened(const float *scores, int64_t count, view seen, __m512 scaling, __m512 top,
                              uint32_t *weights, __m512 total, ahead *next) {
  const __m512i pairs = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  for (int64_t j = 0; j < count; j += 2, scores += 2 * TILE, weights += TILE) {
    __m512 x[2];
    if (j % STEP == 0) fetch(next);
    for (int i = 0; i < 2; i++) {
      const __mmask16 there = sees(seen, j + i);
      const __m512 score = _mm512_maskz_load_ps(there, scores + i * TILE);
      x[i] = _mm512_maskz_mov_ps(there, power_of_2(_mm512_fmsub_ps(score, scaling, top)));
      total = _mm512_add_ps(total, x[i]);
    }
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(x[1], x[0]);
    _mm512_store_si512(weights, _mm512_permutexvar_epi16(pairs, both));
  }
  return total;
}

/* What is done at once: rows of one prompt that see as much of it, and one head of keys. */
typedef struct {
  const int64_t *rows;
  int64_t members, kv, size, shared; /* size of the prompt; its place and head in the cache */
  int64_t from, there, begin, blind; /* its keys: the first looked at, how many, rounded up; all see from blind on */
  int64_t firsts[TILE], own[TILE], longest, shortest; /* where a row's own keys begin that it sees, and how many */
} work;

static inline __attribute__((always_inline)) work
survey(const int64_t *rows, int64_t members, int64_t kv, const int64_t *counts, const int64_t *sizes,
       const int64_t *places, int64_t K, int64_t length, int64_t d, int64_t window) {
  const int64_t size = sizes[rows[0]];
  work w = {.rows = rows, .members = members, .kv = kv, .size = size, .shared = places[rows[0]] * K + kv};
  int64_t sees = size; /* where the first row begins to see */
  w.shortest = length;
  for (int64_t m = 0; m < members; m++) {
    const int64_t first = window > 0 ? larger(size + counts[rows[m]] - window, 0) : 0;
    const int64_t own_from = larger(first - size, 0), from = smaller(first, size);
    w.firsts[m] = ((rows[m] * K + kv) * length + own_from) * d;
    w.own[m] = counts[rows[m]] - own_from;
    sees = smaller(sees, from), w.blind = larger(w.blind, from);
    w.shortest = smaller(w.shortest, w.own[m]), w.longest = larger(w.longest, w.own[m]);
  }
  w.from = sees / DEEP * DEEP; /* whole blocks: what a row gives does not depend on what others see */
  w.there = sees < size ? size - w.from : 0, w.begin = up(w.there, DEEP);
  return w;
}

static inline void add_own(ahead *next, const work *w, const uint16_t *own_k, const uint16_t *own_v, int64_t d) {
  for (int64_t m = 0; m < w->members; m++) add(next, own_k + w->firsts[m], w->own[m] * d);
  for (int64_t m = 0; m < w->members; m++) add(next, own_v + w->firsts[m], w->own[m] * d);
}

/* See decode_attention of typed.h; d is a multiple of 32. P prompts. plan: 2 N + P + 2. */
void tiled_decode_attention(const uint16_t *q, int64_t q_head, int64_t q_row, const uint16_t *k, int64_t k_head,
                            int64_t k_row, const uint16_t *v, int64_t v_head, int64_t v_row, uint16_t *own_k,
                            uint16_t *own_v, int64_t length, const uint16_t *prompt_k, const uint16_t *prompt_v,
                            int64_t width, const int64_t *counts, const int64_t *sizes, const int64_t *places,
                            uint16_t *out, int64_t N, int64_t P, int64_t H, int64_t K, int64_t d, float scaling,
                            int64_t window, float softcap, float *scratch, int64_t *plan, int64_t most, int threads) {
  const int64_t R = H / K, heads = smaller(R, TILE), needed = tiled_decode_room(most, d);
  int64_t *order = plan, *starts = plan + N;
  const int64_t parts = chunks(places, sizes, N, P, TILE / heads, order, starts, plan + 2 * N + 1);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const room r = rooms(scratch + thread() * needed, most, d);
    int64_t held = -1, held_from = 0, held_count = 0; /* prompt and head, and which of its values are laid out */
    struct config before;
    tiles_on(&before);
    work after = {0}; /* the item that comes next, once there was one */
#pragma omp for schedule(static) /* a thread's items follow each other: ``after`` is its next one */
    for (int64_t item = 0; item < parts * K; item++) {
#define SURVEY(item)                                                                                                   \
  survey(order + starts[(item) % parts], starts[(item) % parts + 1] - starts[(item) % parts], (item) / parts, counts, \
         sizes, places, K, length, d, window)
      const int first = !after.members;
      const work w = first ? SURVEY(item) : after;
      after = SURVEY(item + 1 < parts * K ? item + 1 : item);
#undef SURVEY
      const int64_t kv = w.kv, members = w.members, *rows = w.rows, *own = w.own, *firsts = w.firsts;
      const int64_t there = w.there, begin = w.begin, reach = up(w.longest, PAIR);
      const int64_t prompt = (w.shared * width + w.from) * d;
      const uint16_t *values = prompt_v + prompt;
      ahead next = {.some = 0};
      if (first) { /* nobody asked for what it looks at itself */
        add(&next, values, there * d);
        add_own(&next, &w, own_k, own_v, d);
      }
      if (after.shared != w.shared || after.from != w.from) {
        add(&next, prompt_k + (after.shared * width + after.from) * d, after.there * d);
        add(&next, prompt_v + (after.shared * width + after.from) * d, after.there * d);
      }
      add_own(&next, &after, own_k, own_v, d);
      int64_t steps = there / TILE + (begin + reach) / STEP + 1, lines = 0; /* about how often it asks */
      for (int64_t m = 0; m < members; m++) {
        const int64_t last = ((rows[m] * K + kv) * length + counts[rows[m]] - 1) * d;
        memcpy(own_k + last, k + kv * k_head + rows[m] * k_row, (size_t)d * 2);
        memcpy(own_v + last, v + kv * v_head + rows[m] * v_row, (size_t)d * 2);
        steps += up(own[m], STEP) / STEP * 2;
      }
      for (int i = 0; i < next.runs; i++) lines += next.lines[i];
      next.some = lines / (steps * ((R + heads - 1) / heads)) + 1;
      for (int64_t head = kv * R; head < kv * R + R; head += heads) {
        const int64_t alike = smaller(kv * R + R - head, heads), columns = members * alike;
        for (int64_t c = 0; c < d; c += DEEP) {
          __m512i x[TILE];
          for (int64_t i = 0; i < TILE; i++)
            x[i] = i < columns ? _mm512_loadu_si512(q + (head + i % alike) * q_head + rows[i / alike] * q_row + c)
                               : _mm512_setzero_si512();
          turn(x);
          for (int i = 0; i < TILE; i++) _mm512_store_si512(r.queries + (c + 2 * i) * TILE, x[i]);
        }
        MEMORY(r.queries);
#ifdef TILES
        if (d == 64) {
          _tile_loadd(4, r.queries, 64);
          _tile_loadd(5, r.queries + TILE * DEEP, 64);
        }
#endif
        scored(r, prompt_k + prompt, there, d, 0xffff, 0, 0, r.scores, &next);
        float *own_scores = r.scores + begin * TILE, totals[TILE];
        uint32_t *own_weights = r.weights + begin / PAIR * TILE;
        int32_t low[TILE] = {0}, high[TILE];
        for (int64_t i = 0; i < TILE; i++) { /* columns that are not there are the first row's */
          const int64_t m = i < columns ? i / alike : 0;
          if (window > 0) low[i] = (int32_t)(smaller(larger(w.size + counts[rows[m]] - window, 0), w.size) - w.from);
          high[i] = (int32_t)own[m];
        }
        for (int64_t m = 0; m < members; m++) {
          const __mmask16 own_columns = m ? (__mmask16)(((1u << alike) - 1) << m * alike) : 0xffff;
          const uint16_t *query = q + head * q_head + rows[m] * q_row;
          if (!ALONE || alike > ALONE) scored(r, own_k + firsts[m], own[m], d, own_columns, 0, 0, own_scores, &next);
          else
            for (int64_t h = 0; h < alike; h++)
              scored(r, own_k + firsts[m], own[m], d, 0, query + h * q_head, m * alike + h, own_scores, &next);
        }
        const view all = {_mm512_loadu_si512(low), _mm512_set1_epi32((int)there), w.blind - w.from, there};
        const view its = {_mm512_setzero_si512(), _mm512_loadu_si512(high), 0, w.shortest};
        if (softcap > 0) {
          cap(r.scores, there, scaling, softcap);
          cap(own_scores, w.longest, scaling, softcap);
        }
        const __m512 unit = _mm512_set1_ps((softcap > 0 ? 1.0f : scaling) * LOG2E);
        __m512 top = largest(r.scores, there, all, unit, _mm512_set1_ps(-INFINITY));
        top = largest(own_scores, w.longest, its, unit, top);
        __m512 total = softened(r.scores, begin, all, unit, top, r.weights, _mm512_setzero_ps(), &next);
        total = softened(own_scores, reach, its, unit, top, own_weights, total, &next);
        _mm512_storeu_ps(totals, total);
        if (held != w.shared || held_from != w.from || held_count != there) {
          laid_out(values, there, d, r.values);
          held = w.shared, held_from = w.from, held_count = there;
        }
        weigh(r, there, d, columns);
        for (int64_t m = 0; m < members; m++)
          for (int64_t h = 0; h < alike; h += ALIKE) {
            const int64_t column = m * alike + h, few = smaller(alike - h, ALIKE);
            uint16_t *to = out + (rows[m] * H + head + h) * d;
#define FINISH(count, wide)                                                                                            \
  finish(r.sums + column * TILE, own_weights + column, own_v + firsts[m], own[m], d, count, wide, totals + column, to, \
         &next)
            if (few == 1 && d % 64 == 0) FINISH(1, 2);
            else if (few == 1) FINISH(1, 1);
            else if (few == 2) FINISH(2, 1);
            else if (few == 3 && d % 64 == 0) FINISH(3, 2);
            else if (few == 3) FINISH(3, 1);
            else FINISH(4, 1);
#undef FINISH
          }
      }
    }
    tiles_off(&before);
  }
}

CALLED(tiled_decode_attention, PTR(0), INT(1), INT(2), PTR(3), INT(4), INT(5), PTR(6), INT(7), INT(8), PTR(9), PTR(10),
       INT(11), PTR(12), PTR(13), INT(14), PTR(15), PTR(16), PTR(17), PTR(18), INT(19), INT(20), INT(21), INT(22), INT(23),
       REAL(24), INT(25), REAL(26), PTR(27), PTR(28), INT(29), (int)INT(30))
#else
int64_t tiled_decode_room(int64_t most, int64_t d) { return (void)most, (void)d, 0; }
#endif
