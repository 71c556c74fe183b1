// Attention over frames, pooled over each trunk and over the clip; see AttentionPoolProblem.
//
// The frames that count, of all rows, are one list, worked on in blocks, whose hidden layer is made
// and used in L2: (frames, width of the attention), so that bias, query and tanh are vectors, and
// its gradient is what all products of the backward read. Channels are read where they stand; those
// of other types or strides, or of a block in several pieces, are gathered into rows first.
//
// With s = scale * factor, y = tanh(x weight + bias) and g the gradient of what weights multiply x
// into, d_pooled + d_trunk_pooled, the backward is
//
//   gamma = x g + d_weights,  d_score = weights (gamma - sum over frames of weights gamma)
//   d_hidden = s d_score query (1 - y^2),  dx = weights g + d_hidden weight^T
//   d_weight = x^T d_hidden,  d_bias = sum of d_hidden,  d_query = s sum of d_score y
//   d_scale = factor query (sum of d_score y)
//
// y is what the forward kept, or computed again. Sums over frames are made in a number of splits
// that sizes decide, and joined in their order.

#pragma once

#include "elementary.h"
#include "layout.h"
#include "memory.h"
#include "operands.h"

namespace fbp::FBP_ISA {

template <class T>
class AttentionPool {
 public:
  explicit AttentionPool(const AttentionPoolProblem& problem)
      : problem_(problem),
        wide_(round_up(problem.C, W)),
        ld_(round_up(problem.A, W)),
        slope_(static_cast<S>(scale() * problem.factor)),
        first_(problem.B + 1),
        bias_(pad(problem.bias)),
        query_(pad(problem.query)) {
    first_[0] = 0;
    for (i64 b = 0; b < problem.B; ++b) first_[b + 1] = first_[b] + length(b);
    blocks_ = ceil_div(frames(), kBlockRows);
    threads_ = threads_for(static_cast<double>(problem.B * problem.T) *
                           static_cast<double>((2 * problem.C + 30) * problem.A + 4 * problem.C));
  }

  void forward() const {
    const Weight weight(problem_.weight, problem_.C, 0, problem_.A, 1);
    const Buffer<S> scores(frames() + W);
    {
      const WorkerBuffers<S> scratch(threads_, rows_size() + hidden_size() + kProductScratch<S>);
      parallel(blocks_, threads_, [&](int worker, i64 index) {
        score(in_pieces(index, blocks_, threads_, kForwards), weight, scratch.of(worker),
              scores.get());
      });
    }
    const WorkerBuffers<S> scratch(threads_, (kGather + 2) * wide_ + W);
    parallel(problem_.B, threads_, [&](int worker, i64 index) {
      const i64 b = in_pieces(index, problem_.B, threads_, kBackwards);
      normalise(b, scores.get() + first_[b]);
      pool(b, scores.get() + first_[b], scratch.of(worker));
    });
  }

  void backward() const {
    const Weight weight(problem_.weight, problem_.C, 0, problem_.A, 1),
        transposed(problem_.weight, problem_.A, 1, problem_.C, 0);
    const Buffer<S> gradients(problem_.B * problem_.H * wide_ + W), d_scores(frames() + W);
    {
      const WorkerBuffers<S> scratch(threads_, kGather * wide_ + W);
      parallel(problem_.B, threads_, [&](int worker, i64 b) {
        differentiate_weights(b, gradients.get(), scratch.of(worker), d_scores.get());
      });
    }
    const i64 splits = split_count();
    const Buffer<S> sums(splits * sums_size());
    {
      const WorkerBuffers<S> scratch(
          threads_, rows_size() + hidden_size() + kBlockRows * kColumns + kProductScratch<S>);
      parallel(splits, threads_, [&](int worker, i64 split) {
        S* const own = sums.get() + split * sums_size();
        for (i64 i = 0; i < sums_size(); ++i) own[i] = S{0};
        for (i64 i = begin_of(split, splits); i < begin_of(split + 1, splits); ++i)
          differentiate(i, weight, transposed, gradients.get(), d_scores.get(), scratch.of(worker),
                        own);
      });
    }
    const i64 rows = problem_.d_weight ? ceil_div(problem_.C, kGather) : 0;
    parallel(rows + 1, threads_, [&](int, i64 job) {
      if (job < rows) {
        join_weight(job * kGather, splits, sums.get());
      } else {
        join_vectors(splits, sums.get());
      }
    });
  }

