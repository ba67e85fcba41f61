// SPDX-License-Identifier: Apache-2.0
/// A warm get of 1 KiB from Python (bench/python_get.py), through ctypes and a with block.
#include "bench/peers.hpp"
#include "bench/process.hpp"
#include "bench/rows.hpp"

namespace stepstash::bench {
namespace {

void python_get(benchmark::State& state) {
  Stepstash peer;
  const Key key(1, "python");
  set_once(peer, key, kKiB);
  const std::string command =
      "PYTHONPATH='" BENCH_SOURCE "/python' STEPSTASH_LIBRARY='" BENCH_LIBRARY "' STEPSTASH_SOCKET='" +
      World::get().daemon.socket() + "' python3 -B '" BENCH_SOURCE "/bench/python_get.py' 1 python";
  for (auto _ : state) {
    const std::string seconds = first_line_of(command);
    if (seconds.empty()) {
      state.SkipWithError("Python is not installed");
      return;
    }
    state.SetIterationTime(std::stod(seconds));
  }
}

}  // namespace

void register_python_get(const Plan&) {
  benchmark::RegisterBenchmark("python_get/stepstash/1024", python_get)->UseManualTime()->Iterations(1);
}

}  // namespace stepstash::bench
