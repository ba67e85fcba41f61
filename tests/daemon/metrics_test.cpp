// SPDX-License-Identifier: Apache-2.0
// What `stats` says: the text as a client gets it, from an engine to which something has happened.
#include "daemon/metrics.hpp"

#include <nlohmann/json.hpp>

#include "daemon/services.hpp"
#include "tests/daemon/engine.hpp"

using namespace stepstash;
using namespace stepstash::test;

namespace {

struct Figures {
  MemoryStore database;
  ManualClock clock;
  TempDir directory;
  Engine engine{directory, database, clock};

  nlohmann::json stats() {
    daemon::Config config;
    daemon::Services services(engine.loop(), engine.store(), engine.flusher(), engine.database(), engine.segment(),
                              config, clock);
    auto text = daemon::stats_json(services, engine.startup(), {});
    services.copiers.join();
    return nlohmann::json::parse(text);
  }
};

}  // namespace

BOOST_FIXTURE_TEST_SUITE(metrics, Figures)

BOOST_AUTO_TEST_CASE(the_phases_of_the_start_are_named_with_their_seconds) {
  const nlohmann::json phases = stats().at("last_recovery").at("phases");
  for (const char* phase : {"counting_entries", "attaching_segment", "creating_segment", "reading_list"}) {
    BOOST_REQUIRE(phases.contains(phase));
    BOOST_TEST(phases.at(phase).get<double>() > 0, phase);
  }
  BOOST_TEST(phases.size() == 4u);
}

BOOST_AUTO_TEST_CASE(sets_and_finishes_are_counted) {
  BOOST_TEST(stats().at("sets") == 0u);
  engine.set(1, "a", "1");
  engine.set(1, "a", "2");
  BOOST_TEST(engine.store().builds().finish(1, 100).has_value());
  const nlohmann::json now = stats();
  BOOST_TEST(now.at("sets") == 2u);
  BOOST_TEST(now.at("finishes") == 1u);
  BOOST_TEST(now.at("entries") == 1u);
}

BOOST_AUTO_TEST_SUITE_END()
