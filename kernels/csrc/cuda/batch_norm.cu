// Batch normalisation with the statistics of the batch, and an optional ReLU after it:
//
//   y = relu((x - mean) scale + bias)   with scale = weight r and r = (variance + eps)^-1/2
//
// and, with g the gradient of what goes into the ReLU and n the values of a channel:
//
//   d_bias = sum of g,  d_weight = r * sum of g (x - mean),
//   dx = scale (g - d_bias / n - (x - mean) r d_weight / n)
//
// Three launches each way: blocks add up shares of the channels, a warp for each channel adds up
// what they found, blocks write the results. What a thread adds up of a share it adds up in single
// precision, some values at a time, in the forward their differences from the mean of the first of
// them; all else is in double precision, where no offset cancels. Shares follow from sizes alone,
// and so do the bits.
//
// Memory is read by whole vectors, each a slot. With the channels apart, a channel is a sequence of
// slots through all its planes, and a plane that does not begin where a vector may begins within
// its first one; with the channels together, a slot is some channels of one position.

#include <cstring>

#include "cuda/kernels.h"
#include "cuda/vectors.h"

namespace fbp::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kFinishThreads = 128;
// Shares are so long that there are at most kBlocks of them, but no longer than kMostTiles tiles.
constexpr i64 kBlocks = 1024, kMostTiles = 16;

// Division of 32-bit numbers by one that the host knows: a multiplication by 2^64 / divisor,
// rounded up (Lemire, Kaser and Kurz 2019, "Faster remainder by direct computation").
struct Divider {
  u64 high = 0;  // 32 bits, and one more for a divisor of 1
  u32 low = 0, divisor = 1;

  Divider() = default;
  explicit Divider(i64 by) : divisor(static_cast<u32>(by)) {
    const u64 below = ~u64{0} / divisor;  // the product less 1
    low = static_cast<u32>(below) + 1;
    high = (below >> 32) + (low == 0 ? 1 : 0);
  }
  __device__ u32 quotient(u32 x) const {
    return static_cast<u32>((high * x + (u64{low} * x >> 32)) >> 32);
  }
  __device__ u32 remainder(u32 x) const { return x - quotient(x) * divisor; }
};

struct Norm {
  const void* x;
  const void* dy;
  void* out;
  const i64* lengths;
  const float* weight;
  const float* bias;
  double* mean;
  double* variance;
  float* d_weight;
  float* d_bias;
  double* sums;   // (channels, shares, 2)
  float* slopes;  // (kSlopes, channels), what dx takes beside the forward's parameters
  double eps;
  i64 images, positions;
  int channels;
  bool relu, together;
  bool whole;                   // accesses are of whole vectors, where all of one is meant
  Divider length, rows, slots;  // of a row, of an image, of a plane
  // A lane is a channel or, with the channels together, some vectors of them.
  int lanes, vectors;
  i64 total, share;  // slots, or positions, of a lane, and of a block
  i64 shares;        // of a lane
};

constexpr int kForwardParameters = 3, kSlopes = 3;

struct Slot {
  i64 at;             // of the first number
  u32 there, counts;  // numbers of it that exist, and that count, a bit for each
};

__device__ inline i64 length_of(const Norm& norm, i64 image) {
  return larger(0, smaller(norm.lengths[image], norm.length.divisor));
}

// ---- which slots a thread takes: kSlots at a time, a tile ----

// Block `index` of a launch: a lane's share. Lanes come first: what blocks beside each other read
// lies beside each other.
struct Share {
  int lane;
  i64 number, begin, end;

  __device__ Share(const Norm& norm, i64 index)
      : lane(static_cast<int>(index % norm.lanes)),
        number(index / norm.lanes),
        begin(number * norm.share),
        end(smaller(begin + norm.share, norm.total)) {}
};

template <class T, int kTileSlots>
class Apart {
 public:
  static constexpr int kSlots = kTileSlots, kChannels = 1;
  static constexpr int kPerTile = kThreads * kSlots;  // slots of a block

