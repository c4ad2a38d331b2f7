/* Blocks given to the wrong domain, one way a function. A plain library for ctypes.PyDLL: it declares what it needs of CPython itself.
   Compiled without optimisation, so that no function ends in a jump and each is seen as the caller. */

#include <dlfcn.h>
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern void *PyMem_RawMalloc(size_t), *PyMem_Malloc(size_t), *PyObject_Malloc(size_t);
extern void *PyMem_RawCalloc(size_t, size_t), *PyMem_Calloc(size_t, size_t), *PyObject_Calloc(size_t, size_t);
extern void *PyMem_RawRealloc(void *, size_t), *PyMem_Realloc(void *, size_t), *PyObject_Realloc(void *, size_t);
extern void PyMem_RawFree(void *), PyMem_Free(void *), PyObject_Free(void *);

#ifdef NO_JUMPS
/* As CPython's own function is in a build that does not turn its last call into a jump. */
void PyObject_Free(void *block) {
  void (*original)(void *) = (void (*)(void *))dlsym(dlopen(NULL, RTLD_LAZY), "PyObject_Free");
  original(block);
  __asm__ volatile("");
}
#endif

/* raw_freed_as_mem(size) and so on. All functions give whether the program saw what it should. */
#define FREED(from, to, malloc_, free_)                                                                                            \
  int from##_freed_as_##to(size_t size) {                                                                                          \
    free_(malloc_(size));                                                                                                          \
    return 1;                                                                                                                      \
  }

/* raw_reallocated_as_mem(size) and so on: to twice the size and one; gives whether the bytes are still there. */
#define REALLOCATED(from, to, malloc_, realloc_, free_)                                                                            \
  int from##_reallocated_as_##to(size_t size) {                                                                                    \
    unsigned char *block = malloc_(size);                                                                                          \
    for (size_t at = 0; at < size; at++) block[at] = (unsigned char)(at * 7);                                                      \
    block = realloc_(block, 2 * size + 1);                                                                                         \
    int same = block != NULL;                                                                                                      \
    for (size_t at = 0; same && at < size; at++) same = block[at] == (unsigned char)(at * 7);                                      \
    free_(block);                                                                                                                  \
    return same;                                                                                                                   \
  }

FREED(raw, mem, PyMem_RawMalloc, PyMem_Free)
FREED(raw, obj, PyMem_RawMalloc, PyObject_Free)
FREED(mem, raw, PyMem_Malloc, PyMem_RawFree)
FREED(mem, obj, PyMem_Malloc, PyObject_Free)
FREED(obj, raw, PyObject_Malloc, PyMem_RawFree)
FREED(obj, mem, PyObject_Malloc, PyMem_Free)

REALLOCATED(raw, mem, PyMem_RawMalloc, PyMem_Realloc, PyMem_Free)
REALLOCATED(raw, obj, PyMem_RawMalloc, PyObject_Realloc, PyObject_Free)
REALLOCATED(mem, raw, PyMem_Malloc, PyMem_RawRealloc, PyMem_RawFree)
REALLOCATED(mem, obj, PyMem_Malloc, PyObject_Realloc, PyObject_Free)
REALLOCATED(obj, raw, PyObject_Malloc, PyMem_RawRealloc, PyMem_RawFree)
REALLOCATED(obj, mem, PyObject_Malloc, PyMem_Realloc, PyMem_Free)

/* C's own functions, as every library calls them. */
FREED(libc, raw, malloc, PyMem_RawFree)
FREED(libc, mem, malloc, PyMem_Free)
FREED(libc, obj, malloc, PyObject_Free)
FREED(raw, libc, PyMem_RawMalloc, free)
FREED(mem, libc, PyMem_Malloc, free)
FREED(obj, libc, PyObject_Malloc, free)

REALLOCATED(libc, raw, malloc, PyMem_RawRealloc, PyMem_RawFree)
REALLOCATED(libc, mem, malloc, PyMem_Realloc, PyMem_Free)
REALLOCATED(libc, obj, malloc, PyObject_Realloc, PyObject_Free)
REALLOCATED(raw, libc, PyMem_RawMalloc, realloc, free)
REALLOCATED(mem, libc, PyMem_Malloc, realloc, free)
REALLOCATED(obj, libc, PyObject_Malloc, realloc, free)

