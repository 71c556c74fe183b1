// The one tile product of all bilinear kernels: a block multiplies a tile of rows by a tile of
// columns, step by step over the depth, on the tensor cores or, in IEEE float32, by plain
// multiplications. Steps come through a ring of stages in shared memory, filled by asynchronous
// copies that run ahead; several products follow one another without the ring running empty.

#pragma once

#include <mma.h>

#include "cuda/common.h"
#include "cuda/terms.h"

namespace fbp::cuda {

namespace wmma = nvcuda::wmma;

// ---- numbers ----

// How numbers are stored and multiplied. `kFragment` is the depth of one instruction of the tensor
// cores.
struct Float32 {
  using Storage = float;
  static constexpr bool kTensorCores = false;
};
struct Tf32 {
  using Storage = float;
  using Operand = wmma::precision::tf32;
  static constexpr bool kTensorCores = true;
  static constexpr int kFragment = 8;
};
struct Bfloat16 {
  using Storage = __nv_bfloat16;
  using Operand = __nv_bfloat16;
  static constexpr bool kTensorCores = true;
  static constexpr int kFragment = 16;
};
struct Float16 {
  using Storage = __half;
  using Operand = __half;
  static constexpr bool kTensorCores = true;
  static constexpr int kFragment = 16;
};

// Calls f with how numbers of a dtype are multiplied.
template <class F>
void with_number(Dtype dtype, bool tf32, const F& f) {
  switch (dtype) {
    case Dtype::float32:
      return tf32 ? f(Tf32{}) : f(Float32{});
    case Dtype::bfloat16:
      return f(Bfloat16{});
    case Dtype::float16:
      return f(Float16{});
    case Dtype::float64:
      throw std::runtime_error("the CUDA kernels have no float64");
  }
}

// ---- sizes ----

constexpr int kThreads = 256;
constexpr int kStepBytes = 128;  // of one line of an operand, along the depth

// The tile of a block, how many steps are in flight, and how many blocks the registers of a
// multiprocessor are to hold. Small: as many blocks as a GPU has multiprocessors where there is
// little work. Large: fewer reads for the same arithmetic.
struct SmallTile {
  static constexpr int kRows = 32, kColumns = 32, kStages = 6, kResident = 2;
};
struct LargeTile {
  static constexpr int kRows = 64, kColumns = 64, kStages = 3, kResident = 1;
};

// Batches up to this size are cut into small tiles.
constexpr i64 kSmallBatch = 128;

template <class Number>
constexpr int kDepth = kStepBytes / static_cast<int>(sizeof(typename Number::Storage));
template <class Number>
constexpr int kChunk = kChunkBytes / static_cast<int>(sizeof(typename Number::Storage));

// An operand's part of a stage: lines of LENGTH numbers, LINES of them. Lines are padded, so that
// neighbouring lines begin in different banks.
template <class Number, int OTHER, Along ALONG>
struct Stage {
  static constexpr int kLines = ALONG == Along::depth ? OTHER : kDepth<Number>;
  static constexpr int kLength = ALONG == Along::depth ? kDepth<Number> : OTHER;
  static constexpr int kStride = kLength + kChunk<Number>;
  static constexpr int kSize = kLines * kStride;
};

// ---- operands ----

// One operand of a product from where a tile begins. Zeros stand for what is outside of `others`
// (rows or columns) and of the product's depth, and for lines that are not alive: of these not even
// a NaN counts.
template <class T>
struct Operand {
  const T* data = nullptr;
  i64 line = 0, element = 0;  // strides
  int piece = 1;              // numbers that are copied at a time; divides sizes and strides
  i64 others = 0;
  const i64* limits = nullptr;  // line i is alive while limits[i] > trunk; null where all are
  i64 trunk = 0;
};

// The largest number of elements, of a power of two, that one copy of up to 16 bytes takes from an
// address and from any multiples of these sizes and strides beyond it.
template <class T>
int piece_of(const void* address, i64 element_stride, std::initializer_list<i64> multiples) {
  u64 bits = reinterpret_cast<std::uintptr_t>(address) / sizeof(T) | kChunkBytes / sizeof(T);
  if (element_stride != 1) return 1;
  for (const i64 multiple : multiples) bits |= static_cast<u64>(multiple);
  return static_cast<int>(bits & -bits);
}

// Copies `count` numbers by pieces that are shorter than a chunk, and zeros for the rest of it.
template <class T>
__device__ inline void copy_pieces(T* to, const T* from, i64 element, int piece, int count) {
  constexpr int kWide = kChunkBytes / static_cast<int>(sizeof(T));
  const int bytes = piece * static_cast<int>(sizeof(T));
#pragma unroll 1
  for (int i = 0; i < kWide; i += piece) {
    if (i >= count) {
      for (int j = 0; j < piece; ++j) to[i + j] = narrow<T>(0.0f);
    } else if (bytes == 8) {
      __pipeline_memcpy_async(to + i, from + i, 8);
    } else if (bytes == 4) {
      __pipeline_memcpy_async(to + i, from + i * element, 4);
    } else {
      to[i] = from[i * element];
    }
  }
}

// Starts the copy of one step into a stage: `others` and `depth` are what is left of them.
template <class Number, int OTHER, Along ALONG>
__device__ inline void copy_step(typename Number::Storage* to,
                                 const Operand<typename Number::Storage>& from, i64 depth) {
  using T = typename Number::Storage;
  using S = Stage<Number, OTHER, ALONG>;
  constexpr int kWide = kChunk<Number>, kPerLine = S::kLength / kWide;
  constexpr int kCount = S::kLines * kPerLine;
  static_assert(kCount % kThreads == 0, "every thread copies as much");
  const i64 lines = ALONG == Along::depth ? from.others : depth;
  const i64 length = ALONG == Along::depth ? depth : from.others;
#pragma unroll
  for (int i = 0; i < kCount / kThreads; ++i) {
    const int chunk = i * kThreads + static_cast<int>(threadIdx.x);
    const int line = chunk / kPerLine, at = chunk % kPerLine * kWide;
    const bool alive =
        line < lines && (from.limits == nullptr || __ldg(from.limits + line) > from.trunk);
    const i64 left = alive ? length - at : 0;
    T* const target = to + line * S::kStride + at;
    const T* const source = from.data + line * from.line + at * from.element;
    if (from.piece == kWide) {
      if (left > 0) {
        __pipeline_memcpy_async(target, source, kChunkBytes);
      } else {
        *reinterpret_cast<uint4*>(target) = make_uint4(0, 0, 0, 0);
      }
    } else {
      copy_pieces(target, source, from.element, from.piece, static_cast<int>(smaller(left, kWide)));
    }
  }
}

// ---- products ----

// The sums of a tile in the registers of a block. Its threads are divided into groups, each with
// the whole tile and a share of the depth of every step. `kTileStride` is that of the tile in
// shared memory that the sums end up in. `piece()` is after how many steps they have to be put
// there and begun anew, 0 for never; see terms.h.
template <class Tile>
constexpr int kTileStride = Tile::kColumns + 4;

template <class Number, class Tile, Along A, Along B, bool TENSOR_CORES = Number::kTensorCores>
class Product;

// On the tensor cores: each group has a grid of 2 x 2 warps.
template <class Number, class Tile, Along A, Along B>
class Product<Number, Tile, A, B, true> {
  static constexpr int kGroups = kThreads / kWarp / 4;
  static constexpr int kRowFragments = Tile::kRows / 32, kColumnFragments = Tile::kColumns / 32;
  static constexpr int kShare = kDepth<Number> / kGroups;
  static_assert(kShare % Number::kFragment == 0, "groups take whole instructions");

