// SPDX-License-Identifier: Apache-2.0
#include "base/unique_fd.hpp"

#include <fcntl.h>

#include <boost/test/unit_test.hpp>

namespace stepstash {
namespace {

UniqueFd opened() { return UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC)); }
bool is_open(int fd) { return ::fcntl(fd, F_GETFD) != -1; }

BOOST_AUTO_TEST_SUITE(unique_fd)

BOOST_AUTO_TEST_CASE(the_descriptor_is_closed_with_its_owner) {
  int number = -1;
  {
    const UniqueFd fd = opened();
    number = fd.get();
    BOOST_TEST(is_open(number));
  }
  BOOST_TEST(!is_open(number));
}

BOOST_AUTO_TEST_CASE(moving_leaves_the_source_empty_and_the_descriptor_open) {
  UniqueFd from = opened();
  const int number = from.get();
  UniqueFd to(std::move(from));
  BOOST_TEST(!from);  // NOLINT(bugprone-use-after-move): moved-from is empty, by contract
  BOOST_TEST(to.get() == number);
  BOOST_TEST(is_open(number));
}

BOOST_AUTO_TEST_CASE(assignment_closes_what_was_owned) {
  UniqueFd one = opened();
  UniqueFd other = opened();
  const int lost = one.get();
  const int kept = other.get();
  one = std::move(other);
  BOOST_TEST(!is_open(lost));
  BOOST_TEST(one.get() == kept);
  BOOST_TEST(is_open(kept));
}

BOOST_AUTO_TEST_CASE(assigning_an_owner_to_itself_changes_nothing) {
  UniqueFd fd = opened();
  const int number = fd.get();
  UniqueFd& same = fd;
  fd = std::move(same);
  BOOST_TEST(fd.get() == number);
  BOOST_TEST(is_open(number));
}

BOOST_AUTO_TEST_CASE(release_gives_the_descriptor_away_open) {
  UniqueFd fd = opened();
  const int number = fd.release();
  BOOST_TEST(!fd);
  BOOST_TEST(is_open(number));
  ::close(number);
}

BOOST_AUTO_TEST_CASE(descriptor_zero_is_a_descriptor) {
  UniqueFd fd(::dup(0));
  BOOST_TEST(static_cast<bool>(fd));
  UniqueFd zero(0);
  BOOST_TEST(static_cast<bool>(zero));
  BOOST_TEST(zero.release() == 0);
}

BOOST_AUTO_TEST_CASE(above_stdio_moves_what_lies_on_0_1_or_2_and_nothing_else) {
  const int high = opened().release();
  UniqueFd same = above_stdio(UniqueFd(high));
  BOOST_TEST(same.get() == high);
  errno = ENOENT;
  BOOST_TEST(!above_stdio(UniqueFd()));
  BOOST_TEST(errno == ENOENT);
  for (int low = 0; low <= 2; ++low) {
    const UniqueFd saved(::fcntl(low, F_DUPFD_CLOEXEC, 3));
    BOOST_TEST_REQUIRE(::dup2(high, low) == low);
    UniqueFd moved = above_stdio(UniqueFd(low));
    const bool was_moved = moved.get() > 2 && !is_open(low) && is_open(moved.get());
    const bool is_closed_by_exec = (::fcntl(moved.get(), F_GETFD) & FD_CLOEXEC) != 0;
    ::dup2(saved.get(), low);  // before anything is printed
    BOOST_TEST(was_moved);
    BOOST_TEST(is_closed_by_exec);
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace stepstash
