/* SPDX-License-Identifier: Apache-2.0 */
/* The C ABI, compiled as C, against a real daemon: every function of stepstash/client.h, its answers and its errors.
 *
 * usage: c_abi_test PATH-OF-STEPSTASHD. Makes a directory of its own and removes it. */
#define _GNU_SOURCE /* mkdtemp, setenv, kill: the test uses POSIX, the header under test does not */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <stepstash/client.h>

static int failures;
static const char* current = "";

#define CHECK(condition)                                                                                           \
  do {                                                                                                             \
    if (!(condition)) {                                                                                            \
      ++failures;                                                                                                  \
      fprintf(stderr, "%s:%d: %s: %s [%s]\n", __FILE__, __LINE__, current, #condition, stepstash_error_message()); \
    }                                                                                                              \
  } while (0)
#define CHECK_CODE(expression, expected)                                                                             \
  do {                                                                                                               \
    const int code_ = (expression);                                                                                  \
    if (code_ != (expected)) {                                                                                       \
      ++failures;                                                                                                    \
      fprintf(stderr, "%s:%d: %s: %s gave %d instead of %d [%s]\n", __FILE__, __LINE__, current, #expression, code_, \
              (expected), stepstash_error_message());                                                                \
    }                                                                                                                \
  } while (0)
/* Without it the rest makes no sense. */
#define REQUIRE_CODE(expression, expected)                                                                           \
  do {                                                                                                               \
    const int code_ = (expression);                                                                                  \
    if (code_ != (expected)) {                                                                                       \
      fprintf(stderr, "%s:%d: %s: %s gave %d instead of %d [%s]\n", __FILE__, __LINE__, current, #expression, code_, \
              (expected), stepstash_error_message());                                                                \
      exit_with_daemon(1);                                                                                           \
    }                                                                                                                \
  } while (0)

/* ---- the daemon ----------------------------------------------------------------------------------------------------
 */

static char directory[] = "/tmp/stepstash-abi-XXXXXX";
static char socket_path[128], database[128], segment[64];
static const char* binary;
static pid_t daemon_pid = -1;

static void start_daemon(void) {
  daemon_pid = fork();
  if (daemon_pid == 0) {
    char log[160];
    snprintf(log, sizeof log, "%s/log", directory);
    const int fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
    dup2(fd, 1);
    dup2(fd, 2);
    execl(binary, binary, "--socket", socket_path, "--db", database, "--segment-name", segment, "--segment-size",
          "64MiB", (char*)NULL);
    _exit(127);
  }
}

static void end_daemon(int signal_number) {
  if (daemon_pid <= 0) return;
  kill(daemon_pid, signal_number);
  waitpid(daemon_pid, NULL, 0);
  daemon_pid = -1;
}

static void exit_with_daemon(int status) {
  end_daemon(SIGKILL);
  char command[512];
  snprintf(command, sizeof command, "cd %s; %scd /; rm -rf %s /dev/shm/%s.d", directory,
           status != 0 ? "cat log >&2; " : "", directory, segment);
  if (system(command) != 0) fprintf(stderr, "cannot clean up %s\n", directory);
  exit(status);
}

/* The first connection is refused at once when nobody listens: ask again until the daemon does. */
static stepstash_client* connect_when_ready(void) {
  stepstash_client* client = NULL;
  for (int i = 0; i < 6000; ++i) {
    const int code = stepstash_connect(socket_path, 5000, &client);
    if (code == STEPSTASH_OK) return client;
    if (code != STEPSTASH_EUNAVAILABLE || waitpid(daemon_pid, NULL, WNOHANG) != 0) break;
    nanosleep(&(struct timespec){0, 5000000}, NULL);
  }
  fprintf(stderr, "cannot connect: %s\n", stepstash_error_message());
  exit_with_daemon(1);
  return NULL;
}

/* ---- the tests -----------------------------------------------------------------------------------------------------
 */

static stepstash_client* client;

static void connecting_says_what_is_wrong(void) {
  stepstash_client* other = (stepstash_client*)1;
  CHECK_CODE(stepstash_connect("/nonexistent/socket", 1000, &other), STEPSTASH_EUNAVAILABLE);
  CHECK(other == NULL);
  CHECK(strstr(stepstash_error_message(), "/nonexistent/socket") != NULL);
  char longest[200];
  memset(longest, 'x', sizeof longest);
  longest[sizeof longest - 1] = 0;
  CHECK_CODE(stepstash_connect(longest, 1000, &other), STEPSTASH_EINVAL);
  CHECK(strstr(stepstash_error_message(), "107") != NULL);
  CHECK_CODE(stepstash_connect(socket_path, 1000, NULL), STEPSTASH_EINVAL);
  stepstash_close(NULL);
}

static void the_socket_comes_from_the_environment(void) {
  stepstash_client* other = NULL;
  setenv("STEPSTASH_SOCKET", socket_path, 1);
  CHECK_CODE(stepstash_connect(NULL, 0, &other), STEPSTASH_OK);
  stepstash_close(other);
  unsetenv("STEPSTASH_SOCKET");

  setenv("STEPSTASH_SOCKET", "", 1); /* a variable that a script has not set */
  CHECK_CODE(stepstash_connect(NULL, 0, &other), STEPSTASH_EINVAL);
  CHECK(strstr(stepstash_error_message(), "STEPSTASH_SOCKET is empty") != NULL);
  unsetenv("STEPSTASH_SOCKET");

  if (geteuid() == 0) return; /* whose daemon is the machine's, whatever XDG_RUNTIME_DIR says */
  char runtime[160], path[200];
  snprintf(runtime, sizeof runtime, "%s/run", directory);
  snprintf(path, sizeof path, "%s/stepstash", runtime);
  CHECK(mkdir(runtime, 0700) == 0 && mkdir(path, 0700) == 0);
  strcat(path, "/stepstash.sock");
  CHECK(symlink(socket_path, path) == 0);
  setenv("XDG_RUNTIME_DIR", runtime, 1);
  CHECK_CODE(stepstash_connect(NULL, 0, &other), STEPSTASH_OK);
  stepstash_close(other);
  unsetenv("XDG_RUNTIME_DIR");
}

static void what_was_set_is_found_in_place(void) {
  stepstash_set_result first = {0, 0}, second = {0, 0};
  REQUIRE_CODE(stepstash_set(client, 42, "report", "ok\n", 3, "unit tests", NULL, &first), STEPSTASH_OK);
  CHECK(first.id > 0 && first.revision > 0);

  stepstash_view view;
  REQUIRE_CODE(stepstash_get(client, 42, "report", &view), STEPSTASH_OK);
  CHECK(view.length == 3 && memcmp(view.data, "ok\n", 3) == 0);
  CHECK(view.id == first.id && view.revision == first.revision && view.build == 42);
  CHECK(view.name_bytes == 6 && memcmp(view.name, "report", 6) == 0);
  CHECK(view.source_bytes == 10 && memcmp(view.source, "unit tests", 10) == 0);

  /* Replacing keeps the id and the old view's bytes. */
  REQUIRE_CODE(stepstash_set(client, 42, "report", "failed\n", 7, NULL, NULL, &second), STEPSTASH_OK);
  CHECK(second.id == first.id && second.revision > first.revision);
  CHECK(view.length == 3 && memcmp(view.data, "ok\n", 3) == 0);
  stepstash_release(&view);
  CHECK(view.data == NULL);
  stepstash_release(&view); /* a second time is fine */
  stepstash_release(NULL);

  REQUIRE_CODE(stepstash_get(client, 42, "report", &view), STEPSTASH_OK);
  CHECK(view.length == 7 && memcmp(view.data, "failed\n", 7) == 0);
  CHECK(view.source_bytes == 0);
  stepstash_release(&view);
}

static void an_empty_value_differs_from_none(void) {
  stepstash_view view;
  REQUIRE_CODE(stepstash_set(client, 42, "", NULL, 0, "", NULL, NULL), STEPSTASH_OK);
  REQUIRE_CODE(stepstash_get(client, 42, "", &view), STEPSTASH_OK);
  CHECK(view.data != NULL && view.length == 0);
  stepstash_release(&view);
  CHECK_CODE(stepstash_get(client, 42, "absent", &view), STEPSTASH_MISS);
  CHECK(view.data == NULL);
  stepstash_release(&view);
  CHECK_CODE(stepstash_stat(client, 42, "absent", &view), STEPSTASH_MISS);
}

static void stat_has_everything_but_the_value(void) {
  stepstash_view view;
  REQUIRE_CODE(stepstash_stat(client, 42, "report", &view), STEPSTASH_OK);
  CHECK(view.data == NULL && view.length == 7 && view.build == 42 && view.id > 0);
  stepstash_release(&view);
}

static void try_get_answers_from_the_segment_and_does_not_reload_an_evicted_value(void) {
  stepstash_view view;
  REQUIRE_CODE(stepstash_set(client, 59, "small", "abc", 3, "s", NULL, NULL), STEPSTASH_OK);
  REQUIRE_CODE(stepstash_try_get(client, 59, "small", &view), STEPSTASH_OK);
  CHECK(view.length == 3 && memcmp(view.data, "abc", 3) == 0 && view.source_bytes == 1);
  stepstash_release(&view);
  CHECK_CODE(stepstash_try_get(client, 59, "absent", &view), STEPSTASH_MISS);
  CHECK(view.data == NULL);

  const size_t bytes = 8u << 20; /* an eighth of the segment */
  void* large = calloc(1, bytes);
  for (int i = 0; i < 16; ++i) {
    char name[16];
    snprintf(name, sizeof name, "large %d", i);
    REQUIRE_CODE(stepstash_set(client, 59, name, large, bytes, "", NULL, NULL), STEPSTASH_OK);
    REQUIRE_CODE(stepstash_flush(client, 0), STEPSTASH_OK);
  }
  free(large);
  CHECK_CODE(stepstash_try_get(client, 59, "large 0", &view), STEPSTASH_ASK);
  CHECK(view.data == NULL);
  CHECK_CODE(stepstash_try_get(client, 59, "large 0", &view), STEPSTASH_ASK); /* still: it asks nobody */
  REQUIRE_CODE(stepstash_get(client, 59, "large 0", &view), STEPSTASH_OK);
  stepstash_release(&view);
  CHECK_CODE(stepstash_try_get(client, 59, "large 0", &view), STEPSTASH_OK);
  CHECK(view.length == bytes);
  stepstash_release(&view);
  CHECK_CODE(stepstash_drop(client, 59, NULL), STEPSTASH_OK);
}

static void arguments_outside_their_range_are_named(void) {
  stepstash_view view;
  char name[1100];
  CHECK_CODE(stepstash_set(client, 0, "n", "", 0, "", NULL, NULL), STEPSTASH_EINVAL);
  CHECK(strstr(stepstash_error_message(), "9223372036854775807") != NULL);
  CHECK_CODE(stepstash_set(client, -1, "n", "", 0, "", NULL, NULL), STEPSTASH_EINVAL);
  CHECK_CODE(stepstash_get(client, 0, "n", &view), STEPSTASH_EINVAL);
  CHECK_CODE(stepstash_try_get(client, 0, "n", &view), STEPSTASH_EINVAL);
  memset(name, 'n', 257);
  name[257] = 0;
  CHECK_CODE(stepstash_set(client, 1, name, "", 0, "", NULL, NULL), STEPSTASH_EINVAL);
  CHECK(strstr(stepstash_error_message(), "256") != NULL);
  CHECK_CODE(stepstash_get(client, 1, name, &view), STEPSTASH_EINVAL);
  name[256] = 0;
  CHECK_CODE(stepstash_set(client, 1, name, "", 0, name, NULL, NULL), STEPSTASH_OK);
  for (int i = 0; i < 256; ++i) memcpy(name + 4 * i, "\xF0\x9F\x92\xBE", 4); /* 256 characters of four bytes */
  name[1024] = 0;
  CHECK_CODE(stepstash_set(client, 1, name, "", 0, name, NULL, NULL), STEPSTASH_OK);
  CHECK_CODE(stepstash_get(client, 1, name, &view), STEPSTASH_OK);
  CHECK(view.name_bytes == 1024 && view.source_bytes == 1024);
  stepstash_release(&view);
  CHECK_CODE(stepstash_set(client, 1, "\xFF", "", 0, "", NULL, NULL), STEPSTASH_EINVAL);
  CHECK_CODE(stepstash_set(client, 1, "n", "", 0, "\xED\xA0\x80", NULL, NULL), STEPSTASH_EINVAL);
  CHECK_CODE(stepstash_set(client, 1, NULL, "", 0, "", NULL, NULL), STEPSTASH_EINVAL);
  CHECK_CODE(stepstash_set(client, 1, "n", NULL, 1, "", NULL, NULL), STEPSTASH_EINVAL);
  CHECK_CODE(stepstash_set(NULL, 1, "n", "", 0, "", NULL, NULL), STEPSTASH_EINVAL);
  CHECK_CODE(stepstash_get(client, 1, "n", NULL), STEPSTASH_EINVAL);
  CHECK_CODE(stepstash_try_get(client, 1, NULL, &view), STEPSTASH_EINVAL);
  CHECK_CODE(stepstash_wait(client, 1, NULL, 0, &view), STEPSTASH_EINVAL);
  CHECK_CODE(stepstash_stat(NULL, 1, "n", &view), STEPSTASH_EINVAL);
  CHECK_CODE(stepstash_drop(client, INT64_MIN, NULL), STEPSTASH_EINVAL);
}

static void conditions_are_kept(void) {
  stepstash_set_options options = {0};
  stepstash_set_result result;
  options.size = sizeof options;
  options.if_absent = 1;
  CHECK_CODE(stepstash_set(client, 43, "once", "1", 1, "", &options, &result), STEPSTASH_OK);
  CHECK_CODE(stepstash_set(client, 43, "once", "2", 1, "", &options, NULL), STEPSTASH_UNMET);
  options.if_absent = 0;
  options.if_revision = result.revision;
  CHECK_CODE(stepstash_set(client, 43, "once", "3", 1, "", &options, &result), STEPSTASH_OK);
  CHECK_CODE(stepstash_set(client, 43, "once", "4", 1, "", &options, &result), STEPSTASH_UNMET);
  stepstash_view view;
  REQUIRE_CODE(stepstash_get(client, 43, "once", &view), STEPSTASH_OK);
  CHECK(view.length == 1 && *(const char*)view.data == '3');
  stepstash_release(&view);

  options.size = 4;
  CHECK_CODE(stepstash_set(client, 43, "once", "5", 1, "", &options, NULL), STEPSTASH_EINVAL);
  struct {
    stepstash_set_options known;
    uint64_t later;
  } longer = {{0}, 0};
  longer.known.size = sizeof longer;
  CHECK_CODE(stepstash_set(client, 43, "later", "6", 1, "", &longer.known, NULL), STEPSTASH_OK);
  longer.later = 1; /* asks for something that this library does not know */
  CHECK_CODE(stepstash_set(client, 43, "later", "7", 1, "", &longer.known, NULL), STEPSTASH_EINVAL);
}

static unsigned char byte_at(size_t i, unsigned seed) { return (unsigned char)(i * 2654435761u >> 13 ^ seed); }

static int view_has_pattern(const stepstash_view* view, size_t length, unsigned seed) {
  if (view->length != length) return 0;
  const unsigned char* bytes = view->data;
  for (size_t i = 0; i < length; ++i) {
    if (bytes[i] != byte_at(i, seed)) return 0;
  }
  return 1;
}

static unsigned char* pattern(size_t length, unsigned seed) {
  unsigned char* bytes = malloc(length + 1);
  for (size_t i = 0; i < length; ++i) bytes[i] = byte_at(i, seed);
  return bytes;
}

static void values_of_every_size_come_back(void) {
  const size_t sizes[] = {0, 1, 65535, 65536, 65537, 524288, 1048576, 1048577, 8388608, 20000000};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; ++i) {
    unsigned char* bytes = pattern(sizes[i], (unsigned)i);
    stepstash_view view;
    REQUIRE_CODE(stepstash_set(client, 44, "sized", bytes, sizes[i], "", NULL, NULL), STEPSTASH_OK);
    REQUIRE_CODE(stepstash_get(client, 44, "sized", &view), STEPSTASH_OK);
    CHECK(view_has_pattern(&view, sizes[i], (unsigned)i));
    stepstash_release(&view);
    free(bytes);
  }
}

