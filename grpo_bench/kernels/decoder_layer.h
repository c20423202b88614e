/* Included by decoder_layer.c once per type of the products: T, TYPE as torch calls it, JOINT where layers of one input are
 * one product, NAME and NORM for the symbols. */

/* What is kept of a layer: queries, keys and values, which rotated; gates and what they let through; what attention saw; and
 * what its output's layer made of it. Of each input's layers (N,Σm) of all, or (N,m) of each, one behind the other. */
struct NAME(parts) {
  T *qkv, *gates, *seen, *of_attention;
};

static struct NAME(parts) NAME(parts)(const struct layer *l, int64_t *elements) {
  const int64_t sizes[4] = {outputs_of(l, QKV), outputs_of(l, GATES), depth(l, OUTPUT), l->hidden};
  T *at[4];
  int64_t made = 0;
  for (int i = 0; i < 4; i++) at[i] = l->kept ? (T *)l->kept + made : 0, made += up(l->tokens * sizes[i], 64);
  if (elements) *elements = made;
  return (struct NAME(parts)){at[0], at[1], at[2], at[3]};
}

/* One layer's part of what those of its input made, and how far its rows are apart. */
static T *NAME(part)(const struct layer *l, int layer, int input, T *made, int64_t *stride) {
  int64_t before = 0;
  for (int i = FIRST[input]; i < layer; i++) before += outputs(l, i);
  *stride = JOINT ? outputs_of(l, input) : outputs(l, layer);
  return made + (JOINT ? before : before * l->tokens);
}

/* x by the weights of an input's layers. ``packed``: packed_room() bytes. */
static int NAME(forward_of)(const struct layer *l, int input, const T *x, T *out, float *packed) {
  const int first = JOINT ? input : FIRST[input], end = JOINT ? input + 1 : FIRST[input + 1];
  const int64_t deep = depth(l, input);
  int failed = 0;
  for (int i = first; i < end && !failed; i++) {
    const int64_t count = JOINT ? outputs_of(l, input) : outputs(l, i);
    if (!JOINT && is_own(l, count, deep)) failed = own_product(l, out, x, l->weights[i], count, deep, 0, l->biases[i], packed);
    else failed = multiplied(TYPE, dense(out, l->tokens, count), dense(x, l->tokens, deep),
                             turned_view(dense(l->weights[i], count, deep)), l->biases[i]);
    out += l->tokens * count;
  }
  return failed;
}

/* The gradient by the input. In fp32 the last layer comes first, as it would with autograd; ``more``: room for the others. */
static int NAME(of_input)(const struct layer *l, int input, const T *grads, T *out, T *more, float *packed) {
  const int64_t deep = depth(l, input);
  const int first = JOINT ? input : FIRST[input], last = JOINT ? input : FIRST[input + 1] - 1;
  int failed = 0;
  for (int i = last; i >= first && !failed; i--) {
    int64_t stride = outputs_of(l, input), count = JOINT ? stride : outputs(l, i);
    const T *grad = JOINT ? grads : NAME(part)(l, i, input, (T *)grads, &stride);
    T *to = i == last ? out : more;
    if (!JOINT && is_own(l, count, deep)) failed = own_product(l, to, grad, l->weights[i], deep, count, 1, 0, packed);
    else failed = multiplied(TYPE, dense(to, l->tokens, deep), dense(grad, l->tokens, count),
                             dense(l->weights[i], count, deep), 0);
#if !JOINT
    if (i < last) NORM(summed)(out, more, out, l->tokens * deep, threads_of(l, l->tokens * deep));
#endif
  }
  return failed;
}

/* The gradients of the weights */
static int NAME(learned)(const struct layer *l, int input, const T *grads, const T *x, struct room *room) {
  const int64_t deep = depth(l, input);
#if JOINT
  const int64_t count = outputs_of(l, input);
  const int threads = threads_of(l, l->tokens * count * deep);
  void *scratch = take(room, 2 * weight_gradient_room(l->tokens, count, deep, threads));
  if (room->place)
    weight_gradient(grads, count, x, l->of_weights[input], scratch, l->tokens, count, deep, 0, threads);
  return 0;
#else
  int failed = 0;
  const int64_t mark = room->taken;
  for (int i = FIRST[input]; i < FIRST[input + 1] && !failed; i++) {
    int64_t stride, count = outputs(l, i);
    const T *grad = NAME(part)(l, i, input, (T *)grads, &stride);
    room->taken = mark;
    if (is_own(l, count, deep)) own_gradient(l, l->of_weights[i], grad, x, count, deep, room);
    else if (room->place)
      failed = multiplied(TYPE, dense(l->of_weights[i], count, deep), turned_view(dense(grad, l->tokens, count)),
                          dense(x, l->tokens, deep), 0);
  }
  return failed;
#endif
}

