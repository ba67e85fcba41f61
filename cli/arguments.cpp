#include "cli/arguments.hpp"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <charconv>
#include <memory>
#include <utility>
#include <vector>

#include "base/text.hpp"

namespace stepstash::cli {
namespace {

constexpr const char* kBuildRule =
    "BUILD may be left out: with --build no argument is BUILD; without it the first argument is BUILD if it is a "
    "whole\n"
    "number, and otherwise BUILD is $STEPSTASH_BUILD. A name that is a number therefore needs --build.\n";

constexpr const char* kExitStatuses =
    "Exit status: 0 done; 1 no such build data (doctor: something is wrong); 64 usage; 69 daemon not reachable;\n"
    "73 cannot create (the output file; a value that can never fit; --if-absent and the name is there); 74 input or\n"
    "output failed; 75 try later (full, or the deadline passed); 77 not permitted.\n";

/// One subcommand: what its help says, and which options it takes.
struct Command {
  Verb verb;
  const char* word;
  const char* arguments;
  const char* summary;
  const char* examples;
  bool takes_build;
  std::size_t min_arguments, max_arguments;  // after BUILD
  bool prints_json;
};

constexpr std::array<Command, 12> kCommands = {{
    {Verb::set, "set", "[BUILD] NAME [FILE|-]",
     "Add a build datum, or replace its value and source (Buildbot: setBuildData).\n"
     "The value is FILE's content, or standard input.",
     "  stepstash set 42 toolchain toolchain.tar --source 'compile step'\n"
     "  make-report | stepstash set 42 report\n"
     "  stepstash set --build 42 --durable 2024 figures.json\n",
     true, 1, 2, true},
    {Verb::get, "get", "[BUILD] NAME",
     "Write the value of a build datum to standard output, or to a file (Buildbot: getBuildData).",
     "  stepstash get 42 report\n"
     "  stepstash get 42 toolchain -o toolchain.tar\n"
     "  stepstash get 42 coverage --wait 5min | tar x\n",
     true, 1, 1, false},
    {Verb::stat, "stat", "[BUILD] NAME",
     "Show a build datum without its value: id, revision, length, source (Buildbot: getBuildDataNoValue).",
     "  stepstash stat 42 report\n"
     "  stepstash stat 42 report --json\n",
     true, 1, 1, true},
    {Verb::list, "list", "[BUILD] [NAME]",
     "List the data of a build without values, in id order (Buildbot: getAllBuildDataNoValues).\n"
     "One line each: id, length, name, source; control characters, quotes and backslashes as \\xNN.",
     "  stepstash list 42\n"
     "  stepstash list 42 report --json\n",
     true, 0, 1, true},
    {Verb::finish, "finish", "[BUILD]",
     "Record that a build completed, and when. Its data is pruned once that is longer ago than the horizon.",
     "  stepstash finish 42\n"
     "  stepstash finish 42 --at 1700000000\n",
     true, 0, 0, false},
    {Verb::prune, "prune", "",
     "Delete the data of builds completed strictly before a time (Buildbot: deleteOldBuildData).",
     "  stepstash prune --older-than $(date -d '1 week ago' +%s)\n", false, 0, 0, true},
    {Verb::drop, "drop", "[BUILD]", "Delete all data of one build, held or not.", "  stepstash drop 42\n", true, 0, 0,
     true},
    {Verb::hold, "hold", "[BUILD]", "Keep a build's data from being pruned, for a re-run.", "  stepstash hold 42\n",
     true, 0, 0, false},
    {Verb::unhold, "unhold", "[BUILD]", "Let a held build's data be pruned again.", "  stepstash unhold 42\n", true, 0,
     0, false},
    {Verb::flush, "flush", "", "Return when all that was acknowledged before is committed to the database.",
     "  stepstash flush --timeout 1min\n", false, 0, 0, false},
    {Verb::doctor, "doctor", "",
     "Say what is wrong, and what to do about it: damaged values, objects that were set aside, a database\n"
     "that takes no writes. Exit status 0: nothing is wrong; 1: something is.",
     "  stepstash doctor\n"
     "  stepstash doctor --json | jq -r '.[].what'\n",
     false, 0, 0, true},
    {Verb::stats, "stats", "", "Show the daemon's counters.", "  stepstash stats --json | jq .segment\n", false, 0, 0,
     true},
}};

/// CLI11's help with a usage line that says what find_build() makes of the arguments.
class Help : public CLI::Formatter {
 public:
  explicit Help(std::string usage) : usage_(std::move(usage)) { column_width(28); }
  std::string make_usage(const CLI::App*, std::string) const override { return "Usage: " + usage_ + "\n"; }

