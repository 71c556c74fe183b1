// Gradients of the bilinear pooling, in two launches. With x an input, W its weights, u its
// projection and w that of the other side:
//
//   1  du[b, n] = dz[b, n / K] * mask * w, from projections computed again, or kept
//      (bilinear_differentiate.cu); and what the rows and columns of a tile add to the gradients of
//      scales and biases
//   2  dx = du W^T, dW = x^T du, and the sums over tiles for scales and biases
//
// An adaptive scale multiplies the rows of du, in place of those of dx and of x.

#include "bilinear_backward_small.h"
#include "bilinear_backward_wgmma.h"
#include "bilinear_gradients.h"
#include "cuda/kernels.h"

namespace fbp::cuda {

namespace {

// ---- launch 1 ----

template <class Number, class Tile>
class ProjectionGradientsBlock {
  using T = typename Number::Storage;
  static constexpr int kStride = kTileStride<Tile>;
  static constexpr int kWarpsAcross = Tile::kColumns / kWarp;
  using PartPlan = ProjectionGradientsPlan::PartPlan;

 public:
  struct Memory : ProjectionMemory<Number, Tile> {
    float difference[kWarpsAcross][Tile::kRows];
  };

  __device__ ProjectionGradientsBlock(const BackwardProblem& problem, const BackwardPart& part,
                                      const PartPlan& own, i64 h, Position position)
      : problem_(problem),
        part_(part),
        own_(own),
        h_(h),
        position_(position),
        tile_(part, own, problem.B, position_.row * Tile::kRows, position_.column * own.outputs),
        memory_(*reinterpret_cast<Memory*>(shared_memory())) {}

  __device__ void run() {
    if (part_.adaptive)
      for (int i = threadIdx.x; i < kWarpsAcross * Tile::kRows; i += kThreads)
        memory_.difference[i / Tile::kRows][i % Tile::kRows] = 0;
    project<Number, Tile>(tile_, h_, h_ + 1, memory_,
                          [&](i64, i64 column, int columns) { differentiate(column, columns); });
    if (part_.adaptive) finish_rows();
  }

 private:
  __device__ i64 place(int r, i64 n) const {
    return (h_ * problem_.B + tile_.row + r) * part_.N + n;
  }

  __device__ Scales scales_of(int r) const {
    if (!part_.adaptive) return {false, 0, 0};
    return {true, memory_.squares[0][r], memory_.squares[1][r]};
  }

  // du and dw of some columns, from the projections in memory.
  __device__ void differentiate(i64 column, int columns) {
    const bool biased = own_.biases[0] != nullptr || own_.biases[1] != nullptr;
    for (int i = threadIdx.x; i < Tile::kRows / 4 * Tile::kColumns; i += kThreads) {
      const int c = i % Tile::kColumns, quad = i / Tile::kColumns;
      const i64 n = column + c;
      const bool inside = c < columns;
      float difference[4] = {};
      if (inside) {
        const float bias[2] = {tile_.bias<T>(0, h_, n), tile_.bias<T>(1, h_, n)};
        const i64 o = part_.o_offset + position_.column * own_.outputs + tile_.output(column, c);
        float factors[4] = {1, 1, 1, 1};
        if (part_.dropout.active)
          dropout_factors(part_.dropout, n, h_, tile_.row / 4 + quad, part_.stream, factors);
#pragma unroll
        for (int j = 0; j < 4; ++j)
          difference[j] = differentiate(4 * quad + j, c, n, o, factors[j], bias, biased);
      }
      if (!part_.adaptive) continue;
      // The columns of a row are those of one warp, or of two.
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float sum = sum_over_lanes<kWarp>(difference[j]);
        if (threadIdx.x % kWarp == 0) memory_.difference[c / kWarp][4 * quad + j] += sum;
      }
    }
    if (biased) {
      __syncthreads();
      sum_columns(column, columns);
    }
  }

