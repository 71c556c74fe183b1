// du and dw from projections that are in memory: a pass over them, bound by memory.
//
// A thread has vectors of neighbouring columns of four rows, of which a random word is drawn at a
// time; a warp has four rows, a block 32. What rows add to the gradients of scales, and columns to
// those of biases, is summed up on the way. What is to be turned round goes through shared memory,
// from which a row of 32 numbers is written at once.

#include "bilinear_gradients.h"
#include "cuda/vectors.h"

namespace fbp::cuda {

namespace {

constexpr int kPassWarps = kThreads / kWarp;
constexpr int kPassRows = kPassWarps * kQuad;

// Columns that a warp has at a time.
template <class T>
constexpr int kPassColumns = kWarp * kVector<T>;

struct PassPlan : ProjectionGradientsPlan {
  i64 columns[kMaxParts] = {};  // of a tile
};

// `kTurned`: du and dw are turned round, see Placing.
template <class T, bool kTurned>
class PassBlock {
  static constexpr int kOwn = kVector<T>;
  using PartPlan = ProjectionGradientsPlan::PartPlan;

 public:
  struct Memory {
    float sums[2][kPassWarps][kPassColumns<T>];  // over four rows, of du and dw
    // du and dw: of a column, the four rows of warp w are at w ^ kept_at(column).
    Vector<float> turned[2][kTurned ? kPassColumns<T> : 1][kTurned ? kPassWarps : 1];
  };

  __device__ PassBlock(const BackwardProblem& problem, const BackwardPart& part,
                       const PartPlan& own, i64 columns, i64 h, Position position, Memory& memory)
      : problem_(problem),
        part_(part),
        own_(own),
        h_(h),
        position_(position),
        first_(static_cast<int>(position.column * columns)),
        end_(static_cast<int>(smaller(first_ + columns, part.N))),
        row_(position.row * kPassRows + warp() * kQuad),
        memory_(memory) {}

  __device__ void run() {
    const Scales scales[kQuad] = {measured(0), measured(1), measured(2), measured(3)};
    const bool biased = own_.biases[0] != nullptr || own_.biases[1] != nullptr;
    float differences[kQuad] = {};
    for (int column = first_; column < end_; column += kPassColumns<T>) {
      const int n = column + lane() * kOwn;
      if (n < end_) differentiate(n, scales, biased, differences);
      if (biased) sum_columns(column);
      if constexpr (kTurned) write_turned(column);
    }
    if (!part_.adaptive) return;
#pragma unroll
    for (int j = 0; j < kQuad; ++j) {
      const float sum = sum_over_lanes<kWarp>(differences[j]);
      if (lane() == 0 && row_ + j < problem_.B)
        own_.differences[position_.column * problem_.B + row_ + j] = sum;
    }
  }

 private:
  __device__ static int warp() { return static_cast<int>(threadIdx.x) / kWarp; }
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % kWarp; }

  // The scales of one of the four rows, whose norms it writes. For all lanes of a warp.
  __device__ Scales measured(int j) const {
    if (!part_.adaptive) return {false, 0, 0};
    float squares[2];
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const View& input = part_.side[side].input;
      const i64 width = row_ + j < problem_.B ? part_.side[side].width : 0;
      squares[side] = sum_over_lanes<kWarp>(sum_in_pieces<8>(lane(), width, kWarp, [&](i64 c) {
        const float x = widen(
            static_cast<const T*>(input.data)[(row_ + j) * input.stride[0] + c * input.stride[2]]);
        return x * x;
      }));
    }
    const Scales scales(true, squares[0], squares[1]);
    if (position_.column == 0 && lane() == 0 && row_ + j < problem_.B)
      for (int side = 0; side < 2; ++side)
        own_.norms[side * problem_.B + row_ + j] = scales.norm[side];
    return scales;
  }

