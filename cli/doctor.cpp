// SPDX-License-Identifier: Apache-2.0
#include "cli/doctor.hpp"

#include <nlohmann/json.hpp>

#include "base/text.hpp"

namespace stepstash::cli {
namespace {

using Json = nlohmann::ordered_json;

/// A commit is due after the flush interval, a fraction of a second; a slow disk may take several seconds.
constexpr double kDirtySeconds = 60;
/// The log normally stays near 32 MiB.
constexpr std::uint64_t kLogBytes = std::uint64_t{64} << 20;

std::uint64_t number(const Json& at, const char* name) {
  const auto found = at.find(name);
  return found != at.end() && found->is_number() ? found->get<std::uint64_t>() : 0;
}

double seconds(const Json& at, const char* name) {
  const auto found = at.find(name);
  return found != at.end() && found->is_number() ? found->get<double>() : 0;
}

// The daemon's texts are visible() already; another program on its socket may send anything.

std::string text(const Json& at, const char* name) {
  const auto found = at.find(name);
  return found != at.end() && found->is_string() ? visible(found->get<std::string>()) : std::string();
}

std::vector<std::string> lines(const Json& at, const char* name) {
  std::vector<std::string> all;
  const auto found = at.find(name);
  if (found == at.end() || !found->is_array()) return all;
  for (const Json& line : *found) {
    if (line.is_string()) all.push_back(visible(line.get<std::string>()));
  }
  return all;
}

std::string of(std::uint64_t part, std::uint64_t whole) {
  return std::to_string(part) + " of " + std::to_string(whole);
}

/// What to do about a database in that state.
std::string advice_for(const std::string& state) {
  if (state == "stalled") {
    return "repair the disk or free space on it; what waits is safe while the segment lives, and is written then";
  }
  if (state == "hung") {
    return "check the disk; what is in memory is served, and nothing is evicted or written until it answers";
  }
  if (state == "detached") {
    return "put the right file in its place, or leave it, and restart the daemon: it writes what it has in memory";
  }
  if (state == "damaged") {
    return "check the disk, then restart the daemon after a minute: it sets the file aside and writes what it has in "
           "memory";
  }
  if (state == "absent") {
    return "run a stepstashd that knows this database, or correct --db, and restart; what waits is safe while the "
           "segment lives";
  }
  return "the daemon is newer than this command: its documentation tells";
}

}  // namespace

std::vector<Finding> diagnose(const std::string& stats) {
  std::vector<Finding> found;
  const Json json = Json::parse(stats, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    found.push_back({"the daemon's figures cannot be read", "are client and daemon of the same version?"});
    return found;
  }
  const auto damaged = lines(json, "damaged");
  for (const std::string& line : damaged) {
    found.push_back({"damaged value: " + line, "it is not served; set it again, or drop its build. Check the memory"});
  }
  if (const std::uint64_t all = number(json, "damaged_values"); all > damaged.size()) {
    found.push_back({std::to_string(all - damaged.size()) + " more damaged values", "the daemon's log names them"});
  }
  const Json recovery = json.value("last_recovery", Json::object());
  for (const std::string& line : lines(recovery, "set_aside")) {
    found.push_back({"set aside at the last start: " + line, "what was sound is served; the next start forgets this"});
  }
  for (const std::string& path : lines(json, "kept_aside")) {
    found.push_back({"kept for examination: " + path, "delete it when nobody wants to look at it any more"});
  }
  const Json database = json.value("database", Json::object());
  const std::string state = text(database, "state");
  if (!state.empty() && state != "ready") {
    found.push_back({"the database is " + state + ", for " + std::to_string(number(database, "since_seconds")) +
                         " s: " + text(database, "reason") + "; " + std::to_string(number(json, "dirty_bytes")) +
                         " bytes in " + std::to_string(number(json, "dirty_values")) + " values wait for it",
                     advice_for(state)});
  } else if (seconds(json, "oldest_dirty_seconds") > kDirtySeconds) {
    found.push_back(
        {"a value has waited " + std::to_string(number(json, "oldest_dirty_seconds")) + " s for the database",
         "the disk does not keep up: power loss would cost that much"});
  }
  if (number(database, "log_held_bytes") > 0 && number(database, "log_bytes") > kLogBytes) {
    found.push_back(
        {"the database's write-ahead log has grown to " + std::to_string(number(database, "log_bytes")) +
             " bytes: " + std::to_string(number(database, "log_held_bytes")) +
             " of them wait for somebody who reads the database to end",
         "end the program that holds a transaction open, a shell or a backup (fuser -v DATABASE names those "
         "that have it open); the log is emptied then, and its file shrinks with the commits that follow"});
  }
  const Json segment = json.value("segment", Json::object());
  const std::uint64_t heap = number(segment, "heap_bytes");
  const std::uint64_t retired = number(segment, "retired_bytes");
  if (heap > 0 && retired > heap / 2) {
    found.push_back({"views hold " + of(retired, heap) + " bytes of values that were replaced or deleted",
                     "some process never releases its views; \"open_views\" counts them"});
  }
  const std::uint64_t bytes = number(segment, "total_bytes");
  const std::uint64_t written_off = number(segment, "written_off_bytes");  // this much is needed once more
  const std::uint64_t tmpfs = number(segment, "tmpfs_bytes");              // 0: unlimited
  const std::uint64_t room = number(segment, "backed_bytes") + number(segment, "tmpfs_free_bytes");
  const char* const enlarge =
      "enlarge it (mount -o remount,size=; for a container --shm-size), or make the segment smaller (segment_size)";
  if (tmpfs > 0 && tmpfs < bytes) {
    found.push_back(
        {"the tmpfs that the segment lies in is smaller than the segment: " + of(tmpfs, bytes) + " bytes", enlarge});
  } else if (tmpfs > 0 && room < bytes) {
    found.push_back(
        {"others fill the tmpfs that the segment lies in: it can have " + of(room, bytes) + " bytes", enlarge});
  } else if (tmpfs > 0 && room < bytes + written_off) {
    found.push_back(
        {"the tmpfs that the segment lies in has not room for as much again as is written off: it can have " +
             of(room, bytes + written_off) + " bytes",
         enlarge});
  }
  const auto closed = json.find("closed_users");
  if (closed != json.end() && closed->is_array()) {
    for (const Json& user : *closed) {
      if (!user.is_number_unsigned()) continue;
      found.push_back({"user " + std::to_string(user.get<std::uint64_t>()) +
                           " held more of the segment in views than one user may while others found no room, and gets "
                           "no more: " +
                           std::to_string(written_off) + " bytes are written off",
                       "his processes have to release views; what they hold stays readable for them"});
    }
  }
  return found;
}

std::string findings_text(const std::vector<Finding>& findings) {
  if (findings.empty()) return "nothing is wrong\n";
  std::string out;
  for (const Finding& finding : findings) out += finding.what + "\n  " + finding.advice + "\n";
  return out;
}

std::string findings_json(const std::vector<Finding>& findings) {
  Json all = Json::array();
  for (const Finding& finding : findings) all.push_back({{"what", finding.what}, {"advice", finding.advice}});
  return all.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace stepstash::cli
