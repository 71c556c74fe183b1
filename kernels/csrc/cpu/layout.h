// Feature maps: who works on what of them, and how they come into the other layout.

#pragma once

#include "simd.h"

namespace fbp::FBP_ISA {

enum Order { kForwards, kBackwards };  // what was read last is still in the cache

// Job number `index` of those of a map, of which `parallel` gives every nth to one thread: in such
// an order that a thread's lie together, as with PyTorch's own operators. What is next to them is
// then not another thread's, and its caches may have what was written before.
inline i64 in_pieces(i64 index, i64 jobs, int threads, Order order) {
  const i64 pieces = smaller<i64>(threads, jobs), piece = index % pieces;
  const auto begin = [&](i64 i) { return i * (jobs / pieces) + smaller(i, jobs % pieces); };
  return order == kForwards ? begin(piece) + index / pieces : begin(piece + 1) - 1 - index / pieces;
}

// Positions `first` to `end` of a map (images, channels, positions), counted through all images, as
// rows of channels: to[(position - first) * ld + channel]. E is T or what T is accumulated in.
template <class T, class E>
void gather_positions(const T* map, i64 channels, i64 positions, i64 first, i64 end, E* to,
                      i64 ld) {
  using S = typename AccumulateIn<T>::type;
  constexpr i64 W = kWidth<S>;
  while (first < end) {
    const i64 position = first % positions;
    const i64 count = smaller(end - first, positions - position);
    const T* const from = map + (first - position) * channels + position;
    for (i64 c = 0; c < channels; c += W)
      for (i64 i = 0; i < count; i += W) {
        Vec<S> tile[W];
#pragma GCC unroll 16
        for (i64 j = 0; j < W; ++j)
          tile[j] =
              c + j < channels ? load_first(from + (c + j) * positions + i, count - i) : Vec<S>{};
#pragma GCC unroll 16
        for (i64 j = W; j < 2 * W; ++j)  // rows far apart: hardware does not foresee them
          if (c + j < channels) __builtin_prefetch(from + (c + j) * positions + i);
        transpose<S>(tile);
#pragma GCC unroll 16
        for (i64 j = 0; j < W; ++j)
          if (i + j < count) store_first<E>(to + (i + j) * ld + c, tile[j], channels - c);
      }
    to += count * ld;
    first += count;
  }
}

}  // namespace fbp::FBP_ISA
