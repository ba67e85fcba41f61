// SPDX-License-Identifier: Apache-2.0
/// The command line of `stepstash` as plain data.
///
/// BUILD may be omitted. The rule, as in the help and in stepstash(1): with --build no argument is BUILD; without it
/// the first argument is BUILD if it is a whole number, and otherwise BUILD is $STEPSTASH_BUILD. It does not depend on
/// the number of arguments, nor on the environment.
///
/// Not CLI11, which the daemon uses: it gives special meaning to arguments such as "++", "[a,b]", "{}" and "%%", and
/// cannot distinguish an empty value from none. Here an argument is an option of the table below, or it is a word.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace stepstash::cli {

/// sysexits.h, and 1 for data that was not found.
enum ExitStatus {
  kDone = 0,
  kNotFound = 1,
  kUsage = 64,
  kUnavailable = 69,
  kSoftware = 70,
  kCannotCreate = 73,
  kIoError = 74,
  kTryLater = 75,
  kNotPermitted = 77,
};

enum class Verb { set, get, stat, list, builds, finish, prune, drop, hold, unhold, flush, doctor, stats, help };

/// Sort key of `builds`: number, bytes (largest first), time of finishing (latest first).
enum class Sort { build, bytes, time };

struct Arguments {
  Verb verb = Verb::stats;
  std::int64_t build = 0;
  std::optional<std::string> name;
  std::string file = "-";  // set: input; get: output
  std::string source;
  bool durable = false;
  bool if_absent = false;
  std::optional<std::chrono::milliseconds> wait;
  std::optional<std::int64_t> at;  // finish --at, prune --older-than
  bool reopen = false;
  std::string socket;  // empty: the library's default
  std::chrono::milliseconds timeout{10'000};
  bool json = false;
  Sort sort = Sort::build;
};

/// One command and its help.
struct Command {
  Verb verb;
  const char* word;
  const char* arguments;
  const char* summary;
  const char* examples;
  bool takes_build;
  std::size_t min_arguments, max_arguments;  // after BUILD
};

/// One option. The tests iterate over this table: an option that is not in it does not exist.
struct Option {
  enum Id {
    build,
    source,
    durable,
    if_absent,
    output,
    wait,
    at,
    reopen,
    older_than,
    sort,
    json,
    socket,
    timeout,
    help,
    version
  };
  Id id;
  std::string_view name;
  char letter;           ///< 0: none
  const char* value;     ///< placeholder for its value in the help; null: it takes none
  const char* if_empty;  ///< meaning of an empty value; null: an empty value is refused
  const char* about;
  std::uint32_t commands;  ///< a bit for each Verb that accepts it
  bool before_command;     ///< also allowed before the command
};

std::span<const Command> commands() noexcept;
std::span<const Option> options() noexcept;
const Command& command_of(Verb verb) noexcept;
/// Whether the command writes to standard output.
bool prints(const Arguments& arguments) noexcept;

/// The result of parsing: arguments, or a text to print and the exit status.
struct Parsed {
  std::optional<Arguments> arguments;
  std::string text;
  int exit_status = kDone;
};

/// `environment_build` is $STEPSTASH_BUILD, or null.
Parsed parse_arguments(int argc, const char* const* argv, const char* environment_build);

/// A whole decimal number, with an optional leading minus, in the range of int64; no spaces, no exponent.
std::optional<std::int64_t> whole_number(std::string_view text) noexcept;
/// A whole number with a unit: ms, s, min, h or d.
std::optional<std::chrono::milliseconds> duration(std::string_view text) noexcept;

}  // namespace stepstash::cli
