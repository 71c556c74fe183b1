// The block's dynamic shared memory. Tests put a header of the same path before this one.

#pragma once

#include <cstdint>

namespace fbp::cuda {

__device__ inline unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
}

// Where operands with a swizzle may lie: aligned to its pattern.
__device__ inline unsigned char* shared_memory_of_patterns() {
  extern __shared__ __align__(1024) unsigned char patterns[];
  return patterns;
}

// As instructions want it that take addresses of shared memory alone.
__device__ inline std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

}  // namespace fbp::cuda
