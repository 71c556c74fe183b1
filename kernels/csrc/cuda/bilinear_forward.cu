// z = sum over trunks and over K of (a p) * (v q), in one launch.
//
// A block has a tile of rows of the batch by whole outputs, of one part, and all trunks or some of
// them: it projects a and v, multiplies, and sums over K before anything leaves the
// multiprocessor. Where the tiles alone are too few for the device, the blocks that share a tile's
// trunks add their sums in the order of the trunks: within a cluster, each block a part of the
// tile, from the shared memory of all; without clusters, in the block that comes last.

#include "bilinear_forward_split.h"
#include "bilinear_forward_wgmma.h"
#include "bilinear_tiles.h"
#include "cluster.h"
#include "cuda/kernels.h"

namespace fbp::cuda {

namespace {

struct ForwardPlan {
  i64 down = 0;  // tiles of rows
  struct PartPlan : Tiles {
    i64 blocks = 0;
    int splits = 1;  // blocks of a tile
  } part[kMaxParts];
  bool clusters = false;
  float* partials = nullptr;     // (tiles, splits, cells of a tile), where there are no clusters
  unsigned* counters = nullptr;  // one for each tile, 0
};

// A cell is one output of one row, cell o * rows + r. Cells are dealt out to the threads in turn.
template <class Tile>
constexpr int kCells = Tile::kRows * Tile::kColumns / kThreads;

template <class Number, class Tile>
class ForwardBlock {
  using T = typename Number::Storage;

 public:
  __device__ ForwardBlock(const ForwardProblem& problem, const ForwardPart& part,
                          const ForwardPlan& plan, const ForwardPlan::PartPlan& own, i64 index)
      : problem_(problem),
        part_(part),
        plan_(plan),
        own_(own),
        tile_index_(index / own.splits),
        split_(static_cast<int>(index % own.splits)),
        position_(tile_position(tile_index_, plan.down, own.across)),
        tile_(part, own, problem.B, position_.row * Tile::kRows, position_.column * own.outputs),
        memory_(*reinterpret_cast<ProjectionMemory<Number, Tile>*>(shared_memory())) {}

  __device__ void run() {
    const i64 first = split_ * part_.H / own_.splits;
    const i64 last = smaller((split_ + 1) * part_.H / own_.splits, longest());
    project<Number, Tile>(tile_, first, larger(first, last), memory_,
                          [&](i64 h, i64 column, int columns) { pool(h, column, columns); });
    if (own_.splits == 1) {
#pragma unroll
      for (int i = 0; i < kCells<Tile>; ++i) store(cell(i), pooled_[i]);
    } else if (plan_.clusters) {
      add_in_cluster();
    } else {
      add_last();
    }
  }

 private:
  __device__ static int cell(int i) { return i * kThreads + static_cast<int>(threadIdx.x); }

  // The trunks beyond those of the longest row need no work, unless their projections are kept.
  __device__ i64 longest() const {
    if (part_.lengths == nullptr || part_.kept[0] != nullptr) return part_.H;
    i64 most = 0;
    for (i64 r = threadIdx.x % kWarp; r < Tile::kRows; r += kWarp)
      if (tile_.row + r < problem_.B) most = larger(most, __ldg(part_.lengths + tile_.row + r));
#pragma unroll
    for (int bit = 1; bit < kWarp; bit *= 2)
      most = larger(most, __shfl_xor_sync(0xffffffffu, most, bit));
    return most;
  }

  // Adds what trunk h and some columns contribute.
  __device__ void pool(i64 h, i64 column, int columns) {
    constexpr int kStride = kTileStride<Tile>;
    float* const u = memory_.tile[0];
    const float* const w = memory_.tile[1];
    for (int i = threadIdx.x; i < Tile::kRows / 4 * Tile::kColumns; i += kThreads) {
      const int c = i % Tile::kColumns, quad = i / Tile::kColumns;
      if (c >= columns) continue;
      const i64 n = column + c;
      const float bias[2] = {tile_.bias<T>(0, h, n), tile_.bias<T>(1, h, n)};
      float factors[4] = {1, 1, 1, 1};
      if (part_.dropout.active)
        dropout_factors(part_.dropout, n, h, tile_.row / 4 + quad, part_.stream, factors);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int r = 4 * quad + j;
        const i64 b = tile_.row + r;
        const float raw[2] = {u[r * kStride + c], w[r * kStride + c]};
        if (part_.kept[0] != nullptr && b < problem_.B)
          for (int side = 0; side < 2; ++side)
            static_cast<T*>(part_.kept[side])[(h * problem_.B + b) * part_.N + n] =
                narrow<T>(raw[side]);
        const Scales scales = scales_of(r);
        const float product =
            fmaf(raw[0], scales.scale[0], bias[0]) * fmaf(raw[1], scales.scale[1], bias[1]);
        u[r * kStride + c] = tile_.alive(b, h) ? product * factors[j] : 0.0f;
      }
    }
    __syncthreads();
    // Of one output these are all columns, or some; of several, all columns of each.
    const int K = own_.outputs == 1 ? columns : static_cast<int>(part_.K);
#pragma unroll
    for (int i = 0; i < kCells<Tile>; ++i) {
      const float* const products = u + cell(i) % Tile::kRows * kStride;
      const int begin = cell(i) / Tile::kRows * K;
      if (begin >= columns) break;
      float sum = 0;
      for (int c = begin; c < begin + K; ++c) sum += products[c];
      pooled_[i] += sum;
    }
  }

