// The cross-entropy on a CPU, in one pass over the logits each way.
// The closed forms are those of apa_mmdet/ops/formula.py, the arithmetic that of
// apa_mmdet/ops/triton_cross_entropy.py.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstring>
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
  const int32_t shifted = bits_of(x) - 0x3f3504f3;  // of sqrt(1/2)
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

// What a row of elements has in common, and each class's coefficients.
struct Row {
  const float *z, *lam, *inv_lam, *log_lam, *kappa, *bound;
  const float* weight;  // null for 1
  int64_t weight_stride, label;
  float max_slope;  // 0 for none
  const bool* rare;  // null to drop nothing
  bool background;
  float share;
  uint32_t of_row, high;
};

INLINE float factor(const Row& row, int64_t c) {
  float found = row.weight ? row.weight[c * row.weight_stride] : 1.0f;
  if (row.rare) {
    const uint32_t of_class = static_cast<uint32_t>(c) * 0x9E3779B9u + row.high;
    const float drawn = (mix(row.of_row ^ of_class) >> 8) * 5.9604644775390625e-8f;
    const bool kept =
        !row.rare[c] | (c == row.label) | (row.background & (drawn < row.share));
    found = kept ? found : 0.0f;
  }
  return found;
}

// The loss of an element or, with gradients, its r and m.
template <bool kGrads>
INLINE void terms(const Row& row, int64_t c, float* loss, float* r, float* m) {
  const float lam = row.lam[c], kappa = row.kappa[c], z = row.z[c];
  const bool is_label = c == row.label;
  float u = kappa * z;
  u = u > 8e37f ? 8e37f : u < -8e37f ? -8e37f : u;
  const float bounded = is_label && u < row.bound[c] ? row.bound[c] : u;
  const float v = exp_of(bounded < 0 ? bounded : -bounded);
  const bool right = bounded >= 0;
  const float n = right ? v : 1.0f, d0 = right ? 1.0f : v;  // exp(-u) = n / d0
  const float scaled = lam * n;
  const bool is_far = scaled > d0;
  const float e = (is_far ? d0 : scaled) / (is_far ? scaled : d0);
  const float y = e / (2.0f + e), tail = atanh_tail(y);
  float log1p_w = 2.0f * y + y * y * y * tail;
  log1p_w += is_far ? row.log_lam[c] - bounded : 0.0f;
  const float a = scaled < 1.1920929e-7f * d0 ? n / d0 : log1p_w * row.inv_lam[c];
  const float x = exp_of(-a);
  float p = a * 0.000152226625f - 0.0013538755f;
  p = p * a + 0.0083214464f;
  p = p * a - 0.0416652672f;
  p = p * a + 0.1666667610f;
  p = (p * a - 0.5f) * a + 1.0f;
  const bool is_near = a < 0.6931472f;
  const float rest = is_near ? a * p : 1.0f - x;
  if (kGrads) {
    const float d = d0 + scaled;
    const float rate = n / d, q = n / (d0 + d);
    const float near = 2.0f / (1.0f + y) + y * tail;
    const float far =
        (log1p_w - scaled / d) * row.inv_lam[c] * row.inv_lam[c];
    const float sign = is_label ? -1.0f : x / rest;
    *r = sign * rate;
    *m = is_far ? sign * far : (sign * q) * near * q;
  } else {
    const float half = x / (2.0f - x);
    const float log = 2.0f * half + half * half * half * atanh_tail(half);
    float other = is_near ? -log_of(rest) : log;
    const bool vanished = bounded > 30.0f && scaled < 1e-8f;
    other = vanished ? bounded + (lam + 1.0f) * v * 0.5f : other;
    const float own = a + row.max_slope * (bounded - u);
    const float found = is_label ? own : other;
    *loss = u == u ? found : u;  // comparisons have hidden what is not a number
  }
}

