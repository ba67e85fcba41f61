// SPDX-License-Identifier: Apache-2.0
#include "tests/history/clients.hpp"

#include <algorithm>
#include <optional>
#include <random>
#include <thread>

namespace stepstash::test {
namespace {

/// What a call's error says about whether the operation was done.
Answer meaning(int code, bool durable) {
  switch (code) {
    case STEPSTASH_EUNAVAILABLE:
    case STEPSTASH_EDEADLINE:
      return Answer::unknown;
    case STEPSTASH_EFULL:
    case STEPSTASH_ELIMIT:
      return Answer::failed;
    case STEPSTASH_EIO:  // of a durable set: it was set but not committed yet
      return durable ? Answer::unknown : Answer::forbidden;
    default:
      return Answer::forbidden;
  }
}

Sight sight_of(const View& view, bool with_bytes) {
  Sight sight;
  sight.value = value_of(view.source());
  sight.id = view.id();
  sight.revision = view.revision();
  sight.exact = sight.value != 0 && view.length() == length_of(sight.value) &&
                (!with_bytes || is_exact(view.bytes(), sight.value));
  return sight;
}

/// One thread's operations.
class Caller {
 public:
  Caller(Arena& arena, Client& client, std::size_t process, std::size_t thread, std::uint64_t round, std::uint64_t seed)
      : arena_(arena),
        client_(client),
        recorder_(arena.of_clients[process][thread], arena.done),
        random_(mixed(seed ^ mixed(round << 16 | process << 8 | thread))),
        next_value_(round << 32 | process << 28 | thread << 24) {}

  void run() {
    while (!arena_.stop.load(std::memory_order_relaxed)) {
      if (!once()) break;
    }
    while (!held_.empty()) look_again();
  }

 private:
  std::size_t below(std::size_t bound) { return std::uniform_int_distribution<std::size_t>(0, bound - 1)(random_); }
  bool one_in(std::size_t n) { return below(n) == 0; }

  bool once() {
    const std::size_t build = below(kBuilds);
    const std::size_t name = below(kNames);
    const std::size_t what = below(1000);
    if (held_.size() > 1 || (!held_.empty() && one_in(8))) look_again();
    if (what < 400) return get(build, name);
    if (what < 500) return stat(build, name);
    if (what < 540) return list(build);
    if (what < 549) return drop(build);
    if (what < 552) return prune();
    if (what < 562) return finish(build);
    if (what < 572) return hold(build);
    if (what < 600) return set_in_pieces(build, name);
    return set(build, name);
  }

  bool get(std::size_t build, std::size_t name) {
    Record* record = recorder_.begin(Action::get, build, name);
    if (record == nullptr) return false;
    try {
      auto view = client_.get(build_number(build), name_of(name));
      if (view) record->seen[0] = sight_of(*view, true);
      recorder_.end(*record, Answer::ok);
      if (view && one_in(3)) held_.push_back(std::move(*view));
    } catch (const Error& error) {
      recorder_.end(*record, meaning(error.code(), false), error.code());
    }
    return true;
  }

  /// Checks that a view kept for a while still has its bytes.
  void look_again() {
    const View view = std::move(held_.back());
    held_.pop_back();
    std::size_t name = 0;
    while (name + 1 < kNames && name_of(name) != view.name()) ++name;
    Record* record = recorder_.begin(Action::look, static_cast<std::size_t>(view.build() - kFirstBuild), name);
    if (record == nullptr) return;
    record->seen[0] = sight_of(view, true);
    recorder_.end(*record, Answer::ok);
  }

  bool stat(std::size_t build, std::size_t name) {
    Record* record = recorder_.begin(Action::stat, build, name);
    if (record == nullptr) return false;
    try {
      const auto view = client_.stat(build_number(build), name_of(name));
      if (view) record->seen[0] = sight_of(*view, false);
      recorder_.end(*record, Answer::ok);
    } catch (const Error& error) {
      recorder_.end(*record, meaning(error.code(), false), error.code());
    }
    return true;
  }

  bool list(std::size_t build) {
    record_list(recorder_, client_, build);
    return true;
  }

  bool set(std::size_t build, std::size_t name) {
    SetOptions options;
    options.if_absent = one_in(8);
    options.durable = one_in(16);
    options.deadline = 3s;
    Record* record = begin_set(build, name, options);
    if (record == nullptr) return false;
    record->repeats = !options.if_absent;
    try {
      const auto result =
          client_.set(build_number(build), name_of(name), bytes_of(record->value), source_of(record->value), options);
      end_set(*record, result);
    } catch (const Error& error) {
      recorder_.end(*record, meaning(error.code(), options.durable), error.code());
    }
    return true;
  }

