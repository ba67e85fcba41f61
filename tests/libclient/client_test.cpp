// SPDX-License-Identifier: Apache-2.0
#include "libclient/client.hpp"

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <chrono>
#include <condition_variable>
#include <fstream>
#include <mutex>
#include <string>
#include <utility>

#include "libclient/explain.hpp"
#include "libclient/staged_set.hpp"
#include "tests/libclient/allocations.hpp"
#include "tests/support/fake_daemon.hpp"

namespace stepstash::client {
namespace {

using test::FakeDaemon;
using test::FakeSegment;
using namespace std::chrono_literals;
using Peer = FakeDaemon::Peer;

std::unique_ptr<Client> connect(const FakeDaemon& daemon, Milliseconds deadline = 20s) {
  return Client::connect(Address::of(daemon.socket()).value(), deadline).value();
}

std::string text_of(const shm::Pinned& pinned) {
  const auto value = pinned.value();
  return {reinterpret_cast<const char*>(value.data()), value.size()};
}

/// Greets, then hands each request to `answer` until the client is gone.
FakeDaemon::Script serving(FakeSegment& segment, std::function<void(Peer&, const protocol::Request&)> answer) {
  return [&segment, answer = std::move(answer)](Peer& peer) {
    FakeDaemon::greet(peer, segment);
    for (;;) {
      const protocol::Request request = peer.read();
      answer(peer, request);
    }
  };
}

/// A sanitizer maps memory for itself while a test runs.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kMayLackAddresses = false;
#else
constexpr bool kMayLackAddresses = true;
#endif

const auto no_request = [](Peer&, const protocol::Request&) { throw std::runtime_error("nothing was to be asked"); };

}  // namespace

BOOST_AUTO_TEST_SUITE(client)

BOOST_AUTO_TEST_CASE(a_resident_value_is_found_without_asking_and_without_allocating) {
  FakeSegment segment(1);
  segment.put(42, "report", "ok");
  FakeDaemon daemon;
  daemon.serve(serving(segment, no_request));
  const auto client = connect(daemon);
  shm::Pinned pinned;
  BOOST_TEST(client->get(42, "report", 20s, pinned).value());
  BOOST_TEST(text_of(pinned) == "ok");
  pinned.release();
  const std::size_t before = test::allocations();
  for (int i = 0; i < 1000; ++i) {
    if (client->get(42, "report", 20s, pinned).value()) pinned.release();
  }
  BOOST_TEST(test::allocations() == before);
  BOOST_TEST(!client->get(42, "absent", 20s, pinned).value());
  BOOST_TEST(daemon.connections() == 1);
}

BOOST_AUTO_TEST_CASE(an_evicted_value_is_asked_back) {
  FakeSegment segment(1);
  segment.put(42, "big", "was evicted", /*evicted=*/true);
  FakeDaemon daemon;
  daemon.serve(serving(segment, [&](Peer& peer, const protocol::Request& request) {
    const auto& load = std::get<protocol::Load>(request);
    if (load.build == 42 && load.name == "big" && load.deadline_ms > 0) segment.put(42, "big", "is back");
    peer.send(protocol::Done{});
  }));
  const auto client = connect(daemon);
  shm::Pinned pinned;
  BOOST_TEST(client->stat(42, "big", pinned).value());  // does not ask
  BOOST_TEST(!pinned.resident());
  pinned.release();
  BOOST_TEST(client->get(42, "big", 20s, pinned).value());
  BOOST_TEST(text_of(pinned) == "is back");
  pinned.release();
}

BOOST_AUTO_TEST_CASE(an_evicted_value_that_is_gone_meanwhile_is_a_miss) {
  FakeSegment segment(1);
  segment.put(42, "big", "", true);
  FakeDaemon daemon;
  daemon.serve(serving(segment, [](Peer& peer, const auto&) {
    peer.send(protocol::Failure{Errc::not_found, "gone"});
  }));
  const auto client = connect(daemon);
  shm::Pinned pinned;
  BOOST_TEST(!client->get(42, "big", 20s, pinned).value());
  BOOST_TEST((segment.page(0).lines[0].pins[0].load() == 0));  // the evicted entry's record is not held
}

BOOST_AUTO_TEST_CASE(a_value_that_is_evicted_each_time_it_was_loaded_ends_at_the_deadline) {
  FakeSegment segment(1);
  segment.put(42, "big", "", true);
  FakeDaemon daemon;
  daemon.serve(serving(segment, [](Peer& peer, const auto&) { peer.send(protocol::Done{}); }));
  const auto client = connect(daemon);
  shm::Pinned pinned;
  BOOST_TEST((client->get(42, "big", 30ms, pinned).error() == Errc::deadline_exceeded));
}

BOOST_AUTO_TEST_CASE(a_damaged_place_in_the_index_is_asked_about_and_then_told) {
  FakeSegment segment(1);
  segment.damage(42, "lost");
  segment.damage(42, "repaired");
  FakeDaemon daemon;
  daemon.serve(serving(segment, [&](Peer& peer, const protocol::Request& request) {
    if (std::get<protocol::Load>(request).name == "repaired") segment.put(42, "repaired", "again");
    peer.send(protocol::Done{});
  }));
  const auto client = connect(daemon);
  shm::Pinned pinned;
  BOOST_TEST((client->get(42, "lost", 20s, pinned).error() == Errc::corrupt_segment));
  BOOST_TEST(client->get(42, "repaired", 20s, pinned).value());
  BOOST_TEST(text_of(pinned) == "again");
}

BOOST_AUTO_TEST_CASE(a_superseded_segment_is_left_for_the_new_one_and_old_views_stay) {
  FakeSegment old(1), fresh(2);
  old.put(42, "a", "old");
  fresh.put(42, "a", "new");
  FakeDaemon daemon;
  std::atomic<FakeSegment*> serving_now{&old};
  std::atomic<bool> resumed{false};
  daemon.serve([&](Peer& peer) {
    const auto hello = std::get<protocol::Hello>(peer.read());
    if (hello.resume_page != 0) resumed = true;
    FakeDaemon::answer_hello(peer, hello, *serving_now.load());
    peer.read();
  });
  const auto client = connect(daemon);
  shm::Pinned before, after;
  BOOST_TEST(client->get(42, "a", 20s, before).value());
  serving_now = &fresh;
  old.page(0).state.store(shm::make_page_half(shm::PageState::superseded, 0));
  BOOST_TEST(client->get(42, "a", 20s, after).value());
  BOOST_TEST(text_of(after) == "new");
  BOOST_TEST(text_of(before) == "old");
  BOOST_TEST(!resumed.load());  // the old page is of no use any more
  before.release();
  after.release();
}

/// What takes the place of a former segment's pin page needs addresses. Where there are none (RLIMIT_AS) it is left for
/// later; a call that wanted to give it back goes on.
BOOST_AUTO_TEST_CASE(a_client_at_its_limit_of_addresses_does_not_try_for_ever_to_give_memory_back,
                     *boost::unit_test::enable_if<kMayLackAddresses>()) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(30);
    ::_exit([] {
      FakeSegment old(1), fresh(2);
      old.put(42, "a", "old");
      fresh.put(42, "a", "new");
      FakeDaemon daemon;
      std::atomic<FakeSegment*> serving_now{&old};
      daemon.serve([&](Peer& peer) {
        FakeDaemon::greet(peer, *serving_now.load());
        peer.read();
      });
      const auto client = connect(daemon);
      // Only the client maps a segment for reading alone.
      const auto segments = [] {
        std::ifstream maps("/proc/self/maps");
        int count = 0;
        for (std::string line; std::getline(maps, line);) count += line.find(" r--s ") != line.npos;
        return count;
      };
      shm::Pinned before, after;
      if (!client->get(42, "a", 20s, before).value()) return 1;
      serving_now = &fresh;
      old.page(0).state.store(shm::make_page_half(shm::PageState::superseded, 0));
      if (!client->get(42, "a", 20s, after).value() || segments() != 2) return 2;
      before.release();
      ::rlimit all{};
      ::getrlimit(RLIMIT_AS, &all);
      ::rlimit none = all;
      none.rlim_cur = 0;  // below what is mapped: the kernel refuses whatever there is to be mapped
      ::setrlimit(RLIMIT_AS, &none);
      client->give_back_formers();
      ::setrlimit(RLIMIT_AS, &all);
      if (segments() != 2) return 3;
      client->give_back_formers();
      if (segments() != 1) return 4;
      after.release();
      return 0;
    }());
  }
  int status = -1;
  ::waitpid(child, &status, 0);
  BOOST_TEST(status == 0);
}