static void a_value_that_can_never_fit_is_refused_at_once(void) {
  stepstash_writer* writer = NULL;
  stepstash_set_result result;
  int code = stepstash_set_begin(client, 44, "huge", (uint64_t)1 << 40, "", NULL, &writer);
  void* room;
  size_t bytes;
  /* It may be known only with the first answer. */
  for (int i = 0; code == STEPSTASH_OK && i < 1000; ++i) {
    code = stepstash_writer_buffer(writer, &room, &bytes);
    if (code == STEPSTASH_OK) code = stepstash_writer_advance(writer, bytes);
  }
  CHECK(code == STEPSTASH_ETOOLARGE);
  CHECK(strstr(stepstash_error_message(), "1099511627776") != NULL);
  if (writer != NULL) CHECK_CODE(stepstash_writer_commit(writer, &result), STEPSTASH_ETOOLARGE);
}

static void a_writer_publishes_at_commit_only(void) {
  const size_t sizes[] = {0, 10, 65536, 3000000};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; ++i) {
    for (int known = 0; known < 2; ++known) {
      const size_t size = sizes[i];
      char name[32];
      snprintf(name, sizeof name, "written-%zu-%d", size, known);
      unsigned char* bytes = pattern(size, 7);
      stepstash_writer* writer = NULL;
      stepstash_set_result result = {0, 0};
      stepstash_view view;
      REQUIRE_CODE(stepstash_set_begin(client, 45, name, known ? size : STEPSTASH_UNKNOWN_LENGTH, "w", NULL, &writer),
                   STEPSTASH_OK);
      for (size_t at = 0; at < size;) {
        const size_t part = size - at < 100003 ? size - at : 100003;
        REQUIRE_CODE(stepstash_writer_write(writer, bytes + at, part), STEPSTASH_OK);
        at += part;
      }
      CHECK_CODE(stepstash_get(client, 45, name, &view), STEPSTASH_MISS);
      REQUIRE_CODE(stepstash_writer_commit(writer, &result), STEPSTASH_OK);
      REQUIRE_CODE(stepstash_get(client, 45, name, &view), STEPSTASH_OK);
      CHECK(view_has_pattern(&view, size, 7) && view.id == result.id);
      stepstash_release(&view);
      free(bytes);
    }
  }
}

