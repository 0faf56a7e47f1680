// AGLU and APA on a CPU: from tensors to a call of the kernels, and from their sums to
// the gradients of the small tensors.

#include <numeric>

#include "cpu_tensors.h"

namespace apa {
namespace {

using namespace cpu;

// A norm as scale * (x - center) + shift, per channel.
struct Folded {
  Values center, rstd, scale, shift;
  Folded() = default;
  Folded(const Norm& norm, Index channels)
      : center(values_or(0, norm.mean, channels)),
        rstd(inverse_deviations(norm, channels)),
        scale(product(values_or(1, norm.weight, channels), rstd)),
        shift(values_or(0, norm.bias, channels)) {}
};

// A call with its coefficients, which live as long as it does.
class Prepared {
 public:
  Call call;
  Tensor x, residual;
  Folded norm, residual_norm;
  Values gate;  // for each image and channel, or empty

  explicit Prepared(const Arguments& a) : a_(a) {
    const bool is_affine = a.norm.defined();
    const bool per_channel = is_affine || a.lam.size(0) > 1 || a.kappa.size(0) > 1;
    Layout order = layout(a.x, a.axis, per_channel);
    // float16 is too rare on CPUs to be worth kernels of its own.
    x = a.x.scalar_type() == at::kHalf ? a.x.to(at::kFloat) : a.x;
    if (order == Layout::kOther) {
      x = x.contiguous();
      order = Layout::kRows;
    }
    if (a.residual.defined()) residual = like(a.residual, x);
    call.inner = x.numel();
    if (per_channel) set_shape(order == Layout::kChannelsLast);
    call.form = a.kind == Kind::kApa   ? kApa
                : a.residual.defined() ? kResidual
                : is_affine            ? kAffine
                                       : kAglu;
    const bool has_bound = a.bound != std::numeric_limits<double>::infinity();
    if (a.slope != 0 || has_bound) call.form = Form(call.form + 1);
    set_coefficients();
    call.x = x.const_data_ptr();
    if (residual.defined()) call.residual = residual.const_data_ptr();
    call.threads = num_threads(x.numel());
  }

  void run() const {
    x.scalar_type() == at::kFloat ? run_float32(call) : run_bfloat16(call);
  }

 private:
  const Arguments& a_;
  std::vector<float> storage_;

  void set_shape(bool channels_last) {
    const auto sizes = x.sizes();
    if (x.dim()) call.channels = sizes[a_.axis];
    call.channels_last = channels_last;
    Index before = 1;
    for (Index i = 0; i < a_.axis; ++i) before *= sizes[i];
    call.batch = before;
    call.inner = 1;
    for (Index i = a_.axis + 1; i < x.dim(); ++i) call.inner *= sizes[i];
    // Channels that are the last axis: pixels of one image, or images of one pixel.
    if (call.inner == 1) {
      call.channels_last = true;
      if (!a_.gate.defined()) std::swap(call.batch, call.inner);
    }
  }

