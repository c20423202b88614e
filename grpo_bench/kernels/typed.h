/* Included once per type of element: T, LOAD to float, STORE from float, NAME for the symbols. */

/* scores[j] = key_j . q for keys of d elements each, one behind the other; four at a time hide each other's latency.
 * Inlined where d is a constant: then rows stay in registers. */
static inline __attribute__((always_inline)) void NAME(dots)(const T *restrict keys, int64_t count, int64_t d,
                                                             const float *restrict q, float *restrict scores) {
  int64_t j = 0;
  for (; j + 4 <= count; j += 4) {
    const T *k = keys + j * d;
    float a = 0, b = 0, c = 0, e = 0;
#pragma omp simd reduction(+ : a, b, c, e)
    for (int64_t i = 0; i < d; i++) {
      a += LOAD(k[i]) * q[i];
      b += LOAD(k[i + d]) * q[i];
      c += LOAD(k[i + 2 * d]) * q[i];
      e += LOAD(k[i + 3 * d]) * q[i];
    }
    scores[j] = a, scores[j + 1] = b, scores[j + 2] = c, scores[j + 3] = e;
  }
  for (; j < count; j++) {
    float a = 0;
#pragma omp simd reduction(+ : a)
    for (int64_t i = 0; i < d; i++) a += LOAD(keys[j * d + i]) * q[i];
    scores[j] = a;
  }
}

/* sum += sum_j weights[j] value_j */
static inline __attribute__((always_inline)) void NAME(weighted)(const T *restrict values, int64_t count, int64_t d,
                                                                 const float *restrict weights, float *restrict sum) {
  int64_t j = 0;
  for (; j + 4 <= count; j += 4) {
    const T *v = values + j * d;
    const float a = weights[j], b = weights[j + 1], c = weights[j + 2], e = weights[j + 3];
#pragma omp simd
    for (int64_t i = 0; i < d; i++)
      sum[i] += (a * LOAD(v[i]) + b * LOAD(v[i + d])) + (c * LOAD(v[i + 2 * d]) + e * LOAD(v[i + 3 * d]));
  }
  for (; j < count; j++) {
#pragma omp simd
    for (int64_t i = 0; i < d; i++) sum[i] += weights[j] * LOAD(values[j * d + i]);
  }
}

/* One query over a prompt's and a row's own keys and values; scores is room for all of them. */
static inline __attribute__((always_inline)) void NAME(look)(const T *raw, const T *prompt_k, const T *prompt_v,
                                                             int64_t prompt, const T *own_k, const T *own_v, int64_t own,
                                                             int64_t d, float scaling, float softcap, float *scores,
                                                             T *restrict out) {
  float query[d], sum[d];
  for (int64_t i = 0; i < d; i++) query[i] = LOAD(raw[i]) * scaling, sum[i] = 0;
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
  for (int64_t i = 0; i < d; i++) out[i] = STORE(sum[i] / total);
}

/* One new token of each of N rows. Queries (H,N,d), new keys and values (K,N,d), by strides, last dimension dense; the
 * new keys and values are written to own_* (rows,K,length,d) at counts[n] - 1; prompts (P,K,width,d), row n's being
 * places[n] with sizes[n] tokens. window 0: all of the past; softcap 0: none. out (N,H,d), dense. */
void NAME(decode_attention)(const T *q, int64_t q_head, int64_t q_row, const T *k, int64_t k_head, int64_t k_row,
                            const T *v, int64_t v_head, int64_t v_row, T *own_k, T *own_v, int64_t length,
                            const T *prompt_k, const T *prompt_v, int64_t width, const int64_t *counts,
                            const int64_t *sizes, const int64_t *places, T *out, int64_t N, int64_t H, int64_t K,
                            int64_t d, float scaling, int64_t window, float softcap, int threads) {
  const int64_t R = H / K;
  int64_t most = 0;
  for (int64_t n = 0; n < N; n++) most = sizes[n] + counts[n] > most ? sizes[n] + counts[n] : most;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    float *scores = room(most);
#pragma omp for schedule(static)
    for (int64_t item = 0; item < N * K; item++) {
      const int64_t n = item / K, kv = item % K;
      const int64_t prompt = sizes[n], own = counts[n], all = prompt + own;
      T *keys = own_k + (n * K + kv) * length * d, *values = own_v + (n * K + kv) * length * d;
      memcpy(keys + (own - 1) * d, k + kv * k_head + n * k_row, d * sizeof(T));
      memcpy(values + (own - 1) * d, v + kv * v_head + n * v_row, d * sizeof(T));
      const T *shared_k = prompt_k + (places[n] * K + kv) * width * d;
      const T *shared_v = prompt_v + (places[n] * K + kv) * width * d;
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
    free(scores);
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
