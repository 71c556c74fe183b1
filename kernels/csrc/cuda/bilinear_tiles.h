// How the work of the bilinear kernels is cut up, and the two projections of a tile, which forward
// and backward share.

#pragma once

#include "bilinear_product.h"

namespace fbp::cuda {

// A part's outputs in tiles: the columns of a tile are those of whole outputs, and only where K
// exceeds the width of a product it takes several products, chunks, for one output.
struct Tiles {
  i64 all = 0;      // outputs
  i64 outputs = 0;  // of a tile
  i64 across = 0;   // tiles
  int chunks = 0;
  int input_piece[2] = {}, weight_piece[2] = {};  // see Operand::piece
};

// Of a part's input, see Operand::piece.
template <class T>
int input_piece(const Part& part, int side, i64 B) {
  const View& input = part.side[side].input;
  return piece_of<T>(
      input.data, input.stride[2],
      {B > 1 ? input.stride[0] : 0, part.H > 1 ? input.stride[1] : 0, part.side[side].width});
}

template <class Number, class Tile>
Tiles tiles_of(const Part& part, i64 B) {
  using T = typename Number::Storage;
  Tiles tiles;
  tiles.all = part.outputs();
  tiles.outputs = larger(Tile::kColumns / part.K, 1);
  tiles.across = ceil_div(tiles.all, tiles.outputs);
  tiles.chunks = static_cast<int>(ceil_div(tiles.outputs * part.K, Tile::kColumns));
  for (int s = 0; s < 2; ++s) {
    const Side& side = part.side[s];
    tiles.input_piece[s] = input_piece<T>(part, s, B);
    tiles.weight_piece[s] =
        piece_of<T>(side.weight.data, side.weight.stride[2],
                    {side.weight.stride[1], part.H > 1 ? side.weight.stride[0] : 0, part.N,
                     tiles.across > 1 ? tiles.outputs * part.K : 0});
  }
  return tiles;
}

constexpr int kMostSplits = 8;  // what every device with clusters can hold in one

// How many blocks share a tile of H trunks where `resident` are there at a time: follows from one
// part alone, so that its results are the same bits whatever else is in the launch.
inline int splits_of(i64 tiles, i64 H, int resident) {
  const i64 wanted = smaller(smaller(resident / tiles, H), kMostSplits);
  int splits = 1;
  while (2 * splits <= wanted) splits *= 2;
  return splits;
}

struct Position {
  i64 row, column;
};

// Tiles in an order in which up to eight tiles of rows share the columns that they read.
__device__ inline Position tile_position(i64 index, i64 down, i64 across) {
  constexpr i64 kBand = 8;
  const i64 band = index / (kBand * across) * kBand;
  const i64 rows = smaller(kBand, down - band), rest = index - band * across;
  return {band + rest % rows, rest / rows};
}

template <class Number, class Tile>
struct ProjectionMemory {
  Ring<Number, Tile, Along::depth, Along::other> ring;
  float tile[2][Tile::kRows * kTileStride<Tile>];  // the projections of a and v
  float squares[2][Tile::kRows];                   // of the rows of a and v, summed up
};

// The norms of a row of a and of v, and the factors that they give.
struct Scales {
  float norm[2], scale[2];

  __device__ Scales(bool adaptive, float a_squares, float v_squares)
      : norm{sqrtf(a_squares), sqrtf(v_squares)}, scale{1.0f, 1.0f} {
    if (!adaptive) return;
    const float total = norm[0] + norm[1];
    for (int side = 0; side < 2; ++side) scale[side] = total == 0 ? 0.5f : norm[side] / total;
  }
};

// A tile of one part: rows from `row` on, columns from `column` up to `end()`. What can be read
// again from the launch's parameters is no number of its own, which would take registers all along.
struct TileOfPart {
  const Part& part;
  const Tiles& tiles;
  const i64& B;
  i64 row, column;

  __device__ TileOfPart(const Part& part_, const Tiles& tiles_, const i64& B_, i64 row_, i64 output)
      : part(part_), tiles(tiles_), B(B_), row(row_), column(output * part_.K) {}

