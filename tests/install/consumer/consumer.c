/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include <stepstash/client.h>

/* usage: consumer NAME: sets build datum 7/NAME, gets it back. */
int main(int argc, char** argv) {
  static const char value[] = "from C";
  stepstash_client* client = NULL;
  stepstash_view view;
  if (argc != 2) return 64;
  if (stepstash_connect(NULL, 0, &client) != STEPSTASH_OK ||
      stepstash_set(client, 7, argv[1], value, sizeof value, argv[0], NULL, NULL) != STEPSTASH_OK ||
      stepstash_get(client, 7, argv[1], &view) != STEPSTASH_OK) {
    fprintf(stderr, "%s\n", stepstash_error_message());
    return 1;
  }
  const int same = view.length == sizeof value && memcmp(view.data, value, sizeof value) == 0;
  stepstash_release(&view);
  stepstash_close(client);
  if (!same) fprintf(stderr, "got something else than was set\n");
  return same ? 0 : 1;
}
