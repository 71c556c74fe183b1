// Bulk copies of boxes of a tensor into shared memory, which one thread asks for and the copy
// engine makes. Tests put a header of the same path before this one.

#pragma once

#include <cuda.h>

#include <cstdint>

#include "cuda/mbarrier.h"

namespace fbp::cuda {

// Copies the box that begins at (x, y, z), innermost first, to `to`, and counts its bytes at
// `barrier` when they are there, zeros for what is outside of the tensor among them.
__device__ inline void bulk_copy(void* to, const CUtensorMap& map, Mbarrier* barrier, int x, int y,
                                 int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z)
      : "memory");
}

}  // namespace fbp::cuda
