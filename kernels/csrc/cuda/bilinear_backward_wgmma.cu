// Gradients of the bilinear pooling from those of the projections, in one launch, on Hopper: half
// precision, large batches, tensors that maps can tell.
//
// All products follow one another through the ring of the forward: tiles of 128 rows by 256 columns
// of dx = du W^T and dW = x^T du, those of the longest sums first. Both operands lie in stages as
// copies lay them, in boxes of 64 by 64, and are multiplied along lines or across them. A second
// warp clears what must not count: rows of x that are not alive, in which anything may stand.

#include "bilinear_backward_wgmma.h"
#include "bilinear_forward_wgmma.h"
#include "cuda/warpgroup.h"
#include "wgmma_gradient_tiles.h"
#include "wgmma_store.h"

namespace fbp::cuda {

namespace {

constexpr int kGradientThreads = (1 + kConsumers) * kWarpgroup;

template <class T>
__device__ inline void weight_gradient(const GradientTile& tile, GradientConsumer& own) {
  const BackwardPart& part = tile.part;
  const i64 width = part.side[tile.job.side].width;
  WgmmaSums sums;
  multiply_ring<T, Along::other, Along::other>(
      own.memory.ring, own.turn, tile.steps(), own.warpgroup(), sums,
      [&](const RingTurn& turn) {
        if (tile.has_dead_rows())
          mbarrier_wait(&own.memory.cleared[turn.stage], own.cleared.next(turn.stage));
      },
      [](const unsigned char*) {});
  T* const d = static_cast<T*>(part.d_weight[tile.job.side]);
  const Target<T> target{d + tile.h * width * part.N, part.N, width, part.N};
  store_sums(sums, own.row(tile), tile.column, target, [](int, int, float x) { return x; });
}

template <class T>
__device__ inline void input_gradient(const GradientTile& tile, GradientConsumer& own) {
  const BackwardPart& part = tile.part;
  const Side& side = part.side[tile.job.side];
  WgmmaSums sums;
  multiply_ring<T, Along::depth, Along::depth>(
      own.memory.ring, own.turn, tile.steps(), own.warpgroup(), sums, [](const RingTurn&) {},
      [](const unsigned char*) {});
  const int first = own.row(tile) + static_cast<int>(threadIdx.x) % kWarp / 4;
  // What stands in a row that is dead must not count, nor what stands in its weights.
  bool alive[2];
  float slope[2] = {0, 0};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const i64 b = first + 8 * half;
    alive[half] = b < tile.B && tile.alive(b);
    if (part.adaptive) slope[half] = slope_of_row<4>(tile.own, tile.job.side, b, tile.B);
  }
  T* const d = static_cast<T*>(part.d_input[tile.job.side]);
  const Target<T> target{d + tile.h * side.width, part.H * side.width, tile.B, side.width};
  store_sums(sums, own.row(tile), tile.column, target, [&](int half, int c, float x) {
    x = alive[half] ? x : 0.0f;
    const i64 b = first + 8 * half;
    if (!part.adaptive || b >= tile.B || c >= side.width) return x;
    const View& input = side.input;
    return fmaf(slope[half], widen(static_cast<const T*>(input.data)[b * input.stride[0] + c]), x);
  });
}

// Two kinds of products in one loop would have their sums in other registers, and be serialised.
template <class T>
__device__ inline void multiply_gradient_tiles(const BackwardProblem& problem,
                                               const WgmmaGradientsPlan& plan,
                                               GradientMemory& memory) {
  GradientConsumer own{memory, consumer_warp()};
  GradientTiles tiles(problem, plan);
  while (tiles.more()) {
    tiles.while_meant([](Gradient of) { return of == Gradient::weight; },
                      [&](const GradientTile& tile) { weight_gradient<T>(tile, own); });
    tiles.while_meant([](Gradient of) { return of == Gradient::input; },
                      [&](const GradientTile& tile) { input_gradient<T>(tile, own); });
    tiles.while_meant([](Gradient of) { return of == Gradient::bias; },
                      [&](const GradientTile& tile) {
                        bias_gradient<T>(tile.part, tile.own, plan.rows, tile.job.side,
                                         tile.index * kThreads + threadIdx.x - kWarpgroup);
                      });
  }
}

template <class T>
__global__ void __launch_bounds__(kGradientThreads, 1)
    gradients_wgmma_kernel(const __grid_constant__ BackwardProblem problem,
                           const __grid_constant__ WgmmaGradientsPlan plan) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  auto& memory = *reinterpret_cast<GradientMemory*>(shared_memory_of_patterns());
  if (threadIdx.x == 0) {
    init_ring(memory.ring, kConsumerWarps + 1);
    for (Mbarrier& cleared : memory.cleared) mbarrier_init(&cleared, 1);
    mbarrier_init_fence();
  }
  __syncthreads();
  // 168 for each thread at first.
  if (threadIdx.x < kWarpgroup) {
    give_registers<40>();
    if (threadIdx.x < kWarp) {
      copy_gradient_tiles(problem, plan, memory);
    } else if (threadIdx.x < 2 * kWarp) {
      clear_dead_rows(problem, plan, memory);
    }
  } else {
    take_registers<232>();
    multiply_gradient_tiles<T>(problem, plan, memory);
  }
#else
  __trap();  // wgmma is Hopper's alone, and built for sm_90a alone
#endif
}

