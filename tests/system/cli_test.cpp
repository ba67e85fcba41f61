// SPDX-License-Identifier: Apache-2.0
// The command line: exit statuses, whole files or none, terminals, JSON; and the dependencies of the binaries.
#include <fcntl.h>
#include <pty.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "base/text.hpp"
#include "tests/system/command.hpp"

using namespace stepstash;
using namespace stepstash::test;

namespace {

/// Names in a directory, including hidden ones.
std::vector<std::string> names_in(const std::filesystem::path& directory) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) names.push_back(entry.path().filename());
  return names;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(cli)

BOOST_AUTO_TEST_CASE(what_is_set_is_got) {
  Command served;
  const std::string value = generated(3 * kMiB, 1);
  std::ofstream(served.file("in"), std::ios::binary) << value;
  BOOST_TEST(served.cli({"set", "7", "from file", served.file("in"), "--source", "step 1"}).status == 0);
  BOOST_TEST(served.cli({"set", "7", "from pipe"}, {.input = value}).status == 0);
  BOOST_TEST(served.cli({"set", "--build", "7", "empty", "-"}).status == 0);
  for (const char* name : {"from file", "from pipe"}) {
    const Outcome got = served.cli({"get", "7", name});
    BOOST_TEST(got.status == 0);
    BOOST_TEST((got.out == value));
    BOOST_TEST(got.err == "");
    BOOST_TEST(served.cli({"get", "7", name, "-o", served.file("out")}).status == 0);
    BOOST_TEST((content(served.file("out")) == value));
  }
  const Outcome empty = served.cli({"get", "empty"}, {.environment = {"STEPSTASH_BUILD=7"}});
  BOOST_TEST(empty.status == 0);
  BOOST_TEST(empty.out == "");
  BOOST_TEST(served.cli({"list", "7"}).status == 0);
  BOOST_TEST(contains(served.cli({"stat", "7", "from file"}).out, "step 1"));
}

BOOST_AUTO_TEST_CASE(absent_data_is_status_1_and_not_found) {
  Command served;
  const std::string out = served.file("out");
  for (const std::vector<std::string>& words :
       {std::vector<std::string>{"get", "7", "absent"}, {"stat", "7", "absent"}, {"get", "7", "absent", "-o", out}}) {
    const Outcome outcome = served.cli(words);
    BOOST_TEST(outcome.status == 1);
    BOOST_TEST(outcome.out == "");
    BOOST_TEST(contains(outcome.err, "not found"), outcome.err);
  }
  BOOST_TEST(!std::filesystem::exists(out));
  BOOST_TEST(served.cli({"list", "7"}).status == 0);  // an unknown build has an empty list
}

BOOST_AUTO_TEST_CASE(wrong_usage_is_status_64) {
  Command served;
  for (const std::vector<std::string>& words : {std::vector<std::string>{},
                                                {"frobnicate"},
                                                {"get", "7"},
                                                {"get", "0", "n"},
                                                {"get", "-1", "n"},
                                                {"set", "7", std::string(257, 'n')},
                                                {"set", "7", "n", "--no-such-option"},
                                                {"prune"},
                                                {"prune", "--older-than", "yesterday"},
                                                {"get", "9223372036854775808", "n"},
                                                {"get", "7", "n", "--wait", "5"}}) {
    const Outcome outcome = served.cli(words, {.input = "value"});
    BOOST_TEST(outcome.status == 64, (words.empty() ? "nothing" : words.front()) << ": " << outcome.err);
    BOOST_TEST(!outcome.err.empty());
    BOOST_TEST(outcome.out == "");
  }
}

BOOST_AUTO_TEST_CASE(no_daemon_is_status_69) {
  DaemonProcess daemon;
  const auto cli = [&] {
    return run({STEPSTASH_CLI_PATH, "stats", "--timeout", "200ms", "--socket", daemon.socket()});
  };
  BOOST_TEST(cli().status == 69);
  daemon.start();
  BOOST_TEST(cli().status == 0);
  daemon.kill();
  const Outcome dead = cli();
  BOOST_TEST(dead.status == 69);
  BOOST_TEST(contains(dead.err, daemon.socket()), dead.err);
}

