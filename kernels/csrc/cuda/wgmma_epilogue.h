// What becomes of the projections u and w of a tile: products, sums over K and over the trunks, z.
//
// A warp has 16 rows of a tile. Of the sums of wgmma, four neighbouring lanes have a row between
// them, each two columns of every eight. They exchange them so that each has one of the four boxes
// of columns, which holds whole outputs: the sum over K is then a loop of one thread, for any K.

#pragma once

#include <cstring>
#include <type_traits>

#include "wgmma_tiles.h"

namespace fbp::cuda {

// Two numbers as one word.
template <class T>
__device__ inline u32 pack(float low, float high);
template <>
__device__ inline u32 pack<__nv_bfloat16>(float low, float high) {
  const __nv_bfloat162 two = __floats2bfloat162_rn(low, high);
  u32 word;
  memcpy(&word, &two, sizeof word);
  return word;
}
template <>
__device__ inline u32 pack<__half>(float low, float high) {
  const __half2 two = __floats2half2_rn(low, high);
  u32 word;
  memcpy(&word, &two, sizeof word);
  return word;
}

template <class T>
__device__ inline float2 unpack(u32 word);
template <>
__device__ inline float2 unpack<__nv_bfloat16>(u32 word) {
  return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
}
template <>
__device__ inline float2 unpack<__half>(u32 word) {
  __half2 two;
  memcpy(&two, &word, sizeof two);
  return __half22float2(two);
}

// Among four neighbouring lanes: lane i of them gets number i of each.
template <class V>
__device__ inline void exchange(V& v0, V& v1, V& v2, V& v3) {
  const int lane = static_cast<int>(threadIdx.x);
  const auto swap = [](V& low, V& high, bool upper, int bit) {
    const V got = __shfl_xor_sync(0xffffffffu, upper ? low : high, bit);
    low = upper ? got : low;
    high = upper ? high : got;
  };
  swap(v0, v1, (lane & 1) != 0, 1);
  swap(v2, v3, (lane & 1) != 0, 1);
  swap(v0, v2, (lane & 2) != 0, 2);
  swap(v1, v3, (lane & 2) != 0, 2);
}

// The sums over K of a warp's 16 rows, those of each lane apart: its box, and its two rows.
class PooledSums {
  static constexpr int kPitch = kWarp + 1;  // what is read across lanes comes from all banks

 public:
  static constexpr int kSize = 2 * kMostBoxOutputs * kPitch;

  __device__ explicit PooledSums(float* sums) : sums_(sums) {}

  __device__ void clear(int outputs) {
    for (int i = 0; i < 2 * outputs; ++i) sums_[i * kPitch + lane()] = 0;
  }

  __device__ void add(int output, int half, float sum) {
    sums_[(2 * output + half) * kPitch + lane()] += sum;
  }

  // Where that of any row and box is, after a __syncwarp().
  __device__ static int place(int row, int box, int output) {
    return (2 * output + row / 8) * kPitch + row % 8 * kBoxes + box;
  }

 private:
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % kWarp; }

  float* sums_;
};

// Whether the kernel of a type has biases, see WgmmaEpilogue::multiply().
template <class T>
constexpr bool kWgmmaBiases = !std::is_same_v<T, __half>;

// The share of a thread, with its part of u packed, as the projections of half precision are, and
// its part of w.
template <class T>
class WgmmaEpilogue {
  static constexpr int kBoxGroups = kBoxColumns / 8;  // of eight columns

 public:
  using Sums = WgmmaSums;
  using Packed = u32[kWgmmaSums / 2];
  struct Shared {
    float sums[kConsumerWarps][PooledSums::kSize];

    __device__ void init() {}
  };
  struct Turn {};

  __device__ static auto operands(const RingStage& first, int warp) {
    return SharedOperands<T, Along::depth, Along::other, RingStage>(first,
                                                                    warp / (kWarpgroup / kWarp));
  }

  __device__ WgmmaEpilogue(const ForwardProblem& problem, const WgmmaTile<T>& tile, int warp,
                           Shared& shared, Turn&)
      : problem_(problem), tile_(tile), row_(first_row_of(tile, warp)), sums_(shared.sums[warp]) {
    sums_.clear(tile.per_box());
  }

  // Puts u aside, rounded as a result of this type is rounded.
  __device__ void take(int h, int chunk, const WgmmaSums& sums, Packed& u) const {
#pragma unroll
    for (int i = 0; i < kWgmmaSums / 2; ++i) u[i] = pack<T>(sums[2 * i], sums[2 * i + 1]);
    if (tile_.part.kept[0] != nullptr) keep(0, h, chunk, [&](int i) { return u[i]; });
  }

  // Which products count, of rows that are alive and not dropped: bit 4 * g + 2 * half + i of a box
  // is column i of the thread in eight columns g, in one of its rows.
  using Counted = u32[kBoxes];

