// Launches Triton kernels from C++, through cuLaunchKernel.
//
// A kernel is compiled for each variant: the types of its arguments ("absent" is one),
// which of them are aligned, and its constants. Python compiles a variant when it is
// first needed (apa_mmdet/ops/gpu_variants.py); later launches do not enter Python. A
// variant that cannot be launched from C++ is launched from Python.
#pragma once
#include <ATen/ATen.h>

#include <array>
#include <cstdint>
#include <initializer_list>

namespace apa {

// Whether CPU tensors take the GPU code path, with a stand-in for the launches (tests).
bool gpu_stand_in();

// The number of programs that is enough to fill a GPU.
std::int64_t gpu_programs();

// A kernel's name, and the names of its arguments and constants in order.
struct Kernel {
  const char* name;
  std::initializer_list<const char*> arguments;
  std::initializer_list<const char*> constants;  // the last one is the number of warps
  int id;
};

constexpr int kMaxArguments = 32;

struct VariantKey {
  std::array<std::uint64_t, 2> types{};  // four bits per argument
  std::uint64_t constants = 0;           // eight bits each, powers of two as exponents
  std::uint32_t aligned = 0;             // one bit per argument
  std::uint16_t kernel = 0, device = 0;
  bool operator==(const VariantKey& other) const {
    return types == other.types && constants == other.constants &&
           aligned == other.aligned && kernel == other.kernel && device == other.device;
  }
};

class Launch {
 public:
  Launch(const Kernel& kernel, const at::Tensor& on);
  // Arguments that are not set are absent. An aligned pointer is a multiple of 16
  // bytes, an aligned number a multiple of 8.
  void tensor(int argument, const at::Tensor& value, bool aligned = false);
  void real(int argument, double value);
  void integer(int argument, std::int64_t value, bool aligned = false);
  void wide(int argument, std::int64_t value);  // always 64 bits
  void constants(std::initializer_list<int> values);
  void run(std::int64_t programs);

 private:
  void type(int argument, std::uint64_t code, bool aligned);
  const Kernel& kernel_;
  VariantKey key_;
  std::array<std::uint64_t, kMaxArguments> values_{};
};

}  // namespace apa
