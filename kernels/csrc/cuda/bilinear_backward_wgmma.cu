// Gradients of the bilinear pooling from those of the projections, in one launch, on Hopper: half
// precision or TF32, large batches, tensors that maps can tell.
//
// All products follow one another through the ring of the forward: tiles of 128 rows by 256 columns
// of dx = du W^T and dW = x^T du, those of the longest sums first. Operands lie in stages as copies
// lay them, and are multiplied along lines or across them; in TF32, of which the tensor cores read
// from shared memory only what lies along the depth, du is turned round, and the left operand, du
// or x, goes through registers. A second warp clears what must not count: rows of x that are not
// alive, in which anything may stand.

#include "bilinear_backward_wgmma.h"
#include "bilinear_forward_wgmma.h"
#include "cuda/warpgroup.h"
#include "wgmma_gradient_tiles.h"
#include "wgmma_store.h"

namespace fbp::cuda {

namespace {

constexpr int kGradientThreads = (1 + kConsumers) * kWarpgroup;

template <class T>
__device__ inline void weight_gradient(GradientTile<T> tile, GradientConsumer<T>& own) {
  const bool clears = tile.has_dead_rows();
  WgmmaSums sums;
  multiply_steps(
      own.memory.ring, own.turn, tile.steps(), own.warpgroup(),
      own.template operands<Along::other>(), sums,
      [&](const RingTurn& turn) {
        if (clears) mbarrier_wait(&own.memory.cleared[turn.stage], own.cleared.next(turn.stage));
      },
      [](const unsigned char*) {});
  tile.forget_gradient();
  const BackwardPart& part = tile.part();
  const i64 width = tile.side().width;
  T* const d = static_cast<T*>(part.d_weight[tile.job().side]);
  const Target<T> target{d + tile.h * width * part.N, part.N, width, part.N};
  store_sums(sums, own.row(tile), tile.column, target, [](int, int, float x) { return x; });
}

template <class T>
__device__ inline void input_gradient(GradientTile<T> tile, GradientConsumer<T>& own) {
  WgmmaSums sums;
  multiply_steps(
      own.memory.ring, own.turn, tile.steps(), own.warpgroup(),
      own.template operands<Along::depth>(), sums, [](const RingTurn&) {},
      [](const unsigned char*) {});
  tile.forget_gradient();
  const BackwardPart& part = tile.part();
  const Side& side = tile.side();
  const int row[2] = {own.row(tile) + row_of_sums<T>(0), own.row(tile) + row_of_sums<T>(1)};
  // What stands in a row that is dead must not count, nor what stands in its weights.
  bool alive[2];
  float slope[2] = {0, 0};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const i64 b = row[half];
    alive[half] = b < tile.B && tile.alive(b);
    if (part.adaptive) slope[half] = slope_of_row<4>(tile.own(), tile.job().side, b, tile.B);
  }
  T* const d = static_cast<T*>(part.d_input[tile.job().side]);
  const Target<T> target{d + tile.h * side.width, part.H * side.width, tile.B, side.width};
  store_sums(sums, own.row(tile), tile.column, target, [&](int half, int c, float x) {
    x = alive[half] ? x : 0.0f;
    const i64 b = row[half];
    if (!part.adaptive || b >= tile.B || c >= side.width) return x;
    const View& input = side.input;
    return fmaf(slope[half], widen(static_cast<const T*>(input.data)[b * input.stride[0] + c]), x);
  });
}

// Two kinds of products in one loop would have their sums in other registers, and be serialised.
template <class T>
__device__ inline void multiply_gradient_tiles(const BackwardProblem& problem,
                                               const WgmmaGradientsPlan& plan,
                                               GradientMemory<T>& memory) {
  GradientConsumer<T> own{memory, consumer_warp()};
  GradientTiles<T> tiles(problem, plan);
  while (tiles.more()) {
    tiles.while_meant([](Gradient of) { return of == Gradient::weight; },
                      [&](const GradientTile<T>& tile) { weight_gradient<T>(tile, own); });
    tiles.while_meant([](Gradient of) { return of == Gradient::input; },
                      [&](const GradientTile<T>& tile) { input_gradient<T>(tile, own); });
    tiles.while_meant([](Gradient of) { return of == Gradient::bias; },
                      [&](const GradientTile<T>& tile) {
                        bias_gradient<T>(tile.part(), tile.own(), plan.rows, tile.job().side,
                                         tile.index * kThreads + threadIdx.x - kWarpgroup);
                      });
  }
}

template <class T>
__global__ void __launch_bounds__(kGradientThreads, 1)
    gradients_wgmma_kernel(const __grid_constant__ BackwardProblem problem,
                           const __grid_constant__ WgmmaGradientsPlan plan) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  auto& memory = *reinterpret_cast<GradientMemory<T>*>(shared_memory_of_patterns());
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

// The maps of the operands of dx and dW, from du or dw.
template <class T>
void map_operands(const BackwardProblem& problem, int index, int side, const void* found,
                  GradientMaps (&maps)[2]) {
  const BackwardPart& part = problem.part[index];
  const MappedTensor input = mapped_input(part, side, problem.B),
                     weight = mapped_weight(part, side);
  const Dtype dtype = problem.dtype;
  auto& [of_input, of_weight] = maps;
  if constexpr (sizeof(T) == 2) {
    of_input.left = tensor_map(dtype, mapped_projections(part, found, problem.B), 1, kRingDepth);
    of_input.right = tensor_map(dtype, weight, 1, kRingDepth);
    of_weight.left = tensor_map(dtype, input, 2, kRingDepth);
    of_weight.right = of_input.left;
  } else {
    const MappedTensor d = mapped_turned(part, found, problem.B, turned_row(problem.B));
    of_input.left = tensor_map(dtype, d, 1, kTf32StepDepth, kTf32BoxColumns);
    of_input.right = tensor_map(dtype, weight, 1, kWgmmaColumns, kTf32StepDepth);
    of_weight.left = tensor_map(dtype, input, 2, kTf32StepDepth, kTf32BoxColumns);
    of_weight.right = tensor_map(dtype, d, 1, kWgmmaColumns, kTf32StepDepth);
  }
}

}  // namespace

bool wgmma_serves(const BackwardProblem& problem, const DeviceLimits& device, bool tf32) {
  // du of half precision is contiguous. What is turned round begins where maps may.
  for (int i = 0; i < problem.parts; ++i)
    if (problem.dtype != Dtype::float32 && problem.part[i].N % kMapChunk != 0) return false;
  return problem.B > kSmallBatch && wgmma_can_multiply(problem, device, tf32);
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
  const dim3 grid = grid_of(smaller(plan.blocks, current_device().multiprocessors));
  with_type(problem.dtype, [&](auto type) {
    using T = decltype(type);
    for (int i = 0; i < problem.parts; ++i)
      for (int side = 0; side < 2; ++side)
        if (const void* const d = found.part[i].d[side]; d != nullptr)
          map_operands<T>(problem, i, side, d, plan.maps[i][side]);
    FBP_LAUNCH(gradients_wgmma_kernel<T>, grid, kGradientThreads, sizeof(GradientMemory<T>),
               context.stream, problem, plan);
  });
}

}  // namespace fbp::cuda