  void set_coefficients() {
    Coefficients& c = call.coefficients;
    c.slope = a_.slope;
    c.bound = a_.bound;
    const Index channels = call.channels;
    const bool is_affine = a_.norm.defined(), is_sum = a_.residual.defined();
    call.gated = a_.gate.defined();
    const Index rows = call.gated ? call.batch * channels : channels;
    storage_.resize(3 * channels + is_affine * (channels + 2 * rows) +
                    is_sum * 2 * channels);
    float* next = storage_.data();
    const auto take = [&](Index size) {
      float* const taken = next;
      next += size;
      return taken;
    };
    const auto copy = [&](const Values& from) {
      float* const taken = take(channels);
      // The kernels keep the usual NaN, but not those with other bits set.
      std::transform(from.begin(), from.end(), taken,
                     [](double x) { return std::isnan(x) ? NAN : float(x); });
      std::fill(taken + from.size(), taken + channels, *taken);  // if shared
      return taken;
    };
    Values lb_lam = values(a_.lam), inv_lam = lb_lam;
    for (size_t i = 0; i < lb_lam.size(); ++i) {
      const float lam = std::max<float>(lb_lam[i], 0);
      const bool is_small = lam < kSmallLam;
      lb_lam[i] = is_small ? kIsSmall : std::log2(lam);
      inv_lam[i] = is_small ? lam : 1 / lam;
    }
    Values lb_kappa = values(a_.kappa);
    for (double& each : lb_kappa) each *= 1.4426950408889634;
    c.lb_lam = copy(lb_lam);
    c.inv_lam = copy(inv_lam);
    c.lb_kappa = copy(lb_kappa);
    if (!is_affine) return;
    norm = Folded(a_.norm, channels);
    c.center = copy(norm.center);
    float *const scale = take(rows), *const shift = take(rows);
    if (call.gated) gate = values(a_.gate);
    residual_norm = Folded(a_.residual_norm, channels);
    for (Index row = 0; row < rows; row += channels) {
      for (Index i = 0; i < channels; ++i) {
        const double factor = call.gated ? gate[row + i] : 1;
        scale[row + i] = factor * norm.scale[i];
        shift[row + i] = factor * norm.shift[i] + residual_norm.shift[i];
      }
    }
    c.scale = scale;
    c.shift = shift;
    if (!is_sum) return;
    c.residual_center = copy(residual_norm.center);
    c.residual_scale = copy(residual_norm.scale);
  }
};

// The gradient of a parameter (C,), or of the one that all channels share.
Tensor reduced(const Tensor& parameter, Values of_channels) {
  if (parameter.size(0) == 1) {
    of_channels = {std::accumulate(of_channels.begin(), of_channels.end(), 0.0)};
  }
  return stored(of_channels, parameter);
}

}  // namespace

Tensor activation_cpu(const Arguments& a) {
  Prepared prepared(a);
  Tensor out = at::empty_like(prepared.x);
  prepared.call.out = out.mutable_data_ptr();
  prepared.run();
  return like(out, a.x);
}

Gradients activation_backward_cpu(const Arguments& a, const Tensor& grad_output,
                                  const Needs& needs) {
  Prepared prepared(a);
  Call& call = prepared.call;
  const Tensor grad = like(grad_output, prepared.x);
  const Tensor grad_x = at::empty_like(prepared.x);
  Tensor grad_residual;
  if (a.residual.defined()) {
    grad_residual = at::empty_like(prepared.x);
    call.grad_residual = grad_residual.mutable_data_ptr();
  }
  const Index rows = call.batch * call.channels;
  std::vector<double> sums(kSums * rows);
  call.backward = true;
  call.need_params = needs.lam || needs.kappa;
  call.grad = grad.const_data_ptr();
  call.out = grad_x.mutable_data_ptr();
  call.sums = sums.data();
  prepared.run();

  const auto sum = [&](Sum which) { return sums.data() + which * rows; };
  // Each channel's sum over the images, in each of which it counts `weights` times.
  const auto total = [&](Sum which, const Values& weights) {
    Values result(call.channels);
    for (Index row = 0; row < rows; row += call.channels)
      for (Index i = 0; i < call.channels; ++i)
        result[i] += (weights.empty() ? 1 : weights[row + i]) * sum(which)[row + i];
    return result;
  };
  Gradients result;
  const Norm &norm = a.norm, &other = a.residual_norm;
  if (needs.x) result.x = like(grad_x, a.x);
  if (needs.residual) result.residual = like(grad_residual, a.residual);
  if (needs.lam) result.lam = reduced(a.lam, total(kOfLam, {}));
  if (needs.kappa) result.kappa = reduced(a.kappa, total(kOfKappa, {}));
  if (needs.weight) {
    const Values of_scale = total(kOfScale, prepared.gate);
    result.weight = reduced(norm.weight, product(of_scale, prepared.norm.rstd));
  }
  if (needs.bias) result.bias = reduced(norm.bias, total(kOfShift, prepared.gate));
  if (needs.r_weight) {
    const Values of_scale = total(kOfResidualScale, {});
    result.r_weight =
        reduced(other.weight, product(of_scale, prepared.residual_norm.rstd));
  }
  if (needs.r_bias) result.r_bias = reduced(other.bias, total(kOfShift, {}));
  if (needs.gate) {
    Values of_gate(rows);
    for (Index row = 0; row < rows; row += call.channels) {
      for (Index i = 0; i < call.channels; ++i) {
        of_gate[row + i] = prepared.norm.scale[i] * sum(kOfScale)[row + i] +
                           prepared.norm.shift[i] * sum(kOfShift)[row + i];
      }
    }
    result.gate = stored(of_gate, a.gate);
  }
  return result;
}

}  // namespace apa
