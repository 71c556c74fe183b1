// What the bilinear kernels on Hopper serve, and how the forward is cut up: tiles of 128 rows by
// some boxes of columns, which both the warp that copies and the warpgroups that multiply go
// through in the same order.

#pragma once

#include "bilinear_tiles.h"
#include "cuda/vectors.h"
#include "wgmma_ring.h"
#include "wgmma_tf32.h"

namespace fbp::cuda {

// By storage type, what is copied for a step, and multiplied: half precision, and float32 as TF32.
// An output of more columns than a box has takes several products, chunks.
template <class T>
struct WgmmaForm {
  using Ring = WgmmaRing;
  static constexpr int kBoxes = fbp::cuda::kBoxes, kBoxColumns = fbp::cuda::kBoxColumns;
};
template <>
struct WgmmaForm<float> {
  using Ring = RingOf<Tf32Stage, 5, kTf32StepDepth>;
  static constexpr int kBoxes = kTf32Boxes, kBoxColumns = kTf32BoxColumns;
};

// Outputs of a box: whole ones, as many as fit its columns, and no more than there is memory for
// the sums of.
constexpr int kMostBoxOutputs = 16;

template <class T>
constexpr i64 box_outputs(i64 K) {
  return larger(smaller(WgmmaForm<T>::kBoxColumns / K, kMostBoxOutputs), 1);
}

// A part's tensors as maps tell them: (width, H, B) and (N, width, H).
inline MappedTensor mapped_input(const Part& part, int side, i64 B) {
  const View& view = part.side[side].input;
  return {view.data,
          {part.side[side].width, part.H, B},
          {view.stride[2], view.stride[1], view.stride[0]}};
}

inline MappedTensor mapped_weight(const Part& part, int side) {
  const View& view = part.side[side].weight;
  return {view.data,
          {part.N, part.side[side].width, part.H},
          {view.stride[2], view.stride[1], view.stride[0]}};
}

// Projections, or their gradients, (N, B, H); of the latter also (B, N, H).
inline MappedTensor mapped_projections(const Part& part, const void* data, i64 B) {
  return {data, {part.N, B, part.H}, {1, part.N, B * part.N}};
}

inline MappedTensor mapped_turned(const Part& part, const void* data, i64 B, i64 row) {
  return {data, {B, part.N, part.H}, {1, row, row * part.N}};
}

// What is asked of a problem's device, type, inputs and weights. With `tf32` also float32 serves.
template <class Problem>
bool wgmma_can_multiply(const Problem& problem, const DeviceLimits& device, bool tf32 = false) {
  if (device.major != 9 || problem.dtype == Dtype::float64) return false;
  if (problem.dtype == Dtype::float32 && !tf32) return false;
  const i64 bytes = bytes_of(problem.dtype);
  for (int i = 0; i < problem.parts; ++i)
    for (int side = 0; side < 2; ++side)
      if (!mapped_input(problem.part[i], side, problem.B).can_be_mapped(bytes) ||
          !mapped_weight(problem.part[i], side).can_be_mapped(bytes))
        return false;
  return true;
}

// A part's tiles, and where its tensors are: the maps of its inputs (width, H, B) and of its
// weights (N, width, H).
struct alignas(alignof(CUtensorMap)) WgmmaPart : Tiles {
  CUtensorMap input[2], weight[2];
  i64 tiles = 0;
  int splits = 1;  // blocks that share the trunks of a tile, neighbours in a cluster
};

struct WgmmaPlan {
  WgmmaPart part[kMaxParts];
  i64 down = 0;
  i64 shares = 0;   // of all tiles, in the order of for_tiles()
  int cluster = 1;  // where that is more, no block has more than one share
};

// The trunks that count for some row of a tile that begins at `row`. For all lanes of a warp.
__device__ inline int trunks_of_rows(const Part& part, i64 row, i64 B) {
  if (part.lengths == nullptr) return static_cast<int>(part.H);
  i64 most = 0;
  for (int r = static_cast<int>(threadIdx.x) % kWarp; r < kRingRows; r += kWarp)
    if (row + r < B) most = larger(most, __ldg(part.lengths + row + r));
#pragma unroll
  for (int bit = 1; bit < kWarp; bit *= 2)
    most = larger(most, __shfl_xor_sync(0xffffffffu, most, bit));
  // From one lane, so that the compiler knows that all have the same.
  return __shfl_sync(0xffffffffu, static_cast<int>(smaller(most, part.H)), 0);
}

// The sum of squares of half of a row's part in one step: two neighbouring threads have a row.
template <class T>
__device__ inline float squares_of(const unsigned char* rows) {
  constexpr int kChunks = kLineBytes / kChunkBytes;
  const int thread = static_cast<int>(threadIdx.x) % kWarpgroup, row = thread / 2;
  float sum = 0;
  // Not unrolled: between products, there are few registers left.
#pragma unroll 1
  for (int i = 0; i < kChunks / 2; ++i) {
    // By the swizzle: columns in their order, and rows beside each other in banks of their own.
    const int chunk = (thread % 2 * (kChunks / 2) + i) ^ row % kPatternLines;
    const auto of = load_vector(
        reinterpret_cast<const T*>(rows + row * kLineBytes + chunk * kChunkBytes), kAll<T>, true);
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) sum = fmaf(widen(of.of[j]), widen(of.of[j]), sum);
  }
  return sum;
}