  __device__ Scales scales_of(int r) const {
    if (!part_.adaptive) return {false, 0, 0};
    return {true, memory_.squares[0][r], memory_.squares[1][r]};
  }

  __device__ void store(int cell, float value) const {
    const i64 o = position_.column * own_.outputs + cell / Tile::kRows;
    const i64 b = tile_.row + cell % Tile::kRows;
    if (cell / Tile::kRows < own_.outputs && o < own_.all && b < problem_.B)
      static_cast<T*>(problem_.z)[b * problem_.z_stride + part_.o_offset + o] = narrow<T>(value);
  }

  __device__ void add_last() {
    constexpr i64 kAll = Tile::kRows * Tile::kColumns;
    float* const sums = plan_.partials + tile_index_ * own_.splits * kAll;
    const int count = static_cast<int>(own_.outputs) * Tile::kRows;
#pragma unroll
    for (int i = 0; i < kCells<Tile>; ++i)
      if (cell(i) < count) sums[split_ * kAll + cell(i)] = pooled_[i];
    if (!arrives_last(plan_.counters + tile_index_, own_.splits)) return;
#pragma unroll
    for (int i = 0; i < kCells<Tile>; ++i) {
      float sum = 0;
      if (cell(i) < count)
        for (int s = 0; s < own_.splits; ++s) sum += __ldcg(sums + s * kAll + cell(i));
      store(cell(i), sum);
    }
  }

  __device__ void add_in_cluster() {
    // In place of the stages, which nobody reads after the barrier within the last pool().
    float* const own = reinterpret_cast<float*>(&memory_.ring);
    const int count = static_cast<int>(own_.outputs) * Tile::kRows;
#pragma unroll
    for (int i = 0; i < kCells<Tile>; ++i)
      if (cell(i) < count) own[cell(i)] = pooled_[i];
    wait_for_cluster();
    for (int c = split_ + own_.splits * static_cast<int>(threadIdx.x); c < count;
         c += own_.splits * kThreads) {
      float sum = 0;
      for (int s = 0; s < own_.splits; ++s) sum += of_rank(own, s)[c];
      store(c, sum);
    }
    wait_for_cluster();  // a block's memory is there until all have read it
  }

  const ForwardProblem& problem_;
  const ForwardPart& part_;
  const ForwardPlan& plan_;
  const ForwardPlan::PartPlan& own_;
  const i64 tile_index_;
  const int split_;
  const Position position_;
  const TileOfPart tile_;
  ProjectionMemory<Number, Tile>& memory_;
  float pooled_[kCells<Tile>] = {};
};

// The last part's blocks come first: those of the trunks take longest.
template <class Number, class Tile>
__global__ void __launch_bounds__(kThreads, Tile::kResident)
    forward_kernel(const __grid_constant__ ForwardProblem problem,
                   const __grid_constant__ ForwardPlan plan) {
  i64 index = blockIdx.x;
  for (int i = problem.parts - 1; i >= 0; --i) {
    if (index < plan.part[i].blocks) {
      ForwardBlock<Number, Tile>(problem, problem.part[i], plan, plan.part[i], index).run();
      return;
    }
    index -= plan.part[i].blocks;
  }
}

template <class Number, class Tile>
void forward(const ForwardProblem& problem, const Context& context) {
  const auto device = current_device();
  ForwardPlan plan;
  plan.down = ceil_div(problem.B, Tile::kRows);
  plan.clusters = device.clusters();
  i64 blocks = 0;
  int splits = 1;
  for (int i = 0; i < problem.parts; ++i) {
    auto& own = plan.part[i];
    static_cast<Tiles&>(own) = tiles_of<Number, Tile>(problem.part[i], problem.B);
    const i64 tiles = plan.down * own.across;
    // Only the part whose blocks come first: its clusters begin at multiples of their size.
    if (i == problem.parts - 1)
      own.splits = splits =
          splits_of(tiles, problem.part[i].H, Tile::kResident * device.multiprocessors);
    own.blocks = tiles * own.splits;
    blocks += own.blocks;
  }
  if (splits > 1 && !plan.clusters) {
    const i64 tiles = plan.part[problem.parts - 1].blocks / splits;
    const i64 bytes = tiles * splits * Tile::kRows * Tile::kColumns * i64{sizeof(float)};
    plan.partials = static_cast<float*>(context.scratch(bytes));
    plan.counters = static_cast<unsigned*>(context.scratch(tiles * i64{sizeof(unsigned)}));
    clear(plan.counters, tiles * sizeof(unsigned), context.stream);
  }
  const int cluster = plan.clusters ? splits : 1;
  FBP_LAUNCH_CLUSTERS(cluster, (forward_kernel<Number, Tile>),
                      grid_of(ceil_div(blocks, cluster) * cluster), kThreads,
                      sizeof(ProjectionMemory<Number, Tile>), context.stream, problem, plan);
}

}  // namespace

void bilinear_forward(const ForwardProblem& problem, const Context& context) {
  const DeviceLimits& device = current_device();
  if (wgmma_serves(problem, device, context.tf32)) return bilinear_forward_wgmma(problem, context);
  if (split_serves(problem, device)) return bilinear_forward_split(problem, context);
  with_number(problem.dtype, context.tf32, [&](auto number) {
    using Number = decltype(number);
    if (problem.B <= kSmallBatch) {
      forward<Number, SmallTile>(problem, context);
    } else {
      forward<Number, LargeTile>(problem, context);
    }
  });
}

}  // namespace fbp::cuda
