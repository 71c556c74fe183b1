// How the host starts kernels, and what it has to know of the device.

#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace fbp::cuda {

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  // The runtime also keeps it for whoever asks next, who has nothing to do with it.
  cudaGetLastError();
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

constexpr int kMostDevices = 64;

// What bounds a launch on the current device.
struct DeviceLimits {
  int index = 0;
  int multiprocessors = 0;
  int shared_bytes = 0;  // of one block, static and dynamic
  int major = 0;         // of its compute capability

  bool clusters() const { return major >= 9; }
};

inline const DeviceLimits& current_device() {
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
                     ask(cudaDevAttrComputeCapabilityMajor)};
    known[index].store(true, std::memory_order_release);
  }
  return limits[index];
}

// Zeroes device memory, in stream order.
inline void clear(void* data, std::size_t bytes, void* stream) {
  check(cudaMemsetAsync(data, 0, bytes, static_cast<cudaStream_t>(stream)), "cudaMemsetAsync");
}

inline dim3 grid_of(std::int64_t blocks) {
  if (blocks > 0x7fffffff) throw std::runtime_error("more blocks than a launch can have");
  return dim3(static_cast<unsigned>(blocks));
}

// The most dynamic shared memory that a block of a kernel can have on the current device: what its
// static variables leave.
template <auto kKernel>
int most_shared_memory() {
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, kKernel), "cudaFuncGetAttributes");
  return current_device().shared_bytes - static_cast<int>(attributes.sharedSizeBytes);
}

// Allows a kernel all the dynamic shared memory that it can have, once on every device: without,
// static and dynamic memory together end at 48 KB. All threads that come here set the same.
template <auto kKernel>
void allow_shared_memory(const char* name) {
  static std::atomic<bool> allowed[kMostDevices];
  std::atomic<bool>& here = allowed[current_device().index];
  if (here.load(std::memory_order_relaxed)) return;
  check(cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             most_shared_memory<kKernel>()),
        name);
  here.store(true, std::memory_order_relaxed);
}

// Where the compiler leaves word of what a launch asks for: one variable for each kernel and number
// of bytes, read from its output by `fbp_kernels.tools.ptxas`.
template <auto kKernel, std::size_t kBytes>
__device__ std::uint64_t dynamic_shared = kBytes;

// The same where it follows from what the device has: for blocks of `kMost` bytes.
template <auto kKernel, int kMost, std::size_t kBytes>
__device__ std::uint64_t fitted_shared = kBytes;

// What blocks have on the devices that `fbp_kernels.tools.ptxas` knows.
template <auto kKernel, auto kFit>
void leave_word_of_fitted() {
  static_cast<void>(&fitted_shared<kKernel, 163 << 10, kFit(163 << 10)>);
  static_cast<void>(&fitted_shared<kKernel, 227 << 10, kFit(227 << 10)>);
}

// `cluster` blocks each are started together, on multiprocessors that reach each other's shared
// memory; 1 where they need not. `shared` is the number of bytes of dynamic shared memory.
template <auto kKernel, class... Arguments>
void start(const char* name, int cluster, dim3 grid, dim3 block, std::size_t shared, void* stream,
           const Arguments&... arguments) {
  if (shared > 0) allow_shared_memory<kKernel>(name);
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
  check(cudaLaunchKernelEx(&config, kKernel, arguments...), name);
}

// The same, with an amount of dynamic shared memory that the compiler knows.
template <auto kKernel, std::size_t kShared, class... Arguments>
void launch(const char* name, int cluster, dim3 grid, dim3 block, void* stream,
            const Arguments&... arguments) {
  static_cast<void>(&dynamic_shared<kKernel, kShared>);
  start<kKernel>(name, cluster, grid, block, kShared, stream, arguments...);
}

// The same, with an amount that follows from what the device has.
template <auto kKernel, auto kFit, class... Arguments>
void launch_fitted(const char* name, dim3 grid, dim3 block, std::size_t shared, void* stream,
                   const Arguments&... arguments) {
  leave_word_of_fitted<kKernel, kFit>();
  start<kKernel>(name, 1, grid, block, shared, stream, arguments...);
}

}  // namespace fbp::cuda

// Starts kernel<<<grid, block, shared, stream>>>(arguments...); throws std::runtime_error, with the
// kernel's name, where that fails. `shared` is a constant. What has commas needs parentheses.
#define FBP_LAUNCH(kernel, grid, block, shared, stream, ...) \
  FBP_LAUNCH_CLUSTERS(1, kernel, grid, block, shared, stream, __VA_ARGS__)

#define FBP_LAUNCH_CLUSTERS(cluster, kernel, grid, block, shared, stream, ...) \
  ::fbp::cuda::launch<(kernel), (shared)>(#kernel, cluster, grid, block, stream, __VA_ARGS__)

// With an amount of shared memory that follows from most_shared_memory() of the kernel; `fit` is a
// constexpr function that gives the most that is ever asked for where that is its argument.
#define FBP_LAUNCH_FITTED(kernel, fit, grid, block, shared, stream, ...) \
  ::fbp::cuda::launch_fitted<(kernel), (fit)>(#kernel, grid, block, shared, stream, __VA_ARGS__)