BOOST_AUTO_TEST_CASE(a_client_that_reconnects_resumes_its_pin_page) {
  FakeSegment segment(1);
  segment.put(42, "a", "1");
  FakeDaemon daemon;
  std::atomic<int> flushes{0};
  daemon.serve(serving(segment, [&](Peer& peer, const auto&) {
    // The first connection breaks on a request that may be repeated.
    if (flushes++ == 0) throw std::runtime_error("break");
    peer.send(protocol::Done{});
  }));
  const auto client = connect(daemon);
  shm::Pinned pinned;
  BOOST_TEST(client->get(42, "a", 20s, pinned).value());
  BOOST_TEST(client->flush(20s).has_value());
  BOOST_TEST(flushes.load() == 2);
  BOOST_TEST(segment.pages() == 1u);  // no second page: the first was resumed
  BOOST_TEST(text_of(pinned) == "1");
  pinned.release();
}

BOOST_AUTO_TEST_CASE(what_is_set_on_a_new_segment_is_found_by_the_next_get) {
  // The old pin page does not say that it is superseded: a daemon that lost it (an emptied /dev/shm) cannot write
  // there.
  FakeSegment old(1), fresh(2);
  FakeDaemon daemon;
  std::atomic<FakeSegment*> serving_now{&old};
  daemon.serve([&](Peer& peer) {
    FakeSegment& segment = *serving_now.load();
    FakeDaemon::greet(peer, segment);
    for (;;) {
      const auto request = peer.read();
      if (&segment == &old) return;  // breaks
      segment.put(42, std::get<protocol::Set>(request).params.name, "set");
      peer.send(protocol::SetOk{1, 2});
    }
  });
  const auto client = connect(daemon);
  serving_now = &fresh;
  const protocol::SetParams params{.build = 42, .name = "a", .source = ""};
  BOOST_TEST(set_value(*client, params, {}, 20s).has_value());
  shm::Pinned pinned;
  BOOST_TEST(client->get(42, "a", 20s, pinned).value());
  pinned.release();
}

