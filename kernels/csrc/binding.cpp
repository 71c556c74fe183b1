// The operators of the library fbp_native, through the stable ABI of libtorch: checks, allocation
// of results, and translation into the plain problems that the kernels take. The Python package
// declares the public operators.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cmath>
#include <cstring>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "isa.h"
#include "problem.h"

namespace {

using fbp::i64;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

// ---- tensors ----

Tensor empty(const std::vector<i64>& sizes, const Tensor& like) {
  return torch::stable::new_empty(like, {sizes.data(), sizes.size()});
}

Tensor zeros(const std::vector<i64>& sizes, const Tensor& like) {
  Tensor result = empty(sizes, like);
  if (result.numel() > 0)
    std::memset(result.mutable_data_ptr(), 0, result.numel() * result.element_size());
  return result;
}

Tensor nothing(const Tensor& like) { return empty({0}, like); }

std::vector<i64> sizes_of(const Tensor& x) {
  std::vector<i64> sizes;
  for (i64 i = 0; i < x.dim(); ++i) sizes.push_back(x.size(i));
  return sizes;
}

std::string shape_text(const std::vector<i64>& sizes) {
  std::string text = "(";
  for (const i64 size : sizes) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + ")";
}

void check_tensor(const char* name, const Tensor& x, const std::vector<i64>& sizes,
                  ScalarType dtype) {
  STD_TORCH_CHECK(x.is_cpu(), name, " must be on the CPU");
  STD_TORCH_CHECK(x.scalar_type() == dtype, name, " has dtype ",
                  torch::headeronly::toString(x.scalar_type()), ", expected ",
                  torch::headeronly::toString(dtype));
  STD_TORCH_CHECK(sizes_of(x) == sizes, name, " has shape ", shape_text(sizes_of(x)), ", expected ",
                  shape_text(sizes));
}

fbp::Dtype dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return fbp::Dtype::float32;
    case ScalarType::Double:
      return fbp::Dtype::float64;
    case ScalarType::BFloat16:
      return fbp::Dtype::bfloat16;
    case ScalarType::Half:
      return fbp::Dtype::float16;
    default:
      STD_TORCH_CHECK(false, "dtype ", torch::headeronly::toString(x.scalar_type()),
                      " is not supported, expected float32, float64, bfloat16 or float16");
  }
}

// Kernels take pointers that they may write through; for inputs they do not.
fbp::View view(const Tensor& x, int first_dim = 0) {
  fbp::View result;
  result.data = const_cast<void*>(x.const_data_ptr());
  for (i64 i = 0; i < x.dim(); ++i) result.stride[first_dim + i] = x.stride(i);
  return result;
}

// ---- bilinear pooling ----

// The tensors of one pooling, as an operator receives them. (B, H, C), (B, H, D), (H, C, N), (H, D,
// N), (H, N).
struct Inputs {
  const Tensor& a;
  const Tensor& v;
  const Tensor& p;
  const Tensor& q;
  MaybeTensor p_bias;
  MaybeTensor q_bias;

  i64 B() const { return a.size(0); }
  i64 H() const { return a.size(1); }
  i64 N() const { return p.size(2); }
};

void check(const Inputs& x, i64 factor, bool adaptive) {
  STD_TORCH_CHECK(x.a.dim() == 3, "a has ", x.a.dim(), " dimensions, expected (B, H, C)");
  STD_TORCH_CHECK(x.v.dim() == 3, "v has ", x.v.dim(), " dimensions, expected (B, H, D)");
  STD_TORCH_CHECK(x.p.dim() == 3, "p has ", x.p.dim(), " dimensions, expected (H, C, N)");
  const ScalarType dtype = x.a.scalar_type();
  const i64 B = x.B(), H = x.H(), N = x.N();
  check_tensor("a", x.a, {B, H, x.a.size(2)}, dtype);
  check_tensor("v", x.v, {B, H, x.v.size(2)}, dtype);
  check_tensor("p", x.p, {H, x.a.size(2), N}, dtype);
  check_tensor("q", x.q, {H, x.v.size(2), N}, dtype);
  if (x.p_bias) check_tensor("p_bias", *x.p_bias, {H, N}, dtype);
  if (x.q_bias) check_tensor("q_bias", *x.q_bias, {H, N}, dtype);
  STD_TORCH_CHECK(factor >= 1 && N % factor == 0, "factor is ", factor, ", expected a divisor of ",
                  N);
  STD_TORCH_CHECK(!adaptive || H == 1, "adaptive pooling has one trunk, not ", H);
}

