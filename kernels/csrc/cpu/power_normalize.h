// Signed square roots and the L2 normalisation of rows. With r = sign(z) sqrt|z| and n = max(|r|,
// eps), |r| the norm of a row:
//
//   y = r / n
//   dz = (dy - q y) / (2 n sqrt|z|), 0 where z is 0, with q = sum of dy y, but 0 where eps is the
//   divisor

#pragma once

#include "elementary.h"
#include "memory.h"
#include "pack.h"

namespace fbp::FBP_ISA {

template <class T>
class PowerNormalize {
 public:
  explicit PowerNormalize(const PowerNormalizeProblem& problem)
      : problem_(problem),
        padded_(round_up(problem.columns, W)),
        eps_(static_cast<S>(problem.eps)) {}

  void forward() const {
    over_rows(1, [&](i64 row, S* root) {
      const S divisor = roots(row, root);
      write(row, [&](i64 i) { return load(root + i) / divisor; });
    });
  }

  void backward() const {
    over_rows(2, [&](i64 row, S* root) {
      S* const slope = root + padded_;
      S divisor = roots(row, root);
      read(problem_.dy, row, slope);
      S share{0};
      if (divisor > eps_)
        share = total<S>(pairwise_sum<S>(0, problem_.columns, [&](i64 i) {
          // Divided here, not after the sum: a row of one column has a gradient of 0, exactly.
          return load(slope + i) * (load(root + i) / divisor);
        }));
      write(row, [&](i64 i) {
        const V r = load(root + i);
        const V rest = load(slope + i) - share * (r / divisor);
        const V d = 2 * divisor * absolute<S>(r);
        return r == 0 ? V{} : rest / d;
      });
    });
  }

 private:
  using S = typename AccumulateIn<T>::type;
  using V = Vec<S>;
  static constexpr i64 W = kWidth<S>;
  static constexpr i64 kElements = 4096;  // of a job, at least

  // work(row, scratch), with `buffers` rows of scratch.
  template <class F>
  void over_rows(i64 buffers, const F& work) const {
    const i64 per_job = larger<i64>(kElements / problem_.columns, 1);
    const i64 jobs = ceil_div(problem_.rows, per_job);
    const int threads = threads_for(20.0 * static_cast<double>(problem_.rows) *
                                    static_cast<double>(problem_.columns));
    const WorkerBuffers<S> scratch(threads, buffers * padded_ + kPackSlack<S>);
    parallel(jobs, threads, [&](int worker, i64 job) {
      for (i64 row = job * per_job; row < smaller(problem_.rows, (job + 1) * per_job); ++row)
        work(row, scratch.of(worker));
    });
  }

  // A row, zeros up to whole vectors.
  void read(const View& from, i64 row, S* to) const {
    pack(at<T>(from, row, 0, 0), from.stride[1], 0, problem_.columns, 1, padded_, to);
  }

  // r of a row, and n.
  S roots(i64 row, S* root) const {
    read(problem_.z, row, root);
    const V squares = pairwise_sum<S>(0, problem_.columns, [&](i64 i) {
      const V z = load(root + i);
      const V r = with_sign<S>(square_root(absolute<S>(z)), z);
      store(root + i, r);
      return r * r;
    });
    const S norm = __builtin_sqrt(total<S>(squares));
    return norm < eps_ ? eps_ : norm;
  }

  template <class F>
  void write(i64 row, const F& value) const {
    T* const to = static_cast<T*>(problem_.out) + row * problem_.columns;
    for (i64 i = 0; i < problem_.columns; i += W)
      store_first<T>(to + i, value(i), problem_.columns - i);
  }

  const PowerNormalizeProblem& problem_;
  i64 padded_;
  S eps_;
};

}  // namespace fbp::FBP_ISA