BOOST_AUTO_TEST_CASE(a_conditional_set_is_not_repeated_and_says_that_its_outcome_is_unknown) {
  FakeSegment segment(1);
  FakeDaemon daemon;
  std::atomic<int> sets{0};
  daemon.serve(serving(segment, [&](Peer&, const auto&) {
    ++sets;
    throw std::runtime_error("break");
  }));
  const auto client = connect(daemon);
  const protocol::SetParams params{.build = 42, .name = "a", .source = "", .if_absent = true};
  BOOST_TEST((set_value(*client, params, {}, 20s).error() == Errc::unavailable));
  BOOST_TEST(std::string(last_explanation()).find("unknown") != std::string::npos);
  BOOST_TEST(sets.load() == 1);
}

BOOST_AUTO_TEST_CASE(prune_and_drop_are_not_repeated) {
  FakeSegment segment(1);
  FakeDaemon daemon;
  std::atomic<int> asked{0};
  daemon.serve(serving(segment, [&](Peer&, const auto&) {
    ++asked;
    throw std::runtime_error("break");
  }));
  const auto client = connect(daemon);
  BOOST_TEST((client->prune(1).error() == Errc::unavailable));
  BOOST_TEST((client->drop(1).error() == Errc::unavailable));
  BOOST_TEST(asked.load() == 2);
}

