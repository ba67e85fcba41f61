// SPDX-License-Identifier: Apache-2.0
#include "shm/reader.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/crash_point.hpp"
#include "base/errc.hpp"
#include "shm/fence.hpp"
#include "shm/hash.hpp"
#include "shm/reader_fence.hpp"
#include "shm/thread_lines.hpp"
#include "shm/validate.hpp"

namespace stepstash::shm {
namespace {

/// In a line of this thread's own, where others only store 0.
std::atomic<Offset>* claim_in(PinLine& line, Offset block, ReaderFence fence) noexcept {
  for (auto& pin : line.pins) {
    if (pin.load(std::memory_order_relaxed) != 0) continue;  // only this thread claims here, so a 0 is a free pin
    // The pin comes before the second look in find_entry(). It pairs with the daemon, which stores the slot and then
    // scans the pins: one of the two sees the other (store buffering, C++ [atomics.order]).
    if (fence == ReaderFence::scanned) {
      pin.store(block, std::memory_order_relaxed);
      std::atomic_signal_fence(std::memory_order_seq_cst);  // the compiler's part; the processor's is the daemon's
    } else {
      pin.exchange(block, std::memory_order_seq_cst);  // store and full fence in one
    }
    return &pin;
  }
  return nullptr;
}

/// In a line that all threads share.
std::atomic<Offset>* claim_shared(PinPage& page, Offset block) noexcept {
  for (std::size_t i = kOwnLines; i < kPinLines; ++i) {
    for (auto& pin : page.lines[i].pins) {
      // Relaxed: only a look whether the exchange is worth its price.
      if (pin.load(std::memory_order_relaxed) != 0) continue;
      Offset expected = 0;
      if (pin.compare_exchange_strong(expected, block, std::memory_order_seq_cst, std::memory_order_relaxed)) {
        return &pin;
      }
    }
  }
  return nullptr;
}

/// For a thread that has no line yet, or whose current one is full. Not inlined: find_entry() needs its registers.
[[gnu::noinline, gnu::cold]] std::atomic<Offset>* claim_elsewhere(PinPage& page, Offset block,
                                                                  ReaderFence fence) noexcept {
  for (std::uint64_t left = thread_lines.mine; left != 0; left &= left - 1) {
    const auto line = static_cast<std::uint32_t>(std::countr_zero(left));
    if (auto* pin = claim_in(page.lines[line], block, fence)) {
      thread_lines.current = line;
      return pin;
    }
  }
  while (thread_lines.take_another()) {  // it may be full of what its last owner's views still hold
    if (auto* pin = claim_in(page.lines[thread_lines.current], block, fence)) return pin;
  }
  return claim_shared(page, block);
}

PinLine& line_of(std::atomic<Offset>* pin) noexcept {
  return *reinterpret_cast<PinLine*>(reinterpret_cast<std::uintptr_t>(pin) & ~std::uintptr_t{sizeof(PinLine) - 1});
}

std::atomic<Offset>* claim_pin(PinPage& page, Offset block, ReaderFence fence) noexcept {
  std::atomic<Offset>* pin = nullptr;
  if (const std::uint32_t line = thread_lines.current; line != ThreadLines::kNone) {
    pin = claim_in(page.lines[line], block, fence);
  }
  if (pin == nullptr) [[unlikely]]
    pin = claim_elsewhere(page, block, fence);
  if (pin == nullptr) return nullptr;
  STEPSTASH_CRASH_POINT("shm.reader.pin.claimed");
  line_of(pin).recent.store(block, std::memory_order_relaxed);  // a hint for eviction; any value is harmless
  STEPSTASH_CRASH_POINT("shm.reader.hint.stored");
  return pin;
}

}  // namespace

std::string_view Pinned::name() const noexcept { return entry_name(*entry); }
std::string_view Pinned::source() const noexcept { return entry_source(*entry); }
std::span<const std::byte> Pinned::value() const noexcept { return entry_value(*entry); }

void Pinned::release() noexcept {
  // Release pairs with PinRegistry::scan: the daemon reuses the block only after our last read of it.
  pin->store(0, std::memory_order_release);
  STEPSTASH_CRASH_POINT("shm.reader.pin.released");
  *this = {};
}

Found find_entry(const std::byte* segment, std::uint64_t bytes, PinPage& page, ReaderFence fence, BuildId build,
                 std::string_view name, Pinned& out) noexcept {
  const auto& header = *reinterpret_cast<const Header*>(segment);
  for (;;) {
    // Acquire pairs with the daemon's store when it starts on another segment.
    const PageWord state = page.state.load(std::memory_order_acquire);
    if (!page_serves(state)) [[unlikely]]
      return page_state(state) == PageState::closed ? Found::closed : Found::superseded;
    // Acquire pairs with IndexWriter's swap: the table behind the word is complete.
    const IndexWord word = header.index.load(std::memory_order_acquire);
    const Offset table = index_slots_offset(word);
    const std::uint64_t slots = std::uint64_t{1} << index_log2_slots(word);
    if (!table_inside(table, slots, bytes)) [[unlikely]] {
      // Zeros, where the memory was given back meanwhile (Reader::give_back), which comes after the page's state. A
      // page that was closed meanwhile says nothing about the table.
      const PageState now = page_state(page.state.load(std::memory_order_seq_cst));
      return now == PageState::superseded ? Found::superseded : Found::corrupt;
    }
    // Before the slots: an entry that is found after a 0 here was there when no deletion was under way, or was set
    // since.
    const bool deletions = header.deletions.load(std::memory_order_acquire) != 0;
    const auto* slot = reinterpret_cast<const std::atomic<Slot>*>(segment + table);
    const std::uint64_t hash = key_hash(table_secret(segment, table), build, name);

    bool again = false;
    for (std::uint64_t i = 0; i < std::min(slots, kMaxProbe) && !again; ++i) {
      const std::atomic<Slot>& here = slot[(hash + i) & (slots - 1)];
      // Acquire is not enough to look at the entry, only to decide whether to pin it.
      const Slot seen = here.load(std::memory_order_acquire);
      if (seen == kEmptySlot) break;
      if (!slot_matches(seen, hash)) continue;

      std::atomic<Offset>* pin = claim_pin(page, slot_offset(seen), fence);
      if (pin == nullptr) return Found::no_pin;
      // Unchanged after the pin became visible: the block was not retired before the pin, and will not be reused
      // while it stands and counts. The word is read again too, for a table that was replaced may hold anything. And
      // the page's state, after them (P4): if it is the same to the number of closings, the page was not closed
      // between the two, and when it is closed from now on, the daemon finds this pin, and in it the block of an entry
      // that was published when we looked at the slot. Before the slot it would be too early: closed in between, when
      // the block happened to be free, the pin would count no more, and the slot could be the same again.
      if (here.load(std::memory_order_seq_cst) != seen || header.index.load(std::memory_order_seq_cst) != word ||
          page.state.load(std::memory_order_seq_cst) != state) [[unlikely]] {
        pin->store(0, std::memory_order_release);
        again = true;
        break;
      }
      STEPSTASH_CRASH_POINT("shm.reader.slot.seen_again");
      const Entry* entry = checked_entry(segment, bytes, slot_offset(seen));
      if (entry != nullptr && entry->buildid == build && entry_name(*entry) == name) {
        if (deletions) [[unlikely]] {
          const bool gone = deleted(segment, header, *entry);
          // A deletion that had come to its end before we looked at the record has emptied the slot before that.
          if (gone || here.load(std::memory_order_seq_cst) != seen ||
              header.index.load(std::memory_order_seq_cst) != word) {
            pin->store(0, std::memory_order_release);
            if (gone) return Found::miss;
            again = true;
            break;
          }
        }
        out = {entry, pin};
        STEPSTASH_CRASH_POINT("shm.reader.view.validated");
        return out.resident() ? Found::resident : Found::evicted;
      }
      pin->store(0, std::memory_order_release);
      if (entry == nullptr) return Found::corrupt;
    }
    // A miss counts only if the table was the current one all the while.
    if (!again && header.index.load(std::memory_order_acquire) == word) return Found::miss;
  }
}

Reader::Reader(Mapping segment, Mapping pins) noexcept
    : segment_(std::move(segment)),
      pins_(std::move(pins)),
      segment_id_(reinterpret_cast<const Header*>(segment_.data())->segment_id),
      pin_page_(page().number),
      uid_(page().uid),
      fence_(page().fence == ReaderFence::scanned && registers_fast() && register_reader() ? ReaderFence::scanned
                                                                                           : ReaderFence::own) {}

Result<Reader> Reader::attach(UniqueFd segment, UniqueFd pins) {
  struct stat status {};
  if (::fstat(segment.get(), &status) != 0) return last_errno();
  if (static_cast<std::uint64_t>(status.st_size) < kPageBytes) return Errc::corrupt_segment;
  const auto bytes = static_cast<std::size_t>(status.st_size);
  if (::fstat(pins.get(), &status) != 0) return last_errno();
  if (status.st_size != static_cast<off_t>(kPageBytes)) return Errc::format_mismatch;

  Mapping segment_map = STEPSTASH_TRY(Mapping::map(segment.get(), bytes, Mapping::Access::read_only));
  Mapping pins_map = STEPSTASH_TRY(Mapping::map(pins.get(), kPageBytes, Mapping::Access::read_write));
  STEPSTASH_TRY(check_header(*reinterpret_cast<const Header*>(segment_map.data()), bytes));
  const auto& page = *reinterpret_cast<const PinPage*>(pins_map.data());
  if (page.magic != kPinPageMagic || page.layout_version != kLayoutVersion) return Errc::format_mismatch;
  return Reader(std::move(segment_map), std::move(pins_map));
}

[[gnu::flatten]] Found Reader::find(BuildId build, std::string_view name, Pinned& out) const noexcept {
  return find_entry(segment_.data(), segment_.size(), page(), fence_, build, name, out);
}

bool Reader::superseded() const noexcept {
  return page_state(page().state.load(std::memory_order_acquire)) == PageState::superseded;
}

void Reader::supersede() noexcept {
  // Sequentially consistent: before the look at the pins in give_back(), which fences this process's readers, too. It
  // pairs with find_entry(), which claims a pin and then loads the state: one of the two sees the other. A bit is
  // added: the daemon's half is the daemon's, who may be writing it at this very moment.
  page().state.fetch_or(kPageLeft, std::memory_order_seq_cst);
}

GivenBack Reader::give_back() noexcept {
  supersede();
  full_fence();
  if (fence_ == ReaderFence::scanned && !fence_readers()) return GivenBack::refused;
  if (pins_in_use() != 0) return GivenBack::pinned;
  // Nobody gets a pin here any more. Threads that are in find() still read the segment, its zeros at last, and may even
  // claim a pin: in a page that says that it is superseded, at every instant.
  PinPage empty{};
  empty.state.store(kPageLeft, std::memory_order_relaxed);
  const auto content = std::as_bytes(std::span(&empty, 1));
  return segment_.replace_by_zeros() && pins_.replace(content) ? GivenBack::all : GivenBack::refused;
}

bool Reader::inherit_segment(bool inherited) noexcept {
  const bool pins_kept_back = pins_.inherit(false);
  return segment_.inherit(inherited) && pins_kept_back;
}

void Reader::forget(bool inherited) noexcept {
  pins_.forget();
  if (!inherited) segment_.forget();
}

std::size_t Reader::pins_in_use() const noexcept {
  std::size_t used = 0;
  for (const PinLine& line : page().lines) {
    for (const auto& pin : line.pins) used += pin.load(std::memory_order_relaxed) != 0;  // give_back() fences
  }
  return used;
}

}  // namespace stepstash::shm
