/* SPDX-License-Identifier: Apache-2.0 */
/* Reads a byte of each page, as a step that uses the value does at least. */
#ifndef BENCH_TOUCH_H
#define BENCH_TOUCH_H

#include <stddef.h>

static inline int touch(const void* data, size_t bytes) {
  const volatile unsigned char* byte = data;
  unsigned sum = 0;
  for (size_t at = 0; at < bytes; at += 4096) sum += byte[at];
  return sum == 1; /* so that the sum is needed; 0 for all values of the benchmark but one in a million */
}

#endif