static void NAME(rotated)(const struct layer *l, const T *x, int64_t x_row, T *out, int64_t out_row, int64_t heads,
                          int back) {
  NAME(rotate)(x, l->width, x_row, l->cosines, l->sines, out, l->width, out_row, heads, l->tokens, l->width, back,
               threads_of(l, heads * l->tokens * l->width));
}

/* The sizes that the gates' kernels take: rows apart from each other, or all of it as one. */
static void NAME(gate_sizes)(const struct layer *l, int64_t sizes[3]) {
  const int64_t rows[3] = {l->tokens, l->inner, 2 * l->inner}, whole[3] = {1, l->tokens * l->inner, l->tokens * l->inner};
  memcpy(sizes, JOINT ? rows : whole, sizeof rows);
}

/* With l->scratch NULL it returns how many bytes of that are needed, and does nothing else; otherwise 0, or -1 where torch
 * failed. */
int64_t NAME(decoder_layer)(const struct layer *l) {
  const int64_t N = l->tokens, d = l->width, elements = N * l->hidden, R = l->heads / l->kv;
  const struct NAME(parts) p = NAME(parts)(l, 0);
  struct room room = {l->scratch, 0, 0};
  const int64_t needed = l->tiled ? tiled_attention_room(l->most, d, 0) : attention_room(l->most, R, d, 0);
  const int workers = attention_threads(l, needed);
  float *packed = take(&room, packed_room(l));
  T *inner = take(&room, elements * (int64_t)sizeof(T));
  const int64_t mark = room.taken;
  float *scores = take(&room, workers * needed * (int64_t)sizeof *scores);
  room.taken = mark;
  T *product = take(&room, N * l->inner * (int64_t)sizeof(T));
  if (!room.place) return room.most;

  int64_t apart[3], sizes[3];
  T *q = NAME(part)(l, 0, QKV, p.qkv, &apart[0]), *k = NAME(part)(l, 1, QKV, p.qkv, &apart[1]);
  T *v = NAME(part)(l, 2, QKV, p.qkv, &apart[2]);
  const int threads = threads_of(l, elements);
  NORM(normed)(l->x, 0, 0, l->norms[0], inner, N, l->hidden, (float)l->eps[0], (float)l->shifts[0], threads);
  if (NAME(forward_of)(l, QKV, inner, p.qkv, packed)) return -1;
  NAME(rotated)(l, q, apart[0], q, apart[0], l->heads, 0);
  NAME(rotated)(l, k, apart[1], k, apart[1], l->kv, 0);
#if JOINT && defined(TILED_ATTENTION)
  (l->tiled ? tiled_attention : packed_attention_bfloat16)
#else
  NAME(packed_attention)
#endif
      (q, d, apart[0], k, d, apart[1], v, d, apart[2], p.seen, l->lse, l->starts, l->lengths, l->firsts, l->order,
       l->prompts, N, l->heads, l->kv, d, (float)l->scaling, l->window, scores, l->most, workers);
  if (NAME(forward_of)(l, OUTPUT, p.seen, p.of_attention, packed)) return -1;
  NORM(normed)(l->x, p.of_attention, l->out, l->norms[1], inner, N, l->hidden, (float)l->eps[1], (float)l->shifts[1],
               threads);
  if (NAME(forward_of)(l, GATES, inner, p.gates, packed)) return -1;
  int64_t stride;
  T *gate = NAME(part)(l, 4, GATES, p.gates, &stride), *lets = NAME(part)(l, 5, GATES, p.gates, &stride);
  NAME(gate_sizes)(l, sizes);
  NAME(gate)(gate, lets, product, sizes[0], sizes[1], sizes[2], threads_of(l, N * l->inner));
  if (NAME(forward_of)(l, DOWN, product, inner, packed)) return -1;
  NORM(summed)(l->out, inner, l->out, elements, threads);
  return 0;
}

