// SPDX-License-Identifier: Apache-2.0
// The rule for places, as a client and as a daemon ask it. tests/python/places_test.py runs both.
#include "base/places.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace stepstash {
namespace {

namespace fs = std::filesystem;

struct Directory {
  fs::path path;
  uid_t uid = ::getuid() != 0 ? ::getuid() : 4711;
  std::string user = std::to_string(uid);

  Directory() {
    std::string pattern = (fs::temp_directory_path() / "stepstash-places.XXXXXX").string();
    BOOST_REQUIRE(::mkdtemp(pattern.data()) != nullptr);
    path = pattern;
    BOOST_REQUIRE(::chown(path.c_str(), uid, static_cast<gid_t>(-1)) == 0);
  }
  ~Directory() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  }
};

BOOST_AUTO_TEST_SUITE(places)

BOOST_FIXTURE_TEST_CASE(a_daemon_listens_where_the_first_rule_that_applies_says, Directory) {
  const std::string tmp = "/tmp/stepstash-" + user + "/stepstash.sock";
  const std::string own = path.string();
  BOOST_TEST(place_to_listen(uid, "", own).path == own + "/stepstash/stepstash.sock");
  BOOST_TEST(place_to_listen(uid, "/run/a", own).path == "/run/a/stepstash.sock");
  BOOST_TEST(place_to_listen(0, "", own).path == "/run/stepstash/stepstash.sock");
  BOOST_TEST(place_to_listen(0, "/run/a", own).path == "/run/a/stepstash.sock");
  BOOST_TEST(place_to_listen(uid, "", "").path == tmp);
  BOOST_TEST(place_to_listen(uid, "", "").private_directory == "/tmp/stepstash-" + user);
  BOOST_TEST(place_to_listen(uid, "", "").passed_over == "");
  BOOST_TEST(place_to_listen(uid, "", own).private_directory == "");
  BOOST_TEST(place_to_listen(uid, "", "run/user").path == tmp);
  BOOST_TEST(place_to_listen(uid, "", "run/user").passed_over ==
             "XDG_RUNTIME_DIR is \"run/user\", which is no absolute path");
  BOOST_TEST(place_to_listen(uid, "", own + "/not:yet").path == own + "/not:yet/stepstash/stepstash.sock");
  const Place foreign = place_to_listen(uid + 1, "", own);
  BOOST_TEST(foreign.path == "/tmp/stepstash-" + std::to_string(uid + 1) + "/stepstash.sock");
  BOOST_TEST(foreign.passed_over.find("belongs to user " + user) != std::string::npos, foreign.passed_over);
}

BOOST_FIXTURE_TEST_CASE(a_client_connects_to_its_users_daemon_where_there_is_one_and_to_the_machines_otherwise,
                        Directory) {
  const std::string machine = "/run/stepstash/stepstash.sock";
  BOOST_TEST(place_to_connect(uid, path.string()).path == machine);
  fs::create_directory(path / "stepstash");
  std::ofstream(path / "stepstash/stepstash.sock").flush();
  BOOST_TEST(place_to_connect(uid, path.string()).path == (path / "stepstash/stepstash.sock").string());
  BOOST_TEST(place_to_connect(0, path.string()).path == machine);
  BOOST_TEST(place_to_connect(uid + 1, path.string()).path == machine);
  BOOST_TEST(place_to_connect(uid, "stepstash").path == machine);
}

BOOST_FIXTURE_TEST_CASE(a_directory_is_private_when_it_is_the_users_own_closed_and_no_link, Directory) {
  const std::string own = path.string();
  BOOST_TEST(is_private_directory(own, uid));
  BOOST_TEST(!is_private_directory(own, uid + 1));
  for (const mode_t mode : {0710u, 0701u, 0750u, 0777u, 01777u}) {
    BOOST_REQUIRE(::chmod(own.c_str(), mode) == 0);
    BOOST_TEST(!is_private_directory(own, uid), mode);
  }
  BOOST_REQUIRE(::chmod(own.c_str(), 0700) == 0);
  fs::create_directory_symlink(own, path / "link");
  BOOST_TEST(!is_private_directory((path / "link").string(), uid));
  std::ofstream(path / "file").flush();
  BOOST_TEST(!is_private_directory((path / "file").string(), ::getuid()));
  BOOST_TEST(!is_private_directory((path / "absent").string(), uid));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace stepstash
