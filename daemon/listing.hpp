// SPDX-License-Identifier: Apache-2.0
/// Multi-page lists with snapshot semantics: all pages are as of the instant at which the first was made.
///
/// When an entry is replaced or deleted, its old state is kept until no list that began earlier has yet to send it:
/// once for all lists of its build, and within a bound. At the bound, and when a client abandons a list, the least
/// recently used list is cut off.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <list>
#include <map>
#include <memory>
#include <unordered_map>

#include "base/types.hpp"
#include "daemon/catalog.hpp"
#include "protocol/message.hpp"
#include "shm/segment.hpp"

namespace stepstash::daemon {

EntryInfo info_of(const shm::Entry& entry);

/// Thread safety: the loop's thread only.
class Listings : public std::enable_shared_from_this<Listings> {
 public:
  /// A list under way. Its owner ends it by destroying it, before or after Listings itself.
  class Listing {
   public:
    ~Listing();
    Listing(const Listing&) = delete;
    Listing& operator=(const Listing&) = delete;
    BuildId build() const noexcept { return build_; }
    /// The last entry that was sent.
    std::uint64_t after() const noexcept { return after_; }
    /// It was cut off: the rest of the snapshot is lost.
    bool cut() const noexcept { return cut_; }

   private:
    friend class Listings;
    Listing() = default;
    std::weak_ptr<Listings> of_;
    BuildId build_ = 0;
    std::uint64_t at_ = 0;         // the moment at which it began
    std::uint64_t first_new_ = 0;  // ids and revisions from here on are newer than the list
    std::uint64_t after_ = 0;
    std::chrono::nanoseconds used_{0};
    bool cut_ = false;
    std::list<Listing*>::iterator in_build_;
    std::list<Listing*>::iterator by_use_;
  };
  using Handle = std::unique_ptr<Listing>;

  static std::shared_ptr<Listings> make(const shm::Segment& segment, std::uint64_t most_bytes = kMostBytes) {
    return std::shared_ptr<Listings>(new Listings(segment, most_bytes));
  }

  /// Of a build as it is now, starting after `after`.
  Handle begin(BuildId build, std::uint64_t after, std::chrono::nanoseconds now);
  /// The next page of what the build held when the list began; `state` is the build's present state, if it exists.
  protocol::ListPage page(Listing& listing, const BuildState* state, std::chrono::nanoseconds now);
  /// The entry is about to be replaced or deleted. O(1) while no list of its build is under way.
  void about_to_change(const shm::Entry& entry);
  /// Cuts off lists not used since `before`.
  void expire(std::chrono::nanoseconds before);

  std::size_t under_way() const noexcept { return by_use_.size(); }
  std::uint64_t kept_bytes() const noexcept { return bytes_; }

  /// Limit on what is kept of former entries.
  static constexpr std::uint64_t kMostBytes = std::uint64_t{32} << 20;

 private:
  Listings(const shm::Segment& segment, std::uint64_t most_bytes) : segment_(segment), most_bytes_(most_bytes) {}
  /// An entry as it was until the moment `ended`.
  struct Former {
    EntryInfo info;
    std::uint64_t ended = 0;
    std::uint64_t bytes = 0;
  };
  using Formers = std::multimap<std::uint64_t, Former>;  // by id
  struct Build {
    std::list<Listing*> listings;  // oldest first
    Formers formers;
    std::deque<Formers::iterator> by_end;
  };

  void remove(Listing& listing);
  void cut(Listing& listing);

  const shm::Segment& segment_;
  const std::uint64_t most_bytes_;
  std::unordered_map<BuildId, Build, shm::SecretHash> builds_;
  std::list<Listing*> by_use_;  // least recently used first
  std::uint64_t moment_ = 0;    // number of lists begun
  std::uint64_t bytes_ = 0;
};

}  // namespace stepstash::daemon
