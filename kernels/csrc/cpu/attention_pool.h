// Attention over frames, pooled over each trunk and over the clip; see AttentionPoolProblem.
//
// The frames that count, of all rows, are one list, worked on in blocks. Frames are the rows of a
// tile of the microkernel and the width of the attention is its lanes, so what bias, query and tanh
// do is vectors, a score is one sum over lanes, and the gradient before the tanh comes out in the
// layout in which the product with x reads it. Only `gather` reads x: it makes rows of channels of
// any strides and dtype.
//
// With s = scale * factor, y = tanh(x weight + bias) and g the gradient of what weights multiply x
// into, d_pooled + d_trunk_pooled, the backward is
//
//   gamma = x g + d_weights,  d_score = weights (gamma - sum over frames of weights gamma)
//   d_hidden = s d_score query (1 - y^2),  dx = weights g + d_hidden weight^T
//   d_weight = x^T d_hidden,  d_bias = sum of d_hidden,  d_query = s sum of d_score y
//   d_scale = factor * sum of d_score (y query)
//
// y is computed again rather than kept. Sums over frames are made in a number of splits that sizes
// decide, and joined in their order.

#pragma once

#include "elementary.h"
#include "memory.h"
#include "microkernel.h"

namespace fbp::FBP_ISA {

template <class T>
class AttentionPool {
 public:
  explicit AttentionPool(const AttentionPoolProblem& problem)
      : problem_(problem),
        leaf_(leaf_for(problem.A, problem.B * problem.T)),
        panels_(ceil_div(problem.A, kPanel<S>)),
        row_stride_(round_up(problem.C, W) + W),
        slope_(static_cast<S>(scale() * problem.factor)),
        first_(problem.B + 1),
        bias_(pad(problem.bias)),
        query_(pad(problem.query)) {
    first_[0] = 0;
    for (i64 b = 0; b < problem.B; ++b) first_[b + 1] = first_[b] + length(b);
    blocks_ = ceil_div(frames(), kBlock);
    threads_ = threads_for(static_cast<double>(problem.B * problem.T) *
                           static_cast<double>((2 * problem.C + 30) * problem.A + 4 * problem.C));
  }

  void forward() const {
    const Buffer<S> columns = pack_columns();
    const Buffer<S> scores(frames() + W);
    {
      const WorkerBuffers<S> scratch(threads_, rows_size() + left_size());
      parallel(blocks_, threads_, [&](int worker, i64 index) {
        score(index, columns, scratch.of(worker), scores.get());
      });
    }
    parallel(problem_.B, threads_, [&](int, i64 b) { normalise(b, scores.get() + first_[b]); });

    const i64 chunks = ceil_div(problem_.C, kChunk);
    const WorkerBuffers<S> scratch(threads_, (kRun + 2) * kChunk + W);
    parallel(problem_.B * chunks, threads_, [&](int worker, i64 job) {
      pool(job / chunks, job % chunks * kChunk, scores.get(), scratch.of(worker));
    });
  }

  void backward() const {
    const Buffer<S> columns = pack_columns(), rows = pack_rows(), gradients = join_gradients();
    const Buffer<S> d_scores(frames() + W), terms(frames() + W);
    {
      const WorkerBuffers<S> scratch(threads_, rows_size());
      parallel(blocks_, threads_, [&](int worker, i64 index) {
        differentiate_weights(Block(*this, index, scratch.of(worker), gradients.get()),
                              d_scores.get());
      });
    }
    parallel(problem_.B, threads_, [&](int, i64 b) { differentiate_softmax(b, d_scores.get()); });

    const i64 affordable = larger(kFewSplits, kSumBytes / larger<i64>(sums_size() * sizeof(S), 1));
    const i64 splits = larger<i64>(smaller(smaller(kSplits, affordable), blocks_), 1);
    const Buffer<S> sums(splits * sums_size());
    {
      const WorkerBuffers<S> scratch(threads_, rows_size() + left_size() + hidden_size());
      parallel(splits, threads_, [&](int worker, i64 split) {
        S* const own = sums.get() + split * sums_size();
        for (i64 i = 0; i < sums_size(); ++i) own[i] = S{0};
        for (i64 i = split * blocks_ / splits; i < (split + 1) * blocks_ / splits; ++i)
          differentiate(Block(*this, i, scratch.of(worker), gradients.get()), columns, rows,
                        d_scores.get(), scratch.of(worker) + rows_size(), own, terms.get());
      });
    }
    parallel(panels_, threads_, [&](int, i64 panel) { join(panel, splits, sums.get()); });
    if (problem_.d_scale) {
      const S sum = sum_of(frames(), [&](i64 i, i64 count) {
        return load_first(d_scores.get() + i, count) * load_first(terms.get() + i, count);
      });
      write_scale(static_cast<double>(sum) * problem_.factor);
    }
  }