static void a_writers_room_is_filled_in_place(void) {
  const size_t size = 2500000;
  stepstash_writer* writer = NULL;
  REQUIRE_CODE(stepstash_set_begin(client, 45, "in place", size, "", NULL, &writer), STEPSTASH_OK);
  for (size_t at = 0; at < size;) {
    void* room = NULL;
    size_t bytes = 0;
    REQUIRE_CODE(stepstash_writer_buffer(writer, &room, &bytes), STEPSTASH_OK);
    CHECK(bytes > 0 && bytes <= size - at);
    const size_t part = bytes > 4097 ? 4097 : bytes; /* less than there is room for */
    for (size_t i = 0; i < part; ++i) ((unsigned char*)room)[i] = byte_at(at + i, 9);
    REQUIRE_CODE(stepstash_writer_advance(writer, part), STEPSTASH_OK);
    at += part;
  }
  void* room;
  size_t bytes;
  CHECK_CODE(stepstash_writer_buffer(writer, &room, &bytes), STEPSTASH_EINVAL); /* all that was announced is there */
  CHECK_CODE(stepstash_writer_advance(writer, 1), STEPSTASH_EINVAL);
  CHECK_CODE(stepstash_writer_write(writer, "x", 1), STEPSTASH_EINVAL);
  REQUIRE_CODE(stepstash_writer_commit(writer, NULL), STEPSTASH_OK);
  stepstash_view view;
  REQUIRE_CODE(stepstash_get(client, 45, "in place", &view), STEPSTASH_OK);
  CHECK(view_has_pattern(&view, size, 9));
  stepstash_release(&view);
}

