// SPDX-License-Identifier: Apache-2.0
#include "daemon/explain.hpp"

#include <fmt/format.h>

#include "base/errc.hpp"

namespace stepstash::daemon {
namespace {

constexpr const char* kEnlargeTmpfs = "enlarge it (mount -o remount,size=; for a container --shm-size)";

}  // namespace

std::string explain(std::error_code error, std::uint64_t length, const shm::Segment& segment, const Room& room,
                    const Flusher& flusher, const Database& database) {
  const shm::Heap& heap = segment.heap();
  const std::string& obstacle = database.reason();
  const shm::Heap::FileSystem& tmpfs = room.tmpfs();
  std::string text = error.message();
  if (error == Errc::too_large && room.max_value_bytes() < segment.max_value_bytes()) {
    text += fmt::format(": {} bytes, and the tmpfs of {}, of {} bytes, holds values up to {}; {}", length,
                        segment.directory(), tmpfs.total, room.max_value_bytes(), kEnlargeTmpfs);
  } else if (error == Errc::too_large) {
    text += fmt::format(": {} bytes, and a segment of {} bytes holds values up to {}; enlarge it (--segment-size)",
                        length, segment.bytes(), segment.max_value_bytes());
  } else if (error == Errc::segment_full || error == Errc::dirty_limit) {
    text += fmt::format(
        ": {} bytes wanted, {} of {} free in runs of at most {}; {} bytes in {} values wait for the database (at most "
        "{}), {} bytes belong to sets under way",
        length, heap.free_bytes(), heap.capacity(), heap.largest_free(), flusher.dirty_bytes(), flusher.dirty_values(),
        room.limits().max_dirty, room.staged_bytes());
    if (segment.retired() > 0) {
      text += fmt::format(", {} bytes are held by readers, {} of them written off", segment.retired_bytes(),
                          heap.written_off());
    }
    if (!obstacle.empty()) text += fmt::format("; nothing is written to the database: {}", obstacle);
    text += "; prune, enlarge the segment (--segment-size), or try again later";
  } else if (error == Errc::not_durable) {
    text = obstacle.empty() ? "the database has not committed it before the deadline" : obstacle;
    text += "; what was set stays set, and is written when the database takes it";
  } else if (error == Errc::invalid_argument) {
    text += ": a build is 1 .. 2^63-1; a name or source is UTF-8 of 0..256 characters without NUL";
  } else if (error == Errc::too_many) {
    text += ": this key and others go to the same place in the index, and it has no slot left there; try again";
  } else if (error == Errc::too_many_builds) {
    text += fmt::format(": {} of {} builds; finish and prune some, or enlarge the segment", segment.builds(),
                        segment.builds_capacity());
  } else if (error == std::errc::no_space_on_device) {
    text += fmt::format(
        ": {} bytes wanted, and of the {} bytes of the tmpfs of {} {} are free and {} are promised to sets under way; "
        "the "
        "segment has {} of its {}; {} bytes in {} values wait for the database",
        length, tmpfs.total, segment.directory(), tmpfs.free, room.promised_pages(), heap.backed_bytes(),
        segment.bytes(), flusher.dirty_bytes(), flusher.dirty_values());
    if (segment.retired() > 0) text += fmt::format(", {} bytes are held by readers", segment.retired_bytes());
    if (!obstacle.empty()) text += fmt::format("; nothing is written to the database: {}", obstacle);
    text += fmt::format("; prune, try again later, or {}", kEnlargeTmpfs);
  }
  return text;
}

}  // namespace stepstash::daemon
