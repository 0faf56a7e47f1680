// What operators.cpp hands to the implementation for a device.
//
// Everything arrives checked: shapes fit, x is float32, bfloat16 or float16 of any
// strides and not empty, and all tensors are on its device. A result, and a gradient of
// x or of the residual, has the strides of at::empty_like of that tensor.
#pragma once

#include <ATen/core/Tensor.h>

#include <limits>

namespace apa {

using at::Tensor;

enum class Kind : int { kApa = 0, kAglu = 1 };

// (x - mean) * rsqrt(var + eps) * weight + bias per channel, all of shape (C,).
struct Norm {
  Tensor weight, bias, mean, var;  // weight and bias may be undefined
  double eps = 0;
  bool of_batch = false;  // mean and var are functions of the norm's input
  bool defined() const { return mean.defined(); }
};

// y = min((1 - slope) * ACT(z) + slope * z, bound), where
// z = gate * norm(x) + residual_norm(residual). Undefined tensors and norms are absent;
// only AGLU takes slope, bound, and anything but x, lam and kappa.
struct Arguments {
  Tensor x, lam, kappa;  // lam and kappa: (1,) or (C,)
  Kind kind = Kind::kAglu;
  int64_t axis = 0;  // of the channels, >= 0
  double slope = 0, bound = std::numeric_limits<double>::infinity();
  Norm norm;
  Tensor gate, residual;  // (N, C); the shape of x
  Norm residual_norm;
};

// Which gradients are wanted.
struct Needs {
  bool x, lam, kappa, weight, bias, gate, residual, r_weight, r_bias;
};

// In the shape and dtype of each argument; undefined where not needed.
struct Gradients {
  Tensor x, lam, kappa, weight, bias, gate, residual, r_weight, r_bias;
};

// What `make` returns for each argument whose gradient is needed.
template <typename Make>
Gradients gradients_like(const Arguments& a, const Needs& needs, const Make& make) {
  const auto like = [&](bool needed, const Tensor& argument) {
    return needed ? make(argument) : Tensor();
  };
  return {like(needs.x, a.x),
          like(needs.lam, a.lam),
          like(needs.kappa, a.kappa),
          like(needs.weight, a.norm.weight),
          like(needs.bias, a.norm.bias),
          like(needs.gate, a.gate),
          like(needs.residual, a.residual),
          like(needs.r_weight, a.residual_norm.weight),
          like(needs.r_bias, a.residual_norm.bias)};
}

Tensor activation_cpu(const Arguments&);
Gradients activation_backward_cpu(const Arguments&, const Tensor& grad, const Needs&);
Tensor activation_gpu(const Arguments&);
Gradients activation_backward_gpu(const Arguments&, const Tensor& grad, const Needs&);

// The gradient of a norm's input x whose batch statistics the norm uses, from that for
// constant statistics, which may be overwritten: per channel and of n elements each,
// grad_x - (grad_bias + (x - mean) * rstd * grad_weight) * weight * rstd / n.
Tensor through_statistics_cpu(const Tensor& grad_x, const Tensor& x, const Norm&,
                              const Tensor& grad_weight, const Tensor& grad_bias);
Tensor through_statistics_gpu(const Tensor& grad_x, const Tensor& x, const Norm&,
                              const Tensor& grad_weight, const Tensor& grad_bias);

}  // namespace apa
