// The CUDA built-ins and the part of the runtime that the kernels use, on the host; see shim.h.

#pragma once

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>

#include "../shim.h"

// The compiler's own names, which the runtime's header gives no other.
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __grid_constant__
// As many instructions that do nothing before a kernel as its blocks may have threads, which the
// runtime counts: an attribute that g++ takes wherever nvcc takes these bounds, templates included.
#define __launch_bounds__(...) \
  __attribute__((patchable_function_entry(shim::most_threads(__VA_ARGS__))))
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) __attribute__((aligned(bytes)))
// Static and, where nothing else in the library is, to be found and filled before each block.
#define __shared__ thread_local

constexpr int warpSize = 32;

namespace shim {

constexpr int most_threads(int threads, int = 0, int = 0) { return threads; }

}  // namespace shim

// Vectors, aligned as the accesses of a GPU must be.
#define FBP_SHIM_VECTORS(type, name, align2, align4)                          \
  struct alignas(align2) name##2 { type x, y; };                              \
  struct name##3 { type x, y, z; };                                           \
  struct alignas(align4) name##4 { type x, y, z, w; };                        \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; }            \
  inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; } \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
FBP_SHIM_VECTORS(float, float, 8, 16)
FBP_SHIM_VECTORS(double, double, 16, 16)
FBP_SHIM_VECTORS(int, int, 8, 16)
FBP_SHIM_VECTORS(unsigned short, ushort, 4, 8)
#undef FBP_SHIM_VECTORS
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

#define FBP_SHIM_PLACE int line = __builtin_LINE(), const char *file = __builtin_FILE()

// ---- barriers and warps ----

inline void __syncthreads(FBP_SHIM_PLACE) { shim::barrier({file, line}); }

inline void __syncwarp(unsigned mask = 0xffffffffu, FBP_SHIM_PLACE) {
  shim::meet("__syncwarp", mask, &mask, [](void* const*) {}, {file, line});
}

namespace shim {

template <class T>
struct Shuffle {
  T value, result;
  int source;  // the lane whose value is wanted
};

template <class T>
T shuffle(const char* name, unsigned mask, T value, int source, Place place) {
  Shuffle<T> own{value, value, source};
  meet(
      name, mask, &own,
      [](void* const lanes[32]) {
        for (int i = 0; i < 32; ++i) {
          if (lanes[i] == nullptr) continue;
          auto& to = *static_cast<Shuffle<T>*>(lanes[i]);
          auto* from = static_cast<Shuffle<T>*>(lanes[to.source]);
          if (from == nullptr) fail("a shuffle reads a lane that the mask lacks");
          to.result = from->value;
        }
      },
      place);
  return own.result;
}

struct Vote {
  bool is;
  unsigned ballot;
};

inline unsigned vote(const char* name, unsigned mask, bool is, Place place) {
  Vote own{is, 0};
  meet(
      name, mask, &own,
      [](void* const lanes[32]) {
        unsigned ballot = 0;
        for (int i = 0; i < 32; ++i)
          if (lanes[i] != nullptr && static_cast<Vote*>(lanes[i])->is) ballot |= 1u << i;
        for (int i = 0; i < 32; ++i)
          if (lanes[i] != nullptr) static_cast<Vote*>(lanes[i])->ballot = ballot;
      },
      place);
  return own.ballot;
}

}  // namespace shim

inline int min(int x, int y) { return x < y ? x : y; }

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, FBP_SHIM_PLACE) {
  const int base = shim::lane() / width * width;
  return shim::shuffle("__shfl_sync", mask, value, base + (source & (width - 1)), {file, line});
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, FBP_SHIM_PLACE) {
  const int lane = shim::lane(), other = lane ^ bits;
  // Past the own segment it keeps its value.
  const int source = other < lane / width * width + width ? other : lane;
  return shim::shuffle("__shfl_xor_sync", mask, value, source, {file, line});
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, FBP_SHIM_PLACE) {
  const int lane = shim::lane(), other = lane + static_cast<int>(by);
  const int source = other < lane / width * width + width ? other : lane;
  return shim::shuffle("__shfl_down_sync", mask, value, source, {file, line});
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, FBP_SHIM_PLACE) {
  const int lane = shim::lane(), other = lane - static_cast<int>(by);
  const int source = other >= lane / width * width ? other : lane;
  return shim::shuffle("__shfl_up_sync", mask, value, source, {file, line});
}
inline unsigned __ballot_sync(unsigned mask, int is, FBP_SHIM_PLACE) {
  return shim::vote("__ballot_sync", mask, is != 0, {file, line});
}
inline int __any_sync(unsigned mask, int is, FBP_SHIM_PLACE) {
  return shim::vote("__any_sync", mask, is != 0, {file, line}) != 0;
}
inline int __all_sync(unsigned mask, int is, FBP_SHIM_PLACE) {
  return shim::vote("__all_sync", mask, is != 0, {file, line}) == mask;
}