BOOST_AUTO_TEST_CASE(what_cannot_be_created_is_status_73) {
  Command served({"--segment-size=8MiB"});
  served.cli({"set", "7", "n"}, {.input = "value"});
  BOOST_TEST(served.cli({"get", "7", "n", "-o", served.file("no/such/directory/out")}).status == 73);
  BOOST_TEST(served.cli({"set", "7", "n", "--if-absent"}, {.input = "other"}).status == 73);
  BOOST_TEST(served.cli({"get", "7", "n"}).out == "value");
  std::ofstream(served.file("large"), std::ios::binary) << generated(9 * kMiB, 1);
  BOOST_TEST(served.cli({"set", "7", "large", served.file("large")}).status == 73);
}

BOOST_AUTO_TEST_CASE(what_cannot_be_read_or_written_is_status_74) {
  Command served;
  served.cli({"set", "7", "n"}, {.input = generated(kMiB, 1)});
  BOOST_TEST(served.cli({"get", "7", "n"}, {.out_path = "/dev/full"}).status == 74);
  BOOST_TEST(served.cli({"get", "7", "n", "-o", "/dev/full"}).status == 74);
  BOOST_TEST(served.cli({"stats"}, {.out_path = "/dev/full"}).status == 74);
  BOOST_TEST(served.cli({"set", "7", "m", served.file("no such file")}).status == 74);
  BOOST_TEST(served.cli({"set", "7", "m", served.daemon.directory().path().string()}).status == 74);
  BOOST_TEST(served.cli({"stat", "7", "m"}).status == 1);
  // A reader that has exited.
  const Outcome gone = run({"sh", "-c", "{ \"$0\" get 7 n; echo \"status $?\" >&2; } | true", STEPSTASH_CLI_PATH},
                           {.environment = {"STEPSTASH_SOCKET=" + served.daemon.socket()}});
  BOOST_TEST(contains(gone.err, "status 74"), gone.err);
}

BOOST_AUTO_TEST_CASE(a_get_leaves_the_whole_file_or_what_was_there) {
  Command served;
  served.cli({"set", "7", "n"}, {.input = generated(3 * kMiB, 1)});
  const std::filesystem::path directory = served.file("results");
  std::filesystem::create_directory(directory);
  const std::string out = directory / "out";
  const RunOptions cut{.file_size_limit = kMiB};
  BOOST_TEST(served.cli({"get", "7", "n", "-o", out}, cut).status == 74);
  BOOST_TEST(names_in(directory).empty());
  std::ofstream(out) << "what was there";
  BOOST_TEST(served.cli({"get", "7", "n", "-o", out}, cut).status == 74);
  BOOST_TEST(content(out) == "what was there");
  BOOST_TEST(names_in(directory).size() == 1u);
  BOOST_TEST(served.cli({"get", "7", "n", "-o", out}).status == 0);
  BOOST_TEST((content(out) == generated(3 * kMiB, 1)));
}

