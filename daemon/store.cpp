// SPDX-License-Identifier: Apache-2.0
#include "daemon/store.hpp"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <cstring>
#include <unordered_set>

#include "base/crash_point.hpp"
#include "base/errc.hpp"
#include "base/text.hpp"
#include "shm/hash.hpp"
#include "shm/validate.hpp"

namespace stepstash::daemon {
namespace {

/// Values evicted in one go: about a millisecond on the loop. As many are evicted as pay for the two scans of the pin
/// pages that this takes, one to choose and one to reclaim: 8 for each page, so that an idle client costs a set next to
/// nothing; or this part of the segment, when the values are large.
constexpr std::size_t kEvictAtOnce = 1024;
constexpr std::size_t kEvictPerPage = 8;
constexpr std::size_t kEvictAtLeast = 16;
constexpr std::uint64_t kAheadPart = 64;
/// Values that are looked at for that: many may be pinned, which is seen in a few nanoseconds each.
constexpr std::size_t kLookAtOnce = 32 * 1024;
/// The hints of so many pages are read at most once in so long: 8,000 hints, half a millisecond.
constexpr std::size_t kHintPages = 128;
constexpr std::chrono::milliseconds kHintInterval{100};
/// A scan of so many pages takes less than a tenth of a millisecond.
constexpr std::size_t kFewPages = 64;
/// What the views of one user may keep in place while others find no room: this part of the segment.
constexpr std::uint64_t kSharePart = 4;
/// Damaged values remembered by name for `stats`.
constexpr std::size_t kDamagedRemembered = 10'000;
/// Memory given back per maintain(): unmapping 16 MiB takes about a millisecond.
constexpr std::uint64_t kPunchAtOnce = 16 << 20;
/// Entries deleted before others have the loop: one to three milliseconds.
constexpr std::uint64_t kDropAtOnce = 256;
/// Entries evicted or moved before others have the loop, where one value's place is cleared: about five milliseconds.
constexpr std::size_t kClearAtOnce = 1024;
/// Of the blocks of a segment that holds very many, so that clearing takes a bounded number of walks over them.
constexpr std::size_t kClearPart = 64;
/// After a walk over all blocks, or a scan of all pin pages, that found nothing the loop does other things for this
/// many times as long.
constexpr int kWalkPause = 9;
/// How long a list may wait for its client to ask for the next page.
constexpr auto kListPatience = std::chrono::seconds(10);
/// How often a set whose key has no slot in the index looks again.
constexpr auto kSlotPause = std::chrono::milliseconds(20);
/// Another table on account of such a key: not sooner after the last than this, nor than this many times what it took.
constexpr auto kRekeyPause = std::chrono::milliseconds(100);
constexpr int kRekeyPauseTimes = 20;
/// Steps of eviction that a small value takes before others have the loop.
constexpr int kStepsAtOnce = 4;

constexpr const char* kEnlargeTmpfs = "enlarge it (mount -o remount,size=; for a container --shm-size)";

bool expired(TimePoint deadline) { return std::chrono::steady_clock::now() >= deadline; }

}  // namespace

Store::Store(asio::io_context& loop, Catalog& catalog, shm::Writer& segment, persist::BackingStore& database,
             Flusher& flusher, const Clock& clock, Limits limits)
    : loop_(loop),
      catalog_(catalog),
      segment_(segment),
      database_(database),
      flusher_(flusher),
      clock_(clock),
      limits_(limits),
      start_on_boot_clock_(clock.boot_time()),
      wall_at_start_(clock.wall_seconds()),
      tmpfs_(segment.heap().file_system()),
      listings_(Listings::make(segment)) {
  if (const std::int64_t written = database.last_written(); written != 0) {
    wall_at_start_ = std::min(wall_at_start_, written);
  }
  flusher_.on_settled = [this] {
    reclaim_after();
    room_.notify_all();
  };
  flusher_.on_clean = [this](Node& node) {
    if (segment_.entry_at(node.block).value_offset != 0) catalog_.touch(node);
  };
  flusher_.on_build_clean = [this](BuildState& build) { release_build_if_idle(build); };
  flusher_.on_damaged = [this](Node& node) { on_damaged(node); };
}

void Store::adopt(bool all_dirty, const std::vector<persist::StoredEntry>& lost) {
  segment_.for_each_build(
      [&](shm::BuildRecord& record) { catalog_.add_build(record.buildid.load(std::memory_order_relaxed), record); });
  std::vector<std::pair<std::uint64_t, Node*>> dirty;
  segment_.for_each([&](const shm::Entry& entry) {
    auto build = ensure_build(entry.buildid, /*spare=*/true);
    if (!build) return;  // cannot be: every build with entries has its record
    Node& node = catalog_.add(entry, segment_.offset_of(entry), *build.value());
    segment_.bind(entry);
    const bool resident = entry.value_offset != 0;
    if (!resident) ++evicted_;
    if (!resident && entry.state.load(std::memory_order_relaxed) == shm::EntryState::dirty) remember_damage(entry);
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
    if (segment_.entry_at(node->block).value_offset == 0) remember_damage(segment_.entry_at(node->block));
  }
  std::sort(dirty.begin(), dirty.end());
  // Oldest first: the age of the queue's front is a published figure.
  // A clock that was ahead (another boot's, another time namespace's) must not make anything wait.
  const auto now = clock_.monotonic();
  for (const auto& [since, node] : dirty) flusher_.mark_dirty(*node, std::min(now, std::chrono::nanoseconds(since)));
  for (const auto& [id, build] : catalog_.builds()) {
    shm::BuildRecord& record = *build->record;
    if (!build->finished() || record.completed_ns.load(std::memory_order_relaxed) != 0) continue;
    const std::int64_t complete_at = record.complete_at.load(std::memory_order_relaxed);
    record.completed_ns.store(on_boot_clock(complete_at), std::memory_order_release);
    STEPSTASH_CRASH_POINT("daemon.adopt.clock.stored");
  }
  // Nothing tells whether the database knows a build's facts already; writing them again is harmless.
  if (database_.unusable()) return;
  for (const auto& [id, build] : catalog_.builds()) {
    flusher_.mark_dirty(*build);
    ask_database(*build);
  }
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
  const shm::Entry* entry = current(params.build, params.name);
  if (params.if_absent && entry != nullptr) return Errc::condition_failed;
  if (params.if_revision != 0 && (entry == nullptr || entry->revision != params.if_revision)) {
    return Errc::condition_failed;
  }
  return success();
}

const shm::Entry* Store::current(BuildId build, std::string_view name) const noexcept {
  const shm::Entry* entry = segment_.find(build, name);
  if (entry == nullptr) return nullptr;
  const BuildState* state = catalog_.find_build(build);
  return state != nullptr && state->dropped(entry->id) ? nullptr : entry;
}

Result<std::uint64_t> Store::next_id() {
  shm::Header& header = segment_.header();
  const std::uint64_t id = header.next_id.load(std::memory_order_relaxed);
  if (id >= header.id_limit.load(std::memory_order_relaxed)) {
    flusher_.kick();
    return Errc::out_of_ids;
  }
  // Release: an attach that finds an entry with this id finds the counter beyond it (L2).
  header.next_id.store(id + 1, std::memory_order_release);
  STEPSTASH_CRASH_POINT("daemon.id.taken");
  return id;
}

Result<BuildState*> Store::ensure_build(BuildId build, bool spare) {
  if (BuildState* state = catalog_.find_build(build)) return state;
  shm::BuildRecord* record = STEPSTASH_TRY(segment_.add_build(build, spare));
  return &catalog_.add_build(build, *record);
}

bool Store::evict_some(std::uint64_t bytes, bool for_pages) {
  if (!may_evict()) return false;
  note_hints();
  const shm::PinScan& scan = segment_.pinned_now();
  const std::size_t batch = std::min(kEvictAtLeast + kEvictPerPage * segment_.pins().pages(), kEvictAtOnce);
  const std::uint64_t ahead = std::max(bytes, segment_.heap().capacity() / kAheadPart);
  std::uint64_t freed = 0;
  std::size_t evicted = 0;
  std::size_t looked_at = 0;
  const auto over = [&] {
    return (freed >= bytes && (freed >= ahead || evicted >= batch)) || evicted >= kEvictAtOnce ||
           looked_at >= kLookAtOnce;
  };
  // Whether there was a record for each.
  const auto sweep = [&](Catalog::UseList& list, auto&& stays) {
    const Node* last = list.empty() ? nullptr : &list.back();
    for (bool more = last != nullptr; more && !list.empty() && !over();) {
      Node& node = list.front();
      more = &node != last;
      ++looked_at;
      const shm::Entry& entry = segment_.entry_at(node.block);
      const std::uint64_t gain = segment_.evictable_bytes(entry);
      if (gain == 0) {  // its record alone is as large: it frees nothing, now or later
        Catalog::unlist(node);
        continue;
      }
      if (stays(node.block)) {
        catalog_.touch(node);
        continue;
      }
      auto record = segment_.evict(entry);
      if (!record) return false;
      STEPSTASH_CRASH_POINT("daemon.evict.value.replaced");
      note_moved(node, *record.value(), /*evicted=*/true);
      freed += gain;
      ++evicted;
    }
    return true;
  };
  const auto pinned = [&](shm::Offset block) { return scan.pinned(block); };
  const auto wanted = [&](shm::Offset block) { return scan.pinned(block) || scan.recent.contains(block); };
  for (auto* list : {&catalog_.finished(), &catalog_.running()}) {
    // First those that no hint speaks of. A hint may be any number, and stay for ever: what has one goes before a value
    // of a build that is not finished, and before a set is refused.
    if (!sweep(*list, wanted) || (freed < bytes && !sweep(*list, pinned))) return evicted > 0;
  }
  // What only closed pages hold stays for them as it is, and is written off: nobody else has to wait for it. It keeps
  // its pages: where those are what is lacking, nothing comes of it.
  if (!for_pages && !scan.closed.empty() && freed < bytes) {
    looked_at = 0;
    const auto served = [&](shm::Offset block) { return scan.serving.contains(block); };
    for (auto* list : {&catalog_.finished(), &catalog_.running()}) {
      if (freed < bytes && !sweep(*list, served)) return evicted > 0;
    }
  }
  return evicted > 0;
}

/// What readers touched goes to the back. A hint may be any number: only blocks of entries count.
void Store::note_hints() {
  const auto now = clock_.monotonic();
  if (now < next_hints_) return;
  next_hints_ = now + kHintInterval;
  const auto touch = [&](shm::Offset block) {
    Node* node = catalog_.at_block(block);
    if (node != nullptr && node->is_linked()) catalog_.touch(*node);
  };
  segment_.pins().recent(touch, kHintPages);
}

const std::vector<shm::Writer::Held>& Store::held() {
  const auto start = clock_.monotonic();
  if (start < next_census_) return held_;
  held_ = segment_.held_by_users();
  const auto now = clock_.monotonic();
  next_census_ = now + kWalkPause * (now - start);
  return held_;
}

std::uint64_t Store::room_in_all() const noexcept {
  const std::uint64_t capacity = segment_.heap().capacity();
  return tmpfs_.bounded() ? std::min(capacity, tmpfs_.total) : capacity;
}

/// Room cannot be had otherwise: the user who holds most in place is asked to release some, by closing his pages. That
/// takes nothing from him, for his views stay as they are and only the room they take is written off; so there is no
/// reason to let others wait for his answer.
bool Store::close_greediest(std::uint32_t for_user) {
  if (clock_.monotonic() < next_census_) return false;
  const std::uint64_t capacity = room_in_all();
  std::uint64_t in_all = 0;
  std::uint64_t own = 0;
  const shm::Writer::Held* most = nullptr;
  for (const shm::Writer::Held& held : this->held()) {
    if (held.uid == for_user) own = held.bytes;
    if (held.closed) continue;
    in_all += held.bytes;
    if (held.uid != for_user && (most == nullptr || held.bytes > most->bytes)) most = &held;
  }
  // Several users, each below his share, can hold all of it together: then he goes who holds most.
  const bool too_much = most != nullptr && (most->bytes > capacity / kSharePart ||
                                            (in_all > capacity / 2 && most->bytes > own + capacity / kAheadPart));
  if (!too_much) return false;
  const shm::Writer::Held held = *most;
  next_census_ = {};
  closed_at_[held.uid] = held.bytes;  // also where some of his pages stay open: he is to be opened again
  if (auto closed = segment_.close_user(held.uid); !closed) {
    spdlog::error("cannot close all pin pages of user {}: {}", held.uid, closed.error().message());
    next_census_ = clock_.monotonic() + std::chrono::seconds(1);
    return false;
  }
  ++counters_.users_closed;
  spdlog::warn(
      "user {} holds {} of {} bytes in {} views, and others find no room: no more views for him until he has "
      "released half of that; what he holds stays as it is, and is written off",
      held.uid, held.bytes, capacity, held.blocks);
  return true;
}

void Store::open_modest() {
  if (closed_at_.empty() || clock_.monotonic() < next_census_) return;
  std::map<std::uint32_t, std::uint64_t> now;
  for (const shm::Writer::Held& held : this->held()) now[held.uid] = held.bytes;
  std::erase_if(closed_at_, [&](const auto& closed) {
    const auto& [user, bytes] = closed;
    if (now[user] > std::min(bytes, room_in_all() / kSharePart) / 2) return false;
    segment_.open_user(user);
    next_census_ = {};
    spdlog::info("user {} holds {} bytes in views now, and may have more again", user, now[user]);
    return true;
  });
}

void Store::reclaim_after() {
  if (segment_.pins().pages() <= kFewPages) {
    segment_.reclaim();
  } else {
    segment_.reclaim_if_due();
  }
}

bool Store::reclaim_again() {
  const auto start = clock_.monotonic();
  if (start < next_scan_) return false;
  if (segment_.reclaim() > 0) return true;
  const auto now = clock_.monotonic();
  next_scan_ = now + kWalkPause * (now - start);
  return false;
}

void Store::note_moved(Node& node, const shm::Entry& record, bool evicted) {
  catalog_.move(node, record, segment_.offset_of(record));
  Catalog::unlist(node);
  if (evicted) ++evicted_;
  ++(evicted ? counters_.evictions : counters_.moves);
}

Store::Cleared Store::clear_run(std::uint64_t bytes) {
  const auto start = clock_.monotonic();
  if (start < next_walk_ && bytes >= walked_for_) return Cleared::nothing;
  const bool evictable = may_evict();
  struct Block {
    shm::Offset at;
    std::uint64_t bytes;
    Node* node;          // to be evicted or moved; null where the block is free
    std::uint64_t cost;  // bytes that leave memory, or move
  };
  const shm::PinScan& scan = segment_.pinned_now();
  // The cheapest run of neighbours, `bytes` bytes or more, none of which has to stay: a window from `first` on.
  std::vector<Block> window;
  std::size_t first = 0;
  std::uint64_t length = 0, cost = 0, best_cost = UINT64_MAX;
  std::pair<std::size_t, std::size_t> best;  // in `window`
  segment_.for_each_block([&](shm::Offset at, std::uint64_t size, bool free) {
    Block block{at, size, nullptr, 0};
    if (!free) {
      block.node = catalog_.at_block(at);
      const bool stays = block.node == nullptr || scan.pinned(at) ||
                         (segment_.entry_at(at).value_offset != 0 && (block.node->dirty.dirty() || !evictable));
      if (stays) {
        window.push_back(block);
        first = window.size();
        length = cost = 0;
        return;
      }
      block.cost = size;
    }
    window.push_back(block);
    length += size;
    cost += block.cost;
    while (length - window[first].bytes >= bytes) {
      length -= window[first].bytes;
      cost -= window[first].cost;
      ++first;
    }
    if (length >= bytes && cost < best_cost) {
      best_cost = cost;
      best = {first, window.size()};
    }
  });
  if (best_cost == UINT64_MAX) {
    const auto now = clock_.monotonic();
    next_walk_ = now + kWalkPause * (now - start);
    walked_for_ = bytes;
    return Cleared::nothing;
  }
  const std::size_t at_once = std::max(kClearAtOnce, window.size() / kClearPart);
  const bool slab_moved =
      segment_.keep_clear(window[best.first].at, window[best.second - 1].at + window[best.second - 1].bytes);
  std::size_t done = 0;
  for (std::size_t i = best.first; i < best.second && done < at_once; ++i) {
    Node* node = window[i].node;
    if (node == nullptr) continue;
    if (!move_away(*node)) break;
    ++done;
  }
  segment_.reclaim_new();
  segment_.keep_clear(0, 0);
  return done > 0 || slab_moved ? Cleared::ahead : Cleared::unchanged;
}

bool Store::move_away(Node& node) {
  const shm::Entry& entry = segment_.entry_at(node.block);
  const bool resident = entry.value_offset != 0;
  auto moved = resident ? segment_.evict(entry) : segment_.move_record(entry);
  if (!moved) return false;
  STEPSTASH_CRASH_POINT("daemon.clear.entry.moved");
  note_moved(node, *moved.value(), /*evicted=*/resident);
  return true;
}

bool Store::clear_granules() {
  const auto start = clock_.monotonic();
  if (start < next_granules_) return false;
  constexpr std::uint64_t kGranule = shm::Heap::kGranule;
  struct Granule {
    std::uint64_t at = 0;
    std::uint64_t bytes = 0;  // of records
    std::vector<std::pair<Node*, shm::Offset>> records;
  };
  std::unordered_map<std::uint64_t, Granule> found;
  std::unordered_set<std::uint64_t> stays;
  const shm::PinScan& scan = segment_.pinned_now();
  segment_.for_each_block([&](shm::Offset at, std::uint64_t size, bool free) {
    if (free || size == 0) return;
    Node* node = catalog_.at_block(at);
    const bool record = node != nullptr && !scan.pinned(at) && segment_.entry_at(at).value_offset == 0;
    // Granules within a block hold nothing else.
    for (const std::uint64_t number : {at / kGranule, (at + size - 1) / kGranule}) {
      if (!record) {
        stays.insert(number);
        continue;
      }
      Granule& granule = found[number];
      granule.at = number * kGranule;
      if (!granule.records.empty() && granule.records.back().first == node) continue;
      granule.bytes += size;
      granule.records.emplace_back(node, at);
    }
  });
  std::vector<Granule*> cheapest;
  for (auto& [number, granule] : found) {
    if (!stays.contains(number)) cheapest.push_back(&granule);
  }
  std::sort(cheapest.begin(), cheapest.end(),
            [](const Granule* a, const Granule* b) { return std::pair(a->bytes, a->at) < std::pair(b->bytes, b->at); });
  const std::uint64_t free_before = segment_.heap().file_system().free;
  std::uint64_t bytes = 0;
  std::size_t count = 0;
  std::size_t records = 0;
  while (count < cheapest.size() && records < kClearAtOnce) {
    bytes += cheapest[count]->bytes;
    records += cheapest[count]->records.size();
    ++count;
  }
  if (count > 1 && bytes < (count - 1) * kGranule) {
    bool room = true;
    for (std::size_t i = 0; i < count && room; ++i) {
      segment_.keep_clear(cheapest[i]->at, cheapest[i]->at + kGranule);
      for (const auto& [node, at] : cheapest[i]->records) {
        if (node->block == at) room = room && move_away(*node);  // else it went with the granule before
      }
    }
    segment_.keep_clear(0, 0);
    segment_.reclaim_new();
    given_back_ += segment_.heap().punch(clock_.monotonic(), kPunchAtOnce);
  }
  const bool gained = segment_.heap().file_system().free > free_before;
  const auto now = clock_.monotonic();
  if (!gained) next_granules_ = now + kWalkPause * (now - start);
  return gained;
}

Result<shm::Draft> Store::try_draft(BuildId build, std::string_view name, std::string_view source,
                                    std::uint64_t length) {
  std::uint64_t wanted = length;
  const bool large = length >= shm::kPageAlignedFrom;
  const auto attempt = [&]() -> Result<shm::Draft> {
    if (auto room = segment_.make_room(build, name); !room) {
      wanted = std::max(length, 2 * segment_.index().slots() * sizeof(shm::Slot));
      return room.error();
    }
    // A value finds room where the segment and its tmpfs both have it; memory that was used before lacks nothing. Asked
    // before: what draft() reserves would be given back, and reserved, again and again.
    const std::uint64_t unreserved = segment_.unreserved_for(name, source, length);
    const std::uint64_t lacking = unreserved == 0 ? 0 : lacking_pages(unreserved);
    if (lacking == 0) return segment_.draft(name, source, length);
    wanted = lacking;
    return std::make_error_code(std::errc::no_space_on_device);
  };
  // A full tmpfs is a full segment: what is evicted gives its pages back.
  const auto full = [](const Result<shm::Draft>& draft) {
    return !draft && (draft.error() == Errc::segment_full || draft.error() == std::errc::no_space_on_device);
  };
  auto draft = attempt();
  if (full(draft) && segment_.worth_reclaiming() && segment_.reclaim_new() > 0) draft = attempt();
  const auto make_way = [&] {
    // Record, name, source and padding of a value come on top of it.
    const std::uint64_t block = shm::round_up(wanted, shm::kPageBytes) + 2 * shm::kPageBytes;
    const bool scattered = draft.error() == Errc::segment_full && segment_.heap().free_bytes() >= block;
    // A small value is not worth a walk over all blocks while something can be evicted.
    if (large && scattered) {
      const Cleared cleared = clear_run(block);
      if (cleared == Cleared::ahead) return true;
      // Where views are in the way of any run, what only closed pages hold can be written off still.
      if (cleared == Cleared::nothing && segment_.pins().closed().empty()) return false;
    }
    if (free_pages(wanted, draft.error() != Errc::segment_full)) return true;
    return !large && scattered && clear_run(block) == Cleared::ahead;
  };
  // For a large value others have the loop after each step.
  for (int steps = large ? 1 : kStepsAtOnce; steps > 0 && full(draft) && make_way(); --steps) {
    draft = attempt();
  }
  // What was not worth a scan is worth it where nothing else helps.
  if (full(draft) && reclaim_again()) draft = attempt();
  return draft;
}

/// Not where what is evicted could not be brought back.
bool Store::may_evict() const { return !database_.unusable() && !flusher_.database_damaged() && flusher_.in_place(); }

bool Store::free_pages(std::uint64_t bytes, bool give_back) {
  const auto punch = [this] {
    const std::uint64_t given = segment_.heap().punch(clock_.monotonic(), kPunchAtOnce);
    given_back_ += given;
    return given;
  };
  // First what was freed a moment ago: it has pages still, and may lie elsewhere.
  const std::uint64_t given = give_back ? punch() : 0;
  if (given >= bytes) return true;
  if (!evict_some(bytes - given, give_back)) return (give_back && clear_granules()) || given > 0;
  segment_.reclaim_new();
  if (give_back) punch();
  return true;
}

std::uint64_t Store::lacking_pages(std::uint64_t bytes) const noexcept {
  const shm::Heap::FileSystem now = segment_.heap().file_system();
  const std::uint64_t needed = promised_pages_ + bytes;
  return now.bounded() && needed > now.free ? needed - now.free : 0;
}

awaitable<Result<>> Store::wait_for_pages(std::error_code error, std::uint64_t bytes, Waiter& waiter,
                                          TimePoint deadline) {
  if (error != std::errc::no_space_on_device) co_return error;
  // Where nothing is lacking any more, another was faster, or something else is the matter: that takes its time.
  const std::uint64_t lacking = lacking_pages(bytes);
  const bool way_was_made = lacking > 0 && free_pages(lacking, /*give_back=*/true);
  co_return co_await wait_for_room(error, bytes, way_was_made, waiter, deadline);
}

awaitable<Result<>> Store::wait_for_room(std::error_code why, std::uint64_t bytes, bool way_was_made, Waiter& waiter,
                                         TimePoint deadline) {
  if (waiter.dismissed()) co_return Errc::shutting_down;
  if (waiter.gone() || expired(deadline)) co_return why;
  if (way_was_made) {
    co_await waiter.yield();
    co_return success();
  }
  if (why == Errc::too_many) {
    co_await wait_for_slot(waiter, deadline);
    co_return success();
  }
  if (shed_set && shed_set()) co_return success();
  if (close_greediest(waiter.uid())) co_return success();
  const RoomQueue::Wish wish{bytes, 0};
  room_.no_room_for(wish, why, /*dirty_limit=*/false);
  flusher_.kick();
  RoomQueue::Place place(room_, waiter, wish);
  if (co_await place.turn(deadline)) co_return success();
  if (waiter.dismissed()) co_return Errc::shutting_down;
  co_return why;
}

/// The index has no slot for a key until maintain() allows it another table.
awaitable<void> Store::wait_for_slot(Waiter& waiter, TimePoint deadline) {
  co_await waiter.sleep_until(std::min(deadline, std::chrono::steady_clock::now() + kSlotPause));
}

awaitable<Result<OwnedDraft>> Store::find_room(BuildId build, std::string_view name, std::string_view source,
                                               std::uint64_t length, std::uint64_t dirty_bytes, Waiter& waiter,
                                               TimePoint deadline) {
  const RoomQueue::Wish wish{length, dirty_bytes};
  std::optional<RoomQueue::Place> place;
  for (;;) {
    std::error_code why = room_.why();
    if (place || !room_.passes_over(wish)) {
      // One value may exceed the limit when nothing else waits: it could never be set otherwise.
      const bool limited =
          dirty_bytes != 0 && flusher_.dirty_bytes() != 0 && flusher_.dirty_bytes() + dirty_bytes > limits_.max_dirty;
      why = Errc::dirty_limit;
      if (!limited) {
        // After a restart: what an earlier daemon had written off counts again, and all that the stand-in has would
        // have to go before there is room.
        const shm::Heap& heap = segment_.heap();
        if (heap.free_bytes() == 0 && heap.stand_in_used_bytes() > heap.written_off()) {
          (void)close_greediest(waiter.uid());
        }
        const std::uint64_t before = way_made();
        ++counters_.room_tries;
        auto draft = try_draft(build, name, source, length);
        if (draft) {
          OwnedDraft found(segment_, draft.value());
          promise_pages(found, length);
          co_return found;
        }
        why = draft.error();
        if (waiter.gone() || expired(deadline)) co_return why;
        if (why == Errc::too_many) {  // no matter of room: others may find theirs
          place.reset();
          if (waiter.dismissed()) co_return Errc::shutting_down;
          co_await wait_for_slot(waiter, deadline);
          continue;
        }
        if (way_made() == before && shed_set && shed_set()) continue;
        if (way_made() != before || close_greediest(waiter.uid())) {  // progress: let others have the loop, then go on
          if (!place) {
            co_await waiter.yield();
            continue;
          }
          room_.notify_all();
          if (co_await place->turn(deadline)) continue;
        }
      }
      room_.no_room_for(wish, why, limited);
      if (place) place->failed();
    } else if (why != Errc::dirty_limit && close_greediest(waiter.uid())) {
      // The one who found no room may have been he who holds it, for whose sake he is not closed.
      room_.notify_all();
      continue;
    }
    if (waiter.dismissed()) co_return Errc::shutting_down;
    if (waiter.gone() || expired(deadline)) co_return why;
    flusher_.kick();
    if (!place) place.emplace(room_, waiter, wish);
    if (co_await place->turn(deadline)) continue;
    if (waiter.dismissed()) co_return Errc::shutting_down;
    co_return why;
  }
}

awaitable<Result<OwnedDraft>> Store::reserve(const protocol::SetParams& params, std::uint64_t length, Waiter& waiter,
                                             TimePoint deadline) {
  if (auto ok = check(params); !ok) co_return ok.error();
  if (length > max_value_bytes()) co_return Errc::too_large;
  auto draft = co_await find_room(params.build, params.name, params.source, length, length, waiter, deadline);
  if (draft) draft.value().count_in(staged_bytes_);
  co_return draft;
}

Result<bool> Store::extend(OwnedDraft& draft, std::uint64_t length) {
  const bool extended = STEPSTASH_TRY(segment_.extend(*draft, length));
  draft.count_in(staged_bytes_);
  return extended;
}

Result<const shm::Entry*> Store::publish(const protocol::SetParams& params, OwnedDraft draft, std::uint64_t length,
                                         std::uint64_t value_hash, std::uint64_t& place) {
  STEPSTASH_TRY(check_condition(params));
  const shm::Entry* old = current(params.build, params.name);
  const bool known_build = catalog_.find_build(params.build) != nullptr;
  BuildState* build = STEPSTASH_TRY(ensure_build(params.build, /*spare=*/false));
  if (!known_build) ask_database(*build);
  shm::Writer::EntryFacts facts;
  if (old == nullptr) STEPSTASH_TRY(segment_.make_room(params.build, params.name));
  facts.revision = STEPSTASH_TRY(next_id());
  facts.id = old != nullptr ? old->id : facts.revision;
  facts.build = params.build;
  facts.name = params.name;
  facts.source = params.source;
  facts.length = length;
  facts.value_hash = value_hash;
  facts.set_at = clock_.monotonic();
  facts.state = shm::EntryState::dirty;
  // On its way out, and its id with it: what is set now must not be deleted with it.
  if (const shm::Entry* dropped = segment_.find(params.build, params.name); dropped != nullptr && old == nullptr) {
    forget_node(*catalog_.find(dropped->id));
  }
  const bool was_evicted = old != nullptr && old->value_offset == 0;
  if (old != nullptr) listings_->about_to_change(*old);
  const shm::Entry& entry = segment_.publish(draft.release(), facts);
  STEPSTASH_CRASH_POINT("daemon.set.published");
  damaged_.erase(facts.id);
  Node* node = catalog_.find(facts.id);
  if (node == nullptr) {
    node = &catalog_.add(entry, segment_.offset_of(entry), *build);
  } else {
    catalog_.move(*node, entry, segment_.offset_of(entry));
    Catalog::unlist(*node);
    if (was_evicted) --evicted_;
  }
  place = flusher_.mark_dirty(*node, facts.set_at);
  STEPSTASH_CRASH_POINT("daemon.set.queued");
  ++counters_.sets;
  const auto awaited = awaited_.find({params.build, params.name});
  if (awaited != awaited_.end()) awaited->second.notify_all();
  segment_.reclaim_if_due();
  return &entry;
}

awaitable<Result<protocol::SetOk>> Store::commit(const protocol::SetParams& params, OwnedDraft draft,
                                                 std::uint64_t length, std::uint64_t value_hash, Waiter& waiter,
                                                 TimePoint deadline) {
  // The slot for a new name: others may have taken the one that was there when room was found.
  while (current(params.build, params.name) == nullptr) {
    const auto slot = segment_.make_room(params.build, params.name);
    if (slot) break;
    const std::uint64_t before = way_made();
    const std::uint64_t table = 2 * segment_.index().slots() * sizeof(shm::Slot);
    if (slot.error() != Errc::too_many) free_pages(table, slot.error() != Errc::segment_full);
    auto again = co_await wait_for_room(slot.error(), table, way_made() != before, waiter, deadline);
    if (!again) co_return again.error();
  }
  std::uint64_t place = 0;
  auto entry = publish(params, std::move(draft), length, value_hash, place);
  if (!entry) {
    if (BuildState* build = catalog_.find_build(params.build)) release_build_if_idle(*build);
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
    auto again = co_await wait_for_pages(reserved.error(), 0, waiter, deadline);
    if (!again) co_return again.error();
  }
  promise_pages(draft.value(), value.size());
  const std::span<std::byte> room = segment_.value_bytes(*draft.value());
  if (!value.empty()) std::memcpy(room.data(), value.data(), value.size());
  STEPSTASH_CRASH_POINT("daemon.set.copied");
  // Hashed where it will be read: what was copied is what is vouched for.
  const std::uint64_t hash = shm::hash_bytes(room.first(value.size()));
  co_return co_await commit(params, std::move(draft).value(), value.size(), hash, waiter, deadline);
}

// ---- reading -------------------------------------------------------------------------------------------------------

awaitable<Result<>> Store::load(BuildId build, const std::string& name, Waiter& waiter, TimePoint deadline) {
  ++counters_.asked;
  for (;;) {
    const shm::Entry* entry = current(build, name);
    if (entry == nullptr) co_return Errc::not_found;
    const std::uint64_t id = entry->id;
    const std::uint64_t length = entry->length;
    Node* node = catalog_.find(id);
    if (entry->value_offset != 0) {
      if (node->is_linked()) catalog_.touch(*node);  // not the next to be evicted
      co_return success();
    }
    if (entry->state.load(std::memory_order_relaxed) == shm::EntryState::dirty) co_return Errc::corrupt_value;  // lost
    if (const std::error_code why = database_.unusable()) co_return why;
    if (waiter.dismissed()) co_return Errc::shutting_down;
    if (waiter.gone() || expired(deadline)) co_return Errc::deadline_exceeded;
    if (!node->loading) {
      const std::uint64_t revision = entry->revision;
      const std::string source(shm::entry_source(*entry));
      auto draft = co_await find_room(build, name, source, length, 0, waiter, deadline);
      if (!draft) co_return draft.error();
      node = catalog_.find(id);  // anything may have happened meanwhile
      if (node == nullptr || node->loading) continue;
      const shm::Entry& record = segment_.entry_at(node->block);
      if (record.value_offset != 0 || record.revision != revision) continue;  // the draft fits that revision only
      node->loading = true;
      load_failures_.erase(id);
      asio::co_spawn(loop_, reload(Reload(record), std::move(draft).value()), kOrDie);
    }
    co_await loaded_.wait(waiter, deadline);
    const auto failure = load_failures_.find(id);
    if (failure != load_failures_.end()) {
      const std::error_code error = failure->second;
      // Others took the pages meanwhile: that is no answer before the deadline of the one who asks.
      auto again = co_await wait_for_pages(error, length, waiter, deadline);
      if (!again) co_return again.error();
    }
  }
}

Store::Reload::Reload(const shm::Entry& record) : name(shm::entry_name(record)), source(shm::entry_source(record)) {
  facts.id = record.id;
  facts.revision = record.revision;
  facts.build = record.buildid;
  facts.length = record.length;
  facts.value_hash = record.value_hash;
  facts.set_at = std::chrono::nanoseconds(record.set_at_ns);
  facts.state = shm::EntryState::clean;
}

/// What is to be loaded comes by value: by the time this runs, the entry may be gone or another one.
awaitable<void> Store::reload(Reload what, OwnedDraft draft) {
  shm::Writer::EntryFacts& facts = what.facts;
  facts.name = what.name;
  facts.source = what.source;
  const std::uint64_t id = facts.id;
  auto job = [this, &draft, &facts]() -> Result<> {
    if (auto reserved = segment_.reserve(*draft, facts.length); !reserved) return reserved;
    const auto bytes = segment_.value_bytes(*draft).first(facts.length);
    if (auto read = database_.load_value(facts.id, facts.revision, bytes); !read) return read;
    STEPSTASH_CRASH_POINT("daemon.reload.value.read");
    if (shm::hash_bytes(bytes) != facts.value_hash) return Errc::corrupt_value;
    return success();
  };
  const Result<> loaded = co_await run_on(loader_, job);
  Node* node = catalog_.find(id);  // it may have been dropped or set again meanwhile
  const bool current = node != nullptr && !node->build->dropped(id) &&
                       segment_.entry_at(node->block).revision == facts.revision &&
                       segment_.entry_at(node->block).value_offset == 0;
  if (loaded && current) {
    const shm::Entry& entry = segment_.publish(draft.release(), facts);
    STEPSTASH_CRASH_POINT("daemon.reload.value.published");
    catalog_.move(*node, entry, segment_.offset_of(entry));
    catalog_.touch(*node);
    --evicted_;
    ++counters_.reloads;
    damaged_.erase(id);
  } else if (!loaded && loaded.error() == std::errc::no_space_on_device) {
    load_failures_[id] = loaded.error();  // those who asked wait for pages (load)
  } else if (!loaded && current) {
    // A row that is gone, though nobody deleted it, is damage as much as bytes that changed.
    const bool gone = loaded.error() == Errc::not_found;
    const std::error_code error = gone ? make_error_code(Errc::corrupt_value) : loaded.error();
    ++counters_.reload_errors;
    spdlog::error("cannot bring back build {}, name \"{}\", id {} ({} bytes) from the database: {}", facts.build,
                  printable(what.name), id, facts.length, error.message());
    load_failures_[id] = error;
    if (error == Errc::corrupt_value) remember_damage(segment_.entry_at(node->block));
  }
  if (node != nullptr) node->loading = false;
  loaded_.notify_all();
}

awaitable<Result<>> Store::wait(BuildId build, const std::string& name, Waiter& waiter, TimePoint deadline) {
  if (!valid_build(build) || !valid_text(name)) co_return Errc::invalid_argument;
  while (current(build, name) == nullptr) {
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
    const shm::Entry* entry = current(request.build, *request.name);
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
  // Who goes on without having begun here gets what is there when it asks.
  if (page.more && request.after_id == 0) {
    listing = listings_->begin(request.build, page.entries.back().id, clock_.monotonic());
  }
  return page;
}

protocol::BuildsPage Store::builds(const protocol::Builds& request) const {
  protocol::BuildsPage page;
  const auto& all = catalog_.with_data();
  for (auto at = all.upper_bound(request.after); at != all.end(); ++at) {
    if (page.builds.size() == protocol::kBuildsPageRows) {
      page.more = true;
      break;
    }
    const BuildState& build = *at->second;
    BuildInfo row{build.id,     build.sums.entries, build.sums.resident_bytes, build.sums.evicted_bytes,
                  std::nullopt, build.held()};
    if (build.finished()) row.complete_at = build.record->complete_at.load(std::memory_order_relaxed);
    page.builds.push_back(row);
  }
  return page;
}

// ---- builds --------------------------------------------------------------------------------------------------------

Result<std::int64_t> Store::finish(BuildId build, std::optional<std::int64_t> complete_at) {
  if (!valid_build(build)) return Errc::invalid_argument;
  const std::int64_t at = complete_at.value_or(clock_.wall_seconds());
  if (at == shm::kNotComplete) return Errc::invalid_argument;
  const bool known = catalog_.find_build(build) != nullptr;
  BuildState* state = STEPSTASH_TRY(ensure_build(build, /*spare=*/true));
  if (!known) ask_database(*state);
  set_complete(*state, at);
  flusher_.mark_dirty(*state);
  ++counters_.finishes;
  return at;
}

std::int64_t Store::believed_wall() const {
  const auto passed = std::chrono::duration_cast<std::chrono::seconds>(clock_.boot_time() - start_on_boot_clock_);
  return std::min(clock_.wall_seconds(), wall_at_start_ + passed.count());
}

std::int64_t Store::on_boot_clock(std::int64_t complete_at) const {
  const std::int64_t now = believed_wall();
  // Within a century, so that no complete_at, however odd, overflows.
  constexpr std::int64_t kCentury = 100LL * 365 * 86400;
  const std::int64_t age = now - std::clamp(complete_at, now - kCentury, now);
  return (clock_.boot_time() - std::chrono::seconds(age)).count();
}

void Store::set_complete(BuildState& build, std::int64_t complete_at) {
  const bool first = !build.finished();
  // What a wall clock that jumps says later is compared with this.
  build.record->completed_ns.store(on_boot_clock(complete_at), std::memory_order_release);
  STEPSTASH_CRASH_POINT("daemon.finish.clock.stored");
  build.record->complete_at.store(complete_at, std::memory_order_release);  // the fact: one store
  STEPSTASH_CRASH_POINT("daemon.finish.time.stored");
  if (!first) return;
  for (const auto& [id, node] : build.entries) {
    if (node->is_linked()) catalog_.touch(*node);
  }
}

Result<> Store::hold(BuildId build, bool held) {
  if (!valid_build(build)) return Errc::invalid_argument;
  const bool known = catalog_.find_build(build) != nullptr;
  BuildState* state = STEPSTASH_TRY(ensure_build(build, /*spare=*/true));
  if (!known) ask_database(*state);
  state->record->hold.store(held ? shm::Hold::held : shm::Hold::not_held, std::memory_order_release);
  STEPSTASH_CRASH_POINT("daemon.hold.stored");
  flusher_.mark_dirty(*state);
  return success();
}

void Store::forget_node(Node& node) {
  listings_->about_to_change(segment_.entry_at(node.block));
  flusher_.forget(node);
  damaged_.erase(node.id);
  const shm::Entry& entry = segment_.entry_at(node.block);
  if (entry.value_offset == 0) --evicted_;
  segment_.erase(entry);
  catalog_.remove(node);
  STEPSTASH_CRASH_POINT("daemon.drop.entry.erased");
}

awaitable<std::uint64_t> Store::delete_builds(std::vector<BuildState*> builds) {
  std::uint64_t count = 0;
  std::vector<shm::BuildRecord*> records;
  records.reserve(builds.size());
  for (BuildState* build : builds) {
    // Where another deletion of this build is under way, its entries count there; but this one, too, has an end only
    // when they are gone.
    count += build->sums.entries;
    records.push_back(build->record);
    ++build->dropping;  // keeps the record, and `build`
  }
  // The instant: from here on they are deleted for everybody, and a crash completes the deletion. What checks whether a
  // build may be deleted has just been looked at, for nobody else has had the loop.
  const std::uint64_t upto = segment_.begin_deletion(records);
  STEPSTASH_CRASH_POINT("daemon.drop.fact.stored");
  for (BuildState* build : builds) catalog_.leave_out(*build, upto);
  // They leave the index in slices: 100,000 entries would hold the loop for a second.
  std::uint64_t in_slice = 0;
  for (BuildState* build : builds) {
    for (;;) {
      if (++in_slice > kDropAtOnce) {
        in_slice = 0;
        segment_.reclaim_if_due();
        co_await asio::post(loop_, asio::use_awaitable);
      }
      if (build->entries.empty() || build->entries.begin()->first > upto) break;  // set since
      forget_node(*build->entries.begin()->second);
    }
    --build->dropping;
    STEPSTASH_CRASH_POINT("daemon.drop.entries.erased");
    flusher_.mark_dirty(*build);
  }
  segment_.end_deletion();
  reclaim_after();
  room_.notify_all();
  co_return count;
}

awaitable<Result<std::uint64_t>> Store::drop(BuildId build) {
  if (!valid_build(build)) co_return Errc::invalid_argument;
  BuildState* state = catalog_.find_build(build);
  if (state == nullptr || (state->sums.entries == 0 && state->dropping == 0)) co_return 0;
  std::vector<BuildState*> builds{state};
  const std::uint64_t count = co_await delete_builds(std::move(builds));
  counters_.dropped += count;
  co_return count;
}

awaitable<Result<std::uint64_t>> Store::prune(std::int64_t older_than, Waiter& waiter, TimePoint deadline) {
  // Builds that are made from now on have only just begun, or been said to be complete by somebody who was not waiting
  // for this: a prune that waited for them, too, could wait for ever.
  const std::uint64_t asked = last_question_;
  while (!merging_.empty() && *merging_.begin() <= asked && !waiter.gone() && !expired(deadline)) {
    if (waiter.dismissed()) co_return Errc::shutting_down;
    co_await merged_.wait(waiter, deadline);
  }
  std::vector<BuildState*> builds;
  for (const auto& [id, build] : catalog_.builds()) {
    if (prunable(*build, older_than)) builds.push_back(build.get());
  }
  if (builds.empty()) co_return 0;
  const std::uint64_t count = co_await delete_builds(std::move(builds));
  counters_.pruned += count;
  co_return count;
}

bool Store::prunable(const BuildState& build, std::int64_t older_than) noexcept {
  // Not before the database has had its say: it may know that the build is held.
  return build.merged() && build.finished() && !build.held() && build.sums.entries > 0 &&
         build.record->complete_at.load(std::memory_order_relaxed) < older_than;
}

awaitable<void> Store::prune_expired() {
  if (!limits_.horizon || pruning_) co_return;
  pruning_ = true;
  const auto horizon = std::chrono::duration_cast<std::chrono::seconds>(*limits_.horizon).count();
  const std::int64_t older_than = clock_.wall_seconds() - horizon;
  // Complete for that long by both clocks: a wall clock that jumps ahead prunes nothing that has just completed.
  const std::int64_t latest = (clock_.boot_time() - *limits_.horizon).count();
  std::vector<BuildState*> builds;
  for (const auto& [id, build] : catalog_.builds()) {
    if (!prunable(*build, older_than)) continue;
    const std::int64_t completed = build->record->completed_ns.load(std::memory_order_relaxed);
    if (completed < latest) builds.push_back(build.get());
  }
  if (!builds.empty()) {
    const std::uint64_t count = co_await delete_builds(std::move(builds));
    counters_.pruned += count;
    spdlog::info("pruned {} entries of builds that completed before {} (build_data_horizon)", count, older_than);
  }
  pruning_ = false;
}

void Store::ask_database(BuildState& build) {
  if (build.merged() || build.asking != 0) return;
  build.asking = ++last_question_;
  merging_.insert(build.asking);
  asio::co_spawn(loop_, merge_from_database(build.id, build.asking), kOrDie);
}

awaitable<void> Store::merge_from_database(BuildId build, std::uint64_t question) {
  auto job = [this, build]() { return database_.load_build(build); };
  const Result<std::optional<persist::StoredBuild>> known = co_await run_on(loader_, job);
  merging_.erase(question);
  BuildState* state = catalog_.find_build(build);
  // A record that was given up and made again meanwhile has a question of its own.
  if (state != nullptr && state->asking != question) state = nullptr;
  if (state != nullptr) {
    state->asking = 0;
    if (!known) unanswered_.push_back(build);  // maintain() asks again
  }
  if (state != nullptr && known && known.value()) {
    // What was said here since is newer than what the database knows.
    if (known.value()->complete_at && !state->finished()) {
      set_complete(*state, *known.value()->complete_at);
    }
    STEPSTASH_CRASH_POINT("daemon.merge.complete_at.stored");
    if (known.value()->held && state->record->hold.load(std::memory_order_relaxed) == shm::Hold::unknown) {
      state->record->hold.store(shm::Hold::held, std::memory_order_release);
      STEPSTASH_CRASH_POINT("daemon.merge.hold.stored");
    }
  }
  if (state != nullptr && known) state->record->merged.store(1, std::memory_order_release);
  STEPSTASH_CRASH_POINT("daemon.merge.done");
  merged_.notify_all();
}

void Store::release_build_if_idle(BuildState& build) {
  if (build.dirty.dirty() || !build.entries.empty() || build.dropping > 0) return;
  shm::BuildRecord& record = *build.record;
  // Without its database nobody has marked what an earlier daemon was told: only the record knows it.
  const bool known = build.finished() || record.hold.load(std::memory_order_relaxed) != shm::Hold::unknown ||
                     record.drop_upto.load(std::memory_order_relaxed) != 0;
  if (known && database_.unusable()) return;
  catalog_.remove_build(build.id);
  segment_.remove_build(record);
}

// ---- upkeep --------------------------------------------------------------------------------------------------------

void Store::maintain() {
  const auto now = clock_.monotonic();
  segment_.heap().set_now(now);
  segment_.pins().reap();
  if (segment_.reclaim() > 0) room_.notify_all();
  open_modest();
  segment_.heap().punch(now - limits_.punch_after, kPunchAtOnce);
  listings_->expire(now - kListPatience);
  if (now >= next_rekey_) {
    segment_.allow_rekey();
    next_rekey_ =
        now + std::max<std::chrono::nanoseconds>(kRekeyPause, kRekeyPauseTimes * segment_.index().last_rekey());
  }
  tmpfs_ = segment_.heap().file_system();
  if (loaded_.empty()) load_failures_.clear();
  if (merging_.empty() && now >= ask_again_) {
    ask_again_ = now + std::chrono::seconds(1);
    for (const BuildId id : std::exchange(unanswered_, {})) {
      if (BuildState* build = catalog_.find_build(id)) ask_database(*build);
    }
  }
}

void Store::remember_damage(const shm::Entry& entry) {
  if (damaged_.size() >= kDamagedRemembered || damaged_.contains(entry.id)) return;
  std::string text = fmt::format("build {}, name \"{}\", id {}: {} bytes do not match their checksum", entry.buildid,
                                 printable(shm::entry_name(entry)), entry.id, entry.length);
  spdlog::error("damaged, and not served: {}", text);
  damaged_.emplace(entry.id, std::move(text));
}

std::vector<std::string> Store::damaged() const {
  std::vector<std::string> lines;
  for (const auto& [id, text] : damaged_) lines.push_back(text);
  return lines;
}

void Store::on_damaged(Node& node) {
  const shm::Entry& entry = segment_.entry_at(node.block);
  remember_damage(entry);
  auto record = segment_.mark_lost(entry);
  // Deleted, it could come back from the database as what it was before: that is the last resort.
  if (!record && free_pages(shm::kPageBytes, record.error() != Errc::segment_full)) record = segment_.mark_lost(entry);
  STEPSTASH_CRASH_POINT("daemon.damaged.value.marked_lost");
  if (record) {
    catalog_.move(node, *record.value(), segment_.offset_of(*record.value()));
    Catalog::unlist(node);
    ++evicted_;
    flusher_.mark_dirty(node, clock_.monotonic());
    return;
  }
  BuildState& build = *node.build;
  forget_node(node);
  release_build_if_idle(build);
}

std::uint64_t Store::max_value_bytes() const noexcept {
  return tmpfs_.bounded() ? segment_.max_value_bytes_on(tmpfs_.total) : segment_.max_value_bytes();
}

std::string Store::explain(std::error_code error, std::uint64_t length) const {
  const shm::Heap& heap = segment_.heap();
  const Flusher::Counters& flushes = flusher_.counters();
  std::string text = error.message();
  if (error == Errc::too_large && max_value_bytes() < segment_.max_value_bytes()) {
    text += fmt::format(": {} bytes, and the tmpfs of {}, of {} bytes, holds values up to {}; {}", length,
                        segment_.directory(), tmpfs_.total, max_value_bytes(), kEnlargeTmpfs);
  } else if (error == Errc::too_large) {
    text += fmt::format(": {} bytes, and a segment of {} bytes holds values up to {}; enlarge it (--segment-size)",
                        length, segment_.bytes(), segment_.max_value_bytes());
  } else if (error == Errc::segment_full || error == Errc::dirty_limit) {
    text += fmt::format(
        ": {} bytes wanted, {} of {} free in runs of at most {}; {} bytes in {} values wait for the database (at most "
        "{}), {} bytes belong to sets under way",
        length, heap.free_bytes(), heap.capacity(), heap.largest_free(), flusher_.dirty_bytes(),
        flusher_.dirty_values(), limits_.max_dirty, staged_bytes_);
    if (segment_.retired() > 0) {
      text += fmt::format(", {} bytes are held by readers, {} of them written off", segment_.retired_bytes(),
                          heap.written_off());
    }
    if (!flushes.last_error.empty()) text += fmt::format("; the last commit failed: {}", flushes.last_error);
    text += "; prune, enlarge the segment (--segment-size), or try again later";
  } else if (error == Errc::not_durable) {
    text = flushes.last_error.empty() ? "the database has not committed it before the deadline" : flushes.last_error;
    text += "; what was set stays set, and is written when the database takes it";
  } else if (error == Errc::invalid_argument) {
    text += ": a build is 1 .. 2^63-1; a name or source is UTF-8 of 0..256 characters without NUL";
  } else if (error == Errc::too_many) {
    text += ": this key and others go to the same place in the index, and it has no slot left there; try again";
  } else if (error == Errc::too_many_builds) {
    text += fmt::format(": {} of {} builds; finish and prune some, or enlarge the segment", segment_.builds(),
                        segment_.builds_capacity());
  } else if (error == std::errc::no_space_on_device) {
    text += fmt::format(
        ": {} bytes wanted, and of the {} bytes of the tmpfs of {} {} are free and {} are promised to sets under way; "
        "the "
        "segment has {} of its {}; {} bytes in {} values wait for the database",
        length, tmpfs_.total, segment_.directory(), tmpfs_.free, promised_pages_, heap.backed_bytes(), segment_.bytes(),
        flusher_.dirty_bytes(), flusher_.dirty_values());
    if (segment_.retired() > 0) text += fmt::format(", {} bytes are held by readers", segment_.retired_bytes());
    if (!flushes.last_error.empty()) text += fmt::format("; the last commit failed: {}", flushes.last_error);
    text += fmt::format("; prune, try again later, or {}", kEnlargeTmpfs);
  }
  return text;
}

}  // namespace stepstash::daemon
