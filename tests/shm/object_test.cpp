// SPDX-License-Identifier: Apache-2.0
#include "shm/object.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/support/segment_fixture.hpp"

namespace stepstash::test {
namespace {

using Access = shm::ObjectDirectory::Access;

struct Objects {
  ShmDir dir;
  shm::ObjectDirectory objects = take(shm::ObjectDirectory::open(dir.path()));

  std::error_code error_of(const std::string& name, Access access = Access::read_write) const {
    const auto opened = objects.open_own(name, access);
    return opened ? std::error_code() : opened.error();
  }
  void make(const std::string& name, const std::string& content) const {
    const UniqueFd fd = take(objects.create(name));
    BOOST_TEST_REQUIRE(::write(fd.get(), content.data(), content.size()) == static_cast<::ssize_t>(content.size()));
  }
  std::string content(const std::string& name) const {
    const UniqueFd fd = take(objects.open_own(name, Access::read_only));
    std::string text(100, '\0');
    text.resize(static_cast<std::size_t>(::read(fd.get(), text.data(), text.size())));
    return text;
  }
};

boost::test_tools::assertion_result is_root(boost::unit_test::test_unit_id) { return ::geteuid() == 0; }

BOOST_AUTO_TEST_SUITE(object)

BOOST_FIXTURE_TEST_CASE(an_object_has_mode_0600_under_any_umask, Objects) {
  for (const ::mode_t mask : {0u, 022u, 0777u}) {
    const ::mode_t before = ::umask(mask);
    const std::string name = "o" + std::to_string(mask);
    const UniqueFd fd = take(objects.create(name));
    ::umask(before);
    struct stat status {};
    BOOST_TEST_REQUIRE(::fstat(fd.get(), &status) == 0);
    BOOST_TEST((status.st_mode & 07777) == 0600u, "umask " << mask);
  }
}

BOOST_FIXTURE_TEST_CASE(creating_never_takes_what_is_there, Objects) {
  make("taken", "mine");
  BOOST_TEST((objects.create("taken").error() == std::errc::file_exists));
  BOOST_TEST_REQUIRE(::symlink(dir.file("elsewhere").c_str(), dir.file("link").c_str()) == 0);
  BOOST_TEST((objects.create("link").error() == std::errc::file_exists));
  BOOST_TEST(::access(dir.file("elsewhere").c_str(), F_OK) != 0);
  BOOST_TEST(content("taken") == "mine");
}

BOOST_FIXTURE_TEST_CASE(a_symbolic_link_is_unsafe_even_to_a_file_of_ones_own, Objects) {
  make("target", "x");
  BOOST_TEST_REQUIRE(::symlink("target", dir.file("link").c_str()) == 0);
  BOOST_TEST_REQUIRE(::symlink("nowhere", dir.file("dangling").c_str()) == 0);
  BOOST_TEST((error_of("link") == Errc::unsafe_object));
  BOOST_TEST((error_of("dangling") == Errc::unsafe_object));
}

BOOST_FIXTURE_TEST_CASE(a_file_with_a_second_link_is_unsafe, Objects) {
  make("one", "x");
  BOOST_TEST(!error_of("one"));
  BOOST_TEST_REQUIRE(::link(dir.file("one").c_str(), dir.file("two").c_str()) == 0);
  BOOST_TEST((error_of("one") == Errc::unsafe_object));
  BOOST_TEST((error_of("two", Access::read_only) == Errc::unsafe_object));
}

/// Opening a FIFO for reading would wait for a writer: the test would not end.
BOOST_FIXTURE_TEST_CASE(a_fifo_is_unsafe_and_nobody_waits_for_its_other_end, Objects) {
  BOOST_TEST_REQUIRE(::mkfifo(dir.file("fifo").c_str(), 0600) == 0);
  BOOST_TEST((error_of("fifo", Access::read_only) == Errc::unsafe_object));
  BOOST_TEST((error_of("fifo", Access::read_write) == Errc::unsafe_object));
}

BOOST_FIXTURE_TEST_CASE(a_directory_is_refused, Objects) {
  BOOST_TEST_REQUIRE(::mkdir(dir.file("directory").c_str(), 0700) == 0);
  BOOST_TEST((error_of("directory", Access::read_only) == Errc::unsafe_object));
  BOOST_TEST((error_of("directory", Access::read_write) == Errc::unsafe_object));
}

BOOST_AUTO_TEST_CASE(a_file_of_another_user_is_unsafe, *boost::unit_test::precondition(is_root)) {
  const Objects one;
  one.make("foreign", "x");
  BOOST_TEST_REQUIRE(::chown(one.dir.file("foreign").c_str(), 65534, 65534) == 0);
  BOOST_TEST((one.error_of("foreign") == Errc::unsafe_object));
}

BOOST_FIXTURE_TEST_CASE(what_is_not_there_is_not_there, Objects) {
  BOOST_TEST((error_of("absent") == std::errc::no_such_file_or_directory));
  BOOST_TEST(objects.remove("absent").has_value());
  BOOST_TEST((objects.rename("absent", "x").error() == std::errc::no_such_file_or_directory));
}

BOOST_FIXTURE_TEST_CASE(a_read_only_descriptor_cannot_be_written_through, Objects) {
  make("object", "1234");
  const UniqueFd fd = take(objects.open_own("object", Access::read_only));
  BOOST_TEST(::write(fd.get(), "x", 1) == -1);
  BOOST_TEST(::ftruncate(fd.get(), 0) == -1);
}

BOOST_FIXTURE_TEST_CASE(rename_replaces, Objects) {
  make("a", "A");
  make("b", "B");
  take(objects.rename("a", "b"));
  BOOST_TEST(content("b") == "A");
  BOOST_TEST((error_of("a") == std::errc::no_such_file_or_directory));
}

BOOST_FIXTURE_TEST_CASE(setting_aside_takes_the_first_free_number_and_replaces_nothing, Objects) {
  make("s", "old");
  make("s.damaged.1", "earlier");
  make("s.damaged.3", "later");
  BOOST_TEST(take(objects.set_aside("s", "s.damaged")) == "s.damaged.2");
  make("s", "newer");
  BOOST_TEST(take(objects.set_aside("s", "s.damaged")) == "s.damaged.4");
  BOOST_TEST(content("s.damaged.1") == "earlier");
  BOOST_TEST(content("s.damaged.2") == "old");
  BOOST_TEST(content("s.damaged.4") == "newer");
}

BOOST_FIXTURE_TEST_CASE(a_list_has_the_names_with_the_prefix_sorted_and_can_be_asked_for_twice, Objects) {
  for (const char* name : {"s.pin.2", "s.pin.10", "other", "s.pin", "s.pin."}) make(name, "");
  const std::vector<std::string> expected{"s.pin.", "s.pin.10", "s.pin.2"};
  BOOST_TEST(take(objects.list("s.pin.")) == expected, boost::test_tools::per_element());
  BOOST_TEST(take(objects.list("s.pin.")) == expected, boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(a_directory_that_is_not_there_cannot_be_opened) {
  BOOST_TEST((shm::ObjectDirectory::open("/nonexistent/stepstash").error() == std::errc::no_such_file_or_directory));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace stepstash::test
