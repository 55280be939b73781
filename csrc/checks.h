// What every op checks of its arguments, each with one clear error, on torch's stable ABI. Nothing
// here is of one device: the CUDA ops and those of the CPU share it.
#pragma once

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

// The one of `known` that has the name.
template <typename Activation>
Activation checked_activation(const char* op, const char* argument, const std::string& name,
                              std::initializer_list<std::pair<const char*, Activation>> known) {
  std::string names;
  for (const auto& [text, activation] : known) {
    if (name == text) return activation;
    names += names.empty() ? text : std::string(", ") + text;
  }
  fail(op, argument, " must be one of ", names, ", found \"", name, "\"");
}

// Of a convolution; the CUDA kernels and those of the CPU each have their own type.
template <typename Activation>
Activation checked_act(const char* op, const std::string& act) {
  return checked_activation<Activation>(op, "act", act,
                                        {{"none", Activation::kNone},
                                         {"silu", Activation::kSilu},
                                         {"relu", Activation::kRelu},
                                         {"relu6", Activation::kRelu6},
                                         {"hardswish", Activation::kHardswish},
                                         {"gelu", Activation::kGelu}});
}

inline Tensor empty(std::initializer_list<int64_t> sizes, ScalarType dtype, const Tensor& like) {
  const torch::headeronly::IntHeaderOnlyArrayRef shape(sizes.begin(), sizes.size());
  return torch::stable::empty(shape, dtype, std::nullopt, like.device(), std::nullopt,
                              std::nullopt);
}

}  // namespace effv2