 public:
  // Operands, or results, are rounded to far fewer digits than a sum of any length loses.
  __device__ static int piece() { return 0; }

 private:
  using T = typename Number::Storage;
  using ByRows = wmma::row_major;
  using ByColumns = wmma::col_major;
  using StageA = Stage<Number, Tile::kRows, A>;
  using StageB = Stage<Number, Tile::kColumns, B>;
  using Left = wmma::fragment<wmma::matrix_a, 16, 16, Number::kFragment, typename Number::Operand,
                              std::conditional_t<A == Along::depth, ByRows, ByColumns>>;
  using Right = wmma::fragment<wmma::matrix_b, 16, 16, Number::kFragment, typename Number::Operand,
                               std::conditional_t<B == Along::depth, ByColumns, ByRows>>;
  using Sum = wmma::fragment<wmma::accumulator, 16, 16, Number::kFragment, float>;

 public:
  __device__ Product() { clear(); }

  __device__ void clear() {
#pragma unroll
    for (int r = 0; r < kRowFragments; ++r)
#pragma unroll
      for (int c = 0; c < kColumnFragments; ++c) wmma::fill_fragment(sum_[r][c], 0.0f);
  }

  // Adds one step.
  __device__ void add(const T* a, const T* b) {
    // Rounding to TF32 takes registers of its own.
    [[maybe_unused]] constexpr int kUnroll =
        std::is_same_v<Number, Tf32> ? 1 : kShare / Number::kFragment;
#pragma unroll kUnroll
    for (int k = 0; k < kShare; k += Number::kFragment) {
      const int depth = group() * kShare + k;
      Left left[kRowFragments];
      Right right[kColumnFragments];
#pragma unroll
      for (int r = 0; r < kRowFragments; ++r) load<A, StageA>(left[r], a, row() + 16 * r, depth);
#pragma unroll
      for (int c = 0; c < kColumnFragments; ++c)
        load<B, StageB>(right[c], b, column() + 16 * c, depth);
#pragma unroll
      for (int r = 0; r < kRowFragments; ++r)
#pragma unroll
        for (int c = 0; c < kColumnFragments; ++c)
          wmma::mma_sync(sum_[r][c], left[r], right[c], sum_[r][c]);
    }
  }