BOOST_AUTO_TEST_CASE(a_deadline_is_status_75) {
  Command served;
  const Outcome waited = served.cli({"get", "7", "n", "--wait", "200ms"});
  BOOST_TEST(waited.status == 75);
  BOOST_TEST(!waited.err.empty());
  served.daemon.stop();
  BOOST_TEST(served.cli({"set", "7", "n", "--timeout", "300ms"}, {.input = "v"}).status != 0);
  served.daemon.resume();
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // UBSan wants a pipe for each of its checks
BOOST_AUTO_TEST_CASE(a_lack_of_descriptors_here_is_not_blamed_on_the_daemon) {
  Command served;
  served.cli({"set", "7", "n"}, {.input = "value"});
  std::ofstream(served.file("large"), std::ios::binary) << generated(kMiB, 1);  // needs a ring, one descriptor more
  int failed = 0, done = 0;
  for (int most = 3; most < 12; ++most) {
    for (const std::string& words :
         std::vector<std::string>{"get 7 n", "set 7 large " + served.file("large"), "stats"}) {
      const Outcome outcome =
          run({"sh", "-c", "ulimit -n " + std::to_string(most) + "; exec \"$0\" " + words, STEPSTASH_CLI_PATH},
              {.environment = {"STEPSTASH_SOCKET=" + served.daemon.socket()}});
      if (outcome.status == 0) {
        ++done;
        continue;
      }
      ++failed;
      const bool own_file = outcome.status == 74 && contains(outcome.err, "cannot open");
      BOOST_TEST((own_file || outcome.status == 75), outcome.err);
      BOOST_TEST((own_file || contains(outcome.err, "this process has no file descriptors left: it may have " +
                                                        std::to_string(most))),
                 outcome.err);
    }
  }
  BOOST_TEST(failed > 3);
  BOOST_TEST(done > 3);
}
#endif

BOOST_AUTO_TEST_CASE(another_user_is_status_77, *boost::unit_test::enable_if<true>()) {
  if (::geteuid() != 0) {
    BOOST_TEST_MESSAGE("skipped: only root can run the client as another user");
    return;
  }
  Command served({"--socket-mode=0666"});
  served.cli({"set", "7", "n"}, {.input = "secret"});
  const auto as_nobody = [&](const std::vector<std::string>& words) {
    std::vector<std::string> all = {"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
                                    served.file("stepstash")};
    all.insert(all.end(), words.begin(), words.end());
    return run(all, {.environment = {"STEPSTASH_SOCKET=" + served.daemon.socket()}});
  };
  // The build directory may not be accessible to others.
  std::filesystem::copy_file(STEPSTASH_CLI_PATH, served.file("stepstash"));
  std::filesystem::permissions(served.file("stepstash"), std::filesystem::perms{0755});
  std::filesystem::permissions(served.daemon.directory().path(), std::filesystem::perms{0755});
  for (const std::vector<std::string>& words :
       {std::vector<std::string>{"get", "7", "n"}, {"set", "7", "n"}, {"drop", "7"}, {"stats"}}) {
    const Outcome outcome = as_nobody(words);
    BOOST_TEST(outcome.status == 77, words.front() << ": " << outcome.err);
    BOOST_TEST(outcome.out == "");
  }
  // When the socket's mode already denies access.
  std::filesystem::permissions(served.daemon.socket(), std::filesystem::perms{0600});
  BOOST_TEST(as_nobody({"get", "7", "n"}).status == 77);
  BOOST_TEST(served.cli({"get", "7", "n"}).out == "secret");
}

BOOST_AUTO_TEST_CASE(binary_is_not_written_to_a_terminal_and_text_is) {
  Command served;
  served.cli({"set", "7", "text"}, {.input = "a line of t\xC3\xA9xt\n"});
  served.cli({"set", "7", "binary"}, {.input = std::string("\x1B[2Jnot for a terminal\0", 23)});
  int master = -1, slave = -1;
  char name[128];
  BOOST_REQUIRE(::openpty(&master, &slave, name, nullptr, nullptr) == 0);
  const UniqueFd master_owner(master), slave_owner(slave);
  const Outcome binary = served.cli({"get", "7", "binary"}, {.out_path = name});
  BOOST_TEST(binary.status == 64);
  BOOST_TEST(contains(binary.err, "binary"), binary.err);
  const Outcome text = served.cli({"get", "7", "text"}, {.out_path = name});
  BOOST_TEST(text.status == 0);
  char shown[200];
  const ssize_t got = ::read(master, shown, sizeof shown);
  BOOST_TEST(std::string_view(shown, static_cast<std::size_t>(std::max<ssize_t>(got, 0))) ==
             "a line of t\xC3\xA9xt\r\n");
  BOOST_TEST(served.cli({"get", "7", "binary"}).status == 0);  // into a pipe
}

BOOST_AUTO_TEST_CASE(json_is_json) {
  Command served;
  const std::string name = "quote \" backslash \\ line\nna\xC3\xAFve";
  const auto json = [&](std::vector<std::string> words, const std::string& input = {}) {
    words.push_back("--json");
    const Outcome outcome = served.cli(words, {.input = input});
    BOOST_TEST(outcome.status == 0, outcome.err);
    return nlohmann::json::parse(outcome.out);
  };
  const auto set = json({"set", "7", name, "-", "--source", "s\t\""}, "value");
  const auto stat = json({"stat", "7", name});
  BOOST_TEST(stat.at("name").get<std::string>() == name);
  BOOST_TEST(stat.at("source").get<std::string>() == "s\t\"");
  BOOST_TEST(stat.at("length") == 5);
  BOOST_TEST((stat.at("id") == set.at("id")));
  const auto list = json({"list", "7"});
  BOOST_REQUIRE(list.size() == 1u);
  BOOST_TEST(list[0].at("name").get<std::string>() == name);
  BOOST_TEST(json({"list", "8"}).empty());
  served.cli({"set", "6", "n"}, {.input = "longer value"});
  served.cli({"hold", "6"});
  const auto builds = json({"builds", "--sort", "bytes"});
  BOOST_REQUIRE(builds.size() == 2u);
  BOOST_TEST(builds[0].at("buildid") == 6);
  BOOST_TEST(builds[0].at("resident_bytes") == 12);
  BOOST_TEST(builds[0].at("held") == true);
  BOOST_TEST(builds[1].at("complete_at").is_null());
  BOOST_TEST(served.cli({"builds"}).out == "6\t1\t12\t0\t-\theld\n7\t1\t5\t0\t-\t-\n");
  served.cli({"drop", "6"});
  served.cli({"finish", "7", "--at", "100"});
  served.cli({"finish", "7", "--reopen"});
  BOOST_TEST(json({"prune", "--older-than", "101"}).at("deleted") == 0);
  served.cli({"finish", "7", "--at", "100"});
  BOOST_TEST(json({"prune", "--older-than", "100"}).at("deleted") == 0);
  BOOST_TEST(json({"prune", "--older-than", "101"}).at("deleted") == 1);
  BOOST_TEST(json({"drop", "7"}).at("deleted") == 0);
  const auto stats = json({"stats"});
  for (const char* key : {"entries", "values_resident", "values_evicted", "dirty_bytes", "oldest_dirty_seconds",
                          "open_views", "connections", "sets", "gets_asked", "flushes", "flush_errors"}) {
    BOOST_TEST(stats.at(key).is_number(), key);
  }
  for (const char* key : {"total_bytes", "used_bytes", "free_bytes", "largest_free_run_bytes"}) {
    BOOST_TEST(stats.at("segment").at(key).is_number_unsigned(), key);
  }
  for (const char* key : {"entries_kept", "entries_set_aside", "seconds"}) {
    BOOST_TEST(stats.at("last_recovery").at(key).is_number(), key);
  }
  for (const char* phase : {"opening_database", "counting_entries", "attaching_segment", "creating_segment",
                            "reading_list", "building_catalog"}) {
    BOOST_TEST(stats.at("last_recovery").at("phases").at(phase).is_number(), phase);
  }
}

BOOST_AUTO_TEST_CASE(no_name_source_path_or_message_commands_the_terminal) {
  const std::string evil =
      "a\xC2\x9B"
      "31mred\xE2\x80\xAE\xEF\xBB\xBF";
  const auto harmless = [](const std::string& text) {
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t end = std::min(text.find_first_of("\t\n", at), text.size());
      const std::string_view piece = std::string_view(text).substr(at, end - at);
      if (visible(piece) != piece) return false;
      at = end + 1;
    }
    return true;
  };
  Command served;
  BOOST_REQUIRE(served.cli({"set", "7", evil, "--source", evil}, {.input = "value"}).status == 0);
  BOOST_TEST(served.cli({"get", "7", evil}).out == "value");
  for (const std::vector<std::string>& words : {std::vector<std::string>{"list", "7"},
                                                {"list", "7", "--json"},
                                                {"stat", "7", evil},
                                                {"stat", "7", evil, "--json"},
                                                {"get", "8", evil},
                                                {"get", "7", evil, "--wait", evil},
                                                {"get", "7", evil, "-o", evil + "/" + evil},
                                                {"get", "8", evil, "--wait", "1ms"},
                                                {"set", "7", evil, evil},
                                                {"set", "7", evil, "--if-absent"},
                                                {"set", "7", "\xFF" + evil},
                                                {"list", "7", evil, evil},
                                                {evil},
                                                {"list", "7", "--" + evil},
                                                {"stats", "--socket", "/" + evil},
                                                {"stats", "--socket", std::string(200, '\x1B')}}) {
    const Outcome outcome = served.cli(words, {.input = "value"});
    BOOST_TEST(!(outcome.out + outcome.err).empty(), words[0]);
    BOOST_TEST(harmless(outcome.out), outcome.out);
    BOOST_TEST(harmless(outcome.err), outcome.err);
  }
  const auto list = nlohmann::json::parse(served.cli({"list", "7", "--json"}).out);
  BOOST_TEST(list.at(0).at("name").get<std::string>() == evil);

  // The daemon's own messages: to standard error before there is a log, and in the log.
  for (const std::vector<std::string>& options : {std::vector<std::string>{"--segment-directory=/" + evil},
                                                  {"--segment-name=" + evil},
                                                  {"--log-level=" + evil},
                                                  {"--" + evil},
                                                  {"--db=/proc/" + evil + "/db"}}) {
    DaemonProcess daemon(options);
    BOOST_TEST(daemon.start_refused() != 0);
    BOOST_TEST(contains(daemon.log(), "\\xc2\\x9b"), daemon.log());
    BOOST_TEST(harmless(daemon.log()), daemon.log());
  }
}

