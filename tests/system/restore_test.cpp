// SPDX-License-Identifier: Apache-2.0
// stepstashd --restore: a backup replaces the database completely or not at all, and no client continues to read data
// that is newer than the backup.
#include <fcntl.h>
#include <signal.h>
#include <sqlite3.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/test/unit_test.hpp>
#include <filesystem>
#include <fstream>

#include "tests/system/command.hpp"

using namespace stepstash;
using namespace stepstash::test;

namespace {

namespace fs = std::filesystem;

/// As `.backup` of sqlite3.
void back_up(const std::string& from, const std::string& to) {
  sqlite3 *source = nullptr, *target = nullptr;
  BOOST_TEST_REQUIRE(sqlite3_open(from.c_str(), &source) == SQLITE_OK);
  BOOST_TEST_REQUIRE(sqlite3_open(to.c_str(), &target) == SQLITE_OK);
  sqlite3_backup* backup = sqlite3_backup_init(target, "main", source, "main");
  BOOST_TEST_REQUIRE(backup != nullptr);
  BOOST_TEST(sqlite3_backup_step(backup, -1) == SQLITE_DONE);
  sqlite3_backup_finish(backup);
  sqlite3_close(source);
  sqlite3_close(target);
}

std::vector<std::string> restore_words(const DaemonProcess& daemon, const std::string& file) {
  return {DaemonProcess::program(),
          "--config=/dev/null",
          "--socket=" + daemon.socket(),
          "--db=" + daemon.db(),
          "--segment-directory=/dev/shm",
          "--segment-name=" + daemon.segment(),
          "--restore",
          file};
}

Outcome restore(const DaemonProcess& daemon, const std::string& file) { return run(restore_words(daemon, file)); }

/// A daemon with data, a backup of it, and then other data: some in the database, some only in the segment.
struct BackedUp {
  BackedUp() {
    daemon.start();
    client.emplace(daemon.socket());
    client->set(1, "v", "backup");
    client->set(1, "large", generated(2 * kMiB, 1));
    client->flush();
    back_up(daemon.db(), file);
    change();
  }
  void change() {
    client->set(1, "v", "later");
    client->set(1, "flushed later", "x");
    client->flush();
    client->set(1, "dirty later", "x");
  }
  std::string text(const char* name) {
    const auto view = client->get(1, name);
    return view ? std::string(view->text()) : std::string();
  }
  bool is_later() { return text("v") == "later" && text("flushed later") == "x" && text("dirty later") == "x"; }
  bool is_backup() {
    return text("v") == "backup" && text("flushed later").empty() && text("dirty later").empty() &&
           is_generated(client->get(1, "large")->bytes(), 2 * kMiB, 1);
  }

