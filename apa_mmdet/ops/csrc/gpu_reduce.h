// Adds up the sums of a backward kernel into the parameters' gradients, in one launch.
#pragma once

#include <ATen/ATen.h>

#include <array>

namespace apa {

struct Reduction {
  // (kinds, images * rows, channels); for a lam or kappa that all channels share, only
  // the first `totals` of its kind are used.
  at::Tensor sums;
  at::Tensor gate, weight, bias;  // factors of the sums
  // For lam, kappa, weight, bias, gate, residual weight and bias; undefined if not
  // needed.
  std::array<at::Tensor, 7> gradients;
  int64_t images = 1, rows = 0, channels = 1, totals = 0;
  bool lam_each = false, kappa_each = false;

  void run() const;
};

// Writes the sum of all elements of `sums` to `out`, a scalar.
void reduce_total(const at::Tensor& sums, const at::Tensor& out);

}  // namespace apa
