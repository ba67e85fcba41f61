// SPDX-License-Identifier: Apache-2.0
#include "daemon/salvage.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/crash_point.hpp"
#include "base/errc.hpp"
#include "base/text.hpp"
#include "daemon/id_range.hpp"
#include "shm/validate.hpp"

namespace stepstash::daemon {
namespace {

using EntryFacts = shm::Segment::EntryFacts;

EntryFacts facts_as(const shm::Entry& entry, std::uint64_t id, std::uint64_t revision) {
  EntryFacts facts = EntryFacts::of(entry);
  facts.id = id;
  facts.revision = revision;
  return facts;
}

/// No id up to those of `entry` is given out again.
void skip_ids(shm::Segment& into, const shm::Entry& entry) {
  IdRange(into.header()).skip(std::max(entry.id, entry.revision));
  STEPSTASH_CRASH_POINT("daemon.startup.copy.next_id");
}

Result<> ensure_slot(shm::Segment& into, const shm::Entry& entry) {
  STEPSTASH_TRY(into.add_build(entry.buildid, /*spare=*/true));
  return into.ensure_slot(entry.buildid, shm::entry_name(entry));
}

Result<> copy_entry(shm::Segment& into, const shm::Entry& entry) {
  STEPSTASH_TRY(ensure_slot(into, entry));
  STEPSTASH_TRY(republish(into, entry, entry.id, entry.revision));
  skip_ids(into, entry);
  return success();
}

Result<> copy_build(shm::Segment& into, const shm::BuildRecord& from) {
  shm::BuildRecord& record = *STEPSTASH_TRY(into.add_build(from.buildid.load(), /*spare=*/true));
  record.complete_at.store(from.complete_at.load());
  STEPSTASH_CRASH_POINT("daemon.startup.copy.complete_at");
  record.hold.store(from.hold.load());
  STEPSTASH_CRASH_POINT("daemon.startup.copy.hold");
  record.completed_ns.store(from.completed_ns.load());
  record.drop_upto.store(from.drop_upto.load());
  STEPSTASH_CRASH_POINT("daemon.startup.copy.drop_upto");
  record.facts_loaded.store(from.facts_loaded.load());
  STEPSTASH_CRASH_POINT("daemon.startup.copy.build");
  return success();
}

void save_build(shm::Segment& into, const shm::BuildRecord& record, const std::string& from,
                std::vector<std::string>& left_out) {
  if (auto copied = copy_build(into, record); !copied) {
    left_out.push_back(fmt::format("build {}: its facts could not be saved out of {}: {}", record.buildid.load(), from,
                                   copied.error().message()));
  }
}

std::string not_saved(const shm::Entry& entry, const std::string& from, std::error_code why) {
  return fmt::format("build {}, name \"{}\", id {}: could not be saved out of {}: {}", entry.buildid,
                     printable(shm::entry_name(entry)), entry.id, from, why.message());
}

}  // namespace

Result<> republish(shm::Segment& into, const shm::Entry& entry, std::uint64_t id, std::uint64_t revision) {
  EntryFacts facts = facts_as(entry, id, revision);
  // Dirty and evicted: a lost value (Segment::mark_lost). Clean and evicted: a value that a database has.
  if (entry.value_offset == 0) {
    STEPSTASH_TRY(into.publish_record(facts));
    return success();
  }
  facts.state = shm::EntryState::dirty;
  const shm::Draft draft = STEPSTASH_TRY(into.draft(facts.name, facts.source, facts.length));
  if (auto reserved = into.reserve(draft, facts.length); !reserved) {
    into.discard(draft);
    return reserved.error();
  }
  const std::span<const std::byte> value = shm::entry_value(entry);
  if (!value.empty()) std::memcpy(into.value_bytes(draft).data(), value.data(), value.size());
  STEPSTASH_CRASH_POINT("daemon.startup.copy.value");
  into.publish(draft, facts);
  return success();
}

Result<> write_out(persist::BackingStore& database, shm::Segment& into, const shm::Entry& entry, std::uint64_t id,
                   std::uint64_t revision) {
  EntryFacts facts = facts_as(entry, id, revision);
  facts.state = shm::EntryState::clean;
  persist::Batch batch;
  batch.entries.push_back({.id = facts.id,
                           .revision = facts.revision,
                           .buildid = facts.build,
                           .name = facts.name,
                           .source = facts.source,
                           .value_hash = facts.value_hash,
                           .value = shm::entry_value(entry)});
  STEPSTASH_TRY(ensure_slot(into, entry));
  STEPSTASH_TRY(database.commit(batch));
  STEPSTASH_TRY(into.publish_record(facts));
  skip_ids(into, entry);
  return success();
}

Salvaged salvage(const shm::ObjectDirectory& directory, const std::string& from, shm::Segment& into, Which which) {
  Salvaged saved;
  const bool second_pass = which == Which::and_clean;  // the first one has reported what it found
  const auto entry = [&](const shm::Entry& found) {
    const bool clean = found.state.load() == shm::EntryState::clean;
    const bool evicted = found.value_offset == 0;
    if (clean && !second_pass && !(evicted && which == Which::and_evicted)) return;
    if (into.find(found.buildid, shm::entry_name(found)) != nullptr) return;
    if (auto copied = copy_entry(into, found)) {
      ++saved.entries;
    } else if (!second_pass || clean) {
      saved.left_out.push_back(not_saved(found, from, copied.error()));
    }
  };
  const auto build = [&](const shm::BuildRecord& record) {
    if (!second_pass) save_build(into, record, from, saved.left_out);
  };
  if (auto done = shm::Segment::salvage(directory, from, entry, build); !done && !second_pass) {
    saved.left_out.push_back(fmt::format("{}: cannot be read: {}", from, done.error().message()));
  }
  return saved;
}

Result<> salvage_builds(const shm::ObjectDirectory& directory, const std::string& from, shm::Segment& into,
                        std::vector<std::string>& left_out) {
  const auto build = [&](const shm::BuildRecord& record) { save_build(into, record, from, left_out); };
  return shm::Segment::salvage(directory, from, nullptr, build);
}

Result<Salvaged> salvage_to(persist::BackingStore* database, const shm::ObjectDirectory& directory,
                            const std::string& from, shm::Segment& into) {
  Salvaged saved;
  const auto save = [&](const shm::Entry& found) {
    Result<> done = Errc::not_durable;
    if (database != nullptr && found.value_offset != 0)
      done = write_out(*database, into, found, found.id, found.revision);
    if (!done) done = copy_entry(into, found);
    if (done) {
      ++saved.entries;
    } else {
      saved.left_out.push_back(not_saved(found, from, done.error()));
    }
  };
  const auto dirty = [&](const shm::Entry& found) {
    if (found.state.load() == shm::EntryState::clean) return;
    const shm::Entry* listed = into.find(found.buildid, shm::entry_name(found));
    if (listed != nullptr && database != nullptr && listed->revision >= found.revision) return;  // the database has it
    save(found);
  };
  const auto clean = [&](const shm::Entry& found) {
    if (found.state.load() != shm::EntryState::clean) return;
    const shm::Entry* listed = into.find(found.buildid, shm::entry_name(found));
    const bool same = listed != nullptr && listed->id == found.id && listed->revision == found.revision &&
                      listed->value_hash == found.value_hash;
    const bool saved_before = listed != nullptr && listed->state.load() == shm::EntryState::dirty;
    if (!same && !saved_before) save(found);
  };
  STEPSTASH_TRY(shm::Segment::salvage(directory, from, dirty, nullptr));
  // Another database need not have what is clean.
  if (database == nullptr) STEPSTASH_TRY(shm::Segment::salvage(directory, from, clean, nullptr));
  return saved;
}

}  // namespace stepstash::daemon
