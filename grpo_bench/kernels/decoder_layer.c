/* A decoder layer in training (norm, attention, norm and gate, each added to what came in), forward and backward, by one call
 * each. Called one by one its kernels stand behind Python and dispatch, and those of two threads wait for one interpreter.
 * Products are torch's own, by its C interface (torch/csrc/inductor/aoti_torch/c/shim.h), but for the gradients of weights
 * in bfloat16, and in fp32 where torch's are slower than those of here. */
#include "signatures.h"
#include "vectors.h"
#ifdef TILED_ATTENTION
#include "avx512.h"
#endif

typedef void *tensor;

static struct {
  int32_t (*wrap)(void *, int64_t, const int64_t *, const int64_t *, int64_t, int32_t, int32_t, int32_t, tensor *);
  int32_t (*drop)(tensor);
  int32_t (*mm)(tensor, tensor, tensor);
  int32_t (*addmm)(tensor, tensor, tensor, tensor, double, double);
} torch;

/* torch's functions: a tensor of memory, away with it, and two products */
void use_torch(void *wrap, void *drop, void *mm, void *addmm) {
  torch.wrap = wrap, torch.drop = drop, torch.mm = mm, torch.addmm = addmm;
}

enum { FLOAT32 = 6, BFLOAT16 = 15 }; /* of c10::ScalarType */
enum { QKV, OUTPUT, GATES, DOWN, INPUTS, LAYERS = 7 };
static const int FIRST[INPUTS + 1] = {0, 3, 4, 6, LAYERS}; /* of the layers of each input: q k v, o, gate up, down */

struct layer {
  int64_t tokens, hidden, inner, heads, kv, width; /* N, h, m, H, K, d */
  int64_t window, prompts, most, tiled, own, threads, small, block; /* tiled: attention by tiles; own: products in fp32 too,
                                                                     * of weights with that many rows and columns;
                                                                     * block: rows of norms' sums */
  double eps[2], shifts[2], scaling;
  const int64_t *starts, *lengths, *firsts, *order;
  const float *cosines, *sines, *norms[2];
  const void *weights[LAYERS], *biases[LAYERS]; /* (m,k) and (m); in bfloat16 those of one input as one, INPUTS of them */
  const float *x;                               /* (N,h) */
  void *kept;                                   /* from the forward to the backward pass: see parts() */
  float *lse;                                   /* (H,N) */
  float *out;                                   /* (N,h): what is made, or its gradient by x */
  const float *grad;                            /* (N,h), by what was made */
  float *sums[2], *of_weights[LAYERS];          /* (blocks,h) of each norm; as ``weights`` */
  void *of_output;                              /* (N,h) for the gradient by what the output's layer made, or NULL */
  char *scratch;                                /* aligned to 64 bytes */
};

struct view {
  const void *at;
  int64_t rows, columns, by_row, by_column;
};

static struct view dense(const void *at, int64_t rows, int64_t columns) {
  return (struct view){at, rows, columns, columns, 1};
}

static struct view turned_view(struct view x) { return (struct view){x.at, x.columns, x.rows, x.by_column, x.by_row}; }

static int wrapped(struct view x, int type, tensor *to) {
  const int64_t sizes[2] = {x.rows, x.columns}, strides[2] = {x.by_row, x.by_column};
  return torch.wrap((void *)x.at, 2, sizes, strides, 0, type, 0, -1, to);
}

/* out = a b (+ bias, of the columns of out, unless it is NULL); not 0 where torch failed */
static int multiplied(int type, struct view out, struct view a, struct view b, const void *bias) {
  tensor made[4] = {0};
  const int64_t one = 1;
  int failed = wrapped(out, type, &made[0]) || wrapped(a, type, &made[1]) || wrapped(b, type, &made[2]);
  if (!failed && bias) failed = torch.wrap((void *)bias, 1, &out.columns, &one, 0, type, 0, -1, &made[3]);
  if (!failed)
    failed = bias ? torch.addmm(made[0], made[3], made[1], made[2], 1, 1) : torch.mm(made[0], made[1], made[2]);
  for (int i = 0; i < 4; i++)
    if (made[i]) torch.drop(made[i]);
  return failed;
}

static int threads_of(const struct layer *l, int64_t work) { return work < l->small ? 1 : (int)l->threads; }

/* How many outputs each linear layer has, and how many inputs. */
static int64_t outputs(const struct layer *l, int layer) {
  const int64_t sizes[LAYERS] = {l->heads * l->width, l->kv * l->width, l->kv * l->width, l->hidden,
                                 l->inner, l->inner, l->hidden};
  return sizes[layer];
}

static int64_t outputs_of(const struct layer *l, int input) { /* of all of an input's layers */
  int64_t sum = 0;
  for (int i = FIRST[input]; i < FIRST[input + 1]; i++) sum += outputs(l, i);
  return sum;
}