 private:
  using S = typename AccumulateIn<T>::type;
  using V = Vec<S>;
  static constexpr i64 W = kWidth<S>;
  static constexpr i64 P = kPanel<S>;

  // Frames that are worked on at a time: whole tiles, and a sum over them is one run.
  static constexpr i64 kBlock = kLeaf / kTileRows * kTileRows;
  // Sums over frames, at most: enough for threads to share evenly. Each is as large as the weight.
  static constexpr i64 kSplits = 32, kFewSplits = 8;
  static constexpr i64 kSumBytes = 16 << 20;
  // Channels and frames that are pooled at a time.
  static constexpr i64 kChunk = 8 * W;
  static constexpr i64 kRun = 16;

  // ---- sizes and the list of frames ----

  i64 length(i64 b) const {
    if (!problem_.lengths) return problem_.T;
    return smaller(larger<i64>(problem_.lengths[b], 0), problem_.T);
  }
  i64 frames() const { return first_[problem_.B]; }
  i64 trunk(i64 frame, i64 n) const { return ((frame + 1) * problem_.H - 1) / n; }

  i64 rows_size() const { return kBlock * row_stride_ + W; }
  i64 left_size() const { return kBlock * larger(problem_.C, problem_.A) + kPackSlack<S>; }
  i64 hidden_size() const { return panels_ * kBlock * P; }
  // Of d_weight, d_bias and d_query, in panels.
  i64 sums_size() const { return panels_ * P * ((problem_.d_weight ? problem_.C : 0) + 2); }

  double scale() const {
    if (!problem_.scale) return 1;
    switch (problem_.scale_dtype) {
      case Dtype::float32:
        return static_cast<double>(*static_cast<const float*>(problem_.scale));
      case Dtype::float64:
        return *static_cast<const double*>(problem_.scale);
      case Dtype::bfloat16:
        return static_cast<double>(widen(*static_cast<const bfloat16*>(problem_.scale)));
      case Dtype::float16:
        return static_cast<double>(widen(*static_cast<const float16*>(problem_.scale)));
    }
    return 1;
  }

  void write_scale(double value) const {
    switch (problem_.scale_dtype) {
      case Dtype::float32:
        *static_cast<float*>(problem_.d_scale) = static_cast<float>(value);
        break;
      case Dtype::float64:
        *static_cast<double*>(problem_.d_scale) = value;
        break;
      case Dtype::bfloat16:
        *static_cast<bfloat16*>(problem_.d_scale) = narrow<bfloat16>(static_cast<float>(value));
        break;
      case Dtype::float16:
        *static_cast<float16*>(problem_.d_scale) = narrow<float16>(static_cast<float>(value));
        break;
    }
  }

  // f(row, frame, count, i): runs of frames of one row, from number `from` of the list; i is how
  // far into the range the run starts.
  template <class F>
  void over_runs(i64 from, i64 to, const F& f) const {
    i64 b = 0, end = problem_.B;
    while (end - b > 1) {
      const i64 middle = (b + end) / 2;
      (first_[middle] <= from ? b : end) = middle;
    }
    for (i64 i = from; i < to; ++b) {
      const i64 count = smaller(to, first_[b + 1]) - i;
      if (count > 0) f(b, i - first_[b], count, i - from);
      i += count;
    }
  }

