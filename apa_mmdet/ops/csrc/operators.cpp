// The operators apa_mmdet::apa, ::aglu, ::norm_aglu, ::activation_backward and
// ::through_statistics_: their schemas, autograd and dispatch. What they compute is in
// the files for each device.

#include <ATen/ops/empty_like.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/library.h>

#include <array>

#include "checks.h"
#include "dispatch.h"
#include "gpu_launch.h"

namespace apa {

namespace {

using c10::DispatchKeySet;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;
using Optional = std::optional<Tensor>;

constexpr int kNumInputs = 9;  // that may need a gradient; as in Needs and Gradients
using Mask = std::array<bool, kNumInputs>;
using Nine = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                        Tensor>;

Tensor tensor(const Optional& given) { return given ? *given : Tensor(); }

constexpr double kUnbounded = std::numeric_limits<double>::infinity();

Arguments pack_apa(const Tensor& x, const Tensor& lam, const Tensor& kappa,
                   std::optional<int64_t> channel_dim) {
  return {x, lam, kappa, Kind::kApa, channel_axis(x, channel_dim)};
}

Arguments pack_aglu(const Tensor& x, const Tensor& lam, const Tensor& kappa,
                    std::optional<int64_t> channel_dim, double negative_slope,
                    std::optional<double> max_value) {
  return {x, lam, kappa, Kind::kAglu, channel_axis(x, channel_dim), negative_slope,
          max_value.value_or(kUnbounded)};
}

Arguments pack_norm_aglu(
    const Tensor& x, const Optional& weight, const Optional& bias, const Tensor& mean,
    const Tensor& var, double eps, const Tensor& lam, const Tensor& kappa,
    const Optional& gate, const Optional& residual, const Optional& residual_weight,
    const Optional& residual_bias, const Optional& residual_mean,
    const Optional& residual_var, double residual_eps, double negative_slope,
    std::optional<double> max_value, bool of_batch, bool residual_of_batch) {
  return {x, lam, kappa, Kind::kAglu, 1, negative_slope,
          max_value.value_or(kUnbounded),
          {tensor(weight), tensor(bias), mean, var, eps, of_batch},
          tensor(gate), tensor(residual),
          {tensor(residual_weight), tensor(residual_bias), tensor(residual_mean),
           tensor(residual_var), residual_eps, residual_of_batch}};
}

// ---- Implementations for each device

// Tests without a GPU send CPU tensors along the GPU path.
bool on_gpu(const Tensor& x) { return x.is_cuda() || gpu_stand_in(); }

Tensor activation(const Arguments& a) {
  if (a.x.numel() == 0) return at::empty_like(a.x);
  return on_gpu(a.x) ? activation_gpu(a) : activation_cpu(a);
}

Gradients activation_backward(const Arguments& a, const Tensor& grad,
                              const Needs& needs) {
  if (a.x.numel() == 0) {
    return gradients_like(a, needs, [](const Tensor& t) { return at::zeros_like(t); });
  }
  return on_gpu(a.x) ? activation_backward_gpu(a, grad, needs)
                     : activation_backward_cpu(a, grad, needs);
}

Tensor through_statistics(const Tensor& grad_x, const Tensor& x, const Norm& norm,
                          const Tensor& grad_weight, const Tensor& grad_bias) {
  return (on_gpu(x) ? through_statistics_gpu : through_statistics_cpu)(
      grad_x, x, norm, grad_weight, grad_bias);
}

Tensor activation_meta(const Arguments& a) { return at::empty_like(a.x); }

Gradients activation_backward_meta(const Arguments& a, const Tensor&,
                                   const Needs& needs) {
  return gradients_like(a, needs, [](const Tensor& t) { return at::empty_like(t); });
}

Tensor through_statistics_meta(const Tensor& grad_x, const Tensor&, const Norm&,
                               const Tensor&, const Tensor&) {
  return grad_x;
}

// The operator with the arguments of `pack`, computed by `implementation`.
template <auto implementation, auto pack>
struct Forward;
template <auto implementation, typename... Args, Arguments (*pack)(Args...)>
struct Forward<implementation, pack> {
  static Tensor call(Args... args) {
    const Arguments packed = pack(args...);
    check(packed);
    return implementation(packed);
  }
};

// The gradient of a norm's input through its batch's statistics is made of those of
// weight and bias: requests both, and adds to the norm what it lacks of the two.
void prepare_statistics(Norm& norm, bool needed, bool& need_weight, bool& need_bias) {
  if (!norm.of_batch || !needed) return;
  if (!norm.weight.defined()) norm.weight = at::ones_like(norm.mean);
  if (!norm.bias.defined()) norm.bias = at::zeros_like(norm.mean);
  need_weight = need_bias = true;
}

template <auto implementation, auto complete>
Nine backward(const Tensor& grad, const Tensor& x, const Tensor& lam,
              const Tensor& kappa, int64_t kind, int64_t axis, double slope,
              double bound, const Optional& weight, const Optional& bias,
              const Optional& mean, const Optional& var, double eps,
              const Optional& gate, const Optional& residual,
              const Optional& residual_weight, const Optional& residual_bias,
              const Optional& residual_mean, const Optional& residual_var,
              double residual_eps, bool of_batch, bool residual_of_batch, Mask m) {
  Arguments a{x, lam, kappa, static_cast<Kind>(kind), axis, slope, bound,
              {tensor(weight), tensor(bias), tensor(mean), tensor(var), eps, of_batch},
              tensor(gate), tensor(residual),
              {tensor(residual_weight), tensor(residual_bias), tensor(residual_mean),
               tensor(residual_var), residual_eps, residual_of_batch}};
  check(a);
  TORCH_CHECK_VALUE(grad.sym_sizes().equals(x.sym_sizes()),
                    "activation_backward takes a gradient of the shape of x");
  Needs needs{m[0], m[1], m[2], m[3], m[4], m[5], m[6], m[7], m[8]};
  Norm &norm = a.norm, &other = a.residual_norm;
  prepare_statistics(norm, needs.x, needs.weight, needs.bias);
  prepare_statistics(other, needs.residual, needs.r_weight, needs.r_bias);
  Gradients g = implementation(a, grad, needs);
  if (norm.of_batch && needs.x && x.sym_numel() != 0) {
    g.x = complete(g.x, x, norm, g.weight, g.bias);
  }
  if (other.of_batch && needs.residual && x.sym_numel() != 0) {
    g.residual = complete(g.residual, a.residual, other, g.r_weight, g.r_bias);
  }
  const auto given = [&](int i, const Tensor& t) { return m[i] ? t : Tensor(); };
  return {g.x,           g.lam,         g.kappa,    given(3, g.weight),
          given(4, g.bias), g.gate,     g.residual, given(7, g.r_weight),
          given(8, g.r_bias)};
}

// The operator for statistics that not only the activation depends on; see
// apa_mmdet/ops/batch_statistics.py.
template <auto complete>
void complete_in_place(const Tensor& grad_x, const Tensor& x, const Tensor& weight,
              const Tensor& mean, const Tensor& var, double eps,
              const Tensor& grad_weight, const Tensor& grad_bias) {
  for (const Tensor* each : {&weight, &mean, &var, &grad_weight, &grad_bias})
    TORCH_CHECK_VALUE(each->dim() == 1 && each->sym_size(0) == x.sym_size(1),
                      "through_statistics_ takes one value per channel of x");
  if (x.sym_numel() == 0) return;
  const Norm norm{weight, Tensor(), mean, var, eps, true};
  const Tensor result = complete(grad_x, x, norm, grad_weight, grad_bias);
  if (!result.is_same(grad_x)) grad_x.copy_(result);
}

using BackwardSchema = decltype(backward<activation_backward, through_statistics>);

// ---- Autograd

using NodePtr = decltype(torch::autograd::Edge::function);

// Releases of torch differ in the smart pointer that holds a node.
template <typename T>
auto make_node() {
  if constexpr (std::is_same_v<NodePtr, std::shared_ptr<Node>>) {
    return std::shared_ptr<T>(new T(), [](T* node) { deleteNode(node); });
  } else {
    return c10::make_intrusive<T>();
  }
}

// Only x, the residual and the small tensors are kept for backward.
struct ActivationBackward : Node {
  // Those that may need a gradient come first, in the order of Needs.
  std::vector<SavedVariable> saved;
  Kind kind;
  int64_t axis;
  double slope, bound, eps, residual_eps;
  bool of_batch, residual_of_batch;
  std::mutex mutex;

