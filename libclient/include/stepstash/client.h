/* SPDX-License-Identifier: Apache-2.0 */
/**
 * stepstash: build data in shared memory, read in place. This is the C ABI, the complete public interface.
 *
 * A *build datum* is identified by (build, name): build is 1 .. 2^63-1, name is UTF-8 of 0..256 characters without
 * NUL. It has a value (bytes; zero bytes are legal and differ from absent), a source (0..256 characters that say where
 * it came from), an id (unique forever, kept when the value is replaced) and a revision (changes with every set).
 *
 * Return values. Every function that returns int gives STEPSTASH_OK (0), a positive answer that is not an error
 * (STEPSTASH_MISS, STEPSTASH_UNMET, STEPSTASH_ASK), or a negative STEPSTASH_E.... stepstash_error_message() then says,
 * for the calling thread, what happened, to what, with which numbers. No function throws or calls exit.
 *
 * Threads. A stepstash_client may be used by any number of threads at once. A stepstash_writer and the lists belong to
 * one thread at a time. A view may be read by any thread and is released once. A thread takes pins for its views seven
 * at a time and keeps them until it ends: STEPSTASH_ELIMIT may come before 441 views where many threads have held many.
 * No function may be called from a signal handler.
 *
 * Lifetime. A client outlives its views, writers and lists.
 *
 * fork. A child may continue to use the parent's client: it reconnects automatically on first use. Views that are open
 * at the fork stay readable in the child, with their bytes, as long as the parent lives and has not released them;
 * releasing them in the child has no effect. A view is open at the fork if its call returned before fork was called: a
 * view that another thread opens meanwhile may not exist in the child, and reading it is a fault. A writer stays the
 * parent's, and its buffer does not exist in the child. A child that does not use stepstash keeps nothing of its
 * parent's: no view, no connection, no memory except the segment of views that were open. All this is for fork(3). A
 * child of clone(2) or _Fork(3), which run no handlers, has no views, and keeps the connections until it uses the
 * client, calls exec or exits; vfork(2) and posix_spawn(3) copy nothing.
 *
 * Other segments. When the daemon switches to another segment (a restore, another configuration), a client reads from
 * it within a second, or after its next call that asks the daemon. Views of the former segment stay valid.
 *
 * Descriptors. The library never uses 0, 1 and 2, even if the program runs with one of them closed; exec closes the
 * library's own.
 *
 * Strings are NUL-terminated UTF-8. The library keeps no pointers that are passed in.
 *
 * Caveats
 *
 * - Release every view, once. A view keeps its value's memory from being reused, even after the value was replaced or
 *   its build deleted. A client has 441 of them; and a user whose views, over all processes, hold more than a quarter
 *   of the segment while others find no room gets no further ones (ELIMIT).
 * - A copied stepstash_view is the same view: release one of the copies, and use none of them afterwards.
 * - A view lies in a read-only mapping. Writing through its pointers raises SIGSEGV.
 * - A view's name and source are not NUL-terminated: use name_bytes and source_bytes. Nor is a value, unless it was
 *   set with a NUL at its end.
 * - stepstash_close invalidates all views of the client, including those of other threads. Stop using them first.
 * - OK from a set means that every process sees the value and that it survives the death of any process. It does not
 *   mean that it survives a loss of power: for that request `durable`, or call stepstash_flush.
 * - EUNAVAILABLE and EDEADLINE from a call that changes something may mean that it was done and the answer was lost.
 *   Repeat the call: a set of the same bytes is the same value with a new revision. With if_absent or if_revision,
 *   first check whether the value is yours.
 * - A view shows the datum as it was when the view was made. Call stepstash_get again to see whether the datum has
 *   changed since: compare revisions, not ids.
 * - A client whose process is killed leaves nothing behind: the kernel drops its pins. There is no reader table to
 *   clean up. A stopped process (SIGSTOP, a debugger) keeps what it holds for as long as it is stopped.
 * - From 0.2.0 on, a daemon serves the libraries of its own minor version and of the one before it. Any other library
 *   gets EPROTOCOL, and a text that names both versions. Upgrade the daemon first, then containers that bring their own
 *   library.
 * - One machine: the segment cannot be shared over a network, nor between a virtual machine and its host.
 */
