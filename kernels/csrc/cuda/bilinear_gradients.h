// Gradients of the bilinear pooling from those of the projections: which there are, and what all
// kernels for them share.

#pragma once

#include <algorithm>

#include "bilinear_tiles.h"
#include "tensor_map.h"

namespace fbp::cuda {

// What the first launch leaves behind.
struct ProjectionGradientsPlan {
  i64 down = 0;  // tiles of rows
  struct PartPlan : Tiles {
    i64 blocks = 0;
    // What is written, null where not needed; `all` is the number of outputs.
    void* d[2] = {};               // du and dw, in the type of the inputs, see Placing
    float* biases[2] = {};         // (down, H, N): sums over the rows of a tile of du and dw
    float* norms = nullptr;        // (2, B): of the rows of a and v
    float* differences = nullptr;  // (across, B): parts of d mu - d eta
  } part[kMaxParts];
};

// du and dw of an element, before the scales of their own sides, from the gradient of its product.
// What does not count is not seen.
__device__ inline void differentiate_product(bool counts, float g, const float (&raw)[2],
                                             const float (&scale)[2], const float (&bias)[2],
                                             float (&d)[2]) {
#pragma unroll
  for (int side = 0; side < 2; ++side) {
    const int other = 1 - side;
    d[side] = counts ? g * fmaf(raw[other], scale[other], bias[other]) : 0.0f;
  }
}

// The same, of an element of an output's columns.
template <class T>
__device__ inline void differentiate_element(const View& dz, bool alive, i64 b, i64 o, float factor,
                                             const float (&raw)[2], const Scales& scales,
                                             const float (&bias)[2], float (&d)[2]) {
  const float g =
      alive ? widen(static_cast<const T*>(dz.data)[b * dz.stride[0] + o * dz.stride[1]]) * factor
            : 0.0f;
  differentiate_product(alive, g, raw, scales.scale, bias, d);
}

// Which elements of four rows and kColumns columns count, of rows that are alive and not dropped:
// bit 4 * i + j is column n + i of row `row` + j.
template <int kColumns>
__device__ inline u32 count_elements(const Part& part, const i64& B, i64 row, i64 h, int n) {
  static_assert(kQuad * kColumns <= 32, "a bit for each");
  u32 counted = 0;
#pragma unroll
  for (int j = 0; j < kQuad; ++j)
    if (row + j < B && (part.lengths == nullptr || __ldg(part.lengths + row + j) > h))
      counted |= 0x11111111u << j;
  const Dropout& dropout = part.dropout;
  if (!dropout.active) return counted;
#pragma unroll 1
  for (int i = 0; i < kColumns; ++i) {
    u32 words[kQuad];
    philox(static_cast<u64>(*dropout.seed), static_cast<u32>(n + i), static_cast<u32>(h),
           static_cast<u32>(row / kQuad), part.stream, words);
#pragma unroll
    for (int j = 0; j < kQuad; ++j)
      if (u64{words[j]} < dropout.threshold) counted &= ~(1u << (kQuad * i + j));
  }
  return counted;
}

// The problem of the forward that writes a backward's projections, which are those before scales
// and biases, and nothing else.
inline ForwardProblem projections_of(const BackwardProblem& problem) {
  ForwardProblem forward;
  forward.dtype = problem.dtype;
  forward.B = problem.B;
  forward.parts = problem.parts;
  for (int i = 0; i < problem.parts; ++i) {
    ForwardPart& part = forward.part[i];
    static_cast<Part&>(part) = problem.part[i];
    part.adaptive = false;
    part.dropout.active = false;
    for (Side& side : part.side) side.bias = {};
  }
  return forward;
}

// A problem with its projections made by `run`.
template <class Run>
BackwardProblem project_again(const BackwardProblem& problem, const Context& context,
                              const Run& run) {
  BackwardProblem projected = problem;
  ForwardProblem forward = projections_of(problem);
  for (int i = 0; i < problem.parts; ++i) {
    ForwardPart& part = forward.part[i];
    for (int side = 0; side < 2; ++side)
      projected.part[i].kept[side] = part.kept[side] =
          context.scratch(part.H * problem.B * part.N * bytes_of(problem.dtype));
  }
  run(forward, context);
  return projected;
}

// Where du and dw are written, and how: (H, B, N), in memory of their own or in the place of the
// kept w and u; or turned round, (H, N, B), with rows that begin at multiples of a vector.
enum class Placing { beside, in_place, turned };

// Of du and dw that are turned round, the numbers from row to row.
inline __host__ __device__ i64 turned_row(i64 B) { return (B + kQuad - 1) / kQuad * kQuad; }

// What a launch writes, for tiles that the plan has already.
inline void allocate(const BackwardProblem& problem, Placing placing, const Context& context,
                     ProjectionGradientsPlan& plan) {
  const auto floats = [&](i64 count) {
    return static_cast<float*>(context.scratch(count * i64{sizeof(float)}));
  };
  const i64 B = problem.B, row = placing == Placing::turned ? turned_row(B) : B;
  for (int i = 0; i < problem.parts; ++i) {
    const BackwardPart& part = problem.part[i];
    auto& own = plan.part[i];
    for (int side = 0; side < 2; ++side) {
      if (part.d_input[side] != nullptr || part.d_weight[side] != nullptr)
        own.d[side] = placing == Placing::in_place
                          ? const_cast<void*>(part.kept[side])
                          : context.scratch(part.H * row * part.N * bytes_of(problem.dtype));
      if (part.d_bias[side] != nullptr) own.biases[side] = floats(plan.down * part.H * part.N);
    }
    if (part.adaptive) {
      own.norms = floats(2 * B);
      own.differences = floats(own.across * B);
    }
  }
}

// The first launch where projections are kept; only float32 is turned round.
ProjectionGradientsPlan differentiate_kept(const BackwardProblem& problem, Placing placing,
                                           const Context& context);

// ---- the second launch ----

enum class Gradient { input, weight, bias };

// The tiles of one gradient: of all trunks, `down` by `across` each.
struct Job {
  Gradient of = Gradient::input;
  int part = 0, side = 0;
  i64 blocks = 0, down = 0, across = 0, depth = 0;
  int piece_a = 1, piece_b = 1;
};

struct GradientsPlan {
  i64 rows = 0;    // tiles of rows in launch 1
  i64 blocks = 0;  // of all jobs
  int jobs = 0;
  Job job[kMaxParts * 2 * 3];
  ProjectionGradientsPlan::PartPlan part[kMaxParts];
};

// Whether the projections of all parts were kept.
inline bool all_kept(const BackwardProblem& problem) {
  for (int i = 0; i < problem.parts; ++i)
    if (problem.part[i].kept[0] == nullptr) return false;
  return true;
}

// The gradients of a problem that are needed, those that take longest first. make_job(of, part,
// side) gives the tiles of one.
template <class MakeJob>
GradientsPlan list_jobs(const BackwardProblem& problem, const ProjectionGradientsPlan& found,
                        const MakeJob& make_job) {
  GradientsPlan plan;
  plan.rows = found.down;
  const auto add = [&](Gradient of, int part, int side, const void* result) {
    if (result == nullptr) return;
    const Job job = make_job(of, part, side);
    if (job.blocks == 0) return;
    plan.job[plan.jobs++] = job;
    plan.blocks += job.blocks;
  };
  for (int i = 0; i < problem.parts; ++i) {
    const BackwardPart& part = problem.part[i];
    plan.part[i] = found.part[i];
    for (int side = 0; side < 2; ++side) {
      add(Gradient::input, i, side, part.d_input[side]);
      add(Gradient::weight, i, side, part.d_weight[side]);
      add(Gradient::bias, i, side, part.d_bias[side]);
    }
  }
  std::stable_sort(plan.job, plan.job + plan.jobs,
                   [](const Job& x, const Job& y) { return x.depth > y.depth; });
  return plan;
}

// What multiplies a row of x in its gradient through the norms: with d = d mu - d eta,
// d mu / d|a| = |v| / (|a| + |v|)^2 = -d eta / d|a| and d|a| / da = a / |a|, so 0 where |a| is 0.
__device__ inline float slope_of(float difference, int side, float own, float other) {
  if (own == 0) return 0;
  const float total = own + other;
  return (side == 0 ? difference : -difference) * (other / total) / total / own;
}

// That of row b of the batch, of which neighbouring lanes add up the differences.
template <int kLanes>
__device__ inline float slope_of_row(const ProjectionGradientsPlan::PartPlan& own, int side, i64 b,
                                     const i64& B) {
  float difference = 0;
  if (b < B)
    for (i64 i = threadIdx.x % kLanes; i < own.across; i += kLanes)
      difference += own.differences[i * B + b];
  difference = sum_over_lanes<kLanes>(difference);
  if (b >= B) return 0;
  return slope_of(difference, side, own.norms[side * B + b], own.norms[(1 - side) * B + b]);
}

// Number i of the gradient of a bias, from sums over `rows` tiles.
template <class T>
__device__ inline void bias_gradient(const BackwardPart& part,
                                     const ProjectionGradientsPlan::PartPlan& own, i64 rows,
                                     int side, i64 i) {
  const i64 count = part.H * part.N;
  if (i >= count) return;
  const float* const biases = own.biases[side];
  static_cast<T*>(part.d_bias[side])[i] =
      narrow<T>(sum_in_pieces<16>(0, rows, 1, [&](i64 row) { return biases[row * count + i]; }));
}

}  // namespace fbp::cuda
