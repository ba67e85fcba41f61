// SPDX-License-Identifier: Apache-2.0
#include "daemon/options.hpp"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <deque>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/text.hpp"

namespace stepstash::daemon {
namespace {

constexpr std::string_view kEpilogue =
    "Sizes are whole numbers with B, KiB, MiB, GiB or TiB (256MiB); durations have ms, s, min, h or d (200ms), or are\n"
    "\"never\". Every setting may also stand in the configuration file (flush_interval = \"200ms\") or in the "
    "environment\n"
    "(STEPSTASH_FLUSH_INTERVAL=200ms); the command line outweighs the environment, which outweighs the file.\n"
    "See stepstashd(8) and stepstashd.conf(5).";

std::string option_name(std::string_view key) {
  std::string name = "--" + std::string(key);
  std::replace(name.begin(), name.end(), '_', '-');
  return name;
}

std::string suggestion(std::string_view option, const std::vector<SettingInfo>& infos) {
  std::vector<std::string> known = {"--config", "--check-config", "--restore", "--print-config", "--version", "--help"};
  for (const SettingInfo& info : infos) known.push_back(option_name(info.key));
  const auto meant = nearest(option.substr(0, option.find('=')), known);
  return meant ? fmt::format("; did you mean {}?", *meant) : std::string();
}

void refuse(CommandLine& command, std::string_view message, int exit_status) {
  command.errors += fmt::format("stepstashd: {}\n", visible(message));
  if (exit_status == kExitUsage) command.errors += "Try 'stepstashd --help'.\n";
  command.exit_status = exit_status;
}

}  // namespace

CommandLine parse_command_line(int argc, const char* const* argv, const char* const* envp, uid_t uid) {
  CommandLine command;
  command.inputs.environment = Inputs::copy_environment(envp);
  command.inputs.uid = uid;

  CLI::App app("Keeps the data of builds in shared memory, and behind it in SQLite.", "stepstashd");
  app.set_help_flag();  // --help is handled below, so that the caller decides where it is written
  app.allow_extras();   // reported below, with a suggestion
  app.footer(std::string(kEpilogue));

  bool help = false, version = false, check = false, print = false;
  std::string config_file;
  CLI::Option* config_option = app.add_option("--config", config_file, "read this configuration file");
  config_option->type_name("FILE");

  CLI::Option* restore =
      app.add_option("--restore", command.restore, "put this backup in the place of the database, and exit");
  restore->type_name("FILE");

  const std::vector<SettingInfo> infos = setting_infos();
  std::deque<std::vector<std::string>> texts;  // a deque: CLI11 keeps references to its elements
  std::vector<CLI::Option*> options;
  std::deque<std::string> known_words;  // likewise
  for (const SettingInfo& info : infos) {
    CLI::Option* option = app.add_option(option_name(info.key), texts.emplace_back(), info.help);
    // One text per occurrence, so that the next word is never taken as another element.
    option->type_name(info.placeholder)->expected(1);
    option->multi_option_policy(info.is_list ? CLI::MultiOptionPolicy::TakeAll : CLI::MultiOptionPolicy::TakeLast);
    option->allow_extra_args(false);
    options.push_back(option);
  }
  app.add_flag("--check-config", check, "check the configuration, say so, and exit");
  app.add_flag("--print-config", print, "print the configuration in force and where it comes from, and exit");
  app.add_flag("--version", version, "print the version and exit");
  app.add_flag("-h,--help", help, "print this and exit");

  // CLI11 takes the next word as the value of `--name=`.
  std::vector<const char*> words(argv, argv + argc);
  for (std::size_t i = 1; i < words.size(); ++i) {
    const std::string_view word = words[i];
    if (!word.starts_with("--") || word.find('=') != word.size() - 1) continue;
    const std::string name(word.substr(0, word.size() - 1));
    const auto* option = app.get_option_no_throw(name);
    if (option == nullptr) continue;  // refused below
    if (option->get_expected_max() == 0) {
      refuse(command, fmt::format("{} takes no value", name), kExitUsage);
      return command;
    }
    words[i] = known_words.emplace_back(name).c_str();
    words.insert(words.begin() + static_cast<std::ptrdiff_t>(++i), "");
  }

  try {
    app.parse(static_cast<int>(words.size()), words.data());
  } catch (const CLI::ParseError& error) {
    refuse(command, error.what(), kExitUsage);
    return command;
  }
  if (const std::vector<std::string> extras = app.remaining(); !extras.empty()) {
    const std::string& first = extras.front();
    refuse(command,
           first.starts_with("-") ? fmt::format("there is no option {}{}", first, suggestion(first, infos))
                                  : fmt::format("\"{}\" is not expected: there are options only", first),
           kExitUsage);
    return command;
  }
  if (help) {
    command.output = app.help();
    return command;
  }
  if (version) {
    command.output = "stepstashd " STEPSTASH_VERSION "\n";
    return command;
  }

  if (config_option->count() > 0) {
    if (config_file.empty()) {
      refuse(command, "--config: is empty", kExitUsage);
      return command;
    }
    command.inputs.config_file = config_file;
  }
  if (restore->count() != 0 && command.restore.empty()) {
    refuse(command, "--restore: a path is needed", kExitUsage);
    return command;
  }
  for (std::size_t i = 0; i < infos.size(); ++i) {
    if (options[i]->count() == 0) continue;
    std::string joined;
    for (const std::string& text : texts[i]) joined += (joined.empty() ? "" : ",") + text;
    command.inputs.options.insert_or_assign(infos[i].key, joined);
  }

  auto reading = read_config(command.inputs);
  if (!reading) {
    refuse(command, reading.error().message, reading.error().exit_status);
    return command;
  }
  if (check || print) {
    for (const std::string& warning : reading.value().warnings)
      command.errors += fmt::format("stepstashd: {}\n", visible(warning));
    if (print) command.output += print_config(reading.value());
    if (check) {
      const std::string& file = reading.value().config.config_file;
      command.output +=
          file.empty() ? "no configuration file; the settings are ok\n" : fmt::format("{}: ok\n", visible(file));
    }
    return command;
  }
  command.reading = std::move(reading).value();
  return command;
}

}  // namespace stepstash::daemon
