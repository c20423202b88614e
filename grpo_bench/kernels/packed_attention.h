/* Included once per type of element, as typed.h is: attention of packed rows in training, forward and backward, without
 * padding and without scores that are kept. Products and sums are in fp32, results rounded once.
 *
 * N tokens: P prompts and the rows that continue them. Sequence s has lengths[s] tokens from starts[s] on: the prompts are
 * the first P of them, those that continue prompt p are firsts[p] to firsts[p + 1] - 1. A prompt with its rows and one head
 * of the K of keys is one thread's: gradients of a prompt's keys and values are summed in one order. ``order``: the prompts
 * in the order in which they are taken. Queries (H,N,d), keys and values (K,N,d) by strides, last dimension dense. */

/* count rows of d elements, ``stride`` apart, times scale -> fp32, ``apart``, zeros behind them up to whole vectors */
static inline void NAME(widened)(const T *x, int64_t stride, int64_t count, int64_t d, float scale, float *to,
                                 int64_t apart) {
  for (int64_t n = 0; n < count; n++, x += stride, to += apart) {
#pragma omp simd
    for (int64_t i = 0; i < d; i++) to[i] = LOAD(x[i]) * scale;
    for (int64_t i = d; i < up(d, LANES); i++) to[i] = 0;
  }
}

static inline void NAME(narrowed)(const float *x, int64_t wide, int64_t count, int64_t d, float scale, T *to,
                                  int64_t stride) {
  for (int64_t n = 0; n < count; n++, x += wide, to += stride) {
#pragma omp simd
    for (int64_t i = 0; i < d; i++) to[i] = STORE(x[i] * scale);
  }
}

static inline float NAME(product)(const T *x, const T *y, int64_t d) {
  wide sums = {0};
  int64_t i = 0;
  for (; i + BOTH <= d; i += BOTH) sums = MORE(sums, x + i, y + i);
  float sum = across(sums);
  for (; i < d; i++) sum += LOAD(x[i]) * LOAD(y[i]);
  return sum;
}

/* Asks for what the next head of keys looks at: of one head a token has a few lines, which the processor does not foresee. */
static inline void NAME(ask)(const T *x, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / (int64_t)sizeof(T)) __builtin_prefetch(x + i);
}

/* A sequence's keys and values, to where ``column`` is that of its first. */
static void NAME(keep)(room r, int64_t column, int64_t count, int64_t d, const T *k, int64_t k_row, const T *v,
                       int64_t v_row) {
  const int64_t wide = up(d, LANES);
  NAME(widened)(k, k_row, count, d, 1.0f, r.keys + column * wide, wide);
  NAME(widened)(v, v_row, count, d, 1.0f, r.values + column * wide, wide);
  turned(r.keys + column * wide, count, wide, r.keys_turned + column, r.across);
  if (r.values_turned) turned(r.values + column * wide, count, wide, r.values_turned + column, r.across);
}

/* Queries of a block, scaled, and their scores. ``q``: the first head's at the first token. */
static void NAME(look_at)(room r, block b, int64_t d, const T *q, int64_t q_head, int64_t q_row, float scaling) {
  for (int64_t h = 0; h < b.heads; h++)
    NAME(widened)(q + h * q_head, q_row, b.tokens, d, scaling, r.query + h * b.wide, b.heads * b.wide);
  scored(b, r.query, r.keys_turned, r.scores);
}

/* out (N,H,d), dense; lse (H,N), logarithms of the sums of exponentials of scores, for the backward pass, or NULL. */
void NAME(packed_attention)(const T *q, int64_t q_head, int64_t q_row, const T *k, int64_t k_head, int64_t k_row,
                            const T *v, int64_t v_head, int64_t v_row, T *out, float *lse, const int64_t *starts,
                            const int64_t *lengths, const int64_t *firsts, const int64_t *order, int64_t P, int64_t N,
                            int64_t H, int64_t K, int64_t d, float scaling, int64_t window, float *scratch, int64_t most,
                            int threads) {
  const int64_t R = H / K, wide = up(d, LANES), needed = attention_room(most, R, d, 0);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const room r = rooms(scratch + thread() * needed, most, R, d, 0);
    span spans[up(r.tokens * R, TALL) / TALL];
#pragma omp for schedule(dynamic, P < 4 * threads ? 1 : K)
    for (int64_t item = 0; item < P * K; item++) {
      const int64_t p = order[item / K], kv = item % K, head = kv * R, more = kv + 1 < K;
      for (int64_t row = firsts[p] - 1; row < firsts[p + 1]; row++) {
        const int64_t s = row < firsts[p] ? p : row, place = s == p ? 0 : lengths[p], start = starts[s];
        NAME(keep)(r, place, lengths[s], d, k + kv * k_head + start * k_row, k_row, v + kv * v_head + start * v_row,
                   v_row);
        for (int64_t t = 0; t < lengths[s]; t += r.tokens) {
          const int64_t n = start + t;
          const block b = {place + t, smaller(r.tokens, lengths[s] - t), R, window, r.across, wide, spans};
          measure(b);
          NAME(look_at)(r, b, d, q + head * q_head + n * q_row, q_head, q_row, scaling);
          float totals[queries(b)];
          for (int64_t i = 0; i < b.tokens; i++) {
            for (int64_t h = 0; h < R; h++) {
              const int64_t m = i * R + h;
              float top;
              totals[m] = weighed(b, r.scores + m * r.across, b.spans[m / TALL], b.column + i, &top);
              if (lse) lse[(head + h) * N + n + i] = top + logf(totals[m]);
              if (more) NAME(ask)(q + (head + R + h) * q_head + (n + i) * q_row, d);
            }
            if (more) NAME(ask)(k + (kv + 1) * k_head + (n + i) * k_row, d);
            if (more) NAME(ask)(v + (kv + 1) * v_head + (n + i) * v_row, d);
          }
          summed(b, r.scores, r.values, r.out);
          for (int64_t i = 0; i < b.tokens; i++)
            for (int64_t h = 0; h < R; h++)
              NAME(narrowed)(r.out + (i * R + h) * wide, wide, 1, d, 1.0f / totals[i * R + h],
                             out + ((n + i) * H + head + h) * d, 0);
        }
      }
    }
  }
}

