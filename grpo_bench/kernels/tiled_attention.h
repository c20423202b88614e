/* Attention of packed rows in bfloat16 by products of panels (panels.h): what packed_attention.h computes, with the
 * same arguments, its products of bfloat16 factors summed in fp32. The softmax is in fp32; weights and gradients of scores
 * are rounded to bfloat16 as factors of the products that follow.
 *
 * Everything is in panels of 32 by 32. Scores are kept turned, a row of a panel for a key (a "column") and a lane for a
 * query: largest scores and sums then need nothing across lanes, and what comes out of the softmax is laid out as the next
 * product reads it. Queries of the heads that share keys stand behind each other, query m being of token m / R.
 *
 * A prompt's columns fill the first panels; those of a row that continues it begin a panel of their own, so that the
 * prompt's are laid out once for all of its rows. */
#include "avx512.h"
#include "panels.h"

enum { SUBS = 4 }; /* SUBS: panels of queries whose gradients are made together */

static inline int64_t panels(int64_t x) { return (x + SIDE - 1) / SIDE; }
static inline __mmask32 first_of(int64_t count) { return count < SIDE ? ((__mmask32)1 << count) - 1 : ~(__mmask32)0; }

/* Two rows of 32 elements -> 32 pairs, the first 16 and the others. */
static inline __attribute__((always_inline)) void pairs_of(__m512i a, __m512i b, uint16_t *first, uint16_t *second) {
  const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5,
                                       36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  _mm512_store_si512(first, _mm512_permutex2var_epi16(a, low, b));
  _mm512_store_si512(second, _mm512_permutex2var_epi16(a, _mm512_add_epi16(low, _mm512_set1_epi16(16)), b));
}

/* A panel of rows as a left factor (rows, elements deep) in other forms. */
static inline void to_right(const uint16_t *x, uint16_t *to) { /* as a right factor: elements deep, rows across */
  for (int half = 0; half < 2; half++) {
    __m512i r[TILE];
    for (int i = 0; i < TILE; i++) r[i] = _mm512_load_si512(x + (half * TILE + i) * SIDE);
    turn(r);
    for (int i = 0; i < TILE; i++) _mm512_store_si512(to + (half * TILE + i) * SIDE, r[i]);
  }
}

static inline void to_right_turned(const uint16_t *x, uint16_t *to) { /* rows deep, elements across */
  for (int i = 0; i < TILE; i++, x += 2 * SIDE, to += SIDE)
    pairs_of(_mm512_load_si512(x), _mm512_load_si512(x + SIDE), to, to + TILE * SIDE);
}

static inline void to_left_turned(const uint16_t *x, uint16_t *to) { /* a row for each element, rows deep */
  to_right_turned(x, to);
  to_right(to, to);
}

/* count rows of d elements, ``stride`` apart -> panels side by side, zeros in what is not there. ``ahead``: how far on lies
 * what is read next, which the processor does not foresee; 0: nothing. */
static inline void laid_out(const uint16_t *x, int64_t stride, int64_t count, int64_t d, int64_t ahead, uint16_t *to) {
  for (int64_t e = 0; e < d; e += SIDE, to += PANEL)
    for (int64_t r = 0; r < SIDE; r++) {
      const uint16_t *from = x + r * stride + e;
      const __m512i row = r < count ? _mm512_maskz_loadu_epi16(first_of(d - e), from) : _mm512_setzero_si512();
      if (ahead && r < count) __builtin_prefetch(from + ahead);
      _mm512_store_si512(to + r * SIDE, row);
    }
}

/* The same of queries ``first`` to first + count - 1. */
static inline void queries_laid_out(const uint16_t *x, int64_t head, int64_t row, int64_t R, int64_t first, int64_t count,
                                    int64_t d, int64_t ahead, uint16_t *to) {
  int64_t token = first / R, h = first % R;
  for (int64_t r = 0; r < SIDE; r++) {
    const uint16_t *from = x + token * row + h * head;
    for (int64_t e = 0; e < d; e += SIDE) {
      const __m512i part = r < count ? _mm512_maskz_loadu_epi16(first_of(d - e), from + e) : _mm512_setzero_si512();
      if (ahead && r < count) __builtin_prefetch(from + e + ahead);
      _mm512_store_si512(to + e * SIDE + r * SIDE, part);
    }
    if (++h == R) h = 0, token++;
  }
}

