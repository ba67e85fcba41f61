// SPDX-License-Identifier: Apache-2.0
/// Points at which a test can kill the process: one after every step that changes the segment, the database or anything
/// that another process can see. docs/crash-matrix.md lists them and what was found at each.
///
///   STEPSTASH_CRASH_POINT("shm.heap.split.second_header");
///
/// A name is folder.thing.step, says what has just been done (or, with `due`, is about to be), and occurs once in the
/// source. Only programs compiled with STEPSTASH_CRASH_POINTS have the points (tests/crash_matrix). Everywhere else
/// they vanish completely. That takes a macro: with an empty inline function, GCC 12 leaves some of the argument
/// strings in the binary.
///
/// Threads: any, at any time.
#pragma once

#ifdef STEPSTASH_CRASH_POINTS
namespace stepstash {
void crash_point(const char* name) noexcept;  // tests/crash_matrix/crash_point.cpp
}
#define STEPSTASH_CRASH_POINT(name) ::stepstash::crash_point(name)
#else
#define STEPSTASH_CRASH_POINT(name) static_cast<void>(0)
#endif
