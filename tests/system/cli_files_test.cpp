// SPDX-License-Identifier: Apache-2.0
// Where the command line reads and writes: closed and full outputs, `-o FILE` for everything that a path can be, inputs
// that report wrong sizes or are non-blocking.
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <utility>

#include "protocol/frame.hpp"
#include "tests/system/command.hpp"

using namespace stepstash;
using namespace stepstash::test;
namespace fs = std::filesystem;

namespace {

using Words = std::vector<std::string>;

/// A daemon whose build 7 has "n", 3 MiB, and "t", a short text; and a directory for results.
struct Files : Command {
  explicit Files(std::vector<std::string> options = {}) : Command(std::move(options)) {
    client.set(7, "n", value);
    client.set(7, "t", "text\n");
    fs::create_directory(directory);
  }
  /// Runs `script` by sh, with the command as "$0" and the words as "$@".
  Outcome sh(const std::string& script, Words words = {}, RunOptions options = {}) const {
    words.insert(words.begin(), {"sh", "-c", script, STEPSTASH_CLI_PATH});
    options.environment.push_back("STEPSTASH_SOCKET=" + daemon.socket());
    return run(words, options);
  }
  Outcome get(const std::string& to, const std::string& name = "t") const { return cli({"get", "7", name, "-o", to}); }
  /// As user nobody, with a copy of the command: the build directory may not be accessible to others.
  Outcome as_nobody(const Words& words) const {
    const std::string copy = file("stepstash");
    if (!fs::exists(copy)) fs::copy_file(STEPSTASH_CLI_PATH, copy);
    fs::permissions(copy, fs::perms{0755});
    fs::permissions(daemon.directory().path(), fs::perms{0755});
    Words all = {"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", copy};
    all.insert(all.end(), words.begin(), words.end());
    return run(all, {.environment = {"STEPSTASH_SOCKET=" + daemon.socket()}});
  }
  fs::path in(const char* name) const { return directory / name; }
  std::set<std::string> names() const {
    std::set<std::string> all;
    for (const auto& entry : fs::directory_iterator(directory)) all.insert(entry.path().filename());
    return all;
  }

  const std::string value = generated(3 * kMiB, 1);
  const fs::path directory = file("results");
  Client client{daemon.socket()};
};

struct stat status_of(const fs::path& path) {
  struct stat status {};
  BOOST_REQUIRE_MESSAGE(::stat(path.c_str(), &status) == 0, path);
  return status;
}

void write_file(const fs::path& path, std::string_view text) { std::ofstream(path, std::ios::binary) << text; }

std::string attribute(const fs::path& path, const char* name) {
  char value[256];
  const ssize_t bytes = ::getxattr(path.c_str(), name, value, sizeof value);
  return bytes < 0 ? "(none)" : std::string(value, static_cast<std::size_t>(bytes));
}

bool root_only() {
  if (::geteuid() == 0) return true;
  BOOST_TEST_MESSAGE("skipped: only root can do that");
  return false;
}

/// For a shell: closes descriptors that the program running the tests may have left open.
constexpr const char* kNoOthers = "exec 3>&- 4>&- 5>&- 6>&-\n";

/// An ACL in the kernel's format: the owner rw, user 12345 r, group r, mask r, others nothing.
std::string acl_for_12345() {
  struct Entry {
    std::uint16_t tag, permissions;
    std::uint32_t id;
  };
  constexpr std::uint32_t kNobody = 0xFFFFFFFF;
  const Entry entries[] = {{1, 6, kNobody}, {2, 4, 12345}, {4, 4, kNobody}, {0x10, 4, kNobody}, {0x20, 0, kNobody}};
  const std::uint32_t version = 2;
  std::string out(reinterpret_cast<const char*>(&version), sizeof version);
  return out.append(reinterpret_cast<const char*>(entries), sizeof entries);
}

}  // namespace

BOOST_AUTO_TEST_SUITE(cli_files)

