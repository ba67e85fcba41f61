// SPDX-License-Identifier: Apache-2.0
// What `stepstash doctor` makes of the daemon's figures.
#include "cli/doctor.hpp"

#include <boost/test/unit_test.hpp>

using namespace stepstash::cli;

namespace {

std::string all(const std::string& stats) { return findings_text(diagnose(stats)); }
bool says(const std::string& stats, const std::string& part) { return all(stats).find(part) != std::string::npos; }

}  // namespace

BOOST_AUTO_TEST_SUITE(doctor)

BOOST_AUTO_TEST_CASE(a_daemon_that_is_well_has_no_findings) {
  const std::string well = R"({"segment":{"heap_bytes":1000,"free_bytes":900,"retired_bytes":0},"damaged_values":0,
      "damaged":[],"kept_aside":[],"database":{"state":"ready","reason":""},"oldest_dirty_seconds":0.2,"last_recovery":{"set_aside":[]}})";
  BOOST_TEST(diagnose(well).empty());
  BOOST_TEST(all(well) == "nothing is wrong\n");
  BOOST_TEST(findings_json(diagnose(well)) == "[]\n");
}

BOOST_AUTO_TEST_CASE(each_damaged_value_and_object_has_a_line) {
  const std::string stats = R"({"damaged_values":3,"damaged":["build 7, name \"a\", id 1","build 8, name \"b\", id 2"],
      "kept_aside":["/dev/shm/stepstash.damaged.1"],"last_recovery":{"set_aside":["index slot 9"]}})";
  BOOST_TEST(diagnose(stats).size() == 5u);
  BOOST_TEST(says(stats, "build 7, name \"a\", id 1"));
  BOOST_TEST(says(stats, "1 more damaged"));
  BOOST_TEST(says(stats, "/dev/shm/stepstash.damaged.1"));
  BOOST_TEST(says(stats, "index slot 9"));
}

BOOST_AUTO_TEST_CASE(a_database_that_takes_no_writes_and_one_that_does_not_keep_up_are_told_apart) {
  BOOST_TEST(says(R"({"database":{"state":"stalled","reason":"disk full","since_seconds":7.5},"dirty_bytes":5,
      "dirty_values":1,"oldest_dirty_seconds":90})",
                  "the database is stalled, for 7 s: disk full; 5 bytes in 1 values"));
  BOOST_TEST(says(R"({"database":{"state":"ready","reason":""},"oldest_dirty_seconds":90})", "has waited 90 s"));
  BOOST_TEST(diagnose(R"({"oldest_dirty_seconds":5})").empty());
}

BOOST_AUTO_TEST_CASE(views_that_hold_half_of_the_memory_are_a_finding) {
  BOOST_TEST(says(R"({"segment":{"heap_bytes":1000,"retired_bytes":501}})", "501 of 1000"));
  BOOST_TEST(diagnose(R"({"segment":{"heap_bytes":1000,"retired_bytes":500}})").empty());
}

BOOST_AUTO_TEST_CASE(what_a_daemon_says_does_not_command_the_terminal) {
  const std::string stats =
      "{\"database\":{\"state\":\"stalled\",\"reason\":\"a\xc2\x9b"
      "31m\"},\"kept_aside\":[\"\xe2\x80\xae\\u001b\"]}";
  BOOST_TEST(says(stats, "a\\xc2\\x9b31m"));
  BOOST_TEST(says(stats, "\\xe2\\x80\\xae\\x1b"));
}

BOOST_AUTO_TEST_CASE(a_tmpfs_that_cannot_give_the_segment_its_size_is_a_finding) {
  BOOST_TEST(says(R"({"segment":{"total_bytes":1000,"tmpfs_bytes":900,"tmpfs_free_bytes":900,"backed_bytes":0}})",
                  "smaller than the segment: 900 of 1000"));
  BOOST_TEST(says(R"({"segment":{"total_bytes":1000,"tmpfs_bytes":9000,"tmpfs_free_bytes":300,"backed_bytes":600}})",
                  "900 of 1000"));
  BOOST_TEST(diagnose(R"({"segment":{"total_bytes":1000,"tmpfs_bytes":9000,"tmpfs_free_bytes":400,
      "backed_bytes":600}})")
                 .empty());
  BOOST_TEST(diagnose(R"({"segment":{"total_bytes":1000,"tmpfs_bytes":0,"tmpfs_free_bytes":0,"backed_bytes":0}})")
                 .empty());  // without a bound
  BOOST_TEST(says(R"({"segment":{"total_bytes":1000,"tmpfs_bytes":1200,"tmpfs_free_bytes":200,"backed_bytes":1000,
      "written_off_bytes":300}})",
                  "as much again as is written off: it can have 1200 of 1300"));
}

BOOST_AUTO_TEST_CASE(a_log_that_a_reader_holds_back_is_a_finding) {
  BOOST_TEST(says(R"({"database":{"log_bytes":347078656,"log_held_bytes":1000}})", "has grown to 347078656 bytes"));
  BOOST_TEST(diagnose(R"({"database":{"log_bytes":347078656,"log_held_bytes":0}})").empty());
  BOOST_TEST(diagnose(R"({"database":{"log_bytes":33554432,"log_held_bytes":1000}})").empty());
}

BOOST_AUTO_TEST_CASE(a_database_that_is_gone_or_does_not_answer_is_a_finding) {
  const auto in_state = [](const std::string& state) {
    return R"({"database":{"state":")" + state + R"(","reason":"because","since_seconds":11.5}})";
  };
  for (const char* state : {"stalled", "hung", "detached", "damaged", "absent", "of another version"}) {
    BOOST_TEST(says(in_state(state), "the database is " + std::string(state) + ", for 11 s: because"));
  }
  BOOST_TEST(says(in_state("detached"), "put the right file in its place"));
  BOOST_TEST(diagnose(in_state("ready")).empty());
}

BOOST_AUTO_TEST_CASE(a_user_who_holds_more_than_his_share_is_named) {
  BOOST_TEST(says(R"({"closed_users":[60001],"segment":{"written_off_bytes":77}})", "user 60001 held more"));
  BOOST_TEST(says(R"({"closed_users":[60001],"segment":{"written_off_bytes":77}})", "77 bytes are written off"));
  BOOST_TEST(diagnose(R"({"closed_users":[]})").empty());
  BOOST_TEST(diagnose(R"({"closed_users":["x",-1]})").empty());
}

BOOST_AUTO_TEST_CASE(what_is_no_json_is_a_finding_and_no_crash) {
  for (const char* stats : {"", "[]", "7", "{", "{\"last_recovery\":"}) BOOST_TEST(diagnose(stats).size() == 1u);
  BOOST_TEST(diagnose(R"({"damaged":[1,null],"damaged_values":"x","kept_aside":{}})").empty());
}

BOOST_AUTO_TEST_SUITE_END()
