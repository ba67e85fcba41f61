/* SPDX-License-Identifier: Apache-2.0 */
/**
 * stepstash: build data in shared memory, read in place. The C ABI, all that is promised.
 *
 * A *build datum* is found by (build, name): build is 1 .. 2^63-1, name is UTF-8 of 0..256 characters without NUL; it
 * has a value (bytes; none at all is legal and differs from absent), a source (0..256 characters that say where it came
 * from), an id (unique for ever, kept when the value is replaced) and a revision (changes with every set).
 *
 * Return values. Every function that returns int gives STEPSTASH_OK (0), a positive answer that is no error
 * (STEPSTASH_MISS, STEPSTASH_UNMET), or a negative STEPSTASH_E.... stepstash_error_message() then tells, for the
 * calling thread, what happened, to what, with which numbers. Nothing throws, nothing calls exit.
 *
 * Threads. A stepstash_client may be used by any number of threads at once. A stepstash_writer and the lists belong to
 * one thread at a time. A view may be read by any thread and is released once.
 *
 * Lifetime. A client outlives its views, writers and lists.
 *
 * fork. A child may go on using the parent's client: it connects anew by itself on first use. Views that are open at
 * the fork stay readable in the child, with their bytes as long as the parent lives and has not released them;
 * releasing them in the child does nothing. Open at the fork is a view whose call returned before fork was called: one
 * that another thread opens meanwhile may not be there in the child, and reading it is a fault. A writer stays the
 * parent's, and its room is not there in the child. A child that does not use stepstash keeps nothing of its parent's:
 * no view, no connection, no memory but the segment of views that were open. That is for fork(3). A child of clone(2)
 * or _Fork(3), which run no handlers, finds no views, and keeps the connections until it uses the client, calls exec or
 * ends; vfork(2) and posix_spawn(3) copy nothing.
 *
 * Other segments. When the daemon goes on with another segment (a restore, another configuration), a client reads from
 * that one within a second, or after its next call that asks the daemon. Views of the former one stay valid.
 *
 * Descriptors. The library keeps off 0, 1 and 2, also where the program runs with one of them closed; its own are
 * closed by exec.
 *
 * Strings are NUL-terminated UTF-8. Pointers passed in are not kept.
 *
 * Caveats
 *
 * - Release every view, once. A view keeps its value's memory from being used again, also after the value was replaced
 *   or its build deleted. A client has 441 of them; and a user whose views, all processes together, hold more than a
 *   quarter of the segment while others find no room gets no further ones (ELIMIT).
 * - A copied stepstash_view is the same view: release one of the copies, and use none of them afterwards.
 * - A view lies in a mapping that is read-only. Writing through its pointers is SIGSEGV, not a change.
 * - A view's name and source are not NUL-terminated: use name_bytes and source_bytes. Nor is a value, unless it was
 *   set with a NUL at its end.
 * - stepstash_close makes all views of the client void, those of other threads too. End their use first.
 * - OK from a set means that every process sees the value and that it survives the death of any process. It does not
 *   mean that it survives a loss of power: for that ask for `durable`, or call stepstash_flush.
 * - EUNAVAILABLE and EDEADLINE from a call that changes something may mean that it was done and the answer was lost. Do
 *   it again: a set of the same bytes is the same value with a new revision. With if_absent or if_revision look first
 *   whether it was you.
 * - A view is of the instant it was made. Call stepstash_get again to see whether the datum has changed since;
 *   comparing ids does not tell, comparing revisions does.
 * - A client whose process is killed leaves nothing behind: the kernel drops its pins. There is no table of readers to
 *   be cleaned up. A process that stands still (SIGSTOP, a debugger) keeps what it holds for as long as it stands.
 * - Library and daemon must speak the same protocol and know the same segment layout: EPROTOCOL says that they do not.
 *   A container that brings a library of its own follows the daemon's version.
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

  STEPSTASH_EINVAL = -1,       /**< an argument outside its documented range: correct the call */
  STEPSTASH_ENOMEM = -2,       /**< this process is out of memory */
  STEPSTASH_EUNAVAILABLE = -3, /**< the daemon cannot be reached, or the connection broke and the outcome is unknown */
  STEPSTASH_EDEADLINE = -4,    /**< the deadline passed: try later, or with a longer one */
  STEPSTASH_EFULL = -5,        /**< no room before the deadline: try later, prune, or enlarge what the message names */
  STEPSTASH_ETOOLARGE = -6,    /**< the value can never fit the segment */
  STEPSTASH_EPERM = -7,        /**< this user may not do that */
  STEPSTASH_ECORRUPT = -8,     /**< the stored value is damaged; it is not served */
  STEPSTASH_EIO = -9,          /**< a file, pipe or database could not be read or written */
  STEPSTASH_EPROTOCOL = -10,   /**< daemon and library do not understand each other: are their versions alike? */
  STEPSTASH_ELIMIT = -11,      /**< too many open views or connections: release some */
  STEPSTASH_EINTERNAL = -12    /**< a defect in stepstash: please report it */
};

