/* SPDX-License-Identifier: Apache-2.0 */
/* get_lmdb DIRECTORY BUILD NAME: a step that links liblmdb.so. The key is the build's eight bytes, then the name. */
#include <lmdb.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "touch.h"

int main(int argc, char** argv) {
  MDB_env* env;
  MDB_txn* txn;
  MDB_dbi dbi;
  char key[64];
  if (argc != 4 || strlen(argv[3]) > sizeof key - 8) return 64;
  const int64_t build = strtoll(argv[2], NULL, 10);
  memcpy(key, &build, sizeof build);
  memcpy(key + sizeof build, argv[3], strlen(argv[3]));
  MDB_val name = {sizeof build + strlen(argv[3]), key};
  MDB_val value;
  int status = mdb_env_create(&env);
  if (status == 0) status = mdb_env_set_mapsize(env, (size_t)4096 << 20);
  if (status == 0) status = mdb_env_open(env, argv[1], MDB_RDONLY, 0600);
  if (status == 0) status = mdb_txn_begin(env, NULL, MDB_RDONLY, &txn);
  if (status == 0) status = mdb_dbi_open(txn, NULL, 0, &dbi);
  if (status == 0) status = mdb_get(txn, dbi, &name, &value);
  if (status != 0) {
    fprintf(stderr, "lmdb: %s\n", mdb_strerror(status));
    return 1;
  }
  touch(value.mv_data, value.mv_size);
  mdb_txn_abort(txn);
  mdb_env_close(env);
  return 0;
}