  __device__ Apart(const Norm& norm, i64 index)
      : norm_(norm),
        share_(norm, index),
        image_(share_.begin / norm.slots.divisor),
        first_(static_cast<u32>(share_.begin % norm.slots.divisor)) {}

  __device__ const Share& share() const { return share_; }
  __device__ int first_channel() const { return share_.lane; }  // of the block
  __device__ int vector() const { return 0; }                   // of the thread, among the block's
  __device__ int row() const { return static_cast<int>(threadIdx.x); }
  __device__ int rows() const { return kThreads; }
  __device__ int width() const { return 1; }                     // vectors of the block
  __device__ static constexpr int channel_of(int) { return 0; }  // of a number of a slot
  __device__ static int count(u32 counts) { return __popc(counts); }
  __device__ static bool does_count(u32 counts, int i) { return (counts >> i & 1) != 0; }

  template <class F>
  __device__ void over_tiles(const F& work) const {
    for (i64 tile = share_.begin; tile < share_.end; tile += kPerTile) {
      Slot slots[kSlots];
#pragma unroll
      for (int i = 0; i < kSlots; ++i) slots[i] = slot(tile + i * kThreads + threadIdx.x);
      work(slots);
    }
  }

 private:
  __device__ Slot slot(i64 index) const {
    if (index >= share_.end) return Slot{0, 0, 0};
    const u32 on = first_ + static_cast<u32>(index - share_.begin);
    const u32 images = norm_.slots.quotient(on);
    const i64 image = image_ + images,
              plane = (image * norm_.channels + share_.lane) * norm_.positions;
    const int before = norm_.whole ? static_cast<int>(plane) & (kVector<T> - 1) : 0;
    const i64 position = i64{on - images * norm_.slots.divisor} * kVector<T> - before;
    Slot slot{plane + position, kAll<T>, 0};
    if (position < 0) slot.there = slot.there << before & kAll<T>;
    const i64 left = norm_.positions - position;
    if (left < kVector<T>) slot.there &= left > 0 ? (1u << left) - 1 : 0;
    slot.counts = slot.there;
    if (norm_.lengths != nullptr) slot.counts &= within(position, length_of(norm_, image));
    return slot;
  }

  // Which numbers from a position on lie within their row's length.
  __device__ u32 within(i64 position, i64 length) const {
    u32 column = norm_.length.remainder(static_cast<u32>(larger(position, 0))), within = 0;
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) {
      within |= (column < length ? 1u : 0u) << i;
      if (position + i >= 0 && ++column == norm_.length.divisor) column = 0;
    }
    return within;
  }

  const Norm& norm_;
  const Share share_;
  const i64 image_;  // of the first slot, and its number in the plane
  const u32 first_;
};

template <class T, int kTileSlots>
class Together {
 public:
  static constexpr int kSlots = kTileSlots, kChannels = kVector<T>;

  __device__ Together(const Norm& norm, i64 index)
      : norm_(norm),
        share_(norm, index),
        vector_(static_cast<int>(threadIdx.x) % norm.vectors),
        row_(static_cast<int>(threadIdx.x) / norm.vectors),
        image_(share_.begin / norm.positions) {
    const i64 position = share_.begin % norm.positions;
    row_of_image_ = static_cast<u32>(position / norm.length.divisor);
    column_ = static_cast<u32>(position % norm.length.divisor);
    const int left = norm.channels - first_channel() - vector_ * kVector<T>;
    there_ = row_ >= rows() || left <= 0 ? 0 : left >= kVector<T> ? kAll<T> : (1u << left) - 1;
  }

  __device__ const Share& share() const { return share_; }
  __device__ int first_channel() const { return share_.lane * norm_.vectors * kVector<T>; }
  __device__ int vector() const { return vector_; }
  __device__ int row() const { return row_; }
  __device__ int rows() const { return kThreads / norm_.vectors; }
  __device__ int width() const { return norm_.vectors; }
  __device__ static constexpr int channel_of(int i) { return i; }
  // Of a position all channels count, or none; what those have that do not exist goes nowhere.
  __device__ static int count(u32 counts) { return static_cast<int>(counts & 1); }
  __device__ static bool does_count(u32 counts, int) { return (counts & 1) != 0; }