  // Puts the sums into `tile` (rows, kTileStride), group upon group, upon what is there where there
  // is `more`; they can be read after the next barrier.
  __device__ void store(float* tile, bool more) {
    for (int g = 0; g < kGroups; ++g) {
      if (g > 0) __syncthreads();
      if (g != group()) continue;
#pragma unroll
      for (int r = 0; r < kRowFragments; ++r)
#pragma unroll
        for (int c = 0; c < kColumnFragments; ++c) {
          float* const to = tile + (row() + 16 * r) * kTileStride<Tile> + column() + 16 * c;
          if (g > 0 || more) {
            Sum before;
            wmma::load_matrix_sync(before, to, kTileStride<Tile>, wmma::mem_row_major);
#pragma unroll
            for (int i = 0; i < Sum::num_elements; ++i) sum_[r][c].x[i] += before.x[i];
          }
          wmma::store_matrix_sync(to, sum_[r][c], kTileStride<Tile>, wmma::mem_row_major);
        }
    }
  }

 private:
  __device__ static int warp() { return static_cast<int>(threadIdx.x) / kWarp; }
  __device__ static int group() { return warp() / 4; }
  __device__ static int row() { return warp() / 2 % 2 * (Tile::kRows / 2); }
  __device__ static int column() { return warp() % 2 * (Tile::kColumns / 2); }

  template <Along ALONG, class S, class Fragment>
  __device__ static void load(Fragment& fragment, const T* stage, int other, int depth) {
    const int place =
        ALONG == Along::depth ? other * S::kStride + depth : depth * S::kStride + other;
    wmma::load_matrix_sync(fragment, stage + place, S::kStride);
    if constexpr (std::is_same_v<Number, Tf32>) {
#pragma unroll
      for (int i = 0; i < Fragment::num_elements; ++i)
        fragment.x[i] = wmma::__float_to_tf32(fragment.x[i]);
    }
  }

  Sum sum_[kRowFragments][kColumnFragments];
};

// By plain multiplications: each thread has 4 x 4 sums.
template <class Number, class Tile, Along A, Along B>
class Product<Number, Tile, A, B, false> {
  static constexpr int kOwn = 4;
  static constexpr int kAcross = Tile::kColumns / kOwn, kDown = Tile::kRows / kOwn;
  static constexpr int kPerGroup = kAcross * kDown, kGroups = kThreads / kPerGroup;
  static constexpr int kShare = kDepth<Number> / kGroups;
  static_assert(kThreads % kPerGroup == 0 && kShare % kOwn == 0, "groups take whole squares");

 public:
  __device__ static int piece() { return kTerms / kShare; }

 private:
  using StageA = Stage<Number, Tile::kRows, A>;
  using StageB = Stage<Number, Tile::kColumns, B>;

 public:
  __device__ Product() { clear(); }

  __device__ void clear() {
#pragma unroll
    for (int r = 0; r < kOwn; ++r)
#pragma unroll
      for (int c = 0; c < kOwn; ++c) sum_[r][c] = 0;
  }

  __device__ void add(const float* a, const float* b) {
#pragma unroll 2
    for (int k = 0; k < kShare; k += kOwn) {
      const int depth = group() * kShare + k;
      float left[kOwn][kOwn], right[kOwn][kOwn];  // [row or column][depth]
      load<A, StageA>(left, a, row(0), row(1) - row(0), depth);
      load<B, StageB>(right, b, column(0), column(1) - column(0), depth);
#pragma unroll
      for (int d = 0; d < kOwn; ++d)
#pragma unroll
        for (int r = 0; r < kOwn; ++r)
#pragma unroll
          for (int c = 0; c < kOwn; ++c) sum_[r][c] = fmaf(left[r][d], right[c][d], sum_[r][c]);
    }
  }

  __device__ void store(float* tile, bool more) {
    for (int g = 0; g < kGroups; ++g) {
      if (g > 0) __syncthreads();
      if (g != group()) continue;
#pragma unroll
      for (int r = 0; r < kOwn; ++r)
#pragma unroll
        for (int c = 0; c < kOwn; ++c) {
          float& to = tile[row(r) * kTileStride<Tile> + column(c)];
          to = g > 0 || more ? to + sum_[r][c] : sum_[r][c];
        }
    }
  }