// ---- standard output -----------------------------------------------------------------------------------------------

BOOST_AUTO_TEST_CASE(every_command_notices_that_its_output_is_closed_or_full) {
  Files served;
  served.client.set(7, "empty", "");
  const std::vector<Words> printing = {{"get", "7", "n"},
                                       {"get", "7", "empty"},
                                       {"stat", "7", "n"},
                                       {"list", "7"},
                                       {"list", "7", "--json"},
                                       {"list", "8"},
                                       {"builds"},
                                       {"builds", "--json"},
                                       {"doctor"},
                                       {"stats"},
                                       {"stats", "--json"},
                                       {"set", "7", "s", "--json", "/dev/null"},
                                       {"prune", "--older-than", "0"},
                                       {"drop", "9", "--json"},
                                       {"drop", "7"},  // last: if its result cannot be printed, it is not done
                                       {"help"},
                                       {"help", "get"},
                                       {"--help"},
                                       {"get", "--help"},
                                       {"--version"}};
  const std::vector<Words> silent = {
      {"set", "7", "s", "/dev/null"},           {"finish", "5"}, {"hold", "5"}, {"unhold", "5"}, {"flush"},
      {"get", "7", "n", "-o", served.in("out")}};
  std::set<std::string> tried;
  for (const Words& words : printing) {
    tried.insert(words[0]);
    const Outcome closed = served.sh("\"$0\" \"$@\" >&-", words);
    BOOST_TEST(closed.status == 74, words[0] << ": " << closed.status << " " << closed.err);
    BOOST_TEST(contains(closed.err, "standard output"), closed.err);
    if (words == Words{"get", "7", "empty"} || words == Words{"list", "8"} || words[0] == "drop") continue;
    const Outcome full = served.sh("\"$0\" \"$@\" > /dev/full", words);
    BOOST_TEST(full.status == 74, words[0] << ": " << full.status << " " << full.err);
  }
  for (const Words& words : silent) {
    tried.insert(words[0]);
    const Outcome closed = served.sh("\"$0\" \"$@\" >&-", words);
    BOOST_TEST(closed.status == 0, words[0] << ": " << closed.status << " " << closed.err);
  }
  BOOST_TEST(served.client.get(7, "n").has_value());
  // New commands must be tested here as well.
  std::istringstream help(served.cli({"--help"}).out);
  std::string line;
  while (std::getline(help, line) && line != "Subcommands:") {
  }
  int commands = 0;
  while (std::getline(help, line) && !line.empty()) {
    if (!line.starts_with("  ") || line[2] == ' ') continue;
    const std::string word = line.substr(2, line.find(' ', 2) - 2);
    BOOST_TEST(tried.contains(word), word);
    ++commands;
  }
  BOOST_TEST(commands > 10);
}

