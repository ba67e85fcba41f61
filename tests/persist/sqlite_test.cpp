// SPDX-License-Identifier: Apache-2.0
#include "persist/sqlite.hpp"

#include <fstream>

#include "tests/persist/values.hpp"
#include "tests/support/temp_dir.hpp"

namespace stepstash::test {
namespace {

using persist::Connection;
using persist::Statement;
using persist::Transaction;

struct Database {
  TempDir directory;
  Connection connection;
  Database() {
    std::ofstream(directory.file("db"));  // an empty file is an empty database
    connection = Connection::open(directory.file("db"), 0).value();
    BOOST_TEST_REQUIRE(connection.execute("CREATE TABLE t(a UNIQUE, b)").has_value());
  }
};

BOOST_AUTO_TEST_SUITE(sqlite)

BOOST_FIXTURE_TEST_CASE(errors_are_extended_codes_with_sqlites_own_words, Database) {
  BOOST_TEST_REQUIRE(connection.execute("INSERT INTO t VALUES(1, 2)").has_value());
  const auto again = connection.execute("INSERT INTO t VALUES(1, 3)");
  BOOST_TEST_REQUIRE(!again.has_value());
  BOOST_TEST(again.error() == persist::sqlite_error(SQLITE_CONSTRAINT_UNIQUE));
  BOOST_TEST(again.error().message() == sqlite3_errstr(SQLITE_CONSTRAINT_UNIQUE));
  const std::string text = connection.describe(again.error());
  BOOST_TEST(text.find("t.a") != std::string::npos, text);
  BOOST_TEST(text.find("2067") != std::string::npos, text);
}

BOOST_FIXTURE_TEST_CASE(empty_text_and_empty_bytes_are_not_null, Database) {
  auto insert = Statement::prepare(connection, "INSERT INTO t VALUES(?1, ?2)").value();
  BOOST_TEST_REQUIRE(insert.bind(1, std::string_view()).bind_blob(2, {}).run().has_value());
  BOOST_TEST(connection.query_int("SELECT a IS NULL OR b IS NULL FROM t").value() == 0);
}

BOOST_FIXTURE_TEST_CASE(a_parameter_that_does_not_exist_is_reported_by_the_step, Database) {
  auto insert = Statement::prepare(connection, "INSERT INTO t VALUES(?1, 0)").value();
  BOOST_TEST(error_of(insert.bind(2, std::int64_t{1}).run()) == persist::sqlite_error(SQLITE_RANGE));
  BOOST_TEST(insert.bind(1, std::int64_t{1}).run().has_value());  // and forgotten after it
}

BOOST_FIXTURE_TEST_CASE(a_transaction_that_is_not_committed_leaves_nothing, Database) {
  {
    auto transaction = Transaction::begin_write(connection).value();
    BOOST_TEST_REQUIRE(connection.execute("INSERT INTO t VALUES(1, 1)").has_value());
  }
  BOOST_TEST(connection.query_int("SELECT count(*) FROM t").value() == 0);
  auto transaction = Transaction::begin_write(connection).value();
  BOOST_TEST_REQUIRE(connection.execute("INSERT INTO t VALUES(1, 1)").has_value());
  BOOST_TEST(transaction.commit().has_value());
  BOOST_TEST(connection.query_int("SELECT count(*) FROM t").value() == 1);
}

BOOST_FIXTURE_TEST_CASE(a_second_writer_is_told_at_begin, Database) {
  auto other = Connection::open(directory.file("db"), 0).value();
  const auto held = Transaction::begin_write(other).value();
  const auto refused = Transaction::begin_write(connection);
  BOOST_TEST((refused.error().value() & 0xFF) == SQLITE_BUSY);
}

BOOST_FIXTURE_TEST_CASE(opening_never_creates, Database) {
  BOOST_TEST(!Connection::open(directory.file("absent"), 0).has_value());
  BOOST_TEST(!std::filesystem::exists(directory.file("absent")));
}

BOOST_FIXTURE_TEST_CASE(a_deleted_file_has_moved, Database) {
  BOOST_TEST(!connection.file_has_moved());
  std::filesystem::remove(directory.file("db"));
  BOOST_TEST(connection.file_has_moved());
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace stepstash::test