  // Of one element; returns what it adds to d mu - d eta.
  __device__ float differentiate(int r, int c, i64 n, i64 o, float factor, const float (&bias)[2],
                                 bool biased) {
    const i64 b = tile_.row + r;
    if (b >= problem_.B) {
      if (biased) memory_.tile[0][r * kStride + c] = memory_.tile[1][r * kStride + c] = 0;
      return 0;
    }
    const Scales scales = scales_of(r);
    const float raw[2] = {memory_.tile[0][r * kStride + c], memory_.tile[1][r * kStride + c]};
    float d[2];
    differentiate_element<T>(problem_.dz, tile_.alive(b, h_), b, o, factor, raw, scales, bias, d);
    for (int side = 0; side < 2; ++side)
      if (own_.d[side] != nullptr)
        static_cast<T*>(own_.d[side])[place(r, n)] = narrow<T>(d[side] * scales.scale[side]);
    if (biased)
      for (int side = 0; side < 2; ++side) memory_.tile[side][r * kStride + c] = d[side];
    return d[0] * raw[0] - d[1] * raw[1];
  }

  __device__ void sum_columns(i64 column, int columns) const {
    for (int i = threadIdx.x; i < 2 * Tile::kColumns; i += kThreads) {
      const int side = i / Tile::kColumns, c = i % Tile::kColumns;
      if (c >= columns || own_.biases[side] == nullptr) continue;
      own_.biases[side][(position_.row * part_.H + h_) * part_.N + column + c] = sum_in_pieces<8>(
          0, Tile::kRows, 1, [&](i64 r) { return memory_.tile[side][r * kStride + c]; });
    }
  }

  __device__ void finish_rows() const {
    __syncthreads();
    const int r = threadIdx.x;
    const i64 b = tile_.row + r;
    if (r >= Tile::kRows || b >= problem_.B) return;
    float sum = 0;
    for (int i = 0; i < kWarpsAcross; ++i) sum += memory_.difference[i][r];
    own_.differences[position_.column * problem_.B + b] = sum;
    if (position_.column != 0) return;
    const Scales scales = scales_of(r);
    for (int side = 0; side < 2; ++side) own_.norms[side * problem_.B + b] = scales.norm[side];
  }

