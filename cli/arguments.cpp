// SPDX-License-Identifier: Apache-2.0
#include "cli/arguments.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <utility>
#include <vector>

#include "base/text.hpp"

namespace stepstash::cli {
namespace {

constexpr const char* kBuildRule =
    "BUILD may be left out: with --build no argument is BUILD; without it the first argument is BUILD if it is a "
    "whole\n"
    "number, and otherwise BUILD is $STEPSTASH_BUILD. A name that is a number, or empty, therefore needs --build.\n";

constexpr const char* kExitStatuses =
    "Exit status: 0 done; 1 no such build data (doctor: something is wrong); 64 usage; 69 daemon not reachable;\n"
    "73 cannot create (the output file; a value that can never fit; --if-absent and the name is there); 74 input or\n"
    "output failed; 75 try later (full, or the deadline passed); 77 not permitted.\n";

constexpr std::array kCommands = std::to_array<Command>({
    {Verb::set, "set", "[BUILD] NAME [FILE|-]",
     "Add a build datum, or replace its value and source (Buildbot: setBuildData).\n"
     "The value is FILE's content, or standard input.",
     "  stepstash set 42 toolchain toolchain.tar --source 'compile step'\n"
     "  make-report | stepstash set 42 report\n"
     "  stepstash set --build 42 --durable 2024 figures.json\n",
     true, 1, 2},
    {Verb::get, "get", "[BUILD] NAME",
     "Write the value of a build datum to standard output, or to a file (Buildbot: getBuildData).",
     "  stepstash get 42 report\n"
     "  stepstash get 42 toolchain -o toolchain.tar\n"
     "  stepstash get 42 coverage --wait 5min | tar x\n",
     true, 1, 1},
    {Verb::stat, "stat", "[BUILD] NAME",
     "Show a build datum without its value: id, revision, length, source (Buildbot: getBuildDataNoValue).",
     "  stepstash stat 42 report\n"
     "  stepstash stat 42 report --json\n",
     true, 1, 1},
    {Verb::list, "list", "[BUILD] [NAME]",
     "List the data of a build without values, in id order (Buildbot: getAllBuildDataNoValues).\n"
     "One line each: id, length, name, source; control characters, quotes and backslashes as \\xNN.",
     "  stepstash list 42\n"
     "  stepstash list 42 report --json\n",
     true, 0, 1},
    {Verb::builds, "builds", "",
     "List the builds that have data: how many entries, the bytes of their values in memory and in the database\n"
     "alone, when they finished, and whether they are held.",
     "  stepstash builds --sort bytes | head\n"
     "  stepstash builds --json | jq '.[] | select(.held) | .buildid'\n",
     false, 0, 0},
    {Verb::finish, "finish", "[BUILD]",
     "Record that a build completed, and when. Its data is pruned once that is longer ago than the horizon.",
     "  stepstash finish 42\n"
     "  stepstash finish 42 --at 1700000000\n"
     "  stepstash finish 42 --reopen\n",
     true, 0, 0},
    {Verb::prune, "prune", "",
     "Delete the data of builds completed strictly before a time (Buildbot: deleteOldBuildData).",
     "  stepstash prune --older-than $(date -d '1 week ago' +%s)\n", false, 0, 0},
    {Verb::drop, "drop", "[BUILD]", "Delete all data of one build, held or not.", "  stepstash drop 42\n", true, 0, 0},
    {Verb::hold, "hold", "[BUILD]", "Keep a build's data from being pruned, for a re-run.", "  stepstash hold 42\n",
     true, 0, 0},
    {Verb::unhold, "unhold", "[BUILD]", "Let a held build's data be pruned again.", "  stepstash unhold 42\n", true, 0,
     0},
    {Verb::flush, "flush", "", "Return when all that was acknowledged before is committed to the database.",
     "  stepstash flush --timeout 1min\n", false, 0, 0},
    {Verb::doctor, "doctor", "",
     "Say what is wrong, and what to do about it: damaged values, objects that were set aside, a database\n"
     "that takes no writes. Exit status 0: nothing is wrong; 1: something is.",
     "  stepstash doctor\n"
     "  stepstash doctor --json | jq -r '.[].what'\n",
     false, 0, 0},
    {Verb::stats, "stats", "", "Show the daemon's counters.", "  stepstash stats --json | jq .segment\n", false, 0, 0},
    {Verb::help, "help", "[COMMAND]", "Tell what stepstash does, or one of its commands.",
     "  stepstash help\n"
     "  stepstash help set\n",
     false, 0, 1},
});

constexpr std::uint32_t in(std::initializer_list<Verb> verbs) {
  std::uint32_t mask = 0;
  for (const Verb verb : verbs) mask |= 1U << static_cast<unsigned>(verb);
  return mask;
}

constexpr std::uint32_t kOfABuild =
    in({Verb::set, Verb::get, Verb::stat, Verb::list, Verb::finish, Verb::drop, Verb::hold, Verb::unhold});
constexpr std::uint32_t kAll = ~0U;
constexpr std::uint32_t kAsking = kAll & ~in({Verb::help});

constexpr std::array kOptions = std::to_array<Option>({
    {Option::build, "--build", 0, "BUILD", nullptr, "the build", kOfABuild, false},
    {Option::source, "--source", 0, "SOURCE", "no source", "where the value comes from, 0 to 256 characters",
     in({Verb::set}), false},
    {Option::durable, "--durable", 0, nullptr, nullptr, "return only when the database has committed it",
     in({Verb::set}), false},
    {Option::if_absent, "--if-absent", 0, nullptr, nullptr, "fail with 73 when the name is there already",
     in({Verb::set}), false},
    {Option::output, "--output", 'o', "FILE", nullptr, "write to FILE; a regular file appears whole or not at all",
     in({Verb::get}), false},
    {Option::wait, "--wait", 0, "DURATION", nullptr, "wait that long for the name to appear", in({Verb::get}), false},
    {Option::at, "--at", 0, "EPOCH", nullptr, "seconds since 1970 (default: now)", in({Verb::finish}), false},
    {Option::reopen, "--reopen", 0, nullptr, nullptr, "the build is not finished any more", in({Verb::finish}), false},
    {Option::older_than, "--older-than", 0, "EPOCH", nullptr, "seconds since 1970; needed", in({Verb::prune}), false},
    {Option::sort, "--sort", 0, "KEY", nullptr,
     "build (the default), bytes (largest first) or time (finished last first)", in({Verb::builds}), false},
    {Option::json, "--json", 0, nullptr, nullptr, "print JSON",
     in({Verb::set, Verb::stat, Verb::list, Verb::builds, Verb::prune, Verb::drop, Verb::doctor, Verb::stats}), true},
    {Option::socket, "--socket", 0, "PATH", nullptr,
     "the daemon's socket (default: $STEPSTASH_SOCKET, or the usual places)", kAsking, true},
    {Option::timeout, "--timeout", 0, "DURATION", nullptr, "how long to wait for the daemon (default: 10s)", kAsking,
     true},
    {Option::help, "--help", 'h', nullptr, nullptr, "print this help and exit", kAll, true},
    {Option::version, "--version", 0, nullptr, nullptr, "print the version and exit", 0, true},
});

constexpr bool in_order() {
  for (std::size_t i = 0; i < kOptions.size(); ++i) {
    if (kOptions[i].id != static_cast<Option::Id>(i)) return false;
  }
  for (std::size_t i = 0; i < kCommands.size(); ++i) {
    if (kCommands[i].verb != static_cast<Verb>(i)) return false;
  }
  return true;
}
static_assert(in_order(), "both tables are indexed by their enumerations");

bool takes(const Command& command, const Option& option) noexcept {
  return (option.commands >> static_cast<unsigned>(command.verb) & 1) != 0;
}

// ---- help ----------------------------------------------------------------------------------------------------------

/// "  LEFT   RIGHT", with further lines of RIGHT aligned under the first.
void add_row(std::string& out, std::string_view left, std::string_view right) {
  constexpr std::size_t kColumn = 28;
  std::string row = "  " + std::string(left);
  row.append(row.size() + 2 <= kColumn ? kColumn - row.size() : 2, ' ');
  for (const char c : right) {
    row += c;
    if (c == '\n') row.append(kColumn, ' ');
  }
  out += row + "\n";
}

void add_option(std::string& out, const Option& option) {
  std::string left;
  if (option.letter != 0) left += std::string("-") + option.letter + ", ";
  left += option.name;
  if (option.value != nullptr) left += std::string(" ") + option.value;
  add_row(out, left, option.about);
}

std::string help() {
  std::string out =
      "Build data in shared memory: what one step of a build sets, a later one gets in place.\n"
      "Usage: stepstash [--socket PATH] [--timeout DURATION] [--json] COMMAND [OPTIONS] [ARGUMENTS]\n\nOptions:\n";
  for (const Option& option : kOptions) {
    if (option.before_command) add_option(out, option);
  }
  out += "\nSubcommands:\n";
  for (const Command& command : kCommands) add_row(out, command.word, command.summary);
  return out + "\nstepstash help COMMAND tells more. '--' ends the options.\n\n" + kBuildRule + "\n" + kExitStatuses;
}

std::string help(const Command& command) {
  std::string out = std::string(command.summary) + "\nUsage: stepstash " + command.word + " [OPTIONS]" +
                    (*command.arguments != 0 ? " " : "") + command.arguments + "\n\nOptions:\n";
  for (const Option& option : kOptions) {
    if (takes(command, option)) add_option(out, option);
  }
  out += std::string("\nExamples:\n") + command.examples;
  if (command.takes_build) out += std::string("\n") + kBuildRule;
  return out + "\n" + kExitStatuses;
}

// ---- parsing -------------------------------------------------------------------------------------------------------

std::string in_quotes(std::string_view text) { return '"' + printable(text) + '"'; }

Parsed refuse(std::string message, const Command* command = nullptr) {
  Parsed parsed;
  parsed.text = "stepstash: " + std::move(message) + "\nTry 'stepstash " +
                (command != nullptr ? std::string(command->word) + " --help'.\n" : "--help'.\n");
  parsed.exit_status = kUsage;
  return parsed;
}

Parsed show(std::string text) {
  Parsed parsed;
  parsed.text = std::move(text);
  return parsed;
}

const Command* find_command(std::string_view word) noexcept {
  for (const Command& command : kCommands) {
    if (word == command.word) return &command;
  }
  return nullptr;
}

/// The raw command line: the options given, with their values, and the words.
struct Line {
  struct Given {
    std::string value;
    bool before_command = false;
  };
  std::array<std::optional<Given>, kOptions.size()> options;
  const Command* command = nullptr;
  std::vector<std::string> words;  // after the command

