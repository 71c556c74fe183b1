// y = x s^-beta with s = k + alpha / size * sum of x_j^2 over the channels j from c - size / 2 to
// c + (size - 1) / 2 of the same position, and
//
//   dx_c = dy_c s_c^-beta - 2 alpha beta / size * x_c * sum over windows j that hold c of
//          dy_j x_j s_j^(-beta - 1)
//
// A thread goes down the channels of one position, the last of them, one window, at hand: in
// registers where the window has the usual size, else in shared memory. Where the channels of a
// position lie apart, neighbouring threads read neighbouring positions from global memory; where
// they lie together, a block brings a tile of positions by channels into shared memory, and takes
// the results out by the same way.

#include <cmath>

#include "common.h"
#include "cuda/kernels.h"

namespace fbp::cuda {

namespace {

constexpr int kThreads = 128;  // of a block, a position each
constexpr int kUsualSize = 5;
constexpr int kUsualBelow = kUsualSize / 2, kUsualAbove = (kUsualSize - 1) / 2;
constexpr int kOwn = 32;  // channels that a thread writes

struct Lrn {
  const void* x;
  const void* dy;
  void* out;
  i64 image_stride, channel_stride, position_stride;
  i64 positions, position_blocks;
  int channels, channel_blocks;
  int own;           // channels that a thread writes
  int below, above;  // channels of a window before and after its own
  float scale, slope, beta, k;
  bool relu, roots;
};

// s^-beta for s > 0; with `roots`, beta is 0.75.
__device__ inline float power(float s, float beta, bool roots) {
  if (!roots) return powf(s, -beta);
  // From estimates, which one step of Newton's on s^3 y^4 = 1 makes exact; of infinity that is NaN.
  const float root = rsqrtf(s);
  if (root == 0) return 0;
  const float y = root * rsqrtf(root) * root;
  const float t = s * y * y;
  return fmaf(0.25f * y, fmaf(-s * t, t, 1.0f), y);
}

__device__ inline float rectify(float x, bool relu) {
  return relu && x < 0 ? 0.0f : x;
}  // NaN stays

// The last numbers of a sequence, as many as a window has, the oldest first: in registers, where
// the number is known.
template <int kSize>
class Window {
 public:
  __device__ explicit Window(const Lrn&, int) {}
  __device__ void push(float x) {
#pragma unroll
    for (int i = 0; i + 1 < kSize; ++i) values_[i] = values_[i + 1];
    values_[kSize - 1] = x;
  }
  __device__ float operator[](int i) const { return values_[i]; }
  __device__ static constexpr int size() { return kSize; }
  __device__ static constexpr int below() { return kSize / 2; }
  __device__ static constexpr int above() { return (kSize - 1) / 2; }

 private:
  float values_[kSize] = {};
};

// In shared memory, a ring for each thread.
template <>
class Window<0> {
 public:
  // `which`: of the windows of a thread.
  __device__ Window(const Lrn& lrn, int which)
      : below_(lrn.below),
        above_(lrn.above),
        ring_(reinterpret_cast<float*>(shared_memory()) +
              static_cast<int>(blockDim.x) * size() * which + threadIdx.x) {
    for (int i = 0; i < size(); ++i) push(0);
  }
  __device__ void push(float x) {
    ring_[oldest_ * static_cast<int>(blockDim.x)] = x;
    if (++oldest_ == size()) oldest_ = 0;
  }
  __device__ float operator[](int i) const {
    const int place = oldest_ + i;
    return ring_[(place < size() ? place : place - size()) * static_cast<int>(blockDim.x)];
  }
  __device__ int size() const { return below_ + above_ + 1; }
  __device__ int below() const { return below_; }
  __device__ int above() const { return above_; }

