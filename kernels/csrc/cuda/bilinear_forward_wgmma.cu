// z = sum over trunks and over K of (a p) * (v q), in one launch, on Hopper: half precision, large
// batches, tensors that maps can tell.
//
// One block for each multiprocessor goes through tiles of 128 rows of the batch by whole outputs. A
// warp of the first warpgroup has the operands copied, the other two warpgroups multiply, 64 rows
// each: u, which is rounded and put aside, then w; then they make products and sums of them, while
// the copies of what comes next are on their way.

#include "bilinear_forward_wgmma.h"
#include "cuda/kernels.h"
#include "cuda/vectors.h"
#include "cuda/warpgroup.h"
#include "wgmma_epilogue.h"

namespace fbp::cuda {

namespace {

constexpr int kWgmmaThreads = (1 + kConsumers) * kWarpgroup;

struct WgmmaMemory {
  WgmmaRing ring;
  float sums[kConsumerWarps][PooledSums::kSize];
};

// The sum of squares of half of a row's part in one step: two neighbouring threads have a row.
template <class T>
__device__ float squares_of(const unsigned char* rows) {
  constexpr int kChunks = kLineBytes / kChunkBytes;
  const int thread = static_cast<int>(threadIdx.x) % kWarpgroup, row = thread / 2;
  float sum = 0;
  // Not unrolled: between products, there are few registers left.
#pragma unroll 1
  for (int i = 0; i < kChunks / 2; ++i) {
    // By the swizzle: columns in their order, and rows beside each other in banks of their own.
    const int chunk = (thread % 2 * (kChunks / 2) + i) ^ row % kPatternLines;
    const auto of = load_vector(
        reinterpret_cast<const T*>(rows + row * kLineBytes + chunk * kChunkBytes), kAll<T>, true);
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) sum = fmaf(widen(of.of[j]), widen(of.of[j]), sum);
  }
  return sum;
}

template <class T>
__device__ void consume(const ForwardProblem& problem, const WgmmaPlan& plan, WgmmaMemory& memory) {
  // The same for all lanes, and known to be.
  const int warp =
      __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarp, 0) - kWarpgroup / kWarp;
  RingTurn turn;
  for_tiles(problem, plan, [&](const WgmmaTile& tile) {
    WgmmaEpilogue<T> epilogue(problem, tile, warp, memory.sums[warp]);
    const int trunks = tile.trunks();
#pragma unroll 1
    for (int h = 0; h < trunks; ++h)
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
    epilogue.store();
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
  } else {
    take_registers<232>();
    consume<T>(problem, plan, memory);
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
  return can_be_multiplied_by_wgmma(problem, device);
}

void bilinear_forward_wgmma(const ForwardProblem& problem, const Context& context) {
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
    plan.tiles += own.tiles;
    for (int side = 0; side < 2; ++side) {
      own.input[side] =
          tensor_map(problem.dtype, mapped_input(part, side, problem.B), 2, kRingRows);
      own.weight[side] = tensor_map(problem.dtype, mapped_weight(part, side), 1, kRingDepth);
    }
  }
  const dim3 grid = grid_of(smaller(plan.tiles, current_device().multiprocessors));
  with_type(problem.dtype, [&](auto type) {
    using T = decltype(type);
    if constexpr (sizeof(T) == 2)
      FBP_LAUNCH(forward_wgmma_kernel<T>, grid, kWgmmaThreads, sizeof(WgmmaMemory), context.stream,
                 problem, plan);
  });
}

}  // namespace fbp::cuda