/* C's own functions, found in a way that passes the checker by. */
static void *unseen(const char *name) { return dlsym(dlopen("libc.so.6", RTLD_NOW), name); }
static void *unseen_malloc(size_t size) { return ((void *(*)(size_t))unseen("malloc"))(size); }
static void unseen_free(void *block) { ((void (*)(void *))unseen("free"))(block); }
FREED(unseen, raw, unseen_malloc, PyMem_RawFree)
REALLOCATED(unseen, mem, unseen_malloc, PyMem_Realloc, PyMem_Free)

/* C's other ways to give a block out, and the way that frees one by its reallocation. */
static void *aligned(size_t size) {
  void *block;
  return posix_memalign(&block, 64, size) == 0 ? block : NULL;
}
static void *calloc_one(size_t size) { return calloc(1, size); }
static void *malloc_as_array(size_t size) { return reallocarray(NULL, 1, size); }
static void *memalign_64(size_t size) { return memalign(64, size); }
static void *aligned_alloc_64(size_t size) { return aligned_alloc(64, size); }
static void *valloc_page(size_t size) { return valloc(size); }
static void *pvalloc_pages(size_t size) { return pvalloc(size); }
static void realloc_to_nothing(void *block) {
  if (realloc(block, 0) != NULL) abort();
}
FREED(aligned, mem, aligned, PyMem_Free)
FREED(calloc, mem, calloc_one, PyMem_Free)
FREED(array, mem, malloc_as_array, PyMem_Free)
FREED(memalign, mem, memalign_64, PyMem_Free)
FREED(aligned_alloc, mem, aligned_alloc_64, PyMem_Free)
FREED(valloc, mem, valloc_page, PyMem_Free)
FREED(pvalloc, mem, pvalloc_pages, PyMem_Free)
FREED(mem, nothing, PyMem_Malloc, realloc_to_nothing)

int mem_deleted(size_t size) {
  void *cpp = dlopen("libstdc++.so.6", RTLD_NOW);
  ((void (*)(void *))dlsym(cpp, "_ZdlPv"))(PyMem_Malloc(size));
  return 1;
}

int inside_obj_freed_as_libc(size_t size) {
  char *block = PyObject_Malloc(size);
  memset(block, 42, size);
  free(block + size / 2);
  int same = block[size / 2] == 42;
  PyObject_Free(block);
  return same;
}

int mem_freed_again_as_libc(size_t size) {
  void *block = PyMem_Malloc(size);
  PyMem_Free(block);
  free(block);
  return 1;
}

int libc_freed_again_as_obj(size_t size) {
  void *block = malloc(size);
  free(block);
  PyObject_Free(block);
  return 1;
}

/* Without the GIL: where the block would need it, it is left alone. */
static void *free_as_libc(void *block) {
  free(block);
  return NULL;
}
int mem_freed_as_libc_by_a_thread(size_t size) {
  pthread_t thread;
  pthread_create(&thread, NULL, free_as_libc, PyMem_Malloc(size));
  pthread_join(thread, NULL);
  return 1;
}

/* A text from each place, for a field that CPython frees. */
char *obj_text(void) { return strcpy(PyObject_Malloc(5), "text"); }
char *mem_text(void) { return strcpy(PyMem_Malloc(5), "text"); }
char *libc_text(void) { return strcpy(malloc(5), "text"); }

