// SPDX-License-Identifier: Apache-2.0
#include "daemon/config.hpp"

#include <grp.h>
#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <boost/test/unit_test.hpp>
#include <fstream>
#include <limits>
#include <map>
#include <set>

#include "tests/daemon/config_fixture.hpp"

using namespace stepstash::daemon;
using namespace std::chrono_literals;
using std::chrono::milliseconds;

namespace {

std::string size_error(std::string_view text) {
  const auto size = parse_size(text);
  return size ? "accepted" : size.error().message;
}
std::string duration_error(std::string_view text) {
  const auto duration = parse_duration(text);
  return duration ? "accepted" : duration.error().message;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(sizes)

BOOST_AUTO_TEST_CASE(every_unit_is_a_power_of_two) {
  const std::pair<std::string_view, std::uint64_t> cases[] = {{"0", 0},
                                                              {"4096", 4096},
                                                              {"12B", 12},
                                                              {"3KiB", 3072},
                                                              {"256MiB", 268435456},
                                                              {"256 MiB", 268435456},
                                                              {"1GiB", 1073741824},
                                                              {"2TiB", 2199023255552}};
  for (const auto& [text, bytes] : cases) {
    const auto size = parse_size(text);
    BOOST_TEST_REQUIRE(size.has_value(), text);
    BOOST_TEST(size.value() == bytes, text);
  }
}

BOOST_AUTO_TEST_CASE(the_largest_size_is_read_and_one_byte_more_is_refused) {
  BOOST_TEST(parse_size("18446744073709551615").value() == std::numeric_limits<std::uint64_t>::max());
  BOOST_TEST(parse_size("16777215TiB").value() == std::uint64_t{16777215} << 40);
  BOOST_TEST(contains(size_error("18446744073709551616"), "is no size"));
  BOOST_TEST(contains(size_error("16777216TiB"), "more than 2^64 - 1"));
  BOOST_TEST(contains(size_error("18014398509481984KiB"), "more than 2^64 - 1"));
}

BOOST_AUTO_TEST_CASE(junk_is_no_size) {
  for (const std::string_view text : {"", " ", "MiB", "-1", "-1MiB", "+1", "1.5GiB", "0x10", "1e3", " 1", "1 ",
                                      "1  MiB", "1MiB ", "1MiBs", "1M iB", "١"})
    BOOST_TEST(contains(size_error(text), "is no size"), text);
}

BOOST_AUTO_TEST_CASE(a_decimal_unit_is_refused_and_the_binary_one_named) {
  BOOST_TEST(contains(size_error("256MB"), "write 256MiB"));
  BOOST_TEST(contains(size_error("256M"), "write 256MiB"));
  BOOST_TEST(contains(size_error("1g"), "write 1GiB"));
  BOOST_TEST(contains(size_error("7kib"), "write 7KiB"));
  BOOST_TEST(contains(size_error("7b"), "write 7B"));
}

BOOST_AUTO_TEST_CASE(a_size_that_was_formatted_reads_back_the_same) {
  for (const std::uint64_t bytes :
       {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{1023}, std::uint64_t{1024}, std::uint64_t{1025} << 20,
        std::uint64_t{1} << 30, std::numeric_limits<std::uint64_t>::max()})
    BOOST_TEST(parse_size(format_size(bytes)).value() == bytes);
  BOOST_TEST(format_size(std::uint64_t{1} << 30) == "1GiB");
  BOOST_TEST(format_size(std::uint64_t{1025} << 20) == "1025MiB");
  BOOST_TEST(format_size(1000) == "1000B");
}

BOOST_AUTO_TEST_SUITE_END()
BOOST_AUTO_TEST_SUITE(durations)

BOOST_AUTO_TEST_CASE(every_unit_of_time_is_understood) {
  const std::pair<std::string_view, milliseconds> cases[] = {{"0", 0ms},   {"0s", 0ms},     {"200ms", 200ms},
                                                             {"10s", 10s}, {"10 s", 10s},   {"5min", 5min},
                                                             {"2h", 2h},   {"7d", 24h * 7}, {"36500d", 24h * 36500}};
  for (const auto& [text, time] : cases) {
    const auto duration = parse_duration(text);
    BOOST_TEST_REQUIRE(duration.has_value(), text);
    BOOST_TEST_REQUIRE(duration.value().has_value(), text);
    BOOST_TEST(duration.value()->count() == time.count(), text);
  }
}

BOOST_AUTO_TEST_CASE(never_is_a_duration_without_end) { BOOST_TEST(!parse_duration("never").value().has_value()); }

BOOST_AUTO_TEST_CASE(junk_is_no_duration) {
  for (const std::string_view text :
       {"", "ms", "-1s", "+1s", "1.5s", " 1s", "1s ", "1s2ms", "Never", "1y", "1000000us"})
    BOOST_TEST(contains(duration_error(text), "is no duration"), text);
}

BOOST_AUTO_TEST_CASE(a_number_without_a_unit_is_refused) { BOOST_TEST(contains(duration_error("200"), "has no unit")); }

BOOST_AUTO_TEST_CASE(a_unit_of_other_programs_is_refused_and_ours_named) {
  BOOST_TEST(contains(duration_error("5m"), "write 5min"));
  BOOST_TEST(contains(duration_error("3 days"), "write 3d"));
  BOOST_TEST(contains(duration_error("3S"), "write 3s"));
}

BOOST_AUTO_TEST_CASE(durations_that_would_overflow_are_refused) {
  BOOST_TEST(contains(duration_error("36501d"), "longer than 36500d"));
  BOOST_TEST(contains(duration_error("18446744073709551615d"), "longer than 36500d"));
  BOOST_TEST(contains(duration_error("18446744073709551616s"), "is no duration"));
}

BOOST_AUTO_TEST_CASE(a_duration_that_was_formatted_reads_back_the_same) {
  for (const milliseconds time : {0ms, 1ms, 1001ms, milliseconds{90s}, milliseconds{2h}, milliseconds{24h * 7}})
    BOOST_TEST(parse_duration(format_duration(time)).value()->count() == time.count());
  BOOST_TEST(format_duration(milliseconds{90s}) == "90s");
  BOOST_TEST(format_duration(milliseconds{24h * 7}) == "7d");
  BOOST_TEST(format_duration(std::nullopt) == "never");
}

BOOST_AUTO_TEST_SUITE_END()
BOOST_FIXTURE_TEST_SUITE(defaults, ConfigFixture)

BOOST_AUTO_TEST_CASE(a_plain_user_gets_places_of_his_own) {
  inputs.environment["XDG_RUNTIME_DIR"] = "/run/user/" + user;
  const Config made = config();
  BOOST_TEST(made.socket == "/run/user/" + user + "/stepstash/stepstash.sock");
  BOOST_TEST(made.private_directory.empty());
  BOOST_TEST(made.db == home.string() + "/.local/state/stepstash/build_data.db");
  BOOST_TEST(made.segment_name == "stepstash-" + user);
  BOOST_TEST(made.segment_directory == "/dev/shm");
  BOOST_TEST(made.config_file.empty());
}

BOOST_AUTO_TEST_CASE(the_state_directory_of_the_user_is_honoured) {
  inputs.environment["XDG_STATE_HOME"] = "/srv/state";
  BOOST_TEST(config().db == "/srv/state/stepstash/build_data.db");
}

BOOST_AUTO_TEST_CASE(relative_xdg_directories_are_ignored) {
  inputs.environment["XDG_RUNTIME_DIR"] = "run";
  inputs.environment["XDG_STATE_HOME"] = "state";
  BOOST_TEST(config().socket == "/tmp/stepstash-" + user + "/stepstash.sock");
  BOOST_TEST(config().db == home.string() + "/.local/state/stepstash/build_data.db");
}

BOOST_AUTO_TEST_CASE(without_a_runtime_directory_the_socket_goes_to_a_private_one_in_tmp) {
  const Config made = config();
  BOOST_TEST(made.socket == "/tmp/stepstash-" + user + "/stepstash.sock");
  BOOST_TEST(made.private_directory == "/tmp/stepstash-" + user);
}

BOOST_AUTO_TEST_CASE(a_value_with_a_colon_is_one_path) {
  std::filesystem::create_directory(home / "a:b");
  BOOST_TEST_REQUIRE(::chown((home / "a:b").c_str(), inputs.uid, static_cast<gid_t>(-1)) == 0);
  inputs.environment["HOME"] = (home / "a:b").string();
  inputs.environment["XDG_RUNTIME_DIR"] = (home / "a:b").string();
  BOOST_TEST(config().db == home.string() + "/a:b/.local/state/stepstash/build_data.db");
  BOOST_TEST(config().socket == home.string() + "/a:b/stepstash/stepstash.sock");
  inputs.environment["XDG_STATE_HOME"] = "/srv/a:b";
  BOOST_TEST(config().db == "/srv/a:b/stepstash/build_data.db");
  inputs.environment["XDG_CONFIG_HOME"] = (home / "a:b").string();
  std::filesystem::create_directory(home / "a:b/stepstash");
  std::ofstream(home / "a:b/stepstash/stepstashd.conf") << "max_rings = 3\n";
  BOOST_TEST(config().max_rings == 3u);
}

BOOST_AUTO_TEST_CASE(what_is_somebody_elses_is_passed_over_and_named) {
  // As after `setpriv --reuid`, `su -m` and `sudo -E`: the directories are those of the user before.
  inputs.uid += 1;
  const std::string other = std::to_string(inputs.uid);
  inputs.environment["XDG_RUNTIME_DIR"] = home.string();
  const std::string why = "belongs to user " + user;
  BOOST_TEST(contains(error(), "no home directory"));
  BOOST_TEST(contains(error(), "HOME, " + home.string() + ": " + why), error());
  inputs.options["db"] = "/srv/b.db";
  Reading reading = read();  // nor is there a file to read in that home
  BOOST_TEST(reading.config.config_file.empty());
  BOOST_TEST(reading.config.socket == "/tmp/stepstash-" + other + "/stepstash.sock");
  BOOST_TEST_REQUIRE(reading.warnings.size() == 1u);
  BOOST_TEST(contains(reading.warnings[0], "XDG_RUNTIME_DIR is " + home.string() + ", which " + why));
  inputs.options["socket"] = "/srv/s.sock";
  BOOST_TEST(read().warnings.empty());  // what was not needed was not passed over
  inputs.options.clear();
  inputs.environment["HOME"] = "/dev/null";
  BOOST_TEST(contains(error(), "HOME, /dev/null: is not a directory"), error());
}

BOOST_AUTO_TEST_CASE(root_serves_the_machine) {
  inputs.uid = 0;
  inputs.environment["XDG_RUNTIME_DIR"] = "/run/user/0";
  const Config made = config();
  BOOST_TEST(made.socket == "/run/stepstash/stepstash.sock");
  BOOST_TEST(made.db == "/var/lib/stepstash/build_data.db");
  BOOST_TEST(made.segment_name == "stepstash");
}

BOOST_AUTO_TEST_CASE(systemd_says_where_a_service_lives) {
  inputs.uid = 998;
  inputs.environment["RUNTIME_DIRECTORY"] = "/run/a:/run/b";
  inputs.environment["STATE_DIRECTORY"] = "/var/lib/a";
  const Config made = config();
  BOOST_TEST(made.socket == "/run/a/stepstash.sock");
  BOOST_TEST(made.db == "/var/lib/a/build_data.db");
  BOOST_TEST(made.segment_name == "stepstash");
}

BOOST_AUTO_TEST_CASE(a_user_unit_does_not_take_the_machines_segment_name) {
  inputs.environment["RUNTIME_DIRECTORY"] = "/run/user/" + user + "/stepstash";
  BOOST_TEST(config().socket == "/run/user/" + user + "/stepstash/stepstash.sock");
  BOOST_TEST(config().segment_name == "stepstash-" + user);
}

BOOST_AUTO_TEST_CASE(three_quarters_of_the_segment_may_be_dirty) {
  inputs.options["segment_size"] = "8MiB";
  BOOST_TEST(config().max_dirty == std::uint64_t{6} << 20);
}

BOOST_AUTO_TEST_CASE(numbers_are_those_of_the_documentation) {
  const Config made = config();
  BOOST_TEST(made.segment_size == std::uint64_t{1} << 30);
  BOOST_TEST(made.flush_interval.count() == 200);
  BOOST_TEST(!made.build_data_horizon.has_value());
  BOOST_TEST(made.prune_interval.count() == 60'000);
  BOOST_TEST(made.max_connections == 4096u);
  BOOST_TEST(made.max_connections_per_user == 1024u);
  BOOST_TEST(made.max_rings == 64u);
  BOOST_TEST(made.ring_size == std::uint64_t{8} << 20);
  BOOST_TEST(made.frame_timeout.count() == 10'000);
  BOOST_TEST(made.punch_after.count() == 10'000);
  BOOST_TEST(made.socket_mode == 0660u);
  BOOST_TEST((made.log_level == LogLevel::info));
}

BOOST_AUTO_TEST_CASE(a_socket_path_that_no_unix_socket_can_have_is_refused_with_both_lengths) {
  inputs.environment["XDG_RUNTIME_DIR"] = "/" + std::string(100, 'r');
  BOOST_TEST(contains(error(), "107 at most"));
}

BOOST_AUTO_TEST_SUITE_END()
BOOST_FIXTURE_TEST_SUITE(files, ConfigFixture)

BOOST_AUTO_TEST_CASE(every_setting_can_stand_in_the_file) {
  write_config(R"(# all of them
socket = "/srv/s.sock"
socket_mode = "0600"
socket_group = 0
db = "/srv/b.db"
segment_name = "ci.segment"
segment_directory = "/mnt/huge"
segment_size = "64MiB"
flush_interval = "1s"
max_dirty = 8388608
build_data_horizon = "7d"
prune_interval = "5min"
max_connections = 10
max_connections_per_user = 5
max_rings = 2
ring_size = "1MiB"
frame_timeout = "3s"
punch_after = "0s"
log_level = "debug"
read_users = ["root", 1001]
read_groups = [0]
write_users = "1002, 1003"
write_groups = []
admin_users = 1004
admin_groups = [1005]
)");
  const Reading reading = read();
  const Config& made = reading.config;
  BOOST_TEST(made.socket == "/srv/s.sock");
  BOOST_TEST(made.socket_mode == 0600u);
  BOOST_TEST(made.socket_group->id == 0u);
  BOOST_TEST(made.db == "/srv/b.db");
  BOOST_TEST(made.segment_name == "ci.segment");
  BOOST_TEST(made.segment_directory == "/mnt/huge");
  BOOST_TEST(made.segment_size == std::uint64_t{64} << 20);
  BOOST_TEST(made.flush_interval.count() == 1000);
  BOOST_TEST(made.max_dirty == std::uint64_t{8} << 20);
  BOOST_TEST(made.build_data_horizon->count() == 7 * 86'400'000);
  BOOST_TEST(made.prune_interval.count() == 300'000);
  BOOST_TEST(made.max_connections == 10u);
  BOOST_TEST(made.max_connections_per_user == 5u);
  BOOST_TEST(made.max_rings == 2u);
  BOOST_TEST(made.ring_size == std::uint64_t{1} << 20);
  BOOST_TEST(made.frame_timeout.count() == 3000);
  BOOST_TEST(made.punch_after.count() == 0);
  BOOST_TEST((made.log_level == LogLevel::debug));
  BOOST_TEST(made.read.users.size() == 2u);
  BOOST_TEST(made.read.users.at(1).id == 1001u);
  BOOST_TEST(made.read.groups.size() == 1u);
  BOOST_TEST(made.write.users.at(1).id == 1003u);
  BOOST_TEST(made.write.groups.empty());
  BOOST_TEST(made.admin.users.at(0).id == 1004u);
  BOOST_TEST(made.admin.groups.at(0).id == 1005u);
  for (const SettingInfo& info : setting_infos())
    BOOST_TEST(contains(reading.origins.at(info.key), "test.conf:"), info.key);
}

BOOST_AUTO_TEST_CASE(an_unknown_key_is_refused_with_its_line_and_the_nearest_known_one) {
  const std::string path = write_config("# one\n\nflush_intervall = \"1s\"\n");
  BOOST_TEST(error() == path + ":3: there is no setting \"flush_intervall\"; did you mean \"flush_interval\"?");
}

BOOST_AUTO_TEST_CASE(dashes_in_a_key_are_refused_with_the_underscored_name) {
  write_config("segment-size = \"1GiB\"\n");
  BOOST_TEST(contains(error(), ":1: there is no setting \"segment-size\"; did you mean \"segment_size\"?"));
}

BOOST_AUTO_TEST_CASE(a_key_that_resembles_nothing_gets_no_suggestion) {
  write_config("colour = \"red\"\n");
  BOOST_TEST(contains(error(), "there is no setting \"colour\""));
  BOOST_TEST(!contains(error(), "did you mean"));
}

BOOST_AUTO_TEST_CASE(a_value_out_of_range_is_refused_with_its_line_and_the_range) {
  const std::string path = write_config("\nsegment_size = \"1MiB\"\n");
  BOOST_TEST(error() == path + ":2: segment_size: 1MiB is outside 4MiB to 64TiB");
}

BOOST_AUTO_TEST_CASE(broken_toml_is_refused_with_its_line) {
  const std::string path = write_config("db = \"/a\"\nsocket = \n");
  BOOST_TEST(contains(error(), path + ":2: "));
}

BOOST_AUTO_TEST_CASE(values_of_the_wrong_kind_are_refused) {
  for (const std::string_view text : {"socket_mode = 0o660", "db = 1", "flush_interval = 1.5", "segment_size = true",
                                      "read_users = [1.5]", "read_users = [[\"root\"]]", "socket = { path = \"/a\" }",
                                      "max_rings = [\"1\"]", "log_level = 1979-05-27", "read_users = [\"a,b\"]"}) {
    write_config(text);
    BOOST_TEST(contains(error(), "test.conf:1: "), text);
  }
}

BOOST_AUTO_TEST_CASE(values_out_of_their_range_are_refused) {
  for (const std::string_view text : {"flush_interval = \"0s\"",
                                      "flush_interval = \"never\"",
                                      "flush_interval = \"2h\"",
                                      "prune_interval = \"never\"",
                                      "build_data_horizon = \"0s\"",
                                      "max_connections = 0",
                                      "max_connections = -1",
                                      "max_connections = 1000001",
                                      "max_rings = \"many\"",
                                      "ring_size = \"1KiB\"",
                                      "ring_size = \"65537B\"",
                                      "ring_size = \"2GiB\"",
                                      "segment_size = \"129TiB\"",
                                      "max_dirty = \"2GiB\"",
                                      "max_dirty = \"1KiB\"",
                                      "frame_timeout = \"1ms\"",
                                      "log_level = \"loud\"",
                                      "socket_mode = \"66\"",
                                      "socket_mode = \"0060\"",
                                      "socket_mode = \"06600\"",
                                      "socket_mode = \"rw-\"",
                                      "segment_name = \"\"",
                                      "segment_name = \".hidden\"",
                                      "segment_name = \"a/b\"",
                                      "socket = \"\"",
                                      "socket = \"/tmp/\"",
                                      "db = \"/tmp/\"",
                                      "read_users = [\"no such user here\"]",
                                      "socket_group = \"no such group here\"",
                                      "read_users = [4294967295]"}) {
    write_config(text);
    const auto reading = read_config(inputs);
    BOOST_TEST_REQUIRE(!reading.has_value(), text);
    BOOST_TEST(reading.error().exit_status == kExitConfig, text);
    BOOST_TEST(contains(reading.error().message, "test.conf:1: "), text << ": " << reading.error().message);
  }
}

BOOST_AUTO_TEST_CASE(a_segment_has_whole_pages) {
  for (const auto& [text, bytes] : {std::pair<std::string, std::uint64_t>{"67108865B", 67'112'960},
                                    {"67112959", 67'112'960},
                                    {"67112960", 67'112'960},
                                    {"64MiB", 67'108'864}}) {
    write_config("segment_size = \"" + text + "\"");
    BOOST_TEST(config().segment_size == bytes, text);
    BOOST_TEST(config().max_dirty == bytes / 4 * 3);
  }
}

BOOST_AUTO_TEST_CASE(a_segment_name_has_200_characters_at_most) {
  write_config("segment_name = \"" + std::string(200, 'n') + "\"");
  BOOST_TEST(config().segment_name.size() == 200u);
  write_config("segment_name = \"" + std::string(201, 'n') + "\"");
  BOOST_TEST(contains(error(), "1 to 200"));
}

BOOST_AUTO_TEST_CASE(a_named_file_that_is_missing_is_an_error) {
  inputs.config_file = (home / "absent.conf").string();
  BOOST_TEST(contains(error(), "absent.conf"));
}

BOOST_AUTO_TEST_CASE(a_file_that_cannot_be_read_is_no_empty_one) {
  namespace fs = std::filesystem;
  const fs::path own = home / ".config/stepstash/stepstashd.conf";
  const auto refused = [&](std::string_view reason) {
    const auto reading = read_config(inputs);
    BOOST_TEST_REQUIRE(!reading.has_value(), reason);
    BOOST_TEST(reading.error().exit_status == kExitConfig, reason);
    BOOST_TEST(contains(reading.error().message, reason), reading.error().message);
    BOOST_TEST(contains(reading.error().message, "cannot be read"), reading.error().message);
  };
  BOOST_TEST(read().config.config_file.empty());  // nothing there: the one case of no file
  for (const bool named : {false, true}) {
    fs::remove_all(home / ".config");
    fs::create_directories(own);  // what Docker makes where the file of a bind mount is missing
    if (named) inputs.config_file = own.string();
    refused("directory");
    fs::remove(own);
    fs::create_symlink(home / "nowhere", own);
    refused(named ? "No such file" : "leads nowhere");
    fs::remove(own);
    fs::create_symlink(own, own);
    refused("symbolic links");
    fs::remove(own);
    fs::create_symlink("/proc/self/mem", own);  // EIO
    refused("Input/output error");
    fs::remove(own);
    fs::create_symlink("/dev/zero", own);
    refused("longer than");
    fs::remove_all(home / ".config");
    std::ofstream(home / ".config") << "in the way";
    refused("Not a directory");
    fs::remove(home / ".config");
    fs::create_symlink(home / "nowhere", home / ".config");
    refused(named ? "No such file" : "leads nowhere");
    fs::remove(home / ".config");
  }
}

BOOST_AUTO_TEST_CASE(a_running_daemon_keeps_its_settings_when_the_file_cannot_be_read) {
  const std::string path = write_config("max_rings = 3\n");
  const Config running = config();
  std::filesystem::remove(path);
  std::filesystem::create_directory(path);
  const auto reload = reload_config(running, inputs);
  BOOST_TEST_REQUIRE(!reload.has_value());
  BOOST_TEST(contains(reload.error().message, "it is a directory"), reload.error().message);
}

BOOST_AUTO_TEST_CASE(a_plain_users_own_file_is_found) {
  std::filesystem::create_directories(home / ".config/stepstash");
  std::ofstream(home / ".config/stepstash/stepstashd.conf") << "max_rings = 3\n";
  BOOST_TEST(config().max_rings == 3u);
  BOOST_TEST(config().config_file == home.string() + "/.config/stepstash/stepstashd.conf");

  std::filesystem::create_directories(home / "xdg/stepstash");
  std::ofstream(home / "xdg/stepstash/stepstashd.conf") << "max_rings = 4\n";
  inputs.environment["XDG_CONFIG_HOME"] = (home / "xdg").string();
  BOOST_TEST(config().max_rings == 4u);
}

BOOST_AUTO_TEST_CASE(the_machines_file_is_for_services_only) {
  std::filesystem::create_directories(home / "etc");
  std::ofstream(inputs.system_config) << "max_rings = 5\n";
  BOOST_TEST(config().max_rings == 64u);
  inputs.uid = 0;
  BOOST_TEST(config().max_rings == 5u);
}

BOOST_AUTO_TEST_CASE(the_file_can_be_named_in_the_environment_and_the_command_line_outweighs_it) {
  inputs.environment["STEPSTASH_CONFIG"] = (home / "env.conf").string();
  std::ofstream(home / "env.conf") << "max_rings = 6\n";
  BOOST_TEST(config().max_rings == 6u);
  write_config("max_rings = 7\n");
  BOOST_TEST(config().max_rings == 7u);
}

BOOST_AUTO_TEST_SUITE_END()
BOOST_FIXTURE_TEST_SUITE(precedence, ConfigFixture)

BOOST_AUTO_TEST_CASE(environment_outweighs_file_and_command_line_outweighs_both_for_every_setting) {
  // For each key three values that differ from the default and from one another.
  const std::map<std::string, std::array<std::string, 3>> values = {{"socket", {"/a/1", "/a/2", "/a/3"}},
                                                                    {"socket_mode", {"0600", "0666", "0640"}},
                                                                    {"socket_group", {"1", "2", "3"}},
                                                                    {"db", {"/b/1", "/b/2", "/b/3"}},
                                                                    {"segment_name", {"n1", "n2", "n3"}},
                                                                    {"segment_directory", {"/c/1", "/c/2", "/c/3"}},
                                                                    {"segment_size", {"2GiB", "3GiB", "4GiB"}},
                                                                    {"flush_interval", {"1s", "2s", "3s"}},
                                                                    {"max_dirty", {"2MiB", "3MiB", "4MiB"}},
                                                                    {"build_data_horizon", {"1d", "2d", "3d"}},
                                                                    {"prune_interval", {"1s", "2s", "3s"}},
                                                                    {"max_connections", {"1", "2", "3"}},
                                                                    {"max_connections_per_user", {"1", "2", "3"}},
                                                                    {"max_rings", {"1", "2", "3"}},
                                                                    {"ring_size", {"1MiB", "2MiB", "3MiB"}},
                                                                    {"frame_timeout", {"1s", "2s", "3s"}},
                                                                    {"punch_after", {"1s", "2s", "3s"}},
                                                                    {"log_level", {"debug", "warning", "error"}},
                                                                    {"read_users", {"1", "2", "3"}},
                                                                    {"read_groups", {"1", "2", "3"}},
                                                                    {"write_users", {"1", "2", "3"}},
                                                                    {"write_groups", {"1", "2", "3"}},
                                                                    {"admin_users", {"1", "2", "3"}},
                                                                    {"admin_groups", {"1", "2", "3"}}};
  const std::string original = print_config(read());
  for (const SettingInfo& info : setting_infos()) {
    BOOST_TEST_REQUIRE(values.count(info.key) == 1u, info.key);
    const auto& [in_file, in_environment, in_command] = values.at(info.key);
    std::string variable = "STEPSTASH_" + info.key;
    for (char& c : variable) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    const auto printed = [&](const Reading& reading) {
      const std::string all = print_config(reading);
      const std::size_t at = all.find("\n" + info.key + " = ") + 1;
      return all.substr(at, all.find('\n', at) - at);
    };

    write_config(info.key + " = \"" + in_file + "\"\n");
    Reading reading = read();
    BOOST_TEST(contains(printed(reading), "\"" + in_file + "\"") ==
                   (info.key.find("max_connections") == std::string::npos && info.key != "max_rings"),
               info.key << ": " << printed(reading));
    BOOST_TEST(contains(printed(reading), "test.conf:1"), info.key);
    const std::string from_file = printed(reading);

    inputs.environment[variable] = in_environment;
    reading = read();
    BOOST_TEST(contains(printed(reading), in_environment), printed(reading));
    BOOST_TEST(contains(printed(reading), "# environment " + variable), printed(reading));

    inputs.options[info.key] = in_command;
    reading = read();
    BOOST_TEST(contains(printed(reading), in_command), printed(reading));
    BOOST_TEST(contains(printed(reading), "# --"), printed(reading));

    inputs.options.clear();
    inputs.environment.erase(variable);
    BOOST_TEST(printed(read()) == from_file);
  }
  inputs.config_file.reset();
  BOOST_TEST(print_config(read()) == original);
}

BOOST_AUTO_TEST_CASE(
    an_empty_text_is_an_error_for_every_setting_and_every_source_unless_the_manual_says_what_it_means) {
  std::ifstream in(STEPSTASH_SOURCE_DIR "/docs/man/stepstashd.conf.5", std::ios::binary);
  const std::string page(std::istreambuf_iterator<char>(in), {});
  for (const SettingInfo& info : setting_infos()) {
    std::string variable = "STEPSTASH_" + info.key;
    for (char& c : variable) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    const auto outcome = [&]() -> std::string {
      const auto reading = read_config(inputs);
      return reading ? "accepted" : std::to_string(reading.error().exit_status) + " " + reading.error().message;
    };
    write_config(info.key + " = \"\"\n");
    const std::string in_file = outcome();
    inputs.config_file.reset();
    inputs.environment[variable] = "";
    const std::string in_environment = outcome();
    inputs.environment.erase(variable);
    inputs.options[info.key] = "";
    const std::string in_command = outcome();
    inputs.options.clear();
    std::string option = "--" + info.key;
    for (char& c : option) c = c == '_' ? '-' : c;
    if (info.may_be_empty) {
      const std::size_t at = page.find("\n.BR " + info.key + " \"");
      BOOST_TEST(page.substr(at, page.find("\n.TP", at) - at).find("mpty") != std::string::npos, info.key);
      BOOST_TEST((in_file == "accepted" && in_environment == "accepted" && in_command == "accepted"), info.key);
      continue;
    }
    BOOST_TEST(in_file.starts_with("78 "), info.key << ": " << in_file);
    BOOST_TEST(contains(in_file, "test.conf:1: " + info.key + ": is empty"), in_file);
    BOOST_TEST(in_environment.starts_with("78 environment " + variable + ": " + info.key + ": is empty"),
               in_environment);
    BOOST_TEST(in_command.starts_with("64 " + option + ": is empty"), in_command);
    if (!info.is_list) continue;
    write_config(info.key + " = []\n");  // the one way to write that nobody is meant
    BOOST_TEST(outcome() == "accepted", info.key);
    for (const char* text : {"[\"\"]", "[1, \"\"]", "\"1,,2\"", "\",1\"", "\"1, \"", "\" \""}) {
      write_config(info.key + " = " + text + "\n");
      BOOST_TEST(outcome().starts_with("78 "), info.key << " = " << text << ": " << outcome());
    }
    inputs.config_file.reset();
  }
  inputs.environment["STEPSTASH_CONFIG"] = "";
  BOOST_TEST(contains(error(), "environment STEPSTASH_CONFIG: is empty"));
}

BOOST_AUTO_TEST_CASE(empty_variables_of_others_count_as_not_set) {
  for (const char* name :
       {"XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "RUNTIME_DIRECTORY", "STATE_DIRECTORY"})
    inputs.environment[name] = "";
  const Reading reading = read();
  BOOST_TEST(reading.config.db == home.string() + "/.local/state/stepstash/build_data.db");
  BOOST_TEST(reading.config.socket == "/tmp/stepstash-" + user + "/stepstash.sock");
  BOOST_TEST(reading.warnings.empty());
}

BOOST_AUTO_TEST_CASE(a_bad_variable_is_a_configuration_error_that_names_it) {
  inputs.environment["STEPSTASH_SEGMENT_SIZE"] = "lots";
  const auto reading = read_config(inputs);
  BOOST_TEST_REQUIRE(!reading.has_value());
  BOOST_TEST(reading.error().exit_status == kExitConfig);
  BOOST_TEST(
      contains(reading.error().message, "environment STEPSTASH_SEGMENT_SIZE: segment_size: \"lots\" is no size"));
}

BOOST_AUTO_TEST_CASE(a_bad_option_is_a_usage_error_that_names_it) {
  inputs.options["segment_size"] = "lots";
  const auto reading = read_config(inputs);
  BOOST_TEST_REQUIRE(!reading.has_value());
  BOOST_TEST(reading.error().exit_status == kExitUsage);
  BOOST_TEST(contains(reading.error().message, "--segment-size: \"lots\" is no size"));
}

BOOST_AUTO_TEST_CASE(a_value_that_is_outweighed_is_not_looked_at) {
  inputs.environment["STEPSTASH_SEGMENT_SIZE"] = "lots";
  inputs.options["segment_size"] = "8MiB";
  BOOST_TEST(config().segment_size == std::uint64_t{8} << 20);
}

BOOST_AUTO_TEST_CASE(a_slip_in_a_variable_is_a_warning_and_the_clients_variables_are_none) {
  inputs.environment["STEPSTASH_BUILD"] = "7";
  inputs.environment["STEPSTASH_SEGMENTSIZE"] = "8MiB";
  const Reading reading = read();
  BOOST_TEST_REQUIRE(reading.warnings.size() == 1u);
  BOOST_TEST(contains(reading.warnings.front(), "STEPSTASH_SEGMENTSIZE"));
  BOOST_TEST(contains(reading.warnings.front(), "segment_size"));
}

BOOST_AUTO_TEST_CASE(relative_paths_are_made_absolute) {
  inputs.options["socket"] = "a/./../s.sock";
  inputs.options["db"] = "b.db";
  BOOST_TEST(config().socket == (std::filesystem::current_path() / "s.sock").string());
  BOOST_TEST(config().db == (std::filesystem::current_path() / "b.db").string());
}

BOOST_AUTO_TEST_SUITE_END()
BOOST_FIXTURE_TEST_SUITE(printing, ConfigFixture)

BOOST_AUTO_TEST_CASE(what_is_printed_is_a_configuration_file_that_means_the_same) {
  inputs.options = {{"socket", "/a b/\"quoted\"\\.sock"},
                    {"db", "/b\n.db"},
                    {"socket_group", "0"},
                    {"segment_size", "1025MiB"},
                    {"build_data_horizon", "36h"},
                    {"read_users", "1,2"},
                    {"flush_interval", "1500ms"}};
  const Reading first = read();
  const std::string printed = print_config(first);
  inputs.options.clear();
  write_config(printed);
  Reading second = read();
  second.origins = first.origins;
  second.config.config_file = first.config.config_file;
  BOOST_TEST(print_config(second) == printed);
  BOOST_TEST(second.config.db == "/b\n.db");
  BOOST_TEST(second.config.socket == "/a b/\"quoted\"\\.sock");
}

BOOST_AUTO_TEST_SUITE_END()
BOOST_FIXTURE_TEST_SUITE(reloading, ConfigFixture)

BOOST_AUTO_TEST_CASE(each_setting_is_taken_over_or_reported_as_its_documentation_says) {
  const std::string path = write_config("");
  const Config running = config();
  const std::map<std::string, std::string> news = {{"socket", "/a/1"},       {"socket_mode", "0600"},
                                                   {"socket_group", "1"},    {"db", "/b/1"},
                                                   {"segment_name", "n1"},   {"segment_directory", "/c/1"},
                                                   {"segment_size", "2GiB"}, {"flush_interval", "1s"},
                                                   {"max_dirty", "2MiB"},    {"build_data_horizon", "1d"},
                                                   {"prune_interval", "1s"}, {"max_connections", "1"},
                                                   {"max_rings", "1"},       {"max_connections_per_user", "1"},
                                                   {"ring_size", "1MiB"},    {"frame_timeout", "1s"},
                                                   {"punch_after", "1s"},    {"log_level", "debug"},
                                                   {"read_users", "1"},      {"read_groups", "1"},
                                                   {"write_users", "1"},     {"write_groups", "1"},
                                                   {"admin_users", "1"},     {"admin_groups", "1"}};
  for (const SettingInfo& info : setting_infos()) {
    BOOST_TEST_REQUIRE(news.count(info.key) == 1u, info.key);
    write_config(info.key + " = \"" + news.at(info.key) + "\"\n");
    const auto reload = reload_config(running, inputs);
    BOOST_TEST_REQUIRE(reload.has_value(), info.key);
    const auto& [config, changed, needs_restart, warnings] = reload.value();
    BOOST_TEST(changed.size() == (info.reloadable ? 1u : 0u), info.key);
    BOOST_TEST(needs_restart.size() == (info.reloadable ? 0u : 1u), info.key);
    // What is reported is what happened to the settings that go on serving.
    const std::string before = print_config({running, {}, {}});
    const std::string after = print_config({config, {}, {}});
    BOOST_TEST((before != after) == info.reloadable, info.key);
  }
}

BOOST_AUTO_TEST_CASE(a_bad_file_changes_nothing) {
  write_config("max_rings = 3\n");
  const Config running = config();
  write_config("max_rings = \n");
  BOOST_TEST(!reload_config(running, inputs).has_value());
}

BOOST_AUTO_TEST_CASE(nothing_is_reported_when_nothing_changed) {
  write_config("segment_size = \"64MiB\"\n");
  const Config running = config();
  const auto reload = reload_config(running, inputs);
  BOOST_TEST(reload.value().changed.empty());
  BOOST_TEST(reload.value().needs_restart.empty());
}

BOOST_AUTO_TEST_CASE(the_default_of_max_dirty_follows_the_segment_that_serves) {
  write_config("");
  const Config running = config();
  write_config("segment_size = \"8GiB\"\n");
  const auto reload = reload_config(running, inputs);
  BOOST_TEST(reload.value().config.max_dirty == running.max_dirty);
  BOOST_TEST(reload.value().needs_restart.size() == 1u);
  BOOST_TEST(reload.value().config.segment_size == running.segment_size);
}

BOOST_AUTO_TEST_CASE(max_dirty_never_passes_the_segment_that_serves) {
  write_config("segment_size = \"64MiB\"\n");
  const Config running = config();
  write_config("segment_size = \"8GiB\"\nmax_dirty = \"4GiB\"\n");
  BOOST_TEST(reload_config(running, inputs).value().config.max_dirty == running.segment_size);
}

BOOST_AUTO_TEST_SUITE_END()
BOOST_AUTO_TEST_SUITE(rights)

constexpr uid_t kOwn = 900, kPeer = 1001;
constexpr gid_t kSocketGroup = 950, kOtherGroup = 100;
constexpr std::array<gid_t, 1> kMember{kSocketGroup}, kStranger{kOtherGroup};

BOOST_AUTO_TEST_CASE(by_default_the_daemons_user_root_and_the_sockets_group_may_do_all) {
  const Config config;
  BOOST_TEST((config.right_of(0, kStranger, kOwn, kSocketGroup) == Right::admin));
  BOOST_TEST((config.right_of(kOwn, kStranger, kOwn, kSocketGroup) == Right::admin));
  BOOST_TEST((config.right_of(kPeer, kMember, kOwn, kSocketGroup) == Right::admin));
  BOOST_TEST((config.right_of(kPeer, kStranger, kOwn, kSocketGroup) == Right::none));
  BOOST_TEST((config.right_of(kPeer, {}, kOwn, kSocketGroup) == Right::none));
}

BOOST_AUTO_TEST_CASE(once_a_list_is_configured_the_sockets_group_has_no_rights_of_itself) {
  Config config;
  config.read.users = {{"1001", 1001}};
  BOOST_TEST((config.right_of(kPeer, kStranger, kOwn, kSocketGroup) == Right::read));
  BOOST_TEST((config.right_of(kPeer + 1, kMember, kOwn, kSocketGroup) == Right::none));
  BOOST_TEST((config.right_of(0, kStranger, kOwn, kSocketGroup) == Right::admin));
}

BOOST_AUTO_TEST_CASE(the_greatest_right_counts) {
  Config config;
  config.read.users = {{"1001", 1001}};
  config.write.groups = {{"100", kOtherGroup}};
  BOOST_TEST((config.right_of(kPeer, kStranger, kOwn, kSocketGroup) == Right::write));
  config.admin.users = {{"1001", 1001}};
  BOOST_TEST((config.right_of(kPeer, kStranger, kOwn, kSocketGroup) == Right::admin));
}

BOOST_AUTO_TEST_CASE(any_of_a_peers_groups_will_do) {
  Config config;
  config.write.groups = {{"100", kOtherGroup}};
  const std::array<gid_t, 3> groups{1, 2, kOtherGroup};
  BOOST_TEST((config.right_of(kPeer, groups, kOwn, kSocketGroup) == Right::write));
}

BOOST_AUTO_TEST_SUITE_END()
BOOST_FIXTURE_TEST_SUITE(directories, ConfigFixture)

BOOST_AUTO_TEST_CASE(missing_directories_are_made_and_closed_to_others) {
  inputs.options["socket"] = (home / "a/b/s.sock").string();
  inputs.options["db"] = (home / "c/d/x.db").string();
  BOOST_TEST(prepare_directories(config(), inputs.uid).has_value());
  for (const char* made : {"a", "a/b", "c", "c/d"}) {
    struct stat status {};
    BOOST_TEST_REQUIRE(::stat((home / made).c_str(), &status) == 0, made);
    BOOST_TEST((status.st_mode & 0777u) == 0700u, made);
  }
  BOOST_TEST(prepare_directories(config(), inputs.uid).has_value());  // and again
}

BOOST_AUTO_TEST_CASE(others_can_reach_the_socket_of_roots_daemon_whatever_the_umask) {
  inputs.options["socket"] = (home / "run/s.sock").string();
  inputs.options["db"] = (home / "state/x.db").string();
  const mode_t mask = ::umask(0077);
  const auto prepared = prepare_directories(config(), 0);
  ::umask(mask);
  BOOST_TEST_REQUIRE(prepared.has_value());
  struct stat status {};
  BOOST_TEST_REQUIRE(::stat((home / "run").c_str(), &status) == 0);
  BOOST_TEST((status.st_mode & 0777u) == 0755u);
  BOOST_TEST_REQUIRE(::stat((home / "state").c_str(), &status) == 0);
  BOOST_TEST((status.st_mode & 0777u) == 0700u);
}

BOOST_AUTO_TEST_CASE(a_state_directory_of_an_earlier_version_is_closed_to_others) {
  inputs.uid = ::getuid();
  inputs.environment["STATE_DIRECTORY"] = (home / "state").string();
  inputs.options["socket"] = (home / "run/s.sock").string();
  std::filesystem::create_directory(home / "state");
  const auto mode = [&](const char* name) {
    struct stat status {};
    return ::stat((home / name).c_str(), &status) == 0 ? status.st_mode & 07777u : 0;
  };
  for (const mode_t former : {0750u, 0777u, 0700u}) {
    BOOST_TEST_REQUIRE(::chmod((home / "state").c_str(), former) == 0);
    const auto prepared = prepare_directories(config(), ::getuid());
    BOOST_TEST_REQUIRE(prepared.has_value());
    BOOST_TEST(prepared.value().empty());
    BOOST_TEST(mode("state") == 0700u);
  }
  // Of somebody else: refused, with both users. It is not for us to change.
  const auto foreign = prepare_directories(config(), ::getuid() + 1);
  BOOST_TEST_REQUIRE(!foreign.has_value());
  BOOST_TEST(contains(foreign.error().message, (home / "state").string() + " belongs to user"));
  BOOST_TEST(foreign.error().exit_status == kExitConfig);
  // Through a link, as when /var/lib/stepstash has moved to a larger disk.
  std::filesystem::rename(home / "state", home / "disk");
  std::filesystem::create_directory_symlink(home / "disk", home / "state");
  BOOST_TEST_REQUIRE(::chmod((home / "disk").c_str(), 0750) == 0);
  BOOST_TEST(prepare_directories(config(), ::getuid()).has_value());
  BOOST_TEST(mode("disk") == 0700u);
}

BOOST_AUTO_TEST_CASE(a_directory_that_somebody_named_stays_as_it_is_and_what_others_can_do_there_is_said) {
  inputs.options["socket"] = (home / "run/s.sock").string();
  inputs.options["db"] = (home / "named/x.db").string();
  std::filesystem::create_directory(home / "named");
  for (const auto& [mode, warned] : std::initializer_list<std::pair<mode_t, bool>>{
           {0700u, false}, {0755u, false}, {0775u, true}, {01777u, false}, {0777u, true}}) {
    BOOST_TEST_REQUIRE(::chmod((home / "named").c_str(), mode) == 0);
    const auto prepared = prepare_directories(config(), ::getuid());
    BOOST_TEST_REQUIRE(prepared.has_value());
    BOOST_TEST(prepared.value().size() == (warned ? 1u : 0u), mode);
    struct stat status {};
    BOOST_TEST_REQUIRE(::stat((home / "named").c_str(), &status) == 0);
    BOOST_TEST((status.st_mode & 07777u) == mode);
  }
  // Where it is the socket's as well, clients have to get through.
  inputs.options.clear();
  inputs.uid = ::getuid();
  inputs.environment["STATE_DIRECTORY"] = inputs.environment["RUNTIME_DIRECTORY"] = (home / "named").string();
  BOOST_TEST_REQUIRE(::chmod((home / "named").c_str(), 0755) == 0);
  BOOST_TEST(prepare_directories(config(), ::getuid()).has_value());
  struct stat status {};
  BOOST_TEST_REQUIRE(::stat((home / "named").c_str(), &status) == 0);
  BOOST_TEST((status.st_mode & 07777u) == 0755u);
}

BOOST_AUTO_TEST_CASE(a_file_in_the_way_is_named) {
  std::ofstream(home / "a") << "in the way";
  inputs.options["socket"] = (home / "a/s.sock").string();
  const auto made = prepare_directories(config(), getuid());
  BOOST_TEST_REQUIRE(!made.has_value());
  BOOST_TEST(contains(made.error().message, (home / "a").string() + " is not a directory"));
  BOOST_TEST(made.error().exit_status == kExitConfig);
}

BOOST_AUTO_TEST_CASE(a_private_directory_that_is_open_foreign_or_a_link_is_refused) {
  Config config = this->config();
  const std::filesystem::path place = home / "private";
  config.private_directory = place.string();
  config.socket = (place / "stepstash.sock").string();
  config.db = (home / "x.db").string();
  BOOST_TEST(prepare_directories(config, getuid()).has_value());  // made by us
  BOOST_TEST(prepare_directories(config, getuid()).has_value());  // found as we made it

  BOOST_TEST_REQUIRE(::chmod(place.c_str(), 0755) == 0);
  BOOST_TEST(!prepare_directories(config, getuid()).has_value());
  BOOST_TEST_REQUIRE(::chmod(place.c_str(), 0700) == 0);
  BOOST_TEST(!prepare_directories(config, getuid() + 1).has_value());  // somebody else's

  std::filesystem::rename(place, home / "elsewhere");
  std::filesystem::create_directory_symlink(home / "elsewhere", place);
  BOOST_TEST(!prepare_directories(config, getuid()).has_value());
}

BOOST_AUTO_TEST_SUITE_END()
BOOST_FIXTURE_TEST_SUITE(documentation, ConfigFixture)

namespace {
std::string read_document(const std::string& name) {
  std::ifstream in(std::string(STEPSTASH_SOURCE_DIR "/docs/") + name, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}
}  // namespace

BOOST_AUTO_TEST_CASE(every_setting_stands_in_the_manual_page_and_says_when_it_takes_a_restart) {
  const std::string page = read_document("man/stepstashd.conf.5");
  for (const SettingInfo& info : setting_infos()) {
    // `.B key`, `.BR key " (restart)"`, or the second of two in `.BR key ", " key`.
    BOOST_TEST((contains(page, "\n.B " + info.key + "\n") || contains(page, "\n.BR " + info.key + " \"") ||
                contains(page, ", \" " + info.key + "\n")),
               info.key);
    BOOST_TEST(contains(page, "\n.BR " + info.key + " \" (restart)\"\n") == !info.reloadable, info.key);
  }
}

BOOST_AUTO_TEST_CASE(the_example_shows_the_defaults_of_a_service) {
  std::string example = read_document("stepstashd.conf.example");
  std::size_t settings = 0;
  for (const SettingInfo& info : setting_infos()) {
    const std::size_t at = example.find("\n# " + info.key + " = ");
    BOOST_TEST_REQUIRE(at != std::string::npos, info.key);
    example.erase(at + 1, 2);
    ++settings;
  }
  BOOST_TEST(settings == 24u);
  inputs.uid = 0;
  const std::string defaults = print_config({config(), {}, {}});
  write_config(example);
  Reading shown = read();
  shown.config.config_file.clear();
  BOOST_TEST(print_config({shown.config, {}, {}}) == defaults);
}

BOOST_AUTO_TEST_SUITE_END()
