#include "gpu_launch.h"

#include <dlfcn.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <mutex>
#include <string>
#include <unordered_map>

namespace apa {
namespace {

// Argument types as Triton writes them in a signature.
const char* const kTypes[] = {"",     "*fp32", "*bf16", "*fp16", "*i64", "*i1",
                              "fp32", "i32",   "i64"};
enum Type { kAbsent, kFloat, kBFloat16, kHalf, kLong, kBool, kReal, kInt, kWide };

std::uint64_t type_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat: return kFloat;
    case at::kBFloat16: return kBFloat16;
    case at::kHalf: return kHalf;
    case at::kLong: return kLong;
    case at::kBool: return kBool;
    default:
      TORCH_CHECK(false, "a GPU kernel was given a tensor of a dtype other than "
                         "float32, bfloat16, float16, int64 and bool");
  }
}

// ---- Filled in by Python; the layout is repeated in gpu_variants.py
struct Compiled {
  void* function;  // a CUfunction; null if Python launches this variant
  std::int32_t warps, shared, num_parameters;
  std::int32_t order[kMaxArguments + 8];  // of the arguments; -1 is a null pointer
  char error[1024];
};
using Compile = void (*)(const char* description, std::int64_t id, Compiled*);
using PythonLaunch = void (*)(std::int64_t id, std::int64_t programs,
                              const std::uint64_t* values, void* stream, char* error);
std::atomic<Compile> compile_callback{nullptr};
std::atomic<PythonLaunch> launch_callback{nullptr};
std::atomic<bool> stand_in{false};
constexpr std::int64_t kProgramsToFill = 16384;  // best on an H100
std::atomic<std::int64_t> programs_to_fill{kProgramsToFill};
std::atomic<std::int64_t> num_launches{0};

// ---- The CUDA driver
struct Driver {
  using Result = int;
  Result (*launch)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                   unsigned, void*, void**, void**) = nullptr;
  Result (*get_context)(void**) = nullptr;
  Result (*set_context)(void*) = nullptr;
  Result (*get_device)(int*, int) = nullptr;
  Result (*retain_context)(void**, int) = nullptr;
  Result (*exchange_capture_mode)(int*) = nullptr;
  Result (*error_string)(Result, const char**) = nullptr;
  int (*current_stream)(std::int32_t, void**) = nullptr;

  Driver() {
    void* cuda = dlopen("libcuda.so.1", RTLD_LAZY);
    load(cuda, "cuLaunchKernel", launch);
    load(cuda, "cuCtxGetCurrent", get_context);
    load(cuda, "cuCtxSetCurrent", set_context);
    load(cuda, "cuDeviceGet", get_device);
    load(cuda, "cuDevicePrimaryCtxRetain", retain_context);
    load(cuda, "cuThreadExchangeStreamCaptureMode", exchange_capture_mode);
    load(cuda, "cuGetErrorString", error_string);
    for (const char* name : {"libtorch_cuda.so", "libtorch_hip.so"})
      if (void* torch = dlopen(name, RTLD_LAZY | RTLD_NOLOAD))
        load(torch, "aoti_torch_get_current_cuda_stream", current_stream);
  }
  template <typename F>
  static void load(void* library, const char* name, F& function) {
    if (library) function = reinterpret_cast<F>(dlsym(library, name));
  }
  bool is_complete() const {
    return launch && get_context && set_context && get_device && retain_context &&
           current_stream;
  }
  // A thread that has not used CUDA yet has no context.
  void make_current(void* context) const {
    void* current = nullptr;
    get_context(&current);
    if (current != context) check(set_context(context), "cuCtxSetCurrent");
  }
  void check(Result result, const char* what) const {
    if (result == 0) return;
    const char* text = nullptr;
    if (error_string) error_string(result, &text);
    TORCH_CHECK(false, std::string(what) + " failed with CUDA error " +
                           std::to_string(result) + ": " + (text ? text : "unknown"));
  }
};

const Driver& driver() {
  static const Driver found;
  return found;
}

// Modules can be loaded during the capture of a CUDA graph only in relaxed mode.
class RelaxedCapture {
 public:
  RelaxedCapture() { exchange(); }
  ~RelaxedCapture() { exchange(); }

 private:
  void exchange() {
    if (driver().exchange_capture_mode) driver().exchange_capture_mode(&mode_);
  }
  int mode_ = 2;
};

// ---- Variants
struct Variant {
  std::int64_t id;
  Compiled compiled;
  void* context = nullptr;  // of the device that holds the function
};

struct Hash {
  std::size_t operator()(const VariantKey& key) const {
    std::uint64_t hash = key.constants;
    for (std::uint64_t part :
         {key.types[0], key.types[1],
          std::uint64_t(key.aligned) << 32 | std::uint64_t(key.kernel) << 16 |
              key.device}) {
      hash = (hash ^ part) * 0x9E3779B97F4A7C15u;
      hash ^= hash >> 32;
    }
    return hash;
  }
};

using Table = std::unordered_map<VariantKey, const Variant*, Hash>;
std::mutex mutex;
Table& all_variants() {
  static Table& table = *new Table;  // alive until the last thread has ended
  return table;
}
std::atomic<std::int64_t> generation{0};  // of the callbacks

// Without string streams, which crash if two copies of libstdc++ are loaded.
std::string describe(const Kernel& kernel, const VariantKey& key) {
  std::string text = kernel.name;
  text += " device=" + std::to_string(key.device);
  int i = 0;
  for (const char* name : kernel.arguments) {
    const auto type = key.types[i / 16] >> (4 * (i % 16)) & 15;
    text += std::string(" ") + name + "=" + kTypes[type];
    if (key.aligned >> i & 1) text += "!";
    ++i;
  }
  i = 0;
  for (const char* name : kernel.constants)
    text += std::string(" ") + name + "=" +
            std::to_string(key.constants >> (8 * i++) & 255);
  return text;
}

