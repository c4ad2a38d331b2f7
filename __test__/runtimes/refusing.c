/* An engine that allows no buffers over outside memory, as far as an addon can tell: what Node-API has under a name of as many letters.
   Says whether refusals leave memory behind. */

#define _GNU_SOURCE
#include <limits.h>
#include <malloc.h>
#include <stddef.h>
#include <stdio.h>

/* The first of so many equal parts warms up. What is left behind by every refusal is left in each of the others; Node.js takes memory for itself
   in some of them (Node.js 22 took 64 KiB, Node.js 24 640). */
enum { MANY = 60000, PARTS = 5, PART = MANY / PARTS };

int napi_create_refusing_arraybuffer(void *env, void *data, size_t length, void *finalize, void *hint, void **result) {
  (void)env, (void)data, (void)length, (void)finalize, (void)hint, (void)result;
  static size_t calls, before;
  static long least = LONG_MAX;
  calls++;
  if (calls <= MANY && calls % PART == 0) {
    size_t now = mallinfo2().uordblks;
    long more = (long)(now - before);
    if (calls > PART && more < least) least = more;
    before = now;
  }
  if (calls == MANY) {
    // A block of malloc is 32 bytes at least, so a leak at one refusal in four is found.
    if (least < 4 * PART) printf("nothing is left behind\n");
    else printf("%ld bytes are left behind\n", least);
    fflush(stdout);
  }
  return 22; /* napi_no_external_buffers_allowed */
}
