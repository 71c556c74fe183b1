// y = x s^-beta with s = k + alpha / size * sum of x_j^2 over the channels j from c - size / 2 to
// c + (size - 1) / 2 of the same position, and
//
//   dx_c = dy_c s_c^-beta - 2 alpha beta / size * x_c * sum over windows j that hold c of
//          dy_j x_j s_j^(-beta - 1)
//
// A block has a tile of channels by positions in shared memory, x first: windows are read there.
// The tile reaches beyond the channels that the block writes, as far as their windows, and the
// windows of these, do; what does not exist is 0.
//
//      rows of the tile      0   reach - above     reach        reach + own     reach + own + below
//      x (forward, backward) |=========================================================== ... rows
//      terms                     |=======================================================|
//      written                                     |============|

#include <cmath>

#include "common.h"
#include "local_response_norm.h"

namespace fbp::cuda {

namespace {

constexpr int kLanes = 32, kRows = 8;  // threads of a block: along what is contiguous, and across

struct Lrn {
  const void* x;
  const void* dy;
  void* out;
  i64 image_stride, channel_stride, position_stride;
  i64 positions;
  int channels;
  int below, above, reach;  // channels of a window before and after its own; of both sides' windows
  int own, across;          // channels and positions that a block writes
  int channel_blocks;
  i64 position_blocks;
  float scale, slope, beta, k;
  bool relu, roots;

  __host__ __device__ int rows() const { return own + 2 * reach; }
  __host__ __device__ int elements() const { return rows() * across; }
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

// Where a block's tile is. Blocks go through the channels first: what two tiles share is then in
// the cache.
template <class T, bool kTogether>
class Tile {
 public:
  __device__ explicit Tile(const Lrn& lrn) : lrn_(lrn) {
    i64 block = blockIdx.x;
    channel_ = static_cast<int>(block % lrn.channel_blocks) * lrn.own - lrn.reach;
    block /= lrn.channel_blocks;
    position_ = block % lrn.position_blocks * lrn.across;
    origin_ = block / lrn.position_blocks * lrn.image_stride + channel_ * lrn.channel_stride +
              position_ * lrn.position_stride;
    left_ = static_cast<int>(smaller(lrn.across, lrn.positions - position_));
  }

  // f(row, position, place in shared memory) for all of the rows; neighbours in memory are those of
  // a warp.
  template <class F>
  __device__ void over(int first, int end, const F& f) const {
    const int lane = threadIdx.x, line = threadIdx.y;
    if constexpr (kTogether) {
      for (int p = line; p < lrn_.across; p += kRows)
        for (int r = first + lane; r < end; r += kLanes) f(r, p, p * lrn_.rows() + r);
    } else {
      for (int r = first + line; r < end; r += kRows)
        for (int p = lane; p < lrn_.across; p += kLanes) f(r, p, r * lrn_.across + p);
    }
  }

  // How far apart neighbouring channels are in shared memory.
  __device__ int step() const { return kTogether ? 1 : lrn_.across; }

  __device__ bool exists(int row, int position) const {
    const int channel = channel_ + row;
    return channel >= 0 && channel < lrn_.channels && position < left_;
  }
  __device__ i64 offset(int row, int position) const {
    return origin_ + row * (kTogether ? 1 : lrn_.channel_stride) +
           position * (kTogether ? lrn_.position_stride : 1);
  }
  __device__ float load(const void* from, int row, int position) const {
    return exists(row, position) ? widen(static_cast<const T*>(from)[offset(row, position)]) : 0.0f;
  }

