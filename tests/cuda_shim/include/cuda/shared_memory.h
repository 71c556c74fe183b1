// The block's dynamic shared memory, by the shim.

#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../../hopper.h"

namespace fbp::cuda {

inline unsigned char* shared_memory() { return shim::shared_memory(); }

inline unsigned char* shared_memory_of_patterns() {
  if (shim::shared_size() % 1024 != 0)
    shim::fail("patterns begin where there is no multiple of 1024");
  return shim::shared_memory();
}

inline std::uint32_t shared_address(const void* pointer) { return shim::shared_address(pointer); }

}  // namespace fbp::cuda