  // term(i, count) summed over i below n, in vectors.
  template <class F>
  static S sum_of(i64 n, const F& term) {
    return total<S>(pairwise_sum<S>(0, n, [&](i64 i) { return term(i, n - i); }));
  }

  // ---- operands ----

  // to (count, row_stride_) = channels c.. of frames t.. of row b.
  void gather(i64 b, i64 t, i64 count, S* to) const {
    if (problem_.C == 0) return;
    pack(at<T>(problem_.x, b, t, 0), problem_.x.stride[2], problem_.x.stride[1], problem_.C, count,
         row_stride_, to);
  }

  Buffer<S> pad(const View& vector) const {
    Buffer<S> padded(larger<i64>(panels_ * P, 1));
    for (i64 a = 0; a < panels_ * P; ++a)
      padded[a] = a < problem_.A ? static_cast<S>(widen(*at<T>(vector, a, 0, 0))) : S{0};
    return padded;
  }

  // The weight as right operand (depth C, lanes A), panel by panel.
  Buffer<S> pack_columns() const {
    return pack_panels(problem_.A, problem_.weight.stride[1], problem_.C,
                       problem_.weight.stride[0]);
  }
  // And its transpose (depth A, lanes C).
  Buffer<S> pack_rows() const {
    if (!problem_.d_x) return Buffer<S>(1);
    return pack_panels(problem_.C, problem_.weight.stride[0], problem_.A,
                       problem_.weight.stride[1]);
  }

  Buffer<S> pack_panels(i64 lanes, i64 lane_stride, i64 depth, i64 depth_stride) const {
    const i64 panels = ceil_div(lanes, P);
    Buffer<S> packed(panels * depth * P + kPackSlack<S>);
    for (i64 panel = 0; depth > 0 && panel < panels; ++panel)
      pack(static_cast<const T*>(problem_.weight.data) + panel * P * lane_stride, lane_stride,
           depth_stride, smaller(P, lanes - panel * P), depth, P, packed.get() + panel * depth * P);
    return packed;
  }

  // g (B, H, row_stride_), zeros where nobody used the pooled results.
  Buffer<S> join_gradients() const {
    const i64 C = problem_.C, size = problem_.H * row_stride_;
    Buffer<S> joined(problem_.B * size);
    const View& whole = problem_.d_pooled;
    const View& parts = problem_.d_trunk_pooled;
    const WorkerBuffers<S> scratch(threads_, row_stride_);
    parallel(problem_.B, threads_, [&](int worker, i64 b) {
      S* const to = joined.get() + b * size;
      if (parts) {
        pack(at<T>(parts, b, 0, 0), parts.stride[2], parts.stride[1], C, problem_.H, row_stride_,
             to);
      } else {
        for (i64 i = 0; i < size; ++i) to[i] = S{0};
      }
      if (!whole) return;
      S* const row = scratch.of(worker);
      pack(at<T>(whole, b, 0, 0), whole.stride[1], 0, C, 1, row_stride_, row);
      for (i64 h = 0; h < problem_.H; ++h)
        for (i64 c = 0; c < C; c += W) add(to + h * row_stride_ + c, load(row + c));
    });
    return joined;
  }

  // ---- forward ----

  // Calls finish(panel, first, rows, tile) for the hidden layer of some gathered frames, tile by
  // tile: rows of frames from `first` on, lanes of the attention.
  template <class F>
  void hidden(const S* rows, i64 count, const Buffer<S>& columns, S* left_scratch,
              const F& finish) const {
    const Tiling tiling(count);
    const Left<S> left = prepare_left(rows, row_stride_, 1, tiling, problem_.C, true, left_scratch);
    for (i64 panel = 0; panel < panels_; ++panel)
      for (i64 t = 0; t < tiling.count; ++t) {
        S tile[kTileRows * P];
        multiply(tiling.rows(t), left.tile(tiling, t), left.tile_stride(tiling, t),
                 columns.get() + panel * problem_.C * P, problem_.C, leaf_, tile);
        finish(panel, tiling.start(t), tiling.rows(t), tile);
      }
  }