  // Four lanes have, of the same columns, four rows that one draw of random words is for: each
  // draws for one column and one half. Done before there are sums in registers: it takes as many.
  __device__ void count(int h, int chunk, Counted& counted) const {
    const u32 alive = (tile_.of.alive(row(0), h) ? 0x33333333u : 0) |
                      (tile_.of.alive(row(1), h) ? 0xccccccccu : 0);
#pragma unroll
    for (int box = 0; box < kBoxes; ++box) counted[box] = alive;
    const Dropout& dropout = tile_.part.dropout;
    if (!dropout.active) return;
    const int place = lane() / kBoxes % 4;  // of the four: draws column place % 2, half place / 2
    const u64 key = static_cast<u64>(*dropout.seed);
    const u32 quad = static_cast<u32>(row(place / 2) / 4);
#pragma unroll 1
    for (int g = 0; g < kBoxGroups; ++g) {
#pragma unroll
      for (int box = 0; box < kBoxes; ++box) {
        u32 words[4], own = 0;
        philox(key, static_cast<u32>(tile_.column(box, chunk) + within(g) + place % 2),
               static_cast<u32>(h), quad, tile_.part.stream, words);
#pragma unroll
        for (int i = 0; i < 4; ++i) own |= (u64{words[i]} < dropout.threshold ? 1u : 0u) << i;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const u32 others = __shfl_sync(0xffffffffu, own, lane() % 4 + 4 * i + lane() / 16 * 16);
          counted[box] &= ~((others >> place & 1) << (4 * g + i));
        }
      }
    }
  }

  // Adds what trunk h and a chunk contribute. `squares` are the sums of squares of the rows of a
  // and v, of row i in lanes 2 * i and 2 * i + 1.
  __device__ void add(int h, int chunk, const Packed& u, const WgmmaSums& w,
                      const float (&squares)[2], const Counted& counted) {
    if (tile_.part.kept[1] != nullptr)
      keep(1, h, chunk, [&](int i) { return pack<T>(w[2 * i], w[2 * i + 1]); });
    if (problem_.z == nullptr) return;
    float scale[2][2];
    scales(squares, scale);
    Running running{tile_.run(chunk)};
    // Eight columns of each box at a time: what is in registers only gets less.
#pragma unroll
    for (int g = 0; g < kBoxGroups; ++g) {
      Products products;
      multiply(h, chunk, g, u, w, scale, products);
#pragma unroll
      for (int box = 0; box < kBoxes; ++box)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          // By selection: of what does not count not even a NaN does.
          const bool counts = (counted[box] >> (4 * g + i) & 1) != 0;
          products[box][i] = counts ? products[box][i] : 0.0f;
        }
      if (tile_.part.K % 2 == 0) {
        sum_up<2>(products, running);
      } else {
        sum_up<1>(products, running);
      }
    }
  }

  // Writes the tile's outputs of rows `first`, `first + every` ... of the warp, where they are
  // wanted: sum(place) of where each is in PooledSums. For all lanes, which may change the sums
  // then.
  template <class Sum>
  __device__ static void store(const ForwardProblem& problem, const WgmmaTile<T>& tile, int warp,
                               int first_row, int every, const Sum& sum) {
    if (problem.z == nullptr) return;
    const int row = first_row_of(tile, warp);
    __syncwarp();
    const int per_box = tile.per_box();
    const i64 first = tile.first_output();
    const int outputs = static_cast<int>(smaller(kBoxes * per_box, tile.own.all - first));
    T* const z = static_cast<T*>(problem.z) + tile.part.o_offset + first;
    // Two at a time where all rows allow it.
    const bool pairs = problem.z_stride % 2 == 0 && reinterpret_cast<std::uintptr_t>(z) % 4 == 0;
    const auto of = [&](int r, int o) {
      return sum(PooledSums::place(r, o / per_box, o % per_box));
    };
    for (int r = first_row; r < kWarp / 2; r += every) {
      if (row + r >= problem.B) break;
      T* const to = z + (row + r) * problem.z_stride;
      for (int o = 2 * lane(); o < outputs; o += 2 * kWarp) {
        const float low = of(r, o);
        const bool both = o + 1 < outputs;
        const float high = both ? of(r, o + 1) : 0.0f;
        store_two(to + o, pack<T>(low, high), true, both, pairs);
      }
    }
    __syncwarp();  // before the sums are those of the next tile
  }

 private:
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % kWarp; }

  __device__ static int first_row_of(const WgmmaTile<T>& tile, int warp) {
    return static_cast<int>(tile.of.row) + kWarp / 2 * warp;
  }

  // The thread's two rows, and where its columns begin within eight.
  __device__ int row(int half) const { return row_ + lane() / kBoxes + 8 * half; }
  __device__ static int within(int group) { return group * 8 + lane() % kBoxes * 2; }

  __device__ static void store_two(T* to, u32 two, bool first, bool second, bool pairs) {
    if (pairs && first && second) {
      *reinterpret_cast<u32*>(to) = two;
      return;
    }
    auto* const numbers = reinterpret_cast<std::uint16_t*>(to);
    if (first) numbers[0] = static_cast<std::uint16_t>(two);
    if (second) numbers[1] = static_cast<std::uint16_t>(two >> 16);
  }

  // The columns of a box that belong to its outputs.
  __device__ int used(int box, int chunk) const {
    const int all = tile_.own.chunks > 1 ? tile_.run(chunk) : tile_.box_columns();
    return min(all, static_cast<int>(tile_.part.N) - tile_.column(box, chunk));
  }

  // Writes a projection, of which word(i) are two neighbouring columns of the thread.
  template <class Word>
  __device__ void keep(int side, int h, int chunk, const Word& word) const {
    const ForwardPart& part = tile_.part;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (row(half) >= tile_.of.B) continue;
      T* const all = static_cast<T*>(part.kept[side]) + (h * tile_.of.B + row(half)) * part.N;
      const bool alive = tile_.of.alive(row(half), h);
#pragma unroll
      for (int box = 0; box < kBoxes; ++box) {
        T* const to = all + tile_.column(box, chunk) + within(0);
        const int left = used(box, chunk) - within(0);
        const bool pairs = reinterpret_cast<std::uintptr_t>(to) % 4 == 0;
#pragma unroll
        for (int g = 0; g < kBoxGroups; ++g) {
          const u32 two = alive ? word(2 * (box * kBoxGroups + g) + half) : 0;
          store_two(to + 8 * g, two, left > 8 * g, left > 8 * g + 1, pairs);
        }
      }
    }
  }

  // What multiplies the products that dropout leaves.
  __device__ float more() const {
    const Dropout& dropout = tile_.part.dropout;
    return dropout.active ? static_cast<float>(dropout.scale) : 1.0f;
  }

  // By side, of the thread's two rows: what multiplies projections, more() in those of a.
  __device__ void scales(const float (&squares)[2], float (&scale)[2][2]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      scale[0][half] = more();
      scale[1][half] = 1;
      if (!tile_.part.adaptive) continue;
      const int from = 2 * (lane() / kBoxes + 8 * half);
      const Scales own(true, __shfl_sync(0xffffffffu, squares[0], from),
                       __shfl_sync(0xffffffffu, squares[1], from));
#pragma unroll
      for (int side = 0; side < 2; ++side) scale[side][half] *= own.scale[side];
    }
  }

  // Of eight columns of each box: number 2 * half + i is column i of the thread in a row.
  using Products = float[kBoxes][4];

  __device__ void multiply(int h, int chunk, int group, const Packed& u, const WgmmaSums& w,
                           const float (&scale)[2][2], Products& products) const {
    const ForwardPart& part = tile_.part;
    // Of float16 there are none: with them it takes four registers more than there are.
    const bool biased =
        kWgmmaBiases<T> && (part.side[0].bias.data != nullptr || part.side[1].bias.data != nullptr);
#pragma unroll
    for (int box = 0; box < kBoxes; ++box) {
      float bias[2][2] = {};  // of a side, of a column
      if (biased) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int n = tile_.column(box, chunk) + within(group) + i;
          if (n >= tile_.part.N) continue;
#pragma unroll
          for (int side = 0; side < 2; ++side)
            bias[side][i] = tile_.of.template bias<T>(side, h, n) * (side == 0 ? more() : 1.0f);
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = 2 * (box * kBoxGroups + group) + half;
        const float2 two = unpack<T>(u[at]);
        products[box][2 * half] =
            fmaf(two.x, scale[0][half], bias[0][0]) * fmaf(w[2 * at], scale[1][half], bias[1][0]);
        products[box][2 * half + 1] = fmaf(two.y, scale[0][half], bias[0][1]) *
                                      fmaf(w[2 * at + 1], scale[1][half], bias[1][1]);
      }
    }
  }

  // The output whose columns are being added, of the lane's box.
  struct Running {
    const int run;  // columns of an output
    float sum[2] = {0, 0};
    int columns = 0, output = 0;
  };

  // Adds products to the sums of their outputs, kStep neighbouring columns at a time.
  template <int kStep>
  __device__ void sum_up(Products& products, Running& running) {
#pragma unroll
    for (int i = 0; i < 4; i += kStep) {
      if constexpr (kStep == 2)
#pragma unroll
        for (int box = 0; box < kBoxes; ++box) products[box][i] += products[box][i + 1];
      exchange(products[0][i], products[1][i], products[2][i], products[3][i]);
    }
    // What was of box b is now of the lane's own: its columns 2 * b and 2 * b + 1.
#pragma unroll
    for (int c = 0; c < 8; c += kStep) {
#pragma unroll
      for (int half = 0; half < 2; ++half) running.sum[half] += products[c / 2][2 * half + c % 2];
      running.columns += kStep;
      if (running.columns < running.run) continue;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (running.output < tile_.per_box()) sums_.add(running.output, half, running.sum[half]);
        running.sum[half] = 0;
      }
      ++running.output;
      running.columns = 0;
    }
  }

  const ForwardProblem& problem_;
  const WgmmaTile<T>& tile_;
  const int row_;  // the warp's first
  PooledSums sums_;
};

}  // namespace fbp::cuda
