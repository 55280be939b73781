// What the torch side of the native ops shares: checks of the contract, each with one clear error,
// and allocation, stream and launch, on torch's stable ABI.
#pragma once

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

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename... Parts>
[[noreturn]] void fail(const char* op, const Parts&... parts) {
  std::ostringstream text;
  text << "effv2::" << op << ": ";
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

inline std::string shape_text(const Tensor& tensor) {
  std::ostringstream text;
  text << "(";
  for (int64_t axis = 0; axis < tensor.dim(); ++axis) {
    text << (axis == 0 ? "" : ", ") << tensor.size(axis);
  }
  text << ")";
  return text.str();
}

inline std::string device_text(const Tensor& tensor) {
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

inline void check_shape(const char* op, const Argument& argument,
                        std::initializer_list<Axis> axes) {
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

inline DType checked_dtype(const char* op, const char* name, ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    default:
      fail(op, name, " must be float32, float16 or bfloat16, found ",
           torch::headeronly::toString(dtype));
  }
}

// That all of them have.
inline DType checked_dtype(const char* op, std::initializer_list<Argument> arguments) {
  const Argument& first = *arguments.begin();
  const ScalarType dtype = first.tensor.scalar_type();
  for (const Argument& argument : arguments) {
    if (argument.tensor.scalar_type() != dtype) {
      fail(op, argument.name, " must have the dtype of ", first.name, ", ",
           torch::headeronly::toString(dtype), ", found ",
           torch::headeronly::toString(argument.tensor.scalar_type()));
    }
  }
  return checked_dtype(op, first.name, dtype);
}

inline void check_contiguous(const char* op, std::initializer_list<Argument> arguments) {
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

// An axis of length 1 may have any stride.
inline bool has_strides(const Tensor& tensor, std::initializer_list<int64_t> strides) {
  int64_t axis = 0;
  for (const int64_t stride : strides) {
    if (tensor.size(axis) != 1 && tensor.stride(axis) != stride) return false;
    ++axis;
  }
  return true;
}

inline bool is_channels_last(const Tensor& map) {
  const int64_t channels = map.size(1), width = map.size(3);
  return has_strides(map, {map.size(2) * width * channels, 1, width * channels, channels});
}

inline void check_device(const char* op, std::initializer_list<Argument> arguments) {
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

inline Activation checked_activation(
    const char* op, const char* argument, const std::string& name,
    std::initializer_list<std::pair<const char*, Activation>> known) {
  std::string names;
  for (const auto& [text, activation] : known) {
    if (name == text) return activation;
    names += names.empty() ? text : std::string(", ") + text;
  }
  fail(op, argument, " must be one of ", names, ", found \"", name, "\"");
}

inline cudaStream_t current_stream(const char* op, int32_t device_index) {
  void* stream = nullptr;
  if (aoti_torch_get_current_cuda_stream == nullptr) fail(op, "this torch has no CUDA support");
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_index, &stream));
  return static_cast<cudaStream_t>(stream);
}

inline void check_launch(const char* op, cudaError_t error) {
  if (error != cudaSuccess) {
    cudaGetLastError();  // reported here, so not once more by whoever asks next
    fail(op, "the launch failed: ", cudaGetErrorName(error), ", ", cudaGetErrorString(error));
  }
}

inline Tensor empty(std::initializer_list<int64_t> sizes, ScalarType dtype, const Tensor& like) {
  const torch::headeronly::IntHeaderOnlyArrayRef shape(sizes.begin(), sizes.size());
  return torch::stable::empty(shape, dtype, std::nullopt, like.device(), std::nullopt,
                              std::nullopt);
}

}  // namespace effv2