  std::string name() const override {
    return kind == Kind::kApa      ? "ApaBackward"
           : saved.size() == 3     ? "AgluBackward"
                                   : "NormAgluBackward";
  }

  static NodePtr record(const Arguments& a) {
    auto node = make_node<ActivationBackward>();
    node->kind = a.kind;
    node->axis = a.axis;
    node->slope = a.slope;
    node->bound = a.bound;
    node->eps = a.norm.eps;
    node->residual_eps = a.residual_norm.eps;
    node->of_batch = a.norm.of_batch;
    node->residual_of_batch = a.residual_norm.of_batch;
    const auto keep = [&](auto&... tensors) {
      node->saved.reserve(sizeof...(tensors));
      (node->saved.emplace_back(tensors, false), ...);
    };
    using torch::autograd::collect_next_edges;
    const Norm &n = a.norm, &r = a.residual_norm;
    if (n.defined()) {
      keep(a.x, a.lam, a.kappa, n.weight, n.bias, a.gate, a.residual, r.weight, r.bias,
           n.mean, n.var, r.mean, r.var);
      node->set_next_edges(collect_next_edges(a.x, a.lam, a.kappa, n.weight, n.bias,
                                              a.gate, a.residual, r.weight, r.bias));
    } else {
      keep(a.x, a.lam, a.kappa);
      node->set_next_edges(collect_next_edges(a.x, a.lam, a.kappa));
    }
    return node;
  }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex);
    const size_t count = num_outputs();
    if (!grads[0].defined()) return variable_list(count);
    Mask needed{};
    for (size_t i = 0; i < count; ++i) needed[i] = task_should_compute_output(i);
    std::array<Tensor, 13> t;
    for (size_t i = 0; i < saved.size(); ++i) t[i] = saved[i].unpack();
    static const auto op = find<BackwardSchema>("apa_mmdet::activation_backward");
    auto gradients = op.call(
        grads[0], t[0], t[1], t[2], static_cast<int64_t>(kind), axis, slope, bound,
        optional(t[3]), optional(t[4]), optional(t[9]), optional(t[10]), eps,
        optional(t[5]), optional(t[6]), optional(t[7]), optional(t[8]),
        optional(t[11]), optional(t[12]), residual_eps, of_batch, residual_of_batch,
        needed);
    variable_list result = std::apply(
        [](auto&... each) { return variable_list{std::move(each)...}; }, gradients);
    result.resize(count);
    return result;
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex);
    for (SavedVariable& each : saved) each.reset_data();
  }
};

