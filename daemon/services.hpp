// SPDX-License-Identifier: Apache-2.0
/// What all connections share. Loop's thread only.
#pragma once

#include <chrono>
#include <cstdint>
#include <system_error>

#include "base/clock.hpp"
#include "daemon/config.hpp"
#include "daemon/explain.hpp"
#include "daemon/flusher.hpp"
#include "daemon/link.hpp"
#include "daemon/page_reserve.hpp"
#include "daemon/shared_text.hpp"
#include "daemon/store.hpp"
#include "daemon/tasks.hpp"
#include "protocol/message.hpp"
#include "shm/segment.hpp"

namespace stepstash::daemon {

struct Services {
  Services(asio::io_context& loop_, Store& store_, Flusher& flusher_, Database& database_, shm::Segment& segment_,
           const Config& config_, const Clock& clock)
      : loop(loop_),
        store(store_),
        flusher(flusher_),
        database(database_),
        segment(segment_),
        config(config_),
        turns(loop_, clock),
        page_reserve(segment_.directory()) {}

  /// The reply for an error; `length` is the value's.
  protocol::Failure failure(std::error_code error, std::uint64_t length = 0) const {
    return {wire_code(error), explain(error, length, segment, store.room(), flusher, database)};
  }

  asio::io_context& loop;
  Store& store;
  Flusher& flusher;
  Database& database;
  shm::Segment& segment;
  const Config& config;  ///< changes at reload
  Turns turns;
  SharedText stats;
  asio::thread_pool copiers{2};     ///< fill blocks from staging rings; two, so that one long copy does not hold up all
                                    ///< others
  PageReserve page_reserve;         ///< for the pin pages of attaching clients
  std::uint64_t former_hellos = 0;  ///< connections that speak a version which the next one will not
};

/// The deadline of a request that carries `ms`; 0 is the usual one.
inline TimePoint deadline_after(std::uint32_t ms) {
  constexpr std::uint32_t kUsualMs = 10'000;
  return std::chrono::steady_clock::now() + std::chrono::milliseconds(ms == 0 ? kUsualMs : ms);
}

}  // namespace stepstash::daemon