 private:
  int below_, above_, oldest_ = 0;
  float* ring_;
};

template <int kSize>
__device__ float scale_of(const Lrn& lrn, const Window<kSize>& x) {
  float squares = 0;
#pragma unroll
  for (int i = 0; i < x.size(); ++i) squares = fmaf(x[i], x[i], squares);
  return fmaf(lrn.scale, squares, lrn.k);
}

// y of the channels from `first` to `end` of a position, of which x(channel) reads the input, 0
// where there is none, and write(channel, y) takes what comes of it.
template <int kSize, class X, class Write>
__device__ void forward_column(const Lrn& lrn, int first, int end, const X& x, const Write& write) {
  Window<kSize> window(lrn, 0);
  for (int c = first - window.below(); c < first + window.above(); ++c)
    window.push(rectify(x(c), lrn.relu));
#pragma unroll kUsualSize
  for (int c = first; c < end; ++c) {
    window.push(rectify(x(c + window.above()), lrn.relu));
    write(c, window[window.below()] * power(scale_of(lrn, window), lrn.beta, lrn.roots));
  }
}

// dx, likewise. The windows that hold channel c are those of the channels from c - above to
// c + below, so c is done when the last of these is.
template <int kSize, class X, class Dy, class Write>
__device__ void backward_column(const Lrn& lrn, int first, int end, const X& x, const Dy& dy,
                                const Write& write) {
  Window<kSize> window(lrn, 0), terms(lrn, 1), direct(lrn, 2);
  const int start = first - window.above();
  for (int c = start - window.below(); c < start + window.above(); ++c)
    window.push(rectify(x(c), lrn.relu));
#pragma unroll kUsualSize
  for (int j = start; j < end + window.below(); ++j) {
    window.push(rectify(x(j + window.above()), lrn.relu));
    const float s = scale_of(lrn, window);
    const float pull = dy(j) * power(s, lrn.beta, lrn.roots);
    direct.push(pull);
    terms.push(pull * (window[window.below()] / s));
    if (j < first + window.below()) continue;
    float pulled = 0;
#pragma unroll
    for (int i = 0; i < terms.size(); ++i) pulled += terms[i];
    const float value = window[0];  // of the channel that is done
    const float dx = fmaf(-lrn.slope * value, pulled, direct[window.above()]);
    write(j - window.below(), lrn.relu && value <= 0 ? 0.0f : dx);
  }
}

// Where a block works. Blocks go through the channels first: what two of them read is then in the
// cache.
struct Place {
  i64 image, position;  // of the first thread
  int first, end;       // channels

  __device__ explicit Place(const Lrn& lrn) {
    i64 block = blockIdx.x;
    first = static_cast<int>(block % lrn.channel_blocks) * lrn.own;
    end = static_cast<int>(smaller(first + lrn.own, lrn.channels));
    block /= lrn.channel_blocks;
    position = block % lrn.position_blocks * blockDim.x;
    image = block / lrn.position_blocks;
  }
};

// ---- from global memory ----

template <class T>
struct Column {
  const T* data;
  i64 stride;
  int channels;

  __device__ float operator()(int c) const {
    return c >= 0 && c < channels ? widen(__ldg(data + c * stride)) : 0.0f;
  }
};

template <class T, int kSize, bool kBackward>
__global__ __launch_bounds__(kThreads) void lrn_columns_kernel(const Lrn lrn) {
  const Place place(lrn);
  const i64 position = place.position + threadIdx.x;
  if (position >= lrn.positions) return;
  const i64 at = place.image * lrn.image_stride + position * lrn.position_stride;
  const auto column = [&](const void* data) {
    return Column<T>{static_cast<const T*>(data) + at, lrn.channel_stride, lrn.channels};
  };
  T* const out = static_cast<T*>(lrn.out) + at;
  const auto write = [&](int c, float value) { out[c * lrn.channel_stride] = narrow<T>(value); };
  if constexpr (kBackward) {
    backward_column<kSize>(lrn, place.first, place.end, column(lrn.x), column(lrn.dy), write);
  } else {
    forward_column<kSize>(lrn, place.first, place.end, column(lrn.x), write);
  }
}

// ---- by way of shared memory: channels together, windows of the usual size ----

// A tile reaches beyond the channels that are written as far as their windows do, backward as far
// as the windows of those do.
template <bool kBackward>
struct Tile {
  static constexpr int kBefore = kUsualBelow + (kBackward ? kUsualAbove : 0);
  static constexpr int kAfter = kUsualAbove + (kBackward ? kUsualBelow : 0);
  static constexpr int kRows = kBefore + kOwn + kAfter;
  static constexpr int kPitch = kRows | 1;  // so that threads read from different banks
  float value[kThreads * kPitch];

