// SPDX-License-Identifier: Apache-2.0
#include "persist/schema.hpp"

#include <fstream>

#include "tests/persist/values.hpp"
#include "tests/support/temp_dir.hpp"

namespace stepstash::test {
namespace {

using persist::Connection;
using persist::migrate;
using persist::MigrationStep;

struct Fresh {
  TempDir directory;
  Connection connection;
  Fresh() {
    std::ofstream(directory.file("db"));
    connection = Connection::open(directory.file("db"), 0).value();
  }
  std::int64_t number(const char* sql) { return connection.query_int(sql).value(); }
};

Result<> add_column(Connection& connection) { return connection.execute("ALTER TABLE builds ADD COLUMN extra"); }
Result<> fill_column(Connection& connection) { return connection.execute("UPDATE builds SET extra = id * 2"); }
Result<> fail(Connection& connection) {
  STEPSTASH_TRY(connection.execute("DROP TABLE builds"));
  return persist::sqlite_error(SQLITE_FULL);
}

BOOST_AUTO_TEST_SUITE(schema)

BOOST_FIXTURE_TEST_CASE(a_fresh_file_becomes_ours_at_the_latest_version, Fresh) {
  BOOST_TEST_REQUIRE(migrate(connection).has_value());
  BOOST_TEST(number("PRAGMA user_version") == static_cast<std::int64_t>(persist::migration_steps().size()));
  BOOST_TEST(number("PRAGMA application_id") == persist::kApplicationId);
  BOOST_TEST(number("SELECT count(*) FROM sqlite_schema WHERE name IN ('build_data', 'builds')") == 2);
  BOOST_TEST(number("SELECT value <> 0 FROM meta WHERE key = 'store_id'") == 1);
}

BOOST_FIXTURE_TEST_CASE(migrating_again_changes_nothing, Fresh) {
  BOOST_TEST_REQUIRE(migrate(connection).has_value());
  const auto id = number("SELECT value FROM meta WHERE key = 'store_id'");
  const auto version = number("PRAGMA schema_version");
  BOOST_TEST_REQUIRE(migrate(connection).has_value());
  BOOST_TEST(number("SELECT value FROM meta WHERE key = 'store_id'") == id);
  BOOST_TEST(number("PRAGMA schema_version") == version);
}

BOOST_FIXTURE_TEST_CASE(an_older_database_takes_only_the_steps_it_lacks, Fresh) {
  const MigrationStep first = persist::migration_steps()[0];
  const MigrationStep steps[] = {first, add_column, fill_column};
  BOOST_TEST_REQUIRE(migrate(connection, std::span(steps, 1)).has_value());
  BOOST_TEST_REQUIRE(connection.execute("INSERT INTO builds(id) VALUES(21)").has_value());
  BOOST_TEST_REQUIRE(migrate(connection, steps).has_value());
  BOOST_TEST(number("SELECT extra FROM builds") == 42);
  BOOST_TEST(number("PRAGMA user_version") == 3);
}

BOOST_FIXTURE_TEST_CASE(a_step_that_fails_undoes_all_steps, Fresh) {
  const MigrationStep first = persist::migration_steps()[0];
  const MigrationStep steps[] = {first, add_column, fail};
  BOOST_TEST_REQUIRE(migrate(connection, std::span(steps, 1)).has_value());
  BOOST_TEST(error_of(migrate(connection, steps)) == persist::sqlite_error(SQLITE_FULL));
  BOOST_TEST(number("PRAGMA user_version") == 1);
  BOOST_TEST(number("SELECT count(*) FROM pragma_table_info('builds')") == 3);
}

BOOST_FIXTURE_TEST_CASE(a_newer_database_is_refused_and_left_alone, Fresh) {
  BOOST_TEST_REQUIRE(migrate(connection).has_value());
  BOOST_TEST_REQUIRE(connection.execute("PRAGMA user_version=999").has_value());
  BOOST_TEST(error_of(migrate(connection)) == Errc::newer_database);
  BOOST_TEST(number("PRAGMA user_version") == 999);
}

BOOST_FIXTURE_TEST_CASE(another_programs_database_is_refused_and_left_alone, Fresh) {
  BOOST_TEST_REQUIRE(connection.execute("CREATE TABLE masters(id)").has_value());
  BOOST_TEST(error_of(migrate(connection)) == Errc::foreign_database);
  BOOST_TEST(number("SELECT count(*) FROM sqlite_schema") == 1);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace stepstash::test