namespace shim {

// How many threads of the block say yes; the sum is taken on the way to the second barrier.
inline int count(bool is, Place place) {
  static int total;
  barrier(place);
  if (threadIdx.x + threadIdx.y + threadIdx.z == 0) total = 0;
  barrier(place);
  total += is;
  barrier(place);
  const int result = total;
  barrier(place);
  return result;
}

}  // namespace shim

inline int __syncthreads_count(int is, FBP_SHIM_PLACE) {
  return shim::count(is != 0, {file, line});
}
inline int __syncthreads_or(int is, FBP_SHIM_PLACE) {
  return shim::count(is != 0, {file, line}) != 0;
}
inline int __syncthreads_and(int is, FBP_SHIM_PLACE) {
  return shim::count(is == 0, {file, line}) == 0;
}

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
[[noreturn]] inline void __trap() { shim::fail("a trap"); }

// ---- atomics: integers only, for the order of blocks is not to be seen in results ----

template <class T>
using Integer = std::enable_if_t<std::is_integral_v<T>, T>;

template <class T>
Integer<T> atomicAdd(T* address, std::common_type_t<T> value) {
  const T old = *address;
  *address = old + value;
  return old;
}
template <class T>
Integer<T> atomicMax(T* address, std::common_type_t<T> value) {
  const T old = *address;
  *address = std::max(old, value);
  return old;
}
template <class T>
Integer<T> atomicExch(T* address, std::common_type_t<T> value) {
  const T old = *address;
  *address = value;
  return old;
}
template <class T>
Integer<T> atomicCAS(T* address, std::common_type_t<T> compare, std::common_type_t<T> value) {
  const T old = *address;
  if (old == compare) *address = value;
  return old;
}
inline unsigned atomicInc(unsigned* address, unsigned limit) {
  const unsigned old = *address;
  *address = old >= limit ? 0 : old + 1;
  return old;
}

// ---- memory ----

template <class T>
T __ldg(const T* address) {
  return *address;
}
template <class T>
T __ldcg(const T* address) {
  return *address;
}
template <class T>
T __ldcs(const T* address) {
  return *address;
}
template <class T>
T __ldlu(const T* address) {
  return *address;
}
template <class T>
void __stcg(T* address, T value) {
  *address = value;
}
template <class T>
void __stcs(T* address, T value) {
  *address = value;
}

// ---- numbers ----

namespace shim {

template <class To, class From>
To bits(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &value, sizeof result);
  return result;
}

}  // namespace shim

inline float __int_as_float(int x) { return shim::bits<float>(x); }
inline int __float_as_int(float x) { return shim::bits<int>(x); }
inline float __uint_as_float(unsigned x) { return shim::bits<float>(x); }
inline unsigned __float_as_uint(float x) { return shim::bits<unsigned>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<std::uint64_t>(a) * b >> 32);
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const std::uint64_t all = static_cast<std::uint64_t>(b) << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i)
    result |= static_cast<unsigned>(all >> (8 * (selector >> (4 * i) & 7)) & 0xff) << (8 * i);
  return result;
}

inline float rsqrtf(float x) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(x))); }
inline float __expf(float x) { return exp2f(x * 1.4426950408889634f); }
inline float __logf(float x) { return log2f(x) * 0.6931471805599453f; }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __frsqrt_rn(float x) { return rsqrtf(x); }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline float __fmul_rn(float x, float y) {
  volatile float product = x * y;  // never part of a fused operation
  return product;
}
inline float __fadd_rn(float x, float y) {
  volatile float sum = x + y;
  return sum;
}
inline float __saturatef(float x) { return x >= 1 ? 1.0f : x > 0 ? x : 0.0f; }

using std::max;
using std::min;

// ---- the runtime: what launch.h calls, with the rules of a device; see runtime.cpp ----

using cudaStream_t = void*;
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchOutOfResources = 701,
  cudaErrorLaunchFailure = 719,
  cudaErrorNotSupported = 801,
  cudaErrorInvalidClusterSize = 912,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
};
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };
struct cudaFuncAttributes {
  std::size_t sharedSizeBytes;
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    uint3 clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

enum cudaDriverEntryPointQueryResult {
  cudaDriverEntryPointSuccess,
  cudaDriverEntryPointSymbolNotFound
};
constexpr unsigned long long cudaEnableDefault = 0;

cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned version,
                                             unsigned long long flags,
                                             cudaDriverEntryPointQueryResult* result);

const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream);

namespace shim {

cudaError_t set_attribute(const void* kernel, cudaFuncAttribute attribute, int value);
cudaError_t attributes_of(cudaFuncAttributes* attributes, const void* kernel);
cudaError_t start(const cudaLaunchConfig_t& config, const void* kernel, std::function<void()> body);

}  // namespace shim

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute attribute, int value) {
  return shim::set_attribute(reinterpret_cast<const void*>(kernel), attribute, value);
}
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel* kernel) {
  return shim::attributes_of(attributes, reinterpret_cast<const void*>(kernel));
}
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const std::tuple<std::decay_t<Parameters>...> own(std::forward<Arguments>(arguments)...);
  // Every thread has parameters of its own.
  return shim::start(*config, reinterpret_cast<const void*>(kernel),
                     [kernel, own] { std::apply(kernel, own); });
}
