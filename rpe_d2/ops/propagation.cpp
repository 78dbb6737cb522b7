// The recurrence of spatial propagation on the CPU, built by propagation_cpp.py: no header but the standard ones.
//
// An image's channel (backward: all that share their gates) is a task for one thread, so that its maps stay in the
// cache for all directions and their maximum. A direction is walked over in blocks of lines, the columns or rows that
// the recurrence steps through: a block is copied so that a line's places lie one after the other, whatever the
// direction, worked on, and copied back.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <new>

namespace {

constexpr int64_t kBlock = 16;                // lines: a cache line of floats
constexpr int64_t kWorkOfAThread = 1 << 14;   // values; starting a thread takes as long as fewer

// Memory that is not filled: what is not written is not read.
template <typename T>
std::unique_ptr<T[]> lines_of(int64_t count) {
  return std::unique_ptr<T[]>(new T[count]);
}

// How a direction walks over a plane of height x width, in values.
struct Walk {
  int64_t steps, length;       // lines, and places of a line
  int64_t first, step, place;  // the first line's first place; to the next line; to the next place
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

  // Lines `begin` to `begin + count` of a plane, `pitch` values from one to the next.
  template <typename T>
  void read(const T* plane, int64_t begin, int64_t count, T* lines, int64_t pitch) const {
    const T* from = plane + first + begin * step;
    each_value(count, [&](int64_t t, int64_t i) { lines[t * pitch + i] = from[t * step + i * place]; });
  }

  template <typename T>
  void write(T* plane, int64_t begin, int64_t count, const T* lines, int64_t pitch, bool add) const {
    T* to = plane + first + begin * step;
    if (add)
      each_value(count, [&](int64_t t, int64_t i) { to[t * step + i * place] += lines[t * pitch + i]; });
    else
      each_value(count, [&](int64_t t, int64_t i) { to[t * step + i * place] = lines[t * pitch + i]; });
  }

  // The same of gates (K, height, width); those that point out of the image, and all of the first line, are 0.
  template <typename T>
  void read_gates(const T* gates, int64_t connections, int64_t begin, int64_t count, T* lines, int64_t pitch) const {
    for (int64_t k = 0; k < connections; ++k) {
      T* own = lines + k * kBlock * pitch;
      read(gates + k * area, begin, count, own, pitch);
      for (int64_t t = 0; t < count && connections == 3; ++t) {
        if (k == 0) own[t * pitch] = 0;
        if (k == 2) own[t * pitch + length - 1] = 0;
      }
      if (begin == 0) std::fill_n(own, length, T(0));
    }
  }

