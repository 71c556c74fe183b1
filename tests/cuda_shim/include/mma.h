// nvcuda::wmma on the host. A fragment is spread over the lanes in an order of its own (which a GPU
// does not tell either); operations are a meeting of all lanes of a warp, and one lane computes.

#pragma once

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "cuda_runtime.h"

namespace nvcuda::wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
enum layout_t { mem_row_major, mem_col_major };

namespace precision {
struct tf32;
}

template <class Type>
struct Stored {
  using type = Type;
};
template <>
struct Stored<precision::tf32> {
  using type = float;
};

// What enters a product: TF32 has 10 digits, the others of a float are not looked at.
template <class Type>
float operand(typename Stored<Type>::type x) {
  if constexpr (std::is_same_v<Type, precision::tf32>) {
    return shim::bits<float>(shim::bits<std::uint32_t>(x) & 0xffffe000u);
  } else {
    return x;
  }
}

template <class Use, int M, int N, int K, class Type, class Layout = void>
struct fragment {
  static constexpr bool kHalf = std::is_same_v<Type, __half> || std::is_same_v<Type, __nv_bfloat16>;
  static constexpr bool kAccumulator = std::is_same_v<Use, accumulator>;
  static_assert(K == (std::is_same_v<Type, precision::tf32> ? 8
                      : kAccumulator                        ? K
                                                            : 16),
                "no such shape");
  static_assert(M * N == 256 && (M == 16 || M == 8 || M == 32), "no such shape");
  static_assert(kAccumulator ? std::is_same_v<Type, float>
                             : kHalf || std::is_same_v<Type, precision::tf32>,
                "no such type");
  static constexpr int kRows = std::is_same_v<Use, matrix_b> ? K : M;
  static constexpr int kColumns = std::is_same_v<Use, matrix_a> ? K : N;
  static constexpr int num_elements = kRows * kColumns / 32;
  using element_type = typename Stored<Type>::type;
  using storage_element_type = element_type;

  element_type x[num_elements];

  // Which element of the matrix, counted by rows, is element i of a lane: any bijection serves.
  static constexpr int place(int lane, int i) {
    return (lane * num_elements + i) * 77 % (kRows * kColumns);
  }
};

namespace detail {

// Towards zero, as sums leave the tensor cores.
inline float truncated(double x) {
  const auto near = static_cast<float>(x);
  return std::abs(double{near}) > std::abs(x) ? std::nextafter(near, 0.0f) : near;
}

template <class T>
void check_address(const T* address, unsigned ld) {
  if (reinterpret_cast<std::uintptr_t>(address) % 32 != 0)
    shim::fail("a fragment's address is not a multiple of 32 bytes");
  if (ld * sizeof(T) % 16 != 0) shim::fail("a fragment's rows are not a multiple of 16 bytes");
}

inline void meet(const char* name, shim::Place place) {
  int nothing;
  shim::meet(name, 0xffffffffu, &nothing, [](void* const*) {}, place);
}

template <class Fragment, class T>
void load(Fragment& f, const T* from, unsigned ld, bool rows) {
  check_address(from, ld);
  for (int i = 0; i < Fragment::num_elements; ++i) {
    const int e = Fragment::place(shim::lane(), i);
    const int row = e / Fragment::kColumns, column = e % Fragment::kColumns;
    f.x[i] = rows ? from[row * static_cast<std::size_t>(ld) + column]
                  : from[column * static_cast<std::size_t>(ld) + row];
  }
}

template <class A, class B, class C>
struct Product {
  C* d;
  const A* a;
  const B* b;
  const C* c;
};

}  // namespace detail

template <class Use, int M, int N, int K, class Type, class Layout, class T>
void load_matrix_sync(fragment<Use, M, N, K, Type, Layout>& f, const T* from, unsigned ld,
                      FBP_SHIM_PLACE) {
  static_assert(!std::is_void_v<Layout>, "the layout of an accumulator is an argument");
  detail::meet("load_matrix_sync", {file, line});
  detail::load(f, from, ld, std::is_same_v<Layout, row_major>);
}

template <int M, int N, int K, class Type>
void load_matrix_sync(fragment<accumulator, M, N, K, Type>& f, const Type* from, unsigned ld,
                      layout_t layout, FBP_SHIM_PLACE) {
  detail::meet("load_matrix_sync", {file, line});
  detail::load(f, from, ld, layout == mem_row_major);
}

template <int M, int N, int K, class Type>
void store_matrix_sync(Type* to, const fragment<accumulator, M, N, K, Type>& f, unsigned ld,
                       layout_t layout, FBP_SHIM_PLACE) {
  detail::meet("store_matrix_sync", {file, line});
  detail::check_address(to, ld);
  for (int i = 0; i < f.num_elements; ++i) {
    const int e = f.place(shim::lane(), i);
    const int row = e / N, column = e % N;
    to[layout == mem_row_major ? row * static_cast<std::size_t>(ld) + column
                               : column * static_cast<std::size_t>(ld) + row] = f.x[i];
  }
}

template <class Use, int M, int N, int K, class Type, class Layout, class T>
void fill_fragment(fragment<Use, M, N, K, Type, Layout>& f, T value) {
  for (auto& x : f.x) x = value;
}

template <int M, int N, int K, class Type, class LayoutA, class LayoutB>
void mma_sync(fragment<accumulator, M, N, K, float>& d,
              const fragment<matrix_a, M, N, K, Type, LayoutA>& a,
              const fragment<matrix_b, M, N, K, Type, LayoutB>& b,
              const fragment<accumulator, M, N, K, float>& c, FBP_SHIM_PLACE) {
  using A = fragment<matrix_a, M, N, K, Type, LayoutA>;
  using B = fragment<matrix_b, M, N, K, Type, LayoutB>;
  using C = fragment<accumulator, M, N, K, float>;
  using Product = detail::Product<A, B, C>;
  Product own{&d, &a, &b, &c};
  shim::meet("mma_sync", 0xffffffffu, &own,
             [](void* const lanes[32]) {
               float left[M * K], right[K * N], sum[M * N];
               for (int lane = 0; lane < 32; ++lane) {
                 const Product& of = *static_cast<const Product*>(lanes[lane]);
                 for (int i = 0; i < A::num_elements; ++i)
                   left[A::place(lane, i)] = operand<Type>(of.a->x[i]);
                 for (int i = 0; i < B::num_elements; ++i)
                   right[B::place(lane, i)] = operand<Type>(of.b->x[i]);
                 for (int i = 0; i < C::num_elements; ++i) sum[C::place(lane, i)] = of.c->x[i];
               }
               for (int m = 0; m < M; ++m)
                 for (int n = 0; n < N; ++n) {
                   double exact = sum[m * N + n];
                   for (int k = 0; k < K; ++k)
                     exact += double{left[m * K + k]} * double{right[k * N + n]};
                   sum[m * N + n] = detail::truncated(exact);
                 }
               for (int lane = 0; lane < 32; ++lane) {
                 const Product& of = *static_cast<const Product*>(lanes[lane]);
                 for (int i = 0; i < C::num_elements; ++i) of.d->x[i] = sum[C::place(lane, i)];
               }
             },
             {file, line});
}

// To nearest, ties away from zero.
inline float __float_to_tf32(float x) {
  const auto all = shim::bits<std::uint32_t>(x);
  if ((all & 0x7f800000u) == 0x7f800000u) return x;
  return shim::bits<float>((all + 0x1000u) & 0xffffe000u);
}

}  // namespace nvcuda::wmma
