// Attention over frames, pooled over trunks and over the clip; see AttentionPoolProblem. Frames are
// cut into tiles of kFrames. With n the frames of a row that count, s the factor of the scores, and
// G the gradient that reaches a frame's term (its clip's and its trunk's):
//
//   forward   1  a block for each tile: scores, the top of |s| score, the sum of exponentials
//                below it, and the sums of x weighted by these, one for each trunk in the tile;
//             2  the tiles of a row joined in their order; where a row is one tile, launch 1 does
//                it too
//   backward  1  gamma = x . G + d_weights, and the tile's part of m = sum of weights gamma
//             2  d_score = weights (gamma - m); the hidden layer, kept or again, its gradient
//                d_hidden = s d_score query (1 - tanh^2), from which dx = weights G + d_hidden W^T;
//                the tile's parts of the sums over frames: d_bias, d_query, d_scale
//             3  d_weight = x^T d_hidden, in shares of the frames that whoever comes last adds up;
//                d_bias, d_query, d_scale from their parts
//
// The sum of tile i for trunk h goes to slot i + h of its row: tiles and trunks both follow the
// frames, so no two sums want the same slot, and tiles + H - 1 slots are enough.
//
// m is not taken from the results, where it would be one read of x cheaper: gamma - m would not be
// exactly 0 where one frame has all the weight.

#include "bilinear_product.h"
#include "cuda/kernels.h"

namespace fbp::cuda {

namespace {

using Tile = LargeTile;
constexpr int kFrames = Tile::kRows, kColumns = Tile::kColumns;
constexpr int kWarps = kThreads / kWarp;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kPerFrame = kThreads / kFrames;  // threads that share a frame

// What one launch leaves for the next, and what the host finds out once.
struct Plan {
  int tiles = 0;                      // of a row
  int x_piece = 1, weight_piece = 1;  // see Operand::piece
  // Forward.
  float* scores = nullptr;  // (B, T): of the sign of s, before |s|
  float* tops = nullptr;    // (B, tiles)
  float* totals = nullptr;  // (B, tiles)
  float* sums = nullptr;    // (B, slots, C)
  // Backward.
  float* gamma = nullptr;        // (B, T)
  float* means = nullptr;        // (B, tiles)
  void* d_hidden = nullptr;      // (B, T, A); frames that do not count are not written
  float* parts = nullptr;        // (B, tiles, 2 A + 1): of d_bias, d_query, d_scale
  float* matrices = nullptr;     // (products, splits, kFrames * kColumns): of d_weight
  unsigned* counters = nullptr;  // (products)
  int hidden_piece = 1;
  int splits = 1;
  i64 products = 0;  // tiles of d_weight

  __device__ i64 slots(i64 H) const { return tiles + H - 1; }
};

// ---- what the kernels share ----

__device__ inline i64 length_of(const AttentionPoolProblem& problem, i64 row) {
  if (problem.lengths == nullptr) return problem.T;
  return smaller(larger(problem.lengths[row], 0), problem.T);
}

__device__ inline float factor_of(const AttentionPoolProblem& problem) {
  const auto factor = static_cast<float>(problem.factor);
  if (problem.scale == nullptr) return factor;
  switch (problem.scale_dtype) {
    case Dtype::float32:
      return *static_cast<const float*>(problem.scale) * factor;
    case Dtype::float64:
      return static_cast<float>(*static_cast<const double*>(problem.scale) * problem.factor);
    case Dtype::bfloat16:
      return widen(*static_cast<const __nv_bfloat16*>(problem.scale)) * factor;
    default:
      return widen(*static_cast<const __half*>(problem.scale)) * factor;
  }
}

__device__ inline void write_scale(const AttentionPoolProblem& problem, float value) {
  switch (problem.scale_dtype) {
    case Dtype::float32:
      *static_cast<float*>(problem.d_scale) = value;
      return;
    case Dtype::float64:
      *static_cast<double*>(problem.d_scale) = value;
      return;
    case Dtype::bfloat16:
      *static_cast<__nv_bfloat16*>(problem.d_scale) = narrow<__nv_bfloat16>(value);
      return;
    default:
      *static_cast<__half*>(problem.d_scale) = narrow<__half>(value);
  }
}

// The trunk that a frame falls in: the last h with h n / H, rounded down, at most the frame.
__device__ inline i64 trunk_of(i64 frame, i64 H, i64 n) { return ((frame + 1) * H - 1) / n; }

// The frame that a trunk of a row begins at: h n / H, rounded down, without a division of 64 bits.
class Begins {
 public:
  __device__ Begins(i64 n, i64 H)
      : H_(static_cast<u32>(H)),
        whole_(static_cast<u32>(n) / H_),
        rest_(static_cast<u32>(n) % H_) {}
  __device__ i64 operator()(u32 h) const { return i64{h} * whole_ + h * rest_ / H_; }

