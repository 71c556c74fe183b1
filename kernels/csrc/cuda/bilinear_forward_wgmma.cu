// z = sum over trunks and over K of (a p) * (v q), in one launch, on Hopper: half precision, large
// batches, tensors that maps can tell.
//
// Where tiles are few, blocks share the trunks of one, and add their sums in the order of the
// trunks, from the shared memory of their cluster. Else one block for each multiprocessor goes
// through tiles of 128 rows of the batch by whole outputs. A warp of the first warpgroup has the
// operands copied, the other two warpgroups multiply, 64 rows each: u, which is rounded and put
// aside, then w; then they make products and sums of them, while the copies of what comes next are
// on their way.

#include "bilinear_forward_wgmma.h"
#include "cluster.h"
#include "cuda/kernels.h"
#include "cuda/warpgroup.h"
#include "wgmma_epilogue.h"

namespace fbp::cuda {

namespace {

constexpr int kWgmmaThreads = (1 + kConsumers) * kWarpgroup;

struct WgmmaMemory {
  WgmmaRing ring;
  float sums[kConsumerWarps][PooledSums::kSize];
};

template <class T>
__device__ void consume(const ForwardProblem& problem, const WgmmaPlan& plan, WgmmaMemory& memory) {
  const int warp = consumer_warp();
  RingTurn turn;
  for_tiles(problem, plan, [&](const WgmmaTile& tile) {
    WgmmaEpilogue<T> epilogue(problem, tile, warp, memory.sums[warp]);
    const int last = tile.last_trunk();
#pragma unroll 1
    for (int h = tile.first_trunk(); h < last; ++h)
#pragma unroll 1
      for (int chunk = 0; chunk < tile.own.chunks; ++chunk) {
        WgmmaSums sums;
        typename WgmmaEpilogue<T>::Packed u;
        typename WgmmaEpilogue<T>::Counted counted;
        float squares[2] = {0, 0};
        const auto project = [&](int side) {
          multiply_ring<T, Along::depth, Along::other>(
              memory.ring, turn, tile.steps(side), warp / (kWarpgroup / kWarp), sums,
              [](const RingTurn&) {},
              [&](const unsigned char* rows) {
                if (tile.part.adaptive) squares[side] += squares_of<T>(rows);
              });
          if (tile.part.adaptive) squares[side] = sum_over_lanes<2>(squares[side]);
        };
        epilogue.count(h, chunk, counted);
        project(0);
        epilogue.take(h, chunk, sums, u);
        project(1);
        epilogue.add(h, chunk, u, sums, squares, counted);
      }
    if (plan.cluster > 1) return;  // what others have is still to come
    const float* const sums = memory.sums[warp];
    WgmmaEpilogue<T>::store(problem, tile, warp, 0, 1, [&](int place) { return sums[place]; });
  });
}

// The outputs of some rows, from the sums of all blocks that share a tile, which are there.
template <class T>
__device__ void add_shares(const ForwardProblem& problem, const WgmmaPlan& plan,
                           WgmmaMemory& memory) {
  const int warp = consumer_warp();
  float* const own = memory.sums[warp];
  for_tiles(problem, plan, [&](const WgmmaTile& tile) {
    const unsigned first = rank_in_cluster() - static_cast<unsigned>(tile.split);
    const int splits = tile.own.splits;
    WgmmaEpilogue<T>::store(problem, tile, warp, tile.split, splits, [&](int place) {
      float sum = 0;
      for (int i = 0; i < splits; ++i) sum += of_rank(own, first + static_cast<unsigned>(i))[place];
      return sum;
    });
  });
}

template <class T>
__global__ void __launch_bounds__(kWgmmaThreads, 1)
    forward_wgmma_kernel(const __grid_constant__ ForwardProblem problem,
                         const __grid_constant__ WgmmaPlan plan) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  auto& memory = *reinterpret_cast<WgmmaMemory*>(shared_memory_of_patterns());
  if (threadIdx.x == 0) {
    init_ring(memory.ring, kConsumerWarps);
    mbarrier_init_fence();
  }
  __syncthreads();
  // 168 for each thread at first.
  if (threadIdx.x < kWarpgroup) {
    give_registers<40>();
    if (threadIdx.x < kWarp) copy_tiles(problem, plan, memory.ring);
    if (plan.cluster == 1) return;
    wait_for_cluster();
    wait_for_cluster();
  } else {
    take_registers<232>();
    consume<T>(problem, plan, memory);
    if (plan.cluster == 1) return;
    wait_for_cluster();
    add_shares<T>(problem, plan, memory);
    wait_for_cluster();  // a block's memory is there until all have read it
  }
#else
  __trap();  // wgmma is Hopper's alone, and built for sm_90a alone
#endif
}

}  // namespace

bool wgmma_serves(const ForwardProblem& problem, const DeviceLimits& device) {
  const bool biases =
      problem.dtype == Dtype::float16 ? kWgmmaBiases<__half> : kWgmmaBiases<__nv_bfloat16>;
  for (int i = 0; i < problem.parts; ++i)
    for (const Side& side : problem.part[i].side)
      if (side.bias && !biases) return false;
  return problem.B > kSmallBatch && wgmma_can_multiply(problem, device);
}

void bilinear_forward_wgmma(const ForwardProblem& problem, const Context& context) {
  const int multiprocessors = current_device().multiprocessors;
  WgmmaPlan plan;
  plan.down = ceil_div(problem.B, kRingRows);
  for (int i = 0; i < problem.parts; ++i) {
    const Part& part = problem.part[i];
    WgmmaPart& own = plan.part[i];
    own.all = part.outputs();
    own.outputs = kBoxes * box_outputs(part.K);
    own.across = ceil_div(own.all, own.outputs);
    own.chunks = static_cast<int>(ceil_div(part.K, kBoxColumns));
    own.tiles = plan.down * own.across;
    // Only the part whose tiles come first: its clusters begin at multiples of their size.
    if (i == problem.parts - 1)
      own.splits = plan.cluster = splits_of(own.tiles, part.H, multiprocessors);
    plan.shares += own.tiles * own.splits;
    for (int side = 0; side < 2; ++side) {
      own.input[side] =
          tensor_map(problem.dtype, mapped_input(part, side, problem.B), 2, kRingRows);
      own.weight[side] = tensor_map(problem.dtype, mapped_weight(part, side), 1, kRingDepth);
    }
  }
  const dim3 grid = grid_of(plan.cluster == 1 ? smaller(plan.shares, multiprocessors)
                                              : ceil_div(plan.shares, plan.cluster) * plan.cluster);
  with_type(problem.dtype, [&](auto type) {
    using T = decltype(type);
    if constexpr (sizeof(T) == 2)
      FBP_LAUNCH_CLUSTERS(plan.cluster, forward_wgmma_kernel<T>, grid, kWgmmaThreads,
                          sizeof(WgmmaMemory), context.stream, problem, plan);
  });
}

}  // namespace fbp::cuda
