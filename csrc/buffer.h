// Working memory of a kernel: not initialised, aligned to a cache line (a wide load that straddles two costs twice).
#pragma once

#include <cstdint>
#include <new>

namespace camguide {

template <class A>
class Buffer {
 public:
  explicit Buffer(int64_t n) : data_(static_cast<A*>(::operator new(n * sizeof(A), std::align_val_t(64)))) {}
  ~Buffer() { ::operator delete(data_, std::align_val_t(64)); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  operator A*() const { return data_; }

 private:
  A* data_;
};

}  // namespace camguide
