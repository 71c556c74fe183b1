// The products of a block on Hopper: one warp asks for copies that fill a ring of stages, one or
// two warpgroups of consumers multiply what is in them. Products follow one another without the
// ring running empty; a stage is filled again when all warps that read it have said so.

#pragma once

#include "cuda/bulk_copy.h"
#include "cuda/common.h"
#include "cuda/mbarrier.h"
#include "cuda/tensor_map.h"
#include "cuda/wgmma.h"
#include "matrix_descriptor.h"

namespace fbp::cuda {

constexpr int kConsumers = 2;  // warpgroups
constexpr int kConsumerWarps = kConsumers * kWarpgroup / kWarp;
constexpr int kRingRows = kConsumers * kWgmmaRows;
constexpr int kRingDepth = kMapLine;  // of a step
constexpr int kBoxColumns = kMapLine;
constexpr int kBoxes = kWgmmaColumns / kBoxColumns;
constexpr int kRingStages = 4;

constexpr int kBoxBytes = kRingDepth * kLineBytes;

// The operands of one step, as bulk copies lay them: boxes of 64 lines, along the depth or across
// it. `kColumnLine` is the bytes of a line of columns.
struct alignas(kPatternBytes) RingStage {
  static constexpr int kColumnLine = kLineBytes;

  unsigned char rows[kConsumers][kBoxBytes];  // those of each warpgroup
  unsigned char columns[kBoxes][kBoxBytes];
};

template <class StageOf, int kCount, int kDepthOf = kRingDepth>
struct RingOf {
  using Stage = StageOf;
  static constexpr int kStages = kCount, kDepth = kDepthOf;

  Stage stage[kStages];
  Mbarrier full[kStages];   // its copies have come
  Mbarrier empty[kStages];  // its readers are done
};

using WgmmaRing = RingOf<RingStage, kRingStages>;

// For one thread; others may use the ring after a mbarrier_init_fence() and a __syncthreads().
// `readers` are the warps that read a stage.
template <class Ring>
__device__ inline void init_ring(Ring& ring, int readers) {
  for (int i = 0; i < Ring::kStages; ++i) {
    mbarrier_init(&ring.full[i], 1);
    mbarrier_init(&ring.empty[i], readers);
  }
}

// A place in the sequence of all steps, which both sides go through alike.
template <int kStages>
struct TurnOf {
  int stage = 0;
  unsigned parity = 0;  // of the phase in which the stage is full

  __device__ void next() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

using RingTurn = TurnOf<kRingStages>;

// Asks for the copies of a product, as far ahead as there are stages: copy(stage, full, depth) for
// those of a step, `bytes` together. For one thread.
template <class Ring, class Copy>
__device__ inline void fill_ring(Ring& ring, TurnOf<Ring::kStages>& turn, int steps,
                                 const Copy& copy, unsigned bytes = sizeof(typename Ring::Stage)) {
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    Mbarrier* const full = &ring.full[turn.stage];
    mbarrier_wait(&ring.empty[turn.stage], turn.parity ^ 1);
    mbarrier_arrive_expecting(full, bytes);
    copy(ring.stage[turn.stage], full, step * Ring::kDepth);
    turn.next();
  }
}

// The number of a warp of consumers, where a warpgroup of others is before them. The same for all
// lanes, and known to be.
__device__ inline int consumer_warp() {
  return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarp, 0) - kWarpgroup / kWarp;
}

// Says that a warp no longer reads a stage. For all of its lanes.
template <class Ring>
__device__ inline void release_stage(Ring& ring, int stage) {
  __syncwarp();
  if (threadIdx.x % kWarp == 0) mbarrier_arrive(&ring.empty[stage]);
}

// What a warpgroup multiplies of a stage, both operands in shared memory: `A` and `B` are how rows
// and columns lie there. The products of a step are asked for in kGroups groups, two of which are
// under way at a time; `Kept` is what has to stay in registers until those of a group are done.
template <class T, Along A, Along B, class Stage>
class SharedOperands {
  // From product to product: along a line, or some lines on.
  static constexpr int kAlongStep = kWgmmaDepth * 2;
  static constexpr int kRowsStep = A == Along::depth ? kAlongStep : kWgmmaDepth * kLineBytes;
  static constexpr int kColumnsStep =
      B == Along::depth ? kAlongStep : kWgmmaDepth * Stage::kColumnLine;

 public:
  static constexpr int kGroups = 1;
  struct Kept {};

  __device__ SharedOperands(const Stage& first, int warpgroup)
      : rows_(MatrixDescriptor::of<A>(first.rows[warpgroup], kBoxBytes)),
        columns_(MatrixDescriptor::of<B, Stage::kColumnLine>(first.columns, kBoxBytes)) {}

  // For a group of the stage that begins so many bytes after the first.
  __device__ Kept load(int, int) const { return {}; }

  // Asks for its products, upon the sums where there is `more`.
  template <class Sums>
  __device__ void multiply(int stage, int, const Kept&, Sums& sums, bool more) const {
#pragma unroll
    for (int i = 0; i < kRingDepth / kWgmmaDepth; ++i)
      wgmma<T, A, B>(sums, rows_.at(stage + i * kRowsStep), columns_.at(stage + i * kColumnsStep),
                     more || i > 0);
  }

 private:
  const MatrixDescriptor rows_, columns_;
};

// Multiplies what fill_ring() asks for: the sums of a warpgroup, number 0 or 1. For all of its
// threads. A stage that is full is multiplied after await(turn); look(rows) may read the
// warpgroup's rows of it.
template <class Operands, class Ring, class Sums, class Await, class Look>
__device__ inline void multiply_steps(Ring& ring, TurnOf<Ring::kStages>& turn, int steps,
                                      int warpgroup, const Operands& operands, Sums& sums,
                                      const Await& await, const Look& look) {
  constexpr int kStageBytes = sizeof(typename Ring::Stage);
  int before = -1;  // the stage of the step before, which may still be read
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    mbarrier_wait(&ring.full[turn.stage], turn.parity);
    await(turn);
    __syncwarp();
    const int stage = turn.stage * kStageBytes;
#pragma unroll
    for (int group = 0; group < Operands::kGroups; ++group) {
      const auto kept = operands.load(stage, group);
      wgmma_fence();
      operands.multiply(stage, group, kept, sums, step > 0 || group > 0);
      wgmma_commit();
      if (group == 0) look(ring.stage[turn.stage].rows[warpgroup]);
      wgmma_wait_for_earlier();
      if (group == 0 && before >= 0) release_stage(ring, before);
    }
    before = turn.stage;
    turn.next();
  }
  wgmma_wait_for_all(sums);
  if (before >= 0) release_stage(ring, before);
}

// The same, of operands that lie in shared memory.
template <class T, Along A, Along B, class Ring, class Sums, class Await, class Look>
__device__ inline void multiply_ring(Ring& ring, TurnOf<Ring::kStages>& turn, int steps,
                                     int warpgroup, Sums& sums, const Await& await,
                                     const Look& look) {
  const SharedOperands<T, A, B, typename Ring::Stage> operands(ring.stage[0], warpgroup);
  multiply_steps(ring, turn, steps, warpgroup, operands, sums, await, look);
}

}  // namespace fbp::cuda
