// SPDX-License-Identifier: Apache-2.0
/// The clients' side of a segment: find a value and hold it in place, without a lock or a system call.
///
/// Everything read here may be stale and, from a client's point of view, wrong: offsets are checked against the
/// mapping, and an entry is looked at only once a pin holds it.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "base/result.hpp"
#include "base/types.hpp"
#include "base/unique_fd.hpp"
#include "shm/layout.hpp"
#include "shm/mapping.hpp"

namespace stepstash::shm {

/// One entry, held in place by a pin until release(). Plain and copyable, so that a C struct can carry it: the
/// last holder calls release() once. Must not outlive its Reader.
struct Pinned {
  const Entry* entry = nullptr;
  std::atomic<Offset>* pin = nullptr;

  std::string_view name() const noexcept;
  std::string_view source() const noexcept;
  bool resident() const noexcept { return entry->value_offset != 0; }
  /// Empty when evicted.
  std::span<const std::byte> value() const noexcept;
  void release() noexcept;
};

/// Whether the page of a pin that its client has just given up is superseded: then the page may be waiting for that.
inline bool of_superseded_page(const std::atomic<Offset>* pin) noexcept {
  // The compiler must not load before the pin's store; for the processor, whoever supersedes a page fences all threads.
  std::atomic_signal_fence(std::memory_order_seq_cst);
  const auto page = reinterpret_cast<std::uintptr_t>(pin) & ~std::uintptr_t{kPageBytes - 1};
  return page_state(reinterpret_cast<const PinPage*>(page)->state.load(std::memory_order_relaxed)) ==
         PageState::superseded;
}

enum class Found {
  miss,        ///< authoritative: there is no such build data
  resident,    ///< `out` holds the entry and its value
  evicted,     ///< `out` holds the entry; its value must be asked for
  superseded,  ///< another segment serves now: attach again
  closed,      ///< this user holds more than his share while others want room: no more views until some are released
  no_pin,      ///< all kPinsPerPage pins are in use
  corrupt,     ///< the index leads outside the segment or nowhere: report it, and ask the daemon
};

/// The search itself, over a segment of `bytes` bytes mapped at `segment` and a pin page: what Reader::find does with
/// its own mappings. The header has been checked. `fence`: who orders the claim of a pin; ReaderFence::scanned only in
/// a process that is registered. Thread safety: any number of threads.
Found find_entry(const std::byte* segment, std::uint64_t bytes, PinPage& page, ReaderFence fence, BuildId build,
                 std::string_view name, Pinned& out) noexcept;

/// What came of Reader::give_back().
enum class GivenBack {
  all,
  pinned,   ///< nothing: something is pinned
  refused,  ///< not all: the kernel refuses what takes its place. To be tried again some other time, not at once
};

class Reader {
 public:
  /// Maps the segment behind `segment` read-only and the pin page behind `pins`, and checks both. The descriptors are
  /// closed: the mapping of the pin page keeps its lock, which tells the daemon that this client lives.
  /// Errors: Errc::format_mismatch, Errc::corrupt_segment, those of fstat(2) and mmap(2).
  static Result<Reader> attach(UniqueFd segment, UniqueFd pins);

  /// Looks up one entry and pins it. Takes no lock, makes no system call, copies nothing; O(1) expected.
  /// Thread safety: any number of threads. `out` is set when the answer is resident or evicted.
  Found find(BuildId build, std::string_view name, Pinned& out) const noexcept;

  const SegmentId& segment_id() const noexcept { return segment_id_; }
  std::uint32_t pin_page() const noexcept { return pin_page_; }
  bool superseded() const noexcept;
  /// Whether a daemon that lives serves the segment (L12). A load from a line that find() needs as well.
  bool served() const noexcept {
    // Acquire: what that daemon has published before is seen.
    const auto& header = *reinterpret_cast<const Header*>(segment_.data());
    return is_served(header.served.load(std::memory_order_acquire));
  }
  /// The user that the daemon made the pin page for.
  std::uint32_t uid() const noexcept { return uid_; }
  /// Pins in use now. O(kPinsPerPage).
  std::size_t pins_in_use() const noexcept;

  /// From here on find() answers superseded: the client has attached to another segment. What is pinned stays.
  void supersede() noexcept;
  /// Gives back the memory of a segment that is superseded, the pin page and its lock, once nothing is pinned; the
  /// addresses stay, for threads that are still in find(). One thread at a time.
  GivenBack give_back() noexcept;
  /// Whether children of fork(2) get the segment, too; at first they do. Pin pages are none of theirs once this has
  /// been called. False when the kernel does not take the advice.
  bool inherit_segment(bool inherited) noexcept;
  /// In a child that got no pin page, and the segment only if `inherited`: leaves the addresses alone that are not its.
  void forget(bool inherited) noexcept;

 private:
  Reader(Mapping segment, Mapping pins) noexcept;
  PinPage& page() const noexcept { return *reinterpret_cast<PinPage*>(pins_.data()); }

  Mapping segment_;
  Mapping pins_;
  SegmentId segment_id_;
  std::uint32_t pin_page_;
  std::uint32_t uid_;
  ReaderFence fence_;
};

}  // namespace stepstash::shm
