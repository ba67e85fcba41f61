// SPDX-License-Identifier: Apache-2.0
#include "tests/support/promises.hpp"

#include <algorithm>

namespace stepstash::test {
namespace {

std::string key(BuildId build, const std::string& name) { return std::to_string(build) + "/\"" + name + "\""; }

}  // namespace

void Promises::will_set(BuildId build, const std::string& name, const Value& value) {
  builds_[build].data[name].open = value;
}

/// Ids are never reused, and a new one is greater than all before it.
void Promises::give_id(std::uint64_t id, BuildId build, const std::string& name) {
  if (ids_may_change_) return;  // two databases count independently
  const std::string whose = key(build, name);
  const auto [at, added] = given_.emplace(id, whose);
  if (!added && at->second != whose) {
    throw Broken("id " + std::to_string(id) + " of " + whose + " was given to " + at->second + " before");
  }
  if (added && id <= highest_) {
    throw Broken("the new id " + std::to_string(id) + " of " + whose + " is not above " + std::to_string(highest_));
  }
}

void Promises::was_set(BuildId build, const std::string& name, std::uint64_t id, std::uint64_t revision) {
  Datum& datum = builds_[build].data[name];
  if (datum.confirmed && datum.confirmed->id != id && !ids_may_change_) {
    throw Broken(key(build, name) + " changed its id when it was replaced: " + std::to_string(datum.confirmed->id) +
                 " to " + std::to_string(id));
  }
  if (!datum.confirmed) give_id(id, build, name);
  if (revision <= highest_ && !ids_may_change_) {
    throw Broken("revision " + std::to_string(revision) + " of " + key(build, name) + " is not above " +
                 std::to_string(highest_));
  }
  datum.confirmed = Confirmed{datum.open.value(), id, revision};
  datum.open.reset();
  datum.damaged = datum.lost = false;
  highest_ = std::max({highest_, id, revision});
}

void Promises::was_not_set(BuildId build, const std::string& name) { builds_[build].data[name].open.reset(); }

void Promises::was_dropped(BuildId build) {
  builds_[build].open_drop = false;
  builds_[build].data.clear();
}

std::vector<BuildId> Promises::will_prune(std::int64_t older_than) {
  std::vector<BuildId> concerned;
  for (auto& [id, build] : builds_) {
    if (!build.complete_at || *build.complete_at >= older_than || build.held.value_or(false)) continue;
    build.open_drop = true;
    concerned.push_back(id);
  }
  return concerned;
}

void Promises::was_finished(BuildId build) {
  Build& facts = builds_[build];
  facts.complete_at = std::exchange(facts.open_complete_at, std::nullopt);
}

void Promises::was_held(BuildId build) {
  Build& facts = builds_[build];
  facts.held = std::exchange(facts.open_held, std::nullopt);
}

void Promises::see(BuildId id, const std::vector<Seen>& list, const HasBytes& has_bytes) {
  Build& build = builds_[id];
  std::set<std::string> seen;
  std::uint64_t last_id = 0;
  for (const Seen& entry : list) {
    const std::string what = key(id, entry.name);
    if (!seen.insert(entry.name).second) throw Broken(what + " is listed twice");
    if (entry.id <= last_id) throw Broken(what + " is listed out of the order of the ids");
    last_id = entry.id;
    const auto found = build.data.find(entry.name);
    if (found == build.data.end()) throw Broken(what + " is there, and was never set, or was deleted");
    Datum& datum = found->second;
    const bool old = datum.confirmed && datum.confirmed->revision == entry.revision;
    if (!old && !datum.open) {
      if (!datum.confirmed) throw Broken(what + " is there, and its set was refused");
      if (!ids_may_change_ || entry.revision < datum.confirmed->revision) {
        throw Broken(what + " has revision " + std::to_string(entry.revision) + " instead of " +
                     std::to_string(datum.confirmed->revision));
      }
    }
    const Value& value = old || !datum.open ? datum.confirmed->value : *datum.open;
    if (datum.confirmed && datum.confirmed->id != entry.id && !ids_may_change_) {
      throw Broken(what + " has id " + std::to_string(entry.id) + " instead of " + std::to_string(datum.confirmed->id));
    }
    if (!datum.confirmed || datum.confirmed->id != entry.id) give_id(entry.id, id, entry.name);
    if (entry.length != value.length) {
      throw Broken(what + " has " + std::to_string(entry.length) + " bytes instead of " + std::to_string(value.length));
    }
    if (entry.source != value.source)
      throw Broken(what + " has source " + entry.source + " instead of " + value.source);
    const std::optional<bool> exact = has_bytes(id, entry, value);
    if (!exact && !datum.damaged) throw Broken(what + " is listed, and cannot be read");
    if (exact && !*exact) throw Broken(what + " has other bytes than were set");
    datum.confirmed = Confirmed{value, entry.id, entry.revision};
    datum.open.reset();
    highest_ = std::max({highest_, entry.id, entry.revision});
  }
  std::size_t missing = 0;
  for (auto at = build.data.begin(); at != build.data.end();) {
    Datum& datum = at->second;
    if (seen.contains(at->first)) {
      ++at;
      continue;
    }
    if (datum.confirmed && !datum.damaged && !datum.lost) {
      if (!build.open_drop) throw Broken(key(id, at->first) + " is gone, id " + std::to_string(datum.confirmed->id));
      ++missing;
    }
    at = build.data.erase(at);
  }
  if (missing > 0 && !seen.empty()) {
    throw Broken("build " + std::to_string(id) + " was dropped by half: " + std::to_string(seen.size()) +
                 " entries are there, " + std::to_string(missing) + " are not");
  }
  build.open_drop = false;
}

void Promises::see_row(BuildId id, std::optional<std::int64_t> complete_at, bool held) {
  Build& build = builds_[id];
  const auto text = [](const std::optional<std::int64_t>& at) { return at ? std::to_string(*at) : "none"; };
  if (complete_at != build.complete_at && !(build.open_complete_at && complete_at == build.open_complete_at)) {
    throw Broken("build " + std::to_string(id) + " is recorded as complete at " + text(complete_at) + " instead of " +
                 text(build.complete_at));
  }
  if (held != build.held.value_or(false) && !(build.open_held && held == *build.open_held)) {
    throw Broken("build " + std::to_string(id) + " is recorded as " + (held ? "held" : "not held"));
  }
  build.complete_at = complete_at;
  build.open_complete_at.reset();
  build.held = held;
  build.open_held.reset();
}

std::vector<BuildId> Promises::builds() const {
  std::vector<BuildId> all;
  for (const auto& [id, build] : builds_) all.push_back(id);
  return all;
}

std::uint64_t Promises::entries() const {
  std::uint64_t count = 0;
  for (const auto& [id, build] : builds_) {
    for (const auto& [name, datum] : build.data) count += datum.confirmed.has_value();
  }
  return count;
}

}  // namespace stepstash::test
