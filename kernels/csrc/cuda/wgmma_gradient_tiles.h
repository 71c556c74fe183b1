// How the products of the bilinear backward on Hopper are cut up: tiles of 128 rows by 256 columns
// of all gradients, through which the warp that copies, the one that clears, and the warpgroups
// that multiply go in the same order.

#pragma once

#include "bilinear_gradients.h"
#include "wgmma_tiles.h"

namespace fbp::cuda {

// The maps of the operands of a gradient: of dx = du W^T or of dW = x^T du.
struct alignas(alignof(CUtensorMap)) GradientMaps {
  CUtensorMap left, right;
};

struct WgmmaGradientsPlan : GradientsPlan {
  GradientMaps maps[kMaxParts][2][2];  // of a part, of a side, of the input or of the weight
};

// By storage type, the stages of products, and how they are multiplied. Of half precision both
// operands are boxes of 64 by 64 as tensors have them, along the depth or across it.
template <class T>
struct GradientForm {
  using Ring = WgmmaRing;

  template <Along kAlong>
  __device__ static auto operands(const RingStage& first, int warp) {
    return SharedOperands<T, kAlong, kAlong, RingStage>(first, warp / (kWarpgroup / kWarp));
  }

  __device__ static auto& left(RingStage& stage) { return stage.rows; }
};

// In TF32 the right one lies along the depth, W as it is and du turned round, and the left one, x
// or du turned round, across it.
template <>
struct GradientForm<float> {
  using Ring = RingOf<Tf32StageOf<kWgmmaColumns>, kRingStages, kTf32StepDepth>;

  template <Along>
  __device__ static Tf32Operands operands(const Ring::Stage& first, int warp) {
    return {first, warp};
  }

  __device__ static auto& left(Ring::Stage& stage) { return stage.columns; }
};

template <class T>
struct GradientMemory {
  using Ring = typename GradientForm<T>::Ring;

  Ring ring;
  Mbarrier cleared[Ring::kStages];  // what must not count in a stage
};

// One tile of one gradient, as a warp sees it. What can be read again from the launch's parameters
// is no number of its own: beside sums and operands there are few registers.
template <class T>
class GradientTile {
  using Ring = typename GradientForm<T>::Ring;

 public:
  __device__ GradientTile(const BackwardProblem& problem, const WgmmaGradientsPlan& plan,
                          int number, i64 index)
      : B(problem.B), index(index), problem_(problem), plan_(plan), number_(number) {
    const i64 tiles = job().down * job().across;
    const Position position = tile_position(index % tiles, job().down, job().across);
    h = static_cast<int>(index / tiles);
    row = static_cast<int>(position.row) * kRingRows;
    column = static_cast<int>(position.column) * kWgmmaColumns;
  }

  const i64& B;
  const i64 index;  // among all tiles of the gradient
  int h, row, column;

  __device__ const Job& job() const { return plan_.job[number_]; }
  __device__ const BackwardPart& part() const { return problem_.part[job().part]; }
  __device__ const Side& side() const { return part().side[job().side]; }
  __device__ const ProjectionGradientsPlan::PartPlan& own() const { return plan_.part[job().part]; }

  // For the end of a product: what follows from the gradient is to be read anew.
  __device__ void forget_gradient() { forget(number_); }

  // Of the depth; none where nothing is to be multiplied. For all lanes of a warp.
  __device__ int steps() const {
    if (job().of == Gradient::bias) return 0;
    if (job().of == Gradient::input && trunks_of_rows(part(), row, B) <= h) return 0;
    return static_cast<int>(ceil_div(job().depth, Ring::kDepth));
  }

  // Whether rows of the batch that do not count are among what is multiplied.
  __device__ bool has_dead_rows() const {
    return job().of == Gradient::weight && part().lengths != nullptr;
  }

  __device__ bool alive(i64 b) const {
    return part().lengths == nullptr || __ldg(part().lengths + b) > h;
  }

  // Asks for the copies of one step.
  __device__ void copy(RingStage& stage, Mbarrier* full, int depth) const {
    const auto& [left, right] = maps();
    if (job().of == Gradient::input) {
#pragma unroll
      for (int i = 0; i < kConsumers; ++i)
        bulk_copy(stage.rows[i], left, full, depth, row + i * kBoxColumns, h);
#pragma unroll
      for (int i = 0; i < kBoxes; ++i)
        bulk_copy(stage.columns[i], right, full, depth, column + i * kBoxColumns, h);
    } else {
#pragma unroll
      for (int i = 0; i < kConsumers; ++i)
        bulk_copy(stage.rows[i], left, full, row + i * kBoxColumns, h, depth);
#pragma unroll
      for (int i = 0; i < kBoxes; ++i)
        bulk_copy(stage.columns[i], right, full, column + i * kBoxColumns, depth, h);
    }
  }

