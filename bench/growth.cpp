// SPDX-License-Identifier: Apache-2.0
/// A daemon with a million entries (--quick: 100,000) of 100 bytes, a thousand to a build: what an entry takes, how
/// long a get of a random one takes, how long a start takes. And how many builds fit the segment that a daemon has by
/// default.
#include <random>
#include <thread>

#include "bench/peers.hpp"
#include "bench/rows.hpp"

namespace stepstash::bench {
namespace {

constexpr std::size_t kEntriesOfABuild = 1000;
constexpr std::size_t kValueBytes = 100;
constexpr const char* kSource = "bench";

const std::vector<Key>& many_keys(std::size_t count) {
  static const std::vector<Key> keys = [count] {
    std::vector<Key> made;
    made.reserve(count);
    for (std::size_t i = 0; i < count; ++i) {
      made.emplace_back(static_cast<std::int64_t>(1 + i / kEntriesOfABuild), "entry-" + std::to_string(i));
    }
    return made;
  }();
  return keys;
}

/// Four clients at once, for most of a set of this size is waiting for the answer.
void set_all(const Daemon& daemon, const std::vector<Key>& keys) {
  constexpr std::size_t kClients = 4;
  std::vector<std::thread> threads;
  for (std::size_t first = 0; first < kClients; ++first) {
    threads.emplace_back([&, first] {
      const Client client = daemon.connect();
      Stepstash peer(client.get());
      Payload payload(kValueBytes);
      for (std::size_t i = first; i < keys.size(); i += kClients) peer.set(keys[i], payload.next());
    });
  }
  for (std::thread& thread : threads) thread.join();
}

/// What one entry takes of the daemon's own memory, and of the segment without its name, source and value.
void memory_per_entry(benchmark::State& state, std::size_t count) {
  std::unique_ptr<Daemon>& many = World::get().many;
  many = std::make_unique<Daemon>(World::get().directories, "many", "2GiB");
  const std::uint64_t daemon_before = many->anonymous_bytes();
  const std::uint64_t segment_before = many->figure("/segment/used_bytes");
  const std::vector<Key>& keys = many_keys(count);
  std::uint64_t texts = 0;
  for (const Key& key : keys) texts += key.length + std::strlen(kSource) + kValueBytes;
  for (auto _ : state) set_all(*many, keys);
  require(stepstash_flush(many->connect().get(), 120'000) == STEPSTASH_OK, stepstash_error_message());
  const auto per_entry = [count](std::uint64_t bytes) {
    return static_cast<double>(bytes) / static_cast<double>(count);
  };
  state.counters["daemon_bytes"] = per_entry(many->anonymous_bytes() - daemon_before);
  state.counters["segment_bytes"] = per_entry(many->figure("/segment/used_bytes") - segment_before - texts);
  state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(count));
}

Daemon& many(std::size_t count) {
  std::unique_ptr<Daemon>& daemon = World::get().many;
  if (!daemon) {  // with --benchmark_filter the row above may not have run
    daemon = std::make_unique<Daemon>(World::get().directories, "many", "2GiB");
    set_all(*daemon, many_keys(count));
    require(stepstash_flush(daemon->connect().get(), 120'000) == STEPSTASH_OK, stepstash_error_message());
  }
  return *daemon;
}

const std::vector<Key>& shuffled_keys(std::size_t count) {
  static const std::vector<Key> keys = [count] {
    std::vector<Key> copy = many_keys(count);
    std::shuffle(copy.begin(), copy.end(), std::mt19937(42));
    return copy;
  }();
  return keys;
}

template <class Peer>
void get_all(benchmark::State& state, Peer& peer, const std::vector<Key>& keys) {
  std::size_t at = 0;
  for (auto _ : state) {
    peer.get(keys[at]);
    if (++at == keys.size()) at = 0;
  }
  state.SetItemsProcessed(state.iterations());
}

void random_of_many(benchmark::State& state, std::size_t count) {
  const Client client = many(count).connect();
  Stepstash peer(client.get());
  get_all(state, peer, shuffled_keys(count));
}

void random_of_many_in_lmdb(benchmark::State& state, std::size_t count) {
  LmdbEnvironment& environment = LmdbEnvironment::many();
  static const bool filled = [&] {
    Payload payload(kValueBytes);
    std::vector<std::pair<Key, std::span<const char>>> all;
    for (const Key& key : many_keys(count)) all.emplace_back(key, payload.next());
    environment.set_all(all);
    return true;
  }();
  require(filled, "lmdb: not filled");
  Lmdb peer(environment);
  get_all(state, peer, shuffled_keys(count));
}

/// From the start of the process to the first answer.
void start(benchmark::State& state, Daemon& daemon, const Key& key) {
  const auto begin = std::chrono::steady_clock::now();
  daemon.start();
  const Client client = daemon.connect();
  Stepstash(client.get()).get(key);
  state.SetIterationTime(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
}

void start_after_kill(benchmark::State& state, std::size_t count) {
  Daemon& daemon = many(count);
  for (auto _ : state) {
    daemon.kill();
    start(state, daemon, many_keys(count).back());
  }
}

void start_without_segment(benchmark::State& state, std::size_t count) {
  Daemon& daemon = many(count);
  for (auto _ : state) {
    daemon.stop();
    daemon.delete_segment();
    start(state, daemon, many_keys(count).back());
  }
}

/// Builds of one value of a byte each, until one is refused or there are enough.
void builds_that_fit(benchmark::State& state, std::size_t enough) {
  World::get().many.reset();
  const Daemon daemon(World::get().directories, "builds", "1GiB");
  const Client client = daemon.connect();
  stepstash_set_options options = {};
  options.size = sizeof options;
  options.deadline_ms = 1000;
  std::size_t builds = 0;
  for (auto _ : state) {
    while (builds < enough && stepstash_set(client.get(), static_cast<std::int64_t>(builds + 1), "a", "b", 1, "",
                                            &options, nullptr) == STEPSTASH_OK) {
      ++builds;
    }
  }
  state.counters["builds"] = static_cast<double>(builds);
  state.counters["tried"] = static_cast<double>(enough);
}

}  // namespace

void register_growth(const Plan& plan) {
  const std::size_t count = plan.quick ? 100'000 : 1'000'000;
  const auto name = [](const char* row, const char* peer) { return std::string(row) + "/" + peer + "/many"; };
  benchmark::RegisterBenchmark(name("memory", "stepstash").c_str(), memory_per_entry, count)
      ->Iterations(1)
      ->Repetitions(1)
      ->UseRealTime()
      ->Unit(benchmark::kMillisecond);
  benchmark::RegisterBenchmark(name("random_of_many", "stepstash").c_str(), random_of_many, count)->UseRealTime();
  benchmark::RegisterBenchmark(name("random_of_many", "lmdb").c_str(), random_of_many_in_lmdb, count)->UseRealTime();
  benchmark::RegisterBenchmark(name("start_after_kill", "stepstash").c_str(), start_after_kill, count)
      ->Iterations(1)
      ->Repetitions(plan.quick ? 1 : 3)
      ->UseManualTime()
      ->Unit(benchmark::kMillisecond);
  benchmark::RegisterBenchmark(name("start_without_segment", "stepstash").c_str(), start_without_segment, count)
      ->Iterations(1)
      ->Repetitions(plan.quick ? 1 : 3)
      ->UseManualTime()
      ->Unit(benchmark::kMillisecond);
  benchmark::RegisterBenchmark(name("builds", "stepstash").c_str(), builds_that_fit, plan.quick ? 20'000 : 100'000)
      ->Iterations(1)
      ->Repetitions(1)
      ->UseRealTime()
      ->Unit(benchmark::kMillisecond);
}

}  // namespace stepstash::bench
