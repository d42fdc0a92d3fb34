// Memory between inaccessible pages.
#pragma once

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

namespace cuda_host {

struct Guarded {
  char *pages = nullptr, *data = nullptr;
  size_t length = 0, size = 0;
  bool constant = false;
};

inline void* map(size_t n) {
  void* p = mmap(nullptr, n, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) abort();
  return p;
}

// n bytes that end (or begin, `to_the_left`) at an inaccessible page, but for what 16-byte alignment takes.
inline Guarded guard(size_t n, bool to_the_left) {
  const size_t page = 4096, length = (n + page - 1) / page * page + 2 * page;
  Guarded g;
  g.pages = (char*)map(length), g.length = length, g.size = n;
  mprotect(g.pages + page, length - 2 * page, PROT_READ | PROT_WRITE);
  memset(g.pages + page, 0xa5, length - 2 * page);
  g.data = to_the_left ? g.pages + page : g.pages + length - page - (n + 15) / 16 * 16;
  return g;
}

inline bool intact(const Guarded& g) {
  for (const char* p = g.pages + 4096; p < g.pages + g.length - 4096; ++p)
    if ((p < g.data || p >= g.data + g.size) && (unsigned char)*p != 0xa5) return false;
  return true;
}

}  // namespace cuda_host
