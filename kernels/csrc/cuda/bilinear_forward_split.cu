// z = sum over trunks and over K of (a p) * (v q), in one launch, on Hopper: half precision, small
// batches, where reading the weights is all there is.
//
// A tile, rows of the batch by 32 columns of whole outputs, is the work of a cluster. All steps of
// all its products, 64 of the depth of C, then of D, trunk after trunk, are one sequence, of which
// each block has an equal share, wherever that begins and ends: so all multiprocessors read as
// much, and all that a block reads is asked for at once. A share's sums stay in shared memory; when
// all are there, each block takes some rows of the tile, adds up what the others have of them in
// the order of the shares, and only then comes all that is made of projections.

#include <algorithm>

#include "bilinear_forward_split.h"
#include "cluster.h"
#include "cuda/kernels.h"
#include "wgmma_tiles.h"

namespace fbp::cuda {

namespace {

constexpr int kSplitColumns = kWgmmaFewColumns;
constexpr int kSplitWarps = kWarpgroup / kWarp + 1;  // the last one has operands copied
constexpr int kSplitThreads = kSplitWarps * kWarp;
constexpr int kMostShift = 3;  // clusters of eight, which all devices with clusters have
constexpr int kSplitResident = 2;

// Rows of a tile, steps that are on their way, and products of which a share can have a part. Two
// blocks fit a multiprocessor.
struct FewRows {
  static constexpr int kRows = 32, kStages = 8, kSums = 9;
};
struct MoreRows {
  static constexpr int kRows = 64, kStages = 5, kSums = 5;
};

// The operands of one step. Products have 64 rows; of fewer, those beyond are whatever comes next,
// and nobody reads what comes of them.
template <class Tile>
struct alignas(kPatternBytes) SplitStage {
  static constexpr int kColumnLine = kSplitColumns * 2;

  unsigned char rows[1][Tile::kRows * kLineBytes];
  unsigned char columns[kRingDepth * kColumnLine];
};
static_assert(sizeof(SplitStage<FewRows>) >= kWgmmaRows * kLineBytes, "64 rows can be read");

template <class Tile>
struct SplitMemory {
  // Four lanes write eight rows, two columns each: from all banks.
  static constexpr int kPitch = kSplitColumns + 8;

  RingOf<SplitStage<Tile>, Tile::kStages> ring;
  float sums[Tile::kSums][Tile::kRows * kPitch];  // in the order of the products
  float squares[2][Tile::kRows];                  // of the share's parts of rows of a and v

  // Of four rows, in place of the stages, when all have been multiplied.
  struct Combined {
    float products[kSplitWarps][kQuad][kSplitColumns];  // of each warp
    float scale[2][kQuad];
  };
  static_assert(sizeof(Combined) <= sizeof(ring.stage), "there is room for it");
  __device__ Combined& combined() { return reinterpret_cast<Combined&>(ring.stage); }
};

// A part's tiles, how many shares each has, 1 << shift, and the steps of a projection of a and v.
struct alignas(alignof(CUtensorMap)) SplitPart : Tiles {
  CUtensorMap input[2], weight[2];
  int tiles = 0, blocks = 0, shift = 0;
  int steps[2] = {};

  // Where a share's steps begin in the sequence of all of them, `every` for each product of two
  // projections, a trunk's or, where an output has more columns than a tile, a chunk's.
  __host__ __device__ int every() const { return steps[0] + steps[1]; }
  __host__ __device__ int begin(int share, i64 H) const {
    return static_cast<int>(H) * chunks * every() * share >> shift;
  }
  // The projection that a step belongs to.
  int projection(int step) const {
    return 2 * (step / every()) + (step % every() >= steps[0] ? 1 : 0);
  }
};

struct SplitPlan {
  SplitPart part[kMaxParts];
  int down = 0;
};

template <class T, class Tile>
class SplitBlock {
  using Memory = SplitMemory<Tile>;

