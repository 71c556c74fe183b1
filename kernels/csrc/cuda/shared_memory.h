// The block's dynamic shared memory. Tests put a header of the same path before this one.

#pragma once

namespace fbp::cuda {

__device__ inline unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
}

}  // namespace fbp::cuda
