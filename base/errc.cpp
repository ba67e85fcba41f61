// SPDX-License-Identifier: Apache-2.0
#include "base/errc.hpp"

namespace stepstash {
namespace {

const char* text(Errc e) noexcept {
  switch (e) {
    case Errc::not_found:
      return "no such build data: not found";
    case Errc::invalid_argument:
      return "invalid argument";
    case Errc::too_large:
      return "value larger than the segment can ever hold";
    case Errc::segment_full:
      return "segment full";
    case Errc::dirty_limit:
      return "too many bytes wait to be written to the database";
    case Errc::deadline_exceeded:
      return "deadline exceeded";
    case Errc::condition_failed:
      return "condition not met";
    case Errc::not_permitted:
      return "not permitted";
    case Errc::protocol_error:
      return "protocol error";
    case Errc::version_mismatch:
      return "client and daemon share no protocol version";
    case Errc::format_mismatch:
      return "segment layout differs from this program's";
    case Errc::corrupt_segment:
      return "segment is damaged";
    case Errc::corrupt_value:
      return "value does not match its checksum";
    case Errc::corrupt_database:
      return "database is damaged";
    case Errc::newer_database:
      return "database was written by a newer stepstash";
    case Errc::already_held:
      return "held by another daemon";
    case Errc::not_durable:
      return "the database cannot take writes now";
    case Errc::too_many:
      return "a limit is reached";
    case Errc::shutting_down:
      return "the daemon is shutting down";
    case Errc::unavailable:
      return "daemon not reachable";
    case Errc::unsafe_object:
      return "not a regular file of this user's own";
    case Errc::out_of_ids:
      return "no ids left until the database can be written again";
    case Errc::too_many_builds:
      return "the segment's build table is full";
    case Errc::foreign_database:
      return "not a database of stepstash";
  }
  return "unknown stepstash error";
}

class Category final : public std::error_category {
 public:
  const char* name() const noexcept override { return "stepstash"; }
  std::string message(int value) const override { return text(static_cast<Errc>(value)); }
};

}  // namespace

const std::error_category& category() noexcept {
  static const Category instance;
  return instance;
}

}  // namespace stepstash
