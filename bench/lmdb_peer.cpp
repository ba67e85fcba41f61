// SPDX-License-Identifier: Apache-2.0
#include <sys/stat.h>

#include "bench/peers.hpp"

namespace stepstash::bench {
namespace {

void check(int status) { require(status == 0, std::string("lmdb: ") + mdb_strerror(status)); }

MDB_val bytes_of(const Key& key) {
  static_assert(offsetof(Key, name) == sizeof key.build);
  return {sizeof key.build + key.length, const_cast<std::int64_t*>(&key.build)};
}

}  // namespace

LmdbEnvironment::LmdbEnvironment(const std::string& directory, bool sync) {
  ::mkdir(directory.c_str(), 0700);
  check(mdb_env_create(&env));
  check(mdb_env_set_mapsize(env, 4096 * kMiB));
  check(mdb_env_open(env, directory.c_str(), MDB_NOTLS | (sync ? 0U : MDB_NOSYNC | MDB_NOMETASYNC), 0600));
  MDB_txn* txn = nullptr;
  check(mdb_txn_begin(env, nullptr, 0, &txn));
  check(mdb_dbi_open(txn, nullptr, 0, &dbi));
  check(mdb_txn_commit(txn));
}
LmdbEnvironment::~LmdbEnvironment() { mdb_env_close(env); }

LmdbEnvironment& LmdbEnvironment::in_memory() {
  static LmdbEnvironment environment(World::get().directories.shm + "/lmdb", false);
  return environment;
}
LmdbEnvironment& LmdbEnvironment::on_disk() {
  static LmdbEnvironment environment(World::get().directories.disk + "/lmdb", true);
  return environment;
}
LmdbEnvironment& LmdbEnvironment::many() {
  static LmdbEnvironment environment(World::get().directories.shm + "/lmdb-many", false);
  return environment;
}

void LmdbEnvironment::set_all(std::span<const std::pair<Key, std::span<const char>>> entries) {
  MDB_txn* txn = nullptr;
  check(mdb_txn_begin(env, nullptr, 0, &txn));
  for (const auto& [key, bytes] : entries) {
    MDB_val name = bytes_of(key);
    MDB_val value = {bytes.size(), const_cast<char*>(bytes.data())};
    check(mdb_put(txn, dbi, &name, &value, 0));
  }
  check(mdb_txn_commit(txn));
}

Lmdb::Lmdb(LmdbEnvironment& environment) : environment_(environment) {
  check(mdb_txn_begin(environment.env, nullptr, MDB_RDONLY, &reading_));
  mdb_txn_reset(reading_);
}
Lmdb::~Lmdb() { mdb_txn_abort(reading_); }

const void* Lmdb::begin(const Key& key) {
  MDB_val name = bytes_of(key);
  MDB_val value;
  check(mdb_txn_renew(reading_));
  check(mdb_get(reading_, environment_.dbi, &name, &value));
  return value.mv_data;
}

void Lmdb::set(const Key& key, std::span<const char> bytes) {
  const std::pair entry(key, bytes);
  environment_.set_all({&entry, 1});
}

}  // namespace stepstash::bench
