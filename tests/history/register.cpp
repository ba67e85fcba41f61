#include "tests/history/register.hpp"

#include <algorithm>
#include <array>
#include <cstdio>
#include <iterator>
#include <set>

namespace stepstash::test {
namespace {

using Kind = KeyOperation::Kind;

/// Beyond either of these a history cannot be judged in bearable time; it counts as not explained, never as good.
constexpr std::size_t kMostUnderWay = 64;
constexpr std::size_t kMostExplanations = 200'000;

/// One explanation of all that has returned so far.
struct Explanation {
  KeyState state;
  std::uint64_t effective = 0;  // of the operations under way, by place: has taken effect
  std::uint64_t removed = 0;    // of those: was a deletion of something
  auto operator<=>(const Explanation&) const = default;
};

void become_absent(KeyState& state) {
  state.floor = std::max({state.floor, state.id, state.revision});
  state.value = state.id = state.revision = 0;
}

/// An id and a revision that were seen: they must be those that are known, or newer than all that went before.
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

/// Lets `operation` take effect. False when it cannot have done so on this state.
bool apply(const KeyOperation& operation, KeyState& state) {
  switch (operation.kind) {
    case Kind::set_if_absent:
      if (state.value != 0) return false;
      [[fallthrough]];
    case Kind::set:
      state.value = operation.value;
      state.revision = 0;  // a new one, whoever set it
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

class Search {
 public:
  explicit Search(const std::vector<KeyState>& initial) {
    for (const KeyState& state : initial) explanations_.insert({state, 0, 0});
  }

  bool call(const KeyOperation& operation) {
    for (std::size_t place = 0; place < kMostUnderWay; ++place) {
      if (under_way_[place] != nullptr) continue;
      under_way_[place] = &operation;
      places_ = std::max(places_, place + 1);
      return true;
    }
    return give_up("more than 64 operations under way at once");
  }

  /// After `operation` has returned it has taken effect in every explanation, unless it is optional.
  bool finish(const KeyOperation& operation, std::map<std::uint64_t, Removal>& removals) {
    const auto at = std::find(under_way_.begin(), under_way_.end(), &operation);
    const auto place = static_cast<std::size_t>(at - under_way_.begin());
    const std::uint64_t bit = std::uint64_t{1} << place;
    std::set<Explanation> kept;
    std::set<Explanation> seen;
    std::vector<Explanation> open(explanations_.begin(), explanations_.end());
    Removal removal;
    if (operation.optional) {  // not at all: all that was possible stays so
      std::copy_if(explanations_.begin(), explanations_.end(), std::inserter(kept, kept.end()),
                   [&](const Explanation& e) { return (e.effective & bit) == 0; });
    }
    while (!open.empty()) {
      Explanation here = open.back();
      open.pop_back();
      look(here);
      if (!seen.insert(here).second) continue;
      if (seen.size() > kMostExplanations) return give_up("more than 200,000 explanations");
      if ((here.effective & bit) != 0) {
        (here.removed & bit) != 0 ? removal.perhaps_something = true : removal.perhaps_nothing = true;
        here.effective &= ~bit;
        here.removed &= ~bit;
        kept.insert(here);
        continue;
      }
      // After any other that is under way.
      for (std::size_t other = 0; other < places_; ++other) {
        const std::uint64_t other_bit = std::uint64_t{1} << other;
        if (under_way_[other] == nullptr || (here.effective & other_bit) != 0) continue;
        Explanation next = here;
        if (!apply(*under_way_[other], next.state)) continue;
        if (under_way_[other]->optional && next.state == here.state) continue;  // as good as not at all
        next.effective |= other_bit;
        if (here.state.value != 0 && next.state.value == 0) next.removed |= other_bit;
        open.push_back(next);
      }
    }
    if (kept.empty()) return false;
    explanations_ = std::move(kept);
    under_way_[place] = nullptr;
    const bool deletes = operation.kind == Kind::remove || operation.kind == Kind::prune;
    if (deletes && !operation.optional) removals[operation.label] = removal;
    return true;
  }

  std::vector<KeyState> states() const {
    std::set<KeyState> states;
    for (const Explanation& explanation : explanations_) states.insert(explanation.state);
    return {states.begin(), states.end()};
  }

  /// Not empty: it is not known whether there is an explanation.
  const std::string& given_up() const { return given_up_; }

  std::vector<const KeyOperation*> under_way() const {
    std::vector<const KeyOperation*> all;
    for (const KeyOperation* operation : under_way_) {
      if (operation != nullptr) all.push_back(operation);
    }
    return all;
  }

 private:
  /// Reads that change nothing, not even what is known, may as well have happened now.
  void look(Explanation& here) const {
    for (std::size_t place = 0; place < places_; ++place) {
      const KeyOperation* operation = under_way_[place];
      if (operation == nullptr || !only_looks(*operation)) continue;
      KeyState after = here.state;
      if (apply(*operation, after) && after == here.state) here.effective |= std::uint64_t{1} << place;
    }
  }

  bool give_up(const char* why) {
    given_up_ = why;
    return false;
  }

  std::string given_up_;
  std::set<Explanation> explanations_;
  std::array<const KeyOperation*, kMostUnderWay> under_way_{};
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

KeyVerdict explain_key(const std::vector<KeyState>& initial, std::vector<KeyOperation> operations) {
  struct Step {
    std::int64_t time;
    bool is_return;
    const KeyOperation* operation;
  };
  std::vector<Step> steps;
  steps.reserve(operations.size() * 2);
  for (const KeyOperation& operation : operations) {
    steps.push_back({operation.begin, false, &operation});
    steps.push_back({operation.end, true, &operation});
  }
  // At the same instant calls come first: what touches is not known to be in order.
  std::stable_sort(steps.begin(), steps.end(), [](const Step& a, const Step& b) {
    return a.time != b.time ? a.time < b.time : a.is_return < b.is_return;
  });

  KeyVerdict verdict;
  Search search(initial);
  std::vector<const KeyOperation*> returned;
  for (const Step& step : steps) {
    const bool good = step.is_return ? search.finish(*step.operation, verdict.removals) : search.call(*step.operation);
    if (good) {
      if (step.is_return) returned.push_back(step.operation);
      continue;
    }
    verdict.explained = false;
    verdict.why = (search.given_up().empty() ? "no order explains " : "given up (" + search.given_up() + ") at ") +
                  describe(*step.operation) + "\n  before it there could be:\n";
    std::vector<KeyState> states = search.states();
    for (std::size_t i = 0; i < std::min<std::size_t>(states.size(), 8); ++i) {
      verdict.why += "    " + describe(states[i]) + "\n";
    }
    verdict.why += "  under way with it:\n";
    for (const KeyOperation* other : search.under_way()) verdict.why += "    " + describe(*other) + "\n";
    verdict.why += "  returned before, the last first:\n";
    for (std::size_t i = 0; i < std::min<std::size_t>(returned.size(), 16); ++i) {
      verdict.why += "    " + describe(*returned[returned.size() - 1 - i]) + "\n";
    }
    return verdict;
  }
  verdict.finals = search.states();
  return verdict;
}

}  // namespace stepstash::test
