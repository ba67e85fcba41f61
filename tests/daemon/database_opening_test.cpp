// SPDX-License-Identifier: Apache-2.0
// What a start does about the file that it finds at the database's path, or does not find.
#include "daemon/database_opening.hpp"

#include <signal.h>
#include <sys/resource.h>

#include <boost/test/unit_test.hpp>
#include <filesystem>
#include <fstream>

#include "daemon/exit_status.hpp"
#include "tests/support/temp_dir.hpp"

namespace stepstash::test {
namespace {

using daemon::DatabaseOpening;

/// While it lives, no file of this process can grow: writing to a database fails as on a full disk.
class NoRoom {
 public:
  NoRoom() : handler_(::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    rlimit none = before_;
    none.rlim_cur = 0;
    ::setrlimit(RLIMIT_FSIZE, &none);
  }
  NoRoom(const NoRoom&) = delete;
  NoRoom& operator=(const NoRoom&) = delete;
  ~NoRoom() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    ::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_{};
  void (*handler_)(int);
};

struct Path {
  TempDir directory;
  std::string path = directory.file("build_data.db");
  std::string kept = path + ".damaged-1";
  DatabaseOpening opening{path, [](daemon::Phase, const std::string&) {}, std::chrono::milliseconds(0)};

  static void write(const std::string& to, const std::string& text) {
    std::ofstream(to) << text;
    std::filesystem::permissions(to, std::filesystem::perms(0600));
  }
  bool is_set_aside() {
    return opening.set_aside().size() == 1 && opening.set_aside().front().find("kept as " + kept) != std::string::npos;
  }
};

BOOST_FIXTURE_TEST_SUITE(database_opening, Path)

BOOST_AUTO_TEST_CASE(where_there_is_none_one_is_made) {
  BOOST_TEST(opening.open().has_value());
  BOOST_TEST(opening.store() != nullptr);
  BOOST_TEST(opening.set_aside().empty());
}

BOOST_AUTO_TEST_CASE(what_is_no_database_is_set_aside_and_told) {
  write(path, std::string(20'000, 'x'));
  BOOST_TEST(opening.open().has_value());
  BOOST_TEST(opening.store() != nullptr);
  BOOST_TEST(is_set_aside());
  BOOST_TEST(std::filesystem::exists(kept));
}

BOOST_AUTO_TEST_CASE(what_a_former_daemon_set_aside_is_told_when_its_place_is_filled) {
  write(kept, "damaged");
  BOOST_TEST(opening.open().has_value());
  BOOST_TEST(opening.store() != nullptr);
  BOOST_TEST(is_set_aside());
  DatabaseOpening next(path, [](daemon::Phase, const std::string&) {});
  BOOST_TEST(next.open().has_value());
  BOOST_TEST(next.set_aside().empty());
}

BOOST_AUTO_TEST_CASE(without_room_for_a_new_one_in_the_place_of_a_damaged_one_the_start_does_without) {
  write(kept, "damaged");
  const NoRoom full;
  BOOST_TEST(opening.open().has_value());
  BOOST_TEST(opening.store() == nullptr);
  BOOST_TEST((opening.absence().error == Errc::not_durable));
  BOOST_TEST(opening.why_absent().find("kept as " + kept) != std::string::npos, opening.why_absent());
  BOOST_TEST(is_set_aside());
}

BOOST_AUTO_TEST_CASE(without_room_for_the_first_one_the_start_fails) {
  const NoRoom full;
  const auto opened = opening.open();
  BOOST_TEST_REQUIRE(!opened.has_value());
  BOOST_TEST(opened.error().exit_status == daemon::kExitIo);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace stepstash::test
