// fbp, trunk_fbp and am_fbp. Tensors of a global pooling have no dimension of trunks: to the
// kernels it is pooling over one trunk.

#include <array>
#include <cmath>
#include <tuple>

#include "tensors.h"

namespace fbp {

namespace {

constexpr int kInputs = 6;
const char* const kNames[kInputs] = {"a", "v", "p", "q", "p_bias", "q_bias"};

// Sizes along up to three dimensions.
struct Shape {
  i64 size[3];
  std::size_t dims = 0;

  operator Sizes() const { return {size, dims}; }
};

// One pooling of a call, the global or the per-trunk part, as an operator receives it.
struct Pooling {
  std::array<const Tensor*, kInputs> input;  // null where there is no bias
  i64 factor;
  std::uint32_t stream;  // of the generator, see kGlobalStream
  bool adaptive;
  const MaybeTensor& lengths;
  bool has_trunks;

  // Known once the tensors are checked.
  i64 B = 0, H = 1, N = 0, width[2] = {};

  bool empty() const { return B == 0 || H == 0 || N == 0; }
  i64 outputs() const { return N / factor; }

  // Kernels see inputs (B, H, width), weights (H, width, N) and biases (H, 1, N).
  bool has_axis(int j, int axis) const {
    const int trunks = j < 2 ? 1 : 0;
    return axis == trunks ? has_trunks : j < 4 || axis == 2;
  }

  Shape shape(int j) const {
    const i64 w = width[j % 2];
    const std::array<i64, 3> all = j < 2   ? std::array<i64, 3>{B, H, w}
                                   : j < 4 ? std::array<i64, 3>{H, w, N}
                                           : std::array<i64, 3>{H, 1, N};
    Shape result;
    for (int axis = 0; axis < 3; ++axis)
      if (has_axis(j, axis)) result.size[result.dims++] = all[axis];
    return result;
  }

  View view(int j) const {
    const Sizes strides = input[j]->strides();
    View result;
    result.data = const_cast<void*>(input[j]->const_data_ptr());
    int next = 0;
    for (int axis = 0; axis < 3; ++axis)
      if (has_axis(j, axis)) result.stride[axis] = strides[next++];
    return result;
  }

  Shape kept_shape() const { return {{H, B, N}, 3}; }

  void check() {
    const i64 dims = has_trunks ? 3 : 2;
    for (int j = 0; j < 4; ++j)
      STD_TORCH_CHECK(input[j]->dim() == dims, kNames[j], " has ", input[j]->dim(),
                      " dimensions, expected ", dims);
    B = input[0]->size(0);
    if (has_trunks) H = input[0]->size(1);
    for (int side = 0; side < 2; ++side) width[side] = input[side]->size(dims - 1);
    N = input[2]->size(dims - 1);
    const ScalarType dtype = input[0]->scalar_type();
    for (int j = 0; j < kInputs; ++j)
      if (input[j]) check_tensor(kNames[j], *input[j], shape(j), dtype);
    STD_TORCH_CHECK(factor >= 1 && N % factor == 0, "factor is ", factor,
                    ", expected a divisor of ", N);
  }
};

// Dropout draws one mask for each part.
constexpr std::uint32_t kGlobalStream = 0, kTrunkStream = 1;

const MaybeTensor kNone;

const Tensor* pointer(const MaybeTensor& x) { return x ? &*x : nullptr; }

Pooling once(const Tensor& a, const Tensor& v, const Tensor& p, const Tensor& q,
             const MaybeTensor& p_bias, const MaybeTensor& q_bias, i64 factor, bool adaptive) {
  return {{&a, &v, &p, &q, pointer(p_bias), pointer(q_bias)},
          factor,
          kGlobalStream,
          adaptive,
          kNone,
          false};
}

Pooling per_trunk(const Tensor& a, const Tensor& v, const Tensor& p, const Tensor& q,
                  const MaybeTensor& p_bias, const MaybeTensor& q_bias, const MaybeTensor& lengths,
                  i64 factor) {
  return {{&a, &v, &p, &q, pointer(p_bias), pointer(q_bias)},
          factor,
          kTrunkStream,
          false,
          lengths,
          true};
}

Dropout mask_of(const MaybeTensor& seed, double dropout) {
  STD_TORCH_CHECK(dropout >= 0 && dropout <= 1, "dropout is ", dropout, ", expected 0 to 1");
  Dropout result;
  if (!seed) return result;
  check_tensor("seed", *seed, {}, ScalarType::Long);
  result.active = true;
  result.seed = seed->const_data_ptr<i64>();
  result.threshold = static_cast<std::uint64_t>(std::floor(dropout * 0x1p32));
  // In float32 for all dtypes, as in the reference.
  result.scale = dropout < 1 ? static_cast<float>(1 / (1 - dropout)) : 0;
  return result;
}

// The poolings of a call, checked, and what must live until the kernels are launched.
template <std::size_t parts>
class Call {
 public:
  Call(const std::array<Pooling, parts>& poolings, const MaybeTensor& seed, double dropout)
      : poolings_(poolings), dropout_(mask_of(seed, dropout)) {
    for (std::size_t i = 0; i < parts; ++i) {
      Pooling& pooling = poolings_[i];
      pooling.check();
      STD_TORCH_CHECK(pooling.B == B() && pooling.input[0]->scalar_type() == like().scalar_type(),
                      "the global and the trunk part differ in batch size or dtype");
      if (pooling.lengths) lengths_[i] = checked_lengths(*pooling.lengths, B(), pooling.H);
      outputs_ += pooling.outputs();
    }
  }

