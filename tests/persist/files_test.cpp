// SPDX-License-Identifier: Apache-2.0
// The database as a file: who may be trusted with it, what is refused, what is put aside.
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "persist/database_files.hpp"
#include "persist/schema.hpp"
#include "persist/sqlite_store.hpp"
#include "tests/persist/values.hpp"
#include "tests/support/temp_dir.hpp"

namespace stepstash::test {
namespace {

namespace fs = std::filesystem;
using persist::SqliteStore;

struct Directory {
  TempDir directory;
  std::string path = directory.file("build-data.sqlite");

  Result<std::unique_ptr<SqliteStore>> open() {
    return SqliteStore::open({.path = path, .busy_timeout = std::chrono::milliseconds(1)}, &why);
  }
  std::string why;
};

unsigned mode_of(const std::string& path) {
  struct ::stat status {};
  return ::stat(path.c_str(), &status) == 0 ? status.st_mode & 07777u : 0;
}

/// Sets the umask for one scope.
class Umask {
 public:
  explicit Umask(::mode_t mask) : before_(::umask(mask)) {}
  ~Umask() { ::umask(before_); }

 private:
  ::mode_t before_;
};

BOOST_AUTO_TEST_SUITE(files)

BOOST_FIXTURE_TEST_CASE(the_files_have_mode_0600_under_any_umask, Directory) {
  for (const ::mode_t mask : {0u, 0077u, 0777u}) {
    const Umask scope(mask);
    path = directory.file("db" + std::to_string(mask));
    const auto store = open();
    BOOST_TEST_REQUIRE(store.has_value(), why);
    for (const char* suffix : {"", "-wal", "-shm", "-reserve"})
      BOOST_TEST(mode_of(path + suffix) == 0600u, path + suffix);
  }
}

BOOST_FIXTURE_TEST_CASE(files_that_others_may_read_are_closed_to_them, Directory) {
  for (const ::mode_t mode : {0640u, 0666u}) {  // 0640: what an earlier version gave them
    BOOST_TEST_REQUIRE(open().has_value());
    std::ofstream(path + "-wal").flush();  // what SIGKILL leaves
    const std::vector<std::string> aside = {path + ".damaged-1", path + ".damaged-1-wal", path + ".damaged-2-shm"};
    for (const std::string& file : aside) std::ofstream(file) << "values";
    std::vector<std::string> all = aside;
    for (const char* suffix : {"", "-wal", "-reserve"}) all.push_back(path + suffix);
    for (const std::string& file : all) BOOST_TEST_REQUIRE(::chmod(file.c_str(), mode) == 0, file);
    const auto store = open();
    BOOST_TEST_REQUIRE(store.has_value(), why);
    all.push_back(path + "-shm");
    for (const std::string& file : all) BOOST_TEST(mode_of(file) == 0600u, file);
  }
}

BOOST_FIXTURE_TEST_CASE(looking_at_the_file_again_drops_no_lock, Directory) {
  // POSIX locks are dropped when any descriptor of the file is closed: a second start's look must not free the first.
  const auto store = open();
  BOOST_TEST_REQUIRE(store.has_value(), why);
  auto holder = persist::Connection::open(path, 1).value();
  BOOST_TEST_REQUIRE(holder.execute("BEGIN IMMEDIATE").has_value());
  BOOST_TEST_REQUIRE(::chmod((path + "-wal").c_str(), 0640) == 0);
  BOOST_TEST_REQUIRE(::chmod(path.c_str(), 0640) == 0);
  (void)open();
  const pid_t child = ::fork();
  BOOST_TEST_REQUIRE(child >= 0);
  if (child == 0) {
    ::execlp("sqlite3", "sqlite3", path.c_str(), "BEGIN IMMEDIATE", static_cast<char*>(nullptr));
    ::_exit(0);
  }
  int status = 0;
  BOOST_TEST_REQUIRE(::waitpid(child, &status, 0) == child);
  BOOST_TEST(WEXITSTATUS(status) != 0);  // locked
}

BOOST_FIXTURE_TEST_CASE(links_and_things_that_are_no_files_are_refused, Directory) {
  BOOST_TEST_REQUIRE(open().has_value());
  fs::rename(path, directory.file("real"));

  fs::create_symlink(directory.file("real"), path);
  BOOST_TEST(error_of(open()) == Errc::unsafe_object);
  fs::remove(path);
  fs::create_symlink(directory.file("absent"), path);  // must not be created through the link
  BOOST_TEST(error_of(open()) == Errc::unsafe_object);
  BOOST_TEST(!fs::exists(directory.file("absent")));
  fs::remove(path);

  fs::create_hard_link(directory.file("real"), path);
  BOOST_TEST(error_of(open()) == Errc::unsafe_object);
  fs::remove(path);

  fs::create_directory(path);
  BOOST_TEST(error_of(open()) == Errc::unsafe_object);
  fs::remove(path);

  BOOST_TEST_REQUIRE(::mkfifo(path.c_str(), 0600) == 0);
  BOOST_TEST(error_of(open()) == Errc::unsafe_object);
  fs::remove(path);

  fs::rename(directory.file("real"), path);
  BOOST_TEST(open().has_value(), why);
}

BOOST_FIXTURE_TEST_CASE(links_in_place_of_the_companions_are_refused, Directory) {
  BOOST_TEST_REQUIRE(open().has_value());
  std::ofstream(directory.file("victim")) << "precious";
  for (const char* suffix : {"-wal", "-shm", "-journal", "-reserve"}) {
    fs::remove(path + suffix);
    fs::create_symlink(directory.file("victim"), path + suffix);
    BOOST_TEST(error_of(open()) == Errc::unsafe_object, suffix);
    fs::remove(path + suffix);
  }
  BOOST_TEST(fs::file_size(directory.file("victim")) == 8u);
}

BOOST_FIXTURE_TEST_CASE(a_file_of_another_user_is_refused, Directory) {
  if (::geteuid() != 0) {
    BOOST_TEST_MESSAGE("needs root to give a file away; skipped");
    return;
  }
  BOOST_TEST_REQUIRE(open().has_value());
  BOOST_TEST_REQUIRE(::chown(path.c_str(), 65534, 65534) == 0);
  BOOST_TEST(error_of(open()) == Errc::unsafe_object);
}

BOOST_FIXTURE_TEST_CASE(a_linked_directory_is_followed, Directory) {
  fs::create_directory(directory.file("state"));
  fs::create_directory_symlink(directory.file("state"), directory.file("link"));
  path = directory.file("link/db");
  BOOST_TEST(open().has_value(), why);
  BOOST_TEST(fs::exists(directory.file("state/db")));
}

BOOST_FIXTURE_TEST_CASE(a_directory_that_does_not_exist_is_named_so, Directory) {
  path = directory.file("absent/db");
  BOOST_TEST((error_of(open()) == std::errc::no_such_file_or_directory));
  BOOST_TEST(why.find("absent/db") != std::string::npos);
  path = directory.file("");
  BOOST_TEST(error_of(open()) == Errc::invalid_argument);
}

BOOST_FIXTURE_TEST_CASE(a_path_that_looks_like_a_uri_is_a_file_name, Directory) {
  const fs::path before = fs::current_path();
  fs::current_path(directory.path());
  path = "file:x?mode=memory";
  const auto store = open();
  fs::current_path(before);
  BOOST_TEST(store.has_value(), why);
  BOOST_TEST(fs::exists(directory.file("file:x?mode=memory")));
}

BOOST_FIXTURE_TEST_CASE(a_damaged_database_is_recognised_and_can_be_set_aside, Directory) {
  std::ofstream(path) << std::string(100'000, 'x');
  BOOST_TEST(error_of(open()) == Errc::corrupt_database);
  BOOST_TEST(!why.empty());

  std::ofstream(path + "-wal") << "wal";
  BOOST_TEST(persist::set_aside(path).value() == path + ".damaged-1");
  BOOST_TEST(fs::file_size(path + ".damaged-1") == 100'000u);
  BOOST_TEST(fs::file_size(path + ".damaged-1-wal") == 3u);
  BOOST_TEST(!fs::exists(path));
  BOOST_TEST(!fs::exists(path + "-wal"));
  BOOST_TEST(open().has_value(), why);
  BOOST_TEST(persist::set_aside(path).value() == path + ".damaged-2");
  BOOST_TEST(!persist::set_aside(path).has_value());  // there is nothing left
}

BOOST_FIXTURE_TEST_CASE(a_truncated_database_is_damaged, Directory) {
  const Bytes value = pattern(3 * persist::kChunkBytes, 1);
  BOOST_TEST_REQUIRE(set(*open().value(), row(1, 1, 7, "x", value)).has_value());
  fs::resize_file(path, fs::file_size(path) / 2);
  BOOST_TEST(error_of(open()) == Errc::corrupt_database, why);
}

BOOST_FIXTURE_TEST_CASE(damage_inside_shows_when_it_is_met, Directory) {
  const Bytes value = pattern(3 * persist::kChunkBytes, 1);
  BOOST_TEST_REQUIRE(set(*open().value(), row(1, 1, 7, "x", value)).has_value());
  {
    auto connection = persist::Connection::open(path, 100).value();
    BOOST_TEST_REQUIRE(connection.execute("DELETE FROM value_chunks WHERE seq = 1").has_value());
  }
  auto store = open().value();
  Bytes out(value.size());
  BOOST_TEST(error_of(store->load_value(1, 1, out)) == Errc::corrupt_database);
  BOOST_TEST(store->last_error().find("damaged") != std::string::npos, store->last_error());
}

BOOST_FIXTURE_TEST_CASE(a_table_that_is_missing_is_damage, Directory) {
  BOOST_TEST_REQUIRE(open().has_value());
  {
    auto connection = persist::Connection::open(path, 100).value();
    BOOST_TEST_REQUIRE(connection.execute("DROP TABLE value_chunks").has_value());
  }
  BOOST_TEST(error_of(open()) == Errc::corrupt_database);
  BOOST_TEST(why.find("value_chunks") != std::string::npos, why);
}

BOOST_FIXTURE_TEST_CASE(a_newer_schema_is_refused, Directory) {
  BOOST_TEST_REQUIRE(open().has_value());
  {
    auto connection = persist::Connection::open(path, 100).value();
    BOOST_TEST_REQUIRE(connection.execute("PRAGMA user_version=2000").has_value());
  }
  BOOST_TEST(error_of(open()) == Errc::newer_database);
}

BOOST_FIXTURE_TEST_CASE(another_programs_database_is_not_touched, Directory) {
  std::ofstream{path};
  {
    auto connection = persist::Connection::open(path, 100).value();
    BOOST_TEST_REQUIRE(connection.execute("CREATE TABLE masters(id)").has_value());
  }
  BOOST_TEST(error_of(open()) == Errc::foreign_database);
  auto connection = persist::Connection::open(path, 100).value();
  BOOST_TEST(connection.query_text("PRAGMA journal_mode").value() == "delete");
  BOOST_TEST(connection.query_int("SELECT count(*) FROM sqlite_schema").value() == 1);
}

BOOST_FIXTURE_TEST_CASE(nothing_is_acknowledged_into_a_deleted_file, Directory) {
  for (const char* suffix : {"", "-wal"}) {
    path = directory.file(std::string("db") + suffix[0]);
    auto store = open().value();
    const Bytes value = pattern(10, 1);
    BOOST_TEST_REQUIRE(set(*store, row(1, 1, 7, "x", value)).has_value());
    fs::remove(path + suffix);
    BOOST_TEST(error_of(set(*store, row(2, 2, 7, "y", value))) == Errc::not_durable);
    BOOST_TEST(error_of(store->reserve_ids(1, 0)) == Errc::not_durable);
    BOOST_TEST(store->last_error().find("deleted") != std::string::npos, store->last_error());
  }
}

/// A file system of 24 MiB; empty `at` where none can be had.
struct SmallDisk : Directory {
  std::string at;
  SmallDisk() {
    const std::string mounted = directory.file("tmpfs");
    fs::create_directory(mounted);
    if (::geteuid() == 0 && ::mount("tmpfs", mounted.c_str(), "tmpfs", 0, "size=24m") == 0) at = mounted;
    if (at.empty()) BOOST_TEST_MESSAGE("mounting a tmpfs is not allowed here; skipped");
    path = mounted + "/db";
  }
  ~SmallDisk() {
    if (!at.empty()) ::umount2(at.c_str(), MNT_DETACH);
  }
  /// Somebody else takes what is left.
  void fill_up() {
    std::ofstream junk(at + "/junk", std::ios::binary);
    const std::string block(4096, 'j');
    while (junk.write(block.data(), static_cast<std::streamsize>(block.size())).flush()) {
    }
  }
};

BOOST_FIXTURE_TEST_CASE(a_value_too_large_for_the_disk_leaves_the_disk_as_it_was, SmallDisk) {
  if (at.empty()) return;
  auto store = open().value();
  const Bytes kept = pattern(2 * persist::kChunkBytes, 1);
  const Bytes too_large = pattern(24 * persist::kChunkBytes, 2);
  BOOST_TEST_REQUIRE(set(*store, row(1, 1, 7, "x", kept)).has_value());
  const std::uint64_t count = store->commit_count();
  for (std::uint64_t attempt = 1; attempt <= 3; ++attempt) {
    BOOST_TEST(error_of(set(*store, row(1, 1 + attempt, 7, "x", too_large))) == Errc::not_durable);
    BOOST_TEST(store->commit_count() == count);
    BOOST_TEST(has(*store, 1, 1, kept));
  }
  BOOST_TEST(set(*store, row(2, 9, 8, "y", kept)).has_value(), store->last_error());
  BOOST_TEST(has(*store, 2, 9, kept));
  BOOST_TEST(fs::file_size(path) < 6 * persist::kChunkBytes);
}

BOOST_FIXTURE_TEST_CASE(deleting_works_with_the_disk_full_and_brings_the_room_back, SmallDisk) {
  if (at.empty()) return;
  auto store = open().value();
  const Bytes inline_value = pattern(20'000, 1);
  const Bytes chunked = pattern(3 * persist::kChunkBytes, 2);
  std::uint64_t id = 0;
  for (; id < 200;) {
    ++id;
    BOOST_TEST_REQUIRE(set(*store, row(id, id, 7, std::to_string(id), inline_value)).has_value());
  }
  ++id;
  BOOST_TEST_REQUIRE(set(*store, row(id, id, 7, "chunked", chunked)).has_value());
  fill_up();
  const Bytes too_large = pattern(20 * persist::kChunkBytes, 3);
  BOOST_TEST(error_of(set(*store, row(900, 900, 8, "x", too_large))) == Errc::not_durable);
  fill_up();  // and takes the rest of it again

  BOOST_TEST(put_build(*store, 7, 1000, {}, id).has_value(), store->last_error());
  BOOST_TEST(entries(*store).empty());
  while (store->vacuum(1000).value() > 0) {
  }
  BOOST_TEST(set(*store, row(901, 901, 8, "x", chunked)).has_value(), store->last_error());
  BOOST_TEST(has(*store, 901, 901, chunked));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace stepstash::test
