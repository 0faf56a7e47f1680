// The activations on a GPU: divides tensors into tiles and launches the kernels of
// apa_mmdet/ops/triton_activation.py.

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>

#include "arguments.h"
#include "gpu_launch.h"
#include "gpu_reduce.h"

namespace apa {
namespace {

// Each kernel's arguments and constants, in the order of its Python signature.
namespace forward {
enum { x, residual, out, lam, kappa, weight, bias, mean, var, gate, r_weight, r_bias,
       r_mean, r_var, eps, r_eps, slope, bound, channels, inner, rows };
const Kernel kernel{
    "forward_kernel",
    {"x", "residual", "out", "lam", "kappa", "weight", "bias", "mean", "var", "gate",
     "r_weight", "r_bias", "r_mean", "r_var", "eps", "r_eps", "slope", "bound",
     "channels", "inner", "rows"},
    {"FLAGS", "LAM_EACH", "KAPPA_EACH", "LOG_C", "LOG_I", "WARPS"},
    0};
}  // namespace forward

namespace backward {
enum { x, residual, grad, grad_x, grad_residual, sums, lam, kappa, weight, bias, mean,
       var, gate, r_weight, r_bias, r_mean, r_var, eps, r_eps, slope, bound, channels,
       inner, rows, steps, sums_stride };
const Kernel kernel{
    "backward_kernel",
    {"x", "residual", "grad", "grad_x", "grad_residual", "sums", "lam", "kappa",
     "weight", "bias", "mean", "var", "gate", "r_weight", "r_bias", "r_mean", "r_var",
     "eps", "r_eps", "slope", "bound", "channels", "inner", "rows", "steps",
     "sums_stride"},
    {"FLAGS", "LAM_EACH", "KAPPA_EACH", "SUM_PARAMS", "SUM_NORM", "LOG_C", "LOG_I",
     "WARPS"},
    1};
}  // namespace backward

namespace statistics {
enum { x, grad_x, weight, mean, var, weight_grad, bias_grad, eps, share, channels,
       inner, rows };
const Kernel kernel{
    "statistics_kernel",
    {"x", "grad_x", "weight", "mean", "var", "weight_grad", "bias_grad", "eps", "share",
     "channels", "inner", "rows"},
    {"FLAGS", "LOG_C", "LOG_I", "WARPS"},
    5};
}  // namespace statistics

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
int log2_of(int64_t power) { return 63 - __builtin_clzll(power); }

// Whether the axis is the innermost in memory, as the channels are in NHWC.
bool is_side_by_side(const Tensor& x, int64_t axis) {
  int64_t expected = x.size(axis);
  if (expected != 1 && x.stride(axis) != 1) return false;
  for (int64_t i = x.dim() - 1; i >= 0; --i) {
    if (i == axis) continue;
    if (x.size(i) != 1 && x.stride(i) != expected) return false;
    expected *= x.size(i);
  }
  return true;
}

// Strides of axes of length one do not matter.
bool has_layout_of(const Tensor& tensor, const Tensor& x) {
  for (int64_t i = 0; i < x.dim(); ++i)
    if (x.size(i) > 1 && tensor.stride(i) != x.stride(i)) return false;
  return true;
}

bool is_aligned(const Tensor& tensor) {
  return !tensor.defined() ||
         reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
}

// A parameter in a form that the kernels can read.
Tensor packed(const Tensor& small) {
  if (!small.defined()) return small;
  return (small.scalar_type() == at::kDouble ? small.to(at::kFloat) : small).contiguous();
}

// The largest block that wastes at most a fifth, or else the one that wastes least.
int64_t choose_block(int64_t size, std::initializer_list<int64_t> blocks) {
  int64_t best = 0, best_padded = 0;
  for (int64_t block : blocks) {  // the largest first
    const int64_t padded = divide_up(size, block) * block;
    if (4 * padded <= 5 * size) return block;
    if (best == 0 || padded < best_padded) best = block, best_padded = padded;
  }
  return best;
}

// How a tensor is divided into tiles; the figures are the fastest on an H100.
struct Plan {
  Tensor x;  // dense
  bool flat = false, pixels = false;
  int64_t batch = 1, channels = 1, inner, tile = 1024, block_c = 1, block_i = tile;
  int64_t steps = 1, rows;  // tiles per program; programs along inner
  int warps = 4;