// Everything but the inputs: what decides which elements count.
struct Settings {
  MaybeTensor lengths;
  MaybeTensor seed;
  double dropout;

  void check(i64 B) {
    if (lengths) {
      check_tensor("lengths", *lengths, {B}, ScalarType::Long);
      lengths = torch::stable::contiguous(*lengths);
    }
    if (seed) {
      check_tensor("seed", *seed, {}, ScalarType::Long);
      STD_TORCH_CHECK(dropout >= 0 && dropout <= 1, "dropout is ", dropout, ", expected 0 to 1");
    }
  }

  fbp::Dropout mask() const {
    fbp::Dropout result;
    if (!seed) return result;
    const auto bits = static_cast<std::uint64_t>(*seed->const_data_ptr<i64>());
    result.active = true;
    result.key[0] = static_cast<std::uint32_t>(bits);
    result.key[1] = static_cast<std::uint32_t>(bits >> 32);
    result.threshold = static_cast<std::uint64_t>(std::floor(dropout * 0x1p32));
    // In float32 for all dtypes, as in the reference.
    result.scale = dropout < 1 ? static_cast<float>(1 / (1 - dropout)) : 0;
    return result;
  }
};

void describe(fbp::Part& part, const Inputs& x, const Settings& settings, i64 factor, i64 stream,
              bool adaptive, i64 o_offset) {
  part.H = x.H();
  part.N = x.N();
  part.K = factor;
  part.side[0] = {x.a.size(2), view(x.a), view(x.p), {}};
  part.side[1] = {x.v.size(2), view(x.v), view(x.q), {}};
  const MaybeTensor* const bias[2] = {&x.p_bias, &x.q_bias};
  for (int side = 0; side < 2; ++side)
    if (*bias[side]) {
      part.side[side].bias = view(**bias[side]);
      part.side[side].bias.stride[2] = part.side[side].bias.stride[1];
    }
  if (settings.lengths) part.lengths = settings.lengths->const_data_ptr<i64>();
  part.adaptive = adaptive;
  part.dropout = settings.mask();
  part.stream = static_cast<std::uint32_t>(stream);
  part.o_offset = o_offset;
}

// One pooling of a call: the global or the trunk part.
struct Pooling {
  Inputs inputs;
  i64 factor;
  i64 stream;
  bool adaptive;
  bool uses_lengths;

  bool empty() const { return inputs.B() == 0 || inputs.H() == 0 || inputs.N() == 0; }
  i64 outputs() const { return inputs.N() / factor; }
  std::vector<i64> kept_shape() const { return {inputs.H(), inputs.B(), inputs.N()}; }
};

i64 check_all(const std::vector<Pooling>& poolings, Settings& settings) {
  i64 outputs = 0;
  for (const Pooling& pooling : poolings) {
    check(pooling.inputs, pooling.factor, pooling.adaptive);
    STD_TORCH_CHECK(pooling.inputs.B() == poolings[0].inputs.B() &&
                        pooling.inputs.a.scalar_type() == poolings[0].inputs.a.scalar_type(),
                    "the global and the trunk part differ in batch size or dtype");
    outputs += pooling.outputs();
  }
  settings.check(poolings[0].inputs.B());
  return outputs;
}

Settings settings_of(const Pooling& pooling, const Settings& settings) {
  return {pooling.uses_lengths ? settings.lengths : std::nullopt, settings.seed, settings.dropout};
}

