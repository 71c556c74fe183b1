// Products of a warpgroup, by the shim.

#pragma once

#include "../../hopper.h"
#include "cuda/common.h"

namespace fbp::cuda {

constexpr int kWgmmaRows = 64, kWgmmaColumns = 256, kWgmmaDepth = 16;
constexpr int kWgmmaSomeColumns = 64, kWgmmaFewColumns = 32;
constexpr int kTf32Columns = 128, kTf32Depth = 8;
constexpr int kWarpgroup = 128;
template <int kColumns>
constexpr int kSumsOf = kWgmmaRows * kColumns / kWarpgroup;
constexpr int kWgmmaSums = kSumsOf<kWgmmaColumns>;

using WgmmaSums = float[kWgmmaSums];
using WgmmaSomeSums = float[kSumsOf<kWgmmaSomeColumns>];
using WgmmaFewSums = float[kSumsOf<kWgmmaFewColumns>];
using Tf32Sums = float[kSumsOf<kTf32Columns>];

inline void wgmma_fence(FBP_SHIM_PLACE) { shim::wgmma_fence({file, line}); }
inline void wgmma_commit(FBP_SHIM_PLACE) { shim::wgmma_commit({file, line}); }
inline void wgmma_wait_for_earlier(FBP_SHIM_PLACE) { shim::wgmma_wait(1, {file, line}); }
template <int kSums>
void wgmma_wait_for_all(float (&)[kSums], FBP_SHIM_PLACE) {
  shim::wgmma_wait(0, {file, line});
}

template <class T, Along A, Along B, int kSums>
void wgmma(float (&d)[kSums], std::uint64_t a, std::uint64_t b, bool more, FBP_SHIM_PLACE) {
  constexpr auto number =
      std::is_same_v<T, __half> ? shim::Number::float16 : shim::Number::bfloat16;
  constexpr int kColumns = kSums * kWarpgroup / kWgmmaRows;
  shim::wgmma({number, kColumns, d, nullptr, a, b, A == Along::depth, B == Along::depth, more},
              {file, line});
}

template <int kSums>
void wgmma_tf32(float (&d)[kSums], const float (&a)[4], std::uint64_t b, bool more,
                FBP_SHIM_PLACE) {
  constexpr int kColumns = kSums * kWarpgroup / kWgmmaRows;
  std::uint32_t words[4];
  std::memcpy(words, a, sizeof words);
  shim::wgmma({shim::Number::tf32, kColumns, d, words, 0, b, true, true, more}, {file, line});
}

}  // namespace fbp::cuda
