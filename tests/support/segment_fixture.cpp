// SPDX-License-Identifier: Apache-2.0
#include "tests/support/segment_fixture.hpp"

#include <fcntl.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <unordered_set>

#include "shm/hash.hpp"
#include "shm/reader_fence.hpp"
#include "shm/validate.hpp"

namespace stepstash::test {

ShmDir::ShmDir() {
  const char* other = std::getenv("TMPDIR");
  std::string parent = "/dev/shm";
  if (::access(parent.c_str(), W_OK) != 0) parent = other != nullptr && *other != '\0' ? other : "/tmp";
  path_ = parent + "/stepstash-test-XXXXXX";
  if (::mkdtemp(path_.data()) == nullptr) throw std::system_error(errno, std::system_category(), path_);
}

ShmDir::~ShmDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

TinyTmpfs::TinyTmpfs(std::uint64_t bytes) {
  const std::string options = "mode=0700,size=" + std::to_string(bytes);
  if (::mount("tmpfs", path().c_str(), "tmpfs", 0, options.c_str()) != 0) {
    throw std::system_error(errno, std::system_category(), "mount");
  }
}

TinyTmpfs::~TinyTmpfs() { ::umount2(path().c_str(), MNT_DETACH); }

void TinyTmpfs::fill() const {
  const UniqueFd fd(::open((path() + "/filler").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  ::off_t at = 0;
  for (::off_t step : {1 << 20, 1 << 16, 1 << 12}) {
    while (::posix_fallocate(fd.get(), at, step) == 0) at += step;
  }
}

boost::test_tools::assertion_result TinyTmpfs::possible(boost::unit_test::test_unit_id) {
  try {
    TinyTmpfs probe(1024 * 1024);
    return true;
  } catch (const std::system_error&) {
    boost::test_tools::assertion_result no(false);
    no.message() << "mounting a tmpfs is not permitted here";
    return no;
  }
}

namespace {

std::uint64_t pattern_word(std::uint64_t id, std::uint64_t revision, std::uint64_t i) noexcept {
  std::uint64_t x = id * 0x9E3779B97F4A7C15u ^ revision * 0xC2B2AE3D27D4EB4Fu ^ i * 0x165667B19E3779F9u;
  x ^= x >> 29;
  return x * 0xBF58476D1CE4E5B9u;
}

}  // namespace

void fill_pattern(std::span<std::byte> bytes, std::uint64_t id, std::uint64_t revision) noexcept {
  for (std::size_t at = 0; at < bytes.size(); at += sizeof(std::uint64_t)) {
    const std::uint64_t word = pattern_word(id, revision, at);
    std::memcpy(bytes.data() + at, &word, std::min(sizeof(word), bytes.size() - at));
  }
}

std::vector<std::byte> pattern(std::size_t bytes, std::uint64_t id, std::uint64_t revision) {
  std::vector<std::byte> made(bytes);
  fill_pattern(made, id, revision);
  return made;
}

bool is_pattern(std::span<const std::byte> bytes, std::uint64_t id, std::uint64_t revision) noexcept {
  for (std::size_t at = 0; at < bytes.size(); at += sizeof(std::uint64_t)) {
    const std::uint64_t word = pattern_word(id, revision, at);
    if (std::memcmp(bytes.data() + at, &word, std::min(sizeof(word), bytes.size() - at)) != 0) return false;
  }
  return true;
}

std::span<const std::byte> bytes_of(std::string_view text) noexcept { return std::as_bytes(std::span(text)); }

std::string text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

namespace {

Result<const shm::Entry*> set_with(
    shm::Segment& segment, BuildId build, std::string_view name, std::size_t bytes, std::string_view source,
    shm::EntryState state, const std::function<void(std::span<std::byte>, std::uint64_t, std::uint64_t)>& fill) {
  const shm::Draft draft = STEPSTASH_TRY(segment.draft(name, source, bytes));
  if (auto reserved = segment.reserve(draft, bytes); !reserved) {
    segment.discard(draft);
    return reserved.error();
  }
  const shm::Entry* old = segment.find(build, name);
  if (old == nullptr) {
    if (auto room = segment.ensure_slot(build, name); !room) {
      segment.discard(draft);
      return room.error();
    }
  }
  shm::Segment::EntryFacts facts;
  facts.revision = segment.header().next_id.fetch_add(1);
  facts.id = old != nullptr ? old->id : facts.revision;
  facts.build = build;
  facts.name = name;
  facts.source = source;
  facts.length = bytes;
  facts.state = state;
  const auto value = segment.value_bytes(draft).first(bytes);
  fill(value, facts.id, facts.revision);
  facts.value_hash = shm::hash_bytes(value);
  return &segment.publish(draft, facts);
}

}  // namespace

Result<const shm::Entry*> try_set(shm::Segment& segment, BuildId build, std::string_view name,
                                  std::span<const std::byte> value, std::string_view source, shm::EntryState state) {
  return set_with(segment, build, name, value.size(), source, state,
                  [&](std::span<std::byte> to, std::uint64_t, std::uint64_t) {
                    if (!value.empty()) std::memcpy(to.data(), value.data(), value.size());
                  });
}

Result<const shm::Entry*> try_set_pattern(shm::Segment& segment, BuildId build, std::string_view name,
                                          std::size_t bytes, shm::EntryState state) {
  return set_with(segment, build, name, bytes, "", state, fill_pattern);
}

void drop(shm::Segment& segment, BuildId build) {
  shm::BuildRecord* record = take(segment.add_build(build, /*spare=*/true));
  segment.begin_deletion(std::span(&record, 1));
  std::vector<const shm::Entry*> entries;
  segment.for_each([&](const shm::Entry& entry) {
    if (entry.buildid == build) entries.push_back(&entry);
  });
  for (const shm::Entry* entry : entries) segment.erase(*entry);
  segment.end_deletion();
}

shm::Reader Stash::reader() {
  auto page = take(segment->pins().create(segment->header().segment_id, ::getpid(), ::getuid()));
  return take(shm::Reader::attach(take(segment->open_for_client()), std::move(page.fd)));
}

std::string found(const shm::Reader& reader, BuildId build, std::string_view name) {
  shm::Pinned view;
  switch (reader.find(build, name, view)) {
    case shm::Found::miss:
      return "(miss)";
    case shm::Found::closed:
      return "closed";
    case shm::Found::superseded:
      return "(superseded)";
    case shm::Found::no_pin:
      return "(no pin)";
    case shm::Found::corrupt:
      return "(corrupt)";
    case shm::Found::evicted:
      view.release();
      return "(evicted)";
    case shm::Found::resident:
      break;
  }
  std::string text = text_of(view.value());
  view.release();
  return text;
}

std::string disorder(const shm::Segment& segment) {
  std::unordered_set<shm::Offset> entries;
  std::string wrong;
  segment.for_each([&](const shm::Entry& entry) {
    const shm::Offset at = segment.offset_of(entry);
    if (!entries.insert(at).second) wrong = "two slots lead to block " + std::to_string(at);
    if (entry.meta_hash != shm::meta_hash(entry)) wrong = "the record at " + std::to_string(at) + " is damaged";
    if (segment.find(entry.buildid, shm::entry_name(entry)) != &entry) {
      wrong = "the entry at " + std::to_string(at) + " cannot be found by its key";
    }
  });
  const auto& head = segment.header();
  const auto* base = reinterpret_cast<const std::byte*>(&head);
  std::uint64_t used = 0;
  std::size_t met = 0;
  bool table = false;
  std::uint64_t former_tables = 0;
  const auto look_at = [&](shm::Offset at, std::uint64_t size) {
    if (entries.contains(at)) {
      ++met;
      used += size;
    } else if (at == segment.index().table_block()) {
      table = true;
      used += size;
    } else if (reinterpret_cast<const shm::BlockHeader*>(base + at)->kind == shm::BlockKind::index) {
      former_tables += size;  // kept for readers that may still be in them (shm/index.cpp)
    }
  };
  if (!shm::Heap::walk(base, head.heap_offset, head.segment_bytes, look_at)) return "the blocks do not tile the heap";
  if (segment.heap().stand_in_begun() &&
      !shm::Heap::walk(base, shm::stand_in_offset(head.segment_bytes), head.object_bytes, look_at)) {
    return "the blocks do not tile the stand-in";
  }
  if (met != entries.size()) return "an entry is no block of the chain";
  if (!table) return "the index's table is no block of the chain";
  if (former_tables > 2 * segment.heap().block_bytes(segment.index().table_block())) return "too many former tables";
  const std::uint64_t known =
      used + former_tables + segment.retired_bytes() + segment.slab_bytes() + segment.heap().free_bytes();
  const std::uint64_t all = segment.heap().capacity() + segment.heap().written_off();
  // After a restart, blocks that had been written off count again, and the stand-in may hold more than the room allows.
  const bool beyond =
      segment.heap().free_bytes() == 0 && segment.heap().stand_in_used_bytes() > segment.heap().written_off();
  if (beyond ? known < all : known != all) {
    return "of " + std::to_string(all) + " bytes " + std::to_string(known) + " are accounted for";
  }
  return wrong;
}

FewDescriptors::FewDescriptors(int more) {
  std::vector<UniqueFd> holes;  // all free numbers below the first that would be refused
  for (int i = 0; i < more; ++i) holes.emplace_back(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  ::getrlimit(RLIMIT_NOFILE, &former_);
  ::rlimit few = former_;
  few.rlim_cur = static_cast<::rlim_t>(holes.back().get()) + 1;
  ::setrlimit(RLIMIT_NOFILE, &few);
}

FewDescriptors::~FewDescriptors() { ::setrlimit(RLIMIT_NOFILE, &former_); }

void make_unreadable(const std::string& path) { reopen_as(path, O_WRONLY); }

void reopen_as(const std::string& path, int flags) {
  const UniqueFd fresh(::open(path.c_str(), flags | O_CLOEXEC));
  for (const auto& item : std::filesystem::directory_iterator("/proc/self/fd")) {
    const int fd = std::stoi(item.path().filename());
    std::error_code gone;
    if (fd != fresh.get() && std::filesystem::read_symlink(item.path(), gone) == path) ::dup2(fresh.get(), fd);
  }
}

bool eventually(const std::function<bool()>& condition) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    ::usleep(1000);
  }
  return true;
}

Child::Child(const std::function<int(int)>& body) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) throw std::system_error(errno, std::system_category(), "pipe2");
  pid_ = ::fork();
  if (pid_ < 0) throw std::system_error(errno, std::system_category(), "fork");
  if (pid_ == 0) {
    ::close(ends[0]);
    int status = 99;
    try {
      status = body(ends[1]);
    } catch (const std::exception&) {
    }
    ::_exit(status);  // do not destroy the parent's objects a second time
  }
  ::close(ends[1]);
  report_.reset(ends[0]);
}

Child::~Child() {
  if (pid_ > 0) kill();
}

bool Child::wait_for_report() const {
  char byte = 0;
  ::ssize_t got = 0;
  do {
    got = ::read(report_.get(), &byte, 1);
  } while (got < 0 && errno == EINTR);
  return got == 1;
}

void Child::kill() {
  ::kill(pid_, SIGKILL);
  wait();
}

int Child::wait() {
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
  return status;
}

boost::test_tools::assertion_result kernel_fences_readers(boost::unit_test::test_unit_id /*id*/) {
  boost::test_tools::assertion_result result(shm::can_fence_readers());
  if (!result) result.message() << "membarrier(2) fences no readers here, or ThreadSanitizer would not know";
  return result;
}

}  // namespace stepstash::test