#ifndef STEPSTASH_CLIENT_H
#define STEPSTASH_CLIENT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define STEPSTASH_API __attribute__((visibility("default")))
#define STEPSTASH_NODISCARD __attribute__((warn_unused_result))
#else
#define STEPSTASH_API
#define STEPSTASH_NODISCARD
#endif

/** Answers. */
enum {
  STEPSTASH_OK = 0,
  STEPSTASH_MISS = 1,  /**< there is no such build data */
  STEPSTASH_UNMET = 2, /**< set: if-absent or if-revision did not hold; nothing was changed */
  STEPSTASH_ASK = 3,   /**< try_get: stepstash_get can tell, and may have to ask the daemon */

  STEPSTASH_EINVAL = -1,       /**< an argument outside its documented range: correct the call */
  STEPSTASH_ENOMEM = -2,       /**< this process is out of memory */
  STEPSTASH_EUNAVAILABLE = -3, /**< the daemon cannot be reached, or the connection broke and the outcome is unknown */
  STEPSTASH_EDEADLINE = -4,    /**< the deadline passed: retry later, or with a longer one */
  STEPSTASH_EFULL = -5,      /**< no room before the deadline: retry later, prune, or enlarge what the message names */
  STEPSTASH_ETOOLARGE = -6,  /**< the value can never fit the segment */
  STEPSTASH_EPERM = -7,      /**< this user may not do that */
  STEPSTASH_ECORRUPT = -8,   /**< the stored value is damaged; it is not served */
  STEPSTASH_EIO = -9,        /**< a file, pipe or database could not be read or written */
  STEPSTASH_EPROTOCOL = -10, /**< daemon and library are incompatible: compare their versions */
  STEPSTASH_ELIMIT = -11,    /**< too many open views or connections: release some */
  STEPSTASH_EINTERNAL = -12  /**< a defect in stepstash: please report it */
};

typedef struct stepstash_client stepstash_client;
typedef struct stepstash_writer stepstash_writer;

/** The library's version, "MAJOR.MINOR.PATCH". Never NULL. */
STEPSTASH_API const char* stepstash_version(void);

/** Explains the last failed call of this thread, as text. Valid until this thread's next call; never NULL. */
STEPSTASH_API const char* stepstash_error_message(void);

/* ---- the connection ------------------------------------------------------------------------------------ */

/**
 * Creates a client and connects it. `socket` NULL means $STEPSTASH_SOCKET, else the socket of this user's own daemon
 * if it exists, else /run/stepstash/stepstash.sock (stepstashd(8), PLACES). `deadline_ms` bounds connecting now, and
 * each later call that asks the daemon unless that call has a deadline of its own; 0 means 10,000. Errors:
 * EUNAVAILABLE (no daemon within the deadline), EPERM, EPROTOCOL, EINVAL (path longer than a unix socket's 107 bytes,
 * or empty, here or in STEPSTASH_SOCKET), ELIMIT (no descriptors left), ENOMEM.
 */
STEPSTASH_API STEPSTASH_NODISCARD int stepstash_connect(const char* socket, uint32_t deadline_ms,
                                                        stepstash_client** client);

/** Closes the connection and unmaps the segment: no view of this client may be used afterwards. NULL is allowed. */
STEPSTASH_API void stepstash_close(stepstash_client* client);

/* ---- reading ------------------------------------------------------------------------------------------- */

/**
 * A build datum in place in the segment. All memory pointed to stays in place, unchanged, until the view is released,
 * whatever happens to the datum, the build or the daemon. A copied struct is the same view.
 */
typedef struct stepstash_view {
  const void* data; /**< the value; not NULL when resident, even for 0 bytes. NULL after stepstash_stat */
  uint64_t length;  /**< bytes of the value */
  uint64_t id;
  uint64_t revision;
  int64_t build;
  const char* name;   /**< NOT NUL-terminated: name_bytes bytes */
  const char* source; /**< NOT NUL-terminated: source_bytes bytes */
  uint32_t name_bytes;
  uint32_t source_bytes;
  uint64_t reserved[4]; /**< private to the library */
} stepstash_view;

/**
 * Finds (build, name) and pins its value in place. Resident values cost no lock, no copy and no system call, and are
 * found even while the daemon is down. For an evicted value, asks the daemon to reload it. Returns OK, MISS; EINVAL,
 * ELIMIT (441 views are open; or the views of this user, over all processes, hold more than a quarter of the segment
 * while others find no room: existing views stay valid, release some), ECORRUPT, EUNAVAILABLE, EDEADLINE, EFULL (no
 * room to reload it).
 */