const Variant* compile(const Kernel& kernel, const VariantKey& key) {
  // Not under the lock: Python takes the GIL, whose owner may be waiting for the lock.
  static std::atomic<std::int64_t> ids{0};
  const Compile callback = compile_callback;
  TORCH_CHECK(callback, "the GPU kernels are not connected: Triton is missing");
  auto* variant = new Variant{++ids, {}};
  const Driver& cuda = driver();
  if (cuda.is_complete() && !stand_in) {  // the kernel is loaded into this context
    int device = 0;
    cuda.check(cuda.get_device(&device, key.device), "cuDeviceGet");
    cuda.check(cuda.retain_context(&variant->context, device),
               "cuDevicePrimaryCtxRetain");
    cuda.make_current(variant->context);
  }
  {
    const RelaxedCapture relaxed;
    callback(describe(kernel, key).c_str(), variant->id, &variant->compiled);
  }
  TORCH_CHECK(!variant->compiled.error[0], variant->compiled.error);
  const std::lock_guard<std::mutex> lock(mutex);
  return all_variants().emplace(key, variant).first->second;
}

const Variant* find(const Kernel& kernel, const VariantKey& key) {
  thread_local Table known;
  thread_local std::int64_t known_generation = 0;
  if (known_generation != generation) {
    known.clear();
    known_generation = generation;
  }
  const auto at = known.find(key);
  if (at != known.end()) return at->second;
  const Variant* variant = nullptr;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto shared = all_variants().find(key);
    if (shared != all_variants().end()) variant = shared->second;
  }
  if (!variant) variant = compile(kernel, key);
  known.emplace(key, variant);
  return variant;
}

}  // namespace

bool gpu_stand_in() { return stand_in; }
std::int64_t gpu_programs() { return programs_to_fill; }

Launch::Launch(const Kernel& kernel, const at::Tensor& on) : kernel_(kernel) {
  key_.kernel = kernel.id;
  key_.device = on.is_cuda() ? on.device().index() : 0;
}

void Launch::type(int argument, std::uint64_t code, bool aligned) {
  key_.types[argument / 16] |= code << (4 * (argument % 16));
  if (aligned) key_.aligned |= 1u << argument;
}

void Launch::tensor(int argument, const at::Tensor& value, bool aligned) {
  if (!value.defined()) return;
  type(argument, type_of(value), aligned);
  values_[argument] = reinterpret_cast<std::uint64_t>(value.const_data_ptr());
}

void Launch::real(int argument, double value) {
  type(argument, kReal, false);
  const float narrow = value;
  std::memcpy(&values_[argument], &narrow, sizeof narrow);
}

void Launch::integer(int argument, std::int64_t value, bool aligned) {
  // Kernels may add a tile to it without overflow.
  type(argument, value < (1ll << 31) - (1 << 16) ? kInt : kWide, aligned);
  values_[argument] = value;
}

void Launch::wide(int argument, std::int64_t value) {
  type(argument, kWide, false);
  values_[argument] = value;
}

void Launch::constants(std::initializer_list<int> values) {
  int at = 0;
  for (int value : values) key_.constants |= std::uint64_t(value) << (8 * at++);
}

void Launch::run(std::int64_t programs) {
  if (programs == 0) return;
  TORCH_CHECK(programs < (1ll << 31), "a tensor is too large for one launch");
  const Variant& variant = *find(kernel_, key_);
  const Compiled& compiled = variant.compiled;
  const Driver& cuda = driver();
  void* stream = nullptr;
  if (cuda.current_stream && !stand_in)
    TORCH_CHECK(cuda.current_stream(key_.device, &stream) == 0,
                "cannot get torch's current stream");
  num_launches.fetch_add(1, std::memory_order_relaxed);
  if (!compiled.function) {
    char error[1024] = "";
    launch_callback.load()(variant.id, programs, values_.data(), stream, error);
    TORCH_CHECK(!error[0], error);
    return;
  }
  std::uint64_t nothing = 0;
  void* parameters[kMaxArguments + 8];
  for (int i = 0; i < compiled.num_parameters; ++i) {
    const int argument = compiled.order[i];
    parameters[i] = argument < 0 ? &nothing : &values_[argument];
  }
  cuda.make_current(variant.context);
  cuda.check(cuda.launch(compiled.function, programs, 1, 1, 32 * compiled.warps, 1, 1,
                         compiled.shared, stream, parameters, nullptr),
             "cuLaunchKernel");
}

}  // namespace apa

// ---- Called by gpu_variants.py through ctypes
extern "C" {
// Sets the Python functions that compile and launch, and drops all variants (without
// freeing them: other threads may be using them).
void apa_mmdet_connect(apa::Compile compile, apa::PythonLaunch launch, bool stand_in,
                       std::int64_t programs) {
  apa::compile_callback = compile;
  apa::launch_callback = launch;
  apa::stand_in = stand_in;
  apa::programs_to_fill = programs ? programs : apa::kProgramsToFill;
  const std::lock_guard<std::mutex> lock(apa::mutex);
  apa::all_variants().clear();
  ++apa::generation;
}

// Returns whether kernels can be launched from C++ on this machine.
bool apa_mmdet_has_driver() { return apa::driver().is_complete(); }

std::int64_t apa_mmdet_num_launches() { return apa::num_launches; }
}
