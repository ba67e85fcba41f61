// SPDX-License-Identifier: Apache-2.0
/// The fence between a reader's claim of a pin and its second look at the slot, and who executes it.
///
/// A reader stores its pin and loads the slot; the daemon stores the slot and loads the pins. Each side needs a full
/// fence in between. The daemon can execute the reader's as well: membarrier(2) makes every processor that runs a
/// thread of a registered process pass a full fence while the call runs (asymmetric fence; D. Dice, H. Huang, M. Yang,
/// "Asymmetric Dekker Synchronization", 2001). A get is then spared its only locked instruction, 5 of its 15 ns; a scan
/// of the pins costs one call more, less than a microsecond.
///
/// ThreadSanitizer does not know of membarrier(2): there every reader fences for itself.
#pragma once

#include "base/result.hpp"
#include "shm/layout.hpp"

namespace stepstash::shm {

/// Whether fence_readers() works here. Asks the kernel once.
bool can_fence_readers() noexcept;

/// A full fence in this thread and in every running thread of the processes that have called register_reader(). Errors:
/// those of membarrier(2), when the kernel or a system call filter has not got it.
Result<> fence_readers() noexcept;

/// A full fence in every thread of this process, registered or not. Best effort: nothing where the kernel has not got
/// it.
void fence_all_threads() noexcept;

/// Registers this process with the kernel; again: no harm. False if that is impossible.
bool register_reader() noexcept;
/// Whether register_reader() takes microseconds: while the process has one thread, or has been registered. With several
/// threads the kernel takes ten milliseconds or more, which is what two million gets save.
bool registers_fast() noexcept;

}  // namespace stepstash::shm
