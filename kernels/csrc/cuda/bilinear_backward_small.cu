// All gradients of the bilinear pooling in one launch, on Hopper: half precision, small batches,
// where reading the weights and writing their gradients is all there is. Where projections were not
// kept, the forward of small batches writes them before.
//
// A block has 64 lines of one weight W, all their columns and all rows of the batch. It goes
// through the columns 64 at a time: of the projection w of the other side it makes du = g w, in
// place, adds du W^T to its dx, and writes x^T du, its dW. So W is read once, dW written once, dx
// is whole in the block, and du is nowhere in memory.

#include "bilinear_backward_small.h"
#include "bilinear_forward_split.h"
#include "bilinear_gradients.h"
#include "cuda/kernels.h"
#include "wgmma_store.h"

namespace fbp::cuda {

namespace {

constexpr int kLines = kWgmmaSomeColumns;  // of a weight, that a block has
constexpr int kProductWarps = kWarpgroup / kWarp;
constexpr int kOwn = 2;  // neighbouring columns of a thread

// Rows of the batch, and steps that are on their way.
template <int kBatchRows, int kRingSteps>
struct RowsOf {
  static constexpr int kRows = kBatchRows, kStages = kRingSteps;
  // That make du. With more of them a thread of the most rows would have 80 registers, and spill.
  static constexpr int kWarps = kRows > kWgmmaRows ? 4 : 8;
  // Of a step, each of their threads has some pieces of two columns, of the same four rows.
  static constexpr int kPieces = kRows * kBoxColumns / (kQuad * kOwn * kWarps * kWarp);
  static constexpr int kQuadLanes = kBoxColumns / kOwn / kPieces;  // that have the same rows
  static constexpr int kWarpRows = kQuad * kWarp / kQuadLanes;
  // Warpgroups for dx, 64 rows each; one for dW; a warp that has operands copied.
  static constexpr int kInputGroups = kRows > kWgmmaRows ? 2 : 1;
  static constexpr int kThreads = ((kInputGroups + 1) * kProductWarps + kWarps + 1) * kWarp;
  static_assert(kWarpRows * kWarps == kRows, "each warp has rows of its own");
};
using FewRows = RowsOf<32, 8>;
using MoreRows = RowsOf<64, 8>;
using ManyRows = RowsOf<128, 4>;
static_assert(ManyRows::kRows == kSmallBatch, "all small batches fit");

// The operands of one step. Of fewer rows than a product has, those beyond are whatever comes next,
// and nobody looks at what comes of them.
template <class Rows>
struct alignas(kPatternBytes) SmallStage {
  static constexpr int kColumnLine = kLineBytes;
  static constexpr int kBoxRows = Rows::kRows / Rows::kInputGroups;

  unsigned char rows[Rows::kInputGroups][kBoxRows * kLineBytes];  // w, and then du
  unsigned char columns[kLines * kColumnLine];                    // W
  unsigned char own[Rows::kRows * kLineBytes];  // u, where rows are measured by norms
  float sums[Rows::kWarps][kBoxColumns];        // of du, over the rows of each warp
};

template <class Rows>
struct SmallMemory {
  RingOf<SmallStage<Rows>, Rows::kStages> ring;
  alignas(kPatternBytes) unsigned char input[Rows::kRows * kLineBytes];  // x
  float norm[2][Rows::kRows], scale[2][Rows::kRows];  // of the own side, and the other
  float slope[Rows::kRows];                           // of x in its gradient through the norms
  Mbarrier made[Rows::kStages];                       // du is there
  Mbarrier arrived;                                   // x is
  Mbarrier measured;                                  // slopes are
};

struct alignas(alignof(CUtensorMap)) SmallPart {
  CUtensorMap input[2], weight[2], kept[2];
  int tiles[2] = {};  // of 64 lines
  i64 blocks = 0;
};

struct SmallPlan {
  SmallPart part[kMaxParts];
};

// What a block has to do.
template <class T, class Rows>
class SmallBlock {
  using Memory = SmallMemory<Rows>;
  using Turn = TurnOf<Rows::kStages>;
  using Stage = SmallStage<Rows>;

