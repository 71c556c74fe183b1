// fbp, trunk_fbp and am_fbp: global pooling is pooling over one trunk.

#include <array>
#include <cmath>
#include <tuple>

#include "tensors.h"

namespace fbp {

namespace {

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

  Dropout mask() const {
    Dropout result;
    if (!seed) return result;
    result.active = true;
    result.seed = seed->const_data_ptr<i64>();
    result.threshold = static_cast<std::uint64_t>(std::floor(dropout * 0x1p32));
    // In float32 for all dtypes, as in the reference.
    result.scale = dropout < 1 ? static_cast<float>(1 / (1 - dropout)) : 0;
    return result;
  }
};

void describe(Part& part, const Inputs& x, const Settings& settings, i64 factor, i64 stream,
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
  ForwardProblem problem;
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
      ForwardPart& part = problem.part[problem.parts++];
      describe(part, pooling.inputs, settings_of(pooling, settings), pooling.factor, pooling.stream,
               pooling.adaptive, o_offset);
      for (int side = 0; keep && side < 2; ++side)
        part.kept[side] = results[results.size() - 2 + side].mutable_data_ptr();
    }
    o_offset += pooling.outputs();
  }
  if (problem.parts > 0) run(like, &Kernels::bilinear_forward, problem);
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
  BackwardProblem problem;
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
      BackwardPart& part = problem.part[problem.parts++];
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
  if (problem.parts > 0) run(like, &Kernels::bilinear_backward, problem);
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

}  // namespace

FBP_IMPLEMENTATIONS(m) {
  m.impl("bilinear_forward", TORCH_BOX(&bilinear_forward));
  m.impl("bilinear_backward", TORCH_BOX(&bilinear_backward));
  m.impl("am_forward", TORCH_BOX(&am_forward));
  m.impl("am_backward", TORCH_BOX(&am_backward));
}

}  // namespace fbp
