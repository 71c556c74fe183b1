// What the kernels share: storage types, copies into shared memory, dropout masks.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline.h>

#include <cstdint>

#include "../problem.h"
#include "cuda/launch.h"
#include "cuda/shared_memory.h"

namespace fbp::cuda {

using u32 = std::uint32_t;
using u64 = std::uint64_t;

constexpr int kWarp = 32;
constexpr int kChunkBytes = 16;  // the widest access of a thread

__host__ __device__ constexpr i64 ceil_div(i64 x, i64 y) { return (x + y - 1) / y; }
__host__ __device__ constexpr i64 smaller(i64 x, i64 y) { return x < y ? x : y; }
__host__ __device__ constexpr i64 larger(i64 x, i64 y) { return x < y ? y : x; }

// For the top of a loop: what follows from x is to be computed anew each time, and to take no
// registers all along.
__device__ inline void forget(int& x) { asm volatile("" : "+r"(x)); }

// How an operand lies in memory: what its lines, which are contiguous or nearly so, go along.
enum class Along { depth, other };

// ---- storage types ----

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float widen(__half x) { return __half2float(x); }

template <class T>
__device__ inline T narrow(float x);
template <>
__device__ inline float narrow<float>(float x) {
  return x;
}
template <>
__device__ inline __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
  return __float2bfloat16(x);
}
template <>
__device__ inline __half narrow<__half>(float x) {
  return __float2half(x);
}

// The sum of term(i) for i from `first` below `end`, `step` apart, in pieces: the error of one
// running sum grows with its length.
template <int kPiece, class Term>
__device__ inline float sum_in_pieces(i64 first, i64 end, i64 step, const Term& term) {
  float sum = 0;
  while (first < end) {
    const i64 stop = smaller(first + kPiece * step, end);
    float piece = 0;
#pragma unroll 8
    for (; first < stop; first += step) piece += term(first);
    sum += piece;
  }
  return sum;
}

// Calls f with a value of the storage type.
template <class F>
void with_type(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::float32:
      return f(float{});
    case Dtype::bfloat16:
      return f(__nv_bfloat16{});
    case Dtype::float16:
      return f(__half{});
    case Dtype::float64:
      throw std::runtime_error("the CUDA kernels have no float64");
  }
}

// The last of `count` blocks to come here, all with the same counter, gets true: it then sees what
// the others wrote before. The counter is 0 before and after. For all threads of a block.
__device__ inline bool arrives_last(unsigned* counter, unsigned count) {
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicAdd(counter, 1u) == count - 1;
    if (last) *counter = 0;
    __threadfence();
  }
  __syncthreads();
  return last;
}

// ---- dropout ----

constexpr int kQuad = 4;  // rows that one draw of random words is for

// The random words of four rows of the batch, 4 * quad on: Philox4x32-10 (Salmon et al. 2011,
// "Parallel random numbers: as easy as 1, 2, 3") of the counter (column, trunk, quad, stream).
__device__ inline void philox(u64 key, u32 column, u32 trunk, u32 quad, u32 stream, u32 words[4]) {
  u32 c0 = column, c1 = trunk, c2 = quad, c3 = stream;
  u32 key0 = static_cast<u32>(key), key1 = static_cast<u32>(key >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const u64 product0 = u64{c0} * 0xD2511F53u, product1 = u64{c2} * 0xCD9E8D57u;
    c0 = static_cast<u32>(product1 >> 32) ^ c1 ^ key0;
    c1 = static_cast<u32>(product1);
    c2 = static_cast<u32>(product0 >> 32) ^ c3 ^ key1;
    c3 = static_cast<u32>(product0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}

// What multiplies the products of four rows, 4 * quad on: 0 where they are dropped.
__device__ inline void dropout_factors(const Dropout& dropout, i64 column, i64 trunk, i64 quad,
                                       u32 stream, float factors[4]) {
  u32 words[4];
  philox(static_cast<u64>(*dropout.seed), static_cast<u32>(column), static_cast<u32>(trunk),
         static_cast<u32>(quad), stream, words);
#pragma unroll
  for (int i = 0; i < 4; ++i)
    factors[i] = u64{words[i]} >= dropout.threshold ? static_cast<float>(dropout.scale) : 0.0f;
}

}  // namespace fbp::cuda
