// The CUDA runtime on the host: devices, streams and launches, with the rules of a device. What
// runs here runs at once, unless it is captured.

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "control.h"

namespace shim {

namespace {

constexpr int kWithoutLeave = 48 << 10;  // bytes of shared memory that any kernel may have

struct Device {
  int multiprocessors, major, shared_bytes;
  std::map<const void*, int> allowed;  // dynamic shared memory, by kernel
};

// Thread-local variables would be taken for shared memory.
struct Runtime {
  std::vector<Device> devices{{4, 9, static_cast<int>(kMostShared), {}}};
  int current = 0;
  std::map<const void*, int> statics;  // static shared memory, by kernel
  cudaError_t last = cudaSuccess;
  std::string said;   // of the last error
  int fails_in = -1;  // launches, of which the last is refused
  bool capturing = false;
  std::vector<Graph> graphs;
};

Runtime& runtime() {
  static Runtime one;
  return one;
}

cudaError_t refuse(cudaError_t error, const std::string& why) {
  runtime().last = error;
  runtime().said = why;
  return error;
}

std::string text(dim3 size) {
  return "(" + std::to_string(size.x) + ", " + std::to_string(size.y) + ", " +
         std::to_string(size.z) + ")";
}

bool is_empty(dim3 size) { return size.x == 0 || size.y == 0 || size.z == 0; }

int static_bytes(const void* kernel) {
  const auto found = runtime().statics.find(kernel);
  return found == runtime().statics.end() ? 0 : found->second;
}

// The threads that the launch bounds of a kernel allow, see __launch_bounds__.
std::uint64_t bound_of(const void* kernel) {
#if defined(__x86_64__)
  constexpr unsigned char kNothing = 0x90;
  const auto* const begin = static_cast<const unsigned char*>(kernel);
  const unsigned char* at = begin;
  while (*at == kNothing) ++at;
  if (at != begin) return static_cast<std::uint64_t>(at - begin);
#endif
  return kMostThreads;
}

// Runs it, or makes it a part of the graph that is captured.
cudaError_t submit(Work work) {
  Runtime& r = runtime();
  if (r.capturing) {
    r.graphs.back().push_back(std::move(work));
    return cudaSuccess;
  }
  try {
    work();
  } catch (const std::runtime_error& error) {
    return refuse(cudaErrorLaunchFailure, error.what());
  }
  return cudaSuccess;
}

}  // namespace

void use_device(int multiprocessors, int major, int shared_bytes) {
  Runtime& r = runtime();
  const auto count = static_cast<int>(r.devices.size());
  for (r.current = 0; r.current < count; ++r.current) {
    const Device& device = r.devices[r.current];
    if (device.multiprocessors == multiprocessors && device.major == major &&
        device.shared_bytes == shared_bytes)
      return;
  }
  r.devices.push_back({multiprocessors, major, shared_bytes, {}});
}

void set_static_bytes(const void* kernel, int bytes) { runtime().statics[kernel] = bytes; }

void fail_launch(int number) { runtime().fails_in = number; }

bool capturing() { return runtime().capturing; }

void begin_capture() {
  runtime().graphs.emplace_back();
  runtime().capturing = true;
}

int end_capture() {
  runtime().capturing = false;
  return static_cast<int>(runtime().graphs.size()) - 1;
}

const Graph& graph(int number) { return runtime().graphs.at(number); }

cudaError_t set_attribute(const void* kernel, cudaFuncAttribute, int value) {
  Runtime& r = runtime();
  Device& device = r.devices[r.current];
  const int most = device.shared_bytes - static_bytes(kernel);
  if (value < 0 || value > most)
    return refuse(cudaErrorInvalidValue, "invalid argument: " + std::to_string(value) +
                                             " bytes of dynamic shared memory are asked for, " +
                                             std::to_string(most) + " are left by static memory");
  device.allowed[kernel] = value;
  return cudaSuccess;
}

cudaError_t attributes_of(cudaFuncAttributes* attributes, const void* kernel) {
  attributes->sharedSizeBytes = static_bytes(kernel);
  return cudaSuccess;
}

cudaError_t start(const cudaLaunchConfig_t& config, const void* kernel,
                  std::function<void()> body) {
  Runtime& r = runtime();
  Device& device = r.devices[r.current];
  const dim3 grid = config.gridDim, block = config.blockDim;
  if (r.fails_in >= 0 && r.fails_in-- == 0)
    return refuse(cudaErrorLaunchOutOfResources, "too many resources requested for launch");
  if (is_empty(grid) || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535)
    return refuse(cudaErrorInvalidConfiguration,
                  "invalid configuration argument: a grid of " + text(grid));
  if (is_empty(block) || block.z > 64 || std::uint64_t{block.x} * block.y * block.z > kMostThreads)
    return refuse(cudaErrorInvalidConfiguration,
                  "invalid configuration argument: blocks of " + text(block));
  const std::uint64_t threads = std::uint64_t{block.x} * block.y * block.z;
  if (threads > bound_of(kernel))
    return refuse(cudaErrorInvalidValue, "invalid argument: blocks of " + std::to_string(threads) +
                                             " threads of a kernel whose launch bounds allow " +
                                             std::to_string(bound_of(kernel)));
  Launch launch;
  launch.grid = grid;
  launch.block = block;
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const uint3 cluster = config.attrs[i].val.clusterDim;
    if (device.major < 9)
      return refuse(cudaErrorNotSupported, "operation not supported: clusters before sm_90");
    if (cluster.y != 1 || cluster.z != 1 || cluster.x < 1 || cluster.x > kMostBlocks ||
        grid.x % cluster.x != 0)
      return refuse(cudaErrorInvalidClusterSize,
                    "invalid cluster size: " + text({cluster.x, cluster.y, cluster.z}) +
                        " of a grid of " + text(grid));
    launch.cluster = cluster.x;
  }
  const auto found = device.allowed.find(kernel);
  const int left = kWithoutLeave - static_bytes(kernel);
  if (left < 0)
    return refuse(cudaErrorInvalidValue,
                  "invalid argument: " + std::to_string(static_bytes(kernel)) +
                      " bytes of static shared memory");
  const int allowed = found == device.allowed.end() ? left : std::max(left, found->second);
  if (config.dynamicSmemBytes > static_cast<std::size_t>(allowed))
    return refuse(cudaErrorInvalidValue,
                  "invalid argument: " + std::to_string(config.dynamicSmemBytes) +
                      " bytes of dynamic shared memory, allowed are " + std::to_string(allowed));
  launch.shared = config.dynamicSmemBytes;
  launch.body = std::move(body);
  return submit([launch] { run(launch); });
}

}  // namespace shim

const char* cudaGetErrorString(cudaError_t) { return shim::runtime().said.c_str(); }

cudaError_t cudaGetLastError() { return std::exchange(shim::runtime().last, cudaSuccess); }

cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  const bool there = std::strcmp(name, "cuTensorMapEncodeTiled") == 0;
  *function = there ? reinterpret_cast<void*>(cuTensorMapEncodeTiled) : nullptr;
  *result = there ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = shim::runtime().current;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int number) {
  const shim::Device& device = shim::runtime().devices.at(number);
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = device.multiprocessors;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = device.major;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = device.shared_bytes;
      return cudaSuccess;
  }
  return shim::refuse(cudaErrorInvalidValue, "invalid argument");
}

cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t) {
  return shim::submit([=] { std::memset(to, value, bytes); });
}
