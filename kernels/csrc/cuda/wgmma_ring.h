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

// The operands of one step, as bulk copies lay them.
struct alignas(kPatternBytes) RingStage {
  unsigned char rows[kRingRows * kLineBytes];  // a line is a row
  unsigned char columns[kBoxes][kBoxBytes];    // a line is a number of the depth
};

struct WgmmaRing {
  RingStage stage[kRingStages];
  Mbarrier full[kRingStages];   // its copies have come
  Mbarrier empty[kRingStages];  // its readers are done
};

// For one thread; others may use the ring after a __syncthreads().
__device__ inline void init_ring(WgmmaRing& ring) {
  for (int i = 0; i < kRingStages; ++i) {
    mbarrier_init(&ring.full[i], 1);
    mbarrier_init(&ring.empty[i], kConsumerWarps);
  }
  mbarrier_init_fence();
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

// One product: rows of a tensor (width, H, B) by columns of a tensor (N, width, H) in boxes, each
// of which begins where it is told.
struct RingFactors {
  const CUtensorMap* rows;
  const CUtensorMap* columns;
  int steps;           // of the depth
  int row, trunk;      // the first
  int column[kBoxes];  // likewise
};

// Asks for the copies of a product, as far ahead as there are stages. For one thread.
__device__ inline void fill_ring(WgmmaRing& ring, RingTurn& turn, const RingFactors& factors) {
#pragma unroll 1
  for (int step = 0; step < factors.steps; ++step) {
    RingStage& stage = ring.stage[turn.stage];
    Mbarrier* const full = &ring.full[turn.stage];
    mbarrier_wait(&ring.empty[turn.stage], turn.parity ^ 1);
    mbarrier_arrive_expecting(full, sizeof(RingStage));
    const int depth = step * kRingDepth;
    bulk_copy(stage.rows, *factors.rows, full, depth, factors.trunk, factors.row);
#pragma unroll
    for (int i = 0; i < kBoxes; ++i)
      bulk_copy(stage.columns[i], *factors.columns, full, factors.column[i], depth, factors.trunk);
    turn.next();
  }
}

// Multiplies what fill_ring() asks for: the sums of the rows of a warpgroup, number 0 or 1. For all
// of its threads. `look(rows)` may read the warpgroup's rows of each step.
template <class T, class Look>
__device__ inline void multiply_ring(WgmmaRing& ring, RingTurn& turn, int steps, int warpgroup,
                                     WgmmaSums& sums, const Look& look) {
  constexpr int kRowsBytes = kWgmmaRows * kLineBytes;
  constexpr int kRowsStep = kWgmmaDepth * 2;              // bytes along a line
  constexpr int kColumnsStep = kWgmmaDepth * kLineBytes;  // lines
  const auto release = [&](int stage) {
    __syncwarp();
    if (threadIdx.x % kWarp == 0) mbarrier_arrive(&ring.empty[stage]);
  };
  const auto rows = MatrixDescriptor::depth_contiguous(ring.stage[0].rows + warpgroup * kRowsBytes);
  const auto columns = MatrixDescriptor::columns_contiguous(ring.stage[0].columns, kBoxBytes);
  int before = -1;  // the stage of the step before, which may still be read
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    mbarrier_wait(&ring.full[turn.stage], turn.parity);
    __syncwarp();
    const int stage = turn.stage * static_cast<int>(sizeof(RingStage));
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kRingDepth / kWgmmaDepth; ++i)
      wgmma<T>(sums, rows.at(stage + i * kRowsStep), columns.at(stage + i * kColumnsStep),
               step + i > 0);
    wgmma_commit();
    look(ring.stage[turn.stage].rows + warpgroup * kRowsBytes);
    wgmma_wait_for_earlier();
    if (before >= 0) release(before);
    before = turn.stage;
    turn.next();
  }
  wgmma_wait_for_all(sums);
  if (before >= 0) release(before);
}

}  // namespace fbp::cuda
