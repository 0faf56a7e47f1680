// The cross-entropy on a CPU: one pass over the logits forward, one backward.
// The closed forms are those of apa_mmdet/ops/formula.py.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "cross_entropy.h"

namespace apa {
namespace {

using at::Tensor;

#define INLINE inline __attribute__((always_inline))

INLINE int32_t bits_of(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
INLINE float float_of(int32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// exp(x) for x <= 0, not below 2^-120.
INLINE float exp_of(float x) {
  x = x > -83.0f ? x : -83.0f;
  const float k = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // rounds
  const float r = (x - k * 0.693145752f) - k * 1.42860677e-6f;
  float p = 0.00138888889f;
  p = p * r + 0.00833333333f;
  p = p * r + 0.0416666667f;
  p = p * r + 0.166666667f;
  p = (p * r + 0.5f) * r * r + r + 1.0f;
  return float_of(bits_of(p) + (static_cast<int32_t>(k) << 23));
}

// (2 * atanh(y) - 2 * y) / y^3 for y up to 1/3, to 4e-7.
INLINE float atanh_tail(float y) {
  const float y2 = y * y;
  return ((y2 * 0.268515f + 0.2823662f) * y2 + 0.4000756f) * y2 + 0.6666664f;
}

// ln(x) for normal x > 0.
INLINE float log_of(float x) {
  const int32_t shifted = bits_of(x) - 0x3f3504f3;  // the bits of sqrt(1/2)
  const int32_t exponent = shifted >> 23;
  const float m = float_of(bits_of(x) - exponent * (1 << 23));
  const float y = (m - 1.0f) / (m + 1.0f);
  return (2.0f * y + y * y * y * atanh_tail(y)) + exponent * 0.69314718f;
}

INLINE uint32_t mix(uint32_t bits) {
  bits ^= bits >> 16;
  bits *= 0x85EBCA6Bu;
  bits ^= bits >> 13;
  bits *= 0xC2B2AE35u;
  return bits ^ (bits >> 16);
}

// An element's logit and the coefficients of its class.
struct Element {
  float z, lam, inv_lam, log_lam, kappa;
};

// Intermediate values of an element, in the notation of formula.py.
struct Parts {
  float u, v, n, d0, scaled, y, log1p_w, a, x, rest;
  bool is_far, is_near;
  // Returns 0, or a NaN that comparisons have hidden.
  INLINE float nothing() const { return (u + scaled) * 0.0f; }
};

INLINE Parts parts(const Element& e, float u) {
  Parts p;
  p.u = u;
  p.v = exp_of(u < 0 ? u : -u);
  p.n = u >= 0 ? p.v : 1.0f;  // exp(-u) = n / d0
  p.d0 = u >= 0 ? 1.0f : p.v;
  p.scaled = e.lam * p.n;
  p.is_far = p.scaled > p.d0;
  const float ratio =
      (p.is_far ? p.d0 : p.scaled) / (p.is_far ? p.scaled : p.d0);
  p.y = ratio / (2.0f + ratio);
  p.log1p_w = 2.0f * p.y + p.y * p.y * p.y * atanh_tail(p.y);
  const float distance = e.log_lam - u;
  p.log1p_w += p.is_far ? distance : 0.0f;
  const float near = p.n / p.d0, far = p.log1p_w * e.inv_lam;
  p.a = p.scaled < 1.1920929e-7f * p.d0 ? near : far;
  // 1 - exp(-a), the probability of no label
  const float least = exp_of(-p.a);
  p.x = p.a > 80.0f ? 0.0f : least;
  float q = p.a * 0.000152226625f - 0.0013538755f;
  q = q * p.a + 0.0083214464f;
  q = q * p.a - 0.0416652672f;
  q = q * p.a + 0.1666667610f;
  q = (q * p.a - 0.5f) * p.a + 1.0f;
  p.is_near = p.a < 0.6931472f;
  const float small = p.a * q, large = 1.0f - p.x;
  p.rest = p.is_near ? small : large;
  return p;
}

INLINE float bounded(float u) { return u > 8e37f ? 8e37f : u < -8e37f ? -8e37f : u; }

INLINE float other_loss(const Element& e) {
  const Parts p = parts(e, bounded(e.kappa * e.z));
  const float half = p.x / (2.0f - p.x);
  const float far = 2.0f * half + half * half * half * atanh_tail(half);
  const float near = -log_of(p.rest);
  float loss = p.is_near ? near : far;
  const float limit = p.u + (e.lam + 1.0f) * p.v * 0.5f;
  const float vanished = p.scaled < 1e-8f ? limit : loss;  // a may be 0 there
  loss = p.u > 30.0f ? vanished : loss;
  return loss + p.nothing();
}

// Computes r and m: the loss's derivatives by z, kappa and lam are kappa * r, z * r, m.
// `sign` is -1 for the label's class, and the odds APA / (1 - APA) for the others.
INLINE void slopes(const Element& e, const Parts& p, float sign, float* r, float* m) {
  const float d = p.d0 + p.scaled, rate = p.n / d, q = p.n / (p.d0 + d);
  const float near = q * (2.0f / (1.0f + p.y) + p.y * atanh_tail(p.y)) * (sign * q);
  const float far = sign * (p.log1p_w - p.scaled / d) * e.inv_lam * e.inv_lam;
  *r = sign * rate + p.nothing();
  *m = p.is_far ? far : near;
}

// Each class's coefficients.
struct Coefficients {
  const float *lam, *inv_lam, *log_lam, *kappa;
  INLINE Element at(const float* z, int64_t c) const {
    return {z[c], lam[c], inv_lam[c], log_lam[c], kappa[c]};
  }
};

float other_losses(const float* z, const Coefficients k, const float* factor,
                   int64_t classes, float* to) {
#pragma omp simd
  for (int64_t c = 0; c < classes; ++c) to[c] = other_loss(k.at(z, c)) * factor[c];
  float total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t c = 0; c < classes; ++c) total += to[c];
  return total;
}

template <bool kSums>
void other_gradients(const float* z, const Coefficients k, const float* factor,
                     int64_t classes, float* to, float* of_lam, float* of_kappa) {
#pragma omp simd
  for (int64_t c = 0; c < classes; ++c) {
    const Element e = k.at(z, c);
    const Parts p = parts(e, bounded(e.kappa * e.z));
    float r, m;
    slopes(e, p, p.x / p.rest, &r, &m);
    r *= factor[c];
    to[c] = r * e.kappa;
    if (kSums) {
      of_lam[c] += m * factor[c];
      of_kappa[c] += r * e.z;
    }
  }
}

// Rows are processed in groups of fixed size, so that sums do not depend on the number
// of threads.
constexpr int64_t kRows = 32;

class Rows {
 public:
  explicit Rows(const LossArguments& a)
      : a_(a), classes_(a.logits.size(1)), logits_(a.logits.to(at::kFloat)),
        labels_(a.labels.const_data_ptr<int64_t>()) {
    if (a.weight.defined()) weight_ = a.weight.to(at::kFloat);
    const Tensor lam = a.lam.to(at::kFloat), kappa = a.kappa.to(at::kFloat);
    const auto at = [](const Tensor& t, int64_t c) {
      return t.const_data_ptr<float>()[t.size(0) > 1 ? c : 0];
    };
    for (auto* each : {&lam_, &inv_lam_, &log_lam_, &kappa_})
      each->resize(classes_);
    for (int64_t c = 0; c < classes_; ++c) {
      const float own = at(lam, c);
      lam_[c] = own < 0 ? 0.0f : own;
      inv_lam_[c] = 1.0f / std::max(lam_[c], 1e-30f);
      log_lam_[c] = std::log(std::max(lam_[c], 1e-30f));
      kappa_[c] = at(kappa, c);
    }
    if (a.rare.defined()) find_share();
  }

  int64_t groups() const { return (a_.logits.size(0) + kRows - 1) / kRows; }
  int64_t end(int64_t group) const {
    return std::min((group + 1) * kRows, a_.logits.size(0));
  }

  const float* logits(int64_t n) const {
    return logits_.const_data_ptr<float>() + n * classes_;
  }
  Coefficients coefficients() const {
    return {lam_.data(), inv_lam_.data(), log_lam_.data(), kappa_.data()};
  }
  // The class of a row's label, -1 if it names none.
  int64_t label(int64_t n) const {
    return labels_[n] >= 0 && labels_[n] < classes_ ? labels_[n] : -1;
  }
  // Writes the factors of a row's losses.
  void factors(int64_t n, float* to) const {
    const float* weight = nullptr;
    int64_t step = 0;
    if (weight_.defined()) {
      weight = weight_.const_data_ptr<float>() + n * weight_.stride(0);
      step = weight_.stride(1);
    }
    for (int64_t c = 0; c < classes_; ++c) to[c] = weight ? weight[c * step] : 1.0f;
    if (rare_.empty()) return;
    const int64_t named = label(n);
    const float kept = named >= 0 && rare_[named] ? to[named] : 0.0f;
    const float share = named < 0 ? share_ : 0.0f;
    const uint32_t of_row = mix(static_cast<uint32_t>(n) + static_cast<uint32_t>(seed_));
    const uint32_t high = static_cast<uint64_t>(seed_) >> 32;
    const int32_t* rare = rare_.data();
#pragma omp simd
    for (int32_t c = 0; c < static_cast<int32_t>(classes_); ++c) {
      const uint32_t bits = mix(of_row ^ (static_cast<uint32_t>(c) * 0x9E3779B9u + high));
      const float drawn = static_cast<int32_t>(bits >> 8) * 5.9604644775390625e-8f;
      const float own = to[c], drop = drawn < share ? own : 0.0f;
      to[c] = rare[c] ? drop : own;
    }
    if (named >= 0 && rare_[named]) to[named] = kept;
  }
  // Returns the kappa * z below which the label's loss continues along its tangent.
  float bound(float lam) const {
    const float left = 1.0f / a_.max_slope - lam;
    return std::isfinite(a_.max_slope) && left > 0 ? std::log(left) : -INFINITY;
  }
  float own_loss(const Element& e) const {
    const float u = bounded(e.kappa * e.z), from = std::max(u, bound(e.lam));
    const Parts p = parts(e, from);
    return p.a + (from > u ? a_.max_slope * (from - u) : 0) + p.nothing();
  }
  void own_slopes(const Element& e, float* r, float* m) const {
    const float u = bounded(e.kappa * e.z);
    slopes(e, parts(e, std::max(u, bound(e.lam))), -1.0f, r, m);
  }

 private:
  void find_share() {
    seed_ = *a_.seed.const_data_ptr<int64_t>();
    const bool* rare = a_.rare.const_data_ptr<bool>();
    rare_.assign(rare, rare + classes_);
    int64_t named = 0, of_rare = 0;
    for (int64_t n = 0; n < a_.logits.size(0); ++n) {
      if (labels_[n] < 0 || labels_[n] >= classes_) continue;
      ++named;
      of_rare += rare[labels_[n]];
    }
    share_ = static_cast<float>(of_rare) / std::max<int64_t>(named, 1);
  }

  const LossArguments& a_;
  int64_t classes_, seed_ = 0;
  Tensor logits_, weight_;
  const int64_t* labels_;
  std::vector<float> lam_, inv_lam_, log_lam_, kappa_;
  std::vector<int32_t> rare_;
  float share_ = 0;
};

}  // namespace

Tensor cross_entropy_cpu(const LossArguments& a, bool summed) {
  const int64_t classes = a.logits.size(1);
  const auto options = a.logits.options().dtype(at::kFloat);
  const Rows rows(a);
  const Tensor out =
      summed ? at::empty({}, options) : at::empty(a.logits.sizes(), options);
  std::vector<double> sums(rows.groups());
  at::parallel_for(0, rows.groups(), 1, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(classes), factor(classes);
    const Coefficients k = rows.coefficients();
    for (int64_t group = begin; group < end; ++group) {
      for (int64_t n = group * kRows; n < rows.end(group); ++n) {
        float* to =
            summed ? scratch.data() : out.mutable_data_ptr<float>() + n * classes;
        rows.factors(n, factor.data());
        const int64_t label = rows.label(n);
        const float at_label = label < 0 ? 0.0f : std::exchange(factor[label], 0.0f);
        sums[group] += other_losses(rows.logits(n), k, factor.data(), classes, to);
        if (label < 0) continue;
        to[label] = rows.own_loss(k.at(rows.logits(n), label)) * at_label;
        sums[group] += to[label];
      }
    }
  });
  if (summed) {
    double total = 0;
    for (double each : sums) total += each;
    *out.mutable_data_ptr<float>() = total;
  }
  return out;
}

LossGradients cross_entropy_backward_cpu(const LossArguments& a, const Tensor& grad,
                                         std::array<bool, 3> needs) {
  const int64_t classes = a.logits.size(1);
  const auto options = a.logits.options().dtype(at::kFloat);
  const Rows rows(a);
  const bool sums_needed = needs[1] || needs[2];
  Tensor of_logits;
  if (needs[0]) of_logits = at::empty(a.logits.sizes(), options);
  std::vector<float> sums(sums_needed ? rows.groups() * 2 * classes : 0);
  at::parallel_for(0, rows.groups(), 1, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(classes), factor(classes);
    const Coefficients k = rows.coefficients();
    for (int64_t group = begin; group < end; ++group) {
      float* of_lam = sums_needed ? sums.data() + group * 2 * classes : nullptr;
      float* of_kappa = sums_needed ? of_lam + classes : nullptr;
      for (int64_t n = group * kRows; n < rows.end(group); ++n) {
        const float* g = grad.const_data_ptr<float>() + n * grad.stride(0);
        const int64_t step = grad.stride(1);
        float* to = needs[0] ? of_logits.mutable_data_ptr<float>() + n * classes
                             : scratch.data();
        rows.factors(n, factor.data());
        for (int64_t c = 0; c < classes; ++c) factor[c] *= g[c * step];
        const int64_t label = rows.label(n);
        const float at_label = label < 0 ? 0.0f : std::exchange(factor[label], 0.0f);
        const float* z = rows.logits(n);
        (sums_needed ? other_gradients<true> : other_gradients<false>)(
            z, k, factor.data(), classes, to, of_lam, of_kappa);
        if (label < 0) continue;
        float r, m;
        const Element e = k.at(z, label);
        rows.own_slopes(e, &r, &m);
        r *= at_label;
        to[label] = r * e.kappa;
        if (sums_needed) {
          of_lam[label] += m * at_label;
          of_kappa[label] += r * e.z;
        }
      }
    }
  });
  const auto total = [&](int kind, const Tensor& parameter) {
    std::vector<double> by_class(classes);
    for (int64_t group = 0; group < rows.groups(); ++group)
      for (int64_t c = 0; c < classes; ++c)
        by_class[c] += sums[(group * 2 + kind) * classes + c];
    const Tensor found = at::zeros(parameter.sizes(), options);
    float* to = found.mutable_data_ptr<float>();
    double all = 0;
    for (int64_t c = 0; c < classes; ++c) {
      if (parameter.size(0) > 1) to[c] = by_class[c];
      all += by_class[c];
    }
    if (parameter.size(0) == 1) to[0] = all;
    return found;
  };
  return {needs[0] ? of_logits.to(a.logits.scalar_type()) : Tensor(),
          needs[1] ? total(0, a.lam) : Tensor(),
          needs[2] ? total(1, a.kappa) : Tensor()};
}

}  // namespace apa
