// SPDX-License-Identifier: Apache-2.0
/// Pin pages, the daemon's side: which client keeps which block in place, and which clients are gone.
///
/// Hazard pointers (M. Michael, "Hazard Pointers: Safe Memory Reclamation for Lock-Free Objects", IEEE TPDS 15(6),
/// 2004), one page of them per client. In ten lines:
///   A reader announces the block it is about to read: it stores the block's offset into a free pin of its own page
///   (the claim), then loads the index slot again (the second look). The writer unpublishes a block first, then reads
///   all pins, and reuses only blocks that no pin names. Each side stores, fences, then loads what the other stores,
///   so at least one sees the other: either the scan finds the pin, or the second look finds the slot changed.
///   Benefit: a get is one claim and one look, without a lock, a system call or a counter that all readers write.
///   Cost: the writer pays O(pages * pins) per scan, so it unpublishes many blocks and scans once. A stalled reader
///   keeps the blocks that it pins, but no others.
///   Why not reference counts in the entries: clients cannot write the segment, and a count does not say whose it
///   was once its owner is dead. Why not epochs (RCU): one sleeping reader would keep all memory retired since.
///   When not to use it: for many objects read for a long time at once; a page has 441 pins and no more.
///
/// A page is a separate object, so that a restarted daemon finds it. It is locked (open file description lock) on the
/// very description that the client receives and keeps mapped: the kernel releases the lock when the last process that
/// has it mapped is gone, in whatever PID namespace it lived.
///
/// The object's name states the page's owner, because the client cannot change the name. It can write the page itself:
/// it could store another user's number there, and the next daemon would believe it.
///
/// What one user holds is bounded. The pages of a user that holds too much while others need room are *closed*: pins in
/// place at that time stay valid for as long as they do not change; pins that appear later do not count. The clients
/// find out, because they check the page's state after they have claimed a pin (P4).
///
/// The daemon never maps a page. A client can truncate its page's object or punch a hole into it, and the daemon's next
/// access through a mapping would raise SIGBUS. With pread(2) a missing part reads as no pin, which harms only that
/// client; reading 4 KiB costs about as much as scanning the mapping.
#pragma once

#include <algorithm>
#include <array>
#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.hpp"
#include "base/unique_fd.hpp"
#include "shm/block_set.hpp"
#include "shm/layout.hpp"
#include "shm/object.hpp"

namespace stepstash::shm {

/// The result of scanning all pages.
struct PinScan {
  /// For a segment whose object has `bytes` bytes.
  explicit PinScan(std::uint64_t bytes) : serving(bytes), closed(bytes), recent(bytes) {}
  bool pinned(Offset block) const noexcept { return serving.contains(block) || closed.contains(block); }

  BlockSet serving;  ///< pinned by serving pages
  BlockSet closed;   ///< pinned by closed pages, since before they were closed
  BlockSet recent;   ///< not pinned: hints from readers about what they read last
};

/// Thread safety: one thread. Lifetime: the directory outlives it.
class PinRegistry {
 public:
  /// The user of a page whose name gives no owner; not a valid uid (setuid(2) rejects -1). Such a page keeps what it
  /// pins and can be closed like any user's. It cannot be resumed, so that its client gets a page of its own as soon as
  /// it connects.
  static constexpr std::uint32_t kNobody = UINT32_MAX;

  /// Pages are named `prefix` + number + "." + uid. Those of an earlier version lack the uid and belong to kNobody.
  PinRegistry(const ObjectDirectory& directory, std::string prefix);

  /// Finds the pages that an earlier daemon left. Removes those that no client holds. Marks those of another segment as
  /// superseded, and keeps them until their clients release them. Returns how many are in use. O(pages). Errors: those
  /// of opening and reading a page that a client may hold (EMFILE, ENOMEM): nothing may be freed then.
  Result<std::size_t> adopt(const SegmentId& segment);

  /// A page for one client, locked on the returned description; pass it to the client and close it here. Errors:
  /// ENOSPC, EMFILE and others of openat(2), posix_fallocate(3), fcntl(2) and pwrite(2).
  struct NewPage {
    UniqueFd fd;
    std::uint32_t number = 0;
  };
  Result<NewPage> create(const SegmentId& segment, std::int32_t pid, std::uint32_t uid);

  /// Whether page `number` is this user's, serves `segment` and is held by a process: its client may continue to use
  /// it.
  bool resumable(std::uint32_t number, std::uint32_t uid, const SegmentId& segment) const;

  /// Removes the pages that no client holds any more, with all their pins; returns how many. Pages that a client
  /// truncated or extended get their length back, and the tmpfs the memory they had taken. O(pages) system calls.
  std::size_t reap();

