// SPDX-License-Identifier: Apache-2.0
/// Shared by the tests of shm/: a directory for objects, a segment in it, values that identify their owner, and
/// processes to kill. One thread, unless a function says otherwise.
#pragma once

#include <sys/resource.h>
#include <sys/types.h>

#include <boost/test/unit_test.hpp>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "base/errc.hpp"
#include "base/result.hpp"
#include "shm/object.hpp"
#include "shm/reader.hpp"
#include "shm/segment.hpp"
#include "shm/validate.hpp"

namespace stepstash::test {

/// The value; throws an exception with the error's text, which ends the test, if there is none.
template <class T>
T take(Result<T> result) {
  if (!result) throw std::system_error(result.error());
  return std::move(result).value();
}
inline void take(Result<> result) {
  if (!result) throw std::system_error(result.error());
}

/// A fresh directory on the tmpfs that production uses, /dev/shm, or under $TMPDIR or /tmp if that is not writable.
/// Removed with everything in it.
class ShmDir {
 public:
  ShmDir();
  ShmDir(const ShmDir&) = delete;
  ShmDir& operator=(const ShmDir&) = delete;
  ~ShmDir();
  const std::string& path() const noexcept { return path_; }
  std::string file(std::string_view name) const { return path_ + "/" + std::string(name); }

 private:
  std::string path_;
};

/// A separate tmpfs of `bytes` bytes, which can be filled completely. Requires the right to mount.
class TinyTmpfs {
 public:
  explicit TinyTmpfs(std::uint64_t bytes);
  ~TinyTmpfs();
  const std::string& path() const noexcept { return dir_.path(); }
  /// Takes all the free space.
  void fill() const;
  /// A precondition for the tests that need one.
  static boost::test_tools::assertion_result possible(boost::unit_test::test_unit_id);

 private:
  ShmDir dir_;
};

/// Bytes unique to one id and revision: each word encodes its position.
void fill_pattern(std::span<std::byte> bytes, std::uint64_t id, std::uint64_t revision) noexcept;
std::vector<std::byte> pattern(std::size_t bytes, std::uint64_t id, std::uint64_t revision);
bool is_pattern(std::span<const std::byte> bytes, std::uint64_t id, std::uint64_t revision) noexcept;

std::span<const std::byte> bytes_of(std::string_view text) noexcept;
std::string text_of(std::span<const std::byte> bytes);

/// Sets as the daemon does: draft, reserve, copy, make room, publish. Replacing keeps the id.
Result<const shm::Entry*> try_set(shm::Segment& segment, BuildId build, std::string_view name,
                                  std::span<const std::byte> value, std::string_view source = "",
                                  shm::EntryState state = shm::EntryState::dirty);
/// The same with a value of `bytes` bytes of the pattern.
Result<const shm::Entry*> try_set_pattern(shm::Segment& segment, BuildId build, std::string_view name,
                                          std::size_t bytes, shm::EntryState state = shm::EntryState::dirty);
/// Deletes all of a build as the daemon does: the fact first, then the entries.
void drop(shm::Segment& segment, BuildId build);

/// The secret by which the current index places its keys.
inline shm::HashSecret secret_of(const shm::Segment& segment) {
  return shm::table_secret(reinterpret_cast<const std::byte*>(&segment.header()),
                           shm::index_slots_offset(segment.header().index.load()));
}

/// A segment and its directory.
struct Stash {
  static constexpr const char* kName = "segment";
  static constexpr std::uint64_t kBytes = 4 * 1024 * 1024;

  explicit Stash(std::uint64_t bytes = kBytes, std::uint64_t known_builds = 0) {
    segment = take(shm::Segment::create(objects, kName, bytes, known_builds));
    take(segment->install(/*keep_former=*/true));
  }

  /// A SIGKILL of the daemon and its next start: nothing is cleaned up in between.
  void restart() {
    segment.reset();
    recovery = {};
    segment = take(shm::Segment::attach(objects, kName, recovery));
  }

  const shm::Entry& set(BuildId build, std::string_view name, std::string_view value, std::string_view source = "",
                        shm::EntryState state = shm::EntryState::dirty) {
    return *take(try_set(*segment, build, name, bytes_of(value), source, state));
  }
  const shm::Entry& set_pattern(BuildId build, std::string_view name, std::size_t bytes,
                                shm::EntryState state = shm::EntryState::dirty) {
    return *take(try_set_pattern(*segment, build, name, bytes, state));
  }
  std::uint64_t next_id() { return segment->header().next_id.fetch_add(1); }

  /// A client: separate mappings and a separate pin page.
  shm::Reader reader();

  ShmDir dir;
  shm::ObjectDirectory objects = take(shm::ObjectDirectory::open(dir.path()));
  std::unique_ptr<shm::Segment> segment;
  shm::Recovery recovery;
};

/// The value that `reader` finds, as text; "(miss)", "(evicted)" and so on if there is none.
std::string found(const shm::Reader& reader, BuildId build, std::string_view name);

/// Checks that the blocks tile the heap, that every entry of the index has one, and that everything except entries,
/// tables, retired blocks and the reserve is free, to the byte. Returns what is wrong; empty: nothing.
std::string disorder(const shm::Segment& segment);

/// A precondition: whether the kernel executes readers' fences for the daemon (shm/reader_fence.hpp).
boost::test_tools::assertion_result kernel_fences_readers(boost::unit_test::test_unit_id id);

/// UBSan, which is enabled together with ASan here, considers every object invalid if it has no descriptor left.
#ifdef __SANITIZE_ADDRESS__
inline constexpr bool kMayLackDescriptors = false;
#else
inline constexpr bool kMayLackDescriptors = true;
#endif
/// A sanitizer maps memory for itself while a test runs.
#ifdef __SANITIZE_THREAD__
inline constexpr bool kMayLackAddresses = false;
#else
inline constexpr bool kMayLackAddresses = kMayLackDescriptors;
#endif

/// Leaves this process only `more` descriptors to open, until it is destroyed.
class FewDescriptors {
 public:
  explicit FewDescriptors(int more);
  FewDescriptors(const FewDescriptors&) = delete;
  FewDescriptors& operator=(const FewDescriptors&) = delete;
  ~FewDescriptors();

 private:
  ::rlimit former_{};
};

/// Makes all descriptors of this process for the file `path` unreadable.
void make_unreadable(const std::string& path);
/// Replaces all descriptors of this process for it by ones opened with these flags.
void reopen_as(const std::string& path, int flags);

/// Whether `condition` became true within 30 s; polled every millisecond.
bool eventually(const std::function<bool()>& condition);

/// A child process that runs `body` and exits with its result. `body` gets the write end of a pipe.
class Child {
 public:
  explicit Child(const std::function<int(int report)>& body);
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child();  ///< kills it
  ::pid_t pid() const noexcept { return pid_; }
  /// Waits for one byte on the pipe. False: the child ended without writing one.
  bool wait_for_report() const;
  void kill();
  /// The status of waitpid(2).
  int wait();

 private:
  ::pid_t pid_ = -1;
  UniqueFd report_;
};

}  // namespace stepstash::test
