// SPDX-License-Identifier: Apache-2.0
#define BOOST_TEST_MODULE cli
#include "cli/arguments.hpp"

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <fstream>
#include <sstream>
#include <utility>
#include <vector>

namespace stepstash::cli {
namespace {

using namespace std::chrono_literals;

Parsed parse(std::vector<const char*> words, const char* environment = nullptr) {
  words.insert(words.begin(), "stepstash");
  return parse_arguments(static_cast<int>(words.size()), words.data(), environment);
}

Arguments good(std::vector<const char*> words, const char* environment = nullptr) {
  const Parsed parsed = parse(std::move(words), environment);
  BOOST_TEST_REQUIRE(parsed.arguments.has_value(), parsed.text);
  return *parsed.arguments;
}

/// The complaint; empty when there was none.
std::string refused(std::vector<const char*> words, const char* environment = nullptr) {
  const Parsed parsed = parse(std::move(words), environment);
  if (parsed.arguments || parsed.exit_status != kUsage) return {};
  return parsed.text;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(arguments)

BOOST_AUTO_TEST_CASE(a_first_argument_that_is_a_whole_number_is_the_build) {
  const Arguments a = good({"set", "42", "report", "file", "--source", "s", "--durable", "--if-absent"}, "7");
  BOOST_TEST(a.build == 42);
  BOOST_TEST(a.name.value() == "report");
  BOOST_TEST(a.file == "file");
  BOOST_TEST(a.source == "s");
  BOOST_TEST(a.durable);
  BOOST_TEST(a.if_absent);
}

BOOST_AUTO_TEST_CASE(otherwise_the_build_comes_from_the_environment) {
  const Arguments a = good({"set", "report", "file"}, "7");
  BOOST_TEST(a.build == 7);
  BOOST_TEST(a.name.value() == "report");
  BOOST_TEST(a.file == "file");
  BOOST_TEST(good({"finish"}, "7").build == 7);
  BOOST_TEST(good({"list"}, "7").build == 7);
  BOOST_TEST(!good({"list"}, "7").name.has_value());
  BOOST_TEST(good({"list", "report"}, "7").name.value() == "report");
  BOOST_TEST(good({"list", "42"}, "7").build == 42);
}

BOOST_AUTO_TEST_CASE(with_the_option_no_argument_is_the_build) {
  const Arguments a = good({"set", "--build", "9", "2024", "file"}, "7");
  BOOST_TEST(a.build == 9);
  BOOST_TEST(a.name.value() == "2024");
  BOOST_TEST(a.file == "file");
  BOOST_TEST(good({"get", "2024", "--build=9"}).name.value() == "2024");
}

BOOST_AUTO_TEST_CASE(builds_that_are_none_are_refused) {
  for (const char* build : {"0", "-1", "9223372036854775808", "99999999999999999999"}) {
    BOOST_TEST(refused({"get", "--", build, "n"}).find("9223372036854775807") != std::string::npos, build);
  }
  for (const char* build : {"", "0", "x", "1e3", " 1", "1 ", "+1", "0x10"}) {
    BOOST_TEST(!refused({"get", "--build", build, "n"}).empty(), "--build '" << build << "'");
    BOOST_TEST(!refused({"get", "n"}, build).empty(), "$STEPSTASH_BUILD '" << build << "'");
  }
  BOOST_TEST(good({"get", "9223372036854775807", "n"}).build == INT64_MAX);
}

BOOST_AUTO_TEST_CASE(what_is_missing_or_too_much_is_refused) {
  BOOST_TEST(!refused({}).empty());
  BOOST_TEST(!refused({"get"}).empty());
  BOOST_TEST(!refused({"get", "42"}).empty());
  BOOST_TEST(!refused({"get", "report"}).empty());  // no build anywhere
  BOOST_TEST(!refused({"get", "42", "a", "b"}).empty());
  BOOST_TEST(!refused({"get", "a", "b"}, "7").empty());
  BOOST_TEST(!refused({"set", "1", "2", "3", "4"}).empty());
  BOOST_TEST(!refused({"finish", "42", "43"}).empty());
  BOOST_TEST(!refused({"flush", "42"}).empty());
  BOOST_TEST(!refused({"prune"}).empty());
  BOOST_TEST(!refused({"frobnicate"}).empty());
  BOOST_TEST(!refused({"get", "42", "a", "--frobnicate"}).empty());
}

BOOST_AUTO_TEST_CASE(names_arrive_as_they_are) {
  for (const char* name : {"",   "[a,b]", "{}", "a b", "%%",       "stats", "set", "na\xC3\xAFve", "a\nb", "../x", "@f",
                           "++", "+",     "-",  "=",   "--build=", "[]",    "{a}", "(x)",          "'",    "help"}) {
    if (*name == '-' && name[1] != 0) continue;  // an option, unless "--" stands before it
    BOOST_TEST(good({"get", "42", name}).name.value() == name, "'" << name << "'");
  }
  BOOST_TEST(good({"get", "--", "42", "-o"}).name.value() == "-o");
  BOOST_TEST(good({"get", "42", "--", "--help"}).name.value() == "--help");
  BOOST_TEST(good({"get", "--", "42", "--"}).name.value() == "--");
  BOOST_TEST(good({"--", "get", "42", "--json"}).name.value() == "--json");
}

BOOST_AUTO_TEST_CASE(values_of_options_arrive_as_they_are) {
  for (const char* text : {"++", "[a,b]", "{}", "%%", "=", "a=b", "--durable", "-", "--", "a\nb", "@f"}) {
    BOOST_TEST(good({"set", "42", "n", "--source", text, "--if-absent"}).source == text, "'" << text << "'");
    BOOST_TEST(good({"set", "42", "n", (std::string("--source=") + text).c_str()}).source == text, "'" << text << "'");
    BOOST_TEST(good({"--socket", text, "stats"}).socket == text, "'" << text << "'");
  }
  for (const auto& words : {std::vector<const char*>{"-o", "out"}, {"-oout"}, {"--output", "out"}, {"--output=out"}}) {
    std::vector<const char*> all = {"get", "42", "n"};
    all.insert(all.end(), words.begin(), words.end());
    BOOST_TEST(good(all).file == "out", words[0]);
  }
}

// The table is what the parser reads: an option that is added to it is tried here as well.
BOOST_AUTO_TEST_CASE(an_empty_value_of_any_option_is_refused_unless_it_means_something) {
  int refusals = 0;
  for (const Option& option : options()) {
    if (option.value == nullptr) continue;
    const std::string name(option.name);
    const std::string joined = name + "=";
    const std::string letter = std::string("-") + option.letter;
    for (const Command& command : commands()) {
      if ((option.commands >> static_cast<unsigned>(command.verb) & 1) == 0) continue;
      std::vector<std::vector<const char*>> lines = {{command.word, name.c_str(), ""}, {command.word, joined.c_str()}};
      if (option.letter != 0) lines.push_back({command.word, letter.c_str(), ""});
      if (option.before_command) lines.push_back({name.c_str(), "", command.word});
      for (std::vector<const char*>& line : lines) {
        line.insert(line.end(), command.min_arguments, "n");
        if (option.if_empty == nullptr) {
          const std::string text = refused(line, "7");
          BOOST_TEST(text.find(name + " is empty") != std::string::npos, command.word << " " << name << ": " << text);
          ++refusals;
        } else {
          BOOST_TEST(parse(line, "7").arguments.has_value(), command.word << " " << name);
        }
      }
    }
  }
  BOOST_TEST(refusals > 50);
}

BOOST_AUTO_TEST_CASE(empty_arguments_and_variables_are_refused_where_a_build_or_a_file_is_meant) {
  for (const char* command : {"set", "get", "stat", "list", "finish", "drop", "hold", "unhold"}) {
    BOOST_TEST(!refused({command, "", "n"}, "7").empty(), command);
    BOOST_TEST(!refused({command, ""}, "7").empty(), command);
    BOOST_TEST(refused({command, "n"}, "").find("$STEPSTASH_BUILD \"\"") != std::string::npos, command);
  }
  BOOST_TEST(!refused({"set", "", "report"}, "7").empty());  // not the empty name, set from a file called report
  BOOST_TEST(!refused({"set", "42", "n", ""}).empty());
  BOOST_TEST(!refused({"help", ""}).empty());
  BOOST_TEST(!refused({""}).empty());
  BOOST_TEST(good({"get", "--build", "7", ""}).name.value().empty());
  BOOST_TEST(good({"get", "42", "n"}, "").build == 42);  // the variable is not asked
}

BOOST_AUTO_TEST_CASE(what_belongs_to_every_command_may_stand_before_it) {
  for (const char* command : {"stats", "doctor", "builds", "flush"}) {
    for (const auto& words : {std::vector<const char*>{"--socket", "S", "--timeout=5s", command},
                              {"--socket=S", command, "--timeout", "5s"},
                              {command, "--socket", "S", "--timeout", "5s"}}) {
      const Arguments a = good(words);
      BOOST_TEST(a.socket == "S", command);
      BOOST_TEST((a.timeout == 5s), command);
    }
  }
  BOOST_TEST(good({"--json", "list", "42"}).json);
  BOOST_TEST(good({"list", "42", "--json"}).json);
  BOOST_TEST(good({"--socket", "stats", "list", "42"}).socket == "stats");  // a value that is called like a command
  BOOST_TEST(refused({"--json", "get", "42", "n"}).find("does not take --json") != std::string::npos);
  BOOST_TEST(refused({"--durable", "set", "42", "n"}).find("behind the command") != std::string::npos);
  BOOST_TEST(refused({"--socket", "A", "stats", "--socket", "B"}).find("twice") != std::string::npos);
  BOOST_TEST(!refused({"--socket", "stats"}).empty());  // no command is left
  BOOST_TEST(!refused({"--build", "7", "get", "n"}).empty());
}

BOOST_AUTO_TEST_CASE(options_that_are_none_or_for_another_command_are_refused) {
  for (const Option& option : options()) {
    for (const Command& command : commands()) {
      if ((option.commands >> static_cast<unsigned>(command.verb) & 1) != 0) continue;
      const std::string name(option.name);
      std::vector<const char*> line = {command.word, name.c_str()};
      if (option.value != nullptr) line.push_back("1");
      line.insert(line.end(), command.min_arguments, "n");
      BOOST_TEST(refused(line, "7").find("does not take " + name) != std::string::npos, command.word << " " << name);
    }
  }
  for (const char* text : {"--sock", "-x", "--", "--json=1", "-", "--js", "-oh"}) {
    BOOST_TEST(!refused({"stats", text, "x"}).empty(), text);
  }
  BOOST_TEST(!refused({"get", "42", "n", "-o"}).empty());
  BOOST_TEST(!refused({"stats", "--timeout"}).empty());
}

BOOST_AUTO_TEST_CASE(builds_are_sorted_by_number_bytes_or_time) {
  BOOST_TEST((good({"builds"}).sort == Sort::build));
  BOOST_TEST((good({"builds", "--sort", "build"}).sort == Sort::build));
  BOOST_TEST((good({"builds", "--sort", "bytes"}).sort == Sort::bytes));
  BOOST_TEST((good({"builds", "--sort=time"}).sort == Sort::time));
  BOOST_TEST(!refused({"builds", "--sort", "size"}).empty());
  BOOST_TEST(!refused({"builds", "7"}).empty());
}

BOOST_AUTO_TEST_CASE(help_is_a_command_too) {
  BOOST_TEST(parse({"help"}).text == parse({"--help"}).text);
  BOOST_TEST(parse({"help"}).exit_status == kDone);
  for (const Command& command : commands()) {
    BOOST_TEST(parse({"help", command.word}).text == parse({command.word, "--help"}).text, command.word);
    BOOST_TEST(parse({command.word, "-h"}).text == parse({command.word, "--help"}).text, command.word);
    BOOST_TEST(parse({"help"}).text.find(std::string("\n  ") + command.word + " ") != std::string::npos, command.word);
  }
  BOOST_TEST(!refused({"help", "frobnicate"}).empty());
  BOOST_TEST(!refused({"help", "get", "set"}).empty());
}

BOOST_AUTO_TEST_CASE(the_manual_has_every_command_and_option) {
  std::ifstream page(STEPSTASH_SOURCE_DIR "/docs/man/stepstash.1");
  std::stringstream buffer;
  buffer << page.rdbuf();
  std::string text = buffer.str();
  text.erase(std::remove(text.begin(), text.end(), '\\'), text.end());
  for (const Command& command : commands()) {
    BOOST_TEST(text.find(std::string("stepstash ") + command.word) != std::string::npos, command.word);
  }
  for (const Option& option : options()) BOOST_TEST(text.find(option.name) != std::string::npos, option.name);
}

BOOST_AUTO_TEST_CASE(durations_need_a_unit_and_fit_the_protocol) {
  BOOST_TEST((duration("200ms") == 200ms));
  BOOST_TEST((duration("5s") == 5s));
  BOOST_TEST((duration("2min") == 120s));
  BOOST_TEST((duration("1h") == 3600s));
  BOOST_TEST((duration("49d") == 49 * 24h));
  for (const char* text : {"", "5", "s", "-1s", "1.5s", "5 s", "50d", "5m", "99999999999999999999s", "5sec"}) {
    BOOST_TEST(!duration(text).has_value(), "'" << text << "'");
  }
  BOOST_TEST((good({"get", "42", "n", "--wait", "0s"}).wait == 0ms));
  BOOST_TEST(!refused({"get", "42", "n", "--wait", "5"}).empty());
  BOOST_TEST(!refused({"get", "42", "n", "--timeout", "0s"}).empty());
}

BOOST_AUTO_TEST_CASE(times_are_whole_seconds_of_either_sign) {
  BOOST_TEST(good({"finish", "42", "--at", "1700000000"}).at.value() == 1'700'000'000);
  BOOST_TEST(good({"finish", "42", "--reopen"}).reopen);
  BOOST_TEST(refused({"finish", "42", "--reopen", "--at", "5"}).find("exclude") != std::string::npos);
  BOOST_TEST(!refused({"finish", "42", "--at", "9223372036854775807"}).empty());  // the library's word for it
  BOOST_TEST(good({"prune", "--older-than=-5"}).at.value() == -5);
  for (const char* text : {"", "now", "1e9", "1.5", "9223372036854775808", "-9223372036854775808"}) {
    BOOST_TEST(!refused({"finish", "42", (std::string("--at=") + text).c_str()}).empty(), "'" << text << "'");
  }
}

BOOST_AUTO_TEST_CASE(help_is_no_error_and_tells_the_exit_statuses) {
  for (const char* command : {"set", "get", "stat", "list", "builds", "finish", "prune", "drop", "hold", "unhold",
                              "flush", "doctor", "stats"}) {
    const Parsed parsed = parse({command, "--help"});
    BOOST_TEST(parsed.exit_status == kDone);
    BOOST_TEST(parsed.text.find(std::string("Usage: stepstash ") + command) != std::string::npos, command);
    BOOST_TEST(parsed.text.find("Examples:") != std::string::npos, command);
    BOOST_TEST(parsed.text.find("77 not permitted") != std::string::npos, command);
  }
  BOOST_TEST(parse({"--version"}).text == "stepstash " STEPSTASH_VERSION "\n");
}

BOOST_AUTO_TEST_CASE(a_complaint_cannot_be_forged_by_its_arguments) {
  const std::string text = refused({"get", "42", "a", "evil\nstepstash: all is well"});
  BOOST_TEST(text.find("\nstepstash: all is well") == std::string::npos);
  BOOST_TEST(!text.empty());
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace stepstash::cli
