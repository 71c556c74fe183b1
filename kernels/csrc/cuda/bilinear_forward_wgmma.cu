// z = sum over trunks and over K of (a p) * (v q), in one launch, on Hopper: half precision or
// TF32, large batches, tensors that maps can tell.
//
// Where tiles are few, blocks share the trunks of one, and add their sums in the order of the
// trunks, from the shared memory of their cluster. Else one block for each multiprocessor goes
// through tiles of 128 rows of the batch by whole outputs. A warp of the first warpgroup has the
// operands copied, the other two warpgroups multiply, 64 rows each, or of TF32 half of the columns:
// u, which is put aside, then w; then they make products and sums of them, while the copies of what
// comes next are on their way.

#include "bilinear_forward_wgmma.h"
#include "cluster.h"
#include "cuda/kernels.h"
#include "cuda/warpgroup.h"
#include "wgmma_tf32_epilogue.h"

namespace fbp::cuda {

namespace {

constexpr int kWgmmaThreads = (1 + kConsumers) * kWarpgroup;

template <class T>
struct WgmmaMemory {
  typename WgmmaForm<T>::Ring ring;
  typename WgmmaEpilogue<T>::Shared shared;
};

template <class T>
__device__ void consume(const ForwardProblem& problem, const WgmmaPlan& plan,
                        WgmmaMemory<T>& memory) {
  using Epilogue = WgmmaEpilogue<T>;
  const int warp = consumer_warp();
  TurnOf<WgmmaForm<T>::Ring::kStages> turn;
  typename Epilogue::Turn epilogue_turn;
  for_tiles<T>(problem, plan, [&](const WgmmaTile<T>& tile) {
    Epilogue epilogue(problem, tile, warp, memory.shared, epilogue_turn);
    const int last = tile.last_trunk();
#pragma unroll 1
    for (int h = tile.first_trunk(); h < last; ++h)
#pragma unroll 1
      for (int chunk = 0; chunk < tile.own.chunks; ++chunk) {
        typename Epilogue::Sums sums;
        typename Epilogue::Packed u;
        typename Epilogue::Counted counted;
        float squares[2] = {0, 0};
        const auto project = [&](int side) {
          multiply_steps(
              memory.ring, turn, tile.steps(side), warp / (kWarpgroup / kWarp),
              Epilogue::operands(memory.ring.stage[0], warp), sums, [](const auto&) {},
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
    const float* const sums = memory.shared.sums[warp];
    Epilogue::store(problem, tile, warp, 0, 1, [&](int place) { return sums[place]; });
  });
}

// The outputs of some rows, from the sums of all blocks that share a tile, which are there.
template <class T>
__device__ void add_shares(const ForwardProblem& problem, const WgmmaPlan& plan,
                           WgmmaMemory<T>& memory) {
  const int warp = consumer_warp();
  float* const own = memory.shared.sums[warp];
  for_tiles<T>(problem, plan, [&](const WgmmaTile<T>& tile) {
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
  auto& memory = *reinterpret_cast<WgmmaMemory<T>*>(shared_memory_of_patterns());
  if (threadIdx.x == 0) {
    init_ring(memory.ring, kConsumerWarps);
    memory.shared.init();
    mbarrier_init_fence();
  }
  __syncthreads();
  // 168 for each thread at first.
  if (threadIdx.x < kWarpgroup) {
    give_registers<40>();
    if (threadIdx.x < kWarp) copy_tiles<T>(problem, plan, memory.ring);
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

template <class T>
WgmmaPlan plan_of(const ForwardProblem& problem) {
  using Form = WgmmaForm<T>;
  const int multiprocessors = current_device().multiprocessors;
  WgmmaPlan plan;
  plan.down = ceil_div(problem.B, kRingRows);
  for (int i = 0; i < problem.parts; ++i) {
    const Part& part = problem.part[i];
    WgmmaPart& own = plan.part[i];
    own.all = part.outputs();
    own.outputs = Form::kBoxes * box_outputs<T>(part.K);
    own.across = ceil_div(own.all, own.outputs);
    own.chunks = static_cast<int>(ceil_div(part.K, Form::kBoxColumns));
    own.tiles = plan.down * own.across;
    // Only the part whose tiles come first: its clusters begin at multiples of their size.
    if (i == problem.parts - 1)
      own.splits = plan.cluster = splits_of(own.tiles, part.H, multiprocessors);
    plan.shares += own.tiles * own.splits;
    for (int side = 0; side < 2; ++side) {
      own.input[side] = tensor_map(problem.dtype, mapped_input(part, side, problem.B), 2, kRingRows,
                                   Form::Ring::kDepth);
      own.weight[side] = tensor_map(problem.dtype, mapped_weight(part, side), 1, Form::Ring::kDepth,
                                    Form::kBoxColumns);
    }
  }
  return plan;
}

}  // namespace

bool wgmma_serves(const ForwardProblem& problem, const DeviceLimits& device, bool tf32) {
  const bool biases = problem.dtype != Dtype::float16 || kWgmmaBiases<__half>;
  for (int i = 0; i < problem.parts; ++i)
    for (const Side& side : problem.part[i].side)
      if (side.bias && !biases) return false;
  return problem.B > kSmallBatch && wgmma_can_multiply(problem, device, tf32);
}

void bilinear_forward_wgmma(const ForwardProblem& problem, const Context& context) {
  with_type(problem.dtype, [&](auto type) {
    using T = decltype(type);
    const WgmmaPlan plan = plan_of<T>(problem);
    const i64 blocks = plan.cluster == 1 ? smaller(plan.shares, current_device().multiprocessors)
                                         : ceil_div(plan.shares, plan.cluster) * plan.cluster;
    FBP_LAUNCH_CLUSTERS(plan.cluster, forward_wgmma_kernel<T>, grid_of(blocks), kWgmmaThreads,
                        sizeof(WgmmaMemory<T>), context.stream, problem, plan);
  });
}

}  // namespace fbp::cuda