Job job_of(const BackwardProblem& problem, Gradient of, int index, int s) {
  const BackwardPart& part = problem.part[index];
  const i64 width = part.side[s].width;
  Job job;
  job.of = of;
  job.part = index;
  job.side = s;
  switch (of) {
    case Gradient::input:
      job.down = ceil_div(problem.B, kRingRows);
      job.across = ceil_div(width, kWgmmaColumns);
      job.depth = part.N;
      break;
    case Gradient::weight:
      job.down = ceil_div(width, kRingRows);
      job.across = ceil_div(part.N, kWgmmaColumns);
      job.depth = problem.B;
      break;
    case Gradient::bias:
      job.down = 1;
      job.across = ceil_div(part.H * part.N, kThreads);
      break;
  }
  job.blocks = job.down * job.across * (of == Gradient::bias ? 1 : part.H);
  return job;
}

}  // namespace

bool wgmma_serves(const BackwardProblem& problem, const DeviceLimits& device) {
  // Projections are contiguous, and their memory may be given from outside.
  for (int i = 0; i < problem.parts; ++i)
    if (problem.part[i].N % kMapChunk != 0) return false;
  return problem.B > kSmallBatch && wgmma_can_multiply(problem, device);
}

BackwardProblem project_by_wgmma(const BackwardProblem& problem, const Context& context) {
  return project_again(problem, context, bilinear_forward_wgmma);
}

void multiply_by_wgmma(const BackwardProblem& problem, const ProjectionGradientsPlan& found,
                       const Context& context) {
  WgmmaGradientsPlan plan;
  static_cast<GradientsPlan&>(plan) =
      list_jobs(problem, found,
                [&](Gradient of, int part, int side) { return job_of(problem, of, part, side); });
  if (plan.blocks == 0) return;
  for (int i = 0; i < problem.parts; ++i)
    for (int side = 0; side < 2; ++side) {
      const BackwardPart& part = problem.part[i];
      GradientMaps& maps = plan.maps[i][side];
      const void* const d = found.part[i].d[side];
      if (d == nullptr) continue;
      maps.input = tensor_map(problem.dtype, mapped_input(part, side, problem.B), 2, kRingDepth);
      maps.weight = tensor_map(problem.dtype, mapped_weight(part, side), 1, kRingDepth);
      maps.d = tensor_map(problem.dtype, mapped_projections(part, d, problem.B), 1, kRingDepth);
    }
  const dim3 grid = grid_of(smaller(plan.blocks, current_device().multiprocessors));
  with_type(problem.dtype, [&](auto type) {
    using T = decltype(type);
    if constexpr (sizeof(T) == 2)
      FBP_LAUNCH(gradients_wgmma_kernel<T>, grid, kGradientThreads, sizeof(GradientMemory),
                 context.stream, problem, plan);
  });
}

}  // namespace fbp::cuda