/* What the queries of a panel look at. Columns have positions: a prompt's from 0 on, a row's from ``shared`` on, that many
 * being its prompt's. */
typedef struct {
  int64_t shared, window, first, last; /* positions of the panel's first and its last query */
  __m512i at[2];                       /* of each */
} sight;

static inline int64_t panel_at(int64_t shared, int64_t position) {
  return position < shared ? position / SIDE : panels(shared) + (position - shared) / SIDE;
}

static inline int64_t position_of(int64_t shared, int64_t panel) {
  return panel < panels(shared) ? panel * SIDE : shared + (panel - panels(shared)) * SIDE;
}

/* Of queries ``first`` to first + count - 1 of a sequence that begins at position ``start``; those beyond count as the last. */
static inline sight sight_of(int64_t shared, int64_t window, int64_t start, int64_t first, int64_t count, int64_t R) {
  int32_t at[SIDE] __attribute__((aligned(64)));
  int64_t token = first / R, h = first % R;
  for (int64_t i = 0; i < SIDE; i++) {
    at[i] = (int32_t)(start + token);
    if (i + 1 < count && ++h == R) h = 0, token++;
  }
  return (sight){shared, window, at[0], at[SIDE - 1], {_mm512_load_si512(at), _mm512_load_si512(at + TILE)}};
}

static inline int64_t from_panel(const sight *s) {
  return panel_at(s->shared, s->window > 0 && s->first >= s->window ? s->first + 1 - s->window : 0);
}

static inline int64_t to_panel(const sight *s) { return panel_at(s->shared, s->last) + 1; }

/* The columns of a panel that are there and that some query may see. */
static inline int64_t columns_of(const sight *s, int64_t panel) {
  const int64_t start = position_of(s->shared, panel);
  const int64_t end = panel < panels(s->shared) && s->shared <= s->last ? s->shared : s->last + 1;
  return end - start < SIDE ? end - start : SIDE;
}

/* Whether each query sees all of a panel. */
static inline int sees_all(const sight *s, int64_t panel) {
  const int64_t start = position_of(s->shared, panel);
  return columns_of(s, panel) == SIDE && start + SIDE - 1 <= s->first && (s->window == 0 || start + s->window > s->last);
}

static inline __attribute__((always_inline)) __mmask16 seeing(const sight *s, int64_t position, int half) {
  const __mmask16 before = _mm512_cmple_epi32_mask(_mm512_set1_epi32((int32_t)position), s->at[half]);
  if (s->window == 0) return before;
  return _mm512_mask_cmpgt_epi32_mask(before, _mm512_set1_epi32((int32_t)(position + s->window)), s->at[half]);
}

/* Larger scores, times ``scale``, than ``top`` among ``count`` columns from ``position`` on. */
static inline __attribute__((always_inline)) void topped(const sight *s, const float *scores, int64_t position,
                                                         int64_t count, int all, __m512 scale, __m512 *top) {
  for (int64_t r = 0; r < count; r++)
    for (int half = 0; half < 2; half++) {
      __m512 x = _mm512_mul_ps(_mm512_load_ps(scores + r * SIDE + half * TILE), scale);
      if (!all) x = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), seeing(s, position + r, half), x);
      top[half] = _mm512_max_ps(x, top[half]);
    }
}

