// The torch side of the native ops: contract checks, allocation, stream and launch, on torch's
// stable ABI (target 2.10), so that one library serves every torch from 2.10 on, one without CUDA
// included. The schemas are defined in Python (effv2_kernels/ops), which therefore works without
// this library; only the CUDA implementations are here.
//
// Checks run from what needs no GPU to what does, the device last: the contract can then be tested
// on CPU tensors that are sent to the CUDA implementation by hand.

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

#include "kernels.h"

// torch declares this for CUDA builds only and defines it in libtorch_cuda. Weak, so that the
// library also loads where that one does not exist; no CUDA tensor can reach us there.
extern "C" __attribute__((weak)) AOTITorchError
aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace effv2 {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename... Parts>
[[noreturn]] void fail(const char* op, const Parts&... parts) {
  std::ostringstream text;
  text << "effv2::" << op << ": ";
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

std::string shape_text(const Tensor& tensor) {
  std::ostringstream text;
  text << "(";
  for (int64_t axis = 0; axis < tensor.dim(); ++axis) {
    text << (axis == 0 ? "" : ", ") << tensor.size(axis);
  }
  text << ")";
  return text.str();
}

std::string device_text(const Tensor& tensor) {
  if (tensor.is_cpu()) return "cpu";
  if (tensor.is_cuda()) return "cuda:" + std::to_string(tensor.get_device_index());
  return "another device";
}

// A tensor argument with the name that its errors carry.
struct Argument {
  const char* name;
  const Tensor& tensor;
};

// An axis that a size is required of, with its name for the error text.
struct Axis {
  const char* name;
  int64_t size;
};

void check_shape(const char* op, const Argument& argument, std::initializer_list<Axis> axes) {
  bool right = argument.tensor.dim() == static_cast<int64_t>(axes.size());
  int64_t index = 0;
  for (const Axis& axis : axes) right = right && argument.tensor.size(index++) == axis.size;
  if (right) return;
  std::ostringstream names;
  std::ostringstream sizes;
  for (const Axis& axis : axes) {
    names << (names.tellp() == 0 ? "" : ", ") << axis.name;
    sizes << (sizes.tellp() == 0 ? "" : ", ") << axis.size;
  }
  fail(op, argument.name, " must be (", names.str(), ") = (", sizes.str(), "), found ",
       shape_text(argument.tensor));
}

DType checked_dtype(const char* op, std::initializer_list<Argument> arguments) {
  const Argument& first = *arguments.begin();
  const ScalarType dtype = first.tensor.scalar_type();
  for (const Argument& argument : arguments) {
    if (argument.tensor.scalar_type() != dtype) {
      fail(op, argument.name, " must have the dtype of ", first.name, ", ",
           torch::headeronly::toString(dtype), ", found ",
           torch::headeronly::toString(argument.tensor.scalar_type()));
    }
  }
  switch (dtype) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    default:
      fail(op, first.name, " must be float32, float16 or bfloat16, found ",
           torch::headeronly::toString(dtype));
  }
}

void check_contiguous(const char* op, std::initializer_list<Argument> arguments) {
  for (const Argument& argument : arguments) {
    if (!argument.tensor.is_contiguous()) {
      std::ostringstream strides;
      for (int64_t axis = 0; axis < argument.tensor.dim(); ++axis) {
        strides << (axis == 0 ? "" : ", ") << argument.tensor.stride(axis);
      }
      fail(op, argument.name, " must be contiguous, found strides (", strides.str(),
           ") for the shape ", shape_text(argument.tensor));
    }
  }
}

void check_device(const char* op, std::initializer_list<Argument> arguments) {
  const Argument& first = *arguments.begin();
  if (!first.tensor.is_cuda()) {
    fail(op, first.name, " must be on a CUDA device, found ", device_text(first.tensor));
  }
  for (const Argument& argument : arguments) {
    if (!argument.tensor.is_cuda() ||
        argument.tensor.get_device_index() != first.tensor.get_device_index()) {
      fail(op, argument.name, " must be on the device of ", first.name, ", ",
           device_text(first.tensor), ", found ", device_text(argument.tensor));
    }
  }
}

Activation checked_activation(const char* op, const char* argument, const std::string& name,
                              std::initializer_list<std::pair<const char*, Activation>> known) {
  std::string names;
  for (const auto& [text, activation] : known) {
    if (name == text) return activation;
    names += names.empty() ? text : std::string(", ") + text;
  }
  fail(op, argument, " must be one of ", names, ", found \"", name, "\"");
}

cudaStream_t current_stream(const char* op, int32_t device_index) {
  void* stream = nullptr;
  if (aoti_torch_get_current_cuda_stream == nullptr) fail(op, "this torch has no CUDA support");
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_index, &stream));
  return static_cast<cudaStream_t>(stream);
}