  DaemonProcess daemon{{"--flush-interval=1h"}};
  std::string file = daemon.directory().file("backup.db");
  std::optional<Client> client;
};

/// Names next to the database and the segment that no idle daemon leaves.
std::vector<std::string> leftovers(const DaemonProcess& daemon) {
  std::vector<std::string> found;
  for (const std::string& directory :
       {fs::path(daemon.db()).parent_path().string(), fs::path(daemon.segment_path()).parent_path().string()}) {
    for (const auto& entry : fs::directory_iterator(directory)) {
      const std::string name = entry.path().filename();
      if (contains(name, "restoring") || contains(name, ".new") || contains(name, "damaged")) found.push_back(name);
    }
  }
  return found;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(restoring)

BOOST_AUTO_TEST_CASE(an_attached_client_reads_what_was_restored_within_a_second) {
  for (const bool in_order : {true, false}) {
    BackedUp all;
    BOOST_TEST(all.is_later());
    const auto held = all.client->get(1, "v");
    in_order ? static_cast<void>(all.daemon.terminate()) : all.daemon.kill();
    const Outcome restored = restore(all.daemon, all.file);
    BOOST_TEST(restored.status == 0, restored.err);
    BOOST_TEST(contains(restored.out, "2 entries of 1 builds"), restored.out);
    BOOST_TEST(all.text("v") == "later");  // nobody serves yet
    all.daemon.start();
    BOOST_TEST(eventually([&] { return all.text("v") == "backup"; }, 1s));
    BOOST_TEST(all.is_backup());
    BOOST_TEST(held->text() == "later");
    BOOST_TEST(leftovers(all.daemon).empty());
    all.client->set(1, "after", "x");
    BOOST_TEST(all.daemon.terminate() == 0);
    all.daemon.remove_segment();
    all.daemon.start();
    all.client.emplace(all.daemon.socket());
    BOOST_TEST(all.is_backup());
    BOOST_TEST(all.text("after") == "x");
  }
}

BOOST_AUTO_TEST_CASE(the_way_by_hand_is_as_good) {
  BackedUp all;
  BOOST_TEST(all.daemon.terminate() == 0);
  // docs/operations.md, section 7
  fs::copy_file(all.file, all.daemon.db(), fs::copy_options::overwrite_existing);
  for (const char* companion : {"-wal", "-shm"}) fs::remove(all.daemon.db() + companion);
  all.daemon.remove_segment();
  all.daemon.start();
  BOOST_TEST(eventually([&] { return all.text("v") == "backup"; }, 1s));
  BOOST_TEST(all.is_backup());
}

BOOST_AUTO_TEST_CASE(what_cannot_be_restored_changes_nothing) {
  BackedUp all;
  const Outcome while_it_runs = restore(all.daemon, all.file);
  BOOST_TEST(while_it_runs.status == 75);
  BOOST_TEST(contains(while_it_runs.err, "pid " + std::to_string(all.daemon.pid())), while_it_runs.err);
  const auto file = [&](const char* name) { return all.daemon.directory().file(name); };
  std::ofstream(file("text")) << "no database\n" << std::string(10'000, 'x');
  std::ofstream(file("empty"));
  fs::copy_file(all.file, file("spoiled"));
  {
    std::fstream damaged(file("spoiled"), std::ios::in | std::ios::out | std::ios::binary);
    for (int page = 2; page < 40; ++page) damaged.seekp(page * 4096 + 8).write(std::string(600, 'x').data(), 600);
  }
  fs::copy_file(all.file, file("cut"));
  fs::resize_file(file("cut"), fs::file_size(all.file) / 2);
  fs::copy_file(all.file, file("newer"));
  sqlite3* newer = nullptr;
  BOOST_TEST_REQUIRE(sqlite3_open(file("newer").c_str(), &newer) == SQLITE_OK);
  BOOST_TEST(sqlite3_exec(newer, "PRAGMA user_version=99", nullptr, nullptr, nullptr) == SQLITE_OK);
  sqlite3_close(newer);
  all.daemon.kill();
  const std::vector<std::pair<std::string, int>> cases = {
      {file("text"), 74},    {file("empty"), 78},
      {file("spoiled"), 74}, {file("cut"), 74},
      {file("newer"), 78},   {file("not there"), 74},
      {"/dev/null", 74},     {all.daemon.directory().path().string(), 74},
      {all.daemon.db(), 64}, {"", 64}};
  for (const auto& [from, status] : cases) {
    const Outcome outcome = restore(all.daemon, from);
    BOOST_TEST(outcome.status == status, from << ": " << outcome.status << ": " << outcome.err);
    BOOST_TEST(outcome.out == "");
    BOOST_TEST(leftovers(all.daemon).empty());
  }
  // Another program has the database open.
  {
    const WriteLock shell(all.daemon.db());
    BOOST_TEST(restore(all.daemon, all.file).status == 75);
  }
  all.daemon.start();
  BOOST_TEST(all.is_later());
  BOOST_TEST(stats(*all.client).at("last_recovery").at("entries_kept").get<int>() == 4);
}

BOOST_AUTO_TEST_CASE(a_damaged_database_is_kept_and_replaced) {
  BackedUp all;
  all.daemon.kill();
  for (const char* companion : {"-wal", "-shm"}) fs::remove(all.daemon.db() + companion);
  std::ofstream(all.daemon.db()) << std::string(100'000, 'x');
  const Outcome restored = restore(all.daemon, all.file);
  BOOST_TEST(restored.status == 0, restored.err);
  BOOST_TEST(fs::exists(all.daemon.db() + ".damaged-1"));
  all.daemon.start();
  BOOST_TEST(eventually([&] { return all.text("v") == "backup"; }, 1s));
  BOOST_TEST(all.is_backup());
}

BOOST_AUTO_TEST_CASE(no_revision_is_given_a_second_time) {
  for (const bool database_damaged : {false, true}) {
    BackedUp all;
    const auto revision = [&] { return all.client->list(1).back().revision; };
    // A start without the segment reserves ids that the backup does not know.
    all.daemon.kill();
    fs::remove(all.daemon.segment_path());
    all.daemon.start();
    all.client.emplace(all.daemon.socket());
    all.client->set(1, "seen", "before the restore");
    const std::uint64_t seen = revision();
    all.daemon.kill();
    if (database_damaged) {
      for (const char* companion : {"-wal", "-shm"}) fs::remove(all.daemon.db() + companion);
      std::ofstream(all.daemon.db()) << std::string(100'000, 'x');
    }
    const Outcome restored = restore(all.daemon, all.file);
    BOOST_TEST_REQUIRE(restored.status == 0, restored.err);
    all.daemon.start();
    all.client.emplace(all.daemon.socket());
    all.client->set(1, "seen", "after it");
    BOOST_TEST(revision() > seen, "with a database that is " << (database_damaged ? "damaged" : "sound"));
  }
}

#if defined(__x86_64__)
// The sanitizers' run-time makes system calls of its own.
BOOST_AUTO_TEST_CASE(a_restore_that_is_killed_before_any_of_its_steps_has_happened_or_not,
                     *boost::unit_test::enable_if<!kAddressSanitizer && !kThreadSanitizer>()) {
  for (const bool unfinished : {false, true}) {
    BackedUp all;
    long kills = 0, before = 0, after = 0;
    for (bool killed = true; killed; ++kills) {
      all.daemon.kill();
      // The state left by a start that was killed before it named the segment.
      if (unfinished) fs::rename(all.daemon.segment_path(), all.daemon.segment_path() + ".new");
      const std::vector<std::string> words = restore_words(all.daemon, all.file);
      std::vector<char*> argv;
      for (const std::string& word : words) argv.push_back(const_cast<char*>(word.c_str()));
      argv.push_back(nullptr);
      const pid_t pid = ::fork();
      if (pid == 0) {
        ::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
        ::execv(argv[0], argv.data());
        ::_exit(127);
      }
      int status = 0;
      BOOST_TEST_REQUIRE(::waitpid(pid, &status, 0) == pid);
      BOOST_TEST_REQUIRE(WIFSTOPPED(status));
      killed = false;
      for (long steps = 0; !killed;) {
        BOOST_TEST_REQUIRE(::ptrace(PTRACE_SYSCALL, pid, nullptr, nullptr) == 0);
        BOOST_TEST_REQUIRE(::waitpid(pid, &status, 0) == pid);
        if (!WIFSTOPPED(status)) break;
        user_regs_struct registers{};
        BOOST_TEST_REQUIRE(::ptrace(PTRACE_GETREGS, pid, nullptr, &registers) == 0);
        constexpr std::array kSteps = {SYS_rename, SYS_renameat, SYS_renameat2, SYS_unlink, SYS_unlinkat, SYS_fsync};
        const bool entered = static_cast<long>(registers.rax) == -ENOSYS;
        const bool is_step = std::count(kSteps.begin(), kSteps.end(), static_cast<long>(registers.orig_rax)) != 0;
        if (!entered || !is_step || steps++ < kills) continue;
        ::kill(pid, SIGKILL);
        ::waitpid(pid, &status, 0);
        killed = true;
      }
      if (!killed) BOOST_TEST((WIFEXITED(status) && WEXITSTATUS(status) == 0));
      all.daemon.start();
      all.client.emplace(all.daemon.socket());
      const bool later = all.is_later(), backup = all.is_backup();
      BOOST_TEST(later != backup, "killed at step " << kills);
      BOOST_TEST(leftovers(all.daemon).empty(), "killed at step " << kills);
      BOOST_TEST((after == 0 || backup), "killed at step " << kills);
      backup ? ++after : ++before;
      if (backup) all.change();  // for the next time
    }
    BOOST_TEST_MESSAGE(kills << " steps, " << before << " before the instant");
    BOOST_TEST(before > 3);
    BOOST_TEST(after > 1);
  }
}
#endif

BOOST_AUTO_TEST_SUITE_END()
