#include "checks.h"

#include <string>

namespace apa {
namespace {

// Messages are built without iostreams: if the compiler links libstdc++ statically, the
// process has two copies of them, which crash.
std::string text_of(const char* text) { return text; }
std::string text_of(const std::string& text) { return text; }
std::string text_of(int64_t number) { return std::to_string(number); }
std::string text_of(const c10::SymInt& size) {
  const auto number = size.maybe_as_int();
  return number ? std::to_string(*number) : size.toSymNode()->str();
}

template <typename... Parts>
std::string text(const Parts&... parts) {
  return (std::string() + ... + text_of(parts));
}

// A shape as Python prints it.
std::string shape(const Tensor& tensor) {
  std::string result = "(";
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    result += text(i ? ", " : "", tensor.sym_size(i));
  }
  return result + (tensor.dim() == 1 ? ",)" : ")");
}

std::string dtype(const Tensor& tensor) {
  return "torch." + std::string(c10::getDtypeNames(tensor.scalar_type()).first);
}

void check_device(const char* name, const Tensor& tensor, const Tensor& x) {
  TORCH_CHECK_VALUE(tensor.device() == x.device(),
                    text(name, " is on ", tensor.device().str(), " and x on ",
                         x.device().str(), "; move both to one device"));
}

void check_floating(const char* name, const Tensor& tensor, const Tensor& x) {
  TORCH_CHECK_TYPE(
      at::isFloatingType(tensor.scalar_type()),
      text(name, " must be a floating-point tensor, got ", dtype(tensor)));
  check_device(name, tensor, x);
}

void check_parameter(const char* name, const Tensor& parameter, const Tensor& x,
                     int64_t axis) {
  TORCH_CHECK_TYPE(
      at::isFloatingType(parameter.scalar_type()),
      text(name, " must be a floating-point tensor of shape (1,) or (C,), got ",
           dtype(parameter), "; convert it with ", name, ".float()"));
  check_device(name, parameter, x);
  if (parameter.dim() == 1 && parameter.sym_size(0) == 1) return;
  const c10::SymInt channels = x.dim() ? x.sym_size(axis) : c10::SymInt(1);
  TORCH_CHECK_VALUE(
      parameter.dim() == 1 && parameter.sym_size(0) == channels,
      text(name, " has shape ", shape(parameter), ", expected (1,) or (", channels,
           ",): x with shape ", shape(x), " has ", channels, " channels on axis ", axis,
           "; set num_parameters to that, or channel_dim to the axis that holds the "
           "channels"));
}

void check_per_channel(const char* name, const Tensor& tensor, const Tensor& x) {
  if (!tensor.defined()) return;
  check_floating(name, tensor, x);
  TORCH_CHECK_VALUE(tensor.dim() == 1 && tensor.sym_size(0) == x.sym_size(1),
                    text(name, " has shape ", shape(tensor), ", expected (",
                         x.sym_size(1), ",): x with shape ", shape(x), " has ",
                         x.sym_size(1), " channels"));
}

void check_statistic(const char* name, const Tensor& tensor, const Tensor& x) {
  check_per_channel(name, tensor, x);
  TORCH_CHECK_VALUE(!tensor.defined() || !tensor.requires_grad(),
                    text(name, " requires a gradient, expected a constant; use ", name,
                         ".detach()"));
}

void check_norm(const Arguments& a) {
  const Tensor& x = a.x;
  TORCH_CHECK_VALUE(x.dim() == 4,
                    text("x has shape ", shape(x), ", expected (N, C, H, W)"));
  check_per_channel("weight", a.norm.weight, x);
  check_per_channel("bias", a.norm.bias, x);
  check_statistic("mean", a.norm.mean, x);
  check_statistic("var", a.norm.var, x);
  if (a.gate.defined()) {
    check_floating("gate", a.gate, x);
    TORCH_CHECK_VALUE(
        a.gate.dim() == 2 && a.gate.sym_size(0) == x.sym_size(0) &&
            a.gate.sym_size(1) == x.sym_size(1),
        text("gate has shape ", shape(a.gate), ", expected (", x.sym_size(0), ", ",
             x.sym_size(1), "): images and channels of x with shape ", shape(x)));
  }
  if (a.residual.defined()) {
    check_floating("residual", a.residual, x);
    TORCH_CHECK_VALUE(a.residual.sym_sizes().equals(x.sym_sizes()),
                      text("residual has shape ", shape(a.residual),
                           ", expected that of x, ", shape(x)));
  }
  const Norm& other = a.residual_norm;
  TORCH_CHECK_VALUE(other.mean.defined() == other.var.defined(),
                    "residual_mean and residual_var go together, but one is None");
  TORCH_CHECK_VALUE(a.residual.defined() || !other.defined(),
                    "residual_mean is given, but residual is None; give both");
  TORCH_CHECK_VALUE(
      other.defined() || !(other.weight.defined() || other.bias.defined()),
      "residual_weight or residual_bias is given, but residual_mean is None; give the "
      "norm's mean and variance as well");
  check_per_channel("residual_weight", other.weight, x);
  check_per_channel("residual_bias", other.bias, x);
  check_statistic("residual_mean", other.mean, x);
  check_statistic("residual_var", other.var, x);
}

}  // namespace

int64_t channel_axis(const Tensor& x, std::optional<int64_t> channel_dim) {
  const int64_t dims = x.dim();
  if (dims == 0) return 0;
  if (!channel_dim) return dims == 2 || dims == 4 || dims == 5 ? 1 : dims - 1;
  TORCH_CHECK_VALUE(-dims <= *channel_dim && *channel_dim < dims,
                    text("channel_dim=", *channel_dim,
                         " is not an axis of x with shape ", shape(x),
                         "; give a value from ", -dims, " to ", dims - 1));
  return *channel_dim < 0 ? *channel_dim + dims : *channel_dim;
}

void check(const Arguments& a) {
  const auto type = a.x.scalar_type();
  TORCH_CHECK_TYPE(
      type == at::kFloat || type == at::kBFloat16 || type == at::kHalf,
      text("x must be a floating-point tensor (float16, bfloat16 or float32; "
           "apa_mmdet.ops also takes float64), got ",
           dtype(a.x), "; convert it with x.float()"));
  check_parameter("lam", a.lam, a.x, a.axis);
  check_parameter("kappa", a.kappa, a.x, a.axis);
  if (a.norm.defined()) check_norm(a);
}

}  // namespace apa