static int64_t depth(const struct layer *l, int input) {
  return input == OUTPUT ? l->heads * l->width : input == DOWN ? l->inner : l->hidden;
}

/* Scratch, one piece behind the other; with no place it only counts. */
struct room {
  char *place;
  int64_t taken, most;
};

static void *take(struct room *r, int64_t bytes) {
  void *at = r->place ? r->place + r->taken : 0;
  r->taken += up(bytes, 64);
  if (r->taken > r->most) r->most = r->taken;
  return at;
}

enum { ATTENTION_FLOATS = 1 << 28 }; /* of all threads' scratch: where each needs much, fewer work (attention.py) */

static int attention_threads(const struct layer *l, int64_t room) {
  const int64_t work = l->tokens * l->heads * l->width * l->most, share = ATTENTION_FLOATS / room;
  const int64_t items = smaller(l->prompts * l->kv, share > 1 ? share : 1);
  return (int)smaller(threads_of(l, work), items);
}

#ifdef __AVX512F__
/* Room for any of the layers' weights, packed */
static int64_t packed_room(const struct layer *l) {
  int64_t most = 0;
  for (int input = 0; input < INPUTS && l->own; input++)
    for (int i = FIRST[input]; i < FIRST[input + 1]; i++) {
      const int64_t count = outputs(l, i), deep = depth(l, input);
      const int64_t forward = packed_size_float32(count, deep), back = packed_size_float32(deep, count);
      most = forward > most ? forward : most, most = back > most ? back : most;
    }
  return most * (int64_t)sizeof(float);
}

static int is_own(const struct layer *l, int64_t columns, int64_t deep) {
  return l->own && columns >= l->own && deep >= l->own;
}

/* out = a W^T (+ bias), W (columns, deep); or, turned, a W, W (deep, columns): as products.py's linear and input_gradient */
static int own_product(const struct layer *l, void *out, const void *a, const void *w, int64_t columns, int64_t deep,
                       int is_turned, const void *bias, float *packed) {
  const int threads = threads_of(l, columns * deep);
  if (is_turned) pack_turned_float32(w, columns, deep, packed, threads);
  else pack_float32_float32(w, columns, deep, packed, up(columns, 32) / 16, 0, 1, threads);
  multiply_float32(a, packed, bias, out, 0, 0, l->tokens, columns, deep, 0, threads_of(l, l->tokens * columns * deep));
  return 0;
}

/* out = dy^T x, dy (N, columns) and x (N, deep); without a place for scratch it only counts */
static void own_gradient(const struct layer *l, float *out, const void *dy, const void *x, int64_t columns, int64_t deep,
                         struct room *room) {
  const int threads = threads_of(l, l->tokens * columns * deep);
  float *scratch = take(room, (int64_t)sizeof *scratch * weight_gradient_room_float32(columns, deep, threads));
  if (room->place) weight_gradient_float32(dy, columns, x, out, scratch, l->tokens, columns, deep, threads);
}
#else /* l->own is 0 */
static int is_own(const struct layer *l, int64_t columns, int64_t deep) { return (void)l, (void)columns, (void)deep, 0; }
static int64_t packed_room(const struct layer *l) { return (void)l, 0; }
static int own_product(const struct layer *l, void *out, const void *a, const void *w, int64_t columns, int64_t deep,
                       int is_turned, const void *bias, float *packed) {
  return (void)l, (void)out, (void)a, (void)w, (void)columns, (void)deep, (void)is_turned, (void)bias, (void)packed, -1;
}
static void own_gradient(const struct layer *l, float *out, const void *dy, const void *x, int64_t columns, int64_t deep,
                         struct room *room) {
  (void)l, (void)out, (void)dy, (void)x, (void)columns, (void)deep, (void)room;
}
#endif

#define T float
#define TYPE FLOAT32
#define JOINT 0
#define NAME(x) x##_float32
#define NORM(x) x##_float32_float32
#include "decoder_layer.h"
#undef T
#undef TYPE
#undef JOINT
#undef NAME
#undef NORM

#ifdef PANELS
#define T uint16_t
#define TYPE BFLOAT16
#define JOINT 1
#define NAME(x) x##_bfloat16
#define NORM(x) x##_float32_bfloat16

static void rounded(const float *x, uint16_t *out, int64_t count, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t start = 0; start < count; start += 4096) {
    const int64_t end = smaller(start + 4096, count);
#ifdef TILED_ATTENTION
    for (int64_t i = start; i < end; i += 16) {
      const __mmask16 there = first_16(end - i);
      narrowed_16(_mm512_maskz_loadu_ps(there, x + i), out + i, there);
    }
#else
    for (int64_t i = start; i < end; i++) out[i] = to_bfloat16(x[i]);
#endif
  }
}

#include "decoder_layer.h"
#endif
