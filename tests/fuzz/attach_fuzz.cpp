// SPDX-License-Identifier: Apache-2.0
// A segment that was damaged, somehow: attach, salvage and the readers' search over it. Nothing crashes or runs on for
// ever, a refused segment is left as it was, an accepted one is in order, and of what is dirty nothing is served whose
// checksum does not hold. A second attach finds nothing more to complain about.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/errc.hpp"
#include "shm/validate.hpp"
#include "tests/fuzz/check.hpp"
#include "tests/support/segment_fixture.hpp"

using namespace stepstash;
using namespace stepstash::test;
using stepstash::fuzz::check;
using stepstash::fuzz::Input;

namespace {

using shm::Offset;

constexpr std::uint64_t kBytes = 1024 * 1024;  // the smallest segment there is
constexpr BuildId kBuilds[] = {1, 2, 7};

/// A sound segment, and where in it are the things that damage is worth trying on.
struct Image {
  std::vector<std::byte> bytes;
  std::vector<std::pair<std::uint64_t, std::uint64_t>> data;  // the rest is holes
  std::vector<Offset> entries, blocks, slots;
  std::vector<std::pair<BuildId, std::string>> keys;
};

Image image_of(Stash& stash, std::vector<std::pair<BuildId, std::string>> keys) {
  Image image;
  image.keys = std::move(keys);
  const auto& head = stash.segment->header();
  const auto* base = reinterpret_cast<const std::byte*>(&head);
  const Offset table = shm::index_slots_offset(head.index.load());
  for (std::uint64_t i = 0; i < stash.segment->index().slots(); ++i) {
    const shm::Slot slot = reinterpret_cast<const std::atomic<shm::Slot>*>(base + table)[i].load();
    if (slot != shm::kEmptySlot && image.slots.size() < 256) image.slots.push_back(table + i * sizeof(shm::Slot));
  }
  stash.segment->for_each([&](const shm::Entry& entry) {
    if (image.entries.size() < 256) image.entries.push_back(stash.segment->offset_of(entry));
  });
  std::sort(image.entries.begin(), image.entries.end());
  take(shm::Heap::walk(base, head.heap_offset, head.segment_bytes, [&](Offset at, std::uint64_t) {
    if (image.blocks.size() < 256) image.blocks.push_back(at);
  }));
  const UniqueFd fd = take(stash.objects.open_own(Stash::kName, shm::ObjectDirectory::Access::read_only));
  image.bytes.resize(kBytes);
  check(::pread(fd.get(), image.bytes.data(), kBytes, 0) == static_cast<ssize_t>(kBytes), "pread(2)");
  for (off_t at = 0; at < static_cast<off_t>(kBytes);) {
    const off_t begin = ::lseek(fd.get(), at, SEEK_DATA);
    if (begin < 0) break;
    at = ::lseek(fd.get(), begin, SEEK_HOLE);
    image.data.emplace_back(begin, at);
  }
  return image;
}

std::vector<Image> make_images() {
  std::vector<Image> images;
  {
    Stash stash(kBytes);
    stash.set(1, "a", "value a", "source");
    stash.set(1, "b", "", "empty");
    stash.set_pattern(1, "c", 1000);
    stash.set_pattern(2, "a", 300 * 1024);  // on a page boundary
    stash.set(2, "b", "clean", "", shm::EntryState::clean);
    stash.set(2, "c", std::string(5000, 'e'), "evicted", shm::EntryState::clean);
    take(stash.segment->evict(*stash.segment->find(2, "c")));
    stash.set(7, "gone", "dropped");
    stash.set(7, "a", "replaced");
    stash.set(7, "a", "by this");
    stash.segment->erase(*stash.segment->find(7, "gone"));
    for (const BuildId build : kBuilds) take(stash.segment->add_build(build, false));
    stash.segment->find_build(7)->complete_at.store(1'700'000'000);
    stash.segment->find_build(2)->hold.store(shm::Hold::held);
    images.push_back(image_of(
        stash, {{1, "a"}, {1, "b"}, {1, "c"}, {2, "a"}, {2, "b"}, {2, "c"}, {7, "a"}, {7, "gone"}, {1, "none"}}));
  }
  {
    Stash stash(kBytes);  // the index has grown, and its former table is still there
    std::vector<std::pair<BuildId, std::string>> keys;
    for (unsigned i = 0; i < 700; ++i) {
      stash.set(1, "n" + std::to_string(i), std::string(i % 200, 'v'));
      if (i % 50 == 0) keys.emplace_back(1, "n" + std::to_string(i));
    }
    take(stash.segment->add_build(1, false));
    images.push_back(image_of(stash, std::move(keys)));
  }
  {
    Stash stash(kBytes);
    images.push_back(image_of(stash, {{1, "a"}}));
  }
  return images;
}

/// The damaged segment as a file of a directory, and what was done to it.
class Damage {
 public:
  explicit Damage(const ShmDir& dir) : path_(dir.file(Stash::kName)) {}

  /// Input: {image and flags, then patches: {what, where, with what}}. Returns what of the input is left for later.
  const Image& apply(const std::vector<Image>& images, Input& input) {
    const std::uint8_t choice = input.u8();
    const Image& image = images[choice % images.size()];
    fd_.reset(::open(path_.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    check(fd_.get() >= 0 && ::ftruncate(fd_.get(), kBytes) == 0, "open(2)");
    for (const auto& [begin, end] : image.data) {
      check(::pwrite(fd_.get(), image.bytes.data() + begin, end - begin, static_cast<off_t>(begin)) ==
                static_cast<ssize_t>(end - begin),
            "pwrite(2)");
    }
    const unsigned patches = input.u8() % 16;
    for (unsigned i = 0; i < patches && !input.empty(); ++i) patch(image, input);
    if ((choice & 0x80) == 0) mend_header();
    if ((choice & 0x40) == 0) {
      for (const Offset at : image.entries) mend_record(at);
    }
    return image;
  }

  int fd() const { return fd_.get(); }

 private:
  static constexpr std::uint64_t kInteresting[] = {0,
                                                   1,
                                                   2,
                                                   3,
                                                   7,
                                                   63,
                                                   64,
                                                   4095,
                                                   4096,
                                                   kBytes - 88,
                                                   kBytes - 64,
                                                   kBytes,
                                                   kBytes + 64,
                                                   INT32_MAX,
                                                   std::uint64_t{1} << 31,
                                                   UINT32_MAX,
                                                   std::uint64_t{1} << 32,
                                                   std::uint64_t{1} << 47,
                                                   INT64_MAX,
                                                   std::uint64_t{1} << 63,
                                                   UINT64_MAX - 63,
                                                   UINT64_MAX};

  std::uint64_t value(Input& input) {
    const std::uint8_t how = input.u8();
    if (how < 200) return kInteresting[how % std::size(kInteresting)];
    return input.u64();
  }
  void write(std::uint64_t at, const void* bytes, std::size_t count) {
    if (at + count <= kBytes) (void)!::pwrite(fd_.get(), bytes, count, static_cast<off_t>(at));
  }
  Offset one_of(const std::vector<Offset>& places, std::uint8_t which) {
    return places.empty() ? shm::kPageBytes : places[which % places.size()];
  }

  void patch(const Image& image, Input& input) {
    const std::uint8_t what = input.u8();
    switch (what % 10) {
      case 0: {  // anything anywhere
        const std::uint64_t at = input.u32() % kBytes;
        const auto bytes = input.bytes(1 + what / 16);
        write(at, bytes.data(), bytes.size());
        break;
      }
      case 1: {  // a field of the header
        const std::uint64_t v = value(input);
        write(8 * (input.u8() % 16), &v, what & 0x80 ? 4 : 8);
        break;
      }
      case 2: {  // a build record
        const std::uint64_t v = value(input);
        write(shm::kPageBytes + 64 * (input.u8() % 8) + 8 * (what / 32), &v, 8);
        break;
      }
      case 3: {  // a slot
        const std::uint64_t v = value(input);
        write(one_of(image.slots, input.u8()), &v, 8);
        break;
      }
      case 4: {  // a slot is another's
        const Offset from = one_of(image.slots, input.u8());
        write(one_of(image.slots, input.u8()), image.bytes.data() + from, 8);
        break;
      }
      case 5: {  // a block's header
        const std::uint64_t v = value(input);
        write(one_of(image.blocks, input.u8()) + (what & 0x40 ? 0 : 8), &v, what & 0x80 ? 4 : 8);
        break;
      }
      case 6: {  // a field of an entry's record, of any width
        const std::uint64_t v = value(input);
        const std::size_t width = std::size_t{1} << (what >> 6);
        write(one_of(image.entries, input.u8()) + input.u8() % 96, &v, width);
        break;
      }
      case 7: {  // an entry is another's
        const Offset from = one_of(image.entries, input.u8());
        write(one_of(image.entries, input.u8()), image.bytes.data() + from, 88);
        break;
      }
      case 8: {  // pages that are gone
        const std::uint64_t page = input.u16() % (kBytes / 4096);
        const int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
        (void)::fallocate(fd_.get(), mode, static_cast<off_t>(page * 4096), 4096 * (1 + what / 16));
        break;
      }
      default: {  // cut off, or longer
        const std::uint64_t length = (what & 0x80) != 0 ? input.u32() % (2 * kBytes) : (input.u8() % 513) * 4096u;
        (void)!::ftruncate(fd_.get(), static_cast<off_t>(length));
        break;
      }
    }
  }

  void mend_header() {
    alignas(64) std::array<std::byte, sizeof(shm::Header)> bytes{};
    if (::pread(fd_.get(), bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) return;
    const std::uint64_t hash = shm::hash_bytes(std::span(bytes).first(offsetof(shm::Header, header_hash)));
    write(offsetof(shm::Header, header_hash), &hash, sizeof hash);
  }
  void mend_record(Offset at) {
    alignas(64) std::array<std::byte, 4096> bytes{};
    if (::pread(fd_.get(), bytes.data(), bytes.size(), static_cast<off_t>(at)) < 1024) return;
    const auto& entry = *reinterpret_cast<const shm::Entry*>(bytes.data());
    if (sizeof entry + entry.name_bytes + entry.source_bytes > bytes.size()) return;
    const std::uint64_t hash = shm::meta_hash(entry);
    write(at + offsetof(shm::Entry, meta_hash), &hash, sizeof hash);
  }

  std::string path_;
  UniqueFd fd_;
};

/// Behind the bytes nothing is mapped, so that reading past their end is seen.
class Guarded {
 public:
  Guarded(int fd, std::size_t bytes) : size_(bytes) {
    base_ = ::mmap(nullptr, bytes + 2 * kBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(base_ != MAP_FAILED, "mmap(2)");
    check(::mmap(base_, bytes, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0) == base_, "mmap(2)");
  }
  ~Guarded() { ::munmap(base_, size_ + 2 * kBytes); }
  const std::byte* data() const { return static_cast<const std::byte*>(base_); }

 private:
  void* base_;
  std::size_t size_;
};

/// Both ends, and something of each page in between.
std::uint64_t touch(std::span<const std::byte> bytes) {
  if (bytes.empty()) return 0;
  const std::byte* const begin = bytes.data();
  std::uint64_t sum = std::to_integer<std::uint64_t>(begin[bytes.size() - 1]);
  for (std::size_t i = 0; i < bytes.size(); i += shm::kPageBytes) sum += std::to_integer<std::uint64_t>(begin[i]);
  return sum;
}

/// What a client would do with it as it is: it trusts nothing, but reads whatever is inside the mapping.
void search(int fd, const Image& image, const std::vector<std::pair<BuildId, std::string>>& more = {}) {
  struct stat status {};
  check(::fstat(fd, &status) == 0, "fstat(2)");
  const auto bytes = static_cast<std::uint64_t>(status.st_size);
  if (bytes < 2 * shm::kPageBytes) return;
  const Guarded mapping(fd, bytes);
  if (!shm::check_header(*reinterpret_cast<const shm::Header*>(mapping.data()), bytes)) return;
  alignas(64) shm::PinPage page{};
  static volatile std::uint64_t sink = 0;
  const auto look = [&](BuildId build, std::string_view name) {
    shm::Pinned view;
    const shm::Found found = shm::find_entry(mapping.data(), bytes, page, shm::ReaderFence::own, build, name, view);
    if (found != shm::Found::resident && found != shm::Found::evicted) return;
    check(view.entry->buildid == build && view.name() == name, "what is found is what was looked for");
    sink = sink + touch(view.value()) + touch(std::as_bytes(std::span(view.source())));
    view.release();
  };
  for (const auto& [build, name] : image.keys) look(build, name);
  for (const auto& [build, name] : more) look(build, name);
  for (const shm::PinLine& line : page.lines) {
    for (const auto& pin : line.pins) check(pin.load() == 0, "no pin is left behind");
  }
}

void salvage(const shm::ObjectDirectory& objects) {
  const auto entry = [](const shm::Entry& found) {
    check(shm::meta_hash(found) == found.meta_hash, "what is saved has a sound record");
    check(found.value_offset == 0 || shm::hash_bytes(shm::entry_value(found)) == found.value_hash,
          "what is saved has a sound value");
    check(valid_build(found.buildid), "what is saved has a build that can be");
  };
  const auto build = [](const shm::BuildRecord& record) {
    check(valid_build(record.buildid.load()), "a build that is saved can be");
  };
  const auto done = shm::Segment::salvage(objects, Stash::kName, entry, build);
  check(done.has_value(), "salvage reads what it can");
}

struct Accepted {
  std::uint64_t entries = 0;
  std::vector<std::pair<BuildId, std::string>> keys;
};

Accepted in_order(const shm::Segment& segment) {
  const std::string wrong = disorder(segment);
  check(wrong.empty(), "what was attached is in order", wrong);
  Accepted accepted;
  segment.for_each([&](const shm::Entry& entry) {
    ++accepted.entries;
    accepted.keys.emplace_back(entry.buildid, shm::entry_name(entry));
    check(valid_build(entry.buildid) && valid_text(shm::entry_name(entry)) && valid_text(shm::entry_source(entry)),
          "an entry that is served is one that could be set");
    const bool dirty = entry.state.load() == shm::EntryState::dirty;
    check(dirty || entry.state.load() == shm::EntryState::clean, "a value is either to be written or not");
    // Dirty and evicted: a value that was lost (L10).
    check(!dirty || entry.value_offset == 0 || shm::hash_bytes(shm::entry_value(entry)) == entry.value_hash,
          "a dirty value that is served matches its checksum");
    check(entry.id < segment.header().next_id.load() && entry.revision < segment.header().next_id.load(),
          "no id is given twice");
  });
  return accepted;
}

/// What a daemon does all day.
void serve(Stash& stash, Input& input) {
  for (unsigned i = 0; i < 12 && !input.empty(); ++i) {
    const std::uint8_t what = input.u8();
    const BuildId build = kBuilds[(what >> 4) % std::size(kBuilds)];
    const std::string name(1, static_cast<char>('a' + what / 64));
    const shm::Entry* entry = stash.segment->find(build, name);
    switch (what % 8) {
      case 0:
      case 1:
        (void)try_set_pattern(*stash.segment, build, name, (what & 8) != 0 ? 300 : 40'000);
        break;
      case 2:
        if (entry != nullptr && entry->value_offset != 0) (void)stash.segment->evict(*entry);
        break;
      case 3:
        if (entry != nullptr) stash.segment->erase(*entry);
        break;
      case 4:
        if (stash.segment->add_build(build, true)) drop(*stash.segment, build);
        break;
      case 5:
        (void)stash.segment->reclaim();
        break;
      case 6:
        stash.segment->heap().set_now(std::chrono::seconds(i + 1));
        (void)stash.segment->heap().punch(std::chrono::hours(1), kBytes);
        break;
      default:
        stash.restart();
        break;
    }
  }
}

/// Half of the inputs end with the first attach, which is what costs least.
bool mode_serves(const std::uint8_t* data, std::size_t size) { return size > 0 && (data[0] & 0x20) == 0; }

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::vector<Image> images = make_images();
  static Stash stash(kBytes);  // its directory serves all inputs
  static Damage damage(stash.dir);
  stash.segment.reset();
  ::unlink(stash.dir.file(Stash::kName).c_str());
  Input input(data, size);
  const Image& image = damage.apply(images, input);

  search(damage.fd(), image);
  salvage(stash.objects);
  struct stat before {};
  check(::fstat(damage.fd(), &before) == 0, "fstat(2)");
  std::vector<std::byte> as_it_was(static_cast<std::size_t>(before.st_size));
  check(::pread(damage.fd(), as_it_was.data(), as_it_was.size(), 0) == before.st_size, "pread(2)");

  stash.recovery = {};
  auto attached = shm::Segment::attach(stash.objects, Stash::kName, stash.recovery);
  if (!attached) {
    check(attached.error() == Errc::corrupt_segment || attached.error() == Errc::format_mismatch,
          "a damaged segment is called so", attached.error().message());
    std::vector<std::byte> as_it_is(as_it_was.size());
    check(::pread(damage.fd(), as_it_is.data(), as_it_is.size(), 0) == before.st_size &&
              (as_it_is.empty() || std::memcmp(as_it_is.data(), as_it_was.data(), as_it_is.size()) == 0),
          "a segment that is refused stays as it was");
    return 0;
  }
  stash.segment = std::move(attached).value();
  const Accepted first = in_order(*stash.segment);
  if (!mode_serves(data, size)) return 0;
  search(damage.fd(), image, first.keys);
  // As the daemon does once it has asked the database for what was taken out (L3).
  stash.segment->header().commit_count.store(0);
  stash.restart();
  check(stash.recovery.set_aside.empty(), "a second attach finds nothing more",
        stash.recovery.set_aside.empty() ? "" : stash.recovery.set_aside.front());
  check(in_order(*stash.segment).entries == first.entries, "a second attach finds the same entries");
  serve(stash, input);
  (void)in_order(*stash.segment);
  stash.restart();
  check(stash.recovery.set_aside.empty(), "what a daemon wrote is sound",
        stash.recovery.set_aside.empty() ? "" : stash.recovery.set_aside.front());
  (void)in_order(*stash.segment);
  return 0;
}