static void a_writer_that_is_aborted_or_cut_short_leaves_nothing(void) {
  const size_t sizes[] = {100, 200000};
  for (size_t i = 0; i < 2; ++i) {
    stepstash_writer* writer = NULL;
    stepstash_view view;
    unsigned char* bytes = pattern(sizes[i], 1);
    REQUIRE_CODE(stepstash_set_begin(client, 45, "aborted", sizes[i], "", NULL, &writer), STEPSTASH_OK);
    REQUIRE_CODE(stepstash_writer_write(writer, bytes, sizes[i] / 2), STEPSTASH_OK);
    stepstash_writer_abort(writer);
    CHECK_CODE(stepstash_get(client, 45, "aborted", &view), STEPSTASH_MISS);

    REQUIRE_CODE(stepstash_set_begin(client, 45, "short", sizes[i], "", NULL, &writer), STEPSTASH_OK);
    REQUIRE_CODE(stepstash_writer_write(writer, bytes, sizes[i] / 2), STEPSTASH_OK);
    CHECK_CODE(stepstash_writer_commit(writer, NULL), STEPSTASH_EINVAL);
    CHECK_CODE(stepstash_get(client, 45, "short", &view), STEPSTASH_MISS);
    free(bytes);
  }
  stepstash_writer_abort(NULL);
  CHECK_CODE(stepstash_writer_commit(NULL, NULL), STEPSTASH_EINVAL);
}