/* Weights of a panel's columns, not yet divided by their sum, as a right factor: columns deep, queries across. */
static inline __attribute__((always_inline)) void weighted(const sight *s, const float *scores, int64_t position,
                                                           int64_t count, int all, __m512 scale, const __m512 *top,
                                                           __m512 *total, uint16_t *to) {
  const __m512i mixed = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  for (int64_t r = 0; r < SIDE; r += 2, scores += 2 * SIDE, to += SIDE)
    for (int half = 0; half < 2; half++) {
      __m512 x[2];
      for (int i = 0; i < 2; i++) {
        x[i] = power_of_2(_mm512_fmsub_ps(_mm512_load_ps(scores + i * SIDE + half * TILE), scale, top[half]));
        if (!all) x[i] = _mm512_maskz_mov_ps(r + i < count ? seeing(s, position + r + i, half) : 0, x[i]);
        total[half] = _mm512_add_ps(total[half], x[i]);
      }
      const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(x[1], x[0]);
      _mm512_store_si512(to + half * TILE * SIDE, _mm512_permutexvar_epi16(mixed, both));
    }
}

/* Weights by the logarithm of their sum, and the gradients of scores, ``slopes`` being the weights' gradients and ``mean``
 * what they are on average; both as left factors: columns by queries deep. */
static inline __attribute__((always_inline)) void weighted_again(const sight *s, const float *scores, const float *slopes,
                                                                 int64_t position, int64_t count, int all, __m512 scale,
                                                                 const float *lse, const float *mean, uint16_t *weights,
                                                                 uint16_t *of_scores) {
  const __m512 less[2] = {_mm512_load_ps(lse), _mm512_load_ps(lse + TILE)};
  const __m512 means[2] = {_mm512_load_ps(mean), _mm512_load_ps(mean + TILE)};
  for (int64_t r = 0; r < SIDE; r++, scores += SIDE, slopes += SIDE, weights += SIDE, of_scores += SIDE) {
    __m512 x[2], y[2];
    for (int half = 0; half < 2; half++) {
      x[half] = power_of_2(_mm512_fmsub_ps(_mm512_load_ps(scores + half * TILE), scale, less[half]));
      y[half] = _mm512_mul_ps(x[half], _mm512_sub_ps(_mm512_load_ps(slopes + half * TILE), means[half]));
      if (!all) {
        const __mmask16 seen = r < count ? seeing(s, position + r, half) : 0;
        x[half] = _mm512_maskz_mov_ps(seen, x[half]);
        y[half] = _mm512_maskz_mov_ps(seen, y[half]);
      }
    }
    _mm512_store_si512(weights, (__m512i)_mm512_cvtne2ps_pbh(x[1], x[0]));
    _mm512_store_si512(of_scores, (__m512i)_mm512_cvtne2ps_pbh(y[1], y[0]));
  }
}

/* Sums (elements, queries), times what each query has in ``scales``, to the rows of ``count`` queries, ``first`` being the
 * first: ``elements`` of each, in bfloat16. ``to``: the first token's, R heads of d elements, ``row`` from token to token. */
static inline void handed_out(float *sums, const __m512 *scales, int64_t R, int64_t first, int64_t count,
                              int64_t elements, uint16_t *to, int64_t d, int64_t row) {
  for (int half = 0; half < 2; half++)
    for (int part = 0; part < 2; part++) {
      float *from = sums + part * TILE * SIDE + half * TILE;
      __m512i r[TILE];
      for (int i = 0; i < TILE; i++) r[i] = (__m512i)_mm512_mul_ps(_mm512_load_ps(from + i * SIDE), scales[half]);
      turn(r);
      for (int i = 0; i < TILE; i++) _mm512_store_si512(from + i * SIDE, r[i]);
    }
  int64_t token = first / R, h = first % R;
  for (int64_t i = 0; i < count; i++) {
    const float *from = sums + i % TILE * SIDE + i / TILE * TILE;
    const __m512i x = (__m512i)_mm512_cvtne2ps_pbh(_mm512_load_ps(from + TILE * SIDE), _mm512_load_ps(from));
    _mm512_mask_storeu_epi16(to + token * row + h * d, first_of(elements), x);
    if (++h == R) h = 0, token++;
  }
}

