// What becomes of the projections u and w of a tile in TF32, see wgmma_epilogue.h.
//
// A warp has one box of columns, and all 128 rows. Of a row, eight lanes have the box between them,
// each two columns. They exchange rows, so that each has all columns of four rows: the sum over K
// is then a loop of one thread, for any K. u stays as it is, in float32.

#pragma once

#include "wgmma_epilogue.h"

namespace fbp::cuda {

template <>
class WgmmaEpilogue<float> {
  static constexpr int kGroups = kTf32Columns / 8;  // of eight rows
  static constexpr int kLaneRows = kTf32Columns / kWarp;
  static constexpr int kSums = kMostBoxOutputs * kLaneRows * kWarp;

 public:
  using Sums = Tf32Sums;
  using Packed = Tf32Sums;
  struct Shared {
    float sums[kConsumerWarps][kSums];  // over K, see place()
    float scale[2][kTf32Columns];  // of the rows of a tile, what multiplies projections of a and v
    Mbarrier scaled;               // all warps have read the last, or have written theirs

    __device__ void init() { mbarrier_init(&scaled, kConsumerWarps); }
  };
  struct Turn {
    unsigned parity = 0;  // of the next phase of `scaled`
  };

  __device__ static Tf32Operands operands(const Tf32Stage& first, int warp) {
    return Tf32Operands(first, warp);
  }

  __device__ WgmmaEpilogue(const ForwardProblem& problem, const WgmmaTile<float>& tile, int warp,
                           Shared& shared, Turn& turn)
      : problem_(problem), tile_(tile), warp_(warp), shared_(shared), turn_(turn) {
    for (int i = 0; i < tile.per_box() * kLaneRows; ++i) sums()[i * kWarp + lane()] = 0;
  }

  __device__ void take(int h, int chunk, const Sums& sums, Packed& u) const {
#pragma unroll
    for (int i = 0; i < kSumsOf<kTf32Columns>; ++i) u[i] = sums[i];
    keep(0, h, chunk, u);
  }

  // Which products count, of rows that are alive and not dropped: of each of the thread's two
  // columns, bit 2 * g + e is row e of the thread in eight rows g.
  using Counted = u32[2];

  // Two lanes have, of the same columns, the four rows that one draw of random words is for: each
  // draws for one column.
  __device__ void count(int h, int chunk, Counted& counted) {
    alive_ = 0;
#pragma unroll 1
    for (int g = 0; g < kGroups; ++g)
#pragma unroll
      for (int e = 0; e < 2; ++e)
        alive_ |= (tile_.of.alive(first_row() + row(g, e), h) ? 1u : 0u) << (2 * g + e);
    counted[0] = counted[1] = alive_;
    const Dropout& dropout = tile_.part.dropout;
    if (!dropout.active) return;
    const u64 key = static_cast<u64>(*dropout.seed);
    const int own_column = lane() % 2, half = lane() % 2 * 2;
#pragma unroll 1
    for (int g = 0; g < kGroups; ++g) {
      u32 words[4], own = 0;
      philox(key, static_cast<u32>(column(chunk) + own_column), static_cast<u32>(h),
             static_cast<u32>((first_row() + row(g, 0)) / 4), tile_.part.stream, words);
#pragma unroll
      for (int i = 0; i < 4; ++i) own |= (u64{words[i]} < dropout.threshold ? 1u : 0u) << i;
      const u32 others = __shfl_xor_sync(0xffffffffu, own, 1);
#pragma unroll
      for (int i = 0; i < 2; ++i)
        counted[i] &= ~(((i == own_column ? own : others) >> half & 3) << (2 * g));
    }
  }

