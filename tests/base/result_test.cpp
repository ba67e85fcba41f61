// SPDX-License-Identifier: Apache-2.0
#include "base/result.hpp"

#include <boost/test/unit_test.hpp>
#include <memory>

#include "base/errc.hpp"

namespace stepstash {
namespace {

Result<std::unique_ptr<int>> made(int value) {
  if (value < 0) return Errc::invalid_argument;
  return std::make_unique<int>(value);
}

Result<int> doubled(int value, bool& went_on) {
  const std::unique_ptr<int> number = STEPSTASH_TRY(made(value));
  went_on = true;
  return *number * 2;
}

Result<> checked(int value) {
  STEPSTASH_TRY(made(value));
  return success();
}

BOOST_AUTO_TEST_SUITE(result)

BOOST_AUTO_TEST_CASE(try_gives_the_value_even_one_that_can_only_be_moved) {
  bool went_on = false;
  BOOST_TEST(doubled(21, went_on).value() == 42);
  BOOST_TEST(went_on);
}

BOOST_AUTO_TEST_CASE(try_returns_the_error_and_runs_nothing_after_it) {
  bool went_on = false;
  BOOST_TEST((doubled(-1, went_on).error() == Errc::invalid_argument));
  BOOST_TEST(!went_on);
}

BOOST_AUTO_TEST_CASE(a_result_without_a_value_says_whether_it_went_well) {
  BOOST_TEST(checked(1).has_value());
  BOOST_TEST((checked(-1).error() == Errc::invalid_argument));
}

BOOST_AUTO_TEST_CASE(last_errno_keeps_the_number_in_the_systems_category) {
  errno = ENOSPC;
  const std::error_code error = last_errno();
  BOOST_TEST((error == std::errc::no_space_on_device));
  BOOST_TEST((error.category() == std::system_category()));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace stepstash