 private:
  using S = typename AccumulateIn<T>::type;
  using V = Vec<S>;
  static constexpr i64 W = kWidth<S>;

  // Sums over frames, at most: enough for threads to share evenly, and each as large as the weight,
  // so that it should be worth its while.
  static constexpr i64 kSplits = 32, kFewSplits = 8, kBlocksOfSplit = 4;
  static constexpr i64 kSumBytes = 16 << 20;
  // Frames that are gathered or pooled at a time, in short sums.
  static constexpr i64 kGather = 16;
  // Channels of dx that are computed at a time.
  static constexpr i64 kColumns = 256;

  // ---- sizes and the list of frames ----

  i64 length(i64 b) const {
    if (!problem_.lengths) return problem_.T;
    return smaller(larger<i64>(problem_.lengths[b], 0), problem_.T);
  }
  i64 frames() const { return first_[problem_.B]; }
  i64 trunk(i64 frame, i64 n) const { return ((frame + 1) * problem_.H - 1) / n; }

  i64 rows_size() const { return kBlockRows * wide_ + W; }
  i64 hidden_size() const { return kBlockRows * ld_; }
  // Of d_weight, d_bias and d_query.
  i64 sums_size() const { return ((problem_.d_weight ? problem_.C : 0) + 2) * ld_; }

  i64 split_count() const {
    const i64 most = smaller(
        kSplits, larger(kFewSplits, kSumBytes / larger<i64>(sums_size() * i64{sizeof(S)}, 1)));
    const i64 useful = larger(smaller(kFewSplits, blocks_), blocks_ / kBlocksOfSplit);
    return larger<i64>(smaller(most, useful), 1);
  }

  // The block that a split begins at. Splits are taken in turn and become smaller, so that threads
  // end at the same time.
  i64 begin_of(i64 split, i64 splits) const {
    const i64 rest = splits - split;
    return blocks_ - ceil_div(blocks_ * rest * rest, splits * splits);
  }

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

  // Whether vectors of channels can be read where they stand.
  bool in_place() const { return __is_same(T, S) && problem_.x.stride[2] == 1; }

  // to (count, wide_) = channels of frames t.. of row b.
  void gather(i64 b, i64 t, i64 count, S* to) const {
    if (problem_.C == 0) return;
    pack(at<T>(problem_.x, b, t, 0), problem_.x.stride[2], problem_.x.stride[1], problem_.C, count,
         wide_, to);
  }

  // Channels of up to kGather frames, in vectors: in place or gathered.
  Matrix<S> channels(i64 b, i64 t, i64 count, S* scratch) const {
    if constexpr (__is_same(T, S))
      if (in_place()) return {at<T>(problem_.x, b, t, 0), problem_.x.stride[1], 1};
    gather(b, t, count, scratch);
    return {scratch, wide_, 1};
  }

  Buffer<S> pad(const View& vector) const {
    Buffer<S> padded(larger<i64>(ld_, 1));
    for (i64 a = 0; a < ld_; ++a)
      padded[a] = a < problem_.A ? static_cast<S>(widen(*at<T>(vector, a, 0, 0))) : S{0};
    return padded;
  }

  // The weight as right operand of a product, (depth, columns), of which one is dimension 0 and the
  // other is 1: where it stands or, where its columns are not vectors, copied.
  class Weight {
   public:
    Matrix<S> matrix{};
    i64 spare = 0;  // columns that may be read past the last one

    Weight(const View& weight, i64 depth, int along, i64 columns, int across) {
      const T* const data = static_cast<const T*>(weight.data);
      const i64 step = weight.stride[across], row = weight.stride[along];
      if constexpr (__is_same(T, S)) {
        if (step == 1) {
          matrix = {data, row, 1};
          return;
        }
      }
      const i64 ld = round_up(columns, W);
      copy_ = Buffer<S>(depth * ld + kPackSlack<S>);
      if (columns > 0) pack(data, step, row, columns, depth, ld, copy_.get());
      matrix = {copy_.get(), ld, 1};
      spare = ld - columns;
    }

   private:
    Buffer<S> copy_;
  };

  // Some frames of the list, and the channels of each.
  struct Block {
    i64 from, count;
    i64 place[kBlockRows];  // row * T + frame
    bool together;          // whether places follow each other
    bool in_place = false;  // whether x is the tensor itself
    Matrix<S> x;            // (count, C)