  const std::string* value(Option::Id id) const { return options[id] ? &options[id]->value : nullptr; }
};

/// The option that `argument` names, and its value if it is in the same argument.
std::pair<const Option*, std::optional<std::string_view>> find_option(std::string_view argument) {
  const bool long_name = argument.starts_with("--");
  const std::string_view name = long_name ? argument.substr(0, argument.find('=')) : argument.substr(0, 2);
  std::optional<std::string_view> value;
  if (name.size() < argument.size()) value = argument.substr(name.size() + (long_name ? 1 : 0));
  for (const Option& option : kOptions) {
    if (long_name ? option.name == name : option.letter != 0 && option.letter == name[1]) return {&option, value};
  }
  return {nullptr, std::nullopt};
}

/// Empty, or an error message.
std::string read_line(std::span<const char* const> arguments, Line& line) {
  bool options_end = false;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string_view argument = arguments[i];
    if (!options_end && argument == "--") {
      options_end = true;
      continue;
    }
    if (options_end || argument.size() < 2 || argument[0] != '-') {  // a word
      if (line.command != nullptr) {
        line.words.emplace_back(argument);
        continue;
      }
      line.command = find_command(argument);
      if (line.command == nullptr) return in_quotes(argument) + " is no command";
      continue;
    }
    auto [option, value] = find_option(argument);
    if (option == nullptr) return "no option is called " + in_quotes(argument);
    const std::string name(option->name);
    if (option->value == nullptr && value) return name + " takes no value: " + in_quotes(argument);
    if (option->value != nullptr && !value) {
      if (++i == arguments.size()) return name + " needs a value: " + option->value;
      value = arguments[i];
    }
    if (line.options[option->id]) return name + " is given twice";
    if (value && value->empty() && option->if_empty == nullptr) return name + " is empty: it needs " + option->value;
    line.options[option->id] = Line::Given{std::string(value.value_or("")), line.command == nullptr};
  }
  return {};
}

/// Empty, or a message about an option that this command does not take, or not in this position.
std::string check_options(const Line& line) {
  for (const Option& option : kOptions) {
    const auto& given = line.options[option.id];
    if (!given) continue;
    const std::string name(option.name);
    if (!takes(*line.command, option))
      return "'stepstash " + std::string(line.command->word) + "' does not take " + name;
    if (given->before_command && !option.before_command) return name + " goes behind the command";
  }
  return {};
}

bool looks_like_a_number(std::string_view text) noexcept {
  if (!text.empty() && text.front() == '-') text.remove_prefix(1);
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

/// Implements the rule of arguments.hpp. Empty on success: `out.build` is set and `words` has the arguments after
/// BUILD.
std::string find_build(const std::string* given, const char* environment, std::vector<std::string>& words,
                       Arguments& out) {
  std::string text, from;
  if (given != nullptr) {
    text = *given;
    from = "--build ";
  } else if (!words.empty() && words.front().empty()) {
    // Most likely an unset variable in a script: it must not change the meaning of the next argument.
    return "the first argument is empty: BUILD is a whole number (an empty NAME needs --build)";
  } else if (!words.empty() && looks_like_a_number(words.front())) {
    text = words.front();
    from = "BUILD ";
    words.erase(words.begin());
  } else if (environment != nullptr) {
    text = environment;
    from = "$STEPSTASH_BUILD ";
  } else if (!words.empty()) {
    return "no BUILD: " + in_quotes(words.front()) +
           " is not a whole number, and neither --build nor $STEPSTASH_BUILD is there";
  } else {
    return "no BUILD: give it as an argument, by --build or by $STEPSTASH_BUILD";
  }
  const auto build = whole_number(text);
  if (!build || *build < 1) return from + in_quotes(text) + " is not a whole number from 1 to 9223372036854775807";
  out.build = *build;
  return {};
}

/// Empty, or what is wrong with a value.
std::string read_values(const Line& line, Arguments& out) {
  const auto wrong_duration = [](const char* option, const std::string& text) {
    return std::string(option) + " " + in_quotes(text) +
           " is not a duration such as 500ms, 30s, 5min, 2h or 1d (up to 49 days)";
  };
  if (const std::string* text = line.value(Option::timeout)) {
    const auto timeout = duration(*text);
    if (!timeout || timeout->count() == 0) return wrong_duration("--timeout", *text);
    out.timeout = *timeout;
  }
  if (const std::string* text = line.value(Option::wait)) {
    out.wait = duration(*text);
    if (!out.wait) return wrong_duration("--wait", *text);
  }
  for (const auto id : {Option::at, Option::older_than}) {
    if (const std::string* text = line.value(id)) {
      out.at = whole_number(*text);
      if (!out.at || *out.at == INT64_MIN || (id == Option::at && *out.at == INT64_MAX))
        return in_quotes(*text) + " is not a whole number of seconds since 1970";
    }
  }
  if (const std::string* text = line.value(Option::sort)) {
    constexpr std::pair<std::string_view, Sort> keys[] = {
        {"build", Sort::build}, {"bytes", Sort::bytes}, {"time", Sort::time}};
    const auto* key = std::find_if(std::begin(keys), std::end(keys), [&](const auto& k) { return k.first == *text; });
    if (key == std::end(keys)) return "--sort " + in_quotes(*text) + " is none of build, bytes and time";
    out.sort = key->second;
  }
  if (const std::string* text = line.value(Option::source)) out.source = *text;
  if (const std::string* text = line.value(Option::socket)) out.socket = *text;
  if (const std::string* text = line.value(Option::output)) out.file = *text;
  out.durable = line.value(Option::durable) != nullptr;
  out.if_absent = line.value(Option::if_absent) != nullptr;
  out.json = line.value(Option::json) != nullptr;
  out.reopen = line.value(Option::reopen) != nullptr;
  if (out.reopen && out.at) return "--at and --reopen exclude each other";
  return {};
}

}  // namespace

std::span<const Command> commands() noexcept { return kCommands; }
std::span<const Option> options() noexcept { return kOptions; }
const Command& command_of(Verb verb) noexcept { return kCommands[static_cast<std::size_t>(verb)]; }

bool prints(const Arguments& a) noexcept {
  switch (a.verb) {
    case Verb::set:
      return a.json;
    case Verb::get:
      return a.file == "-";
    case Verb::finish:
    case Verb::hold:
    case Verb::unhold:
    case Verb::flush:
      return false;
    default:
      return true;
  }
}

std::optional<std::int64_t> whole_number(std::string_view text) noexcept {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::optional<std::chrono::milliseconds> duration(std::string_view text) noexcept {
  std::uint64_t count = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), count);
  if (error != std::errc()) return std::nullopt;
  const std::string_view unit(end, static_cast<std::size_t>(text.data() + text.size() - end));
  constexpr std::pair<std::string_view, std::uint64_t> units[] = {
      {"ms", 1}, {"s", 1000}, {"min", 60'000}, {"h", 3'600'000}, {"d", 86'400'000}};
  for (const auto& [name, ms] : units) {
    // The protocol carries milliseconds in 32 bits: 49 days.
    if (unit == name && count <= UINT32_MAX / ms) return std::chrono::milliseconds(count * ms);
  }
  return std::nullopt;
}

Parsed parse_arguments(int argc, const char* const* argv, const char* environment_build) {
  Line line;
  const std::size_t count = argc > 1 ? static_cast<std::size_t>(argc) - 1 : 0;
  if (std::string wrong = read_line({argv + 1, count}, line); !wrong.empty()) {
    return refuse(std::move(wrong), line.command);
  }
  if (line.value(Option::help) != nullptr) return show(line.command != nullptr ? help(*line.command) : help());
  if (line.value(Option::version) != nullptr && line.command == nullptr) {
    return show("stepstash " STEPSTASH_VERSION "\n");
  }
  if (line.command == nullptr) return refuse("a command is missing");
  const Command& command = *line.command;
  if (std::string wrong = check_options(line); !wrong.empty()) return refuse(std::move(wrong), &command);

  Arguments out;
  out.verb = command.verb;
  std::vector<std::string> words = std::move(line.words);
  if (command.takes_build) {
    std::string wrong = find_build(line.value(Option::build), environment_build, words, out);
    if (!wrong.empty()) return refuse(std::move(wrong), &command);
  }
  if (words.size() < command.min_arguments) return refuse("NAME is missing", &command);
  if (words.size() > command.max_arguments) {
    return refuse("too many arguments: " + in_quotes(words[command.max_arguments]) +
                      (command.takes_build ? " (is BUILD a whole number?)" : ""),
                  &command);
  }
  if (command.verb == Verb::help) {
    if (words.empty()) return show(help());
    const Command* wanted = find_command(words[0]);
    return wanted != nullptr ? show(help(*wanted)) : refuse(in_quotes(words[0]) + " is no command");
  }
  if (command.verb == Verb::prune && line.value(Option::older_than) == nullptr) {
    return refuse("--older-than is missing", &command);
  }
  if (!words.empty()) out.name = words[0];
  if (words.size() > 1) {
    if (words[1].empty()) return refuse("FILE is empty ('-' is standard input)", &command);
    out.file = words[1];
  }
  if (std::string wrong = read_values(line, out); !wrong.empty()) return refuse(std::move(wrong), &command);
  Parsed parsed;
  parsed.arguments = std::move(out);
  return parsed;
}

}  // namespace stepstash::cli