struct RefuseSecondDerivative : Node {
  std::string name() const override { return "RefuseSecondDerivative"; }
  variable_list apply(variable_list&&) override {
    TORCH_CHECK(false,
                "second derivatives of APA's functions are not implemented: the "
                "gradient of apa or aglu was itself differentiated. Drop "
                "create_graph=True, or write (1 + lam * exp(-kappa * x)) ** (-1 / lam) "
                "in plain torch for that term.");
  }
};

template <typename T>
constexpr bool is_tensor = std::is_same_v<std::decay_t<T>, Tensor> ||
                           std::is_same_v<std::decay_t<T>, Optional>;

template <typename T>
bool requires_grad(const T& argument) {
  if constexpr (std::is_same_v<T, Tensor>) return argument.requires_grad();
  if constexpr (std::is_same_v<T, Optional>) {
    return argument && argument->requires_grad();
  }
  return false;
}

template <typename T>
void refuse_forward_mode(const T& argument) {
  bool dual = false;
  if constexpr (is_tensor<T>) dual = torch::autograd::isFwGradDefined(argument);
  TORCH_CHECK_NOT_IMPLEMENTED(!dual,
                              "forward-mode derivatives of APA's functions are not "
                              "implemented; use torch.autograd.grad or backward()");
}

// The operator `name` under autograd, which saves what backward needs.
template <const char* name, auto pack>
struct Recorded;
template <const char* name, typename... Args, Arguments (*pack)(Args...)>
struct Recorded<name, pack> {
  static Tensor call(DispatchKeySet keys, Args... args) {
    static const auto op = find<Tensor(Args...)>(name);
    (refuse_forward_mode(args), ...);
    Tensor result = [&] {
      at::AutoDispatchBelowADInplaceOrView guard;
      return op.redispatch(keys & c10::after_autograd_keyset, args...);
    }();
    if (at::GradMode::is_enabled() && (requires_grad(args) || ...)) {
      torch::autograd::set_history(result, ActivationBackward::record(pack(args...)));
    }
    return result;
  }
};

// activation_backward under autograd: its results refuse to be differentiated.
template <typename Schema>
struct Refusing;
template <typename... Args>
struct Refusing<Nine(Args...)> {
  static Nine call(DispatchKeySet keys, Args... args) {
    static const auto op = find<Nine(Args...)>("apa_mmdet::activation_backward");
    Nine result = [&] {
      at::AutoDispatchBelowADInplaceOrView guard;
      return op.redispatch(keys & c10::after_autograd_keyset, args...);
    }();
    if (at::GradMode::is_enabled() && (requires_grad(args) || ...)) {
      const NodePtr node = make_node<RefuseSecondDerivative>();
      variable_list anchors;
      const auto add = [&](const auto& argument) {
        if constexpr (is_tensor<decltype(argument)>) {
          if (requires_grad(argument)) anchors.push_back(Optional(argument).value());
        }
      };
      (add(args), ...);
      node->set_next_edges(torch::autograd::collect_next_edges(anchors));
      const auto attach = [&](auto&... each) {
        (torch::autograd::set_history(each, node), ...);
      };
      std::apply(attach, result);
    }
    return result;
  }
};

