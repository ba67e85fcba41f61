/* SPDX-License-Identifier: Apache-2.0 */
/* get_stepstash SOCKET BUILD NAME: a step that links libstepstash.so. */
#include <stdio.h>
#include <stdlib.h>

#include <stepstash/client.h>

#include "touch.h"

int main(int argc, char** argv) {
  stepstash_client* client = NULL;
  stepstash_view view;
  if (argc != 4) return 64;
  if (stepstash_connect(argv[1], 0, &client) != STEPSTASH_OK ||
      stepstash_get(client, strtoll(argv[2], NULL, 10), argv[3], &view) != STEPSTASH_OK) {
    fprintf(stderr, "%s\n", stepstash_error_message());
    return 1;
  }
  touch(view.data, view.length);
  stepstash_release(&view);
  stepstash_close(client);
  return 0;
}