 public:
  __device__ SplitBlock(const ForwardProblem& problem, const ForwardPart& part,
                        const SplitPart& own, int index, int down)
      : problem_(problem),
        part_(part),
        own_(own),
        share_(index & ((1 << own.shift) - 1)),
        tile_number_(index >> own.shift),
        column_(tile_number_ / down),
        tile_(part, own, problem.B, tile_number_ % down * Tile::kRows, column_ * own.outputs),
        memory_(*reinterpret_cast<Memory*>(shared_memory_of_patterns())) {}

  // Whether there is a tile: the last cluster of a part may have more blocks.
  __device__ bool is_there() const { return tile_number_ < own_.tiles; }

  // Leaves the share's sums, and its sums of squares, in shared memory. After the ring's barriers
  // are known; by one warp and by a warpgroup.
  __device__ void project() {
    const int end = trunks() * own_.chunks * own_.every();
    const int first = own_.begin(share_, part_.H);
    const int last = min(own_.begin(share_ + 1, part_.H), end);
    if (warp() == kSplitWarps - 1) {
      if (threadIdx.x % kWarp == 0) copy(first, last);
    } else {
      multiply(first, last);
    }
    __syncwarp();  // barriers of a cluster are for whole warps
  }

  // The outputs of some rows, from the sums of all shares.
  __device__ void combine() {
    const int rows = Tile::kRows >> own_.shift, count = trunks() * own_.chunks;
#pragma unroll 1
    for (int quad = share_ * rows; quad < (share_ + 1) * rows; quad += kQuad) {
      put_scales(quad);
      float sums[kQuad] = {};
      for_products(count, quad, [&](int product, const auto& u, const auto& w) {
        add(product, quad, u, w, sums);
      });
#pragma unroll
      for (int i = 0; i < kQuad; ++i) memory_.combined().products[warp()][i][lane()] = sums[i];
      __syncthreads();
      if (warp() < kQuad) store(quad + warp());
      __syncthreads();
    }
  }

 private:
  __device__ static int warp() { return static_cast<int>(threadIdx.x) / kWarp; }
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % kWarp; }

  // The trunks beyond those of the longest row need no work, unless their projections are kept.
  __device__ int trunks() const {
    if (part_.kept[0] != nullptr) return static_cast<int>(part_.H);
    return trunks_of_rows(part_, tile_.row, problem_.B);
  }

  // The first column of a product's chunk, and how many it has.
  __device__ int column(int chunk) const {
    return static_cast<int>(tile_.column) + chunk * kSplitColumns;
  }
  __device__ int columns(int chunk) const {
    return static_cast<int>(smaller(kSplitColumns, tile_.end() - column(chunk)));
  }

  // Calls f(product, side, begin, steps) for the parts of projections that are in a share.
  template <class F>
  __device__ void for_projections(int first, int last, const F& f) const {
    int product = first / own_.every(), begin = first % own_.every();
    int side = begin >= own_.steps[0] ? 1 : 0;
    begin -= side * own_.steps[0];
#pragma unroll 1
    while (first < last) {
      const int steps = min(own_.steps[side] - begin, last - first);
      f(product, side, begin, steps);
      first += steps;
      begin = 0;
      product += side;
      side ^= 1;
    }
  }

  __device__ void copy(int first, int last) {
    TurnOf<Tile::kStages> turn;
    for_projections(first, last, [&](int product, int side, int begin, int steps) {
      const int h = product / own_.chunks, n = column(product % own_.chunks);
      fill_ring(memory_.ring, turn, steps, [&](SplitStage<Tile>& stage, Mbarrier* full, int depth) {
        depth += begin * kRingDepth;
        bulk_copy(stage.columns, own_.weight[side], full, n, depth, h);
        bulk_copy(stage.rows, own_.input[side], full, depth, h, static_cast<int>(tile_.row));
      });
    });
  }

