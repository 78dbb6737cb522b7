// The recurrence of spatial propagation on the CPU, compiled by propagation_cpp.py. It needs only
// the standard headers.
//
// A thread processes one channel of an image at a time (in the backward pass, all channels that
// share gates), so that its maps stay in the cache for all directions and their maximum. A
// direction is processed in blocks of lines, which are the columns or rows that the recurrence
// steps through. Each block is copied so that the values of a line are contiguous whatever the
// direction, processed, and copied back.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

namespace {

constexpr int64_t kBlock = 32;               // lines per block: two cache lines of floats
constexpr int64_t kWorkOfAThread = 1 << 14;  // values; for fewer, a thread is not worth its start

// Allocates uninitialized memory. Values that are never written are never read.
template <typename T>
std::unique_ptr<T[]> allocate(int64_t count) {
  return std::unique_ptr<T[]>(new T[count]);
}

// Copies a matrix to its transpose, or adds it: to[c * to_step + r] (+)= from[r * from_step + c].
template <typename T, bool add>
void transpose_values(const T* from, int64_t from_step, T* to, int64_t to_step, int64_t rows,
               int64_t columns) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) {
      T& value = to[c * to_step + r];
      value = add ? value + from[r * from_step + c] : from[r * from_step + c];
    }
}

#if defined(__GNUC__) && (defined(__clang__) || __GNUC__ >= 12)
// Vectors of 8 floats. Without them, two of the four directions take four times as long.
typedef float Vector __attribute__((vector_size(32)));
#define RPE_D2_SHUFFLE __builtin_shufflevector