// z, then u and w of each part (empty where not kept).
std::vector<Tensor> forward(const std::vector<Pooling>& poolings, Settings settings, bool keep) {
  const i64 outputs = check_all(poolings, settings);
  const Tensor& like = poolings[0].inputs.a;
  fbp::ForwardProblem problem;
  problem.dtype = dtype_of(like);
  problem.B = like.size(0);
  bool any_empty = false;
  for (const Pooling& pooling : poolings) any_empty = any_empty || pooling.empty();
  std::vector<Tensor> results{any_empty ? zeros({problem.B, outputs}, like)
                                        : empty({problem.B, outputs}, like)};
  problem.z = results[0].mutable_data_ptr();
  problem.z_stride = outputs;
  i64 o_offset = 0;
  for (const Pooling& pooling : poolings) {
    for (int side = 0; side < 2; ++side)
      results.push_back(keep ? empty(pooling.kept_shape(), like) : nothing(like));
    if (!pooling.empty()) {
      fbp::ForwardPart& part = problem.part[problem.parts++];
      describe(part, pooling.inputs, settings_of(pooling, settings), pooling.factor, pooling.stream,
               pooling.adaptive, o_offset);
      for (int side = 0; keep && side < 2; ++side)
        part.kept[side] = results[results.size() - 2 + side].mutable_data_ptr();
    }
    o_offset += pooling.outputs();
  }
  if (problem.parts > 0) fbp::selected_kernels().bilinear_forward(problem);
  return results;
}

// Which gradients of a pooling are needed: a, v, p, q, p_bias, q_bias.
using Needs = std::array<bool, 6>;

// The gradients of a part's a, v, p, q, p_bias, q_bias, part by part; empty where not needed.
std::vector<Tensor> backward(const Tensor& dz, const std::vector<Pooling>& poolings,
                             Settings settings, const std::vector<std::array<MaybeTensor, 2>>& kept,
                             const std::vector<Needs>& needs) {
  const i64 outputs = check_all(poolings, settings);
  const Tensor& like = poolings[0].inputs.a;
  check_tensor("dz", dz, {like.size(0), outputs}, like.scalar_type());
  fbp::BackwardProblem problem;
  problem.dtype = dtype_of(like);
  problem.B = like.size(0);
  problem.dz = view(dz);
  std::vector<Tensor> results, alive;
  i64 o_offset = 0;
  for (std::size_t i = 0; i < poolings.size(); ++i) {
    const Pooling& pooling = poolings[i];
    const Inputs& x = pooling.inputs;
    const Tensor* const inputs[6] = {
        &x.a, &x.v, &x.p, &x.q, x.p_bias ? &*x.p_bias : nullptr, x.q_bias ? &*x.q_bias : nullptr};
    void* data[6] = {};
    bool any = false;
    for (int j = 0; j < 6; ++j) {
      if (!needs[i][j]) {
        results.push_back(nothing(like));
        continue;
      }
      STD_TORCH_CHECK(inputs[j] != nullptr,
                      "the gradient of a bias is asked for that is not there");
      const std::vector<i64> sizes = sizes_of(*inputs[j]);
      results.push_back(pooling.empty() ? zeros(sizes, like) : empty(sizes, like));
      if (results.back().numel() > 0) data[j] = results.back().mutable_data_ptr();
      any = true;
    }
    if (any && !pooling.empty()) {
      fbp::BackwardPart& part = problem.part[problem.parts++];
      describe(part, x, settings_of(pooling, settings), pooling.factor, pooling.stream,
               pooling.adaptive, o_offset);
      STD_TORCH_CHECK(kept[i][0].has_value() == kept[i][1].has_value(),
                      "u and w are kept both or not at all");
      for (int side = 0; side < 2; ++side) {
        part.d_input[side] = data[side];
        part.d_weight[side] = data[2 + side];
        part.d_bias[side] = data[4 + side];
        if (!kept[i][side]) continue;
        check_tensor(side == 0 ? "u" : "w", *kept[i][side], pooling.kept_shape(),
                     like.scalar_type());
        alive.push_back(torch::stable::contiguous(*kept[i][side]));
        part.kept[side] = alive.back().const_data_ptr();
      }
    }
    o_offset += pooling.outputs();
  }
  if (problem.parts > 0) fbp::selected_kernels().bilinear_backward(problem);
  return results;
}

