/* Included once per type of element: T, LOAD to float, STORE from float, PAIR to two vectors of floats,
 * PLACE of an element in that order, MORE of a dot product, NAME for the symbols. */

/* scores[r][j] = key_j . q_r * scaling, for keys of d elements each, one behind the other, and queries ``apart`` from each
 * other, scores ``most``. Four keys at a time hide each other's latency and are summed together; each is read once for all
 * queries. Inlined where d and the number of queries are constants: then queries and sums stay in registers. */
static inline __attribute__((always_inline)) void NAME(dots)(const T *keys, int64_t count, int64_t d, const T *q,
                                                             int64_t apart, int queries, float scaling, float *scores,
                                                             int64_t most, ahead *to_come) {
  const int64_t whole = d / BOTH * BOTH;
  int64_t j = 0;
  for (; j + 4 <= count; j += 4) {
    const T *k = keys + j * d;
    wide sums[QUERIES][4] = {0};
    fetch(to_come);
    for (int64_t i = 0; i < whole; i += BOTH)
      for (int n = 0; n < 4; n++)
        for (int r = 0; r < queries; r++) sums[r][n] = MORE(sums[r][n], k + n * d + i, q + r * apart + i);
    for (int r = 0; r < queries; r++) {
      wide4 found = across_4(sums[r]);
      for (int64_t i = whole; i < d; i++)
        for (int n = 0; n < 4; n++) found[n] += LOAD(k[n * d + i]) * LOAD(q[r * apart + i]);
      found *= scaling;
      memcpy(scores + r * most + j, &found, sizeof found);
    }
  }
  for (; j < count; j++)
    for (int r = 0; r < queries; r++) {
      wide sums[4] = {0};
      for (int64_t i = 0; i < whole; i += BOTH) sums[0] = MORE(sums[0], keys + j * d + i, q + r * apart + i);
      float found = across_4(sums)[0];
      for (int64_t i = whole; i < d; i++) found += LOAD(keys[j * d + i]) * LOAD(q[r * apart + i]);
      scores[r * most + j] = found * scaling;
    }
}

/* sum[r] += sum_j weights[r][j] value_j, in the order of PLACE; sums are d apart, weights ``most`` */
static inline __attribute__((always_inline)) void NAME(weighted)(const T *values, int64_t count, int64_t d,
                                                                 const float *weights, int64_t most, int queries,
                                                                 float *sum) {
  const int64_t whole = d / BOTH * BOTH;
  for (int64_t i = 0; i < whole; i += BOTH) {
    pair here[QUERIES], next[QUERIES] = {0};
    for (int r = 0; r < queries; r++) here[r] = (pair){load(sum + r * d + i), load(sum + r * d + i + LANES)};
    int64_t j = 0;
    for (; j + 2 <= count; j += 2) {
      const pair one = PAIR(values + j * d + i), two = PAIR(values + (j + 1) * d + i);
      for (int r = 0; r < queries; r++) {
        const float *w = weights + r * most + j;
        here[r].a += w[0] * one.a;
        here[r].b += w[0] * one.b;
        next[r].a += w[1] * two.a;
        next[r].b += w[1] * two.b;
      }
    }
    if (j < count) {
      const pair one = PAIR(values + j * d + i);
      for (int r = 0; r < queries; r++) {
        here[r].a += weights[r * most + j] * one.a;
        here[r].b += weights[r * most + j] * one.b;
      }
    }
    for (int r = 0; r < queries; r++) {
      here[r].a += next[r].a;
      here[r].b += next[r].b;
      memcpy(sum + r * d + i, &here[r], sizeof here[r]);
    }
  }
  for (int r = 0; r < queries; r++)
    for (int64_t i = whole; i < d; i++)
      for (int64_t j = 0; j < count; j++) sum[r * d + i] += weights[r * most + j] * LOAD(values[j * d + i]);
}