 private:
  u32 H_, whole_, rest_;
};

template <class T>
__device__ const T* at(const View& view, i64 i, i64 j = 0, i64 k = 0) {
  return static_cast<const T*>(view.data) + i * view.stride[0] + j * view.stride[1] +
         k * view.stride[2];
}

// The sum over the 2^k lanes that a lane is among, in the same order for all of them.
template <int kLanes>
__device__ float sum_of_lanes(float x) {
#pragma unroll
  for (int bit = kLanes / 2; bit > 0; bit /= 2) x += __shfl_xor_sync(kAllLanes, x, bit);
  return x;
}

// tanh, about as exact as its rounding, and its slope, with digits where 1 - tanh^2 has none left.
// Either way the answer is a number less a small one, so that what rounds the small one hardly
// counts: 1 less what is missing to it or, near 0, x less x - tanh(x), by four terms of Lambert's
// continued fraction.
struct Tanh {
  float value, slope;

  __device__ explicit Tanh(float x) {
    const float size = fabsf(x), square = size * size;
    const bool near = size < 0.875f;
    const float decay = expf(-2.0f * size);
    const float above = near ? size * square * fmaf(square, 14.0f, 315.0f) : 2.0f * decay;
    const float below = near ? fmaf(square, fmaf(square, 15.0f, 420.0f), 945.0f) : 1.0f + decay;
    const float small = above / below;
    const float y = (near ? size : 1.0f) - small;
    slope = near ? fmaf(-y, y, 1.0f) : small * (2.0f - small);
    value = copysignf(y, x);
  }

  // Of a value that was kept.
  __device__ static Tanh recalled(float value) { return {value, (1.0f - value) * (1.0f + value)}; }

 private:
  __device__ Tanh(float value_, float slope_) : value(value_), slope(slope_) {}
};

// The hidden layer of a frame, as it is kept.
template <class T>
__device__ T* hidden_of(const AttentionPoolProblem& problem, i64 row, i64 frame) {
  return static_cast<T*>(problem.hidden) + (row * problem.T + frame) * problem.A;
}

// A tile of frames, and where it is.
struct Frames {
  i64 row, n, start;
  int tile, alive;  // frames of the tile that count

  __device__ Frames(const AttentionPoolProblem& problem, const Plan& plan)
      : row(blockIdx.x / static_cast<unsigned>(plan.tiles)),
        n(length_of(problem, row)),
        tile(static_cast<int>(blockIdx.x % static_cast<unsigned>(plan.tiles))) {
    start = i64{tile} * kFrames;
    alive = static_cast<int>(larger(smaller(kFrames, n - start), 0));
  }
};

template <class Number>
using HiddenRing = Ring<Number, Tile, Along::depth, Along::other>;

// The hidden layer of a frames' tile before bias and tanh, put into `tile` kColumns columns at a
// time: finish(first column) for all of them.
template <class Number, class Finish>
__device__ void for_hidden(const AttentionPoolProblem& problem, const Plan& plan,
                           const Frames& frames, HiddenRing<Number>& ring, float* tile,
                           const Finish& finish) {
  using T = typename Number::Storage;
  multiply<Number, Tile, Along::depth, Along::other>(
      static_cast<int>(ceil_div(problem.A, kColumns)), ring,
      [&](int i) {
        const i64 a = i64{i} * kColumns;
        Factors<T> factors;
        factors.a = {at<T>(problem.x, frames.row, frames.start), problem.x.stride[1],
                     problem.x.stride[2], plan.x_piece, frames.alive};
        factors.b = {at<T>(problem.weight, 0, a), problem.weight.stride[0],
                     problem.weight.stride[1], plan.weight_piece, problem.A - a};
        factors.depth = problem.C;
        return factors;
      },
      [](int, const T*) {}, [&](int) { return tile; }, [&](int i) { finish(i64{i} * kColumns); });
}

// ---- forward ----

template <class Number>
struct ForwardMemory {
  HiddenRing<Number> ring;
  float hidden[kFrames * kTileStride<Tile>];
  float shares[kFrames];  // scores, then exponentials below their top
};

// The scores of a tile, their top and the sum of the exponentials below it.
template <class Number>
__device__ void score(const AttentionPoolProblem& problem, const Plan& plan, const Frames& frames,
                      ForwardMemory<Number>& memory) {
  using T = typename Number::Storage;
  const int thread = static_cast<int>(threadIdx.x);
  const int frame = thread / kPerFrame, own = thread % kPerFrame;
  float part = 0;
  for_hidden<Number>(problem, plan, frames, memory.ring, memory.hidden, [&](i64 a) {
    __syncthreads();
    const int columns = static_cast<int>(smaller(kColumns, problem.A - a));
    float piece = 0;
    for (int c = own; c < columns; c += kPerFrame) {
      float& x = memory.hidden[frame * kTileStride<Tile> + c];
      const Tanh y(x + widen(*at<T>(problem.bias, a + c)));
      piece = fmaf(y.value, widen(*at<T>(problem.query, a + c)), piece);
      x = y.value;
    }
    part += piece;
    if (problem.hidden == nullptr) return;
    __syncthreads();
    const int c = thread % kColumns;
    for (int t = thread / kColumns; c < columns && t < frames.alive; t += kPerFrame)
      hidden_of<T>(problem, frames.row, frames.start + t)[a + c] =
          narrow<T>(memory.hidden[t * kTileStride<Tile> + c]);
  });
  const float factor = factor_of(problem);
  part = sum_of_lanes<kPerFrame>(part);
  if (own == 0) memory.shares[frame] = factor < 0 ? -part : part;
  __syncthreads();
  if (thread < kWarp) {
    constexpr int kOwn = kFrames / kWarp;
    float scores[kOwn], top = -INFINITY, total = 0;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int t = thread + i * kWarp;
      scores[i] = t < frames.alive ? memory.shares[t] : -INFINITY;
      top = fmaxf(top, scores[i]);
    }
#pragma unroll
    for (int bit = kWarp / 2; bit > 0; bit /= 2)
      top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, bit));
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int t = thread + i * kWarp;
      if (t >= frames.alive) continue;
      // Scaled after the difference to the top, which saves the scores that count a rounding.
      const float share = expf(fabsf(factor) * (scores[i] - top));
      plan.scores[frames.row * problem.T + frames.start + t] = scores[i];
      memory.shares[t] = share;
      total += share;
    }
    total = sum_of_lanes<kWarp>(total);
    if (thread == 0) {
      plan.tops[frames.row * plan.tiles + frames.tile] = top;
      plan.totals[frames.row * plan.tiles + frames.tile] = total;
    }
  }
  __syncthreads();
}