/* fp32 rows, ``width`` apart, times scale -> count rows of d elements, ``stride`` apart */
static inline void rounded_rows(const float *x, int64_t width, int64_t count, int64_t d, float scale, uint16_t *to,
                                int64_t stride) {
  const __m512 by = _mm512_set1_ps(scale);
  for (int64_t r = 0; r < count; r++, x += width, to += stride)
    for (int64_t e = 0; e < d; e += SIDE) {
      const __m512 a = _mm512_mul_ps(_mm512_load_ps(x + e), by), b = _mm512_mul_ps(_mm512_load_ps(x + e + TILE), by);
      _mm512_mask_storeu_epi16(to + e, first_of(d - e), (__m512i)_mm512_cvtne2ps_pbh(b, a));
    }
}

/* A thread's scratch; ``made``: floats of it. Panels of columns: ``columns``; of a head's elements: ``deep``. */
typedef struct {
  int64_t columns, deep, subs, made;
  uint16_t *keys, *values, *keys_turned; /* left factors */
  uint16_t *rows, *query, *grad, *query_turned, *grad_turned, *weights, *slopes, *slopes_turned;
  float *scores, *of_weights, *sums, *of_keys, *of_values, *lse, *mean;
} tiled_room;

static inline uint16_t *some_panels(float *scratch, int64_t *made, int64_t count) {
  return (uint16_t *)part(scratch, made, count * PANEL / 2);
}

static tiled_room tiled_rooms(float *scratch, int64_t most, int64_t d, int back) {
  tiled_room r = {.columns = most / SIDE + 2, .deep = panels(d)};
  r.subs = !back ? 1 : r.columns <= 32 ? SUBS : r.columns <= 128 ? 2 : 1;
  r.keys = some_panels(scratch, &r.made, r.columns * r.deep);
  r.values = some_panels(scratch, &r.made, r.columns * r.deep);
  r.rows = some_panels(scratch, &r.made, r.deep);
  r.query = some_panels(scratch, &r.made, r.subs * r.deep);
  r.sums = part(scratch, &r.made, PANEL);
  r.scores = part(scratch, &r.made, (back ? 1 : r.columns) * PANEL);
  r.weights = some_panels(scratch, &r.made, back ? r.subs : r.columns);
  if (!back) return r;
  r.keys_turned = some_panels(scratch, &r.made, r.columns * r.deep);
  r.grad = some_panels(scratch, &r.made, r.subs * r.deep);
  r.query_turned = some_panels(scratch, &r.made, r.subs * r.deep);
  r.grad_turned = some_panels(scratch, &r.made, r.subs * r.deep);
  r.slopes = some_panels(scratch, &r.made, r.subs);
  r.slopes_turned = some_panels(scratch, &r.made, r.columns * r.subs);
  r.of_weights = part(scratch, &r.made, PANEL);
  r.of_keys = part(scratch, &r.made, r.columns * r.deep * PANEL);
  r.of_values = part(scratch, &r.made, r.columns * r.deep * PANEL);
  r.lse = part(scratch, &r.made, r.subs * SIDE);
  r.mean = part(scratch, &r.made, r.subs * SIDE);
  return r;
}

/* Floats that a thread of tiled_attention, or of its gradient, needs; 0 where this was compiled without panels. */
int64_t tiled_attention_room(int64_t most, int64_t d, int back) {
  static float none[1];
  return tiled_rooms(none, most, d, back).made;
}