BOOST_AUTO_TEST_CASE(a_value_never_reaches_the_daemon_as_a_request) {
  Command served;
  Client client(served.daemon.socket());
  std::vector<std::byte> drop;
  protocol::encode(protocol::Request(protocol::Drop{7}), drop);
  client.set(1, "blob", std::span<const std::byte>(drop));
  client.set(7, "kept", "value");
  for (int closed = 0; closed < 8; ++closed) {
    std::string script = std::string(kNoOthers) + "\"$0\" \"$@\"";
    if (closed & 1) script += " <&-";
    if (closed & 2) script += " >&-";
    if (closed & 4) script += " 2>&-";
    for (const Words& words : {Words{"get", "1", "blob"},
                               {"get", "1", "blob", "-o", "/dev/fd/1"},
                               {"get", "1", "blob", "-o", "/dev/stdout"},
                               {"get", "1", "blob", "-o", "/proc/self/fd/3"},
                               {"get", "1", "blob", "-o", "/proc/self/fd/4"},
                               {"get", "1", "blob", "-o", "/proc/self/fd/5"}}) {
      Words all = {"sh", "-c", script, STEPSTASH_CLI_PATH};
      all.insert(all.end(), words.begin(), words.end());
      const Outcome outcome = run(all, {.environment = {"STEPSTASH_SOCKET=" + served.daemon.socket()}});
      const bool to_output = words.size() == 3 || words[4].ends_with('1') || words[4].ends_with('t');
      BOOST_TEST((outcome.status == 0) == (to_output && !(closed & 2)),
                 script << " " << words.back() << outcome.status);
      if (words.size() == 3 && (closed & 2)) BOOST_TEST(outcome.status == 74);
    }
    const Outcome read = served.cli({"list", "7"});
    BOOST_TEST(contains(read.out, "kept"), "dropped with closed descriptors " << closed);
  }
  // A closed standard input is an error, not an empty value, and not the daemon's answers.
  const Outcome closed = run({"sh", "-c", "\"$0\" set 7 n <&-", STEPSTASH_CLI_PATH},
                             {.environment = {"STEPSTASH_SOCKET=" + served.daemon.socket()}});
  BOOST_TEST(closed.status == 74);
  BOOST_TEST(!client.get(7, "n").has_value());
}

// ---- -o FILE -------------------------------------------------------------------------------------------------------

BOOST_AUTO_TEST_CASE(a_descriptor_of_ones_own_is_written_where_it_stands) {
  Files served;
  const std::string log = served.in("log");
  for (const char* path : {"/dev/fd/1", "/proc/self/fd/1", "/proc/thread-self/fd/1"}) {
    write_file(log, "before\n");
    BOOST_TEST(served.sh("\"$0\" get 7 t -o " + std::string(path) + " >> \"$1\"", {log}).status == 0, path);
    BOOST_TEST(content(log) == "before\ntext\n", path);
    const std::string around = "{ echo head; \"$0\" get 7 t -o " + std::string(path) + "; echo tail; } > \"$1\"";
    BOOST_TEST(served.sh(around, {log}).status == 0, path);
    BOOST_TEST(content(log) == "head\ntext\ntail\n", path);
  }
  BOOST_TEST(served.sh("\"$0\" get 7 t -o /dev/stdout >> \"$1\"", {log}).status == 0);
  BOOST_TEST(content(log) == "head\ntext\ntail\ntext\n");
  BOOST_TEST(served.sh("\"$0\" get 7 t -o /dev/fd/7 7>> \"$1\"", {log}).status == 0);
  BOOST_TEST(content(log) == "head\ntext\ntail\ntext\ntext\n");
  BOOST_TEST(served.get("/dev/fd/1").out == "text\n");  // a pipe
  BOOST_TEST(served.names() == std::set<std::string>{"log"});
}

BOOST_AUTO_TEST_CASE(an_unlinked_output_gets_the_value_and_the_link_to_it_stays_a_link) {
  Files served;
  fs::create_symlink("/proc/self/fd/1", served.in("link"));
  fs::create_symlink("link", served.in("link to it"));
  for (const std::string& path :
       {std::string("/dev/fd/1"), std::string(served.in("link")), std::string(served.in("link to it"))}) {
    const Outcome outcome =
        served.sh("exec 3<> \"$1/gone\" && rm \"$1/gone\" && \"$0\" get 7 t -o \"$2\" >&3 && cat < /dev/fd/3 >&2",
                  {served.directory, path});
    BOOST_TEST(outcome.status == 0, path << ": " << outcome.err);
    BOOST_TEST(outcome.err == "text\n", path << ": " << outcome.err);
  }
  BOOST_TEST((served.names() == std::set<std::string>{"link", "link to it"}));
  BOOST_TEST(fs::is_symlink(served.in("link")));
}

