// SPDX-License-Identifier: Apache-2.0
/// The same name again and again, each time with other bytes; nobody waits for a disk. stepstash's daemon writes them
/// to its database in the meantime, which no peer does.
#include "bench/peers.hpp"
#include "bench/rows.hpp"

namespace stepstash::bench {
namespace {

/// The floor: a copy into memory that has been used before.
class Memcpy {
 public:
  static constexpr const char* kName = "memcpy";
  static const char* missing() { return nullptr; }
  void set(const Key&, std::span<const char> bytes) {
    if (copy_.size() != bytes.size()) copy_.resize(bytes.size());
    std::memcpy(copy_.data(), bytes.data(), bytes.size());
    benchmark::ClobberMemory();
  }

 private:
  std::vector<char> copy_;
};

template <class Peer>
void set(benchmark::State& state, std::size_t bytes) {
  if (skipped<Peer>(state)) return;
  Peer peer;
  Payload& payload = payload_of(bytes);
  const Key key(1, "set-" + std::to_string(bytes));
  peer.set(key, payload.next());  // memory is touched for the first time here, and not in the figure
  Latencies latencies;
  for (auto _ : state) {
    const auto bytes_now = payload.next();
    const auto begin = std::chrono::steady_clock::now();
    peer.set(key, bytes_now);
    latencies.add(std::chrono::steady_clock::now() - begin);
  }
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(bytes));
  state.counters["p50_ns"] = latencies.quantile(0.5);
  state.counters["worst_ns"] = latencies.worst();
  if constexpr (std::is_same_v<Peer, Stepstash>) {  // what it has yet to write must not slow down who comes next
    require(stepstash_flush(World::get().client.get(), 60'000) == STEPSTASH_OK, stepstash_error_message());
  }
}

template <class Peer>
void add_set(std::size_t bytes, const Plan& plan) {
  auto* row = benchmark::RegisterBenchmark(row_name("set", Peer::kName, bytes).c_str(), set<Peer>, bytes)
                  ->UseRealTime()
                  ->Unit(benchmark::kMicrosecond);
  if (!plan.quick && bytes >= 64 * kMiB) row->MinTime(0.8);  // the worst of many takes many
  if (plan.quick && bytes == 256 * kMiB) row->Repetitions(1);
}

}  // namespace

void register_set(const Plan& plan) {
  for (const std::size_t bytes : {kKiB, 64 * kKiB, kMiB, 64 * kMiB, 256 * kMiB}) {
    add_set<Memcpy>(bytes, plan);
    add_set<Stepstash>(bytes, plan);
    add_set<Lmdb>(bytes, plan);
    add_set<File>(bytes, plan);
    add_set<Redis>(bytes, plan);
    add_set<Memcached>(bytes, plan);
  }
}

}  // namespace stepstash::bench
