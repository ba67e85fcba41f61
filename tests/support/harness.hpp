// SPDX-License-Identifier: Apache-2.0
/// Shared by the whole-process tests: waiting for conditions, generated values, child processes, the daemon's counters.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <ctime>
#include <exception>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <stepstash/client.hpp>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "base/unique_fd.hpp"
#include "tests/support/daemon_process.hpp"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define STEPSTASH_ASAN 1
#elif __has_feature(thread_sanitizer)
#define STEPSTASH_TSAN 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) && !defined(STEPSTASH_ASAN)
#define STEPSTASH_ASAN 1
#endif
#if defined(__SANITIZE_THREAD__) && !defined(STEPSTASH_TSAN)
#define STEPSTASH_TSAN 1
#endif

namespace stepstash::test {

using namespace std::chrono_literals;

inline constexpr std::uint64_t kKiB = 1024;
inline constexpr std::uint64_t kMiB = 1024 * kKiB;

#ifdef STEPSTASH_ASAN
inline constexpr bool kAddressSanitizer = true;
#else
inline constexpr bool kAddressSanitizer = false;
#endif
#ifdef STEPSTASH_TSAN
inline constexpr bool kThreadSanitizer = true;
#else
inline constexpr bool kThreadSanitizer = false;
#endif
/// Sanitizers slow down execution by a factor of up to twenty: divide sizes and counts that only serve thoroughness by
/// this.
inline constexpr std::uint64_t kScale = kAddressSanitizer || kThreadSanitizer ? 10 : 1;
/// A set that is still refused after this long found no room: tests fill a segment until then. A daemon that merely
/// gets no processor for a while would answer sooner.
inline constexpr std::chrono::milliseconds kFullAfter = 300ms * (kScale == 1 ? 1 : 5);

/// Whether `condition` became true before the deadline; polled every few milliseconds.
bool eventually(const std::function<bool()>& condition, std::chrono::milliseconds deadline = 20s);

/// `bytes` bytes that differ for every `seed` and at every position: a misplaced value, or one of another version, is
/// never mistaken for the right one.
std::string generated(std::uint64_t bytes, std::uint64_t seed);
/// The same, starting at `offset` of the value, into `out`.
void generate(std::span<std::byte> out, std::uint64_t seed, std::uint64_t offset = 0);
/// Whether a view's value is generated(bytes, seed).
bool is_generated(std::span<const std::byte> value, std::uint64_t bytes, std::uint64_t seed);

nlohmann::json stats(const Client& client);
std::uint64_t figure(const Client& client, std::string_view name);

/// Runs SELECTs of one number on the daemon's database, as another process would.
std::int64_t query(const std::string& db, const std::string& sql);

/// A serving daemon and a client of it.
struct Served {
  explicit Served(std::vector<std::string> options = {})
      : daemon(std::move(options)), client((daemon.start(), daemon.socket())) {}
  DaemonProcess daemon;
  Client client;
};

inline bool contains(std::string_view text, std::string_view part) { return text.find(part) != text.npos; }

inline std::chrono::system_clock::time_point epoch(std::time_t seconds) {
  return std::chrono::system_clock::from_time_t(seconds);
}

/// Damages the schema of a database in use, so that the next commit finds it.
void damage_schema(const std::string& db);

/// Keeps every other process from writing to the database until it is destroyed.
class WriteLock {
 public:
  explicit WriteLock(const std::string& db);
  WriteLock(const WriteLock&) = delete;
  WriteLock& operator=(const WriteLock&) = delete;
  ~WriteLock();

  struct Database;

 private:
  Database* database_;
};

/// A read transaction on the database that stays open until it is destroyed.
class ReadLock {
 public:
  explicit ReadLock(const std::string& db);
  ReadLock(const ReadLock&) = delete;
  ReadLock& operator=(const ReadLock&) = delete;
  ~ReadLock();

 private:
  WriteLock::Database* database_;
};

/// The result of a program.
struct Outcome {
  int status = -1;  ///< exit status, or 128 + signal
  std::string out;
  std::string err;
};

struct RunOptions {
  std::string input{};                     ///< its standard input
  std::vector<std::string> environment{};  ///< added, for example "STEPSTASH_BUILD=7"
  std::string out_path{};                  ///< not empty: redirects its standard output to this file
  std::uint64_t file_size_limit = 0;       ///< non-zero: RLIMIT_FSIZE, with SIGXFSZ ignored
  unsigned closed = 0;                     ///< descriptors closed at its start: bit n for descriptor n, of 0 to 2
};

/// Runs `argv` (looked up in PATH) to completion; throws after a minute.
Outcome run(const std::vector<std::string>& argv, const RunOptions& options = {});

/// A forked child that runs `body` and exits with its result; 99 if it throws. Killed by the destructor.
class Child {
 public:
  explicit Child(const std::function<int()>& body);
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child();

  pid_t pid() const noexcept { return pid_; }
  /// Exit status, or 128 + signal; throws after a minute.
  int join();
  /// Sends SIGKILL; returns once it is gone.
  void kill();

 private:
  pid_t pid_ = -1;
};

/// A thread whose exception is rethrown where it is joined. The destructor joins it at the latest.
class Worker {
 public:
  explicit Worker(std::function<void()> body);
  Worker(Worker&&) noexcept = default;
  ~Worker();
  void join();

 private:
  std::unique_ptr<std::exception_ptr> thrown_ = std::make_unique<std::exception_ptr>();
  std::thread thread_;
};

/// A byte stream between a child and its parent, used to signal events.
class Signal {
 public:
  Signal();
  /// May be called in either process.
  void raise() const;
  /// False if it was not raised within a minute.
  bool wait() const;

 private:
  UniqueFd read_, write_;
};

}  // namespace stepstash::test