BOOST_AUTO_TEST_CASE(an_idle_connection_that_broke_is_noticed_before_it_is_used) {
  FakeSegment segment(1);
  FakeDaemon daemon;
  daemon.serve([&](Peer& peer) { FakeDaemon::greet(peer, segment); });  // greets and goes
  const auto client = connect(daemon);
  daemon.serve(serving(segment, [](Peer& peer, const auto&) { peer.send(protocol::Count{3}); }));
  // The hang-up may be on its way still: then the answer is that it is unknown, and the next attempt works.
  auto dropped = client->drop(42);
  if (!dropped) dropped = client->drop(42);
  BOOST_TEST(dropped.value() == 3u);
}

BOOST_AUTO_TEST_CASE(a_daemon_that_shuts_down_is_asked_again_even_what_must_not_be_repeated) {
  FakeSegment segment(1);
  FakeDaemon daemon;
  std::atomic<int> asked{0};
  daemon.serve(serving(segment, [&](Peer& peer, const auto&) {
    if (asked++ == 0) {
      peer.send(protocol::Failure{Errc::shutting_down, "stopping"});
    } else {
      peer.send(protocol::SetOk{5, 6});
    }
  }));
  const auto client = connect(daemon);
  const protocol::SetParams params{.build = 42, .name = "a", .source = "", .if_absent = true};
  BOOST_TEST(set_value(*client, params, {}, 20s).value().id == 5u);
}

BOOST_AUTO_TEST_CASE(a_failure_carries_the_daemons_words) {
  FakeSegment segment(1);
  FakeDaemon daemon;
  daemon.serve(serving(segment, [](Peer& peer, const auto&) {
    peer.send(protocol::Failure{Errc::segment_full, "8 MiB do not fit, 1 MiB is free"});
  }));
  const auto client = connect(daemon);
  const protocol::SetParams params{.build = 42, .name = "a", .source = ""};
  BOOST_TEST((set_value(*client, params, {}, 20s).error() == Errc::segment_full));
  BOOST_TEST(std::string(last_explanation()) == "8 MiB do not fit, 1 MiB is free");
}

BOOST_AUTO_TEST_CASE(an_answer_of_another_kind_is_a_protocol_error) {
  FakeSegment segment(1);
  FakeDaemon daemon;
  daemon.serve(serving(segment, [](Peer& peer, const auto&) { peer.send(protocol::Finished{1}); }));
  const auto client = connect(daemon);
  BOOST_TEST((client->drop(1).error() == Errc::protocol_error));
  BOOST_TEST((client->stats().error() == Errc::protocol_error));
}

BOOST_AUTO_TEST_CASE(a_daemon_that_does_not_answer_costs_no_more_than_the_deadline_and_a_little) {
  FakeSegment segment(1);
  FakeDaemon daemon;
  daemon.serve(serving(segment, [](Peer&, const auto&) {}));
  const auto client = connect(daemon);
  const auto start = std::chrono::steady_clock::now();
  BOOST_TEST((client->flush(50ms).error() == Errc::deadline_exceeded));
  BOOST_TEST((std::chrono::steady_clock::now() - start < 10s));
}

