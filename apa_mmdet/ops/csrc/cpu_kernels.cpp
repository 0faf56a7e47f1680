// AGLU and APA on a CPU, forward and backward in one pass over memory each.
//
// y = APA(z), or AGLU(z) with slope and bound; z = x, or scale * (x - center) + shift,
// or the same + residual_scale * (residual - residual_center).
// Notation as in formula.py. With t = ln(lam) - kappa * z and E = exp(-|t|):
//
//   L = max(t, 0) + ln(1 + E), APA = exp(-L / lam)
//   s = sigmoid(t) = E / (1 + E) for t <= 0, 1 / (1 + E) otherwise
//   ln(1 + E) = E / (1 + E) + E^2 * g(E), with a polynomial for g
//   L - s = E^2 * g(E) for t <= 0, where the difference would cancel
//
// so that an element costs two exponentials and, in backward, one division. Below
// lam = 1e-4, including zero, the same is formed from E = exp(-kappa * z) and
// w = lam * E by series in w: where w is not small, APA is 0.
// "lb" is the logarithm to base 2; kappa is passed as lb_kappa = kappa / ln(2). Sums
// over elements are formed in chunks whose bounds depend on the shape only, so they do
// not depend on the number of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "cpu_kernels.h"

namespace apa::cpu {
namespace {

// A call that is not inlined keeps the loop around it from being vectorized.
#define INLINE inline __attribute__((always_inline))

constexpr Index kChunk = 1 << 13;  // elements worked on at a time by one thread
constexpr Index kMaxChunks = 256;  // of rows, where each chunk has sums per channel

// A CPU takes a hundred times as long for subnormal numbers, of which a ReLU-like kappa
// makes many.
struct FlushSubnormals {
#if defined(__SSE2__)
  unsigned saved = _mm_getcsr();
  FlushSubnormals() { _mm_setcsr(saved | 0x8040); }
  ~FlushSubnormals() { _mm_setcsr(saved); }
#endif
};

struct BFloat16 {
  std::uint16_t bits;
};

inline float load(float value) { return value; }
inline float load(BFloat16 value) {
  const std::uint32_t bits = static_cast<std::uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}
inline void store(float value, float* to) { *to = value; }
inline void store(float value, BFloat16* to) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const std::uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  to->bits = static_cast<std::uint16_t>(value == value ? rounded : 0x7fc0);
}

// 2^-x for x >= 0, NaN for NaN; 0 from 127 on, and between 126 and 127 some number below
// 2^-126. The integer part goes to the exponent's bits; the polynomial is fitted to 2^f
// on [-1/2, 1/2], to 2e-8 relative.
INLINE float exp2_neg(float x) {
  x = x > 127.0f ? 127.0f : x;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float shifted = magic - x;
  const float f = (magic - shifted) - x;
  const float f2 = f * f;
  float p = 0.00015453163f;
  p = p * f2 + (0.0013390863f * f + 0.009618083f);
  p = p * f2 + (0.05550357f * f + 0.2402265f);
  p = p * f2 + (0.6931472f * f + 1.0f);
  std::uint32_t power, bits;
  std::memcpy(&power, &shifted, 4);
  std::memcpy(&bits, &p, 4);
  bits += power << 23;
  std::memcpy(&p, &bits, 4);
  return p;
}

// APA(z). ln(1 + E) is a polynomial of degree 9 on [0, 1], to 5e-8 relative.
INLINE float apa(float z, float lb_lam, float lb_kappa, float inv_lam) {
  const float t = lb_lam - lb_kappa * z;  // in base 2, as L
  const float E = exp2_neg(std::fabs(t));
  const float E2 = E * E;
  float L = 0.007395402f * E - 0.04194501f;
  L = L * E2 + (0.111832075f * E - 0.19623895f);
  L = L * E2 + (0.2752212f * E - 0.35829908f);
  L = L * E2 + (0.4806789f * E - 0.7213395f);
  L = L * E2 + (1.442695f * E + (t > 0 ? t : 0.0f));
  return exp2_neg(L * inv_lam);
}

// E = exp(-kappa * z), clamped to 128, where APA is 0 for every lam < 1e-4: then
// w = lam * E < 0.0128, and four terms of a series in w are exact to rounding.
INLINE float small_exp(float z, float lb_kappa) {
  const float t = -lb_kappa * z;
  return 128.0f * exp2_neg(t >= 7.0f ? 0.0f : 7.0f - t);
}
// ln(1 + w) / lam in base 2.
INLINE float small_log(float E, float w) {
  return E * (1.442695f - w * (0.7213475f - w * (0.4808983f - w * 0.3606738f)));
}

INLINE float small_apa(float z, float lam, float lb_kappa) {
  const float E = small_exp(z, lb_kappa);
  return exp2_neg(small_log(E, lam * E));
}

// Which lam a run of elements has: none, all or some of them below 1e-4.
enum Lam { kUsual, kSmall, kMixed };

constexpr bool is_affine(Form form) { return form >= kAffine; }
constexpr bool has_residual(Form form) { return form >= kResidual; }
constexpr bool is_bent(Form form) {
  return form == kAgluBent || form == kAffineBent || form == kResidualBent;
}

// The coefficients of one element.
struct Scalars {
  float lb_lam, inv_lam, lb_kappa, center, scale, shift, residual_center, residual_scale;
  float slope, bound;
};

// In one expression: with assignments under conditions, loops are not vectorized.
template <Form kForm>
INLINE Scalars scalars(const Coefficients& c, Index i) {
  return {c.lb_lam[i],
          c.inv_lam[i],
          c.lb_kappa[i],
          is_affine(kForm) ? c.center[i] : 0.0f,
          is_affine(kForm) ? c.scale[i] : 1.0f,
          is_affine(kForm) ? c.shift[i] : 0.0f,
          has_residual(kForm) ? c.residual_center[i] : 0.0f,
          has_residual(kForm) ? c.residual_scale[i] : 1.0f,
          c.slope,
          c.bound};
}

// z, and what it is made of, centered.
struct Input {
  float z, x, residual;
};

template <Form kForm, typename T>
INLINE Input input(const T* x, const T* residual, const Scalars& v) {
  Input in{load(*x), 0, 0};
  if (is_affine(kForm)) {
    in.x = in.z - v.center;
    in.z = v.scale * in.x + v.shift;
  }
  if (has_residual(kForm)) {
    in.residual = load(*residual) - v.residual_center;
    in.z += v.residual_scale * in.residual;
  }
  return in;
}

// The arithmetic on one cache line fills a core's out-of-order window, so it would ask
// for the next line too late. Lines are therefore prefetched some blocks ahead.
constexpr Index kBlock = 64, kSumBlock = 256, kAhead = 1024;

template <Index kSize, typename T>
inline void fetch(const T* from) {
  for (Index i = 0; i < kSize; i += 64 / sizeof(T))
    __builtin_prefetch(from + kAhead + i);
}

template <Form kForm, Lam kLam, typename T>
INLINE void forward(const T* x, const T* residual, T* out, const Scalars& v) {
  const float z = input<kForm>(x, residual, v).z;
  float p = kLam == kSmall ? small_apa(z, v.inv_lam, v.lb_kappa)
                           : apa(z, v.lb_lam, v.lb_kappa, v.inv_lam);
  if (kLam == kMixed) {
    const float other = small_apa(z, v.inv_lam, v.lb_kappa);
    p = v.lb_lam == kIsSmall ? other : p;
  }
  if (is_bent(kForm)) p = (1.0f - v.slope) * p + v.slope;
  float y = kForm == kApa ? (z == z ? p : z) : z * p;
  if (is_bent(kForm)) y = y > v.bound ? v.bound : y;
  store(y, out);
}

template <Form kForm, bool kEach, Lam kLam, typename T>
INLINE void forward_block(
    const T* x, const T* residual, T* out, const Coefficients c, Index n) {
  if (kEach) {
#pragma omp simd
    for (Index i = 0; i < n; ++i)
      forward<kForm, kLam>(x + i, residual + i, out + i, scalars<kForm>(c, i));
  } else {
    const Scalars v = scalars<kForm>(c, 0);
#pragma omp simd
    for (Index i = 0; i < n; ++i)
      forward<kForm, kLam>(x + i, residual + i, out + i, v);
  }
}

template <Form kForm, Lam kLam, typename T>
void forward_blocks(const T* x, const T* residual, T* out, const Coefficients c,
                    Index n) {
  Index i = 0;
  for (; i + kBlock <= n; i += kBlock) {
    fetch<kBlock>(x + i);
    if (has_residual(kForm)) fetch<kBlock>(residual + i);
    forward_block<kForm, false, kLam>(x + i, residual + i, out + i, c, kBlock);
  }
  forward_block<kForm, false, kLam>(x + i, residual + i, out + i, c, n - i);
}

template <Form kForm, typename T>
void forward_run(const T* x, const T* residual, T* out, const Coefficients c, Index n) {
  *c.lb_lam == kIsSmall ? forward_blocks<kForm, kSmall>(x, residual, out, c, n)
                        : forward_blocks<kForm, kUsual>(x, residual, out, c, n);
}

// Of an element: APA, s / lam (ln APA's derivative by kappa * z) and, if it is needed,
// (L - s) / lam^2 (that by lam).
struct Slopes {
  float p, s, m;
};

template <bool kNeedParams>
INLINE Slopes slopes(float z, float lb_lam, float lb_kappa, float inv_lam) {
  constexpr float kLn2 = 0.6931472f, kLb = 1.442695f;
  float t = lb_lam - lb_kappa * z;
  t = t > 1e25f ? 1e25f : t;  // APA is 0 long before, and L stays finite
  const float E = exp2_neg(std::fabs(t)), inverse = 1.0f / (1.0f + E);
  const float E2 = E * E;
  float g = 0.105378844f - 0.016883044f * E;  // to 3e-7 relative, and L to 4e-8
  g = g * E2 + (0.54833686f - 0.30329126f * E);
  g = g * E2 + (0.7995015f - 0.72822744f * E);
  g = g * E2 + (0.74952555f - 0.79454404f * E);
  g = g * E2 + (0.4999999f - 0.6666497f * E);
  const float L = (t > 0 ? t : 0.0f) * kLn2 + E * (E * g + inverse);
  const float e = E * inv_lam;  // E^2 may underflow where E^2 / lam^2 does not
  const bool is_left = t > 0;
  Slopes of;
  of.p = exp2_neg(L * (kLb * inv_lam));
  of.s = (is_left ? inv_lam : e) * inverse;
  of.m = 0;
  if (kNeedParams) of.m = is_left ? (L * inv_lam - of.s) * inv_lam : e * e * g;
  return of;
}

template <bool kNeedParams>
INLINE Slopes small_slopes(float z, float lam, float lb_kappa) {
  const float E = small_exp(z, lb_kappa), w = lam * E;
  Slopes of;
  of.p = exp2_neg(small_log(E, w));
  of.s = E * (1.0f - w * (1.0f - w * (1.0f - w * (1.0f - w))));
  of.m = 0;
  if (kNeedParams)
    of.m = E * E * (0.5f - w * (0.6666667f - w * (0.75f - w * 0.8f)));
  return of;
}

// Gradients of z, and of each element's lam and kappa.
template <Form kForm, bool kNeedParams, Lam kLam>
INLINE void gradient(float z, float grad, const Scalars& v, float* grad_z, float* lam,
                     float* kappa) {
  constexpr float kLn2 = 0.6931472f;
  Slopes of = kLam == kSmall
                  ? small_slopes<kNeedParams>(z, v.inv_lam, v.lb_kappa)
                  : slopes<kNeedParams>(z, v.lb_lam, v.lb_kappa, v.inv_lam);
  if (kLam == kMixed) {
    const Slopes other = small_slopes<kNeedParams>(z, v.inv_lam, v.lb_kappa);
    const bool is_small = v.lb_lam == kIsSmall;
    of.p = is_small ? other.p : of.p;
    of.s = is_small ? other.s : of.s;
    of.m = is_small ? other.m : of.m;
  }
  float gp = grad * of.p, straight = gp;
  if (is_bent(kForm)) {
    const float share = (1.0f - v.slope) * of.p + v.slope;
    const bool is_below = !(z * share > v.bound);
    straight = is_below ? grad * share : 0.0f;
    gp = is_below ? (1.0f - v.slope) * gp : 0.0f;
  }
  if (kForm == kApa) gp = z == z ? gp : z;
  const float gpz = kForm == kApa ? gp : gp * z;
  const float gpzs = gpz * of.s;
  *grad_z = (kForm == kApa ? 0.0f : straight) + gpzs * (kLn2 * v.lb_kappa);
  if (kNeedParams) {
    *lam = gpz * of.m;
    *kappa = gpzs * z;
  }
}

// Not inlined, so that full blocks and the rest of a row share one compiled copy.
template <Form kForm, bool kNeedParams, Lam kLam, typename T>
__attribute__((noinline)) void backward_block(
    const T* x, const T* residual, const T* grad, T* grad_x, T* grad_residual,
    const Coefficients c, Index n, double* sums) {
  float lam = 0, kappa = 0, shift = 0, scale = 0, residual_scale = 0;
  const Scalars v = scalars<kForm>(c, 0);
#pragma omp simd reduction(+ : lam, kappa, shift, scale, residual_scale)
  for (Index i = 0; i < n; ++i) {
    const Input in = input<kForm>(x + i, residual + i, v);
    float gz, gl = 0, gk = 0;
    gradient<kForm, kNeedParams, kLam>(in.z, load(grad[i]), v, &gz, &gl, &gk);
    if (kNeedParams) {
      lam += gl;
      kappa += gk;
    }
    if (is_affine(kForm)) {
      shift += gz;
      scale += gz * in.x;
    }
    if (has_residual(kForm)) {
      residual_scale += gz * in.residual;
      store(gz * v.residual_scale, grad_residual + i);
    }
    store(gz * v.scale, grad_x + i);
  }
  const float totals[kSums] = {lam, kappa, shift, scale, residual_scale};
  for (int i = 0; i < kSums; ++i) sums[i] += totals[i];
}

template <Form kForm, bool kNeedParams, Lam kLam, typename T>
void backward_blocks(const T* x, const T* residual, const T* grad, T* grad_x,
                     T* grad_residual, const Coefficients c, Index n, double* sums) {
  const auto block = backward_block<kForm, kNeedParams, kLam, T>;
  Index i = 0;
  for (; i + kSumBlock <= n; i += kSumBlock) {
    fetch<kSumBlock>(x + i);
    fetch<kSumBlock>(grad + i);
    if (has_residual(kForm)) fetch<kSumBlock>(residual + i);
    block(x + i, residual + i, grad + i, grad_x + i, grad_residual + i, c, kSumBlock,
          sums);
  }
  block(x + i, residual + i, grad + i, grad_x + i, grad_residual + i, c, n - i, sums);
}

// Adds to sums[0..4]: lam, kappa, shift, scale, residual_scale.
template <Form kForm, bool kNeedParams, typename T>
void backward_run(const T* x, const T* residual, const T* grad, T* grad_x,
                  T* grad_residual, const Coefficients c, Index n, double* sums) {
  const auto blocks = *c.lb_lam == kIsSmall
                          ? backward_blocks<kForm, true, kSmall, T>
                          : backward_blocks<kForm, kNeedParams, kUsual, T>;
  blocks(x, residual, grad, grad_x, grad_residual, c, n, sums);
}

// The same with coefficients and sums for each element; sums is (5, n).
template <Form kForm, bool kNeedParams, Lam kLam, typename T>
void backward_each(const T* x, const T* residual, const T* grad, T* grad_x,
                   T* grad_residual, const Coefficients c, Index n, float* sums) {
#pragma omp simd
  for (Index i = 0; i < n; ++i) {
    const Scalars v = scalars<kForm>(c, i);
    const Input in = input<kForm>(x + i, residual + i, v);
    float gz, gl = 0, gk = 0;
    gradient<kForm, kNeedParams, kLam>(in.z, load(grad[i]), v, &gz, &gl, &gk);
    if (kNeedParams) {
      sums[i] += gl;
      sums[n + i] += gk;
    }
    if (is_affine(kForm)) {
      sums[2 * n + i] += gz;
      sums[3 * n + i] += gz * in.x;
    }
    if (has_residual(kForm)) {
      sums[4 * n + i] += gz * in.residual;
      store(gz * v.residual_scale, grad_residual + i);
    }
    store(gz * v.scale, grad_x + i);
  }
}

template <typename T>
const T* offset(const void* p, Index by) {
  return p ? static_cast<const T*>(p) + by : nullptr;
}
template <typename T>
T* offset(void* p, Index by) {
  return p ? static_cast<T*>(p) + by : nullptr;
}

// Runs of elements that share a channel.
template <Form kForm, bool kNeedParams, typename T>
void by_runs(const Call& call) {
  const Index rows = call.batch * call.channels;
  const Index per_row = (call.inner + kChunk - 1) / kChunk;
  std::vector<double> partial(call.backward ? rows * per_row * kSums : 0);
#pragma omp parallel num_threads(call.threads)
  {
    FlushSubnormals flush;
#pragma omp for schedule(static)
    for (Index chunk = 0; chunk < rows * per_row; ++chunk) {
      const Index row = chunk / per_row, begin = chunk % per_row * kChunk;
      const Index n = std::min(kChunk, call.inner - begin);
      const Index from = row * call.inner + begin;
      const Coefficients c = call.coefficients_at(row % call.channels, row);
      const T *x = offset<T>(call.x, from), *residual = offset<T>(call.residual, from);
      T* out = offset<T>(call.out, from);
      if (call.backward) {
        backward_run<kForm, kNeedParams>(x, residual, offset<T>(call.grad, from), out,
                                        offset<T>(call.grad_residual, from), c, n,
                                        partial.data() + chunk * kSums);
      } else {
        forward_run<kForm>(x, residual, out, c, n);
      }
    }
  }
  if (!call.backward) return;
  const double* each = partial.data();
  for (Index row = 0; row < rows; ++row)
    for (Index chunk = 0; chunk < per_row; ++chunk, each += kSums)
      for (int i = 0; i < kSums; ++i) call.sums[i * rows + row] += each[i];
}

// Channels lie side by side.
template <Form kForm, bool kNeedParams, Lam kLam, typename T>
void by_pixels(const Call& call) {
  const Index C = call.channels;
  const Index wanted = std::max<Index>(kChunk / C, 1);
  const Index most = std::max<Index>(kMaxChunks / call.batch, 1);
  const Index pixels = std::max(wanted, (call.inner + most - 1) / most);
  const Index per_image = (call.inner + pixels - 1) / pixels;
  const Index chunks = call.batch * per_image;
  std::vector<float> partial(call.backward ? chunks * kSums * C : 0);
#pragma omp parallel num_threads(call.threads)
  {
    FlushSubnormals flush;
#pragma omp for schedule(static)
    for (Index chunk = 0; chunk < chunks; ++chunk) {
      const Index image = chunk / per_image, begin = chunk % per_image * pixels;
      const Index end = std::min(begin + pixels, call.inner);
      const Coefficients c = call.coefficients_at(0, image * C);
      for (Index pixel = begin; pixel < end; ++pixel) {
        const Index from = (image * call.inner + pixel) * C;
        const T *x = offset<T>(call.x, from);
        const T *residual = offset<T>(call.residual, from);
        T* out = offset<T>(call.out, from);
        if (call.backward) {
          backward_each<kForm, kNeedParams, kLam>(
              x, residual, offset<T>(call.grad, from), out,
              offset<T>(call.grad_residual, from), c, C,
              partial.data() + chunk * kSums * C);
        } else {
          forward_block<kForm, true, kLam>(x, residual, out, c, C);
        }
      }
    }
  }
  for (Index chunk = 0; call.backward && chunk < chunks; ++chunk)
    for (int i = 0; i < kSums; ++i)
      for (Index channel = 0; channel < C; ++channel)
        call.sums[(i * call.batch + chunk / per_image) * C + channel] +=
            partial[(chunk * kSums + i) * C + channel];
}

template <Form kForm, bool kNeedParams, typename T>
void by_layout(const Call& call) {
  if (!call.channels_last) return by_runs<kForm, kNeedParams, T>(call);
  const float *first = call.coefficients.lb_lam, *last = first + call.channels;
  const bool any_small = std::find(first, last, kIsSmall) != last;
  any_small ? by_pixels<kForm, true, kMixed, T>(call)
            : by_pixels<kForm, kNeedParams, kUsual, T>(call);
}

template <Form kForm, typename T>
void by_need(const Call& call) {
  call.need_params ? by_layout<kForm, true, T>(call) : by_layout<kForm, false, T>(call);
}

template <typename T>
void by_form(const Call& call) {
  switch (call.form) {
    case kApa: return by_need<kApa, T>(call);
    case kAglu: return by_need<kAglu, T>(call);
    case kAgluBent: return by_need<kAgluBent, T>(call);
    case kAffine: return by_need<kAffine, T>(call);
    case kAffineBent: return by_need<kAffineBent, T>(call);
    case kResidual: return by_need<kResidual, T>(call);
    case kResidualBent: return by_need<kResidualBent, T>(call);
  }
}

}  // namespace

void run_float32(const Call& call) { by_form<float>(call); }
void run_bfloat16(const Call& call) { by_form<BFloat16>(call); }

}  // namespace apa::cpu
