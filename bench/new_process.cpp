// SPDX-License-Identifier: Apache-2.0
/// What a step is: a process that starts, gets one value, reads a byte of each page, and ends. `true` is the floor; the
/// command `stepstash get` writes the value to /dev/null, which reads none of it.
#include <fcntl.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "bench/peers.hpp"
#include "bench/rows.hpp"

namespace stepstash::bench {
namespace {

/// Runs it to its end; its page faults that took no disk.
long run(std::vector<std::string>& arguments) {
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  pid_t child = -1;
  require(::posix_spawnp(&child, argv[0], nullptr, nullptr, argv.data(), ::environ) == 0, "cannot run " + arguments[0]);
  int status = 0;
  rusage usage = {};
  require(::wait4(child, &status, 0, &usage) == child && status == 0, arguments[0] + " failed");
  return usage.ru_minflt;
}

void new_process(benchmark::State& state, std::vector<std::string> arguments) {
  long faults = 0;
  for (auto _ : state) faults += run(arguments);
  state.counters["page_faults"] = benchmark::Counter(static_cast<double>(faults), benchmark::Counter::kAvgIterations);
}

void of_true(benchmark::State& state, std::size_t) { new_process(state, {"true"}); }

/// Sets the value, then runs the command that gets it.
template <class Peer>
void of_peer(benchmark::State& state, std::size_t bytes) {
  const Key key(1, "process-" + std::to_string(bytes));
  Peer peer;
  set_once(peer, key, bytes);
  const World& world = World::get();
  if constexpr (std::is_same_v<Peer, Stepstash>) {
    new_process(state, {BENCH_GET_STEPSTASH, world.daemon.socket(), "1", key.name});
  } else if constexpr (std::is_same_v<Peer, File>) {
    new_process(state, {BENCH_GET_FILE, world.directories.shm + "/files/" + key.name});
  } else {
    new_process(state, {BENCH_GET_LMDB, world.directories.shm + "/lmdb", "1", key.name});
  }
}

void of_command(benchmark::State& state, std::size_t bytes) {
  const Key key(1, "process-" + std::to_string(bytes));
  Stepstash peer;
  set_once(peer, key, bytes);
  new_process(state,
              {BENCH_STEPSTASH, "--socket", World::get().daemon.socket(), "get", "1", key.name, "-o", "/dev/null"});
}

void add_new_process(const char* peer, void (*row)(benchmark::State&, std::size_t), std::size_t bytes) {
  benchmark::RegisterBenchmark(row_name("new_process", peer, bytes).c_str(), row, bytes)
      ->UseRealTime()
      ->Unit(benchmark::kMicrosecond);
}

}  // namespace

void register_new_process(const Plan&) {
  for (const std::size_t bytes : {kKiB, kMiB, 64 * kMiB}) {
    add_new_process("true", of_true, bytes);
    add_new_process(Stepstash::kName, of_peer<Stepstash>, bytes);
    add_new_process("command", of_command, bytes);
    add_new_process(File::kName, of_peer<File>, bytes);
    add_new_process(Lmdb::kName, of_peer<Lmdb>, bytes);
  }
}

}  // namespace stepstash::bench
