// What the operators' files share: checks of tensors, allocation of results, translation into the
// plain views that the kernels take.

#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "device.h"

namespace fbp {

using torch::headeronly::ScalarType;
using MaybeTensor = std::optional<Tensor>;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

// Asks for large pages where memory of so many bytes is not in use yet: the system maps and clears
// a result of megabytes while a kernel writes it, and does so 512 times less often.
inline void prefer_large_pages([[maybe_unused]] const Tensor& x, [[maybe_unused]] i64 bytes) {
#if defined(__linux__)
  constexpr std::uintptr_t page = 2 << 20;
  if (!x.is_cpu() || bytes < static_cast<i64>(2 * page)) return;
  const auto start = reinterpret_cast<std::uintptr_t>(x.const_data_ptr());
  const std::uintptr_t first = (start + page - 1) / page * page;
  const std::uintptr_t end = (start + static_cast<std::uintptr_t>(bytes)) / page * page;
  madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#endif
}

// Straight from the allocator: through the dispatcher, the results of a backward took a third of
// the time of a small call.
inline Tensor empty_strided(Sizes sizes, const i64* strides, const Tensor& like) {
  std::int32_t dtype = 0, device = 0, index = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &index));
  AtenTensorHandle result = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<i64>(sizes.size()), sizes.data(),
                                                  strides, dtype, device, index, &result));
  Tensor x(result);
  prefer_large_pages(x, x.numel() * static_cast<i64>(aoti_torch_dtype_element_size(dtype)));
  return x;
}

inline Tensor empty(Sizes sizes, const Tensor& like) {
  std::vector<i64> strides(sizes.size());
  i64 stride = 1;
  for (std::size_t i = sizes.size(); i-- > 0;) {
    strides[i] = stride;
    if (sizes[i] > 0) stride *= sizes[i];
  }
  return empty_strided(sizes, strides.data(), like);
}

// In the layout of x.
inline Tensor empty_as(const Tensor& x) {
  Tensor result = torch::stable::empty_like(x);
  prefer_large_pages(result, result.numel() * static_cast<i64>(result.element_size()));
  return result;
}

inline Tensor zeros(Sizes sizes, const Tensor& like) {
  return torch::stable::new_zeros(like, sizes);
}

inline Tensor nothing(const Tensor& like) { return empty({0}, like); }

inline std::vector<i64> sizes_of(const Tensor& x) {
  std::vector<i64> sizes;
  for (i64 i = 0; i < x.dim(); ++i) sizes.push_back(x.size(i));
  return sizes;
}

inline std::string shape_text(Sizes sizes) {
  std::string text = "(";
  for (const i64 size : sizes) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + ")";
}

inline void check_tensor(const char* name, const Tensor& x, Sizes sizes, ScalarType dtype) {
  STD_TORCH_CHECK(is_ours(x), name, " must be on ", kDeviceName);
  STD_TORCH_CHECK(x.scalar_type() == dtype, name, " has dtype ",
                  torch::headeronly::toString(x.scalar_type()), ", expected ",
                  torch::headeronly::toString(dtype));
  STD_TORCH_CHECK(x.sizes().equals(sizes), name, " has shape ", shape_text(x.sizes()),
                  ", expected ", shape_text(sizes));
}

inline Tensor made_contiguous(const Tensor& x) {
  return x.is_contiguous() ? x : torch::stable::contiguous(x);
}

// Lengths as the kernels read them: from 0 to `most` for each row. The values are looked at where
// that costs no wait for a GPU.
inline Tensor checked_lengths(const Tensor& lengths, i64 rows, i64 most) {
  check_tensor("lengths", lengths, {rows}, ScalarType::Long);
  Tensor result = made_contiguous(lengths);
  if (result.is_cpu()) {
    const i64* const length = result.const_data_ptr<i64>();
    for (i64 row = 0; row < rows; ++row)
      STD_TORCH_CHECK(length[row] >= 0 && length[row] <= most, "lengths[", row, "] is ",
                      length[row], ", expected from 0 to ", most);
  }
  return result;
}

inline Dtype dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return Dtype::float32;
    case ScalarType::Double:
      return Dtype::float64;
    case ScalarType::BFloat16:
      return Dtype::bfloat16;
    case ScalarType::Half:
      return Dtype::float16;
    default:
      STD_TORCH_CHECK(false, "dtype ", torch::headeronly::toString(x.scalar_type()),
                      " is not supported, expected float32, float64, bfloat16 or float16");
  }
}

// Kernels take pointers that they may write through; for inputs they do not.
inline View view(const Tensor& x, int first_dim = 0) {
  View result;
  result.data = const_cast<void*>(x.const_data_ptr());
  for (i64 i = 0; i < x.dim(); ++i) result.stride[first_dim + i] = x.stride(i);
  return result;
}

// Channels apart: x is contiguous. Channels together: the channels are, and the rest is one row of
// positions.
enum class Layout { apart, together, neither };

inline Layout layout_of(const Tensor& x) {
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
inline Tensor in_layout_of(const Tensor& x, const Tensor& dy) {
  if (layout_of(dy) == layout_of(x)) return dy;
  Tensor same = empty_as(x);
  return torch::stable::copy_(same, dy);
}

// Hands dy to a backward in the layout of x or, where the kernel reads it so, with its channels
// apart: gradients come so from a layer that is not channels last.
template <class Problem>
void give_gradient(Problem& problem, const Tensor& x, Tensor& dy, bool any_layout) {
  const bool apart =
      any_layout && layout_of(x) == Layout::together && layout_of(dy) == Layout::apart;
  if (!apart) dy = in_layout_of(x, dy);
  problem.dy = dy.const_data_ptr();
  problem.dy_channels_last = problem.channels_last && !apart;
}

// Runs one of the device's kernels.
template <class Problem>
void run(const Tensor& like, void (*Kernels::*kernel)(const Problem&, const Context&),
         const Problem& problem) {
  const Device device(like);
  (device.kernels().*kernel)(problem, device.context());
}

}  // namespace fbp
