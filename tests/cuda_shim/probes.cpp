// Kernels with a mistake each, and some without: what the shim has to say of them.

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline.h>
#include <cuda_runtime.h>
#include <mma.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/launch.h"
#include "cuda/shared_memory.h"
#include "hopper_probes.h"

namespace {

using cooperative_groups::this_cluster;
using fbp::cuda::shared_memory;
namespace wmma = nvcuda::wmma;

// ---- with a mistake ----

__global__ void some_skip_the_barrier(int* out) {
  if (threadIdx.x < 40) __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void different_barriers(int* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1;
}

__global__ void a_lane_skips_the_shuffle(int* out) {
  if (threadIdx.x != 5) out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1, 1);
  __syncthreads();
}

__global__ void the_mask_lacks_the_lane(int* out) {
  out[threadIdx.x] = __shfl_sync(0x0000ffffu, 1, 0);
}

__global__ void lanes_at_different_shuffles(int* out) {
  if (threadIdx.x % 2 == 0) {
    out[threadIdx.x] = __shfl_sync(0xffffffffu, 1, 0);
  } else {
    out[threadIdx.x] = __shfl_sync(0xffffffffu, 1, 0);
  }
}

// clang-format off: on one line, so that it is the operation that tells them apart
__global__ void lanes_in_different_operations(int* out) {
  out[threadIdx.x] = threadIdx.x % 2 == 0 ? __shfl_sync(~0u, 1, 0) : __shfl_xor_sync(~0u, 1, 1);
}
// clang-format on

__global__ void beyond_shared_memory(int* out) {
  reinterpret_cast<int*>(shared_memory())[64 + 4096 + threadIdx.x] = 1;
  out[threadIdx.x] = 1;
}

__global__ void a_little_beyond_shared_memory(int* out) {
  reinterpret_cast<int*>(shared_memory())[threadIdx.x + 2] = 1;
  out[threadIdx.x] = 1;
}

__global__ void misaligned(int* out) {
  *reinterpret_cast<float4*>(out + 1) = make_float4(0, 0, 0, 0);
}

__global__ void misaligned_in_shared_memory(int* out) {
  *reinterpret_cast<float2*>(shared_memory() + 4) = make_float2(0, 0);
  out[threadIdx.x] = 1;
}

__global__ void a_copy_from_a_misaligned_place(int* out) {
  __pipeline_memcpy_async(shared_memory(), out + 1, 16);
}

__global__ void a_copy_to_a_misaligned_place(int* out) {
  __pipeline_memcpy_async(shared_memory() + 4, out, 8);
}

__global__ void beyond_an_array(int* out) {
  int own[4] = {};
  own[threadIdx.x] = 1;
  out[threadIdx.x] = own[threadIdx.x];
}

__global__ void a_copy_that_nobody_waits_for(int* out) {
  if (threadIdx.x == 0) __pipeline_memcpy_async(shared_memory(), out, 16);
}

__global__ void a_fragment_that_is_not_aligned(int*) {
  wmma::fragment<wmma::matrix_a, 16, 16, 16, __half, wmma::row_major> a;
  wmma::load_matrix_sync(a, reinterpret_cast<const __half*>(shared_memory()) + 8, 16);
}

__global__ void nobody(int*) { __trap(); }

__global__ void a_block_skips_the_barrier_of_its_cluster(int* out) {
  if (blockIdx.x != 1) this_cluster().sync();
  out[threadIdx.x] = 1;
}

__global__ void a_block_that_the_cluster_lacks(int* out) {
  out[threadIdx.x] = *this_cluster().map_shared_rank(shared_memory(), blockIdx.x + 2);
}

__global__ void static_memory_of_another_block(int* out) {
  __shared__ int value;
  value = 1;
  this_cluster().sync();
  out[threadIdx.x] = *this_cluster().map_shared_rank(&value, 1 - blockIdx.x);
}

// ---- whose result shows a mistake ----

// Reads what the neighbour writes, without a barrier in between.
__global__ void no_barrier(int* out) {
  __shared__ int values[64];
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  out[threadIdx.x] = values[63 - threadIdx.x];
}

// Finds what an earlier block left.
__global__ void not_written(int* out) {
  __shared__ int values[64];
  if (blockIdx.x == 0) values[threadIdx.x] = static_cast<int>(threadIdx.x);
  __syncthreads();
  if (blockIdx.x == 1) out[threadIdx.x] = values[threadIdx.x];
}

__global__ void not_waited_for(int* out) {
  int* const values = reinterpret_cast<int*>(shared_memory());
  __pipeline_memcpy_async(values + threadIdx.x, out + threadIdx.x, 4);
  __pipeline_commit();
  const int value = values[threadIdx.x];
  __pipeline_wait_prior(0);
  out[threadIdx.x] = value;
}

// Each block writes what its neighbour wrote: before that has written it, or after it has ended.
__global__ void no_barrier_before_a_neighbour_is_read(int* out) {
  const unsigned rank = this_cluster().block_rank();
  int* const values = reinterpret_cast<int*>(shared_memory());
  values[threadIdx.x] = static_cast<int>((1 - rank) * 32 + threadIdx.x);
  __syncthreads();
  out[rank * 32 + threadIdx.x] = this_cluster().map_shared_rank(values, 1 - rank)[threadIdx.x];
  this_cluster().sync();
}

__global__ void no_barrier_after_a_neighbour_was_read(int* out) {
  const unsigned rank = this_cluster().block_rank();
  int* const values = reinterpret_cast<int*>(shared_memory());
  values[threadIdx.x] = static_cast<int>((1 - rank) * 32 + threadIdx.x);
  this_cluster().sync();
  out[rank * 32 + threadIdx.x] = this_cluster().map_shared_rank(values, 1 - rank)[threadIdx.x];
}

__global__ void last_block_wins(int* out) { out[threadIdx.x] = static_cast<int>(blockIdx.x); }

// ---- without one: out[i] = i ----

__global__ void barriers(int* out) {
  __shared__ int values[64];
  values[threadIdx.x] = static_cast<int>(63 - threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = values[63 - threadIdx.x];
}

__global__ void clusters(int* out) {
  __shared__ int own[32];
  const unsigned rank = this_cluster().block_rank();
  int* const values = reinterpret_cast<int*>(shared_memory());
  values[threadIdx.x] = static_cast<int>((1 - rank) * 32 + threadIdx.x);
  own[threadIdx.x] = static_cast<int>(rank);
  this_cluster().sync();
  const int read = this_cluster().map_shared_rank(values, 1 - rank)[threadIdx.x];
  this_cluster().sync();
  const bool right = own[31 - threadIdx.x] == static_cast<int>(rank) &&
                     this_cluster().num_blocks() == 2 && gridDim.x == 2;
  out[rank * 32 + threadIdx.x] = right ? read : -1;
}

__global__ void warps(int* out) {
  const int lane = static_cast<int>(threadIdx.x) % 32, base = static_cast<int>(threadIdx.x) - lane;
  int sum = lane;
  for (int bit = 16; bit > 0; bit /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bit);
  const unsigned even = __ballot_sync(0xffffffffu, lane % 2 == 0);
  int value = __shfl_sync(0xffffffffu, lane, 31 - lane);  // 31 - lane
  value = __shfl_down_sync(0xffffffffu, value, 1);        // 30 - lane, and 0 at the last
  const bool right = sum == 496 && even == 0x55555555u && value == (lane < 31 ? 30 - lane : 0);
  out[threadIdx.x] = right ? base + lane : -1;
}

// Which is right with as many threads as its bounds allow, and no more.
template <int kThreads>
__global__ void __launch_bounds__(kThreads, 2) bounded(int* out) {
  out[threadIdx.x] = static_cast<int>(threadIdx.x);
}

// Products of whole numbers, exact in every type: out[i] = i.
template <class T, int kDepth, class Stored>
__global__ void product(int* out) {
  float* const c = reinterpret_cast<float*>(shared_memory());
  Stored* const a = reinterpret_cast<Stored*>(c + 256);
  Stored* const b = a + 16 * kDepth;
  if (threadIdx.x < 32) {
    for (int i = static_cast<int>(threadIdx.x); i < 16 * kDepth; i += 32) {
      const int row = i / kDepth, depth = i % kDepth;
      a[i] = depth == 0 ? static_cast<float>(row) : depth == 1 ? 1.0f : 0.0f;
      // By columns: row 0 is 16, row 1 counts.
      b[i] = depth == 0 ? 16.0f : depth == 1 ? static_cast<float>(row) : 0.0f;
    }
    __syncwarp();
    wmma::fragment<wmma::matrix_a, 16, 16, kDepth, T, wmma::row_major> left;
    wmma::fragment<wmma::matrix_b, 16, 16, kDepth, T, wmma::col_major> right;
    wmma::fragment<wmma::accumulator, 16, 16, kDepth, float> sum;
    wmma::fill_fragment(sum, 0.0f);
    wmma::load_matrix_sync(left, a, kDepth);
    wmma::load_matrix_sync(right, b, kDepth);
    wmma::mma_sync(sum, left, right, sum);
    wmma::store_matrix_sync(c, sum, 16, wmma::mem_row_major);
  }
  __syncthreads();
  out[threadIdx.x] = static_cast<int>(c[threadIdx.x]);
}

// Every number of 16 bits there and back, and numbers between two of them.
__global__ void rounding(int* out) {
  int wrong = 0;
  for (unsigned i = threadIdx.x; i < 0x7c00; i += 64) {
    const auto bits = static_cast<unsigned short>(i);
    const float low = __half2float(__ushort_as_half(bits));
    const float high = __half2float(__ushort_as_half(static_cast<unsigned short>(i + 1)));
    wrong += __half_as_ushort(__float2half(low)) != bits;
    if (i + 1 == 0x7c00) continue;
    const unsigned short even = static_cast<unsigned short>(i % 2 == 0 ? i : i + 1);
    wrong += __half_as_ushort(__float2half((low + high) / 2)) != even;
    wrong += __half_as_ushort(__float2half(-(low + high) / 2)) != (even | 0x8000);
  }
  for (unsigned i = threadIdx.x; i < 0x7f7f; i += 64) {
    const auto bits = static_cast<unsigned short>(i);
    const float low = __bfloat162float(__ushort_as_bfloat16(bits));
    const float middle = __uint_as_float(__float_as_uint(low) + 0x8000);
    wrong += __bfloat16_as_ushort(__float2bfloat16(low)) != bits;
    wrong += __bfloat16_as_ushort(__float2bfloat16(middle)) != i + i % 2;
  }
  out[threadIdx.x] = wrong == 0 ? static_cast<int>(threadIdx.x) : -1;
}

struct Probe {
  const char* name;
  void (*start)(const Probe& probe, int* out);
  unsigned threads = 64, blocks = 1, cluster = 1;
  std::size_t shared = 65 * sizeof(int);
};

template <auto kKernel>
void start(const Probe& probe, int* out) {
  fbp::cuda::start<kKernel>(probe.name, static_cast<int>(probe.cluster), dim3(probe.blocks),
                            dim3(probe.threads), probe.shared, nullptr, out);
}

template <auto kKernel, int kChunks = 8, int kLinesOfB = 64>
void start_mapped(const Probe& probe, int* out) {
  start_hopper<kKernel, kChunks, kLinesOfB>(probe.name, probe.threads, probe.cluster, out);
}

#define HOPPER(kernel) {#kernel, start_mapped<kernel>, 128}
// Of lines of so many chunks, both ways that b can lie, and both places for a.
#define LAYOUTS(chunks)                                                                            \
  {"layouts_" #chunks "_columns", start_mapped<layouts<chunks, false, false>, chunks, 16>, 128},   \
      {"layouts_" #chunks "_depth", start_mapped<layouts<chunks, true, false>, chunks, 256>, 128}, \
      {"layouts_" #chunks "_registers", start_mapped<layouts<chunks, false, true>, chunks, 16>,    \
       128}
#define PROBE(kernel) {#kernel, start<kernel>}
#define CLUSTER(kernel) {#kernel, start<kernel>, 32, 2, 2}

const Probe kProbes[] = {
    PROBE(some_skip_the_barrier),
    PROBE(different_barriers),
    PROBE(a_lane_skips_the_shuffle),
    PROBE(the_mask_lacks_the_lane),
    PROBE(lanes_at_different_shuffles),
    PROBE(lanes_in_different_operations),
    PROBE(beyond_shared_memory),
    PROBE(a_little_beyond_shared_memory),
    PROBE(misaligned),
    PROBE(misaligned_in_shared_memory),
    PROBE(a_copy_from_a_misaligned_place),
    PROBE(a_copy_to_a_misaligned_place),
    PROBE(beyond_an_array),
    PROBE(a_copy_that_nobody_waits_for),
    PROBE(a_fragment_that_is_not_aligned),
    PROBE(nobody),
    CLUSTER(a_block_skips_the_barrier_of_its_cluster),
    CLUSTER(a_block_that_the_cluster_lacks),
    CLUSTER(static_memory_of_another_block),
    CLUSTER(no_barrier_before_a_neighbour_is_read),
    CLUSTER(no_barrier_after_a_neighbour_was_read),
    CLUSTER(clusters),
    HOPPER(a_barrier_that_is_not_there),
    HOPPER(more_arrivals_than_are_counted),
    HOPPER(a_barrier_that_copies_do_not_know),
    HOPPER(bytes_that_never_come),
    HOPPER(a_bulk_copy_that_nobody_waits_for),
    HOPPER(a_bulk_copy_to_a_misaligned_place),
    HOPPER(registers_that_nobody_gave),
    HOPPER(registers_of_some_warps),
    HOPPER(a_product_without_a_fence),
    HOPPER(a_product_that_nobody_waits_for),
    HOPPER(an_operand_outside_of_shared_memory),
    HOPPER(warps_that_multiply_different_things),
    HOPPER(a_bulk_copy_read_too_early),
    {"written_without_a_proxy_fence", start_mapped<written_by_threads<false>>, 128},
    {"written_before_a_proxy_fence", start_mapped<written_by_threads<true>>, 128},
    HOPPER(boxes),
    {"multicast", start_mapped<multicast>, 32, 1, 2},
    {"copy_of_one_block", start_mapped<copy_of_one_block>, 32, 1, 2},
    LAYOUTS(1),
    LAYOUTS(2),
    LAYOUTS(4),
    LAYOUTS(8),
    HOPPER(tf32_of_registers),
    {"handed_registers", start_mapped<handed_registers>, 384},
    PROBE(no_barrier),
    {"not_written", start<not_written>, 64, 2},
    PROBE(not_waited_for),
    {"last_block_wins", start<last_block_wins>, 1, 3},
    PROBE(barriers),
    PROBE(warps),
    {"within_launch_bounds", start<bounded<64>>},
    {"beyond_launch_bounds", start<bounded<63>>},
    {"half_product", start<product<__half, 16, __half>>, 256, 1, 1, 4096},
    {"bfloat16_product", start<product<__nv_bfloat16, 16, __nv_bfloat16>>, 256, 1, 1, 4096},
    {"tf32_product", start<product<wmma::precision::tf32, 8, float>>, 256, 1, 1, 4096},
    PROBE(rounding),
};

}  // namespace

// Runs a probe; says what the shim said, or "wrong" where out[i] is not i.
extern "C" __attribute__((visibility("default"))) const char* fbp_shim_probe(const char* name) {
  static std::string said;
  for (const Probe& probe : kProbes) {
    if (std::string(probe.name) != name) continue;
    alignas(16) static int out[1024];
    for (int i = 0; i < 1024; ++i) out[i] = i;
    try {
      probe.start(probe, out);
    } catch (const std::runtime_error& error) {
      said = error.what();
      return said.c_str();
    }
    for (unsigned i = 0; i < probe.threads * probe.cluster; ++i)
      if (out[i] != static_cast<int>(i)) return "wrong";
    return "";
  }
  return "there is no such probe";
}

namespace {

// Two kernels whose attributes are their own.
__global__ void first_kernel() {
  __shared__ int value;
  static_cast<volatile int&>(value) = 1;
}
__global__ void second_kernel() {}

}  // namespace

// Starts the first kernel, after `allowed` bytes of dynamic shared memory were allowed to it, or to
// the second, where they are not negative. Says what the runtime says.
extern "C" __attribute__((visibility("default"))) const char* fbp_shim_start(
    const unsigned grid[3], const unsigned block[3], unsigned cluster, std::size_t shared,
    int allowed, bool to_second) {
  if (allowed >= 0) {
    const auto set = cudaFuncAttributeMaxDynamicSharedMemorySize;
    const cudaError_t status =
        cudaFuncSetAttribute(to_second ? second_kernel : first_kernel, set, allowed);
    if (status != cudaSuccess) return cudaGetErrorString(status);
  }
  cudaLaunchAttribute attribute = {};
  attribute.val.clusterDim = {cluster, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = {grid[0], grid[1], grid[2]};
  config.blockDim = {block[0], block[1], block[2]};
  config.dynamicSmemBytes = shared;
  config.attrs = &attribute;
  config.numAttrs = cluster == 0 ? 0 : 1;
  const cudaError_t status = cudaLaunchKernelEx(&config, first_kernel);
  return status == cudaSuccess ? "" : cudaGetErrorString(status);
}