void check_launch(const char* op, cudaError_t error) {
  if (error != cudaSuccess) {
    cudaGetLastError();  // reported here, so not once more by whoever asks next
    fail(op, "the launch failed: ", cudaGetErrorName(error), ", ", cudaGetErrorString(error));
  }
}

Tensor empty(std::initializer_list<int64_t> sizes, ScalarType dtype, const Tensor& like) {
  const torch::headeronly::IntHeaderOnlyArrayRef shape(sizes.begin(), sizes.size());
  return torch::stable::empty(shape, dtype, std::nullopt, like.device(), std::nullopt,
                              std::nullopt);
}

Tensor squeeze_excite_gate(const Tensor& pooled, const Tensor& reduce_weight,
                           const Tensor& reduce_bias, const Tensor& expand_weight,
                           const Tensor& expand_bias, const std::string& act,
                           const std::string& gate) {
  constexpr const char* kOp = "squeeze_excite_gate";
  constexpr int64_t kLongest = int64_t{1} << 27;  // 8 rows of it in an int

  const std::initializer_list<Argument> arguments = {{"pooled", pooled},
                                                     {"reduce_weight", reduce_weight},
                                                     {"reduce_bias", reduce_bias},
                                                     {"expand_weight", expand_weight},
                                                     {"expand_bias", expand_bias}};
  if (pooled.dim() != 2) fail(kOp, "pooled must be (N, M), found ", shape_text(pooled));
  if (reduce_weight.dim() != 2) {
    fail(kOp, "reduce_weight must be (R, M), found ", shape_text(reduce_weight));
  }
  const int64_t n = pooled.size(0);
  const int64_t m = pooled.size(1);
  const int64_t r = reduce_weight.size(0);
  if (m < 1 || m > kLongest) fail(kOp, "pooled must have 1 to 2^27 channels, found ", m);
  if (r < 1 || r > kLongest) fail(kOp, "reduce_weight must have 1 to 2^27 rows, found ", r);
  check_shape(kOp, {"reduce_weight", reduce_weight}, {{"R", r}, {"M", m}});
  check_shape(kOp, {"reduce_bias", reduce_bias}, {{"R", r}});
  check_shape(kOp, {"expand_weight", expand_weight}, {{"M", m}, {"R", r}});
  check_shape(kOp, {"expand_bias", expand_bias}, {{"M", m}});

  SqueezeExciteGateParams params = {};
  params.size_n = n;
  params.size_m = m;
  params.size_r = r;
  params.dtype = checked_dtype(kOp, arguments);
  check_contiguous(kOp, arguments);
  params.act = checked_activation(kOp, "act", act,
                                  {{"silu", Activation::kSilu},
                                   {"relu", Activation::kRelu},
                                   {"hardswish", Activation::kHardswish},
                                   {"relu6", Activation::kRelu6},
                                   {"gelu", Activation::kGelu},
                                   {"none", Activation::kNone}});
  params.gate_act = checked_activation(
      kOp, "gate", gate,
      {{"sigmoid", Activation::kSigmoid}, {"hardsigmoid", Activation::kHardsigmoid}});
  check_device(kOp, arguments);

  const int32_t device = pooled.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  Tensor output = empty({n, m}, pooled.scalar_type(), pooled);
  if (n == 0) return output;

  // Declared out here: its memory must stay reserved until the launch is on the stream.
  std::optional<Tensor> scratch;
  if (const int64_t floats = squeeze_excite_gate_scratch(params); floats > 0) {
    scratch = empty({floats}, ScalarType::Float, pooled);
    params.hidden = static_cast<float*>(scratch->mutable_data_ptr());
  }
  params.pooled = pooled.const_data_ptr();
  params.reduce_weight = reduce_weight.const_data_ptr();
  params.reduce_bias = reduce_bias.const_data_ptr();
  params.expand_weight = expand_weight.const_data_ptr();
  params.expand_bias = expand_bias.const_data_ptr();
  params.gate = output.mutable_data_ptr();
  check_launch(kOp, launch_squeeze_excite_gate(params, current_stream(kOp, device)));
  return output;
}

}  // namespace
}  // namespace effv2

STABLE_TORCH_LIBRARY_IMPL(effv2, CUDA, library) {
  library.impl("squeeze_excite_gate", TORCH_BOX(&effv2::squeeze_excite_gate));
}
