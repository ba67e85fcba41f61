// SPDX-License-Identifier: Apache-2.0
#include "tests/history/history.hpp"

#include <algorithm>
#include <cstdio>
#include <set>
#include <utility>

namespace stepstash::test {
namespace {

using Kind = KeyOperation::Kind;

constexpr std::size_t kMostProblems = 20;

std::size_t key_of(const Record& record) { return record.build * kNames + record.name; }

bool sets(const Record& record) { return record.action == Action::set || record.action == Action::set_if_absent; }

/// The number of names whose entries a record contains.
std::size_t sights(const Record& record) {
  if (record.answer.load() != Answer::ok) return 0;
  switch (record.action) {
    case Action::list:
      return kNames;
    case Action::set:
    case Action::set_if_absent:
    case Action::get:
    case Action::stat:
    case Action::look:
      return 1;
    default:
      return 0;
  }
}

std::string key_name(std::size_t key) {
  return "build " + std::to_string(key / kNames + 1) + ", name " + std::to_string(key % kNames);
}

}  // namespace

struct HistoryChecker::Problems {
  std::vector<std::string> texts;
  void add(std::string text) {
    if (texts.size() < kMostProblems) texts.push_back(std::move(text));
  }
};

/// The intervals in which an operation can have taken effect if it is unknown how often it did: once in each daemon's
/// life that it reached. `but_last`: all except the last, which sent the answer.
static std::vector<Life> attempts(const Round& round, const Record& record, bool but_last) {
  const bool pending = record.answer.load() == Answer::pending;
  const std::int64_t given_up = pending ? round.quiet : record.end;
  std::vector<Life> windows;
  for (const Life& life : round.lives) {
    if (life.end < record.begin || life.begin > given_up) continue;
    // A daemon may still execute an unanswered request later, until it dies or is idle.
    const std::int64_t until = but_last ? given_up : round.quiet;
    windows.push_back({std::max(life.begin, record.begin), std::min(life.end, until)});
  }
  if (but_last && !windows.empty()) windows.pop_back();
  return windows;
}

void HistoryChecker::expand(const Round& round, const Record& record, std::uint64_t label,
                            std::vector<std::vector<KeyOperation>>& operations) const {
  const Answer answer = record.answer.load();
  KeyOperation operation;
  operation.label = label;
  operation.begin = record.begin;
  operation.end = record.end;
  operation.value = record.value;
  operation.at = record.at;

  const auto put = [&](const KeyOperation& made) {
    switch (record.action) {
      case Action::prune:
        for (auto& key : operations) key.push_back(made);
        break;
      case Action::drop:
      case Action::finish:
      case Action::completion:
      case Action::hold:
      case Action::holding:
        for (std::size_t name = 0; name < kNames; ++name) operations[record.build * kNames + name].push_back(made);
        break;
      default:
        operations[key_of(record)].push_back(made);
    }
  };
  const auto put_perhaps = [&](bool but_last) {
    KeyOperation perhaps = operation;
    perhaps.optional = true;
    perhaps.id = perhaps.revision = 0;
    for (const Life& window : attempts(round, record, but_last)) {
      perhaps.begin = window.begin;
      perhaps.end = window.end;
      put(perhaps);
    }
  };
  const auto put_change = [&](Kind kind) {
    operation.kind = kind;
    if (answer == Answer::ok) put(operation);
    if (answer == Answer::pending || answer == Answer::unknown) {
      put_perhaps(false);
    } else if (record.repeats) {
      put_perhaps(true);
    }
  };

  switch (record.action) {
    case Action::set:
    case Action::set_if_absent:
      if (record.value == 0) return;  // killed before it had chosen a value
      if (answer == Answer::unmet) {
        operation.kind = Kind::present;
        put(operation);
        return;
      }
      operation.id = record.seen[0].id;
      operation.revision = record.seen[0].revision;
      put_change(record.action == Action::set ? Kind::set : Kind::set_if_absent);
      return;
    case Action::finish:
      put_change(Kind::finish);
      return;
    case Action::hold:
      put_change(Kind::hold);
      return;
    case Action::prune:
      put_change(Kind::prune);
      return;
    case Action::drop:
      put_change(Kind::remove);
      return;
    case Action::get:
    case Action::stat:
    case Action::list:
      if (answer != Answer::ok) return;
      operation.kind = Kind::read;
      for (std::size_t i = 0; i < sights(record); ++i) {
        operation.value = record.seen[i].value;
        operation.id = record.seen[i].id;
        operation.revision = record.seen[i].revision;
        operations[record.action == Action::list ? record.build * kNames + i : key_of(record)].push_back(operation);
      }
      return;
    case Action::completion:
      operation.kind = Kind::read_complete;
      put(operation);
      return;
    case Action::holding:
      operation.kind = Kind::read_held;
      put(operation);
      return;
    case Action::look:
    case Action::none:
      return;
  }
}

/// Checks and records what one observation of an entry shows, whenever it was made.
void HistoryChecker::note_sights(const Record& record, Problems& problems) {
  for (std::size_t i = 0; i < sights(record); ++i) {
    const Sight& sight = record.seen[i];
    const std::size_t key = record.action == Action::list ? record.build * kNames + i : key_of(record);
    const std::uint64_t value = sets(record) ? record.value : sight.value;
    if (!sight.exact) problems.add("torn: the bytes or the length are not those of the value\n  " + describe(record));
    if (value == 0) continue;
    if (sight.id != 0) {
      const auto known = key_of_id_.emplace(sight.id, key).first;
      if (known->second != key) {
        problems.add("id " + std::to_string(sight.id) + " of " + key_name(known->second) + " was given again, to " +
                     key_name(key) + "\n  " + describe(record));
      }
    }
    if (sight.revision != 0) {
      const auto known = value_of_revision_.emplace(sight.revision, value).first;
      if (known->second != value) {
        problems.add("revision " + std::to_string(sight.revision) + " was given to two values\n  " + describe(record));
      }
    }
  }
}

/// Deleting a build is atomic: if the outcome is unknown, it happened for all of its keys or for none.
bool HistoryChecker::whole(const Round& round, const Record& record, std::uint64_t label, std::size_t build,
                           const std::vector<std::vector<KeyOperation>>& operations) const {
  std::vector<Life> options = attempts(round, record, false);
  options.push_back({0, -1});  // not at all
  return std::any_of(options.begin(), options.end(), [&](const Life& option) {
    for (std::size_t key = build * kNames; key < (build + 1) * kNames; ++key) {
      std::vector<KeyOperation> decided;
      for (const KeyOperation& operation : operations[key]) {
        const bool taken = operation.begin == option.begin && operation.end == option.end;
        if (operation.label != label || taken) decided.push_back(operation);
        if (operation.label == label && taken) decided.back().optional = false;
      }
      if (!explain_key(keys_[key], std::move(decided)).explained) return false;
    }
    return true;
  });
}

void HistoryChecker::check_builds(const Round& round, Problems& problems) {
  std::vector<std::vector<BuildOperation>> all(builds_.size());
  std::vector<std::vector<KeyOperation>> expanded(keys_.size());
  for (std::size_t label = 0; label < round.records.size(); ++label) {
    const Record& record = *round.records[label];
    if (record.action == Action::look) continue;
    for (auto& key : expanded) key.clear();
    expand(round, record, label, expanded);
    for (std::size_t build = 0; build < builds_.size(); ++build) {
      std::vector<KeyOperation>* keys = &expanded[build * kNames];
      if (record.action == Action::list) {
        if (keys[0].empty()) continue;
        BuildOperation list{keys[0][0], std::nullopt, {}};
        for (std::size_t name = 0; name < kNames; ++name) list.reads.push_back(keys[name][0]);
        all[build].push_back(std::move(list));
      } else if (sets(record) || record.action == Action::get || record.action == Action::stat) {
        for (const KeyOperation& one : keys[record.name]) {
          if (build == record.build) all[build].push_back({one, record.name, {}});
        }
      } else {
        for (const KeyOperation& one : keys[0]) all[build].push_back({one, std::nullopt, {}});
      }
    }
  }
  for (std::size_t build = 0; build < builds_.size(); ++build) {
    if (builds_[build].empty()) {  // of the previous round; what its keys hold now may be known nevertheless
      BuildHolds holds;
      for (std::size_t name = 0; name < kNames; ++name) {
        const std::vector<KeyState>& states = before_[build * kNames + name];
        if (states.size() == 1) holds.push_back(states[0]);
      }
      if (holds.size() == kNames) builds_[build].push_back(std::move(holds));
    }
    if (builds_[build].empty()) {
      ++unjudged_;
      continue;
    }
    BuildVerdict verdict = explain_build(builds_[build], all[build]);
    ++(verdict.judged ? judged_ : unjudged_);
    if (!verdict.explained) problems.add("build " + std::to_string(build + 1) + ": " + verdict.why);
    builds_[build] = std::move(verdict.finals);
  }
}

std::vector<std::string> HistoryChecker::check(const Round& round) {
  Problems problems;
  std::vector<std::vector<KeyOperation>> operations(keys_.size());
  std::vector<std::set<std::uint64_t>> settable(keys_.size());
  for (std::size_t key = 0; key < keys_.size(); ++key) {
    for (const KeyState& state : keys_[key]) settable[key].insert(state.value);
  }
  for (const Record* record : round.records) {
    if (sets(*record)) settable[key_of(*record)].insert(record->value);
  }
  for (std::size_t label = 0; label < round.records.size(); ++label) {
    const Record& record = *round.records[label];
    const Answer answer = record.answer.load();
    if (answer == Answer::ok || answer == Answer::unmet) ++checked_;
    if (answer == Answer::forbidden) problems.add("an answer that nothing here explains\n  " + describe(record));
    note_sights(record, problems);
    for (std::size_t i = 0; i < sights(record) && !sets(record); ++i) {
      const std::size_t key = record.action == Action::list ? record.build * kNames + i : key_of(record);
      if (record.seen[i].value != 0 && !settable[key].contains(record.seen[i].value)) {
        problems.add("out of thin air: nobody set this value here\n  " + describe(record));
      }
    }
    expand(round, record, label, operations);
  }

  std::map<std::uint64_t, std::pair<std::uint64_t, std::uint64_t>> bounds;  // by label: least and most deletions
  bool explained = true;
  const std::vector<std::vector<KeyState>> before = keys_;
  for (std::size_t key = 0; key < keys_.size(); ++key) {
    KeyVerdict verdict = explain_key(keys_[key], operations[key]);
    if (!verdict.explained) {
      problems.add(key_name(key) + ": " + verdict.why);
      explained = false;
      continue;
    }
    keys_[key] = std::move(verdict.finals);
    for (const auto& [label, removal] : verdict.removals) {
      auto& [least, most] = bounds[label];
      least += removal.perhaps_nothing ? 0 : 1;
      most += removal.perhaps_something ? 1 : 0;
    }
  }
  if (explained) {
    std::vector<std::vector<KeyState>> after = std::exchange(keys_, before);
    for (std::size_t label = 0; label < round.records.size(); ++label) {
      const Record& record = *round.records[label];
      const Answer answer = record.answer.load();
      if (answer != Answer::pending && answer != Answer::unknown) continue;
      if (record.action != Action::drop && record.action != Action::prune) continue;
      for (std::size_t build = 0; build < keys_.size() / kNames; ++build) {
        if (record.action == Action::drop && build != record.build) continue;
        if (whole(round, record, label, build, operations)) continue;
        problems.add("half a deletion: build " + std::to_string(build + 1) + "\n  " + describe(record));
      }
    }
    keys_ = std::move(after);
    before_ = before;
    check_builds(round, problems);
    for (const auto& [label, bound] : bounds) {
      const Record& record = *round.records[label];
      if (record.count >= bound.first && record.count <= bound.second) continue;
      problems.add("a deletion that counted wrong: it can have deleted " + std::to_string(bound.first) + " to " +
                   std::to_string(bound.second) + " entries\n  " + describe(record));
    }
  }
  return problems.texts;
}

std::string describe(const Record& record) {
  static constexpr const char* kActions[] = {"nothing",    "set",  "set if absent", "get",   "stat", "list", "finish",
                                             "completion", "hold", "holding",       "prune", "drop", "look"};
  static constexpr const char* kAnswers[] = {"pending", "ok", "unmet", "failed", "unknown", "forbidden"};
  char text[256];
  std::snprintf(text, sizeof text, "[%lld .. %lld] %s build %d name %d: %s", static_cast<long long>(record.begin),
                static_cast<long long>(record.end), kActions[static_cast<int>(record.action)], record.build + 1,
                record.name, kAnswers[static_cast<int>(record.answer.load())]);
  std::string all = text;
  if (record.code != 0) all += ", code " + std::to_string(record.code);
  if (record.action == Action::prune || record.action == Action::drop) all += ", count " + std::to_string(record.count);
  if (record.action == Action::prune || record.action == Action::finish || record.action == Action::completion) {
    all += record.at == kUnfinished ? ", at never" : ", at " + std::to_string(record.at);
  }
  if (record.action == Action::hold || record.action == Action::holding) all += record.at != 0 ? ", yes" : ", no";
  if (sets(record)) {
    std::snprintf(text, sizeof text, ", value %016llx", static_cast<unsigned long long>(record.value));
    all += text;
  }
  for (std::size_t i = 0; i < sights(record); ++i) {
    const Sight& sight = record.seen[i];
    std::snprintf(text, sizeof text, "; %016llx id %llu revision %llu%s", static_cast<unsigned long long>(sight.value),
                  static_cast<unsigned long long>(sight.id), static_cast<unsigned long long>(sight.revision),
                  sight.exact ? "" : " NOT EXACT");
    all += text;
  }
  return all;
}

}  // namespace stepstash::test
