// SPDX-License-Identifier: Apache-2.0
/// The C ABI over Client and StagedSet: checks arguments and converts errors to codes. No exception leaves this file.
#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/crash_point.hpp"
#include "base/places.hpp"
#include "libclient/client.hpp"
#include "libclient/explain.hpp"
#include "libclient/include/stepstash/client.h"
#include "libclient/staged_set.hpp"
#include "shm/validate.hpp"

namespace ss = stepstash::client;
using stepstash::EntryInfo;
using stepstash::Errc;
using stepstash::Result;

struct stepstash_client {
  std::unique_ptr<ss::Client> client;
};

struct stepstash_writer {
  std::unique_ptr<ss::StagedSet> staged;
};

namespace {

constexpr std::uint32_t kDefaultDeadlineMs = 10'000;

int code_of(Errc error) noexcept {
  switch (error) {
    case Errc::not_found:
      return STEPSTASH_MISS;
    case Errc::condition_failed:
      return STEPSTASH_UNMET;
    case Errc::invalid_argument:
      return STEPSTASH_EINVAL;
    case Errc::too_large:
      return STEPSTASH_ETOOLARGE;
    case Errc::segment_full:
    case Errc::dirty_limit:
    case Errc::too_many_builds:
    case Errc::out_of_ids:
      return STEPSTASH_EFULL;
    case Errc::deadline_exceeded:
      return STEPSTASH_EDEADLINE;
    case Errc::not_permitted:
      return STEPSTASH_EPERM;
    case Errc::protocol_error:
    case Errc::version_mismatch:
    case Errc::format_mismatch:
      return STEPSTASH_EPROTOCOL;
    case Errc::corrupt_segment:
    case Errc::corrupt_value:
    case Errc::corrupt_database:
      return STEPSTASH_ECORRUPT;
    case Errc::newer_database:
    case Errc::foreign_database:
    case Errc::not_durable:
    case Errc::unsafe_object:
      return STEPSTASH_EIO;
    case Errc::too_many:
      return STEPSTASH_ELIMIT;
    case Errc::already_held:
    case Errc::shutting_down:
    case Errc::unavailable:
      return STEPSTASH_EUNAVAILABLE;
  }
  return STEPSTASH_EPROTOCOL;  // a newer daemon's code; its message is kept
}

/// The ABI's code for `error`. Makes its explanation this thread's current message.
int report(std::error_code error) noexcept {
  ss::explanation(error);
  if (error.category() == stepstash::category()) return code_of(static_cast<Errc>(error.value()));
  switch (error.value()) {
    case ENOMEM:
      return STEPSTASH_ENOMEM;
    case EMFILE:
    case ENFILE:
      return STEPSTASH_ELIMIT;
    case EACCES:
    case EPERM:
      return STEPSTASH_EPERM;
    default:
      return STEPSTASH_EIO;
  }
}

int invalid(const char* what) noexcept { return report(ss::explain(Errc::invalid_argument, "%s", what)); }

template <class F>
int guarded(F&& body) noexcept {
  ss::forget_explanation();
  try {
    return body();
  } catch (const std::bad_alloc&) {
    ss::explain(std::make_error_code(std::errc::not_enough_memory), "out of memory");
    return STEPSTASH_ENOMEM;
  } catch (const std::exception& e) {
    ss::explain(std::make_error_code(std::errc::state_not_recoverable), "a defect in stepstash: %s", e.what());
    return STEPSTASH_EINTERNAL;
  } catch (...) {
    ss::explain(std::make_error_code(std::errc::state_not_recoverable), "a defect in stepstash");
    return STEPSTASH_EINTERNAL;
  }
}

// ---- views ---------------------------------------------------------------------------------------------------------

enum Reserved { kPin = 0, kEpoch = 1, kClient = 2 };  // of stepstash_view::reserved

void fill(stepstash_view& view, ss::Client& client, const stepstash::shm::Pinned& pinned, bool with_value) noexcept {
  const stepstash::shm::Entry& entry = *pinned.entry;
  const std::string_view name = entry_name(entry);  // inlined: every get runs this
  const std::string_view source = entry_source(entry);
  view.data = with_value ? entry_value(entry).data() : nullptr;
  view.length = entry.length;
  view.id = entry.id;
  view.revision = entry.revision;
  view.build = entry.buildid;
  view.name = name.data();
  view.source = source.data();
  view.name_bytes = static_cast<std::uint32_t>(name.size());
  view.source_bytes = static_cast<std::uint32_t>(source.size());
  view.reserved[kPin] = reinterpret_cast<std::uintptr_t>(pinned.pin);
  view.reserved[kEpoch] = ss::fork_epoch();
  view.reserved[kClient] = reinterpret_cast<std::uintptr_t>(&client);
}

int answer(const Result<bool>& there, stepstash_view& view, ss::Client& client, const stepstash::shm::Pinned& pinned,
           bool with_value) {
  if (!there) return report(there.error());
  if (!there.value()) return STEPSTASH_MISS;
  fill(view, client, pinned, with_value);
  return STEPSTASH_OK;
}

// ---- setting -------------------------------------------------------------------------------------------------------

struct Options {
  stepstash::protocol::SetParams params;
  ss::Milliseconds deadline;
};

Result<Options> options_of(const ss::Client& client, int64_t build, const char* name, const char* source,
                           const stepstash_set_options* given) {
  Options options{{}, client.default_deadline()};
  options.params.build = build;
  options.params.name = name;
  options.params.source = source != nullptr ? source : "";
  if (given == nullptr) return options;
  // A caller compiled against a later version may pass more; unknown options must not be set.
  if (given->size < sizeof *given) {
    return ss::explain(Errc::invalid_argument, "stepstash_set_options.size is %zu, and sizeof is %zu", given->size,
                       sizeof *given);
  }
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  if (std::any_of(bytes + sizeof *given, bytes + given->size, [](unsigned char b) { return b != 0; })) {
    return ss::explain(Errc::invalid_argument, "stepstash_set_options asks for what this library does not know yet");
  }
  options.params.durable = given->durable != 0;
  options.params.if_absent = given->if_absent != 0;
  options.params.if_revision = given->if_revision;
  if (given->deadline_ms != 0) options.deadline = ss::Milliseconds(given->deadline_ms);
  options.params.deadline_ms = static_cast<std::uint32_t>(options.deadline.count());
  return options;
}

int answer(const Result<stepstash::protocol::SetOk>& set, stepstash_set_result* result) noexcept {
  if (!set) return report(set.error());
  if (result != nullptr) *result = {set.value().id, set.value().revision};
  return STEPSTASH_OK;
}

/// Reads until `room` is full or the input ends; returns the bytes read.
Result<std::size_t> read_full(int fd, std::span<std::byte> room) {
  std::size_t have = 0;
  while (have < room.size()) {
    const ssize_t got = ::read(fd, room.data() + have, room.size() - have);
    if (got == 0) break;
    if (got > 0) {
      have += static_cast<std::size_t>(got);
    } else if (errno == EAGAIN) {
      pollfd waited{fd, POLLIN, 0};
      ::poll(&waited, 1, -1);  // non-blocking descriptor: wait until it is readable
    } else if (errno != EINTR) {
      const auto error = stepstash::last_errno();
      return ss::explain(error, "cannot read the value from descriptor %d: %s", fd, error.message().c_str());
    }
  }
  return have;
}

/// A regular file's position and the size it reports from there on. Only a hint: files of /sys report 4096 bytes and
/// have four, and any file may grow or shrink while it is read. A value that fits into one message is collected before
/// anything is announced and needs no hint.
struct Told {
  std::uint64_t length = STEPSTASH_UNKNOWN_LENGTH;
  off_t start = 0;
};

Told told_by(int fd) noexcept {
  struct stat status {};
  if (::fstat(fd, &status) != 0 || !S_ISREG(status.st_mode)) return {};
  const off_t at = ::lseek(fd, 0, SEEK_CUR);
  if (at < 0 || status.st_size - at < static_cast<off_t>(stepstash::protocol::kInlineBytes)) return {};
  return {static_cast<std::uint64_t>(status.st_size - at), at};
}

/// Reads the rest of the input into the set; false if its length differs from the announced one.
Result<bool> fill_from(int fd, ss::StagedSet& staged, std::uint64_t length) {
  while (staged.total() < length) {
    const auto room = STEPSTASH_TRY(staged.buffer());
    const std::size_t got = STEPSTASH_TRY(read_full(fd, room));
    STEPSTASH_TRY(staged.advance(got));
    if (got < room.size()) return length == STEPSTASH_UNKNOWN_LENGTH || staged.total() == length;
  }
  std::byte more{};
  return STEPSTASH_TRY(read_full(fd, {&more, 1})) == 0;
}

Result<stepstash::protocol::SetOk> set_from(int fd, ss::Client& client, const Options& options) {
  const Told told = told_by(fd);
  // At most twice: with unknown length, the value ends where the file ends.
  for (std::uint64_t length = told.length;; length = STEPSTASH_UNKNOWN_LENGTH) {
    auto staged = STEPSTASH_TRY(ss::StagedSet::begin(client, options.params, length, options.deadline));
    if (STEPSTASH_TRY(fill_from(fd, *staged, length))) return staged->commit();
    if (::lseek(fd, told.start, SEEK_SET) != told.start) {
      return ss::explain(std::make_error_code(std::errc::io_error),
                         "descriptor %d does not hold the %llu bytes that it tells, nor can it be read again", fd,
                         static_cast<unsigned long long>(length));
    }
  }
}

/// A list and the memory that its pointers refer to.
struct OwnedList : stepstash_list {
  std::vector<EntryInfo> infos;
  std::vector<stepstash_entry> rows;
};

struct OwnedBuilds : stepstash_builds {
  std::vector<stepstash_build> rows;
};

Result<stepstash::Place> place_of(const char* given) {
  if (given != nullptr) return stepstash::Place{given, {}, {}};
  if (const char* named = std::getenv("STEPSTASH_SOCKET"); named != nullptr) {
    if (*named != 0) return stepstash::Place{named, {}, {}};
    return ss::explain(Errc::invalid_argument, "STEPSTASH_SOCKET is empty: unset it, or name the daemon's socket");
  }
  const char* runtime = std::getenv("XDG_RUNTIME_DIR");
  return stepstash::place_to_connect(::geteuid(), runtime != nullptr ? runtime : "");
}

/// The same error, plus which places were skipped before this one.
std::error_code explain_place(std::error_code error, const stepstash::Place& place) {
  if (place.passed_over.empty()) return error;
  const std::string so_far = ss::explanation(error);
  return ss::explain(error, "%s (passed over: %s)", so_far.c_str(), place.passed_over.c_str());
}

}  // namespace

