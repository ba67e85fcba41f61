// SPDX-License-Identifier: Apache-2.0
/// A user who sends the daemon more requests than it can handle, over any number of connections.
#pragma once

#include <fcntl.h>
#include <grp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <string>
#include <vector>

#include "tests/hostile/namespaces.hpp"
#include "tests/support/harness.hpp"

namespace stepstash::test {

inline void become(uid_t uid) {
  require(::setgroups(0, nullptr) == 0 && ::setresgid(uid, uid, uid) == 0 && ::setresuid(uid, uid, uid) == 0,
          "cannot become that user");
}

/// -1: not accepted at the moment.
inline int connect_to(const std::string& path) {
  const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  if (::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) return fd;
  ::close(fd);
  return -1;
}

/// A process of `uid` with `count` connections: each sends `first` and then repeats `again` forever, as fast as the
/// socket accepts it, and drops all replies.
class Flood {
 public:
  Flood(const std::string& socket, uid_t uid, std::size_t count, std::string first, const std::string& again)
      : child_([=, this] {
          become(uid);
          run(socket, count, first, again);
          return 0;
        }) {
    require(there_.wait(), "the flood does not begin");
  }
  void end() { child_.kill(); }

 private:
  void run(const std::string& socket, std::size_t count, const std::string& first, const std::string& again) {
    std::string many;
    while (many.size() < 16 * kKiB) many += again;
    struct Peer {
      int fd;
      std::size_t at;  // position in `many`, so that a partial write does not cut a frame
    };
    std::vector<Peer> peers;
    const int events = ::epoll_create1(EPOLL_CLOEXEC);
    for (std::size_t i = 0; i < count; ++i) {
      const int fd = connect_to(socket);
      require(fd >= 0 && ::send(fd, first.data(), first.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(first.size()),
              "the flood's connection " + std::to_string(i));
      ::fcntl(fd, F_SETFL, O_NONBLOCK);
      epoll_event event{};
      event.events = EPOLLIN | EPOLLOUT;
      event.data.u64 = peers.size();
      ::epoll_ctl(events, EPOLL_CTL_ADD, fd, &event);
      peers.push_back({fd, 0});
    }
    std::vector<char> dropped(256 * kKiB);
    bool told = false;
    std::uint64_t rounds = 0;
    for (;;) {
      std::array<epoll_event, 256> ready;
      const int n = ::epoll_wait(events, ready.data(), ready.size(), -1);
      for (int i = 0; i < n; ++i) {
        Peer& peer = peers[ready[static_cast<std::size_t>(i)].data.u64];
        while (::recv(peer.fd, dropped.data(), dropped.size(), MSG_DONTWAIT) > 0) {
        }
        const ssize_t sent = ::send(peer.fd, many.data() + peer.at, many.size() - peer.at, MSG_NOSIGNAL);
        if (sent > 0) peer.at = (peer.at + static_cast<std::size_t>(sent)) % many.size();
      }
      if (!told && ++rounds > 2 * peers.size() / ready.size()) {
        there_.raise();
        told = true;
      }
    }
  }

  Signal there_;
  Child child_;
};

/// How long the sets of a repeatedly connecting client take, in microseconds.
struct Latency {
  std::size_t sets = 0;
  double median = 0;
  double worst = 0;

  static Latency of(Client& client, std::chrono::milliseconds time) {
    std::vector<double> all;
    const auto end = std::chrono::steady_clock::now() + time;
    for (auto now = std::chrono::steady_clock::now(); now < end || all.size() < 5;) {
      client.set(50, "latency", "value", "", {.deadline = 60s});
      const auto then = std::exchange(now, std::chrono::steady_clock::now());
      all.push_back(std::chrono::duration<double, std::micro>(now - then).count());
      std::this_thread::sleep_for(2ms);  // a client with other work to do
      now = std::chrono::steady_clock::now();
    }
    std::sort(all.begin(), all.end());
    return {all.size(), all[all.size() / 2], all.back()};
  }
};

inline std::ostream& operator<<(std::ostream& out, const Latency& latency) {
  return out << latency.sets << " sets, median " << latency.median / 1000 << " ms, worst " << latency.worst / 1000
             << " ms";
}

}  // namespace stepstash::test
