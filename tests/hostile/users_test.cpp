// SPDX-License-Identifier: Apache-2.0
// Other users: what each may do, what they can reach of the daemon's objects, and what they may have placed where the
// daemon creates them. Only root can switch to another user: skipped otherwise.
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "tests/hostile/namespaces.hpp"
#include "tests/hostile/siege.hpp"

using namespace stepstash;
using namespace stepstash::test;
namespace fs = std::filesystem;

namespace {

/// The error's code; 0: none.
int refused(const std::function<void()>& call) {
  try {
    call();
    return 0;
  } catch (const Error& error) {
    return error.code();
  }
}

/// A daemon whose directory and socket every user may reach.
struct Open : Served {
  explicit Open(std::vector<std::string> options) : Served(with_mode(std::move(options))) {
    fs::permissions(daemon.directory().path(), fs::perms{0755});
    client.set(1, "v", "value");
  }
  static std::vector<std::string> with_mode(std::vector<std::string> options) {
    options.insert(options.begin(), "--socket-mode=0666");
    return options;
  }
};

void may_read(const std::string& socket) {
  Client own(socket);
  require(own.get(1, "v")->text() == "value", "get");
  require(own.list(1).size() >= 1, "list");
  require(own.wait(1, "v", 1s).has_value(), "wait");
  own.flush();
  require(!own.stats().empty(), "stats");
}

void may_write(const std::string& socket, bool allowed) {
  Client own(socket);
  const int code = allowed ? 0 : STEPSTASH_EPERM;
  require(refused([&] { own.set(2, "small", "v"); }) == code, "set");
  require(refused([&] { own.set(2, "large", generated(300 * kKiB, 1)); }) == code, "set of a large value");
  require(refused([&] { own.finish(77); }) == code, "finish");
  require(refused([&] { own.hold(77); }) == code, "hold");
  require(refused([&] { own.unhold(77); }) == code, "unhold");
}

void may_administer(const std::string& socket, bool allowed) {
  Client own(socket);
  const int code = allowed ? 0 : STEPSTASH_EPERM;
  require(refused([&] { own.prune(epoch(1)); }) == code, "prune");
  require(refused([&] { own.drop(2); }) == code, "drop");
}

mode_t mode_of(const std::string& path) {
  struct stat status {};
  BOOST_REQUIRE_MESSAGE(::lstat(path.c_str(), &status) == 0, path);
  return status.st_mode & 07777;
}

std::string content_of(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

}  // namespace

BOOST_AUTO_TEST_SUITE(users, *boost::unit_test::precondition(root))

BOOST_AUTO_TEST_CASE(another_user_is_refused_and_reads_why) {
  Open served({});
  as_user(65'534, 65'534, {}, [&] {
    for (int i = 0; i < 20; ++i) {
      RawConnection raw(served.daemon.socket());
      std::string why;
      if (i % 2 == 0) raw.send(protocol::Hello{});
      require(raw.refusal(&why) == Errc::not_permitted, "the first reply is another");
      require(contains(why, "65534"), why);
      if (i % 3 == 0) raw.send(protocol::Drop{1});
      require(raw.end() == 0, "cut off");
    }
    require(refused([&] { (void)Client(served.daemon.socket()).get(1, "v"); }) == STEPSTASH_EPERM, "get");
    require(refused([&] { Client(served.daemon.socket()).drop(1); }) == STEPSTASH_EPERM, "drop");
  });
  BOOST_TEST(served.client.get(1, "v")->text() == "value");
  BOOST_TEST(eventually([&] { return figure(served.client, "connections") == 1; }));
  BOOST_TEST(figure(served.client, "pin_pages") == 1u);
}

BOOST_AUTO_TEST_CASE(users_without_rights_take_no_connection_from_others) {
  Open served({"--max-connections=20"});
  const Signal there;
  Child crowd([&] {
    require(::setgroups(0, nullptr) == 0 && ::setresgid(65'534, 65'534, 65'534) == 0 &&
                ::setresuid(65'534, 65'534, 65'534) == 0,
            "setresuid(2)");
    std::vector<RawConnection> many;
    for (int i = 0; i < 200; ++i) many.emplace_back(served.daemon.socket());
    there.raise();
    for (std::size_t i = 0;; ++i) many[i % many.size()] = RawConnection(served.daemon.socket());
    return 0;
  });
  BOOST_REQUIRE(there.wait());
  for (int i = 0; i < 10; ++i) {
    Client client(served.daemon.socket());
    BOOST_TEST(client.get(1, "v")->text() == "value");
    BOOST_TEST(figure(client, "connections") <= 5u);
  }
  // Before the end: a peer that left while it waited in the queue is not counted.
  BOOST_TEST(eventually([&] { return figure(served.client, "connections_refused") >= 200u; }));
  crowd.kill();
}

BOOST_AUTO_TEST_CASE(each_right_is_what_the_lists_say) {
  Open served({"--read-users=60001", "--write-groups=60012", "--admin-users=60003"});
  const std::string& socket = served.daemon.socket();
  as_user(60'001, 60'001, {}, [&] {
    may_read(socket);
    may_write(socket, false);
    may_administer(socket, false);
  });
  for (const bool supplementary : {false, true}) {
    as_user(60'002, supplementary ? 60'002 : 60'012, {supplementary ? 60'012u : 60'099u}, [&] {
      may_read(socket);
      may_write(socket, true);
      may_administer(socket, false);
    });
  }
  as_user(60'003, 60'003, {}, [&] {
    may_read(socket);
    may_write(socket, true);
    may_administer(socket, true);
  });
  as_user(60'004, 60'004, {60'013}, [&] {
    RawConnection raw(socket);
    require(raw.refusal() == Errc::not_permitted, "somebody who is in no list");
  });
  served.client.drop(77);  // root may do everything, listed or not
}

BOOST_AUTO_TEST_CASE(without_lists_the_sockets_group_may_everything) {
  DaemonProcess daemon({"--socket-group=60020"});
  daemon.start();
  fs::permissions(daemon.directory().path(), fs::perms{0755});
  Client(daemon.socket()).set(1, "v", "value");
  as_user(60'005, 60'005, {60'020}, [&] {
    may_read(daemon.socket());
    may_write(daemon.socket(), true);
    may_administer(daemon.socket(), true);
  });
  as_user(60'005, 60'005, {60'021}, [&] {
    require(refused([&] { (void)Client(daemon.socket()).get(1, "v"); }) == STEPSTASH_EPERM, "the socket's mode");
  });
}

BOOST_AUTO_TEST_CASE(modes_do_not_depend_on_the_umask) {
  for (const mode_t mask : {mode_t{0}, mode_t{0777}}) {
    DaemonProcess daemon({"--flush-interval=5ms"});
    const mode_t former = ::umask(mask);
    try {
      daemon.start();
    } catch (...) {
      ::umask(former);
      throw;
    }
    ::umask(former);
    Client client(daemon.socket());
    client.set(1, "large", generated(2 * kMiB, 1));
    BOOST_TEST(client.get(1, "large").has_value());
    client.flush();
    BOOST_TEST(mode_of(daemon.socket()) == 0660);
    int objects = 0, database = 0;
    BOOST_TEST(mode_of(daemon.segment_directory()) == 0700);
    for (const auto& object : fs::directory_iterator(daemon.segment_directory())) {
      ++objects;
      BOOST_TEST(mode_of(object.path()) == 0600, object.path() << " with umask " << mask);
    }
    BOOST_TEST(objects >= 3);  // segment, lock, pin page
    for (const auto& file : fs::directory_iterator(daemon.directory().path())) {
      const std::string name = file.path().filename();
      if (!name.starts_with("build_data.db")) continue;
      ++database;
      BOOST_TEST(mode_of(file.path()) == 0600u, name << " with umask " << mask);
    }
    BOOST_TEST(database >= 4);  // database, -wal, -shm, lock
  }
}

// The state after an upgrade: directory and files are those of a version that let the socket's group in.
BOOST_AUTO_TEST_CASE(the_sockets_group_can_neither_read_the_database_nor_lock_it) {
  constexpr gid_t kGroup = 65'533;
  DaemonProcess daemon({"--flush-interval=5ms", "--socket-mode=0660", "--socket-group=65533", "--write-users=65532"});
  fs::permissions(daemon.directory().path(), fs::perms{02'750});
  BOOST_REQUIRE(::chown(daemon.directory().path().c_str(), 0, kGroup) == 0);
  fs::permissions(daemon.directory().path(), fs::perms{02'750});
  daemon.start();
  {
    Client client(daemon.socket());
    client.set(1, "v", "secret");
    client.flush();
  }
  const auto all = [&] {
    std::vector<std::string> files;
    for (const auto& file : fs::directory_iterator(daemon.directory().path())) {
      if (file.path().filename().string().starts_with("build_data.db")) files.push_back(file.path());
    }
    return files;
  };
  daemon.kill();
  for (const std::string& file : all()) {
    BOOST_REQUIRE(::chown(file.c_str(), 0, kGroup) == 0);
    fs::permissions(file, fs::perms{0640});
  }
  daemon.start();
  Client client(daemon.socket());
  client.set(1, "w", "another");
  client.flush();
  const std::vector<std::string> files = all();
  BOOST_TEST(files.size() >= 5u);  // database, -wal, -shm, -reserve, lock
  as_user(65'534, 65'534, {kGroup}, [&] {
    require(refused([&] { (void)Client(daemon.socket()).get(1, "v"); }) == STEPSTASH_EPERM, "is on no list");
    for (const std::string& file : files) {
      require(::open(file.c_str(), O_RDONLY | O_CLOEXEC) < 0 && errno == EACCES, file + " can be opened");
    }
    bool locked = true;
    try {
      const WriteLock lock(daemon.db());
    } catch (const std::exception&) {
      locked = false;
    }
    require(!locked, "the database can be locked");
  });
  SetOptions durable;
  durable.durable = true;
  client.set(1, "x", "durable", "", durable);
}

BOOST_AUTO_TEST_CASE(nothing_in_the_daemons_places_is_followed_or_changed) {
  enum class Kind { symbolic_link, dangling_link, hard_link, foreign_file, fifo, directory };
  const char* const kinds[] = {"symbolic link", "dangling link", "hard link", "foreign file", "fifo", "directory"};
  const std::string secret = "somebody's file, " + std::string(5000, 's');
  int serving = 0, refusing = 0;
  for (const std::string place : {"segment", "segment.lock", "segment.new", "segment.pin.1.0", "socket", "socket.lock",
                                  "db", "db.lock", "db-wal", "db-shm", "db-journal", "db-reserve"}) {
    for (const Kind kind :
         {Kind::symbolic_link, Kind::dangling_link, Kind::hard_link, Kind::foreign_file, Kind::fifo, Kind::directory}) {
      DaemonProcess daemon;
      const std::string object = place.substr(0, place.find_first_of(".-"));
      const std::string base = object == "segment" ? daemon.segment_path()
                               : object == "db"    ? daemon.db()
                                                   : daemon.socket();
      const std::string path =
          place == "segment.lock" ? daemon.segment_directory() + "/lock" : base + place.substr(object.size());
      fs::create_directory(daemon.segment_directory());
      // Hard links stay on one file system.
      const std::string victim =
          place.starts_with("segment") ? "/dev/shm/" + daemon.segment() + ".victim" : daemon.directory().file("victim");
      std::ofstream(victim) << secret;
      fs::permissions(victim, fs::perms{0604});
      switch (kind) {
        case Kind::symbolic_link:
          fs::create_symlink(victim, path);
          break;
        case Kind::dangling_link:
          fs::remove(victim);
          fs::create_symlink(victim, path);
          break;
        case Kind::hard_link:
          fs::create_hard_link(victim, path);
          break;
        case Kind::foreign_file:
          fs::rename(victim, path);
          BOOST_REQUIRE(::chown(path.c_str(), 65'534, 65'534) == 0);
          break;
        case Kind::fifo:
          BOOST_REQUIRE(::mkfifo(path.c_str(), 0666) == 0);
          break;
        case Kind::directory:
          fs::create_directory(path);
          std::ofstream(path + "/in it") << secret;
          break;
      }
      const std::string what = std::string(kinds[static_cast<int>(kind)]) + " at " + place;
      const auto start = std::chrono::steady_clock::now();
      try {
        daemon.start();
        ++serving;
        Client client(daemon.socket());
        client.set(1, "v", generated(300 * kKiB, 1));
        BOOST_TEST(is_generated(client.get(1, "v")->bytes(), 300 * kKiB, 1), what);
        client.flush();
      } catch (const std::exception& error) {
        BOOST_TEST(contains(error.what(), "ended with status"), what << ": " << error.what());
        BOOST_TEST(contains(error.what(), fs::path(path).parent_path().string()), what << ": " << error.what());
        ++refusing;
      }
      BOOST_TEST((std::chrono::steady_clock::now() - start < 10s), what);
      const bool moved = kind == Kind::foreign_file;
      if (kind == Kind::symbolic_link || kind == Kind::hard_link || (moved && fs::exists(path))) {
        const std::string& kept = moved ? path : victim;
        struct stat status {};
        BOOST_REQUIRE(::stat(kept.c_str(), &status) == 0);
        if (!moved || status.st_uid == 65'534) {
          BOOST_TEST((content_of(kept) == secret), what);
          BOOST_TEST((status.st_mode & 07777) == 0604u, what);
          BOOST_TEST(status.st_uid == (moved ? 65'534u : 0u), what);
        }
      }
      if (kind == Kind::dangling_link) BOOST_TEST(!fs::exists(victim), what);
      if (kind == Kind::directory && fs::is_directory(path)) {
        BOOST_TEST((content_of(path + "/in it") == secret), what);
      }
      daemon.kill();
      for (const std::string& left : {path, victim}) fs::remove_all(left);
    }
  }
  BOOST_TEST(serving > 0);
  BOOST_TEST(refusing > 20);
}

BOOST_AUTO_TEST_CASE(a_clients_descriptors_give_no_more_than_reading) {
  Open served({"--read-users=65534"});
  as_user(65'534, 65'534, {}, [&] {
    RawConnection raw(served.daemon.socket());
    raw.send(protocol::Hello{.attach = true});
    require(std::holds_alternative<protocol::HelloOk>(raw.receive().value()), "hello");
    require(raw.descriptors().size() == 2, "two descriptors");
    const int segment = raw.descriptors()[0].get();
    const std::string self = "/proc/self/fd/" + std::to_string(segment);
    const auto fails = [](const char* what, bool failed, std::initializer_list<int> errors) {
      const int error = errno;
      require(failed, std::string(what) + " works");
      require(std::find(errors.begin(), errors.end(), error) != errors.end(),
              std::string(what) + ": " + std::strerror(error));
    };
    fails("opening it to write", ::open(self.c_str(), O_RDWR) < 0, {EACCES});
    fails("opening it to truncate", ::open(self.c_str(), O_RDONLY | O_TRUNC) < 0, {EACCES});
    fails("opening it at all", ::open(self.c_str(), O_RDONLY) < 0, {EACCES});
    fails("opening it by name", ::open(served.daemon.segment_path().c_str(), O_RDONLY) < 0, {EACCES});
    fails("truncating", ::ftruncate(segment, 0) != 0, {EBADF, EINVAL});
    fails("allocating", ::fallocate(segment, 0, 0, 1 << 30) != 0, {EBADF});
    fails("punching", ::fallocate(segment, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) != 0, {EBADF});
    fails("writing", ::pwrite(segment, "x", 1, 0) < 0, {EBADF});
    fails("changing its mode", ::fchmod(segment, 0666) != 0, {EPERM});
    fails("mapping to write", ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, segment, 0) == MAP_FAILED,
          {EACCES});
    void* mapped = ::mmap(nullptr, 4096, PROT_READ, MAP_SHARED, segment, 0);
    require(mapped != MAP_FAILED, "mapping to read");
    fails("making the mapping writable", ::mprotect(mapped, 4096, PROT_READ | PROT_WRITE) != 0, {EACCES});
    const std::string pins = "/proc/self/fd/" + std::to_string(raw.descriptors()[1].get());
    fails("opening the pin page again", ::open(pins.c_str(), O_RDWR) < 0, {EACCES});
    // Another user's page: no access.
    fails("opening another's pin page", ::open((served.daemon.segment_path() + ".pin.1.0").c_str(), O_RDONLY) < 0,
          {EACCES});
  });
}

BOOST_AUTO_TEST_CASE(a_write_to_a_view_dies_of_sigsegv) {
  Open served({"--read-users=65534"});
  Child child([&] {
    require(::setgroups(0, nullptr) == 0 && ::setresuid(65'534, 65'534, 65'534) == 0, "setresuid(2)");
    const Client own(served.daemon.socket());
    const auto view = own.get(1, "v");
    auto* const at = const_cast<char*>(view->text().data());
    auto* const page = reinterpret_cast<void*>(reinterpret_cast<std::uintptr_t>(at) & ~std::uintptr_t{4095});
    require(::mprotect(page, 4096, PROT_READ | PROT_WRITE) != 0, "mprotect(2) works");
    *at = 'X';
    return 0;
  });
  BOOST_TEST(child.join() == 128 + SIGSEGV);
  BOOST_TEST(served.client.get(1, "v")->text() == "value");
}

// ---- names that another user made first
// ------------------------------------------------------------------------------

namespace {

enum class Squat { file, directory, link_to_file, link_to_directory, fifo };
constexpr std::pair<Squat, const char*> kSquats[] = {{Squat::file, "a file"},
                                                     {Squat::directory, "a directory"},
                                                     {Squat::link_to_file, "a link to a file"},
                                                     {Squat::link_to_directory, "a link to a directory"},
                                                     {Squat::fifo, "a fifo"}};

/// Creates a name as another user: /dev/shm permits it, and prevents others from removing it.
void squat(Squat kind, const std::string& path) {
  as_user(65'534, 65'534, {}, [&] {
    switch (kind) {
      case Squat::file:
        std::ofstream(path) << "somebody's";
        break;
      case Squat::directory:
        fs::create_directory(path);
        fs::permissions(path, fs::perms{0777});
        break;
      case Squat::link_to_file:
        fs::create_symlink("/etc/passwd", path);
        break;
      case Squat::link_to_directory:
        fs::create_directory_symlink("/tmp", path);
        break;
      case Squat::fifo:
        require(::mkfifo(path.c_str(), 0666) == 0, path);
        break;
    }
    require(fs::symlink_status(path).type() != fs::file_type::not_found, "the name was not made");
  });
}

constexpr uid_t kDaemonsUser = 60'101;

/// Root may remove others' names from a sticky directory, so the daemon runs as another user, who must be able to reach
/// its program.
boost::test_tools::assertion_result other_daemon(boost::unit_test::test_unit_id) {
  Child probe([] {
    require(::setgroups(0, nullptr) == 0 && ::setresuid(kDaemonsUser, kDaemonsUser, kDaemonsUser) == 0, "setresuid(2)");
    return ::access(DaemonProcess::program(), X_OK) == 0 ? 0 : 1;
  });
  boost::test_tools::assertion_result may(probe.join() == 0);
  may.message() << "other users cannot run the daemon where it was built";
  return may;
}

/// All names that can be squatted: those that this version needs and those of earlier ones.
std::vector<std::string> names_of(const DaemonProcess& daemon) {
  std::vector<std::string> names;
  for (const char* suffix : {".d", ".d.0000000000000000", "", ".lock", ".new", ".pin.1", ".pin.2", ".damaged.1",
                             ".damaged.2", ".d.lock", ".d.new"}) {
    names.push_back("/dev/shm/" + daemon.segment() + suffix);
  }
  return names;
}

/// The directory it serves from, according to its log.
std::string served_directory(const DaemonProcess& daemon) {
  std::string found;
  for (const auto& object : fs::directory_iterator("/dev/shm")) {
    const std::string name = object.path().filename();
    if (!name.starts_with(daemon.segment() + ".d") || fs::is_symlink(object.path())) continue;
    struct stat segment {};
    const bool there = ::stat((object.path() / "segment").c_str(), &segment) == 0;
    if (there && segment.st_uid == kDaemonsUser) found = object.path();
  }
  return found;
}

}  // namespace

BOOST_AUTO_TEST_CASE(no_name_that_another_user_made_first_keeps_a_daemon_from_starting,
                     *boost::unit_test::precondition(other_daemon)) {
  for (const auto& [kind, what] : kSquats) {
    DaemonProcess daemon({"--segment-size=8MiB"});
    daemon.run_as(kDaemonsUser);
    const auto names = names_of(daemon);
    for (const std::string& name : names) squat(kind, name);
    daemon.start();
    Client(daemon.socket()).set(1, "v", "value");
    const std::string directory = served_directory(daemon);
    BOOST_TEST_CONTEXT(what << ", served from " << directory) {
      BOOST_TEST(directory != daemon.segment_directory());
      BOOST_TEST(mode_of(directory) == 0700u);
      BOOST_TEST(contains(daemon.log(), directory), daemon.log());
      // A second daemon for the same instance finds the same directory, and is refused.
      DaemonProcess second({"--segment-size=8MiB"});
      second.run_as(kDaemonsUser);
      second.use_segment(daemon.segment());
      BOOST_TEST(second.start_refused() == 75);
      BOOST_TEST(contains(second.log(), "is held by another stepstashd"), second.log());
      // After a kill it finds the directory again, even if the name has become free or belongs to another user again.
      daemon.kill();
      daemon.start();
      BOOST_TEST(Client(daemon.socket()).get(1, "v")->text() == "value");
      daemon.kill();
      as_user(65'534, 65'534, {}, [&] {
        for (const std::string& name : names) fs::remove(name);
      });
      daemon.start();
      BOOST_TEST(Client(daemon.socket()).get(1, "v")->text() == "value");
      BOOST_TEST(served_directory(daemon) == directory);
    }
  }
}

BOOST_AUTO_TEST_CASE(a_directory_that_root_gave_to_the_daemon_with_somebodys_names_in_it_is_not_used,
                     *boost::unit_test::precondition(other_daemon)) {
  {  // Without such names it is.
    DaemonProcess daemon({"--segment-size=8MiB"});
    daemon.run_as(kDaemonsUser);
    fs::create_directory(daemon.segment_directory());
    BOOST_REQUIRE(::chown(daemon.segment_directory().c_str(), kDaemonsUser, kDaemonsUser) == 0);
    daemon.start();
    BOOST_TEST(served_directory(daemon) == daemon.segment_directory());
  }
  for (const char* name : {"lock", "segment", "segment.new", "segment.pin.1"}) {
    DaemonProcess daemon({"--segment-size=8MiB"});
    daemon.run_as(kDaemonsUser);
    squat(Squat::directory, daemon.segment_directory());
    squat(Squat::file, daemon.segment_directory() + "/" + name);
    // As systemd-tmpfiles does with a directory that it finds.
    BOOST_REQUIRE(::chown(daemon.segment_directory().c_str(), kDaemonsUser, kDaemonsUser) == 0);
    fs::permissions(daemon.segment_directory(), fs::perms{0700});
    daemon.start();
    Client(daemon.socket()).set(1, "v", "value");
    const std::string directory = served_directory(daemon);
    BOOST_TEST(directory != daemon.segment_directory(), name);
    daemon.kill();
    daemon.start();
    BOOST_TEST(Client(daemon.socket()).get(1, "v")->text() == "value", name);
    BOOST_TEST(served_directory(daemon) == directory, name);
  }
}

BOOST_AUTO_TEST_CASE(names_that_another_user_makes_later_keep_no_start_from_what_it_needs,
                     *boost::unit_test::precondition(other_daemon)) {
  for (const auto& [kind, what] : kSquats) {
    for (const std::string start : {"damaged", "resized", "cold", "killed"}) {
      DaemonProcess daemon({"--segment-size=8MiB", "--flush-interval=10ms"});
      daemon.run_as(kDaemonsUser);
      daemon.start();
      {
        Client client(daemon.socket());
        client.set(1, "v", "value");
        client.flush();
      }
      daemon.kill();
      for (const std::string& name : names_of(daemon)) {
        if (!fs::exists(name)) squat(kind, name);  // the directory is there, and ours
      }
      if (start == "damaged") {
        const UniqueFd segment(::open(daemon.segment_path().c_str(), O_WRONLY | O_CLOEXEC));
        BOOST_REQUIRE(::pwrite(segment.get(), "x", 1, 0) == 1);
      } else if (start == "cold") {
        fs::remove_all(daemon.segment_directory());
        squat(kind, daemon.segment_directory());
      } else if (start == "killed") {
        for (auto time = 1ms; time < 20ms; time += 3ms) {
          if (daemon.start_killed_after(time)) daemon.kill();
        }
      }
      daemon.start({start == "resized" ? "--segment-size=16MiB" : "--segment-size=8MiB"});
      BOOST_TEST_CONTEXT(what << ", a start that is " << start) {
        Client client(daemon.socket());
        BOOST_TEST(client.get(1, "v")->text() == "value");
        client.set(2, "large", generated(kMiB, 1));
        BOOST_TEST(is_generated(client.get(2, "large")->bytes(), kMiB, 1));
        BOOST_TEST(stats(client).at("segment").at("total_bytes") == (start == "resized" ? 16 : 8) * kMiB);
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(what_an_earlier_version_left_in_dev_shm_is_moved_in_with_its_clients) {
  DaemonProcess daemon({"--segment-size=8MiB", "--flush-interval=1h"});
  daemon.start();
  Client client(daemon.socket());
  client.set(1, "v", "value");
  client.set(1, "held", generated(200'000, 1));
  const auto view = client.get(1, "held");
  BOOST_TEST(figure(client, "pin_pages") == 1u);
  daemon.kill();
  daemon.flatten_segment();
  // While an earlier version runs, it keeps its files.
  {
    const UniqueFd lock(::open(("/dev/shm/" + daemon.segment() + ".lock").c_str(), O_RDWR | O_CLOEXEC));
    BOOST_REQUIRE(::flock(lock.get(), LOCK_EX | LOCK_NB) == 0);
    BOOST_TEST(daemon.start_refused() == 75);
    BOOST_TEST(fs::exists("/dev/shm/" + daemon.segment()));
  }
  daemon.start();
  client.set(1, "held", "another");
  for (int i = 0; i < 60; ++i) client.set(2, std::to_string(i % 3), generated(200'000, 50));
  BOOST_TEST(is_generated(view->bytes(), 200'000, 1));  // its pin page was taken over
  BOOST_TEST(client.get(1, "v")->text() == "value");
  BOOST_TEST(figure(client, "pin_pages") == 2u);  // it belongs to kNobody now: keeps its pins, gets no more
  for (const auto& object : fs::directory_iterator("/dev/shm")) {
    const std::string name = object.path().filename();
    if (name.starts_with(daemon.segment())) BOOST_TEST(name == daemon.segment() + ".d");
  }
  // An earlier version ran once more and left a newer segment.
  daemon.kill();
  const std::string aside = daemon.segment_directory() + "-aside";
  fs::rename(daemon.segment_directory(), aside);
  daemon.start();
  {
    Client other(daemon.socket());
    other.set(3, "newer", "value");
    other.flush();
  }
  daemon.kill();
  daemon.flatten_segment();
  fs::rename(aside, daemon.segment_directory());
  daemon.start();
  Client now(daemon.socket());
  BOOST_TEST(now.get(3, "newer")->text() == "value");
  BOOST_TEST(fs::exists(daemon.segment_path() + ".damaged.1"));
  BOOST_TEST(contains(daemon.log(), "segment.damaged.1"), daemon.log());
}

BOOST_AUTO_TEST_SUITE_END()
