// SPDX-License-Identifier: Apache-2.0
/// stepstash in C++: a thin wrapper over stepstash/client.h, header-only. Needs C++20, and only libstepstash at run
/// time.
///
///   stepstash::Client client;                                       // $STEPSTASH_SOCKET, or the usual places
///   client.set(42, "report", text, "unit tests");
///   if (auto view = client.get(42, "report")) use(view->bytes());   // in place: nothing is copied
///
/// A missing datum and an unmet condition are std::nullopt; every other failure throws stepstash::Error, whose code()
/// is one of STEPSTASH_E... and whose what() says what happened, to what, with which numbers. Threads, lifetimes and
/// fork: as documented in client.h.
#ifndef STEPSTASH_CLIENT_HPP
#define STEPSTASH_CLIENT_HPP

#include <stepstash/client.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace stepstash {

class Error : public std::runtime_error {
 public:
  Error(int code, const char* message) : std::runtime_error(message), code_(code) {}
  /// One of STEPSTASH_E....
  int code() const noexcept { return code_; }

 private:
  int code_;
};

using Milliseconds = std::chrono::milliseconds;

namespace detail {

/// Returns non-error answers and throws errors.
inline int checked(int code) {
  if (code < 0) throw Error(code, stepstash_error_message());
  return code;
}

/// A name, source or path argument. C requires a terminating NUL: a const char* and a std::string are passed through, a
/// string_view is copied. Lives as long as the call it is made for.
class Text {
 public:
  Text(const char* text) noexcept : text_(text) {}
  Text(const std::string& text) : text_(text.c_str()) { refuse_nul(text); }
  Text(std::string_view text) : owned_(text), text_(owned_.c_str()) { refuse_nul(text); }
  Text(const Text&) = delete;
  Text& operator=(const Text&) = delete;
  const char* get() const noexcept { return text_; }

 private:
  /// With a NUL inside, C would silently use another name.
  static void refuse_nul(std::string_view text) {
    if (text.find('\0') != std::string_view::npos)
      throw Error(STEPSTASH_EINVAL, "a name, source or path contains a NUL");
  }
  std::string owned_;
  const char* text_;
};

/// 0 means "the client's deadline" in C, so a deadline that has passed becomes the shortest possible one.
inline std::uint32_t milliseconds(Milliseconds wait) noexcept {
  return static_cast<std::uint32_t>(std::clamp<std::int64_t>(wait.count(), 1, UINT32_MAX));
}

}  // namespace detail

/// One build datum in place. Move-only; its destructor releases the pin. Must not outlive its Client.
class View {
 public:
  View(View&& other) noexcept : view_(std::exchange(other.view_, stepstash_view{})) {}
  View& operator=(View&& other) noexcept {
    if (this != &other) {
      stepstash_release(&view_);
      view_ = std::exchange(other.view_, stepstash_view{});
    }
    return *this;
  }
  ~View() { stepstash_release(&view_); }

  /// Empty after stat(), where length() is still the value's.
  std::span<const std::byte> bytes() const noexcept {
    const auto size = view_.data == nullptr ? 0 : static_cast<std::size_t>(view_.length);
    return {static_cast<const std::byte*>(view_.data), size};
  }
  std::string_view text() const noexcept {
    const auto all = bytes();
    return {reinterpret_cast<const char*>(all.data()), all.size()};
  }
  std::string_view name() const noexcept { return {view_.name, view_.name_bytes}; }
  std::string_view source() const noexcept { return {view_.source, view_.source_bytes}; }
  std::uint64_t length() const noexcept { return view_.length; }
  std::uint64_t id() const noexcept { return view_.id; }
  std::uint64_t revision() const noexcept { return view_.revision; }
  std::int64_t build() const noexcept { return view_.build; }

 private:
  friend class Client;
  explicit View(const stepstash_view& view) noexcept : view_(view) {}
  stepstash_view view_{};
};

/// One entry of a list.
struct Entry {
  std::uint64_t id = 0;
  std::uint64_t revision = 0;
  std::int64_t build = 0;
  std::uint64_t length = 0;
  std::string name;
  std::string source;
};

/// A build that has data.
struct Build {
  std::int64_t build = 0;
  std::uint64_t entries = 0;
  std::uint64_t resident_bytes = 0;         ///< of its values that are in the segment
  std::uint64_t evicted_bytes = 0;          ///< of its values that are only in the database
  std::optional<std::int64_t> complete_at;  ///< seconds since 1970; none: not finished
  bool held = false;
};

struct SetOptions {
  bool durable = false;           ///< return only after the database has committed it
  bool if_absent = false;         ///< only if the name does not exist
  std::uint64_t if_revision = 0;  ///< non-zero: only if the entry has this revision
  Milliseconds deadline{0};       ///< for room and for the commit; 0: the client's
};

