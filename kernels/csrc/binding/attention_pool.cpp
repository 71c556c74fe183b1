// Attention over frames, pooled over trunks.

#include <tuple>

#include "tensors.h"

namespace fbp {

namespace {

struct AttentionPoolCall {
  Tensor x, weight, bias, query;
  MaybeTensor scale, lengths;
  AttentionPoolProblem problem;

  AttentionPoolCall(const Tensor& x_, const Tensor& weight_, const Tensor& bias_,
                    const Tensor& query_, const MaybeTensor& scale_, const MaybeTensor& lengths_,
                    i64 trunks, double factor)
      : x(x_), weight(weight_), bias(bias_), query(query_), scale(scale_), lengths(lengths_) {
    STD_TORCH_CHECK(x.dim() == 3, "x has ", x.dim(), " dimensions, expected (B, T, C)");
    STD_TORCH_CHECK(weight.dim() == 2, "weight has ", weight.dim(), " dimensions, expected (C, A)");
    STD_TORCH_CHECK(trunks >= 1, "trunks is ", trunks, ", expected at least 1");
    const ScalarType dtype = x.scalar_type();
    problem.dtype = dtype_of(x);
    problem.B = x.size(0);
    problem.T = x.size(1);
    problem.C = x.size(2);
    problem.A = weight.size(1);
    problem.H = trunks;
    problem.factor = factor;
    check_tensor("x", x, {problem.B, problem.T, problem.C}, dtype);
    check_tensor("weight", weight, {problem.C, problem.A}, dtype);
    check_tensor("bias", bias, {problem.A}, dtype);
    check_tensor("query", query, {problem.A}, dtype);
    problem.x = view(x);
    problem.weight = view(weight);
    problem.bias = view(bias);
    problem.query = view(query);
    if (scale) {
      check_tensor("scale", *scale, {}, scale->scalar_type());
      problem.scale = scale->const_data_ptr();
      problem.scale_dtype = dtype_of(*scale);
    }
    if (lengths) {
      lengths = checked_lengths(*lengths, problem.B, problem.T);
      problem.lengths = lengths->const_data_ptr<i64>();
    }
  }

  bool empty() const { return problem.B == 0 || problem.T == 0; }

  // Memory for a result; what a kernel does not see has sums of nothing.
  Tensor result(Sizes sizes, const Tensor& like) const {
    return empty() ? zeros(sizes, like) : fbp::empty(sizes, like);
  }
};

std::tuple<Tensor, Tensor, Tensor, MaybeTensor> attention_pool_forward(
    Tensor x, Tensor weight, Tensor bias, Tensor query, MaybeTensor scale, MaybeTensor lengths,
    i64 trunks, double factor, bool keep) {
  AttentionPoolCall call(x, weight, bias, query, scale, lengths, trunks, factor);
  AttentionPoolProblem& problem = call.problem;
  Tensor pooled = call.result({problem.B, problem.C}, x);
  Tensor trunk_pooled = call.result({problem.B, problem.H, problem.C}, x);
  Tensor weights = call.result({problem.B, problem.T}, x);
  problem.pooled = pooled.mutable_data_ptr();
  problem.trunk_pooled = trunk_pooled.mutable_data_ptr();
  problem.weights = weights.mutable_data_ptr();
  MaybeTensor hidden;
  if (keep) {
    hidden = empty({problem.B, problem.T, problem.A}, x);
    problem.hidden = hidden->mutable_data_ptr();
  }
  if (!call.empty()) run(x, &Kernels::attention_pool_forward, problem);
  return {pooled, trunk_pooled, weights, hidden};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> attention_pool_backward(
    MaybeTensor d_pooled, MaybeTensor d_trunk_pooled, MaybeTensor d_weights, Tensor x,
    Tensor weight, Tensor bias, Tensor query, MaybeTensor scale, MaybeTensor lengths,
    Tensor weights, MaybeTensor hidden, i64 trunks, double factor, i64 needs) {
  AttentionPoolCall call(x, weight, bias, query, scale, lengths, trunks, factor);
  AttentionPoolProblem& problem = call.problem;
  const ScalarType dtype = x.scalar_type();
  check_tensor("weights", weights, {problem.B, problem.T}, dtype);
  weights = made_contiguous(weights);
  problem.weights = const_cast<void*>(weights.const_data_ptr());
  if (hidden) {
    check_tensor("hidden", *hidden, {problem.B, problem.T, problem.A}, dtype);
    hidden = made_contiguous(*hidden);
    problem.hidden = const_cast<void*>(hidden->const_data_ptr());
  }
  const auto gradient = [&](const char* name, const MaybeTensor& tensor, Sizes sizes) {
    if (!tensor) return View{};
    check_tensor(name, *tensor, sizes, dtype);
    return view(*tensor);
  };
  problem.d_pooled = gradient("d_pooled", d_pooled, {problem.B, problem.C});
  problem.d_trunk_pooled =
      gradient("d_trunk_pooled", d_trunk_pooled, {problem.B, problem.H, problem.C});
  problem.d_weights = gradient("d_weights", d_weights, {problem.B, problem.T});

  void** const targets[5] = {&problem.d_x, &problem.d_weight, &problem.d_bias, &problem.d_query,
                             &problem.d_scale};
  const Tensor* const inputs[5] = {&x, &weight, &bias, &query, scale ? &*scale : nullptr};
  std::vector<Tensor> results;
  for (int i = 0; i < 5; ++i) {
    if ((needs >> i & 1) == 0) {
      results.push_back(nothing(x));
      continue;
    }
    STD_TORCH_CHECK(inputs[i] != nullptr, "the gradient of a scale is asked for that is not there");
    results.push_back(call.result(inputs[i]->sizes(), *inputs[i]));
    *targets[i] = results.back().mutable_data_ptr();
  }
  if (!call.empty() && needs != 0) run(x, &Kernels::attention_pool_backward, problem);
  return {results[0], results[1], results[2], results[3], results[4]};
}

}  // namespace

FBP_IMPLEMENTATIONS(m) {
  m.impl("attention_pool_forward", TORCH_BOX(&attention_pool_forward));
  m.impl("attention_pool_backward", TORCH_BOX(&attention_pool_backward));
}

}  // namespace fbp
