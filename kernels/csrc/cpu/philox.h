// Dropout masks from counters: the mask is never stored, forward and backward compute the same one.
//
// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

#pragma once

#include "simd.h"

namespace fbp::FBP_ISA {

// mask[r * lanes + l] for column n0 + r and batch row b0 + l: the factor of that element, 0 where
// it is dropped. `lanes` and `b0` are multiples of 4, `rows * lanes` is at most Capacity.
template <int Capacity, class S>
void dropout_mask(const Dropout& dropout, u32 stream, i64 h, i64 n0, int rows, i64 b0, int lanes,
                  S* mask) {
  const u64 seed = static_cast<u64>(*dropout.seed);
  // One counter (column, trunk, row / 4, stream) gives the words of four rows.
  const u32 quads = static_cast<u32>(lanes) / 4, count = static_cast<u32>(rows) * quads;
  u32 words[4][Capacity / 4];
  for (u32 i = 0; i < count; ++i) {
    u32 c0 = static_cast<u32>(n0) + i / quads, c1 = static_cast<u32>(h);
    u32 c2 = static_cast<u32>(b0 / 4) + i % quads, c3 = stream;
    u32 key0 = static_cast<u32>(seed), key1 = static_cast<u32>(seed >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
      const u64 product0 = u64{c0} * 0xD2511F53u, product1 = u64{c2} * 0xCD9E8D57u;
      c0 = static_cast<u32>(product1 >> 32) ^ c1 ^ key0;
      c1 = static_cast<u32>(product1);
      c2 = static_cast<u32>(product0 >> 32) ^ c3 ^ key1;
      c3 = static_cast<u32>(product0);
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
    words[0][i] = c0;
    words[1][i] = c1;
    words[2][i] = c2;
    words[3][i] = c3;
  }
  // With dropout 1 the threshold is 2^32, which no word reaches.
  const bool none = dropout.threshold > 0xffffffffu;
  const u32 threshold = static_cast<u32>(dropout.threshold);
  const S kept = none ? S{0} : static_cast<S>(dropout.scale);
  for (u32 i = 0; i < count; ++i)
    for (int j = 0; j < 4; ++j) mask[4 * i + j] = words[j][i] >= threshold ? kept : S{0};
}

}  // namespace fbp::FBP_ISA
