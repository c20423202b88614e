/* Training's attention of packed rows, forward and backward. */
#include "signatures.h"
#include "vectors.h"

#include "blocks.h"

#define T float
#define LOAD same
#define STORE same
#define MORE more_float32
#define NAME(x) x##_float32
#include "packed_attention.h"
#undef T
#undef LOAD
#undef STORE
#undef MORE
#undef NAME

#define T uint16_t
#define LOAD from_bfloat16
#define STORE to_bfloat16
#define MORE more_bfloat16
#define NAME(x) x##_bfloat16
#include "packed_attention.h"

#ifdef TILED_ATTENTION
#include "tiled_attention.h"
#else
int64_t tiled_attention_room(int64_t most, int64_t d, int back) { return (void)most, (void)d, (void)back, 0; }
#endif