/* Of that. out and its gradient (N,H,d), dense; dq (N,H,d), dk and dv (N,K,d), dense. */
void NAME(packed_attention_gradient)(const T *q, int64_t q_head, int64_t q_row, const T *k, int64_t k_head,
                                     int64_t k_row, const T *v, int64_t v_head, int64_t v_row, const T *out,
                                     const T *grad, const float *lse, T *dq, T *dk, T *dv, const int64_t *starts,
                                     const int64_t *lengths, const int64_t *firsts, const int64_t *order, int64_t P,
                                     int64_t N, int64_t H, int64_t K, int64_t d, float scaling, int64_t window,
                                     float *scratch, int64_t most, int threads) {
  const int64_t R = H / K, wide = up(d, LANES), needed = attention_room(most, R, d, 1);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const room r = rooms(scratch + thread() * needed, most, R, d, 1);
    span spans[up(r.tokens * R, TALL) / TALL];
#pragma omp for schedule(dynamic, P < 4 * threads ? 1 : K)
    for (int64_t item = 0; item < P * K; item++) {
      const int64_t p = order[item / K], kv = item % K, head = kv * R, shared = lengths[p], more = kv + 1 < K;
      for (int64_t row = firsts[p] - 1; row < firsts[p + 1]; row++) {
        const int64_t s = row < firsts[p] ? p : row, place = s == p ? 0 : shared, start = starts[s];
        NAME(keep)(r, place, lengths[s], d, k + kv * k_head + start * k_row, k_row, v + kv * v_head + start * v_row,
                   v_row);
        const size_t fresh = (size_t)(up(lengths[s], TALL) + TALL) * (size_t)wide * sizeof(float);
        memset(r.of_keys + place * wide, 0, fresh);
        memset(r.of_values + place * wide, 0, fresh);
        for (int64_t t = 0; t < lengths[s]; t += r.tokens) {
          const int64_t n = start + t;
          const block b = {place + t, smaller(r.tokens, lengths[s] - t), R, window, r.across, wide, spans};
          measure(b);
          NAME(look_at)(r, b, d, q + head * q_head + n * q_row, q_head, q_row, scaling);
          for (int64_t i = 0; i < b.tokens; i++)
            NAME(widened)(grad + ((n + i) * H + head) * d, d, R, d, 1.0f, r.grad + i * R * wide, wide);
          scored(b, r.grad, r.values_turned, r.slopes);
          for (int64_t i = 0; i < b.tokens; i++) {
            for (int64_t h = 0; h < R; h++) {
              const int64_t m = i * R + h, at = ((n + i) * H + head + h) * d;
              weighed_again(b, r.scores + m * r.across, r.slopes + m * r.across, b.spans[m / TALL], b.column + i,
                            lse[(head + h) * N + n + i], NAME(product)(grad + at, out + at, d));
              if (more) NAME(ask)(q + (head + R + h) * q_head + (n + i) * q_row, d);
              if (more) NAME(ask)(out + at + R * d, d);
              if (more) NAME(ask)(grad + at + R * d, d);
            }
            if (more) NAME(ask)(k + (kv + 1) * k_head + (n + i) * k_row, d);
            if (more) NAME(ask)(v + (kv + 1) * v_head + (n + i) * v_row, d);
          }
          summed(b, r.slopes, r.keys, r.out);
          for (int64_t i = 0; i < b.tokens; i++)
            NAME(narrowed)(r.out + i * R * wide, wide, R, d, scaling, dq + ((n + i) * H + head) * d, d);
          gathered(b, r.scores, r.grad, r.of_values);
          gathered(b, r.slopes, r.query, r.of_keys);
        }
        if (s == p) continue;
        NAME(narrowed)(r.of_keys + place * wide, wide, lengths[s], d, 1.0f, dk + (start * K + kv) * d, K * d);
        NAME(narrowed)(r.of_values + place * wide, wide, lengths[s], d, 1.0f, dv + (start * K + kv) * d, K * d);
      }
      NAME(narrowed)(r.of_keys, wide, shared, d, 1.0f, dk + (starts[p] * K + kv) * d, K * d);
      NAME(narrowed)(r.of_values, wide, shared, d, 1.0f, dv + (starts[p] * K + kv) * d, K * d);
    }
  }
}