std::tuple<Tensor, Tensor, Tensor> bilinear_forward(Tensor a, Tensor v, Tensor p, Tensor q,
                                                    MaybeTensor p_bias, MaybeTensor q_bias,
                                                    MaybeTensor lengths, MaybeTensor seed,
                                                    i64 factor, double dropout, i64 stream,
                                                    bool adaptive, bool keep) {
  const auto r = forward({{{a, v, p, q, p_bias, q_bias}, factor, stream, adaptive, true}},
                         {lengths, seed, dropout}, keep);
  return {r[0], r[1], r[2]};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> bilinear_backward(
    Tensor dz, Tensor a, Tensor v, Tensor p, Tensor q, MaybeTensor p_bias, MaybeTensor q_bias,
    MaybeTensor lengths, MaybeTensor seed, MaybeTensor u, MaybeTensor w, i64 factor, double dropout,
    i64 stream, bool adaptive, i64 needs) {
  Needs needed;
  for (int j = 0; j < 6; ++j) needed[j] = needs >> j & 1;
  const auto r = backward(dz, {{{a, v, p, q, p_bias, q_bias}, factor, stream, adaptive, true}},
                          {lengths, seed, dropout}, {{u, w}}, {needed});
  return {r[0], r[1], r[2], r[3], r[4], r[5]};
}

// Dropout draws one mask for each part.
constexpr i64 kGlobalStream = 0, kTrunkStream = 1;

std::vector<Pooling> both_parts(const Tensor& a, const Tensor& v, const Tensor& a_trunks,
                                const Tensor& v_trunks, const Tensor& p, const Tensor& q,
                                const Tensor& p_trunks, const Tensor& q_trunks, i64 factor,
                                i64 trunk_factor, bool adaptive) {
  return {
      {{a, v, p, q, {}, {}}, factor, kGlobalStream, adaptive, false},
      {{a_trunks, v_trunks, p_trunks, q_trunks, {}, {}}, trunk_factor, kTrunkStream, false, true}};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> am_forward(
    Tensor a, Tensor v, Tensor a_trunks, Tensor v_trunks, Tensor p, Tensor q, Tensor p_trunks,
    Tensor q_trunks, MaybeTensor lengths, MaybeTensor seed, i64 factor, i64 trunk_factor,
    double dropout, bool adaptive, bool keep) {
  const auto r = forward(both_parts(a, v, a_trunks, v_trunks, p, q, p_trunks, q_trunks, factor,
                                    trunk_factor, adaptive),
                         {lengths, seed, dropout}, keep);
  return {r[0], r[1], r[2], r[3], r[4]};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> am_backward(
    Tensor dz, Tensor a, Tensor v, Tensor a_trunks, Tensor v_trunks, Tensor p, Tensor q,
    Tensor p_trunks, Tensor q_trunks, MaybeTensor lengths, MaybeTensor seed, MaybeTensor u,
    MaybeTensor w, MaybeTensor u_trunks, MaybeTensor w_trunks, i64 factor, i64 trunk_factor,
    double dropout, bool adaptive, i64 needs) {
  const auto bit = [&](int j) { return (needs >> j & 1) != 0; };
  const auto r = backward(dz,
                          both_parts(a, v, a_trunks, v_trunks, p, q, p_trunks, q_trunks, factor,
                                     trunk_factor, adaptive),
                          {lengths, seed, dropout}, {{u, w}, {u_trunks, w_trunks}},
                          {{bit(0), bit(1), bit(4), bit(5), false, false},
                           {bit(2), bit(3), bit(6), bit(7), false, false}});
  return {r[0], r[1], r[6], r[7], r[2], r[3], r[8], r[9]};
}

// ---- local response normalisation ----

// Channels apart: x is contiguous. Channels together: the channels are, and the rest is one row of
// positions.
enum class Layout { apart, together, neither };

Layout layout_of(const Tensor& x) {
  if (x.is_contiguous()) return Layout::apart;
  i64 expected = x.size(1);
  if (x.stride(1) != 1) return Layout::neither;
  for (i64 dim = x.dim(); dim-- > 0;) {
    if (dim == 1) continue;
    if (x.size(dim) > 1 && x.stride(dim) != expected) return Layout::neither;
    expected *= x.size(dim);
  }
  return Layout::together;
}

// dy in the layout of x, in which the results are as well.
Tensor in_layout_of(const Tensor& x, const Tensor& dy) {
  if (layout_of(dy) == layout_of(x)) return dy;
  Tensor same = torch::stable::empty_like(x);
  return torch::stable::copy_(same, dy);
}

struct LrnCall {
  Tensor x;
  Tensor out;
  fbp::LrnProblem problem;

  LrnCall(const Tensor& input, i64 size, double alpha, double beta, double k, bool relu)
      : x(input) {
    STD_TORCH_CHECK(x.is_cpu(), "x must be on the CPU");
    STD_TORCH_CHECK(x.dim() >= 3, "x has ", x.dim(), " dimensions, expected (N, C, ...)");
    STD_TORCH_CHECK(size >= 1, "size is ", size, ", expected at least 1");
    problem.dtype = dtype_of(x);
    Layout layout = layout_of(x);
    if (layout == Layout::neither) {
      x = torch::stable::contiguous(x);
      layout = Layout::apart;
    }
    problem.channels_last = layout == Layout::together;
    out = torch::stable::empty_like(x);
    problem.images = x.size(0);
    problem.channels = x.size(1);
    problem.positions = 1;
    for (i64 dim = 2; dim < x.dim(); ++dim) problem.positions *= x.size(dim);
    problem.size = size;
    problem.alpha = alpha;
    problem.beta = beta;
    problem.k = k;
    problem.relu = relu;
    problem.x = x.const_data_ptr();
    problem.out = out.mutable_data_ptr();
  }

  bool empty() const { return x.numel() == 0; }
};

Tensor lrn_forward(Tensor x, i64 size, double alpha, double beta, double k, bool relu) {
  const LrnCall call(x, size, alpha, beta, k, relu);
  if (!call.empty()) fbp::selected_kernels().lrn_forward(call.problem);
  return call.out;
}

Tensor lrn_backward(Tensor dy, Tensor x, i64 size, double alpha, double beta, double k, bool relu) {
  LrnCall call(x, size, alpha, beta, k, relu);
  check_tensor("dy", dy, sizes_of(x), x.scalar_type());
  if (call.empty()) return call.out;
  dy = in_layout_of(call.x, dy);
  call.problem.dy = dy.const_data_ptr();
  fbp::selected_kernels().lrn_backward(call.problem);
  return call.out;
}

// ---- batch normalisation ----

// One value for each channel; 0 where there is nothing that a kernel could look at.
Tensor per_channel(const Tensor& x, ScalarType dtype) {
  const std::array<i64, 1> sizes{x.size(1)};
  return x.numel() == 0 ? torch::stable::new_zeros(x, {sizes.data(), 1}, dtype)
                        : torch::stable::new_empty(x, {sizes.data(), 1}, dtype);
}

// What sums are made in.
ScalarType wide(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

struct BatchNormCall {
  Tensor x, weight, bias;
  MaybeTensor lengths;
  fbp::BatchNormProblem problem;

  BatchNormCall(const Tensor& input, const Tensor& w, const Tensor& b, const MaybeTensor& valid,
                double eps, bool relu)
      : x(input), weight(w), bias(b), lengths(valid) {
    STD_TORCH_CHECK(x.is_cpu(), "x must be on the CPU");
    STD_TORCH_CHECK(x.dim() >= 3, "x has ", x.dim(), " dimensions, expected (N, C, ...)");
    const i64 last = x.dim() - 1;
    check_tensor("weight", weight, {x.size(1)}, wide(x));
    check_tensor("bias", bias, {x.size(1)}, wide(x));
    problem.dtype = dtype_of(x);
    Layout layout = layout_of(x);
    if (layout == Layout::neither) {
      x = torch::stable::contiguous(x);
      layout = Layout::apart;
    }
    problem.images = x.size(0);
    problem.channels = x.size(1);
    problem.row_length = 1;
    for (i64 dim = 2; dim <= last; ++dim) problem.row_length *= x.size(dim);
    // A single position is both; as channels together it is not a plane of one value.
    problem.channels_last = layout == Layout::together || problem.row_length == 1;
    if (lengths) {
      check_tensor("lengths", *lengths, {x.size(0)}, ScalarType::Long);
      lengths = torch::stable::contiguous(*lengths);
      problem.lengths = lengths->const_data_ptr<i64>();
      if (x.size(last) > 0) problem.rows = problem.row_length / x.size(last);
      problem.row_length = x.size(last);
    }
    weight = torch::stable::contiguous(weight);
    bias = torch::stable::contiguous(bias);
    problem.eps = eps;
    problem.relu = relu;
    problem.x = x.const_data_ptr();
    problem.weight = weight.const_data_ptr();
    problem.bias = bias.const_data_ptr();
  }

  bool empty() const { return x.numel() == 0; }
};

std::tuple<Tensor, Tensor, Tensor> batch_norm_forward(Tensor x, Tensor weight, Tensor bias,
                                                      MaybeTensor lengths, double eps, bool relu) {
  BatchNormCall call(x, weight, bias, lengths, eps, relu);
  Tensor y = torch::stable::empty_like(call.x);
  Tensor mean = per_channel(x, ScalarType::Double);
  Tensor variance = per_channel(x, ScalarType::Double);
  call.problem.out = y.mutable_data_ptr();
  call.problem.mean = static_cast<double*>(mean.mutable_data_ptr());
  call.problem.variance = static_cast<double*>(variance.mutable_data_ptr());
  if (!call.empty()) fbp::selected_kernels().batch_norm_forward(call.problem);
  return {y, mean, variance};
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_backward(Tensor dy, Tensor x, Tensor weight,
                                                       Tensor bias, MaybeTensor lengths,
                                                       Tensor mean, Tensor variance, double eps,
                                                       bool relu, i64 needs) {
  BatchNormCall call(x, weight, bias, lengths, eps, relu);
  check_tensor("dy", dy, sizes_of(x), x.scalar_type());
  check_tensor("mean", mean, {x.size(1)}, ScalarType::Double);
  check_tensor("variance", variance, {x.size(1)}, ScalarType::Double);
  Tensor dx = (needs & 1) != 0 ? torch::stable::empty_like(call.x) : nothing(dy);
  Tensor d_weight = per_channel(x, wide(x)), d_bias = per_channel(x, wide(x));
  if (!call.empty()) {
    dy = in_layout_of(call.x, dy);
    mean = torch::stable::contiguous(mean);
    variance = torch::stable::contiguous(variance);
    call.problem.dy = dy.const_data_ptr();
    call.problem.out = (needs & 1) != 0 ? dx.mutable_data_ptr() : nullptr;
    call.problem.mean = const_cast<double*>(mean.const_data_ptr<double>());
    call.problem.variance = const_cast<double*>(variance.const_data_ptr<double>());
    call.problem.d_weight = d_weight.mutable_data_ptr();
    call.problem.d_bias = d_bias.mutable_data_ptr();
    fbp::selected_kernels().batch_norm_backward(call.problem);
  }
  if ((needs & 2) == 0) d_weight = nothing(dy);
  if ((needs & 4) == 0) d_bias = nothing(dy);
  return {dx, d_weight, d_bias};
}

// ---- instruction sets ----

std::string cpu_isa() { return fbp::selected_kernels().name; }

std::string cpu_isas() { return fbp::runnable_isas(); }

}  // namespace

STABLE_TORCH_LIBRARY(fbp_native, m) {
  m.def(
      "bilinear_forward(Tensor a, Tensor v, Tensor p, Tensor q, Tensor? p_bias, Tensor? q_bias, "
      "Tensor? lengths, Tensor? seed, int factor, float dropout, int stream, bool adaptive, "
      "bool keep) -> (Tensor z, Tensor u, Tensor w)");
  m.def(
      "bilinear_backward(Tensor dz, Tensor a, Tensor v, Tensor p, Tensor q, Tensor? p_bias, "
      "Tensor? q_bias, Tensor? lengths, Tensor? seed, Tensor? u, Tensor? w, int factor, "
      "float dropout, int stream, bool adaptive, int needs) -> "
      "(Tensor da, Tensor dv, Tensor dp, Tensor dq, Tensor dp_bias, Tensor dq_bias)");
  m.def(
      "am_forward(Tensor a, Tensor v, Tensor a_trunks, Tensor v_trunks, Tensor p, Tensor q, "
      "Tensor p_trunks, Tensor q_trunks, Tensor? lengths, Tensor? seed, int factor, "
      "int trunk_factor, float dropout, bool adaptive, bool keep) -> "
      "(Tensor z, Tensor u, Tensor w, Tensor u_trunks, Tensor w_trunks)");
  m.def(
      "am_backward(Tensor dz, Tensor a, Tensor v, Tensor a_trunks, Tensor v_trunks, Tensor p, "
      "Tensor q, Tensor p_trunks, Tensor q_trunks, Tensor? lengths, Tensor? seed, Tensor? u, "
      "Tensor? w, Tensor? u_trunks, Tensor? w_trunks, int factor, int trunk_factor, "
      "float dropout, bool adaptive, int needs) -> "
      "(Tensor da, Tensor dv, Tensor da_trunks, Tensor dv_trunks, Tensor dp, Tensor dq, "
      "Tensor dp_trunks, Tensor dq_trunks)");
  m.def("lrn_forward(Tensor x, int size, float alpha, float beta, float k, bool relu) -> Tensor");
  m.def(
      "lrn_backward(Tensor dy, Tensor x, int size, float alpha, float beta, float k, bool relu) "
      "-> Tensor");
  m.def(
      "batch_norm_forward(Tensor x, Tensor weight, Tensor bias, Tensor? lengths, float eps, "
      "bool relu) -> (Tensor y, Tensor mean, Tensor variance)");
  m.def(
      "batch_norm_backward(Tensor dy, Tensor x, Tensor weight, Tensor bias, Tensor? lengths, "
      "Tensor mean, Tensor variance, float eps, bool relu, int needs) -> "
      "(Tensor dx, Tensor d_weight, Tensor d_bias)");
  m.def("cpu_isa() -> str");
  m.def("cpu_isas() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(fbp_native, CPU, m) {
  m.impl("bilinear_forward", TORCH_BOX(&bilinear_forward));
  m.impl("bilinear_backward", TORCH_BOX(&bilinear_backward));
  m.impl("am_forward", TORCH_BOX(&am_forward));
  m.impl("am_backward", TORCH_BOX(&am_backward));
  m.impl("lrn_forward", TORCH_BOX(&lrn_forward));
  m.impl("lrn_backward", TORCH_BOX(&lrn_backward));
  m.impl("batch_norm_forward", TORCH_BOX(&batch_norm_forward));
  m.impl("batch_norm_backward", TORCH_BOX(&batch_norm_backward));
}

STABLE_TORCH_LIBRARY_IMPL(fbp_native, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&cpu_isa));
  m.impl("cpu_isas", TORCH_BOX(&cpu_isas));
}
