// SPDX-License-Identifier: Apache-2.0
#include "tests/history/register.hpp"

#include <algorithm>
#include <array>
#include <cstdio>
#include <iterator>
#include <set>

namespace stepstash::test {
namespace {

using Kind = KeyOperation::Kind;

/// Beyond either of these limits a history cannot be judged in acceptable time; it counts as unexplained, never as
/// good.
constexpr std::size_t kMostUnderWay = 64;
constexpr std::size_t kMostExplanations = 200'000;
/// For a build, whose explanations are as large as all of its keys.
constexpr std::size_t kMostBuildExplanations = 20'000;

/// One explanation of everything that has returned so far.
template <class State>
struct Explanation {
  State state;
  std::uint64_t effective = 0;  // pending operations that have taken effect, by place
  std::uint64_t removed = 0;    // of those, deletions that removed something
  auto operator<=>(const Explanation&) const = default;
};

void become_absent(KeyState& state) {
  state.floor = std::max({state.floor, state.id, state.revision});
  state.value = state.id = state.revision = 0;
}

/// An observed id and revision: they must match the known ones, or be newer than everything before.
bool bind(KeyState& state, std::uint64_t id, std::uint64_t revision) {
  if (id != 0) {
    if (state.id != 0 ? state.id != id : id <= state.floor) return false;
    state.id = id;
  }
  if (revision != 0) {
    if (state.revision != 0 ? state.revision != revision : revision <= state.floor) return false;
    state.revision = revision;
    state.floor = std::max(state.floor, revision);
  }
  return true;
}

/// Applies `operation`. False if it cannot have taken effect in this state.
bool apply(const KeyOperation& operation, KeyState& state) {
  switch (operation.kind) {
    case Kind::set_if_absent:
      if (state.value != 0) return false;
      [[fallthrough]];
    case Kind::set:
      state.value = operation.value;
      state.revision = 0;  // a new one, whichever client set it
      return bind(state, operation.id, operation.revision);
    case Kind::remove:
      become_absent(state);
      return true;
    case Kind::prune:
      if (state.complete_at != kUnfinished && state.complete_at < operation.at && !state.held) become_absent(state);
      return true;
    case Kind::finish:
      state.complete_at = operation.at;
      return true;
    case Kind::hold:
      state.held = operation.at != 0;
      return true;
    case Kind::read:
      return operation.value == state.value && (state.value == 0 || bind(state, operation.id, operation.revision));
    case Kind::present:
      return state.value != 0;
    case Kind::read_complete:
      return state.complete_at == operation.at;
    case Kind::read_held:
      return state.held == (operation.at != 0);
  }
  return false;
}

bool only_looks(const KeyOperation& operation) {
  return operation.kind == Kind::read || operation.kind == Kind::present || operation.kind == Kind::read_complete ||
         operation.kind == Kind::read_held;
}

// The same for all keys of a build.
bool apply(const BuildOperation& operation, BuildHolds& holds) {
  if (!operation.reads.empty()) {
    for (std::size_t name = 0; name < holds.size(); ++name) {
      if (!apply(operation.reads[name], holds[name])) return false;
    }
    return true;
  }
  if (operation.name) return apply(operation.operation, holds[*operation.name]);
  return std::all_of(holds.begin(), holds.end(), [&](KeyState& state) { return apply(operation.operation, state); });
}

bool only_looks(const BuildOperation& operation) { return !operation.reads.empty() || only_looks(operation.operation); }

bool removes(const KeyState& before, const KeyState& after) { return before.value != 0 && after.value == 0; }
bool removes(const BuildHolds&, const BuildHolds&) { return false; }  // determined per key

const KeyOperation& told(const KeyOperation& operation) { return operation; }
const KeyOperation& told(const BuildOperation& operation) { return operation.operation; }

template <class State, class Operation>
class Search {
 public:
  Search(const std::vector<State>& initial, std::size_t most) : most_(most) {
    for (const State& state : initial) explanations_.insert({state, 0, 0});
  }

  bool call(const Operation& operation) {
    for (std::size_t place = 0; place < kMostUnderWay; ++place) {
      if (under_way_[place] != nullptr) continue;
      under_way_[place] = &operation;
      places_ = std::max(places_, place + 1);
      return true;
    }
    return give_up("more than 64 operations under way at once");
  }