  // Writes du and dw of neighbouring columns from n on, and their sums over the four rows, where
  // they are wanted; adds to d mu - d eta of each.
  __device__ void differentiate(int n, const Scales (&scales)[kQuad], bool biased,
                                float (&differences)[kQuad]) const {
    const u32 wanted = n + kOwn <= end_ ? kAll<T> : (1u << (end_ - n)) - 1;
    // Rows begin at multiples of a vector.
    const bool rows = part_.N % kOwn == 0 && wanted == kAll<T>;
    const auto aligned = [&](const void* data) {
      return rows && reinterpret_cast<std::uintptr_t>(data) % kChunkBytes == 0;
    };
    // Before there are vectors in registers: random words take as many.
    const u32 counted = count_elements<kOwn>(part_, problem_.B, row_, h_, n);
    const float factor = part_.dropout.active ? static_cast<float>(part_.dropout.scale) : 1.0f;
    Vector<T> vector[2][kQuad];
#pragma unroll
    for (int side = 0; side < 2; ++side)
#pragma unroll
      for (int j = 0; j < kQuad; ++j)
        vector[side][j] = load_vector(static_cast<const T*>(part_.kept[side]) + place(j, n),
                                      row_ + j < problem_.B ? wanted : 0,
                                      row_ + j < problem_.B && aligned(part_.kept[side]));
    float added[kQuad] = {};
    i64 o = n / part_.K;
    int left = static_cast<int>(smaller((o + 1) * part_.K - n, kOwn));  // of the output's columns
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      if ((wanted >> i & 1) == 0) continue;
      const float bias[2] = {bias_of(0, n + i), bias_of(1, n + i)};
      float sums[2] = {};
#pragma unroll
      for (int j = 0; j < kQuad; ++j) {
        const float raw[2] = {widen(vector[0][j].of[i]), widen(vector[1][j].of[i])};
        float d[2];
        const bool counts = (counted >> (kQuad * i + j) & 1) != 0;
        differentiate_element<T>(problem_.dz, counts, row_ + j, part_.o_offset + o, factor, raw,
                                 scales[j], bias, d);
        added[j] += counts ? d[0] * raw[0] - d[1] * raw[1] : 0.0f;
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          sums[side] += d[side];
          vector[side][j].of[i] = narrow<T>(d[side] * scales[j].scale[side]);
        }
      }
      if (biased)
        for (int side = 0; side < 2; ++side)
          memory_.sums[side][warp()][lane() * kOwn + i] = sums[side];
      if (--left > 0) continue;
      left = static_cast<int>(smaller(part_.K, kOwn));
      ++o;
    }
#pragma unroll
    for (int j = 0; j < kQuad; ++j) differences[j] += added[j];
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      if (own_.d[side] == nullptr) continue;
      if constexpr (kTurned) {
        keep_turned(side, vector[side]);
      } else {
#pragma unroll
        for (int j = 0; j < kQuad; ++j)
          store_vector(static_cast<T*>(own_.d[side]) + place(j, n), vector[side][j],
                       row_ + j < problem_.B ? wanted : 0,
                       row_ + j < problem_.B && aligned(own_.d[side]));
      }
    }
  }

  // Lanes that write vectors together, or read them, do so from all banks.
  __device__ static int kept_at(int column) { return column / kOwn % kPassWarps; }

  __device__ void keep_turned(int side, const Vector<T> (&rows)[kQuad]) const {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int c = lane() * kOwn + i;
      memory_.turned[side][c][warp() ^ kept_at(c)] = {
          {rows[0].of[i], rows[1].of[i], rows[2].of[i], rows[3].of[i]}};
    }
  }

  // Writes what the warps have kept, with zeros up to where the last row ends. For all threads of a
  // block.
  __device__ void write_turned(int column) const {
    const i64 row = turned_row(problem_.B),
              b = position_.row * kPassRows + threadIdx.x % kPassWarps * kQuad;
    __syncthreads();
    for (int side = 0; side < 2; ++side)
      for (int c = static_cast<int>(threadIdx.x) / kPassWarps; c < kPassColumns<T>;
           c += kThreads / kPassWarps) {
        if (column + c >= end_ || b >= problem_.B || own_.d[side] == nullptr) continue;
        const i64 at = (h_ * part_.N + column + c) * row + b;
        *reinterpret_cast<Vector<float>*>(static_cast<float*>(own_.d[side]) + at) =
            memory_.turned[side][c][threadIdx.x % kPassWarps ^ kept_at(c)];
      }
    __syncthreads();
  }

  __device__ i64 place(int j, int n) const { return (h_ * problem_.B + row_ + j) * part_.N + n; }

  __device__ float bias_of(int side, int n) const {
    const View& bias = part_.side[side].bias;
    if (bias.data == nullptr) return 0;
    return widen(static_cast<const T*>(bias.data)[h_ * bias.stride[0] + n * bias.stride[2]]);
  }

  // Adds up what the warps have written. For all threads of a block.
  __device__ void sum_columns(int column) const {
    __syncthreads();
    for (int i = threadIdx.x; i < 2 * kPassColumns<T>; i += kThreads) {
      const int side = i / kPassColumns<T>, c = i % kPassColumns<T>;
      if (column + c >= end_ || own_.biases[side] == nullptr) continue;
      own_.biases[side][(position_.row * part_.H + h_) * part_.N + column + c] =
          sum_in_pieces<kPassWarps>(0, kPassWarps, 1,
                                    [&](i64 w) { return memory_.sums[side][w][c]; });
    }
    __syncthreads();
  }

  const BackwardProblem& problem_;
  const BackwardPart& part_;
  const PartPlan& own_;
  const i64 h_;
  const Position position_;
  const int first_, end_;  // columns, of which random words have a number of 32 bits
  const i64 row_;          // the warp's first
  Memory& memory_;
};

