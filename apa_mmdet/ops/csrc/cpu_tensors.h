// Reading small tensors, and the layouts of large ones, on a CPU.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "arguments.h"
#include "cpu_kernels.h"

namespace apa::cpu {

using Values = std::vector<double>;

template <typename Use>
void with_elements(const Tensor& t, const Use& use) {
  switch (t.scalar_type()) {
    case at::kFloat: return use(t.const_data_ptr<float>());
    case at::kDouble: return use(t.const_data_ptr<double>());
    case at::kBFloat16: return use(t.const_data_ptr<at::BFloat16>());
    default: return use(t.const_data_ptr<at::Half>());
  }
}

// The values of a tensor (C,) or (N, C), in row-major order.
inline Values values(const Tensor& t) {
  const Index rows = t.dim() == 2 ? t.size(0) : 1, columns = t.size(-1);
  const Index row_stride = t.dim() == 2 ? t.stride(0) : 0, stride = t.stride(-1);
  Values result(rows * columns);
  with_elements(t, [&](const auto* from) {
    double* to = result.data();
    for (Index row = 0; row < rows; ++row)
      for (Index i = 0; i < columns; ++i) *to++ = from[row * row_stride + i * stride];
  });
  return result;
}

// The same, or `otherwise` for each channel if the tensor is undefined.
inline Values values_or(double otherwise, const Tensor& t, Index channels) {
  return t.defined() ? values(t) : Values(channels, otherwise);
}

// The values in the shape and dtype of a tensor.
inline Tensor stored(const Values& from, const Tensor& like) {
  const Tensor result = at::empty(like.sizes(), like.options());
  with_elements(result, [&](const auto* elements) {
    using T = std::decay_t<decltype(*elements)>;
    std::copy(from.begin(), from.end(), result.mutable_data_ptr<T>());
  });
  return result;
}

inline Values product(Values a, const Values& b) {
  for (size_t i = 0; i < a.size(); ++i) a[i] *= b[i];
  return a;
}

// 1 / sqrt(var + eps) for each channel; 1 without a norm.
inline Values inverse_deviations(const Norm& norm, Index channels) {
  if (!norm.defined()) return Values(channels, 1);
  Values result = values(norm.var);
  for (double& each : result) each = 1 / std::sqrt(each + norm.eps);
  return result;
}

// The order of a tensor's elements in memory: as if contiguous (any dense order, if
// channels do not matter), channels last, or one for which it has to be copied.
enum class Layout { kRows, kChannelsLast, kOther };

inline Layout layout(const Tensor& x, Index axis, bool per_channel) {
  if (x.is_contiguous()) return Layout::kRows;
  if (!per_channel && x.is_non_overlapping_and_dense()) return Layout::kRows;
  const bool is_last = x.is_contiguous(at::MemoryFormat::ChannelsLast) ||
                       x.is_contiguous(at::MemoryFormat::ChannelsLast3d);
  return is_last && axis == 1 ? Layout::kChannelsLast : Layout::kOther;
}

// The tensor in the dtype and layout that at::empty_like(x) has.
inline Tensor like(const Tensor& t, const Tensor& x) {
  if (t.scalar_type() == x.scalar_type() && t.strides() == x.strides()) return t;
  return at::empty_like(x).copy_(t);
}

// How many threads a kernel may use on so many elements.
inline int num_threads(Index elements) {
  constexpr Index kGrain = 1 << 15;  // elements that make up for starting a thread
  if (at::in_parallel_region()) return 1;
  return std::min<Index>(at::get_num_threads(), 1 + elements / kGrain);
}

}  // namespace apa::cpu