// Rows are worked on in groups of a fixed number, so that sums do not depend on threads.
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
    for (auto* each : {&lam_, &inv_lam_, &log_lam_, &kappa_, &bound_})
      each->resize(classes_);
    for (int64_t c = 0; c < classes_; ++c) {
      const float own = at(lam, c);
      lam_[c] = own < 0 ? 0.0f : own;
      inv_lam_[c] = 1.0f / std::max(lam_[c], 1e-30f);
      log_lam_[c] = std::log(std::max(lam_[c], 1e-30f));
      kappa_[c] = at(kappa, c);
      const float left = 1.0f / a.max_slope - lam_[c];
      bound_[c] = std::isfinite(a.max_slope) && left > 0 ? std::log(left) : -INFINITY;
    }
    if (a.rare.defined()) find_share();
  }

  int64_t groups() const { return (a_.logits.size(0) + kRows - 1) / kRows; }
  int64_t end(int64_t group) const {
    return std::min((group + 1) * kRows, a_.logits.size(0));
  }

  Row at(int64_t n) const {
    const int64_t label = labels_[n];
    Row row{logits_.const_data_ptr<float>() + n * classes_,
            lam_.data(),
            inv_lam_.data(),
            log_lam_.data(),
            kappa_.data(),
            bound_.data()};
    if (weight_.defined()) {
      row.weight = weight_.const_data_ptr<float>() + n * weight_.stride(0);
      row.weight_stride = weight_.stride(1);
    }
    row.label = label;
    row.max_slope = std::isfinite(a_.max_slope) ? a_.max_slope : 0.0f;
    row.rare = a_.rare.defined() ? a_.rare.const_data_ptr<bool>() : nullptr;
    row.background = label < 0 || label >= classes_;
    row.share = share_;
    row.of_row = mix(static_cast<uint32_t>(n) + static_cast<uint32_t>(seed_));
    row.high = static_cast<uint32_t>(static_cast<uint64_t>(seed_) >> 32);
    return row;
  }

  const float* kappa() const { return kappa_.data(); }

 private:
  void find_share() {
    seed_ = *a_.seed.const_data_ptr<int64_t>();
    const bool* rare = a_.rare.const_data_ptr<bool>();
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
  std::vector<float> lam_, inv_lam_, log_lam_, kappa_, bound_;
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
    std::vector<float> scratch(classes);
    for (int64_t group = begin; group < end; ++group) {
      for (int64_t n = group * kRows; n < rows.end(group); ++n) {
        const Row row = rows.at(n);
        float* to =
            summed ? scratch.data() : out.mutable_data_ptr<float>() + n * classes;
        float total = 0;
#pragma omp simd reduction(+ : total)
        for (int64_t c = 0; c < classes; ++c) {
          float loss, unused;
          terms<false>(row, c, &loss, &unused, &unused);
          loss *= factor(row, c);
          to[c] = loss;
          total += loss;
        }
        sums[group] += total;
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
    std::vector<float> scratch(classes);
    for (int64_t group = begin; group < end; ++group) {
      float* of_lam = sums_needed ? sums.data() + group * 2 * classes : nullptr;
      float* of_kappa = of_lam + classes;
      for (int64_t n = group * kRows; n < rows.end(group); ++n) {
        const Row row = rows.at(n);
        const float* g = grad.const_data_ptr<float>() + n * grad.stride(0);
        const int64_t step = grad.stride(1);
        float* to =
            needs[0] ? of_logits.mutable_data_ptr<float>() + n * classes
                     : scratch.data();
        const auto pass = [&](auto with_sums) {
#pragma omp simd
          for (int64_t c = 0; c < classes; ++c) {
            float r, m, unused;
            terms<true>(row, c, &unused, &r, &m);
            const float own = g[c * step] * factor(row, c);
            r *= own;
            to[c] = r * row.kappa[c];
            if (with_sums.value) {
              of_lam[c] += m * own;
              of_kappa[c] += r * row.z[c];
            }
          }
        };
        sums_needed ? pass(std::true_type()) : pass(std::false_type());
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
