// SPDX-License-Identifier: Apache-2.0
#include "daemon/options.hpp"

#include <boost/test/unit_test.hpp>
#include <string>
#include <vector>

#include "tests/daemon/config_fixture.hpp"

using namespace stepstash::daemon;

namespace {

struct OptionsFixture : ConfigFixture {
  /// Parses as a plain user, with the environment of the fixture.
  CommandLine parse(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "stepstashd");
    std::vector<const char*> argv;
    for (const std::string& argument : arguments) argv.push_back(argument.c_str());
    argv.push_back(nullptr);
    std::vector<std::string> lines;
    for (const auto& [name, value] : inputs.environment) lines.push_back(name + "=" + value);
    std::vector<const char*> envp;
    for (const std::string& line : lines) envp.push_back(line.c_str());
    envp.push_back(nullptr);
    return parse_command_line(static_cast<int>(arguments.size()), argv.data(), envp.data(), inputs.uid);
  }
};

}  // namespace

BOOST_FIXTURE_TEST_SUITE(command_line, OptionsFixture)

BOOST_AUTO_TEST_CASE(without_options_the_defaults_serve) {
  const CommandLine command = parse({});
  BOOST_TEST_REQUIRE(command.reading.has_value());
  BOOST_TEST(command.output.empty());
  BOOST_TEST(command.errors.empty());
  BOOST_TEST(command.reading->config.segment_name == "stepstash-" + user);
}

BOOST_AUTO_TEST_CASE(options_of_the_command_line_reach_the_configuration) {
  const CommandLine command =
      parse({"--socket", "/a/s.sock", "--db=/a/b.db", "--segment-name", "x", "--segment-size", "256MiB",
             "--flush-interval", "50ms", "--build-data-horizon", "7d", "--read-users", "1,2", "--read-users", "3"});
  BOOST_TEST_REQUIRE(command.reading.has_value(), command.errors);
  const Config& config = command.reading->config;
  BOOST_TEST(config.socket == "/a/s.sock");
  BOOST_TEST(config.db == "/a/b.db");
  BOOST_TEST(config.segment_name == "x");
  BOOST_TEST(config.segment_size == std::uint64_t{256} << 20);
  BOOST_TEST(config.flush_interval.count() == 50);
  BOOST_TEST(config.build_data_horizon->count() == 7 * 86'400'000);
  BOOST_TEST(config.read.users.size() == 3u);
}

BOOST_AUTO_TEST_CASE(the_last_mention_of_an_option_counts) {
  BOOST_TEST(parse({"--max-rings", "1", "--max-rings", "2"}).reading->config.max_rings == 2u);
}

BOOST_AUTO_TEST_CASE(inputs_are_kept_for_a_reload) {
  const std::string path = write_config("max_rings = 3\n");
  CommandLine command = parse({"--config", path, "--max-connections", "9"});
  BOOST_TEST_REQUIRE(command.reading.has_value());
  write_config("max_rings = 4\nmax_connections = 8\n");
  const auto reload = reload_config(command.reading->config, command.inputs);
  BOOST_TEST(reload.value().config.max_rings == 4u);
  BOOST_TEST(reload.value().config.max_connections == 9u);
}

BOOST_AUTO_TEST_CASE(usage_errors_exit_64_and_point_to_help) {
  for (const std::vector<std::string>& arguments : {std::vector<std::string>{"--no-such-option"},
                                                    {"surplus"},
                                                    {"--segment-size"},
                                                    {"--segment-size", "many"},
                                                    {"--max-rings", "0"},
                                                    {"--check-config", "surplus"},
                                                    {"-x"},
                                                    {"--", "surplus"}}) {
    const CommandLine command = parse(arguments);
    BOOST_TEST(!command.reading.has_value(), arguments.front());
    BOOST_TEST(command.exit_status == kExitUsage, arguments.front());
    BOOST_TEST(contains(command.errors, "stepstashd: "), command.errors);
    BOOST_TEST(contains(command.errors, "--help"), command.errors);
    BOOST_TEST(command.output.empty());
  }
}

