/* SPDX-License-Identifier: Apache-2.0 */
/* open(2) with O_CLOEXEC is POSIX, not C11. */
#define _POSIX_C_SOURCE 200809L
/* get_file PATH: a step that maps a file. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "touch.h"

int main(int argc, char** argv) {
  struct stat status;
  if (argc != 2) return 64;
  const int file = open(argv[1], O_RDONLY | O_CLOEXEC);
  if (file < 0 || fstat(file, &status) != 0) {
    perror(argv[1]);
    return 1;
  }
  const size_t size = (size_t)status.st_size;
  const void* data = mmap(NULL, size, PROT_READ, MAP_SHARED, file, 0);
  if (data == MAP_FAILED) {
    perror("mmap");
    return 1;
  }
  touch(data, size);
  return 0;
}