  __device__ void copy(Tf32StageOf<kWgmmaColumns>& stage, Mbarrier* full, int depth) const {
    const auto& [left, right] = maps();
    const bool of_input = job().of == Gradient::input;
    bulk_copy(stage.rows, right, full, depth, column, h);
#pragma unroll
    for (int i = 0; i < kTf32Boxes; ++i)
      bulk_copy(stage.columns[i], left, full, row + i * kTf32BoxColumns, of_input ? depth : h,
                of_input ? h : depth);
  }

 private:
  __device__ const GradientMaps& maps() const {
    return plan_.maps[job().part][job().side][job().of == Gradient::weight ? 1 : 0];
  }

  const BackwardProblem& problem_;
  const WgmmaGradientsPlan& plan_;
  int number_;  // of the gradient
};

// The tiles of a block in their order.
template <class T>
class GradientTiles {
 public:
  __device__ GradientTiles(const BackwardProblem& problem, const WgmmaGradientsPlan& plan)
      : problem_(problem), plan_(plan), tile_(blockIdx.x) {}

  __device__ bool more() const { return tile_ < plan_.blocks; }

  // Calls f with each tile up to the first for which f would not be meant.
  template <class Meant, class F>
  __device__ void while_meant(const Meant& meant, const F& f) {
#pragma unroll 1
    for (; more(); tile_ += gridDim.x) {
      int job = 0;
      i64 index = tile_;
      while (index >= plan_.job[job].blocks) index -= plan_.job[job++].blocks;
      if (!meant(plan_.job[job].of)) return;
      f(GradientTile<T>(problem_, plan_, job, index));
    }
  }

  template <class F>
  __device__ void for_all(const F& f) {
    while_meant([](Gradient) { return true; }, f);
  }

 private:
  const BackwardProblem& problem_;
  const WgmmaGradientsPlan& plan_;
  i64 tile_;
};

// For one warp, as the next.
template <class T>
__device__ inline void copy_gradient_tiles(const BackwardProblem& problem,
                                           const WgmmaGradientsPlan& plan,
                                           GradientMemory<T>& memory) {
  RingTurn turn;
  GradientTiles<T>(problem, plan).for_all([&](const GradientTile<T>& tile) {
    const int steps = tile.steps();
    if (threadIdx.x % kWarp == 0)
      fill_ring(memory.ring, turn, steps,
                [&](auto& stage, Mbarrier* full, int depth) { tile.copy(stage, full, depth); });
    __syncwarp();
  });
}

// By stage, the parity of the phase in which it is cleared: not every product has that.
class ClearedTurns {
 public:
  __device__ unsigned next(int stage) {
    const unsigned parity = parities_ >> stage & 1;
    parities_ ^= 1u << stage;
    return parity;
  }

 private:
  unsigned parities_ = 0;
};

// Sets the lines of rows that do not count to 0. The warp is a reader of all stages: else it could
// mistake a phase for one that is long past.
template <class T>
__device__ inline void clear_dead_rows(const BackwardProblem& problem,
                                       const WgmmaGradientsPlan& plan, GradientMemory<T>& memory) {
  using Ring = typename GradientForm<T>::Ring;
  constexpr int kDepth = Ring::kDepth;
  RingTurn turn;
  GradientTiles<T>(problem, plan).for_all([&](const GradientTile<T>& tile) {
    const int steps = tile.steps();
#pragma unroll 1
    for (int step = 0; step < steps; ++step, turn.next()) {
      mbarrier_wait(&memory.ring.full[turn.stage], turn.parity);
      if (tile.has_dead_rows()) {
        for (int line = static_cast<int>(threadIdx.x) % kWarp; line < kDepth; line += kWarp) {
          const i64 b = static_cast<i64>(step) * kDepth + line;
          if (b >= tile.B || tile.alive(b)) continue;
          for (auto& box : GradientForm<T>::left(memory.ring.stage[turn.stage])) {
            constexpr int kLine = static_cast<int>(sizeof box) / kDepth;
#pragma unroll
            for (int i = 0; i < kLine; i += kChunkBytes)
              *reinterpret_cast<uint4*>(box + line * kLine + i) = uint4{};
          }
        }
        proxy_fence();
        __syncwarp();
        if (threadIdx.x % kWarp == 0) mbarrier_arrive(&memory.cleared[turn.stage]);
      }
      release_stage(memory.ring, turn.stage);
    }
  });
}

// What a consumer has: its place in the ring, and that of its warp in a tile.
template <class T>
struct GradientConsumer {
  GradientMemory<T>& memory;
  const int warp;
  RingTurn turn{};
  ClearedTurns cleared{};

  __device__ int warpgroup() const { return warp / (kWarpgroup / kWarp); }
  __device__ int row(const GradientTile<T>& tile) const { return tile.row + kWarp / 2 * warp; }

  template <Along kAlong>
  __device__ auto operands() const {
    return GradientForm<T>::template operands<kAlong>(memory.ring.stage[0], warp);
  }
};

}  // namespace fbp::cuda