BOOST_AUTO_TEST_CASE(an_option_that_is_empty_is_a_usage_error_however_it_is_written) {
  std::vector<std::string> all = {"--config"};
  for (const SettingInfo& info : setting_infos()) {
    if (!info.may_be_empty) all.push_back("--" + info.key);
  }
  for (std::string& option : all) {
    for (char& c : option) c = c == '_' ? '-' : c;
    for (const std::vector<std::string>& arguments :
         {std::vector<std::string>{option, ""}, {option + "="}, {option + "=", "--print-config"}}) {
      const CommandLine command = parse(arguments);
      BOOST_TEST(!command.reading.has_value(), option);
      BOOST_TEST(command.exit_status == kExitUsage, option);
      BOOST_TEST(contains(command.errors, "stepstashd: " + option + ": is empty"), command.errors);
    }
  }
  const CommandLine command = parse({"--socket-group=", "--max-rings=3"});  // the manual says what it means
  BOOST_TEST_REQUIRE(command.reading.has_value(), command.errors);
  BOOST_TEST(command.reading->config.max_rings == 3u);
  BOOST_TEST(!command.reading->config.socket_group.has_value());
  BOOST_TEST(parse({"--check-config="}).exit_status == kExitUsage);
  BOOST_TEST(parse({"--no-such-option="}).exit_status == kExitUsage);
}

BOOST_AUTO_TEST_CASE(a_misspelt_option_gets_a_suggestion) {
  BOOST_TEST(contains(parse({"--segment-sise", "1GiB"}).errors, "did you mean --segment-size?"));
  BOOST_TEST(contains(parse({"--segmnt-size=1GiB"}).errors, "did you mean --segment-size?"));
  BOOST_TEST(contains(parse({"--chek-config"}).errors, "did you mean --check-config?"));
}

BOOST_AUTO_TEST_CASE(a_bad_file_exits_78_and_is_named_with_its_line) {
  const std::string path = write_config("max_rings = 0\n");
  for (const char* action : {"--check-config", "--print-config", "--max-connections=1"}) {
    const CommandLine command = parse({"--config", path, action});
    BOOST_TEST(!command.reading.has_value());
    BOOST_TEST(command.exit_status == kExitConfig);
    BOOST_TEST(contains(command.errors, path + ":1: max_rings"), command.errors);
  }
}

BOOST_AUTO_TEST_CASE(check_config_says_which_file_is_ok) {
  const std::string path = write_config("max_rings = 3\n");
  const CommandLine command = parse({"--config", path, "--check-config"});
  BOOST_TEST(!command.reading.has_value());
  BOOST_TEST(command.exit_status == 0);
  BOOST_TEST(command.output == path + ": ok\n");
}

BOOST_AUTO_TEST_CASE(print_config_shows_values_and_where_they_come_from) {
  const std::string path = write_config("max_rings = 3\n");
  inputs.environment["STEPSTASH_RING_SIZE"] = "1MiB";
  const CommandLine command = parse({"--config", path, "--print-config", "--db", "/a/b.db"});
  BOOST_TEST(!command.reading.has_value());
  BOOST_TEST(command.exit_status == 0);
  const auto line = [&](std::string_view key) {
    const std::size_t at = command.output.find("\n" + std::string(key) + " = ") + 1;
    return command.output.substr(at, command.output.find('\n', at) - at);
  };
  BOOST_TEST(line("max_rings").starts_with("max_rings = 3 "));
  BOOST_TEST(line("max_rings").ends_with("# " + path + ":1"));
  BOOST_TEST(line("ring_size").ends_with("# environment STEPSTASH_RING_SIZE"));
  BOOST_TEST(line("db").ends_with("# --db"));
  BOOST_TEST(line("log_level").ends_with("# default"));
}

BOOST_AUTO_TEST_CASE(version_and_help_are_answered_without_looking_at_the_configuration) {
  inputs.environment["STEPSTASH_CONFIG"] = "/nonexistent/stepstashd.conf";
  const CommandLine version = parse({"--version"});
  BOOST_TEST(version.exit_status == 0);
  BOOST_TEST(version.output == "stepstashd " STEPSTASH_VERSION "\n");
  const CommandLine help = parse({"--help"});
  BOOST_TEST(help.exit_status == 0);
  for (const SettingInfo& info : setting_infos()) {
    std::string option = "--" + info.key;
    for (char& c : option) c = c == '_' ? '-' : c;
    BOOST_TEST(contains(help.output, option + " " + info.placeholder), option);
  }
}

BOOST_AUTO_TEST_SUITE_END()
