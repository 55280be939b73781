// The native convolution ops, in a namespace of their own: they take the launch choice, which Python
// makes (effv2_kernels/launch), and padding on four sides. effv2_kernels/cuda.py calls them from the
// CUDA implementations of the ops of the same name in `effv2`, where the contract was checked; what
// is checked here is what the kernels rely on, so that a wrong call is an error and not a wild read.

#include <initializer_list>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "contract.h"

namespace effv2 {
namespace {

using Integers = std::vector<int64_t>;

Activation checked_act(const char* op, const std::string& act) {
  return checked_activation(op, "act", act,
                            {{"none", Activation::kNone},
                             {"silu", Activation::kSilu},
                             {"relu", Activation::kRelu},
                             {"relu6", Activation::kRelu6},
                             {"hardswish", Activation::kHardswish},
                             {"gelu", Activation::kGelu}});
}

// An axis of length 1 may have any stride.
bool has_strides(const Tensor& tensor, std::initializer_list<int64_t> strides) {
  int64_t axis = 0;
  for (const int64_t stride : strides) {
    if (tensor.size(axis) != 1 && tensor.stride(axis) != stride) return false;
    ++axis;
  }
  return true;
}

bool is_channels_last(const Tensor& map) {
  const int64_t channels = map.size(1), width = map.size(3);
  return has_strides(map, {map.size(2) * width * channels, 1, width * channels, channels});
}

void check_channels_last(const char* op, const Argument& map) {
  const Tensor& tensor = map.tensor;
  if (tensor.dim() != 4) fail(op, map.name, " must be (N, C, H, W), found ", shape_text(tensor));
  if (tensor.numel() > 0 && !is_channels_last(tensor)) {
    fail(op, map.name, " must be dense channels_last, found other strides for ",
         shape_text(tensor));
  }
  if (tensor.numel() > 0 && tensor.numel() / tensor.size(0) > INT32_MAX) {
    fail(op, map.name, " must have less than 2^31 elements an image, found ", shape_text(tensor));
  }
}

// Of the given length, float or of the dtype of `like`; returns whether it is float.
bool check_bias(const char* op, const Argument& bias, int64_t length, const Tensor& like) {
  check_shape(op, bias, {{"channels", length}});
  check_contiguous(op, {bias});
  const ScalarType dtype = bias.tensor.scalar_type();
  if (dtype != ScalarType::Float && dtype != like.scalar_type()) {
    fail(op, bias.name, " must be Float or ", torch::headeronly::toString(like.scalar_type()),
         ", found ", torch::headeronly::toString(dtype));
  }
  return dtype == ScalarType::Float;
}

// A square window with equal strides over an image, and the size of what comes out.
struct Window {
  int kernel, stride, pad_top, pad_left, out_height, out_width;
};

Window checked_window(const char* op, int64_t kernel, const Tensor& image, const Integers& stride,
                      const Integers& padding) {
  if (stride.size() != 2 || stride[0] != stride[1] || stride[0] < 1 || stride[0] > 2) {
    fail(op, "stride must be (1, 1) or (2, 2)");
  }
  if (padding.size() != 4) fail(op, "padding must be (top, bottom, left, right)");
  for (const int64_t side : padding) {
    if (side < 0 || side > 64) fail(op, "padding must be 0 to 64, found ", side);
  }
  const int64_t height = image.size(2) + padding[0] + padding[1];
  const int64_t width = image.size(3) + padding[2] + padding[3];
  if (height < kernel || width < kernel) fail(op, "the window does not fit into the padded image");
  return {static_cast<int>(kernel),
          static_cast<int>(stride[0]),
          static_cast<int>(padding[0]),
          static_cast<int>(padding[2]),
          static_cast<int>((height - kernel) / stride[0] + 1),
          static_cast<int>((width - kernel) / stride[0] + 1)};
}

// (channels, 1, kernel, kernel), dense in either memory format, which are one for one input channel.
void check_depthwise_weight(const char* op, const Argument& weight, int64_t channels) {
  const Tensor& tensor = weight.tensor;
  if (tensor.dim() != 4) fail(op, weight.name, " must be (C, 1, k, k), found ", shape_text(tensor));
  const int64_t kernel = tensor.size(2);
  check_shape(op, weight, {{"C", channels}, {"1", 1}, {"k", kernel}, {"k", kernel}});
  if (kernel != 3 && kernel != 5 && kernel != 7) {
    fail(op, weight.name, " must be 3x3, 5x5 or 7x7, found ", shape_text(tensor));
  }
  if (!has_strides(tensor, {kernel * kernel, 1, kernel, 1})) {
    fail(op, weight.name, " must be dense, found other strides for ", shape_text(tensor));
  }
}

// `launch` in `count` integers, of at least 1; the last may be 0.
void check_launch_choice(const char* op, const Integers& launch, size_t count) {
  if (launch.size() != count) fail(op, "launch must have ", count, " integers");
  for (size_t i = 0; i < count; ++i) {
    if (launch[i] < (i + 1 < count ? 1 : 0) || launch[i] > INT32_MAX / 1024) {
      fail(op, "launch[", i, "] is out of range: ", launch[i]);
    }
  }
}

Tensor empty_map(const Tensor& like, int64_t channels, const Window& window) {
  const int64_t sizes[] = {like.size(0), channels, window.out_height, window.out_width};
  return torch::stable::empty(torch::headeronly::IntHeaderOnlyArrayRef(sizes, 4),
                              like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              torch::headeronly::MemoryFormat::ChannelsLast);
}

std::tuple<Tensor, Tensor> depthwise_bias_act(const Tensor& x, const Tensor& weight,
                                              const Tensor& bias, const Integers& stride,
                                              const Integers& padding, const std::string& act,
                                              bool squeeze, const Integers& launch) {
  constexpr const char* kOp = "depthwise_bias_act";
  check_channels_last(kOp, {"x", x});
  DepthwiseParams params = {};
  params.dtype = checked_dtype(kOp, {{"x", x}, {"weight", weight}});
  check_depthwise_weight(kOp, {"weight", weight}, x.size(1));
  params.bias_is_float = check_bias(kOp, {"bias", bias}, x.size(1), x);
  const Window window = checked_window(kOp, weight.size(2), x, stride, padding);
  params.act = checked_act(kOp, act);
  check_launch_choice(kOp, launch, 5);
  check_device(kOp, {{"x", x}, {"weight", weight}, {"bias", bias}});

  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  Tensor y = empty_map(x, x.size(1), window);
  Tensor pooled = empty({x.size(0), squeeze ? x.size(1) : 0}, x.scalar_type(), x);
  if (y.numel() == 0) return {y, pooled};
  if (y.numel() / y.size(0) > INT32_MAX) fail(kOp, "the output has 2^31 elements an image or more");

  params.size_n = x.size(0);
  params.channels = static_cast<int>(x.size(1));
  params.height = static_cast<int>(x.size(2));
  params.width = static_cast<int>(x.size(3));
  params.out_height = window.out_height;
  params.out_width = window.out_width;
  params.kernel = window.kernel;
  params.stride = window.stride;
  params.pad_top = window.pad_top;
  params.pad_left = window.pad_left;
  params.launch = {static_cast<int>(launch[0]), static_cast<int>(launch[1]),
                   static_cast<int>(launch[2]), static_cast<int>(launch[3]), launch[4] != 0};
  params.x = x.const_data_ptr();
  params.weight = weight.const_data_ptr();
  params.bias = bias.const_data_ptr();
  params.y = y.mutable_data_ptr();
  // Declared out here: its memory must stay reserved until the launch is on the stream.
  std::optional<Tensor> partial;
  if (squeeze) {
    params.pooled = pooled.mutable_data_ptr();
    if (launch[3] > 1) {
      partial = empty({x.size(0), launch[3], x.size(1)}, ScalarType::Float, x);
      params.partial = static_cast<float*>(partial->mutable_data_ptr());
    }
  }
  check_launch(kOp, launch_depthwise(params, current_stream(kOp, device)));
  return {y, pooled};
}

}  // namespace
}  // namespace effv2

STABLE_TORCH_LIBRARY(effv2_native, library) {
  library.def(
      "depthwise_bias_act(Tensor x, Tensor weight, Tensor bias, int[] stride, int[] padding, "
      "str act, bool squeeze, int[] launch) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(effv2_native, CUDA, library) {
  library.impl("depthwise_bias_act", TORCH_BOX(&effv2::depthwise_bias_act));
}
