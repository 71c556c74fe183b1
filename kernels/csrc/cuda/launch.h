// How the host starts kernels, and what it has to know of the device. Tests put a header of the
// same path before this one, so that the kernels' sources compile for the processor: they include
// it as "cuda/launch.h", and use nothing of the CUDA runtime but what is here.

#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstddef>
#include <stdexcept>
#include <string>

// Code that only thread-block clusters can run is compiled where this is set.
#define FBP_CLUSTERS 1

namespace fbp::cuda {

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

// What bounds a launch on the current device.
struct DeviceLimits {
  int index = 0;
  int multiprocessors = 0;
  int shared_bytes = 0;  // of one block
  bool clusters = false;
};

inline const DeviceLimits& current_device() {
  constexpr int kMostDevices = 64;
  static DeviceLimits limits[kMostDevices];
  static std::atomic<bool> known[kMostDevices];
  int index = 0;
  check(cudaGetDevice(&index), "cudaGetDevice");
  if (index >= kMostDevices) throw std::runtime_error("device number " + std::to_string(index));
  if (!known[index].load(std::memory_order_acquire)) {
    // Threads that come here together write the same.
    const auto ask = [index](cudaDeviceAttr attribute) {
      int value = 0;
      check(cudaDeviceGetAttribute(&value, attribute, index), "cudaDeviceGetAttribute");
      return value;
    };
    limits[index] = {index, ask(cudaDevAttrMultiProcessorCount),
                     ask(cudaDevAttrMaxSharedMemoryPerBlockOptin),
                     ask(cudaDevAttrComputeCapabilityMajor) >= 9};
    known[index].store(true, std::memory_order_release);
  }
  return limits[index];
}

// Whether what is launched goes into a graph.
inline bool capturing(void* stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status), "cudaStreamIsCapturing");
  return status != cudaStreamCaptureStatusNone;
}

// Zeroes device memory, in stream order.
inline void clear(void* data, std::size_t bytes, void* stream) {
  check(cudaMemsetAsync(data, 0, bytes, static_cast<cudaStream_t>(stream)), "cudaMemsetAsync");
}

// Above 48 KB, dynamic shared memory has to be allowed once for every kernel and device.
inline void allow_shared_memory(const char* name, const void* kernel, std::size_t bytes,
                                std::atomic<unsigned long long>& allowed) {
  if (bytes <= (48 << 10)) return;
  const DeviceLimits& device = current_device();
  const unsigned long long bit = 1ull << device.index;
  if ((allowed.load(std::memory_order_relaxed) & bit) != 0) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             device.shared_bytes),
        name);
  allowed.fetch_or(bit, std::memory_order_relaxed);
}

// `cluster` blocks each are started together, on multiprocessors that reach each other's shared
// memory; 1 where they need not.
template <class... Parameters>
void launch(const char* name, std::atomic<unsigned long long>& allowed, int cluster,
            void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared, void* stream,
            Parameters... arguments) {
  allow_shared_memory(name, reinterpret_cast<const void*>(kernel), shared, allowed);
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = static_cast<cudaStream_t>(stream);
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  config.attrs = &attribute;
  config.numAttrs = cluster > 1 ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, arguments...), name);
}

// The block's dynamic shared memory.
__device__ inline unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
}

}  // namespace fbp::cuda

// Starts kernel<<<grid, block, shared, stream>>>(arguments...); throws std::runtime_error, with the
// kernel's name, where that fails. A kernel with commas in its name needs parentheses.
#define FBP_LAUNCH(kernel, grid, block, shared, stream, ...) \
  FBP_LAUNCH_CLUSTERS(1, kernel, grid, block, shared, stream, __VA_ARGS__)

#define FBP_LAUNCH_CLUSTERS(cluster, kernel, grid, block, shared, stream, ...)          \
  do {                                                                                  \
    static std::atomic<unsigned long long> allowed{0};                                  \
    ::fbp::cuda::launch(#kernel, allowed, cluster, kernel, grid, block, shared, stream, \
                        __VA_ARGS__);                                                   \
  } while (false)
