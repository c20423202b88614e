/* What attention of one new token of each row needs, whatever the type of an element; see typed.h. */
#include "vectors.h"

enum { QUERIES = 4 }; /* that look at the same keys at once */

/* Keys and values that are looked at next, asked for a few lines at a time: many at once would hold up the loads of now. */
enum { RUNS = 4, MOST_LINES = 32 }; /* keys and values, a row's own and its prompt's; of a run at a time */
typedef struct {
  const char *from[RUNS];
  int64_t lines[RUNS], some; /* lines of each, not yet asked for, and how many of one run to ask for at a time */
  int run;
} ahead;

static inline void fetch(ahead *next) {
  while (next->run < RUNS && next->lines[next->run] <= 0) next->run++;
  if (next->run == RUNS) return;
  const char *from = next->from[next->run];
  for (int64_t n = 0; n < next->some && n < next->lines[next->run]; n++) __builtin_prefetch(from + n * 64);
  next->from[next->run] += next->some * 64;
  next->lines[next->run] -= next->some;
}

#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (words8){__VA_ARGS__})
#endif

/* The sums of four vectors' elements, as trees: pairs of vectors are merged before they are folded. */
static inline wide4 across_4(const wide *x) {
  const wide8 a = halves(x[0]), b = halves(x[1]), c = halves(x[2]), d = halves(x[3]);
  const wide8 ab = SHUFFLE(a, b, 0, 8, 1, 9, 4, 12, 5, 13) + SHUFFLE(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
  const wide8 cd = SHUFFLE(c, d, 0, 8, 1, 9, 4, 12, 5, 13) + SHUFFLE(c, d, 2, 10, 3, 11, 6, 14, 7, 15);
  const wide8 all = SHUFFLE(ab, cd, 0, 1, 8, 9, 4, 5, 12, 13) + SHUFFLE(ab, cd, 2, 3, 10, 11, 6, 7, 14, 15);
  wide4 q[2];
  memcpy(q, &all, sizeof all);
  return q[0] + q[1];
}
