// The cross-entropy on a GPU: launches the kernels of
// apa_mmdet/ops/triton_cross_entropy.py.

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>
#include <cmath>

#include "cross_entropy.h"
#include "gpu_launch.h"
#include "gpu_reduce.h"

namespace apa {
namespace {

using at::Tensor;

namespace loss {
enum { logits, labels, lam, kappa, weight, rare, seed, out, sums, rows, classes, steps,
       weight_row, weight_class, max_slope };
const Kernel kernel{
    "loss_kernel",
    {"logits", "labels", "lam", "kappa", "weight", "rare", "seed", "out", "sums",
     "rows", "classes", "steps", "weight_row", "weight_class", "max_slope"},
    {"LAM_EACH", "KAPPA_EACH", "LOG_N", "LOG_C", "WARPS"},
    3};
}  // namespace loss

namespace backward {
enum { grad, logits, labels, lam, kappa, weight, rare, seed, grad_logits, sums, rows,
       classes, steps, weight_row, weight_class, grad_row, grad_class, sums_stride,
       max_slope };
const Kernel kernel{
    "loss_backward_kernel",
    {"grad", "logits", "labels", "lam", "kappa", "weight", "rare", "seed",
     "grad_logits", "sums", "rows", "classes", "steps", "weight_row", "weight_class",
     "grad_row", "grad_class", "sums_stride", "max_slope"},
    {"LAM_EACH", "KAPPA_EACH", "LOG_N", "LOG_C", "WARPS"},
    4};
}  // namespace backward

// Tiles of 8 rows by 128 classes.
constexpr int kLogN = 3, kLogC = 7, kWarps = 4;

struct Plan {
  int64_t rows, classes, columns, steps, blocks;

  explicit Plan(const Tensor& logits) : rows(logits.size(0)), classes(logits.size(1)) {
    columns = (classes + (1 << kLogC) - 1) >> kLogC;
    const int64_t tiles = (rows + (1 << kLogN) - 1) >> kLogN;
    steps = std::clamp<int64_t>(tiles * columns * 8 / gpu_programs(), 1, 64);
    blocks = (tiles + steps - 1) / steps;
  }
  int64_t programs() const { return blocks * columns; }
};

// Sets the arguments that both kernels have, in the same order.
void set(Launch& launch, const LossArguments& a, const Plan& plan, int first,
         int first_number, int max_slope) {
  int at = first;
  for (const Tensor& tensor :
       {a.logits, a.labels, a.lam, a.kappa, a.weight, a.rare, a.seed})
    launch.tensor(at++, tensor);
  at = first_number;
  launch.integer(at++, plan.rows);
  launch.integer(at++, plan.classes);
  launch.integer(at++, plan.steps);
  if (a.weight.defined()) {
    launch.integer(at, a.weight.stride(0));
    launch.integer(at + 1, a.weight.stride(1));
  }
  if (std::isfinite(a.max_slope)) launch.real(max_slope, a.max_slope);
  launch.constants({a.lam.size(0) > 1, a.kappa.size(0) > 1, kLogN, kLogC, kWarps});
}

}  // namespace

Tensor cross_entropy_gpu(const LossArguments& a, bool summed) {
  const c10::OptionalDeviceGuard guard(a.logits.device());
  const auto options = a.logits.options().dtype(at::kFloat);
  if (a.logits.numel() == 0)
    return summed ? at::zeros({}, options) : at::empty(a.logits.sizes(), options);
  const Plan plan(a.logits);
  const Tensor out = summed ? at::empty({}, options)
                            : at::empty(a.logits.sizes(), options);
  Tensor sums;
  if (summed) sums = at::empty({plan.programs()}, options);
  Launch launch(loss::kernel, a.logits);
  set(launch, a, plan, loss::logits, loss::rows, loss::max_slope);
  launch.tensor(summed ? loss::sums : loss::out, summed ? sums : out);
  launch.run(plan.programs());
  if (summed) reduce_total(sums, out);
  return out;
}

LossGradients cross_entropy_backward_gpu(const LossArguments& a, const Tensor& grad,
                                         std::array<bool, 3> needs) {
  const c10::OptionalDeviceGuard guard(a.logits.device());
  const auto options = a.logits.options().dtype(at::kFloat);
  const bool empty = a.logits.numel() == 0;
  const auto like = [&](bool needed, const Tensor& t) {
    if (!needed) return Tensor();
    return empty ? at::zeros(t.sizes(), options) : at::empty(t.sizes(), options);
  };
  const Tensor of_logits = needs[0] ? at::empty_like(a.logits) : Tensor();
  const Tensor of_lam = like(needs[1], a.lam), of_kappa = like(needs[2], a.kappa);
  if (empty) return {of_logits, of_lam, of_kappa};
  const Plan plan(a.logits);
  Tensor sums;
  if (needs[1] || needs[2])
    sums = at::empty({2, plan.blocks, plan.classes}, options);
  Launch launch(backward::kernel, a.logits);
  set(launch, a, plan, backward::logits, backward::rows, backward::max_slope);
  launch.tensor(backward::grad, grad);
  launch.tensor(backward::grad_logits, of_logits);
  launch.tensor(backward::sums, sums);
  launch.integer(backward::grad_row, grad.stride(0));
  launch.integer(backward::grad_class, grad.stride(1));
  launch.wide(backward::sums_stride, plan.blocks * plan.classes);
  launch.run(plan.programs());
  if (sums.defined()) {
    Reduction reduction;
    reduction.sums = sums;
    reduction.rows = plan.blocks;
    reduction.channels = plan.classes;
    reduction.totals = plan.programs();
    reduction.lam_each = a.lam.size(0) > 1;
    reduction.kappa_each = a.kappa.size(0) > 1;
    reduction.gradients = {of_lam, of_kappa};
    reduction.run();
  }
  return {of_logits, of_lam, of_kappa};
}

}  // namespace apa
