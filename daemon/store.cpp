// SPDX-License-Identifier: Apache-2.0
#include "daemon/store.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/crash_point.hpp"
#include "base/errc.hpp"
#include "daemon/id_range.hpp"
#include "shm/hash.hpp"
#include "shm/validate.hpp"

namespace stepstash::daemon {
namespace {

/// How long a list waits for its client to ask for the next page.
constexpr auto kListPatience = std::chrono::seconds(10);
/// Minimum interval between index tables built for a key without a slot: this long, and this many times as long as the
/// last one took.
constexpr auto kRekeyPause = std::chrono::milliseconds(100);
constexpr int kRekeyPauseTimes = 20;

}  // namespace

Store::Store(asio::io_context& loop, Catalog& catalog, shm::Segment& segment, Database& database, Flusher& flusher,
             const Clock& clock, const Limits& limits)
    : catalog_(catalog),
      segment_(segment),
      flusher_(flusher),
      clock_(clock),
      listings_(Listings::make(segment)),
      room_(catalog, segment, database, flusher, clock, limits.room),
      builds_(loop, catalog, segment, database, flusher, room_, *listings_, damage_, clock),
      reloader_(loop, catalog, segment, database, room_, damage_) {
  set_limits(limits);
  // What the flusher calls upwards; scripts/structure.py lists every callback of the daemon.
  flusher_.on_settled = [this] { room_.freed(); };
  flusher_.on_clean = [this](Node& node) {
    if (segment_.entry_at(node.block).value_offset != 0) catalog_.touch(node);
  };
  flusher_.on_build_clean = [this](BuildState& build) { builds_.release_if_idle(build); };
  flusher_.on_damaged = [this](Node& node) { on_damaged(node); };
}

void Store::adopt(bool all_dirty, const std::vector<persist::StoredEntry>& lost) {
  segment_.for_each_build(
      [&](shm::BuildRecord& record) { catalog_.add_build(record.buildid.load(std::memory_order_relaxed), record); });
  std::vector<std::pair<std::uint64_t, Node*>> dirty;
  segment_.for_each([&](const shm::Entry& entry) {
    auto build = builds_.ensure(entry.buildid, /*spare=*/true);
    if (!build) return;  // cannot happen: every build with entries has its record
    Node& node = catalog_.add(entry, segment_.offset_of(entry), *build.value());
    segment_.bind(entry);
    const bool resident = entry.value_offset != 0;
    if (!resident && entry.state.load(std::memory_order_relaxed) == shm::EntryState::dirty) damage_.add(entry);
    if (all_dirty && resident) segment_.mark(entry, shm::EntryState::dirty);
    STEPSTASH_CRASH_POINT("daemon.adopt.entry.marked");
    if (entry.state.load(std::memory_order_relaxed) == shm::EntryState::dirty) {
      dirty.emplace_back(entry.set_at_ns, &node);
    } else if (resident) {
      catalog_.touch(node);
    }
  });
  for (const persist::StoredEntry& row : lost) {
    const Node* node = catalog_.find(row.id);
    if (node == nullptr || segment_.entry_at(node->block).revision != row.revision) continue;
    if (segment_.entry_at(node->block).value_offset == 0) damage_.add(segment_.entry_at(node->block));
  }
  std::sort(dirty.begin(), dirty.end());
  // Oldest first: the age of the queue's front is a published figure. A clock that was ahead (of another boot or
  // another time namespace) must not make anything wait.
  const auto now = clock_.monotonic();
  for (const auto& [since, node] : dirty) flusher_.mark_dirty(*node, std::min(now, std::chrono::nanoseconds(since)));
  builds_.adopt();
}

// ---- setting -------------------------------------------------------------------------------------------------------

Result<> Store::check(const protocol::SetParams& params) const {
  if (!valid_build(params.build) || !valid_text(params.name) || !valid_text(params.source)) {
    return Errc::invalid_argument;
  }
  return check_condition(params);
}

Result<> Store::check_condition(const protocol::SetParams& params) const {
  if (!params.if_absent && params.if_revision == 0) return success();
  const shm::Entry* entry = current_entry(segment_, catalog_, params.build, params.name);
  if (params.if_absent && entry != nullptr) return Errc::condition_failed;
  if (params.if_revision != 0 && (entry == nullptr || entry->revision != params.if_revision)) {
    return Errc::condition_failed;
  }
  return success();
}

Result<std::uint64_t> Store::next_id() {
  const Result<std::uint64_t> id = IdRange(segment_.header()).take();
  if (!id) flusher_.kick();  // it reserves more
  return id;
}

awaitable<Result<OwnedDraft>> Store::reserve(const protocol::SetParams& params, std::uint64_t length, Waiter& waiter,
                                             TimePoint deadline) {
  if (auto ok = check(params); !ok) co_return ok.error();
  if (length > room_.max_value_bytes()) co_return Errc::too_large;
  const Room::Wanted wanted{params.build, params.name, params.source, length, /*dirty_bytes=*/length};
  auto draft = co_await room_.find(wanted, waiter, deadline);
  if (draft) room_.count_staged(draft.value());
  co_return draft;
}

Result<const shm::Entry*> Store::publish(const protocol::SetParams& params, OwnedDraft draft, std::uint64_t length,
                                         std::uint64_t value_hash, std::uint64_t& place) {
  STEPSTASH_TRY(check_condition(params));
  const shm::Entry* old = current_entry(segment_, catalog_, params.build, params.name);
  BuildState* build = STEPSTASH_TRY(builds_.ensure_asked(params.build, /*spare=*/false));
  shm::Segment::EntryFacts facts;
  if (old == nullptr) STEPSTASH_TRY(segment_.ensure_slot(params.build, params.name));
  facts.revision = STEPSTASH_TRY(next_id());
  facts.id = old != nullptr ? old->id : facts.revision;
  facts.build = params.build;
  facts.name = params.name;
  facts.source = params.source;
  facts.length = length;
  facts.value_hash = value_hash;
  facts.set_at = clock_.monotonic();
  facts.state = shm::EntryState::dirty;
  // The entry is being deleted, and its id with it: the new value must not be deleted as well.
  if (const shm::Entry* dropped = segment_.find(params.build, params.name); dropped != nullptr && old == nullptr) {
    builds_.forget(*catalog_.find(dropped->id));
  }
  if (old != nullptr) listings_->about_to_change(*old);
  const shm::Entry& entry = segment_.publish(draft.release(), facts);
  STEPSTASH_CRASH_POINT("daemon.set.published");
  damage_.remove(facts.id);
  Node* node = catalog_.find(facts.id);
  if (node == nullptr) {
    node = &catalog_.add(entry, segment_.offset_of(entry), *build);
  } else {
    catalog_.move(*node, entry, segment_.offset_of(entry));
    Catalog::unlist(*node);
  }
  place = flusher_.mark_dirty(*node, facts.set_at);
  STEPSTASH_CRASH_POINT("daemon.set.queued");
  ++sets_;
  const auto awaited = awaited_.find({params.build, params.name});
  if (awaited != awaited_.end()) awaited->second.notify_all();
  segment_.reclaim_if_due();
  return &entry;
}

awaitable<Result<protocol::SetOk>> Store::publish(const protocol::SetParams& params, OwnedDraft draft,
                                                  std::uint64_t length, std::uint64_t value_hash, Waiter& waiter,
                                                  TimePoint deadline) {
  // A new name needs a slot: others may have taken the one that was free when room was found.
  while (current_entry(segment_, catalog_, params.build, params.name) == nullptr) {
    const auto slot = segment_.ensure_slot(params.build, params.name);
    if (slot) break;
    auto again = co_await room_.wait_for_slot(slot.error(), waiter, deadline);
    if (!again) co_return again.error();
  }
  std::uint64_t place = 0;
  auto entry = publish(params, std::move(draft), length, value_hash, place);
  if (!entry) {
    if (BuildState* build = catalog_.find_build(params.build)) builds_.release_if_idle(*build);
    co_return entry.error();
  }
  const protocol::SetOk ok{entry.value()->id, entry.value()->revision};
  if (params.durable) {
    auto durable = co_await flusher_.committed(place, waiter, deadline);
    STEPSTASH_CRASH_POINT("daemon.set.durable");
    if (!durable) co_return durable.error();
    if (flusher_.found_damaged(place)) co_return Errc::corrupt_value;
  }
  co_return ok;
}

awaitable<Result<protocol::SetOk>> Store::set(const protocol::SetParams& params, std::span<const std::byte> value,
                                              Waiter& waiter, TimePoint deadline) {
  auto draft = co_await reserve(params, value.size(), waiter, deadline);
  if (!draft) co_return draft.error();
  for (;;) {
    const auto reserved = segment_.reserve(*draft.value(), value.size());
    if (reserved) break;
    auto again = co_await room_.wait_for_pages(reserved.error(), 0, waiter, deadline);
    if (!again) co_return again.error();
  }
  room_.promise_pages(draft.value(), value.size());
  const std::span<std::byte> room = segment_.value_bytes(*draft.value());
  if (!value.empty()) std::memcpy(room.data(), value.data(), value.size());
  STEPSTASH_CRASH_POINT("daemon.set.copied");
  // Hash the copy that readers will see.
  const std::uint64_t hash = shm::hash_bytes(room.first(value.size()));
  co_return co_await publish(params, std::move(draft).value(), value.size(), hash, waiter, deadline);
}

// ---- reading -------------------------------------------------------------------------------------------------------

awaitable<Result<>> Store::wait(BuildId build, const std::string& name, Waiter& waiter, TimePoint deadline) {
  if (!valid_build(build) || !valid_text(name)) co_return Errc::invalid_argument;
  while (current_entry(segment_, catalog_, build, name) == nullptr) {
    if (waiter.dismissed()) co_return Errc::shutting_down;
    if (waiter.gone() || expired(deadline)) co_return Errc::deadline_exceeded;
    const auto key = std::make_pair(build, name);
    co_await awaited_[key].wait(waiter, deadline);
    if (awaited_[key].empty()) awaited_.erase(key);
    if (!waiter.gone() && !waiter.dismissed()) co_await waiter.yield();  // many may wait for one name
  }
  co_return success();
}

Result<protocol::ListPage> Store::list(const protocol::List& request, Listings::Handle& listing) {
  if (!valid_build(request.build)) return Errc::invalid_argument;
  const BuildState* build = catalog_.find_build(request.build);
  const bool goes_on = listing && !request.name && request.after_id != 0 && request.build == listing->build() &&
                       request.after_id == listing->after();
  if (goes_on) {
    if (listing->cut()) return Errc::deadline_exceeded;
    protocol::ListPage page = listings_->page(*listing, build, clock_.monotonic());
    if (!page.more) listing.reset();
    return page;
  }
  listing.reset();
  protocol::ListPage page;
  if (request.name) {
    const shm::Entry* entry = current_entry(segment_, catalog_, request.build, *request.name);
    if (entry != nullptr && entry->id > request.after_id) page.entries.push_back(info_of(*entry));
    return page;
  }
  if (build == nullptr) return page;
  std::uint64_t after = request.after_id;
  if (build->dropping > 0) after = std::max(after, build->record->drop_upto.load(std::memory_order_relaxed));
  for (auto at = build->entries.upper_bound(after); at != build->entries.end(); ++at) {
    if (page.entries.size() == protocol::kListPageEntries) {
      page.more = true;
      break;
    }
    page.entries.push_back(info_of(segment_.entry_at(at->second->block)));
  }
  // A client that continues a list not begun here gets the present state.
  if (page.more && request.after_id == 0) {
    listing = listings_->begin(request.build, page.entries.back().id, clock_.monotonic());
  }
  return page;
}

// ---- upkeep --------------------------------------------------------------------------------------------------------

void Store::set_limits(const Limits& limits) {
  room_.set_limits(limits.room);
  builds_.set_horizon(limits.horizon);
}

void Store::maintain() {
  const auto now = clock_.monotonic();
  segment_.heap().set_now(now);
  segment_.pins().reap();
  room_.maintain();
  listings_->expire(now - kListPatience);
  if (now >= next_rekey_) {
    segment_.allow_rekey();
    next_rekey_ =
        now + std::max<std::chrono::nanoseconds>(kRekeyPause, kRekeyPauseTimes * segment_.index().last_rekey());
  }
  reloader_.maintain();
  builds_.maintain();
}

void Store::on_damaged(Node& node) {
  const shm::Entry& entry = segment_.entry_at(node.block);
  damage_.add(entry);
  auto record = segment_.mark_lost(entry);
  // If the entry were deleted, its older value could come back from the database: that is the last resort.
  if (!record && room_.free_for_record(record.error())) record = segment_.mark_lost(entry);
  STEPSTASH_CRASH_POINT("daemon.damaged.value.marked_lost");
  if (record) {
    catalog_.move(node, *record.value(), segment_.offset_of(*record.value()));
    Catalog::unlist(node);
    flusher_.mark_dirty(node, clock_.monotonic());
    return;
  }
  BuildState& build = *node.build;
  builds_.forget(node);
  builds_.release_if_idle(build);
}

}  // namespace stepstash::daemon