// The sums of a tile for each of its trunks.
template <class T>
__device__ void weigh(const AttentionPoolProblem& problem, const Plan& plan, const Frames& frames,
                      const float* shares) {
  const Begins begins(frames.n, problem.H);
  float* const slots = plan.sums + (frames.row * plan.slots(problem.H) + frames.tile) * problem.C;
  for (int t = 0; t < frames.alive;) {
    const auto h = static_cast<u32>(trunk_of(frames.start + t, problem.H, frames.n));
    const int end = static_cast<int>(smaller(frames.alive, begins(h + 1) - frames.start));
    for (i64 c = threadIdx.x; c < problem.C; c += kThreads) {
      const T* const x = at<T>(problem.x, frames.row, frames.start, c);
      float sum = 0;
#pragma unroll 8
      for (int i = t; i < end; ++i) sum = fmaf(shares[i], widen(x[i * problem.x.stride[1]]), sum);
      slots[h * problem.C + c] = sum;
    }
    t = end;
  }
}

// The results of a row from those of its tiles, in their order; `parts` blocks share them out.
template <class T>
__device__ void join(const AttentionPoolProblem& problem, const Plan& plan, i64 row, i64 n,
                     int part, int parts) {
  const int tiles = static_cast<int>(ceil_div(n, kFrames));
  const float* const tops = plan.tops + row * plan.tiles;
  const float* const totals = plan.totals + row * plan.tiles;
  const float slope = fabsf(factor_of(problem));
  float top = -INFINITY, total = 0;
  for (int i = 0; i < tiles; ++i) top = fmaxf(top, tops[i]);
  for (int i = 0; i < tiles; ++i) total = fmaf(totals[i], expf(slope * (tops[i] - top)), total);

  const int first = part * kThreads + static_cast<int>(threadIdx.x), step = parts * kThreads;
  T* const weights = static_cast<T*>(problem.weights) + row * problem.T;
  for (i64 t = first; t < n; t += step)
    weights[t] = narrow<T>(expf(slope * (plan.scores[row * problem.T + t] - top)) / total);

  const Begins begins(n, problem.H);
  const float* const slots = plan.sums + row * plan.slots(problem.H) * problem.C;
  for (i64 c = first; c < problem.C; c += step) {
    float pooled = 0;  // the sum of the trunks before they are rounded
    for (u32 h = 0; h < problem.H; ++h) {
      const i64 low = begins(h), high = begins(h + 1);
      float sum = 0;
      if (high > low) {
        const int last = static_cast<int>((high - 1) / kFrames);
        for (int i = static_cast<int>(low / kFrames); i <= last; ++i)
          sum = fmaf(slots[(i + h) * problem.C + c], expf(slope * (tops[i] - top)) / total, sum);
      }
      static_cast<T*>(problem.trunk_pooled)[(row * problem.H + h) * problem.C + c] = narrow<T>(sum);
      pooled += sum;
    }
    static_cast<T*>(problem.pooled)[row * problem.C + c] = narrow<T>(pooled);
  }
}

