// Copies between tensors of any strides and dtype and the layouts that the microkernel reads and
// writes.

#pragma once

#include "simd.h"

namespace fbp::FBP_ISA {

// Elements that `pack` may write past the end of what it packs.
template <class S>
constexpr int kPackSlack = kWidth<S>;

// to[k * ld + r] = from[r * row_stride + k * depth_stride] for r < rows, zero for rows <= r < ld.
template <class T, class S>
void pack(const T* from, i64 row_stride, i64 depth_stride, i64 rows, i64 depth, i64 ld, S* to) {
  constexpr int W = kWidth<S>;
  if (row_stride == 1) {
    for (i64 k = 0; k < depth; ++k)
      // Later steps overwrite what a vector writes past ld.
      for (i64 r = 0; r < ld; r += W)
        store(to + k * ld + r, load_first(from + k * depth_stride + r, larger<i64>(rows - r, 0)));
    return;
  }
  if (depth_stride == 1) {
    for (i64 k = 0; k < depth; k += W) {
      const i64 steps = smaller<i64>(W, depth - k);
      Vec<S> staged[W];
      for (i64 r = 0; r < ld; r += W) {
        for (int i = 0; i < W; ++i)
          staged[i] = r + i < rows ? load_first(from + (r + i) * row_stride + k, steps) : Vec<S>{};
        transpose<S>(staged);
        for (i64 i = 0; i < steps; ++i) {
          S* const place = to + (k + i) * ld + r;
          if (ld - r >= W) {
            store(place, staged[i]);
          } else {
            store_first<S>(place, staged[i], ld - r);
          }
        }
      }
    }
    return;
  }
  for (i64 k = 0; k < depth; ++k)
    for (i64 r = 0; r < ld; ++r)
      to[k * ld + r] = r < rows ? widen(from[r * row_stride + k * depth_stride]) : S{0};
}

// to[lane * stride + r] = tile[r * ld + lane] for r < rows, lane < lanes.
template <class T, class S>
void store_transposed(const S* tile, i64 ld, i64 rows, i64 lanes, T* to, i64 stride) {
  constexpr int W = kWidth<S>;
  for (i64 r = 0; r < rows; r += W) {
    for (i64 lane = 0; lane < lanes; lane += W) {
      Vec<S> staged[W];
      for (int i = 0; i < W; ++i)
        staged[i] = r + i < rows ? load(tile + (r + i) * ld + lane) : Vec<S>{};
      transpose<S>(staged);
      const i64 count = smaller<i64>(W, lanes - lane);
      for (i64 i = 0; i < count; ++i)
        store_first<T>(to + (lane + i) * stride + r, staged[i], rows - r);
    }
  }
}

}  // namespace fbp::FBP_ISA
