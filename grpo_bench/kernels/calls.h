/* Functions that play.c can call: each beside a form of it that takes its arguments from memory. */
#pragma once
#include <stdint.h>

typedef union {
  void *p;
  int64_t i;
  float f;
} slot;

#define PTR(n) a[n].p
#define INT(n) a[n].i
#define REAL(n) a[n].f
#define CALLED(name, ...) CALLED_(name, __VA_ARGS__) /* once more, so that the name is made first */
#define CALLED_(name, ...)                                                                                             \
  void call_##name(const slot *a) { name(__VA_ARGS__); }