/* Blocks that are C's own, allocated and freed in every correct way. No finding may name them. */
int libc_in_order(size_t size) {
  free(realloc(malloc(size), 2 * size));
  free(reallocarray(calloc(2, size), 3, size));
  volatile size_t many = (size_t)1 << 40;
  if (reallocarray(NULL, many, many) != NULL) abort();
  free(aligned(size)), free(memalign_64(size)), free(aligned_alloc_64(size));
  free(NULL);
  void *block = malloc(size);
  if (realloc(block, (size_t)1 << 46) != NULL) abort();
  realloc_to_nothing(block);
  free(unseen_malloc(size));
  free(realloc(unseen_malloc(size), 2 * size));
  unseen_free(malloc(size));
  /* Given out inside the C library. */
  free(strdup("text"));
  char *line = NULL, *text = NULL;
  size_t room = 0;
  FILE *file = fopen("/proc/self/maps", "r");
  while (getline(&line, &room, file) > 0) {}
  fclose(file);
  free(line);
  if (asprintf(&text, "%zu", size) < 0) abort();
  free(text);
  void *cpp = dlopen("libstdc++.so.6", RTLD_NOW);
  if (cpp != NULL) ((void (*)(void *))dlsym(cpp, "_ZdlPv"))(((void *(*)(size_t))dlsym(cpp, "_Znwm"))(size));
  /* Memory that a domain and C use in turn, each time correctly. It has less than 512 bytes, but is not pymalloc's. */
  for (int round = 0; round < 100; round++) {
    void *shrunk = PyMem_Realloc(PyMem_Malloc(4000), 24);
    void *larger = PyObject_Realloc(PyObject_Malloc(24), 4000);
    PyMem_Free(shrunk), PyObject_Free(larger);
    void *first = malloc(24), *second = unseen_malloc(24), *third = malloc(4000);
    free(third), free(second), free(first);
    PyMem_RawFree(PyMem_RawMalloc(24));
    free(unseen_malloc(24));
  }
  return 1;
}

/* The address inside a block that is freed in good order afterwards: the refused call must have left it alone. */
int inside_obj_freed_as_obj(size_t size) {
  char *block = PyObject_Malloc(size);
  memset(block, 42, size);
  PyObject_Free(block + size / 2);
  int same = block[size / 2] == 42;
  PyObject_Free(block);
  return same;
}

int inside_raw_reallocated_as_mem(size_t size) {
  char *block = PyMem_RawMalloc(size);
  memset(block, 42, size);
  char *moved = PyMem_Realloc(block + 1, size - 1);
  int same = moved != NULL && moved != block + 1 && moved[0] == 42 && moved[size - 2] == 42;
  PyMem_Free(moved);
  PyMem_RawFree(block);
  return same;
}

int obj_freed_twice(size_t size) {
  void *block = PyObject_Malloc(size);
  PyObject_Free(block);
  PyObject_Free(block);
  return 1;
}

int raw_freed_twice(size_t size) {
  void *block = PyMem_RawMalloc(size);
  PyMem_RawFree(block);
  PyMem_RawFree(block);
  return 1;
}

int mem_reallocated_after_free(size_t size) {
  void *block = PyMem_Malloc(size);
  PyMem_Free(block);
  block = PyMem_Realloc(block, size);
  PyMem_Free(block);
  return block != NULL;
}

/* Not exported, so that only the symbol table knows it. */
static __attribute__((noinline)) void hidden_free(void *block) { PyMem_Free(block); }
static __attribute__((noinline)) void *hidden_calloc(size_t size) { return PyObject_Calloc(1, size); }
int freed_by_a_hidden_function(size_t size) {
  hidden_free(hidden_calloc(size));
  return 1;
}

/* Without the GIL: where the block would need it, it is left alone. */
static void *free_as_raw(void *block) {
  PyMem_RawFree(block);
  return NULL;
}
int obj_freed_as_raw_by_a_thread(size_t size) {
  pthread_t thread;
  pthread_create(&thread, NULL, free_as_raw, PyObject_Malloc(size));
  pthread_join(thread, NULL);
  return 1;
}

/* Correct calls of every kind. No finding may name them. */
int in_order(size_t size) {
  PyMem_RawFree(PyMem_RawRealloc(PyMem_RawCalloc(1, size), 3 * size));
  PyMem_Free(PyMem_Realloc(PyMem_Calloc(3, size), size));
  PyObject_Free(PyObject_Realloc(PyObject_Malloc(size), 2 * size));
  PyMem_RawFree(NULL);
  PyMem_Free(PyMem_Realloc(NULL, size));
  PyObject_Free(NULL);
  /* Cannot be had; the block stays what it was. */
  void *block = PyObject_Malloc(size);
  if (PyObject_Realloc(block, (size_t)1 << 46) != NULL) abort();
  PyObject_Free(block);
  block = PyMem_RawMalloc(size);
  if (PyMem_RawRealloc(block, (size_t)1 << 46) != NULL) abort();
  PyMem_RawFree(block);
  return 1;
}
