// Products of a warpgroup, by the shim.

#pragma once

#include "../../hopper.h"
#include "cuda/common.h"

namespace fbp::cuda {

constexpr int kWgmmaRows = 64, kWgmmaColumns = 256, kWgmmaDepth = 16;
constexpr int kWarpgroup = 128;
constexpr int kWgmmaSums = kWgmmaRows * kWgmmaColumns / kWarpgroup;

using WgmmaSums = float[kWgmmaSums];

inline void wgmma_fence(FBP_SHIM_PLACE) { shim::wgmma_fence({file, line}); }
inline void wgmma_commit(FBP_SHIM_PLACE) { shim::wgmma_commit({file, line}); }
inline void wgmma_wait_for_earlier(FBP_SHIM_PLACE) { shim::wgmma_wait(1, {file, line}); }
inline void wgmma_wait_for_all(WgmmaSums&, FBP_SHIM_PLACE) { shim::wgmma_wait(0, {file, line}); }

template <class T, Along A, Along B>
void wgmma(WgmmaSums& d, std::uint64_t a, std::uint64_t b, bool more, FBP_SHIM_PLACE) {
  constexpr auto number =
      std::is_same_v<T, __half> ? shim::Number::float16 : shim::Number::bfloat16;
  shim::wgmma({number, kWgmmaColumns, d, nullptr, a, b, A == Along::depth, B == Along::depth, more},
              {file, line});
}

}  // namespace fbp::cuda