template <class Number>
__global__ __launch_bounds__(kThreads, 2) void scores_kernel(const AttentionPoolProblem problem,
                                                             const Plan plan) {
  using T = typename Number::Storage;
  auto& memory = *reinterpret_cast<ForwardMemory<Number>*>(shared_memory());
  const Frames frames(problem, plan);
  for (i64 t = frames.start + frames.alive + threadIdx.x;
       t < smaller(frames.start + kFrames, problem.T); t += kThreads)
    static_cast<T*>(problem.weights)[frames.row * problem.T + t] = narrow<T>(0.0f);
  if (problem.hidden != nullptr) {
    const i64 end = smaller(frames.start + kFrames, problem.T);
    T* const dead = hidden_of<T>(problem, frames.row, frames.start + frames.alive);
    for (i64 i = threadIdx.x; i < (end - frames.start - frames.alive) * problem.A; i += kThreads)
      dead[i] = narrow<T>(0.0f);
  }
  if (frames.alive > 0) {
    score(problem, plan, frames, memory);
    weigh<T>(problem, plan, frames, memory.shares);
  }
  // A thread reads the sums that it wrote, and of what others wrote what came before a barrier.
  if (plan.tiles == 1) join<T>(problem, plan, frames.row, frames.n, 0, 1);
}

template <class T>
__global__ __launch_bounds__(kThreads) void join_kernel(const AttentionPoolProblem problem,
                                                        const Plan plan) {
  const i64 row = blockIdx.x;
  join<T>(problem, plan, row, length_of(problem, row), static_cast<int>(blockIdx.y),
          static_cast<int>(gridDim.y));
}

// ---- backward ----

// The gradient of what a frame's weight multiplies x into: its clip's plus its trunk's.
template <class T>
__device__ float pooled_gradient(const AttentionPoolProblem& problem, i64 row, i64 trunk, i64 c) {
  float gradient = 0;
  if (problem.d_pooled.data != nullptr) gradient += widen(*at<T>(problem.d_pooled, row, c));
  if (problem.d_trunk_pooled.data != nullptr)
    gradient += widen(*at<T>(problem.d_trunk_pooled, row, trunk, c));
  return gradient;
}

// A warp takes every kWarps-th frame of the tile.
template <class T>
__global__ __launch_bounds__(kThreads) void weights_backward_kernel(
    const AttentionPoolProblem problem, const Plan plan) {
  __shared__ float terms[kFrames];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp;
  // Launch 3 counts who has come.
  for (i64 i = i64{blockIdx.x} * kThreads + thread; i < plan.products;
       i += i64{gridDim.x} * kThreads)
    plan.counters[i] = 0;
  const Frames frames(problem, plan);
  if (frames.alive == 0) return;
  for (int t = thread / kWarp; t < frames.alive; t += kWarps) {
    const i64 frame = frames.start + t;
    const i64 trunk = trunk_of(frame, problem.H, frames.n);
    float gamma = 0;
#pragma unroll 4
    for (i64 c = lane; c < problem.C; c += kWarp)
      gamma = fmaf(widen(*at<T>(problem.x, frames.row, frame, c)),
                   pooled_gradient<T>(problem, frames.row, trunk, c), gamma);
    gamma = sum_of_lanes<kWarp>(gamma);
    if (lane > 0) continue;
    if (problem.d_weights.data != nullptr)
      gamma += widen(*at<T>(problem.d_weights, frames.row, frame));
    const i64 place = frames.row * problem.T + frame;
    plan.gamma[place] = gamma;
    terms[t] = widen(static_cast<const T*>(problem.weights)[place]) * gamma;
  }
  __syncthreads();
  if (thread >= kWarp) return;
  float sum = 0;
  for (int t = thread; t < frames.alive; t += kWarp) sum += terms[t];
  sum = sum_of_lanes<kWarp>(sum);
  if (thread == 0) plan.means[frames.row * plan.tiles + frames.tile] = sum;
}

template <class Number>
using GradientRing = Ring<Number, Tile, Along::depth, Along::depth>;

template <class Number>
struct InputsMemory {
  union Rings {
    HiddenRing<Number> hidden;
    GradientRing<Number> gradient;
  } ring;
  float tile[kFrames * kTileStride<Tile>];
  float pull[kFrames * kTileStride<Tile>];  // tanh times the gradient that reaches it
  float columns[2][kPerFrame][kColumns];    // sums over quarters of the frames
  float d_score[kFrames], weights[kFrames], scale[kFrames];
  int trunk[kFrames];
};