    Block(const AttentionPool& pool, i64 index, S* scratch)
        : from(index * kBlockRows), count(smaller(kBlockRows, pool.frames() - from)) {
      const AttentionPoolProblem& problem = pool.problem_;
      const View& all = problem.x;
      pool.over_runs(from, from + count, [&](i64 b, i64 frame, i64 run, i64 i) {
        for (i64 f = 0; f < run; ++f) place[i + f] = b * problem.T + frame + f;
      });
      together = place[count - 1] - place[0] == count - 1;
      const bool even = place[0] / problem.T == place[count - 1] / problem.T ||
                        all.stride[0] == problem.T * all.stride[1];
      if constexpr (__is_same(T, S)) {
        if (together && even && pool.in_place()) {
          x = {at<T>(all, place[0] / problem.T, place[0] % problem.T, 0), all.stride[1], 1};
          in_place = true;
          return;
        }
      }
      pool.over_runs(from, from + count, [&](i64 b, i64 frame, i64 run, i64 i) {
        pool.gather(b, frame, run, scratch + i * pool.wide_);
      });
      x = {scratch, pool.wide_, 1};
    }
  };

  // y (count, ld_) of a block, computed.
  void activate(const Block& block, const Weight& weight, S* y, S* scratch) const {
    multiply_block(block.x, weight.matrix, block.count, problem_.A, weight.spare, problem_.C,
                   run_for<S>(problem_.B * problem_.T, problem_.A), y, ld_, true, scratch);
    const i64 next = block.in_place && problem_.C > 0 ? frames() - (block.from + block.count) : 0;
    for (i64 f = 0; f < block.count; ++f) {
      // What the products read next comes from memory while tanh keeps the processor busy.
      if (f < next) fetch(Matrix<S>{block.x.at(block.count + f, 0), block.x.row, 1}, 1, problem_.C);
      for (i64 a = 0; a < ld_; a += W) {
        S* const place = y + f * ld_ + a;
        store(place, hyperbolic_tangent<S>(load(place) + load(bias_.get() + a)));
      }
    }
  }

  T* hidden(i64 place) const { return static_cast<T*>(problem_.hidden) + place * problem_.A; }

  // The frames of a block in a result of so many columns, where products can write them.
  static S* rows_of(const Block& block, void* result, i64 columns) {
    if constexpr (__is_same(T, S))
      if (result && block.together && columns % W == 0)
        return static_cast<S*>(result) + block.place[0] * columns;
    return nullptr;
  }

  // ---- forward ----

  void score(i64 index, const Weight& weight, S* scratch, S* scores) const {
    const Block block(*this, index, scratch);
    S* const own = scratch + rows_size();
    S* const kept = rows_of(block, problem_.hidden, problem_.A);
    S* const y = kept ? kept : own;
    activate(block, weight, y, own + hidden_size());
    for (i64 f = 0; f < block.count; ++f) {
      const S* const row = y + f * ld_;
      V sum{};
      for (i64 a = 0; a < ld_; a += W) sum += load(row + a) * load(query_.get() + a);
      scores[block.from + f] = total<S>(sum);
      if (problem_.hidden && !kept) round_row(row, problem_.A, hidden(block.place[f]));
    }
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
    if (problem_.hidden) clear(hidden(b * problem_.T + n), (problem_.T - n) * problem_.A);
  }

  // Sums of a row over the frames of each trunk and over all of them, in short runs.
  void pool(i64 b, const S* weights, S* scratch) const {
    const i64 n = length(b), C = problem_.C;
    S* const whole = scratch;
    S* const part = whole + wide_;
    for (i64 c = 0; c < wide_; ++c) whole[c] = S{0};
    for (i64 h = 0; h < problem_.H; ++h) {
      for (i64 c = 0; c < wide_; ++c) part[c] = S{0};
      const i64 end = (h + 1) * n / problem_.H;
      for (i64 t = h * n / problem_.H; t < end; t += kGather) {
        const i64 count = smaller(kGather, end - t);
        const Matrix<S> x = channels(b, t, count, part + wide_);
        for (i64 c = 0; c < C; c += W) {
          V sum{};
          for (i64 f = 0; f < count; ++f) sum += weights[t + f] * load_first(x.at(f, c), C - c);
          add(part + c, sum);
        }
      }
      round_row(part, C, static_cast<T*>(problem_.trunk_pooled) + (b * problem_.H + h) * C);
      for (i64 c = 0; c < wide_; ++c) whole[c] += part[c];
    }
    round_row(whole, C, static_cast<T*>(problem_.pooled) + b * C);
  }