/* Scores become weights, not yet divided by their sum, which is returned. */
static float NAME(soft)(float *scores, int64_t count, float softcap) {
  if (softcap > 0)
    for (int64_t j = 0; j < count; j++) scores[j] = softcap * tanhf(scores[j] / softcap);
  float top = -INFINITY, total = 0;
#pragma omp simd reduction(max : top)
  for (int64_t j = 0; j < count; j++) top = scores[j] > top ? scores[j] : top;
#pragma omp simd reduction(+ : total)
  for (int64_t j = 0; j < count; j++) {
    scores[j] = exponential(scores[j] - top);
    total += scores[j];
  }
  return total;
}

/* Up to QUERIES queries over a prompt's and a row's own keys and values. scores: (queries, most). out: d apart. */
static inline __attribute__((always_inline)) void NAME(look)(const T *q, int64_t apart, int queries, const T *prompt_k,
                                                             const T *prompt_v, int64_t prompt, const T *own_k,
                                                             const T *own_v, int64_t own, int64_t d, float scaling,
                                                             float softcap, float *scores, int64_t most, T *restrict out,
                                                             ahead *to_come) {
  float sum[queries * d], totals[QUERIES];
  const T *keys[2] = {prompt_k, own_k}, *values[2] = {prompt_v, own_v};
  const int64_t counts[2] = {prompt, own}, from[2] = {0, prompt};
#pragma GCC unroll 1 /* twice the code took twice as long to compile */
  for (int i = 0; i < 2; i++)
    NAME(dots)(keys[i], counts[i], d, q, apart, queries, scaling, scores + from[i], most, to_come);
  for (int r = 0; r < queries; r++) totals[r] = NAME(soft)(scores + r * most, prompt + own, softcap);
  for (int64_t i = 0; i < queries * d; i++) sum[i] = 0;
#pragma GCC unroll 1
  for (int i = 0; i < 2; i++) NAME(weighted)(values[i], counts[i], d, scores + from[i], most, queries, sum);
  for (int r = 0; r < queries; r++)
    for (int64_t i = 0; i < d; i++) out[r * d + i] = STORE(sum[r * d + PLACE(i, d)] / totals[r]);
}

/* One new token of each of N rows. Queries (H,N,d), new keys and values (K,N,d), by strides, last dimension dense; the
 * new keys and values are written to own_* (rows,K,length,d) at counts[n] - 1; prompts (P,K,width,d), row n's being
 * places[n] with sizes[n] tokens. window 0: all of the past; softcap 0: none. out (N,H,d), dense. scratch: room for
 * the scores of QUERIES of the longest row, ``most`` of them each, for each thread. */