// Blocks that a multiprocessor is to hold: where it were two, code for sm_80 would spill.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kPassResident = 1;
#else
constexpr int kPassResident = 2;
#endif

template <class T, bool kTurned>
__global__ void __launch_bounds__(kThreads, kPassResident)
    differentiate_kernel(const __grid_constant__ BackwardProblem problem,
                         const __grid_constant__ PassPlan plan) {
  __shared__ typename PassBlock<T, kTurned>::Memory memory;
  i64 index = blockIdx.x;
  for (int i = problem.parts - 1; i >= 0; --i) {
    const auto& own = plan.part[i];
    if (index < own.blocks) {
      const i64 tiles = plan.down * own.across, tile = index % tiles;
      PassBlock<T, kTurned>(problem, problem.part[i], own, plan.columns[i], index / tiles,
                            {tile / own.across, tile % own.across}, memory)
          .run();
      return;
    }
    index -= own.blocks;
  }
}

}  // namespace

ProjectionGradientsPlan differentiate_kept(const BackwardProblem& problem, Placing placing,
                                           const Context& context) {
  PassPlan plan;
  with_type(problem.dtype, [&](auto type) {
    using T = decltype(type);
    plan.down = ceil_div(problem.B, kPassRows);
    i64 blocks = 0;
    for (int i = 0; i < problem.parts; ++i) {
      const BackwardPart& part = problem.part[i];
      auto& own = plan.part[i];
      i64 wide = 1;  // a tile is so many times the columns of a warp
      if (part.adaptive) {
        // Each tile reads the inputs of its rows, for their norms: no more than fill the device.
        const i64 wanted = ceil_div(4 * current_device().multiprocessors, plan.down);
        wide = larger(ceil_div(part.N, kPassColumns<T>) / wanted, 1);
      }
      plan.columns[i] = wide * kPassColumns<T>;
      own.across = ceil_div(part.N, plan.columns[i]);
      own.blocks = plan.down * own.across * part.H;
      blocks += own.blocks;
    }
    allocate(problem, placing, context, plan);
    if constexpr (std::is_same_v<T, float>) {
      if (placing == Placing::turned)
        return FBP_LAUNCH((differentiate_kernel<T, true>), grid_of(blocks), kThreads, 0,
                          context.stream, problem, plan);
    }
    FBP_LAUNCH((differentiate_kernel<T, false>), grid_of(blocks), kThreads, 0, context.stream,
               problem, plan);
  });
  return plan;
}

}  // namespace fbp::cuda
