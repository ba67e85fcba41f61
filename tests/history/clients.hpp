// SPDX-License-Identifier: Apache-2.0
/// The clients of a round: processes with several threads each, which set, get, stat, list, finish, hold, prune and
/// drop as fast as possible and record everything (history.hpp).
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "tests/history/history.hpp"
#include "tests/support/harness.hpp"
#include "tests/support/numbered_values.hpp"

namespace stepstash::test {

inline constexpr std::size_t kProcesses = 3;
inline constexpr std::size_t kThreads = 3;
/// More than a thread can do in a round; it ends if it reaches this.
inline constexpr std::size_t kRecordsPerThread = 3000;
/// For the driver's own reads between rounds.
inline constexpr std::size_t kRecordsOfDriver = 4000;

inline constexpr std::int64_t kFirstBuild = 1;
inline constexpr std::size_t kBuilds = 4;

/// Memory shared by the driver and its clients, initially zero; its pages live as long as any of them.
struct Arena {
  std::atomic<bool> stop{false};
  std::atomic<std::uint32_t> attached{0};
  std::atomic<std::uint64_t> done{0};       ///< operations that returned
  std::atomic<std::uint64_t> deletions{0};  ///< drops and prunes that have begun
  Record of_clients[kProcesses][kThreads][kRecordsPerThread];
  Record of_driver[kRecordsOfDriver];
};

std::int64_t build_number(std::size_t build);
std::string name_of(std::size_t name);

/// Begins a record; before the operation the caller fills in its parameters, and afterwards calls done().
class Recorder {
 public:
  Recorder(std::span<Record> room, std::atomic<std::uint64_t>& count) : room_(room), count_(count) {}
  /// nullptr if there is no room left.
  Record* begin(Action action, std::size_t build, std::size_t name);
  void end(Record& record, Answer answer, int code = 0);

 private:
  std::span<Record> room_;
  std::size_t used_ = 0;
  std::atomic<std::uint64_t>& count_;
};

/// Rethrows what the client throws.
void record_get(Recorder& recorder, const Client& client, std::size_t build, std::size_t name);
void record_list(Recorder& recorder, const Client& client, std::size_t build);

/// Runs one client process until the arena says stop. Returns its exit status.
int run_client(Arena& arena, const std::string& socket, std::size_t process, std::uint64_t round, std::uint64_t seed);

}  // namespace stepstash::test
