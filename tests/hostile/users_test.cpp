// Other users: who may do what, what they can reach of the daemon's objects, and what lies in the places where the
// daemon puts them. Only root can be somebody else: passed over without it.
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
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

/// The error's code, 0: none.
int refused(const std::function<void()>& call) {
  try {
    call();
    return 0;
  } catch (const Error& error) {
    return error.code();
  }
}

/// A daemon whose directory and socket everybody may reach.
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
  crowd.kill();
  BOOST_TEST(figure(served.client, "connections_refused") >= 200u);
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
  served.client.drop(77);  // root may everything, listed or not
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
    for (const auto& object : fs::directory_iterator("/dev/shm")) {
      const std::string name = object.path().filename();
      if (name != daemon.segment() && !name.starts_with(daemon.segment() + ".")) continue;
      ++objects;
      BOOST_TEST(mode_of(object.path()) == 0600, name << " with umask " << mask);
    }
    BOOST_TEST(objects >= 3);  // segment, lock, pin page
    for (const auto& file : fs::directory_iterator(daemon.directory().path())) {
      const std::string name = file.path().filename();
      if (!name.starts_with("build_data.db")) continue;
      ++database;
      BOOST_TEST(mode_of(file.path()) == (name.ends_with(".lock") ? 0600u : 0640u), name << " with umask " << mask);
    }
    BOOST_TEST(database >= 4);  // database, -wal, -shm, lock
  }
}

BOOST_AUTO_TEST_CASE(nothing_in_the_daemons_places_is_followed_or_changed) {
  enum class Kind { symbolic_link, dangling_link, hard_link, foreign_file, fifo, directory };
  const char* const kinds[] = {"symbolic link", "dangling link", "hard link", "foreign file", "fifo", "directory"};
  const std::string secret = "somebody's file, " + std::string(5000, 's');
  int serving = 0, refusing = 0;
  for (const std::string place : {"segment", "segment.lock", "segment.new", "segment.pin.1", "socket", "socket.lock",
                                  "db", "db.lock", "db-wal", "db-shm", "db-journal", "db-reserve"}) {
    for (const Kind kind :
         {Kind::symbolic_link, Kind::dangling_link, Kind::hard_link, Kind::foreign_file, Kind::fifo, Kind::directory}) {
      DaemonProcess daemon;
      const std::string object = place.substr(0, place.find_first_of(".-"));
      const std::string base = object == "segment" ? daemon.segment_path()
                               : object == "db"    ? daemon.db()
                                                   : daemon.socket();
      const std::string path = base + place.substr(object.size());
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
        BOOST_TEST(contains(error.what(), base), what << ": " << error.what());
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
    // Another's page: no way to it.
    fails("opening another's pin page", ::open((served.daemon.segment_path() + ".pin.1").c_str(), O_RDONLY) < 0,
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

BOOST_AUTO_TEST_SUITE_END()
