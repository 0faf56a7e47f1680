// AGLU and APA on a CPU: from tensors to a call of the kernels, and from their sums to
// the gradients of the small tensors.

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu_tensors.h"

namespace apa {
namespace {

using namespace cpu;

// A norm as scale * (x - center) + shift, per channel.
struct Folded {
  double scale, shift, rstd;
};
Folded folded(const Norm& norm, Index channel) {
  if (!norm.defined()) return {1, 0, 1};
  const double rstd = 1 / std::sqrt(read(norm.var, channel) + norm.eps);
  const double weight = norm.weight.defined() ? read(norm.weight, channel) : 1;
  return {weight * rstd, norm.bias.defined() ? read(norm.bias, channel) : 0, rstd};
}

// A call with its coefficients, which live as long as it does.
class Prepared {
 public:
  Call call;
  Tensor x, residual;

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
    if (a.slope != 0 || !std::isinf(a.bound)) call.form = Form(call.form + 1);
    set_coefficients();
    call.x = x.const_data_ptr();
    if (residual.defined()) call.residual = residual.const_data_ptr();
    call.threads = num_threads(x.numel());
  }

  void run() const {
    if (x.numel() == 0) return;
    x.scalar_type() == at::kFloat ? run_float32(call) : run_bfloat16(call);
  }

 private:
  const Arguments& a_;
  std::vector<float> storage_;
  float single_[3];

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
    const Index channels = call.channels, rows = call.batch * channels;
    const bool is_affine = a_.norm.defined(), is_sum = a_.residual.defined();
    float* next = single_;
    if (channels > 1 || is_affine) {
      storage_.resize(3 * channels + is_affine * (channels + 2 * rows) +
                      is_sum * 2 * channels);
      next = storage_.data();
    }
    const auto take = [&](Index size) {
      float* const taken = next;
      next += size;
      return taken;
    };
    float *const lb_lam = take(channels), *const inv_lam = take(channels);
    float* const lb_kappa = take(channels);
    for (Index i = 0; i < channels; ++i) {
      const float lam = std::max<float>(read(a_.lam, i), 0);
      const bool is_small = lam < kSmallLam;
      lb_lam[i] = is_small ? kIsSmall : std::log2(lam);
      inv_lam[i] = is_small ? lam : 1 / lam;
      lb_kappa[i] = read(a_.kappa, i) * 1.4426950408889634;
    }
    c.lb_lam = lb_lam;
    c.inv_lam = inv_lam;
    c.lb_kappa = lb_kappa;
    if (!is_affine) return;
    float *const center = take(channels), *const scale = take(rows);
    float* const shift = take(rows);
    float *residual_center = nullptr, *residual_scale = nullptr;
    if (is_sum) {
      residual_center = take(channels);
      residual_scale = take(channels);
    }
    for (Index i = 0; i < channels; ++i) {
      const Folded norm = folded(a_.norm, i), other = folded(a_.residual_norm, i);
      center[i] = read(a_.norm.mean, i);
      for (Index image = 0; image < call.batch; ++image) {
        const double gate = a_.gate.defined() ? read(a_.gate, image, i) : 1;
        scale[image * channels + i] = gate * norm.scale;
        shift[image * channels + i] = gate * norm.shift + other.shift;
      }
      if (!is_sum) continue;
      residual_scale[i] = other.scale;
      residual_center[i] =
          a_.residual_norm.defined() ? read(a_.residual_norm.mean, i) : 0;
    }
    c.center = center;
    c.scale = scale;
    c.shift = shift;
    c.residual_center = residual_center;
    c.residual_scale = residual_scale;
  }
};

// A kernel's sums (batch, channels), reduced to the shape of a parameter.
template <typename Term>
Tensor reduced(const Tensor& parameter, const Call& call, const Term& term) {
  const Tensor total = at::empty(parameter.sizes(), parameter.options());
  const bool is_shared = parameter.size(0) == 1;
  double sum = 0;
  for (Index channel = 0; channel < call.channels; ++channel) {
    for (Index image = 0; image < call.batch; ++image) {
      sum += term(image, channel);
    }
    if (is_shared && channel + 1 < call.channels) continue;
    write(total, is_shared ? 0 : channel, sum);
    sum = 0;
  }
  return total;
}

}  // namespace

Tensor activation_cpu(const Arguments& a) {
  if (a.x.numel() == 0) return at::empty_like(a.x);
  Prepared prepared(a);
  Tensor out = at::empty_like(prepared.x);
  prepared.call.out = out.mutable_data_ptr();
  prepared.run();
  return like(out, a.x);
}

Gradients activation_backward_cpu(const Arguments& a, const Tensor& grad_output,
                                  const Needs& needs) {
  if (a.x.numel() == 0) {
    return gradients_like(a, needs, [](const Tensor& t) { return at::zeros_like(t); });
  }
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

  const auto sum = [&](Sum which, Index image, Index channel) {
    return sums[which * rows + image * call.channels + channel];
  };
  const auto gate = [&](Index image, Index channel) {
    return a.gate.defined() ? read(a.gate, image, channel) : 1.0;
  };
  Gradients result;
  if (needs.x) result.x = like(grad_x, a.x);
  if (needs.residual) result.residual = like(grad_residual, a.residual);
  if (needs.lam) {
    result.lam = reduced(a.lam, call, [&](Index image, Index channel) {
      return sum(kOfLam, image, channel);
    });
  }
  if (needs.kappa) {
    result.kappa = reduced(a.kappa, call, [&](Index image, Index channel) {
      return sum(kOfKappa, image, channel);
    });
  }
  if (needs.weight) {
    result.weight = reduced(a.norm.weight, call, [&](Index image, Index channel) {
      return gate(image, channel) * folded(a.norm, channel).rstd *
             sum(kOfScale, image, channel);
    });
  }
  if (needs.bias) {
    result.bias = reduced(a.norm.bias, call, [&](Index image, Index channel) {
      return gate(image, channel) * sum(kOfShift, image, channel);
    });
  }
  if (needs.r_weight) {
    const Norm& norm = a.residual_norm;
    result.r_weight = reduced(norm.weight, call, [&](Index image, Index channel) {
      return folded(norm, channel).rstd * sum(kOfResidualScale, image, channel);
    });
  }
  if (needs.r_bias) {
    const Tensor& bias = a.residual_norm.bias;
    result.r_bias = reduced(bias, call, [&](Index image, Index channel) {
      return sum(kOfShift, image, channel);
    });
  }
  if (needs.gate) {
    result.gate = at::empty(a.gate.sizes(), a.gate.options());
    for (Index image = 0; image < call.batch; ++image) {
      for (Index channel = 0; channel < call.channels; ++channel) {
        const Folded norm = folded(a.norm, channel);
        write(result.gate, image * call.channels + channel,
              norm.scale * sum(kOfScale, image, channel) +
                  norm.shift * sum(kOfShift, image, channel));
      }
    }
  }
  return result;
}

}  // namespace apa