static void a_writers_condition_is_kept_at_commit(void) {
  stepstash_set_options options = {0};
  stepstash_writer* writer = NULL;
  options.size = sizeof options;
  options.if_absent = 1;
  unsigned char* bytes = pattern(300000, 2);
  int code = stepstash_set_begin(client, 43, "once", 300000, "", &options, &writer);
  if (code == STEPSTASH_OK) {
    code = stepstash_writer_write(writer, bytes, 300000);
    CHECK(code == STEPSTASH_OK || code == STEPSTASH_UNMET);
    code = stepstash_writer_commit(writer, NULL);
  }
  CHECK(code == STEPSTASH_UNMET);
  free(bytes);
}

static void files_and_pipes_are_read_to_their_end(void) {
  const size_t sizes[] = {0, 5, 65536, 65537, 1500000};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; ++i) {
    const size_t size = sizes[i];
    unsigned char* bytes = pattern(size, 5);
    char path[160];
    stepstash_view view;
    snprintf(path, sizeof path, "%s/file", directory);
    const int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(write(fd, "skipped", 7) == 7 && write(fd, bytes, size) == (ssize_t)size);
    lseek(fd, 7, SEEK_SET); /* from where it stands */
    REQUIRE_CODE(stepstash_set_fd(client, 46, "file", fd, "f", NULL, NULL), STEPSTASH_OK);
    REQUIRE_CODE(stepstash_get(client, 46, "file", &view), STEPSTASH_OK);
    CHECK(view_has_pattern(&view, size, 5));
    stepstash_release(&view);
    close(fd);

    int ends[2];
    CHECK(pipe(ends) == 0);
    const pid_t child = fork();
    if (child == 0) {
      size_t at = 0;
      while (at < size) {
        const ssize_t n = write(ends[1], bytes + at, size - at);
        if (n <= 0) _exit(1);
        at += (size_t)n;
      }
      _exit(0);
    }
    close(ends[1]);
    REQUIRE_CODE(stepstash_set_fd(client, 46, "pipe", ends[0], "p", NULL, NULL), STEPSTASH_OK);
    int status = -1;
    waitpid(child, &status, 0);
    CHECK(status == 0);
    close(ends[0]);
    REQUIRE_CODE(stepstash_get(client, 46, "pipe", &view), STEPSTASH_OK);
    CHECK(view_has_pattern(&view, size, 5));
    stepstash_release(&view);
    free(bytes);
  }
  CHECK_CODE(stepstash_set_fd(client, 46, "bad", -1, "", NULL, NULL), STEPSTASH_EIO);
}

static void builds_are_listed_with_what_they_take(void) {
  stepstash_builds* builds = NULL;
  for (int64_t build = 51; build >= 50; --build) {
    REQUIRE_CODE(stepstash_set(client, build, "a", "12345", 5, NULL, NULL, NULL), STEPSTASH_OK);
    REQUIRE_CODE(stepstash_set(client, build, "b", "", 0, NULL, NULL, NULL), STEPSTASH_OK);
  }
  REQUIRE_CODE(stepstash_finish(client, 51, -7), STEPSTASH_OK);
  REQUIRE_CODE(stepstash_hold(client, 51, 1), STEPSTASH_OK);
  REQUIRE_CODE(stepstash_list_builds(client, &builds), STEPSTASH_OK);
  size_t i = 0;
  while (i < builds->count && builds->builds[i].build < 50) ++i;
  CHECK(i + 2 <= builds->count);
  const stepstash_build* running = &builds->builds[i];
  const stepstash_build* held = running + 1;
  CHECK(running->build == 50 && held->build == 51);
  CHECK(running->entries == 2 && running->resident_bytes + running->evicted_bytes == 5);
  CHECK(running->finished == 0 && running->complete_at == 0 && running->held == 0);
  CHECK(held->finished != 0 && held->complete_at == -7 && held->held != 0);
  CHECK(held->reserved[0] == 0 && held->reserved[1] == 0);
  stepstash_builds_free(builds);
  REQUIRE_CODE(stepstash_hold(client, 51, 0), STEPSTASH_OK);
  REQUIRE_CODE(stepstash_drop(client, 50, NULL), STEPSTASH_OK);
  REQUIRE_CODE(stepstash_drop(client, 51, NULL), STEPSTASH_OK);
  CHECK_CODE(stepstash_list_builds(NULL, &builds), STEPSTASH_EINVAL);
  CHECK_CODE(stepstash_list_builds(client, NULL), STEPSTASH_EINVAL);
  stepstash_builds_free(NULL);
}