  // Elements are dealt out to the threads in turn, those of a position first.
  template <class T>
  __device__ void load(const Lrn& lrn, const Place& place, const void* from) {
    const int before = place.first - kBefore;
    const T* const origin = static_cast<const T*>(from) + place.position * lrn.channels + before;
    const int positions = positions_of(lrn, place);
    int p = static_cast<int>(threadIdx.x) / kRows, r = static_cast<int>(threadIdx.x) % kRows;
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < kThreads * kRows; i += kThreads) {
      const bool exists =
          static_cast<u32>(before + r) < static_cast<u32>(lrn.channels) && p < positions;
      value[p * kPitch + r] = exists ? widen(__ldg(origin + p * lrn.channels + r)) : 0.0f;
      p += kThreads / kRows;
      r += kThreads % kRows;
      if (r >= kRows) {
        r -= kRows;
        ++p;
      }
    }
  }
  __device__ float& at(int c, const Place& place) {
    return value[static_cast<int>(threadIdx.x) * kPitch + c - place.first + kBefore];
  }
  template <class T>
  __device__ void store(const Lrn& lrn, const Place& place) const {
    const int own = static_cast<int>(threadIdx.x) % kOwn;
    if (place.first + own >= place.end) return;
    T* const origin = static_cast<T*>(lrn.out) + place.position * lrn.channels + place.first + own;
    const int positions = positions_of(lrn, place);
#pragma unroll 4
    for (int p = static_cast<int>(threadIdx.x) / kOwn; p < positions; p += kThreads / kOwn)
      origin[p * lrn.channels] = narrow<T>(value[p * kPitch + kBefore + own]);
  }

 private:
  __device__ static int positions_of(const Lrn& lrn, const Place& place) {
    return static_cast<int>(smaller(kThreads, lrn.positions - place.position));
  }
};

template <bool kBackward>
struct Tiles {
  Tile<kBackward> of[kBackward ? 2 : 1];  // x, and dy
};

template <class T, bool kBackward>
__global__ __launch_bounds__(kThreads) void lrn_tile_kernel(const Lrn lrn) {
  auto& tiles = *reinterpret_cast<Tiles<kBackward>*>(shared_memory());
  const Place place(lrn);
  auto& x = tiles.of[0];
  auto& out = tiles.of[kBackward ? 1 : 0];  // results take the place of what is no longer read
  x.template load<T>(lrn, place, lrn.x);
  if constexpr (kBackward) out.template load<T>(lrn, place, lrn.dy);
  __syncthreads();
  const auto read = [&](int c) { return x.at(c, place); };
  const auto write = [&](int c, float value) { out.at(c, place) = value; };
  if constexpr (kBackward) {
    const auto dy = [&](int c) { return out.at(c, place); };
    backward_column<kUsualSize>(lrn, place.first, place.end, read, dy, write);
  } else {
    forward_column<kUsualSize>(lrn, place.first, place.end, read, write);
  }
  __syncthreads();
  out.template store<T>(lrn, place);
}

// ---- the host ----

Lrn describe(const LrnProblem& problem) {
  Lrn lrn{};
  lrn.x = problem.x;
  lrn.dy = problem.dy;
  lrn.out = problem.out;
  lrn.channels = static_cast<int>(problem.channels);
  // With the channels together, the batch is just more positions.
  lrn.positions = problem.channels_last ? problem.images * problem.positions : problem.positions;
  lrn.image_stride = problem.channels * problem.positions;
  lrn.channel_stride = problem.channels_last ? 1 : problem.positions;
  lrn.position_stride = problem.channels_last ? problem.channels : 1;
  // What lies further off than the last channel is 0, so a longer window need not reach there.
  lrn.below = static_cast<int>(smaller(problem.size / 2, problem.channels - 1));
  lrn.above = static_cast<int>(smaller((problem.size - 1) / 2, problem.channels - 1));
  const double share = problem.alpha / static_cast<double>(problem.size);
  lrn.scale = static_cast<float>(share);
  lrn.slope = static_cast<float>(2 * share * problem.beta);
  lrn.beta = static_cast<float>(problem.beta);
  lrn.k = static_cast<float>(problem.k);
  lrn.relu = problem.relu;
  lrn.roots = problem.beta == 0.75;
  return lrn;
}

// The rings of a block of windows of any size.
template <bool kBackward>
struct Rings {
  static constexpr int kOfThread = 4 * (kBackward ? 3 : 1);  // bytes, for each channel of a window

