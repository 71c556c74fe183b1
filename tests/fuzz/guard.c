// Aligned memory, which is what tensors and the kernels' scratch are made of, between pages without
// access: preloaded, it sees what sanitizers do not instrument, masked vectors and assembly. Every
// other block ends where its pages end, the others start where they start. Fresh memory is NaN in
// all types; memory given back is never used again, so that a late access faults as well.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE ((size_t)4096)
#define PAGES ((size_t)1 << 24)  // 64 GiB of addresses

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static char* arena;
static size_t next_page = 1, blocks;
static uint32_t* pages_of;  // by the first page of a block

static void* reserve(size_t bytes, int protection) {
  void* result = mmap(NULL, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return result == MAP_FAILED ? NULL : result;
}

static void* guarded(size_t alignment, size_t bytes) {
  const size_t pages = (bytes + PAGE - 1) / PAGE + (bytes == 0);
  if (alignment > PAGE || bytes > PAGES * PAGE) return NULL;
  pthread_mutex_lock(&mutex);
  if (arena == NULL) {
    arena = reserve(PAGES * PAGE, PROT_NONE);
    pages_of = reserve(PAGES * sizeof *pages_of, PROT_READ | PROT_WRITE);
  }
  char* block = NULL;
  if (arena != NULL && pages_of != NULL && next_page + pages + 1 < PAGES) {
    char* const first = arena + next_page * PAGE;
    if (mprotect(first, pages * PAGE, PROT_READ | PROT_WRITE) == 0) {
      memset(first, 0xff, pages * PAGE);
      pages_of[next_page] = (uint32_t)pages;
      next_page += pages + 1;
      // Exactly at the end, though tensors ask for 64: their sizes are multiples of an element.
      block = alignment <= 64 && blocks++ % 2 == 0 ? first + pages * PAGE - bytes : first;
    }
  }
  pthread_mutex_unlock(&mutex);
  return block;
}

int posix_memalign(void** block, size_t alignment, size_t bytes) {
  *block = guarded(alignment, bytes);
  return *block == NULL ? ENOMEM : 0;
}

void* aligned_alloc(size_t alignment, size_t bytes) { return guarded(alignment, bytes); }

void free(void* block) {
  static void (*usual)(void*);
  char* const address = block;
  if (arena != NULL && address >= arena && address <= arena + PAGES * PAGE) {
    // An empty block at the end of its page has the address of the next.
    size_t page = (size_t)(address - arena) / PAGE;
    if (pages_of[page] == 0) --page;
    while (pages_of[page] == 0) --page;
    mmap(arena + page * PAGE, pages_of[page] * PAGE, PROT_NONE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    return;
  }
  if (usual == NULL) usual = (void (*)(void*))dlsym(RTLD_NEXT, "free");
  usual(block);
}
