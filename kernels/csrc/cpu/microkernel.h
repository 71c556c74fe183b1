// How rows and columns are divided into tiles.

#pragma once

#include "pack.h"

namespace fbp::FBP_ISA {

// Divides `length` rows into tiles of at most `most` that differ by at most one row, larger ones
// first.
struct Tiling {
  i64 length, count;

  Tiling(i64 length_, i64 most) : length(length_), count(ceil_div(length_, most)) {}
  i64 start(i64 tile) const { return tile * (length / count) + smaller(tile, length % count); }
  int rows(i64 tile) const { return static_cast<int>(start(tile + 1) - start(tile)); }
};

}  // namespace fbp::FBP_ISA