BOOST_AUTO_TEST_CASE(every_command_does_what_it_says) {
  Command served({"--flush-interval=1h"});
  const auto rows = [&] { return query(served.daemon.db(), "SELECT count(*) FROM build_data"); };
  served.cli({"set", "1", "a"}, {.input = "a"});
  BOOST_TEST(rows() == 0);
  served.cli({"set", "1", "b", "--durable"}, {.input = "b"});
  BOOST_TEST(rows() == 2);  // one flush takes all that is dirty
  served.cli({"set", "1", "c"}, {.input = "c"});
  BOOST_TEST(served.cli({"flush"}).status == 0);
  BOOST_TEST(rows() == 3);
  BOOST_TEST(served.cli({"hold", "1"}).status == 0);
  BOOST_TEST(served.cli({"finish", "1", "--at", "10"}).status == 0);
  BOOST_TEST(served.cli({"prune", "--older-than", "11"}).status == 0);
  BOOST_TEST(served.cli({"get", "1", "a"}).out == "a");
  BOOST_TEST(served.cli({"unhold", "1"}).status == 0);
  BOOST_TEST(served.cli({"prune", "--older-than", "11"}).status == 0);
  BOOST_TEST(served.cli({"get", "1", "a"}).status == 1);
  served.cli({"set", "2", "--", "--name"}, {.input = "after the options' end"});
  BOOST_TEST(served.cli({"get", "2", "--", "--name"}).out == "after the options' end");
  BOOST_TEST(contains(served.cli({"drop", "2"}).out, "1"));
}

