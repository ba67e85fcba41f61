// SPDX-License-Identifier: Apache-2.0
#include "daemon/startup.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "base/crash_point.hpp"
#include "base/errc.hpp"
#include "daemon/id_range.hpp"
#include "daemon/reconcile.hpp"
#include "daemon/salvage.hpp"
#include "daemon/startup_plan.hpp"
#include "shm/validate.hpp"

namespace stepstash::daemon {
namespace {

using Progress = std::function<void(Phase)>;
using Lines = std::vector<std::string>;

void append(Lines& to, const Lines& lines) { to.insert(to.end(), lines.begin(), lines.end()); }

/// Paths of segments that were set aside.
Lines kept_aside(const shm::ObjectDirectory& directory, const std::string& name) {
  Lines paths;
  const auto kept = directory.list(name + ".damaged.");
  if (!kept) return paths;
  for (const std::string& object : kept.value()) paths.push_back(directory.path() + "/" + object);
  return paths;
}

// ---- inspect -------------------------------------------------------------------------------------------------------

/// What a start found, and what it took to find that out.
struct Inspected {
  Found found;
  persist::BackingStore::Census census;
  std::unique_ptr<shm::Segment> segment;  ///< Found::Segment::sound
  shm::Recovery recovery;                 ///< of its attach
  std::error_code damage;                 ///< why another one cannot be attached
};

Found::Database relation(const persist::BackingStore& database, std::uint64_t store_id, std::uint64_t commit_count) {
  if (store_id != database.store_id()) return Found::Database::other;
  const bool older = database.commit_count() < (commit_count & ~shm::kUnsettled);
  return older ? Found::Database::older : Found::Database::same;
}

/// For a segment that gets the dirty values and all records of this one. O(entries).
std::uint64_t bytes_for_only(const shm::Segment& segment) {
  std::uint64_t dirty = 0;
  std::uint64_t entries = 0;
  std::uint64_t text_bytes = 0;
  segment.for_each([&](const shm::Entry& entry) {
    ++entries;
    text_bytes += entry.name_bytes + entry.source_bytes;
    if (entry.state.load() == shm::EntryState::dirty) dirty += entry.length + shm::kPageBytes;
  });
  return shm::Segment::bytes_for(segment.builds(), entries, text_bytes) + dirty + dirty / 8;
}

void inspect_sound(Inspected& all, const persist::BackingStore& database) {
  const shm::Header& header = all.segment->header();
  const std::uint64_t commit_count = header.commit_count.load();
  all.found.segment = Found::Segment::sound;
  all.found.database = relation(database, header.store_id.load(), commit_count);
  all.found.set_aside = !all.recovery.set_aside.empty();
  all.found.unsettled = (commit_count & shm::kUnsettled) != 0;
  Found::Room& room = all.found.room;
  room.segment = all.segment->bytes();
  room.segment_builds = all.segment->builds();
  if (room.segment != room.configured) room.segment_only = bytes_for_only(*all.segment);
}

void inspect_damaged(Inspected& all, const persist::BackingStore& database, const shm::Segment::Former& former) {
  all.found.segment = all.damage == Errc::format_mismatch ? Found::Segment::other_layout : Found::Segment::damaged;
  if (former.bytes == 0) return;
  all.found.database = relation(database, former.store_id, former.commit_count);
  Found::Room& room = all.found.room;
  room.segment = former.bytes;
  room.segment_builds = former.builds;
  room.both = shm::Segment::bytes_for(room.list_builds + former.builds, all.census.entries, all.census.text_bytes) +
              former.bytes;
}

/// Attaches to the segment if it is sound. Errors: those of BackingStore::census and Segment::attach, except what Found
/// tells.
Result<Inspected> inspect(const shm::ObjectDirectory& directory, const std::string& name, std::uint64_t bytes,
                          persist::BackingStore& database, const Progress& progress) {
  Inspected all;
  // First, because it may fail, and attaching changes what the next try would find.
  progress(Phase::counting_entries);
  all.census = STEPSTASH_TRY(database.census());
  const persist::BackingStore::Census& census = all.census;
  Found::Room& room = all.found.room;
  room.configured = shm::round_up(bytes, shm::kPageBytes);
  room.list_builds = census.builds_with_data;
  room.list = shm::Segment::bytes_for(census.builds_with_data, census.entries, census.text_bytes);
  progress(Phase::attaching_segment);
  auto attached = shm::Segment::attach(directory, name, all.recovery);
  if (attached) {
    all.segment = std::move(attached).value();
    inspect_sound(all, database);
    return all;
  }
  const std::error_code why = attached.error();
  if (why == std::errc::no_such_file_or_directory) return all;
  if (why != Errc::corrupt_segment && why != Errc::format_mismatch) return why;
  all.damage = why;
  inspect_damaged(all, database, STEPSTASH_TRY(shm::Segment::former(directory, name)));
  return all;
}

// ---- carry out -----------------------------------------------------------------------------------------------------

/// Carries out plans, one after the other, until one succeeds. An attempt that fails leaves nothing of a new segment
/// behind. An attached one stays, with the part of the list that it got.
class Start {
 public:
  Start(const shm::ObjectDirectory& directory, const std::string& name, persist::BackingStore& database,
        const Progress& progress, Inspected found)
      : directory_(directory), name_(name), database_(database), progress_(progress), found_(std::move(found)) {}