template <class Number>
class InputsBackward {
  using T = typename Number::Storage;
  using Memory = InputsMemory<Number>;

 public:
  __device__ InputsBackward(const AttentionPoolProblem& problem, const Plan& plan)
      : problem_(problem),
        plan_(plan),
        frames_(problem, plan),
        memory_(*reinterpret_cast<Memory*>(shared_memory())),
        parts_(plan.parts == nullptr ? nullptr
                                     : plan.parts + i64{blockIdx.x} * (2 * problem.A + 1)),
        thread_(static_cast<int>(threadIdx.x)) {}

  __device__ void run() {
    if (frames_.alive == 0) {
      if (parts_ != nullptr)
        for (i64 i = thread_; i < 2 * problem_.A + 1; i += kThreads) parts_[i] = 0;
    } else {
      score_gradients();
      hidden_gradients();
      __syncthreads();  // what the block wrote of d_hidden is read; the ring is another
    }
    if (problem_.d_x != nullptr) input_gradients();
  }

 private:
  __device__ T* d_hidden() const {
    return static_cast<T*>(plan_.d_hidden) +
           (frames_.row * problem_.T + frames_.start) * problem_.A;
  }

  __device__ void score_gradients() {
    const float* const means = plan_.means + frames_.row * plan_.tiles;
    const float mean = sum_in_pieces<16>(0, ceil_div(frames_.n, kFrames), 1,
                                         [means](i64 tile) { return means[tile]; });
    for (int t = thread_; t < kFrames; t += kThreads) {
      const i64 frame = frames_.start + t, place = frames_.row * problem_.T + frame;
      const bool alive = t < frames_.alive;
      const float weight = alive ? widen(static_cast<const T*>(problem_.weights)[place]) : 0.0f;
      memory_.weights[t] = weight;
      // Where a row has one frame only, both are the same number and the difference is exactly 0.
      memory_.d_score[t] = alive ? weight * (plan_.gamma[place] - mean) : 0.0f;
      memory_.trunk[t] = alive ? static_cast<int>(trunk_of(frame, problem_.H, frames_.n)) : 0;
    }
    __syncthreads();
  }

  __device__ void hidden_gradients() {
    const int frame = thread_ / kPerFrame, own = thread_ % kPerFrame;
    const float d_tanh = memory_.d_score[frame] * factor_of(problem_);
    float plain = 0;  // the score before its factor
    // The tile has some columns, of which tanh(number in the tile, column) is what its name says.
    const auto differentiate = [&](i64 a, const auto& tanh) {
      __syncthreads();
      const int columns = static_cast<int>(smaller(kColumns, problem_.A - a));
      float piece = 0;
      for (int c = own; c < columns; c += kPerFrame) {
        const int place = frame * kTileStride<Tile> + c;
        const float query = widen(*at<T>(problem_.query, a + c));
        const Tanh y = tanh(memory_.tile[place], a + c);
        piece = fmaf(y.value, query, piece);
        memory_.tile[place] = d_tanh * query * y.slope;
        memory_.pull[place] = d_tanh * y.value;
      }
      plain += piece;
      __syncthreads();
      columns_out(a, columns);
    };
    if (problem_.hidden == nullptr) {
      for_hidden<Number>(problem_, plan_, frames_, memory_.ring.hidden, memory_.tile, [&](i64 a) {
        differentiate(a, [&](float x, i64 i) { return Tanh(x + widen(*at<T>(problem_.bias, i))); });
      });
    } else {
      for (i64 a = 0; a < problem_.A; a += kColumns) {
        __syncthreads();
        recall(a);
        differentiate(a, [](float y, i64) { return Tanh::recalled(y); });
      }
    }
    if (parts_ == nullptr) return;
    plain = sum_of_lanes<kPerFrame>(plain);
    if (own == 0) memory_.scale[frame] = memory_.d_score[frame] * plain;
    __syncthreads();
    if (thread_ < kWarp) {
      float sum = 0;
      for (int t = thread_; t < frames_.alive; t += kWarp) sum += memory_.scale[t];
      sum = sum_of_lanes<kWarp>(sum) * static_cast<float>(problem_.factor);
      if (thread_ == 0) parts_[2 * problem_.A] = sum;
    }
  }

  // Some columns of the hidden layer, zeros beyond what there is.
  __device__ void recall(i64 a) {
    const int c = thread_ % kColumns;
    for (int t = thread_ / kColumns; t < kFrames; t += kPerFrame) {
      const bool there = t < frames_.alive && a + c < problem_.A;
      memory_.tile[t * kTileStride<Tile> + c] =
          there ? widen(hidden_of<T>(problem_, frames_.row, frames_.start + t)[a + c]) : 0.0f;
    }
  }