  const BackwardProblem& problem_;
  const BackwardPart& part_;
  const PartPlan& own_;
  const i64 h_;
  const Position position_;
  const TileOfPart tile_;
  Memory& memory_;
};

template <class Number, class Tile>
__global__ void __launch_bounds__(kThreads, Tile::kResident)
    projection_gradients_kernel(const __grid_constant__ BackwardProblem problem,
                                const __grid_constant__ ProjectionGradientsPlan plan) {
  i64 index = blockIdx.x;
  for (int i = problem.parts - 1; i >= 0; --i) {
    const auto& own = plan.part[i];
    if (index < own.blocks) {
      const i64 tiles = plan.down * own.across;
      ProjectionGradientsBlock<Number, Tile>(problem, problem.part[i], own, index / tiles,
                                             tile_position(index % tiles, plan.down, own.across))
          .run();
      return;
    }
    index -= own.blocks;
  }
}

// ---- launch 2 ----

template <class Number, class Tile, Along A, Along B>
struct GradientMemory {
  Ring<Number, Tile, A, B> ring;
  float tile[Tile::kRows * kTileStride<Tile>];
  float slope[Tile::kRows];
};

// Multiplies one pair of operands, and calls finish(r, c, x) with each element of the tile.
template <class Number, class Tile, Along A, Along B, class Finish>
__device__ inline void multiply_once(const Factors<typename Number::Storage>& factors,
                                     GradientMemory<Number, Tile, A, B>& memory,
                                     const Finish& finish) {
  using T = typename Number::Storage;
  multiply<Number, Tile, A, B>(
      1, memory.ring, [&](int) { return factors; }, [](int, const T*) {},
      [&](int) { return memory.tile; }, [](int) {});
  __syncthreads();
  for (int i = threadIdx.x; i < Tile::kRows * Tile::kColumns; i += kThreads) {
    const int r = i / Tile::kColumns, c = i % Tile::kColumns;
    finish(r, c, memory.tile[r * kTileStride<Tile> + c]);
  }
}

// A tile (rows of the batch, width) of dx.
template <class Number, class Tile>
__device__ inline void input_gradient(const BackwardProblem& problem, const BackwardPart& part,
                                      const ProjectionGradientsPlan::PartPlan& own, const Job& job,
                                      i64 index) {
  using T = typename Number::Storage;
  using Memory = GradientMemory<Number, Tile, Along::depth, Along::depth>;
  auto& memory = *reinterpret_cast<Memory*>(shared_memory());
  const i64 B = problem.B, tiles = job.down * job.across, h = index / tiles;
  const Position position = tile_position(index % tiles, job.down, job.across);
  const i64 row = position.row * Tile::kRows, column = position.column * Tile::kColumns;
  const Side& side = part.side[job.side];
  if (part.adaptive) {
    // Each row belongs to some neighbouring lanes.
    constexpr int kLanes = kThreads / Tile::kRows;
    const int r = static_cast<int>(threadIdx.x) / kLanes;
    const float slope = slope_of_row<kLanes>(own, job.side, row + r, B);
    if (threadIdx.x % kLanes == 0) memory.slope[r] = slope;
  }
  Factors<T> factors;
  factors.depth = part.N;
  factors.a.data = static_cast<const T*>(own.d[job.side]) + (h * B + row) * part.N;
  factors.a.line = part.N;
  factors.a.element = 1;
  factors.a.piece = job.piece_a;
  factors.a.others = B - row;
  factors.b.data = static_cast<const T*>(side.weight.data) + h * side.weight.stride[0] +
                   column * side.weight.stride[1];
  factors.b.line = side.weight.stride[1];
  factors.b.element = side.weight.stride[2];
  factors.b.piece = job.piece_b;
  factors.b.others = side.width - column;
  multiply_once<Number, Tile>(factors, memory, [&](int r, int c, float x) {
    const i64 b = row + r;
    if (b >= B || column + c >= side.width) return;
    // What stands in a row that is dead must not count, nor what stands in its weights.
    if (part.lengths != nullptr && __ldg(part.lengths + b) <= h) x = 0;
    if (part.adaptive)
      x = fmaf(
          memory.slope[r],
          widen(static_cast<const T*>(
              side.input.data)[b * side.input.stride[0] + (column + c) * side.input.stride[2]]),
          x);
    static_cast<T*>(part.d_input[job.side])[(b * part.H + h) * side.width + column + c] =
        narrow<T>(x);
  });
}

// A tile (width, columns) of dW.
template <class Number, class Tile>
__device__ inline void weight_gradient(const BackwardProblem& problem, const BackwardPart& part,
                                       const ProjectionGradientsPlan::PartPlan& own, const Job& job,
                                       i64 index) {
  using T = typename Number::Storage;
  using Memory = GradientMemory<Number, Tile, Along::other, Along::other>;
  auto& memory = *reinterpret_cast<Memory*>(shared_memory());
  const i64 tiles = job.down * job.across, h = index / tiles;
  const Position position = tile_position(index % tiles, job.down, job.across);
  const i64 row = position.row * Tile::kRows, column = position.column * Tile::kColumns;
  const Side& side = part.side[job.side];
  Factors<T> factors;
  factors.depth = problem.B;
  factors.a.data = static_cast<const T*>(side.input.data) + h * side.input.stride[1] +
                   row * side.input.stride[2];
  factors.a.line = side.input.stride[0];
  factors.a.element = side.input.stride[2];
  factors.a.piece = job.piece_a;
  factors.a.others = side.width - row;
  factors.a.limits = part.lengths;
  factors.a.trunk = h;
  factors.b.data = static_cast<const T*>(own.d[job.side]) + h * problem.B * part.N + column;
  factors.b.line = part.N;
  factors.b.element = 1;
  factors.b.piece = job.piece_b;
  factors.b.others = part.N - column;
  multiply_once<Number, Tile>(factors, memory, [&](int r, int c, float x) {
    if (row + r < side.width && column + c < part.N)
      static_cast<T*>(part.d_weight[job.side])[(h * side.width + row + r) * part.N + column + c] =
          narrow<T>(x);
  });
}

template <class Number, class InputTile, class WeightTile>
__global__ void __launch_bounds__(kThreads, InputTile::kResident)
    gradients_kernel(const __grid_constant__ BackwardProblem problem,
                     const __grid_constant__ GradientsPlan plan) {
  i64 index = blockIdx.x;
  for (int i = 0; i < plan.jobs; ++i) {
    const Job& job = plan.job[i];
    if (index < job.blocks) {
      const BackwardPart& part = problem.part[job.part];
      const auto& own = plan.part[job.part];
      switch (job.of) {
        case Gradient::input:
          return input_gradient<Number, InputTile>(problem, part, own, job, index);
        case Gradient::weight:
          return weight_gradient<Number, WeightTile>(problem, part, own, job, index);
        case Gradient::bias:
          return bias_gradient<typename Number::Storage>(part, own, plan.rows, job.side,
                                                         index * kThreads + threadIdx.x);
      }
    }
    index -= job.blocks;
  }
}

// ---- plans ----

template <class Number, class Tile>
ProjectionGradientsPlan differentiate(const BackwardProblem& problem, const Context& context) {
  ProjectionGradientsPlan plan;
  plan.down = ceil_div(problem.B, Tile::kRows);
  i64 blocks = 0;
  for (int i = 0; i < problem.parts; ++i) {
    const BackwardPart& part = problem.part[i];
    auto& own = plan.part[i];
    static_cast<Tiles&>(own) = tiles_of<Number, Tile>(part, problem.B);
    own.blocks = plan.down * own.across * part.H;
    blocks += own.blocks;
  }
  allocate(problem, Placing::beside, context, plan);
  FBP_LAUNCH((projection_gradients_kernel<Number, Tile>), grid_of(blocks), kThreads,
             sizeof(typename ProjectionGradientsBlock<Number, Tile>::Memory), context.stream,
             problem, plan);
  return plan;
}

template <class Number, class InputTile, class WeightTile>
Job make_job(const BackwardProblem& problem, Gradient of, int index, int s, const void* d) {
  using T = typename Number::Storage;
  const BackwardPart& part = problem.part[index];
  const Side& side = part.side[s];
  const int piece_d = piece_of<T>(d, 1, {part.N});
  Job job;
  job.of = of;
  job.part = index;
  job.side = s;
  switch (of) {
    case Gradient::input:
      job.down = ceil_div(problem.B, InputTile::kRows);
      job.across = ceil_div(side.width, InputTile::kColumns);
      job.depth = part.N;
      job.piece_a = piece_d;
      job.piece_b = piece_of<T>(side.weight.data, side.weight.stride[2],
                                {side.width > 1 ? side.weight.stride[1] : 0,
                                 part.H > 1 ? side.weight.stride[0] : 0, part.N});
      break;
    case Gradient::weight:
      job.down = ceil_div(side.width, WeightTile::kRows);
      job.across = ceil_div(part.N, WeightTile::kColumns);
      job.depth = problem.B;
      job.piece_a = input_piece<T>(part, s, problem.B);
      job.piece_b = piece_d;
      break;
    case Gradient::bias:
      job.down = 1;
      job.across = ceil_div(part.H * part.N, kThreads);
      break;
  }
  job.blocks = job.down * job.across * (of == Gradient::bias ? 1 : part.H);
  return job;
}

template <class Number, class InputTile, class WeightTile>
void multiply(const BackwardProblem& problem, const ProjectionGradientsPlan& found,
              const Context& context) {
  const GradientsPlan plan = list_jobs(problem, found, [&](Gradient of, int part, int side) {
    return make_job<Number, InputTile, WeightTile>(problem, of, part, side,
                                                   found.part[part].d[side]);
  });
  if (plan.blocks == 0) return;
  constexpr std::size_t kInputBytes =
      sizeof(GradientMemory<Number, InputTile, Along::depth, Along::depth>);
  constexpr std::size_t kWeightBytes =
      sizeof(GradientMemory<Number, WeightTile, Along::other, Along::other>);
  FBP_LAUNCH((gradients_kernel<Number, InputTile, WeightTile>), grid_of(plan.blocks), kThreads,
             std::max(kInputBytes, kWeightBytes), context.stream, problem, plan);
}

}  // namespace

void bilinear_backward(const BackwardProblem& problem, const Context& context) {
  if (small_serves(problem, current_device())) return bilinear_backward_small(problem, context);
  const bool kept = all_kept(problem);
  if (wgmma_serves(problem, current_device(), context.tf32)) {
    const BackwardProblem projected = kept ? problem : project_by_wgmma(problem, context);
    const Placing placing = problem.dtype == Dtype::float32 ? Placing::turned
                            : kept                          ? Placing::beside
                                                            : Placing::in_place;
    return multiply_by_wgmma(projected, differentiate_kept(projected, placing, context), context);
  }
  with_number(problem.dtype, context.tf32, [&](auto number) {
    using Number = decltype(number);
    const auto run = [&](auto tile) {
      using Tile = decltype(tile);
      multiply<Number, Tile, LargeTile>(problem,
                                        kept ? differentiate_kept(problem, Placing::beside, context)
                                             : differentiate<Number, Tile>(problem, context),
                                        context);
    };
    if (problem.B <= kSmallBatch) {
      run(SmallTile{});
    } else {
      run(LargeTile{});
    }
  });
}

}  // namespace fbp::cuda
