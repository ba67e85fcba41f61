// SPDX-License-Identifier: Apache-2.0
/// Tests in separate mount namespaces, with a small /dev/shm, a small disk, and as other users. Needs root.
#pragma once

#include <grp.h>
#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <cerrno>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/support/harness.hpp"

namespace stepstash::test {

/// For checks in a forked child, where the test framework's checks do not count: prints the message and fails the
/// child.
inline void require(bool holds, const std::string& what) {
  if (!holds) throw std::runtime_error(what + "\n");
}

inline void mount_tmpfs(const std::string& path, std::uint64_t bytes) {
  const std::string options = "mode=1777,size=" + std::to_string(bytes);
  require(::mount("tmpfs", path.c_str(), "tmpfs", MS_NOSUID | MS_NODEV, options.c_str()) == 0,
          "mounting a tmpfs: " + std::string(std::strerror(errno)));
}

inline void enter_namespace(int kind) {
  require(::unshare(CLONE_NEWNS | kind) == 0 && ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0,
          "a namespace of our own: " + std::string(std::strerror(errno)));
}

/// Runs `body` in a process whose /dev/shm is a tmpfs of `bytes` bytes.
inline void with_small_shm(std::uint64_t bytes, const std::function<void()>& body) {
  Child child([&] {
    enter_namespace(0);
    mount_tmpfs("/dev/shm", bytes);
    body();
    return 0;
  });
  BOOST_TEST(child.join() == 0);
}

inline boost::test_tools::assertion_result may_mount(boost::unit_test::test_unit_id) {
  Child probe([] {
    enter_namespace(0);
    mount_tmpfs("/dev/shm", 1 << 20);
    return 0;
  });
  boost::test_tools::assertion_result may(probe.join() == 0);
  may.message() << "mounting is not permitted here";
  return may;
}

/// A precondition: only root can switch to another user.
inline boost::test_tools::assertion_result root(boost::unit_test::test_unit_id) {
  boost::test_tools::assertion_result is(::geteuid() == 0);
  is.message() << "only root can be other users";
  return is;
}

/// Runs `body` in a process of this user; an exception is printed and fails the test.
inline void as_user(uid_t uid, gid_t gid, const std::vector<gid_t>& groups, const std::function<void()>& body) {
  Child child([&] {
    require(::setgroups(groups.size(), groups.data()) == 0 && ::setresgid(gid, gid, gid) == 0 &&
                ::setresuid(uid, uid, uid) == 0,
            "cannot become that user");
    body();
    return 0;
  });
  BOOST_TEST(child.join() == 0, "as user " << uid);
}

/// Takes all the free space below `directory`; its destructor releases it.
class Filler {
 public:
  explicit Filler(const std::string& directory) : path_(directory + "/filler") {
    const UniqueFd fd(::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    require(fd.get() >= 0, path_);
    off_t at = 0;
    for (const off_t step : {1 << 20, 1 << 16, 1 << 12}) {
      while (::posix_fallocate(fd.get(), at, step) == 0) at += step;
    }
  }
  ~Filler() { ::unlink(path_.c_str()); }
  Filler(const Filler&) = delete;
  Filler& operator=(const Filler&) = delete;

 private:
  std::string path_;
};

}  // namespace stepstash::test
