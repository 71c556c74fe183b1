// The inner loops of all bilinear products. Both read their operands where they stand:
//
//   outer: out[r][j] (+)= sum over k of left[r][k] * right[k][j]   columns are lanes
//   dot:   out[r][j] (+)= sum over k of left[r][k] * right[j][k]   steps are lanes
//
// `outer` broadcasts one number of `left`, at any strides, and reads contiguous vectors of `right`;
// `dot` reads vectors of both, and so transposes neither.

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

// Rows of a matrix three at a time: x86 addresses have room for a base and once or twice a stride,
// so that `Rows` pointers take a third of the registers.
template <class E, int Rows>
struct RowPointers {
  static constexpr int kBases = (Rows + 2) / 3;
  const char* base[kBases];
  i64 row;

  RowPointers(const E* data, i64 row_) : row(row_ * i64{sizeof(E)}) {
    for (int i = 0; i < kBases; ++i) base[i] = reinterpret_cast<const char*>(data) + 3 * i * row;
  }
  const E* operator[](int r) const { return reinterpret_cast<const E*>(base[r / 3] + r % 3 * row); }
  void advance(i64 bytes) {
#pragma GCC unroll 4
    for (int i = 0; i < kBases; ++i) {
      base[i] += bytes;
      asm("" : "+r"(base[i]));  // or the compiler makes a pointer of each row again, and spills
    }
  }
};

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
  // Into L1: as much as is read of `right`, from here on.
  const E* next_right;
  // Into L2: of 8 rows from here on, so many bytes every 8 steps. Not into L1: where rows are pages
  // apart, they would drive out those that are being read.
  const char* next_left;
  i64 next_left_stride, next_left_bytes;
};

template <class Op, int Rows, int Vectors>
void outer_tile(const OuterTile<Op>& tile) {
  using S = typename Op::Sum;
  using E = typename Op::Element;
  constexpr int W = kWidth<S>;
  Vec<S> sum[Rows][Vectors] = {};
  RowPointers<E, Rows> rows(tile.left.data, tile.left.row);
  const i64 depth = tile.depth, left_step = tile.left.step * i64{sizeof(E)};
  const i64 right_stride = tile.right_stride;
  const E *right = tile.right, *next_right = tile.next_right;
  const char* const next_left = tile.next_left;
  const i64 next_left_stride = tile.next_left_stride, next_left_bytes = tile.next_left_bytes;
  for (i64 k = 0; k < depth; ++k) {
    Vec<S> x[Vectors];
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j) {
      x[j] = load_bits(right + j * W);
      __builtin_prefetch(next_right + j * W);
    }
    __builtin_prefetch(next_left + (k & 7) * next_left_stride + (k >> 3) * next_left_bytes, 0, 2);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      E factor;
      __builtin_memcpy(&factor, rows[r], sizeof factor);
#pragma GCC unroll 8
      for (int j = 0; j < Vectors; ++j) sum[r][j] = Op::step(sum[r][j], factor, x[j]);
    }
    rows.advance(left_step);
    right += right_stride;
    next_right += right_stride;
  }
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

// Rows are at most kMaxRows and vectors at most max_vectors(rows).
template <class Op, int Rows = kMaxRows, int Vectors = max_vectors(Rows)>
inline void outer(int rows, int vectors, const OuterTile<Op>& tile) {
  if constexpr (Rows > 0 && Vectors > 0) {
    if (rows == Rows && vectors == Vectors) {
      outer_tile<Op, Rows, Vectors>(tile);
    } else if (rows == Rows) {
      outer<Op, Rows, Vectors - 1>(rows, vectors, tile);
    } else {
      outer<Op, Rows - 1>(rows, vectors, tile);
    }
  }
}

// Tile of `dot`: its sums, a vector of each row of one side and one of the other share the
// registers. Taken in runs of so many elements, that the tile's columns stay in L1.
constexpr int kDotRows = kRegisters == 32 ? 4 : 2;
constexpr int kDotColumns = 4;
constexpr i64 kDotRun = 1024;

// The sums of the lanes of W vectors, in their order.
template <class S>
inline Vec<S> sum_lanes(Vec<S>* x) {
  using I = typename FirstIndices<kWidth<S>>::type;
#pragma GCC unroll 4
  for (int half = kWidth<S> / 2; half > 0; half /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i)
      x[i] = interleave<S, false>(x[i], x[i + half], I{}) +
             interleave<S, true>(x[i], x[i + half], I{});
  return x[0];
}

template <class E, int Rows>
void dot_tile(int columns, const Matrix<E>& left, const Matrix<E>& right, i64 depth,
              typename AccumulateIn<E>::type* out, i64 out_stride, bool first) {
  using S = typename AccumulateIn<E>::type;
  using Op = Arithmetic<E>;
  constexpr int W = kWidth<S>, kStep = W * Op::depth, kSums = Rows * kDotColumns;
  Vec<S> sum[round_up(kSums, W)] = {};
  const E *x[Rows], *y[kDotColumns];
  for (int r = 0; r < Rows; ++r) x[r] = left.at(r, 0);
  for (int c = 0; c < kDotColumns; ++c) y[c] = right.at(smaller(c, columns - 1), 0);
  const auto add = [&](const auto& read, i64 k) {
    Vec<S> factor[Rows];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) factor[r] = load_bits(x[r] + k);
#pragma GCC unroll 8
    for (int c = 0; c < kDotColumns; ++c) {
      const Vec<S> other = read(y[c] + k);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r)
        sum[r * kDotColumns + c] = Op::dot(sum[r * kDotColumns + c], factor[r], other);
    }
  };
  i64 k = 0;
  for (; k + kStep <= depth; k += kStep) add([](const E* from) { return load_bits(from); }, k);
  if (k < depth) add([&](const E* from) { return load_first_bits(from, depth - k); }, k);
  S total[round_up(kSums, W)];
#pragma GCC unroll 4
  for (int i = 0; i < kSums; i += W) store(total + i, sum_lanes<S>(sum + i));
  for (int r = 0; r < Rows; ++r)
    for (int c = 0; c < columns; ++c) {
      S& to = out[r * out_stride + c];
      to = first ? total[r * kDotColumns + c] : to + total[r * kDotColumns + c];
    }
}

// out (rows, columns) (+)= left right^T; `left` (rows, depth) is padded with zeros to whole
// vectors, `right` is (columns, depth). Steps are 1.
template <class E, class S, int Rows = kDotRows>
inline void dot(int rows, int columns, const Matrix<E>& left, const Matrix<E>& right, i64 depth,
                S* out, i64 out_stride, bool first) {
  if constexpr (Rows > 0) {
    if (rows == Rows) {
      dot_tile<E, Rows>(columns, left, right, depth, out, out_stride, first);
    } else {
      dot<E, S, Rows - 1>(rows, columns, left, right, depth, out, out_stride, first);
    }
  }
}

}  // namespace fbp::FBP_ISA
