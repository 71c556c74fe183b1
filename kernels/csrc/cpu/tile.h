// What the inner loop of a product works on: a tile of the result, the operands that it is made of,
// and how elements are multiplied.

#pragma once

#include "pack.h"

namespace fbp::FBP_ISA {

// Divides `length` rows into tiles of at most `most` that differ by at most one row, larger ones
// first.
struct Tiling {
  i64 length, count;

  Tiling(i64 length_, i64 most) : length(length_), count(ceil_div(length_, most)) {}
  i64 start(i64 tile) const { return tile * (length / count) + smaller(tile, length % count); }
  int rows(i64 tile) const { return static_cast<int>(start(tile + 1) - start(tile)); }
};

// A matrix anywhere: element (r, k) is at data[r * row + k * step].
template <class E>
struct Matrix {
  const E* data;
  i64 row, step;

  const E* at(i64 r, i64 k) const { return data + r * row + k * step; }
};

// What a step does: `left` is broadcast, `right` a vector, sums are vectors of S.
template <class S>
struct MultiplyAdd {
  using Sum = S;
  using Element = S;
  static constexpr int depth = 1;  // elements of the sum per step

  static Vec<S> step(Vec<S> sum, S left, Vec<S> right) { return sum + splat(left) * right; }
  static Vec<S> dot(Vec<S> sum, Vec<S> left, Vec<S> right) { return sum + left * right; }
};

#if defined(__AVX512BF16__)
// Pairs of bfloat16, as the processor multiplies them: the even element in the lower half.
struct MultiplyPairs {
  using Sum = float;
  using Element = u32;
  static constexpr int depth = 2;

  static Vec<float> step(Vec<float> sum, u32 left, Vec<float> right) {
    return _mm512_dpbf16_ps(sum, reinterpret<__m512bh>(_mm512_set1_epi32(static_cast<int>(left))),
                            reinterpret<__m512bh>(right));
  }
  static Vec<float> dot(Vec<float> sum, Vec<float> left, Vec<float> right) {
    return _mm512_dpbf16_ps(sum, reinterpret<__m512bh>(left), reinterpret<__m512bh>(right));
  }
};
#endif

// How products of T are made.
template <class T>
struct ArithmeticOf {
  using type = MultiplyAdd<typename AccumulateIn<T>::type>;
};
#if defined(__AVX512BF16__)
template <>
struct ArithmeticOf<bfloat16> {
  using type = MultiplyPairs;
};
#endif
template <class T>
using Arithmetic = typename ArithmeticOf<T>::type;

// A vector as it lies in memory.
inline Vec<float> load_bits(const float* from) { return load(from); }
inline Vec<double> load_bits(const double* from) { return load(from); }
inline Vec<float> load_bits(const u32* from) {
  Vec<float> x;
  __builtin_memcpy(&x, from, sizeof x);
  return x;
}

#if defined(__AVX512BF16__)
inline Vec<float> load_bits(const bfloat16* from) {
  Vec<float> x;
  __builtin_memcpy(&x, from, sizeof x);
  return x;
}
#endif

// Its first `count` elements, the rest 0.
template <class S>
inline Vec<S> load_first_bits(const S* from, i64 count) {
  return load_first(from, count);
}
#if defined(__AVX512BF16__)
inline Vec<float> load_first_bits(const bfloat16* from, i64 count) {
  return reinterpret<Vec<float>>(_mm512_maskz_loadu_epi16(
      static_cast<__mmask32>((u64{1} << smaller<i64>(count, 32)) - 1), from));
}
#endif

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

// Rows of a tile. More would not help: eight rows of three vectors keep the multipliers busy.
constexpr int kMaxRows = kRegisters == 32 ? 8 : 6;

// Vectors of a tile of so many rows: sums, one row of `right` and a broadcast share the registers.
constexpr int max_vectors(int rows) { return smaller((kRegisters - 1) / (rows + 1), 8); }

// Stores a vector past the caches: the line is not read first, and nothing useful makes room for
// it. The address is a multiple of the vector's size. Other threads may read it after
// `finish_streams`.
#if defined(__AVX2__)
constexpr bool kStreams = true;
#if defined(__AVX512F__)
inline void stream(float* to, Vec<float> x) { _mm512_stream_ps(to, x); }
inline void stream(double* to, Vec<double> x) { _mm512_stream_pd(to, x); }
#else
inline void stream(float* to, Vec<float> x) { _mm256_stream_ps(to, x); }
inline void stream(double* to, Vec<double> x) { _mm256_stream_pd(to, x); }
#endif
inline void finish_streams() { _mm_sfence(); }
#else
// Tiles of shorter vectors would write lines in parts, each of them a transfer of its own.
constexpr bool kStreams = false;
inline void stream(float* to, Vec<float> x) { store(to, x); }
inline void stream(double* to, Vec<double> x) { store(to, x); }
inline void finish_streams() {}
#endif

// Whether rows of so many bytes from there on are whole cache lines, as streaming asks for.
inline bool streamable(const void* data, i64 row_bytes) {
  return kStreams && reinterpret_cast<std::uintptr_t>(data) % 64 == 0 && row_bytes % 64 == 0;
}

// sums (rows, vectors * kWidth) (+)= left (rows, depth) right (depth, vectors * kWidth), and what
// is fetched meanwhile.
template <class Op>
struct OuterTile {
  using S = typename Op::Sum;
  using E = typename Op::Element;

  Matrix<E> left;
  const E* right;
  i64 right_stride;
  i64 depth;
  S* sums;
  i64 sums_stride;
  bool first;   // nothing is there to add to
  S* streamed;  // where the result goes in place of `sums`, past the cache; or null
  i64 streamed_stride;
  // This is number `turn` of `turns` that read `right`, one after the other.
  i64 turn, turns;
  // Into L1: as much as is read of `right`, from here on.
  const E* next_right;
  i64 next_right_stride;
  // Into L2: of 8 rows from here on, so many bytes every 8 steps. Not into L1: where rows are pages
  // apart, they would drive out those that are being read.
  const char* next_left;
  i64 next_left_stride, next_left_bytes;
  E* copy;  // where the first turn stores `right`, rows together; or null
};

// Adds a tile's sums to what is there, or writes them.
template <class Op, int Rows, int Vectors>
[[gnu::always_inline]] inline void finish(const OuterTile<Op>& tile,
                                          Vec<typename Op::Sum> (&sum)[Rows][Vectors]) {
  using S = typename Op::Sum;
  constexpr int W = kWidth<S>;
  S *const sums = tile.sums, *const streamed = tile.streamed;
  const i64 sums_stride = tile.sums_stride, streamed_stride = tile.streamed_stride;
  const bool first = tile.first;
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j) {
      S* const to = sums + r * sums_stride + j * W;
      if (!first) sum[r][j] += load(to);
      if (streamed) {
        stream(streamed + r * streamed_stride + j * W, sum[r][j]);
      } else {
        store(to, sum[r][j]);
      }
    }
  }
}

}  // namespace fbp::FBP_ISA
