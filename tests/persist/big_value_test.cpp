// SPDX-License-Identifier: Apache-2.0
// A value beyond the 10^9 bytes that SQLite allows a BLOB: written, read back and dropped, with one buffer of that
// size. Exit status 77 (skipped) when the disk has no room for it.
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/statvfs.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "base/errc.hpp"
#include "persist/sqlite_store.hpp"
#include "tests/support/temp_dir.hpp"

namespace {

using namespace stepstash;

constexpr std::size_t kBytes = 1'100'000'003;
constexpr std::uint64_t kMiB = 1024 * 1024;

std::byte expected(std::size_t at) noexcept {
  const std::uint64_t word = (at / 8 + 1) * 0x9E3779B97F4A7C15u;
  return static_cast<std::byte>(word >> (at % 8 * 8));
}

void require(bool condition, const char* what, const std::string& detail = {}) {
  if (condition) return;
  std::fprintf(stderr, "failed: %s %s\n", what, detail.c_str());
  std::exit(1);
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

int main() {
  const test::TempDir directory;
  struct ::statvfs disk {};
  require(::statvfs(directory.path().c_str(), &disk) == 0, "statvfs");
  if (disk.f_bavail * disk.f_frsize < 2 * std::uint64_t{kBytes}) {
    std::fprintf(stderr, "skipped: %s has no %zu bytes free\n", directory.path().c_str(), 2 * kBytes);
    return 77;
  }
  void* const mapped = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) {
    std::fprintf(stderr, "skipped: no memory for one value\n");
    return 77;
  }
  const std::span value(static_cast<std::byte*>(mapped), kBytes);
  for (std::size_t at = 0; at < kBytes; ++at) value[at] = expected(at);

  const persist::SqliteStore::Options options{.path = directory.file("db")};
  std::string why;
  auto opened = persist::SqliteStore::open(options, &why);
  require(opened.has_value(), "open", why);
  auto store = std::move(opened).value();
  persist::Batch batch;
  persist::EntryRow row;
  row.id = row.revision = 1;
  row.buildid = 7;
  row.name = "model";
  row.value = value;
  batch.entries.push_back(row);
  auto start = std::chrono::steady_clock::now();
  require(store->commit(batch).has_value(), "commit", store->last_error());
  const double written = seconds_since(start);

  // In a store opened again, into the same memory, emptied.
  store.reset();
  require(::madvise(mapped, kBytes, MADV_DONTNEED) == 0, "madvise");
  store = std::move(persist::SqliteStore::open(options)).value();
  start = std::chrono::steady_clock::now();
  require(store->load_value(1, 1, value).has_value(), "load", store->last_error());
  const double read = seconds_since(start);
  for (std::size_t at = 0; at < kBytes; ++at) require(value[at] == expected(at), "a byte differs");

  struct ::rusage usage {};
  ::getrusage(RUSAGE_SELF, &usage);
  const std::uint64_t beyond = static_cast<std::uint64_t>(usage.ru_maxrss) * 1024 - kBytes;
  std::printf("%zu bytes: written in %.2f s, read in %.2f s, %llu MiB of memory on top of the value\n", kBytes, written,
              read, static_cast<unsigned long long>(beyond / kMiB));
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  require(beyond < 64 * kMiB, "memory on top of the value stays small");
#endif

  batch = {};
  batch.builds.push_back({7, {}, {}, 1});
  start = std::chrono::steady_clock::now();
  require(store->commit(batch).has_value(), "drop", store->last_error());
  const double dropped = seconds_since(start);
  start = std::chrono::steady_clock::now();
  while (true) {
    const auto freed = store->vacuum(8192);
    require(freed.has_value(), "vacuum", store->last_error());
    if (freed.value() == 0) break;
  }
  std::printf("dropped in %.2f s, space given back in %.2f s\n", dropped, seconds_since(start));
  require(store->size_bytes() < 64 * kMiB, "the files have shrunk");
  return 0;
}