  void score(i64 index, const Buffer<S>& columns, S* scratch, S* scores) const {
    const Block block(*this, index, scratch, nullptr);
    V sums[kBlock] = {};
    hidden(block.rows, block.count, columns, scratch + rows_size(),
           [&](i64 panel, i64 first, int rows, const S* tile) {
             const S* const bias = bias_.get() + panel * P;
             const S* const query = query_.get() + panel * P;
             for (int r = 0; r < rows; ++r)
               for (i64 i = 0; i < P; i += W)
                 sums[first + r] +=
                     Tanh<S>(load(tile + r * P + i) + load(bias + i)).value * load(query + i);
           });
    for (i64 f = 0; f < block.count; ++f) scores[block.from + f] = total<S>(sums[f]);
  }

  // The weights of a row, rounded as a result and in place of the scores. The difference to the top
  // is scaled, not the scores: it has one rounding less.
  void normalise(i64 b, S* scores) const {
    const i64 n = length(b);
    const S sign = slope_ < 0 ? S{-1} : S{1};
    S top = -Format<S>::infinity;
    for (i64 i = 0; i < n; ++i) top = larger(top, sign * scores[i]);
    const auto share = [&](i64 i, i64 count) {
      return exp_of_negative<S>((sign * load_first(scores + i, count) - top) * (sign * slope_));
    };
    for (i64 i = 0; i < n; i += W) store_first<S>(scores + i, share(i, n - i), n - i);
    const S sum = sum_of(n, [&](i64 i, i64 count) { return load_first(scores + i, count); });
    T* const weights = static_cast<T*>(problem_.weights) + b * problem_.T;
    for (i64 i = 0; i < n; i += W) {
      const V weight = load_first(scores + i, n - i) / sum;
      store_first<S>(scores + i, weight, n - i);
      store_first<T>(weights + i, weight, n - i);
    }
    clear(weights + n, problem_.T - n);
  }

  // Sums of some channels over the frames of each trunk and over all of them, in short runs.
  void pool(i64 b, i64 c, const S* weights, S* scratch) const {
    const i64 n = length(b), width = smaller(kChunk, problem_.C - c), ld = round_up(width, W);
    S* const whole = scratch;
    S* const part = whole + kChunk;
    S* const rows = part + kChunk;
    for (i64 i = 0; i < kChunk; ++i) whole[i] = S{0};
    for (i64 h = 0; h < problem_.H; ++h) {
      for (i64 i = 0; i < kChunk; ++i) part[i] = S{0};
      const i64 end = (h + 1) * n / problem_.H;
      for (i64 t = h * n / problem_.H; t < end; t += kRun) {
        const i64 count = smaller(kRun, end - t);
        pack(at<T>(problem_.x, b, t, c), problem_.x.stride[2], problem_.x.stride[1], width, count,
             ld, rows);
        for (i64 i = 0; i < ld; i += W) {
          V sum{};
          for (i64 f = 0; f < count; ++f)
            sum += weights[first_[b] + t + f] * load(rows + f * ld + i);
          store(part + i, load(part + i) + sum);
        }
      }
      write(part, width,
            static_cast<T*>(problem_.trunk_pooled) + (b * problem_.H + h) * problem_.C + c);
      for (i64 i = 0; i < kChunk; ++i) whole[i] += part[i];
    }
    write(whole, width, static_cast<T*>(problem_.pooled) + b * problem_.C + c);
  }

  // ---- backward ----

  // Some frames of the list, their channels gathered, and what belongs to each.
  struct Block {
    i64 from, count;
    S* rows;
    i64 place[kBlock];          // row * T + frame
    const S* gradient[kBlock];  // g