BOOST_AUTO_TEST_SUITE_END()

// ---- what the binaries depend on -----------------------------------------------------------------------------------

// The sanitizers need a dynamic libstdc++.
BOOST_AUTO_TEST_CASE(neither_library_nor_command_needs_a_dynamic_libstdcxx_or_boost,
                     *boost::unit_test::enable_if<kScale == 1>()) {
  for (const char* path : {STEPSTASH_LIBRARY_PATH, STEPSTASH_CLI_PATH}) {
    const Outcome outcome = run({"readelf", "-d", path});
    BOOST_REQUIRE_MESSAGE(outcome.status == 0, outcome.err);
    BOOST_TEST(!contains(outcome.out, "libstdc++"), outcome.out);
    BOOST_TEST(!contains(outcome.out, "boost"), outcome.out);
  }
  BOOST_TEST(contains(run({"readelf", "-d", STEPSTASH_LIBRARY_PATH}).out, "(NEEDED)"));  // the list is not just empty
}

BOOST_AUTO_TEST_CASE(the_library_exports_its_c_abi_and_nothing_else, *boost::unit_test::enable_if<kScale == 1>()) {
  const Outcome outcome = run({"nm", "-D", "--defined-only", STEPSTASH_LIBRARY_PATH});
  BOOST_REQUIRE(outcome.status == 0);
  std::istringstream lines(outcome.out);
  int exported = 0;
  for (std::string line; std::getline(lines, line);) {
    const std::string symbol = line.substr(line.rfind(' ') + 1);
    if (symbol.starts_with("STEPSTASH_")) continue;  // the version itself
    BOOST_TEST(symbol.starts_with("stepstash_"), symbol);
    BOOST_TEST(contains(symbol, "@"), symbol);
    ++exported;
  }
  BOOST_TEST(exported > 20);
}
