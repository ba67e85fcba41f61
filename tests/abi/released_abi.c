/* SPDX-License-Identifier: Apache-2.0 */
/* What a released client.h promised to programs that are compiled already: functions with their types, values of
 * constants, sizes and offsets of structs. A release adds what it is the first to have; no line is changed or removed
 * as long as SOVERSION is 0 (docs/compatibility.md). Compiling and linking this is the test.
 *
 * The numbers are those of 64-bit machines, the only ones that stepstash is built for. */
#include <stddef.h>
#include <stdint.h>

#include <stepstash/client.h>

#define VALUE(constant, number) _Static_assert((constant) == (number), #constant)
#define SIZE(type, bytes) _Static_assert(sizeof(type) == (bytes), #type)
#define FIELD(type, field, offset) _Static_assert(offsetof(type, field) == (offset), #type "." #field)
#define FUNCTION(returned, name, ...) returned (*const has_##name)(__VA_ARGS__) = (name)

/* ---- 0.1.0 --------------------------------------------------------------------------------------------- */

VALUE(STEPSTASH_OK, 0);
VALUE(STEPSTASH_MISS, 1);
VALUE(STEPSTASH_UNMET, 2);
VALUE(STEPSTASH_EINVAL, -1);
VALUE(STEPSTASH_ENOMEM, -2);
VALUE(STEPSTASH_EUNAVAILABLE, -3);
VALUE(STEPSTASH_EDEADLINE, -4);
VALUE(STEPSTASH_EFULL, -5);
VALUE(STEPSTASH_ETOOLARGE, -6);
VALUE(STEPSTASH_EPERM, -7);
VALUE(STEPSTASH_ECORRUPT, -8);
VALUE(STEPSTASH_EIO, -9);
VALUE(STEPSTASH_EPROTOCOL, -10);
VALUE(STEPSTASH_ELIMIT, -11);
VALUE(STEPSTASH_EINTERNAL, -12);
VALUE(STEPSTASH_UNKNOWN_LENGTH, UINT64_MAX);
VALUE(STEPSTASH_NOW, INT64_MIN);
VALUE(STEPSTASH_REOPEN, INT64_MAX);

SIZE(stepstash_view, 96);
FIELD(stepstash_view, data, 0);
FIELD(stepstash_view, length, 8);
FIELD(stepstash_view, id, 16);
FIELD(stepstash_view, revision, 24);
FIELD(stepstash_view, build, 32);
FIELD(stepstash_view, name, 40);
FIELD(stepstash_view, source, 48);
FIELD(stepstash_view, name_bytes, 56);
FIELD(stepstash_view, source_bytes, 60);

SIZE(stepstash_entry, 48);
FIELD(stepstash_entry, id, 0);
FIELD(stepstash_entry, revision, 8);
FIELD(stepstash_entry, build, 16);
FIELD(stepstash_entry, length, 24);
FIELD(stepstash_entry, name, 32);
FIELD(stepstash_entry, source, 40);

SIZE(stepstash_list, 16);
FIELD(stepstash_list, count, 0);
FIELD(stepstash_list, entries, 8);

/* stepstash_set_options says its size and may grow: these fields stay. */
FIELD(stepstash_set_options, size, 0);
FIELD(stepstash_set_options, durable, 8);
FIELD(stepstash_set_options, if_absent, 12);
FIELD(stepstash_set_options, if_revision, 16);
FIELD(stepstash_set_options, deadline_ms, 24);

SIZE(stepstash_set_result, 16);
FIELD(stepstash_set_result, id, 0);
FIELD(stepstash_set_result, revision, 8);

FUNCTION(const char*, stepstash_version, void);
FUNCTION(const char*, stepstash_error_message, void);
FUNCTION(int, stepstash_connect, const char*, uint32_t, stepstash_client**);
FUNCTION(void, stepstash_close, stepstash_client*);
FUNCTION(int, stepstash_get, stepstash_client*, int64_t, const char*, stepstash_view*);
FUNCTION(int, stepstash_wait, stepstash_client*, int64_t, const char*, uint32_t, stepstash_view*);
FUNCTION(int, stepstash_stat, stepstash_client*, int64_t, const char*, stepstash_view*);
FUNCTION(void, stepstash_release, stepstash_view*);
FUNCTION(int, stepstash_list_build, stepstash_client*, int64_t, const char*, stepstash_list**);
FUNCTION(void, stepstash_list_free, stepstash_list*);
FUNCTION(int, stepstash_set, stepstash_client*, int64_t, const char*, const void*, size_t, const char*,
         const stepstash_set_options*, stepstash_set_result*);
FUNCTION(int, stepstash_set_fd, stepstash_client*, int64_t, const char*, int, const char*, const stepstash_set_options*,
         stepstash_set_result*);
FUNCTION(int, stepstash_set_begin, stepstash_client*, int64_t, const char*, uint64_t, const char*,
         const stepstash_set_options*, stepstash_writer**);
FUNCTION(int, stepstash_writer_write, stepstash_writer*, const void*, size_t);
FUNCTION(int, stepstash_writer_buffer, stepstash_writer*, void**, size_t*);
FUNCTION(int, stepstash_writer_advance, stepstash_writer*, size_t);
FUNCTION(int, stepstash_writer_commit, stepstash_writer*, stepstash_set_result*);
FUNCTION(void, stepstash_writer_abort, stepstash_writer*);
FUNCTION(int, stepstash_finish, stepstash_client*, int64_t, int64_t);
FUNCTION(int, stepstash_prune, stepstash_client*, int64_t, uint64_t*);
FUNCTION(int, stepstash_drop, stepstash_client*, int64_t, uint64_t*);
FUNCTION(int, stepstash_hold, stepstash_client*, int64_t, int);
FUNCTION(int, stepstash_flush, stepstash_client*, uint32_t);
FUNCTION(int, stepstash_stats, stepstash_client*, char**);
FUNCTION(void, stepstash_free, void*);

int main(void) { return stepstash_version() == NULL; }
