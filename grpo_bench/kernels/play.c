/* Calls made one after the other: from Python each would cost as much again as a small one takes. */
#include "calls.h"

struct call {
  void (*function)(const slot *arguments);
  const slot *arguments;
};

void play(const struct call *calls, int64_t count) {
  for (int64_t i = 0; i < count; i++) calls[i].function(calls[i].arguments);
}