 public:
  __device__ SmallBlock(const BackwardProblem& problem, const BackwardPart& part,
                        const SmallPart& own, int index)
      : problem_(problem),
        part_(part),
        own_(own),
        h_(index / (own.tiles[0] + own.tiles[1])),
        side_(index % (own.tiles[0] + own.tiles[1]) < own.tiles[0] ? 0 : 1),
        tile_(index % (own.tiles[0] + own.tiles[1]) - side_ * own.tiles[0]),
        memory_(*reinterpret_cast<Memory*>(shared_memory_of_patterns())) {}

  // For one thread.
  __device__ void init() {
    init_ring(memory_.ring, (input() ? Rows::kInputGroups + 1 : 1) * kProductWarps);
    for (Mbarrier& made : memory_.made) mbarrier_init(&made, Rows::kWarps);
    mbarrier_init(&memory_.arrived, 1);
    mbarrier_init(&memory_.measured, Rows::kWarps);
    mbarrier_init_fence();
  }

  __device__ void run() {
    constexpr int kGroups = Rows::kInputGroups;
    const int group = consumer_group();
    if (group < kGroups) {
      if (input()) differentiate_input(group);
    } else if (group == kGroups) {
      differentiate_weight();
    } else if (warp() < Rows::kWarps) {
      make();
    } else if (lane() == 0) {
      copy();
    }
  }

 private:
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
  // Of those that make du.
  __device__ static int warp() {
    return static_cast<int>(threadIdx.x) / kWarp - (Rows::kInputGroups + 1) * kProductWarps;
  }
  // The same for all lanes, and known to be.
  __device__ static int consumer_group() {
    return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarpgroup, 0);
  }

  __device__ const Side& side() const { return part_.side[side_]; }
  __device__ int steps() const { return static_cast<int>(ceil_div(part_.N, kBoxColumns)); }
  __device__ int line() const { return tile_ * kLines; }
  __device__ bool input() const { return part_.d_input[side_] != nullptr; }
  // Of the tiles of a side the first has the gradient of its bias.
  __device__ bool bias() const { return part_.d_bias[side_] != nullptr && tile_ == 0; }
  __device__ bool alive(i64 b) const {
    return b < problem_.B && (part_.lengths == nullptr || __ldg(part_.lengths + b) > h_);
  }

  __device__ void copy() {
    mbarrier_arrive_expecting(&memory_.arrived, sizeof memory_.input);
    bulk_copy(memory_.input, own_.input[side_], &memory_.arrived, line(), h_, 0);
    unsigned bytes = sizeof(Stage::rows);
    if (input()) bytes += sizeof(Stage::columns);
    if (part_.adaptive) bytes += sizeof(Stage::own);
    Turn turn;
    fill_ring(
        memory_.ring, turn, steps(),
        [&](Stage& stage, Mbarrier* full, int n) {
          bulk_copy(stage.rows, own_.kept[1 - side_], full, n, 0, h_);
          if (part_.adaptive) bulk_copy(stage.own, own_.kept[side_], full, n, 0, h_);
          if (input()) bulk_copy(stage.columns, own_.weight[side_], full, n, line(), h_);
        },
        bytes);
  }

  // ---- du ----

  // Where a thread's rows begin, and, within a step, the columns of one of its pieces.
  __device__ static int row() {
    return warp() * Rows::kWarpRows + lane() / Rows::kQuadLanes * kQuad;
  }
  __device__ static int column(int piece) {
    return (piece * Rows::kQuadLanes + lane() % Rows::kQuadLanes) * kOwn;
  }

  struct alignas(sizeof(T) * kOwn) Piece {
    T of[kOwn];
  };
  // That of row `row` + j from a column on, as a copy with a swizzle of 128 bytes lays it.
  // The first row's number is a multiple of four: so the others' is the same with other bits.
  __device__ static Piece& piece_at(unsigned char* rows, int row, int j, int column) {
    const u32 r = static_cast<u32>(row), at = static_cast<u32>(column) * sizeof(T);
    const u32 first = r * kLineBytes + (at ^ r % kPatternLines * kChunkBytes);
    return *reinterpret_cast<Piece*>(rows + (first ^ j * kChunkBytes) + j * kLineBytes);
  }