BOOST_AUTO_TEST_CASE(nobody_there_is_told_at_once_to_a_new_client_only) {
  FakeSegment segment(1);
  FakeDaemon daemon;
  daemon.serve(serving(segment, [](Peer& peer, const auto&) { peer.send(protocol::Done{}); }));
  const auto client = connect(daemon);
  client->flush(20s).value();
  daemon.stop_listening();
  const auto start = std::chrono::steady_clock::now();
  BOOST_TEST((Client::connect(Address::of(daemon.socket()).value(), 20s).error() == Errc::unavailable));
  BOOST_TEST((std::chrono::steady_clock::now() - start < 10s));

  // The connected client waits for the daemon to come back: one thread asks, and this one brings it back once it waits.
  std::thread asker;
  std::atomic<bool> answered{false};
  {
    FakeDaemon other;  // its connections end when it does, so that the client has none left
    other.serve(serving(segment, [](Peer&, const auto&) { throw std::runtime_error("break"); }));
    const auto second = connect(other);
    other.stop_listening();
    asker = std::thread([&] { answered = second->flush(20s).has_value(); });
    other.serve(serving(segment, [](Peer& peer, const auto&) { peer.send(protocol::Done{}); }));
    other.listen();
    asker.join();
  }
  BOOST_TEST(answered.load());
}

BOOST_AUTO_TEST_CASE(a_greeting_that_does_not_fit_is_refused) {
  struct Case {
    const char* what;
    std::function<void(Peer&, FakeSegment&)> greet;
    Errc expected;
  };
  const Case cases[] = {
      {"another version",
       [](Peer& peer, FakeSegment& segment) {
         segment.make_page();
         peer.send(protocol::HelloOk{.version = 9, .segment_id = {}, .server_version = ""});
       },
       Errc::version_mismatch},
      {"the former version, which this library did not offer",
       [](Peer& peer, FakeSegment& segment) {
         peer.send(protocol::HelloOk{.version = 1, .server_version = ""}, {segment.fd(), segment.make_page()});
       },
       Errc::version_mismatch},
      {"no descriptors", [](Peer& peer, FakeSegment&) { peer.send(protocol::HelloOk{}); }, Errc::protocol_error},
      {"one descriptor", [](Peer& peer, FakeSegment& segment) { peer.send(protocol::HelloOk{}, {segment.fd()}); },
       Errc::protocol_error},
      {"resumed, though nothing was there",
       [](Peer& peer, FakeSegment&) {
         protocol::HelloOk ok;
         ok.resumed = true;
         peer.send(ok);
       },
       Errc::protocol_error},
      {"no segment",
       [](Peer& peer, FakeSegment& segment) {
         const UniqueFd zeros = test::make_ring(1 << 20);
         peer.send(protocol::HelloOk{}, {zeros.get(), segment.make_page()});
       },
       Errc::corrupt_segment},
      {"no pin page",
       [](Peer& peer, FakeSegment& segment) {
         const UniqueFd zeros = test::make_ring(shm::kPageBytes);
         peer.send(protocol::HelloOk{}, {segment.fd(), zeros.get()});
       },
       Errc::format_mismatch},
      {"another kind of reply", [](Peer& peer, FakeSegment&) { peer.send(protocol::Done{}); }, Errc::protocol_error},
      {"not permitted",
       [](Peer& peer, FakeSegment&) {
         peer.send(protocol::Failure{Errc::not_permitted, "user 1000 may not"});
       },
       Errc::not_permitted},
  };
  for (const Case& one : cases) {
    FakeSegment segment(1);
    FakeDaemon daemon;
    daemon.serve([&](Peer& peer) {
      peer.read();
      one.greet(peer, segment);
      peer.read();
    });
    const auto client = Client::connect(Address::of(daemon.socket()).value(), 20s);
    BOOST_TEST((!client && client.error() == one.expected), one.what);
  }
}

BOOST_AUTO_TEST_CASE(a_daemon_of_protocol_version_1_is_named_with_what_to_upgrade) {
  FakeDaemon daemon;
  daemon.serve([&](Peer& peer) {
    peer.read();
    peer.send(protocol::Failure{
        Errc::version_mismatch,
        "the client speaks protocol version 2, this daemon (stepstash 0.1.0) version 1"});  // its words
  });
  const auto client = Client::connect(Address::of(daemon.socket()).value(), 20s);
  BOOST_REQUIRE(!client);
  BOOST_TEST((client.error() == Errc::version_mismatch));
  const std::string why = last_explanation();
  BOOST_TEST(why.find("stepstash 0.1.0) version 1") != why.npos, why);
  BOOST_TEST(why.find("this library is " STEPSTASH_VERSION "; a daemon is upgraded before its clients") != why.npos,
             why);
}

