// SPDX-License-Identifier: Apache-2.0
/// What clients did and saw, as they record it, and whether the daemon kept its word.
///
/// Clients write a Record each before they call and complete it when they know the outcome, in memory that outlives
/// them: a client that is killed leaves the record of what it had begun. HistoryChecker makes one history per key out
/// of the records of all clients and has each explained (register.hpp), and checks what concerns several keys: no id
/// and no revision twice, no value out of thin air, exact bytes, exact counts, no half deletions. And all keys of a
/// build together: a drop, a prune and a list are one instant for all of them.
///
/// A history is checked in rounds: a round ends when nothing is under way and every key has been read, and what was
/// read begins the next.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <string>
#include <type_traits>
#include <vector>

#include "tests/history/register.hpp"

namespace stepstash::test {

/// Names of each build: more than a page of a list has room for.
inline constexpr std::size_t kNames = 40;

/// An entry as a client saw it.
struct Sight {
  std::uint64_t value = 0;  ///< which value it says it is (its source); 0: it was not there
  std::uint64_t id = 0;
  std::uint64_t revision = 0;
  bool exact = true;  ///< length and, where they were looked at, bytes are those of `value`
};

enum class Action : std::uint8_t {
  none,
  set,
  set_if_absent,
  get,
  stat,
  list,
  finish,
  completion,  ///< what the database says of it
  hold,
  holding,  ///< the same
  prune,
  drop,
  look
};
enum class Answer : std::uint8_t {
  pending,  ///< the client died, or is still waiting
  ok,
  unmet,      ///< the condition did not hold
  failed,     ///< it said that nothing was done
  unknown,    ///< a broken connection, or a deadline: nobody can say
  forbidden,  ///< an error that no fault of this test can be the reason of
};

struct Record {
  Action action = Action::none;
  std::atomic<Answer> answer{Answer::pending};
  std::uint8_t build = 0;  ///< from 0
  std::uint8_t name = 0;
  bool repeats = false;  ///< the library asks again when the connection breaks: it may have taken effect more than once
  std::int32_t code = 0;
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::uint64_t value = 0;  ///< set: the one value that only this operation sets
  std::uint64_t count = 0;  ///< prune, drop: entries deleted, by the answer
  std::int64_t at = 0;  ///< finish and completion: complete_at; prune: older than; hold and holding: 1, or 0 for unhold
  std::array<Sight, kNames> seen{};  ///< list: by name; else the first: what was read, or id and revision of the set
};
static_assert(std::is_standard_layout_v<Record> && std::atomic<Answer>::is_always_lock_free);

/// A time in which one daemon lived. Whatever was asked of it happened before its end, or never.
struct Life {
  std::int64_t begin = 0;
  std::int64_t end = INT64_MAX;
};

struct Round {
  std::vector<const Record*> records;
  std::vector<Life> lives;  ///< in order
  std::int64_t quiet = 0;   ///< from here on nothing is under way
};

class HistoryChecker {
 public:
  explicit HistoryChecker(std::size_t builds)
      : keys_(builds * kNames, {KeyState{}}), builds_(builds, {BuildHolds(kNames, KeyState{})}) {}

  /// What is wrong with this round, a text each; empty: nothing. What its last reads saw begins the next round.
  std::vector<std::string> check(const Round& round);

  /// Operations whose answers were compared, in all rounds.
  std::uint64_t checked() const noexcept { return checked_; }
  /// Builds whose keys were looked at together, in all rounds; and those for which that was too much.
  std::uint64_t judged() const noexcept { return judged_; }
  std::uint64_t unjudged() const noexcept { return unjudged_; }

 private:
  struct Problems;
  void expand(const Round& round, const Record& record, std::uint64_t label,
              std::vector<std::vector<KeyOperation>>& operations) const;
  bool whole(const Round& round, const Record& record, std::uint64_t label, std::size_t build,
             const std::vector<std::vector<KeyOperation>>& operations) const;
  void check_builds(const Round& round, Problems& problems);
  void note_sights(const Record& record, Problems& problems);

  std::vector<std::vector<KeyState>> keys_;
  std::map<std::uint64_t, std::size_t> key_of_id_;
  std::map<std::uint64_t, std::uint64_t> value_of_revision_;
  std::vector<std::vector<KeyState>> before_;    // keys_ as the round began
  std::vector<std::vector<BuildHolds>> builds_;  // empty: not known
  std::uint64_t checked_ = 0;
  std::uint64_t judged_ = 0;
  std::uint64_t unjudged_ = 0;
};

std::string describe(const Record& record);

}  // namespace stepstash::test