  // Adds what trunk h and a chunk contribute. `squares` are the sums of squares of the rows of a
  // and v of the warpgroup, of its row i in threads 2 * i and 2 * i + 1.
  __device__ void add(int h, int chunk, const Packed& u, const Sums& w, const float (&squares)[2],
                      const Counted& counted) {
    keep(1, h, chunk, w);
    if (problem_.z == nullptr) return;
    const auto& scale = share_scales(squares);
    float bias[2][2];  // of a side, of a column
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int n = column(chunk) + i;
#pragma unroll
      for (int side = 0; side < 2; ++side)
        bias[side][i] = n < tile_.part.N ? tile_.of.template bias<float>(side, h, n) : 0.0f;
    }
    // A row of each of eight lanes at a time, see own_row().
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r) {
      Products products;
#pragma unroll
      for (int from = 0; from < 8; ++from) {
        const int g = kLaneRows / 2 * from + r / 2, e = r % 2;
        const float mu = tile_.part.adaptive ? scale[0][row(g, e)] : 1.0f;
        const float eta = tile_.part.adaptive ? scale[1][row(g, e)] : 1.0f;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int at = 4 * g + 2 * i + e;
          const float product = fmaf(u[at], mu, bias[0][i]) * fmaf(w[at], eta, bias[1][i]);
          // By selection: of what does not count not even a NaN does.
          products[i][from] = (counted[i] >> (2 * g + e) & 1) != 0 ? product * more() : 0.0f;
        }
      }
      if (tile_.part.K % 2 == 0) {
        sum_up<2>(products, r, chunk);
      } else {
        sum_up<1>(products, r, chunk);
      }
    }
  }

  // Writes the outputs of the warp's box, of what its lanes have numbers `first`, `first + every`
  // ... of four outputs of a row, where they are wanted: sum(place) of where each is among the sums
  // of the warp.
  template <class Sum>
  __device__ static void store(const ForwardProblem& problem, const WgmmaTile<float>& tile,
                               int warp, int first, int every, const Sum& sum) {
    if (problem.z == nullptr) return;
    const int per_box = tile.per_box();
    const i64 output = tile.first_output() + warp * per_box;
    const int outputs = static_cast<int>(smaller(per_box, tile.own.all - output));
    float* const z = static_cast<float*>(problem.z) + tile.part.o_offset + output;
    const bool aligned = problem.z_stride % kVector<float> == 0 &&
                         reinterpret_cast<std::uintptr_t>(z) % kChunkBytes == 0;
    for (int i = first; i < kLaneRows * static_cast<int>(ceil_div(per_box, kVector<float>));
         i += every) {
      const int r = i % kLaneRows, o = i / kLaneRows * kVector<float>;
      const i64 b = tile.of.row + own_row(r);
      const int left = min(outputs - o, kVector<float>);
      if (b >= problem.B || left <= 0) continue;
      Vector<float> four;
#pragma unroll
      for (int j = 0; j < kVector<float>; ++j) four.of[j] = j < left ? sum(place(o + j, r)) : 0.0f;
      store_vector(z + b * problem.z_stride + o, four, (1u << left) - 1,
                   aligned && left == kVector<float>);
    }
  }

 private:
  using Products = float[2][8];

  __device__ static int lane() { return static_cast<int>(threadIdx.x) % kWarp; }

  // Of the tile: that of the thread's sums, and that which it adds up.
  __device__ static int row(int g, int e) { return 8 * g + 2 * (lane() % 4) + e; }
  __device__ static int own_row(int r) { return row(kLaneRows / 2 * (lane() / 4) + r / 2, r % 2); }

  // Where the sum of an output of one of the lane's rows is.
  __device__ static int place(int output, int r) {
    return (output * kLaneRows + r) * kWarp + lane();
  }

  __device__ float* sums() const { return shared_.sums[warp_]; }

  __device__ int first_row() const { return static_cast<int>(tile_.of.row); }

  // The first of the thread's two columns.
  __device__ int column(int chunk) const {
    return tile_.column(warp_, chunk) + tf32_column(lane());
  }

  // What multiplies the products that dropout leaves.
  __device__ float more() const {
    const Dropout& dropout = tile_.part.dropout;
    return dropout.active ? static_cast<float>(dropout.scale) : 1.0f;
  }

  // The scales of all rows, of which each thread has the norms of one.
  __device__ const float (&share_scales(const float (&squares)[2]))[2][kTf32Columns] {
    auto& scale = shared_.scale;
    if (!tile_.part.adaptive) return scale;
    wait_for_warps();  // they may read the last ones still
    const Scales own(true, squares[0], squares[1]);
    const int row = (static_cast<int>(threadIdx.x) - kWarpgroup) / 2;
    if (lane() % 2 == 0)
#pragma unroll
      for (int side = 0; side < 2; ++side) scale[side][row] = own.scale[side];
    wait_for_warps();
    return scale;
  }

  __device__ void wait_for_warps() {
    __syncwarp();
    if (lane() == 0) mbarrier_arrive(&shared_.scaled);
    mbarrier_wait(&shared_.scaled, turn_.parity);
    turn_.parity ^= 1;
  }

  // Writes a projection, where it is kept.
  __device__ void keep(int side, int h, int chunk, const Sums& sums) const {
    const ForwardPart& part = tile_.part;
    if (part.kept[side] == nullptr) return;
    const int all = tile_.own.chunks > 1 ? tile_.run(chunk) : tile_.box_columns();
    const int first = column(chunk);
    const int left = min(all - tf32_column(lane()), static_cast<int>(part.N) - first);
    if (left <= 0) return;
    // Goes from row to row: addresses of all of them would take registers all along.
    const int row_zero = first_row() + row(0, 0), rows = static_cast<int>(tile_.of.B) - row_zero;
    float* to = static_cast<float*>(part.kept[side]) + (h * tile_.of.B + row_zero) * part.N + first;
    const bool pair = left > 1 && part.N % 2 == 0 && reinterpret_cast<std::uintptr_t>(to) % 8 == 0;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (8 * g + e >= rows) return;
        const bool alive = (alive_ >> (2 * g + e) & 1) != 0;
        const float low = alive ? sums[4 * g + e] : 0.0f;
        const float high = alive ? sums[4 * g + 2 + e] : 0.0f;
        if (pair) {
          *reinterpret_cast<float2*>(to) = make_float2(low, high);
        } else {
          to[0] = low;
          if (left > 1) to[1] = high;
        }
        to += e == 0 ? part.N : 7 * part.N;
      }
    }
  }

  // Among the eight lanes that have the same rows: the one of number i gets number i of each.
  __device__ static void exchange_eight(float (&v)[8]) {
#pragma unroll
    for (int bit = 1; bit < 8; bit *= 2) {
      const bool upper = (lane() / 4 & bit) != 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if ((i & bit) != 0) continue;
        const float got = __shfl_xor_sync(0xffffffffu, upper ? v[i] : v[i + bit], 4 * bit);
        v[i] = upper ? got : v[i];
        v[i + bit] = upper ? v[i + bit] : got;
      }
    }
  }

  // Adds products to the sums of their outputs, kStep neighbouring columns at a time.
  template <int kStep>
  __device__ void sum_up(Products& products, int r, int chunk) {
    if constexpr (kStep == 2)
#pragma unroll
      for (int i = 0; i < 8; ++i) products[0][i] += products[1][i];
#pragma unroll
    for (int i = 0; i < 2; i += kStep) exchange_eight(products[i]);
    // What was of eight rows is now of one: the columns of all eight lanes.
    const int run = tile_.run(chunk);
    float sum = 0;
    int columns = 0, output = 0;
#pragma unroll
    for (int c = 0; c < kTf32BoxColumns; c += kStep) {
      sum += products[c % 2][lane_of(c)];
      columns += kStep;
      if (columns < run) continue;
      if (output < tile_.per_box()) sums()[place(output, r)] += sum;
      sum = 0;
      ++output;
      columns = 0;
    }
  }

  // Which of eight lanes has a column of a box, see tf32_column().
  __device__ static constexpr int lane_of(int column) {
    return (column / 8) * 2 + (column / 4 % 2) * 4 + column / 2 % 2;
  }

  const ForwardProblem& problem_;
  const WgmmaTile<float>& tile_;
  const int warp_;
  u32 alive_ = 0;  // of the thread's rows, see Counted
  Shared& shared_;
  Turn& turn_;
};

}  // namespace fbp::cuda
