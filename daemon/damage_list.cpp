// SPDX-License-Identifier: Apache-2.0
#include "daemon/damage_list.hpp"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "base/text.hpp"
#include "shm/validate.hpp"

namespace stepstash::daemon {
namespace {

/// Limit on damaged values listed for `stats`.
constexpr std::size_t kMostLines = 10'000;

}  // namespace

void DamageList::add(const shm::Entry& entry) {
  if (lines_.size() >= kMostLines || lines_.contains(entry.id)) return;
  std::string text = fmt::format("build {}, name \"{}\", id {}: {} bytes do not match their checksum", entry.buildid,
                                 printable(shm::entry_name(entry)), entry.id, entry.length);
  spdlog::error("damaged, and not served: {}", text);
  lines_.emplace(entry.id, std::move(text));
}

std::vector<std::string> DamageList::lines() const {
  std::vector<std::string> lines;
  lines.reserve(lines_.size());
  for (const auto& [id, text] : lines_) lines.push_back(text);
  return lines;
}

}  // namespace stepstash::daemon