BOOST_AUTO_TEST_CASE(the_pages_of_a_list_are_joined) {
  FakeSegment segment(1);
  FakeDaemon daemon;
  std::mutex mutex;
  std::vector<std::uint64_t> after;
  daemon.serve(serving(segment, [&](Peer& peer, const protocol::Request& request) {
    const std::lock_guard lock(mutex);
    const auto& list = std::get<protocol::List>(request);
    after.push_back(list.after_id);
    protocol::ListPage page;
    page.more = after.size() < 3;
    for (std::uint64_t i = 1; i <= 2; ++i) page.entries.push_back({list.after_id + i, 1, list.build, 0, "n", "s"});
    peer.send(page);
  }));
  const auto client = connect(daemon);
  const auto entries = client->list(42, std::nullopt).value();
  BOOST_TEST(entries.size() == 6u);
  const std::lock_guard lock(mutex);
  BOOST_TEST(after == (std::vector<std::uint64_t>{0, 2, 4}), boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(the_pages_of_builds_are_joined_and_come_to_an_end) {
  FakeSegment segment(1);
  FakeDaemon daemon;
  std::mutex mutex;
  std::vector<BuildId> after;
  bool honest = true;
  daemon.serve(serving(segment, [&](Peer& peer, const protocol::Request& request) {
    const std::lock_guard lock(mutex);
    const auto& builds = std::get<protocol::Builds>(request);
    after.push_back(builds.after);
    protocol::BuildsPage page;
    page.more = !honest || after.size() < 3;
    const BuildId first = honest ? builds.after : 0;
    for (BuildId i = 1; i <= 2; ++i) page.builds.push_back({first + i, 1, 2, 3, std::nullopt, false});
    peer.send(page);
  }));
  const auto client = connect(daemon);
  const auto builds = client->builds().value();
  BOOST_TEST(builds.size() == 6u);
  BOOST_TEST(builds.back().build == 6);
  {
    const std::lock_guard lock(mutex);
    BOOST_TEST(after == (std::vector<BuildId>{0, 2, 4}), boost::test_tools::per_element());
    honest = false;
  }
  BOOST_TEST((client->builds().error() == Errc::protocol_error));  // the same page again and again
}

BOOST_AUTO_TEST_CASE(a_call_that_waits_does_not_hold_up_other_threads) {
  FakeSegment segment(1);
  FakeDaemon daemon;
  std::mutex mutex;
  std::condition_variable changed;
  bool waiting = false, appeared = false;
  daemon.serve(serving(segment, [&](Peer& peer, const protocol::Request& request) {
    std::unique_lock lock(mutex);
    if (std::holds_alternative<protocol::Wait>(request)) {
      waiting = true;
      changed.notify_all();
      changed.wait(lock, [&] { return appeared; });
    }
    peer.send(protocol::Done{});
  }));
  const auto client = connect(daemon);
  bool found = false;
  std::thread waiter([&] {
    shm::Pinned pinned;
    found = client->wait(42, "late", 20s, pinned).has_value();
    if (found) pinned.release();
  });
  {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return waiting; });
  }
  BOOST_TEST(client->flush(20s).has_value());  // while the other one waits
  {
    const std::lock_guard lock(mutex);
    segment.put(42, "late", "here");
    appeared = true;
  }
  changed.notify_all();
  waiter.join();
  BOOST_TEST(found);
  BOOST_TEST(daemon.connections() == 2);
}