  // Which outputs the columns of a piece belong to.
  struct Outputs {
    int first;   // that of the first column
    u32 begins;  // a bit for each column with which one begins, or the piece
    int left;    // columns there are
  };
  __device__ Outputs outputs(int n) const {
    const int K = static_cast<int>(part_.K), first = n / K;
    u32 begins = 1;
#pragma unroll
    for (int i = 1, next = (first + 1) * K - n; i < kOwn; ++i) {
      if (i != next) continue;
      begins |= 1u << i;
      next += K;
    }
    return {first, begins, static_cast<int>(part_.N) - n};
  }

  // Asks for the gradients of a row's outputs, each where its first column is. Nothing is made of
  // them here: it would be waited for. A register each, since the compiler packs numbers of two
  // bytes by way of memory.
  using Asked = u32[kOwn];
  __device__ void ask(const Outputs& outputs, int r, Asked& dz) const {
    const View& view = problem_.dz;
    const auto* const from = static_cast<const std::uint16_t*>(view.data) + r * view.stride[0];
    i64 o = part_.o_offset + outputs.first;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const bool begins = (outputs.begins >> i & 1) != 0;
      if (i > 0 && begins) ++o;
      dz[i] = 0;
      if (begins && r < problem_.B && i < outputs.left) dz[i] = from[o * view.stride[1]];
    }
  }

  __device__ static float asked(u32 word) {
    const auto bits = static_cast<std::uint16_t>(word);
    T x;
    memcpy(&x, &bits, sizeof x);
    return widen(x);
  }

  // Which elements of a piece count, as count_elements() tells it.
  __device__ u32 count(int row, int n) const {
    const int left = static_cast<int>(part_.N) - n;
    const u32 there = left >= kOwn ? ~0u : left <= 0 ? 0 : (1u << (kQuad * left)) - 1;
    return there & count_elements<kOwn>(part_, problem_.B, row, h_, n);
  }

  // Turns w into du in all stages, and leaves what rows and columns of it add up to.
  __device__ void make() {
    if (part_.adaptive) measure();
    clear_dead_rows();
    Asked dz[kQuad];
    float differences[kQuad] = {};
    Outputs now = outputs(column(0));
    int first = row();
    // No loop: it would have the numbers in memory.
    ask(now, first, dz[0]);
    ask(now, first + 1, dz[1]);
    ask(now, first + 2, dz[2]);
    ask(now, first + 3, dz[3]);
    Turn turn;
    // The first column of a piece, of all that a thread goes through.
    const auto begin = [](int place) {
      return place / Rows::kPieces * kBoxColumns + column(place % Rows::kPieces);
    };
#pragma unroll 1
    for (int place = 0; place < steps() * Rows::kPieces; ++place) {
      forget(first);
      const int n = begin(place), piece = place % Rows::kPieces;
      const u32 counted = count(first, n);
      float biases[2][kOwn];
      get_biases(n, biases);
      if (piece == 0) mbarrier_wait(&memory_.ring.full[turn.stage], turn.parity);
      const Outputs next = outputs(begin(place + 1));
      make(memory_.ring.stage[turn.stage], first, n % kBoxColumns, counted, biases, now.begins,
           next, dz, differences);
      now = next;
      if (piece + 1 < Rows::kPieces) continue;
      proxy_fence();
      __syncwarp();
      if (lane() == 0) mbarrier_arrive(&memory_.made[turn.stage]);
      turn.next();
    }
    if (part_.adaptive) put_slopes(differences);
  }