void refuse_vmap(const c10::OperatorHandle& op, torch::jit::Stack*) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      false, op.schema().name() +
                 " does not work under torch.vmap; its lam and kappa can hold one "
                 "value per channel, and x any number of axes");
}

constexpr char kApaName[] = "apa_mmdet::apa";
constexpr char kAgluName[] = "apa_mmdet::aglu";
constexpr char kNormAgluName[] = "apa_mmdet::norm_aglu";

template <auto forward, auto backward_of_activation, auto complete>
void implement(torch::Library& m) {
  m.impl("apa", Forward<forward, pack_apa>::call);
  m.impl("aglu", Forward<forward, pack_aglu>::call);
  m.impl("norm_aglu", Forward<forward, pack_norm_aglu>::call);
  m.impl("activation_backward", backward<backward_of_activation, complete>);
  m.impl("through_statistics_", complete_in_place<complete>);
}

}  // namespace
}  // namespace apa

TORCH_LIBRARY(apa_mmdet, m) {
  m.set_python_module("apa_mmdet.ops.extension");
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  m.def("apa(Tensor x, Tensor lam, Tensor kappa, int? channel_dim=None) -> Tensor",
        tags);
  m.def(
      "aglu(Tensor x, Tensor lam, Tensor kappa, int? channel_dim=None, "
      "float negative_slope=0., float? max_value=None) -> Tensor",
      tags);
  m.def(
      "norm_aglu(Tensor x, Tensor? weight, Tensor? bias, Tensor mean, Tensor var, "
      "float eps, Tensor lam, Tensor kappa, Tensor? gate=None, Tensor? residual=None, "
      "Tensor? residual_weight=None, Tensor? residual_bias=None, "
      "Tensor? residual_mean=None, Tensor? residual_var=None, float residual_eps=0., "
      "float negative_slope=0., float? max_value=None, bool batch_statistics=False, "
      "bool residual_batch_statistics=False) -> Tensor",
      tags);
  m.def(
      "activation_backward(Tensor grad, Tensor x, Tensor lam, Tensor kappa, int kind, "
      "int axis, float slope, float bound, Tensor? weight, Tensor? bias, Tensor? mean, "
      "Tensor? var, float eps, Tensor? gate, Tensor? residual, "
      "Tensor? residual_weight, Tensor? residual_bias, Tensor? residual_mean, "
      "Tensor? residual_var, float residual_eps, bool batch_statistics, "
      "bool residual_batch_statistics, bool[9] needs) -> (Tensor, Tensor, "
      "Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
      tags);
  m.def(
      "through_statistics_(Tensor(a!) grad_x, Tensor x, Tensor weight, Tensor mean, "
      "Tensor var, float eps, Tensor grad_weight, Tensor grad_bias) -> ()",
      tags);
}

TORCH_LIBRARY_IMPL(apa_mmdet, CPU, m) {
  apa::implement<apa::activation, apa::activation_backward, apa::through_statistics>(m);
}
TORCH_LIBRARY_IMPL(apa_mmdet, CUDA, m) {
  apa::implement<apa::activation, apa::activation_backward, apa::through_statistics>(m);
}
TORCH_LIBRARY_IMPL(apa_mmdet, Meta, m) {
  apa::implement<apa::activation_meta, apa::activation_backward_meta,
                 apa::through_statistics_meta>(m);
}

TORCH_LIBRARY_IMPL(apa_mmdet, Autograd, m) {
  using namespace apa;
  m.impl("apa", Recorded<kApaName, pack_apa>::call);
  m.impl("aglu", Recorded<kAgluName, pack_aglu>::call);
  m.impl("norm_aglu", Recorded<kNormAgluName, pack_norm_aglu>::call);
  m.impl("activation_backward", Refusing<BackwardSchema>::call);
}

TORCH_LIBRARY_IMPL(apa_mmdet, FuncTorchBatched, m) {
  for (const char* name : {"apa", "aglu", "norm_aglu", "activation_backward"}) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&apa::refuse_vmap>());
  }
}