  // Writes the gradients of some columns of the hidden layer, and their sums over the frames.
  __device__ void columns_out(i64 a, int columns) {
    const int c = thread_ % kColumns, quarter = thread_ / kColumns;
    if (plan_.d_hidden != nullptr && c < columns)
      for (int t = quarter; t < frames_.alive; t += kPerFrame)
        d_hidden()[t * problem_.A + a + c] = narrow<T>(memory_.tile[t * kTileStride<Tile> + c]);
    if (parts_ == nullptr) return;
    float bias = 0, query = 0;
    const int share = kFrames / kPerFrame;
    for (int t = quarter * share; t < (quarter + 1) * share && t < frames_.alive; ++t) {
      bias += memory_.tile[t * kTileStride<Tile> + c];
      query += memory_.pull[t * kTileStride<Tile> + c];
    }
    memory_.columns[0][quarter][c] = bias;
    memory_.columns[1][quarter][c] = query;
    __syncthreads();
    if (quarter < 2 && c < columns) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kPerFrame; ++i) sum += memory_.columns[quarter][i][c];
      parts_[quarter * problem_.A + a + c] = sum;
    }
  }

  __device__ void input_gradients() {
    T* const d_x =
        static_cast<T*>(problem_.d_x) + (frames_.row * problem_.T + frames_.start) * problem_.C;
    const int there = static_cast<int>(smaller(kFrames, problem_.T - frames_.start));
    for (i64 i = i64{frames_.alive} * problem_.C + thread_; i < there * problem_.C; i += kThreads)
      d_x[i] = narrow<T>(0.0f);
    if (frames_.alive == 0) return;
    multiply<Number, Tile, Along::depth, Along::depth>(
        static_cast<int>(ceil_div(problem_.C, kColumns)), memory_.ring.gradient,
        [&](int i) {
          const i64 c = i64{i} * kColumns;
          Factors<T> factors;
          factors.a = {d_hidden(), problem_.A, 1, plan_.hidden_piece, frames_.alive};
          factors.b = {at<T>(problem_.weight, c), problem_.weight.stride[0],
                       problem_.weight.stride[1], plan_.weight_piece, problem_.C - c};
          factors.depth = problem_.A;
          return factors;
        },
        [](int, const T*) {}, [&](int) { return memory_.tile; },
        [&](int i) {
          __syncthreads();
          const i64 c = i64{i} * kColumns + thread_ % kColumns;
          if (c >= problem_.C) return;
          for (int t = thread_ / kColumns; t < frames_.alive; t += kPerFrame) {
            const float gradient = pooled_gradient<T>(problem_, frames_.row, memory_.trunk[t], c);
            d_x[t * problem_.C + c] =
                narrow<T>(fmaf(memory_.weights[t], gradient,
                               memory_.tile[t * kTileStride<Tile> + thread_ % kColumns]));
          }
        });
  }

  const AttentionPoolProblem& problem_;
  const Plan& plan_;
  const Frames frames_;
  Memory& memory_;
  float* const parts_;
  const int thread_;
};

template <class Number>
__global__ __launch_bounds__(kThreads,
                             2) void inputs_backward_kernel(const AttentionPoolProblem problem,
                                                            const Plan plan) {
  InputsBackward<Number>(problem, plan).run();
}

template <class Number>
using WeightRing = Ring<Number, Tile, Along::other, Along::other>;

template <class Number>
struct ParametersMemory {
  WeightRing<Number> ring;
  float tile[kFrames * kTileStride<Tile>];
};