  template <class F>
  __device__ void over_tiles(const F& work) const {
    for (i64 tile = share_.begin; tile < share_.end; tile += rows() * kSlots) {
      Slot slots[kSlots];
#pragma unroll
      for (int i = 0; i < kSlots; ++i) slots[i] = slot(tile + i * rows() + row_);
      work(slots);
    }
  }

 private:
  __device__ Slot slot(i64 position) const {
    if (position >= share_.end || there_ == 0) return Slot{0, 0, 0};
    Slot slot{position * norm_.channels + first_channel() + vector_ * kVector<T>, there_, there_};
    if (norm_.lengths != nullptr) {
      const u32 on = column_ + static_cast<u32>(position - share_.begin);
      const u32 rows = norm_.length.quotient(on);
      const i64 image = image_ + norm_.rows.quotient(row_of_image_ + rows);
      if (on - rows * norm_.length.divisor >= length_of(norm_, image)) slot.counts = 0;
    }
    return slot;
  }

  const Norm& norm_;
  const Share share_;
  const int vector_, row_;
  const i64 image_;                    // of the first position
  u32 row_of_image_, column_, there_;  // its row in the image and column in the row; channels
};

// ---- values ----

// Whether numbers of a slot are read or written in one access.
template <class T>
__device__ bool is_whole(const Norm& norm, const Slot& slot) {
  return norm.whole && slot.there == kAll<T>;
}

template <class T>
__device__ Vector<T> read(const Norm& norm, const void* from, const Slot& slot) {
  const T* const at = static_cast<const T*>(from) + slot.at;
  return load_vector(at, slot.counts, is_whole<T>(norm, slot) && slot.counts != 0);
}

// For the last time: in the cache it is the first to give way, to what is written, and not what is
// still to be read.
template <class T>
__device__ Vector<T> read_last(const Norm& norm, const void* from, const Slot& slot) {
  if (!is_whole<T>(norm, slot) || slot.counts == 0) return read<T>(norm, from, slot);
  const uint4 words = __ldcs(reinterpret_cast<const uint4*>(static_cast<const T*>(from) + slot.at));
  Vector<T> vector;
  memcpy(&vector, &words, sizeof vector);
  return vector;
}

// The first value of a channel that counts, 0 where there is none.
template <class T>
__device__ float some_value(const Norm& norm, int channel) {
  i64 image = 0;
  if (norm.lengths != nullptr)
    while (image < norm.images && length_of(norm, image) == 0) ++image;
  if (image == norm.images) return 0;
  const i64 at = norm.together ? image * norm.positions * norm.channels + channel
                               : (image * norm.channels + channel) * norm.positions;
  return widen(static_cast<const T*>(norm.x)[at]);
}

// The parameters of the channels of a block, in shared memory: the mean, scale and bias, and for dx
// the slopes. What the mean loses when it is rounded is made up for by the bias.
template <class T, int kCount>
class Parameters {
 public:
  // For all threads of a block.
  template <class Place>
  __device__ void fill(const Norm& norm, const Place& place) {
    const int most = place.width() * Place::kChannels;
    for (int i = static_cast<int>(threadIdx.x); i < most; i += kThreads) {
      const int c = place.first_channel() + i;
      if (c >= norm.channels) continue;
      const auto put = [&](int which, double value) {
        value_[which][i % Place::kChannels][i / Place::kChannels] = static_cast<float>(value);
      };
      const double mean = norm.mean[c], rest = mean - double{static_cast<float>(mean)};
      const float scale = static_cast<float>(norm.weight[c] / sqrt(norm.variance[c] + norm.eps));
      put(0, mean);
      put(1, scale);
      put(2, norm.bias[c] - rest * scale);
      for (int j = kForwardParameters; j < kCount; ++j)
        put(j, norm.slopes[i64{j - kForwardParameters} * norm.channels + c]);
    }
    __syncthreads();
  }

