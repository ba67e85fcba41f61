// SPDX-License-Identifier: Apache-2.0
#include "libclient/forks.hpp"

#include <pthread.h>
#include <time.h>

#include <cstdint>

#include "libclient/client.hpp"
#include "libclient/fork_epoch.hpp"
#include "shm/thread_lines.hpp"

namespace stepstash::client {
namespace {

// No mutexes here: one that another thread of the parent held at the fork would stay locked in the child.
std::atomic<Listed*> all{nullptr};
std::atomic<std::uint64_t> forking{0};  // epoch of the process with a forking thread; a parent's does not count
std::atomic<int> inside{0};             // threads that hold a NoFork
thread_local int depth = 0;             // NoForks of this thread

constexpr int kWaits =
    2000;  // of 50 us: bounded, because a fork in a signal handler may wait for the thread it interrupted

void pause() noexcept {
  const timespec span{0, 50'000};
  ::nanosleep(&span, nullptr);
}

/// This thread's share of `inside`: a signal handler may fork.
int own() noexcept { return depth > 0 ? 1 : 0; }

template <class F>
void each_client(F&& call) noexcept {
  for (Listed* at = all.load(); at != nullptr; at = at->next) {
    if (Client* client = at->client.load()) call(*client);
  }
}

void before() noexcept {
  const std::uint64_t me = fork_epoch();
  for (int i = 0; i < kWaits; ++i) {  // another thread may be forking
    std::uint64_t seen = forking.load();
    if (seen != me && forking.compare_exchange_strong(seen, me)) break;
    pause();
  }
  for (int i = 0; i < kWaits && inside.load() > own(); ++i) pause();
  each_client([](Client& client) { client.before_fork(); });
}

void in_parent() noexcept {
  each_client([](Client& client) { client.after_fork_in_parent(); });
  forking.store(0);
}

void in_child() noexcept {
  inside.store(own());  // the child does not have the other threads
  shm::ThreadLines::forked();
  each_client([](Client& client) { client.after_fork_in_child(); });
  forking.store(0);
}

}  // namespace

Listed* enlist(Client* client) {
  // glibc removes the handlers when the library is unloaded. If there is no memory for them, a child keeps the sockets.
  static const bool watching = ::pthread_atfork(before, in_parent, in_child) == 0;
  static_cast<void>(watching);
  for (Listed* at = all.load(); at != nullptr; at = at->next) {
    Client* none = nullptr;
    if (at->client.load() == nullptr && at->client.compare_exchange_strong(none, client)) return at;
  }
  auto* place = new Listed{client, all.load()};
  while (!all.compare_exchange_weak(place->next, place)) {
  }
  return place;
}

void delist(Listed* place) noexcept { place->client.store(nullptr); }

NoFork::NoFork() noexcept {
  if (depth++ > 0) return;
  for (int i = 0; i < kWaits * 10; ++i) {
    inside.fetch_add(1);
    if (forking.load() != fork_epoch()) return;
    inside.fetch_sub(1);
    pause();
  }
  inside.fetch_add(1);  // a fork that takes a second: continue without it
}

NoFork::~NoFork() {
  if (--depth == 0) inside.fetch_sub(1);
}

}  // namespace stepstash::client
