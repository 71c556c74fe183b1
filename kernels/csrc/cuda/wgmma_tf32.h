// Products in TF32 on Hopper. wgmma takes operands of 32 bits from shared memory only where they
// lie along the depth: inputs do, weights do not. But of its left operand, which it also takes from
// registers, a thread has single numbers, which can be read from weights however they lie. So the
// product is turned round: columns of the weights are what elsewhere are rows, and rows of the
// batch are columns.

#pragma once

#include "wgmma_ring.h"

namespace fbp::cuda {

constexpr int kTf32Boxes = kConsumerWarps;  // each has its own
constexpr int kTf32BoxColumns = kWgmmaRows * kWarp / kWarpgroup;
constexpr int kTf32StepDepth = kLineBytes / static_cast<int>(sizeof(float));
constexpr int kTf32BoxLine = kTf32BoxColumns * static_cast<int>(sizeof(float));

// The operands of one step: kLines lines of rows along the depth, and of columns across it, a box
// for each warp. Both warpgroups multiply all rows; `rows` has them in halves.
template <int kLines>
struct alignas(kPatternBytes) Tf32StageOf {
  unsigned char rows[kConsumers][kLines / kConsumers * kLineBytes];
  unsigned char columns[kTf32Boxes][kTf32StepDepth * kTf32BoxLine];
};

using Tf32Stage = Tf32StageOf<kTf32Columns>;

// Of the 16 columns of a box, the first of the two that a lane has: its sums d[4 * j + 2 * i + e]
// are of column i of them and of row 8 * j + 2 * (lane % 4) + e. The columns are dealt out so that
// the lanes that read shared memory together, four lines of it, read from all banks.
__device__ inline int tf32_column(int lane) {
  const int group = lane / 4;
  return (group & 2) * 4 + (group & 4) + (group & 1) * 2;
}

// What a warpgroup multiplies of a stage, see SharedOperands.
class Tf32Operands {
 public:
  // Half of a step each: what is loaded for one goes beside the products of the other.
  static constexpr int kGroups = 2, kProducts = kTf32StepDepth / kTf32Depth / kGroups;
  struct Kept {
    float of[kProducts][4];
  };

  template <int kLines>
  __device__ Tf32Operands(const Tf32StageOf<kLines>& first, int warp)
      : columns_(first.columns[warp]), rows_(MatrixDescriptor::of<Along::depth>(first.rows, 0)) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp, column = tf32_column(lane);
    // 16 bytes number c of line r are at c ^ r / 2 % 4: of lines four apart, at places two apart.
    constexpr int kNumbers = kChunkBytes / static_cast<int>(sizeof(float));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int line = lane % 4 + 4 * half;
      place_[half] = line * kTf32BoxLine + (column / kNumbers ^ line / 2 % 4) * kChunkBytes +
                     column % kNumbers * static_cast<int>(sizeof(float));
    }
  }

  __device__ Kept load(int stage, int group) const {
    Kept kept;
#pragma unroll
    for (int i = 0; i < kProducts; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const auto two = *reinterpret_cast<const float2*>(columns_ + stage + place_[half] +
                                                          depth(group, i) * kTf32BoxLine);
        kept.of[i][2 * half] = two.x;
        kept.of[i][2 * half + 1] = two.y;
      }
    return kept;
  }

  template <class Sums>
  __device__ void multiply(int stage, int group, const Kept& kept, Sums& sums, bool more) const {
#pragma unroll
    for (int i = 0; i < kProducts; ++i)
      wgmma_tf32(sums, kept.of[i],
                 rows_.at(stage + depth(group, i) * static_cast<int>(sizeof(float))),
                 more || i > 0);
  }

 private:
  // Where a product begins.
  __device__ static constexpr int depth(int group, int i) {
    return (group * kProducts + i) * kTf32Depth;
  }

  const unsigned char* const columns_;
  const MatrixDescriptor rows_;
  int place_[2];
};

}  // namespace fbp::cuda
