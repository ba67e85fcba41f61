// SPDX-License-Identifier: Apache-2.0
/// The same value again and again, by a process that is already connected. Nobody reads the bytes.
#include "bench/peers.hpp"
#include "bench/rows.hpp"

namespace stepstash::bench {
namespace {

template <class Peer>
void warm_get(benchmark::State& state, std::size_t bytes) {
  if (skipped<Peer>(state)) return;
  Peer peer;
  const Key key(1, "warm-" + std::to_string(bytes));
  set_once(peer, key, bytes);
  for (auto _ : state) peer.get(key);
}

void warm_pointer(benchmark::State& state) {
  static const char byte = 0;
  const char* volatile where = &byte;
  for (auto _ : state) benchmark::DoNotOptimize(static_cast<const char*>(where));
}

template <class Peer>
void add_warm_get(std::size_t bytes) {
  benchmark::RegisterBenchmark(row_name("warm_get", Peer::kName, bytes).c_str(), warm_get<Peer>, bytes)->UseRealTime();
}

}  // namespace

void register_warm_get(const Plan&) {
  for (const std::size_t bytes : {kKiB, kMiB, 64 * kMiB}) {
    benchmark::RegisterBenchmark(row_name("warm_get", "pointer", bytes).c_str(), warm_pointer)->UseRealTime();
    add_warm_get<Stepstash>(bytes);
    add_warm_get<Lmdb>(bytes);
    add_warm_get<File>(bytes);
    add_warm_get<Redis>(bytes);
    add_warm_get<Memcached>(bytes);
    add_warm_get<Sqlite>(bytes);
  }
}

}  // namespace stepstash::bench