  // Of the own side, and the other, as all pairs here are.
  __device__ void get_biases(int first, float (&biases)[2][kOwn]) const {
#pragma unroll
    for (int other = 0; other < 2; ++other) {
      const View& bias = part_.side[side_ ^ other].bias;
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        const i64 n = first + i;
        biases[other][i] =
            bias.data == nullptr || n >= part_.N
                ? 0.0f
                : widen(static_cast<const T*>(bias.data)[h_ * bias.stride[0] + n * bias.stride[2]]);
      }
    }
  }

  // Of a piece, whose gradients of outputs make room for those of the next: so these are asked for
  // long before they are needed.
  __device__ void make(Stage& stage, int row, int column, u32 counted,
                       const float (&biases)[2][kOwn], u32 begins, const Outputs& next,
                       Asked (&dz)[kQuad], float (&differences)[kQuad]) {
    const float factor = part_.dropout.active ? static_cast<float>(part_.dropout.scale) : 1.0f;
    float sums[kOwn] = {};
#pragma unroll
    for (int j = 0; j < kQuad; ++j) {
      float scale[2] = {1, 1};
      if (part_.adaptive)
        for (int other = 0; other < 2; ++other) scale[other] = memory_.scale[other][row + j];
      Piece& d = piece_at(&stage.rows[0][0], row, j, column);
      const Piece other = d, own = part_.adaptive ? piece_at(stage.own, row, j, column) : other;
      Piece result;
      float added = 0, g = 0;
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        if ((begins >> i & 1) != 0) g = asked(dz[j][i]) * factor;
        const bool counts = (counted >> (kQuad * i + j) & 1) != 0;
        const float raw[2] = {widen(own.of[i]), widen(other.of[i])};
        const float bias[2] = {biases[0][i], biases[1][i]};
        float of[2];
        differentiate_product(counts, g, raw, scale, bias, of);
        added += counts ? of[0] * raw[0] - of[1] * raw[1] : 0.0f;
        sums[i] += of[0];
        result.of[i] = narrow<T>(of[0] * scale[0]);
      }
      differences[j] += added;
      d = result;
      ask(next, row + j, dz[j]);
    }
    if (!bias()) return;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
