// The gradient of a norm's input through its batch statistics, on a CPU.

#include "cpu_tensors.h"

namespace apa {
namespace {

using namespace cpu;

float load(float value) { return value; }
float load(at::BFloat16 value) { return value; }

// grad -= offset + slope * (x - center).
template <typename T>
void subtract(T* grad, const T* x, Index channels, Index batch, Index inner,
              bool channels_last, const std::vector<float>& center,
              const std::vector<float>& offset, const std::vector<float>& slope,
              int threads) {
  if (channels_last) {
    const float *const c = center.data(), *const a = offset.data();
    const float* const b = slope.data();
#pragma omp parallel for schedule(static) num_threads(threads)
    for (Index pixel = 0; pixel < batch * inner; ++pixel) {
      T* const g = grad + pixel * channels;
      const T* const in = x + pixel * channels;
#pragma omp simd
      for (Index i = 0; i < channels; ++i) {
        g[i] = load(g[i]) - (a[i] + b[i] * (load(in[i]) - c[i]));
      }
    }
    return;
  }
#pragma omp parallel for schedule(static) num_threads(threads)
  for (Index row = 0; row < batch * channels; ++row) {
    const Index channel = row % channels;
    const float c = center[channel], a = offset[channel], b = slope[channel];
    T* const g = grad + row * inner;
    const T* const in = x + row * inner;
#pragma omp simd
    for (Index i = 0; i < inner; ++i) {
      g[i] = load(g[i]) - (a + b * (load(in[i]) - c));
    }
  }
}

}  // namespace

Tensor through_statistics_cpu(const Tensor& grad_x, const Tensor& x, const Norm& norm,
                              const Tensor& grad_weight, const Tensor& grad_bias) {
  const Layout order = layout(grad_x, 1, true);
  if (order == Layout::kOther || grad_x.scalar_type() == at::kHalf) {
    const Tensor own = grad_x.to(grad_x.scalar_type() == at::kHalf
                                     ? at::kFloat
                                     : grad_x.scalar_type())
                           .contiguous();
    return like(through_statistics_cpu(own, x, norm, grad_weight, grad_bias), grad_x);
  }
  const Tensor in = like(x, grad_x);
  const Index channels = x.size(1), batch = x.size(0);
  const Index inner = x.numel() / (batch * channels);
  std::vector<float> center(channels), offset(channels), slope(channels);
  const auto mean = values(norm.mean);
  const auto rstd = inverse_deviations(norm, channels);
  const auto weight = values(norm.weight);
  const auto of_weight = values(grad_weight), of_bias = values(grad_bias);
  for (Index i = 0; i < channels; ++i) {
    const double factor = weight[i] * rstd[i] / (batch * inner);
    center[i] = mean[i];
    offset[i] = factor * of_bias[i];
    slope[i] = factor * rstd[i] * of_weight[i];
  }
  const auto run = [&](auto* grad, const auto* from) {
    subtract(grad, from, channels, batch, inner, order == Layout::kChannelsLast,
             center, offset, slope, num_threads(x.numel()));
  };
  if (grad_x.scalar_type() == at::kFloat) {
    run(grad_x.mutable_data_ptr<float>(), in.const_data_ptr<float>());
  } else {
    run(grad_x.mutable_data_ptr<at::BFloat16>(), in.const_data_ptr<at::BFloat16>());
  }
  return grad_x;
}

}  // namespace apa
