// The native convolution ops, in a namespace of their own: they take the launch choice, which
// Python makes (effv2_kernels/launch), and padding on four sides. effv2_kernels/engines/native.py
// calls them from the CUDA implementations of the ops of the same name in `effv2`, where the
// contract was checked; what is checked here is what the kernels rely on, so that a wrong call is
// an error and not a wild read.

#include <initializer_list>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "contract.h"

namespace effv2 {
namespace {

using Integers = std::vector<int64_t>;

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

using Vectors = std::vector<Tensor>;

// What follows a convolution with `weight`: the bias, and the norm's mean and variance, or those
// with gamma and beta, or nothing. `prefix` is that of the arguments' names.
struct Scaling {
  std::string prefix;
  const Tensor& weight;
  const std::optional<Tensor>& bias;
  const Vectors& norm;

  // use(name, vector) for each that there is, in the order of the schema.
  template <typename Use>
  void each(const Use& use) const {
    constexpr const char* kNames[] = {"mean", "variance", "gamma", "beta"};
    if (bias) use(prefix + "bias", *bias);
    for (size_t i = 0; i < norm.size(); ++i) use(prefix + "norm's " + kNames[i], norm[i]);
  }
};

Norm checked_norm(const char* op, const Scaling& scaling, double eps) {
  const Vectors& norm = scaling.norm;
  if (norm.size() != 0 && norm.size() != 2 && norm.size() != 4) {
    fail(op, scaling.prefix, "norm must be (), (mean, variance) or (mean, variance, gamma, beta), ",
         "found ", norm.size(), " tensors");
  }
  const ScalarType dtype = scaling.weight.scalar_type();
  scaling.each([&](const std::string& name, const Tensor& vector) {
    const Argument argument = {name.c_str(), vector};
    check_shape(op, argument, {{"channels", scaling.weight.size(0)}});
    check_contiguous(op, {argument});
    const ScalarType found = vector.scalar_type();
    if (found != ScalarType::Float && found != dtype) {
      fail(op, name, " must be Float or ", torch::headeronly::toString(dtype), ", found ",
           torch::headeronly::toString(found));
    }
    if (name != scaling.prefix + "bias" && found != norm[0].scalar_type()) {
      fail(op, name, " must have the dtype of the mean, ",
           torch::headeronly::toString(norm[0].scalar_type()), ", found ",
           torch::headeronly::toString(found));
    }
  });
  Norm values = {};
  if (scaling.bias) values.bias = scaling.bias->const_data_ptr();
  values.bias_is_float = scaling.bias && scaling.bias->scalar_type() == ScalarType::Float;
  if (norm.empty()) return values;
  values.mean = norm[0].const_data_ptr();
  values.variance = norm[1].const_data_ptr();
  if (norm.size() == 4) {
    values.gamma = norm[2].const_data_ptr();
    values.beta = norm[3].const_data_ptr();
  }
  values.eps = static_cast<float>(eps);
  values.is_float = norm[0].scalar_type() == ScalarType::Float;
  return values;
}

void check_norm_device(const char* op, const Tensor& x, const Scaling& scaling) {
  scaling.each([&](const std::string& name, const Tensor& vector) {
    check_device(op, {{"x", x}, {name.c_str(), vector}});
  });
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

// (channels, 1, kernel, kernel), dense in either memory format, which are one for one input
// channel.
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

// `launch` in `sizes` integers of at least 1, and after them `flags` that are 0 or 1.
void check_launch_choice(const char* op, const Integers& launch, size_t sizes, size_t flags = 0) {
  if (launch.size() != sizes + flags) fail(op, "launch must have ", sizes + flags, " integers");
  for (size_t i = 0; i < launch.size(); ++i) {
    const bool is_size = i < sizes;
    if (launch[i] < (is_size ? 1 : 0) || launch[i] > (is_size ? INT32_MAX / 1024 : 1)) {
      fail(op, "launch[", i, "] is out of range: ", launch[i]);
    }
  }
}

Tensor empty_map(const Tensor& like, int64_t n, int64_t channels, const Window& window) {
  const int64_t sizes[] = {n, channels, window.out_height, window.out_width};
  return torch::stable::empty(torch::headeronly::IntHeaderOnlyArrayRef(sizes, 4),
                              like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              torch::headeronly::MemoryFormat::ChannelsLast);
}

std::tuple<Tensor, Tensor> depthwise_bias_act(const Tensor& x, const Tensor& weight,
                                              const std::optional<Tensor>& bias,
                                              const Vectors& norm, double eps,
                                              const Integers& stride, const Integers& padding,
                                              const std::string& act, bool squeeze,
                                              const Integers& launch) {
  constexpr const char* kOp = "depthwise_bias_act";
  check_channels_last(kOp, {"x", x});
  DepthwiseParams params = {};
  params.dtype = checked_dtype(kOp, {{"x", x}, {"weight", weight}});
  check_depthwise_weight(kOp, {"weight", weight}, x.size(1));
  const Scaling scaling = {"", weight, bias, norm};
  params.norm = checked_norm(kOp, scaling, eps);
  const Window window = checked_window(kOp, weight.size(2), x, stride, padding);
  params.act = checked_act<Activation>(kOp, act);
  check_launch_choice(kOp, launch, 4, 1);
  check_device(kOp, {{"x", x}, {"weight", weight}});
  check_norm_device(kOp, x, scaling);

  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  Tensor y = empty_map(x, x.size(0), x.size(1), window);
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

std::tuple<Tensor, Tensor> expand_depthwise(
    const Tensor& x, const Tensor& expand_weight, const std::optional<Tensor>& expand_bias,
    const Vectors& expand_norm, double expand_eps, const Tensor& depthwise_weight,
    const std::optional<Tensor>& depthwise_bias, const Vectors& depthwise_norm,
    double depthwise_eps, const Integers& stride, const Integers& padding, const std::string& act,
    bool squeeze, const Integers& launch) {
  constexpr const char* kOp = "expand_depthwise";
  check_channels_last(kOp, {"x", x});
  ExpandDepthwiseParams params = {};
  params.dtype = checked_dtype(
      kOp, {{"x", x}, {"expand_weight", expand_weight}, {"depthwise_weight", depthwise_weight}});
  if (params.dtype == DType::kFloat32) fail(kOp, "x must be float16 or bfloat16, found Float");
  const int64_t in_channels = x.size(1);
  const int64_t channels = expand_weight.dim() > 0 ? expand_weight.size(0) : 0;
  if (in_channels % 8 != 0 || channels % 8 != 0 || channels == 0 || channels > INT32_MAX / 2) {
    fail(kOp, "channels must be multiples of 8, found ", in_channels, " and ", channels);
  }
  check_shape(kOp, {"expand_weight", expand_weight},
              {{"E", channels}, {"I", in_channels}, {"1", 1}, {"1", 1}});
  if (!has_strides(expand_weight, {in_channels, 1, 1, 1})) {
    fail(kOp, "expand_weight must be dense, found other strides for ", shape_text(expand_weight));
  }
  check_depthwise_weight(kOp, {"depthwise_weight", depthwise_weight}, channels);
  if (depthwise_weight.size(2) == 7) fail(kOp, "depthwise_weight must be 3x3 or 5x5, found 7x7");
  const Scaling expand_scaling = {"expand_", expand_weight, expand_bias, expand_norm};
  params.expand_norm = checked_norm(kOp, expand_scaling, expand_eps);
  const Scaling depthwise_scaling = {"depthwise_", depthwise_weight, depthwise_bias,
                                     depthwise_norm};
  params.depthwise_norm = checked_norm(kOp, depthwise_scaling, depthwise_eps);
  const Window window = checked_window(kOp, depthwise_weight.size(2), x, stride, padding);
  params.act = checked_act<Activation>(kOp, act);
  check_launch_choice(kOp, launch, 5);
  const std::initializer_list<Argument> arguments = {
      {"x", x}, {"expand_weight", expand_weight}, {"depthwise_weight", depthwise_weight}};
  check_device(kOp, arguments);
  check_norm_device(kOp, x, expand_scaling);
  check_norm_device(kOp, x, depthwise_scaling);
  for (const Argument& argument : arguments) {
    if (reinterpret_cast<uintptr_t>(argument.tensor.const_data_ptr()) % 16 != 0) {
      fail(kOp, argument.name, " must be aligned to 16 bytes");
    }
  }

  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  Tensor y = empty_map(x, x.size(0), channels, window);
  Tensor pooled = empty({x.size(0), squeeze ? channels : 0}, x.scalar_type(), x);
  if (y.numel() == 0) return {y, pooled};
  if (y.numel() / y.size(0) > INT32_MAX) fail(kOp, "the output has 2^31 elements an image or more");

  params.size_n = x.size(0);
  params.in_channels = static_cast<int>(in_channels);
  params.channels = static_cast<int>(channels);
  params.height = static_cast<int>(x.size(2));
  params.width = static_cast<int>(x.size(3));
  params.out_height = window.out_height;
  params.out_width = window.out_width;
  params.kernel = window.kernel;
  params.stride = window.stride;
  params.pad_top = window.pad_top;
  params.pad_left = window.pad_left;
  params.launch = {static_cast<int>(launch[0]), static_cast<int>(launch[1]),
                   static_cast<int>(launch[2]), static_cast<int>(launch[3]),
                   static_cast<int>(launch[4])};
  params.x = x.const_data_ptr();
  params.expand_weight = expand_weight.const_data_ptr();
  params.depthwise_weight = depthwise_weight.const_data_ptr();
  params.y = y.mutable_data_ptr();
  // Declared out here: its memory must stay reserved until the launch is on the stream.
  std::optional<Tensor> partial;
  if (squeeze) {
    params.pooled = pooled.mutable_data_ptr();
    const int64_t tiles = ((window.out_height + launch[0] - 1) / launch[0]) *
                          ((window.out_width + launch[1] - 1) / launch[1]);
    if (tiles > 1) {
      partial = empty({x.size(0), tiles, channels}, ScalarType::Float, x);
      params.partial = static_cast<float*>(partial->mutable_data_ptr());
    }
  }
  check_launch(kOp, launch_expand_depthwise(params, current_stream(kOp, device)));
  return {y, pooled};
}

Tensor stem(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
            const Vectors& norm, double eps, const Integers& stride, const Integers& padding,
            const std::string& act) {
  constexpr const char* kOp = "stem";
  if (x.dim() != 4 || x.size(1) != 3) fail(kOp, "x must be (N, 3, H, W), found ", shape_text(x));
  StemParams params = {};
  params.channels_first = x.is_contiguous();
  if (!params.channels_first) check_channels_last(kOp, {"x", x});
  if (x.numel() > 0 && x.numel() / x.size(0) > INT32_MAX) {
    fail(kOp, "x must have less than 2^31 elements an image, found ", shape_text(x));
  }
  params.x_dtype = checked_dtype(kOp, {{"x", x}});
  params.dtype = checked_dtype(kOp, {{"weight", weight}});
  const int64_t channels = weight.dim() > 0 ? weight.size(0) : 0;
  if (channels < 1 || channels > 256) {
    fail(kOp, "weight must have 1 to 256 output channels, found ", channels);
  }
  check_shape(kOp, {"weight", weight}, {{"O", channels}, {"I", 3}, {"k", 3}, {"k", 3}});
  const Scaling scaling = {"", weight, bias, norm};
  params.norm = checked_norm(kOp, scaling, eps);
  const Window window = checked_window(kOp, 3, x, stride, padding);
  if (window.stride != 2) fail(kOp, "stride must be (2, 2)");
  params.act = checked_act<Activation>(kOp, act);
  check_device(kOp, {{"x", x}, {"weight", weight}});
  check_norm_device(kOp, x, scaling);

  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  Tensor y = empty_map(weight, x.size(0), channels, window);
  if (y.numel() == 0) return y;
  if (y.numel() / y.size(0) > INT32_MAX) fail(kOp, "the output has 2^31 elements an image or more");

  params.size_n = x.size(0);
  params.channels = static_cast<int>(channels);
  params.height = static_cast<int>(x.size(2));
  params.width = static_cast<int>(x.size(3));
  params.out_height = window.out_height;
  params.out_width = window.out_width;
  params.pad_top = window.pad_top;
  params.pad_left = window.pad_left;
  for (int axis = 0; axis < 4; ++axis) params.weight_stride[axis] = weight.stride(axis);
  params.x = x.const_data_ptr();
  params.weight = weight.const_data_ptr();
  params.y = y.mutable_data_ptr();
  check_launch(kOp, launch_stem(params, current_stream(kOp, device)));
  return y;
}

}  // namespace
}  // namespace effv2

STABLE_TORCH_LIBRARY_FRAGMENT(effv2_native, library) {
  library.def(
      "depthwise_bias_act(Tensor x, Tensor weight, Tensor? bias, Tensor[] norm, float eps, "
      "int[] stride, int[] padding, str act, bool squeeze, int[] launch) -> (Tensor, Tensor)");
  library.def(
      "expand_depthwise(Tensor x, Tensor expand_weight, Tensor? expand_bias, "
      "Tensor[] expand_norm, float expand_eps, Tensor depthwise_weight, Tensor? depthwise_bias, "
      "Tensor[] depthwise_norm, float depthwise_eps, int[] stride, int[] padding, str act, "
      "bool squeeze, int[] launch) -> (Tensor, Tensor)");
  library.def(
      "stem(Tensor x, Tensor weight, Tensor? bias, Tensor[] norm, float eps, int[] stride, "
      "int[] padding, str act) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(effv2_native, CUDA, library) {
  library.impl("depthwise_bias_act", TORCH_BOX(&effv2::depthwise_bias_act));
  library.impl("expand_depthwise", TORCH_BOX(&effv2::expand_depthwise));
  library.impl("stem", TORCH_BOX(&effv2::stem));
}
