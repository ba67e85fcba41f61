// SPDX-License-Identifier: Apache-2.0
#include "daemon/reloader.hpp"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <boost/asio/co_spawn.hpp>
#include <utility>

#include "base/crash_point.hpp"
#include "base/errc.hpp"
#include "base/text.hpp"
#include "shm/hash.hpp"
#include "shm/validate.hpp"

namespace stepstash::daemon {
awaitable<Result<>> Reloader::load(BuildId build, const std::string& name, Waiter& waiter, TimePoint deadline) {
  ++counters_.asked;
  for (;;) {
    const shm::Entry* entry = current_entry(segment_, catalog_, build, name);
    if (entry == nullptr) co_return Errc::not_found;
    const std::uint64_t id = entry->id;
    const std::uint64_t length = entry->length;
    Node* node = catalog_.find(id);
    if (entry->value_offset != 0) {
      if (node->is_linked()) catalog_.touch(*node);  // not the next to be evicted
      co_return success();
    }
    if (entry->state.load(std::memory_order_relaxed) == shm::EntryState::dirty) co_return Errc::corrupt_value;  // lost
    if (!database_.allows(Database::Use::load)) co_return database_.absence();
    if (waiter.dismissed()) co_return Errc::shutting_down;
    if (waiter.gone() || expired(deadline)) co_return Errc::deadline_exceeded;
    if (!node->loading) {
      const std::uint64_t revision = entry->revision;
      const std::string source(shm::entry_source(*entry));
      const Room::Wanted wanted{build, name, source, length, /*dirty_bytes=*/0};
      auto draft = co_await room_.find(wanted, waiter, deadline);
      if (!draft) co_return draft.error();
      node = catalog_.find(id);  // anything may have happened meanwhile
      if (node == nullptr || node->loading) continue;
      const shm::Entry& record = segment_.entry_at(node->block);
      if (record.value_offset != 0 || record.revision != revision) continue;  // the draft fits that revision only
      node->loading = true;
      failures_.erase(id);
      asio::co_spawn(loop_, reload(Reload(record), std::move(draft).value()), kOrDie);
    }
    co_await loaded_.wait(waiter, deadline);
    const auto failure = failures_.find(id);
    if (failure != failures_.end()) {
      const std::error_code error = failure->second;
      // Others took the pages meanwhile: not an answer for the caller before its deadline.
      auto again = co_await room_.wait_for_pages(error, length, waiter, deadline);
      if (!again) co_return again.error();
    }
  }
}

Reloader::Reload::Reload(const shm::Entry& record)
    : name(shm::entry_name(record)), source(shm::entry_source(record)), facts(shm::Segment::EntryFacts::of(record)) {
  facts.name = facts.source = {};  // the record may be gone before they are used
  facts.state = shm::EntryState::clean;
}

/// `what` is passed by value: by the time this runs, the entry may be gone or replaced.
awaitable<void> Reloader::reload(Reload what, OwnedDraft draft) {
  shm::Segment::EntryFacts& facts = what.facts;
  facts.name = what.name;
  facts.source = what.source;
  const std::uint64_t id = facts.id;
  auto job = [this, &draft, &facts](persist::BackingStore& store) -> Result<> {
    if (auto reserved = segment_.reserve(*draft, facts.length); !reserved) return reserved;
    const auto bytes = segment_.value_bytes(*draft).first(facts.length);
    if (auto read = store.load_value(facts.id, facts.revision, bytes); !read) return read;
    STEPSTASH_CRASH_POINT("daemon.reload.value.read");
    if (shm::hash_bytes(bytes) != facts.value_hash) return Errc::corrupt_value;
    return success();
  };
  const Result<> loaded = co_await database_.read(job);
  Node* node = catalog_.find(id);  // it may have been dropped or set again meanwhile
  const bool current = node != nullptr && !node->build->dropped(id) &&
                       segment_.entry_at(node->block).revision == facts.revision &&
                       segment_.entry_at(node->block).value_offset == 0;
  if (loaded && current) {
    const shm::Entry& entry = segment_.publish(draft.release(), facts);
    STEPSTASH_CRASH_POINT("daemon.reload.value.published");
    catalog_.move(*node, entry, segment_.offset_of(entry));
    catalog_.touch(*node);
    ++counters_.reloads;
    damage_.remove(id);
  } else if (!loaded && loaded.error() == std::errc::no_space_on_device) {
    failures_[id] = loaded.error();  // the callers wait for pages (load)
  } else if (!loaded && current) {
    // A row that is missing, though nobody deleted it, is damage just like changed bytes.
    const bool gone = loaded.error() == Errc::not_found;
    const std::error_code error = gone ? make_error_code(Errc::corrupt_value) : loaded.error();
    ++counters_.errors;
    spdlog::error("cannot bring back build {}, name \"{}\", id {} ({} bytes) from the database: {}", facts.build,
                  printable(what.name), id, facts.length, error.message());
    failures_[id] = error;
    if (error == Errc::corrupt_value) damage_.add(segment_.entry_at(node->block));
  }
  if (node != nullptr) node->loading = false;
  loaded_.notify_all();
}

}  // namespace stepstash::daemon
