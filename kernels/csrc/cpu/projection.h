// What forward and backward share: the batch in panels, the projections of a tile, adaptive scales,
// masks of rows.
//
// Batch rows are the lanes: a panel is kPanel rows of the batch, and a tile of a projection is
// (columns n, lanes b). So weights are broadcast one by one and need no particular layout, the sum
// over K adds whole vectors, and an adaptive scale, a length or a dropout word belongs to a lane.

#pragma once

#include "operands.h"

namespace fbp::FBP_ISA {

// The left operand of a product, tile by tile: read where it is, or packed.
template <class S>
struct Left {
  const S* data;
  i64 stride;  // between steps, where read in place
  i64 depth;
  bool packed;

  const S* tile(const Tiling& tiling, i64 t) const {
    return data + tiling.start(t) * (packed ? depth : 1);
  }
  i64 tile_stride(const Tiling& tiling, i64 t) const { return packed ? tiling.rows(t) : stride; }
};

// from[r * row_stride + k * depth_stride], rows as in `tiling`, read in place where rows are
// contiguous and need no conversion: even where many panels use it, copying does not pay. `scratch`
// holds tiling.length * depth + kPackSlack.
template <class T, class S>
Left<S> prepare_left(const T* from, i64 row_stride, i64 depth_stride, const Tiling& tiling,
                     i64 depth, bool must_copy, S* scratch) {
  if constexpr (__is_same(T, S)) {
    if (row_stride == 1 && !must_copy) return {from, depth_stride, depth, false};
  }
  for (i64 t = 0; t < tiling.count; ++t) {
    const i64 start = tiling.start(t);
    const int rows = tiling.rows(t);
    pack(from + start * row_stride, row_stride, depth_stride, rows, depth, rows,
         scratch + start * depth);
  }
  return {scratch, 0, depth, true};
}

// Which lanes of a panel count for trunk h.
template <class S>
struct Live {
  typename Simd<S>::Bits mask[2];
  bool all, any;

  Live(const Part& part, i64 h, i64 row, i64 lanes) : all(true), any(false) {
    for (int lane = 0; lane < kPanel<S>; ++lane) {
      const bool alive = lane < lanes && (!part.lengths || h < part.lengths[row + lane]);
      mask[lane / kWidth<S>][lane % kWidth<S>] = alive ? -1 : 0;
      all = all && alive;
      any = any || alive;
    }
  }

  // Zeroes the dead lanes of a tile (rows, kPanel).
  void apply(i64 rows, S* tile) const {
    if (all) return;
    for (i64 r = 0; r < 2 * rows; ++r)
      store(tile + r * kWidth<S>, where<S>(mask[r % 2], load(tile + r * kWidth<S>)));
  }
};

// The rows of the batch that are worked on at a time, as panels.
struct Rows {
  i64 start, count, panel_size;

  i64 panels() const { return ceil_div(count, panel_size); }
  i64 row(i64 panel) const { return start + panel * panel_size; }
  i64 lanes(i64 panel) const { return smaller(panel_size, count - panel * panel_size); }
};

// The norms of the inputs of a panel's rows, and the factors that they give.
template <class S>
struct Adaptive {
  double norm[2][kPanel<S>];
  S scale[2][kPanel<S>];  // mu, eta

  void measure(int side, const S* panel, i64 width) {
    double sum[kPanel<S>] = {};
    for (i64 c = 0; c < width; ++c)
      for (int lane = 0; lane < kPanel<S>; ++lane) {
        const double x = panel[c * kPanel<S> + lane];
        sum[lane] += x * x;
      }
    for (int lane = 0; lane < kPanel<S>; ++lane) norm[side][lane] = __builtin_sqrt(sum[lane]);
  }

  void set_scales() {
    for (int side = 0; side < 2; ++side)
      for (int lane = 0; lane < kPanel<S>; ++lane) {
        const double total = norm[0][lane] + norm[1][lane];
        scale[side][lane] = static_cast<S>(total == 0 ? 0.5 : norm[side][lane] / total);
      }
  }
};

// The parts' trunks, counted through.
struct Trunk {
  int part;
  i64 h;

  template <class Problem>
  Trunk(const Problem& problem, i64 index) : part(0), h(index) {
    while (h >= problem.part[part].H) h -= problem.part[part++].H;
  }
};

// Packed inputs of some rows of the batch, for all trunks of a part.
template <class T>
class PackedPart {
 public:
  using S = typename AccumulateIn<T>::type;

  PackedPart() = default;
  // Without `inputs`, only what `adaptive` needs.
  PackedPart(const Part& part, i64 panels, bool inputs) : panels_(panels) {
    for (int side = 0; side < 2; ++side) {
      width_[side] = part.side[side].width;
      if (inputs)
        inputs_[side] = Buffer<S>(part.H * panels * width_[side] * kPanel<S> + kPackSlack<S>);
    }
    if (part.adaptive) adaptive_ = Buffer<Adaptive<S>>(panels);
  }

  // Packs one panel of one trunk.
  void pack_panel(const Part& part, const Rows& rows, i64 h, i64 panel) {
    for (int side = 0; side < 2; ++side) {
      if (!inputs_[side].get()) continue;
      const View& input = part.side[side].input;
      pack(at<T>(input, rows.row(panel), h, 0), input.stride[0], input.stride[2], rows.lanes(panel),
           width_[side], kPanel<S>, inputs_[side].get() + offset(side, h, panel));
      if (part.adaptive) adaptive_[panel].measure(side, input_panel(side, h, panel), width_[side]);
    }
    if (part.adaptive) adaptive_[panel].set_scales();
  }

  const S* input_panel(int side, i64 h, i64 panel) const {
    return inputs_[side].get() + offset(side, h, panel);
  }
  const Adaptive<S>* adaptive(i64 panel) const {
    return adaptive_.get() ? adaptive_.get() + panel : nullptr;
  }

 private:
  i64 offset(int side, i64 h, i64 panel) const {
    return (h * panels_ + panel) * width_[side] * kPanel<S>;
  }

  i64 panels_ = 0;
  i64 width_[2] = {};
  Buffer<S> inputs_[2];
  Buffer<Adaptive<S>> adaptive_;
};

// A tile (rows, kPanel) of one projection: product, scale, bias, dead lanes.
template <class T, class S>
void project_tile(const Side& side, i64 leaf, i64 h, i64 n, int rows, const S* weights,
                  i64 weights_stride, const S* input_panel, const S* scale, const Live<S>& live,
                  S* tile) {
  constexpr int W = kWidth<S>;
  multiply(rows, weights, weights_stride, input_panel, side.width, leaf, tile);
  if (scale)
    for (int r = 0; r < 2 * rows; ++r)
      store(tile + r * W, load(tile + r * W) * load(scale + r % 2 * W));
  if (side.bias)
    for (int r = 0; r < 2 * rows; ++r)
      store(tile + r * W,
            load(tile + r * W) + splat(static_cast<S>(widen(*at<T>(side.bias, h, 0, n + r / 2)))));
  live.apply(rows, tile);
}

// Multiplies a tile by its dropout mask. `rows` is at most kTileRows or kPanel.
template <class S>
void drop(const Part& part, i64 h, i64 n, int rows, i64 row, S* tile) {
  constexpr int capacity = larger(kTileRows, kPanel<S>) * kPanel<S>;
  S mask[capacity];
  dropout_mask<capacity>(part.dropout, part.stream, h, n, rows, row, kPanel<S>, mask);
  for (int i = 0; i < rows * kPanel<S>; ++i) tile[i] *= mask[i];
}

}  // namespace fbp::FBP_ISA