  int threads;
  i64 bytes;

  // Of as many threads as fit, and one where none does.
  constexpr Rings(i64 window, int most) : threads(kThreads), bytes(kThreads * kOfThread * window) {
    for (; threads > 1 && bytes > most; threads /= 2) bytes /= 2;
  }

  // The most bytes of all windows that fit: each number of threads has a longest one.
  static constexpr std::size_t most_of(int most) {
    i64 found = 0;
    for (int threads = kThreads; threads > 0; threads /= 2)
      found = larger(found, Rings(most / (threads * kOfThread), most).bytes);
    return static_cast<std::size_t>(found);
  }
};

template <class T, bool kBackward>
void run(const LrnProblem& problem, const Context& context) {
  Lrn lrn = describe(problem);
  const auto device = current_device();
  const bool usual = problem.size == kUsualSize;
  int threads = kThreads;
  i64 shared = 0;
  if (!usual) {
    const int most = most_shared_memory<lrn_columns_kernel<T, 0, kBackward>>();
    const Rings<kBackward> rings(lrn.below + lrn.above + 1, most);
    threads = rings.threads;
    shared = rings.bytes;
    if (shared > most)
      throw std::runtime_error("local_response_norm: a window of " + std::to_string(problem.size) +
                               " channels does not fit the shared memory of a block");
  }
  const bool tile = usual && problem.channels_last;
  const i64 images = problem.channels_last ? 1 : problem.images;
  lrn.position_blocks = ceil_div(lrn.positions, threads);
  lrn.own = kOwn;
  const auto blocks = [&] {
    return images * lrn.position_blocks * ceil_div(lrn.channels, lrn.own);
  };
  // Fewer channels for a thread where there would be too few threads.
  while (!tile && lrn.own > 8 && blocks() < 8 * device.multiprocessors) lrn.own /= 2;
  lrn.channel_blocks = static_cast<int>(ceil_div(lrn.channels, lrn.own));
  const dim3 grid = grid_of(blocks());
  if (tile) {
    FBP_LAUNCH((lrn_tile_kernel<T, kBackward>), grid, threads, sizeof(Tiles<kBackward>),
               context.stream, lrn);
  } else if (usual) {
    FBP_LAUNCH((lrn_columns_kernel<T, kUsualSize, kBackward>), grid, threads, 0, context.stream,
               lrn);
  } else {
    FBP_LAUNCH_FITTED((lrn_columns_kernel<T, 0, kBackward>), Rings<kBackward>::most_of, grid,
                      threads, static_cast<std::size_t>(shared), context.stream, lrn);
  }
}

}  // namespace

void lrn_forward(const LrnProblem& problem, const Context& context) {
  with_type(problem.dtype, [&](auto type) { run<decltype(type), false>(problem, context); });
}

void lrn_backward(const LrnProblem& problem, const Context& context) {
  with_type(problem.dtype, [&](auto type) { run<decltype(type), true>(problem, context); });
}

}  // namespace fbp::cuda
