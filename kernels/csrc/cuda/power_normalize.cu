// Signed square roots and the L2 normalisation of rows. With r = sign(z) sqrt|z| and n = max(|r|,
// eps), |r| the norm of a row:
//
//   y = r / n
//   dz = (dy - q y) / (2 n sqrt|z|), 0 where z is 0, with q = sum of dy y, but 0 where eps is the
//   divisor
//
// A warp, or a block where rows are wide, goes over a row twice: for its sums, then for its
// results; the second time it finds it in the cache. Sums are in double precision: products are
// exact in it, and a row of one column so has a gradient of 0, exactly.

#include "cuda/kernels.h"
#include "cuda/vectors.h"

namespace fbp::cuda {

namespace {

constexpr int kThreads = 256;
constexpr i64 kNarrow = 512;  // columns, at most, that a warp takes

struct Matrix {
  const void* data;
  i64 row_stride, column_stride;

  template <class T>
  __device__ const T* at(i64 row, i64 column) const {
    return static_cast<const T*>(data) + row * row_stride + column * column_stride;
  }
};

struct Rows {
  Matrix z, dy;
  void* out;
  i64 rows, columns;
  float eps;
  bool whole;  // columns are read, and written, by whole vectors
};

__device__ inline float signed_root(float z) { return copysignf(sqrtf(fabsf(z)), z); }

// The sum over the threads of a row, in the same order for all of them.
template <int kLanes>
__device__ double sum_of_row(double x) {
#pragma unroll
  for (int bit = kWarp / 2; bit > 0; bit /= 2) x += __shfl_xor_sync(0xffffffffu, x, bit);
  if constexpr (kLanes > kWarp) {
    __shared__ double warps[kLanes / kWarp];
    __syncthreads();  // nobody reads the sums of before any more
    if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = x;
    __syncthreads();
    x = 0;
#pragma unroll
    for (int i = 0; i < kLanes / kWarp; ++i) x += warps[i];
  }
  return x;
}

// work(column, which of a vector's numbers there are), over the columns of a thread.
template <class T, int kLanes, class F>
__device__ void over_columns(const Rows& rows, const F& work) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  for (i64 c = i64{lane} * kVector<T>; c < rows.columns; c += kLanes * kVector<T>) {
    const i64 left = rows.columns - c;
    work(c, left >= kVector<T> ? kAll<T> : (1u << left) - 1);
  }
}

template <class T, int kLanes, bool kBackward>
__global__ __launch_bounds__(kThreads, 2) void power_normalize_kernel(const Rows rows) {
  const i64 row = i64{blockIdx.x} * (kThreads / kLanes) + threadIdx.x / kLanes;
  if (row >= rows.rows) return;
  const auto read = [&](const Matrix& from, i64 column, u32 there) {
    return load_vector(from.at<T>(row, column), there, rows.whole, from.column_stride);
  };
  double squares = 0, products = 0;
  over_columns<T, kLanes>(rows, [&](i64 c, u32 there) {
    const Vector<T> z = read(rows.z, c, there);
    Vector<T> dy;
    if constexpr (kBackward) dy = read(rows.dy, c, there);
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) {
      const float x = widen(z.of[i]);
      squares += double{fabsf(x)};
      if constexpr (kBackward) products += double{widen(dy.of[i])} * double{signed_root(x)};
    }
  });
  const float norm = sqrtf(static_cast<float>(sum_of_row<kLanes>(squares)));
  const float divisor = norm < rows.eps ? rows.eps : norm;  // NaN stays
  float share = 0;
  if constexpr (kBackward) {
    products = sum_of_row<kLanes>(products);
    if (divisor > rows.eps) share = static_cast<float>(products / double{divisor});
  }
  over_columns<T, kLanes>(rows, [&](i64 c, u32 there) {
    const Vector<T> z = read(rows.z, c, there);
    Vector<T> dy, out;
    if constexpr (kBackward) dy = read(rows.dy, c, there);
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) {
      const float root = signed_root(widen(z.of[i]));
      float value = root / divisor;
      if constexpr (kBackward) {
        const float rest = fmaf(-share, value, widen(dy.of[i]));
        value = root == 0 ? 0.0f : rest / (2 * divisor * fabsf(root));
      }
      out.of[i] = narrow<T>(value);
    }
    store_vector(static_cast<T*>(rows.out) + row * rows.columns + c, out, there, rows.whole);
  });
}

template <class T>
Rows describe(const PowerNormalizeProblem& problem) {
  Rows rows{};
  rows.out = problem.out;
  rows.rows = problem.rows;
  rows.columns = problem.columns;
  rows.eps = static_cast<float>(problem.eps);
  rows.whole = problem.columns % kVector<T> == 0 && is_vector_aligned(problem.out);
  const auto matrix = [&](const View& view) {
    if (view)
      rows.whole = rows.whole && view.stride[1] == 1 && view.stride[0] % kVector<T> == 0 &&
                   is_vector_aligned(view.data);
    return Matrix{view.data, view.stride[0], view.stride[1]};
  };
  rows.z = matrix(problem.z);
  rows.dy = matrix(problem.dy);
  return rows;
}

template <bool kBackward>
void run(const PowerNormalizeProblem& problem, const Context& context) {
  with_type(problem.dtype, [&](auto type) {
    using T = decltype(type);
    const Rows rows = describe<T>(problem);
    if (rows.columns <= kNarrow) {
      FBP_LAUNCH((power_normalize_kernel<T, kWarp, kBackward>),
                 grid_of(ceil_div(rows.rows, kThreads / kWarp)), kThreads, 0, context.stream, rows);
    } else {
      FBP_LAUNCH((power_normalize_kernel<T, kThreads, kBackward>), grid_of(rows.rows), kThreads, 0,
                 context.stream, rows);
    }
  });
}

}  // namespace

void power_normalize_forward(const PowerNormalizeProblem& problem, const Context& context) {
  run<false>(problem, context);
}

void power_normalize_backward(const PowerNormalizeProblem& problem, const Context& context) {
  run<true>(problem, context);
}

}  // namespace fbp::cuda
