// The loop of `outer` for 16 registers, where processors dispatch hardly more instructions than the
// multiply-adds leave room for: 23 a step of 12 multiply-adds, in place of the 37 that compilers
// make of outer.h. Four steps to a pass, no index arithmetic; sums are the same bits.
//
// Multiply-adds are assembly: unrolled, GCC takes other forms of them, moves and spills.

#pragma once

#include "tile.h"

namespace fbp::FBP_ISA {

// Whether rows that are broadcast, so many elements from row to row and from step to step, are read
// where they stand by so many panels. The elements of all rows or of four steps must be at fixed
// distances; and what many panels read, pages apart, is better copied to lie together.
constexpr bool reads_in_place(i64 row, i64 step, i64 panels) {
  return row == 1 || (step == 1 && panels < 16);
}

// The next rows are fetched before a tile, for the first panel alone: one of eight rows each step,
// as in outer.h, would be 128 lines in the 768 cycles of a tile.
constexpr bool kFetchesRows = false;

// Gradients of weights copy the inputs, whose rows are the steps there: of many trunks they lie
// pages apart, so that a run's lines share one or two sets of L1.
constexpr bool kCopiesInputs = true;

constexpr int kStepsPerPass = 4;

// So many tiles share the fetch of the next panel, a line each pass. Where there are fewer, each
// fetches all of it, in every step.
constexpr i64 kSharers = 4;

// The first of so many tiles that read a panel copies it, for its rows lie kilobytes apart.
constexpr i64 kCopyingTurns = kSharers;

inline void multiply_add(Vec<float>& sum, Vec<float> x, Vec<float> y) {
  asm("vfmadd231ps %1,%2,%0" : "+x"(sum) : "x"(x), "x"(y));
}
inline void multiply_add(Vec<double>& sum, Vec<double> x, Vec<double> y) {
  asm("vfmadd231pd %1,%2,%0" : "+x"(sum) : "x"(x), "x"(y));
}

// The element `Disp` bytes from where `Rows` times `row` bytes past `base` are. The address is
// written out, or compilers keep sums of its parts in registers; the last operand says what is
// read.
template <int Rows, int Disp, class S>
inline Vec<S> broadcast(const S* base, i64 row) {
  using Any = const S(*)[1 << 20];
  Vec<S> x;
#define FBP_BROADCAST(instruction)                                                    \
  if constexpr (Rows == 0) {                                                          \
    asm(instruction " %c2(%1),%0" : "=x"(x) : "r"(base), "i"(Disp), "m"(*Any(base))); \
  } else {                                                                            \
    asm(instruction " %c2(%1,%3,%c4),%0"                                              \
        : "=x"(x)                                                                     \
        : "r"(base), "i"(Disp), "r"(row), "i"(Rows), "m"(*Any(base)));                \
  }
  if constexpr (sizeof(S) == 4) {
    FBP_BROADCAST("vbroadcastss")
  } else {
    FBP_BROADCAST("vbroadcastsd")
  }
#undef FBP_BROADCAST
  return x;
}

// A pointer of which the compiler does not know that it is another one plus something, or it would
// keep each of them.
template <class E>
inline const E* opaque(const E* x) {
  asm("" : "+r"(x));
  return x;
}

// What is broadcast, at fixed distances from few pointers.
template <class E, int Rows, bool RowsTogether>
class Factors {
 public:
  explicit Factors(const Matrix<E>& left)
      : upper_(left.data),
        lower_(left.at(3, 0)),
        stride_((RowsTogether ? left.step : left.row) * i64{sizeof(E)}) {}

  // Of a row, so many steps into a pass.
  template <int Row, int Step>
  Vec<E> get() const {
    constexpr int size = sizeof(E);
    if constexpr (RowsTogether) return broadcast<0, Row * size>(upper_, 0);
    return broadcast<Row % 3, Step * size>(Row < 3 ? upper_ : lower_, stride_);
  }

  void end_step() {
    if constexpr (RowsTogether) upper_ = opaque(ahead(upper_, stride_));
  }
  void end_pass(int steps) {
    if constexpr (RowsTogether) return;
    upper_ = opaque(upper_ + steps);
    if constexpr (Rows > 3) lower_ = opaque(lower_ + steps);
  }

 private:
  static const E* ahead(const E* from, i64 bytes) {
    return reinterpret_cast<const E*>(reinterpret_cast<const char*>(from) + bytes);
  }