  Plan(const Arguments& a, bool is_backward) {
    x = a.x;
    const bool each = x.dim() && (a.norm.defined() || a.lam.size(0) > 1 ||
                                  a.kappa.size(0) > 1);
    flat = !each;
    if (flat) {
      if (!x.is_non_overlapping_and_dense()) x = at::empty_like(x).copy_(x);
      inner = x.numel();
      if (is_backward) warps = 8;
    } else {
      cut_by_channel(a, is_backward);
    }
    rows = divide_up(inner, block_i);
    if (is_backward) {
      // Few programs write few sums, which matters most if each writes those of many
      // channels; many keep a GPU evenly busy.
      const int64_t all = batch * divide_up(channels, block_c) * rows;
      const int64_t most = std::max<int64_t>(gpu_programs() / (pixels ? 2 : 1), 1);
      steps = std::min(divide_up(all, most), rows);
      rows = divide_up(rows, steps);
      steps = divide_up(divide_up(inner, block_i), rows);
    }
  }

  void cut_by_channel(const Arguments& a, bool is_backward) {
    const int64_t axis = a.axis;
    if (!x.is_contiguous() && !is_side_by_side(x, axis)) {
      x = at::empty_like(x).copy_(x);
      if (!is_side_by_side(x, axis)) x = x.contiguous();
    }
    int64_t before = 1, after = 1;
    for (int64_t i = 0; i < axis; ++i) before *= x.size(i);
    for (int64_t i = axis + 1; i < x.dim(); ++i) after *= x.size(i);
    channels = x.size(axis);
    pixels = after == 1 || !x.is_contiguous();
    if (pixels) {  // the channels are the innermost axis
      batch = a.gate.defined() ? before : 1;
      inner = a.gate.defined() ? after : before * after;
      tile = is_backward ? 512 : x.element_size() == 2 ? 2048 : 1024;
      block_c = choose_block(channels, {256, 64, 32, 16});
      block_i = tile / block_c;
    } else {
      batch = before;
      inner = after;
      block_i = choose_block(inner, {1024, 64});
      block_c = tile / block_i;
    }
  }

  int64_t programs() const { return batch * divide_up(channels, block_c) * rows; }

  // Returns a tensor in the dtype and layout of x, copied only if it differs.
  Tensor matched(const Tensor& tensor) const {
    if (!tensor.defined()) return tensor;
    if (tensor.scalar_type() == x.scalar_type() && has_layout_of(tensor, x))
      return tensor;
    return at::empty_like(x).copy_(tensor);
  }

  bool aligns(std::initializer_list<Tensor> tensors) const {
    if ((pixels ? channels : inner) % 8) return false;
    return std::all_of(tensors.begin(), tensors.end(), is_aligned);
  }
};

// Returns a result in the dtype of its input and the layout of at::empty_like(input).
Tensor as_like(const Tensor& result, const Tensor& input) {
  if (!result.defined()) return result;
  const bool same = result.scalar_type() == input.scalar_type();
  if (same && result.strides() == input.strides()) return result;
  Tensor out = at::empty_like(input);
  return same && has_layout_of(out, result) ? result : out.copy_(result);
}

// The arguments that both kernels have from `lam` on.
struct Parameters {
  Tensor lam, kappa, weight, bias, mean, var, gate, r_weight, r_bias, r_mean, r_var;
  double eps, r_eps;

