// The loops of AGLU and APA on a CPU, on plain memory.
#pragma once

#include <cstdint>

namespace apa::cpu {

using Index = std::int64_t;

// What is computed. From kAffine on, x is centered, scaled and shifted, from kResidual
// on the residual is added; those named Bent also have a slope and a bound.
enum Form { kApa, kAglu, kAgluBent, kAffine, kAffineBent, kResidual, kResidualBent };

// lb_lam of a channel with lam < kSmallLam, whose inv_lam holds lam itself.
constexpr float kIsSmall = 1e9f;  // log2(lam) for no lam
constexpr float kSmallLam = 1e-4f;

// Coefficients of a run of elements: one value each, or one per element.
struct Coefficients {
  const float *lb_lam, *inv_lam, *lb_kappa;
  const float *center, *residual_center, *residual_scale;  // per channel
  const float *scale, *shift;  // per channel; if gated, per image and channel
  float slope, bound;
  Coefficients at(Index channel, Index row) const {
    const auto by = [](const float* p, Index i) { return p ? p + i : nullptr; };
    return {lb_lam + channel,
            inv_lam + channel,
            lb_kappa + channel,
            by(center, channel),
            by(residual_center, channel),
            by(residual_scale, channel),
            by(scale, row),
            by(shift, row),
            slope,
            bound};
  }
};

// Which sums a backward pass forms for each image and channel.
enum Sum { kOfLam, kOfKappa, kOfShift, kOfScale, kOfResidualScale, kSums };

// Tensors are dense and laid out alike: (batch, channels, inner), or
// (batch, inner, channels) where `channels_last`.
struct Call {
  const void *x = nullptr, *residual = nullptr, *grad = nullptr;
  void *out = nullptr, *grad_residual = nullptr;
  Coefficients coefficients{};
  double* sums = nullptr;  // (5, batch, channels)
  Index batch = 1, channels = 1, inner = 0;
  Form form = kAglu;
  bool channels_last = false, backward = false, need_params = false, gated = false;
  int threads = 1;
  Coefficients coefficients_at(Index channel, Index row) const {
    return coefficients.at(channel, gated ? row : channel);
  }
};

void run_float32(const Call&);
void run_bfloat16(const Call&);

}  // namespace apa::cpu
