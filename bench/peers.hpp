// SPDX-License-Identifier: Apache-2.0
/// stepstash and what a step would use instead, with one face: get and set. Each object belongs to one thread.
///
/// get makes the bytes of a value readable and gives them back; what that takes is the peer's nature. stepstash, LMDB
/// and files show them in place, the servers and SQLite copy them into a buffer that is used again. `use`, where there
/// is one, is called with the bytes in between.
/// missing() is the reason why a peer cannot be measured here, or nullptr.
#pragma once

#include <benchmark/benchmark.h>
#include <lmdb.h>
#include <sqlite3.h>
#include <stepstash/client.h>

#include <cstdint>
#include <memory>
#include <string_view>
#include <utility>

#include "bench/support.hpp"
#include "bench/world.hpp"

namespace stepstash::bench {

inline void use_nothing(const void* data) { benchmark::DoNotOptimize(data); }

/// The C ABI, as a step uses it.
class Stepstash {
 public:
  static constexpr const char* kName = "stepstash";
  static const char* missing() { return nullptr; }

  Stepstash() : client_(World::get().client.get()) {}
  explicit Stepstash(stepstash_client* client) : client_(client) {}
  template <class Use = void (*)(const void*)>
  void get(const Key& key, Use use = use_nothing) {
    stepstash_view view;
    require(stepstash_get(client_, key.build, key.name, &view) == STEPSTASH_OK, "stepstash: get");
    use(view.data);
    stepstash_release(&view);
  }
  void set(const Key& key, std::span<const char> bytes, bool durable = false) {
    stepstash_set_options options = {};
    options.size = sizeof options;
    options.durable = durable ? 1 : 0;
    options.deadline_ms = 60'000;
    require(stepstash_set(client_, key.build, key.name, bytes.data(), bytes.size(), "bench", &options, nullptr) ==
                STEPSTASH_OK,
            stepstash_error_message());
  }

 private:
  stepstash_client* client_;
};

/// An LMDB environment in a directory of its own. Thread safety: LMDB's.
class LmdbEnvironment {
 public:
  /// `sync` is LMDB's default, each commit waits for the disk; else MDB_NOSYNC.
  LmdbEnvironment(const std::string& directory, bool sync);
  LmdbEnvironment(LmdbEnvironment&& other) = delete;
  ~LmdbEnvironment();

  static LmdbEnvironment& in_memory();  ///< on the tmpfs, NOSYNC: for reads, and sets that are not durable
  static LmdbEnvironment& on_disk();    ///< durable
  static LmdbEnvironment& many();       ///< on the tmpfs, with the million entries

  void set_all(std::span<const std::pair<Key, std::span<const char>>> entries);  ///< in one transaction

  MDB_env* env = nullptr;
  MDB_dbi dbi = 0;
};

/// LMDB at its best: a read transaction is renewed for each get, not begun; values are read where they lie.
class Lmdb {
 public:
  static constexpr const char* kName = "lmdb";
  static const char* missing() { return nullptr; }

  explicit Lmdb(LmdbEnvironment& environment = LmdbEnvironment::in_memory());
  Lmdb(Lmdb&& other) = delete;
  ~Lmdb();
  template <class Use = void (*)(const void*)>
  void get(const Key& key, Use use = use_nothing) {
    use(begin(key));
    mdb_txn_reset(reading_);
  }
  void set(const Key& key, std::span<const char> bytes);

 private:
  const void* begin(const Key& key);

  LmdbEnvironment& environment_;
  MDB_txn* reading_ = nullptr;
};

/// A file in /dev/shm: opened and mapped to get it; to set it, written under another name and renamed, so that nobody
/// sees half.
class File {
 public:
  static constexpr const char* kName = "file";
  static const char* missing() { return nullptr; }

  File();
  File(File&& other) = delete;
  ~File();
  void get(const Key& key);
  void set(const Key& key, std::span<const char> bytes);

 private:
  int directory_;
};

/// A connection that speaks the text protocols of Redis and memcached, as far as get and set need them.
class TextConnection {
 public:
  explicit TextConnection(const std::string& path);
  TextConnection(TextConnection&& other) = delete;
  ~TextConnection();

  void send(std::initializer_list<std::string_view> parts);
  /// The next line of the answer, without its end. Valid until the next call.
  std::string_view line();
  /// The next bytes of the answer, into a buffer that is kept.
  void body(std::size_t bytes);

 private:
  void more();

  int socket_;
  std::vector<char> value_;
  std::array<char, 64 * kKiB> buffer_;
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
};

class Redis {
 public:
  static constexpr const char* kName = "redis";
  static const char* missing();

  Redis() : connection_(World::get().redis_socket) {}
  void get(const Key& key);
  void set(const Key& key, std::span<const char> bytes);

 private:
  TextConnection connection_;
};

class Memcached {
 public:
  static constexpr const char* kName = "memcached";
  static const char* missing();

  Memcached() : connection_(World::get().memcached_socket) {}
  void get(const Key& key);
  void set(const Key& key, std::span<const char> bytes);

 private:
  TextConnection connection_;
};

/// Build data in SQLite as Buildbot keeps it: its table and index, a write-ahead log, and a commit that waits for the
/// disk; but in this process, with prepared statements, where Buildbot has SQLAlchemy and a thread pool in between.
class Sqlite {
 public:
  static constexpr const char* kName = "sqlite";
  static const char* missing() { return nullptr; }

  Sqlite();
  void get(const Key& key);
  void set(const Key& key, std::span<const char> bytes);

 private:
  struct Close {
    void operator()(sqlite3* db) const noexcept { sqlite3_close(db); }
  };
  struct Finalize {
    void operator()(sqlite3_stmt* statement) const noexcept { sqlite3_finalize(statement); }
  };
  using Statement = std::unique_ptr<sqlite3_stmt, Finalize>;
  void execute(const char* sql);
  Statement prepare(const char* sql);

  std::unique_ptr<sqlite3, Close> db_;
  Statement select_, update_, insert_;
  std::vector<char> value_;
};

}  // namespace stepstash::bench