  __device__ void multiply(int first, int last) {
    const int row = kWarp / 2 * warp() + lane() / 4;  // of the thread's sums, as the next
    const int at = lane() % 4 * 2;
    TurnOf<Tile::kStages> turn;
    int place = 0;
    if (part_.adaptive) {
      put_squares(0, 0);
      put_squares(1, 0);
    }
    for_projections(first, last, [&](int product, int side, int, int steps) {
      // Each chunk of an output's columns has the same rows.
      const bool looks = part_.adaptive && product == 0;
      float squares = 0;
      WgmmaFewSums sums;
      multiply_ring<T, Along::depth, Along::other>(
          memory_.ring, turn, steps, 0, sums, [](const auto&) {},
          [&](const unsigned char* rows) {
            if (looks) squares += squares_of<T>(rows);
          });
      if (looks) put_squares(side, sum_over_lanes<2>(squares));
#pragma unroll
      for (int i = 0; i < kSumsOf<kSplitColumns>; i += 2) {
        const int r = row + i % 4 / 2 * 8;
        if (r < Tile::kRows)
          *reinterpret_cast<float2*>(memory_.sums[place] + r * Memory::kPitch + i / 4 * 8 + at) =
              make_float2(sums[i], sums[i + 1]);
      }
      ++place;
    });
  }

  // Of a row, which two neighbouring threads have.
  __device__ void put_squares(int side, float sum) {
    const int r = static_cast<int>(threadIdx.x) / 2;
    if (threadIdx.x % 2 == 0 && r < Tile::kRows) memory_.squares[side][r] = sum;
  }

  // What another share has where the own one has `mine`.
  template <class V>
  __device__ const V* of_share(V* mine, int share) const {
    return of_rank(mine, rank_in_cluster() - static_cast<unsigned>(share_ - share));
  }

  // Calls f(product, u, w) with those of the warp: four rows of the thread's column.
  template <class F>
  __device__ void for_products(int count, int quad, const F& f) const {
    int step = 0, share = 0, place = 0;
    int end = own_.begin(1, part_.H);
    // Goes past the next projection, and adds up, where it is asked for, what shares have of it.
    const auto walk = [&](int side, bool wanted, float (&x)[kQuad]) {
#pragma unroll
      for (int i = 0; i < kQuad; ++i) x[i] = 0;
      int left = own_.steps[side];
#pragma unroll 1
      while (left > 0) {
        if (step == end) {
          ++share;
          place = 0;
          end = own_.begin(share + 1, part_.H);
          continue;
        }
        if (wanted) {
          const float* const sums =
              of_share(&memory_.sums[place][quad * Memory::kPitch + lane()], share);
#pragma unroll
          for (int i = 0; i < kQuad; ++i) x[i] += sums[i * Memory::kPitch];
        }
        const int steps = min(left, end - step);
        left -= steps;
        step += steps;
        ++place;
      }
    };
#pragma unroll 1
    for (int product = 0; product < count; ++product) {
      const bool own = product % kSplitWarps == warp();
      float u[kQuad], w[kQuad];
      walk(0, own, u);
      walk(1, own, w);
      if (own) f(product, u, w);
    }
  }

  // Leaves the scales of four rows in shared memory, where there are norms.
  __device__ void put_scales(int quad) {
    if (!part_.adaptive) return;
    const int r = static_cast<int>(threadIdx.x);
    if (r < kQuad) {
      float squares[2] = {0, 0};
#pragma unroll 1
      for (int share = 0; share < 1 << own_.shift; ++share)
#pragma unroll
        for (int side = 0; side < 2; ++side)
          squares[side] += *of_share(&memory_.squares[side][quad + r], share);
      const Scales scales(true, squares[0], squares[1]);
#pragma unroll
      for (int side = 0; side < 2; ++side) memory_.combined().scale[side][r] = scales.scale[side];
    }
    __syncthreads();
  }

