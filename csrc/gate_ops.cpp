// The native squeeze_excite_gate in the namespace of the native ops: contract checks, allocation,
// stream and launch, on torch's stable ABI (target 2.10), so that one library serves every torch
// from 2.10 on, one without CUDA included.
//
// Checks run from what needs no GPU to what does, the device last: the contract can then be tested
// on CPU tensors that are sent to the CUDA implementation by hand.

#include <initializer_list>
#include <optional>
#include <string>

#include "contract.h"

namespace effv2 {
namespace {

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
  params.act = checked_activation<Activation>(kOp, "act", act,
                                              {{"silu", Activation::kSilu},
                                               {"relu", Activation::kRelu},
                                               {"hardswish", Activation::kHardswish},
                                               {"relu6", Activation::kRelu6},
                                               {"gelu", Activation::kGelu},
                                               {"none", Activation::kNone}});
  params.gate_act = checked_activation<Activation>(
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

STABLE_TORCH_LIBRARY_FRAGMENT(effv2_native, library) {
  library.def(
      "squeeze_excite_gate(Tensor pooled, Tensor reduce_weight, Tensor reduce_bias, "
      "Tensor expand_weight, Tensor expand_bias, str act, str gate) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(effv2_native, CUDA, library) {
  library.impl("squeeze_excite_gate", TORCH_BOX(&effv2::squeeze_excite_gate));
}
