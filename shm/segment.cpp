// SPDX-License-Identifier: Apache-2.0
// The segment as a whole: creating, naming and attaching it. Its contents are handled in segment_entries.cpp.

#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "base/crash_point.hpp"
#include "base/errc.hpp"
#include "shm/segment.hpp"
#include "shm/validate.hpp"

namespace stepstash::shm {
namespace {

/// One build record per this many bytes of segment: builds rarely have less data than this on average, and the table
/// costs 0.1 %.
constexpr std::uint64_t kBytesPerBuild = 64 * 1024;
constexpr std::uint64_t kMinBuilds = 1024;
/// One index slot per this many bytes initially (0.2 %); the table grows as needed.
constexpr std::uint64_t kBytesPerSlot = 4096;
constexpr std::uint64_t kMinSlots = 1024;
constexpr std::uint64_t kMinSegmentBytes = 1024 * 1024;

/// Records for twice as many builds as there are already.
std::uint64_t builds_for(std::uint64_t builds, std::uint64_t bytes) noexcept {
  return std::max({bytes / kBytesPerBuild, kMinBuilds, 2 * builds});
}

std::string temporary_name(const std::string& name) { return name + ".new"; }

/// Whether this object is a segment that was completely built (Segment::install) and only lacks its final name.
Result<bool> complete(const ObjectDirectory& directory, const std::string& name) {
  auto fd = directory.open_own(name, ObjectDirectory::Access::read_only);
  if (!fd && fd.error() == std::errc::no_such_file_or_directory) return false;
  if (!fd) return fd.error();  // it may hold the only copy of data
  Header copy{};
  auto* to = reinterpret_cast<std::byte*>(&copy);
  const ssize_t got = ::pread(fd.value().get(), to, sizeof copy, 0);
  if (got < 0) return last_errno();
  if (got != static_cast<ssize_t>(sizeof copy)) return false;
  return copy.magic == kSegmentMagic && copy.store_id.load(std::memory_order_relaxed) != 0;
}

}  // namespace

Segment::Segment(const ObjectDirectory& directory, std::string name, UniqueFd fd, Mapping mapping)
    : directory_(directory),
      name_(std::move(name)),
      fd_(std::move(fd)),
      mapping_(std::move(mapping)),
      heap_(mapping_.data(), header().heap_offset, header().segment_bytes, fd_.get(),
            stand_in_offset(header().segment_bytes), mapping_.size()),
      index_(mapping_.data(), heap_),
      builds_(mapping_.data()),
      pins_(directory, name_ + ".pin."),
      scan_(mapping_.size()) {}

std::uint64_t Segment::bytes_for(std::uint64_t builds, std::uint64_t entries, std::uint64_t text_bytes) noexcept {
  // After growing, the index takes up to 8/3 slots of 8 bytes per entry, and the old table exists alongside the new
  // one.
  const std::uint64_t per_entry = sizeof(Entry) + kBlockAlign + 48;
  const std::uint64_t heap = entries * per_entry + text_bytes + 2 * kSlabBytes;
  const std::uint64_t table = builds_for(builds, 0) * sizeof(BuildRecord);
  return round_up(kMinSegmentBytes + heap + heap / 8 + table, kPageBytes);
}

Result<std::unique_ptr<Segment>> Segment::create(const ObjectDirectory& directory, const std::string& name,
                                                 std::uint64_t bytes, std::uint64_t known_builds) {
  bytes = round_up(bytes, kPageBytes);
  if (bytes < kMinSegmentBytes || bytes > kMaxSegmentBytes) return Errc::invalid_argument;
  const std::string temporary = temporary_name(name);
  STEPSTASH_TRY(directory.remove(temporary));  // left by a daemon that died here
  UniqueFd fd = STEPSTASH_TRY(directory.create(temporary));

  const auto make = [&]() -> Result<std::unique_ptr<Segment>> {
    const std::uint64_t builds = builds_for(known_builds, bytes);
    const Offset heap_offset = round_up(kPageBytes + builds * sizeof(BuildRecord), kPageBytes);
    if (heap_offset + kMinSegmentBytes / 2 > bytes) return Errc::invalid_argument;
    // The stand-in is as large as the heap, all of which may be written off. It takes address space only.
    const std::uint64_t object_bytes = stand_in_offset(bytes) + (bytes - heap_offset);
    if (::ftruncate(fd.get(), static_cast<off_t>(object_bytes)) != 0) return last_errno();
    STEPSTASH_CRASH_POINT("shm.segment.create.sized");
    if (const int error = ::posix_fallocate(fd.get(), 0, static_cast<off_t>(heap_offset)); error != 0) {
      return std::error_code(error, std::system_category());
    }
    STEPSTASH_CRASH_POINT("shm.segment.create.reserved");
    Mapping mapping = STEPSTASH_TRY(Mapping::map(fd.get(), object_bytes, Mapping::Access::read_write));
    // Zero: every build record is free. Written nevertheless, because only pages that were written count as data
    // (DataMap).
    std::memset(mapping.data(), 0, heap_offset);
    STEPSTASH_CRASH_POINT("shm.segment.create.zeroed");
    auto* head = new (mapping.data()) Header{};
    head->magic = kSegmentMagic;
    head->layout_version = kLayoutVersion;
    head->fingerprint = layout_fingerprint();
    head->segment_bytes = bytes;
    head->object_bytes = object_bytes;
    if (::getrandom(head->segment_id.data(), head->segment_id.size(), 0) !=
        static_cast<ssize_t>(head->segment_id.size())) {
      return last_errno();
    }
    head->builds_capacity = builds;
    head->heap_offset = heap_offset;
    head->header_hash = hash_bytes({reinterpret_cast<const std::byte*>(head), offsetof(Header, header_hash)});
    head->next_id.store(1, std::memory_order_relaxed);  // the object is not shared before it is renamed
    STEPSTASH_CRASH_POINT("shm.segment.create.header");
    std::unique_ptr<Segment> segment(new Segment(directory, name, std::move(fd), std::move(mapping)));
    STEPSTASH_TRY(segment->heap_.format());
    STEPSTASH_TRY(segment->index_.format(std::max(bytes / kBytesPerSlot, kMinSlots)));
    segment->builds_.format();
    (void)segment->keep_slab();
    STEPSTASH_CRASH_POINT("shm.segment.create.complete");
    return segment;
  };
  auto made = make();
  if (!made) (void)directory.remove(temporary);
  return made;
}

Result<std::string> Segment::install(bool keep_former) {
  const std::string temporary = temporary_name(name_);
  std::string aside;
  // If we are killed in between, the next attach() finds no segment, and this one complete.
  if (keep_former) {
    auto kept = directory_.set_aside(name_, name_ + ".damaged");
    if (!kept && kept.error() != std::errc::no_such_file_or_directory) return kept.error();
    if (kept) aside = std::move(kept).value();
  }
  STEPSTASH_TRY(directory_.rename(temporary, name_));
  STEPSTASH_TRY(pins_.adopt(header().segment_id));
  return aside;
}

void Segment::abandon() { (void)directory_.remove(temporary_name(name_)); }

Result<std::unique_ptr<Segment>> Segment::attach(const ObjectDirectory& directory, const std::string& name,
                                                 Recovery& recovery) {
  auto opened = directory.open_own(name, ObjectDirectory::Access::read_write);
  if (!opened && opened.error() == std::errc::no_such_file_or_directory &&
      STEPSTASH_TRY(complete(directory, temporary_name(name)))) {
    STEPSTASH_TRY(directory.rename(temporary_name(name), name));
    opened = directory.open_own(name, ObjectDirectory::Access::read_write);
  }
  UniqueFd fd = STEPSTASH_TRY(std::move(opened));
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) return last_errno();
  const auto bytes = static_cast<std::uint64_t>(status.st_size);
  if (bytes < kMinSegmentBytes || bytes > 2 * kMaxSegmentBytes + kStandInAlign) return Errc::corrupt_segment;
  const DataMap pages = STEPSTASH_TRY(DataMap::of(fd.get()));
  if (!pages.contains(0, sizeof(Header))) return Errc::corrupt_segment;
  Mapping mapping = STEPSTASH_TRY(Mapping::map(fd.get(), bytes, Mapping::Access::read_write));
  STEPSTASH_TRY(check_header(*reinterpret_cast<const Header*>(mapping.data()), bytes));
  std::unique_ptr<Segment> segment(new Segment(directory, name, std::move(fd), std::move(mapping)));
  STEPSTASH_TRY(segment->recover(recovery));
  // Left by a daemon that died while creating another segment.
  (void)directory.remove(temporary_name(name));
  return segment;
}

Result<UniqueFd> Segment::open_for_client() const {
  return directory_.open_own(name_, ObjectDirectory::Access::read_only);
}

}  // namespace stepstash::shm