static void a_list_is_in_id_order_and_can_be_of_one_name(void) {
  stepstash_list* list = NULL;
  char name[16];
  for (int i = 99; i >= 0; --i) {
    snprintf(name, sizeof name, "n%02d", i);
    REQUIRE_CODE(stepstash_set(client, 47, name, name, 3, "lister", NULL, NULL), STEPSTASH_OK);
  }
  REQUIRE_CODE(stepstash_list_build(client, 47, NULL, &list), STEPSTASH_OK);
  CHECK(list->count == 100);
  for (size_t i = 0; i < list->count; ++i) {
    snprintf(name, sizeof name, "n%02zu", 99 - i);
    CHECK(strcmp(list->entries[i].name, name) == 0 && strcmp(list->entries[i].source, "lister") == 0);
    CHECK(list->entries[i].build == 47 && list->entries[i].length == 3 && list->entries[i].revision > 0);
    CHECK(i == 0 || list->entries[i].id > list->entries[i - 1].id);
  }
  stepstash_list_free(list);
  REQUIRE_CODE(stepstash_list_build(client, 47, "n50", &list), STEPSTASH_OK);
  CHECK(list->count == 1 && strcmp(list->entries[0].name, "n50") == 0);
  stepstash_list_free(list);
  REQUIRE_CODE(stepstash_list_build(client, 47, "absent", &list), STEPSTASH_OK);
  CHECK(list->count == 0);
  stepstash_list_free(list);
  REQUIRE_CODE(stepstash_list_build(client, 4711, NULL, &list), STEPSTASH_OK);
  CHECK(list->count == 0);
  stepstash_list_free(list);
  stepstash_list_free(NULL);
  CHECK_CODE(stepstash_list_build(client, 0, NULL, &list), STEPSTASH_EINVAL);
  CHECK(list == NULL);
}

static void waiting_ends_when_the_name_appears_or_the_time_is_over(void) {
  stepstash_view view;
  CHECK_CODE(stepstash_wait(client, 48, "never", 0, &view), STEPSTASH_EDEADLINE);
  CHECK_CODE(stepstash_wait(client, 48, "never", 30, &view), STEPSTASH_EDEADLINE);
  CHECK(strstr(stepstash_error_message(), "not found") != NULL);
  /* The child waits on the parent's client; the parent sets when the child is on its way. */
  int ready[2];
  CHECK(pipe(ready) == 0);
  const pid_t child = fork();
  if (child == 0) {
    if (write(ready[1], "x", 1) != 1) _exit(3);
    if (stepstash_wait(client, 48, "later", 20000, &view) != STEPSTASH_OK) _exit(1);
    _exit(view.length == 5 && memcmp(view.data, "there", 5) == 0 ? 0 : 2);
  }
  char byte;
  CHECK(read(ready[0], &byte, 1) == 1);
  REQUIRE_CODE(stepstash_set(client, 48, "later", "there", 5, "", NULL, NULL), STEPSTASH_OK);
  int status = -1;
  waitpid(child, &status, 0);
  CHECK(status == 0);
  close(ready[0]);
  close(ready[1]);
  REQUIRE_CODE(stepstash_wait(client, 48, "later", 0, &view), STEPSTASH_OK);
  stepstash_release(&view);
}

static void builds_are_finished_held_pruned_and_dropped(void) {
  uint64_t count = 99;
  for (int build = 50; build < 53; ++build) {
    REQUIRE_CODE(stepstash_set(client, build, "a", "1", 1, "", NULL, NULL), STEPSTASH_OK);
    REQUIRE_CODE(stepstash_set(client, build, "b", "2", 1, "", NULL, NULL), STEPSTASH_OK);
  }
  CHECK_CODE(stepstash_finish(client, 50, 1000), STEPSTASH_OK);
  CHECK_CODE(stepstash_finish(client, 51, 1000), STEPSTASH_OK);
  CHECK_CODE(stepstash_hold(client, 51, 1), STEPSTASH_OK);
  CHECK_CODE(stepstash_prune(client, 1000, &count), STEPSTASH_OK);
  CHECK(count == 0); /* strictly older */
  CHECK_CODE(stepstash_prune(client, 1001, &count), STEPSTASH_OK);
  CHECK(count == 2);
  stepstash_view view;
  CHECK_CODE(stepstash_get(client, 50, "a", &view), STEPSTASH_MISS);
  CHECK_CODE(stepstash_get(client, 51, "a", &view), STEPSTASH_OK);
  stepstash_release(&view);
  CHECK_CODE(stepstash_hold(client, 51, 0), STEPSTASH_OK);
  CHECK_CODE(stepstash_prune(client, 1001, NULL), STEPSTASH_OK);
  CHECK_CODE(stepstash_get(client, 51, "a", &view), STEPSTASH_MISS);
  CHECK_CODE(stepstash_drop(client, 52, &count), STEPSTASH_OK);
  CHECK(count == 2);
  CHECK_CODE(stepstash_finish(client, 52, STEPSTASH_NOW), STEPSTASH_OK);
  CHECK_CODE(stepstash_finish(client, 0, STEPSTASH_NOW), STEPSTASH_EINVAL);
  CHECK_CODE(stepstash_hold(NULL, 1, 1), STEPSTASH_EINVAL);
}