template <bool add>
void transpose_8x8(const float* from, int64_t from_step, float* to, int64_t to_step) {
  Vector a[8], b[8];
  for (int i = 0; i < 8; ++i) std::memcpy(&a[i], from + i * from_step, sizeof(Vector));
  for (int i = 0; i < 8; i += 2) {  // pairs of rows: b[i] has values 0, 1, 4 and 5 of both
    b[i] = RPE_D2_SHUFFLE(a[i], a[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    b[i + 1] = RPE_D2_SHUFFLE(a[i], a[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int i = 0; i < 8; i += 4)  // a[i + j] has columns j and j + 4 of four rows
    for (int j = 0; j < 2; ++j) {
      a[i + 2 * j] = RPE_D2_SHUFFLE(b[i + j], b[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      a[i + 2 * j + 1] = RPE_D2_SHUFFLE(b[i + j], b[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  for (int i = 0; i < 4; ++i) {
    b[i] = RPE_D2_SHUFFLE(a[i], a[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    b[i + 4] = RPE_D2_SHUFFLE(a[i], a[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
  for (int i = 0; i < 8; ++i) {
    if (add) {
      std::memcpy(&a[i], to + i * to_step, sizeof(Vector));
      b[i] += a[i];
    }
    std::memcpy(to + i * to_step, &b[i], sizeof(Vector));
  }
}

// The columns that are read next are `ahead` columns farther. The processor does not foresee that.
template <bool add>
void transpose(const float* from, int64_t from_step, float* to, int64_t to_step, int64_t rows,
               int64_t columns, int64_t ahead = 0) {
  const int64_t whole_rows = rows / 8 * 8, whole_columns = columns / 8 * 8;
  for (int64_t r = 0; r < whole_rows; r += 8) {
    if (ahead)
      for (int i = 0; i < 8; ++i)
        for (int64_t c = 0; c < whole_columns; c += 16)
          __builtin_prefetch(from + (r + i) * from_step + c + ahead);
    for (int64_t c = 0; c < whole_columns; c += 8)
      transpose_8x8<add>(from + r * from_step + c, from_step, to + c * to_step + r, to_step);
  }
  transpose_values<float, add>(from + whole_columns, from_step, to + whole_columns * to_step,
                               to_step, whole_rows, columns - whole_columns);
  transpose_values<float, add>(from + whole_rows * from_step, from_step, to + whole_rows, to_step,
                               rows - whole_rows, columns);
}

#undef RPE_D2_SHUFFLE
#endif

template <bool add, typename T>
void transpose(const T* from, int64_t from_step, T* to, int64_t to_step, int64_t rows,
               int64_t columns, int64_t ahead = 0) {
  transpose_values<T, add>(from, from_step, to, to_step, rows, columns);
}

// The strides with which a direction steps over a plane of height x width, in values.
struct Walk {
  int64_t steps, length;       // number of lines; number of values in a line
  int64_t first, step, place;  // offset of the first line; stride between lines; within a line
  int64_t area;

  Walk(int64_t direction, int64_t height, int64_t width) : area(height * width) {
    const bool across = direction < 2, backwards = direction % 2;
    steps = across ? width : height;
    length = across ? height : width;
    step = across ? 1 : width;
    place = across ? width : 1;
    first = backwards ? (steps - 1) * step : 0;
    if (backwards) step = -step;
  }

  // Copies the lines `begin` to `begin + count` of a plane, `pitch` values apart. The lines that
  // are read next are `ahead` lines farther.
  template <typename T>
  void read(const T* plane, int64_t begin, int64_t count, T* lines, int64_t pitch,
            int64_t ahead) const {
    const T* from = plane + first + begin * step;
    if (place == 1)
      for (int64_t t = 0; t < count; ++t) std::copy_n(from + t * step, length, lines + t * pitch);
    else if (step == 1)
      transpose<false>(from, place, lines, pitch, length, count, ahead);
    else  // the lines are in reverse order
      transpose<false>(from - (count - 1), place, lines + (count - 1) * pitch, -pitch, length,
                       count, -ahead);
  }

  // Copies lines to a plane, or adds them to it.
  template <bool add, typename T>
  void write(T* plane, int64_t begin, int64_t count, const T* lines, int64_t pitch) const {
    T* to = plane + first + begin * step;
    if (place == 1)
      for (int64_t t = 0; t < count; ++t)
        for (int64_t i = 0; i < length; ++i) {
          T& value = to[t * step + i];
          value = add ? value + lines[t * pitch + i] : lines[t * pitch + i];
        }
    else if (step == 1)
      transpose<add>(lines, pitch, to, place, count, length);
    else
      transpose<add>(lines + (count - 1) * pitch, -pitch, to - (count - 1), place, count, length);
  }

  // Copies lines of gates (K, height, width). Gates that point out of the image, and all gates of
  // the first line, become 0.
  template <typename T>
  void read_gates(const T* gates, int64_t connections, int64_t begin, int64_t count, T* lines,
                  int64_t pitch, int64_t plane, int64_t ahead) const {
    for (int64_t k = 0; k < connections; ++k) {
      T* own = lines + k * plane;
      read(gates + k * area, begin, count, own, pitch, ahead);
      for (int64_t t = 0; t < count && connections == 3; ++t) {
        if (k == 0) own[t * pitch] = 0;
        if (k == 2) own[t * pitch + length - 1] = 0;
      }
      if (begin == 0) std::fill_n(own, length, T(0));
    }
  }
};

// Computes h of one line from h of the previous line, which is padded by one value at both ends.
// The gates of the K connections are `plane` values apart.
template <typename T, int K>
void forward_line(const T* __restrict__ x, const T* __restrict__ gate, const T* __restrict__ before,
                  T* __restrict__ h, int64_t length, int64_t plane) {
  for (int64_t i = 0; i < length; ++i) {
    // Computed as a change of x, which is exactly 0 where x and its neighbors' h are equal.
    T change = 0;
    for (int k = 0; k < K; ++k) change += gate[k * plane + i] * (before[i + k - K / 2] - x[i]);
    h[i] = x[i] + change;
  }
}

// The same for lines that are not padded. Gates that point out of the image count as 0.
template <typename T, int K>
void forward_row(const T* __restrict__ x, const T* __restrict__ gate, const T* __restrict__ before,
                 T* __restrict__ h, int64_t length, int64_t plane) {
  constexpr int64_t kEdge = K / 2;
  const auto edge = [&](int64_t i) {
    T change = 0;
    for (int64_t k = 0; k < K; ++k) {
      const int64_t from = i + k - kEdge;
      if (from >= 0 && from < length) change += gate[k * plane + i] * (before[from] - x[i]);
    }
    h[i] = x[i] + change;
  };
  for (int64_t i = 0; i < std::min(kEdge, length); ++i) edge(i);
  for (int64_t i = kEdge; i < length - kEdge; ++i) {
    T change = 0;
    for (int k = 0; k < K; ++k) change += gate[k * plane + i] * (before[i + k - kEdge] - x[i]);
    h[i] = x[i] + change;
  }
  for (int64_t i = std::max(kEdge, length - kEdge); i < length; ++i) edge(i);
}

template <typename T, int K>
void forward_plane(const Walk& walk, const T* x, const T* gates, T* result) {
  const int64_t length = walk.length, pitch = length + 2, plane = kBlock * pitch;
  if (walk.place == 1) {  // the lines are contiguous already
    std::copy_n(x + walk.first, length, result + walk.first);
    for (int64_t t = 1; t < walk.steps; ++t) {
      const int64_t here = walk.first + t * walk.step;
      forward_row<T, K>(x + here, gates + here, result + here - walk.step, result + here, length,
                        walk.area);
    }
    return;
  }
  const auto x_lines = allocate<T>(plane), gate_lines = allocate<T>(K * plane),
             h_lines = allocate<T>(plane + pitch);
  std::fill_n(h_lines.get(), plane + pitch, T(0));  // the padding at both ends
  for (int64_t begin = 0; begin < walk.steps; begin += kBlock) {
    const int64_t count = std::min(kBlock, walk.steps - begin);
    const int64_t ahead = begin + 2 * count <= walk.steps ? count : 0;
    walk.read(x, begin, count, x_lines.get(), pitch, ahead);
    walk.read_gates(gates, K, begin, count, gate_lines.get(), pitch, plane, ahead);
    const int64_t none = begin == 0;  // the first line has no previous line
    std::copy_n(x_lines.get(), none * length, &h_lines[pitch + 1]);
    for (int64_t t = none; t < count; ++t)
      forward_line<T, K>(&x_lines[t * pitch], &gate_lines[t * pitch], &h_lines[t * pitch + 1],
                         &h_lines[(t + 1) * pitch + 1], length, plane);
    walk.write<false>(result, begin, count, &h_lines[pitch + 1], pitch);
    std::copy_n(&h_lines[count * pitch], pitch, h_lines.get());
  }
}

// Computes the gradients of one line. `delta` is the direct gradient of h on input, and its total
// gradient on output. `flow`, K lines padded by one value at both ends, is gates times delta of the
// next line on input, and of this line on output.
template <typename T, int K>
void backward_line(const T* __restrict__ x, const T* __restrict__ gate,
                   const T* __restrict__ before, T* __restrict__ delta, T* __restrict__ flow,
                   T* __restrict__ grad_x, T* __restrict__ grad_gate, int64_t length,
                   int64_t plane) {
  const int64_t pitch = length + 2;
  for (int64_t i = 0; i < length; ++i) {
    T sum = delta[i];
    for (int k = 0; k < K; ++k) sum += flow[k * pitch + 1 + i - (k - K / 2)];
    delta[i] = sum;
  }
  for (int64_t i = 0; i < length; ++i) {
    T kept = 1;
    for (int k = 0; k < K; ++k) kept -= gate[k * plane + i];
    grad_x[i] = kept * delta[i];
  }
  for (int k = 0; k < K; ++k)
    for (int64_t i = 0; i < length; ++i) {
      flow[k * pitch + 1 + i] = gate[k * plane + i] * delta[i];
      grad_gate[k * plane + i] = delta[i] * (before[i + k - K / 2] - x[i]);
    }
  if (K == 3) grad_gate[0] = grad_gate[2 * plane + length - 1] = 0;
}

template <typename T>
void write(const Walk& walk, T* plane, int64_t begin, int64_t count, const T* lines, int64_t pitch,
           bool add) {
  if (add)
    walk.write<true>(plane, begin, count, lines, pitch);
  else
    walk.write<false>(plane, begin, count, lines, pitch);
}

// Computes the gradients of one direction, which are added to grad_x and grad_gates or overwrite
// them.
template <typename T, int K>
void backward_plane(const Walk& walk, const T* gradient, const T* x, const T* gates,
                    const T* result, T* grad_x, bool add_to_x, T* grad_gates, bool add_to_gates) {
  const int64_t length = walk.length, pitch = length + 2;
  // Contiguous lines are copied one by one, to a buffer that stays in the nearest cache.
  const int64_t block = walk.place == 1 ? 1 : kBlock, plane = block * pitch;
  const auto x_lines = allocate<T>(plane), gate_lines = allocate<T>(K * plane),
             h_lines = allocate<T>(plane), delta_lines = allocate<T>(plane),
             grad_x_lines = allocate<T>(plane), grad_gate_lines = allocate<T>(K * plane),
             flow = allocate<T>(K * pitch);
  std::fill_n(h_lines.get(), plane, T(0));
  std::fill_n(flow.get(), K * pitch, T(0));
  for (int64_t begin = (walk.steps - 1) / block * block; begin >= 0; begin -= block) {
    const int64_t count = std::min(block, walk.steps - begin), ahead = begin ? -block : 0;
    walk.read(x, begin, count, x_lines.get(), pitch, ahead);
    walk.read(gradient, begin, count, delta_lines.get(), pitch, ahead);
    walk.read_gates(gates, K, begin, count, gate_lines.get(), pitch, plane, ahead);
    const int64_t none = begin == 0;  // the first line has no previous line
    walk.read(result, begin - 1 + none, count - none, &h_lines[none * pitch + 1], pitch, ahead);
    for (int64_t t = count - 1; t >= 0; --t)
      backward_line<T, K>(&x_lines[t * pitch], &gate_lines[t * pitch], &h_lines[t * pitch + 1],
                          &delta_lines[t * pitch], flow.get(), &grad_x_lines[t * pitch],
                          &grad_gate_lines[t * pitch], length, plane);
    write(walk, grad_x, begin, count, grad_x_lines.get(), pitch, add_to_x);
    for (int k = 0; k < K; ++k) {
      T* lines = &grad_gate_lines[k * plane];
      if (begin == 0) std::fill_n(lines, length, T(0));  // the first line has no gates
      write(walk, grad_gates + k * walk.area, begin, count, lines, pitch, add_to_gates);
    }
  }
}

// Computes the maximum over the maps of the four directions, which are `apart` values apart.
template <typename T>
void maximum(const T* result, int64_t apart, int64_t area, T* merged) {
  for (int64_t i = 0; i < area; ++i) {
    T best = result[i];
    for (int d = 1; d < 4; ++d) {
      const T h = result[d * apart + i];
      best = h > best || h != h ? h : best;  // propagates NaN
    }
    merged[i] = best;
  }
}

// Computes the gradients of the four directions, one map after the other, from the gradient of
// their maximum. It is divided between the directions that attain the maximum, and NaN propagates
// to all of them.
template <typename T>
void maximum_backward(const T* gradient, const T* result, int64_t apart, int64_t area,
                      const T* merged, T* shares) {
  for (int64_t i = 0; i < area; ++i) {
    T ties = 0;
    for (int d = 0; d < 4; ++d) ties += result[d * apart + i] == merged[i];
    const T share = gradient[i] / ties, none = merged[i] - merged[i];
    for (int d = 0; d < 4; ++d)
      shares[d * area + i] = result[d * apart + i] == merged[i] ? share : none;
  }
}

// Sizes of x (images, channels, height, width) and of gates (images, gate_channels, 4, K, height,
// width), both contiguous.
struct Sizes {
  int64_t images, channels, gate_channels, height, width;

  int64_t area() const { return height * width; }
  int64_t apart() const { return images * channels * area(); }  // stride between directions
};

// Runs the tasks in parallel, and returns whether there was enough memory for all of them.
template <typename Task>
bool for_each(int64_t tasks, const Sizes& s, int64_t threads, Task task) {
  const int64_t useful = 1 + 4 * s.apart() / kWorkOfAThread;
  const int team = static_cast<int>(std::max<int64_t>(1, std::min({threads, tasks, useful})));
  std::atomic<bool> done{true};
#pragma omp parallel for num_threads(team) schedule(dynamic)
  for (int64_t number = 0; number < tasks; ++number) {
    try {  // an exception that leaves a parallel region would end the process
      task(number);
    } catch (const std::bad_alloc&) {
      done = false;
    }
  }
  return done;
}

template <typename T, int K>
bool forward(const T* x, const T* gates, T* result, T* merged, const Sizes& s,
             int64_t threads) {
  return for_each(s.images * s.channels, s, threads, [&](int64_t plane) {
    const int64_t image = plane / s.channels, gate_channel = plane % s.channels % s.gate_channels;
    const T* own = gates + (image * s.gate_channels + gate_channel) * 4 * K * s.area();
    T* here = result + plane * s.area();
    for (int64_t d = 0; d < 4; ++d)
      forward_plane<T, K>(Walk(d, s.height, s.width), x + plane * s.area(), own + d * K * s.area(),
                          here + d * s.apart());
    if (merged) maximum(here, s.apart(), s.area(), merged + plane * s.area());
  });
}

template <typename T, int K>
bool backward(const T* gradient, const T* x, const T* gates, const T* result, const T* merged,
              T* grad_x, T* grad_gates, const Sizes& s, int64_t threads) {
  return for_each(s.images * s.gate_channels, s, threads, [&](int64_t number) {
    const int64_t image = number / s.gate_channels, gate_channel = number % s.gate_channels;
    const int64_t own = number * 4 * K * s.area();
    const auto shares = allocate<T>(merged ? 4 * s.area() : 0);
    for (int64_t c = gate_channel; c < s.channels; c += s.gate_channels) {
      const int64_t here = (image * s.channels + c) * s.area();
      if (merged)
        maximum_backward(gradient + here, result + here, s.apart(), s.area(), merged + here,
                         shares.get());
      for (int64_t d = 0; d < 4; ++d) {
        const T* incoming = merged ? &shares[d * s.area()] : gradient + here + d * s.apart();
        const int64_t gate = own + d * K * s.area();
        backward_plane<T, K>(Walk(d, s.height, s.width), incoming, x + here, gates + gate,
                             result + here + d * s.apart(), grad_x + here, d != 0,
                             grad_gates + gate, c != gate_channel);
      }
    }
  });
}

}  // namespace

// `merged` is the maximum over the directions, or null. If it is given, `gradient` is its gradient,
// otherwise that of all four directions. The functions return whether there was enough memory.
#define RPE_D2_PROPAGATION(T, NAME, K)                                                            \
  extern "C" int propagation_forward_##NAME##_##K(                                                \
      const T* x, const T* gates, T* result, T* merged, const int64_t* sizes, int64_t threads) {  \
    const Sizes s{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};                              \
    return forward<T, K>(x, gates, result, merged, s, threads);                                   \
  }                                                                                               \
  extern "C" int propagation_backward_##NAME##_##K(                                               \
      const T* gradient, const T* x, const T* gates, const T* result, const T* merged, T* grad_x, \
      T* grad_gates, const int64_t* sizes, int64_t threads) {                                     \
    const Sizes s{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};                              \
    return backward<T, K>(gradient, x, gates, result, merged, grad_x, grad_gates, s, threads);    \
  }

RPE_D2_PROPAGATION(float, float32, 1)
RPE_D2_PROPAGATION(float, float32, 3)
RPE_D2_PROPAGATION(double, float64, 1)
RPE_D2_PROPAGATION(double, float64, 3)
