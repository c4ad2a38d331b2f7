/* An engine that allows no buffers over outside memory, as far as an addon can tell: what Node-API has under a name of as many letters. */

#include <stddef.h>

int napi_create_refusing_arraybuffer(void *env, void *data, size_t length, void *finalize, void *hint, void **result) {
  (void)env, (void)data, (void)length, (void)finalize, (void)hint, (void)result;
  return 22; /* napi_no_external_buffers_allowed */
}
