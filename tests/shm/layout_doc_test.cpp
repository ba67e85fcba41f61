// SPDX-License-Identifier: Apache-2.0
// docs/segment-layout.md shows a small segment, byte by byte. Here it is created again and compared with the page, so
// that the two cannot part. STEPSTASH_PRINT_EXAMPLE=1 prints what the page should show.
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <sstream>

#include "shm/hash.hpp"
#include "shm/validate.hpp"
#include "tests/support/segment_fixture.hpp"

namespace stepstash::test {
namespace {

using shm::Offset;

std::string hex(std::uint64_t value, int digits) {
  std::ostringstream out;
  out << "0x" << std::hex << std::setw(digits) << std::setfill('0') << value;
  return out.str();
}

/// Lines of `offset  bytes  field  value`.
class Dump {
 public:
  explicit Dump(const shm::Segment& segment) : base_(reinterpret_cast<const std::byte*>(&segment.header())) {}
  void title(const std::string& text) { out_ << text << "\n"; }
  void field(const void* at, std::size_t bytes, const std::string& name, const std::string& value) {
    const auto offset = static_cast<Offset>(static_cast<const std::byte*>(at) - base_);
    out_ << "  " << std::setw(7) << offset << std::setw(7) << bytes << "  " << std::left << std::setw(16) << name
         << value << std::right << "\n";
  }
  template <class T>
  void number(const T& at, const std::string& name, const std::string& remark = "") {
    field(&at, sizeof(at), name, std::to_string(at) + (remark.empty() ? "" : "  " + remark));
  }
  template <class T>
  void word(const T& at, const std::string& name, const std::string& remark = "") {
    field(&at, sizeof(at), name, hex(at, 2 * sizeof(at)) + (remark.empty() ? "" : "  " + remark));
  }
  std::string text() const { return out_.str(); }