 private:
  __device__ static int thread() { return static_cast<int>(threadIdx.x) % kPerGroup; }
  __device__ static int group() { return static_cast<int>(threadIdx.x) / kPerGroup; }

  // Neighbours where lines go along them, so that four are one access; else apart, so that the
  // threads of a warp read from different banks.
  __device__ static int row(int i) {
    const int first = thread() / kAcross;
    return A == Along::depth ? first + i * kDown : first * kOwn + i;
  }
  __device__ static int column(int i) {
    const int first = thread() % kAcross;
    return B == Along::depth ? first + i * kAcross : first * kOwn + i;
  }

  template <Along ALONG, class S>
  __device__ static void load(float (&to)[kOwn][kOwn], const float* stage, int other, int step,
                              int depth) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int place = ALONG == Along::depth ? (other + i * step) * S::kStride + depth
                                              : (depth + i) * S::kStride + other;
      const float4 x = *reinterpret_cast<const float4*>(stage + place);
      const float four[kOwn] = {x.x, x.y, x.z, x.w};
#pragma unroll
      for (int j = 0; j < kOwn; ++j) (ALONG == Along::depth ? to[i][j] : to[j][i]) = four[j];
    }
  }

  float sum_[kOwn][kOwn];
};

// ---- one product after the other ----

template <class Number, class Tile, Along A, Along B>
struct Ring {
  using T = typename Number::Storage;
  static constexpr int kA = Stage<Number, Tile::kRows, A>::kSize;
  static constexpr int kB = Stage<Number, Tile::kColumns, B>::kSize;
  static_assert(kA * sizeof(T) % 32 == 0 && kB * sizeof(T) % 32 == 0, "fragments are aligned");
  struct alignas(32) {
    T a[kA], b[kB];
  } stage[Tile::kStages];
};

// What is multiplied: two operands, and the depth that they share.
template <class T>
struct Factors {
  Operand<T> a, b;
  i64 depth = 0;
};

// Multiplies factors(0), factors(1), ... until `count`, where
//   look(i, a)  is called with what each step of product i reads of its left operand;
//   tile(i)     says where in shared memory its sums are put, (rows, kTileStride);
//   finish(i)   is called when they are: they can be read after a barrier. It may use barriers, and
//               what it leaves in shared memory, or reads of any tile, lasts at least until the
//               first step of the next product.
template <class Number, class Tile, Along A, Along B, class MakeFactors, class Look, class TileOf,
          class Finish>
__device__ inline void multiply(int count, Ring<Number, Tile, A, B>& ring,
                                const MakeFactors& factors, const Look& look, const TileOf& tile,
                                const Finish& finish) {
  constexpr int kStep = kDepth<Number>, kStages = Tile::kStages;
  int copied = 0, filling = 0;
  i64 depth = 0;  // up to which product number `copied` has been copied
  const auto copy = [&] {
    if (copied < count) {
      // Made anew for every step: between steps, its numbers would take the registers of the sums.
      auto next = factors(copied);
      next.a.data += depth * (A == Along::depth ? next.a.element : next.a.line);
      next.b.data += depth * (B == Along::depth ? next.b.element : next.b.line);
      if (A == Along::other && next.a.limits != nullptr) next.a.limits += depth;
      auto& stage = ring.stage[filling];
      copy_step<Number, Tile::kRows, A>(stage.a, next.a, next.depth - depth);
      copy_step<Number, Tile::kColumns, B>(stage.b, next.b, next.depth - depth);
      depth += kStep;
      if (depth >= next.depth) {
        depth = 0;
        ++copied;
      }
    }
    __pipeline_commit();
    filling = filling + 1 == kStages ? 0 : filling + 1;
  };
#pragma unroll 1
  for (int i = 0; i < kStages - 1; ++i) copy();

  int reading = 0;
  Product<Number, Tile, A, B> product;
  const int piece = product.piece();
  for (int i = 0; i < count; ++i) {
    // A product of no depth has one step, of zeros.
    i64 left = factors(i).depth;
    bool more = false;
    do {
      int steps = piece;
      do {
        __pipeline_wait_prior(kStages - 2);
        __syncthreads();
        copy();
        const auto& stage = ring.stage[reading];
        look(i, stage.a);
        product.add(stage.a, stage.b);
        reading = reading + 1 == kStages ? 0 : reading + 1;
        left -= kStep;
      } while (left > 0 && (piece == 0 || --steps > 0));
      product.store(tile(i), piece > 0 && more);
      product.clear();
      more = true;
    } while (piece > 0 && left > 0);
    finish(i);
  }
}

}  // namespace fbp::cuda
