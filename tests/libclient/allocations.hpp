// SPDX-License-Identifier: Apache-2.0
/// How often this process has allocated with new so far: for code that promises not to.
#pragma once

#include <cstddef>

namespace stepstash::test {

std::size_t allocations() noexcept;

}  // namespace stepstash::test