void NAME(decode_attention)(const T *q, int64_t q_head, int64_t q_row, const T *k, int64_t k_head, int64_t k_row,
                            const T *v, int64_t v_head, int64_t v_row, T *own_k, T *own_v, int64_t length,
                            const T *prompt_k, const T *prompt_v, int64_t width, const int64_t *counts,
                            const int64_t *sizes, const int64_t *places, T *out, int64_t N, int64_t H, int64_t K,
                            int64_t d, float scaling, int64_t window, float softcap, float *scratch, int64_t most,
                            int threads) {
  const int64_t R = H / K;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    float *scores = scratch + thread() * QUERIES * most;
#pragma omp for schedule(static)
    for (int64_t item = 0; item < N * K; item++) {
      const int64_t n = item % N, kv = item / N; /* rows of a prompt mostly follow each other: its keys stay
                                                         * in the processor's cache */
      const int64_t prompt = sizes[n], own = counts[n], all = prompt + own;
      T *keys = own_k + (n * K + kv) * length * d, *values = own_v + (n * K + kv) * length * d;
      memcpy(keys + (own - 1) * d, k + kv * k_head + n * k_row, d * sizeof(T));
      memcpy(values + (own - 1) * d, v + kv * v_head + n * v_row, d * sizeof(T));
      const T *shared_k = prompt_k + (places[n] * K + kv) * width * d;
      const T *shared_v = prompt_v + (places[n] * K + kv) * width * d;
      /* What is seen next: short runs far apart, which the processor does not foresee. */
      const int64_t next = item + 1 < N * K ? item + 1 : item, row = next % N, past = sizes[row] + counts[row] - window;
      const int64_t unseen = window > 0 && past > sizes[row] ? past - sizes[row] : 0;
      const int64_t start = ((row * K + next / N) * length + unseen) * d, there = (places[row] * K + next / N) * width * d;
      const int64_t wide = d * (int64_t)sizeof(T), lines = ((counts[row] - unseen) * wide + 63) / 64;
      const int alike = there == (places[n] * K + kv) * width * d; /* and a window leaves little of prompts */
      const int64_t other = alike || window > 0 ? 0 : (sizes[row] * wide + 63) / 64;
      ahead to_come = {{(const char *)(own_k + start), (const char *)(own_v + start), (const char *)(prompt_k + there),
                        (const char *)(prompt_v + there)},
                       {lines, lines, other, other}, 0, 0};
      const int64_t some = 2 * (lines + other) / ((prompt / 4 + own / 4 + 1) * ((R + QUERIES - 1) / QUERIES)) + 1;
      to_come.some = some < MOST_LINES ? some : MOST_LINES;
      const int64_t first = window > 0 && all > window ? all - window : 0; /* the new token sees from here */
      const int64_t from = first < prompt ? first : prompt, own_from = first > prompt ? first - prompt : 0;
      for (int64_t r = 0; r < R; r += QUERIES) {
        const int64_t head = kv * R + r;
        const int queries = R - r < QUERIES ? (int)(R - r) : QUERIES;
        const T *query = q + head * q_head + n * q_row;
        T *result = out + (n * H + head) * d;
#define LOOK(count, size)                                                                                              \
  NAME(look)(query, q_head, count, shared_k + from * d, shared_v + from * d, prompt - from, keys + own_from * d,       \
             values + own_from * d, own - own_from, size, scaling, softcap, scores, most, result,         \
       &to_come)
#define LOOK_AT(size) /* QUERIES of them */                                                                            \
  if (queries == 1) LOOK(1, size);                                                                                     \
  else if (queries == 2) LOOK(2, size);                                                                                \
  else if (queries == 3) LOOK(3, size);                                                                                \
  else LOOK(4, size)
        if (d == 64) {
          LOOK_AT(64);
        } else if (d == 32) {
          LOOK_AT(32);
        } else {
          LOOK_AT(d);
        }
#undef LOOK
#undef LOOK_AT
      }
    }
  }
}

/* out = x / sqrt(mean(x^2) + eps) * (shift + weight), row by row */
void NAME(rms_norm)(const T *x, const T *weight, T *out, int64_t rows, int64_t width, float eps, float shift,
                    int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t row = 0; row < rows; row++) {
    const T *in = x + row * width;
    T *to = out + row * width;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; i++) sum += LOAD(in[i]) * LOAD(in[i]);
    const float scale = 1.0f / sqrtf(sum / (float)width + eps);
#pragma omp simd
    for (int64_t i = 0; i < width; i++) to[i] = STORE(LOAD(in[i]) * scale * (shift + LOAD(weight[i])));
  }
}

CALLED(NAME(decode_attention), PTR(0), INT(1), INT(2), PTR(3), INT(4), INT(5), PTR(6), INT(7), INT(8), PTR(9), PTR(10),
       INT(11), PTR(12), PTR(13), INT(14), PTR(15), PTR(16), PTR(17), PTR(18), INT(19), INT(20), INT(21), INT(22),
       REAL(23), INT(24), REAL(25), PTR(26), INT(27), (int)INT(28))
CALLED(NAME(rms_norm), PTR(0), PTR(1), PTR(2), INT(3), INT(4), REAL(5), REAL(6), (int)INT(7))