#pragma unroll
      for (int bit = Rows::kQuadLanes; bit < kWarp; bit *= 2)
        sums[i] += __shfl_xor_sync(0xffffffffu, sums[i], bit);
      if (lane() < Rows::kQuadLanes) stage.sums[warp()][column + i] = sums[i];
    }
  }

  // Leaves the norms and scales of the warp's rows.
  __device__ void measure() {
    const int first = warp() * Rows::kWarpRows;
#pragma unroll 1
    for (int other = 0; other < 2; ++other)
#pragma unroll 1
      for (int r = first; r < first + Rows::kWarpRows; r += kMeasured)
        put_squares(part_.side[side_ ^ other], r, memory_.norm[other] + r);
    __syncwarp();
    if (lane() < Rows::kWarpRows) {
      const int r = first + lane();
      const Scales scales(true, memory_.norm[0][r], memory_.norm[1][r]);
      for (int other = 0; other < 2; ++other) {
        memory_.norm[other][r] = scales.norm[other];
        memory_.scale[other][r] = scales.scale[other];
      }
    }
    __syncwarp();
  }

  // The sums of squares of some rows, which are whole vectors. As many are asked for at once.
  static constexpr int kMeasured = Rows::kWarpRows < 8 ? Rows::kWarpRows : 8;
  __device__ void put_squares(const Side& side, int first, float* to) const {
    float squares[kMeasured] = {};
#pragma unroll 1
    for (int c = lane() * kVector<T>; c < side.width; c += kWarp * kVector<T>) {
      Vector<T> rows[kMeasured] = {};
#pragma unroll
      for (int i = 0; i < kMeasured; ++i)
        if (first + i < problem_.B)
          rows[i] = *reinterpret_cast<const Vector<T>*>(static_cast<const T*>(side.input.data) +
                                                        (first + i) * side.input.stride[0] + c);
#pragma unroll
      for (int i = 0; i < kMeasured; ++i) {
        float sum = 0;
#pragma unroll
        for (const T x : rows[i].of) sum = fmaf(widen(x), widen(x), sum);
        squares[i] += sum;
      }
    }
#pragma unroll
    for (int i = 0; i < kMeasured; ++i) {
      const float sum = sum_over_lanes<kWarp>(squares[i]);
      if (lane() == 0) to[i] = sum;
    }
  }

  // What stands in rows that do not count must not count; du has zeros there.
  __device__ void clear_dead_rows() {
    mbarrier_wait(&memory_.arrived, 0);
    if (part_.lengths == nullptr) return;
    constexpr int kChunks = kLineBytes / kChunkBytes;
    const int first = warp() * Rows::kWarpRows;
#pragma unroll 1
    for (int i = lane(); i < Rows::kWarpRows * kChunks; i += kWarp)
      if (!alive(first + i / kChunks))
        *reinterpret_cast<uint4*>(memory_.input + first * kLineBytes + i * kChunkBytes) = uint4{};
  }

  // From what the threads' columns add to d mu - d eta, or, of the second side, d eta - d mu.
  __device__ void put_slopes(const float (&differences)[kQuad]) {
#pragma unroll
    for (int j = 0; j < kQuad; ++j) {
      const float difference = sum_over_lanes<Rows::kQuadLanes>(differences[j]);
      const int r = row() + j;
      if (lane() % Rows::kQuadLanes == 0)
        memory_.slope[r] = slope_of(difference, 0, memory_.norm[0][r], memory_.norm[1][r]);
    }
    __syncwarp();
    if (lane() == 0) mbarrier_arrive(&memory_.measured);
  }

  // ---- products ----

  __device__ static int own_warp() { return static_cast<int>(threadIdx.x) / kWarp % kProductWarps; }

  __device__ void differentiate_input(int group) {
    WgmmaSomeSums sums;
    Turn turn;
    multiply_ring<T, Along::depth, Along::depth>(
        memory_.ring, turn, steps(), group, sums,
        [&](const Turn& turn) { mbarrier_wait(&memory_.made[turn.stage], turn.parity); },
        [](const unsigned char*) {});
    if (part_.adaptive) mbarrier_wait(&memory_.measured, 0);
    const int row = group * kWgmmaRows + own_warp() * kWarp / 2, first = row + lane() / 4;
    bool counts[2];
    float slope[2] = {0, 0};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int b = first + 8 * half;
      counts[half] = alive(b);
      if (part_.adaptive && counts[half]) slope[half] = memory_.slope[b];
    }
    const i64 width = side().width;
    T* const d = static_cast<T*>(part_.d_input[side_]) + h_ * width;
    const Target<T> target{d, part_.H * width, problem_.B, width};
    store_sums(sums, row, line(), target, [&](int half, int c, float x) {
      x = counts[half] ? x : 0.0f;
      if (!part_.adaptive || !counts[half]) return x;
      return fmaf(slope[half], input_at(first + 8 * half, c - line()), x);
    });
  }

  __device__ float input_at(int r, int c) const {
    const int chunk = c / kVector<T> ^ r % kPatternLines;
    return widen(reinterpret_cast<const T*>(memory_.input + r * kLineBytes +
                                            chunk * kChunkBytes)[c % kVector<T>]);
  }

  __device__ void differentiate_weight() {
    constexpr int kStep = kWgmmaDepth * kLineBytes;
    auto& ring = memory_.ring;
    const auto x = MatrixDescriptor::of<Along::other>(memory_.input, kBoxBytes);
    const auto d = MatrixDescriptor::of<Along::other>(ring.stage[0].rows, kBoxBytes);
    const i64 width = side().width;
    T* const result = static_cast<T*>(part_.d_weight[side_]);
    const Target<T> target{result + h_ * width * part_.N, part_.N, width, part_.N};
    Turn turn;
    mbarrier_wait(&memory_.arrived, 0);
#pragma unroll 1
    for (int step = 0; step < steps(); ++step, turn.next()) {
      mbarrier_wait(&ring.full[turn.stage], turn.parity);
      mbarrier_wait(&memory_.made[turn.stage], turn.parity);
      __syncwarp();
      if (bias()) put_bias(step, ring.stage[turn.stage]);
      WgmmaSomeSums sums;
      if (result != nullptr) {
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < Rows::kRows / kWgmmaDepth; ++i)
          wgmma<T, Along::other, Along::other>(
              sums, x.at(i * kStep), d.at(turn.stage * static_cast<int>(sizeof(Stage)) + i * kStep),
              i > 0);
        wgmma_commit();
        wgmma_wait_for_all(sums);
      }
      release_stage(ring, turn.stage);
      if (result != nullptr)
        store_sums(sums, line() + own_warp() * kWarp / 2, step * kBoxColumns, target,
                   [](int, int, float x) { return x; });
    }
  }

  // The gradient of the bias of a step's columns.
  __device__ void put_bias(int step, const Stage& stage) const {
    const int c = static_cast<int>(threadIdx.x) % kWarpgroup;
    const i64 n = step * kBoxColumns + c;
    if (c >= kBoxColumns || n >= part_.N) return;
    float sum = 0;
    for (const auto& sums : stage.sums) sum += sums[c];
    static_cast<T*>(part_.d_bias[side_])[h_ * part_.N + n] = narrow<T>(sum);
  }

  const BackwardProblem& problem_;
  const BackwardPart& part_;
  const SmallPart& own_;
  const int h_, side_, tile_;
  Memory& memory_;
};

