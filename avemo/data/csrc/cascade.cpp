// A cascade of Haar-like features (Viola and Jones, 2001) over all windows of one picture, with the
// arithmetic of OpenCV's CascadeClassifier, so that the same windows pass: features are summed in
// float, stages in double, in the same order.
//
// OpenCV takes window after window. Here many windows take one feature at a time: a row of them the
// first stages, which reject most, and what is left, a block at a time, each of the others.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#if defined(__x86_64__) && defined(__linux__)
#define EACH_PROCESSOR __attribute__((target_clones("avx2", "default")))
#else
#define EACH_PROCESSOR
#endif
#define EXPORTED __attribute__((visibility("default")))

namespace {

constexpr int kSide = 24;     // of a window, pixels
constexpr int kInRows = 2;    // stages that take whole rows of windows
constexpr int kBlock = 4096;  // windows that take a stage together
constexpr double kLeastContrast =
    0.1;  // a window's deviation, as OpenCV puts it, above which it is no plain area

struct Rectangle {
  int32_t x, y, width, height;
  float weight;
};

struct Stump {
  Rectangle parts[3];
  float threshold, left, right;
};

// A stump whose corners are places in a picture's sums, from a window's own place.
struct Placed {
  int corners[3][4];
  float weights[3];
  float threshold, left, right;
};

// Where pixels are in integral images. Columns are in the order in which windows come: at a step of
// 2 all even ones, then all odd ones.
struct Layout {
  int stride, step;

  int place(int x, int y) const {
    return y * stride + (step == 1 ? x : (x & 1) * (stride / 2) + (x >> 1));
  }

  void corners(int x, int y, int width, int height, int* out) const {
    out[0] = place(x, y);
    out[1] = place(x + width, y);
    out[2] = place(x, y + height);
    out[3] = place(x + width, y + height);
  }
};

struct Level {
  const uint8_t* picture;
  int32_t width, height;

  int columns(int step) const { return std::max(0, (width + 1 - kSide + step - 1) / step); }
  int rows(int step) const { return std::max(0, (height + 1 - kSide + step - 1) / step); }
};

struct Window {
  int32_t level, x, y;
};

struct Windows {
  std::vector<int32_t> places;
  std::vector<float> factors;
  std::vector<Window> windows;
};

// Sums of pixels and of their squares over all that is above and to the left, (height + 1) rows of
// `stride`, the first of zeros. Squares of a large picture wrap around, and so do their
// differences.
void sum_up(const Level& level, Layout layout, int32_t* values, int32_t* squares) {
  for (int y = 0; y < level.height; ++y) {
    uint32_t value = 0, square = 0;
    for (int x = 0; x < level.width; ++x) {
      const uint32_t pixel = level.picture[size_t(y) * level.width + x];
      value += pixel;
      square += pixel * pixel;
      const int here = layout.place(x + 1, y + 1), above = layout.place(x + 1, y);
      values[here] = int32_t(uint32_t(values[above]) + value);
      squares[here] = int32_t(uint32_t(squares[above]) + square);
    }
  }
}

inline int32_t area_of(const int32_t* sums, const int* corners) {
  return sums[corners[0]] - sums[corners[1]] - sums[corners[2]] + sums[corners[3]];
}

// One over the deviation of `count` windows in a row, 0 where a window is not looked at.
EACH_PROCESSOR void normalize(const int32_t* values, const int32_t* squares, const int* corners,
                              int count, float* out) {
  const double area = (kSide - 2) * (kSide - 2);
  for (int i = 0; i < count; ++i) {
    const double value = area_of(values + i, corners);
    const double square = uint32_t(area_of(squares + i, corners));
    const double variance = area * square - value * value;
    const float factor = variance > 0 ? float(1.0 / std::sqrt(variance)) : 0.0f;
    out[i] = area * factor < kLeastContrast ? factor : 0.0f;
  }
}

inline float response(const int32_t* window, const Placed& stump) {
  float sum = stump.weights[0] * float(area_of(window, stump.corners[0])) +
              stump.weights[1] * float(area_of(window, stump.corners[1]));
  return sum;
}

// Adds a stump's vote on windows side by side.
EACH_PROCESSOR void vote_row(const int32_t* windows, const float* factors, int count,
                             const Placed& stump, double* votes) {
  if (stump.weights[2] != 0.0f) {
    for (int i = 0; i < count; ++i) {
      float sum = response(windows + i, stump);
      sum += stump.weights[2] * float(area_of(windows + i, stump.corners[2]));
      votes[i] += sum * factors[i] < stump.threshold ? stump.left : stump.right;
    }
  } else {
    for (int i = 0; i < count; ++i)
      votes[i] +=
          response(windows + i, stump) * factors[i] < stump.threshold ? stump.left : stump.right;
  }
}

// Adds a stump's vote on windows at any places.
EACH_PROCESSOR void vote_all(const int32_t* sums, const int32_t* places, const float* factors,
                             int count, const Placed& stump, double* votes) {
  if (stump.weights[2] != 0.0f) {
    for (int i = 0; i < count; ++i) {
      const int32_t* window = sums + places[i];
      float sum = response(window, stump);
      sum += stump.weights[2] * float(area_of(window, stump.corners[2]));
      votes[i] += sum * factors[i] < stump.threshold ? stump.left : stump.right;
    }
  } else {
    for (int i = 0; i < count; ++i)
      votes[i] += response(sums + places[i], stump) * factors[i] < stump.threshold ? stump.left
                                                                                   : stump.right;
  }
}

}  // namespace

