// SPDX-License-Identifier: Apache-2.0
// The implementation of crash_point() in programs that have the points: counts each one, and kills the process at one
// of them. Controlled by environment variables, whose names differ from those of stepstash's own settings:
//
//   CRASH_POINT_KILL=NAME:N     SIGKILL when NAME is passed for the N-th time
//   CRASH_POINT_COUNTS=FILE     FILE, of CountsFile's layout, has every point and how often it was passed
//
// The counts are a shared mapping: they survive the SIGKILL, whatever the process was doing. After an execve(2) they go
// on: CRASH_POINT_PROCESS tells a program that starts again in the same process from one that begins.
#include "base/crash_point.hpp"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <string_view>

#include "tests/crash_matrix/counts.hpp"

namespace stepstash {
namespace {

using test::Counted;
using test::kCounted;

/// Created before main() and never destroyed; in between only atomic operations, so that any thread may pass any point
/// at any time.
class Points {
 public:
  Points() {
    int fd = -1;
    if (const char* path = std::getenv("CRASH_POINT_COUNTS")) {
      const std::string self = std::to_string(::getpid());
      const char* before = std::getenv("CRASH_POINT_PROCESS");
      const bool goes_on = before != nullptr && self == before;
      ::setenv("CRASH_POINT_PROCESS", self.c_str(), 1);
      fd = ::open(path, O_RDWR | O_CREAT | (goes_on ? 0 : O_TRUNC) | O_CLOEXEC, 0600);
      if (fd < 0 || ::ftruncate(fd, sizeof(Counted) * kCounted) != 0) std::abort();
    }
    void* at = ::mmap(nullptr, sizeof(Counted) * kCounted, PROT_READ | PROT_WRITE,
                      fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) std::abort();
    if (fd >= 0) ::close(fd);
    counted_ = static_cast<Counted*>(at);
    if (const char* kill = std::getenv("CRASH_POINT_KILL")) {
      const char* colon = std::strrchr(kill, ':');
      if (colon == nullptr) std::abort();
      kill_.assign(kill, colon);
      kill_at_ = std::strtoull(colon + 1, nullptr, 10);
    }
  }

  void pass(const char* name) noexcept {
    const std::size_t place = place_of(name);
    const std::uint64_t count = counted_[place].count.fetch_add(1) + 1;
    if (count != kill_at_ || kill_ != name) return;
    ::kill(::getpid(), SIGKILL);
    for (;;) ::pause();  // execute nothing more, however late the signal arrives
  }

 private:
  /// The counter of `name`. A name occurs once in the source, so its address identifies it in this program; one that
  /// ran before in the same process had other addresses, so the search goes by the text.
  std::size_t place_of(const char* name) noexcept {
    std::size_t at = std::hash<std::string_view>()(name) % kCounted;
    for (;; at = (at + 1) % kCounted) {
      const char* seen = names_[at].load();
      if (seen == name) return at;
      if (seen != nullptr) continue;
      if (const char* counted = counted_[at].name; *counted != '\0' && std::strcmp(counted, name) != 0) continue;
      if (names_[at].compare_exchange_strong(seen, name)) {
        std::strncpy(counted_[at].name, name, sizeof(counted_[at].name) - 1);
        return at;
      }
      if (seen == name) return at;
    }
  }

  Counted* counted_ = nullptr;
  std::atomic<const char*> names_[kCounted] = {};
  std::string kill_;
  std::uint64_t kill_at_ = 0;
};

Points& points() noexcept {
  static Points& made = *new Points;
  return made;
}
[[maybe_unused]] Points& made_before_main = points();

}  // namespace

void crash_point(const char* name) noexcept { made_before_main.pass(name); }

}  // namespace stepstash
