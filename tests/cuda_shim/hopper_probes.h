// Kernels for Hopper with a mistake each, and some without, see probes.cpp.

#pragma once

#include <cuda.h>

#include "cuda/bulk_copy.h"
#include "cuda/launch.h"
#include "cuda/mbarrier.h"
#include "cuda/tensor_map.h"
#include "cuda/warpgroup.h"
#include "cuda/wgmma.h"

namespace {

using namespace fbp::cuda;

// What all of them copy and multiply: small whole numbers, (lines, length).
constexpr int kLines = 320, kLength = 272;
float number_at(int line, int i) {
  return line >= 0 && line < kLines && i < kLength ? static_cast<float>((line * 3 + i * 5) % 7 - 3)
                                                   : 0.0f;
}

const __nv_bfloat16* numbers() {
  alignas(16) static __nv_bfloat16 all[kLines * kLength];
  for (int i = 0; i < kLines * kLength; ++i) all[i] = number_at(i / kLength, i % kLength);
  return all;
}

struct Maps {
  CUtensorMap box;   // 64 lines of 64 numbers
  CUtensorMap a, b;  // as the swizzle that a kernel is for has them
};

struct HopperMemory {
  alignas(1024) unsigned char a[16384], b[65536];
  Mbarrier barrier, other;
};

HopperMemory& hopper_memory() {
  return *reinterpret_cast<HopperMemory*>(shared_memory_of_patterns());
}

void init_barriers(unsigned arrivals = 1) {
  if (threadIdx.x == 0) {
    mbarrier_init(&hopper_memory().barrier, arrivals);
    mbarrier_init(&hopper_memory().other, arrivals);
    mbarrier_init_fence();
  }
  __syncthreads();
}

void copy_box(const Maps& maps, int x, int line) {
  HopperMemory& memory = hopper_memory();
  mbarrier_arrive_expecting(&memory.barrier, 64 * 128);
  bulk_copy(memory.a, maps.box, &memory.barrier, x, line, 0);
}

float in_box(int line, int i) {
  const int at = line * 128 + ((i / 8 ^ line % 8) * 16) + i % 8 * 2;
  return *reinterpret_cast<const __nv_bfloat16*>(hopper_memory().a + at);
}

// ---- with a mistake ----

__global__ void a_barrier_that_is_not_there(int*, Maps) {
  mbarrier_wait(&hopper_memory().barrier, 0);
}

__global__ void more_arrivals_than_are_counted(int*, Maps maps) {
  init_barriers();
  if (threadIdx.x > 0) return;
  copy_box(maps, 0, 0);
  mbarrier_arrive(&hopper_memory().barrier);
}

__global__ void a_barrier_that_copies_do_not_know(int*, Maps maps) {
  if (threadIdx.x > 0) return;
  mbarrier_init(&hopper_memory().barrier, 1);
  copy_box(maps, 0, 0);
}

__global__ void bytes_that_never_come(int*, Maps) {
  init_barriers();
  if (threadIdx.x == 0) mbarrier_arrive_expecting(&hopper_memory().barrier, 16);
  mbarrier_wait(&hopper_memory().barrier, 0);
}

__global__ void a_bulk_copy_that_nobody_waits_for(int*, Maps maps) {
  init_barriers();
  if (threadIdx.x == 0) copy_box(maps, 0, 0);
}

__global__ void a_bulk_copy_to_a_misaligned_place(int*, Maps maps) {
  init_barriers();
  HopperMemory& memory = hopper_memory();
  bulk_copy(memory.a + 64, maps.box, &memory.barrier, 0, 0, 0);
}

__global__ void registers_that_nobody_gave(int*, Maps) { take_registers<256>(); }

__global__ void registers_of_some_warps(int*, Maps) {
  if (threadIdx.x < 96) give_registers<40>();
}

std::uint64_t descriptor(const void* begin, unsigned leading, unsigned stride, unsigned mode) {
  return (shared_address(begin) & 0x3ffff) >> 4 | std::uint64_t{leading >> 4} << 16 |
         std::uint64_t{stride >> 4} << 32 | std::uint64_t{mode} << 62;
}

__global__ void a_product_without_a_fence(int*, Maps) {
  WgmmaSums sums = {};
  wgmma<__half, Along::depth, Along::other>(sums, 0, 0, true);
}

__global__ void a_product_that_nobody_waits_for(int*, Maps) {
  WgmmaSums sums = {};
  HopperMemory& memory = hopper_memory();
  wgmma_fence();
  wgmma<__half, Along::depth, Along::other>(sums, descriptor(memory.a, 0, 1024, 1),
                                            descriptor(memory.b, 8192, 1024, 1), true);
  wgmma_commit();
}

__global__ void an_operand_outside_of_shared_memory(int*, Maps) {
  WgmmaSums sums = {};
  wgmma_fence();
  wgmma<__half, Along::depth, Along::other>(sums, 0x3fff | std::uint64_t{1} << 62,
                                            std::uint64_t{1} << 62, true);
  wgmma_commit();
  wgmma_wait_for_all(sums);
}

__global__ void warps_that_multiply_different_things(int*, Maps) {
  WgmmaSums sums = {};
  HopperMemory& memory = hopper_memory();
  wgmma_fence();
  wgmma<__half, Along::depth, Along::other>(
      sums, descriptor(memory.a + threadIdx.x / 32 * 1024, 0, 1024, 1),
      descriptor(memory.b, 8192, 1024, 1), true);
  wgmma_commit();
  wgmma_wait_for_all(sums);
}

// ---- whose result shows a mistake ----

__global__ void a_bulk_copy_read_too_early(int* out, Maps maps) {
  init_barriers();
  if (threadIdx.x == 0) copy_box(maps, 0, 0);
  const int lane = static_cast<int>(threadIdx.x);
  const bool right = in_box(lane / 2, 5) == number_at(lane / 2, 5);
  mbarrier_wait(&hopper_memory().barrier, 0);
  out[lane] = right ? lane : -1;
}

// A product of what threads have written, with ones on the diagonal of b.
template <bool kFence>
__global__ void written_by_threads(int* out, Maps) {
  HopperMemory& memory = hopper_memory();
  const int t = static_cast<int>(threadIdx.x);
  for (int i = t; i < static_cast<int>(sizeof memory.a + sizeof memory.b) / 2; i += 128)
    reinterpret_cast<__nv_bfloat16*>(memory.a)[i] = 0.0f;
  __syncthreads();
  // Row r of a has r at depth 0, which row 0 of b brings to column 0.
  if (t < 64) reinterpret_cast<__nv_bfloat16*>(memory.a + t * 128 + t % 8 * 16)[0] = float(t);
  if (t == 0) reinterpret_cast<__nv_bfloat16*>(memory.b)[0] = 1.0f;
  if (kFence) proxy_fence();
  __syncthreads();
  WgmmaSums sums = {};
  wgmma_fence();
  wgmma<__nv_bfloat16, Along::depth, Along::other>(sums, descriptor(memory.a, 0, 1024, 1),
                                                   descriptor(memory.b, 8192, 1024, 1), false);
  wgmma_commit();
  wgmma_wait_for_all(sums);
  const int row = 16 * (t / 32) + t % 32 / 4;
  const bool right = t % 4 > 0 || (sums[0] == float(row) && sums[2] == float(row + 8));
  out[t] = right ? t : -1;
}

// ---- without one: out[i] = i ----

// Lines and numbers that there are not are 0.
__global__ void boxes(int* out, Maps maps) {
  init_barriers();
  bool right = true;
  unsigned parity = 0;
  const int line = static_cast<int>(threadIdx.x) / 2;
  for (const int x : {0, 37, 240}) {
    for (const int first : {0, 300, -3}) {
      if (threadIdx.x == 0) copy_box(maps, x, first);
      mbarrier_wait(&hopper_memory().barrier, parity);
      parity ^= 1;
      for (int i = 0; i < 64; ++i)
        right = right && in_box(line, i) == number_at(first + line, x + i);
      __syncthreads();
    }
  }
  out[threadIdx.x] = right ? static_cast<int>(threadIdx.x) : -1;
}

// Two blocks copy half of a box each, to both of them.
__global__ void multicast(int* out, Maps maps) {
  init_barriers();
  HopperMemory& memory = hopper_memory();
  const unsigned rank = shim::cluster_rank();
  if (threadIdx.x == 0) mbarrier_arrive_expecting(&memory.barrier, 2 * 64 * 128);
  __syncthreads();
  shim::cluster_barrier({__FILE__, __LINE__});
  if (threadIdx.x == 0) {
    shim::TensorMap told;
    std::memcpy(&told, &maps.box, sizeof told);
    shim::bulk_copy(memory.a + rank * 8192, told, &memory.barrier,
                    {0, static_cast<int>(rank) * 64, 0}, 3, {__FILE__, __LINE__});
  }
  mbarrier_wait(&memory.barrier, 0);
  bool right = true;
  for (int line = 0; line < 128; ++line) right = right && in_box(line, 7) == number_at(line, 7);
  shim::cluster_barrier({__FILE__, __LINE__});
  const int at = static_cast<int>(rank * blockDim.x + threadIdx.x);
  out[at] = right ? at : -1;
}

// One of two blocks waits for a copy, the other for the first.
__global__ void copy_of_one_block(int* out, Maps maps) {
  init_barriers();
  const unsigned rank = shim::cluster_rank();
  bool right = true;
  if (rank == 1) {
    if (threadIdx.x == 0) copy_box(maps, 0, 0);
    mbarrier_wait(&hopper_memory().barrier, 0);
    for (int line = 0; line < 64; ++line) right = right && in_box(line, 7) == number_at(line, 7);
  }
  shim::cluster_barrier({__FILE__, __LINE__});
  const int at = static_cast<int>(rank * blockDim.x + threadIdx.x);
  out[at] = right ? at : -1;
}

// (64, 16) times (16, 256), in every layout: lines of kChunks times 16 bytes; b with its depth, or
// its columns, contiguous; a in shared memory, or in registers.
template <int kChunks, bool kByDepth, bool kRegisters>
__global__ void layouts(int* out, Maps maps) {
  constexpr int kLine = kChunks * 16, kNumbers = kLine / 2;
  constexpr unsigned kMode = kChunks == 8 ? 1 : kChunks == 4 ? 2 : kChunks == 2 ? 3 : 0;
  constexpr int kBoxesOfA = kNumbers < 16 ? 2 : 1;
  constexpr int kBoxesOfB = kByDepth ? kBoxesOfA : 256 / kNumbers;
  constexpr int kBoxLines = kByDepth ? 256 : 16;
  init_barriers();
  HopperMemory& memory = hopper_memory();
  if (threadIdx.x == 0) {
    mbarrier_arrive_expecting(&memory.barrier,
                              kBoxesOfA * 64 * kLine + kBoxesOfB * kBoxLines * kLine);
    for (int i = 0; i < kBoxesOfA; ++i)
      bulk_copy(memory.a + i * 64 * kLine, maps.a, &memory.barrier, i * kNumbers, 0, 0);
    for (int i = 0; i < kBoxesOfB; ++i)
      bulk_copy(memory.b + i * kBoxLines * kLine, maps.b, &memory.barrier, i * kNumbers, 0, 0);
  }
  mbarrier_wait(&memory.barrier, 0);
  // Without a swizzle, strides are of the eight lines by 16 bytes that are together.
  const auto a = descriptor(memory.a, kChunks == 1 ? 64 * kLine : 0, 8 * kLine, kMode);
  const unsigned next = kBoxLines * kLine, eight = 8 * kLine;
  const auto b = kByDepth       ? descriptor(memory.b, kChunks == 1 ? next : 0, eight, kMode)
                 : kChunks == 1 ? descriptor(memory.b, eight, next, kMode)
                                : descriptor(memory.b, next, eight, kMode);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int row = 16 * warp + lane / 4;
  std::uint32_t registers[4];
  for (int word = 0; word < 4; ++word) {
    const int r = row + word % 2 * 8, k = word / 2 * 8 + lane % 4 * 2;
    const __nv_bfloat16 low = number_at(r, k), high = number_at(r, k + 1);
    registers[word] = static_cast<std::uint32_t>(high.bits) << 16 | low.bits;
  }
  WgmmaSums sums;
  for (float& sum : sums) sum = 1;
  wgmma_fence();
  for (int i = 0; i < 2; ++i)
    shim::wgmma({shim::Number::bfloat16, 256, sums, kRegisters ? registers : nullptr, a, b, true,
                 kByDepth, true},
                {__FILE__, __LINE__});
  wgmma_commit();
  wgmma_wait_for_all(sums);
  bool right = true;
  for (int i = 0; i < kWgmmaSums; ++i) {
    const int r = row + i % 4 / 2 * 8, c = i / 4 * 8 + lane % 4 * 2 + i % 2;
    float expected = 1;
    for (int k = 0; k < 16; ++k)
      expected += 2 * number_at(r, k) * (kByDepth ? number_at(c, k) : number_at(k, c));
    right = right && sums[i] == expected;
  }
  out[threadIdx.x] = right ? static_cast<int>(threadIdx.x) : -1;
}

// (64, 16) times (16, 128) in TF32, a in registers, b as threads have written it. a has a digit
// more than TF32 has, which does not count.
__global__ void tf32_of_registers(int* out, Maps) {
  init_barriers();
  HopperMemory& memory = hopper_memory();
  const int t = static_cast<int>(threadIdx.x), lane = t % 32, row = 16 * (t / 32) + lane / 4;
  for (int i = t; i < kTf32Columns * 32; i += 128) {
    const int n = i / 32, k = i % 32;
    *reinterpret_cast<float*>(memory.a + n * 128 + ((k / 4 ^ n % 8) * 16) + k % 4 * 4) =
        number_at(n, k);
  }
  proxy_fence();
  __syncthreads();
  Tf32Sums sums;
  for (float& sum : sums) sum = 1;
  wgmma_fence();
  for (int step = 0; step < 2; ++step) {
    float a[4];
    for (int i = 0; i < 4; ++i)
      a[i] = number_at(row + i % 2 * 8, 8 * step + i / 2 * 4 + lane % 4) * (1 + 0x1p-12f);
    wgmma_tf32(sums, a, descriptor(memory.a + 32 * step, 0, 1024, 1), true);
  }
  wgmma_commit();
  wgmma_wait_for_all(sums);
  bool right = true;
  for (int i = 0; i < kSumsOf<kTf32Columns>; ++i) {
    const int r = row + i % 4 / 2 * 8, c = i / 4 * 8 + lane % 4 * 2 + i % 2;
    float expected = 1;
    for (int k = 0; k < 16; ++k) expected += number_at(r, k) * number_at(c, k);
    right = right && sums[i] == expected;
  }
  out[t] = right ? t : -1;
}

// Warpgroups that hand registers to one another, whoever comes first.
__global__ void handed_registers(int* out, Maps) {
  if (threadIdx.x < 128) {
    give_registers<40>();
  } else {
    take_registers<232>();
  }
  out[threadIdx.x] = static_cast<int>(threadIdx.x);
}

CUtensorMap map_of(int chunks, int length, int lines) {
  constexpr CUtensorMapSwizzle kSwizzles[4] = {CU_TENSOR_MAP_SWIZZLE_NONE,
                                               CU_TENSOR_MAP_SWIZZLE_32B, CU_TENSOR_MAP_SWIZZLE_64B,
                                               CU_TENSOR_MAP_SWIZZLE_128B};
  const cuuint64_t sizes[3] = {kLength, kLines, 1};
  const cuuint64_t strides[2] = {kLength * 2, kLength * kLines * 2};
  const cuuint32_t box[3] = {static_cast<cuuint32_t>(length), static_cast<cuuint32_t>(lines), 1};
  const cuuint32_t every[3] = {1, 1, 1};
  CUtensorMap map;
  const int swizzle = chunks == 8 ? 3 : chunks == 4 ? 2 : chunks == 2 ? 1 : 0;
  const CUresult result = tensor_map_encoder()(
      &map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<__nv_bfloat16*>(numbers()), sizes,
      strides, box, every, CU_TENSOR_MAP_INTERLEAVE_NONE, kSwizzles[swizzle],
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) throw std::runtime_error("no tensor map");
  return map;
}

// Starts a kernel of these with maps for lines of so many chunks.
template <auto kKernel, int kChunks, int kLinesOfB>
void start_hopper(const char* name, unsigned threads, unsigned cluster, int* out) {
  const Maps maps{map_of(8, 64, 64), map_of(kChunks, kChunks * 8, 64),
                  map_of(kChunks, kChunks * 8, kLinesOfB)};
  start<kKernel>(name, static_cast<int>(cluster), dim3(cluster), dim3(threads),
                 sizeof(HopperMemory), nullptr, out, maps);
}

}  // namespace
