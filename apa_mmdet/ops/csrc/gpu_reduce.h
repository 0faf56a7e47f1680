// The launch that adds up sums, and writes the parameters' gradients.
#pragma once

#include <ATen/ATen.h>

#include <array>

namespace apa {

struct Reduction {
  at::Tensor sums;                // of several kinds: (kinds, images * rows, channels)
  at::Tensor gate, weight, bias;  // what gradients are made with
  // Of lam, kappa, weight, bias, gate, the residual's weight and bias; undefined where
  // not needed.
  std::array<at::Tensor, 7> gradients;
  int64_t images = 1, rows = 0, channels = 1;
  bool lam_each = false, kappa_each = false;

  void run() const;
};

// Write the sum of all of `sums` to `out`, which holds one number.
void reduce_total(const at::Tensor& sums, const at::Tensor& out);

}  // namespace apa