BOOST_AUTO_TEST_CASE(what_is_no_descriptor_of_ones_own_is_none_of_the_commands_either) {
  Files served;
  for (const char* path : {"/dev/fd/3", "/dev/fd/4", "/dev/fd/5", "/dev/fd/99", "/proc/self/fd/6"}) {
    const Outcome outcome = served.sh(std::string(kNoOthers) + "\"$0\" get 7 t -o \"$1\"", {path});
    BOOST_TEST(outcome.status == 73, path << ": " << outcome.err);
    BOOST_TEST(contains(outcome.err, "is not open"), outcome.err);
  }
  const Outcome outcome = served.sh("\"$0\" get 7 t -o /dev/fd/3 3< /dev/null");
  BOOST_TEST(outcome.status == 73);
  BOOST_TEST(contains(outcome.err, "not open for writing"), outcome.err);
}

BOOST_AUTO_TEST_CASE(a_file_that_another_process_has_open_is_written_in_place) {
  Files served;
  const fs::path held = served.in("held");
  write_file(held, "something longer than the value");
  const UniqueFd open_file(::open(held.c_str(), O_RDONLY | O_CLOEXEC));
  const std::string path = "/proc/" + std::to_string(::getpid()) + "/fd/" + std::to_string(open_file.get());
  const auto through_it = [&] {
    char text[100];
    const ssize_t bytes = ::pread(open_file.get(), text, sizeof text, 0);
    return std::string(text, static_cast<std::size_t>(std::max<ssize_t>(bytes, 0)));
  };
  BOOST_TEST(served.get(path).status == 0);
  BOOST_TEST(through_it() == "text\n");
  fs::remove(held);
  served.client.set(7, "u", "unlinked");
  BOOST_TEST(served.get(path, "u").status == 0);
  BOOST_TEST(through_it() == "unlinked");
  BOOST_TEST(served.names().empty());
}

BOOST_AUTO_TEST_CASE(a_replaced_file_keeps_owner_group_mode_and_attributes) {
  Files served;
  const fs::path out = served.in("out");
  write_file(out, "old");
  BOOST_REQUIRE(::chmod(out.c_str(), 0640) == 0);
  if (::geteuid() == 0) BOOST_REQUIRE(::chown(out.c_str(), 1234, 5678) == 0);
  const bool attributes = ::setxattr(out.c_str(), "user.origin", "step 1", 6, 0) == 0;
  const std::string acl = acl_for_12345();
  const bool acls = ::setxattr(out.c_str(), "system.posix_acl_access", acl.data(), acl.size(), 0) == 0;
  BOOST_TEST_MESSAGE("extended attributes: " << attributes << ", ACLs: " << acls);
  const struct stat before = status_of(out);
  ino_t last = before.st_ino;
  fs::create_symlink("out", served.in("link"));
  for (const fs::path& path : {out, served.in("link")}) {
    BOOST_TEST(served.get(path, "n").status == 0);
    const struct stat after = status_of(out);
    BOOST_TEST((content(out) == served.value));
    BOOST_TEST(after.st_ino != std::exchange(last, after.st_ino));  // as a whole
    BOOST_TEST(after.st_uid == before.st_uid);
    BOOST_TEST(after.st_gid == before.st_gid);
    BOOST_TEST(after.st_mode == before.st_mode);
    if (attributes) BOOST_TEST(attribute(out, "user.origin") == "step 1");
    if (acls) BOOST_TEST((attribute(out, "system.posix_acl_access") == acl));
  }
  BOOST_TEST(fs::is_symlink(served.in("link")));
  BOOST_TEST((served.names() == std::set<std::string>{"link", "out"}));
}

BOOST_AUTO_TEST_CASE(what_a_directory_gives_to_new_files_is_not_given_to_a_replaced_one) {
  Files served;
  const fs::path out = served.in("out");
  write_file(out, "old");
  BOOST_REQUIRE(::chmod(out.c_str(), 0600) == 0);
  const std::string acl = acl_for_12345();
  if (::setxattr(served.directory.c_str(), "system.posix_acl_default", acl.data(), acl.size(), 0) != 0) {
    BOOST_TEST_MESSAGE("skipped: no ACLs here");
    return;
  }
  BOOST_TEST(served.get(out).status == 0);
  BOOST_TEST(attribute(out, "system.posix_acl_access") == "(none)");
  BOOST_TEST((status_of(out).st_mode & 07777) == 0600u);
  BOOST_TEST(served.get(served.in("new")).status == 0);
  BOOST_TEST(attribute(served.in("new"), "system.posix_acl_access") != "(none)");
}