static void durable_sets_and_flushes_return_after_the_commit(void) {
  stepstash_set_options options = {0};
  options.size = sizeof options;
  options.durable = 1;
  options.deadline_ms = 30000;
  char* json = NULL;
  CHECK_CODE(stepstash_set(client, 54, "durable", "d", 1, "", &options, NULL), STEPSTASH_OK);
  CHECK_CODE(stepstash_set(client, 54, "soon", "s", 1, "", NULL, NULL), STEPSTASH_OK);
  CHECK_CODE(stepstash_flush(client, 30000), STEPSTASH_OK);
  CHECK_CODE(stepstash_flush(client, 0), STEPSTASH_OK);
  REQUIRE_CODE(stepstash_stats(client, &json), STEPSTASH_OK);
  CHECK(json[0] == '{' && strstr(json, "\"dirty_bytes\":0") != NULL);
  stepstash_free(json);
  stepstash_free(NULL);
  CHECK_CODE(stepstash_stats(client, NULL), STEPSTASH_EINVAL);
}

static void the_limit_of_open_views_is_told(void) {
  static stepstash_view views[512];
  int open = 0;
  while (open < 512 && stepstash_get(client, 42, "report", &views[open]) == STEPSTASH_OK) ++open;
  CHECK(open == 441);
  CHECK_CODE(stepstash_get(client, 42, "report", &views[511]), STEPSTASH_ELIMIT);
  CHECK(strstr(stepstash_error_message(), "441") != NULL);
  for (int i = 0; i < open; ++i) stepstash_release(&views[i]);
  CHECK_CODE(stepstash_get(client, 42, "report", &views[0]), STEPSTASH_OK);
  stepstash_release(&views[0]);
}

static void standard_descriptors_that_are_closed_stay_closed(void) {
  REQUIRE_CODE(stepstash_set(client, 7, "kept", "v", 1, "", NULL, NULL), STEPSTASH_OK);
  for (int closed = 1; closed < 8; ++closed) {
    const pid_t child = fork();
    if (child == 0) {
      for (int fd = 0; fd < 3; ++fd) {
        if ((closed >> fd & 1) != 0) close(fd);
      }
      stepstash_client* own = NULL;
      if (stepstash_connect(socket_path, 5000, &own) != STEPSTASH_OK) _exit(1);
      unsigned char* bytes = pattern(300000, 6);
      if (stepstash_set(own, 55, "large", bytes, 300000, "", NULL, NULL) != STEPSTASH_OK) _exit(2);
      if (stepstash_set(client, 55, "on the parent's", bytes, 300000, "", NULL, NULL) != STEPSTASH_OK) _exit(3);
      for (int fd = 0; fd < 3; ++fd) {
        if ((closed >> fd & 1) != 0 && (fcntl(fd, F_GETFD) >= 0 || errno != EBADF)) _exit(10 + fd);
        /* docs/protocol.md: the request to drop build 7 */
        if ((closed >> fd & 1) != 0 && write(fd, "\x08\0\0\0\x0c\0\0\0\x07\0\0\0\0\0\0\0", 16) >= 0) _exit(20 + fd);
      }
      _exit(0);
    }
    int status = -1;
    waitpid(child, &status, 0);
    CHECK(status == 0);
  }
  stepstash_view view;
  REQUIRE_CODE(stepstash_get(client, 7, "kept", &view), STEPSTASH_OK);
  stepstash_release(&view);
}

static void a_child_goes_on_with_its_parents_client(void) {
  stepstash_view view;
  stepstash_writer* writer = NULL;
  REQUIRE_CODE(stepstash_get(client, 42, "report", &view), STEPSTASH_OK);
  REQUIRE_CODE(stepstash_set_begin(client, 42, "unfinished", 200000, "", NULL, &writer), STEPSTASH_OK);
  const pid_t child = fork();
  if (child == 0) {
    if (view.length != 7 || memcmp(view.data, "failed\n", 7) != 0) _exit(1); /* the parent's view stays readable */
    stepstash_view own;
    if (stepstash_get(client, 42, "report", &own) != STEPSTASH_OK || own.length != 7) _exit(2);
    stepstash_release(&view); /* does nothing: the pin is the parent's */
    stepstash_release(&own);
    if (stepstash_writer_write(writer, "x", 1) != STEPSTASH_EINVAL) _exit(3); /* nor is the writer the child's */
    if (stepstash_set(client, 42, "from child", "c", 1, "", NULL, NULL) != STEPSTASH_OK) _exit(4);
    stepstash_writer_abort(writer);
    stepstash_close(client);
    _exit(0);
  }
  int status = -1;
  waitpid(child, &status, 0);
  CHECK(status == 0);
  /* Replace it and set others: had the child given up our pin, the block could be overwritten. */
  for (int i = 0; i < 100; ++i) {
    REQUIRE_CODE(stepstash_set(client, 42, "report", "changed", 7, "", NULL, NULL), STEPSTASH_OK);
  }
  CHECK(view.length == 7 && memcmp(view.data, "failed\n", 7) == 0);
  stepstash_release(&view);
  unsigned char* bytes = pattern(200000, 3);
  CHECK_CODE(stepstash_writer_write(writer, bytes, 200000), STEPSTASH_OK);
  CHECK_CODE(stepstash_writer_commit(writer, NULL), STEPSTASH_OK);
  free(bytes);
  REQUIRE_CODE(stepstash_get(client, 42, "from child", &view), STEPSTASH_OK);
  stepstash_release(&view);
}

