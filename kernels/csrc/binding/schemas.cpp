// The operators of the library, whatever the device. The Python package declares the public ones
// and says in which order a kernel is given what.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(FBP_LIBRARY, m) {
  m.def(
      "fbp_forward(Tensor a, Tensor v, Tensor p, Tensor q, Tensor? p_bias, Tensor? q_bias, "
      "Tensor? seed, int factor, bool adaptive, float dropout, bool keep) -> "
      "(Tensor z, Tensor? u, Tensor? w)");
  m.def(
      "fbp_backward(Tensor dz, Tensor a, Tensor v, Tensor p, Tensor q, Tensor? p_bias, "
      "Tensor? q_bias, Tensor? seed, Tensor? u, Tensor? w, int factor, bool adaptive, "
      "float dropout, int needs) -> "
      "(Tensor? da, Tensor? dv, Tensor? dp, Tensor? dq, Tensor? dp_bias, Tensor? dq_bias)");
  m.def(
      "trunk_fbp_forward(Tensor a, Tensor v, Tensor p, Tensor q, Tensor? p_bias, Tensor? q_bias, "
      "Tensor? lengths, Tensor? seed, int factor, float dropout, bool keep) -> "
      "(Tensor z, Tensor? u, Tensor? w)");
  m.def(
      "trunk_fbp_backward(Tensor dz, Tensor a, Tensor v, Tensor p, Tensor q, Tensor? p_bias, "
      "Tensor? q_bias, Tensor? lengths, Tensor? seed, Tensor? u, Tensor? w, int factor, "
      "float dropout, int needs) -> "
      "(Tensor? da, Tensor? dv, Tensor? dp, Tensor? dq, Tensor? dp_bias, Tensor? dq_bias)");
  m.def(
      "am_fbp_forward(Tensor a, Tensor v, Tensor a_trunks, Tensor v_trunks, Tensor p, Tensor q, "
      "Tensor p_trunks, Tensor q_trunks, Tensor? lengths, Tensor? seed, int factor, "
      "int trunk_factor, bool adaptive, float dropout, bool keep) -> "
      "(Tensor z, Tensor? u, Tensor? w, Tensor? u_trunks, Tensor? w_trunks)");
  m.def(
      "am_fbp_backward(Tensor dz, Tensor a, Tensor v, Tensor a_trunks, Tensor v_trunks, Tensor p, "
      "Tensor q, Tensor p_trunks, Tensor q_trunks, Tensor? lengths, Tensor? seed, Tensor? u, "
      "Tensor? w, Tensor? u_trunks, Tensor? w_trunks, int factor, int trunk_factor, "
      "bool adaptive, float dropout, int needs) -> "
      "(Tensor? da, Tensor? dv, Tensor? da_trunks, Tensor? dv_trunks, Tensor? dp, Tensor? dq, "
      "Tensor? dp_trunks, Tensor? dq_trunks)");
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
  m.def(
      "attention_pool_forward(Tensor x, Tensor weight, Tensor bias, Tensor query, Tensor? scale, "
      "Tensor? lengths, int trunks, float factor, bool keep) -> "
      "(Tensor pooled, Tensor trunk_pooled, Tensor weights, Tensor? hidden)");
  m.def(
      "attention_pool_backward(Tensor? d_pooled, Tensor? d_trunk_pooled, Tensor? d_weights, "
      "Tensor x, Tensor weight, Tensor bias, Tensor query, Tensor? scale, Tensor? lengths, "
      "Tensor weights, Tensor? hidden, int trunks, float factor, int needs) -> "
      "(Tensor dx, Tensor d_weight, Tensor d_bias, Tensor d_query, Tensor d_scale)");
  m.def("power_normalize_forward(Tensor z, float eps) -> Tensor");
  m.def("power_normalize_backward(Tensor dy, Tensor z, float eps) -> Tensor");
  m.def("dropout_forward(Tensor x, Tensor state, float p) -> (Tensor y, Tensor after)");
  m.def("dropout_backward(Tensor dy, Tensor x, Tensor state, float p) -> Tensor");
  m.def(
      "conv2d_weight_gradient(Tensor dy, Tensor x, Tensor weight, int stride_y, int stride_x, "
      "int padding_y, int padding_x) -> Tensor");
}