 private:
  // In the order in which values lie in the plane.
  template <typename Copy>
  void each_value(int64_t count, Copy copy) const {
    if (place == 1) {
      for (int64_t t = 0; t < count; ++t)
        for (int64_t i = 0; i < length; ++i) copy(t, i);
    } else {
      for (int64_t i = 0; i < length; ++i)
        for (int64_t t = 0; t < count; ++t) copy(t, i);
    }
  }
};

// One line: h from that of the line before, which has a place more at either end; gates of a line are `plane` apart.
template <typename T, int K>
void forward_line(const T* __restrict__ x, const T* __restrict__ gate, const T* __restrict__ before,
                  T* __restrict__ h, int64_t length, int64_t plane) {
  for (int64_t i = 0; i < length; ++i) {
    // As a change of x: exactly none where x and all that comes in are equal.
    T change = 0;
    for (int k = 0; k < K; ++k) change += gate[k * plane + i] * (before[i + k - K / 2] - x[i]);
    h[i] = x[i] + change;
  }
}

template <typename T, int K>
void forward_plane(const Walk& walk, const T* x, const T* gates, T* found) {
  const int64_t length = walk.length, pitch = length + 2, plane = kBlock * pitch;
  const auto x_lines = lines_of<T>(plane), gate_lines = lines_of<T>(K * plane), h_lines = lines_of<T>(plane + pitch);
  std::fill_n(h_lines.get(), plane + pitch, T(0));  // the places more at either end
  for (int64_t begin = 0; begin < walk.steps; begin += kBlock) {
    const int64_t count = std::min(kBlock, walk.steps - begin);
    walk.read(x, begin, count, x_lines.get(), pitch);
    walk.read_gates(gates, K, begin, count, gate_lines.get(), pitch);
    const int64_t none = begin == 0;  // lines that no line comes before
    std::copy_n(x_lines.get(), none * length, &h_lines[pitch + 1]);
    for (int64_t t = none; t < count; ++t)
      forward_line<T, K>(&x_lines[t * pitch], &gate_lines[t * pitch], &h_lines[t * pitch + 1],
                         &h_lines[(t + 1) * pitch + 1], length, plane);
    walk.write(found, begin, count, &h_lines[pitch + 1], pitch, false);
    std::copy_n(&h_lines[count * pitch], pitch, h_lines.get());
  }
}

// One line: `delta` comes as the gradient of h and goes as that of all that h has part in. `flow`, K lines with a place
// more at either end, comes from the line after (gates times delta there) and goes to the line before.
template <typename T, int K>
void backward_line(const T* __restrict__ x, const T* __restrict__ gate, const T* __restrict__ before,
                   T* __restrict__ delta, T* __restrict__ flow, T* __restrict__ of_x, T* __restrict__ of_gate,
                   int64_t length, int64_t plane) {
  const int64_t pitch = length + 2;
  for (int64_t i = 0; i < length; ++i) {
    T sum = delta[i];
    for (int k = 0; k < K; ++k) sum += flow[k * pitch + 1 + i - (k - K / 2)];
    delta[i] = sum;
  }
  for (int64_t i = 0; i < length; ++i) {
    T kept = 1;
    for (int k = 0; k < K; ++k) kept -= gate[k * plane + i];
    of_x[i] = kept * delta[i];
  }
  for (int k = 0; k < K; ++k)
    for (int64_t i = 0; i < length; ++i) {
      flow[k * pitch + 1 + i] = gate[k * plane + i] * delta[i];
      of_gate[k * plane + i] = delta[i] * (before[i + k - K / 2] - x[i]);
    }
  if (K == 3) of_gate[0] = of_gate[2 * plane + length - 1] = 0;
}

// Adds to of_x and of_gates, or overwrites them.
template <typename T, int K>
void backward_plane(const Walk& walk, const T* gradient, const T* x, const T* gates, const T* found, T* of_x,
                    bool add_to_x, T* of_gates, bool add_to_gates) {
  const int64_t length = walk.length, pitch = length + 2, plane = kBlock * pitch;
  const auto x_lines = lines_of<T>(plane), gate_lines = lines_of<T>(K * plane), h_lines = lines_of<T>(plane),
             delta_lines = lines_of<T>(plane), of_x_lines = lines_of<T>(plane),
             of_gate_lines = lines_of<T>(K * plane), flow = lines_of<T>(K * pitch);
  std::fill_n(h_lines.get(), plane, T(0));
  std::fill_n(flow.get(), K * pitch, T(0));
  for (int64_t begin = (walk.steps - 1) / kBlock * kBlock; begin >= 0; begin -= kBlock) {
    const int64_t count = std::min(kBlock, walk.steps - begin);
    walk.read(x, begin, count, x_lines.get(), pitch);
    walk.read(gradient, begin, count, delta_lines.get(), pitch);
    walk.read_gates(gates, K, begin, count, gate_lines.get(), pitch);
    const int64_t none = begin == 0;  // lines that no line comes before
    walk.read(found, begin - 1 + none, count - none, &h_lines[none * pitch + 1], pitch);
    for (int64_t t = count - 1; t >= 0; --t)
      backward_line<T, K>(&x_lines[t * pitch], &gate_lines[t * pitch], &h_lines[t * pitch + 1],
                          &delta_lines[t * pitch], flow.get(), &of_x_lines[t * pitch], &of_gate_lines[t * pitch],
                          length, plane);
    walk.write(of_x, begin, count, of_x_lines.get(), pitch, add_to_x);
    for (int k = 0; k < K; ++k) {
      T* lines = &of_gate_lines[k * plane];
      if (begin == 0) std::fill_n(lines, length, T(0));  // the first line has no gates
      walk.write(of_gates + k * walk.area, begin, count, lines, pitch, add_to_gates);
    }
  }
}

// Of (area) maps that lie `apart` from direction to direction.
template <typename T>
void maximum(const T* found, int64_t apart, int64_t area, T* merged) {
  for (int64_t i = 0; i < area; ++i) {
    T best = found[i];
    for (int d = 1; d < 4; ++d) {
      const T h = found[d * apart + i];
      best = h > best || h != h ? h : best;  // NaN stays
    }
    merged[i] = best;
  }
}

// The gradient of the maximum, shared by the directions that reach it, as four maps one after the other. Of NaN it is
// NaN in all of them.
template <typename T>
void maximum_backward(const T* gradient, const T* found, int64_t apart, int64_t area, const T* merged, T* shares) {
  for (int64_t i = 0; i < area; ++i) {
    T reached = 0;
    for (int d = 0; d < 4; ++d) reached += found[d * apart + i] == merged[i];
    const T share = gradient[i] / reached, none = merged[i] - merged[i];
    for (int d = 0; d < 4; ++d) shares[d * area + i] = found[d * apart + i] == merged[i] ? share : none;
  }
}

// Of x (images, channels, height, width) and gates (images, gate_channels, 4, K, height, width), contiguous.
struct Sizes {
  int64_t images, channels, gate_channels, height, width;