  __device__ float operator()(int which, int i, int vector) const {
    return value_[which][i][vector];
  }

 private:
  float value_[kCount][kVector<T>][kWarp];
};

// What goes into the ReLU; the same operations wherever it is asked for.
__device__ inline float normalised(float centred, float scale, float bias) {
  return fmaf(centred, scale, bias);
}

// ---- sums of shares ----

// work(slot, number in it), for the values of a tile's channel that count.
template <class T, class Place, class F>
__device__ void over_values(const Slot (&slots)[Place::kSlots], int channel, const F& work) {
#pragma unroll
  for (int s = 0; s < Place::kSlots; ++s)
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i)
      if (Place::channel_of(i) == channel && Place::does_count(slots[s].counts, i)) work(s, i);
}

// Sums over the rows of a block, which are then with row 0.
template <int kSums>
__device__ void add_rows(double (&own)[kSums], int row, int rows, int width, double* memory) {
  double* const mine = memory + threadIdx.x;
#pragma unroll
  for (int k = 0; k < kSums; ++k) mine[k * kThreads] = own[k];
  __syncthreads();
  for (int left = rows; left > 1;) {
    const int half = (left + 1) / 2;
    if (row < left - half) {
#pragma unroll
      for (int k = 0; k < kSums; ++k) mine[k * kThreads] += mine[k * kThreads + half * width];
    }
    __syncthreads();
    left = half;
  }
#pragma unroll
  for (int k = 0; k < kSums; ++k) own[k] = mine[k * kThreads];
}

// What a thread adds up of its values: of the differences from a mean, they and their squares. The
// mean is that of its first tile, which is not far from any other: of all its values that is a part
// worth mentioning.
template <class T, class Place>
struct Values {
  float mean[Place::kChannels] = {}, off[Place::kChannels] = {}, squares[Place::kChannels] = {};
  int count = 0;

  __device__ void add(const Norm& norm, const Slot (&slots)[Place::kSlots]) {
    Vector<T> x[Place::kSlots];
    int more = 0;
#pragma unroll
    for (int s = 0; s < Place::kSlots; ++s) {
      x[s] = read<T>(norm, norm.x, slots[s]);
      more += Place::count(slots[s].counts);
    }
    if (count == 0 && more > 0) {
      const float share = 1 / static_cast<float>(more);
#pragma unroll
      for (int k = 0; k < Place::kChannels; ++k) {
        over_values<T, Place>(slots, k, [&](int s, int i) { mean[k] += widen(x[s].of[i]); });
        mean[k] *= share;
      }
    }
    count += more;
#pragma unroll
    for (int k = 0; k < Place::kChannels; ++k) {
      float sum = 0, square = 0;
      over_values<T, Place>(slots, k, [&](int s, int i) {
        const float d = widen(x[s].of[i]) - mean[k];
        sum += d;
        square = fmaf(d, d, square);
      });
      off[k] += sum;
      squares[k] += square;
    }
  }

  // The same, told from another origin than the mean.
  __device__ void tell_from(double origin, int k, double* sums) const {
    const double from = double{mean[k]} - origin, sum = off[k];
    sums[0] = sum + count * from;
    sums[1] = double{squares[k]} + from * (2 * sum + count * from);
  }
};

// And of its gradients: g, and g times what x is off its mean.
template <class T, class Place>
struct Gradients {
  float sum[Place::kChannels] = {}, product[Place::kChannels] = {};

