// Neighbouring numbers, as many as one access of a thread takes.

#pragma once

#include "cuda/common.h"

namespace fbp::cuda {

template <class T>
constexpr int kVector = kChunkBytes / static_cast<int>(sizeof(T));

template <class T>
struct alignas(kChunkBytes) Vector {
  T of[kVector<T>];
};

// Numbers of a vector, a bit for each; here all of them.
template <class T>
constexpr u32 kAll = (1u << kVector<T>)-1;

// The numbers `wanted` of a vector, the others 0 or whatever stands there; in one access where that
// is `allowed`.
template <class T>
__device__ inline Vector<T> load_vector(const T* from, u32 wanted, bool allowed, i64 stride = 1) {
  if (allowed) return *reinterpret_cast<const Vector<T>*>(from);
  Vector<T> vector;
#pragma unroll
  for (int i = 0; i < kVector<T>; ++i)
    vector.of[i] = (wanted >> i & 1) != 0 ? from[i * stride] : narrow<T>(0.0f);
  return vector;
}

template <class T>
__device__ inline void store_vector(T* to, const Vector<T>& vector, u32 wanted, bool allowed) {
  if (allowed) {
    *reinterpret_cast<Vector<T>*>(to) = vector;
    return;
  }
#pragma unroll
  for (int i = 0; i < kVector<T>; ++i)
    if ((wanted >> i & 1) != 0) to[i] = vector.of[i];
}

// Whether vectors may begin at an address.
inline bool is_vector_aligned(const void* address) {
  return reinterpret_cast<std::uintptr_t>(address) % kChunkBytes == 0;
}

}  // namespace fbp::cuda