STEPSTASH_API STEPSTASH_NODISCARD int stepstash_get(stepstash_client* client, int64_t build, const char* name,
                                                    stepstash_view* view);

/**
 * As stepstash_get, but never waits: for a thread that must not, such as that of an event loop. Returns OK if the value
 * is resident, MISS, EINVAL; and ASK in every other case, in which stepstash_get reloads the value or says what is
 * wrong.
 */
STEPSTASH_API STEPSTASH_NODISCARD int stepstash_try_get(stepstash_client* client, int64_t build, const char* name,
                                                        stepstash_view* view);

/** As stepstash_get, but waits up to `deadline_ms` for the name to appear. EDEADLINE if it did not. */
STEPSTASH_API STEPSTASH_NODISCARD int stepstash_wait(stepstash_client* client, int64_t build, const char* name,
                                                     uint32_t deadline_ms, stepstash_view* view);

/** As stepstash_get without the value: `data` is NULL, `length` is valid. Never asks the daemon. Release this view
 * as well. */
STEPSTASH_API STEPSTASH_NODISCARD int stepstash_stat(stepstash_client* client, int64_t build, const char* name,
                                                     stepstash_view* view);

/** Releases a view; all its pointers become invalid. A view that is all zeros, or already released, is allowed. */
STEPSTASH_API void stepstash_release(stepstash_view* view);

typedef struct stepstash_entry {
  uint64_t id;
  uint64_t revision;
  int64_t build;
  uint64_t length;
  const char* name;   /**< NUL-terminated */
  const char* source; /**< NUL-terminated */
} stepstash_entry;

typedef struct stepstash_list {
  size_t count;
  const stepstash_entry* entries; /**< in id order */
} stepstash_list;

/** All entries of a build, a consistent snapshot; if `name` is not NULL, only that one. An unknown build gives an
 * empty list. The caller frees the list. */
STEPSTASH_API STEPSTASH_NODISCARD int stepstash_list_build(stepstash_client* client, int64_t build, const char* name,
                                                           stepstash_list** list);
STEPSTASH_API void stepstash_list_free(stepstash_list* list);

typedef struct stepstash_build {
  int64_t build;
  uint64_t entries;
  uint64_t resident_bytes; /**< of its values that are in the segment */
  uint64_t evicted_bytes;  /**< of its values that are only in the database */
  int64_t complete_at;     /**< seconds since 1970; 0 if not finished */
  int finished;            /**< non-zero: finished */
  int held;                /**< non-zero: its data is not pruned */
  uint64_t reserved[2];
} stepstash_build;

typedef struct stepstash_builds {
  size_t count;
  const stepstash_build* builds; /**< in ascending order */
} stepstash_builds;

/**
 * All builds that have data. They are fetched 256 at a time, each page a snapshot, so a build that is created or
 * deleted meanwhile may or may not be in the list. The caller frees the list.
 */
STEPSTASH_API STEPSTASH_NODISCARD int stepstash_list_builds(stepstash_client* client, stepstash_builds** builds);
STEPSTASH_API void stepstash_builds_free(stepstash_builds* builds);

/* ---- writing ------------------------------------------------------------------------------------------- */

/** Zero it, set `size` to sizeof, then the options you need. Passing NULL for options means all zeros. */
typedef struct stepstash_set_options {
  size_t size;
  int durable;          /**< non-zero: return only after the database has committed it */
  int if_absent;        /**< non-zero: UNMET if the name exists */
  uint64_t if_revision; /**< non-zero: UNMET unless the entry has this revision */
  uint32_t deadline_ms; /**< for room and for the commit; 0: the client's */
} stepstash_set_options;

typedef struct stepstash_set_result {
  uint64_t id;
  uint64_t revision;
} stepstash_set_result;

#define STEPSTASH_UNKNOWN_LENGTH UINT64_MAX

/**
 * Sets (build, name) to `length` bytes at `data`, adding or replacing. `source` NULL is "". `result` may be NULL.
 * On OK every process sees it, and it survives the death of any process; with `durable` also power loss.
 * Returns OK, UNMET; EINVAL, EFULL, ETOOLARGE, EPERM, EUNAVAILABLE, EDEADLINE, EIO.
 */
