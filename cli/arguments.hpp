/// The command line of `stepstash` as plain data.
///
/// BUILD may be left out. The rule, in the help and in stepstash(1): with --build no argument is BUILD; without it the
/// first argument is BUILD if it is a whole number, and otherwise BUILD is $STEPSTASH_BUILD. It does not depend on how
/// many arguments there are, nor on what is in the environment.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace stepstash::cli {

/// sysexits.h, and 1 for what was looked for and is not there.
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

enum class Verb { set, get, stat, list, finish, prune, drop, hold, unhold, flush, doctor, stats };

struct Arguments {
  Verb verb = Verb::stats;
  std::int64_t build = 0;
  std::optional<std::string> name;
  std::string file = "-";  // set: what to read; get: what to write
  std::string source;
  bool durable = false;
  bool if_absent = false;
  std::optional<std::chrono::milliseconds> wait;
  std::optional<std::int64_t> at;  // finish --at, prune --older-than
  std::string socket;              // empty: the library's rule
  std::chrono::milliseconds timeout{10'000};
  bool json = false;
};

/// What parsing came to: arguments, or a text to print and the status to exit with.
struct Parsed {
  std::optional<Arguments> arguments;
  std::string text;
  int exit_status = kDone;
};

/// `environment_build` is $STEPSTASH_BUILD, or null.
Parsed parse_arguments(int argc, const char* const* argv, const char* environment_build);

/// A whole decimal number, an optional minus first, in the range of int64; no spaces, no exponent.
std::optional<std::int64_t> whole_number(std::string_view text) noexcept;
/// A whole number with a unit: ms, s, min, h or d.
std::optional<std::chrono::milliseconds> duration(std::string_view text) noexcept;

}  // namespace stepstash::cli