typedef struct stepstash_client stepstash_client;
typedef struct stepstash_writer stepstash_writer;

/** The library's version, "MAJOR.MINOR.PATCH". Never NULL. */
STEPSTASH_API const char* stepstash_version(void);

/** Says for people what the last failed call of this thread met. Valid until this thread's next call; never NULL. */
STEPSTASH_API const char* stepstash_error_message(void);

/* ---- the connection ------------------------------------------------------------------------------------------------
 */

/**
 * Makes a client and connects it. `socket` NULL means $STEPSTASH_SOCKET, else the socket of this user's own daemon
 * where there is one, else /run/stepstash/stepstash.sock (stepstashd(8), PLACES). `deadline_ms` bounds connecting now,
 * and each later call that asks the daemon unless that call names a deadline of its own; 0 means 10,000. Errors:
 * EUNAVAILABLE (no daemon within the deadline), EPERM, EPROTOCOL, EINVAL (path longer than a unix socket's 107 bytes,
 * or empty, here or in STEPSTASH_SOCKET), ELIMIT (no descriptors left), ENOMEM.
 */
STEPSTASH_API STEPSTASH_NODISCARD int stepstash_connect(const char* socket, uint32_t deadline_ms,
                                                        stepstash_client** client);

/** Closes the connection and unmaps the segment: no view of this client may be used afterwards. NULL is fine. */
STEPSTASH_API void stepstash_close(stepstash_client* client);

/* ---- reading -------------------------------------------------------------------------------------------------------
 */

/**
 * A build datum as it lies in the segment. Everything pointed to stays where it is, unchanged, until the view is
 * released, whatever happens to the datum, the build or the daemon. A copied struct is the same view.
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
  uint64_t reserved[4]; /**< the library's own */
} stepstash_view;

/**
 * Finds (build, name) and holds its value in place. Resident values cost no lock, no copy and no system call, and are
 * found while the daemon is down. A value that was evicted is asked back from the daemon. Returns OK, MISS; EINVAL,
 * ELIMIT (441 views are open; or the views of this user, all processes together, hold more than a quarter of the
 * segment while others find no room: what is held stays valid, release some), ECORRUPT, EUNAVAILABLE, EDEADLINE, EFULL
 * (no room to bring it back).
 */
STEPSTASH_API STEPSTASH_NODISCARD int stepstash_get(stepstash_client* client, int64_t build, const char* name,
                                                    stepstash_view* view);

/** As stepstash_get, but waits up to `deadline_ms` for the name to appear. EDEADLINE when it did not. */
STEPSTASH_API STEPSTASH_NODISCARD int stepstash_wait(stepstash_client* client, int64_t build, const char* name,
                                                     uint32_t deadline_ms, stepstash_view* view);

/** As stepstash_get without the value: `data` is NULL, `length` is true. Never asks the daemon. Release the view, too.
 */
STEPSTASH_API STEPSTASH_NODISCARD int stepstash_stat(stepstash_client* client, int64_t build, const char* name,
                                                     stepstash_view* view);

/** Lets go of a view; all its pointers are void. A view that is all zeros, or was released, is fine. */
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

/** All entries of a build as of one instant, or with `name` not NULL that one only. An unknown build gives an empty
 * list. Free it. */
STEPSTASH_API STEPSTASH_NODISCARD int stepstash_list_build(stepstash_client* client, int64_t build, const char* name,
                                                           stepstash_list** list);
STEPSTASH_API void stepstash_list_free(stepstash_list* list);

typedef struct stepstash_build {
  int64_t build;
  uint64_t entries;
  uint64_t resident_bytes; /**< of its values in the segment */
  uint64_t evicted_bytes;  /**< of its values that are in the database alone */
  int64_t complete_at;     /**< seconds since 1970; 0 when it has not finished */
  int finished;            /**< not 0: it has */
  int held;                /**< not 0: its data is kept from being pruned */
  uint64_t reserved[2];
} stepstash_build;

typedef struct stepstash_builds {
  size_t count;
  const stepstash_build* builds; /**< in the order of their numbers */
} stepstash_builds;

/**
 * All builds that have data. They come 256 at a time, each time as they are at that instant, so that a build that is
 * made or deleted meanwhile is in the list or not. Free it.
 */
