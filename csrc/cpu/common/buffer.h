// Working memory of a kernel, on the boundary of a cache line: a wide load that straddles two costs twice.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>

namespace camguide {

// Elements that are not set.
template <class A>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t size) : data_(static_cast<A*>(::operator new(size * sizeof(A), kLine))), size_(size) {}

  operator A*() const { return data_.get(); }
  A* get() const { return data_.get(); }
  int64_t size() const { return size_; }

 private:
  static constexpr std::align_val_t kLine{64};
  struct Free {
    void operator()(A* p) const { ::operator delete(p, kLine); }
  };
  std::unique_ptr<A, Free> data_;
  int64_t size_ = 0;
};

// Elements that begin as 0.
template <class A>
struct Zeroed : Buffer<A> {
  explicit Zeroed(int64_t size) : Buffer<A>(size) { clear(); }
  void clear() { std::fill_n(this->get(), this->size(), A(0)); }
};

}  // namespace camguide