// Puts the corners of stumps at their places in pictures of one layout: `stride` numbers in a row,
// `step` 1 or 2 pixels between windows.
extern "C" EXPORTED void avemo_cascade_place(const Stump* stumps, int count, int stride, int step,
                                             Placed* out) {
  const Layout layout = {stride, step};
  for (int i = 0; i < count; ++i) {
    for (int part = 0; part < 3; ++part) {
      const Rectangle& r = stumps[i].parts[part];
      layout.corners(r.x, r.y, r.width, r.height, out[i].corners[part]);
      out[i].weights[part] = r.weight;
    }
    out[i].threshold = stumps[i].threshold;
    out[i].left = stumps[i].left;
    out[i].right = stumps[i].right;
  }
}

// Finds the windows that pass all stages, in pictures of one layout.
//
// levels: `count` pictures, rows of bytes end to end. stride: even, more than their widths. placed:
// the stumps of all stages in order, `counts` and `thresholds` of each of `stages`. found: room for
// `room` windows, in order of levels, y, x. Returns how many there are.
extern "C" EXPORTED int avemo_cascade_scan(const Level* levels, int count, int stride, int step,
                                           const Placed* placed, const int32_t* counts,
                                           const float* thresholds, int stages, Window* found,
                                           int room) {
  const Layout layout = {stride, step};
  int inner[4], longest = kBlock, rows = 0;
  layout.corners(1, 1, kSide - 2, kSide - 2, inner);
  for (int i = 0; i < count; ++i) {
    longest = std::max(longest, levels[i].columns(step));
    rows += levels[i].height + 1;
  }
  std::vector<int32_t> values(size_t(stride) * rows), squares(values.size());
  std::vector<float> factors(longest);
  std::vector<double> votes(longest);
  const int in_rows = std::min(stages, kInRows);
  Windows left;
  int top = 0;
  for (int level = 0; level < count; ++level) {
    sum_up(levels[level], layout, values.data() + top * stride, squares.data() + top * stride);
    const int columns = levels[level].columns(step);
    for (int row = 0; row < levels[level].rows(step); ++row) {
      const int base = (top + row * step) * stride;
      normalize(values.data() + base, squares.data() + base, inner, columns, factors.data());
      const Placed* stump = placed;
      for (int stage = 0; stage < in_rows; ++stage) {
        std::fill_n(votes.begin(), columns, 0.0);
        for (int i = 0; i < counts[stage]; ++i, ++stump)
          vote_row(values.data() + base, factors.data(), columns, *stump, votes.data());
        for (int column = 0; column < columns; ++column) {
          if (factors[column] == 0.0f || !(votes[column] < thresholds[stage])) continue;
          factors[column] = 0.0f;
          if (stage == 0 && column + 1 < columns)
            factors[++column] =
                0.0f;  // beside a window that fails at once the next one is not looked at
        }
      }
      for (int column = 0; column < columns; ++column)
        if (factors[column] != 0.0f) {
          left.places.push_back(base + column);
          left.factors.push_back(factors[column]);
          left.windows.push_back({level, column * step, row * step});
        }
    }
    top += levels[level].height + 1;
  }

  const Placed* rest = placed;
  for (int stage = 0; stage < in_rows; ++stage) rest += counts[stage];
  int passed = 0;
  for (size_t begin = 0; begin < left.places.size(); begin += kBlock) {
    int alive = int(std::min(left.places.size() - begin, size_t(kBlock)));
    int32_t* places = left.places.data() + begin;
    float* norms = left.factors.data() + begin;
    Window* windows = left.windows.data() + begin;
    const Placed* stump = rest;
    for (int stage = in_rows; stage < stages && alive > 0; ++stage) {
      std::fill_n(votes.begin(), alive, 0.0);
      for (int i = 0; i < counts[stage]; ++i, ++stump)
        vote_all(values.data(), places, norms, alive, *stump, votes.data());
      int kept = 0;
      for (int i = 0; i < alive; ++i) {
        if (votes[i] < thresholds[stage]) continue;
        places[kept] = places[i];
        windows[kept] = windows[i];
        norms[kept++] = norms[i];
      }
      alive = kept;
    }
    for (int i = 0; i < alive && passed < room; ++i) found[passed++] = windows[i];
  }
  return passed;
}
