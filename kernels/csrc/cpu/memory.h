// Scratch memory and parallel loops, typed.

#pragma once

#include "../parallel.h"
#include "simd.h"

namespace fbp::FBP_ISA {

// Uninitialised elements that live as long as the object.
template <class E>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(i64 count)
      : data_(static_cast<E*>(allocate(count * static_cast<i64>(sizeof(E))))) {}
  Buffer(Buffer&& other) noexcept : data_(other.data_) { other.data_ = nullptr; }
  Buffer& operator=(Buffer&& other) noexcept {
    E* const data = other.data_;
    other.data_ = data_;
    data_ = data;
    return *this;
  }
  ~Buffer() { release(data_); }
  E* get() const { return data_; }
  E& operator[](i64 i) const { return data_[i]; }

 private:
  E* data_ = nullptr;
};

// A buffer of `each` elements for each worker, on cache lines of its own.
template <class E>
class WorkerBuffers {
 public:
  WorkerBuffers(int workers, i64 each)
      : each_(round_up(each, larger<i64>(64 / static_cast<i64>(sizeof(E)), 1))),
        memory_(workers * each_) {}
  E* of(int worker) const { return memory_.get() + worker * each_; }

 private:
  i64 each_;
  Buffer<E> memory_;
};

// job(worker, index) for each index below `jobs`.
template <class F>
void parallel(i64 jobs, int threads, const F& job) {
  run_jobs(
      jobs, threads,
      [](const void* context, int worker, i64 index) {
        (*static_cast<const F*>(context))(worker, index);
      },
      &job);
}

template <class T>
const T* at(const View& view, i64 i, i64 j, i64 k) {
  return static_cast<const T*>(view.data) + i * view.stride[0] + j * view.stride[1] +
         k * view.stride[2];
}

}  // namespace fbp::FBP_ISA