extern "C" {

const char* stepstash_version(void) { return STEPSTASH_VERSION; }

const char* stepstash_error_message(void) { return ss::last_explanation(); }

int stepstash_connect(const char* socket, uint32_t deadline_ms, stepstash_client** client) {
  return guarded([&] {
    if (client == nullptr) return invalid("stepstash_connect: client is NULL");
    *client = nullptr;
    if (socket != nullptr && *socket == 0) {
      return invalid("stepstash_connect: the socket's path is empty (NULL means the usual place)");
    }
    auto place = place_of(socket);
    if (!place) return report(place.error());
    auto address = ss::Address::of(place.value().path);
    if (!address) return report(address.error());
    const ss::Milliseconds deadline(deadline_ms != 0 ? deadline_ms : kDefaultDeadlineMs);
    auto connected = ss::Client::connect(address.value(), deadline);
    if (!connected) return report(explain_place(connected.error(), place.value()));
    *client = new stepstash_client{std::move(connected).value()};
    return int{STEPSTASH_OK};
  });
}

void stepstash_close(stepstash_client* client) { delete client; }

int stepstash_get(stepstash_client* client, int64_t build, const char* name, stepstash_view* view) {
  if (client == nullptr || name == nullptr || view == nullptr) return invalid("stepstash_get: an argument is NULL");
  stepstash::shm::Pinned pinned;
  // A resident value is answered here, without any of the code below.
  if (client->client->find(build, name, pinned) == stepstash::shm::Found::resident) {
    fill(*view, *client->client, pinned, true);
    return STEPSTASH_OK;
  }
  if (pinned.entry != nullptr) pinned.release();
  *view = {};
  return guarded([&] {
    const auto there = client->client->get(build, name, client->client->default_deadline(), pinned);
    return answer(there, *view, *client->client, pinned, true);
  });
}

int stepstash_try_get(stepstash_client* client, int64_t build, const char* name, stepstash_view* view) {
  if (client == nullptr || name == nullptr || view == nullptr) return invalid("stepstash_try_get: an argument is NULL");
  stepstash::shm::Pinned pinned;
  const auto found = client->client->find(build, name, pinned);
  if (found == stepstash::shm::Found::resident) {
    fill(*view, *client->client, pinned, true);
    return STEPSTASH_OK;
  }
  if (pinned.entry != nullptr) pinned.release();
  *view = {};
  client->client->give_back_formers();  // pins that this thread may have held briefly
  if (found != stepstash::shm::Found::miss) return STEPSTASH_ASK;
  return guarded([&] {
    const auto key = ss::check_key(build, name);  // such a key never exists: say why
    return key ? int{STEPSTASH_MISS} : report(key.error());
  });
}

int stepstash_wait(stepstash_client* client, int64_t build, const char* name, uint32_t deadline_ms,
                   stepstash_view* view) {
  return guarded([&] {
    if (client == nullptr || name == nullptr || view == nullptr) return invalid("stepstash_wait: an argument is NULL");
    *view = {};
    stepstash::shm::Pinned pinned;
    auto there = client->client->wait(build, name, ss::Milliseconds(deadline_ms), pinned);
    if (!there) return report(there.error());
    fill(*view, *client->client, pinned, true);
    return int{STEPSTASH_OK};
  });
}

int stepstash_stat(stepstash_client* client, int64_t build, const char* name, stepstash_view* view) {
  return guarded([&] {
    if (client == nullptr || name == nullptr || view == nullptr) return invalid("stepstash_stat: an argument is NULL");
    *view = {};
    stepstash::shm::Pinned pinned;
    const auto there = client->client->stat(build, name, pinned);
    return answer(there, *view, *client->client, pinned, false);
  });
}

void stepstash_release(stepstash_view* view) {
  if (view == nullptr) return;
  // Another process's epoch marks a parent's view, whose pin only the parent may clear.
  if (view->reserved[kPin] != 0 && view->reserved[kEpoch] == ss::fork_epoch()) {
    // As in Pinned::release; pairs with the daemon's scan of the pins.
    auto* pin = reinterpret_cast<std::atomic<stepstash::shm::Offset>*>(view->reserved[kPin]);
    pin->store(0, std::memory_order_release);
    STEPSTASH_CRASH_POINT("libclient.view.released");
    if (stepstash::shm::of_superseded_page(pin)) [[unlikely]] {
      reinterpret_cast<ss::Client*>(view->reserved[kClient])->give_back_formers();
    }
  }
  // Not the whole struct: those 13 stores would have to drain before the next get's pin, and cost 22 of 63 ns.
  view->data = nullptr;
  view->reserved[kPin] = 0;
}

int stepstash_list_build(stepstash_client* client, int64_t build, const char* name, stepstash_list** list) {
  return guarded([&] {
    if (client == nullptr || list == nullptr) return invalid("stepstash_list_build: an argument is NULL");
    *list = nullptr;
    std::optional<std::string_view> only;
    if (name != nullptr) only = name;
    auto entries = client->client->list(build, only);
    if (!entries) return report(entries.error());
    auto owned = std::make_unique<OwnedList>();
    owned->infos = std::move(entries).value();
    for (const EntryInfo& info : owned->infos) {
      owned->rows.push_back(
          {info.id, info.revision, info.buildid, info.length, info.name.c_str(), info.source.c_str()});
    }
    owned->count = owned->rows.size();
    owned->entries = owned->rows.data();
    *list = owned.release();
    return int{STEPSTASH_OK};
  });
}

void stepstash_list_free(stepstash_list* list) { delete static_cast<OwnedList*>(list); }

int stepstash_list_builds(stepstash_client* client, stepstash_builds** builds) {
  return guarded([&] {
    if (client == nullptr || builds == nullptr) return invalid("stepstash_list_builds: an argument is NULL");
    *builds = nullptr;
    auto found = client->client->builds();
    if (!found) return report(found.error());
    auto owned = std::make_unique<OwnedBuilds>();
    for (const stepstash::BuildInfo& info : found.value()) {
      owned->rows.push_back({info.build,
                             info.entries,
                             info.resident_bytes,
                             info.evicted_bytes,
                             info.complete_at.value_or(0),
                             info.complete_at ? 1 : 0,
                             info.held ? 1 : 0,
                             {}});
    }
    owned->count = owned->rows.size();
    owned->builds = owned->rows.data();
    *builds = owned.release();
    return int{STEPSTASH_OK};
  });
}

void stepstash_builds_free(stepstash_builds* builds) { delete static_cast<OwnedBuilds*>(builds); }

int stepstash_set(stepstash_client* client, int64_t build, const char* name, const void* data, size_t length,
                  const char* source, const stepstash_set_options* options, stepstash_set_result* result) {
  return guarded([&] {
    if (client == nullptr || name == nullptr) return invalid("stepstash_set: client or name is NULL");
    if (data == nullptr && length != 0) return invalid("stepstash_set: data is NULL and length is not 0");
    auto wanted = options_of(*client->client, build, name, source, options);
    if (!wanted) return report(wanted.error());
    const std::span bytes(static_cast<const std::byte*>(data), length);
    return answer(ss::set_value(*client->client, wanted.value().params, bytes, wanted.value().deadline), result);
  });
}

int stepstash_set_fd(stepstash_client* client, int64_t build, const char* name, int fd, const char* source,
                     const stepstash_set_options* options, stepstash_set_result* result) {
  return guarded([&] {
    if (client == nullptr || name == nullptr) return invalid("stepstash_set_fd: client or name is NULL");
    auto wanted = options_of(*client->client, build, name, source, options);
    if (!wanted) return report(wanted.error());
    return answer(set_from(fd, *client->client, wanted.value()), result);
  });
}

int stepstash_set_begin(stepstash_client* client, int64_t build, const char* name, uint64_t length, const char* source,
                        const stepstash_set_options* options, stepstash_writer** writer) {
  return guarded([&] {
    if (client == nullptr || name == nullptr || writer == nullptr) {
      return invalid("stepstash_set_begin: client, name or writer is NULL");
    }
    *writer = nullptr;
    auto wanted = options_of(*client->client, build, name, source, options);
    if (!wanted) return report(wanted.error());
    auto staged = ss::StagedSet::begin(*client->client, wanted.value().params, length, wanted.value().deadline);
    if (!staged) return report(staged.error());
    *writer = new stepstash_writer{std::move(staged).value()};
    return int{STEPSTASH_OK};
  });
}

int stepstash_writer_write(stepstash_writer* writer, const void* data, size_t bytes) {
  return guarded([&] {
    if (writer == nullptr || (data == nullptr && bytes != 0)) return invalid("stepstash_writer_write: NULL");
    auto written = writer->staged->write({static_cast<const std::byte*>(data), bytes});
    return written ? int{STEPSTASH_OK} : report(written.error());
  });
}

int stepstash_writer_buffer(stepstash_writer* writer, void** data, size_t* bytes) {
  return guarded([&] {
    if (writer == nullptr || data == nullptr || bytes == nullptr) return invalid("stepstash_writer_buffer: NULL");
    *data = nullptr;
    *bytes = 0;
    auto room = writer->staged->buffer();
    if (!room) return report(room.error());
    *data = room.value().data();
    *bytes = room.value().size();
    return int{STEPSTASH_OK};
  });
}

int stepstash_writer_advance(stepstash_writer* writer, size_t bytes) {
  return guarded([&] {
    if (writer == nullptr) return invalid("stepstash_writer_advance: writer is NULL");
    auto advanced = writer->staged->advance(bytes);
    return advanced ? int{STEPSTASH_OK} : report(advanced.error());
  });
}

int stepstash_writer_commit(stepstash_writer* writer, stepstash_set_result* result) {
  const std::unique_ptr<stepstash_writer> owned(writer);
  return guarded([&] {
    if (owned == nullptr) return invalid("stepstash_writer_commit: writer is NULL");
    return answer(owned->staged->commit(), result);
  });
}

void stepstash_writer_abort(stepstash_writer* writer) { delete writer; }

int stepstash_finish(stepstash_client* client, int64_t build, int64_t complete_at) {
  return guarded([&] {
    if (client == nullptr) return invalid("stepstash_finish: client is NULL");
    std::optional<std::int64_t> at;
    if (complete_at != STEPSTASH_NOW) at = complete_at;
    auto finished = client->client->finish(build, at);
    return finished ? int{STEPSTASH_OK} : report(finished.error());
  });
}

int stepstash_prune(stepstash_client* client, int64_t older_than, uint64_t* count) {
  return guarded([&] {
    if (client == nullptr) return invalid("stepstash_prune: client is NULL");
    auto pruned = client->client->prune(older_than);
    if (!pruned) return report(pruned.error());
    if (count != nullptr) *count = pruned.value();
    return int{STEPSTASH_OK};
  });
}

int stepstash_drop(stepstash_client* client, int64_t build, uint64_t* count) {
  return guarded([&] {
    if (client == nullptr) return invalid("stepstash_drop: client is NULL");
    auto dropped = client->client->drop(build);
    if (!dropped) return report(dropped.error());
    if (count != nullptr) *count = dropped.value();
    return int{STEPSTASH_OK};
  });
}

int stepstash_hold(stepstash_client* client, int64_t build, int held) {
  return guarded([&] {
    if (client == nullptr) return invalid("stepstash_hold: client is NULL");
    auto done = client->client->hold(build, held != 0);
    return done ? int{STEPSTASH_OK} : report(done.error());
  });
}

int stepstash_flush(stepstash_client* client, uint32_t deadline_ms) {
  return guarded([&] {
    if (client == nullptr) return invalid("stepstash_flush: client is NULL");
    const auto deadline = deadline_ms != 0 ? ss::Milliseconds(deadline_ms) : client->client->default_deadline();
    auto done = client->client->flush(deadline);
    return done ? int{STEPSTASH_OK} : report(done.error());
  });
}

int stepstash_stats(stepstash_client* client, char** json) {
  return guarded([&] {
    if (client == nullptr || json == nullptr) return invalid("stepstash_stats: an argument is NULL");
    *json = nullptr;
    auto text = client->client->stats();
    if (!text) return report(text.error());
    *json = ::strdup(text.value().c_str());
    if (*json == nullptr) throw std::bad_alloc();
    return int{STEPSTASH_OK};
  });
}

void stepstash_free(void* memory) { std::free(memory); }

}  // extern "C"
