// SPDX-License-Identifier: Apache-2.0
#include "daemon/metrics.hpp"

#include <sys/resource.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "daemon/log.hpp"

namespace stepstash::daemon {
namespace {

/// The first few lines, each cut to a bounded length: the reply has to fit in one frame.
nlohmann::ordered_json first_lines(const std::vector<std::string>& lines) {
  constexpr std::size_t kLines = 32;
  constexpr std::size_t kBytes = 512;
  auto some = nlohmann::ordered_json::array();
  for (std::size_t i = 0; i < std::min(lines.size(), kLines); ++i) some.push_back(lines[i].substr(0, kBytes));
  return some;
}

/// Of this process, without the one used for counting. O(descriptors) in the kernel.
std::size_t open_descriptors() {
  std::error_code error;
  rlimit limit{};
  std::size_t count = 0;
  for (std::filesystem::directory_iterator at("/proc/self/fd", error), end; !error && at != end; at.increment(error))
    ++count;
  if (error == std::errc::too_many_files_open && ::getrlimit(RLIMIT_NOFILE, &limit) == 0) return limit.rlim_cur;
  return count > 0 ? count - 1 : 0;
}

double seconds(std::chrono::nanoseconds duration) { return std::chrono::duration<double>(duration).count(); }

/// Seconds by name, in the order in which they began.
nlohmann::ordered_json phases_json(const Startup& startup) {
  auto phases = nlohmann::ordered_json::object();
  for (const PhaseTimes::Time& time : startup.phases) phases[std::string(name_of(time.phase))] = seconds(time.spent);
  return phases;
}

}  // namespace

std::string stats_json(const Services& services, const Startup& startup, const ServerFigures& server) {
  const shm::Segment& segment = services.segment;
  const shm::Heap& heap = segment.heap();
  Store& store = services.store;
  Room& room = store.room();
  const Builds::Counters& builds = store.builds().counters();
  const Reloader::Counters& reloads = store.reloader().counters();
  const Flusher::Counters& flushes = services.flusher.counters();
  const Database& database = services.database;
  const persist::BackingStore::Files& files = database.files();
  const shm::PinRegistry::Views views = segment.pins().views();
  std::uint64_t most_held = 0;
  std::int64_t most_held_by = -1;
  auto closed_users = nlohmann::ordered_json::array();
  for (const shm::Segment::Held& held : room.shares().held()) {
    if (held.closed) closed_users.push_back(held.uid);
    if (held.bytes <= most_held) continue;
    most_held = held.bytes;
    most_held_by = held.uid;
  }
  const std::vector<std::string> damaged = store.damage().lines();
  const nlohmann::ordered_json json = {
      {"version", STEPSTASH_VERSION},
      {"pid", ::getpid()},
      {"uptime_seconds", server.uptime.count()},
      {"segment",
       {{"total_bytes", segment.bytes()},
        {"heap_bytes", heap.capacity()},
        {"used_bytes", heap.capacity() - heap.free_bytes()},
        {"free_bytes", heap.free_bytes()},
        {"largest_free_run_bytes", heap.largest_free()},
        {"retired_blocks", segment.retired()},
        {"retired_bytes", segment.retired_bytes()},
        {"written_off_bytes", heap.written_off()},
        {"backed_bytes", heap.backed_bytes()},
        {"tmpfs_bytes", room.tmpfs().total},
        {"tmpfs_free_bytes", room.tmpfs().free},
        {"max_value_bytes", room.max_value_bytes()},
        {"index_slots", segment.index().slots()},
        {"builds_capacity", segment.builds_capacity()}}},
      {"entries", segment.index().entries()},
      {"builds", segment.builds()},
      {"values_resident", store.catalog().resident()},
      {"values_evicted", store.catalog().evicted()},
      {"dirty_values", services.flusher.dirty_values()},
      {"dirty_bytes", services.flusher.dirty_bytes()},
      {"oldest_dirty_seconds", seconds(services.flusher.oldest_age())},
      {"open_views", views.open},
      {"most_views_of_a_client", views.most},
      {"max_views_per_client", shm::kPinsPerPage},
      {"pin_pages", segment.pins().pages()},
      {"most_held_bytes_of_a_user", most_held},
      {"most_held_by_user", most_held_by},
      {"closed_users", closed_users},
      {"users_closed", room.shares().closed()},
      {"connections", server.connections},
      {"connections_accepted", server.accepted},
      {"connections_refused", server.refused},
      {"connections_of_former_protocol", services.former_hellos},
      {"staging_rings", room.uploads().rings()},
      {"staged_bytes", room.staged_bytes()},
      {"descriptors", open_descriptors()},
      {"sets", store.sets()},
      {"gets_asked", reloads.asked},
      {"reloads", reloads.reloads},
      {"reload_errors", reloads.errors},
      {"evictions", room.evictions().evictions},
      {"finishes", builds.finishes},
      {"room_tries", room.counters().tries},
      {"entries_pruned", builds.pruned},
      {"entries_dropped", builds.dropped},
      {"damaged_values", damaged.size()},
      {"damaged", first_lines(damaged)},
      {"kept_aside", first_lines(startup.kept)},
      {"flushes", flushes.flushes},
      {"flush_errors", flushes.flush_errors},
      {"flushed_values", flushes.flushed_values},
      {"flushed_bytes", flushes.flushed_bytes},
      {"last_flush_seconds", seconds(flushes.last_duration)},
      {"last_flush_error", database.reason()},
      {"database",
       {{"state", Database::name_of(database.state())},
        {"reason", database.reason()},
        {"since_seconds", seconds(database.since())},
        {"size_bytes", files.bytes},
        {"commits", database.commit_count()},
        {"log_bytes", files.log_bytes},
        {"log_held_bytes", files.log_held_bytes},
        {"in_place", files.in_place},
        {"seen_seconds_ago", seconds(database.files_age())}}},
      {"log_lines_dropped", log_lines_dropped()},
      {"last_recovery",
       {{"entries_kept", startup.entries_kept},
        {"entries_loaded", startup.entries_loaded},
        {"entries_salvaged", startup.entries_salvaged},
        {"entries_set_aside", startup.set_aside.size()},
        {"set_aside", first_lines(startup.set_aside)},
        {"seconds", seconds(startup.duration)},
        {"phases", phases_json(startup)}}},
  };
  // Names are UTF-8, but `damaged` texts come from damaged memory: invalid UTF-8 is replaced.
  return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace stepstash::daemon