void tiled_attention(const uint16_t *q, int64_t q_head, int64_t q_row, const uint16_t *k, int64_t k_head, int64_t k_row,
                     const uint16_t *v, int64_t v_head, int64_t v_row, uint16_t *out, float *lse, const int64_t *starts,
                     const int64_t *lengths, const int64_t *firsts, const int64_t *order, int64_t P, int64_t N,
                     int64_t H, int64_t K, int64_t d, float scaling, int64_t window, float *scratch, int64_t most,
                     int threads) {
  const int64_t R = H / K, needed = tiled_attention_room(most, d, 0);
  const __m512 scale = _mm512_set1_ps(scaling * LOG2E);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const tiled_room r = tiled_rooms(scratch + thread() * needed, most, d, 0);
    const int64_t deep = r.deep;
    struct config before;
    tiles_on(&before);
#pragma omp for schedule(dynamic, P < 4 * threads ? 1 : K)
    for (int64_t item = 0; item < P * K; item++) {
      const int64_t p = order[item / K], kv = item % K, head = kv * R, shared = lengths[p], more = kv + 1 < K;
      for (int64_t row = firsts[p] - 1; row < firsts[p + 1]; row++) {
        const int64_t s = row < firsts[p] ? p : row, first = s == p ? 0 : panels(shared), start = starts[s];
        const uint16_t *of_query = q + head * q_head + start * q_row;
        for (int64_t t = 0; t < lengths[s]; t += SIDE) {
          const int64_t count = lengths[s] - t, place = (first + t / SIDE) * deep * PANEL;
          laid_out(k + kv * k_head + (start + t) * k_row, k_row, count, d, more * k_head, r.keys + place);
          laid_out(v + kv * v_head + (start + t) * v_row, v_row, count, d, more * v_head, r.rows);
          for (int64_t e = 0; e < deep; e++) to_left_turned(r.rows + e * PANEL, r.values + place + e * PANEL);
        }
        for (int64_t m = 0; m < lengths[s] * R; m += SIDE) {
          const int64_t count = smaller(SIDE, lengths[s] * R - m);
          const sight see = sight_of(shared, window, s == p ? 0 : shared, m, count, R);
          const int64_t from = from_panel(&see), to = to_panel(&see);
          queries_laid_out(of_query, q_head, q_row, R, m, count, d, more * R * q_head, r.rows);
          for (int64_t e = 0; e < deep; e++) to_right(r.rows + e * PANEL, r.query + e * PANEL);
          MEMORY(r.query);
          __m512 top[2] = {_mm512_set1_ps(-INFINITY), _mm512_set1_ps(-INFINITY)}, total[2] = {{0}, {0}}, by[2];
          for (int64_t c = from; c < to; c++) {
            float *scores = r.scores + (c - from) * PANEL;
            multiply_panels(r.keys + c * deep * PANEL, 1, r.query, 1, deep, scores, SIDE, 0);
          }
          MEMORY(r.scores);
          for (int64_t c = from; c < to; c++) {
            const float *scores = r.scores + (c - from) * PANEL;
            if (sees_all(&see, c)) topped(&see, scores, 0, SIDE, 1, scale, top);
            else topped(&see, scores, position_of(shared, c), columns_of(&see, c), 0, scale, top);
          }
          for (int64_t c = from; c < to; c++) {
            const float *scores = r.scores + (c - from) * PANEL;
            uint16_t *weights = r.weights + (c - from) * PANEL;
            if (sees_all(&see, c)) weighted(&see, scores, 0, SIDE, 1, scale, top, total, weights);
            else weighted(&see, scores, position_of(shared, c), columns_of(&see, c), 0, scale, top, total, weights);
          }
          MEMORY(r.weights);
          for (int half = 0; half < 2; half++) by[half] = _mm512_div_ps(_mm512_set1_ps(1.0f), total[half]);
          for (int64_t e = 0; e < deep; e++) {
            multiply_panels(r.values + (from * deep + e) * PANEL, deep, r.weights, 1, to - from, r.sums, SIDE, 0);
            MEMORY(r.sums);
            handed_out(r.sums, by, R, m, count, d - e * SIDE, out + (start * H + head) * d + e * SIDE, d, H * d);
          }
          if (!lse) continue;
          float tops[SIDE] __attribute__((aligned(64))), totals[SIDE] __attribute__((aligned(64)));
          for (int half = 0; half < 2; half++) {
            _mm512_store_ps(tops + half * TILE, top[half]);
            _mm512_store_ps(totals + half * TILE, total[half]);
          }
          for (int64_t i = 0; i < count; i++)
            lse[(head + (m + i) % R) * N + start + (m + i) / R] = tops[i] * LN2 + logf(totals[i]);
        }
      }
    }
    tiles_off(&before);
  }
}