// One tile of one part, as a warp sees it.
template <class T>
class WgmmaTile {
  using Ring = typename WgmmaForm<T>::Ring;
  static constexpr int kBoxes = WgmmaForm<T>::kBoxes, kBoxColumns = WgmmaForm<T>::kBoxColumns;

 public:
  __device__ WgmmaTile(const ForwardProblem& problem, const WgmmaPlan& plan, int index, i64 share)
      : part(problem.part[index]),
        own(plan.part[index]),
        split(static_cast<int>(share % own.splits)),
        position_(tile_position(share / own.splits, plan.down, own.across)),
        of(part, own, problem.B, position_.row * kRingRows, position_.column * own.outputs) {}

  const ForwardPart& part;
  const WgmmaPart& own;
  const int split;

 private:
  const Position position_;

 public:
  const TileOfPart of;

  __device__ int per_box() const { return static_cast<int>(own.outputs) / kBoxes; }

  __device__ i64 first_output() const { return position_.column * own.outputs; }

  // The first column of a box in a chunk. Numbers of columns and rows have 32 bits, as coordinates
  // of maps have; so they take fewer registers.
  __device__ int column(int box, int chunk) const {
    return static_cast<int>(of.column) + box * box_columns() + chunk * kBoxColumns;
  }

  // From box to box.
  __device__ int box_columns() const { return per_box() * static_cast<int>(part.K); }

  // The columns of one output in a chunk.
  __device__ int run(int chunk) const {
    return static_cast<int>(smaller(part.K - chunk * kBoxColumns, kBoxColumns));
  }

  // The trunks of the block, up to last_trunk(). Those beyond the longest row's need no work,
  // unless their projections are kept. The latter for all lanes of a warp.
  __device__ int first_trunk() const { return static_cast<int>(part.H) * split / own.splits; }
  __device__ int last_trunk() const {
    const int last = static_cast<int>(part.H) * (split + 1) / own.splits;
    return part.kept[0] != nullptr ? last : min(last, trunks_of_rows(part, of.row, of.B));
  }

  __device__ int steps(int side) const {
    return static_cast<int>(ceil_div(part.side[side].width, Ring::kDepth));
  }

  // Asks for the copies of one step of a product.
  __device__ void copy(typename Ring::Stage& stage, Mbarrier* full, int h, int chunk, int side,
                       int depth) const {
    bulk_copy(stage.rows, own.input[side], full, depth, h, static_cast<int>(of.row));
#pragma unroll
    for (int i = 0; i < kBoxes; ++i)
      bulk_copy(stage.columns[i], own.weight[side], full, column(i, chunk), depth, h);
  }
};

// Calls f with each tile that a block has a share of, those of the last part first: those of the
// trunks take longest.
template <class T, class F>
__device__ inline void for_tiles(const ForwardProblem& problem, const WgmmaPlan& plan, const F& f) {
#pragma unroll 1
  for (i64 share = blockIdx.x; share < plan.shares; share += gridDim.x) {
    int index = problem.parts - 1;
    i64 own = share;
    while (own >= plan.part[index].tiles * plan.part[index].splits) {
      own -= plan.part[index].tiles * plan.part[index].splits;
      --index;
    }
    f(WgmmaTile<T>(problem, plan, index, own));
  }
}

// Asks for all copies of a block. For one warp.
template <class T>
__device__ inline void copy_tiles(const ForwardProblem& problem, const WgmmaPlan& plan,
                                  typename WgmmaForm<T>::Ring& ring) {
  using Ring = typename WgmmaForm<T>::Ring;
  TurnOf<Ring::kStages> turn;
  for_tiles<T>(problem, plan, [&](const WgmmaTile<T>& tile) {
    const int last = tile.last_trunk();
    if (threadIdx.x == 0) {
#pragma unroll 1
      for (int h = tile.first_trunk(); h < last; ++h)
#pragma unroll 1
        for (int chunk = 0; chunk < tile.own.chunks; ++chunk)
#pragma unroll 1
          for (int side = 0; side < 2; ++side)
            fill_ring(ring, turn, tile.steps(side),
                      [&](typename Ring::Stage& stage, Mbarrier* full, int depth) {
                        tile.copy(stage, full, h, chunk, side, depth);
                      });
    }
    __syncwarp();
  });
}

}  // namespace fbp::cuda