  template <class P>
  __device__ void add(const Norm& norm, const Slot (&slots)[Place::kSlots], const P& p,
                      int vector) {
    Vector<T> x[Place::kSlots], dy[Place::kSlots];
#pragma unroll
    for (int s = 0; s < Place::kSlots; ++s) {
      x[s] = read<T>(norm, norm.x, slots[s]);
      dy[s] = read<T>(norm, norm.dy, slots[s]);
    }
#pragma unroll
    for (int k = 0; k < Place::kChannels; ++k) {
      const float mean = p(0, k, vector), scale = p(1, k, vector), bias = p(2, k, vector);
      float g_sum = 0, g_product = 0;
      over_values<T, Place>(slots, k, [&](int s, int i) {
        const float centred = widen(x[s].of[i]) - mean;
        if (norm.relu && normalised(centred, scale, bias) <= 0) return;
        const float g = widen(dy[s].of[i]);
        g_sum += g;
        g_product = fmaf(g, centred, g_product);
      });
      sum[k] += g_sum;
      product[k] += g_product;
    }
  }
};

template <class T, class Place, bool kBackward>
__global__ __launch_bounds__(kThreads, 2) void batch_norm_sums_kernel(const Norm norm) {
  constexpr int kChannels = Place::kChannels;
  __shared__ double memory[2 * kChannels * kThreads];
  const Place place(norm, blockIdx.x);
  const int first = place.first_channel() + place.vector() * kChannels;
  double sums[2 * kChannels];
  if constexpr (kBackward) {
    __shared__ Parameters<T, kForwardParameters> parameters;
    parameters.fill(norm, place);
    Gradients<T, Place> own;
    place.over_tiles([&](const Slot(&slots)[Place::kSlots]) {
      own.add(norm, slots, parameters, place.vector());
    });
#pragma unroll
    for (int k = 0; k < kChannels; ++k) {
      sums[2 * k] = own.sum[k];
      sums[2 * k + 1] = own.product[k];
    }
  } else {
    Values<T, Place> own;
    place.over_tiles([&](const Slot(&slots)[Place::kSlots]) { own.add(norm, slots); });
#pragma unroll
    for (int k = 0; k < kChannels; ++k)
      own.tell_from(first + k < norm.channels ? some_value<T>(norm, first + k) : 0.0f, k,
                    sums + 2 * k);
  }
  add_rows(sums, place.row(), place.rows(), place.width(), memory);
  if (place.row() > 0) return;
#pragma unroll
  for (int k = 0; k < kChannels; ++k) {
    if (first + k >= norm.channels) continue;
    double* const to = norm.sums + (i64{first + k} * norm.shares + place.share().number) * 2;
    to[0] = sums[2 * k];
    to[1] = sums[2 * k + 1];
  }
}

// ---- of all shares ----

template <class S>
__device__ S sum_of_warp(S x) {
#pragma unroll
  for (int bit = kWarp / 2; bit > 0; bit /= 2) x += __shfl_xor_sync(0xffffffffu, x, bit);
  return x;
}

// How many values of a channel count.
__device__ inline i64 count_values(const Norm& norm, int lane) {
  if (norm.lengths == nullptr) return norm.images * norm.positions;
  i64 columns = 0;
  for (i64 image = lane; image < norm.images; image += kWarp) columns += length_of(norm, image);
  return sum_of_warp(columns) * norm.rows.divisor;
}

__device__ inline void finish_forward(const Norm& norm, int c, double share, double origin,
                                      double sum, double squares) {
  const double mean = sum * share, variance = squares * share - mean * mean;
  norm.mean[c] = origin + mean;
  norm.variance[c] = variance < 0 ? 0 : variance;  // NaN stays
}

__device__ inline void finish_backward(const Norm& norm, int c, double share, double sum,
                                       double product) {
  const double mean = norm.mean[c], rest = mean - double{static_cast<float>(mean)};
  const double r = 1 / sqrt(norm.variance[c] + norm.eps);
  const double centred = product - rest * sum, slope = centred * r * r * share;
  norm.d_bias[c] = static_cast<float>(sum);
  norm.d_weight[c] = static_cast<float>(centred * r);
  // What is subtracted from a gradient: a constant, a slope, and what the constant and the mean
  // lose when they are rounded.
  const float constant = static_cast<float>(sum * share);
  float* const to = norm.slopes + c;
  to[0] = constant;
  to[i64{1} * norm.channels] = static_cast<float>(slope);
  to[i64{2} * norm.channels] = static_cast<float>(sum * share - double{constant} - rest * slope);
}