  /// Fills `scan` with the current pins. Call it after the stores that unpublish what is to be freed: a full fence
  /// separates those stores from these reads, and the reader's pin from its second look. If wanted, the hints come from
  /// the same read. O(pages * kPinsPerPage), whatever the pages contain. Errors: those of membarrier(2), where it
  /// worked when the pages were made: every block may be pinned. Those of pread(2): an unreadable page may pin
  /// anything; `scan` then has the contents of the others.
  Result<> scan(PinScan& scan, bool hints = false);

  /// Closes this user's serving pages, and those the user gets later, until open(). `entries`: the blocks in use that
  /// hold entries. Other pins have no effect from then on: otherwise offsets of blocks that do not exist yet would make
  /// a closed user the holder of whatever is placed there later. O(the user's pages). Errors: those of pread(2) and
  /// pwrite(2). A page that could not be read, or whose state could not be stored, remains serving and all its pins
  /// count; the others are closed. The next call tries it again. A page without pins is no error.
  Result<> close(std::uint32_t uid, const BlockSet& entries);
  void open(std::uint32_t uid);
  bool closed(std::uint32_t uid) const noexcept { return closed_.contains(uid); }
  const std::set<std::uint32_t>& closed() const noexcept { return closed_; }

  /// Calls `each` with every pin of this user that counts, duplicates included, and whether its page serves. O(pages +
  /// the user's pages * kPinsPerPage).
  template <class F>
  void for_each_pin(std::uint32_t uid, F&& each) const {
    for (const auto& [key, page] : pages_) {
      PinPage content;
      if (key.uid != uid || !page.current || !read(page, content)) continue;
      for (std::size_t i = 0; i < kPinsPerPage; ++i) {
        const Offset block = pin_of(content, i);
        if (block != 0 && (!page.honoured || (*page.honoured)[i] == block)) each(block, !page.honoured);
      }
    }
  }
  /// The users that have pages.
  std::set<std::uint32_t> users() const;

  /// Calls `each` with the hints of the next `count` pages, round-robin. O(count * kPinLines).
  template <class F>
  void recent(F&& each, std::size_t count = SIZE_MAX) {
    auto at = pages_.upper_bound(last_hints_);
    for (count = std::min(count, pages_.size()); count > 0; --count, ++at) {
      if (at == pages_.end()) at = pages_.begin();
      last_hints_ = at->first;
      PinPage content;
      if (!read(at->second, content)) continue;
      for (const PinLine& line : content.lines) {
        if (const Offset block = line.recent.load(std::memory_order_relaxed)) each(block);  // a copy, and a hint
      }
    }
  }

  std::size_t pages() const noexcept { return pages_.size(); }
  /// Pages that clients of one user hold. O(pages).
  std::size_t pages_of(std::uint32_t uid) const noexcept;
  /// Open views, in total and of the client that has the most. O(pages * kPinsPerPage).
  struct Views {
    std::size_t open = 0;
    std::size_t most = 0;
  };
  Views views() const noexcept;

 private:
  /// The parts of a page's name.
  struct Key {
    std::uint32_t number = 0;
    std::uint32_t uid = 0;  // of the client
    auto operator<=>(const Key&) const = default;
  };
  struct Page {
    UniqueFd watch;  // a second description of the same object, to test the client's lock
    SegmentId segment_id;
    bool current;                // belongs to the segment that is served
    std::uint32_t closings = 0;  // as the page says (P4)
    std::unique_ptr<std::array<Offset, kPinsPerPage>>
        honoured{};  // closed: the pins in place then that have not changed since
  };
  /// Orders the stores that came before ahead of the reads of pins that follow, and the readers' pins ahead of their
  /// second looks (ReaderFence). Errors: those of membarrier(2): then nothing can be concluded from the pins.
  Result<> fence() const;
  static Offset pin_of(const PinPage& copy, std::size_t i) noexcept {
    return copy.lines[i / kPinsPerLine].pins[i % kPinsPerLine].load(std::memory_order_relaxed);
  }
  /// Stores the daemon's half of the page's state. Errors: those of pwrite(2).
  static Result<> set_state(const Page& page, PageState state, std::uint32_t closings) noexcept;

  /// Copies a page's current contents; parts that its object lacks are zero. Errors: those of pread(2).
  static Result<> read(const Page& page, PinPage& copy) noexcept;
  std::string name(Key key) const;
  /// Parses an object's name; nullopt: not a page. Every name has exactly one spelling.
  std::optional<Key> parse(std::string_view object) const;
  static bool held(int watch);
  /// Whether another process has the page's object open or mapped, even if it released its lock.
  static bool open_elsewhere(int watch);
  /// Undoes a client's changes to the page's length and the memory past its end.
  static void restore(int watch);

  const ObjectDirectory& directory_;
  std::string prefix_;
  std::map<Key, Page> pages_;
  std::set<std::uint32_t> closed_;  // users
  bool scanned_ = false;            // some page has had ReaderFence::scanned
  std::uint32_t next_number_ = 1;
  Key last_hints_;  // the page whose hints were read last
};

}  // namespace stepstash::shm
