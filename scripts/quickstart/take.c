/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A build step that takes a value in place: maps it, hands the very bytes in shared memory to two consumers, releases
 * it.
 *
 *   take BUILD NAME SHA256 DIR    verifies the value with sha256sum(1) and unpacks it, a tar, into DIR
 *   take BUILD NAME               gets it, waits for a line on stdin, and gets it again (the daemon may be dead)
 *
 * One line per thing done: what, bytes, milliseconds, separated by tabs.
 */
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <stepstash/client.h>

static double now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

static void report(const char* what, uint64_t bytes, double since) {
  printf("%s\t%" PRIu64 "\t%.3f\n", what, bytes, now_ms() - since);
  fflush(stdout);
}

static int fail(const char* what) {
  fprintf(stderr, "take: %s: %s\n", what, stepstash_error_message());
  return 1;
}

/* Feeds the bytes where they lie to a shell command; 0 when it took all of them and ended well. */
static int feed(const char* command, const stepstash_view* view) {
  FILE* pipe = popen(command, "w");
  if (pipe == NULL) return -1;
  setvbuf(pipe, NULL, _IONBF, 0); /* no copy of ours: write(2) straight from shared memory */
  size_t written = view->length == 0 ? 0 : fwrite(view->data, 1, view->length, pipe);
  int status = pclose(pipe);
  return written == view->length && status == 0 ? 0 : -1;
}

int main(int argc, char** argv) {
  if (argc != 3 && argc != 5) {
    fprintf(stderr, "usage: take BUILD NAME [SHA256 DIR]\n");
    return 64;
  }
  signal(SIGPIPE, SIG_IGN);
  const int64_t build = strtoll(argv[1], NULL, 10);
  stepstash_client* client = NULL;
  double start = now_ms();
  if (stepstash_connect(NULL, 0, &client) != STEPSTASH_OK) return fail("connecting");
  report("connected, segment mapped read-only", 0, start);

  stepstash_view view;
  start = now_ms();
  if (stepstash_get(client, build, argv[2], &view) != STEPSTASH_OK) return fail(argv[2]);
  report("got it in place, without a copy", view.length, start);

  if (argc == 3) {
    stepstash_release(&view);
    (void)getchar();
    start = now_ms();
    if (stepstash_get(client, build, argv[2], &view) != STEPSTASH_OK) return fail(argv[2]);
    report("looked it up again", view.length, start);
    unsigned long long sum = 0;
    start = now_ms();
    for (uint64_t i = 0; i + 8 <= view.length; i += 8) {
      uint64_t word;
      memcpy(&word, (const char*)view.data + i, sizeof word);
      sum += word;
    }
    report(sum == 0 ? "found nothing but zeros" : "read every byte of it", view.length, start);
  } else {
    char command[4096];
    start = now_ms();
    snprintf(command, sizeof command, "sha256sum | grep -q '^%s '", argv[3]);
    if (feed(command, &view) != 0) {
      fprintf(stderr, "take: the checksum is another than %s\n", argv[3]);
      return 1;
    }
    report("verified SHA-256 of the bytes in place", view.length, start);
    start = now_ms();
    snprintf(command, sizeof command, "tar -x -C '%s'", argv[4]);
    if (feed(command, &view) != 0) {
      fprintf(stderr, "take: tar could not unpack it\n");
      return 1;
    }
    report("unpacked from the bytes in place", view.length, start);
  }
  stepstash_release(&view);
  stepstash_close(client);
  return 0;
}
