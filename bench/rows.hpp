// SPDX-License-Identifier: Apache-2.0
/// The rows, each registered by a file of its name. A benchmark is called ROW/PEER/SIZE, which bench/report.py reads.
#pragma once

#include <benchmark/benchmark.h>

#include <set>
#include <string>

#include "bench/support.hpp"

namespace stepstash::bench {

/// --quick: fewer repetitions, entries and builds.
struct Plan {
  bool quick = false;
};

void register_warm_get(const Plan& plan);
void register_random_get(const Plan& plan);
void register_scan(const Plan& plan);
void register_new_process(const Plan& plan);
void register_set(const Plan& plan);
void register_durable_set(const Plan& plan);
void register_tail(const Plan& plan);
void register_python_get(const Plan& plan);
void register_growth(const Plan& plan);

inline std::string row_name(const char* row, const char* peer, std::size_t size) {
  return std::string(row) + "/" + peer + "/" + std::to_string(size);
}

/// True, and the report says why, if the peer is not there.
template <class Peer>
bool skipped(benchmark::State& state) {
  if (Peer::missing() != nullptr) state.SkipWithError(Peer::missing());
  return Peer::missing() != nullptr;
}

/// Sets the value unless this run has done so: a row is entered several times until it has run long enough.
template <class Peer>
void set_once(Peer& peer, const Key& key, std::size_t bytes) {
  static std::set<std::string> there;
  if (there.insert(key.name).second) peer.set(key, Payload(bytes).next());
}

}  // namespace stepstash::bench
