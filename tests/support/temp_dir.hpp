// SPDX-License-Identifier: Apache-2.0
/// A fresh directory for one test, removed with everything in it. One owner; not for sharing between threads.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace stepstash::test {

class TempDir {
 public:
  /// Under $TMPDIR, or /tmp. Throws std::system_error: no test can run without it.
  TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  ~TempDir();

  const std::filesystem::path& path() const noexcept { return path_; }
  /// The path of `name` in this directory.
  std::string file(std::string_view name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

}  // namespace stepstash::test