BOOST_AUTO_TEST_CASE(hard_links_stay_links_to_one_file) {
  Files served;
  write_file(served.in("one"), "something longer than the value");
  fs::create_hard_link(served.in("one"), served.in("two"));
  const auto inode = status_of(served.in("one")).st_ino;
  BOOST_TEST(served.get(served.in("one")).status == 0);
  BOOST_TEST(content(served.in("one")) == "text\n");
  BOOST_TEST(content(served.in("two")) == "text\n");
  BOOST_TEST(status_of(served.in("one")).st_ino == inode);
  BOOST_TEST(served.names().size() == 2u);
}

BOOST_AUTO_TEST_CASE(a_dangling_link_gets_its_target) {
  Files served;
  fs::create_symlink("target", served.in("link"));
  BOOST_TEST(served.get(served.in("link")).status == 0);
  BOOST_TEST(fs::is_symlink(served.in("link")));
  BOOST_TEST(content(served.in("target")) == "text\n");
  fs::create_symlink("no/such/directory/target", served.in("far"));
  const Outcome outcome = served.get(served.in("far"));
  BOOST_TEST(outcome.status == 73);
  BOOST_TEST(contains(outcome.err, "no/such/directory/target"), outcome.err);
  BOOST_TEST(fs::is_symlink(served.in("far")));
  fs::create_symlink("circle", served.in("circle"));
  BOOST_TEST(served.get(served.in("circle")).status == 73);
  BOOST_TEST((served.names() == std::set<std::string>{"link", "target", "far", "circle"}));
}

BOOST_AUTO_TEST_CASE(a_link_of_another_user_in_a_shared_directory_is_not_followed) {
  if (!root_only()) return;
  Files served;
  write_file(served.in("victim"), "old");
  const fs::path shared = served.in("shared");
  fs::create_directory(shared);
  fs::permissions(shared, fs::perms{01777});
  fs::create_symlink("../victim", shared / "link");
  BOOST_REQUIRE(::lchown((shared / "link").c_str(), 65534, 65534) == 0);
  BOOST_TEST(served.get(shared / "link").status == 73);
  BOOST_TEST(content(served.in("victim")) == "old");
  // Nor if the link's target does not exist: its owner could remove it between two checks, and then no kernel check
  // applies.
  fs::create_symlink("../new", shared / "dangling");
  BOOST_REQUIRE(::lchown((shared / "dangling").c_str(), 65534, 65534) == 0);
  BOOST_TEST(served.get(shared / "dangling").status == 73);
  BOOST_TEST(!fs::exists(served.in("new")));
}

BOOST_AUTO_TEST_CASE(a_file_that_is_a_mount_point_is_written_in_place) {
  if (!root_only()) return;
  Files served;
  write_file(served.in("outside"), "something longer than the value");
  write_file(served.in("mounted"), "");
  fs::create_symlink("mounted", served.in("link"));
  for (const char* name : {"mounted", "link"}) {
    const Outcome outcome = run({"unshare", "-m", "sh", "-c",
                                 "mount --bind \"$1/outside\" \"$1/mounted\" || exit 99\n\"$0\" get 7 t -o \"$1/$2\"",
                                 STEPSTASH_CLI_PATH, served.directory, name},
                                {.environment = {"STEPSTASH_SOCKET=" + served.daemon.socket()}});
    if (outcome.status == 99) {
      BOOST_TEST_MESSAGE("skipped: nothing can be mounted here");
      return;
    }
    BOOST_TEST(outcome.status == 0, outcome.err);
    BOOST_TEST(content(served.in("outside")) == "text\n");
    write_file(served.in("outside"), "something longer than the value");
  }
  BOOST_TEST((served.names() == std::set<std::string>{"outside", "mounted", "link"}));
}

