// SPDX-License-Identifier: Apache-2.0
/// Which lines of a pin page belong to which thread of this process.
///
/// A thread claims pins in lines of its own, so that a claim needs no exchange: nobody else stores anything but 0
/// there. The numbers are the process's, the same for all its clients' pages. A thread gets a line when it claims its
/// first pin, more when its lines are full, and keeps them until it ends. The lines from kOwnLines on are everybody's:
/// pins there are claimed by an exchange, by threads that found no line of their own free. So one thread can hold all
/// pins of a page, and any number of threads some.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "shm/layout.hpp"

namespace stepstash::shm {

/// Lines that can belong to threads. The rest is enough for one view of each of 105 further threads.
inline constexpr std::size_t kOwnLines = 48;

struct ThreadLines {
  static constexpr std::uint32_t kNone = kPinLines;

  std::uint64_t mine = 0;         ///< a bit for each line
  std::uint32_t current = kNone;  ///< one of them, tried first

  /// One more line for this thread, as its current one; false if none is left.
  bool take_another() noexcept;
  /// In a child of fork(2), which has none of the parent's other threads.
  static void forked() noexcept;
};

/// The calling thread's. Initial-exec: a load without a call, also in a library that was loaded late, as 16 bytes fit
/// into what glibc keeps for that.
extern constinit thread_local ThreadLines thread_lines [[gnu::tls_model("initial-exec")]];

}  // namespace stepstash::shm
