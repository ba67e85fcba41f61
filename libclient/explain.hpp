// SPDX-License-Identifier: Apache-2.0
/// What a failed call met, for people: the text behind stepstash_error_message().
///
/// Each thread has its own. Nothing here allocates or throws, so that being out of memory can be explained as well.
#pragma once

#include <string_view>
#include <system_error>

#include "base/errc.hpp"

namespace stepstash::client {

/// Keeps the formatted text as this thread's explanation of `code`, and returns `code`, so that it can stand in a
/// return statement. It is made visible() (base/text.hpp) and cut to 1023 bytes: names, paths and what a daemon sent
/// may stand in it as they are.
std::error_code explain(std::error_code code, const char* format, ...) noexcept __attribute__((format(printf, 2, 3)));

/// Explains EMFILE and ENFILE: whose descriptors they are that ran out, or the daemon would be blamed for ours.
std::error_code explain_lack_of_descriptors(std::error_code code) noexcept;

/// The text kept for `code`, or, where none was kept for this very code, the code's own message. Never null.
const char* explanation(std::error_code code) noexcept;
/// Begins a call: what was kept before explains nothing that follows.
void forget_explanation() noexcept;
/// The text kept last. Never null.
const char* last_explanation() noexcept;

/// `text` between quotes, what is not visible() and quotes escaped, cut to about 80 characters: fit for a message on
/// one line. The buffer is this object's.
class Quoted {
 public:
  explicit Quoted(std::string_view text) noexcept;
  const char* c_str() const noexcept { return text_; }

 private:
  char text_[96];
};

}  // namespace stepstash::client
