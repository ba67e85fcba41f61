// SPDX-License-Identifier: Apache-2.0
/// One key of build data as an atomic register: can what its clients saw be explained by an order in which every
/// operation took effect at one instant between its call and its return?
///
/// Linearizability (M. Herlihy, J. Wing, "Linearizability: A Correctness Condition for Concurrent Objects", ACM TOPLAS
/// 12(3), 1990) of a register whose values are unique (P. Gibbons, E. Korach, "Testing Shared Memories", SIAM J.
/// Comput. 26(4), 1997, read them off in O(n log n)). Deletions are not unique and outcomes may be unknown, so this
/// walks over the calls and returns in order of time instead, keeping every explanation that is still possible: what
/// the key could hold, and which of the operations under way have taken effect. An operation takes effect no earlier
/// than it must, so there are few explanations however long the history is: they grow with the operations that overlap,
/// not with their number.
///
/// Times are nanoseconds of one clock (CLOCK_MONOTONIC is one for all processes of a machine). No threads, no errors:
/// what it is given may be anything, and the answer is a verdict.
#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace stepstash::test {

inline constexpr std::int64_t kUnfinished = INT64_MIN;

/// What a key holds, as far as it is known. `value` 0 is absent.
struct KeyState {
  std::uint64_t value = 0;
  std::uint64_t id = 0;                    ///< 0: absent, or not seen yet
  std::uint64_t revision = 0;              ///< the same
  std::uint64_t floor = 0;                 ///< every id and revision that is given from now on is larger
  std::int64_t complete_at = kUnfinished;  ///< of the key's build
  bool held = false;                       ///< the key's build
  auto operator<=>(const KeyState&) const = default;
};

struct KeyOperation {
  enum class Kind {
    set,            ///< value, and the id and revision that were answered
    set_if_absent,  ///< the same, and the key was absent
    remove,         ///< drop: absent from here on
    prune,          ///< the same if the build was complete before `at` and not held
    finish,         ///< the build is complete at `at`
    hold,           ///< the build is held from here on if `at` is 1, not if it is 0
    read,           ///< `value` was there, or 0: nothing was
    present,        ///< something was there (a set-if-absent that did not hold)
    read_complete,  ///< the build was complete at `at`; kUnfinished: it was not
    read_held,      ///< the build was held if `at` is 1, not if it is 0
  };
  Kind kind = Kind::read;
  std::uint64_t value = 0;
  std::uint64_t id = 0;        ///< 0: not seen
  std::uint64_t revision = 0;  ///< 0: not seen
  std::int64_t at = 0;
  std::int64_t begin = 0;
  std::int64_t end = 0;
  bool optional = false;    ///< nobody knows whether it took effect; if it did, between begin and end
  std::uint64_t label = 0;  ///< whose operation it is, for reports and `removals`
};

/// Whether a deletion found the key there, over all explanations.
struct Removal {
  bool perhaps_something = false;
  bool perhaps_nothing = false;
};

struct KeyVerdict {
  bool explained = true;
  std::string why;               ///< when not: the operation that fits nowhere, what could be there, what went before
  std::vector<KeyState> finals;  ///< what the key can hold in the end
  std::map<std::uint64_t, Removal> removals;  ///< of mandatory deletions, by label
};

std::string describe(const KeyOperation& operation);
std::string describe(const KeyState& state);

/// What all keys of a build hold, by name.
using BuildHolds = std::vector<KeyState>;

/// What is one instant for all keys of a build.
struct BuildOperation {
  KeyOperation operation;           ///< of a list: its times
  std::optional<std::size_t> name;  ///< none: it concerns all
  std::vector<KeyOperation> reads;  ///< a list: what it saw, by name
};

struct BuildVerdict {
  bool judged = true;  ///< false: there were too many explanations to go through
  bool explained = true;
  std::string why;
  std::vector<BuildHolds> finals;  ///< when it was judged and explained
};

std::string describe(const BuildOperation& operation);

/// The same as explain_key() for all keys of a build together.
BuildVerdict explain_build(const std::vector<BuildHolds>& initial, const std::vector<BuildOperation>& operations);

/// Whether `operations` (in any order) can be explained when the key holds one of `initial` before all of them.
KeyVerdict explain_key(const std::vector<KeyState>& initial, std::vector<KeyOperation> operations);

}  // namespace stepstash::test