  /// After `operation` has returned, it has taken effect in every explanation, unless it is optional.
  bool finish(const Operation& operation, std::map<std::uint64_t, Removal>& removals) {
    const auto at = std::find(under_way_.begin(), under_way_.end(), &operation);
    const auto place = static_cast<std::size_t>(at - under_way_.begin());
    const std::uint64_t bit = std::uint64_t{1} << place;
    std::set<Explanation<State>> kept;
    std::set<Explanation<State>> seen;
    std::vector<Explanation<State>> open(explanations_.begin(), explanations_.end());
    Removal removal;
    if (told(operation).optional) {  // possibly without effect: all explanations remain
      std::copy_if(explanations_.begin(), explanations_.end(), std::inserter(kept, kept.end()),
                   [&](const Explanation<State>& e) { return (e.effective & bit) == 0; });
    }
    while (!open.empty()) {
      Explanation<State> here = open.back();
      open.pop_back();
      look(here);
      if (!seen.insert(here).second) continue;
      if (seen.size() > most_) return give_up("too many explanations");
      if ((here.effective & bit) != 0) {
        (here.removed & bit) != 0 ? removal.perhaps_something = true : removal.perhaps_nothing = true;
        here.effective &= ~bit;
        here.removed &= ~bit;
        kept.insert(here);
        continue;
      }
      // After any other pending operation.
      for (std::size_t other = 0; other < places_; ++other) {
        const std::uint64_t other_bit = std::uint64_t{1} << other;
        if (under_way_[other] == nullptr || (here.effective & other_bit) != 0) continue;
        Explanation<State> next = here;
        if (!apply(*under_way_[other], next.state)) continue;
        if (told(*under_way_[other]).optional && next.state == here.state) continue;  // equivalent to no effect
        next.effective |= other_bit;
        if (removes(here.state, next.state)) next.removed |= other_bit;
        open.push_back(next);
      }
    }
    if (kept.empty()) return false;
    explanations_ = std::move(kept);
    under_way_[place] = nullptr;
    const KeyOperation& what = told(operation);
    const bool deletes = what.kind == Kind::remove || what.kind == Kind::prune;
    if (deletes && !what.optional) removals[what.label] = removal;
    return true;
  }

  std::vector<State> states() const {
    std::set<State> states;
    for (const Explanation<State>& explanation : explanations_) states.insert(explanation.state);
    return {states.begin(), states.end()};
  }

  /// Not empty: it is unknown whether there is an explanation.
  const std::string& given_up() const { return given_up_; }

  std::vector<const Operation*> under_way() const {
    std::vector<const Operation*> all;
    for (const Operation* operation : under_way_) {
      if (operation != nullptr) all.push_back(operation);
    }
    return all;
  }

 private:
  /// Reads that change nothing, not even what is known, may be applied immediately.
  void look(Explanation<State>& here) const {
    for (std::size_t place = 0; place < places_; ++place) {
      const Operation* operation = under_way_[place];
      if (operation == nullptr || !only_looks(*operation)) continue;
      State after = here.state;
      if (apply(*operation, after) && after == here.state) here.effective |= std::uint64_t{1} << place;
    }
  }

  bool give_up(const char* why) {
    given_up_ = why;
    return false;
  }

  std::size_t most_;
  std::string given_up_;
  std::set<Explanation<State>> explanations_;
  std::array<const Operation*, kMostUnderWay> under_way_{};
  std::size_t places_ = 0;
};

const char* word(Kind kind) {
  switch (kind) {
    case Kind::set:
      return "set";
    case Kind::set_if_absent:
      return "set if absent";
    case Kind::remove:
      return "drop";
    case Kind::prune:
      return "prune";
    case Kind::finish:
      return "finish";
    case Kind::hold:
      return "hold";
    case Kind::read:
      return "read";
    case Kind::present:
      return "something was there";
    case Kind::read_complete:
      return "read completion";
    case Kind::read_held:
      return "read hold";
  }
  return "?";
}

std::string hex(std::uint64_t value) {
  char text[20];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(value));
  return text;
}

std::string named(std::uint64_t value) { return value == 0 ? "nothing" : hex(value); }

}  // namespace

std::string describe(const KeyOperation& operation) {
  std::string text = "[" + std::to_string(operation.begin) + " .. " + std::to_string(operation.end) + "] ";
  text += word(operation.kind);
  switch (operation.kind) {
    case Kind::set:
    case Kind::set_if_absent:
    case Kind::read:
      text += " " + named(operation.value);
      if (operation.id != 0) text += ", id " + std::to_string(operation.id);
      if (operation.revision != 0) text += ", revision " + std::to_string(operation.revision);
      break;
    case Kind::prune:
    case Kind::finish:
    case Kind::read_complete:
      text += operation.at == kUnfinished ? " never" : " " + std::to_string(operation.at);
      break;
    case Kind::hold:
    case Kind::read_held:
      text += operation.at != 0 ? " yes" : " no";
      break;
    default:
      break;
  }
  if (operation.optional) text += " (perhaps)";
  return text + ", operation " + std::to_string(operation.label);
}