struct SetResult {
  std::uint64_t id = 0;
  std::uint64_t revision = 0;
};

/// A set whose value comes in pieces; uncommitted values are discarded. Move-only, one thread at a time.
class Writer {
 public:
  Writer(Writer&& other) noexcept : writer_(std::exchange(other.writer_, nullptr)) {}
  Writer& operator=(Writer&& other) noexcept {
    if (this != &other) {
      abort();
      writer_ = std::exchange(other.writer_, nullptr);
    }
    return *this;
  }
  ~Writer() { abort(); }

  void write(std::span<const std::byte> bytes) {
    detail::checked(stepstash_writer_write(writer_, bytes.data(), bytes.size()));
  }
  void write(std::string_view text) { write(std::as_bytes(std::span(text))); }
  /// Room to fill in place; then pass the number of bytes to advance(). Empty only if the set's condition does not
  /// hold.
  std::span<std::byte> buffer() {
    void* data = nullptr;
    std::size_t bytes = 0;
    detail::checked(stepstash_writer_buffer(writer_, &data, &bytes));
    return {static_cast<std::byte*>(data), bytes};
  }
  void advance(std::size_t bytes) { detail::checked(stepstash_writer_advance(writer_, bytes)); }
  /// nullopt: the set's condition did not hold. The writer is empty afterwards.
  std::optional<SetResult> commit() {
    stepstash_set_result result{};
    const int code = stepstash_writer_commit(std::exchange(writer_, nullptr), &result);
    if (detail::checked(code) == STEPSTASH_UNMET) return std::nullopt;
    return SetResult{result.id, result.revision};
  }
  void abort() noexcept { stepstash_writer_abort(std::exchange(writer_, nullptr)); }

 private:
  friend class Client;
  explicit Writer(stepstash_writer* writer) noexcept : writer_(writer) {}
  stepstash_writer* writer_;
};

/// A connection to the daemon of this host. Any number of threads may use it concurrently. Move-only.
class Client {
 public:
  static constexpr std::uint64_t kUnknownLength = STEPSTASH_UNKNOWN_LENGTH;

