// SPDX-License-Identifier: Apache-2.0
/// Values of 4 KiB, 10,000 of them in random order, by 1, 2 and 8 threads at once. Nobody reads the bytes.
#include <mutex>
#include <random>

#include "bench/peers.hpp"
#include "bench/rows.hpp"

namespace stepstash::bench {
namespace {

constexpr std::size_t kValues = 10'000;

const std::vector<Key>& shuffled_keys() {
  static const std::vector<Key> keys = [] {
    std::vector<Key> made;
    for (std::size_t i = 0; i < kValues; ++i) made.emplace_back(2, "random-" + std::to_string(i));
    std::shuffle(made.begin(), made.end(), std::mt19937(42));
    return made;
  }();
  return keys;
}

template <class Peer>
void fill_once() {
  static std::once_flag filled;
  std::call_once(filled, [] {
    Peer peer;
    Payload payload(4 * kKiB);
    for (const Key& key : shuffled_keys()) peer.set(key, payload.next());
  });
}

/// Each thread walks through all keys, and begins elsewhere.
std::size_t first_of(const benchmark::State& state) {
  return kValues / static_cast<std::size_t>(state.threads()) * static_cast<std::size_t>(state.thread_index());
}

template <class Peer>
void random_get(benchmark::State& state) {
  if (skipped<Peer>(state)) return;
  fill_once<Peer>();
  Peer peer;
  const std::vector<Key>& keys = shuffled_keys();
  std::size_t at = first_of(state);
  for (auto _ : state) {
    peer.get(keys[at]);
    if (++at == keys.size()) at = 0;
  }
  state.SetItemsProcessed(state.iterations());
}

/// The floor: where the bytes are is known, and is read from an array.
void random_pointer(benchmark::State& state) {
  static const std::vector<Key>& keys = shuffled_keys();
  std::size_t at = first_of(state);
  for (auto _ : state) {
    benchmark::DoNotOptimize(keys[at].build);
    if (++at == keys.size()) at = 0;
  }
  state.SetItemsProcessed(state.iterations());
}

template <class Peer>
void add_random_get(std::size_t readers) {
  benchmark::RegisterBenchmark(row_name("random_get", Peer::kName, readers).c_str(), random_get<Peer>)
      ->Threads(static_cast<int>(readers))
      ->UseRealTime();
}

}  // namespace

void register_random_get(const Plan&) {
  for (const std::size_t readers : {1, 2, 8}) {
    benchmark::RegisterBenchmark(row_name("random_get", "pointer", readers).c_str(), random_pointer)
        ->Threads(static_cast<int>(readers))
        ->UseRealTime();
    add_random_get<Stepstash>(readers);
    add_random_get<Lmdb>(readers);
    add_random_get<Redis>(readers);
    add_random_get<Memcached>(readers);
  }
}

}  // namespace stepstash::bench
