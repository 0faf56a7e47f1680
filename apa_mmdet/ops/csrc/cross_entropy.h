// What cross_entropy.cpp hands to the implementation for a device.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <tuple>

namespace apa {

// Everything arrives checked: logits (N, C) and contiguous; labels (N,), int64 and
// contiguous; lam and kappa (1,) or (C,), contiguous, float32 or narrower as the logits.
struct LossArguments {
  at::Tensor logits, labels, lam, kappa;
  at::Tensor weight;      // strides for (N, C); undefined for 1
  at::Tensor rare, seed;  // bool (C,), int64 (1,); undefined to drop nothing
  double max_slope;       // infinite for none
};
using LossGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

// The losses (N, C) or, `summed`, their sum (); both in float32.
at::Tensor cross_entropy_cpu(const LossArguments&, bool summed);
at::Tensor cross_entropy_gpu(const LossArguments&, bool summed);

// The gradients of logits, lam and kappa, undefined where not needed; those of lam and
// kappa in float32. `grad` has strides for (N, C).
LossGradients cross_entropy_backward_cpu(const LossArguments&, const at::Tensor& grad,
                                         std::array<bool, 3> needs);
LossGradients cross_entropy_backward_gpu(const LossArguments&, const at::Tensor& grad,
                                         std::array<bool, 3> needs);

}  // namespace apa
