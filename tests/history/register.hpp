// SPDX-License-Identifier: Apache-2.0
/// Checks one key of build data as an atomic register: is there an order that explains what its clients saw, in which
/// every operation took effect at one instant between its call and its return?
///
/// Linearizability (M. Herlihy, J. Wing, "Linearizability: A Correctness Condition for Concurrent Objects", ACM TOPLAS
/// 12(3), 1990) of a register whose values are unique (P. Gibbons, E. Korach, "Testing Shared Memories", SIAM J.
/// Comput. 26(4), 1997, check those in O(n log n)). Here deletions are not unique and outcomes may be unknown. So this
/// processes calls and returns in time order instead and keeps every explanation that is still possible: what the key
/// could hold, and which pending operations have taken effect. An operation takes effect no earlier than it must, so
/// there are few explanations however long the history is: their number grows with the operations that overlap, not
/// with all operations.
///
/// Times are nanoseconds of one clock (CLOCK_MONOTONIC, which all processes of a machine share). No threads, no errors:
/// any input is valid, and the result is a verdict.
#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace stepstash::test {

inline constexpr std::int64_t kUnfinished = INT64_MIN;

/// What a key holds, as far as known. `value` 0 is absent.
struct KeyState {
  std::uint64_t value = 0;
  std::uint64_t id = 0;                    ///< 0: absent, or not seen yet
  std::uint64_t revision = 0;              ///< the same
  std::uint64_t floor = 0;                 ///< every id and revision allocated from now on is larger
  std::int64_t complete_at = kUnfinished;  ///< of the key's build
  bool held = false;                       ///< the key's build
  auto operator<=>(const KeyState&) const = default;
};

struct KeyOperation {
  enum class Kind {
    set,            ///< value, and the id and revision in the answer
    set_if_absent,  ///< the same, and the key was absent
    remove,         ///< drop: absent from here on
    prune,          ///< the same if the build was complete before `at` and not held
    finish,         ///< the build is complete at `at`
    hold,           ///< the build is held from here on if `at` is 1, not if it is 0
    read,           ///< `value` existed; 0: the key was absent
    present,        ///< the key existed (a set-if-absent whose condition failed)
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
  bool optional = false;    ///< unknown whether it took effect; if it did, between begin and end
  std::uint64_t label = 0;  ///< identifies the operation, for reports and `removals`
};

/// Whether a deletion found the key, over all explanations.
struct Removal {
  bool perhaps_something = false;
  bool perhaps_nothing = false;
};

struct KeyVerdict {
  bool explained = true;
  std::string why;               ///< if not: the operation that fits nowhere, the possible states, and what preceded it
  std::vector<KeyState> finals;  ///< what the key can hold in the end
  std::map<std::uint64_t, Removal> removals;  ///< of mandatory deletions, by label
};

std::string describe(const KeyOperation& operation);
std::string describe(const KeyState& state);

/// What all keys of a build hold, by name.
using BuildHolds = std::vector<KeyState>;

/// An operation that is atomic for all keys of a build.
struct BuildOperation {
  KeyOperation operation;           ///< of a list: its times
  std::optional<std::size_t> name;  ///< none: it affects all
  std::vector<KeyOperation> reads;  ///< a list: what it saw, by name
};

struct BuildVerdict {
  bool judged = true;  ///< false: there were too many explanations to examine
  bool explained = true;
  std::string why;
  std::vector<BuildHolds> finals;  ///< if it was judged and explained
};

std::string describe(const BuildOperation& operation);

/// The same as explain_key() for all keys of a build together.
BuildVerdict explain_build(const std::vector<BuildHolds>& initial, const std::vector<BuildOperation>& operations);

/// Whether `operations` (in any order) can be explained if the key holds one of `initial` before all of them.
KeyVerdict explain_key(const std::vector<KeyState>& initial, std::vector<KeyOperation> operations);

}  // namespace stepstash::test
