// SPDX-License-Identifier: Apache-2.0
/// How long a get takes at worst, of a value of 1 MiB: idle, and while a thread replaces that value as fast as it
/// can; and how fast that is next to a reader that never rests. Each latency includes reading the clock.
#include <atomic>
#include <optional>
#include <thread>

#include "bench/peers.hpp"
#include "bench/rows.hpp"

namespace stepstash::bench {
namespace {

/// What reading the clock takes.
class Clock {
 public:
  static constexpr const char* kName = "clock";
  void get(const Key&) {}
  void set(const Key&, std::span<const char>) {}
};

/// Replaces a value from its construction to its destruction.
template <class Peer>
class Writer {
 public:
  explicit Writer(const Key& key) : thread_([this, key] { run(key); }) {}
  Writer(Writer&&) = delete;
  ~Writer() {
    stop_ = true;
    thread_.join();
  }
  std::uint64_t bytes() const noexcept { return bytes_; }

 private:
  void run(const Key& key) {
    Peer peer;
    Payload payload(kMiB);
    while (!stop_) {
      peer.set(key, payload.next());
      bytes_ += kMiB;
    }
  }

  std::atomic<bool> stop_ = false;
  std::atomic<std::uint64_t> bytes_ = 0;
  std::thread thread_;
};

template <class Peer>
void tail(benchmark::State& state, bool writing) {
  const Key key(1, "tail");
  Peer peer;
  peer.set(key, Payload(kMiB).next());
  std::optional<Writer<Peer>> writer;
  if (writing) {
    writer.emplace(key);
    while (writer->bytes() == 0) std::this_thread::yield();
  }
  const std::uint64_t written_before = writing ? writer->bytes() : 0;
  const auto begin = std::chrono::steady_clock::now();
  Latencies latencies;
  for (auto _ : state) {
    const auto asked = std::chrono::steady_clock::now();
    peer.get(key);
    latencies.add(std::chrono::steady_clock::now() - asked);
  }
  const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin;
  state.counters["p50_ns"] = latencies.quantile(0.5);
  state.counters["p99_ns"] = latencies.quantile(0.99);
  state.counters["p99.9_ns"] = latencies.quantile(0.999);
  state.counters["p99.99_ns"] = latencies.quantile(0.9999);
  state.counters["worst_ns"] = latencies.worst();
  if (writing) {
    state.counters["writer_bytes_per_second"] = static_cast<double>(writer->bytes() - written_before) / spent.count();
  }
}

template <class Peer>
void add_tail(bool writing, const Plan& plan) {
  const std::string name = std::string(writing ? "tail_under_writer/" : "tail_idle/") + Peer::kName + "/1048576";
  benchmark::RegisterBenchmark(name.c_str(), tail<Peer>, writing)->UseRealTime()->MinTime(plan.quick ? 0.1 : 0.5);
}

}  // namespace

void register_tail(const Plan& plan) {
  add_tail<Clock>(false, plan);
  for (const bool writing : {false, true}) {
    add_tail<Stepstash>(writing, plan);
    add_tail<Lmdb>(writing, plan);
  }
}

}  // namespace stepstash::bench