void tiled_attention_gradient(const uint16_t *q, int64_t q_head, int64_t q_row, const uint16_t *k, int64_t k_head,
                              int64_t k_row, const uint16_t *v, int64_t v_head, int64_t v_row, const uint16_t *out,
                              const uint16_t *grad, const float *lse, uint16_t *dq, uint16_t *dk, uint16_t *dv,
                              const int64_t *starts, const int64_t *lengths, const int64_t *firsts, const int64_t *order,
                              int64_t P, int64_t N, int64_t H, int64_t K, int64_t d, float scaling, int64_t window,
                              float *scratch, int64_t most, int threads) {
  const int64_t R = H / K, needed = tiled_attention_room(most, d, 1);
  const __m512 scale = _mm512_set1_ps(scaling * LOG2E), scales[2] = {_mm512_set1_ps(scaling), _mm512_set1_ps(scaling)};
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const tiled_room r = tiled_rooms(scratch + thread() * needed, most, d, 1);
    const int64_t deep = r.deep, width = deep * SIDE;
    struct config before;
    tiles_on(&before);
#pragma omp for schedule(dynamic, P < 4 * threads ? 1 : K)
    for (int64_t item = 0; item < P * K; item++) {
      const int64_t p = order[item / K], kv = item % K, head = kv * R, shared = lengths[p], more = kv + 1 < K;
      for (int64_t row = firsts[p] - 1; row < firsts[p + 1]; row++) {
        const int64_t s = row < firsts[p] ? p : row, first = s == p ? 0 : panels(shared), start = starts[s];
        const uint16_t *of_query = q + head * q_head + start * q_row, *of_out = out + (start * H + head) * d;
        const uint16_t *of_grad = grad + (start * H + head) * d;
        for (int64_t t = 0; t < lengths[s]; t += SIDE) {
          const int64_t count = lengths[s] - t, place = (first + t / SIDE) * deep * PANEL;
          laid_out(k + kv * k_head + (start + t) * k_row, k_row, count, d, more * k_head, r.keys + place);
          laid_out(v + kv * v_head + (start + t) * v_row, v_row, count, d, more * v_head, r.values + place);
          for (int64_t e = 0; e < deep; e++) to_left_turned(r.keys + place + e * PANEL, r.keys_turned + place + e * PANEL);
          memset(r.of_keys + place, 0, sizeof(float) * (size_t)(deep * PANEL));
          memset(r.of_values + place, 0, sizeof(float) * (size_t)(deep * PANEL));
        }
        const int64_t queries = lengths[s] * R, parts = (panels(queries) + r.subs - 1) / r.subs;
        const int64_t some = parts ? (panels(queries) + parts - 1) / parts * SIDE : 0;
        for (int64_t m = 0; m < queries; m += some) {
          sight see[SUBS];
          const int64_t subs = panels(smaller(some, queries - m));
          for (int64_t i = 0; i < subs; i++) {
            const int64_t at = m + i * SIDE, count = smaller(SIDE, queries - at), place = i * deep * PANEL;
            see[i] = sight_of(shared, window, s == p ? 0 : shared, at, count, R);
            queries_laid_out(of_query, q_head, q_row, R, at, count, d, more * R * q_head, r.rows);
            for (int64_t e = 0; e < deep; e++) {
              to_right(r.rows + e * PANEL, r.query + place + e * PANEL);
              to_right_turned(r.rows + e * PANEL, r.query_turned + place + e * PANEL);
            }
            queries_laid_out(of_grad, d, H * d, R, at, count, d, more * R * d, r.rows);
            for (int64_t e = 0; e < deep; e++) {
              to_right(r.rows + e * PANEL, r.grad + place + e * PANEL);
              to_right_turned(r.rows + e * PANEL, r.grad_turned + place + e * PANEL);
            }
            int64_t token = at / R, h = at % R;
            for (int64_t j = 0; j < SIDE; j++) {
              const int64_t from = (token * H + h) * d;
              r.lse[i * SIDE + j] = j < count ? lse[(head + h) * N + start + token] * LOG2E : 0;
              r.mean[i * SIDE + j] = j < count ? product_bfloat16(of_grad + from, of_out + from, d) : 0;
              if (more && j < count) ask_bfloat16(of_out + from + R * d, d);
              if (++h == R) h = 0, token++;
            }
          }
          MEMORY(r.query);
          const int64_t from = from_panel(see), to = to_panel(see + subs - 1);
          for (int64_t c = from; c < to; c++) {
            int64_t low = 0, high = subs; /* panels of queries that look at this one */
            while (to_panel(see + low) <= c) low++;
            while (from_panel(see + high - 1) > c) high--;
            for (int64_t i = low; i < high; i++) {
              multiply_panels(r.keys + c * deep * PANEL, 1, r.query + i * deep * PANEL, 1, deep, r.scores, SIDE, 0);
              multiply_panels(r.values + c * deep * PANEL, 1, r.grad + i * deep * PANEL, 1, deep, r.of_weights, SIDE, 0);
              MEMORY(r.scores);
              uint16_t *weights = r.weights + i * PANEL, *slopes = r.slopes + i * PANEL;
              const float *less = r.lse + i * SIDE, *mean = r.mean + i * SIDE;
              if (sees_all(see + i, c))
                weighted_again(see + i, r.scores, r.of_weights, 0, SIDE, 1, scale, less, mean, weights, slopes);
              else
                weighted_again(see + i, r.scores, r.of_weights, position_of(shared, c), columns_of(see + i, c), 0, scale,
                               less, mean, weights, slopes);
              to_right_turned(slopes, r.slopes_turned + ((c - from) * r.subs + i) * PANEL);
              MEMORY(r.weights);
            }
            for (int64_t e = 0; e < deep; e++) {
              float *of_values = r.of_values + c * deep * PANEL + e * SIDE;
              float *of_keys = r.of_keys + c * deep * PANEL + e * SIDE;
              multiply_panels(r.weights + low * PANEL, 1, r.grad_turned + (low * deep + e) * PANEL, deep, high - low, of_values, width, 1);
              multiply_panels(r.slopes + low * PANEL, 1, r.query_turned + (low * deep + e) * PANEL, deep, high - low, of_keys, width, 1);
            }
          }
          for (int64_t i = 0; i < subs; i++) {
            const int64_t at = m + i * SIDE, count = smaller(SIDE, queries - at);
            const int64_t low = from_panel(see + i), high = to_panel(see + i);
            for (int64_t e = 0; e < deep; e++) {
              multiply_panels(r.keys_turned + (low * deep + e) * PANEL, deep,
                          r.slopes_turned + ((low - from) * r.subs + i) * PANEL, r.subs, high - low, r.sums, SIDE, 0);
              MEMORY(r.sums);
              handed_out(r.sums, scales, R, at, count, d - e * SIDE, dq + (start * H + head) * d + e * SIDE, d, H * d);
            }
          }
        }
        if (s == p) continue;
        const float *of_keys = r.of_keys + first * deep * PANEL, *of_values = r.of_values + first * deep * PANEL;
        rounded_rows(of_keys, width, lengths[s], d, scaling, dk + (start * K + kv) * d, K * d);
        rounded_rows(of_values, width, lengths[s], d, 1.0f, dv + (start * K + kv) * d, K * d);
      }
      rounded_rows(r.of_keys, width, shared, d, scaling, dk + (starts[p] * K + kv) * d, K * d);
      rounded_rows(r.of_values, width, shared, d, 1.0f, dv + (starts[p] * K + kv) * d, K * d);
    }
    tiles_off(&before);
  }
}