STEPSTASH_API STEPSTASH_NODISCARD int stepstash_set(stepstash_client* client, int64_t build, const char* name,
                                                    const void* data, size_t length, const char* source,
                                                    const stepstash_set_options* options, stepstash_set_result* result);

/**
 * As stepstash_set, with everything that can be read from `fd` from its current position to its end: a file, a pipe,
 * a socket. A file's reported size is a hint: a file that holds another number of bytes is read again, to its end; EIO
 * if it cannot be repositioned. Waits if `fd` is non-blocking.
 */
STEPSTASH_API STEPSTASH_NODISCARD int stepstash_set_fd(stepstash_client* client, int64_t build, const char* name,
                                                       int fd, const char* source, const stepstash_set_options* options,
                                                       stepstash_set_result* result);

/**
 * Begins a set whose value comes in pieces: begin, write as often as needed, then commit or abort. Nothing is visible
 * before commit. `length` is the value's, or STEPSTASH_UNKNOWN_LENGTH (more expensive: room is found as it grows).
 */
STEPSTASH_API STEPSTASH_NODISCARD int stepstash_set_begin(stepstash_client* client, int64_t build, const char* name,
                                                          uint64_t length, const char* source,
                                                          const stepstash_set_options* options,
                                                          stepstash_writer** writer);
/** Appends bytes. An error is final for this writer: abort it. EINVAL if there are more bytes than announced. */
STEPSTASH_API STEPSTASH_NODISCARD int stepstash_writer_write(stepstash_writer* writer, const void* data, size_t bytes);
/**
 * Avoids a copy: returns *bytes of room (never 0 on OK) inside the staging ring. Fill it, then pass the number of bytes
 * to stepstash_writer_advance. May wait for the daemon to take earlier pieces.
 */
STEPSTASH_API STEPSTASH_NODISCARD int stepstash_writer_buffer(stepstash_writer* writer, void** data, size_t* bytes);
STEPSTASH_API STEPSTASH_NODISCARD int stepstash_writer_advance(stepstash_writer* writer, size_t bytes);
/** Publishes the value and frees the writer, whatever it returns. EINVAL if there are fewer bytes than announced. */
STEPSTASH_API STEPSTASH_NODISCARD int stepstash_writer_commit(stepstash_writer* writer, stepstash_set_result* result);
/** Discards the value and frees the writer. NULL is allowed. */
STEPSTASH_API void stepstash_writer_abort(stepstash_writer* writer);

/* ---- builds -------------------------------------------------------------------------------------------- */

#define STEPSTASH_NOW INT64_MIN
#define STEPSTASH_REOPEN INT64_MAX

/** Records that the build completed at `complete_at` seconds since 1970 (STEPSTASH_NOW: the daemon's clock). A
 * repeated call changes the time; with STEPSTASH_REOPEN the build is not finished any more, and its data is not pruned.
 */
STEPSTASH_API STEPSTASH_NODISCARD int stepstash_finish(stepstash_client* client, int64_t build, int64_t complete_at);
/** Deletes the data of builds completed strictly before `older_than`, atomically for all clients. Stores the number
 * of entries in *count (may be NULL). Keeps held builds. */
STEPSTASH_API STEPSTASH_NODISCARD int stepstash_prune(stepstash_client* client, int64_t older_than, uint64_t* count);
/** Deletes all data of one build, held or not, atomically for all clients. Stores the number of entries in *count
 * (may be NULL). */
STEPSTASH_API STEPSTASH_NODISCARD int stepstash_drop(stepstash_client* client, int64_t build, uint64_t* count);
/** Protects a build's data from pruning (`held` non-zero), or ends the protection. */
STEPSTASH_API STEPSTASH_NODISCARD int stepstash_hold(stepstash_client* client, int64_t build, int held);

/* ---- the daemon ---------------------------------------------------------------------------------------- */

/** Returns once everything acknowledged before the call is committed to the database. `deadline_ms` 0: the client's
 * deadline. */
STEPSTASH_API STEPSTASH_NODISCARD int stepstash_flush(stepstash_client* client, uint32_t deadline_ms);
/** The daemon's counters as NUL-terminated JSON text; free it with stepstash_free. */
STEPSTASH_API STEPSTASH_NODISCARD int stepstash_stats(stepstash_client* client, char** json);
STEPSTASH_API void stepstash_free(void* memory);

#ifdef __cplusplus
}
#endif
#endif
