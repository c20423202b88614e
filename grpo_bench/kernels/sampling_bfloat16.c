/* The passes of typed.h for bfloat16: a unit of its own, since it takes as long to compile as all else of sampling. */
#include "decode.h"

#define T uint16_t
#define LOAD from_bfloat16
#define STORE to_bfloat16
#define PAIR pair_bfloat16
#define PLACE place_bfloat16
#define MORE more_bfloat16
#define NAME(x) x##_bfloat16
#include "typed.h"
