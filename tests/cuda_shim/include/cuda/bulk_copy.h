// Bulk copies, by the shim.

#pragma once

#include <cuda.h>

#include "cuda/mbarrier.h"

namespace fbp::cuda {

inline void bulk_copy(void* to, const CUtensorMap& map, Mbarrier* barrier, int x, int y, int z,
                      FBP_SHIM_PLACE) {
  shim::TensorMap told;
  std::memcpy(&told, &map, sizeof told);
  shim::bulk_copy(to, told, barrier, {x, y, z}, 1u << shim::cluster_rank(), {file, line});
}

}  // namespace fbp::cuda