// A tile of d_weight, channels by columns: its share of the frames, in steps of a row each.
template <class Number>
__device__ void weight_gradient(const AttentionPoolProblem& problem, const Plan& plan, i64 product,
                                int split, ParametersMemory<Number>& memory) {
  using T = typename Number::Storage;
  constexpr int kStep = kDepth<Number>, kStages = Tile::kStages;
  const i64 across = ceil_div(problem.A, kColumns);
  const i64 c = product / across * Tile::kRows, a = product % across * kColumns;
  const i64 per_row = ceil_div(problem.T, kStep), steps = problem.B * per_row;
  const i64 end = (split + 1) * steps / plan.splits;
  i64 next = split * steps / plan.splits;
  int issued = 0, filling = 0;
  const auto copy = [&] {
    while (next < end && next % per_row * kStep >= length_of(problem, next / per_row)) ++next;
    if (next < end) {
      const i64 row = next / per_row, t = next % per_row * kStep;
      const i64 left = length_of(problem, row) - t;
      auto& stage = memory.ring.stage[filling];
      const Operand<T> x = {at<T>(problem.x, row, t, c), problem.x.stride[1], problem.x.stride[2],
                            plan.x_piece, problem.C - c};
      const Operand<T> hidden = {
          static_cast<const T*>(plan.d_hidden) + (row * problem.T + t) * problem.A + a, problem.A,
          1, plan.hidden_piece, problem.A - a};
      copy_step<Number, Tile::kRows, Along::other>(stage.a, x, left);
      copy_step<Number, kColumns, Along::other>(stage.b, hidden, left);
      ++next;
      ++issued;
    }
    __pipeline_commit();
    filling = filling + 1 == kStages ? 0 : filling + 1;
  };
  for (int i = 0; i < kStages - 1; ++i) copy();
  Product<Number, Tile, Along::other, Along::other> sums;
  const int piece = sums.piece();
  int reading = 0, done = 0;
  bool more = false;
  do {
    for (int steps = 0; (piece == 0 || steps < piece) && done < issued; ++steps, ++done) {
      __pipeline_wait_prior(kStages - 2);
      __syncthreads();
      copy();
      sums.add(memory.ring.stage[reading].a, memory.ring.stage[reading].b);
      reading = reading + 1 == kStages ? 0 : reading + 1;
    }
    sums.store(memory.tile, piece > 0 && more);
    sums.clear();
    more = true;
  } while (piece > 0 && done < issued);
  __syncthreads();

  const int thread = static_cast<int>(threadIdx.x), column = thread % kColumns;
  const i64 left_c = problem.C - c, left_a = problem.A - a;
  T* const d_weight = static_cast<T*>(problem.d_weight) + c * problem.A + a;
  constexpr i64 kCells = i64{Tile::kRows} * kColumns;
  float* const all = plan.matrices + product * plan.splits * kCells;
  if (plan.splits > 1) {
    for (int r = thread / kColumns; r < Tile::kRows; r += kPerFrame)
      all[split * kCells + r * kColumns + column] = memory.tile[r * kTileStride<Tile> + column];
    if (!arrives_last(plan.counters + product, static_cast<unsigned>(plan.splits))) return;
  }
  if (column >= left_a) return;
  for (int r = thread / kColumns; r < Tile::kRows && r < left_c; r += kPerFrame) {
    float sum = memory.tile[r * kTileStride<Tile> + column];
    if (plan.splits > 1) {
      sum = 0;
      for (int i = 0; i < plan.splits; ++i) sum += __ldcg(all + i * kCells + r * kColumns + column);
    }
    d_weight[r * problem.A + column] = narrow<T>(sum);
  }
}

// Columns of the parts, kWarp to a block, summed over all tiles.
template <class T>
__device__ void vector_gradients(const AttentionPoolProblem& problem, const Plan& plan, i64 block) {
  __shared__ float sums[kWarps][kWarp];
  const int warp = static_cast<int>(threadIdx.x) / kWarp,
            lane = static_cast<int>(threadIdx.x) % kWarp;
  const i64 width = 2 * problem.A + 1, column = block * kWarp + lane;
  const i64 rows = problem.B * plan.tiles;
  float sum = 0;
  if (column < width)
    sum = sum_in_pieces<16>(warp, rows, kWarps,
                            [&](i64 row) { return plan.parts[row * width + column]; });
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || column >= width) return;
  sum = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) sum += sums[i][lane];
  if (column == 2 * problem.A) {
    if (problem.d_scale != nullptr) write_scale(problem, sum);
  } else if (column >= problem.A) {
    if (problem.d_query != nullptr)
      static_cast<T*>(problem.d_query)[column - problem.A] = narrow<T>(sum);
  } else if (problem.d_bias != nullptr) {
    static_cast<T*>(problem.d_bias)[column] = narrow<T>(sum);
  }
}

template <class Number>
__global__ __launch_bounds__(kThreads,
                             2) void parameters_backward_kernel(const AttentionPoolProblem problem,
                                                                const Plan plan) {
  const i64 block = blockIdx.x, of_weight = plan.products * plan.splits;
  if (block < of_weight) {
    weight_gradient<Number>(problem, plan, block / plan.splits,
                            static_cast<int>(block % plan.splits),
                            *reinterpret_cast<ParametersMemory<Number>*>(shared_memory()));
  } else {
    vector_gradients<typename Number::Storage>(problem, plan, block - of_weight);
  }
}

// ---- the host ----

// Blocks fit every device from sm_80 on, those with the least shared memory as well.
template <class Memory>
constexpr std::size_t kMemory = [] {
  static_assert(sizeof(Memory) <= (99 << 10));
  return sizeof(Memory);
}();