  int64_t area() const { return height * width; }
  int64_t apart() const { return images * channels * area(); }  // of the directions' results
};

// Whether there was memory for all of them.
template <typename Task>
bool for_each(int64_t tasks, const Sizes& s, int64_t threads, Task task) {
  const int64_t useful = 1 + 4 * s.apart() / kWorkOfAThread;
  const int team = static_cast<int>(std::max<int64_t>(1, std::min({threads, tasks, useful})));
  std::atomic<bool> done{true};
#pragma omp parallel for num_threads(team) schedule(dynamic)
  for (int64_t number = 0; number < tasks; ++number) {
    try {  // what leaves a parallel region ends the process
      task(number);
    } catch (const std::bad_alloc&) {
      done = false;
    }
  }
  return done;
}

template <typename T, int K>
bool forward(const T* x, const T* gates, T* found, T* merged, const Sizes& s, int64_t threads) {
  return for_each(s.images * s.channels, s, threads, [&](int64_t plane) {
    const int64_t image = plane / s.channels, gate_channel = plane % s.channels % s.gate_channels;
    const T* own = gates + (image * s.gate_channels + gate_channel) * 4 * K * s.area();
    T* here = found + plane * s.area();
    for (int64_t d = 0; d < 4; ++d)
      forward_plane<T, K>(Walk(d, s.height, s.width), x + plane * s.area(), own + d * K * s.area(),
                          here + d * s.apart());
    if (merged) maximum(here, s.apart(), s.area(), merged + plane * s.area());
  });
}

template <typename T, int K>
bool backward(const T* gradient, const T* x, const T* gates, const T* found, const T* merged, T* of_x, T* of_gates,
              const Sizes& s, int64_t threads) {
  return for_each(s.images * s.gate_channels, s, threads, [&](int64_t number) {
    const int64_t image = number / s.gate_channels, gate_channel = number % s.gate_channels;
    const int64_t own = number * 4 * K * s.area();
    const auto shares = lines_of<T>(merged ? 4 * s.area() : 0);
    for (int64_t c = gate_channel; c < s.channels; c += s.gate_channels) {
      const int64_t here = (image * s.channels + c) * s.area();
      if (merged) maximum_backward(gradient + here, found + here, s.apart(), s.area(), merged + here, shares.get());
      for (int64_t d = 0; d < 4; ++d) {
        const T* incoming = merged ? &shares[d * s.area()] : gradient + here + d * s.apart();
        backward_plane<T, K>(Walk(d, s.height, s.width), incoming, x + here, gates + own + d * K * s.area(),
                             found + here + d * s.apart(), of_x + here, d != 0, of_gates + own + d * K * s.area(),
                             c != gate_channel);
      }
    }
  });
}

}  // namespace

// `merged`: the maximum over the directions, or null; with it the gradient is its own, else that of all directions.
// They return whether there was enough memory.
#define RPE_D2_PROPAGATION(T, NAME, K)                                                                            \
  extern "C" int propagation_forward_##NAME##_##K(const T* x, const T* gates, T* found, T* merged,                \
                                                   const int64_t* sizes, int64_t threads) {                       \
    return forward<T, K>(x, gates, found, merged, {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]}, threads);   \
  }                                                                                                               \
  extern "C" int propagation_backward_##NAME##_##K(const T* gradient, const T* x, const T* gates, const T* found, \
                                                    const T* merged, T* of_x, T* of_gates, const int64_t* sizes,  \
                                                    int64_t threads) {                                            \
    return backward<T, K>(gradient, x, gates, found, merged, of_x, of_gates,                                      \
                   {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]}, threads);                                  \
  }

RPE_D2_PROPAGATION(float, float32, 1)
RPE_D2_PROPAGATION(float, float32, 3)
RPE_D2_PROPAGATION(double, float64, 1)
RPE_D2_PROPAGATION(double, float64, 3)
