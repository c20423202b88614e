/* The kernels that compiled code calls, as decoder_layer.c does: included there and where they are, so that
 * a compiler compares. */
#pragma once
#include <stdint.h>

#define SIGNATURES(T, name)                                                                                            \
  void normed_float32_##name(const float *x, const T *plus, float *both, const float *weight, T *out, int64_t rows,    \
                             int64_t width, float eps, float shift, int threads);                                      \
  void norm_gradient_float32_##name(const float *x, const T *more, const float *weight, const T *grad,                 \
                                    const float *plus, float *of_x, T *low, T *made, float *of_weight, int64_t rows,   \
                                    int64_t width, float eps, float shift, int64_t some, int threads);                 \
  void summed_float32_##name(const float *x, const T *plus, float *out, int64_t count, int threads);                   \
  void rotate_##name(const T *x, int64_t x_head, int64_t x_row, const float *cosines, const float *sines, T *out,      \
                     int64_t out_head, int64_t out_row, int64_t heads, int64_t rows, int64_t d, int back,              \
                     int threads);                                                                                     \
  void gate_##name(const T *gate, const T *up, T *out, int64_t rows, int64_t width, int64_t apart, int threads);       \
  void gate_gradient_##name(const T *gate, const T *up, const T *grad, T *of_gate, T *of_up, T *product, int64_t rows, \
                            int64_t width, int64_t apart, int threads);                                                \
  void packed_attention_##name(const T *q, int64_t q_head, int64_t q_row, const T *k, int64_t k_head, int64_t k_row,   \
                               const T *v, int64_t v_head, int64_t v_row, T *out, float *lse, const int64_t *starts,   \
                               const int64_t *lengths, const int64_t *firsts, const int64_t *order, int64_t P,         \
                               int64_t N, int64_t H, int64_t K, int64_t d, float scaling, int64_t window,              \
                               float *scratch, int64_t most, int threads);                                             \
  void packed_attention_gradient_##name(const T *q, int64_t q_head, int64_t q_row, const T *k, int64_t k_head,         \
                                        int64_t k_row, const T *v, int64_t v_head, int64_t v_row, const T *out,        \
                                        const T *grad, const float *lse, T *dq, T *dk, T *dv, const int64_t *starts,   \
                                        const int64_t *lengths, const int64_t *firsts, const int64_t *order,           \
                                        int64_t P, int64_t N, int64_t H, int64_t K, int64_t d, float scaling,          \
                                        int64_t window, float *scratch, int64_t most, int threads);
SIGNATURES(float, float32)
SIGNATURES(uint16_t, bfloat16)
#undef SIGNATURES

int64_t attention_room(int64_t most, int64_t heads, int64_t d, int back);
int64_t tiled_attention_room(int64_t most, int64_t d, int back);
void tiled_attention(const uint16_t *q, int64_t q_head, int64_t q_row, const uint16_t *k, int64_t k_head,
                     int64_t k_row, const uint16_t *v, int64_t v_head, int64_t v_row, uint16_t *out, float *lse,
                     const int64_t *starts, const int64_t *lengths, const int64_t *firsts, const int64_t *order,
                     int64_t P, int64_t N, int64_t H, int64_t K, int64_t d, float scaling, int64_t window,
                     float *scratch, int64_t most, int threads);
void tiled_attention_gradient(const uint16_t *q, int64_t q_head, int64_t q_row, const uint16_t *k, int64_t k_head,
                              int64_t k_row, const uint16_t *v, int64_t v_head, int64_t v_row, const uint16_t *out,
                              const uint16_t *grad, const float *lse, uint16_t *dq, uint16_t *dk, uint16_t *dv,
                              const int64_t *starts, const int64_t *lengths, const int64_t *firsts,
                              const int64_t *order, int64_t P, int64_t N, int64_t H, int64_t K, int64_t d,
                              float scaling, int64_t window, float *scratch, int64_t most, int threads);

int64_t packed_size_float32(int64_t columns, int64_t depth);
void pack_float32_float32(const float *w, int64_t columns, int64_t depth, float *packed, int64_t tiles, int64_t first,
                          int64_t step, int threads);
void pack_turned_float32(const float *w, int64_t columns, int64_t depth, float *packed, int threads);
void multiply_float32(const float *x, const float *packed, const float *bias, float *out, const float *plus, float *sum,
                      int64_t rows, int64_t columns, int64_t depth, int gated, int threads);
int64_t weight_gradient_room(int64_t rows, int64_t columns, int64_t depth, int threads);
void weight_gradient(const uint16_t *dy, int64_t stride, const uint16_t *x, float *dw, uint16_t *scratch, int64_t rows,
                     int64_t columns, int64_t depth, int made, int threads);
int64_t weight_gradient_room_float32(int64_t columns, int64_t depth, int threads);
void weight_gradient_float32(const float *dy, int64_t stride, const float *x, float *dw, float *scratch, int64_t rows,
                             int64_t columns, int64_t depth, int threads);