 private:
  const std::byte* base_;
  std::ostringstream out_;
};

/// The secret of the page's table.
Result<shm::HashSecret> known_secret() noexcept {
  return shm::HashSecret{{0x0706050403020100, 0x0F0E0D0C0B0A0908, 0x1716151413121110, 0x1F1E1D1C1B1A1918}};
}

std::string example() {
  shm::IndexWriter::secret_source = known_secret;
  Stash stash(1024 * 1024);
  shm::IndexWriter::secret_source = shm::draw_secret;
  shm::Segment& segment = *stash.segment;
  shm::BuildRecord& build = *take(segment.add_build(7, false));
  stash.set(7, "report", "2 tests failed\n", "step 4");
  stash.set(7, "report", "all tests passed\n", "step 4, retried");
  build.complete_at.store(1700000000);

  const shm::Header& head = segment.header();
  const auto* base = reinterpret_cast<const std::byte*>(&head);
  Dump dump(segment);
  dump.title(" offset  bytes  field           value\nheader");
  dump.word(head.magic, "magic", "\"tepstash\"");
  dump.number(head.layout_version, "layout_version");
  dump.word(head.fingerprint, "fingerprint");
  dump.number(head.segment_bytes, "segment_bytes");
  dump.field(&head.segment_id, sizeof(head.segment_id), "segment_id", "(16 random bytes)");
  dump.number(head.builds_capacity, "builds_capacity");
  dump.number(head.heap_offset, "heap_offset");
  dump.number(head.object_bytes, "object_bytes");
  dump.field(&head.header_hash, sizeof(head.header_hash), "header_hash", "(XXH3-64 of bytes 0 to 119)");
  const shm::IndexWord word = head.index.load();
  dump.word(head.index, "index",
            "version " + std::to_string(shm::index_version(word)) + ", 2^" +
                std::to_string(shm::index_log2_slots(word)) + " slots from " +
                std::to_string(shm::index_slots_offset(word)));
  dump.number(head.deletions, "deletions");
  dump.number(head.deletion_epoch, "deletion_epoch");
  dump.number(head.deletion_upto, "deletion_upto");
  dump.number(head.next_id, "next_id");
  dump.number(head.id_limit, "id_limit");
  dump.number(head.store_id, "store_id");
  dump.number(head.commit_count, "commit_count");

  dump.title("build record 0");
  dump.number(build.buildid, "buildid");
  dump.number(build.complete_at, "complete_at");
  dump.number(build.drop_upto, "drop_upto");
  dump.field(&build.hold, sizeof(build.hold), "hold", std::to_string(static_cast<unsigned>(build.hold.load())));
  dump.number(build.facts_loaded, "facts_loaded");
  dump.number(build.completed_ns, "completed_ns");
  dump.number(build.deletion, "deletion");

  const shm::TableHeader& table = shm::table_header(base, shm::index_slots_offset(word));
  dump.title("table");
  dump.word(table.secret[0], "secret", "(32 random bytes; here 00 01 02 ... 1f)");
  for (const auto* more = table.secret + 1; more != std::end(table.secret); ++more) dump.word(*more, "");
  dump.word(table.check, "check", "(XXH3-64 of the secret)");
  const std::uint64_t hash = shm::key_hash(secret_of(segment), 7, shm::entry_name(*segment.find(7, "report")));
  dump.title("index: key_hash(7, \"report\") is " + hex(hash, 16) + ", slot " +
             std::to_string(hash & (segment.index().slots() - 1)));
  const auto* slots = reinterpret_cast<const std::atomic<shm::Slot>*>(base + shm::index_slots_offset(word));
  for (std::uint64_t i = 0; i < segment.index().slots(); ++i) {
    const shm::Slot slot = slots[i].load();
    if (slot == shm::kEmptySlot) continue;
    dump.word(slots[i], "slot " + std::to_string(i),
              "fingerprint " + hex(slot >> 48, 4) + ", block " + std::to_string(shm::slot_offset(slot)));
  }

  dump.title("blocks");
  take(shm::Heap::walk(base, head.heap_offset, head.segment_bytes, [&](Offset at, std::uint64_t size) {
    const auto& block = *reinterpret_cast<const shm::BlockHeader*>(base + at);
    const bool slab = size == segment.slab_bytes();
    std::string kind = slab ? "free by its header; in use, as the slab for records" : "free";
    if (block.kind == shm::BlockKind::index) kind = "index";
    if (block.kind == shm::BlockKind::entry) {
      const auto& entry = *reinterpret_cast<const shm::Entry*>(base + at);
      kind = "entry, revision " + std::to_string(entry.revision);
      if (segment.offset_of(*segment.find(7, "report")) != at) kind += ", retired: no slot leads to it";
    }
    dump.field(&block, static_cast<std::size_t>(size), "", kind);
  }));

  const shm::Entry& entry = *segment.find(7, "report");
  dump.title("the entry");
  dump.word(entry.block.magic, "block.magic", "\"sBlk\"");
  dump.field(&entry.block.kind, sizeof(entry.block.kind), "block.kind", "1");
  dump.number(entry.block.size, "block.size");
  dump.number(entry.id, "id", "of the first set");
  dump.number(entry.buildid, "buildid");
  dump.number(entry.revision, "revision", "of the second");
  dump.number(entry.length, "length");
  dump.word(entry.value_hash, "value_hash");
  dump.word(entry.meta_hash, "meta_hash");
  dump.number(entry.set_at_ns, "set_at_ns");
  dump.number(entry.value_offset, "value_offset",
              "the value is at " + std::to_string(segment.offset_of(entry) + entry.value_offset));
  dump.number(entry.name_bytes, "name_bytes");
  dump.number(entry.source_bytes, "source_bytes");
  dump.field(&entry.state, sizeof(entry.state), "state", "1  dirty");
  dump.number(entry.record, "record", "its build's");
  dump.field(shm::entry_name(entry).data(), entry.name_bytes, "name", std::string(shm::entry_name(entry)));
  dump.field(shm::entry_source(entry).data(), entry.source_bytes, "source", std::string(shm::entry_source(entry)));
  std::string value = text_of(shm::entry_value(entry));
  value.pop_back();
  dump.field(shm::entry_value(entry).data(), shm::entry_value(entry).size(), "value", value + "\\n");
  return dump.text();
}

std::string page() {
  std::ifstream file(STEPSTASH_SEGMENT_LAYOUT_MD);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

BOOST_AUTO_TEST_SUITE(layout_doc)

BOOST_AUTO_TEST_CASE(the_worked_example_on_the_page_is_what_a_segment_really_holds) {
  const std::string made = example();
  if (std::getenv("STEPSTASH_PRINT_EXAMPLE") != nullptr) std::cout << made;
  BOOST_TEST((page().find("```text\n" + made + "```") != std::string::npos), "docs/segment-layout.md should show\n"
                                                                                 << made);
}

BOOST_AUTO_TEST_CASE(every_invariant_that_the_layout_cites_has_its_paragraph_on_the_page) {
  const std::string text = page();
  for (const char* name :
       {"L1", "L2", "L3", "L4", "L5", "L6", "L7", "L8", "L9", "L10", "L11", "L12", "P1", "P2", "P3", "P4"}) {
    BOOST_TEST((text.find("**" + std::string(name) + "** ") != std::string::npos), name);
  }
}

/// Byte order is part of the format: these are the first bytes of every segment and of every pin page.
BOOST_AUTO_TEST_CASE(the_magic_numbers_read_as_text_in_memory) {
  const auto text = [](auto number) { return std::string(reinterpret_cast<const char*>(&number), sizeof(number)); };
  BOOST_TEST(text(shm::kSegmentMagic) == "tepstash");
  BOOST_TEST(text(shm::kPinPageMagic) == "teps_pin");
  BOOST_TEST(text(shm::kBlockMagic) == "sBlk");
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace stepstash::test
