// SPDX-License-Identifier: Apache-2.0
/// Validates the contents of a segment. Shared by readers (which trust nothing) and attach (which decides what to
/// keep).
#pragma once

#include <atomic>
#include <cstring>
#include <span>
#include <string_view>

#include "base/errc.hpp"
#include "base/result.hpp"
#include "base/types.hpp"
#include "shm/hash.hpp"
#include "shm/layout.hpp"

namespace stepstash::shm {

constexpr std::uint64_t round_up(std::uint64_t value, std::uint64_t step) noexcept {
  return (value + step - 1) / step * step;
}

/// L1. Errors: Errc::corrupt_segment (not a segment, or its fixed part is damaged), Errc::format_mismatch (another
/// layout).
inline Result<> check_header(const Header& header, std::uint64_t mapped_bytes) noexcept {
  if (header.magic != kSegmentMagic) return Errc::corrupt_segment;
  if (header.layout_version != kLayoutVersion || header.fingerprint != layout_fingerprint()) {
    return Errc::format_mismatch;
  }
  const std::span fixed(reinterpret_cast<const std::byte*>(&header), offsetof(Header, header_hash));
  if (header.header_hash != hash_bytes(fixed)) return Errc::corrupt_segment;
  if (header.object_bytes != mapped_bytes || header.segment_bytes > kMaxSegmentBytes) return Errc::corrupt_segment;
  if (stand_in_offset(header.segment_bytes) > mapped_bytes || mapped_bytes % kPageBytes != 0) {
    return Errc::corrupt_segment;
  }
  if (header.builds_capacity > mapped_bytes / sizeof(BuildRecord)) return Errc::corrupt_segment;
  if (header.heap_offset != round_up(kPageBytes + header.builds_capacity * sizeof(BuildRecord), kPageBytes)) {
    return Errc::corrupt_segment;
  }
  if (header.heap_offset + kBlockAlign > header.segment_bytes || header.segment_bytes % kPageBytes != 0) {
    return Errc::corrupt_segment;
  }
  return success();
}

/// Whether a table of `slots` slots at `table`, its header included, lies inside the segment.
constexpr bool table_inside(Offset table, std::uint64_t slots, std::uint64_t segment_bytes) noexcept {
  return table % sizeof(Slot) == 0 && table >= kPageBytes + sizeof(TableHeader) &&
         slots <= segment_bytes / sizeof(Slot) && table <= segment_bytes - slots * sizeof(Slot);
}

inline const TableHeader& table_header(const std::byte* base, Offset table) noexcept {
  return *reinterpret_cast<const TableHeader*>(base + table - sizeof(TableHeader));
}

/// The secret that places the table's keys; complete before the index word names the table. Acquire is for a reader
/// whose index word has since been replaced and that loads the secret of the table's next use: it pairs with the fence
/// between the swap and that use (IndexWriter::rebuild), so that the reader's second look finds another word.
inline HashSecret table_secret(const std::byte* base, Offset table) noexcept {
  const auto& words = table_header(base, table).secret;
  const auto word = [&words](std::size_t i) { return words[i].load(std::memory_order_acquire); };
  return {{word(0), word(1), word(2), word(3)}};  // no loop: -O2 would keep it, and the words in memory
}

/// The required value of TableHeader::check.
inline std::uint64_t secret_check(const HashSecret& secret) noexcept {
  return hash_bytes(std::as_bytes(std::span(&secret, 1)));
}

/// The entry whose block starts at `block`, or nullptr if there cannot be one. Checks offsets and sizes in O(1), not
/// checksums.
inline const Entry* checked_entry(const std::byte* base, std::uint64_t segment_bytes, Offset block) noexcept {
  if (block % kBlockAlign != 0 || block < kPageBytes || block > segment_bytes - sizeof(Entry)) return nullptr;
  const auto* entry = reinterpret_cast<const Entry*>(base + block);
  if (entry->block.magic != kBlockMagic || entry->block.kind != BlockKind::entry) return nullptr;
  // Relaxed: the size of a block in use changes only before the block is published.
  const std::uint64_t size = entry->block.size.load(std::memory_order_relaxed);
  if (size % kBlockAlign != 0 || size > segment_bytes - block) return nullptr;
  const std::uint64_t texts_end = sizeof(Entry) + entry->name_bytes + entry->source_bytes;
  if (entry->name_bytes > kMaxNameBytes || entry->source_bytes > kMaxSourceBytes || texts_end > size) return nullptr;
  if (entry->value_offset == 0) return entry;
  if (entry->value_offset < texts_end || entry->value_offset > size) return nullptr;
  if (entry->length > size - entry->value_offset) return nullptr;
  return entry;
}

inline std::string_view entry_name(const Entry& entry) noexcept {
  return {reinterpret_cast<const char*>(&entry + 1), entry.name_bytes};
}
inline std::string_view entry_source(const Entry& entry) noexcept {
  return {reinterpret_cast<const char*>(&entry + 1) + entry.name_bytes, entry.source_bytes};
}
inline std::span<const std::byte> entry_value(const Entry& entry) noexcept {
  if (entry.value_offset == 0) return {};
  return {reinterpret_cast<const std::byte*>(&entry) + entry.value_offset, static_cast<std::size_t>(entry.length)};
}

/// L11: the id up to which this build's entries are deleted. Correct for some instant during the call, on any thread
/// and in any process, whatever the daemon does concurrently.
inline std::uint64_t deleted_upto(const Header& header, const BuildRecord& record) noexcept {
  for (;;) {
    // In this order: the daemon stores drop_upto before it clears the mark.
    const std::uint64_t epoch = record.deletion.load(std::memory_order_acquire);
    const std::uint64_t upto = record.drop_upto.load(std::memory_order_acquire);
    if (epoch == 0) return upto;
    const bool effective = header.deletion_epoch.load(std::memory_order_acquire) == epoch;
    const std::uint64_t all = header.deletion_upto.load(std::memory_order_acquire);
    // The next deletion begins only after this one's marks are cleared: if the mark is unchanged, both loads were of
    // this one.
    if (record.deletion.load(std::memory_order_acquire) != epoch) continue;
    return effective && all > upto ? all : upto;
  }
}

/// Whether an entry that a slot refers to has been deleted; it leaves the index later.
inline bool deleted(const std::byte* base, const Header& header, const Entry& entry) noexcept {
  const std::uint32_t at = entry.record.load(std::memory_order_relaxed);
  if (at >= header.builds_capacity) return false;
  const auto& record = reinterpret_cast<const BuildRecord*>(base + kPageBytes)[at];
  // The record belongs to another build: this entry's build is gone, and so is the entry from its slot.
  if (record.buildid.load(std::memory_order_acquire) != entry.buildid) return false;
  return entry.id <= deleted_upto(header, record);
}

/// The required value of Entry::meta_hash: over everything that never changes.
inline std::uint64_t meta_hash(const Entry& entry) noexcept {
  const std::uint64_t fields[] = {
      entry.id,
      static_cast<std::uint64_t>(entry.buildid),
      entry.revision,
      entry.length,
      entry.value_hash,
      entry.set_at_ns,
      std::uint64_t{entry.value_offset} << 32 | std::uint64_t{entry.name_bytes} << 16 | entry.source_bytes};
  StreamHash hash;
  hash.update(std::as_bytes(std::span(fields)));
  hash.update(std::as_bytes(std::span(entry_name(entry))));
  hash.update(std::as_bytes(std::span(entry_source(entry))));
  return hash.digest();
}

}  // namespace stepstash::shm
