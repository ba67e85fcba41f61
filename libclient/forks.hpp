// SPDX-License-Identifier: Apache-2.0
/// What fork(3) does to the clients of this process: a child that never uses them must not keep what is their parent's.
///
/// Handlers of pthread_atfork(3) do it. In the parent, before: segments in which views are open are given to the child,
/// others and all pin pages are not. In the child, after: the parent's sockets are closed. A child made behind the C
/// library's back (clone(2) without CLONE_VM, _Fork(3)) gets no segment and no pin page either, but keeps the sockets
/// until it uses the client, calls exec or ends. vfork(2) and posix_spawn(3) copy nothing.
#pragma once

#include <atomic>

namespace stepstash::client {

class Client;

/// One client's place in the list of all. Never freed: another thread may be forking and walk the list. Used again.
struct Listed {
  std::atomic<Client*> client;
  Listed* next;
};

/// Enters a client. Its before_fork(), after_fork_in_parent() and after_fork_in_child() are called from now on, the
/// first two by whichever thread forks. Throws std::bad_alloc.
Listed* enlist(Client* client);
/// Only with a NoFork in hand, kept until the client is gone.
void delist(Listed* place) noexcept;

/// While one lives, no fork(3) of another thread takes its picture of the process: for the steps between a descriptor
/// or a mapping that is new and the table that says so. They must be short, for the fork waits, a tenth of a second at
/// most. A fork that is under way is waited for. May be nested.
class NoFork {
 public:
  NoFork() noexcept;
  ~NoFork();
  NoFork(const NoFork&) = delete;
  NoFork& operator=(const NoFork&) = delete;
};

}  // namespace stepstash::client
