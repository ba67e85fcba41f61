// SPDX-License-Identifier: Apache-2.0
#include "shm/pins.hpp"

#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstddef>
#include <cstring>

#include "base/crash_point.hpp"
#include "base/errc.hpp"
#include "shm/fence.hpp"
#include "shm/reader_fence.hpp"

namespace stepstash::shm {
namespace {

constexpr unsigned kAttempts = 4;
constexpr blkcnt_t kStatBlock = 512;  // the unit of st_blocks, independent of the file system's block size

struct flock whole_file() noexcept {
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  return lock;
}

}  // namespace

PinRegistry::PinRegistry(const ObjectDirectory& directory, std::string prefix)
    : directory_(directory), prefix_(std::move(prefix)) {}

std::string PinRegistry::name(Key key) const {
  std::string name = prefix_ + std::to_string(key.number);
  if (key.uid != kNobody) name += "." + std::to_string(key.uid);
  return name;
}

std::optional<PinRegistry::Key> PinRegistry::parse(std::string_view object) const {
  const char* const end = object.data() + object.size();
  Key key{0, kNobody};
  auto parsed = std::from_chars(object.data() + prefix_.size(), end, key.number);
  if (parsed.ec == std::errc{} && parsed.ptr != end && *parsed.ptr == '.') {
    parsed = std::from_chars(parsed.ptr + 1, end, key.uid);
  }
  if (parsed.ec != std::errc{} || parsed.ptr != end || name(key) != object) return std::nullopt;
  return key;
}

Result<> PinRegistry::read(const Page& page, PinPage& copy) noexcept {
  static_assert(sizeof(copy) == kPageBytes);
  auto* to = reinterpret_cast<std::byte*>(&copy);
  std::size_t got = 0;
  while (got < kPageBytes) {
    const ssize_t now = ::pread(page.watch.get(), to + got, kPageBytes - got, static_cast<off_t>(got));
    if (now < 0 && errno == EINTR) continue;
    if (now < 0) return last_errno();
    if (now == 0) break;
    got += static_cast<std::size_t>(now);
  }
  std::memset(to + got, 0, kPageBytes - got);
  return success();
}

bool PinRegistry::held(int watch) {
  struct flock lock = whole_file();
  if (::fcntl(watch, F_OFD_GETLK, &lock) != 0) return true;  // unknown: assume held, free nothing
  return lock.l_type != F_UNLCK;
}

bool PinRegistry::open_elsewhere(int watch) {
  // The kernel grants a write lease only if nobody else has the file open; closing releases it. Without lease support,
  // rely on the lock alone.
  return ::fcntl(watch, F_SETLEASE, F_WRLCK) != 0 && errno == EAGAIN;
}

void PinRegistry::restore(int watch) {
  struct stat status {};
  if (::fstat(watch, &status) != 0) return;
  const bool whole = status.st_size == static_cast<off_t>(kPageBytes);
  if (whole && status.st_blocks * kStatBlock <= static_cast<blkcnt_t>(kPageBytes)) return;
  (void)!::ftruncate(watch,
                     static_cast<off_t>(kPageBytes));  // frees what lies past the end, also if the length is correct
  STEPSTASH_CRASH_POINT("shm.pins.reap.page_restored");
}

Result<std::size_t> PinRegistry::adopt(const SegmentId& segment) {
  const std::vector<std::string> names = STEPSTASH_TRY(directory_.list(prefix_));
  for (const std::string& object : names) {
    const std::optional<Key> key = parse(object);
    if (!key) continue;
    auto opened = directory_.open_own(object, ObjectDirectory::Access::read_write);
    if (!opened && (opened.error() == std::errc::no_such_file_or_directory || opened.error() == Errc::unsafe_object)) {
      continue;  // removed concurrently, or not ours
    }
    UniqueFd fd = STEPSTASH_TRY(std::move(opened));
    if (!held(fd.get()) && !open_elsewhere(fd.get())) {
      STEPSTASH_TRY(directory_.remove(object));
      STEPSTASH_CRASH_POINT("shm.pins.adopt.page_removed");
      continue;
    }
    restore(fd.get());
    Page page{std::move(fd), segment, false};
    PinPage content;
    STEPSTASH_TRY(read(page, content));
    scanned_ = scanned_ || content.fence == ReaderFence::scanned;
    // A client that overwrites these fields loses only its own pins. The uid is not read from here.
    page.current = content.magic == kPinPageMagic && content.layout_version == kLayoutVersion &&
                   content.number == key->number && content.segment_id == segment;
    const PageWord state = content.state.load(std::memory_order_relaxed);  // a copy
    page.closings = page_closings(state);
    // If these states cannot be stored (the client removed the page's memory, and the tmpfs is full), only that client
    // fails to learn of them.
    if (!page.current) {
      // The client attaches again by a request to the daemon, so no other ordering is needed.
      (void)set_state(page, PageState::superseded, page.closings);
      STEPSTASH_CRASH_POINT("shm.pins.adopt.superseded");
    } else if (page_half_state(state) == PageState::closed) {
      // Closed by the former daemon. Pins that had stopped counting count again, which retains more than necessary.
      (void)set_state(page, PageState::serving, page.closings);
      STEPSTASH_CRASH_POINT("shm.pins.adopt.opened");
    }
    pages_.emplace(*key, std::move(page));
    next_number_ = std::max(next_number_, key->number + 1);
  }
  return pages_.size();
}

Result<PinRegistry::NewPage> PinRegistry::create(const SegmentId& segment, std::int32_t pid, std::uint32_t uid) {
  Key key{next_number_, uid};
  std::uint32_t& number = key.number;
  const auto taken = [&] {
    const auto at = pages_.lower_bound({number, 0});
    return at != pages_.end() && at->first.number == number;
  };
  std::string object;
  Result<UniqueFd> made = Errc::too_many;
  // Anyone can create names in /dev/shm. A user that knows the next number could lock out all clients, so after a name
  // that is taken comes an unpredictable one.
  for (unsigned attempt = 0; !made && attempt < kAttempts; ++attempt) {
    if (attempt > 0 && ::getrandom(&number, sizeof number, 0) != sizeof number) return last_errno();
    while (number == 0 || taken()) ++number;  // numbers wrap after 2^32 clients
    object = name(key);
    // Not in use: adopt() and pages_ know all that are.
    const Result<> removed = directory_.remove(object);
    made = removed ? directory_.create(object) : Result<UniqueFd>(removed.error());
  }
  UniqueFd client = STEPSTASH_TRY(std::move(made));
  // From here on a failure leaves an object without a lock, which the next adopt() removes; most are removed right
  // away.
  const auto build = [&]() -> Result<Page> {
    if (const int error = ::posix_fallocate(client.get(), 0, kPageBytes); error != 0) {
      return std::error_code(error, std::system_category());
    }
    STEPSTASH_CRASH_POINT("shm.pins.create.reserved");
    struct flock lock = whole_file();
    if (::fcntl(client.get(), F_OFD_SETLK, &lock) != 0) return last_errno();
    STEPSTASH_CRASH_POINT("shm.pins.create.locked");
    UniqueFd watch = STEPSTASH_TRY(directory_.open_own(object, ObjectDirectory::Access::read_write));
    PinPage content{};
    content.magic = kPinPageMagic;
    content.layout_version = kLayoutVersion;
    content.number = number;
    content.segment_id = segment;
    content.pid = pid;
    content.uid = uid;
    content.fence = can_fence_readers() ? ReaderFence::scanned : ReaderFence::own;
    scanned_ = scanned_ || content.fence == ReaderFence::scanned;
    Page fresh{std::move(watch), segment, true};
    if (closed(uid)) {
      content.state.store(make_page_half(PageState::closed, 0), std::memory_order_relaxed);
      fresh.honoured = std::make_unique<std::array<Offset, kPinsPerPage>>();
    }
    if (::pwrite(fresh.watch.get(), &content, sizeof(content), 0) != sizeof(content)) return last_errno();
    STEPSTASH_CRASH_POINT("shm.pins.create.written");
    return fresh;
  };
  auto page = build();
  if (!page) {
    (void)directory_.remove(object);
    return page.error();
  }
  pages_.emplace(key, std::move(page).value());
  next_number_ = number + 1;
  return NewPage{std::move(client), number};
}

bool PinRegistry::resumable(std::uint32_t number, std::uint32_t uid, const SegmentId& segment) const {
  if (uid == kNobody) return false;
  const auto page = pages_.find({number, uid});
  return page != pages_.end() && page->second.current && page->second.segment_id == segment &&
         held(page->second.watch.get());
}

std::size_t PinRegistry::reap() {
  return std::erase_if(pages_, [&](const auto& item) {
    const int watch = item.second.watch.get();
    // Unlocked but still open: if we lost track of it, its client could go on taking memory through it.
    if (held(watch) || open_elsewhere(watch)) {
      restore(watch);
      return false;
    }
    (void)directory_.remove(name(item.first));
    STEPSTASH_CRASH_POINT("shm.pins.reap.page_removed");
    return true;
  });
}

Result<> PinRegistry::fence() const {
  if (scanned_) STEPSTASH_TRY(fence_readers());
  full_fence();
  return success();
}

Result<> PinRegistry::scan(PinScan& scan, bool hints) {
  scan.serving.clear();
  scan.closed.clear();
  scan.recent.clear();
  // The stores that unpublished come first. (The kernel's copy below is not an atomic load. A pin set while it is
  // copied may be seen torn; it is set after this fence, so its reader's second look finds the slot changed.)
  Result<> all = fence();
  if (!all) return all;
  for (auto& [key, page] : pages_) {
    if (!page.current) continue;  // pins into another segment, which is not reused
    PinPage content;
    if (auto done = read(page, content); !done) {
      all = done.error();
      continue;
    }
    if (page.honoured) {
      // A pin that has changed was released, and its new value was claimed after the page was closed.
      for (std::size_t i = 0; i < kPinsPerPage; ++i) {
        Offset& honoured = (*page.honoured)[i];
        if (honoured == 0) continue;
        if (pin_of(content, i) != honoured) {
          honoured = 0;
        } else {
          scan.closed.insert(honoured);
        }
      }
    } else {
      for (const PinLine& line : content.lines) {
        for (const auto& pin : line.pins) {
          if (const Offset block = pin.load(std::memory_order_relaxed)) scan.serving.insert(block);  // a copy
        }
      }
    }
    if (!hints) continue;
    for (const PinLine& line : content.lines) {
      if (const Offset block = line.recent.load(std::memory_order_relaxed)) scan.recent.insert(block);
    }
  }
  // Acquire: memory freed because no pin was found is written only after the pin was seen to be gone.
  full_fence();
  return all;
}

Result<> PinRegistry::set_state(const Page& page, PageState state, std::uint32_t closings) noexcept {
  const std::uint32_t half = make_page_half(state, closings);
  const ssize_t written = ::pwrite(page.watch.get(), &half, sizeof(half), offsetof(PinPage, state));
  if (written < 0) return last_errno();
  if (written != sizeof(half)) return std::make_error_code(std::errc::io_error);
  return success();
}

Result<> PinRegistry::close(std::uint32_t uid, const BlockSet& entries) {
  closed_.insert(uid);
  Result<> all = success();
  std::vector<Page*> told;
  for (auto& [key, page] : pages_) {
    if (key.uid != uid || !page.current || page.honoured) continue;
    // Until this is stored, the client may rely on every pin.
    const Result<> stored = set_state(page, PageState::closed, page.closings + 1);
    if (stored) {
      ++page.closings;
      told.push_back(&page);
      continue;
    }
    // A page whose client removed its memory contains no pins: nothing to close yet.
    PinPage content;
    const Result<> looked = read(page, content);
    bool empty = looked.has_value();
    for (std::size_t i = 0; i < kPinsPerPage && empty; ++i) empty = pin_of(content, i) == 0;
    if (!empty) all = stored;
  }
  STEPSTASH_CRASH_POINT("shm.pins.close.states_stored");
  // A reader claims its pin, then loads the state. Here the state is stored, then the pins are read. So either the
  // reader finds its page closed, or its pin is found here (store buffering, as for a changed slot).
  //
  // A pin found here whose reader has or will get a view is on an entry: that reader loaded the state after it saw the
  // slot unchanged, hence before the state was stored here. It saw the block published with its pin in place, and the
  // pin has counted ever since: the block is still published, or retired and retained. A pin on anything else is
  // forged, or belongs to a reader that will see another slot or another state and release it.
  if (auto fenced = fence(); !fenced) return fenced;
  for (Page* page : told) {
    PinPage content;
    if (auto done = read(*page, content); !done) {
      // It must count as serving. Until open(), its client requests no more than it has, or its requests fail.
      all = done;
      continue;
    }
    page->honoured = std::make_unique<std::array<Offset, kPinsPerPage>>();
    for (std::size_t i = 0; i < kPinsPerPage; ++i) {
      const Offset block = pin_of(content, i);
      (*page->honoured)[i] = entries.contains(block) ? block : 0;
    }
  }
  return all;
}

void PinRegistry::open(std::uint32_t uid) {
  closed_.erase(uid);
  for (auto& [key, page] : pages_) {
    if (key.uid != uid || !page.current) continue;
    // All its pins count before a client can see that it serves again. If the state cannot be stored, only that client
    // fails to learn of it.
    page.honoured.reset();
    (void)set_state(page, PageState::serving, page.closings);
    STEPSTASH_CRASH_POINT("shm.pins.open.state_stored");
  }
}

std::set<std::uint32_t> PinRegistry::users() const {
  std::set<std::uint32_t> users;
  for (const auto& [key, page] : pages_) users.insert(key.uid);
  return users;
}

std::size_t PinRegistry::pages_of(std::uint32_t uid) const noexcept {
  return static_cast<std::size_t>(
      std::count_if(pages_.begin(), pages_.end(), [&](const auto& item) { return item.first.uid == uid; }));
}

PinRegistry::Views PinRegistry::views() const noexcept {
  Views views;
  for (const auto& [key, page] : pages_) {
    PinPage content;
    if (!read(page, content)) continue;
    std::size_t open = 0;
    for (const PinLine& line : content.lines) {
      for (const auto& pin : line.pins) open += pin.load(std::memory_order_relaxed) != 0;  // for statistics
    }
    views.open += open;
    views.most = std::max(views.most, open);
  }
  return views;
}

}  // namespace stepstash::shm