    Block(const AttentionPool& pool, i64 index, S* scratch, const S* gradients)
        : from(index * kBlock), count(smaller(kBlock, pool.frames() - from)), rows(scratch) {
      const AttentionPoolProblem& problem = pool.problem_;
      pool.over_runs(from, from + count, [&](i64 b, i64 frame, i64 run, i64 i) {
        pool.gather(b, frame, run, rows + i * pool.row_stride_);
        const i64 n = pool.length(b);
        for (i64 f = 0; f < run; ++f) {
          place[i + f] = b * problem.T + frame + f;
          if (gradients)
            gradient[i + f] =
                gradients + (b * problem.H + pool.trunk(frame + f, n)) * pool.row_stride_;
        }
      });
    }
  };

  S weight_at(i64 place) const { return widen(static_cast<const T*>(problem_.weights)[place]); }

  // gamma of each frame of a block.
  void differentiate_weights(const Block& block, S* gamma) const {
    const View& d_weights = problem_.d_weights;
    for (i64 f = 0; f < block.count; ++f) {
      const S* const x = block.rows + f * row_stride_;
      const S* const g = block.gradient[f];
      S sum = total<S>(
          pairwise_sum<S>(0, problem_.C, [&](i64 c) { return load(x + c) * load(g + c); }));
      const i64 place = block.place[f];
      if (d_weights) sum += widen(*at<T>(d_weights, place / problem_.T, place % problem_.T, 0));
      gamma[block.from + f] = sum;
    }
  }

  // d_score of a row, in place of its gamma. And frames that do not count have no gradient.
  void differentiate_softmax(i64 b, S* d_scores) const {
    const i64 n = length(b);
    const T* const weights = static_cast<const T*>(problem_.weights) + b * problem_.T;
    S* const own = d_scores + first_[b];
    // The mean under the weights as they were rounded, so that the sum of d_score is 0: what it is
    // off by, all frames share.
    double sum = 0, product = 0;
    for (i64 i = 0; i < n; ++i) {
      const double weight = static_cast<double>(widen(weights[i]));
      sum += weight;
      product += weight * static_cast<double>(own[i]);
    }
    const double mean = product / sum;
    for (i64 i = 0; i < n; ++i)
      own[i] = widen(weights[i]) * static_cast<S>(static_cast<double>(own[i]) - mean);
    if (problem_.d_x)
      clear(static_cast<T*>(problem_.d_x) + (b * problem_.T + n) * problem_.C,
            (problem_.T - n) * problem_.C);
  }

  // The gradients of a block: dx, its share of the sums, and what d_score multiplies in d_scale.
  void differentiate(const Block& block, const Buffer<S>& columns, const Buffer<S>& rows,
                     const S* d_scores, S* scratch, S* sums, S* terms) const {
    S* const d_hidden = scratch + left_size();
    S* const vectors = sums + sums_size() - 2 * panels_ * P;  // d_bias, d_query
    V plain[kBlock] = {};
    hidden(block.rows, block.count, columns, scratch,
           [&](i64 panel, i64 first, int count, const S* tile) {
             S* const to = d_hidden + (panel * kBlock + first) * P;
             const S* const d_score = d_scores + block.from + first;
             for (i64 i = 0; i < P; i += W) {
               const V bias = load(bias_.get() + panel * P + i);
               const V query = load(query_.get() + panel * P + i);
               V d_bias{}, d_query{};
               for (int r = 0; r < count; ++r) {
                 const Tanh<S> y(load(tile + r * P + i) + bias);
                 const S d_tanh = slope_ * d_score[r];
                 const V gradient = d_tanh * query * y.slope;
                 store(to + r * P + i, gradient);
                 plain[first + r] += y.value * query;
                 d_bias += gradient;
                 d_query += d_tanh * y.value;
               }
               add(vectors + panel * P + i, d_bias);
               add(vectors + (panels_ + panel) * P + i, d_query);
             }
           });
    for (i64 f = 0; f < block.count; ++f) terms[block.from + f] = total<S>(plain[f]);
    if (problem_.d_weight) differentiate_weight(block, d_hidden, sums);
    if (problem_.d_x) differentiate_input(block, d_hidden, rows, scratch);
  }

  static void add(S* sum, V x) { store(sum, load(sum) + x); }