STEPSTASH_API STEPSTASH_NODISCARD int stepstash_list_builds(stepstash_client* client, stepstash_builds** builds);
STEPSTASH_API void stepstash_builds_free(stepstash_builds* builds);

/* ---- writing -------------------------------------------------------------------------------------------------------
 */

/** Zero it, set `size` to sizeof, then what is wanted. NULL where options are taken means all zeros. */
typedef struct stepstash_set_options {
  size_t size;
  int durable;          /**< not 0: return only when the database has committed it */
  int if_absent;        /**< not 0: UNMET when the name is there */
  uint64_t if_revision; /**< not 0: UNMET unless the entry has this revision */
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
 * As stepstash_set, with all that can be read from `fd` from where it stands until its end: a file, a pipe, a socket.
 * The size that a file tells is a hint: one that holds another number of bytes is read again, to its end; EIO where it
 * cannot be positioned. Waits where `fd` does not block.
 */
STEPSTASH_API STEPSTASH_NODISCARD int stepstash_set_fd(stepstash_client* client, int64_t build, const char* name,
                                                       int fd, const char* source, const stepstash_set_options* options,
                                                       stepstash_set_result* result);

/**
 * Opens a set whose value comes in pieces: begin, write as often as needed, then commit or abort. Nothing is visible
 * before commit. `length` is the value's, or STEPSTASH_UNKNOWN_LENGTH (dearer: room is found as it grows).
 */
STEPSTASH_API STEPSTASH_NODISCARD int stepstash_set_begin(stepstash_client* client, int64_t build, const char* name,
                                                          uint64_t length, const char* source,
                                                          const stepstash_set_options* options,
                                                          stepstash_writer** writer);
/** Appends bytes. An error is final for this writer: abort it. EINVAL when more comes than was announced. */
STEPSTASH_API STEPSTASH_NODISCARD int stepstash_writer_write(stepstash_writer* writer, const void* data, size_t bytes);
/**
 * Without a copy: gives room inside the staging ring, *bytes of it (never 0 on OK), to be filled by the caller, then
 * stepstash_writer_advance says how many bytes were. May wait for the daemon to take earlier pieces.
 */
STEPSTASH_API STEPSTASH_NODISCARD int stepstash_writer_buffer(stepstash_writer* writer, void** data, size_t* bytes);
STEPSTASH_API STEPSTASH_NODISCARD int stepstash_writer_advance(stepstash_writer* writer, size_t bytes);
/** Publishes the value and frees the writer, whatever it returns. EINVAL when fewer bytes came than were announced. */
STEPSTASH_API STEPSTASH_NODISCARD int stepstash_writer_commit(stepstash_writer* writer, stepstash_set_result* result);
/** Forgets the value and frees the writer. NULL is fine. */
STEPSTASH_API void stepstash_writer_abort(stepstash_writer* writer);

/* ---- builds --------------------------------------------------------------------------------------------------------
 */

#define STEPSTASH_NOW INT64_MIN

/** Records that the build completed at `complete_at` seconds since 1970 (STEPSTASH_NOW: the daemon's clock). Again:
 * moves it. */
STEPSTASH_API STEPSTASH_NODISCARD int stepstash_finish(stepstash_client* client, int64_t build, int64_t complete_at);
/** Deletes the data of builds completed strictly before `older_than`, all of it at one instant for every client; *count
 * entries (may be NULL). Held builds stay. */
STEPSTASH_API STEPSTASH_NODISCARD int stepstash_prune(stepstash_client* client, int64_t older_than, uint64_t* count);
/** Deletes all data of one build, held or not, at one instant for every client; *count entries (may be NULL). */
STEPSTASH_API STEPSTASH_NODISCARD int stepstash_drop(stepstash_client* client, int64_t build, uint64_t* count);
/** Keeps a build's data from being pruned (`held` not 0), or lets it go again. */
STEPSTASH_API STEPSTASH_NODISCARD int stepstash_hold(stepstash_client* client, int64_t build, int held);

/* ---- the daemon ----------------------------------------------------------------------------------------------------
 */

/** Returns when all that was acknowledged before the call is committed to the database. 0: the client's deadline. */
STEPSTASH_API STEPSTASH_NODISCARD int stepstash_flush(stepstash_client* client, uint32_t deadline_ms);
/** The daemon's counters as JSON text, NUL-terminated; give it to stepstash_free. */
STEPSTASH_API STEPSTASH_NODISCARD int stepstash_stats(stepstash_client* client, char** json);
STEPSTASH_API void stepstash_free(void* memory);

#ifdef __cplusplus
}
#endif
#endif