template <class T, bool kBackward>
__global__ __launch_bounds__(kFinishThreads) void batch_norm_finish_kernel(const Norm norm) {
  const i64 thread = i64{blockIdx.x} * kFinishThreads + threadIdx.x;
  if (thread / kWarp >= norm.channels) return;
  const int c = static_cast<int>(thread / kWarp), lane = static_cast<int>(thread % kWarp);
  const double* const sums = norm.sums + i64{c} * norm.shares * 2;
  double first = 0, second = 0;
#pragma unroll 4
  for (i64 i = lane; i < norm.shares; i += kWarp) {
    first += sums[2 * i];
    second += sums[2 * i + 1];
  }
  first = sum_of_warp(first);
  second = sum_of_warp(second);
  const i64 count = count_values(norm, lane);
  if (lane > 0) return;
  const double share = count > 0 ? 1 / static_cast<double>(count) : 0;
  if constexpr (kBackward) {
    finish_backward(norm, c, share, first, second);
  } else {
    finish_forward(norm, c, share, some_value<T>(norm, c), first, second);
  }
}

// ---- results ----

template <class T, class Place, bool kBackward>
__global__ __launch_bounds__(kThreads, 2) void batch_norm_write_kernel(const Norm norm) {
  __shared__ Parameters<T, kForwardParameters + (kBackward ? kSlopes : 0)> p;
  // Backwards: what the sums read last is still in the cache.
  const Place place(norm, gridDim.x - 1 - blockIdx.x);
  p.fill(norm, place);
  place.over_tiles([&](const Slot(&slots)[Place::kSlots]) {
    Vector<T> x[Place::kSlots], dy[Place::kSlots];
#pragma unroll
    for (int s = 0; s < Place::kSlots; ++s) {
      x[s] = read_last<T>(norm, norm.x, slots[s]);
      if constexpr (kBackward) dy[s] = read_last<T>(norm, norm.dy, slots[s]);
    }
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) {
      const int k = Place::channel_of(i), vector = place.vector();
      const float mean = p(0, k, vector), scale = p(1, k, vector), bias = p(2, k, vector);
#pragma unroll
      for (int s = 0; s < Place::kSlots; ++s) {
        const float centred = widen(x[s].of[i]) - mean, y = normalised(centred, scale, bias);
        float value = norm.relu && y < 0 ? 0.0f : y;  // NaN stays
        if constexpr (kBackward) {
          const float g = norm.relu && y <= 0 ? 0.0f : widen(dy[s].of[i]);
          // Of few values the gradients nearly cancel: one fused subtraction first, then what was
          // lost.
          value = scale * (fmaf(-centred, p(4, k, vector), g - p(3, k, vector)) - p(5, k, vector));
        }
        x[s].of[i] = narrow<T>(Place::does_count(slots[s].counts, i) ? value : 0.0f);
      }
    }
#pragma unroll
    for (int s = 0; s < Place::kSlots; ++s)
      store_vector(static_cast<T*>(norm.out) + slots[s].at, x[s], slots[s].there,
                   is_whole<T>(norm, slots[s]));
  });
}

// ---- the host ----

Norm describe(const BatchNormProblem& problem) {
  constexpr i64 kMost = i64{1} << 31;
  Norm norm{};
  norm.x = problem.x;
  norm.dy = problem.dy;
  norm.out = problem.out;
  norm.lengths = problem.lengths;
  norm.weight = static_cast<const float*>(problem.weight);
  norm.bias = static_cast<const float*>(problem.bias);
  norm.mean = problem.mean;
  norm.variance = problem.variance;
  norm.d_weight = static_cast<float*>(problem.d_weight);
  norm.d_bias = static_cast<float*>(problem.d_bias);
  norm.eps = problem.eps;
  norm.relu = problem.relu;
  norm.together = problem.channels_last;
  norm.images = problem.images;
  norm.positions = problem.rows * problem.row_length;
  if (norm.positions >= kMost || problem.channels >= kMost)
    throw std::runtime_error(
        "batch_norm: the CUDA kernels take less than 2^31 channels, and positions of each");
  norm.channels = static_cast<int>(problem.channels);
  norm.length = Divider(problem.row_length);
  norm.rows = Divider(problem.rows);
  return norm;
}

