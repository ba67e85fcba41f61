// SPDX-License-Identifier: Apache-2.0
/// The core of a daemon without sockets and signals: segment, store, flusher and their loop, on a database provided by
/// the test. The loop runs only within run() and run_until(), so a test decides what happens in between.
#pragma once

#include <utility>  // before awaitable.hpp, which uses std::exchange without it in Boost 1.74

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

#include "base/errc.hpp"
#include "daemon/explain.hpp"
#include "daemon/startup.hpp"
#include "daemon/store.hpp"
#include "shm/hash.hpp"
#include "shm/reader.hpp"
#include "shm/validate.hpp"
#include "tests/support/faulty_store.hpp"
#include "tests/support/manual_clock.hpp"
#include "tests/support/memory_store.hpp"
#include "tests/support/temp_dir.hpp"

namespace stepstash::test {

using namespace std::chrono_literals;
using daemon::awaitable;
using daemon::TimePoint;

inline TimePoint in(std::chrono::milliseconds wait) { return std::chrono::steady_clock::now() + wait; }

inline std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

class Engine {
 public:
  static constexpr std::uint64_t kSegmentBytes = 4 << 20;
  static constexpr const char* kSegment = "segment";

  /// Uses the segment in `directory`, creating it if missing. Nothing is flushed unless requested.
  Engine(const TempDir& directory, persist::BackingStore& store, const Clock& clock,
         std::uint64_t segment_bytes = kSegmentBytes)
      : Engine(directory, &store, {}, clock, segment_bytes) {}
  /// Without a database.
  Engine(const TempDir& directory, const daemon::Database::Absence& absence, const Clock& clock)
      : Engine(directory, nullptr, absence, clock, kSegmentBytes) {}
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

 private:
  Engine(const TempDir& directory, persist::BackingStore* store, const daemon::Database::Absence& absence,
         const Clock& clock, std::uint64_t segment_bytes)
      : objects_(shm::ObjectDirectory::open(directory.path()).value()),
        startup_(open(objects_, store, segment_bytes)),
        database_(store == nullptr ? std::make_unique<daemon::Database>(loop_, absence)
                                   : std::make_unique<daemon::Database>(loop_, borrowed(*store))),
        flusher_(loop_, *startup_.segment, *database_, clock, 1h),
        store_(loop_, catalog_, *startup_.segment, *database_, flusher_, clock, {{segment_bytes, 10s}, std::nullopt}) {
    store_.adopt(startup_.all_dirty, startup_.lost);
    phases_.end();
    startup_.phases = phases_.all();
    if (database_->allows(daemon::Database::Use::identify)) {  // as Server does, last
      startup_.segment->header().store_id.store(database_->store_id());
      startup_.segment->header().commit_count.store(database_->commit_count());
    }
    boost::asio::co_spawn(
        loop_, [this] { return database_->watch(); }, boost::asio::detached);
    boost::asio::co_spawn(
        loop_,
        [this]() -> awaitable<void> {
          co_await flusher_.run();
          co_await database_->stop_watching();
          flusher_done_ = true;
        },
        boost::asio::detached);
  }

 public:
  /// Like SIGTERM, but without waiting: what the database does not accept stays dirty in the segment.
  ~Engine() {
    waiter_.hang_up();
    flusher_.stop(std::chrono::steady_clock::now());
    run_until([&] { return flusher_done_ && waiting_ == 0; });
    database_->stop_threads();
    loop_.poll();
  }

  daemon::Store& store() { return store_; }
  std::string explain(std::error_code error, std::uint64_t length) {
    return daemon::explain(error, length, segment(), store_.room(), flusher_, *database_);
  }
  daemon::Flusher& flusher() { return flusher_; }
  daemon::Database& database() { return *database_; }
  shm::Segment& segment() { return *startup_.segment; }
  const daemon::Startup& startup() const { return startup_; }
  daemon::Waiter& waiter() { return waiter_; }
  boost::asio::io_context& loop() { return loop_; }
  bool flushing() const { return !flusher_done_; }

  /// Runs the loop until `condition` holds. Throws after 30 s.
  void run_until(const std::function<bool()>& condition) {
    const auto give_up = in(30s);
    while (!condition()) {
      loop_.run_one_for(5ms);
      if (std::chrono::steady_clock::now() > give_up) throw std::runtime_error("it does not happen");
    }
  }
  /// Runs the loop until the coroutine is done, and returns its result.
  template <class T>
  T run(awaitable<T> work) {
    std::optional<T> result;
    start(std::move(work), result);
    run_until([&] { return result.has_value(); });
    return std::move(*result);
  }
  /// Starts it; it continues whenever the loop runs. `result` must live until it has a value.
  template <class T>
  void start(awaitable<T> work, std::optional<T>& result) {
    ++waiting_;
    boost::asio::co_spawn(
        loop_,
        [this, work = std::move(work), &result]() mutable -> awaitable<void> {
          result.emplace(co_await std::move(work));
          --waiting_;
        },
        boost::asio::detached);
  }

  // ---- what tests do all the time ----

