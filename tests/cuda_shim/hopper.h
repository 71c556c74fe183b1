// What Hopper has beside older devices, on the host: barriers in shared memory that count bytes,
// tensor maps and bulk copies, products of warpgroups on operands that descriptors tell of, and
// registers that warpgroups hand to one another.
//
// What is asynchronous takes place at any time that is allowed, as late as can be in the order
// `forward`, as early in `reverse`, drawn by the seed in `shuffled`: a bulk copy from when it is
// asked for until its barrier lets somebody pass, a product from when it is asked for until it is
// waited for. Until then a destination is NaN, in shared memory and in registers.

#pragma once

#include <cstdint>

#include "shim.h"

namespace shim {

// ---- addresses ----

// As the device counts them: shared memory begins at 1024, and bits 24 on tell whose it is.
std::uint32_t shared_address(const void* pointer);

// ---- barriers ----

void mbarrier_init(std::uint64_t* barrier, unsigned arrivals, Place place);
void mbarrier_init_fence();
void mbarrier_arrive(std::uint64_t* barrier, unsigned bytes, Place place);
void mbarrier_wait(std::uint64_t* barrier, unsigned parity, Place place);

// Shows copies and products what threads of the block have written to shared memory so far: until
// then they see what was there before. Of all threads that ran, though a device shows what the
// calling one has written alone.
void proxy_fence();

// ---- bulk copies ----

constexpr int kMapRank = 3;

// What is encoded in a tensor map.
struct TensorMap {
  std::uint64_t magic;
  const unsigned char* data;
  std::uint64_t size[kMapRank];
  std::uint64_t stride[kMapRank];  // bytes
  std::uint32_t box[kMapRank];
  std::uint32_t element;  // bytes
  std::uint32_t swizzle;  // bytes of a line, 0 for none
  bool rounds;            // float32 to TF32, to the nearest, of two the even one
};

// Copies the box that begins at `at` to the same address in every block of `blocks`, a bit each.
void bulk_copy(void* to, const TensorMap& map, std::uint64_t* barrier, const int (&at)[kMapRank],
               unsigned blocks, Place place);

// ---- products ----

// Where an element of so many bytes lies that a matrix descriptor tells of: `along` and `across`
// count along what is contiguous, and across it. Addresses are those of shared_address().
class Operand {
 public:
  Operand(std::uint64_t descriptor, bool depth_contiguous, std::uint32_t bytes);

  std::uint32_t address(int along, int across) const;

 private:
  std::uint32_t begin_, leading_, stride_, chunks_, bytes_;
  bool depth_contiguous_;
};

// Of numbers of TF32 the digits are not looked at that it does not have.
enum class Number { bfloat16, float16, tf32 };

// 64 rows of a warpgroup by `columns`, of which the calling warp has 16: adds a (64, 16), from
// shared memory or, where `registers` are not null, from those of the lanes, times b
// (16, columns). In TF32 the depth is 8.
struct Product {
  Number number;
  int columns;
  float* sums;                     // the lane's
  const std::uint32_t* registers;  // the lane's four words of a, or null
  std::uint64_t a, b;
  bool a_depth_contiguous, b_depth_contiguous;
  bool more;
};

void wgmma(const Product& product, Place place);
void wgmma_fence(Place place);
void wgmma_commit(Place place);
void wgmma_wait(unsigned groups_left, Place place);

// ---- registers ----

// For all threads of a warpgroup; `gives` back, or takes.
void set_registers(unsigned registers, bool gives, Place place);

// ---- for the scheduler ----

// Before the first thread of a block runs, and after the last. The second throws where something
// is left that should not be.
void begin_hopper(unsigned rank, unsigned threads);
void end_hopper(unsigned rank);

// Of the thread that ends: throws nothing, but fails.
void end_of_thread();

}  // namespace shim
