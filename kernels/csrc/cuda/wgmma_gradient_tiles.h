// How the products of the bilinear backward on Hopper are cut up: tiles of 128 rows by 256 columns
// of all gradients, through which the warp that copies, the one that clears, and the warpgroups
// that multiply go in the same order.

#pragma once

#include "bilinear_gradients.h"
#include "wgmma_tiles.h"

namespace fbp::cuda {

// The maps of an input (width, H, B), its weights (N, width, H), and du (N, B, H), in boxes of 64
// lines.
struct alignas(alignof(CUtensorMap)) GradientMaps {
  CUtensorMap input, weight, d;
};

struct WgmmaGradientsPlan : GradientsPlan {
  GradientMaps maps[kMaxParts][2];
};

struct GradientMemory {
  WgmmaRing ring;
  Mbarrier cleared[kRingStages];  // what must not count in a stage
};

// One tile of one gradient, as a warp sees it.
class GradientTile {
 public:
  __device__ GradientTile(const BackwardProblem& problem, const WgmmaGradientsPlan& plan,
                          const Job& job, i64 index)
      : job(job),
        part(problem.part[job.part]),
        own(plan.part[job.part]),
        B(problem.B),
        index(index),
        maps_(plan.maps[job.part][job.side]) {
    const i64 tiles = job.down * job.across;
    const Position position = tile_position(index % tiles, job.down, job.across);
    h = static_cast<int>(index / tiles);
    row = static_cast<int>(position.row) * kRingRows;
    column = static_cast<int>(position.column) * kWgmmaColumns;
  }

  const Job& job;
  const BackwardPart& part;
  const ProjectionGradientsPlan::PartPlan& own;
  const i64& B;
  const i64 index;  // among all tiles of the gradient
  int h, row, column;

  // Of the depth; none where nothing is to be multiplied. For all lanes of a warp.
  __device__ int steps() const {
    if (job.of == Gradient::bias) return 0;
    if (job.of == Gradient::input && trunks_of_rows(part, row, B) <= h) return 0;
    return static_cast<int>(ceil_div(job.depth, kRingDepth));
  }

  // Whether rows of the batch that do not count are among what is multiplied.
  __device__ bool has_dead_rows() const {
    return job.of == Gradient::weight && part.lengths != nullptr;
  }

  __device__ bool alive(i64 b) const {
    return part.lengths == nullptr || __ldg(part.lengths + b) > h;
  }

  // Asks for the copies of one step.
  __device__ void copy(RingStage& stage, Mbarrier* full, int depth) const {
    if (job.of == Gradient::input) {
#pragma unroll
      for (int i = 0; i < kConsumers; ++i)
        bulk_copy(stage.rows[i], maps_.d, full, depth, row + i * kBoxColumns, h);
#pragma unroll
      for (int i = 0; i < kBoxes; ++i)
        bulk_copy(stage.columns[i], maps_.weight, full, depth, column + i * kBoxColumns, h);
    } else {
#pragma unroll
      for (int i = 0; i < kConsumers; ++i)
        bulk_copy(stage.rows[i], maps_.input, full, row + i * kBoxColumns, h, depth);
#pragma unroll
      for (int i = 0; i < kBoxes; ++i)
        bulk_copy(stage.columns[i], maps_.d, full, column + i * kBoxColumns, depth, h);
    }
  }

 private:
  const GradientMaps& maps_;
};

// The tiles of a block in their order.
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
      f(GradientTile(problem_, plan_, plan_.job[job], index));
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
__device__ inline void copy_gradient_tiles(const BackwardProblem& problem,
                                           const WgmmaGradientsPlan& plan, GradientMemory& memory) {
  RingTurn turn;
  GradientTiles(problem, plan).for_all([&](const GradientTile& tile) {
    const int steps = tile.steps();
    if (threadIdx.x % kWarp == 0)
      fill_ring(memory.ring, turn, steps, [&](RingStage& stage, Mbarrier* full, int depth) {
        tile.copy(stage, full, depth);
      });
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
__device__ inline void clear_dead_rows(const BackwardProblem& problem,
                                       const WgmmaGradientsPlan& plan, GradientMemory& memory) {
  constexpr int kChunks = kLineBytes / kChunkBytes;
  RingTurn turn;
  GradientTiles(problem, plan).for_all([&](const GradientTile& tile) {
    const int steps = tile.steps();
#pragma unroll 1
    for (int step = 0; step < steps; ++step, turn.next()) {
      mbarrier_wait(&memory.ring.full[turn.stage], turn.parity);
      if (tile.has_dead_rows()) {
        for (int line = static_cast<int>(threadIdx.x) % kWarp; line < kRingDepth; line += kWarp) {
          const i64 b = static_cast<i64>(step) * kRingDepth + line;
          if (b >= tile.B || tile.alive(b)) continue;
          for (auto& box : memory.ring.stage[turn.stage].rows)
#pragma unroll
            for (int i = 0; i < kChunks; ++i)
              *reinterpret_cast<uint4*>(box + line * kLineBytes + i * kChunkBytes) = uint4{};
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
struct GradientConsumer {
  GradientMemory& memory;
  const int warp;
  RingTurn turn{};
  ClearedTurns cleared{};

  __device__ int warpgroup() const { return warp / (kWarpgroup / kWarp); }
  __device__ int row(const GradientTile& tile) const { return tile.row + kWarp / 2 * warp; }
};

}  // namespace fbp::cuda
