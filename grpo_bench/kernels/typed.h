/* Included once per type of element: T, LOAD to float, STORE from float, PAIR to two vectors of floats,
 * PLACE of an element in that order, NAME for the symbols. */

/* scores[j] = key_j . q for keys of d elements each, one behind the other; four at a time hide each other's latency.
 * q is in the order of PLACE. Inlined where d is a constant: then it stays in registers. */
static inline __attribute__((always_inline)) void NAME(dots)(const T *keys, int64_t count, int64_t d, const float *q,
                                                             float *scores) {
  const int64_t whole = d / BOTH * BOTH;
  int64_t j = 0;
  for (; j + 4 <= count; j += 4) {
    const T *k = keys + j * d;
    wide sums[4] = {{0}, {0}, {0}, {0}};
    for (int64_t i = 0; i < whole; i += BOTH) {
      const wide x = load(q + i), y = load(q + i + LANES);
      for (int n = 0; n < 4; n++) {
        const pair at = PAIR(k + n * d + i);
        sums[n] += at.a * x;
        sums[n] += at.b * y;
      }
    }
    for (int n = 0; n < 4; n++) scores[j + n] = across(sums[n]);
    for (int64_t i = whole; i < d; i++)
      for (int n = 0; n < 4; n++) scores[j + n] += LOAD(k[n * d + i]) * q[i];
  }
  for (; j < count; j++) {
    wide sum = {0};
    for (int64_t i = 0; i < whole; i += BOTH) {
      const pair at = PAIR(keys + j * d + i);
      sum += at.a * load(q + i);
      sum += at.b * load(q + i + LANES);
    }
    scores[j] = across(sum);
    for (int64_t i = whole; i < d; i++) scores[j] += LOAD(keys[j * d + i]) * q[i];
  }
}

/* sum += sum_j weights[j] value_j, in the order of PLACE */
static inline __attribute__((always_inline)) void NAME(weighted)(const T *values, int64_t count, int64_t d,
                                                                 const float *weights, float *sum) {
  const int64_t whole = d / BOTH * BOTH;
  for (int64_t i = 0; i < whole; i += BOTH) {
    wide a = load(sum + i), b = load(sum + i + LANES), c = {0}, e = {0};
    int64_t j = 0;
    for (; j + 2 <= count; j += 2) {
      const pair one = PAIR(values + j * d + i), two = PAIR(values + (j + 1) * d + i);
      a += weights[j] * one.a;
      b += weights[j] * one.b;
      c += weights[j + 1] * two.a;
      e += weights[j + 1] * two.b;
    }
    if (j < count) {
      const pair one = PAIR(values + j * d + i);
      a += weights[j] * one.a;
      b += weights[j] * one.b;
    }
    a += c;
    b += e;
    memcpy(sum + i, &a, sizeof a);
    memcpy(sum + i + LANES, &b, sizeof b);
  }
  for (int64_t i = whole; i < d; i++)
    for (int64_t j = 0; j < count; j++) sum[i] += weights[j] * LOAD(values[j * d + i]);
}

/* One query over a prompt's and a row's own keys and values; scores is room for all of them. */
static inline __attribute__((always_inline)) void NAME(look)(const T *raw, const T *prompt_k, const T *prompt_v,
                                                             int64_t prompt, const T *own_k, const T *own_v, int64_t own,
                                                             int64_t d, float scaling, float softcap, float *scores,
                                                             T *restrict out) {
  float query[d], sum[d];
  for (int64_t i = 0; i < d; i++) query[PLACE(i, d)] = LOAD(raw[i]) * scaling, sum[i] = 0;
  NAME(dots)(prompt_k, prompt, d, query, scores);
  NAME(dots)(own_k, own, d, query, scores + prompt);
  const int64_t all = prompt + own;
  if (softcap > 0)
    for (int64_t j = 0; j < all; j++) scores[j] = softcap * tanhf(scores[j] / softcap);
  float top = -INFINITY, total = 0;
#pragma omp simd reduction(max : top)
  for (int64_t j = 0; j < all; j++) top = scores[j] > top ? scores[j] : top;
#pragma omp simd reduction(+ : total)
  for (int64_t j = 0; j < all; j++) {
    scores[j] = exponential(scores[j] - top);
    total += scores[j];
  }
  NAME(weighted)(prompt_v, prompt, d, scores, sum);
  NAME(weighted)(own_v, own, d, scores + prompt, sum);
  for (int64_t i = 0; i < d; i++) out[i] = STORE(sum[PLACE(i, d)] / total);
}

/* One new token of each of N rows. Queries (H,N,d), new keys and values (K,N,d), by strides, last dimension dense; the
 * new keys and values are written to own_* (rows,K,length,d) at counts[n] - 1; prompts (P,K,width,d), row n's being
 * places[n] with sizes[n] tokens. window 0: all of the past; softcap 0: none. out (N,H,d), dense. scratch: room for the
 * scores of the longest row, ``most`` of them, for each thread. */
void NAME(decode_attention)(const T *q, int64_t q_head, int64_t q_row, const T *k, int64_t k_head, int64_t k_row,
                            const T *v, int64_t v_head, int64_t v_row, T *own_k, T *own_v, int64_t length,
                            const T *prompt_k, const T *prompt_v, int64_t width, const int64_t *counts,
                            const int64_t *sizes, const int64_t *places, T *out, int64_t N, int64_t H, int64_t K,
                            int64_t d, float scaling, int64_t window, float softcap, float *scratch, int64_t most,
                            int threads) {
  const int64_t R = H / K;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    float *scores = scratch + thread() * most;
#pragma omp for schedule(static)
    for (int64_t item = 0; item < N * K; item++) {
      const int64_t n = item / K, kv = item % K;
      const int64_t prompt = sizes[n], own = counts[n], all = prompt + own;
      T *keys = own_k + (n * K + kv) * length * d, *values = own_v + (n * K + kv) * length * d;
      memcpy(keys + (own - 1) * d, k + kv * k_head + n * k_row, d * sizeof(T));
      memcpy(values + (own - 1) * d, v + kv * v_head + n * v_row, d * sizeof(T));
      const T *shared_k = prompt_k + (places[n] * K + kv) * width * d;
      const T *shared_v = prompt_v + (places[n] * K + kv) * width * d;
      if (item + 1 < N * K) { /* short runs far apart: the processor does not foresee them, and each line is waited for */
        const int64_t next = (item + 1) / K, bytes = counts[next] * d * (int64_t)sizeof(T);
        const char *k1 = (const char *)(own_k + (item + 1) * length * d);
        const char *v1 = (const char *)(own_v + (item + 1) * length * d);
        for (int64_t b = 0; b < bytes; b += 64) {
          __builtin_prefetch(k1 + b);
          __builtin_prefetch(v1 + b);
        }
      }
      const int64_t first = window > 0 && all > window ? all - window : 0; /* the new token sees from here */
      const int64_t from = first < prompt ? first : prompt, own_from = first > prompt ? first - prompt : 0;
      for (int64_t r = 0; r < R; r++) {
        const int64_t head = kv * R + r;
        const T *query = q + head * q_head + n * q_row;
        T *result = out + (n * H + head) * d;
#define LOOK(size)                                                                                                     \
  NAME(look)(query, shared_k + from * d, shared_v + from * d, prompt - from, keys + own_from * d,                      \
             values + own_from * d, own - own_from, size, scaling, softcap, scores, result)
        if (d == 64) LOOK(64);
        else if (d == 32) LOOK(32);
        else if (d == 128) LOOK(128);
        else LOOK(d);
#undef LOOK
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
