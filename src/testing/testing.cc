#include "testing/testing.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <torch/csrc/autograd/autograd.h>

#include "core/error.h"

namespace lineal {
namespace {

constexpr int64_t kShown = 10;

std::string index_text(const Tensor& tensor, int64_t flat) {
  std::string result = "]";
  for (int64_t d = tensor.dim() - 1; d >= 0; --d) {
    result = std::to_string(flat % tensor.size(d)) + (result == "]" ? "" : ", ") + result;
    flat /= tensor.size(d);
  }
  return "[" + result;
}

std::string shape_difference(const Tensor& actual, const Tensor& expected) {
  if (!actual.defined()) return "undefined, expected " + text(expected.sizes());
  if (actual.sizes() == expected.sizes()) return "";
  return text("shape ", actual.sizes(), ", expected ", expected.sizes());
}

Tensor wide(const Tensor& x) { return x.detach().to(at::kCPU, at::kDouble).contiguous(); }

/// The first mismatches of `wrong` (bool), one a line.
std::string mismatches(const Tensor& wrong, const Tensor& actual, const Tensor& expected) {
  const Tensor where = wrong.flatten().nonzero().flatten();
  std::ostringstream out;
  out.precision(9);
  for (int64_t i = 0; i < std::min(where.size(0), kShown); ++i) {
    const auto flat = where[i].item<int64_t>();
    out << "\n  " << index_text(actual, flat) << " " << actual.flatten()[flat].item<double>() << ", expected "
        << expected.flatten()[flat].item<double>();
  }
  if (where.size(0) > kShown) out << "\n  and " << where.size(0) - kShown << " more";
  return out.str();
}

}  // namespace

Golden::Golden(const std::string& id) : id_(id), file_(load_safetensors(LINEAL_TESTDATA "/" + id + ".safetensors")) {}

const Tensor& Golden::operator[](const std::string& name) const { return file_.at(name, id_); }

std::vector<std::string> Golden::names(const std::string& prefix) const {
  std::vector<std::string> result;
  for (const auto& [name, tensor] : file_.tensors) {
    if (name.starts_with(prefix)) result.push_back(name.substr(prefix.size()));
  }
  return result;
}

std::string difference(const Tensor& actual, const Tensor& expected, double tolerance) {
  if (auto shape = shape_difference(actual, expected); !shape.empty()) return shape;
  if (expected.numel() == 0) return "";
  const Tensor a = wide(actual), e = wide(expected);
  const double scale = e.abs().max().item<double>();
  const Tensor error = (a - e).abs();
  const Tensor wrong = (error <= tolerance * scale).logical_not();  // NaN fails every comparison
  if (!wrong.any().item<bool>()) return "";
  return text(wrong.sum().item<int64_t>(), " of ", a.numel(), " differ, largest error ",
              error.max().item<double>() / scale, " of the largest value ", scale, ", tolerance ", tolerance,
              mismatches(wrong, a, e));
}

std::string rms_difference(const Tensor& actual, const Tensor& expected, double tolerance) {
  if (auto shape = shape_difference(actual, expected); !shape.empty()) return shape;
  if (expected.numel() == 0) return "";
  const Tensor a = wide(actual), e = wide(expected);
  const double scale = e.square().mean().sqrt().item<double>();
  const double error = (a - e).square().mean().sqrt().item<double>();
  if (error <= tolerance * scale) return "";
  const Tensor wrong = ((a - e).abs() <= tolerance * scale).logical_not();
  return text("relative RMS error ", error / scale, ", tolerance ", tolerance, mismatches(wrong, a, e));
}

std::string bit_difference(const Tensor& actual, const Tensor& expected) {
  if (actual.defined() && actual.scalar_type() != expected.scalar_type()) {
    return text("type ", actual.scalar_type(), ", expected ", expected.scalar_type());
  }
  return difference(actual, expected, 0);
}

Tensor normal(at::IntArrayRef shape, uint64_t seed, at::ScalarType type) {
  return at::randn(shape, at::make_generator<at::CPUGeneratorImpl>(seed), at::TensorOptions(at::kDouble)).to(type);
}

std::string gradient_difference(const TensorsFunction& f, const std::vector<Tensor>& inputs,
                                const std::vector<std::string>& names, const GradientCheck& check) {
  std::vector<Tensor> leaves;
  for (const Tensor& input : inputs) leaves.push_back(input.detach().clone().requires_grad_());
  return gradient_difference([&] { return f(leaves); }, leaves, names, check);
}

std::string gradient_difference(const std::function<std::vector<Tensor>()>& f, const std::vector<Tensor>& leaves,
                                const std::vector<std::string>& names, const GradientCheck& check) {
  for (const Tensor& leaf : leaves) {
    if (leaf.scalar_type() != at::kDouble) return text("the check needs float64, got ", leaf.scalar_type());
  }
  std::vector<Tensor> cotangents;
  const auto scalar = [&] {
    const auto outputs = f();
    Tensor sum = at::zeros({}, at::kDouble);
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (cotangents.size() == i) cotangents.push_back(normal(outputs[i].sizes(), 101 + i, at::kDouble));
      sum = sum + (outputs[i] * cotangents[i]).sum();
    }
    return sum;
  };
  const Tensor value = scalar();
  if (!value.requires_grad()) return "the outputs depend on no input";
  const auto gradients =
      torch::autograd::grad({value}, leaves, {}, /*retain_graph=*/false, /*create_graph=*/false, /*allow_unused=*/true);

  at::NoGradGuard no_grad;
  for (size_t i = 0; i < leaves.size(); ++i) {
    Tensor leaf = leaves[i];
    const Tensor start = leaf.clone(), gradient = gradients[i].defined() ? gradients[i] : at::zeros_like(leaf);
    const auto slope = [&](const Tensor& direction) {
      const auto moved = [&](double step) {
        leaf.copy_(start + step * direction.view(start.sizes()));
        return scalar().item<double>();
      };
      const double up = moved(check.step), down = moved(-check.step);
      leaf.copy_(start);
      return (up - down) / (2 * check.step);
    };
    const int64_t count = leaf.numel(), shown = std::min(count, check.elements);
    if (count == 0) continue;
    std::vector<Tensor> directions;
    for (int64_t j = 0; j < shown; ++j) {
      directions.push_back(
          at::zeros({count}, at::kDouble).index_fill(0, at::tensor({j * count / shown}, at::kLong), 1));
    }
    const Tensor any = normal({count}, 211 + i, at::kDouble);
    directions.push_back(any / any.norm());
    std::vector<double> analytic, numeric;
    for (const Tensor& direction : directions) {
      analytic.push_back((gradient.flatten() * direction).sum().item<double>());
      numeric.push_back(slope(direction));
    }
    const std::string found =
        difference(at::tensor(analytic, at::kDouble), at::tensor(numeric, at::kDouble), check.tolerance);
    // A gradient that is zero throughout has no scale of its own: rounding of the differences is all there is.
    const double largest = at::tensor(numeric, at::kDouble).abs().max().item<double>();
    if (!found.empty() && !(largest < 1e-8 && gradient.abs().max().item<double>() < 1e-8)) {
      return text("gradient of ", i < names.size() ? names[i] : "input " + std::to_string(i), " ", leaf.sizes(),
                  ", autograd against finite differences (elements ", shown,
                  " spread over it, then one direction): ", found);
    }
  }
  return "";
}

}  // namespace lineal
