// What the binding hands to the kernels: plain structs, so that the files compiled for one
// instruction set include neither torch nor the standard library.
//
// Shapes: B batch, O outputs, K factors, N = O * K columns, H trunks.

#pragma once

#include <cstddef>
#include <cstdint>

namespace fbp {

using i64 = std::int64_t;

enum class Dtype { float32, float64, bfloat16, float16 };

// A tensor of three dimensions and any strides, counted in elements; null where there is none.
struct View {
  void* data = nullptr;
  i64 stride[3] = {0, 0, 0};

  explicit operator bool() const { return data != nullptr; }
};

struct Dropout {
  bool active = false;
  const i64* seed = nullptr;    // one number, where the tensors are: the generator's key
  std::uint64_t threshold = 0;  // an element is kept where its random word is at least this
  double scale = 1.0;           // what is kept is multiplied by it
};

// The audio and the video half of a bilinear pooling, written once for both: `width` is C or D.
struct Side {
  i64 width = 0;
  View input;   // (B, H, width)
  View weight;  // (H, width, N)
  View bias;    // (H, 1, N)
};

// One bilinear pooling: the global one has H = 1, and only there `adaptive` occurs.
struct Part {
  i64 H = 0, N = 0, K = 1;
  Side side[2];
  const i64* lengths = nullptr;  // (B), contiguous; null where all trunks count
  bool adaptive = false;
  Dropout dropout;
  std::uint32_t stream = 0;
  i64 o_offset = 0;  // where this part's outputs start in a row of z