/// Only one thread at a time attaches. How long it may wait for a daemon is its own affair.
BOOST_AUTO_TEST_CASE(a_call_ends_at_its_deadline_also_while_another_thread_waits_for_the_daemon) {
  FakeSegment segment(1);
  FakeDaemon daemon;
  std::mutex mutex;
  std::condition_variable changed;
  bool asked = false, answering = false;
  daemon.serve(serving(segment, [](Peer&, const auto&) { throw std::runtime_error("break"); }));
  const auto client = connect(daemon);
  daemon.serve([&](Peer& peer) {  // attaching has to wait
    const auto hello = std::get<protocol::Hello>(peer.read());
    {
      std::unique_lock lock(mutex);
      asked = true;
      changed.notify_all();
      changed.wait(lock, [&] { return answering; });
    }
    FakeDaemon::answer_hello(peer, hello, segment);
    for (;;) {
      peer.read();
      peer.send(protocol::Done{});
    }
  });
  bool patient_done = false;
  std::thread patient([&] { patient_done = client->flush(1h).has_value(); });
  {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return asked; });
  }
  std::error_code error;
  std::string why;
  bool over = false;
  std::thread other([&] {
    const auto flushed = client->flush(50ms);
    const std::lock_guard lock(mutex);
    if (!flushed) {
      error = flushed.error();
      why = last_explanation();
    }
    over = true;
    changed.notify_all();
  });
  {
    std::unique_lock lock(mutex);
    BOOST_TEST(changed.wait_for(lock, 20s, [&] { return over; }));
    answering = true;
  }
  changed.notify_all();
  other.join();
  patient.join();
  BOOST_TEST((error == Errc::unavailable));
  BOOST_TEST(why.find("another thread") != std::string::npos, why);
  BOOST_TEST(patient_done);
  BOOST_TEST(client->flush(20s).has_value());
}

BOOST_AUTO_TEST_CASE(a_child_attaches_anew_and_leaves_its_parents_pins_alone) {
  FakeSegment segment(1);
  segment.put(42, "a", "1");
  FakeDaemon daemon;
  daemon.serve(serving(segment, [](Peer& peer, const auto&) { peer.send(protocol::Done{}); }));
  const auto client = connect(daemon);
  client->flush(20s).value();
  shm::Pinned pinned;
  BOOST_TEST(client->get(42, "a", 20s, pinned).value());
  const shm::Offset held = pinned.pin->load();
  const pid_t child = ::fork();
  if (child == 0) {
    shm::Pinned own;
    const auto got = client->get(42, "a", 20s, own);
    const bool found = got && got.value();
    const bool flushed = client->flush(20s).has_value();
    if (found) own.release();
    ::_exit(found && flushed ? 0 : 1);  // the parent's page is not there
  }
  int status = -1;
  ::waitpid(child, &status, 0);
  BOOST_TEST(status == 0);
  BOOST_TEST(segment.pages() == 2u);
  BOOST_TEST(pinned.pin->load() == held);
  BOOST_TEST(client->flush(20s).has_value());  // our connection was not touched
  BOOST_TEST(daemon.connections() == 2);
  pinned.release();
}

BOOST_AUTO_TEST_CASE(names_and_builds_outside_their_range_are_refused_without_asking) {
  FakeSegment segment(1);
  FakeDaemon daemon;
  daemon.serve(serving(segment, no_request));
  const auto client = connect(daemon);
  shm::Pinned pinned;
  const std::string long_name(257, 'n');
  for (const BuildId build : {BuildId{0}, BuildId{-1}, BuildId{INT64_MIN}}) {
    BOOST_TEST((client->get(build, "n", 20s, pinned).error() == Errc::invalid_argument));
    BOOST_TEST((client->list(build, std::nullopt).error() == Errc::invalid_argument));
    BOOST_TEST((client->finish(build, std::nullopt).error() == Errc::invalid_argument));
  }
  BOOST_TEST((client->get(1, long_name, 20s, pinned).error() == Errc::invalid_argument));
  BOOST_TEST((client->stat(1, "\xFF", pinned).error() == Errc::invalid_argument));
  const protocol::SetParams params{.build = 1, .name = "n", .source = long_name};
  BOOST_TEST((set_value(*client, params, {}, 20s).error() == Errc::invalid_argument));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace stepstash::client