  // Adds what a product contributes to four rows of the thread's column.
  __device__ void add(int product, int quad, const float (&u)[kQuad], const float (&w)[kQuad],
                      float (&sums)[kQuad]) const {
    const int h = product / own_.chunks, chunk = product % own_.chunks;
    const i64 n = column(chunk) + lane();
    if (lane() >= columns(chunk)) return;
    const float bias[2] = {tile_.template bias<T>(0, h, n), tile_.template bias<T>(1, h, n)};
    float factors[kQuad] = {1, 1, 1, 1};
    if (part_.dropout.active)
      dropout_factors(part_.dropout, n, h, (tile_.row + quad) / kQuad, part_.stream, factors);
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
      const i64 b = tile_.row + quad + i;
      const bool alive = tile_.alive(b, h);
      if (part_.kept[0] != nullptr && b < problem_.B) {
        const i64 at = (h * problem_.B + b) * part_.N + n;
        static_cast<T*>(part_.kept[0])[at] = narrow<T>(alive ? u[i] : 0.0f);
        static_cast<T*>(part_.kept[1])[at] = narrow<T>(alive ? w[i] : 0.0f);
      }
      float scale[2] = {1, 1};
      if (part_.adaptive)
        for (int side = 0; side < 2; ++side) scale[side] = memory_.combined().scale[side][i];
      const float x = fmaf(u[i], scale[0], bias[0]) * fmaf(w[i], scale[1], bias[1]);
      // By selection: of what does not count not even a NaN does.
      sums[i] += alive ? x * factors[i] : 0.0f;
    }
  }

  // Writes the outputs of a row, a lane each.
  __device__ void store(int r) const {
    const i64 b = tile_.row + r, o = column_ * own_.outputs + lane();
    if (problem_.z == nullptr) return;
    if (b >= problem_.B || lane() >= own_.outputs || o >= own_.all) return;
    // One output in chunks has all columns of each.
    const int run = own_.chunks > 1 ? kSplitColumns : static_cast<int>(part_.K);
    float sum = 0;
    for (int k = lane() * run; k < (lane() + 1) * run; ++k)
#pragma unroll
      for (const auto& products : memory_.combined().products) sum += products[r % kQuad][k];
    static_cast<T*>(problem_.z)[b * problem_.z_stride + part_.o_offset + o] = narrow<T>(sum);
  }

  const ForwardProblem& problem_;
  const ForwardPart& part_;
  const SplitPart& own_;
  const int share_, tile_number_, column_;
  const TileOfPart tile_;
  Memory& memory_;
};

// The last part's blocks come first: those of the trunks take longest.
template <class T, class Tile>
__global__ void __launch_bounds__(kSplitThreads, kSplitResident)
    forward_split_kernel(const __grid_constant__ ForwardProblem problem,
                         const __grid_constant__ SplitPlan plan) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  auto& memory = *reinterpret_cast<SplitMemory<Tile>*>(shared_memory_of_patterns());
  if (threadIdx.x == 0) {
    init_ring(memory.ring, kWarpgroup / kWarp);
    mbarrier_init_fence();
  }
  __syncthreads();
  int index = static_cast<int>(blockIdx.x), part = problem.parts - 1;
  while (index >= plan.part[part].blocks) index -= plan.part[part--].blocks;
  SplitBlock<T, Tile> block(problem, problem.part[part], plan.part[part], index, plan.down);
  if (block.is_there()) block.project();
  wait_for_cluster();
  if (block.is_there()) block.combine();
  wait_for_cluster();  // a block's memory is there until all have read it
#else
  __trap();  // wgmma is Hopper's alone, and built for sm_90a alone
#endif
}

template <class F>
auto with_rows(i64 B, const F& f) {
  return B <= FewRows::kRows ? f(FewRows{}) : f(MoreRows{});
}