  /// `socket` empty: $STEPSTASH_SOCKET, or the usual places (stepstashd(8), PLACES).
  explicit Client(const detail::Text& socket = "", Milliseconds deadline = Milliseconds(10'000)) {
    const bool usual = socket.get() == nullptr || *socket.get() == 0;
    detail::checked(stepstash_connect(usual ? nullptr : socket.get(), detail::milliseconds(deadline), &client_));
  }
  Client(Client&& other) noexcept : client_(std::exchange(other.client_, nullptr)) {}
  Client& operator=(Client&& other) noexcept {
    if (this != &other) {
      stepstash_close(client_);
      client_ = std::exchange(other.client_, nullptr);
    }
    return *this;
  }
  ~Client() { stepstash_close(client_); }

  std::optional<View> get(std::int64_t build, const detail::Text& name) const {
    stepstash_view view;
    const int code = detail::checked(stepstash_get(client_, build, name.get(), &view));
    if (code == STEPSTASH_MISS) return std::nullopt;
    return View(view);
  }
  /// nullopt: it did not appear in time.
  std::optional<View> wait(std::int64_t build, const detail::Text& name, Milliseconds deadline) const {
    stepstash_view view;
    const std::uint32_t ms = deadline.count() <= 0 ? 0 : detail::milliseconds(deadline);
    const int code = stepstash_wait(client_, build, name.get(), ms, &view);
    if (code == STEPSTASH_EDEADLINE) return std::nullopt;
    detail::checked(code);
    return View(view);
  }
  /// Everything but the value.
  std::optional<View> stat(std::int64_t build, const detail::Text& name) const {
    stepstash_view view;
    const int code = detail::checked(stepstash_stat(client_, build, name.get(), &view));
    if (code == STEPSTASH_MISS) return std::nullopt;
    return View(view);
  }
  /// All entries of a build, a consistent snapshot.
  std::vector<Entry> list(std::int64_t build) const { return list_of(build, nullptr); }
  std::vector<Entry> list(std::int64_t build, const detail::Text& name) const { return list_of(build, name.get()); }

  /// All builds that have data, in ascending order.
  std::vector<Build> builds() const {
    struct Free {
      stepstash_builds* list = nullptr;
      ~Free() { stepstash_builds_free(list); }
    } owned;
    detail::checked(stepstash_list_builds(client_, &owned.list));
    std::vector<Build> builds;
    builds.reserve(owned.list->count);
    for (const stepstash_build& b : std::span(owned.list->builds, owned.list->count)) {
      builds.push_back({b.build, b.entries, b.resident_bytes, b.evicted_bytes, std::nullopt, b.held != 0});
      if (b.finished != 0) builds.back().complete_at = b.complete_at;
    }
    return builds;
  }

  /// nullopt: the condition in `options` did not hold, and nothing was changed.
  std::optional<SetResult> set(std::int64_t build, const detail::Text& name, std::span<const std::byte> value,
                               const detail::Text& source = "", const SetOptions& options = {}) {
    const auto wanted = to_c(options);
    stepstash_set_result result{};
    const int code =
        stepstash_set(client_, build, name.get(), value.data(), value.size(), source.get(), &wanted, &result);
    return set_result(code, result);
  }
  std::optional<SetResult> set(std::int64_t build, const detail::Text& name, std::string_view value,
                               const detail::Text& source = "", const SetOptions& options = {}) {
    return set(build, name, std::as_bytes(std::span(value)), source, options);
  }
  /// Sets everything that can be read from `fd`.
  std::optional<SetResult> set_fd(std::int64_t build, const detail::Text& name, int fd, const detail::Text& source = "",
                                  const SetOptions& options = {}) {
    const auto wanted = to_c(options);
    stepstash_set_result result{};
    const int code = stepstash_set_fd(client_, build, name.get(), fd, source.get(), &wanted, &result);
    return set_result(code, result);
  }
  /// nullopt: the condition already fails now.
  std::optional<Writer> begin(std::int64_t build, const detail::Text& name, std::uint64_t length = kUnknownLength,
                              const detail::Text& source = "", const SetOptions& options = {}) {
    const auto wanted = to_c(options);
    stepstash_writer* writer = nullptr;
    const int code = stepstash_set_begin(client_, build, name.get(), length, source.get(), &wanted, &writer);
    if (detail::checked(code) == STEPSTASH_UNMET) return std::nullopt;
    return Writer(writer);
  }

  /// Without `complete_at`: now, by the daemon's clock.
  void finish(std::int64_t build) { detail::checked(stepstash_finish(client_, build, STEPSTASH_NOW)); }
  /// The build is not finished any more: its data is not pruned until it is finished again.
  void reopen(std::int64_t build) { detail::checked(stepstash_finish(client_, build, STEPSTASH_REOPEN)); }
  void finish(std::int64_t build, std::chrono::system_clock::time_point complete_at) {
    const auto since = std::chrono::floor<std::chrono::seconds>(complete_at.time_since_epoch());
    detail::checked(stepstash_finish(client_, build, since.count()));
  }
  /// Returns the number of deleted entries.
  std::uint64_t prune(std::chrono::system_clock::time_point older_than) {
    // Rounds up to the next whole second: a completion within this second is older than a later time in it.
    const auto since = std::chrono::ceil<std::chrono::seconds>(older_than.time_since_epoch());
    std::uint64_t count = 0;
    detail::checked(stepstash_prune(client_, since.count(), &count));
    return count;
  }
  std::uint64_t drop(std::int64_t build) {
    std::uint64_t count = 0;
    detail::checked(stepstash_drop(client_, build, &count));
    return count;
  }
  void hold(std::int64_t build) { detail::checked(stepstash_hold(client_, build, 1)); }
  void unhold(std::int64_t build) { detail::checked(stepstash_hold(client_, build, 0)); }

  void flush() { detail::checked(stepstash_flush(client_, 0)); }
  void flush(Milliseconds deadline) { detail::checked(stepstash_flush(client_, detail::milliseconds(deadline))); }
  /// The daemon's counters, as JSON.
  std::string stats() const {
    char* json = nullptr;
    detail::checked(stepstash_stats(client_, &json));
    struct Free {
      char* memory;
      ~Free() { stepstash_free(memory); }
    } owned{json};
    return json;
  }

  /// For functions that this wrapper lacks. Borrowed.
  stepstash_client* handle() const noexcept { return client_; }

 private:
  static stepstash_set_options to_c(const SetOptions& options) noexcept {
    stepstash_set_options c{};
    c.size = sizeof c;
    c.durable = options.durable;
    c.if_absent = options.if_absent;
    c.if_revision = options.if_revision;
    c.deadline_ms = options.deadline.count() <= 0 ? 0 : detail::milliseconds(options.deadline);
    return c;
  }
  static std::optional<SetResult> set_result(int code, const stepstash_set_result& result) {
    if (detail::checked(code) == STEPSTASH_UNMET) return std::nullopt;
    return SetResult{result.id, result.revision};
  }
  std::vector<Entry> list_of(std::int64_t build, const char* name) const {
    struct Free {
      stepstash_list* list = nullptr;
      ~Free() { stepstash_list_free(list); }
    } owned;
    detail::checked(stepstash_list_build(client_, build, name, &owned.list));
    std::vector<Entry> entries;
    entries.reserve(owned.list->count);
    for (const stepstash_entry& e : std::span(owned.list->entries, owned.list->count)) {
      entries.push_back({e.id, e.revision, e.build, e.length, e.name, e.source});
    }
    return entries;
  }

  stepstash_client* client_ = nullptr;
};

}  // namespace stepstash
#endif
