/* A program with CPython in it, which it begins and ends several times. */

#include <stdlib.h>

extern void Py_Initialize(void), Py_Finalize(void);
extern int PyRun_SimpleString(const char *);

#ifdef OWN_MALLOC
/* Stands in for an allocator that the program is linked with. */
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t), __libc_free(void *);
void *malloc(size_t size) { return __libc_malloc(size); }
void *calloc(size_t count, size_t size) { return __libc_calloc(count, size); }
void *realloc(void *block, size_t size) { return __libc_realloc(block, size); }
void free(void *block) { __libc_free(block); }
#endif

int main(int count, char **arguments) {
  for (int round = atoi(arguments[1]); round > 0; round--) {
    Py_Initialize();
    if (PyRun_SimpleString("import json; x = [{} for _ in range(5000)]; json.dumps([1, 2, 3])") != 0) return 1;
    Py_Finalize();
  }
  return count == 2 ? 0 : 2;
}
