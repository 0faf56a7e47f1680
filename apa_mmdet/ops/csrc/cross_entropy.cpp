// The operators apa_mmdet::cross_entropy and ::cross_entropy_backward: their schemas
// and autograd. Shapes are checked in apa_mmdet/ops/cross_entropy.py.

#include "cross_entropy.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <limits>

#include "dispatch.h"
#include "gpu_launch.h"

namespace apa {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Optional = std::optional<Tensor>;
using Needs = std::array<bool, 3>;
using Gradients = std::tuple<Tensor, Tensor, Tensor>;

bool on_gpu(const Tensor& logits) { return logits.is_cuda() || gpu_stand_in(); }

LossArguments pack(const Tensor& logits, const Tensor& labels, const Tensor& lam,
                   const Tensor& kappa, const Optional& weight, const Optional& rare,
                   const Optional& seed, std::optional<double> max_slope) {
  const auto type = logits.scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kBFloat16 || type == at::kHalf,
                   "logits must be float32, bfloat16 or float16 (apa_mmdet.ops also "
                   "takes float64); convert them with logits.float()");
  const auto small = [](const Tensor& t) {
    return (t.scalar_type() == at::kDouble ? t.to(at::kFloat) : t).contiguous();
  };
  LossArguments a{logits.contiguous(), labels.contiguous(), small(lam), small(kappa)};
  if (weight) {
    const bool known = weight->scalar_type() != at::kDouble &&
                       at::isFloatingType(weight->scalar_type());
    a.weight = (known ? *weight : weight->to(at::kFloat)).expand_as(logits);
  }
  if (rare) a.rare = rare->contiguous();
  if (seed) a.seed = *seed;
  a.max_slope = max_slope.value_or(std::numeric_limits<double>::infinity());
  return a;
}

Tensor forward(const Tensor& logits, const Tensor& labels, const Tensor& lam,
               const Tensor& kappa, const Optional& weight, const Optional& rare,
               const Optional& seed, std::optional<double> max_slope, bool summed) {
  const LossArguments a =
      pack(logits, labels, lam, kappa, weight, rare, seed, max_slope);
  return on_gpu(logits) ? cross_entropy_gpu(a, summed) : cross_entropy_cpu(a, summed);
}

Gradients backward(const Tensor& grad, const Tensor& logits, const Tensor& labels,
                   const Tensor& lam, const Tensor& kappa, const Optional& weight,
                   const Optional& rare, const Optional& seed,
                   std::optional<double> max_slope, Needs needs) {
  const LossArguments a =
      pack(logits, labels, lam, kappa, weight, rare, seed, max_slope);
  const Tensor wide = grad.to(at::kFloat).expand_as(logits);
  auto [of_logits, of_lam, of_kappa] =
      on_gpu(logits) ? cross_entropy_backward_gpu(a, wide, needs)
                     : cross_entropy_backward_cpu(a, wide, needs);
  if (needs[1]) of_lam = of_lam.to(lam.scalar_type());
  if (needs[2]) of_kappa = of_kappa.to(kappa.scalar_type());
  return {of_logits, of_lam, of_kappa};
}

Tensor forward_meta(const Tensor& logits, const Tensor&, const Tensor&, const Tensor&,
                    const Optional&, const Optional&, const Optional&,
                    std::optional<double>, bool summed) {
  const auto options = logits.options().dtype(at::kFloat);
  return summed ? at::empty({}, options)
                : at::empty_symint(logits.sym_sizes(), options);
}

Gradients backward_meta(const Tensor&, const Tensor& logits, const Tensor&,
                        const Tensor& lam, const Tensor& kappa, const Optional&,
                        const Optional&, const Optional&, std::optional<double>,
                        Needs needs) {
  const auto like = [](bool needed, const Tensor& t) {
    return needed ? at::empty_symint(t.sym_sizes(), t.options()) : Tensor();
  };
  return {like(needs[0], logits), like(needs[1], lam), like(needs[2], kappa)};
}

