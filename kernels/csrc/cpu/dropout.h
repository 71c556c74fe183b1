// Dropout with the numbers that PyTorch's generator gives on a CPU, one for each element in the
// order of memory:
//
//   y = x * (r < 1 - p ? 1 / (1 - p) : 0)
//
// r is a multiple of 2^-53 made of two words of MT19937 (Matsumoto and Nishimura 1998, "Mersenne
// twister"), the first one above the second. A block of words follows from the one before, in a
// fraction of the time that it takes to make numbers of the words. So each thread goes through all
// blocks before its own part.

#pragma once

#include "memory.h"

namespace fbp::FBP_ISA {

// The words from a block on, several blocks at a time.
class Twister {
 public:
  static constexpr i64 kBlock = 624;

  explicit Twister(const i64* block) {
    for (i64 i = 0; i < kBlock; ++i) words_[i] = static_cast<u32>(block[i]);
    follow();
  }

  // Word `index` counted from the first of that block, and those after it; no index may be below
  // one that was asked for before.
  const u32* words(i64 index) {
    while (index >= start_ + kAhead) {
      __builtin_memcpy(words_, words_ + kAhead, kBlock * sizeof(u32));
      start_ += kAhead;
      follow();
    }
    return words_ + (index - start_);
  }

  // How many of them are there, a block or more.
  i64 available(i64 index) const { return start_ + kAhead + kBlock - index; }

  // The block with word `index`, which is not above what is available.
  const u32* block(i64 index) const { return words_ + (index - start_) / kBlock * kBlock; }

 private:
  static constexpr i64 kAhead = 6 * kBlock;                        // all blocks that follow: 15 KB
  static constexpr i64 kMiddle = 397, kSlack = 2 * kWidth<float>;  // read past the end

  using Bits = Simd<float>::Bits;

  static Bits load_bits(const u32* from) {
    Bits x;
    __builtin_memcpy(&x, from, sizeof x);
    return x;
  }

  void follow() {
    for (i64 i = 0; i < kAhead; i += kWidth<float>) {
      const Bits high = load_bits(words_ + i), low = load_bits(words_ + i + 1);
      const Bits mixed = (high & 0x80000000u) | (low & 0x7fffffffu);
      const Bits next =
          load_bits(words_ + i + kMiddle) ^ (mixed >> 1) ^ (-(low & 1u) & 0x9908b0dfu);
      __builtin_memcpy(words_ + i + kBlock, &next, sizeof next);
    }
  }

  i64 start_ = 0;
  alignas(64) u32 words_[kAhead + kBlock + kSlack] = {};
};

template <class T>
class DropoutOf {
 public:
  explicit DropoutOf(const DropoutProblem& problem)
      : problem_(problem),
        used_(Twister::kBlock + 1 - static_cast<std::int32_t>(problem.state[kLeft])),
        limit_(static_cast<i64>(__builtin_ceil((1 - problem.p) * 0x1p53))) {
    // As PyTorch rounds what it multiplies by.
    if (problem.p < 1) kept_ = widen(narrow<T>(S{1} / static_cast<S>(1 - problem.p)));
  }

  void run() const {
    const int threads = threads_for(15.0 * static_cast<double>(problem_.count));
    const i64 each = round_up(ceil_div(problem_.count, threads), 64);
    parallel(threads, threads, [&](int, i64 part) {
      const i64 end = smaller(problem_.count, (part + 1) * each);
      if (part * each < end) multiply(part * each, end);
    });
  }

 private:
  using S = typename AccumulateIn<T>::type;
  using V = Vec<S>;
  using Words = Simd<float>::Bits;
  using Pairs = Simd<double>::Bits;
  using Mask = Simd<double>::Int;
  static constexpr i64 W = kWidth<S>;
  // Where a state has what: how many words of the block are left, and one, in the lower half (in
  // the upper one is whether it was seeded), how many were used, and the block.
  static constexpr int kLeft = 1, kUsed = 2, kWords = 3;

  void multiply(i64 from, i64 end) const {
    Twister twister(problem_.state + kWords);
    const T* const x = static_cast<const T*>(problem_.x);
    T* const y = static_cast<T*>(problem_.out);
    for (i64 i = from; i < end;) {
      const i64 index = used_ + 2 * i;
      const u32* words = twister.words(index);
      const i64 stop = smaller(end, i + twister.available(index) / 2);
      for (; i + W <= stop; i += W, words += 2 * W) store(y + i, load(x + i) * factors(words));
      if (i < stop) store_first<T>(y + i, load_first(x + i, stop - i) * factors(words), stop - i);
      i = stop;
    }
    if (end == problem_.count && problem_.after) leave(twister, used_ + 2 * end);
  }

  // What W elements are multiplied by.
  V factors(const u32* words) const {
    const Mask first = keeps(words);
    if constexpr (sizeof(S) == sizeof(double)) {
      return where<S>(reinterpret<Pairs>(first), splat<S>(kept_));
    } else {
      const V lanes = even_lanes(reinterpret<V>(first), reinterpret<V>(keeps(words + W)),
                                 typename FirstIndices<W>::type{});
      return where<S>(reinterpret<Words>(lanes), splat<S>(kept_));
    }
  }

  // All bits of each element that is kept.
  Mask keeps(const u32* words) const {
    Words w;
    __builtin_memcpy(&w, words, sizeof w);
    w ^= w >> 11;
    w ^= w << 7 & 0x9d2c5680u;
    w ^= w << 15 & 0xefc60000u;
    w ^= w >> 18;
    const Pairs pair = reinterpret<Pairs>(w);
    return reinterpret<Mask>((pair & 0x1fffffu) << 32 | pair >> 32) < limit_;
  }

  template <int... I>
  static V even_lanes(V x, V y, Indices<I...>) {
#if defined(__clang__)
    return __builtin_shufflevector(x, y, (2 * I)...);
#else
    return __builtin_shuffle(x, y, typename Simd<S>::Int{(2 * I)...});
#endif
  }

  // The state after `index` words. A block of which all are used stays until the next is needed.
  void leave(const Twister& twister, i64 index) const {
    i64* const after = problem_.after;
    const u32* const block = twister.block(index - 1);
    for (i64 i = 0; i < Twister::kBlock; ++i) after[kWords + i] = block[i];
    after[kUsed] = index - (index - 1) / Twister::kBlock * Twister::kBlock;
    constexpr i64 lower = 0xffffffff;
    after[kLeft] = (problem_.state[kLeft] & ~lower) | (Twister::kBlock + 1 - after[kUsed]);
  }

  const DropoutProblem& problem_;
  i64 used_;  // words of the first block
  i64 limit_;
  S kept_{0};
};

}  // namespace fbp::FBP_ISA
