// Reading small tensors, and the layouts of large ones, on a CPU.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/empty_like.h>

#include "arguments.h"
#include "cpu_kernels.h"

namespace apa::cpu {

inline double element(const Tensor& t, Index i) {
  switch (t.scalar_type()) {
    case at::kFloat: return t.const_data_ptr<float>()[i];
    case at::kDouble: return t.const_data_ptr<double>()[i];
    case at::kBFloat16: return t.const_data_ptr<at::BFloat16>()[i];
    default: return t.const_data_ptr<at::Half>()[i];
  }
}

// A channel's value of a tensor (C,), or (1,) that all channels share.
inline double read(const Tensor& t, Index channel) {
  return element(t, t.size(0) == 1 ? 0 : channel * t.stride(0));
}

inline double read(const Tensor& t, Index image, Index channel) {
  return element(t, image * t.stride(0) + channel * t.stride(1));
}

inline void write(const Tensor& t, Index i, double value) {
  switch (t.scalar_type()) {
    case at::kFloat: t.mutable_data_ptr<float>()[i] = value; break;
    case at::kDouble: t.mutable_data_ptr<double>()[i] = value; break;
    case at::kBFloat16: t.mutable_data_ptr<at::BFloat16>()[i] = value; break;
    default: t.mutable_data_ptr<at::Half>()[i] = value;
  }
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
