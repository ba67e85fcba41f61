// SPDX-License-Identifier: Apache-2.0
/// Handles fork(3) for the clients of this process: a child that never uses them must not keep its parent's resources.
///
/// The handlers of pthread_atfork(3) do it. In the parent, before the fork: the child inherits segments with open
/// views, but no other segments and no pin pages. In the child, after the fork: the parent's sockets are closed. A
/// child created without the C library's knowledge (clone(2) without CLONE_VM, _Fork(3)) gets no segment and no pin
/// page either, but keeps the sockets until it uses the client, calls exec or exits. vfork(2) and posix_spawn(3) copy
/// nothing.
#pragma once

#include <atomic>

namespace stepstash::client {

class Client;

/// One client's place in the list of all clients. Never freed, because another thread may be forking and walk the list;
/// reused instead.
struct Listed {
  std::atomic<Client*> client;
  Listed* next;
};

/// Registers a client. From now on its before_fork(), after_fork_in_parent() and after_fork_in_child() are called, the
/// first two by the thread that forks. Throws std::bad_alloc.
Listed* enlist(Client* client);
/// Requires a NoFork, kept until the client is gone.
void delist(Listed* place) noexcept;

/// While one exists, no fork(3) of another thread copies the process: for the steps between creating a descriptor or a
/// mapping and recording it in the table. Keep them short, because the fork waits, at most a tenth of a second. Waits
/// for a fork in progress. Can be nested.
class NoFork {
 public:
  NoFork() noexcept;
  ~NoFork();
  NoFork(const NoFork&) = delete;
  NoFork& operator=(const NoFork&) = delete;
};

}  // namespace stepstash::client
