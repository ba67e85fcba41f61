// SPDX-License-Identifier: Apache-2.0
/// The bytes of a stepstash segment and of a pin page, and the only description of them in code.
/// docs/segment-layout.md draws the same bytes and names the invariants L1, L2, ... cited below.
///
/// The segment is written by the daemon alone. Clients map it PROT_READ and trust nothing in it: every offset is
/// checked against the mapping before it is followed. A pin page is written by its one client and by the daemon; the
/// daemon trusts nothing in it. Sizes are bytes, integers are the host's; no pointers are stored.
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace stepstash::shm {

/// Bytes from the start of the segment; 0 is none. At most 48 bits.
using Offset = std::uint64_t;
using SegmentId = std::array<std::uint8_t, 16>;

inline constexpr std::uint64_t kSegmentMagic = 0x68736174'73706574;  // "tepstash" in memory order
inline constexpr std::uint32_t kLayoutVersion = 2;
inline constexpr std::size_t kPageBytes = 4096;
inline constexpr std::size_t kBlockAlign = 64;
/// Values from this length on start on a page boundary; shorter ones on 64 bytes (below, the padding would cost
/// more than 1.6 % of the value).
inline constexpr std::size_t kPageAlignedFrom = 256 * 1024;
inline constexpr std::uint64_t kMaxSegmentBytes = std::uint64_t{1} << 46;
/// The stand-in begins on a multiple of this.
inline constexpr std::uint64_t kStandInAlign = 256 * 1024;

// ---- index ---------------------------------------------------------------------------------------------------------

/// L4: one word names the current table: {version:10 | log2 of slots:6 | offset of the first slot:48}.
/// Swapped by one store when a larger or cleaner table is complete; a reader whose word changed looks again.
using IndexWord = std::uint64_t;
constexpr IndexWord make_index_word(std::uint64_t version, unsigned log2_slots, Offset slots) noexcept {
  return (version & 0x3FF) << 54 | std::uint64_t{log2_slots & 63} << 48 | slots;
}
constexpr Offset index_slots_offset(IndexWord word) noexcept { return word & 0xFFFF'FFFF'FFFF; }
constexpr unsigned index_log2_slots(IndexWord word) noexcept { return static_cast<unsigned>(word >> 48) & 63; }
constexpr std::uint64_t index_version(IndexWord word) noexcept { return word >> 54; }

/// L5: a slot is {fingerprint:16 | offset of the entry's block:48}; 0 was never used, kTombstone no longer is.
using Slot = std::uint64_t;
inline constexpr Slot kEmptySlot = 0;
inline constexpr Slot kTombstone = 1;
constexpr Slot make_slot(std::uint64_t key_hash, Offset block) noexcept { return (key_hash >> 48) << 48 | block; }
constexpr Offset slot_offset(Slot slot) noexcept { return slot & 0xFFFF'FFFF'FFFF; }
constexpr bool slot_matches(Slot slot, std::uint64_t key_hash) noexcept {
  return slot > kTombstone && slot >> 48 == key_hash >> 48;
}

/// L5: a key stands in its own slot, the one that its hash names, or at most this many slots less one behind it. Tables
/// whose keys nobody chose stay far below: the longest run of slots in use is about ln(slots) / (load - 1 - ln(load)),
/// 200 of 2^26 slots at 5/8, and 2100 at 7/8, which only a full heap brings.
inline constexpr std::uint64_t kMaxProbe = 4096;

// ---- the header ----------------------------------------------------------------------------------------------------

/// The segment's first page: what never changes after creation (L1), then the facts that do. What readers load with
/// each get has a cache line of its own, so that sets do not take it from them.
struct alignas(64) Header {
  std::uint64_t magic;
  std::uint32_t layout_version;
  std::uint32_t fingerprint;    // layout_fingerprint() of the program that made it
  std::uint64_t segment_bytes;  // the end of the heap; behind it the stand-in
  SegmentId segment_id;         // random, new with every segment
  std::uint64_t builds_capacity;
  Offset heap_offset;
  std::uint64_t object_bytes;  // the object's length: the end of the stand-in
  std::uint64_t unused1[7];
  std::uint64_t header_hash;  // XXH3-64 of the bytes before it

  std::atomic<IndexWord> index;
  std::atomic<std::uint32_t> served;  // L12: a robust futex word; which thread of which daemon serves this segment
  std::uint32_t unused4;
  std::uint64_t unused2[3];
  std::atomic<std::uint64_t> deletions;       // L11: under way; 0: a reader need not look at the build records
  std::atomic<std::uint64_t> deletion_epoch;  // L11: of the last deletion that has taken effect
  std::atomic<std::uint64_t> deletion_upto;   // L11: ids up to this one are what it deletes

  std::atomic<std::uint64_t> next_id;       // L2: ids and revisions below were, or may have been, given
  std::atomic<std::uint64_t> id_limit;      // L2: the database has reserved ids below this one
  std::atomic<std::uint64_t> store_id;      // L3: "clean" speaks of this database
  std::atomic<std::uint64_t> commit_count;  // L3: ... at no earlier commit than this; and kUnsettled
  std::uint64_t unused3[4];
};
static_assert(sizeof(Header) == 256 && offsetof(Header, header_hash) == 120 && offsetof(Header, index) == 128 &&
              offsetof(Header, next_id) == 192);
static_assert(std::atomic<std::uint64_t>::is_always_lock_free && std::atomic<std::uint32_t>::is_always_lock_free);

/// L12: whether a daemon that lives serves the segment. Where it dies the kernel takes its thread's number out of the
/// word and puts FUTEX_OWNER_DIED in (linux/futex.h).
constexpr bool is_served(std::uint32_t word) noexcept { return (word & 0x3FFF'FFFF) != 0; }

/// L3: the top bit of commit_count. Something was set aside, and the database has not been asked for it yet.
inline constexpr std::uint64_t kUnsettled = std::uint64_t{1} << 63;

// ---- builds --------------------------------------------------------------------------------------------------------

/// complete_at of a build of which nobody has said that it finished.
inline constexpr std::int64_t kNotComplete = INT64_MIN;
/// complete_at of a build that was reopened. A fact of its own: where kNotComplete is, the database may know a time.
inline constexpr std::int64_t kReopened = INT64_MAX;
constexpr bool is_finished(std::int64_t complete_at) noexcept {
  return complete_at != kNotComplete && complete_at != kReopened;
}
enum class Hold : std::uint32_t { unknown = 0, held = 1, not_held = 2 };

/// One build with data in the segment, or with a fact that the database does not have yet. The table follows the
/// header's page. L6: `buildid` is stored last when a record is made and zeroed when it is given up; every other field
/// is one fact and changes by one store.
struct alignas(64) BuildRecord {
  std::atomic<std::int64_t> buildid;  // 0: the record is free
  std::atomic<std::int64_t> complete_at;
  std::atomic<std::uint64_t> drop_upto;  // entries with id <= this are deleted; rows may still be in the database
  std::atomic<Hold> hold;
  std::atomic<std::uint32_t> facts_loaded;  // 1: holds all that the database knew of this build
  std::atomic<std::int64_t> completed_ns;   // complete_at on CLOCK_BOOTTIME (negative: before the boot); 0: unknown
  std::atomic<std::uint64_t> deletion;      // L11: the epoch of the deletion that concerns this build; 0: none
  std::uint64_t unused1[2];
};
static_assert(sizeof(BuildRecord) == 64);

/// Of an entry: its build has no record.
inline constexpr std::uint32_t kNoRecord = UINT32_MAX;

// ---- blocks --------------------------------------------------------------------------------------------------------

inline constexpr std::uint32_t kBlockMagic = 0x6B6C4273;  // "sBlk"
enum class BlockKind : std::uint32_t { free = 0, entry = 1, index = 2 };

/// L7: blocks tile the heap from heap_offset to segment_bytes without gaps, at every instruction, and the stand-in from
/// stand_in_offset() to object_bytes, once it has a first block (of a size that is not 0). `size` includes this
/// header and is a multiple of 64. Splitting writes the second header first, then shrinks the first block by one
/// store; merging is one store to the first. `kind` is a remark, but for former tables: what is in use follows from the
/// index word and the slots alone (L8).
struct BlockHeader {
  std::uint32_t magic;
  BlockKind kind;
  std::atomic<std::uint64_t> size;
};
static_assert(sizeof(BlockHeader) == 16);

/// A block that holds a table of the index: this, then the slots.
/// L4: `secret` is complete before the index word names the table and does not change while it does.
struct TableHeader {
  BlockHeader block;
  std::atomic<std::uint64_t> secret[4];  // of key_hash (hash.hpp), drawn for this table
  std::atomic<std::uint64_t> check;      // XXH3-64 of the secret
  std::uint64_t unused;
};
static_assert(sizeof(TableHeader) == 64);

constexpr Offset stand_in_offset(std::uint64_t segment_bytes) noexcept {
  return (segment_bytes + kStandInAlign - 1) / kStandInAlign * kStandInAlign;
}

enum class EntryState : std::uint32_t { dirty = 1, clean = 2 };

/// A block that holds one entry of build data: this record, then name, source, padding, value.
/// L9: everything but `state` and `record` is complete before a slot points here and never changes afterwards.
struct Entry {
  BlockHeader block;
  std::uint64_t id;
  std::int64_t buildid;
  std::uint64_t revision;
  std::uint64_t length;        // of the value
  std::uint64_t value_hash;    // XXH3-64 of the value
  std::uint64_t meta_hash;     // XXH3-64 of all that never changes (validate.hpp)
  std::uint64_t set_at_ns;     // CLOCK_MONOTONIC
  std::uint32_t value_offset;  // from the block's start; 0: evicted, the value is in the database only
  std::uint16_t name_bytes;
  std::uint16_t source_bytes;
  std::atomic<EntryState> state;      // L10: dirty -> clean when its transaction has committed; dirty and evicted: lost
  std::atomic<std::uint32_t> record;  // L11: where its build's record stands in the table, or kNoRecord
};
static_assert(sizeof(Entry) == 88 && offsetof(Entry, id) == 16 && offsetof(Entry, state) == 80);

// ---- pin pages -----------------------------------------------------------------------------------------------------

inline constexpr std::uint64_t kPinPageMagic = 0x6E69705F'73706574;  // "teps_pin"
inline constexpr std::size_t kPinsPerLine = 7;
inline constexpr std::size_t kPinLines = 63;
inline constexpr std::size_t kPinsPerPage = kPinsPerLine * kPinLines;  // 441: views one client can hold at once

/// One cache line of pins, so that threads that start on different lines do not share one.
struct alignas(64) PinLine {
  std::atomic<Offset> pins[kPinsPerLine];  // P2: block that a view keeps in place; 0: none
  std::atomic<Offset> recent;              // P3: a hint, the block read last through this line
};

/// P4: what a client may still do with its page. The client looks before it searches, and again when it has claimed a
/// pin and seen the slot unchanged: with the same word as before the pin counts.
enum class PageState : std::uint32_t {
  serving = 0,
  superseded = 1,  // another segment serves now: attach again
  closed = 2,      // what is pinned stays pinned, and no more can be: its user holds too much
};

/// The word that says so has two writers, and a half for each: {the client's:32 | closings:30 | PageState:2}. A reader
/// loads both halves at once. The daemon writes its half alone (four bytes, with pwrite(2)), the client adds its bit.
using PageWord = std::uint64_t;
inline constexpr PageWord kPageLeft = PageWord{1} << 32;  // the client has attached to another segment
/// The daemon's half. `closings`: how often the page was closed, modulo 2^30, so that one who looks twice finds out
/// that it was closed and opened in between.
constexpr std::uint32_t make_page_half(PageState state, std::uint32_t closings) noexcept {
  return closings << 2 | static_cast<std::uint32_t>(state);
}
constexpr std::uint32_t page_closings(PageWord word) noexcept { return static_cast<std::uint32_t>(word) >> 2; }
/// What the daemon says.
constexpr PageState page_half_state(PageWord word) noexcept { return static_cast<PageState>(word & 3); }
constexpr bool page_serves(PageWord word) noexcept { return (word & ~PageWord{0xFFFF'FFFC}) == 0; }
/// What it comes to for the client.
constexpr PageState page_state(PageWord word) noexcept {
  if (page_serves(word)) return PageState::serving;
  const bool closed = word >> 32 == 0 && page_half_state(word) == PageState::closed;
  return closed ? PageState::closed : PageState::superseded;
}

/// P5: who orders a reader's claim of a pin before its second look (reader_fence.hpp). Chosen by the daemon that makes
/// the page, for as long as the page exists.
enum class ReaderFence : std::uint32_t {
  own = 0,      // the reader: a claim is a locked instruction
  scanned = 1,  // a reader in a registered process claims by a plain store; fence_readers() runs before pins are read
};

/// One page per client, in an object whose name ends in the page's number and the client's uid. Written by the client
/// (pins, hints, its half of the state) and the daemon (the rest).
struct alignas(64) PinPage {
  std::uint64_t magic;
  std::uint32_t layout_version;
  std::uint32_t number;         // as the object's name says
  SegmentId segment_id;         // the segment its pins speak of
  std::int32_t pid;             // of the peer at attach, for diagnosis: 0 where the peer's PID namespace hides it
  std::uint32_t uid;            // of the peer, for the client's messages: the daemon believes the object's name
  std::atomic<PageWord> state;  // P4
  ReaderFence fence;            // P5
  std::uint32_t unused[3];
  PinLine lines[kPinLines];
};
static_assert(sizeof(PinLine) == 64 && sizeof(PinPage) == kPageBytes && offsetof(PinPage, lines) == 64 &&
              offsetof(PinPage, state) == 40);
static_assert(std::endian::native == std::endian::little);  // the daemon's half comes first

/// Changes whenever a size or a place in this header does, so that two programs that differ never share a segment.
constexpr std::uint32_t layout_fingerprint() noexcept {
  std::uint32_t hash = 2166136261u;  // FNV-1a, 32 bit
  for (std::uint64_t part : {sizeof(Header), sizeof(BuildRecord), sizeof(BlockHeader), sizeof(TableHeader),
                             sizeof(Entry), sizeof(PinPage), offsetof(Header, index), offsetof(TableHeader, check),
                             offsetof(Entry, state), kPinsPerLine, kPinLines, kBlockAlign, kPageBytes}) {
    for (int shift = 0; shift < 64; shift += 8) hash = (hash ^ static_cast<std::uint8_t>(part >> shift)) * 16777619u;
  }
  return hash;
}

}  // namespace stepstash::shm
