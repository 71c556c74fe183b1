// How the kernels are started on the host: what the header of this path among the kernels' sources
// declares, by the shim.

#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstddef>
#include <stdexcept>
#include <string>

namespace fbp::cuda {

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

struct DeviceLimits {
  int index = 0;
  int multiprocessors = 0;
  int shared_bytes = 0;
  bool clusters = false;
};

inline DeviceLimits current_device() {
  return {0, shim::settings().multiprocessors, static_cast<int>(shim::kSharedLimit), false};
}

inline bool capturing(void*) { return false; }

inline void clear(void* data, std::size_t bytes, void*) { std::memset(data, 0, bytes); }

inline unsigned char* shared_memory() { return shim::shared_memory(); }

}  // namespace fbp::cuda

#define FBP_LAUNCH(kernel, grid, block, shared, stream, ...) \
  ((void)(stream), ::shim::launch(#kernel, kernel, grid, block, shared, __VA_ARGS__))
