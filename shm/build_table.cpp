// SPDX-License-Identifier: Apache-2.0
#include "shm/build_table.hpp"

#include "base/crash_point.hpp"
#include "base/errc.hpp"
#include "shm/validate.hpp"

namespace stepstash::shm {

void BuildTable::format() { collect_free(); }

void BuildTable::attach(const std::function<void(std::string)>& take_out) {
  for (std::uint64_t i = 0; i < capacity(); ++i) {
    BuildRecord& record = records()[i];
    const BuildId build = record.buildid.load(std::memory_order_acquire);
    if (build == 0) continue;
    if (!valid_build(build) || !builds_.emplace(build, &record).second) {
      take_out("build record " + std::to_string(i) + ": build " + std::to_string(build));
      record.buildid.store(0, std::memory_order_release);
      STEPSTASH_CRASH_POINT("shm.recover.build.set_aside");
      continue;
    }
    // A deletion that had taken effect becomes a fact of the build; one that had not is discarded.
    if (record.deletion.load(std::memory_order_relaxed) == 0) continue;
    record.drop_upto.store(deleted_upto(header(), record), std::memory_order_release);
    STEPSTASH_CRASH_POINT("shm.recover.deletion.fact");
    record.deletion.store(0, std::memory_order_release);
    STEPSTASH_CRASH_POINT("shm.recover.deletion.settled");
  }
  collect_free();
}

void BuildTable::collect_free() {
  for (std::uint64_t i = capacity(); i-- > 0;) {
    BuildRecord& record = records()[i];
    if (record.buildid.load(std::memory_order_relaxed) == 0) free_.push_back(&record);
  }
}

Result<BuildRecord*> BuildTable::add(BuildId build, bool spare) {
  if (BuildRecord* record = find(build)) return record;
  const std::uint64_t kept = spare ? 0 : capacity() / 8;
  if (free_.size() <= kept) return Errc::too_many_builds;
  BuildRecord* record = free_.back();
  builds_.emplace(build, record);
  free_.pop_back();
  record->complete_at.store(kNotComplete,
                            std::memory_order_relaxed);  // published by the store of buildid, as are the fields below
  // Release: pairs with deleted_upto() in a reader that has an entry of the record's former build and still saw that
  // build's number. A reader that loads these zeros finds, on its second look at the slot, that the entry has left it.
  record->drop_upto.store(0, std::memory_order_release);
  record->deletion.store(0, std::memory_order_release);
  record->hold.store(Hold::unknown, std::memory_order_relaxed);
  record->facts_loaded.store(0, std::memory_order_relaxed);
  record->completed_ns.store(0, std::memory_order_relaxed);
  STEPSTASH_CRASH_POINT("shm.build.add.fields");
  record->buildid.store(build, std::memory_order_release);  // pairs with attach() in a later process
  STEPSTASH_CRASH_POINT("shm.build.add.published");
  return record;
}

void BuildTable::remove(BuildRecord& record) noexcept {
  builds_.erase(record.buildid.load(std::memory_order_relaxed));
  record.buildid.store(0, std::memory_order_release);
  STEPSTASH_CRASH_POINT("shm.build.remove.zeroed");
  free_.push_back(&record);
}

std::uint32_t BuildTable::record_of(BuildId build) const noexcept {
  const BuildRecord* record = find(build);
  return record == nullptr ? kNoRecord : static_cast<std::uint32_t>(record - records());
}

bool BuildTable::deleted(const Entry& entry) const noexcept {
  const BuildRecord* record = find(entry.buildid);
  return record != nullptr && entry.id <= record->drop_upto.load(std::memory_order_acquire);
}

void BuildTable::for_each(const std::function<void(BuildRecord&)>& each) const {
  for (const auto& [build, record] : builds_) each(*record);
}

std::uint64_t BuildTable::begin_deletion(std::span<BuildRecord* const> builds) noexcept {
  Header& head = header();
  // Readers check the records from here on. This comes before any record says more than it did.
  head.deletions.fetch_add(1, std::memory_order_seq_cst);
  STEPSTASH_CRASH_POINT("shm.deletion.announced");
  const std::uint64_t epoch = head.deletion_epoch.load(std::memory_order_relaxed) + 1;
  for (BuildRecord* build : builds) {
    build->deletion.store(epoch, std::memory_order_release);
    STEPSTASH_CRASH_POINT("shm.deletion.build.marked");
  }
  const std::uint64_t upto = head.next_id.load(std::memory_order_relaxed) - 1;
  head.deletion_upto.store(upto, std::memory_order_release);
  STEPSTASH_CRASH_POINT("shm.deletion.upto.stored");
  head.deletion_epoch.store(epoch, std::memory_order_seq_cst);  // the deletion takes effect here
  STEPSTASH_CRASH_POINT("shm.deletion.effective");
  // Remains, build by build, until the rows are gone from the database.
  for (BuildRecord* build : builds) {
    build->drop_upto.store(upto, std::memory_order_release);
    STEPSTASH_CRASH_POINT("shm.deletion.build.fact");
    build->deletion.store(0, std::memory_order_release);
    STEPSTASH_CRASH_POINT("shm.deletion.build.settled");
  }
  return upto;
}

void BuildTable::end_deletion() noexcept {
  header().deletions.fetch_sub(1, std::memory_order_release);  // a reader that sees it also sees the emptied slots
  STEPSTASH_CRASH_POINT("shm.deletion.over");
}

}  // namespace stepstash::shm