 private:
  std::string usage_;
};

/// What the options of every subcommand write to.
struct Raw {
  std::array<std::string, 3> words;  // BUILD, NAME, FILE, or fewer
  std::string build, timeout, wait, at, file;
};

/// A name such as "[a,b]" must arrive as it is: CLI11 splits such texts for options that take several, so every
/// argument is an option of its own that takes one.
void add_options(CLI::App& sub, const Command& command, Raw& raw, Arguments& out) {
  const char* names[] = {"first", "second", "third"};
  const std::size_t count = command.max_arguments + (command.takes_build ? 1 : 0);
  for (std::size_t i = 0; i < count; ++i) sub.add_option(names[i], raw.words[i])->group("");
  if (command.takes_build) sub.add_option("--build", raw.build, "the build")->type_name("BUILD");
  switch (command.verb) {
    case Verb::set:
      sub.add_option("--source", out.source, "where the value comes from, 0 to 256 characters")->type_name("SOURCE");
      sub.add_flag("--durable", out.durable, "return only when the database has committed it");
      sub.add_flag("--if-absent", out.if_absent, "fail with 73 when the name is there already");
      break;
    case Verb::get:
      sub.add_option("-o,--output", raw.file, "write to FILE, which appears whole or not at all")->type_name("FILE");
      sub.add_option("--wait", raw.wait, "wait that long for the name to appear")->type_name("DURATION");
      break;
    case Verb::finish:
      sub.add_option("--at", raw.at, "seconds since 1970 (default: now)")->type_name("EPOCH");
      break;
    case Verb::prune:
      sub.add_option("--older-than", raw.at, "seconds since 1970")->type_name("EPOCH")->required();
      break;
    default:
      break;
  }
  if (command.prints_json) sub.add_flag("--json", out.json, "print JSON");
  sub.add_option("--socket", out.socket, "the daemon's socket (default: $STEPSTASH_SOCKET, or the usual places)")
      ->type_name("PATH");
  sub.add_option("--timeout", raw.timeout, "how long to wait for the daemon (default: 10s)")->type_name("DURATION");
  sub.formatter(std::make_shared<Help>(std::string("stepstash ") + command.word + " [OPTIONS]" +
                                       (*command.arguments != 0 ? " " : "") + command.arguments));
  sub.footer(std::string("\nExamples:\n") + command.examples + (command.takes_build ? "\n" : "") +
             (command.takes_build ? kBuildRule : "") + "\n" + kExitStatuses);
}

Parsed refuse(std::string message, std::string_view command = {}) {
  Parsed parsed;
  parsed.text = "stepstash: " + std::move(message) + "\nTry 'stepstash " + std::string(command) +
                (command.empty() ? "--help'.\n" : " --help'.\n");
  parsed.exit_status = kUsage;
  return parsed;
}

bool looks_like_a_number(std::string_view text) noexcept {
  if (!text.empty() && text.front() == '-') text.remove_prefix(1);
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

std::string in_quotes(std::string_view text) { return '"' + printable(text) + '"'; }

/// The rule of arguments.hpp. Empty: `out.build` is set and `words` has the arguments after BUILD.
std::string find_build(const Raw& raw, bool given, const char* environment, std::vector<std::string>& words,
                       Arguments& out) {
  std::string text, from;
  if (given) {
    text = raw.build;
    from = "--build ";
  } else if (!words.empty() && looks_like_a_number(words.front())) {
    text = words.front();
    from = "BUILD ";
    words.erase(words.begin());
  } else if (environment != nullptr && *environment != 0) {
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

}  // namespace

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
  Arguments out;
  Raw raw;
  CLI::App app("Build data in shared memory: what one step of a build sets, a later one gets in place.", "stepstash");
  bool version = false;
  app.add_flag("--version", version, "print the version and exit");
  app.require_subcommand(0, 1);  // at most one: an argument that is called like another one is an argument
  app.formatter(std::make_shared<Help>("stepstash COMMAND [OPTIONS] [ARGUMENTS]"));
  app.footer(std::string("\nstepstash COMMAND --help tells more. '--' ends the options.\n\n") + kBuildRule + "\n" +
             kExitStatuses);
  std::array<CLI::App*, kCommands.size()> subs{};
  for (std::size_t i = 0; i < kCommands.size(); ++i) {
    const std::string_view summary = kCommands[i].summary;
    subs[i] = app.add_subcommand(kCommands[i].word, std::string(summary));
    // Only the options of the command that is meant are made: all of them take 0.1 ms, a sixth of a whole get.
    if (argc > 1 &&
        std::any_of(argv + 1, argv + argc, [&](const char* a) { return kCommands[i].word == std::string_view(a); })) {
      add_options(*subs[i], kCommands[i], raw, out);
    }
  }

  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    Parsed parsed;
    parsed.text = app.help();
    return parsed;
  } catch (const CLI::ParseError& error) {
    const auto used = app.get_subcommands();
    return refuse(printable(error.what()), used.empty() ? std::string() : used.front()->get_name());
  }
  if (version) {
    Parsed parsed;
    parsed.text = "stepstash " STEPSTASH_VERSION "\n";
    return parsed;
  }
  const auto used = app.get_subcommands();
  if (used.empty()) return refuse("a command is missing");
  const std::size_t which = static_cast<std::size_t>(std::find(subs.begin(), subs.end(), used.front()) - subs.begin());
  const Command& command = kCommands[which];
  CLI::App& sub = *subs[which];
  out.verb = command.verb;

  std::vector<std::string> words;
  for (std::size_t i = 0; const char* name : {"first", "second", "third"}) {
    const CLI::Option* option = sub.get_option_no_throw(name);
    if (option != nullptr && option->count() > 0) words.push_back(raw.words[i]);
    ++i;
  }
  if (command.takes_build) {
    std::string wrong = find_build(raw, sub.count("--build") > 0, environment_build, words, out);
    if (!wrong.empty()) return refuse(std::move(wrong), command.word);
  }
  if (words.size() < command.min_arguments) return refuse("NAME is missing", command.word);
  if (words.size() > command.max_arguments) {
    return refuse("too many arguments: " + in_quotes(words[command.max_arguments]) + " (is BUILD a whole number?)",
                  command.word);
  }
  if (!words.empty()) out.name = words[0];
  if (words.size() > 1) out.file = words[1];
  if (sub.get_option_no_throw("--output") != nullptr && sub.count("--output") > 0) out.file = raw.file;

  const auto wrong_duration = [&](const char* option, const std::string& text) {
    return refuse(std::string(option) + " " + in_quotes(text) +
                      " is not a duration such as 500ms, 30s, 5min, 2h or 1d (up to 49 days)",
                  command.word);
  };
  if (sub.count("--timeout") > 0) {
    const auto timeout = duration(raw.timeout);
    if (!timeout || timeout->count() == 0) return wrong_duration("--timeout", raw.timeout);
    out.timeout = *timeout;
  }
  if (!raw.wait.empty()) {
    out.wait = duration(raw.wait);
    if (!out.wait) return wrong_duration("--wait", raw.wait);
  }
  if (!raw.at.empty()) {
    out.at = whole_number(raw.at);
    if (!out.at || *out.at == INT64_MIN)
      return refuse(in_quotes(raw.at) + " is not a whole number of seconds since 1970", command.word);
  }
  Parsed parsed;
  parsed.arguments = std::move(out);
  return parsed;
}

}  // namespace stepstash::cli
