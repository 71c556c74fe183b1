// The products of a block on Hopper: one warp asks for copies that fill a ring of stages, two
// warpgroups of consumers multiply what is in them. Products follow one another without the ring
// running empty; a stage is filled again when all warps that read it have said so.

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
// it.
struct alignas(kPatternBytes) RingStage {
  unsigned char rows[kConsumers][kBoxBytes];  // those of each warpgroup
  unsigned char columns[kBoxes][kBoxBytes];
};

struct WgmmaRing {
  RingStage stage[kRingStages];
  Mbarrier full[kRingStages];   // its copies have come
  Mbarrier empty[kRingStages];  // its readers are done
};

// For one thread; others may use the ring after a mbarrier_init_fence() and a __syncthreads().
// `readers` are the warps that read a stage.
__device__ inline void init_ring(WgmmaRing& ring, int readers) {
  for (int i = 0; i < kRingStages; ++i) {
    mbarrier_init(&ring.full[i], 1);
    mbarrier_init(&ring.empty[i], readers);
  }
}

// A place in the sequence of all steps, which both sides go through alike.
struct RingTurn {
  int stage = 0;
  unsigned parity = 0;  // of the phase in which the stage is full

  __device__ void next() {
    if (++stage < kRingStages) return;
    stage = 0;
    parity ^= 1;
  }
};

// Asks for the copies of a product, as far ahead as there are stages: copy(stage, full, depth) for
// those of a step, a whole stage. For one thread.
template <class Copy>
__device__ inline void fill_ring(WgmmaRing& ring, RingTurn& turn, int steps, const Copy& copy) {
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    Mbarrier* const full = &ring.full[turn.stage];
    mbarrier_wait(&ring.empty[turn.stage], turn.parity ^ 1);
    mbarrier_arrive_expecting(full, sizeof(RingStage));
    copy(ring.stage[turn.stage], full, step * kRingDepth);
    turn.next();
  }
}

// Says that a warp no longer reads a stage. For all of its lanes.
__device__ inline void release_stage(WgmmaRing& ring, int stage) {
  __syncwarp();
  if (threadIdx.x % kWarp == 0) mbarrier_arrive(&ring.empty[stage]);
}

// Multiplies what fill_ring() asks for: the sums of the rows of a warpgroup, number 0 or 1. For all
// of its threads. `A` and `B` are how rows and columns lie in a stage. A stage that is full is
// multiplied after await(turn); look(rows) may read the warpgroup's rows of it.
template <class T, Along A, Along B, class Await, class Look>
__device__ inline void multiply_ring(WgmmaRing& ring, RingTurn& turn, int steps, int warpgroup,
                                     WgmmaSums& sums, const Await& await, const Look& look) {
  // From product to product: along a line, or some lines on.
  constexpr int kAlongStep = kWgmmaDepth * 2;
  constexpr int kAcrossStep = kWgmmaDepth * kLineBytes;
  constexpr int kRowsStep = A == Along::depth ? kAlongStep : kAcrossStep;
  constexpr int kColumnsStep = B == Along::depth ? kAlongStep : kAcrossStep;
  const auto rows = MatrixDescriptor::of<A>(ring.stage[0].rows[warpgroup], kBoxBytes);
  const auto columns = MatrixDescriptor::of<B>(ring.stage[0].columns, kBoxBytes);
  int before = -1;  // the stage of the step before, which may still be read
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    mbarrier_wait(&ring.full[turn.stage], turn.parity);
    await(turn);
    __syncwarp();
    const int stage = turn.stage * static_cast<int>(sizeof(RingStage));
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kRingDepth / kWgmmaDepth; ++i)
      wgmma<T, A, B>(sums, rows.at(stage + i * kRowsStep), columns.at(stage + i * kColumnsStep),
                     step + i > 0);
    wgmma_commit();
    look(ring.stage[turn.stage].rows[warpgroup]);
    wgmma_wait_for_earlier();
    if (before >= 0) release_stage(ring, before);
    before = turn.stage;
    turn.next();
  }
  wgmma_wait_for_all(sums);
  if (before >= 0) release_stage(ring, before);
}

}  // namespace fbp::cuda