BOOST_AUTO_TEST_CASE(where_no_other_file_can_take_its_place_a_file_is_written_in_place) {
  if (!root_only()) return;
  Files served({"--socket-mode=0666", "--read-users=65534"});
  const auto get_as_nobody = [&](const char* to) { return served.as_nobody({"get", "7", "t", "-o", served.in(to)}); };
  const std::string old = "something longer than the value";
  fs::permissions(served.directory, fs::perms{0755});
  // User nobody's file in a directory of root: no other file can be created there.
  write_file(served.in("closed directory"), old);
  BOOST_REQUIRE(::chown(served.in("closed directory").c_str(), 65534, 65534) == 0);
  const auto inode = status_of(served.in("closed directory")).st_ino;
  const Outcome closed = get_as_nobody("closed directory");
  BOOST_TEST(closed.status == 0, closed.err);
  BOOST_TEST(content(served.in("closed directory")) == "text\n");
  BOOST_TEST(status_of(served.in("closed directory")).st_ino == inode);
  BOOST_TEST(get_as_nobody("new").status == 73);
  // Root's file in a world-writable directory: another file could not be given to root.
  fs::permissions(served.directory, fs::perms{0777});
  write_file(served.in("of root"), old);
  fs::permissions(served.in("of root"), fs::perms{0666});
  const Outcome of_root = get_as_nobody("of root");
  BOOST_TEST(of_root.status == 0, of_root.err);
  BOOST_TEST(content(served.in("of root")) == "text\n");
  BOOST_TEST(status_of(served.in("of root")).st_uid == 0u);
  // A file that may not be written is not replaced either, although the directory would allow it.
  write_file(served.in("read only"), old);
  fs::permissions(served.in("read only"), fs::perms{0644});
  const Outcome refused = get_as_nobody("read only");
  BOOST_TEST(refused.status == 73);
  BOOST_TEST(contains(refused.err, "Permission denied"), refused.err);
  BOOST_TEST(content(served.in("read only")) == old);
  BOOST_TEST((served.names() == std::set<std::string>{"closed directory", "of root", "read only"}));
}

BOOST_AUTO_TEST_CASE(directories_sockets_and_what_may_not_be_written_are_refused_with_the_reason) {
  Files served;
  fs::create_directory(served.in("directory"));
  const UniqueFd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  const std::string path = served.in("socket");
  BOOST_REQUIRE(path.size() < sizeof name.sun_path);
  std::copy(path.begin(), path.end(), name.sun_path);
  BOOST_REQUIRE(::bind(listener.get(), reinterpret_cast<const sockaddr*>(&name), sizeof name) == 0);
  write_file(served.in("file"), "x");
  const std::pair<std::string, const char*> cases[] = {{served.in("directory"), "is a directory"},
                                                       {served.in("directory") / "", "is a directory"},
                                                       {path, "is a socket"},
                                                       {served.in("new") / "", "directory"},
                                                       {served.in("file") / "below", "Not a directory"},
                                                       {served.in("no") / "such" / "file", "No such file"},
                                                       {served.in(std::string(300, 'x').c_str()), "too long"}};
  for (const auto& [to, why] : cases) {
    const Outcome outcome = served.get(to);
    BOOST_TEST(outcome.status == 73, to << ": " << outcome.err);
    BOOST_TEST(contains(outcome.err, why), outcome.err);
  }
  BOOST_TEST((served.names() == std::set<std::string>{"directory", "socket", "file"}));
}