  // ---- backward ----

  // What a row has to know before its hidden layer: g (H, wide_) and d_score. And frames that do
  // not count have no gradient.
  void differentiate_weights(i64 b, S* gradients, S* scratch, S* d_scores) const {
    const i64 n = length(b), C = problem_.C;
    S* const g = gradients + b * problem_.H * wide_;
    join_gradients(b, g, scratch);
    const View& d_weights = problem_.d_weights;
    S* const own = d_scores + first_[b];
    for (i64 t = 0; t < n; t += kGather) {
      const i64 count = smaller(kGather, n - t);
      const Matrix<S> x = channels(b, t, count, scratch);
      for (i64 f = 0; f < count; ++f) {
        const S* const row = g + trunk(t + f, n) * wide_;
        own[t + f] = sum_of(
            C, [&](i64 c, i64 left) { return load_first(x.at(f, c), left) * load(row + c); });
        if (d_weights) own[t + f] += widen(*at<T>(d_weights, b, t + f, 0));
      }
    }
    differentiate_softmax(b, own);
    if (problem_.d_x)
      clear(static_cast<T*>(problem_.d_x) + (b * problem_.T + n) * C, (problem_.T - n) * C);
  }

  // g of a row, zeros where nobody used the pooled results.
  void join_gradients(i64 b, S* g, S* scratch) const {
    const View& whole = problem_.d_pooled;
    const View& parts = problem_.d_trunk_pooled;
    const i64 C = problem_.C, H = problem_.H;
    if (C == 0) return;
    if (parts) {
      pack(at<T>(parts, b, 0, 0), parts.stride[2], parts.stride[1], C, H, wide_, g);
    } else {
      for (i64 i = 0; i < H * wide_; ++i) g[i] = S{0};
    }
    if (!whole) return;
    pack(at<T>(whole, b, 0, 0), whole.stride[1], 0, C, 1, wide_, scratch);
    for (i64 h = 0; h < H; ++h)
      for (i64 c = 0; c < wide_; c += W) add(g + h * wide_ + c, load(scratch + c));
  }

  // d_score of a row in place of its gamma.
  void differentiate_softmax(i64 b, S* own) const {
    const i64 n = length(b);
    const T* const weights = static_cast<const T*>(problem_.weights) + b * problem_.T;
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
  }

  // A block's dx and its share of the sums.
  void differentiate(i64 index, const Weight& weight, const Weight& transposed, const S* gradients,
                     const S* d_scores, S* scratch, S* sums) const {
    const Block block(*this, index, scratch);
    S* const hidden = scratch + rows_size();
    S* const d_input = hidden + hidden_size();
    S* const product = d_input + kBlockRows * kColumns;
    const S* const kept = rows_of(block, problem_.hidden, problem_.A);
    if (!problem_.hidden) {
      activate(block, weight, hidden, product);
    } else if (!kept) {
      recall(block, hidden);
    }
    differentiate_hidden(block, d_scores + block.from, kept ? kept : hidden, hidden, sums);
    const Matrix<S> d_hidden{hidden, ld_, 1};
    if (problem_.d_weight && problem_.C > 0)
      multiply_block(Matrix<S>{block.x.data, block.x.step, block.x.row}, d_hidden, problem_.C,
                     problem_.A, ld_ - problem_.A, block.count, run_for<S>(problem_.C, problem_.A),
                     sums + 2 * ld_, ld_, false, product);
    if (!problem_.d_x) return;
    S* const own = rows_of(block, problem_.d_x, problem_.C);
    for (i64 c = 0; c < problem_.C; c += kColumns) {
      const i64 columns = smaller(kColumns, problem_.C - c);
      const i64 ld = own ? problem_.C : round_up(columns, W);
      S* const to = own ? own + c : d_input;
      for (i64 f = 0; f < block.count; ++f)
        start_input(block.place[f], c, columns, gradients, to + f * ld);
      const Matrix<S> right{transposed.matrix.at(0, c), transposed.matrix.row, 1};
      multiply_block(d_hidden, right, block.count, columns,
                     problem_.C - c - columns + transposed.spare, problem_.A,
                     run_for<S>(problem_.B * problem_.T, problem_.C), to, ld, false, product);
      for (i64 f = 0; !own && f < block.count; ++f)
        round_row(to + f * ld, columns,
                  static_cast<T*>(problem_.d_x) + block.place[f] * problem_.C + c);
    }
  }