// Saves its inputs for backward, and nothing else of shape (N, C).
struct Loss : torch::autograd::Function<Loss> {
  static Tensor forward(AutogradContext* context, const Tensor& logits,
                        const Tensor& labels, const Tensor& lam, const Tensor& kappa,
                        const Optional& weight, const Optional& rare,
                        const Optional& seed, std::optional<double> max_slope,
                        bool summed) {
    static const auto op = find<decltype(apa::forward)>("apa_mmdet::cross_entropy");
    context->save_for_backward({logits, labels, lam, kappa, weight.value_or(Tensor()),
                                rare.value_or(Tensor()), seed.value_or(Tensor())});
    context->saved_data["max_slope"] = max_slope;
    const at::AutoDispatchBelowADInplaceOrView guard;
    return op.call(logits, labels, lam, kappa, weight, rare, seed, max_slope, summed);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    static const auto op =
        find<decltype(apa::backward)>("apa_mmdet::cross_entropy_backward");
    const variable_list kept = context->get_saved_variables();
    variable_list result(9);
    if (!grads[0].defined()) return result;
    const Needs needs{context->needs_input_grad(0), context->needs_input_grad(2),
                      context->needs_input_grad(3)};
    std::tie(result[0], result[2], result[3]) =
        op.call(grads[0], kept[0], kept[1], kept[2], kept[3], optional(kept[4]),
                optional(kept[5]), optional(kept[6]),
                context->saved_data["max_slope"].toOptional<double>(), needs);
    return result;
  }
};

// The backward operator under autograd: its results refuse to be differentiated.
struct OnlyOnce : torch::autograd::Function<OnlyOnce> {
  static variable_list forward(AutogradContext*, const Tensor& grad,
                               const Tensor& logits, const Tensor& labels,
                               const Tensor& lam, const Tensor& kappa,
                               const Optional& weight, const Optional& rare,
                               const Optional& seed, std::optional<double> max_slope,
                               Needs needs) {
    static const auto op =
        find<decltype(apa::backward)>("apa_mmdet::cross_entropy_backward");
    const at::AutoDispatchBelowADInplaceOrView guard;
    auto [of_logits, of_lam, of_kappa] =
        op.call(grad, logits, labels, lam, kappa, weight, rare, seed, max_slope, needs);
    variable_list found;
    for (const Tensor& each : {of_logits, of_lam, of_kappa})
      if (each.defined()) found.push_back(each);
    return found;
  }

  static variable_list backward(AutogradContext*, variable_list) {
    TORCH_CHECK(false,
                "second derivatives of APA's functions are not implemented: the "
                "gradient of apa_cross_entropy was itself differentiated. Drop "
                "create_graph=True");
  }
};

Gradients backward_once(const Tensor& grad, const Tensor& logits, const Tensor& labels,
                        const Tensor& lam, const Tensor& kappa, const Optional& weight,
                        const Optional& rare, const Optional& seed,
                        std::optional<double> max_slope, Needs needs) {
  const auto found = OnlyOnce::apply(grad, logits, labels, lam, kappa, weight, rare,
                                     seed, max_slope, needs);
  size_t next = 0;
  const auto take = [&](bool needed) { return needed ? found[next++] : Tensor(); };
  const Tensor of_logits = take(needs[0]), of_lam = take(needs[1]);
  return {of_logits, of_lam, take(needs[2])};
}

Tensor forward_recorded(const Tensor& logits, const Tensor& labels, const Tensor& lam,
                        const Tensor& kappa, const Optional& weight,
                        const Optional& rare, const Optional& seed,
                        std::optional<double> max_slope, bool summed) {
  return Loss::apply(logits, labels, lam, kappa, weight, rare, seed, max_slope, summed);
}

}  // namespace
}  // namespace apa

TORCH_LIBRARY_FRAGMENT(apa_mmdet, m) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  m.def(
      "cross_entropy(Tensor logits, Tensor labels, Tensor lam, Tensor kappa, "
      "Tensor? weight, Tensor? rare, Tensor? seed, float? max_slope, bool summed) -> "
      "Tensor",
      tags);
  m.def(
      "cross_entropy_backward(Tensor grad, Tensor logits, Tensor labels, Tensor lam, "
      "Tensor kappa, Tensor? weight, Tensor? rare, Tensor? seed, float? max_slope, "
      "bool[3] needs) -> (Tensor, Tensor, Tensor)",
      tags);
}

TORCH_LIBRARY_IMPL(apa_mmdet, CPU, m) {
  m.impl("cross_entropy", apa::forward);
  m.impl("cross_entropy_backward", apa::backward);
}
TORCH_LIBRARY_IMPL(apa_mmdet, CUDA, m) {
  m.impl("cross_entropy", apa::forward);
  m.impl("cross_entropy_backward", apa::backward);
}
TORCH_LIBRARY_IMPL(apa_mmdet, Meta, m) {
  m.impl("cross_entropy", apa::forward_meta);
  m.impl("cross_entropy_backward", apa::backward_meta);
}
TORCH_LIBRARY_IMPL(apa_mmdet, Autograd, m) {
  m.impl("cross_entropy", apa::forward_recorded);
  m.impl("cross_entropy_backward", apa::backward_once);
}
