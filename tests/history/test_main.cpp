// SPDX-License-Identifier: Apache-2.0
#define BOOST_TEST_MODULE history_checker
#include <boost/test/unit_test.hpp>
