// The block's dynamic shared memory, by the shim.

#pragma once

#include <cuda_runtime.h>

namespace fbp::cuda {

inline unsigned char* shared_memory() { return shim::shared_memory(); }

}  // namespace fbp::cuda