 private:
  const Lrn& lrn_;
  int channel_, left_;
  i64 position_, origin_;
};

// The sum over a window around `centre` of f(element), the window's size known where it is the
// usual.
template <int kSize, class F>
__device__ float over_window(const float* centre, int before, int after, int step, const F& f) {
  float sum = 0;
  if constexpr (kSize > 0) {
#pragma unroll
    for (int j = 0; j < kSize; ++j) sum = f(sum, centre[(j - before) * step]);
  } else {
    for (int j = -before; j <= after; ++j) sum = f(sum, centre[j * step]);
  }
  return sum;
}

template <int kSize>
__device__ float window_scale(const Lrn& lrn, const float* centre, int step) {
  const float squares =
      over_window<kSize>(centre, lrn.below, lrn.above, step,
                         [](float sum, float value) { return fmaf(value, value, sum); });
  return fmaf(lrn.scale, squares, lrn.k);
}

template <class T, bool kTogether>
__device__ void load_tile(const Lrn& lrn, const Tile<T, kTogether>& tile, float* x) {
  tile.over(0, lrn.rows(), [&](int r, int p, int place) {
    const float value = tile.load(lrn.x, r, p);
    x[place] = lrn.relu && value < 0 ? 0.0f : value;  // NaN stays
  });
}

template <class T, bool kTogether, int kSize>
__global__ __launch_bounds__(kLanes* kRows) void lrn_forward_kernel(const Lrn lrn) {
  float* const x = reinterpret_cast<float*>(shared_memory());
  const Tile<T, kTogether> tile(lrn);
  load_tile(lrn, tile, x);
  __syncthreads();
  tile.over(lrn.reach, lrn.reach + lrn.own, [&](int r, int p, int place) {
    if (!tile.exists(r, p)) return;
    const float s = window_scale<kSize>(lrn, x + place, tile.step());
    static_cast<T*>(lrn.out)[tile.offset(r, p)] =
        narrow<T>(x[place] * power(s, lrn.beta, lrn.roots));
  });
}

template <class T, bool kTogether, int kSize>
__global__ __launch_bounds__(kLanes* kRows) void lrn_backward_kernel(const Lrn lrn) {
  float* const x = reinterpret_cast<float*>(shared_memory());
  float* const terms = x + lrn.elements();
  float* const direct = terms + lrn.elements();
  const Tile<T, kTogether> tile(lrn);
  load_tile(lrn, tile, x);
  __syncthreads();
  tile.over(lrn.reach - lrn.above, lrn.reach + lrn.own + lrn.below, [&](int r, int p, int place) {
    const float dy = tile.load(lrn.dy, r, p);
    const float s = window_scale<kSize>(lrn, x + place, tile.step());
    const float pull = dy * power(s, lrn.beta, lrn.roots);
    direct[place] = pull;
    terms[place] = pull * (x[place] / s);
  });
  __syncthreads();
  tile.over(lrn.reach, lrn.reach + lrn.own, [&](int r, int p, int place) {
    if (!tile.exists(r, p)) return;
    // The windows that hold a channel are those of the channels from `above` before it on.
    const float pulled = over_window<kSize>(terms + place, lrn.above, lrn.below, tile.step(),
                                            [](float sum, float value) { return sum + value; });
    const float value = x[place];
    const float dx = fmaf(-lrn.slope * value, pulled, direct[place]);
    static_cast<T*>(lrn.out)[tile.offset(r, p)] = narrow<T>(lrn.relu && value <= 0 ? 0.0f : dx);
  });
}

constexpr int kUsualSize = 5;

Lrn describe(const LrnProblem& problem, int arrays) {
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
  const bool usual = problem.size == kUsualSize;
  const i64 most = usual ? kUsualSize : problem.channels - 1;
  lrn.below = static_cast<int>(smaller(problem.size / 2, most));
  lrn.above = static_cast<int>(smaller((problem.size - 1) / 2, most));
  lrn.reach = lrn.below + lrn.above;
  const double share = problem.alpha / static_cast<double>(problem.size);
  lrn.scale = static_cast<float>(share);
  lrn.slope = static_cast<float>(2 * share * problem.beta);
  lrn.beta = static_cast<float>(problem.beta);
  lrn.k = static_cast<float>(problem.k);
  lrn.relu = problem.relu;
  lrn.roots = problem.beta == 0.75;

  constexpr int kOwn = 32, kAcross = 32, kOwnTogether = 256, kElementsTogether = 2048;
  if (problem.channels_last) {
    lrn.own = static_cast<int>(smaller(problem.channels, kOwnTogether));
    lrn.across = static_cast<int>(larger(kElementsTogether / lrn.own / kRows * kRows, kRows));
  } else {
    lrn.own = static_cast<int>(smaller(problem.channels, kOwn));
    lrn.across = kAcross;
  }
  const auto bytes = [&] { return i64{4} * arrays * lrn.rows() * lrn.across; };
  const i64 room = current_device().shared_bytes;
  while (bytes() > room && lrn.across > 1) lrn.across /= 2;
  if (bytes() > room)
    throw std::runtime_error("local_response_norm: a window of " + std::to_string(problem.size) +
                             " channels does not fit the shared memory of a block");
  lrn.channel_blocks = static_cast<int>(ceil_div(lrn.channels, lrn.own));
  lrn.position_blocks = ceil_div(lrn.positions, lrn.across);
  return lrn;
}

template <bool kValue>
using Constant = std::integral_constant<bool, kValue>;

// Calls f with the type, whether the channels lie together, and whether the window is the usual.
template <class F>
void with_variant(const LrnProblem& problem, const F& f) {
  with_type(problem.dtype, [&](auto type) {
    const auto with_size = [&](auto together) {
      if (problem.size == kUsualSize) {
        f(type, together, std::integral_constant<int, kUsualSize>{});
      } else {
        f(type, together, std::integral_constant<int, 0>{});
      }
    };
    if (problem.channels_last) {
      with_size(Constant<true>{});
    } else {
      with_size(Constant<false>{});
    }
  });
}

dim3 grid_of(const LrnProblem& problem, const Lrn& lrn) {
  const i64 images = problem.channels_last ? 1 : problem.images;
  return dim3(static_cast<unsigned>(images * lrn.position_blocks * lrn.channel_blocks));
}

std::size_t shared_bytes(const Lrn& lrn, int arrays) {
  return sizeof(float) * static_cast<std::size_t>(arrays) *
         static_cast<std::size_t>(lrn.elements());
}

}  // namespace

void lrn_forward(const LrnProblem& problem, const Context& context) {
  const Lrn lrn = describe(problem, 1);
  with_variant(problem, [&](auto type, auto together, auto size) {
    FBP_LAUNCH((lrn_forward_kernel<decltype(type), together, size>), grid_of(problem, lrn),
               dim3(kLanes, kRows), shared_bytes(lrn, 1), context.stream, lrn);
  });
}

void lrn_backward(const LrnProblem& problem, const Context& context) {
  const Lrn lrn = describe(problem, 3);
  with_variant(problem, [&](auto type, auto together, auto size) {
    FBP_LAUNCH((lrn_backward_kernel<decltype(type), together, size>), grid_of(problem, lrn),
               dim3(kLanes, kRows), shared_bytes(lrn, 3), context.stream, lrn);
  });
}

}  // namespace fbp::cuda
