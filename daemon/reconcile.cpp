// SPDX-License-Identifier: Apache-2.0
#include "daemon/reconcile.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "base/crash_point.hpp"
#include "base/errc.hpp"
#include "base/text.hpp"
#include "daemon/id_range.hpp"
#include "daemon/salvage.hpp"
#include "shm/validate.hpp"

namespace stepstash::daemon {
namespace {

std::string describe(const shm::Entry& entry) {
  return fmt::format("build {}, name \"{}\", id {}", entry.buildid, printable(shm::entry_name(entry)), entry.id);
}

bool evicted(const shm::Entry& entry) {
  // Dirty and evicted is a value known to be lost; a row of its own has yet to record that in this database.
  return entry.value_offset == 0 && entry.state.load() == shm::EntryState::clean;
}

class Reconciliation {
 public:
  /// `set_aside`: nullptr if the database is the one that the segment's clean marks refer to.
  Reconciliation(persist::BackingStore& database, shm::Segment& segment, std::vector<std::string>* set_aside)
      : database_(database), segment_(segment), set_aside_(set_aside) {}

  Result<std::uint64_t> complete();

 private:
  /// What the database has under an id.
  struct Stored {
    std::uint64_t revision;
    std::uint64_t key_id;
    std::uint64_t value_hash;
  };
  struct Clash {
    const shm::Entry* entry;
    bool id;  // the id clashes, not just the revision
  };

  Result<> add(const persist::StoredBuild& build);
  Result<> add(const persist::StoredEntry& row);
  void compare();
  Result<> renumber(const Clash& clash);
  void erase_lost();

  persist::BackingStore& database_;
  shm::Segment& segment_;
  std::vector<std::string>* set_aside_;
  std::uint64_t added_ = 0;
  std::uint64_t highest_ = 0;
  // Only with set_aside_:
  std::unordered_map<std::uint64_t, Stored, shm::SecretHash> stored_;  // by id
  std::unordered_set<std::uint64_t, shm::SecretHash> revisions_;
  std::vector<const shm::Entry*> lost_;
  std::vector<Clash> clashes_;
};

Result<std::uint64_t> Reconciliation::complete() {
  Result<> failed = success();
  STEPSTASH_TRY(database_.load_builds_with_data([&](const persist::StoredBuild& build) {
    failed = add(build);
    return failed.has_value();
  }));
  if (!failed) return failed.error();
  STEPSTASH_TRY(database_.load_entries([&](const persist::StoredEntry& row) {
    failed = add(row);
    return failed.has_value();
  }));
  if (!failed) return failed.error();
  IdRange(segment_.header()).skip(highest_);
  STEPSTASH_CRASH_POINT("daemon.startup.fill.next_id");
  if (set_aside_ == nullptr) return added_;
  compare();
  for (const Clash& clash : clashes_) STEPSTASH_TRY(renumber(clash));
  STEPSTASH_CRASH_POINT("daemon.startup.renumber.done");
  erase_lost();
  return added_;
}

Result<> Reconciliation::add(const persist::StoredBuild& build) {
  shm::BuildRecord& record = *STEPSTASH_TRY(segment_.add_build(build.buildid, /*spare=*/true));
  if (build.complete_at && record.complete_at.load() == shm::kNotComplete) record.complete_at.store(*build.complete_at);
  if (build.held && record.hold.load() == shm::Hold::unknown) record.hold.store(shm::Hold::held);
  record.facts_loaded.store(1);
  STEPSTASH_CRASH_POINT("daemon.startup.fill.build");
  return success();
}

Result<> Reconciliation::add(const persist::StoredEntry& row) {
  if (set_aside_ != nullptr) {
    const std::uint64_t key_id = shm::key_id(shm::process_secret(), row.buildid, row.name);
    stored_.emplace(row.id, Stored{row.revision, key_id, row.value_hash});
    revisions_.insert(row.revision);
  }
  highest_ = std::max({highest_, row.id, row.revision});
  if (const shm::Entry* have = segment_.find(row.buildid, row.name)) {
    const bool same = have->id == row.id && have->revision == row.revision && have->value_hash == row.value_hash;
    if (set_aside_ == nullptr || same || !evicted(*have)) return success();
    set_aside_->push_back(describe(*have) + ": this database has another value of that name");
  }
  const shm::BuildRecord& record = *STEPSTASH_TRY(segment_.add_build(row.buildid, /*spare=*/true));
  if (row.id <= record.drop_upto.load()) return success();
  STEPSTASH_TRY(segment_.ensure_slot(row.buildid, row.name));
  STEPSTASH_TRY(segment_.publish_record(shm::Segment::EntryFacts::of(row, row.value_hash)));
  STEPSTASH_CRASH_POINT("daemon.startup.fill.entry");
  ++added_;
  return success();
}

/// Finds the entries that this database does not have, or not under their ids.
void Reconciliation::compare() {
  segment_.for_each([&](const shm::Entry& entry) {
    const auto row = stored_.find(entry.id);
    const bool same_key =
        row != stored_.end() &&
        row->second.key_id == shm::key_id(shm::process_secret(), entry.buildid, shm::entry_name(entry));
    const bool same = same_key && row->second.revision == entry.revision && row->second.value_hash == entry.value_hash;
    if (same) return;
    if (evicted(entry)) {
      lost_.push_back(&entry);
    } else if (const bool id = row != stored_.end() && !same_key; id || revisions_.contains(entry.revision)) {
      clashes_.push_back({&entry, id});
    }
  });
}

/// Two databases that each began to count at 1: if both gave out an id, for different names, ours gets a new one;
/// otherwise the flush would overwrite the other's row. Likewise for revisions: the database uses them to know what it
/// has, and to file the chunks of large values.
Result<> Reconciliation::renumber(const Clash& clash) {
  const shm::Entry& entry = *clash.entry;
  const std::uint64_t revision = IdRange(segment_.header()).take_unreserved();
  const std::uint64_t id = clash.id ? revision : entry.id;
  STEPSTASH_CRASH_POINT("daemon.startup.renumber.id");
  const std::string was = describe(entry);
  auto moved = republish(segment_, entry, id, revision);
  // The free space for one more may be scattered over the former places of earlier ones, or the tmpfs full: then it
  // goes to the database.
  if (!moved && (moved.error() == Errc::segment_full || moved.error() == std::errc::no_space_on_device))
    moved = write_out(database_, segment_, entry, id, revision);
  STEPSTASH_TRY(moved);
  segment_.reclaim();  // the former copy: room for one more is enough
  if (clash.id) {
    set_aside_->push_back(fmt::format("{}: this database has that id for another name; now {}", was, id));
  }
  return success();
}

void Reconciliation::erase_lost() {
  for (const shm::Entry* entry : lost_) {
    set_aside_->push_back(describe(*entry) + ": its value is not in this database");
    segment_.erase(*entry);
    STEPSTASH_CRASH_POINT("daemon.startup.lost.erased");
  }
}

}  // namespace

Result<std::uint64_t> add_listed(persist::BackingStore& database, shm::Segment& segment) {
  return Reconciliation(database, segment, nullptr).complete();
}

Result<std::uint64_t> verify_listed(persist::BackingStore& database, shm::Segment& segment,
                                    std::vector<std::string>& set_aside) {
  return Reconciliation(database, segment, &set_aside).complete();
}

}  // namespace stepstash::daemon