// What lies where vectors may.
template <class T>
void find_slots(Norm& norm) {
  norm.whole =
      is_vector_aligned(norm.x) && is_vector_aligned(norm.dy) && is_vector_aligned(norm.out);
  if (norm.together) {
    norm.whole = norm.whole && norm.channels % kVector<T> == 0;
    const i64 vectors = ceil_div(norm.channels, kVector<T>);
    norm.lanes = static_cast<int>(ceil_div(vectors, kWarp));
    norm.vectors = static_cast<int>(ceil_div(vectors, norm.lanes));
    norm.total = norm.images * norm.positions;
  } else {
    // Planes that begin anywhere reach into a vector more.
    const bool anywhere = norm.whole && norm.positions % kVector<T> != 0;
    const i64 reach = norm.positions + (anywhere ? kVector<T> - 1 : 0);
    norm.lanes = norm.channels;
    norm.vectors = 1;
    norm.slots = Divider(ceil_div(reach, kVector<T>));
    norm.total = norm.images * norm.slots.divisor;
  }
}

// How many slots a thread has at hand, in a tile, is what registers have room for.
template <class T, bool kBackward, template <class, int> class Place, int kToAdd, int kToWrite>
void launch_all(Norm norm, const Context& context) {
  const i64 per_tile = i64{kThreads} / norm.vectors * kToAdd;
  const i64 tiles = ceil_div(norm.total, per_tile);
  norm.share = per_tile * smaller(ceil_div(tiles * norm.lanes, kBlocks), kMostTiles);
  norm.shares = ceil_div(norm.total, norm.share);
  const i64 channels = norm.channels;
  norm.sums =
      static_cast<double*>(context.scratch(channels * norm.shares * 2 * i64{sizeof(double)}));
  if (kBackward)
    norm.slopes = static_cast<float*>(context.scratch(channels * kSlopes * i64{sizeof(float)}));

  const dim3 grid = grid_of(norm.lanes * norm.shares);
  FBP_LAUNCH((batch_norm_sums_kernel<T, Place<T, kToAdd>, kBackward>), grid, kThreads, 0,
             context.stream, norm);
  FBP_LAUNCH((batch_norm_finish_kernel<T, kBackward>),
             grid_of(ceil_div(channels, kFinishThreads / kWarp)), kFinishThreads, 0, context.stream,
             norm);
  if (norm.out == nullptr) return;
  FBP_LAUNCH((batch_norm_write_kernel<T, Place<T, kToWrite>, kBackward>), grid, kThreads, 0,
             context.stream, norm);
}

template <bool kBackward>
void run(const BatchNormProblem& problem, const Context& context) {
  with_type(problem.dtype, [&](auto type) {
    using T = decltype(type);
    Norm norm = describe(problem);
    find_slots<T>(norm);
    if (!norm.together) {
      launch_all<T, kBackward, Apart, 4, 2>(norm, context);
    } else if constexpr (kBackward) {
      launch_all<T, kBackward, Together, 4, 2>(norm, context);
    } else {
      launch_all<T, kBackward, Together, kVector<T>, 4>(norm, context);
    }
  });
}

}  // namespace

void batch_norm_forward(const BatchNormProblem& problem, const Context& context) {
  run<false>(problem, context);
}

void batch_norm_backward(const BatchNormProblem& problem, const Context& context) {
  run<true>(problem, context);
}

}  // namespace fbp::cuda
