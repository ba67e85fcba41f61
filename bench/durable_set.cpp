// SPDX-License-Identifier: Apache-2.0
/// The same name again and again, each time with other bytes; the call returns when they survive a loss of power.
#include "bench/peers.hpp"
#include "bench/rows.hpp"

namespace stepstash::bench {
namespace {

struct DurableStepstash : Stepstash {
  void set(const Key& key, std::span<const char> bytes) { Stepstash::set(key, bytes, true); }
};

struct DurableLmdb : Lmdb {
  DurableLmdb() : Lmdb(LmdbEnvironment::on_disk()) {}
};

template <class Peer>
void durable_set(benchmark::State& state, std::size_t bytes) {
  Peer peer;
  Payload& payload = payload_of(bytes);
  const Key key(1, "durable-" + std::to_string(bytes));
  peer.set(key, payload.next());
  for (auto _ : state) peer.set(key, payload.next());
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(bytes));
}

template <class Peer>
void add_durable_set(std::size_t bytes) {
  benchmark::RegisterBenchmark(row_name("durable_set", Peer::kName, bytes).c_str(), durable_set<Peer>, bytes)
      ->UseRealTime()
      ->Unit(benchmark::kMicrosecond);
}

}  // namespace

void register_durable_set(const Plan&) {
  for (const std::size_t bytes : {kKiB, kMiB, 64 * kMiB}) {
    add_durable_set<DurableStepstash>(bytes);
    add_durable_set<Sqlite>(bytes);
    add_durable_set<DurableLmdb>(bytes);
  }
}

}  // namespace stepstash::bench