template <class T>
Plan plan_of(const AttentionPoolProblem& problem) {
  constexpr i64 kMostTrunks = 65535;  // whose squares have 32 bits, see Begins
  if (problem.H > kMostTrunks || problem.T >= i64{1} << 31)
    throw std::runtime_error("attention_pool: the CUDA kernels take at most " +
                             std::to_string(kMostTrunks) + " trunks and less than 2^31 frames");
  Plan plan;
  plan.tiles = static_cast<int>(ceil_div(problem.T, kFrames));
  const View &x = problem.x, &weight = problem.weight;
  plan.x_piece = piece_of<T>(x.data, x.stride[2], {x.stride[0], x.stride[1], problem.C});
  plan.weight_piece = piece_of<T>(weight.data, weight.stride[1], {weight.stride[0], problem.A});
  return plan;
}

template <class Number>
void forward(const AttentionPoolProblem& problem, const Context& context) {
  using T = typename Number::Storage;
  Plan plan = plan_of<T>(problem);
  const auto floats = [&](i64 count) {
    return static_cast<float*>(context.scratch(larger(count, 1) * i64{sizeof(float)}));
  };
  plan.scores = floats(problem.B * problem.T);
  plan.tops = floats(problem.B * plan.tiles);
  plan.totals = floats(problem.B * plan.tiles);
  plan.sums = floats(problem.B * (plan.tiles + problem.H - 1) * problem.C);
  FBP_LAUNCH(scores_kernel<Number>, grid_of(problem.B * plan.tiles), kThreads,
             kMemory<ForwardMemory<Number>>, context.stream, problem, plan);
  if (plan.tiles == 1) return;
  const i64 parts = larger(ceil_div(problem.C, kThreads), 1);
  dim3 grid = grid_of(problem.B);
  grid.y = static_cast<unsigned>(smaller(parts, 65535));
  FBP_LAUNCH(join_kernel<T>, grid, kThreads, 0, context.stream, problem, plan);
}

template <class Number>
void backward(const AttentionPoolProblem& problem, const Context& context) {
  using T = typename Number::Storage;
  constexpr i64 kMostSplits = 16;  // for one block adds them up
  Plan plan = plan_of<T>(problem);
  const i64 B = problem.B, T_ = problem.T, C = problem.C, A = problem.A;
  const auto bytes = [&](i64 count, std::size_t size) {
    return context.scratch(larger(count, 1) * static_cast<i64>(size));
  };
  const auto floats = [&](i64 count) { return static_cast<float*>(bytes(count, sizeof(float))); };
  const bool vectors =
      problem.d_bias != nullptr || problem.d_query != nullptr || problem.d_scale != nullptr;
  plan.gamma = floats(B * T_);
  plan.means = floats(B * plan.tiles);
  if (problem.d_x != nullptr || problem.d_weight != nullptr) {
    plan.d_hidden = bytes(B * T_ * A, sizeof(T));
    plan.hidden_piece = piece_of<T>(plan.d_hidden, 1, {A});
  }
  if (vectors) plan.parts = floats(B * plan.tiles * (2 * A + 1));
  if (problem.d_weight != nullptr && C > 0 && A > 0) {
    plan.products = ceil_div(C, Tile::kRows) * ceil_div(A, kColumns);
    const i64 steps = B * ceil_div(T_, kDepth<Number>);
    const i64 wanted = smaller(current_device().multiprocessors / plan.products, steps);
    plan.splits = static_cast<int>(larger(smaller(wanted, kMostSplits), 1));
    plan.matrices = floats(plan.products * plan.splits * Tile::kRows * kColumns);
    plan.counters = static_cast<unsigned*>(bytes(plan.products, sizeof(unsigned)));
  }
  const dim3 tiles = grid_of(B * plan.tiles);
  FBP_LAUNCH(weights_backward_kernel<T>, tiles, kThreads, 0, context.stream, problem, plan);
  FBP_LAUNCH(inputs_backward_kernel<Number>, tiles, kThreads, kMemory<InputsMemory<Number>>,
             context.stream, problem, plan);
  const i64 blocks = plan.products * plan.splits + (vectors ? ceil_div(2 * A + 1, kWarp) : 0);
  if (blocks > 0)
    FBP_LAUNCH(parameters_backward_kernel<Number>, grid_of(blocks), kThreads,
               kMemory<ParametersMemory<Number>>, context.stream, problem, plan);
}

}  // namespace

void attention_pool_forward(const AttentionPoolProblem& problem, const Context& context) {
  with_number(problem.dtype, context.tf32,
              [&](auto number) { forward<decltype(number)>(problem, context); });
}

void attention_pool_backward(const AttentionPoolProblem& problem, const Context& context) {
  with_number(problem.dtype, context.tf32,
              [&](auto number) { backward<decltype(number)>(problem, context); });
}

}  // namespace fbp::cuda
