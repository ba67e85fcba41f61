// SPDX-License-Identifier: Apache-2.0
/// Explains a failed call: the text behind stepstash_error_message().
///
/// Each thread has its own. Nothing here allocates or throws, so that out-of-memory errors can be explained as well.
#pragma once

#include <string_view>
#include <system_error>

#include "base/errc.hpp"

namespace stepstash::client {

/// Keeps the formatted text as this thread's explanation of `code` and returns `code`, for use in a return statement.
/// Makes the text visible() (base/text.hpp) and truncates it to 1023 bytes: names, paths and what a daemon sent can be
/// passed unescaped.
std::error_code explain(std::error_code code, const char* format, ...) noexcept __attribute__((format(printf, 2, 3)));

/// Explains EMFILE and ENFILE: it is this process or this system that ran out of descriptors, not the daemon.
std::error_code explain_lack_of_descriptors(std::error_code code) noexcept;

/// The text kept for `code`, or the code's own message if none was kept for it. Never null.
const char* explanation(std::error_code code) noexcept;
/// Starts a call: earlier explanations no longer apply.
void forget_explanation() noexcept;
/// The last text that was kept. Never null.
const char* last_explanation() noexcept;

/// `text` in quotes, with quotes and everything not visible() escaped, truncated to about 80 characters: fit for a
/// one-line message. The object owns the buffer.
class Quoted {
 public:
  explicit Quoted(std::string_view text) noexcept;
  const char* c_str() const noexcept { return text_; }

 private:
  char text_[96];
};

}  // namespace stepstash::client
