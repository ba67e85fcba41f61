// SPDX-License-Identifier: Apache-2.0
/// The error type every folder uses: a value, or the std::error_code that says why there is none.
///
/// Boost.Outcome's std_result: header-only, [[nodiscard]], the same in Boost 1.74 and later.
#pragma once

#include <boost/outcome/std_result.hpp>
#include <boost/outcome/try.hpp>
#include <cerrno>
#include <system_error>

namespace stepstash {

template <class T = void>
using Result = boost::outcome_v2::std_result<T>;

inline auto success() noexcept { return boost::outcome_v2::success(); }

/// The calling thread's errno as an error_code. Call it before anything else can change errno.
inline std::error_code last_errno() noexcept { return {errno, std::system_category()}; }

}  // namespace stepstash

/// Evaluates to the value of a Result, or returns its error from the enclosing function. A GNU statement expression
/// (g++ and clang++ support it); coroutines must write `co_return r.error()` instead.
#define STEPSTASH_TRY(...) BOOST_OUTCOME_TRYX(__VA_ARGS__)