std::string describe(const KeyState& state) {
  std::string text = named(state.value);
  if (state.id != 0) text += ", id " + std::to_string(state.id);
  if (state.revision != 0) text += ", revision " + std::to_string(state.revision);
  text += ", ids and revisions above " + std::to_string(state.floor);
  if (state.complete_at != kUnfinished) text += ", complete at " + std::to_string(state.complete_at);
  if (state.held) text += ", held";
  return text;
}

namespace {

struct Step {
  std::int64_t time;
  bool is_return;
  std::size_t operation;
};

/// Calls and returns in time order.
template <class Operation>
std::vector<Step> steps_of(const std::vector<Operation>& operations) {
  std::vector<Step> steps;
  steps.reserve(operations.size() * 2);
  for (std::size_t i = 0; i < operations.size(); ++i) {
    steps.push_back({told(operations[i]).begin, false, i});
    steps.push_back({told(operations[i]).end, true, i});
  }
  // At the same instant calls come first: operations that touch are not known to be ordered.
  std::stable_sort(steps.begin(), steps.end(), [](const Step& a, const Step& b) {
    return a.time != b.time ? a.time < b.time : a.is_return < b.is_return;
  });
  return steps;
}

template <class Operation>
std::string surroundings(const std::vector<const Operation*>& under_way,
                         const std::vector<const Operation*>& returned) {
  std::string text = "  under way with it:\n";
  for (const Operation* other : under_way) text += "    " + describe(*other) + "\n";
  text += "  returned before, the last first:\n";
  for (std::size_t i = 0; i < std::min<std::size_t>(returned.size(), 16); ++i) {
    text += "    " + describe(*returned[returned.size() - 1 - i]) + "\n";
  }
  return text;
}

}  // namespace

KeyVerdict explain_key(const std::vector<KeyState>& initial, std::vector<KeyOperation> operations) {
  KeyVerdict verdict;
  Search<KeyState, KeyOperation> search(initial, kMostExplanations);
  std::vector<const KeyOperation*> returned;
  for (const Step& step : steps_of(operations)) {
    const KeyOperation& operation = operations[step.operation];
    const bool good = step.is_return ? search.finish(operation, verdict.removals) : search.call(operation);
    if (good) {
      if (step.is_return) returned.push_back(&operation);
      continue;
    }
    verdict.explained = false;
    verdict.why = (search.given_up().empty() ? "no order explains " : "given up (" + search.given_up() + ") at ") +
                  describe(operation) + "\n  before it there could be:\n";
    std::vector<KeyState> states = search.states();
    for (std::size_t i = 0; i < std::min<std::size_t>(states.size(), 8); ++i) {
      verdict.why += "    " + describe(states[i]) + "\n";
    }
    verdict.why += surroundings(search.under_way(), returned);
    return verdict;
  }
  verdict.finals = search.states();
  return verdict;
}

std::string describe(const BuildOperation& operation) {
  if (operation.reads.empty()) {
    return (operation.name ? "name " + std::to_string(*operation.name) + " " : "") + describe(operation.operation);
  }
  std::string text = describe(operation.operation) + ", of a list that saw";
  for (std::size_t name = 0; name < operation.reads.size(); ++name) {
    const KeyOperation& read = operation.reads[name];
    if (read.value != 0) text += " " + std::to_string(name) + "=" + hex(read.value);
  }
  return text;
}

BuildVerdict explain_build(const std::vector<BuildHolds>& initial, const std::vector<BuildOperation>& operations) {
  BuildVerdict verdict;
  Search<BuildHolds, BuildOperation> search(initial, kMostBuildExplanations);
  std::map<std::uint64_t, Removal> ignored;
  std::vector<const BuildOperation*> returned;
  for (const Step& step : steps_of(operations)) {
    const BuildOperation& operation = operations[step.operation];
    if (step.is_return ? search.finish(operation, ignored) : search.call(operation)) {
      if (step.is_return) returned.push_back(&operation);
      continue;
    }
    verdict.judged = search.given_up().empty();
    verdict.explained = !verdict.judged;
    if (verdict.explained) return verdict;
    verdict.why = "as one instant for all keys, no order explains " + describe(operation) + "\n" +
                  surroundings(search.under_way(), returned);
    return verdict;
  }
  verdict.finals = search.states();
  return verdict;
}

}  // namespace stepstash::test
