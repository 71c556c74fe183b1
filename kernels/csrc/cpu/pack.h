// Copies between tensors of any strides and dtype and the layouts that the products read and write.

#pragma once

#include "simd.h"

namespace fbp::FBP_ISA {

// Elements that `pack` may write past the end of what it packs.
template <class S>
constexpr int kPackSlack = kWidth<S>;

// The first `count` elements, `stride` apart, the rest 0.
template <class T>
inline Vec<typename AccumulateIn<T>::type> load_strided(const T* from, i64 stride, i64 count) {
  using S = typename AccumulateIn<T>::type;
  if (stride == 1) return load_first(from, count);
  S buffer[kWidth<S>] = {};
  for (i64 i = 0; i < smaller<i64>(count, kWidth<S>); ++i) buffer[i] = widen(from[i * stride]);
  return load(buffer);
}

// Rounds `count` contiguous elements.
template <class T, class S>
void round_row(const S* from, i64 count, T* to) {
  for (i64 i = 0; i < count; i += kWidth<S>)
    store_first<T>(to + i, load_first(from + i, count - i), count - i);
}

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
      for (i64 r = 0; r < ld; r += W) {
        const T* const corner = from + r * row_stride + k;
        S* const place = to + k * ld + r;
        Vec<S> block[W];
        if (steps == W && r + W <= rows) {  // so ld holds the whole block as well
          for (i64 i = 0; i < W; ++i) block[i] = load(corner + i * row_stride);
          transpose<S>(block);
          for (i64 i = 0; i < W; ++i) store(place + i * ld, block[i]);
        } else {
          for (i64 i = 0; i < W; ++i)
            block[i] = r + i < rows ? load_first(corner + i * row_stride, steps) : Vec<S>{};
          transpose<S>(block);
          for (i64 i = 0; i < steps; ++i) store_first<S>(place + i * ld, block[i], ld - r);
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
      const S* const corner = tile + r * ld + lane;
      T* const place = to + lane * stride + r;
      const i64 count = smaller<i64>(W, lanes - lane);
      Vec<S> block[W];
      if (count == W && r + W <= rows) {
        for (i64 i = 0; i < W; ++i) block[i] = load(corner + i * ld);
        transpose<S>(block);
        for (i64 i = 0; i < W; ++i) store(place + i * stride, block[i]);
      } else {
        for (i64 i = 0; i < W; ++i) block[i] = r + i < rows ? load(corner + i * ld) : Vec<S>{};
        transpose<S>(block);
        for (i64 i = 0; i < count; ++i) store_first<T>(place + i * stride, block[i], rows - r);
      }
    }
  }
}

}  // namespace fbp::FBP_ISA
