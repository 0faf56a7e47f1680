#include "gpu_reduce.h"

#include "gpu_launch.h"

namespace apa {
namespace {

enum { sums, gate, weight, bias, lam_grad, images = lam_grad + 7, rows, channels,
       totals, sums_stride };
const Kernel kernel{
    "reduce_kernel",
    {"sums", "gate", "weight", "bias", "lam_grad", "kappa_grad", "weight_grad",
     "bias_grad", "gate_grad", "r_weight_grad", "r_bias_grad", "images", "rows",
     "channels", "totals", "sums_stride"},
    {"LAM_EACH", "KAPPA_EACH", "NORM", "LOG_R", "LOG_C", "WARPS"},
    2};

}  // namespace

void Reduction::run() const {
  // Tall blocks for many rows, wide ones for few.
  const bool many = rows > 64;
  const int log_r = many ? 9 : 5, log_c = many ? 3 : 6;
  Launch launch(kernel, sums);
  launch.tensor(apa::sums, sums);
  launch.tensor(apa::gate, gate);
  launch.tensor(apa::weight, weight);
  launch.tensor(apa::bias, bias);
  for (int i = 0; i < 7; ++i) launch.tensor(lam_grad + i, gradients[i]);
  launch.integer(apa::images, images);
  launch.integer(apa::rows, rows);
  launch.integer(apa::channels, channels);
  launch.integer(apa::totals, totals);
  launch.wide(sums_stride, images * rows * channels);
  const bool norm =
      gradients[2].defined() || gradients[3].defined() || gradients[4].defined();
  launch.constants({lam_each, kappa_each, norm, log_r, log_c, 8});
  const bool any_each = lam_each || kappa_each || norm || gradients[5].defined() ||
                        gradients[6].defined();
  launch.run(2 + (any_each ? (channels + (1 << log_c) - 1) >> log_c : 0));
}

void reduce_total(const at::Tensor& sums, const at::Tensor& out) {
  Reduction reduction;
  reduction.sums = sums;
  reduction.totals = sums.numel();
  reduction.gradients[0] = out;
  reduction.run();
}

}  // namespace apa