BOOST_AUTO_TEST_CASE(a_fifo_gets_the_value) {
  Files served;
  const std::string fifo = served.in("fifo");
  BOOST_REQUIRE(::mkfifo(fifo.c_str(), 0600) == 0);
  const Outcome outcome = served.sh("\"$0\" get 7 t -o \"$1\" & cat \"$1\"; wait $!", {fifo});
  BOOST_TEST(outcome.status == 0, outcome.err);
  BOOST_TEST(outcome.out == "text\n");
  BOOST_TEST(fs::is_fifo(fifo));
}

BOOST_AUTO_TEST_CASE(a_program_that_runs_can_be_replaced) {
  Files served;
  const fs::path program = served.in("program");
  fs::copy_file(fs::canonical("/bin/sleep"), program);
  const Outcome outcome =
      served.sh("\"$1\" 60 & \"$0\" get 7 t -o \"$1\"; status=$?; kill $!; exit $status", {program});
  BOOST_TEST(outcome.status == 0, outcome.err);
  BOOST_TEST(content(program) == "text\n");
  BOOST_TEST((status_of(program).st_mode & 0777) == 0755u);
}

BOOST_AUTO_TEST_CASE(nothing_is_left_where_a_file_becomes_too_large) {
  Files served;
  write_file(served.in("old"), "old");
  for (const char* name : {"new", "old"}) {
    // The effect of the signal itself, not the harness's interpretation.
    const Outcome outcome = served.sh("ulimit -f 100; \"$0\" get 7 n -o \"$1\"", {served.in(name)});
    BOOST_TEST(outcome.status == 74, outcome.status << " " << outcome.err);
    BOOST_TEST(contains(outcome.err, "too large"), outcome.err);
  }
  BOOST_TEST(served.names() == std::set<std::string>{"old"});
  BOOST_TEST(content(served.in("old")) == "old");
}

// ---- inputs --------------------------------------------------------------------------------------------------------

BOOST_AUTO_TEST_CASE(a_file_that_tells_a_wrong_size_is_set_with_what_it_holds) {
  Files served;
  int tried = 0;
  for (const char* path : {"/sys/devices/system/cpu/online", "/sys/kernel/mm/transparent_hugepage/enabled",
                           "/proc/version", "/proc/self/cmdline", "/proc/sys/kernel/ostype"}) {
    std::ifstream file(path, std::ios::binary);
    if (!file) continue;
    const bool own = std::string_view(path).starts_with("/proc/self");
    const std::string expected = content(path);
    ++tried;
    for (const Words& words :
         {Words{"set", "7", "odd", path}, {"set", "7", "odd", "/dev/stdin"}, {"set", "7", "odd"}}) {
      const std::string script =
          words.size() == 4 && words[3] == path ? "\"$0\" \"$@\"" : "\"$0\" \"$@\" < " + std::string(path);
      const Outcome outcome = served.sh(script, words);
      BOOST_TEST(outcome.status == 0, path << ": " << outcome.err);
      const auto view = served.client.get(7, "odd");
      BOOST_REQUIRE(view.has_value());
      BOOST_TEST(!view->text().empty(), path);
      if (!own) BOOST_TEST(view->text() == expected, path);
    }
    const UniqueFd fd(::open(path, O_RDONLY | O_CLOEXEC));
    served.client.set_fd(7, "through the library", fd.get());
    const auto view = served.client.get(7, "through the library");
    BOOST_TEST(view->text() == expected, path);
  }
  BOOST_TEST(tried > 2);
}

