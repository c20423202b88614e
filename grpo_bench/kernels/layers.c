/* Training between the matrix products, forward and backward: the softmax over the vocabulary, norms, rotary embeddings and
 * gates. One pass over memory each, where tensor operations make several. Sums are in fp32 (of probabilities: in double),
 * whatever is stored; work is split by rows, so the number of threads changes nothing in a result. */
#include "signatures.h"
#include "vectors.h"

enum { BLOCK = 256 };  /* words summed in fp32 before they are summed in double */
enum { CHUNK = 4096 }; /* elements that a thread takes at once where each is on its own */

#define T float
#define LOAD same
#define STORE same
#define NAME(x) x##_float32
#include "softmax.h"
#include "elementwise.h"
#undef T
#undef LOAD
#undef STORE
#undef NAME

#define T uint16_t
#define LOAD from_bfloat16
#define STORE to_bfloat16
#define NAME(x) x##_bfloat16
#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define FASTER
#include "bfloat16.h"
#endif
#include "softmax.h"
#include "elementwise.h"
#undef NAME

#define X float
#define LOADX same
#define STOREX same
#define Y float
#define LOADY same
#define STOREY same
#define NAME(x) x##_float32_float32
#include "norms.h"
#undef Y
#undef LOADY
#undef STOREY
#undef NAME
#define Y uint16_t
#define LOADY from_bfloat16
#define STOREY to_bfloat16
#define NAME(x) x##_float32_bfloat16
#ifdef FASTER
#include "norms_avx512.h"
#define FASTER_NORMS
#endif
#include "norms.h"
#undef FASTER_NORMS
#undef X
#undef LOADX
#undef STOREX
#undef NAME
#define X uint16_t
#define LOADX from_bfloat16
#define STOREX to_bfloat16
#define NAME(x) x##_bfloat16_bfloat16
#include "norms.h"