  Result<Startup> run(Lines& told);

 private:
  struct Failure {
    Obstacle obstacle;
    std::error_code why;
  };
  using Attempt = std::optional<Failure>;  // nullopt: it succeeded

  Attempt carry_out(const Plan& plan);
  Attempt make(const Plan& plan);
  Attempt read_list(const Plan& plan);

  void keep();
  Attempt create(const Plan& plan);
  Attempt resize(const Plan& plan);
  Attempt enlarge(const Plan& plan);
  Attempt salvage_damaged(const Plan& plan);
  Attempt make_written_out(const Plan& plan);
  Result<> fill_written_out();

  Attempt copy_of(const shm::Segment& from, std::uint64_t bytes, std::uint64_t builds, Which which);
  Attempt give_up(Failure failure);

  void report(const Plan& plan);
  void ensure_ids(const Plan& plan);
  Result<> install(const Plan& plan);

  const shm::ObjectDirectory& directory_;
  const std::string& name_;
  persist::BackingStore& database_;
  const Progress& progress_;
  Inspected found_;  // its segment until keep() takes it over
  Startup made_;     // by the attempt under way; `enlarge` begins with what `keep` made
  std::error_code list_too_long_;
};

Result<Startup> Start::run(Lines& told) {
  Plan plan = decide(found_.found);
  while (const Attempt failed = carry_out(plan)) {
    const std::optional<Plan> next = decide_again(found_.found, plan, failed->obstacle);
    if (!next) {
      if (!plan.keeps_former()) append(told, made_.set_aside);  // the next try finds a damaged segment as this one did
      return failed->why;
    }
    plan = *next;
  }
  found_.segment.reset();  // the new one opens each pin page again
  report(plan);
  ensure_ids(plan);
  if (plan.replaces()) {
    if (auto installed = install(plan); !installed) {
      append(told, made_.set_aside);  // the former one may have been renamed already
      return installed.error();
    }
  }
  made_.all_dirty = plan.all_dirty;
  made_.kept = kept_aside(directory_, name_);
  made_.lost = std::move(found_.census.lost);
  return std::move(made_);
}

Start::Attempt Start::carry_out(const Plan& plan) {
  if (Attempt failed = make(plan)) return failed;
  Attempt failed = read_list(plan);
  return failed && plan.replaces() ? give_up(*failed) : failed;
}

Start::Attempt Start::make(const Plan& plan) {
  switch (plan.make) {
    case Plan::Make::keep:
      break;
    case Plan::Make::create:
      progress_(Phase::creating_segment);
      return create(plan);
    case Plan::Make::resize:
      progress_(Phase::resizing_segment);
      return resize(plan);
    case Plan::Make::enlarge:
      progress_(Phase::enlarging_segment);
      return enlarge(plan);
    case Plan::Make::salvage:
    case Plan::Make::salvage_all:
      progress_(Phase::salvaging_segment);
      return salvage_damaged(plan);
    case Plan::Make::write_out:
      progress_(Phase::writing_out);
      return make_written_out(plan);
  }
  keep();
  return std::nullopt;
}

Start::Attempt Start::read_list(const Plan& plan) {
  if (plan.list == Plan::List::none) return std::nullopt;
  progress_(Phase::reading_list);
  const auto added = plan.list == Plan::List::verify ? verify_listed(database_, *made_.segment, made_.set_aside)
                                                     : add_listed(database_, *made_.segment);
  if (!added) {
    if (!is_lack_of_room(added.error())) return Failure{Obstacle::failed, added.error()};
    list_too_long_ = added.error();
    return Failure{Obstacle::list_too_long, list_too_long_};
  }
  made_.entries_loaded += added.value();
  return std::nullopt;
}

/// Returns the memory of a new segment before the next one is made.
Start::Attempt Start::give_up(Failure failure) {
  made_.segment->abandon();
  made_.segment.reset();
  return failure;
}

void Start::keep() {
  made_ = {};
  made_.segment = std::move(found_.segment);
  made_.entries_kept = found_.recovery.entries_kept;
  made_.set_aside = found_.recovery.set_aside;
}

/// Starts afresh with an empty segment.
Start::Attempt Start::create(const Plan& plan) {
  made_ = {};
  if (found_.damage) made_.set_aside.push_back(fmt::format("segment {}: {}", name_, found_.damage.message()));
  auto created = shm::Segment::create(directory_, name_, plan.bytes, plan.builds);
  if (!created) return Failure{Obstacle::not_made, created.error()};
  made_.segment = std::move(created).value();
  return std::nullopt;
}

/// A new segment with the entries of `from`, whose name it is to get. Everything must fit; otherwise `from`, which is
/// unchanged, continues to serve.
Start::Attempt Start::copy_of(const shm::Segment& from, std::uint64_t bytes, std::uint64_t builds, Which which) {
  auto created = shm::Segment::create(directory_, name_, bytes, builds);
  if (!created) return Failure{Obstacle::not_made, created.error()};
  shm::Segment& copy = *created.value();
  IdRange(copy.header()).copy(IdRange(from.header()));
  STEPSTASH_CRASH_POINT("daemon.startup.copy.ids");
  const Salvaged copied = salvage(directory_, name_, copy, which);
  STEPSTASH_CRASH_POINT("daemon.startup.copy.filled");
  if (!copied.left_out.empty()) {
    copy.abandon();
    return Failure{Obstacle::left_out, Errc::segment_full};
  }
  Lines set_aside = std::move(made_.set_aside);
  made_ = {};
  made_.segment = std::move(created).value();
  made_.entries_kept = copied.entries;
  made_.set_aside = std::move(set_aside);
  return std::nullopt;
}

Start::Attempt Start::resize(const Plan& plan) {
  made_.set_aside = found_.recovery.set_aside;
  return copy_of(*found_.segment, plan.bytes, plan.builds, Which::dirty);
}

/// For a segment too small for what the database has. Copies everything resident, which may be the only copy, and the
/// records of evicted values, for verify_listed() to look up.
Start::Attempt Start::enlarge(const Plan& plan) {
  shm::Segment& from = *made_.segment;
  const persist::BackingStore::Census& census = found_.census;
  std::uint64_t entries = census.entries;
  std::uint64_t text_bytes = census.text_bytes;
  std::uint64_t values = 0;
  std::uint64_t largest = 0;  // room for one more copy (verify_listed)
  from.for_each([&](const shm::Entry& entry) {
    ++entries;
    text_bytes += entry.name_bytes + entry.source_bytes;
    if (entry.value_offset == 0) return;
    values += entry.length + shm::kPageBytes;
    largest = std::max(largest, entry.length);
    from.mark(entry, shm::EntryState::dirty);
  });
  const std::uint64_t builds = from.builds() + census.builds_with_data;
  const std::uint64_t needed = shm::Segment::bytes_for(builds, entries, text_bytes) + values + values / 8 + largest;
  const Attempt failed = copy_of(from, std::max(plan.bytes, needed), builds, Which::and_evicted);
  return failed ? Failure{failed->obstacle, list_too_long_} : failed;
}

Start::Attempt Start::salvage_damaged(const Plan& plan) {
  if (Attempt failed = create(plan)) return failed;
  const auto save = [this](Which which) {
    Salvaged saved = salvage(directory_, name_, *made_.segment, which);
    made_.entries_salvaged += saved.entries;
    append(made_.set_aside, saved.left_out);
    return saved.left_out.empty();
  };
  const bool all_dirty_fit = save(Which::dirty);
  if (plan.make == Plan::Make::salvage_all) save(Which::and_clean);
  STEPSTASH_CRASH_POINT("daemon.startup.salvage.done");
  // Another database does not get them before the start is over: then what was left out is named.
  if (all_dirty_fit || plan.make == Plan::Make::salvage_all) return std::nullopt;
  return give_up({Obstacle::left_out, Errc::segment_full});
}

/// For when both the dirty entries and the database's list do not fit.
Start::Attempt Start::make_written_out(const Plan& plan) {
  if (Attempt failed = create(plan)) return failed;
  if (auto filled = fill_written_out(); !filled) return give_up({Obstacle::failed, filled.error()});
  return std::nullopt;
}

/// The list goes first, because an entry missing from it could not be found; then dirty entries are committed to the
/// database at once. If that is impossible, because the database is a different one or its disk is full too, they go
/// wherever room is left.
Result<> Start::fill_written_out() {
  // Including deletions: the list may still contain what they delete.
  STEPSTASH_TRY(salvage_builds(directory_, name_, *made_.segment, made_.set_aside));
  made_.entries_loaded = STEPSTASH_TRY(add_listed(database_, *made_.segment));
  persist::BackingStore* takes_them = found_.found.differs() ? nullptr : &database_;
  const Salvaged saved = STEPSTASH_TRY(salvage_to(takes_them, directory_, name_, *made_.segment));
  made_.entries_salvaged = saved.entries;
  append(made_.set_aside, saved.left_out);
  return success();
}

// ---- what every plan ends with -------------------------------------------------------------------------------------

void Start::report(const Plan& plan) {
  if (plan.all_dirty) {
    made_.set_aside.push_back(fmt::format(
        "database: not the one this segment was written to, or an older copy of it; what is resident of the "
        "{} entries is written again",
        made_.entries_kept + made_.entries_salvaged));
  }
  if (plan.reads_list()) append(made_.set_aside, database_.skipped());
}

void Start::ensure_ids(const Plan& plan) {
  const IdRange ids(made_.segment->header());
  if (!plan.replaces() && !plan.all_dirty && !ids.low()) return;
  // A database that cannot be written now must not fail the start: the flusher retries.
  if (auto first = database_.reserve_ids(IdRange::kCount, ids.end())) {
    STEPSTASH_CRASH_POINT("daemon.startup.ids.reserved");
    ids.begin(first.value());
  } else if (plan.all_dirty) {
    ids.forget_reserved();
  }
}

/// Only now, when complete, does a new segment replace the former one: if killed before this, the next start begins
/// again.
Result<> Start::install(const Plan& plan) {
  shm::Header& header = made_.segment->header();
  header.commit_count.store(database_.commit_count());
  STEPSTASH_CRASH_POINT("daemon.startup.commit_count.stored");
  header.store_id.store(database_.store_id());
  STEPSTASH_CRASH_POINT("daemon.startup.store_id.stored");
  const std::string aside = STEPSTASH_TRY(made_.segment->install(/*keep_former=*/plan.keeps_former()));
  STEPSTASH_CRASH_POINT("daemon.startup.segment.installed");
  if (plan.keeps_former()) made_.set_aside.front() += "; kept as " + directory_.path() + "/" + aside;
  return success();
}

}  // namespace

Result<Startup> open_segment(const shm::ObjectDirectory& directory, const std::string& name, std::uint64_t bytes,
                             persist::BackingStore& database, const Progress& progress, Lines& told) {
  const auto start = std::chrono::steady_clock::now();
  Inspected found = STEPSTASH_TRY(inspect(directory, name, bytes, database, progress));
  Startup startup = STEPSTASH_TRY(Start(directory, name, database, progress, std::move(found)).run(told));
  startup.duration = std::chrono::steady_clock::now() - start;
  return startup;
}

bool is_lack_of_room(std::error_code error) {
  return error == Errc::segment_full || error == Errc::too_many_builds || error == std::errc::no_space_on_device;
}

Result<Startup> open_segment_alone(const shm::ObjectDirectory& directory, const std::string& name) {
  const auto start = std::chrono::steady_clock::now();
  Startup startup;
  shm::Recovery recovery;
  startup.segment = STEPSTASH_TRY(shm::Segment::attach(directory, name, recovery));
  startup.entries_kept = recovery.entries_kept;
  startup.set_aside = std::move(recovery.set_aside);
  startup.kept = kept_aside(directory, name);
  startup.duration = std::chrono::steady_clock::now() - start;
  return startup;
}

}  // namespace stepstash::daemon
