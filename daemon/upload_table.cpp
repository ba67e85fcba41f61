// SPDX-License-Identifier: Apache-2.0
#include "daemon/upload_table.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/errc.hpp"

namespace stepstash::daemon {

// ---- one connection's row ------------------------------------------------------------------------------------------

UploadTable::Row::Row(UploadTable& table, Link& link)
    : table_(table), link_(link), at_(table.rows_.insert(table.rows_.end(), this)) {}

UploadTable::Row::~Row() {
  set_ring(false);
  table_.rows_.erase(at_);
}

void UploadTable::Row::begin(OwnedDraft draft) {
  upload_ = State{};  // not emplace(): clang 14 takes State for a type without a default constructor
  upload_->draft = std::move(draft);
  start_clock();
}

void UploadTable::Row::stop_clock() {
  if (!upload_ || !upload_->stalled_since) return;
  upload_->budget -= table_.clock_.monotonic() - *std::exchange(upload_->stalled_since, std::nullopt);
}

void UploadTable::Row::add(std::uint64_t bytes) {
  upload_->bytes += bytes;
  // In KiB, so that no size of a value overflows.
  const auto earned = std::chrono::nanoseconds(std::chrono::seconds(1)) / (kBytesPerSecond >> 10) * (bytes >> 10);
  upload_->budget = std::min<std::chrono::nanoseconds>(upload_->budget + earned, kBudget);
}

void UploadTable::Row::start_clock() { upload_->stalled_since = table_.clock_.monotonic(); }

void UploadTable::Row::fail(protocol::Failure why) {
  upload_->failure = std::move(why);
  upload_->draft.reset();
}

void UploadTable::Row::set_ring(bool has_ring) {
  if (std::exchange(has_ring_, has_ring) == has_ring) return;
  if (has_ring) {
    ++table_.rings_;
  } else {
    --table_.rings_;
    table_.ring_ended_.notify_all();
  }
}

/// False if the client is not to blame for the upload's present state.
bool UploadTable::Row::abort_if_stalled() {
  if (!upload_) return false;
  if (upload_->failure) return true;
  const auto& since = upload_->stalled_since;
  if (!since || table_.clock_.monotonic() - *since <= upload_->budget) return false;
  fail({Errc::segment_full, fmt::format("the set was given up: others wait for the room that it keeps, and after {} "
                                        "bytes its client let them wait",
                                        upload_->bytes)});
  return true;
}

/// An upload without a draft has nothing to free.
bool UploadTable::Row::free_draft() { return upload_ && upload_->draft && abort_if_stalled(); }

bool UploadTable::Row::free_idle_ring() {
  if (!has_ring_ || link_.closed() || upload_ || !link_.idle()) return false;
  link_.close();
  return true;
}

bool UploadTable::Row::free_stalled_ring() {
  if (!has_ring_ || link_.closed() || !abort_if_stalled()) return false;
  if (link_.work() == Link::Work::answering) {  // its reply is still to come: the failure must not go before it
    link_.close();
  } else {
    link_.close(*upload_->failure);
  }
  return true;
}

// ---- the table -----------------------------------------------------------------------------------------------------

bool UploadTable::look(NextLook& next, bool (Row::*free)()) {
  const auto now = clock_.monotonic();
  if (now < next) return false;
  if (std::any_of(rows_.begin(), rows_.end(), [free](Row* row) { return (row->*free)(); })) return true;
  next = now + kLookAgain;
  return false;
}

bool UploadTable::abort_stalled() { return look(next_abort_, &Row::free_draft); }

bool UploadTable::free_ring() {
  return look(next_idle_, &Row::free_idle_ring) || look(next_stalled_, &Row::free_stalled_ring);
}

awaitable<Result<>> UploadTable::wait_for_ring(std::uint64_t most, Waiter& waiter, TimePoint deadline) {
  while (rings_ >= most && !free_ring()) {
    if (waiter.dismissed()) co_return Errc::shutting_down;
    if (waiter.gone() || expired(deadline)) co_return Errc::too_many;
    co_await ring_ended_.wait(waiter, std::min(deadline, std::chrono::steady_clock::now() + kLookAgain));
  }
  co_return success();
}

}  // namespace stepstash::daemon
