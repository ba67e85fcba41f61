// SPDX-License-Identifier: Apache-2.0
// A client that writes what it likes into its pin page, of any length. Others' values stay what they are, the heap's
// books balance to the byte, and when the client is gone everything that it held is freed, also after a restart.
#include <fcntl.h>
#include <unistd.h>

#include <memory>
#include <vector>

#include "shm/validate.hpp"
#include "tests/fuzz/check.hpp"
#include "tests/support/segment_fixture.hpp"

using namespace stepstash;
using namespace stepstash::test;
using stepstash::fuzz::check;

namespace {

void in_order(const shm::Segment& segment) {
  const std::string wrong = disorder(segment);
  check(wrong.empty(), "the segment is in order", wrong);
}

std::string name_of(unsigned i) { return "value " + std::to_string(i); }

/// Input: {flags, length of the page's object: u16, what stands in it...}.
void one_input(Stash& stash, const std::uint8_t* data, std::size_t size) {
  fuzz::Input input(data, size);
  const std::uint8_t flags = input.u8();
  const std::uint16_t length = input.u16();
  const std::span<const std::uint8_t> content = input.rest();

  auto liar = take(stash.segment->pins().create(stash.segment->header().segment_id, 1, 1));
  check(::pwrite(liar.fd.get(), content.data(), content.size(), 0) == static_cast<ssize_t>(content.size()),
        "pwrite(2)");
  if ((flags & 1) != 0) check(::ftruncate(liar.fd.get(), length) == 0, "ftruncate(2)");

  const shm::Reader honest = stash.reader();
  shm::Pinned view;
  check(honest.find(1, name_of(0), view) == shm::Found::resident, "an honest reader finds its value");
  const std::uint64_t length_of_view = view.value().size();

  for (unsigned round = 0; round < 2; ++round) {
    stash.set_pattern(1, name_of(0), 3000);  // the viewed value is replaced
    stash.set_pattern(2, name_of(round), 20'000 + 64u * flags);
    const shm::Entry* clean = stash.segment->find(1, name_of(1));
    if (clean != nullptr && clean->value_offset != 0) {
      stash.segment->mark(*clean, shm::EntryState::clean);
      (void)stash.segment->evict(*clean);
    }
    stash.set_pattern(1, name_of(1), 500);
    (void)stash.segment->reclaim();
    std::uint64_t hints = 0;
    stash.segment->pins().recent([&](shm::Offset) { ++hints; });
    check(hints <= 2 * shm::kPinLines, "a page has so many hints and no more");
    check(stash.segment->pins().views().most <= shm::kPinsPerPage, "a client holds so many blocks and no more");
    in_order(*stash.segment);
    check(view.value().size() == length_of_view && is_pattern(view.value(), view.entry->id, view.entry->revision),
          "an honest reader's view stays");
    if ((flags & 2) != 0) {
      (void)stash.segment->pins().reap();
      in_order(*stash.segment);
    }
    if ((flags & 4) != 0) {
      stash.restart();
      check(stash.recovery.set_aside.empty(), "a page damages nothing in the segment");
      in_order(*stash.segment);
      check(is_pattern(view.value(), view.entry->id, view.entry->revision), "a view stays across a restart");
    }
  }
  // A reader with this very page: its own harm, but never a crash, and its search comes to an end.
  alignas(64) shm::PinPage page{};
  std::memcpy(static_cast<void*>(&page), content.data(), std::min(content.size(), sizeof page));
  const auto* base = reinterpret_cast<const std::byte*>(&stash.segment->header());
  shm::Pinned own;
  for (unsigned i = 0; i < 4; ++i) {
    const shm::Found found =
        shm::find_entry(base, stash.segment->mapped_bytes(), page, shm::ReaderFence::own, 1, name_of(i), own);
    check(found != shm::Found::corrupt, "a page does not make a segment look damaged");
  }

  view.release();
  liar.fd.reset();
  drop(*stash.segment, 1);
  drop(*stash.segment, 2);
  for (const BuildId build : {1, 2}) stash.segment->find_build(build)->drop_upto.store(0);
  (void)stash.segment->pins().reap();
  (void)stash.segment->reclaim();
  check(stash.segment->retired() == 0, "what a dead client held is freed");
  check(stash.segment->index().entries() == 0, "everything was dropped");
  in_order(*stash.segment);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size > 3 + 2 * shm::kPageBytes) return -1;
  static auto stash = std::make_unique<Stash>();
  static std::uint64_t executions = 0;
  if (++executions % 4096 == 0) stash = std::make_unique<Stash>();  // the number of a page grows
  for (unsigned i = 0; i < 4; ++i) stash->set_pattern(1, name_of(i), 700 * i);
  one_input(*stash, data, size);
  return 0;
}