BOOST_AUTO_TEST_CASE(an_input_that_does_not_block_is_waited_for) {
  Files served;
  int ends[2];
  BOOST_REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
  const UniqueFd reading(ends[0]);
  UniqueFd writing(ends[1]);
  BOOST_REQUIRE(::fcntl(reading.get(), F_SETFL, O_NONBLOCK) == 0);
  Child child([&] {
    ::dup2(reading.get(), 0);
    writing.reset();
    ::execl(STEPSTASH_CLI_PATH, "stepstash", "set", "7", "slow", "--socket", served.daemon.socket().c_str(),
            "--timeout", "30s", nullptr);
    return 98;
  });
  std::string expected;
  for (int i = 0; i < 5; ++i) {
    const std::string piece = generated(30'000, static_cast<std::uint64_t>(i));
    // Written only after everything before it was read: a reader that checks again at once finds nothing.
    BOOST_REQUIRE(eventually([&] {
      int left = 0;
      return ::ioctl(reading.get(), FIONREAD, &left) == 0 && left == 0;
    }));
    if (::write(writing.get(), piece.data(), piece.size()) != static_cast<ssize_t>(piece.size())) break;
    expected += piece;
  }
  writing.reset();
  BOOST_TEST(child.join() == 0);
  const auto view = served.client.get(7, "slow");
  BOOST_REQUIRE(view.has_value());
  BOOST_TEST((view->text() == expected));
}

BOOST_AUTO_TEST_CASE(an_output_that_does_not_block_is_waited_for) {
  Files served;
  for (const char* to : {"-", "/dev/fd/1"}) {
    int ends[2];
    BOOST_REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
    const UniqueFd reading(ends[0]);
    UniqueFd writing(ends[1]);
    BOOST_REQUIRE(::fcntl(writing.get(), F_SETFL, O_NONBLOCK) == 0);
    Child child([&] {
      ::dup2(writing.get(), 1);
      ::execl(STEPSTASH_CLI_PATH, "stepstash", "get", "7", "n", "-o", to, "--socket", served.daemon.socket().c_str(),
              nullptr);
      return 98;
    });
    writing.reset();
    std::string got;
    char buffer[65536];
    for (ssize_t bytes; (bytes = ::read(reading.get(), buffer, sizeof buffer)) > 0;) {
      got.append(buffer, static_cast<std::size_t>(bytes));
    }
    BOOST_TEST(child.join() == 0);
    BOOST_TEST((got == served.value));
  }
}

// ---- the rest of the command line ----------------------------------------------------------------------------------

// All variables in the manual: a new one is tested here as well.
BOOST_AUTO_TEST_CASE(an_empty_variable_is_not_an_absent_one) {
  Files served;
  std::ifstream manual(STEPSTASH_SOURCE_DIR "/docs/man/stepstash.1");
  std::set<std::string> variables;
  for (std::string line; std::getline(manual, line);) {
    if (line.starts_with(".B STEPSTASH_")) variables.insert(line.substr(3));
  }
  BOOST_TEST(variables.contains("STEPSTASH_SOCKET"));
  BOOST_TEST(variables.contains("STEPSTASH_BUILD"));
  for (const std::string& empty : variables) {
    const Outcome outcome = served.sh("export STEPSTASH_BUILD=7; export \"$1\"=; exec \"$0\" get t", {empty});
    BOOST_TEST(outcome.status == 64, empty << ": " << outcome.err);
    BOOST_TEST(contains(outcome.err, empty), outcome.err);
  }
}

BOOST_AUTO_TEST_CASE(options_stand_before_the_command_as_well_and_odd_names_are_names) {
  Command served;
  const std::string socket = served.daemon.socket();
  const auto cli = [&](Words words, const std::string& input = {}) {
    words.insert(words.begin(), {STEPSTASH_CLI_PATH});
    return run(words, {.input = input});
  };
  for (const char* name : {"++", "+", "[a,b]", "{}", "%%"}) {
    BOOST_TEST(cli({"--socket", socket, "set", "7", name}, name).status == 0, name);
    BOOST_TEST(cli({"--timeout=5s", "--socket", socket, "get", "7", name}).out == name);
  }
  BOOST_TEST(nlohmann::json::parse(cli({"--json", "--socket=" + socket, "list", "7"}).out).size() == 5u);
  BOOST_TEST(contains(cli({"help", "list"}).out, "Usage: stepstash list"));
}

BOOST_AUTO_TEST_SUITE_END()