/* The gradients, those of what is kept in its place. Scratch and what is returned are as above. */
int64_t NAME(decoder_layer_gradient)(const struct layer *l) {
  const int64_t N = l->tokens, d = l->width, elements = N * l->hidden, R = l->heads / l->kv;
  const int64_t heads_elements[3] = {N * l->heads * d, N * l->kv * d, N * l->kv * d};
  const int64_t size = sizeof(T);
  const struct NAME(parts) p = NAME(parts)(l, 0);
  struct room room = {l->scratch, 0, 0};
  const int counts = !room.place;
  const int64_t needed = l->tiled ? tiled_attention_room(l->most, d, 1) : attention_room(l->most, R, d, 1);
  const int workers = attention_threads(l, needed), threads = threads_of(l, elements);
  float *total = l->out;
  int64_t apart[3], sizes[3], stride;
  T *q = NAME(part)(l, 0, QKV, p.qkv, &apart[0]), *k = NAME(part)(l, 1, QKV, p.qkv, &apart[1]);
  T *v = NAME(part)(l, 2, QKV, p.qkv, &apart[2]);

  float *packed = take(&room, packed_room(l));
  const int64_t start = room.taken;

  /* the gates' product becomes its gradient, and that the product again, in one place */
#if JOINT
  T *grad = take(&room, elements * size);
  if (!counts) rounded(l->grad, grad, elements, threads);
#else
  const T *grad = l->grad;
#endif
  T *product = take(&room, N * l->inner * size);
  if (!counts) {
    if (NAME(of_input)(l, DOWN, grad, product, 0, packed)) return -1;
    T *gate = NAME(part)(l, 4, GATES, p.gates, &stride), *lets = NAME(part)(l, 5, GATES, p.gates, &stride);
    NAME(gate_sizes)(l, sizes);
    NAME(gate_gradient)(gate, lets, product, gate, lets, product, sizes[0], sizes[1], sizes[2],
                        threads_of(l, N * l->inner));
  }
  if (NAME(learned)(l, DOWN, grad, product, &room)) return -1;

  /* what stands before the gates, and what the norm before them made, in one place */
  room.taken = start;
#if JOINT
  T *low = take(&room, elements * size), *more = 0;
#else
  T *low = 0, *more = take(&room, elements * size);
#endif
  int64_t mark = room.taken;
  T *inner = take(&room, elements * size);
  if (!counts) {
    if (NAME(of_input)(l, GATES, p.gates, inner, more, packed)) return -1;
    NORM(norm_gradient)(l->x, p.of_attention, l->norms[1], inner, l->grad, total, low, inner, l->sums[1], N, l->hidden,
                        (float)l->eps[1], (float)l->shifts[1], l->block, threads);
  }
  if (NAME(learned)(l, GATES, p.gates, inner, &room)) return -1;

  /* attention's output */
  room.taken = mark;
  const T *middle = JOINT ? low : (const T *)total;
  T *of_seen = take(&room, heads_elements[0] * size);
  mark = room.taken;
  if (!counts) {
    if (l->of_output) memcpy(l->of_output, middle, (size_t)(elements * size));
    if (NAME(of_input)(l, OUTPUT, middle, of_seen, 0, packed)) return -1;
  }
  if (NAME(learned)(l, OUTPUT, middle, p.seen, &room)) return -1;

  /* attention */
  room.taken = mark;
  T *of[3];
  for (int i = 0; i < 3; i++) of[i] = take(&room, heads_elements[i] * size);
  float *scores = take(&room, workers * needed * (int64_t)sizeof *scores);
  if (!counts) {
#if JOINT && defined(TILED_ATTENTION)
    (l->tiled ? tiled_attention_gradient : packed_attention_gradient_bfloat16)
#else
    NAME(packed_attention_gradient)
#endif
        (q, d, apart[0], k, d, apart[1], v, d, apart[2], p.seen, of_seen, l->lse, of[0], of[1], of[2], l->starts,
         l->lengths, l->firsts, l->order, l->prompts, N, l->heads, l->kv, d, (float)l->scaling, l->window, scores,
         l->most, workers);
    NAME(rotated)(l, of[0], l->heads * d, q, apart[0], l->heads, 1);
    NAME(rotated)(l, of[1], l->kv * d, k, apart[1], l->kv, 1);
    const int copying = threads_of(l, heads_elements[2]);
#pragma omp parallel for num_threads(copying) schedule(static) if (copying > 1)
    for (int64_t n = 0; n < N; n++) memcpy(v + n * apart[2], of[2] + n * l->kv * d, (size_t)(l->kv * d * size));
  }

  /* what came in */
  room.taken = start;
  more = JOINT ? 0 : take(&room, elements * size);
  inner = take(&room, elements * size);
  if (!counts) {
    if (NAME(of_input)(l, QKV, p.qkv, inner, more, packed)) return -1;
    NORM(norm_gradient)(l->x, 0, l->norms[0], inner, total, total, 0, inner, l->sums[0], N, l->hidden,
                        (float)l->eps[0], (float)l->shifts[0], l->block, threads);
  }
  if (NAME(learned)(l, QKV, p.qkv, inner, &room)) return -1;
  return counts ? room.most : 0;
}

/* Elements that are kept */
int64_t NAME(decoder_layer_kept)(const struct layer *l) {
  int64_t elements;
  NAME(parts)(l, &elements);
  return elements;
}
