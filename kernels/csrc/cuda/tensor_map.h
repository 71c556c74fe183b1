// How the copy engine is told of a tensor: a tensor map, made on the host for each launch and
// passed with its parameters.

#pragma once

#include <cuda.h>

#include <cstdint>

#include "../problem.h"
#include "cuda/launch.h"

namespace fbp::cuda {

// The widest lines of a box, as wide as the widest swizzle, 128 bytes.
constexpr int kMapLine = 64;   // numbers of two bytes
constexpr int kMapBytes = 16;  // to which addresses and strides are aligned
constexpr int kMapChunk = 8;   // in numbers of two bytes

// Of a number.
constexpr i64 bytes_of(Dtype dtype) { return dtype == Dtype::float32 ? 4 : 2; }

// A tensor, innermost dimension first; its numbers are side by side.
struct MappedTensor {
  const void* data = nullptr;
  i64 size[3] = {}, stride[3] = {};  // strides in numbers

  // Strides along which nothing is to be found mean nothing: they become such as maps allow.
  MappedTensor(const void* data_, const i64 (&sizes)[3], const i64 (&strides)[3]) : data(data_) {
    for (int i = 0; i < 3; ++i) {
      size[i] = sizes[i];
      stride[i] = strides[i];
    }
    if (size[0] == 1) stride[0] = 1;
    const i64 line = (size[0] + kMapChunk - 1) / kMapChunk * kMapChunk;
    if (size[1] == 1) stride[1] = size[2] == 1 ? line : stride[2];
    if (size[2] == 1) stride[2] = size[1] * stride[1];
  }

  // Whether a map can tell it: what the driver's documentation asks of addresses, sizes and
  // strides, and coordinates that are numbers of 32 bits, a box beyond the end included. A number
  // has so many `bytes`.
  bool can_be_mapped(i64 bytes = 2) const {
    const i64 most_stride = (i64{1} << 40) / bytes;
    constexpr i64 kMostSize = (i64{1} << 31) - 1024;
    if (reinterpret_cast<std::uintptr_t>(data) % kMapBytes != 0 || stride[0] != 1) return false;
    for (int i = 0; i < 3; ++i)
      if (size[i] < 1 || size[i] > kMostSize) return false;
    for (int i = 1; i < 3; ++i) {
      if (stride[i] % (kMapBytes / bytes) != 0 || stride[i] >= most_stride) return false;
      // Dimensions lie within one another; so none has a stride of 0.
      if (stride[i] < size[i - 1] * stride[i - 1] || (i > 1 && stride[i] % stride[i - 1] != 0))
        return false;
    }
    return true;
  }
};

// The driver's function, by way of the runtime: this library is not linked to the driver's.
inline decltype(&cuTensorMapEncodeTiled) tensor_map_encoder() {
  static const auto encoder = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
    constexpr unsigned kVersion = 12000;  // the first that has it
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, kVersion,
                                           cudaEnableDefault, &result),
          "cuTensorMapEncodeTiled");
    if (found == nullptr || result != cudaDriverEntryPointSuccess)
      throw std::runtime_error("this driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
  }();
  return encoder;
}

// Boxes of `lines` lines along dimension `along`, 1 or 2, of `line` numbers each, 128 bytes or 64,
// as a swizzle of so many bytes lays them. Of float32 the copy engine rounds each number to TF32,
// to the nearest: the tensor cores would truncate it.
inline CUtensorMap tensor_map(Dtype dtype, const MappedTensor& tensor, int along, int lines,
                              int line = kMapLine) {
  const auto type = dtype == Dtype::float32    ? CU_TENSOR_MAP_DATA_TYPE_TFLOAT32
                    : dtype == Dtype::bfloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                               : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const auto bytes = static_cast<cuuint64_t>(bytes_of(dtype));
  const cuuint64_t sizes[3] = {static_cast<cuuint64_t>(tensor.size[0]),
                               static_cast<cuuint64_t>(tensor.size[1]),
                               static_cast<cuuint64_t>(tensor.size[2])};
  const cuuint64_t strides[2] = {static_cast<cuuint64_t>(tensor.stride[1]) * bytes,
                                 static_cast<cuuint64_t>(tensor.stride[2]) * bytes};
  cuuint32_t box[3] = {static_cast<cuuint32_t>(line), 1, 1};
  box[along] = static_cast<cuuint32_t>(lines);
  const cuuint32_t every[3] = {1, 1, 1};
  const auto swizzle = line * bytes == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B;
  CUtensorMap map;
  const CUresult result =
      tensor_map_encoder()(&map, type, 3, const_cast<void*>(tensor.data), sizes, strides, box,
                           every, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS)
    throw std::runtime_error("cuTensorMapEncodeTiled: error " + std::to_string(result));
  return map;
}

}  // namespace fbp::cuda
