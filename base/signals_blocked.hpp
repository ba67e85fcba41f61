// SPDX-License-Identifier: Apache-2.0
/// Keeps signals away from a thread: for good from those that are not to handle any, or for a few calls.
#pragma once

#include <signal.h>

namespace stepstash {

/// While it lives, this thread blocks all signals, and so do, for good, the threads that it creates meanwhile.
class SignalsBlocked {
 public:
  SignalsBlocked() noexcept {
    sigset_t all;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;
  ~SignalsBlocked() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_;
};

}  // namespace stepstash
