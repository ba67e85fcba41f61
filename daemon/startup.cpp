// SPDX-License-Identifier: Apache-2.0
#include "daemon/startup.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <unordered_map>
#include <unordered_set>

#include "base/crash_point.hpp"
#include "base/errc.hpp"
#include "base/text.hpp"
#include "daemon/id_range.hpp"
#include "shm/validate.hpp"

namespace stepstash::daemon {
namespace {

shm::Writer::EntryFacts facts_of(const shm::Entry& entry) {
  shm::Writer::EntryFacts facts = shm::Writer::EntryFacts::of(entry);
  // Dirty and evicted: a lost value (Writer::mark_lost). Clean and evicted: a value that a database has.
  if (entry.value_offset != 0) facts.state = shm::EntryState::dirty;
  return facts;
}

void raise_next_id(shm::Writer& segment, const shm::Entry& entry) {
  IdRange(segment.header()).skip(std::max(entry.id, entry.revision));
  STEPSTASH_CRASH_POINT("daemon.startup.copy.next_id");
}

/// Publishes a copy of `entry` with this id and revision; its value, if present, is dirty.
Result<> republish(shm::Writer& segment, const shm::Entry& entry, std::uint64_t id, std::uint64_t revision) {
  shm::Writer::EntryFacts facts = facts_of(entry);
  facts.id = id;
  facts.revision = revision;
  if (entry.value_offset == 0) {
    STEPSTASH_TRY(segment.publish_record(facts));
    return success();
  }
  const shm::Draft draft = STEPSTASH_TRY(segment.draft(facts.name, facts.source, facts.length));
  if (auto reserved = segment.reserve(draft, facts.length); !reserved) {
    segment.discard(draft);
    return reserved.error();
  }
  const std::span<const std::byte> value = shm::entry_value(entry);
  if (!value.empty()) std::memcpy(segment.value_bytes(draft).data(), value.data(), value.size());
  STEPSTASH_CRASH_POINT("daemon.startup.copy.value");
  segment.publish(draft, facts);
  return success();
}

/// Copies one sound entry of another segment into ours.
Result<> copy_entry(shm::Writer& segment, const shm::Entry& entry) {
  STEPSTASH_TRY(segment.add_build(entry.buildid, /*spare=*/true));
  STEPSTASH_TRY(segment.make_room(entry.buildid, shm::entry_name(entry)));
  STEPSTASH_TRY(republish(segment, entry, entry.id, entry.revision));
  raise_next_id(segment, entry);
  return success();
}

/// Commits an entry's value to the database under this id and revision, and publishes its record in our segment.
Result<> write_out(persist::BackingStore& database, shm::Writer& segment, const shm::Entry& entry, std::uint64_t id,
                   std::uint64_t revision) {
  shm::Writer::EntryFacts facts = facts_of(entry);
  facts.id = id;
  facts.revision = revision;
  facts.state = shm::EntryState::clean;
  persist::Batch batch;
  batch.entries.push_back({.id = facts.id,
                           .revision = facts.revision,
                           .buildid = facts.build,
                           .name = facts.name,
                           .source = facts.source,
                           .value_hash = facts.value_hash,
                           .value = shm::entry_value(entry)});
  STEPSTASH_TRY(segment.add_build(entry.buildid, /*spare=*/true));
  STEPSTASH_TRY(segment.make_room(entry.buildid, shm::entry_name(entry)));
  STEPSTASH_TRY(database.commit(batch));
  STEPSTASH_TRY(segment.publish_record(facts));
  raise_next_id(segment, entry);
  return success();
}

Result<> copy_build(shm::Writer& segment, const shm::BuildRecord& from) {
  shm::BuildRecord& record = *STEPSTASH_TRY(segment.add_build(from.buildid.load(), /*spare=*/true));
  record.complete_at.store(from.complete_at.load());
  STEPSTASH_CRASH_POINT("daemon.startup.copy.complete_at");
  record.hold.store(from.hold.load());
  STEPSTASH_CRASH_POINT("daemon.startup.copy.hold");
  record.completed_ns.store(from.completed_ns.load());
  record.drop_upto.store(from.drop_upto.load());
  STEPSTASH_CRASH_POINT("daemon.startup.copy.drop_upto");
  record.merged.store(from.merged.load());
  STEPSTASH_CRASH_POINT("daemon.startup.copy.build");
  return success();
}

void save_build(Startup& startup, const shm::BuildRecord& record, const std::string& aside) {
  if (auto copied = copy_build(*startup.segment, record); !copied) {
    startup.set_aside.push_back(fmt::format("build {}: its facts could not be saved out of {}: {}",
                                            record.buildid.load(), aside, copied.error().message()));
  }
}

std::string not_saved(const shm::Entry& entry, const std::string& aside, std::error_code why) {
  return fmt::format("build {}, name \"{}\", id {}: could not be saved out of {}: {}", entry.buildid,
                     printable(shm::entry_name(entry)), entry.id, aside, why.message());
}

/// Which entries of another segment to copy: those that it alone may have; also records of evicted values; also values
/// that are in a database.
enum class Saved { dirty, and_evicted, and_clean };  // and_clean: in a second pass, after `dirty`

/// Copies entries and all builds' facts out of another segment.
void salvage(const shm::ObjectDirectory& directory, const std::string& aside, Startup& startup, Saved saved) {
  const auto entry = [&](const shm::Entry& found) {
    const bool clean = found.state.load() == shm::EntryState::clean;
    const bool evicted = found.value_offset == 0;
    if (clean && saved != Saved::and_clean && !(evicted && saved == Saved::and_evicted)) return;
    if (startup.segment->find(found.buildid, shm::entry_name(found)) != nullptr) return;
    if (auto copied = copy_entry(*startup.segment, found)) {
      ++startup.entries_salvaged;
    } else if (clean || saved != Saved::and_clean) {  // the first pass reported dirty entries
      startup.set_aside.push_back(not_saved(found, aside, copied.error()));
    }
  };
  const auto build = [&](const shm::BuildRecord& record) {
    if (saved != Saved::and_clean) save_build(startup, record, aside);
  };
  if (auto done = shm::Writer::salvage(directory, aside, entry, build); !done && saved != Saved::and_clean) {
    startup.set_aside.push_back(fmt::format("{}: cannot be read: {}", aside, done.error().message()));
  }
}

/// Adds what the database has and the segment does not. With `verify`, removes evicted entries that the database does
/// not have: their values are gone.
Result<> reconcile(persist::BackingStore& database, Startup& startup, bool verify) {
  shm::Writer& segment = *startup.segment;
  Result<> failed = success();
  STEPSTASH_TRY(database.load_builds_with_data([&](const persist::StoredBuild& build) {
    auto made = segment.add_build(build.buildid, /*spare=*/true);
    if (!made) {
      failed = made.error();
      return false;
    }
    shm::BuildRecord& record = *made.value();
    if (build.complete_at && record.complete_at.load() == shm::kNotComplete)
      record.complete_at.store(*build.complete_at);
    if (build.held && record.hold.load() == shm::Hold::unknown) record.hold.store(shm::Hold::held);
    record.merged.store(1);
    STEPSTASH_CRASH_POINT("daemon.startup.fill.build");
    return true;
  }));
  if (!failed) return failed;
  struct Stored {
    std::uint64_t revision;
    std::uint64_t key_hash;
    std::uint64_t value_hash;
  };
  std::unordered_map<std::uint64_t, Stored, shm::SecretHash> stored;  // by id
  std::unordered_set<std::uint64_t, shm::SecretHash> revisions;
  std::uint64_t highest = 0;
  STEPSTASH_TRY(database.load_entries([&](const persist::StoredEntry& row) {
    if (verify) {
      stored.emplace(row.id,
                     Stored{row.revision, shm::key_hash(shm::process_secret(), row.buildid, row.name), row.value_hash});
      revisions.insert(row.revision);
    }
    highest = std::max({highest, row.id, row.revision});
    if (const shm::Entry* have = segment.find(row.buildid, row.name)) {
      const bool same = have->id == row.id && have->revision == row.revision && have->value_hash == row.value_hash;
      const bool evicted = have->value_offset == 0 && have->state.load() == shm::EntryState::clean;
      if (!verify || same || !evicted) return true;
      startup.set_aside.push_back(
          fmt::format("build {}, name \"{}\", id {}: this database has another value of that name", have->buildid,
                      printable(row.name), have->id));
    }
    auto record = segment.add_build(row.buildid, /*spare=*/true);
    if (!record) {
      failed = record.error();
      return false;
    }
    if (row.id <= record.value()->drop_upto.load()) return true;
    auto room = segment.make_room(row.buildid, row.name);
    auto published = room ? segment.publish_record(shm::Writer::EntryFacts::of(row, row.value_hash))
                          : Result<const shm::Entry*>(room.error());
    if (!published) {
      failed = published.error();
      return false;
    }
    STEPSTASH_CRASH_POINT("daemon.startup.fill.entry");
    ++startup.entries_loaded;
    return true;
  }));
  if (!failed) return failed;
  const IdRange ids(segment.header());
  ids.skip(highest);
  STEPSTASH_CRASH_POINT("daemon.startup.fill.next_id");
  if (!verify) return success();
  std::vector<const shm::Entry*> lost;
  struct Clash {
    const shm::Entry* entry;
    bool id;  // the id clashes, not just the revision
  };
  std::vector<Clash> renumbered;
  segment.for_each([&](const shm::Entry& entry) {
    const auto row = stored.find(entry.id);
    const bool same_key =
        row != stored.end() &&
        row->second.key_hash == shm::key_hash(shm::process_secret(), entry.buildid, shm::entry_name(entry));
    const bool same = same_key && row->second.revision == entry.revision && row->second.value_hash == entry.value_hash;
    if (same) return;
    // Dirty and evicted is a value known to be lost; a row of its own has yet to record that in this database.
    if (entry.value_offset == 0 && entry.state.load() == shm::EntryState::clean) {
      lost.push_back(&entry);
    } else if (const bool id = row != stored.end() && !same_key; id || revisions.contains(entry.revision)) {
      renumbered.push_back({&entry, id});
    }
  });
  // Two databases that each began to count at 1: if both gave out an id, for different names, ours gets a new one;
  // otherwise the flush would overwrite the other's row. Likewise for revisions: the database uses them to know what it
  // has, and to file the chunks of large values.
  for (const auto& [entry, clash] : renumbered) {
    const std::uint64_t revision = ids.take_unreserved();
    const std::uint64_t id = clash ? revision : entry->id;
    STEPSTASH_CRASH_POINT("daemon.startup.renumber.id");
    const std::string was =
        fmt::format("build {}, name \"{}\", id {}", entry->buildid, printable(shm::entry_name(*entry)), entry->id);
    auto moved = republish(segment, *entry, id, revision);
    // The free space for one more may be scattered over the former places of earlier ones: then it goes to the
    // database.
    if (!moved && moved.error() == Errc::segment_full) moved = write_out(database, segment, *entry, id, revision);
    STEPSTASH_TRY(moved);
    segment.reclaim();  // the former copy: room for one more is enough
    if (clash) {
      startup.set_aside.push_back(fmt::format("{}: this database has that id for another name; now {}", was, id));
    }
  }
  STEPSTASH_CRASH_POINT("daemon.startup.renumber.done");
  for (const shm::Entry* entry : lost) {
    startup.set_aside.push_back(fmt::format("build {}, name \"{}\", id {}: its value is not in this database",
                                            entry->buildid, printable(shm::entry_name(*entry)), entry->id));
    segment.erase(*entry);
    STEPSTASH_CRASH_POINT("daemon.startup.lost.erased");
  }
  return success();
}

/// Whether values that a segment calls clean are in a different database, or may be missing from this copy of it.
bool of_another(const persist::BackingStore& database, std::uint64_t store_id, std::uint64_t commit_count) {
  return store_id != database.store_id() || database.commit_count() < (commit_count & ~shm::kUnsettled);
}

/// Whether the configured size differs from the segment's and is feasible: its dirty values must fit, and its clean
/// ones must be in this very database. A segment enlarged beyond the configured size to hold many entries keeps its
/// size.
bool must_resize(const shm::Writer& segment, std::uint64_t bytes, std::uint64_t needed,
                 const persist::BackingStore& database) {
  if (shm::round_up(bytes, shm::kPageBytes) == segment.bytes() || needed > bytes) return false;
  const std::uint64_t commit_count = segment.header().commit_count.load();
  if ((commit_count & shm::kUnsettled) != 0) return false;
  if (of_another(database, segment.header().store_id.load(), commit_count)) return false;
  std::uint64_t dirty = 0;
  std::uint64_t entries = 0;
  std::uint64_t text_bytes = 0;
  segment.for_each([&](const shm::Entry& entry) {
    ++entries;
    text_bytes += entry.name_bytes + entry.source_bytes;
    if (entry.state.load() == shm::EntryState::dirty) dirty += entry.length + shm::kPageBytes;
  });
  return shm::Writer::bytes_for(segment.builds(), entries, text_bytes) + dirty + dirty / 8 <= bytes;
}

bool is_lack_of_room(std::error_code error) {
  return error == Errc::segment_full || error == Errc::too_many_builds || error == std::errc::no_space_on_device;
}

/// Creates a segment of `bytes` bytes and copies the salvageable entries of `from`, whose name it is to get. nullopt if
/// it does not fit; `from` is unchanged and continues to serve.
std::optional<Startup> copy_segment(const shm::ObjectDirectory& directory, const std::string& name, std::uint64_t bytes,
                                    std::uint64_t builds, const shm::Writer& from, Saved saved) {
  auto made = shm::Writer::create(directory, name, bytes, builds);
  if (!made) return std::nullopt;
  Startup copy;
  copy.segment = std::move(made).value();
  IdRange(copy.segment->header()).copy(IdRange(from.header()));
  STEPSTASH_CRASH_POINT("daemon.startup.copy.ids");
  salvage(directory, name, copy, saved);
  STEPSTASH_CRASH_POINT("daemon.startup.copy.filled");
  if (!copy.set_aside.empty()) {
    copy.segment->abandon();
    return std::nullopt;
  }
  copy.entries_kept = std::exchange(copy.entries_salvaged, 0);
  return copy;
}

/// A segment of `bytes` bytes with what only `from` has, plus the database's list. nullopt if there is no room for it
/// next to `from`, which is unchanged and continues to serve. Errors: those of the database.
Result<std::optional<Startup>> resize(const shm::ObjectDirectory& directory, const std::string& name,
                                      std::uint64_t bytes, persist::BackingStore& database, const shm::Writer& from) {
  auto copy = copy_segment(directory, name, bytes, from.builds(), from, Saved::dirty);
  if (!copy) return std::optional<Startup>();
  const auto listed = reconcile(database, *copy, /*verify=*/false);
  if (listed) return copy;
  copy->segment->abandon();
  if (!is_lack_of_room(listed.error())) return listed.error();
  return std::optional<Startup>();
}

/// For a segment too small for what the database has: copies it to a larger one. Copies everything resident, which may
/// be the only copy, and the records of evicted values, for reconcile() to look up.
std::optional<Startup> copy_to_larger(const shm::ObjectDirectory& directory, const std::string& name,
                                      std::uint64_t bytes, const persist::BackingStore::Census& census,
                                      const Startup& startup) {
  shm::Writer& from = *startup.segment;
  std::uint64_t entries = census.entries;
  std::uint64_t text_bytes = census.text_bytes;
  std::uint64_t values = 0;
  std::uint64_t largest = 0;  // room for one more copy (reconcile)
  from.for_each([&](const shm::Entry& entry) {
    ++entries;
    text_bytes += entry.name_bytes + entry.source_bytes;
    if (entry.value_offset == 0) return;
    values += entry.length + shm::kPageBytes;
    largest = std::max(largest, entry.length);
    from.mark(entry, shm::EntryState::dirty);
  });
  const std::uint64_t builds = from.builds() + census.builds_with_data;
  const std::uint64_t needed = shm::Writer::bytes_for(builds, entries, text_bytes) + values + values / 8 + largest;
  auto larger = copy_segment(directory, name, std::max(bytes, needed), builds, from, Saved::and_evicted);
  if (larger) {
    larger->set_aside = startup.set_aside;
  }
  return larger;
}

/// A new segment; if `damage` is set, with the sound entries of the damaged one. With `with_clean`, clean values are
/// copied too, as far as there is room.
Result<Startup> make_and_save(const shm::ObjectDirectory& directory, const std::string& name, std::uint64_t bytes,
                              std::uint64_t builds, std::error_code damage, bool with_clean) {
  Startup startup;
  startup.segment = STEPSTASH_TRY(shm::Writer::create(directory, name, bytes, builds));
  if (!damage) return startup;
  startup.set_aside.assign(1, fmt::format("segment {}: {}", name, damage.message()));
  salvage(directory, name, startup, Saved::dirty);
  if (with_clean) salvage(directory, name, startup, Saved::and_clean);
  return startup;
}

/// make_and_save() for when both the dirty entries and the database's list do not fit. The list goes first, because an
/// entry missing from it could not be found; then dirty entries are committed to the database at once. If that is
/// impossible, because the database is a different one or its disk is full too, they go wherever room is left.
Result<Startup> make_and_write_out(const shm::ObjectDirectory& directory, const std::string& name, std::uint64_t bytes,
                                   std::uint64_t builds, std::error_code damage, persist::BackingStore& database,
                                   bool other_database) {
  Startup startup;
  startup.segment = STEPSTASH_TRY(shm::Writer::create(directory, name, bytes, builds));
  startup.set_aside.assign(1, fmt::format("segment {}: {}", name, damage.message()));
  // Including deletions: the list may still contain what they delete.
  const auto build = [&](const shm::BuildRecord& record) { save_build(startup, record, name); };
  STEPSTASH_TRY(shm::Writer::salvage(directory, name, nullptr, build));
  STEPSTASH_TRY(reconcile(database, startup, /*verify=*/false));
  const auto entry = [&](const shm::Entry& found) {
    if (found.state.load() == shm::EntryState::clean) return;
    const shm::Entry* listed = startup.segment->find(found.buildid, shm::entry_name(found));
    if (listed != nullptr && !other_database && listed->revision >= found.revision) return;  // is in the database
    Result<> saved = Errc::not_durable;
    if (!other_database && found.value_offset != 0)
      saved = write_out(database, *startup.segment, found, found.id, found.revision);
    if (!saved) saved = copy_entry(*startup.segment, found);
    if (saved) {
      ++startup.entries_salvaged;
    } else {
      startup.set_aside.push_back(not_saved(found, name, saved.error()));
    }
  };
  STEPSTASH_TRY(shm::Writer::salvage(directory, name, entry, nullptr));
  if (other_database) STEPSTASH_TRY(reconcile(database, startup, /*verify=*/true));
  return startup;
}

/// Paths of segments that were set aside.
std::vector<std::string> kept_aside(const shm::ObjectDirectory& directory, const std::string& name) {
  std::vector<std::string> paths;
  const auto kept = directory.list(name + ".damaged.");
  if (!kept) return paths;
  for (const std::string& object : kept.value()) paths.push_back(directory.path() + "/" + object);
  return paths;
}

}  // namespace

Result<Startup> open_segment(const shm::ObjectDirectory& directory, const std::string& name, std::uint64_t bytes,
                             persist::BackingStore& database, const std::function<void(const std::string&)>& progress,
                             std::vector<std::string>& told) {
  const auto start = std::chrono::steady_clock::now();
  Startup startup;
  // First, because it may fail, and attaching changes what the next try would find.
  const persist::BackingStore::Census census = STEPSTASH_TRY(database.census());
  shm::Recovery recovery;
  progress("attaching segment " + name);
  auto attached = shm::Writer::attach(directory, name, recovery);
  const std::uint64_t needed = shm::Writer::bytes_for(census.builds_with_data, census.entries, census.text_bytes);
  std::uint64_t size = std::max(bytes, needed);
  bool resized = false;
  if (attached && must_resize(*attached.value(), bytes, needed, database)) {
    progress("moving what is not in the database yet to a segment of the configured size");
    auto copy = resize(directory, name, size, database, *attached.value());
    if (!copy) {
      told.insert(told.end(), recovery.set_aside.begin(), recovery.set_aside.end());
      return copy.error();
    }
    resized = copy.value().has_value();
    if (resized) {
      startup = std::move(*copy.value());
      attached.value().reset();  // the new one opens each pin page again
    }
  }
  const bool warm = attached && !resized;
  std::error_code damage;
  bool other_database = false;
  startup.set_aside = std::move(recovery.set_aside);
  if (warm) {
    startup.segment = std::move(attached).value();
    startup.entries_kept = recovery.entries_kept;
    const shm::Header& header = startup.segment->header();
    other_database = of_another(database, header.store_id.load(), header.commit_count.load());
  } else if (!resized) {
    const std::error_code why = attached.error();
    if (why == Errc::corrupt_segment || why == Errc::format_mismatch) damage = why;
    if (!damage && why != std::errc::no_such_file_or_directory) return why;
    shm::Writer::Former former;
    if (damage) former = STEPSTASH_TRY(shm::Writer::former(directory, name));
    other_database = former.bytes != 0 && of_another(database, former.store_id, former.commit_count);
    std::uint64_t builds = census.builds_with_data;
    if (other_database) {  // room for both
      builds += former.builds;
      const std::uint64_t both = shm::Writer::bytes_for(builds, census.entries, census.text_bytes) + former.bytes;
      size = std::max(size, both);
    }
    if (damage) progress("saving what is sound out of segment " + name);
    auto made = make_and_save(directory, name, size, builds, damage, other_database);
    // Sizes read from a damaged header must not fail the start: retry with the configured size.
    if (!made && other_database) {
      size = std::max(bytes, needed);
      made = make_and_save(directory, name, size, census.builds_with_data, damage, other_database);
    }
    startup = STEPSTASH_TRY(std::move(made));
    if (damage) STEPSTASH_CRASH_POINT("daemon.startup.salvage.done");
  }

  bool replaced = !warm;
  if (!resized && (!startup.set_aside.empty() || !warm || other_database)) {
    progress("reading the list of entries from the database");
    auto reconciled = reconcile(database, startup, other_database);
    if (!reconciled && warm && is_lack_of_room(reconciled.error())) {
      progress("moving to a larger segment: what this database knows besides does not fit");
      if (auto larger = copy_to_larger(directory, name, size, census, startup)) {
        startup = std::move(*larger);
        replaced = true;
        reconciled = reconcile(database, startup, other_database);
      }
    }
    const bool left_out = damage && !other_database && startup.set_aside.size() > 1;
    if (left_out || (!reconciled && damage && is_lack_of_room(reconciled.error()))) {
      progress("writing what is sound of segment " + name + " to the database: there is no room for it");
      startup.segment.reset();  // and its memory with it
      auto made = make_and_write_out(directory, name, size, census.builds_with_data, damage, database, other_database);
      reconciled = made ? Result<>(success()) : made.error();
      if (made) startup = std::move(made).value();
    }
    if (!reconciled) {
      if (!damage) told.insert(told.end(), startup.set_aside.begin(), startup.set_aside.end());
      return reconciled.error();
    }
  }
  if (other_database) {
    startup.set_aside.push_back(fmt::format(
        "database: not the one this segment was written to, or an older copy of it; what is resident of the "
        "{} entries is written again",
        startup.entries_kept + startup.entries_salvaged));
  }
  startup.all_dirty = other_database;
  if (!startup.set_aside.empty() || !warm) {
    for (std::string& row : database.skipped()) startup.set_aside.push_back(std::move(row));
  }
  shm::Header& header = startup.segment->header();
  const IdRange ids(header);
  if (replaced || other_database || ids.low()) {
    // A database that cannot be written now must not fail the start: the flusher retries.
    if (auto first = database.reserve_ids(IdRange::kCount, ids.end())) {
      STEPSTASH_CRASH_POINT("daemon.startup.ids.reserved");
      ids.begin(first.value());
    } else if (other_database) {
      ids.forget_reserved();
    }
  }
  if (replaced) {
    // Only now, when complete, does it replace the former segment: if killed before this, the next start begins again.
    header.commit_count.store(database.commit_count());
    STEPSTASH_CRASH_POINT("daemon.startup.commit_count.stored");
    header.store_id.store(database.store_id());
    STEPSTASH_CRASH_POINT("daemon.startup.store_id.stored");
    auto installed = startup.segment->install(/*keep_former=*/static_cast<bool>(damage));
    if (!installed) {  // it may have been renamed already, and the next try would not report what was not saved
      told.insert(told.end(), startup.set_aside.begin(), startup.set_aside.end());
      return installed.error();
    }
    const std::string aside = std::move(installed).value();
    STEPSTASH_CRASH_POINT("daemon.startup.segment.installed");
    if (damage) startup.set_aside.front() += "; kept as " + directory.path() + "/" + aside;
  }
  startup.kept = kept_aside(directory, name);
  startup.lost = census.lost;
  startup.duration = std::chrono::steady_clock::now() - start;
  return startup;
}

Result<Startup> open_segment_alone(const shm::ObjectDirectory& directory, const std::string& name) {
  const auto start = std::chrono::steady_clock::now();
  Startup startup;
  shm::Recovery recovery;
  startup.segment = STEPSTASH_TRY(shm::Writer::attach(directory, name, recovery));
  startup.entries_kept = recovery.entries_kept;
  startup.set_aside = std::move(recovery.set_aside);
  startup.kept = kept_aside(directory, name);
  startup.duration = std::chrono::steady_clock::now() - start;
  return startup;
}

}  // namespace stepstash::daemon