  // y of a block as the forward kept it.
  void recall(const Block& block, S* y) const {
    for (i64 f = 0; f < block.count; ++f)
      for (i64 a = 0; a < ld_; a += W)
        store(y + f * ld_ + a, load_first(hidden(block.place[f]) + a, problem_.A - a));
  }

  // d_hidden, which may take the place of y, and what it adds to d_bias and, with y, to d_query.
  void differentiate_hidden(const Block& block, const S* d_scores, const S* y, S* d_hidden,
                            S* sums) const {
    for (i64 start = 0; start < block.count; start += kGather)
      for (i64 a = 0; a < ld_; a += W) {
        const V query = load(query_.get() + a);
        V d_bias{}, d_query{};
        for (i64 f = start; f < smaller(start + kGather, block.count); ++f) {
          const V value = load(y + f * ld_ + a);
          __builtin_prefetch(y + (f + kGather) * ld_ + a);
          // Where tanh is nearly 1 this has the digits that 1 - y^2 has not.
          const V gradient = (slope_ * d_scores[f]) * query * ((1 - value) * (1 + value));
          store(d_hidden + f * ld_ + a, gradient);
          d_bias += gradient;
          d_query += d_scores[f] * value;
        }
        add(sums + a, d_bias);
        add(sums + ld_ + a, d_query);
      }
  }

  // The part of dx that does not come through the hidden layer, weights g.
  void start_input(i64 place, i64 c, i64 columns, const S* gradients, S* to) const {
    const i64 b = place / problem_.T, h = trunk(place % problem_.T, length(b));
    const S weight = widen(static_cast<const T*>(problem_.weights)[place]);
    const S* const g = gradients + (b * problem_.H + h) * wide_ + c;
    for (i64 i = 0; i < columns; i += W) store(to + i, weight * load(g + i));
  }

  static void add(S* sum, V x) { store(sum, load(sum) + x); }

  // The sums of all splits at `offset`, in the place of the first's.
  S* join(i64 offset, i64 count, i64 splits, S* sums) const {
    for (i64 split = 1; split < splits; ++split)
      for (i64 i = 0; i < count; i += W)
        add(sums + offset + i, load(sums + split * sums_size() + offset + i));
    return sums + offset;
  }

  // kGather channels of d_weight.
  void join_weight(i64 c, i64 splits, S* sums) const {
    const i64 count = smaller(kGather, problem_.C - c);
    const S* const matrix = join((2 + c) * ld_, count * ld_, splits, sums);
    for (i64 i = 0; i < count; ++i)
      round_row(matrix + i * ld_, problem_.A,
                static_cast<T*>(problem_.d_weight) + (c + i) * problem_.A);
  }

  void join_vectors(i64 splits, S* sums) const {
    const S* const d_bias = join(0, ld_, splits, sums);
    S* const d_query = join(ld_, ld_, splits, sums);
    if (problem_.d_bias) round_row(d_bias, problem_.A, static_cast<T*>(problem_.d_bias));
    if (problem_.d_scale) {
      double sum = 0;
      for (i64 a = 0; a < problem_.A; ++a)
        sum += static_cast<double>(query_[a]) * static_cast<double>(d_query[a]);
      write_scale(sum * problem_.factor);
    }
    for (i64 a = 0; a < ld_; ++a) d_query[a] *= slope_;
    if (problem_.d_query) round_row(d_query, problem_.A, static_cast<T*>(problem_.d_query));
  }

  static void clear(T* to, i64 count) {
    if (count > 0) __builtin_memset(to, 0, static_cast<std::size_t>(count) * sizeof(T));
  }

  const AttentionPoolProblem& problem_;
  i64 wide_, ld_;  // C and A, rounded up to whole vectors
  S slope_;
  Buffer<i64> first_;       // where in the list of frames that count each row starts
  Buffer<S> bias_, query_;  // (ld_), zeros from A on
  i64 blocks_ = 0;
  int threads_ = 1;
};

}  // namespace fbp::FBP_ISA
