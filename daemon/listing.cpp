// SPDX-License-Identifier: Apache-2.0
#include "daemon/listing.hpp"

#include <utility>

#include "shm/validate.hpp"

namespace stepstash::daemon {

EntryInfo info_of(const shm::Entry& entry) {
  return {entry.id,
          entry.revision,
          entry.buildid,
          entry.length,
          std::string(shm::entry_name(entry)),
          std::string(shm::entry_source(entry))};
}

Listings::Listing::~Listing() {
  const auto of = of_.lock();
  if (of && !cut_) of->remove(*this);
}

Listings::Handle Listings::begin(BuildId build, std::uint64_t after, std::chrono::nanoseconds now) {
  Handle listing(new Listing);
  listing->build_ = build;
  listing->at_ = ++moment_;
  listing->first_new_ = segment_.header().next_id.load(std::memory_order_relaxed);  // the loop's own stores
  listing->after_ = after;
  listing->used_ = now;
  std::list<Listing*>& of_build = builds_[build].listings;
  listing->in_build_ = of_build.insert(of_build.end(), listing.get());
  listing->by_use_ = by_use_.insert(by_use_.end(), listing.get());
  listing->of_ = weak_from_this();
  return listing;
}

void Listings::remove(Listing& listing) {
  by_use_.erase(listing.by_use_);
  const auto found = builds_.find(listing.build_);
  Build& build = found->second;
  build.listings.erase(listing.in_build_);
  if (build.listings.empty()) {
    for (const auto& [id, former] : build.formers) bytes_ -= former.bytes;
    builds_.erase(found);
    return;
  }
  // No remaining list needs what ended before the oldest of them began.
  while (!build.by_end.empty() && build.by_end.front()->second.ended < build.listings.front()->at_) {
    bytes_ -= build.by_end.front()->second.bytes;
    build.formers.erase(build.by_end.front());
    build.by_end.pop_front();
  }
}

void Listings::cut(Listing& listing) {
  remove(listing);
  listing.cut_ = true;
}

void Listings::expire(std::chrono::nanoseconds before) {
  while (!by_use_.empty() && by_use_.front()->used_ < before) cut(*by_use_.front());
}

void Listings::about_to_change(const shm::Entry& entry) {
  if (builds_.empty()) return;
  const auto found = builds_.find(entry.buildid);
  if (found == builds_.end()) return;
  Build& build = found->second;
  // The newest list sees the most: no list includes what is newer than it.
  if (entry.revision >= build.listings.back()->first_new_) return;
  if (build.listings.size() == 1 && entry.id <= build.listings.front()->after_) return;  // sent already
  Former former{info_of(entry), moment_, 0};
  former.bytes = sizeof(Formers::value_type) + 64 + former.info.name.capacity() + former.info.source.capacity();
  bytes_ += former.bytes;
  build.by_end.push_back(build.formers.emplace(entry.id, std::move(former)));
  while (bytes_ > most_bytes_) cut(*by_use_.front());
}

protocol::ListPage Listings::page(Listing& listing, const BuildState* state, std::chrono::nanoseconds now) {
  listing.used_ = now;
  by_use_.splice(by_use_.end(), by_use_, listing.by_use_);
  const Formers& formers = builds_.at(listing.build_).formers;
  auto former = formers.upper_bound(listing.after_);
  protocol::ListPage page;
  // False: the page is full.
  const auto add = [&](EntryInfo info) {
    if (page.entries.size() == protocol::kListPageEntries) {
      page.more = true;
      return false;
    }
    page.entries.push_back(std::move(info));
    return true;
  };
  /// Adds the former states, valid when the list began, of entries up to `id` that have changed since.
  const auto add_formers = [&](std::uint64_t id) {
    for (; former != formers.end() && former->first <= id; ++former) {
      const bool then = former->second.info.revision < listing.first_new_ && former->second.ended >= listing.at_;
      if (then && !add(former->second.info)) return false;
    }
    return true;
  };
  const auto fill = [&] {
    if (state != nullptr) {
      for (auto at = state->entries.upper_bound(listing.after_); at != state->entries.end(); ++at) {
        if (at->first >= listing.first_new_) break;
        if (!add_formers(at->first)) return;
        const shm::Entry& entry = segment_.entry_at(at->second->block);
        if (entry.revision < listing.first_new_ && !add(info_of(entry))) return;
      }
    }
    add_formers(UINT64_MAX);
  };
  fill();
  if (!page.entries.empty()) listing.after_ = page.entries.back().id;
  return page;
}

}  // namespace stepstash::daemon