  i64 outputs() const { return N / K; }
};

struct ForwardPart : Part {
  void* kept[2] = {};  // projections to write, (H, B, N), contiguous; null where not kept
};

struct BackwardPart : Part {
  const void* kept[2] = {};  // projections of the forward; null where they must be recomputed
  // Contiguous gradients, null where not needed.
  void* d_input[2] = {};
  void* d_weight[2] = {};
  void* d_bias[2] = {};
};

// No part is empty: B, H and N are at least 1. The widths may be 0.
constexpr int kMaxParts = 2;

struct ForwardProblem {
  Dtype dtype = Dtype::float32;
  i64 B = 0;
  int parts = 0;
  ForwardPart part[kMaxParts];
  void* z = nullptr;  // (B, outputs of all parts), contiguous
  i64 z_stride = 0;
};

struct BackwardProblem {
  Dtype dtype = Dtype::float32;
  i64 B = 0;
  int parts = 0;
  BackwardPart part[kMaxParts];
  View dz;  // (B, outputs of all parts, 1)
};

// Local response normalisation over the channels of x (images, channels, positions). Either the
// positions or the channels are contiguous; all tensors share the layout, but for what is said at
// Kernels::any_gradient.
struct LrnProblem {
  Dtype dtype = Dtype::float32;
  i64 images = 0, channels = 0, positions = 0;
  bool channels_last = false;
  i64 size = 5;
  double alpha = 0, beta = 0, k = 1;
  bool relu = false;
  const void* x = nullptr;
  const void* dy = nullptr;  // backward only, as the next
  bool dy_channels_last = false;
  void* out = nullptr;  // y, or dx in the backward
};

// Batch normalisation of x (images, channels, rows, row_length) with statistics over all but the
// channels, of which only the first lengths[image] of each row count; the rest is 0 in the results.
// Either the positions or the channels are contiguous, see LrnProblem. Parameters and their
// gradients are in the type that sums are made in: float32, or float64 for float64.
struct BatchNormProblem {
  Dtype dtype = Dtype::float32;
  i64 images = 0, channels = 0, rows = 1, row_length = 0;
  bool channels_last = false;
  const i64* lengths = nullptr;  // (images), contiguous; null where all count
  double eps = 0;
  bool relu = false;
  const void* x = nullptr;
  const void* dy = nullptr;  // backward only, as the next
  bool dy_channels_last = false;
  const void* weight = nullptr;
  const void* bias = nullptr;
  void* out = nullptr;         // y; or dx in the backward, null where not needed
  double* mean = nullptr;      // written by the forward, read by the backward
  double* variance = nullptr;  // likewise, divided by the number of values
  void* d_weight = nullptr;    // backward only
  void* d_bias = nullptr;
};

// Attention over T frames of C channels, A wide, pooled over each of H trunks and over all of them:
//
//   score = scale * factor * (tanh(x weight + bias) query)
//   weights = softmax(score) over the first n = lengths[row] frames, 0 after
//   trunk_pooled[h] = sum of weights x over the frames h n / H to (h + 1) n / H, rounded down
//
// Frames from n on are never read, and their gradients are 0. B, T and H are at least 1; C and A
// may be 0. Results and gradients that are written are contiguous.
struct AttentionPoolProblem {
  Dtype dtype = Dtype::float32;
  i64 B = 0, T = 0, C = 0, A = 0, H = 1;
  View x;                              // (B, T, C)
  View weight;                         // (C, A)
  View bias;                           // (A)
  View query;                          // (A)
  const void* scale = nullptr;         // one number, where the tensors are; null means 1
  Dtype scale_dtype = Dtype::float32;  // and of its gradient
  double factor = 1;
  const i64* lengths = nullptr;  // (B), contiguous, clamped to 0 to T; null means T
  void* pooled = nullptr;        // (B, C), forward only
  void* trunk_pooled = nullptr;  // (B, H, C), forward only
  void* weights = nullptr;       // (B, T), contiguous; read by the backward
  // tanh(x weight + bias), (B, T, A), contiguous, 0 at frames that do not count: written by the
  // forward, read by the backward; null where it is not kept.
  void* hidden = nullptr;
  // Backward only, from here on. Null where a result was not used.
  View d_pooled;        // (B, C)
  View d_trunk_pooled;  // (B, H, C)
  View d_weights;       // (B, T)
  // Null where not needed.
  void* d_x = nullptr;       // (B, T, C)
  void* d_weight = nullptr;  // (C, A)
  void* d_bias = nullptr;    // (A)
  void* d_query = nullptr;   // (A)
  void* d_scale = nullptr;   // one number
};

// Signed square roots, then each row divided by its L2 norm, or by eps where that is larger. Sizes
// are at least 1.
struct PowerNormalizeProblem {
  Dtype dtype = Dtype::float32;
  i64 rows = 0, columns = 0;
  double eps = 0;
  View z;               // (rows, columns)
  View dy;              // (rows, columns), backward only
  void* out = nullptr;  // (rows, columns), contiguous: y, or dz in the backward
};

// Elements multiplied by a mask that follows from a state of PyTorch's generator of the CPU, see
// cpu/dropout.h; forward and backward alike. There is at least one element.
struct DropoutProblem {
  Dtype dtype = Dtype::float32;
  i64 count = 0;
  double p = 0;
  const void* x = nullptr;     // or dy
  const i64* state = nullptr;  // as torch.Generator.get_state() gives it
  void* out = nullptr;         // in the layout of x
  i64* after = nullptr;        // a copy of the state, which is moved on; null in the backward
};

// The gradient of the weights of a convolution without groups or dilation. Everything is contiguous
// with the channels last: x (images, *input, channels), dy (images, *output, outputs), d_weight
// (outputs, *kernel, channels). There is at least one output, and one position of one.
struct ConvolutionProblem {
  Dtype dtype = Dtype::float32;
  i64 images = 0, channels = 0, outputs = 0;
  i64 input[2] = {}, output[2] = {}, kernel[2] = {}, stride[2] = {}, padding[2] = {};
  const void* x = nullptr;
  const void* dy = nullptr;
  void* d_weight = nullptr;
};

// What a kernel needs of its device beside the tensors; those of the CPU need neither.
struct Context {
  void* stream = nullptr;  // of CUDA
  // Uninitialised memory on the device, aligned to 256 bytes, released in stream order after the
  // operator.
  void* (*allocate)(void* owner, i64 bytes) = nullptr;
  void* owner = nullptr;
  bool tf32 = false;  // float32 may be multiplied as TF32

  void* scratch(i64 bytes) const { return allocate(owner, bytes); }
};

// The kernels of one instruction set, or of a GPU; null where there is none.
struct Kernels {
  const char* name;
  void (*bilinear_forward)(const ForwardProblem&, const Context&);
  void (*bilinear_backward)(const BackwardProblem&, const Context&);
  void (*lrn_forward)(const LrnProblem&, const Context&);
  void (*lrn_backward)(const LrnProblem&, const Context&);
  void (*batch_norm_forward)(const BatchNormProblem&, const Context&);
  void (*batch_norm_backward)(const BatchNormProblem&, const Context&);
  void (*attention_pool_forward)(const AttentionPoolProblem&, const Context&) = nullptr;
  void (*attention_pool_backward)(const AttentionPoolProblem&, const Context&) = nullptr;
  void (*power_normalize_forward)(const PowerNormalizeProblem&, const Context&) = nullptr;
  void (*power_normalize_backward)(const PowerNormalizeProblem&, const Context&) = nullptr;
  void (*dropout)(const DropoutProblem&, const Context&) = nullptr;
  void (*convolution_weights)(const ConvolutionProblem&, const Context&) = nullptr;
  // lrn_backward, and batch_norm_backward where dx is needed, also read a dy whose channels are
  // apart where those of x are together.
  bool any_gradient = false;
};

}  // namespace fbp
