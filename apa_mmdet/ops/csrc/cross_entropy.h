// The interface between cross_entropy.cpp and the implementations for each device.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <tuple>

namespace apa {

// All arguments are checked: logits (N, C), labels (N,) of int64, lam and kappa (1,) or
// (C,), all contiguous and, except the labels, float32, bfloat16 or float16.
struct LossArguments {
  at::Tensor logits, labels, lam, kappa;
  at::Tensor weight;      // expanded to (N, C); undefined if all are 1
  at::Tensor rare, seed;  // bool (C,), int64 (1,); undefined to drop nothing
  double max_slope;       // infinite for none
};
using LossGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

// Returns the losses (N, C) or, if `summed`, their sum as a scalar, in float32.
at::Tensor cross_entropy_cpu(const LossArguments&, bool summed);
at::Tensor cross_entropy_gpu(const LossArguments&, bool summed);

// Returns the gradients of logits, lam and kappa, undefined if not needed; those of lam
// and kappa in float32. `grad` is expanded to (N, C).
LossGradients cross_entropy_backward_cpu(const LossArguments&, const at::Tensor& grad,
                                         std::array<bool, 3> needs);
LossGradients cross_entropy_backward_gpu(const LossArguments&, const at::Tensor& grad,
                                         std::array<bool, 3> needs);

}  // namespace apa
