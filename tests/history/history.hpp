// SPDX-License-Identifier: Apache-2.0
/// What clients did and saw, as they recorded it, and whether the daemon kept its promises.
///
/// Clients write each Record before the call and complete it once they know the outcome, in memory that outlives them:
/// a killed client leaves the record of the operation it had begun. HistoryChecker builds one history per key from the
/// records of all clients, has each explained (register.hpp), and checks what concerns several keys: no id or revision
/// twice, no value out of thin air, exact bytes, exact counts, no partial deletions. It also checks all keys of a build
/// together: a drop, a prune and a list are atomic for all of them.
///
/// A history is checked in rounds: a round ends when no operation is pending and every key has been read; these reads
/// start the next round.
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

/// Names of each build: more than fit into one page of a list.
inline constexpr std::size_t kNames = 40;

/// An entry as a client saw it.
struct Sight {
  std::uint64_t value = 0;  ///< the value it claims to be (its source); 0: absent
  std::uint64_t id = 0;
  std::uint64_t revision = 0;
  bool exact = true;  ///< length and, if checked, bytes are those of `value`
};

enum class Action : std::uint8_t {
  none,
  set,
  set_if_absent,
  get,
  stat,
  list,
  finish,
  completion,  ///< what the database says about it
  hold,
  holding,  ///< the same
  prune,
  drop,
  look
};
enum class Answer : std::uint8_t {
  pending,  ///< the client died or is still waiting
  ok,
  unmet,      ///< the condition failed
  failed,     ///< the error says that nothing was done
  unknown,    ///< a broken connection or a deadline: the outcome is unknown
  forbidden,  ///< an error that no fault of this test can cause
};

struct Record {
  Action action = Action::none;
  std::atomic<Answer> answer{Answer::pending};
  std::uint8_t build = 0;  ///< from 0
  std::uint8_t name = 0;
  bool repeats = false;  ///< the library retries if the connection breaks: may have taken effect more than once
  std::int32_t code = 0;
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::uint64_t value = 0;  ///< set: the one value that only this operation sets
  std::uint64_t count = 0;  ///< prune, drop: deleted entries, from the answer
  std::int64_t at = 0;  ///< finish and completion: complete_at; prune: older than; hold and holding: 1, or 0 for unhold
  std::array<Sight, kNames> seen{};  ///< list: by name; else the first: what was read, or id and revision of the set
};
static_assert(std::is_standard_layout_v<Record> && std::atomic<Answer>::is_always_lock_free);

/// The lifetime of one daemon. A request to it took effect before its end, or never.
struct Life {
  std::int64_t begin = 0;
  std::int64_t end = INT64_MAX;
};

struct Round {
  std::vector<const Record*> records;
  std::vector<Life> lives;  ///< in order
  std::int64_t quiet = 0;   ///< from here on no operation is pending
};

class HistoryChecker {
 public:
  explicit HistoryChecker(std::size_t builds)
      : keys_(builds * kNames, {KeyState{}}), builds_(builds, {BuildHolds(kNames, KeyState{})}) {}

  /// The problems of this round, one text each; empty: none. Its last reads start the next round.
  std::vector<std::string> check(const Round& round);

  /// Number of operations whose answers were compared, in all rounds.
  std::uint64_t checked() const noexcept { return checked_; }
  /// Number of builds whose keys were judged together, in all rounds; and those for which that was too expensive.
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
  std::vector<std::vector<KeyState>> before_;    // keys_ at the start of the round
  std::vector<std::vector<BuildHolds>> builds_;  // empty: unknown
  std::uint64_t checked_ = 0;
  std::uint64_t judged_ = 0;
  std::uint64_t unjudged_ = 0;
};

std::string describe(const Record& record);

}  // namespace stepstash::test
