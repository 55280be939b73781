// The native op convert: live weights in the dtype and the layout that kernels read.

#include <optional>
#include <vector>

#include "contract.h"

namespace effv2 {
namespace {

std::vector<Tensor> convert(const std::vector<Tensor>& sources, ScalarType dtype) {
  constexpr const char* kOp = "convert";
  const DType target_dtype = checked_dtype(kOp, "dtype", dtype);
  if (sources.empty()) return {};
  std::vector<Conversion> conversions;
  conversions.reserve(sources.size());
  for (const Tensor& source : sources) {
    const Argument argument = {"a source", source};
    Conversion conversion = {};
    conversion.source_dtype = checked_dtype(kOp, argument.name, source.scalar_type());
    if (source.numel() > INT32_MAX) {
      fail(kOp, "a source must have less than 2^31 elements, found ", shape_text(source));
    }
    conversion.source = source.const_data_ptr();
    conversion.size = static_cast<int>(source.numel());
    conversion.pixels = 1;
    if (source.dim() != 4 || source.numel() == 0) {
      check_contiguous(kOp, {argument});
    } else if (!is_channels_last(source)) {
      check_contiguous(kOp, {argument});
      conversion.channels = static_cast<int>(source.size(1));
      conversion.pixels = static_cast<int>(source.size(2) * source.size(3));
    }
    conversions.push_back(conversion);
  }
  const Tensor& first = sources.front();
  for (const Tensor& source : sources) {
    check_device(kOp, {{"the first source", first}, {"a source", source}});
  }

  const int32_t device = first.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  std::vector<Tensor> targets;
  targets.reserve(sources.size());
  for (size_t i = 0; i < sources.size(); ++i) {
    const bool map = sources[i].dim() == 4;
    targets.push_back(torch::stable::empty(sources[i].sizes(), dtype, std::nullopt, first.device(),
                                           std::nullopt,
                                           map ? torch::headeronly::MemoryFormat::ChannelsLast
                                               : torch::headeronly::MemoryFormat::Contiguous));
    conversions[i].target = targets[i].mutable_data_ptr();
  }
  check_launch(kOp, launch_convert(conversions.data(), conversions.size(), target_dtype,
                                   current_stream(kOp, device)));
  return targets;
}

}  // namespace
}  // namespace effv2

STABLE_TORCH_LIBRARY_FRAGMENT(effv2_native, library) {
  library.def("convert(Tensor[] sources, ScalarType dtype) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(effv2_native, CUDA, library) {
  library.impl("convert", TORCH_BOX(&effv2::convert));
}