  __device__ i64 end() const { return smaller(column + tiles.outputs * part.K, part.N); }

  __device__ bool alive(i64 b, i64 h) const {
    return b < B && (part.lengths == nullptr || __ldg(part.lengths + b) > h);
  }

  template <class T>
  __device__ float bias(int side, i64 h, i64 n) const {
    const View& bias = part.side[side].bias;
    if (bias.data == nullptr) return 0;
    return widen(static_cast<const T*>(bias.data)[h * bias.stride[0] + n * bias.stride[2]]);
  }

  // The output, counted from the tile's first, that a column of a chunk belongs to.
  __device__ int output(i64 chunk_column, int c) const {
    return tiles.outputs == 1
               ? 0
               : static_cast<int>(chunk_column - column + c) / static_cast<int>(part.K);
  }
};

// Adds up `value` over 2^k neighbouring lanes.
template <int LANES>
__device__ inline float sum_over_lanes(float value) {
#pragma unroll
  for (int bit = 1; bit < LANES; bit *= 2) value += __shfl_xor_sync(0xffffffffu, value, bit);
  return value;
}

// Projects a and v of trunks `first` to `last`, and calls finish(h, column, columns) with what is
// in `memory` then: the projections of these columns, without scales and biases, and, where the
// part is adaptive, the rows' sums of squares.
template <class Number, class Tile, class Finish>
__device__ inline void project(const TileOfPart& tile, i64 first, i64 last,
                               ProjectionMemory<Number, Tile>& memory, const Finish& finish) {
  using T = typename Number::Storage;
  const Part& part = tile.part;
  const int chunks = tile.tiles.chunks;
  const auto column_of = [&](int i) { return tile.column + i / 2 % chunks * Tile::kColumns; };
  const auto factors = [&](int i) {
    const i64 h = first + i / (2 * chunks), column = column_of(i);
    const Side& side = part.side[i % 2];
    Factors<T> result;
    result.depth = side.width;
    Operand<T>& a = result.a;
    a.data = static_cast<const T*>(side.input.data) + tile.row * side.input.stride[0] +
             h * side.input.stride[1];
    a.line = side.input.stride[0];
    a.element = side.input.stride[2];
    a.piece = tile.tiles.input_piece[i % 2];
    a.others = tile.B - tile.row;
    a.limits = part.lengths == nullptr ? nullptr : part.lengths + tile.row;
    a.trunk = h;
    Operand<T>& b = result.b;
    b.data = static_cast<const T*>(side.weight.data) + h * side.weight.stride[0] +
             column * side.weight.stride[2];
    b.line = side.weight.stride[1];
    b.element = side.weight.stride[2];
    b.piece = tile.tiles.weight_piece[i % 2];
    b.others = tile.end() - column;
    return result;
  };

  // Sums of squares: each row belongs to some neighbouring lanes.
  constexpr int kLanes = kThreads / Tile::kRows, kOwn = kDepth<Number> / kLanes;
  const int row = static_cast<int>(threadIdx.x) / kLanes;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  float squares = 0;
  const auto look = [&](int, const T* a) {
    if (!part.adaptive) return;
    const T* const own = a + row * Stage<Number, Tile::kRows, Along::depth>::kStride + lane * kOwn;
    float piece = 0;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) piece = fmaf(widen(own[i]), widen(own[i]), piece);
    squares += piece;
  };
  multiply<Number, Tile, Along::depth, Along::other>(
      static_cast<int>(last - first) * chunks * 2, memory.ring, factors, look,
      [&](int i) { return memory.tile[i % 2]; },
      [&](int i) {
        if (part.adaptive) {
          squares = sum_over_lanes<kLanes>(squares);
          if (lane == 0) memory.squares[i % 2][row] = squares;
          squares = 0;
        }
        if (i % 2 == 0) return;
        __syncthreads();
        const i64 column = column_of(i);
        finish(first + i / (2 * chunks), column,
               static_cast<int>(smaller(Tile::kColumns, tile.end() - column)));
      });
}

}  // namespace fbp::cuda
