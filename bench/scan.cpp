// SPDX-License-Identifier: Apache-2.0
/// Every byte of a value of 64 MiB is read where it lies, by a process that has read it before. The floor is memory of
/// this process; one thread, so it is one core's bandwidth.
#include <numeric>

#include "bench/peers.hpp"
#include "bench/rows.hpp"

namespace stepstash::bench {
namespace {

constexpr std::size_t kBytes = 64 * kMiB;

void sum(const void* data) {
  const auto* words = static_cast<const std::uint64_t*>(data);
  benchmark::DoNotOptimize(std::accumulate(words, words + kBytes / sizeof *words, std::uint64_t{0}));
}

void of_memory(benchmark::State& state) {
  const std::vector<std::uint64_t> memory(kBytes / sizeof(std::uint64_t), 1);
  for (auto _ : state) sum(memory.data());
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(kBytes));
}

template <class Peer>
void scan(benchmark::State& state) {
  Peer peer;
  const Key key(1, "scan");
  set_once(peer, key, kBytes);
  for (auto _ : state) peer.get(key, sum);
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(kBytes));
}

template <class Row>
void add_scan(const char* peer, Row row) {
  benchmark::RegisterBenchmark(row_name("scan", peer, kBytes).c_str(), row)
      ->UseRealTime()
      ->Unit(benchmark::kMicrosecond);
}

}  // namespace

void register_scan(const Plan&) {
  add_scan("memory", of_memory);
  add_scan(Stepstash::kName, scan<Stepstash>);
  add_scan(Lmdb::kName, scan<Lmdb>);
}

}  // namespace stepstash::bench