  bool set_in_pieces(std::size_t build, std::size_t name) {
    SetOptions options;
    options.deadline = 3s;
    Record* record = begin_set(build, name, options);
    if (record == nullptr) return false;
    const std::string bytes = bytes_of(record->value);
    const bool abandoned = one_in(6);
    try {
      auto writer = client_.begin(build_number(build), name_of(name), one_in(2) ? bytes.size() : Client::kUnknownLength,
                                  source_of(record->value), options);
      for (std::size_t at = 0; at < bytes.size();) {
        const std::size_t count = std::min(bytes.size() - at, 1 + below(100'000));
        writer->write(std::string_view(bytes).substr(at, count));
        at += count;
      }
      if (abandoned) {
        writer->abort();
        recorder_.end(*record, Answer::failed);
      } else {
        end_set(*record, writer->commit());
      }
    } catch (const Error& error) {
      recorder_.end(*record, abandoned ? Answer::failed : meaning(error.code(), false), error.code());
    }
    return true;
  }

  Record* begin_set(std::size_t build, std::size_t name, const SetOptions& options) {
    Record* record = recorder_.begin(options.if_absent ? Action::set_if_absent : Action::set, build, name);
    if (record != nullptr) record->value = ++next_value_;
    return record;
  }

  void end_set(Record& record, const std::optional<SetResult>& result) {
    if (!result) {
      recorder_.end(record, record.action == Action::set_if_absent ? Answer::unmet : Answer::forbidden);
      return;
    }
    record.seen[0].value = record.value;
    record.seen[0].id = result->id;
    record.seen[0].revision = result->revision;
    recorder_.end(record, Answer::ok);
  }

  bool drop(std::size_t build) {
    return change(Action::drop, build, false,
                  [&](Record& record) { record.count = client_.drop(build_number(build)); });
  }

  bool prune() {
    const std::int64_t at = 1000 + static_cast<std::int64_t>(below(30));
    return change(
        Action::prune, 0, false, [&](Record& record) { record.count = client_.prune(epoch(at)); }, at);
  }

  bool finish(std::size_t build) {
    const std::int64_t at = 1000 + static_cast<std::int64_t>(below(100));
    return change(
        Action::finish, build, true, [&](Record&) { client_.finish(build_number(build), epoch(at)); }, at);
  }

  bool hold(std::size_t build) {
    const bool held = one_in(3);
    const auto call = [&](Record&) { held ? client_.hold(build_number(build)) : client_.unhold(build_number(build)); };
    return change(Action::hold, build, true, call, held ? 1 : 0);
  }

  template <class F>
  bool change(Action action, std::size_t build, bool repeats, F&& call, std::int64_t at = 0) {
    Record* record = recorder_.begin(action, build, 0);
    if (record == nullptr) return false;
    record->repeats = repeats;
    record->at = at;
    if (action == Action::drop || action == Action::prune) arena_.deletions.fetch_add(1);
    try {
      call(*record);
      recorder_.end(*record, Answer::ok);
    } catch (const Error& error) {
      recorder_.end(*record, meaning(error.code(), false), error.code());
    }
    return true;
  }

  Arena& arena_;
  Client& client_;
  Recorder recorder_;
  std::mt19937_64 random_;
  std::uint64_t next_value_;
  std::vector<View> held_;
};

}  // namespace

std::int64_t build_number(std::size_t build) { return kFirstBuild + static_cast<std::int64_t>(build); }

/// Of several lengths: the shortest name is empty.
std::string name_of(std::size_t name) {
  return std::string(name % 6 * 40, 'n') + (name == 0 ? "" : std::to_string(name));
}

Record* Recorder::begin(Action action, std::size_t build, std::size_t name) {
  if (used_ == room_.size()) return nullptr;
  Record& record = room_[used_++];
  record.action = action;
  record.build = static_cast<std::uint8_t>(build);
  record.name = static_cast<std::uint8_t>(name);
  record.begin = now_ns();
  return &record;
}

void Recorder::end(Record& record, Answer answer, int code) {
  record.end = now_ns();
  record.code = code;
  record.answer.store(answer);
  count_.fetch_add(1, std::memory_order_relaxed);
}

void record_get(Recorder& recorder, const Client& client, std::size_t build, std::size_t name) {
  Record* record = recorder.begin(Action::get, build, name);
  if (record == nullptr) throw std::length_error("no room for what the driver reads");
  const auto view = client.get(build_number(build), name_of(name));
  if (view) record->seen[0] = sight_of(*view, true);
  recorder.end(*record, Answer::ok);
}

void record_list(Recorder& recorder, const Client& client, std::size_t build) {
  Record* record = recorder.begin(Action::list, build, 0);
  if (record == nullptr) return;
  try {
    std::uint64_t last = 0;
    for (const Entry& entry : client.list(build_number(build))) {
      // In id order, each name once, and only names that were set.
      std::size_t name = 0;
      while (name < kNames && name_of(name) != entry.name) ++name;
      if (name == kNames || entry.id <= last || entry.build != build_number(build) || record->seen[name].value != 0) {
        recorder.end(*record, Answer::forbidden);
        return;
      }
      last = entry.id;
      const std::uint64_t value = value_of(entry.source);
      record->seen[name] = {value, entry.id, entry.revision, value != 0 && entry.length == length_of(value)};
    }
    recorder.end(*record, Answer::ok);
  } catch (const Error& error) {
    recorder.end(*record, meaning(error.code(), false), error.code());
  }
}

int run_client(Arena& arena, const std::string& socket, std::size_t process, std::uint64_t round, std::uint64_t seed) {
  Client client(socket, 20s);
  arena.attached.fetch_add(1);
  std::vector<Worker> threads;
  for (std::size_t thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] { Caller(arena, client, process, thread, round, seed).run(); });
  }
  for (Worker& thread : threads) thread.join();
  return 0;
}

}  // namespace stepstash::test
