// SPDX-License-Identifier: Apache-2.0
#include "daemon/id_range.hpp"

#include <algorithm>
#include <atomic>

#include "base/crash_point.hpp"
#include "base/errc.hpp"

namespace stepstash::daemon {
namespace {

// Loads are of this thread's own stores. Stores are release: an attach after a kill sees them in the order of the
// program, and the counter beyond every id that it finds.
constexpr auto kOwn = std::memory_order_relaxed;
constexpr auto kInOrder = std::memory_order_release;

}  // namespace

Result<std::uint64_t> IdRange::take() const noexcept {
  const std::uint64_t id = header_.next_id.load(kOwn);
  if (id >= header_.id_limit.load(kOwn)) return Errc::out_of_ids;
  header_.next_id.store(id + 1, kInOrder);
  STEPSTASH_CRASH_POINT("daemon.id.taken");
  return id;
}

bool IdRange::low() const noexcept { return header_.id_limit.load(kOwn) < header_.next_id.load(kOwn) + kCount / 2; }

std::uint64_t IdRange::end() const noexcept {
  return std::max(header_.next_id.load(kOwn), header_.id_limit.load(kOwn));
}

void IdRange::begin(std::uint64_t first) const noexcept {
  // In this order: after a kill in between no id is left, and none from the gap between the two ranges is given out.
  header_.next_id.store(first, kInOrder);
  STEPSTASH_CRASH_POINT("daemon.ids.next_id.stored");
  header_.id_limit.store(first + kCount, kInOrder);
  STEPSTASH_CRASH_POINT("daemon.ids.id_limit.stored");
}

void IdRange::skip(std::uint64_t id) const noexcept {
  if (header_.next_id.load(kOwn) <= id) header_.next_id.store(id + 1, kInOrder);
}

std::uint64_t IdRange::take_unreserved() const noexcept { return header_.next_id.fetch_add(1, kInOrder); }

void IdRange::forget_reserved() const noexcept { header_.id_limit.store(header_.next_id.load(kOwn), kInOrder); }

void IdRange::copy(const IdRange& other) const noexcept {
  header_.next_id.store(other.header_.next_id.load(kOwn), kInOrder);
  header_.id_limit.store(other.header_.id_limit.load(kOwn), kInOrder);
}

}  // namespace stepstash::daemon