  static protocol::SetParams params(BuildId build, std::string name) {
    protocol::SetParams made;
    made.build = build;
    made.name = std::move(name);
    return made;
  }
  Result<protocol::SetOk> try_set(const protocol::SetParams& params, std::string_view value,
                                  std::chrono::milliseconds deadline = 10s) {
    return run(store_.set(params, bytes_of(value), waiter_, in(deadline)));
  }
  protocol::SetOk set(BuildId build, std::string name, std::string_view value) {
    return try_set(params(build, std::move(name)), value).value();
  }
  /// Waits until everything set so far is in the database.
  Result<> flush(std::chrono::milliseconds deadline = 10s) {
    return run(flusher_.committed(flusher_.last_place(), waiter_, in(deadline)));
  }
  std::uint64_t prune(std::int64_t older_than) {
    return run(store_.builds().prune(older_than, waiter_, in(10s))).value();
  }
  /// One page, for a client that keeps no list.
  protocol::ListPage list(BuildId build, std::uint64_t after = 0) {
    daemon::Listings::Handle listing;
    return store_.list({build, std::nullopt, after}, listing).value();
  }
  awaitable<Result<std::uint64_t>> pruning(std::int64_t older_than) {
    co_return co_await store_.builds().prune(older_than, waiter_, in(10s));
  }
  /// A client of the segment.
  shm::Reader reader() {
    auto page = segment().pins().create(segment().header().segment_id, ::getpid(), ::getuid()).value();
    return shm::Reader::attach(segment().open_for_client().value(), std::move(page.fd)).value();
  }
  std::uint64_t drop(BuildId build) { return run(store_.builds().drop(build)).value(); }
  Result<> load(BuildId build, const std::string& name) { return run(store_.load(build, name, waiter_, in(10s))); }

  // Coroutines that own what the store's coroutines only borrow, for start().
  awaitable<Result<protocol::SetOk>> setting(protocol::SetParams params, std::string value, daemon::Waiter& waiter) {
    co_return co_await store_.set(params, bytes_of(value), waiter, in(30s));
  }
  awaitable<Result<daemon::OwnedDraft>> reserving(protocol::SetParams params, std::uint64_t length) {
    co_return co_await store_.reserve(params, length, waiter_, in(1h));
  }
  awaitable<Result<>> loading(BuildId build, std::string name, daemon::Waiter& waiter) {
    co_return co_await store_.load(build, name, waiter, in(30s));
  }
  awaitable<Result<>> awaiting(BuildId build, std::string name, daemon::Waiter& waiter,
                               std::chrono::milliseconds wait) {
    co_return co_await store_.wait(build, name, waiter, in(wait));
  }

  /// What a reader would see: "(miss)", "(evicted)", or the value.
  std::string value(BuildId build, std::string_view name) {
    const shm::Entry* entry = segment().find(build, name);
    if (entry == nullptr) return "(miss)";
    if (entry->value_offset == 0) return "(evicted)";
    const auto bytes = shm::entry_value(*entry);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }
  /// Bytes in use after reclaiming retired memory.
  std::uint64_t used() {
    segment().reclaim();
    return segment().heap().capacity() - segment().heap().free_bytes();
  }

 private:
  /// The test keeps it.
  static std::shared_ptr<persist::BackingStore> borrowed(persist::BackingStore& store) {
    return {std::shared_ptr<void>(), &store};
  }
  daemon::Startup open(const shm::ObjectDirectory& objects, persist::BackingStore* store, std::uint64_t segment_bytes) {
    if (store == nullptr) return daemon::open_segment_alone(objects, kSegment).value();
    std::vector<std::string> told;
    return daemon::open_segment(
               objects, kSegment, segment_bytes, *store, [this](daemon::Phase phase) { phases_.enter(phase); }, told)
        .value();
  }

  shm::ObjectDirectory objects_;
  boost::asio::io_context loop_{1};
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work_ = make_work_guard(loop_);
  daemon::Waiter waiter_{loop_};
  daemon::Catalog catalog_;
  daemon::PhaseTimes phases_;
  daemon::Startup startup_;
  std::unique_ptr<daemon::Database> database_;
  daemon::Flusher flusher_;
  daemon::Store store_;
  bool flusher_done_ = false;
  int waiting_ = 0;
};

/// Rows of a database, as text: "7/report=value", in id order.
inline std::vector<std::string> rows(persist::BackingStore& database) {
  std::vector<persist::StoredEntry> entries;
  (void)database.load_entries([&](const persist::StoredEntry& entry) {
    entries.push_back(entry);
    return true;
  });
  std::vector<std::string> all;
  for (const persist::StoredEntry& entry : entries) {
    std::string value(entry.length, '\0');
    const auto loaded = database.load_value(entry.id, entry.revision, std::as_writable_bytes(std::span(value)));
    if (!loaded) value = "(" + loaded.error().message() + ")";
    all.push_back(std::to_string(entry.buildid) + "/" + entry.name + "=" + value);
  }
  return all;
}

using Rows = std::vector<std::string>;

}  // namespace stepstash::test
