/* SPDX-License-Identifier: Apache-2.0 */
/* Preloaded into a daemon, it makes a disk that lies: what was to be written through is said to be, and is not. With it
 * the test of power loss has to find values missing, or it would not find them either where the daemon is to blame. */
int fsync(int fd);
int fdatasync(int fd);

int fsync(int fd) {
  (void)fd;
  return 0;
}

int fdatasync(int fd) {
  (void)fd;
  return 0;
}