  // Three rows share a pointer: addresses have room for a base and once or twice a stride.
  const E *upper_, *lower_;
  i64 stride_;
};

// One step: a row of `x` times what is broadcast, for each row from `Row` on.
template <int Step, int Row = 0, class S, int Rows, int Vectors, bool RowsTogether>
[[gnu::always_inline]] inline void add_rows(const Factors<S, Rows, RowsTogether>& factors,
                                            const Vec<S> (&x)[Vectors],
                                            Vec<S> (&sum)[Rows][Vectors]) {
  if constexpr (Row < Rows) {
    const Vec<S> factor = factors.template get<Row, Step>();
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j) multiply_add(sum[Row][j], factor, x[j]);
    add_rows<Step, Row + 1>(factors, x, sum);
  }
}

template <int Value>
struct Constant {
  static constexpr int value = Value;
};

enum class Turn { kAlone, kFirst, kLater };

template <class Op, int Rows, int Vectors, bool RowsTogether, Turn turn>
[[gnu::noinline]] void outer_loop(const OuterTile<Op>& tile) {
  using S = typename Op::Sum;
  constexpr int W = kWidth<S>, kLine = 64 / int{sizeof(S)};
  constexpr bool kAlone = turn == Turn::kAlone, kCopies = turn == Turn::kFirst;
  Vec<S> sum[Rows][Vectors] = {};
  Factors<S, Rows, RowsTogether> factors(tile.left);
  const S *right = tile.right, *next = tile.next_right;
  const i64 right_stride = tile.right_stride;
  i64 next_stride = tile.next_right_stride;
  S* copy = tile.copy;
  const i64 depth = tile.depth;
  if constexpr (!kAlone) {
    // The last element: the line of the first is also the panel's before, most often.
    if (tile.turn < kSharers) {
      next += tile.turn * (depth / kStepsPerPass) * next_stride + Vectors * W - 1;
    } else {
      next = right;
      next_stride = 0;
    }
  }
  const auto fetch = [&] {
    if constexpr (kAlone) {
#pragma GCC unroll 4
      for (int end = kLine; end < Vectors * W + kLine; end += kLine)
        __builtin_prefetch(next + smaller(end, Vectors * W) - 1);
    } else {
      __builtin_prefetch(next);
    }
    next = opaque(next + next_stride);
  };
  const auto add = [&](auto step) __attribute__((always_inline)) {
    if constexpr (kAlone || step.value == 0) fetch();
    Vec<S> x[Vectors];
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j) {
      x[j] = load(right + j * W);
      if constexpr (kCopies) store(copy + j * W, x[j]);
    }
    right = opaque(right + right_stride);
    if constexpr (kCopies) copy += Vectors * W;
    add_rows<step.value>(factors, x, sum);
    factors.end_step();
  };
  for (i64 passes = depth / kStepsPerPass; passes > 0; --passes) {
    add(Constant<0>{});
    add(Constant<1>{});
    add(Constant<2>{});
    add(Constant<3>{});
    factors.end_pass(kStepsPerPass);
  }
  for (i64 rest = depth % kStepsPerPass; rest > 0; --rest) {
    add(Constant<0>{});
    factors.end_pass(1);
  }
  finish(tile, sum);
}

template <class Op, int Rows, int Vectors, bool RowsTogether>
void outer_in_turn(const OuterTile<Op>& tile) {
  // So many tiles are never lower, nor wider.
  if constexpr (Rows > kMaxRows / 2 && Vectors <= max_vectors(kMaxRows)) {
    if (tile.turns >= kSharers) {
      if (tile.turn == 0 && tile.copy)
        return outer_loop<Op, Rows, Vectors, RowsTogether, Turn::kFirst>(tile);
      return outer_loop<Op, Rows, Vectors, RowsTogether, Turn::kLater>(tile);
    }
  }
  outer_loop<Op, Rows, Vectors, RowsTogether, Turn::kAlone>(tile);
}

template <class Op, int Rows, int Vectors>
void outer_tile(const OuterTile<Op>& tile) {
  if (tile.left.row == 1) {
    outer_in_turn<Op, Rows, Vectors, true>(tile);
  } else {
    outer_in_turn<Op, Rows, Vectors, false>(tile);
  }
}

}  // namespace fbp::FBP_ISA