  // sums (panels, C, P) += x^T d_hidden.
  void differentiate_weight(const Block& block, const S* d_hidden, S* sums) const {
    const Tiling tiling(problem_.C);
    for (i64 panel = 0; panel < panels_; ++panel)
      for (i64 t = 0; t < tiling.count; ++t) {
        S tile[kTileRows * P];
        const i64 c = tiling.start(t);
        multiply(tiling.rows(t), block.rows + c, row_stride_, d_hidden + panel * kBlock * P,
                 block.count, leaf_for(problem_.C, problem_.A), tile);
        S* const sum = sums + (panel * problem_.C + c) * P;
        for (i64 i = 0; i < tiling.rows(t) * P; i += W) add(sum + i, load(tile + i));
      }
  }

  // dx = weights g + d_hidden weight^T, a tile of frames at a time.
  void differentiate_input(const Block& block, const S* d_hidden, const Buffer<S>& rows,
                           S* scratch) const {
    const Tiling tiling(block.count);
    for (i64 t = 0; t < tiling.count; ++t) {
      const i64 first = tiling.start(t);
      const int count = tiling.rows(t);
      for (i64 panel = 0; panel < panels_; ++panel)
        pack(d_hidden + (panel * kBlock + first) * P, P, 1, count,
             smaller(P, problem_.A - panel * P), count, scratch + panel * P * count);
      for (i64 c = 0; c < problem_.C; c += P) {
        S tile[kTileRows * P];
        multiply(count, static_cast<const S*>(scratch), count, rows.get() + c * problem_.A,
                 problem_.A, leaf_for(problem_.C, problem_.B * problem_.T), tile);
        for (int r = 0; r < count; ++r) {
          const i64 place = block.place[first + r];
          const S weight = weight_at(place);
          for (i64 i = 0; i < P && c + i < problem_.C; i += W)
            store_first<T>(
                static_cast<T*>(problem_.d_x) + place * problem_.C + c + i,
                load(tile + r * P + i) +
                    weight * load_first(block.gradient[first + r] + c + i, problem_.C - c - i),
                problem_.C - c - i);
        }
      }
    }
  }

  // The gradients of the parameters in one panel's columns, from those of the splits, which all are
  // added to the first.
  void join(i64 panel, i64 splits, S* sums) const {
    const i64 a = panel * P, width = smaller(P, problem_.A - a),
              C = problem_.d_weight ? problem_.C : 0;
    const i64 vectors = sums_size() - 2 * panels_ * P;
    const auto join_part = [&](i64 offset, i64 count) {
      for (i64 split = 1; split < splits; ++split)
        for (i64 i = 0; i < count; i += W)
          add(sums + offset + i, load(sums + split * sums_size() + offset + i));
      return sums + offset;
    };
    const S* const matrix = join_part(a * C, C * P);
    for (i64 c = 0; c < C; ++c)
      write(matrix + c * P, width, static_cast<T*>(problem_.d_weight) + c * problem_.A + a);
    if (problem_.d_bias)
      write(join_part(vectors + a, P), width, static_cast<T*>(problem_.d_bias) + a);
    if (problem_.d_query)
      write(join_part(vectors + panels_ * P + a, P), width, static_cast<T*>(problem_.d_query) + a);
  }

  // ---- writing ----

  static void write(const S* from, i64 count, T* to) {
    for (i64 i = 0; i < count; i += W)
      store_first<T>(to + i, load_first(from + i, count - i), count - i);
  }

  static void clear(T* to, i64 count) {
    if (count > 0) __builtin_memset(to, 0, static_cast<std::size_t>(count) * sizeof(T));
  }

  const AttentionPoolProblem& problem_;
  i64 leaf_, panels_, row_stride_;
  S slope_;
  Buffer<i64> first_;       // where in the list of frames that count each row starts
  Buffer<S> bias_, query_;  // zeros up to whole panels
  i64 blocks_ = 0;
  int threads_ = 1;
};

}  // namespace fbp::FBP_ISA