// The last part's blocks come first, as many as those of the trunks usually are. All have the
// registers of the most rows: with more, so much is asked for ahead that some of it is spilled.
template <class T, class Rows>
__global__ void __launch_bounds__(Rows::kThreads, 1)
    backward_small_kernel(const __grid_constant__ BackwardProblem problem,
                          const __grid_constant__ SmallPlan plan) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  int index = static_cast<int>(blockIdx.x), part = problem.parts - 1;
  while (index >= plan.part[part].blocks) index -= static_cast<int>(plan.part[part--].blocks);
  SmallBlock<T, Rows> block(problem, problem.part[part], plan.part[part], index);
  if (threadIdx.x == 0) block.init();
  __syncthreads();
  block.run();
#else
  __trap();  // wgmma is Hopper's alone, and built for sm_90a alone
#endif
}

template <class Rows>
SmallPart small_part(const BackwardProblem& problem, const BackwardPart& part) {
  SmallPart own;
  for (int side = 0; side < 2; ++side) {
    if (part.d_input[side] != nullptr || part.d_weight[side] != nullptr) {
      own.tiles[side] = static_cast<int>(ceil_div(part.side[side].width, kLines));
    } else if (part.d_bias[side] != nullptr) {
      own.tiles[side] = 1;
    }
    own.input[side] =
        tensor_map(problem.dtype, mapped_input(part, side, problem.B), 2, Rows::kRows);
    own.weight[side] = tensor_map(problem.dtype, mapped_weight(part, side), 1, kLines);
    own.kept[side] = tensor_map(problem.dtype, mapped_projections(part, part.kept[side], problem.B),
                                1, Rows::kRows);
  }
  own.blocks = part.H * (own.tiles[0] + own.tiles[1]);
  return own;
}

template <class Rows>
void start(const BackwardProblem& problem, const Context& context) {
  SmallPlan plan;
  i64 blocks = 0;
  for (int i = 0; i < problem.parts; ++i) {
    plan.part[i] = small_part<Rows>(problem, problem.part[i]);
    blocks += plan.part[i].blocks;
  }
  if (blocks == 0) return;
  with_type(problem.dtype, [&](auto type) {
    using T = decltype(type);
    if constexpr (sizeof(T) == 2)
      FBP_LAUNCH((backward_small_kernel<T, Rows>), grid_of(blocks), Rows::kThreads,
                 sizeof(SmallMemory<Rows>), context.stream, problem, plan);
  });
}

}  // namespace

bool small_serves(const BackwardProblem& problem, const DeviceLimits& device) {
  if (problem.B > kSmallBatch || !wgmma_can_multiply(problem, device)) return false;
  const bool kept = all_kept(problem);
  for (int i = 0; i < problem.parts; ++i) {
    const BackwardPart& part = problem.part[i];
    for (int side = 0; side < 2; ++side) {
      const void* const projection = kept ? part.kept[side] : nullptr;
      if (!mapped_projections(part, projection, problem.B).can_be_mapped()) return false;
      // Rows are measured a vector at a time.
      if (part.adaptive && part.side[side].width % kMapChunk != 0) return false;
    }
  }
  return kept || split_serves(projections_of(problem), device);
}

void bilinear_backward_small(const BackwardProblem& problem, const Context& context) {
  const BackwardProblem projected =
      all_kept(problem) ? problem : project_again(problem, context, bilinear_forward_split);
  if (problem.B <= FewRows::kRows) return start<FewRows>(projected, context);
  if (problem.B <= MoreRows::kRows) return start<MoreRows>(projected, context);
  start<ManyRows>(projected, context);
}

}  // namespace fbp::cuda