// How a part is cut up, where there are so many rows of tiles: into as many shares as make its own
// blocks fill the device, and more where a share would have too many projections. Follows from this
// part alone, so that its results are the same bits whatever else is in the launch. False where no
// number of shares is enough.
bool cut(const Part& part, int down, int most_projections, int resident, SplitPart& own) {
  own.all = part.outputs();
  own.outputs = larger(kSplitColumns / part.K, 1);
  own.across = ceil_div(own.all, own.outputs);
  const i64 chunks = ceil_div(own.outputs * part.K, kSplitColumns);
  i64 every = 0;
  for (int side = 0; side < 2; ++side) every += ceil_div(part.side[side].width, kRingDepth);
  // What is counted in 32 bits, clusters filled up.
  constexpr i64 kMost = i64{1} << 26;
  if (own.across * down > kMost || part.H > kMost || chunks > kMost || every > kMost ||
      part.H * chunks > kMost / every)
    return false;
  own.chunks = static_cast<int>(chunks);
  for (int side = 0; side < 2; ++side)
    own.steps[side] = static_cast<int>(ceil_div(part.side[side].width, kRingDepth));
  own.tiles = static_cast<int>(own.across) * down;
  const auto fits = [&] {
    for (int share = 0; share < 1 << own.shift; ++share) {
      const int first = own.begin(share, part.H), last = own.begin(share + 1, part.H) - 1;
      if (own.projection(last) - own.projection(first) >= most_projections) return false;
    }
    return true;
  };
  const i64 steps = part.H * chunks * every;
  own.shift = 0;
  while (own.shift < kMostShift && 2 << own.shift <= steps &&
         (static_cast<i64>(own.tiles) * (2 << own.shift) <= resident || !fits()))
    ++own.shift;
  return fits();
}

template <class Tile>
bool cut_all(const ForwardProblem& problem, const DeviceLimits& device, SplitPlan& plan) {
  plan.down = static_cast<int>(ceil_div(problem.B, Tile::kRows));
  for (int i = 0; i < problem.parts; ++i)
    if (!cut(problem.part[i], plan.down, Tile::kSums, kSplitResident * device.multiprocessors,
             plan.part[i]))
      return false;
  return true;
}

}  // namespace

bool split_serves(const ForwardProblem& problem, const DeviceLimits& device) {
  if (problem.B > kSmallBatch || !wgmma_can_multiply(problem, device)) return false;
  return with_rows(problem.B, [&](auto tile) {
    SplitPlan plan;
    return cut_all<decltype(tile)>(problem, device, plan);
  });
}

void bilinear_forward_split(const ForwardProblem& problem, const Context& context) {
  with_rows(problem.B, [&](auto tile) {
    using Tile = decltype(tile);
    SplitPlan plan;
    cut_all<Tile>(problem, current_device(), plan);
    int shift = 0, blocks = 0;
    for (int i = 0; i < problem.parts; ++i) shift = std::max(shift, plan.part[i].shift);
    for (int i = 0; i < problem.parts; ++i) {
      const Part& part = problem.part[i];
      SplitPart& own = plan.part[i];
      // A part of fewer shares has several tiles in a cluster, which are nothing to each other.
      own.blocks = ((own.tiles << own.shift) + (1 << shift) - 1) >> shift << shift;
      blocks += own.blocks;
      for (int side = 0; side < 2; ++side) {
        own.input[side] =
            tensor_map(problem.dtype, mapped_input(part, side, problem.B), 2, Tile::kRows);
        own.weight[side] =
            tensor_map(problem.dtype, mapped_weight(part, side), 1, kRingDepth, kSplitColumns);
      }
    }
    with_type(problem.dtype, [&](auto type) {
      using T = decltype(type);
      if constexpr (sizeof(T) == 2)
        FBP_LAUNCH_CLUSTERS(1 << shift, (forward_split_kernel<T, Tile>), grid_of(blocks),
                            kSplitThreads, sizeof(SplitMemory<Tile>), context.stream, problem,
                            plan);
    });
  });
}

}  // namespace fbp::cuda
