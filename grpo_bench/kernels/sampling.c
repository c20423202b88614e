/* Sampling between the matrix products, for one token of each row: attention over a shared prompt and a row's own tokens,
 * norms, and the choice of a token. Sums are in fp32 (of probabilities: in double), whatever is stored; work is split by
 * rows, so the number of threads changes nothing in a result. */
#include "decode.h"

/* Floats that a thread of decode_attention needs where a row sees ``most`` tokens. */
int64_t scores_room(int64_t most) { return QUERIES * most; }

#define T float
#define LOAD same
#define STORE same
#define PAIR pair_float32
#define PLACE place_float32
#define MORE more_float32
#define NAME(x) x##_float32
#include "typed.h"

enum { BLOCK = 256 }; /* words summed in fp32 before they are summed in double */

static double below(double x) { return nextafter(x, 0.0); }

#include "draw.h"
#undef T
#undef LOAD
#undef NAME

#define T uint16_t
#define LOAD from_bfloat16
#define NAME(x) x##_bfloat16
#include "draw.h"
