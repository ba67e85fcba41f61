// SPDX-License-Identifier: Apache-2.0
/// A block for a value that is being set or reloaded, and its share of the accounting until it is published or
/// discarded.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "shm/segment.hpp"

namespace stepstash::daemon {

/// An amount that counts in a sum for the lifetime of this object.
class Share {
 public:
  Share() = default;
  Share(Share&& other) noexcept : sum_(std::exchange(other.sum_, nullptr)), amount_(std::exchange(other.amount_, 0)) {}
  Share& operator=(Share&& other) noexcept {
    if (this != &other) {
      reset();
      sum_ = std::exchange(other.sum_, nullptr);
      amount_ = std::exchange(other.amount_, 0);
    }
    return *this;
  }
  ~Share() { reset(); }
  void set(std::uint64_t& sum, std::uint64_t amount) noexcept {
    reset();
    sum_ = &sum;
    amount_ = amount;
    sum += amount;
  }
  void reset() noexcept {
    if (sum_ != nullptr) *std::exchange(sum_, nullptr) -= std::exchange(amount_, 0);
  }

 private:
  std::uint64_t* sum_ = nullptr;
  std::uint64_t amount_ = 0;
};

/// A draft that is discarded unless it is published. Loop's thread only.
class OwnedDraft {
 public:
  OwnedDraft() = default;
  OwnedDraft(shm::Segment& segment, shm::Draft draft) : segment_(&segment), draft_(draft) {}
  OwnedDraft(OwnedDraft&& other) noexcept
      : segment_(std::exchange(other.segment_, nullptr)),
        draft_(other.draft_),
        staged_(std::move(other.staged_)),
        promised_(std::move(other.promised_)) {}
  OwnedDraft& operator=(OwnedDraft&& other) noexcept {
    if (this != &other) {
      reset();
      segment_ = std::exchange(other.segment_, nullptr);
      draft_ = other.draft_;
      staged_ = std::move(other.staged_);
      promised_ = std::move(other.promised_);
    }
    return *this;
  }
  ~OwnedDraft() { reset(); }

  explicit operator bool() const noexcept { return segment_ != nullptr; }
  shm::Draft& operator*() noexcept { return draft_; }
  shm::Draft* operator->() noexcept { return &draft_; }
  shm::Draft release() noexcept {
    segment_ = nullptr;
    staged_.reset();
    promised_.reset();
    return draft_;
  }
  void reset() noexcept {
    if (segment_ != nullptr) std::exchange(segment_, nullptr)->discard(draft_);
    staged_.reset();
    promised_.reset();
  }
  /// Counts its present capacity in `sum` for its lifetime.
  void count_in(std::uint64_t& sum) noexcept { staged_.set(sum, draft_.capacity); }
  /// Counts the pages that the first `bytes` bytes of its value lack at present in `sum` for its lifetime.
  void promise(std::uint64_t& sum, std::uint64_t bytes) noexcept {
    promised_.set(sum, segment_->unreserved_bytes(draft_, std::min(bytes, draft_.capacity)));
  }

 private:
  shm::Segment* segment_ = nullptr;
  shm::Draft draft_;
  Share staged_;
  Share promised_;
};

}  // namespace stepstash::daemon
