// SPDX-License-Identifier: Apache-2.0
// The order in which ids are given out and ranges of them begin, on a header alone.
#include "daemon/id_range.hpp"

#include <boost/test/unit_test.hpp>

#include "base/errc.hpp"

using namespace stepstash;
using daemon::IdRange;

namespace {

struct Ids {
  shm::Header header{};
  IdRange ids{header};

  Ids() { ids.begin(100); }
  void use_up() { header.next_id.store(header.id_limit.load()); }
};

}  // namespace

BOOST_FIXTURE_TEST_SUITE(id_range, Ids)

BOOST_AUTO_TEST_CASE(ids_are_given_out_one_after_the_other_up_to_the_end_of_the_range) {
  BOOST_TEST(ids.take().value() == 100u);
  BOOST_TEST(ids.take().value() == 101u);
  header.next_id.store(header.id_limit.load() - 1);
  BOOST_TEST(ids.take().value() == 99 + IdRange::kCount);
  BOOST_TEST((ids.take().error() == Errc::out_of_ids));
  BOOST_TEST(header.next_id.load() == header.id_limit.load());
}

BOOST_AUTO_TEST_CASE(a_range_is_low_when_less_than_half_of_it_is_left) {
  BOOST_TEST(!ids.low());
  header.next_id.store(header.id_limit.load() - IdRange::kCount / 2);
  BOOST_TEST(!ids.low());
  ids.take().value();
  BOOST_TEST(ids.low());
}

BOOST_AUTO_TEST_CASE(the_next_range_begins_behind_all_that_may_have_been_given_out) {
  BOOST_TEST(ids.end() == 100 + IdRange::kCount);
  use_up();
  ids.begin(ids.end() + 7);
  BOOST_TEST(ids.take().value() == 107 + IdRange::kCount);
  ids.skip(1'000'000'000);  // found in an entry, beyond what is reserved
  BOOST_TEST(ids.end() == 1'000'000'001u);
}

BOOST_AUTO_TEST_CASE(a_skipped_id_is_not_given_out_and_none_is_given_out_again) {
  ids.skip(100);
  BOOST_TEST(ids.take().value() == 101u);
  ids.skip(50);
  BOOST_TEST(ids.take().value() == 102u);
}

BOOST_AUTO_TEST_CASE(what_another_database_has_reserved_is_not_given_out) {
  BOOST_TEST(ids.take_unreserved() == 100u);
  ids.forget_reserved();
  BOOST_TEST((ids.take().error() == Errc::out_of_ids));
  BOOST_TEST(ids.end() == 101u);
}

BOOST_AUTO_TEST_CASE(a_copy_continues_where_the_other_segment_is) {
  ids.take().value();
  shm::Header other{};
  const IdRange copy(other);
  copy.copy(ids);
  BOOST_TEST(copy.take().value() == 101u);
  BOOST_TEST(copy.end() == ids.end());
}

BOOST_AUTO_TEST_SUITE_END()