  const Pooling& operator[](std::size_t i) const { return poolings_[i]; }
  const Tensor& like() const { return *poolings_[0].input[0]; }
  i64 B() const { return poolings_[0].B; }
  i64 outputs() const { return outputs_; }

  bool any_empty() const {
    for (const Pooling& pooling : poolings_)
      if (pooling.empty()) return true;
    return false;
  }

  // The next part of a problem. None is empty.
  void describe(Part& part, std::size_t i) const {
    const Pooling& pooling = poolings_[i];
    part.H = pooling.H;
    part.N = pooling.N;
    part.K = pooling.factor;
    for (int side = 0; side < 2; ++side)
      part.side[side] = {pooling.width[side], pooling.view(side), pooling.view(2 + side),
                         pooling.input[4 + side] ? pooling.view(4 + side) : View{}};
    if (lengths_[i]) part.lengths = lengths_[i]->template const_data_ptr<i64>();
    part.adaptive = pooling.adaptive;
    part.dropout = dropout_;
    part.stream = pooling.stream;
    for (std::size_t before = 0; before < i; ++before) part.o_offset += poolings_[before].outputs();
  }

 private:
  std::array<Pooling, parts> poolings_;
  std::array<MaybeTensor, parts> lengths_;
  Dropout dropout_;
  i64 outputs_ = 0;
};

// Both projections of each part, where they are kept.
template <std::size_t parts>
using Kept = std::array<std::array<MaybeTensor, 2>, parts>;

template <std::size_t parts>
Tensor forward(const Call<parts>& call, bool keep, Kept<parts>& kept) {
  Tensor z = call.any_empty() ? zeros({call.B(), call.outputs()}, call.like())
                              : empty({call.B(), call.outputs()}, call.like());
  ForwardProblem problem;
  problem.dtype = dtype_of(call.like());
  problem.B = call.B();
  problem.z = z.mutable_data_ptr();
  problem.z_stride = call.outputs();
  for (std::size_t i = 0; i < parts; ++i) {
    for (int side = 0; keep && side < 2; ++side)
      kept[i][side] = empty(call[i].kept_shape(), call.like());
    if (call[i].empty()) continue;
    ForwardPart& part = problem.part[problem.parts++];
    call.describe(part, i);
    for (int side = 0; keep && side < 2; ++side)
      part.kept[side] = kept[i][side]->mutable_data_ptr();
  }
  if (problem.parts > 0) run(call.like(), &Kernels::bilinear_forward, problem);
  return z;
}

// For each part its gradients, or which of them are needed: of a, v, p, q, p_bias, q_bias.
template <std::size_t parts>
using Gradients = std::array<std::array<MaybeTensor, kInputs>, parts>;
template <std::size_t parts>
using Needs = std::array<std::array<bool, kInputs>, parts>;

template <std::size_t parts>
Gradients<parts> backward(const Tensor& dz, const Call<parts>& call, const Kept<parts>& kept,
                          const Needs<parts>& needs) {
  const ScalarType dtype = call.like().scalar_type();
  check_tensor("dz", dz, {call.B(), call.outputs()}, dtype);
  BackwardProblem problem;
  problem.dtype = dtype_of(call.like());
  problem.B = call.B();
  problem.dz = view(dz);
  Gradients<parts> gradients;
  Kept<parts> contiguous;
  for (std::size_t i = 0; i < parts; ++i) {
    const Pooling& pooling = call[i];
    void* data[kInputs] = {};
    bool any = false;
    for (int j = 0; j < kInputs; ++j) {
      if (!needs[i][j]) continue;
      STD_TORCH_CHECK(pooling.input[j] != nullptr, "the gradient of ", kNames[j],
                      " is asked for, which is not there");
      gradients[i][j] = pooling.empty() ? zeros(pooling.shape(j), call.like())
                                        : empty(pooling.shape(j), call.like());
      if (gradients[i][j]->numel() > 0) data[j] = gradients[i][j]->mutable_data_ptr();
      any = true;
    }
    if (!any || pooling.empty()) continue;
    BackwardPart& part = problem.part[problem.parts++];
    call.describe(part, i);
    STD_TORCH_CHECK(kept[i][0].has_value() == kept[i][1].has_value(),
                    "u and w are kept both or not at all");
    for (int side = 0; side < 2; ++side) {
      part.d_input[side] = data[side];
      part.d_weight[side] = data[2 + side];
      part.d_bias[side] = data[4 + side];
      if (!kept[i][side]) continue;
      check_tensor(side == 0 ? "u" : "w", *kept[i][side], pooling.kept_shape(), dtype);
      contiguous[i][side] = made_contiguous(*kept[i][side]);
      part.kept[side] = contiguous[i][side]->const_data_ptr();
    }
  }
  if (problem.parts > 0) run(call.like(), &Kernels::bilinear_backward, problem);
  return gradients;
}

// In the signatures below, arguments stand as in the declarations of the public operators.

using Kept2 = std::tuple<Tensor, MaybeTensor, MaybeTensor>;
using Gradients6 =
    std::tuple<MaybeTensor, MaybeTensor, MaybeTensor, MaybeTensor, MaybeTensor, MaybeTensor>;

Kept2 forward_of(const Call<1>& call, bool keep) {
  Kept<1> kept;
  Tensor z = forward(call, keep, kept);
  return {std::move(z), kept[0][0], kept[0][1]};
}

Gradients6 backward_of(const Tensor& dz, const Call<1>& call, const MaybeTensor& u,
                       const MaybeTensor& w, i64 needs) {
  Needs<1> needed;
  for (int j = 0; j < kInputs; ++j) needed[0][j] = (needs >> j & 1) != 0;
  const auto [d] = backward<1>(dz, call, {{{u, w}}}, needed);
  return {d[0], d[1], d[2], d[3], d[4], d[5]};
}

Kept2 fbp_forward(const Tensor& a, const Tensor& v, const Tensor& p, const Tensor& q,
                  const MaybeTensor& p_bias, const MaybeTensor& q_bias, const MaybeTensor& seed,
                  i64 factor, bool adaptive, double dropout, bool keep) {
  return forward_of({{once(a, v, p, q, p_bias, q_bias, factor, adaptive)}, seed, dropout}, keep);
}

Gradients6 fbp_backward(const Tensor& dz, const Tensor& a, const Tensor& v, const Tensor& p,
                        const Tensor& q, const MaybeTensor& p_bias, const MaybeTensor& q_bias,
                        const MaybeTensor& seed, const MaybeTensor& u, const MaybeTensor& w,
                        i64 factor, bool adaptive, double dropout, i64 needs) {
  return backward_of(dz, {{once(a, v, p, q, p_bias, q_bias, factor, adaptive)}, seed, dropout}, u,
                     w, needs);
}

Kept2 trunk_fbp_forward(const Tensor& a, const Tensor& v, const Tensor& p, const Tensor& q,
                        const MaybeTensor& p_bias, const MaybeTensor& q_bias,
                        const MaybeTensor& lengths, const MaybeTensor& seed, i64 factor,
                        double dropout, bool keep) {
  return forward_of({{per_trunk(a, v, p, q, p_bias, q_bias, lengths, factor)}, seed, dropout},
                    keep);
}

Gradients6 trunk_fbp_backward(const Tensor& dz, const Tensor& a, const Tensor& v, const Tensor& p,
                              const Tensor& q, const MaybeTensor& p_bias, const MaybeTensor& q_bias,
                              const MaybeTensor& lengths, const MaybeTensor& seed,
                              const MaybeTensor& u, const MaybeTensor& w, i64 factor,
                              double dropout, i64 needs) {
  return backward_of(dz, {{per_trunk(a, v, p, q, p_bias, q_bias, lengths, factor)}, seed, dropout},
                     u, w, needs);
}

std::array<Pooling, 2> both(const Tensor& a, const Tensor& v, const Tensor& a_trunks,
                            const Tensor& v_trunks, const Tensor& p, const Tensor& q,
                            const Tensor& p_trunks, const Tensor& q_trunks,
                            const MaybeTensor& lengths, i64 factor, i64 trunk_factor,
                            bool adaptive) {
  return {once(a, v, p, q, kNone, kNone, factor, adaptive),
          per_trunk(a_trunks, v_trunks, p_trunks, q_trunks, kNone, kNone, lengths, trunk_factor)};
}

std::tuple<Tensor, MaybeTensor, MaybeTensor, MaybeTensor, MaybeTensor> am_fbp_forward(
    const Tensor& a, const Tensor& v, const Tensor& a_trunks, const Tensor& v_trunks,
    const Tensor& p, const Tensor& q, const Tensor& p_trunks, const Tensor& q_trunks,
    const MaybeTensor& lengths, const MaybeTensor& seed, i64 factor, i64 trunk_factor,
    bool adaptive, double dropout, bool keep) {
  const Call<2> call(both(a, v, a_trunks, v_trunks, p, q, p_trunks, q_trunks, lengths, factor,
                          trunk_factor, adaptive),
                     seed, dropout);
  Kept<2> kept;
  Tensor z = forward(call, keep, kept);
  return {std::move(z), kept[0][0], kept[0][1], kept[1][0], kept[1][1]};
}

std::tuple<MaybeTensor, MaybeTensor, MaybeTensor, MaybeTensor, MaybeTensor, MaybeTensor,
           MaybeTensor, MaybeTensor>
am_fbp_backward(const Tensor& dz, const Tensor& a, const Tensor& v, const Tensor& a_trunks,
                const Tensor& v_trunks, const Tensor& p, const Tensor& q, const Tensor& p_trunks,
                const Tensor& q_trunks, const MaybeTensor& lengths, const MaybeTensor& seed,
                const MaybeTensor& u, const MaybeTensor& w, const MaybeTensor& u_trunks,
                const MaybeTensor& w_trunks, i64 factor, i64 trunk_factor, bool adaptive,
                double dropout, i64 needs) {
  const auto bit = [&](int j) { return (needs >> j & 1) != 0; };
  const Call<2> call(both(a, v, a_trunks, v_trunks, p, q, p_trunks, q_trunks, lengths, factor,
                          trunk_factor, adaptive),
                     seed, dropout);
  const Needs<2> needed{{{bit(0), bit(1), bit(4), bit(5), false, false},
                         {bit(2), bit(3), bit(6), bit(7), false, false}}};
  const auto [d, d_trunks] = backward<2>(dz, call, {{{u, w}, {u_trunks, w_trunks}}}, needed);
  return {d[0], d[1], d_trunks[0], d_trunks[1], d[2], d[3], d_trunks[2], d_trunks[3]};
}

}  // namespace

FBP_IMPLEMENTATIONS(m) {
  m.impl("fbp_forward", TORCH_BOX(&fbp_forward));
  m.impl("fbp_backward", TORCH_BOX(&fbp_backward));
  m.impl("trunk_fbp_forward", TORCH_BOX(&trunk_fbp_forward));
  m.impl("trunk_fbp_backward", TORCH_BOX(&trunk_fbp_backward));
  m.impl("am_fbp_forward", TORCH_BOX(&am_fbp_forward));
  m.impl("am_fbp_backward", TORCH_BOX(&am_fbp_backward));
}

}  // namespace fbp