static void gets_go_on_while_the_daemon_is_dead_and_sets_when_it_is_back(void) {
  stepstash_view held, view;
  REQUIRE_CODE(stepstash_get(client, 42, "report", &held), STEPSTASH_OK);
  end_daemon(SIGKILL);
  REQUIRE_CODE(stepstash_get(client, 43, "once", &view), STEPSTASH_OK);
  CHECK(view.length == 1 && *(const char*)view.data == '3');
  stepstash_release(&view);
  CHECK_CODE(stepstash_get(client, 42, "absent", &view), STEPSTASH_MISS);

  stepstash_set_options options = {0};
  options.size = sizeof options;
  options.deadline_ms = 20;
  CHECK_CODE(stepstash_set(client, 42, "down", "", 0, "", &options, NULL), STEPSTASH_EUNAVAILABLE);
  CHECK(strstr(stepstash_error_message(), socket_path) != NULL);

  start_daemon(); /* not waited for: the client does that, within its deadline */
  REQUIRE_CODE(stepstash_set(client, 42, "up", "again", 5, "", NULL, NULL), STEPSTASH_OK);
  REQUIRE_CODE(stepstash_get(client, 42, "up", &view), STEPSTASH_OK);
  CHECK(view.length == 5 && memcmp(view.data, "again", 5) == 0);
  stepstash_release(&view);
  CHECK(held.length == 7 && memcmp(held.data, "changed", 7) == 0);
  stepstash_release(&held);

  /* A conditional set works right after a restart, too: the dead connection is noticed before it is used. */
  end_daemon(SIGTERM);
  start_daemon();
  memset(&options, 0, sizeof options);
  options.size = sizeof options;
  options.if_absent = 1;
  CHECK_CODE(stepstash_set(client, 42, "after restart", "1", 1, "", &options, NULL), STEPSTASH_OK);
  unsigned char* bytes = pattern(5000000, 4);
  end_daemon(SIGKILL);
  start_daemon();
  CHECK_CODE(stepstash_set(client, 42, "large after restart", bytes, 5000000, "", NULL, NULL), STEPSTASH_OK);
  REQUIRE_CODE(stepstash_get(client, 42, "large after restart", &view), STEPSTASH_OK);
  CHECK(view_has_pattern(&view, 5000000, 4));
  stepstash_release(&view);
  free(bytes);
}

#define RUN(test)                                                       \
  do {                                                                  \
    current = #test;                                                    \
    const int was = failures;                                           \
    test();                                                             \
    printf("%s  %s\n", failures == was ? "ok    " : "FAILED", current); \
    fflush(stdout);                                                     \
  } while (0)

int main(int argc, char** argv) {
  binary = argc > 1 ? argv[1] : getenv("STEPSTASHD");
  if (binary == NULL) {
    fprintf(stderr, "usage: c_abi_test PATH-OF-STEPSTASHD\n");
    return 64;
  }
  if (mkdtemp(directory) == NULL) return perror(directory), 1;
  unsetenv("STEPSTASH_SOCKET");
  unsetenv("XDG_RUNTIME_DIR");
  snprintf(socket_path, sizeof socket_path, "%s/s", directory);
  snprintf(database, sizeof database, "%s/db", directory);
  snprintf(segment, sizeof segment, "stepstash-abi-%d", (int)getpid());
  int major, minor, patch;
  CHECK(sscanf(stepstash_version(), "%d.%d.%d", &major, &minor, &patch) == 3);

  start_daemon();
  client = connect_when_ready();
  RUN(connecting_says_what_is_wrong);
  RUN(the_socket_comes_from_the_environment);
  RUN(what_was_set_is_found_in_place);
  RUN(an_empty_value_differs_from_none);
  RUN(stat_has_everything_but_the_value);
  RUN(try_get_answers_from_the_segment_and_does_not_reload_an_evicted_value);
  RUN(arguments_outside_their_range_are_named);
  RUN(conditions_are_kept);
  RUN(values_of_every_size_come_back);
  RUN(a_value_that_can_never_fit_is_refused_at_once);
  RUN(a_writer_publishes_at_commit_only);
  RUN(a_writers_room_is_filled_in_place);
  RUN(a_writer_that_is_aborted_or_cut_short_leaves_nothing);
  RUN(a_writers_condition_is_kept_at_commit);
  RUN(files_and_pipes_are_read_to_their_end);
  RUN(builds_are_listed_with_what_they_take);
  RUN(a_list_is_in_id_order_and_can_be_of_one_name);
  RUN(waiting_ends_when_the_name_appears_or_the_time_is_over);
  RUN(builds_are_finished_held_pruned_and_dropped);
  RUN(durable_sets_and_flushes_return_after_the_commit);
  RUN(the_limit_of_open_views_is_told);
  RUN(standard_descriptors_that_are_closed_stay_closed);
  RUN(a_child_goes_on_with_its_parents_client);
  RUN(gets_go_on_while_the_daemon_is_dead_and_sets_when_it_is_back);
  stepstash_close(client);
  if (failures != 0) fprintf(stderr, "%d checks failed\n", failures);
  exit_with_daemon(failures == 0 ? 0 : 1);
  return 1;
}