  explicit Parameters(const Arguments& a)
      : lam(packed(a.lam)), kappa(packed(a.kappa)), weight(packed(a.norm.weight)),
        bias(packed(a.norm.bias)), mean(packed(a.norm.mean)), var(packed(a.norm.var)),
        gate(packed(a.gate)), r_weight(packed(a.residual_norm.weight)),
        r_bias(packed(a.residual_norm.bias)), r_mean(packed(a.residual_norm.mean)),
        r_var(packed(a.residual_norm.var)), eps(a.norm.eps), r_eps(a.residual_norm.eps) {}

  void set(Launch& launch, const Arguments& a, const Plan& plan, bool aligned,
           int first) const {
    int at = first;
    for (const Tensor* each : {&lam, &kappa, &weight, &bias, &mean, &var, &gate,
                               &r_weight, &r_bias, &r_mean, &r_var})
      launch.tensor(at++, *each);
    if (mean.defined()) launch.real(at, eps);
    if (r_mean.defined()) launch.real(at + 1, r_eps);
    if (a.slope != 0) launch.real(at + 2, a.slope);
    if (a.bound != std::numeric_limits<double>::infinity())
      launch.real(at + 3, a.bound);
    launch.integer(at + 4, plan.channels, aligned && plan.pixels);
    launch.integer(at + 5, plan.inner, aligned && !plan.pixels);
    launch.integer(at + 6, plan.rows);
  }
};

// The constants packed as in gpu_variants.py.
int flags(const Arguments& a, const Plan& plan, bool sum_residual) {
  const bool is_half = plan.x.scalar_type() != at::kFloat;
  return (a.kind == Kind::kApa) | is_half << 1 | plan.flat << 2 | plan.pixels << 3 |
         sum_residual << 4;
}

}  // namespace

Tensor activation_gpu(const Arguments& a) {
  const c10::OptionalDeviceGuard guard(a.x.device());
  const Plan plan(a, false);
  const Tensor out = at::empty_like(plan.x), residual = plan.matched(a.residual);
  const bool aligned = plan.aligns({plan.x, residual});
  Launch launch(forward::kernel, plan.x);
  launch.tensor(forward::x, plan.x, aligned);
  launch.tensor(forward::residual, residual, aligned);
  launch.tensor(forward::out, out, aligned);
  const Parameters parameters(a);
  parameters.set(launch, a, plan, aligned, forward::lam);
  launch.constants({flags(a, plan, false), a.lam.size(0) > 1, a.kappa.size(0) > 1,
                    log2_of(plan.block_c), log2_of(plan.block_i), plan.warps});
  launch.run(plan.programs());
  return as_like(out, a.x);
}

Gradients activation_backward_gpu(const Arguments& a, const Tensor& grad_output,
                                  const Needs& needs) {
  const c10::OptionalDeviceGuard guard(a.x.device());
  const Plan plan(a, true);
  const Tensor& x = plan.x;
  const bool sum_params = needs.lam || needs.kappa;
  const bool sum_norm = needs.weight || needs.bias || needs.gate;
  const bool sum_residual = needs.r_weight || needs.r_bias;
  Needs small = needs;
  small.x = small.residual = false;
  Gradients out = gradients_like(a, small, [](const Tensor& t) {
    return at::empty(t.sizes(), t.options());  // contiguous, as the kernels write them
  });
  if (needs.x) out.x = at::empty_like(x);
  if (needs.residual) out.residual = at::empty_like(x);
  const int num_sums = sum_residual ? 5 : sum_norm ? 4 : sum_params ? 2 : 0;
  const int64_t stride = plan.batch * plan.rows * plan.channels;
  Tensor sums;
  if (num_sums) sums = at::empty({num_sums * stride}, x.options().dtype(at::kFloat));
  const Parameters parameters(a);
  {
    const Tensor residual = plan.matched(a.residual);
    const Tensor grad = plan.matched(grad_output);
    const bool aligned = plan.aligns({x, residual, grad});
    Launch launch(backward::kernel, x);
    launch.tensor(backward::x, x, aligned);
    launch.tensor(backward::residual, residual, aligned);
    launch.tensor(backward::grad, grad, aligned);
    launch.tensor(backward::grad_x, out.x, aligned);
    launch.tensor(backward::grad_residual, out.residual, aligned);
    launch.tensor(backward::sums, sums);
    parameters.set(launch, a, plan, aligned, backward::lam);
    launch.integer(backward::steps, plan.steps);
    launch.wide(backward::sums_stride, stride);
    launch.constants({flags(a, plan, sum_residual), a.lam.size(0) > 1,
                      a.kappa.size(0) > 1, sum_params, sum_norm,
                      log2_of(plan.block_c), log2_of(plan.block_i), plan.warps});
    launch.run(plan.programs());
  }
  if (num_sums) {
    // The kernel cannot write float64.
    const auto narrow = [](const Tensor& tensor) {
      return tensor.defined() && tensor.scalar_type() == at::kDouble
                 ? at::empty(tensor.sizes(), tensor.options().dtype(at::kFloat))
                 : tensor;
    };
    Reduction reduction;
    reduction.sums = sums;
    if (sum_norm) reduction.gate = parameters.gate;
    if (needs.gate) {
      reduction.weight = parameters.weight;
      reduction.bias = parameters.bias;
    }
    const std::array<Tensor*, 7> wanted{&out.lam,  &out.kappa,    &out.weight,
                                        &out.bias, &out.gate,     &out.r_weight,
                                        &out.r_bias};
    for (size_t i = 0; i < wanted.size(); ++i)
      reduction.gradients[i] = narrow(*wanted[i]);
    reduction.images = a.gate.defined() ? plan.batch : 1;
    reduction.rows = a.gate.defined() ? plan.rows : plan.batch * plan.rows;
    reduction.channels = plan.channels;
    reduction.totals = plan.programs();
    reduction.lam_each = a.lam.size(0) > 1;
    reduction.kappa_each = a.kappa.size(0) > 1;
    reduction.run();
    for (size_t i = 0; i < wanted.size(); ++i)
      if (!reduction.gradients[i].is_same(*wanted[i]))
        wanted[i]->copy_(reduction.gradients[i]);
  }
  out.x = as_like(out.x, a.x);
  if (needs.residual) out.residual = as_like(out.residual, a.residual);
  return out;
}

Tensor through_statistics_gpu(const Tensor& grad_x, const Tensor& x, const Norm& norm,
                              const Tensor& grad_weight, const Tensor& grad_bias) {
  const c10::OptionalDeviceGuard guard(x.device());
  Arguments a;
  a.x = x;
  a.axis = 1;
  a.norm = norm;
  const Plan plan(a, false);
  const Tensor out = plan.matched(grad_x);
  const bool aligned = plan.aligns({plan.x, out});
  Launch launch(statistics::kernel, x);
  launch.tensor(statistics::x, plan.x, aligned);
  launch.tensor(statistics::grad_x, out, aligned);
  int at = statistics::weight;
  const Tensor small[] = {packed(norm.weight), packed(norm.mean), packed(norm.var),
                          packed(grad_weight), packed(grad_bias)};
  for (const Tensor& each : small) launch.tensor(at++, each);
  launch.real(statistics::eps, norm.eps);
  launch.real(statistics::share, static_cast<double>(plan.channels) / x.numel());
  launch.integer(statistics::channels, plan.channels, aligned && plan.pixels);
  launch.integer(statistics::inner, plan.inner, aligned && !plan.pixels);
  launch.integer(statistics::rows, plan.rows);
  launch.constants({plan.pixels << 3, log2_of(plan.block_c), log2_of(plan.block_i),
                    plan.warps});
  launch.run(plan.programs());
  return as_like(out, x);
}

}  // namespace apa
