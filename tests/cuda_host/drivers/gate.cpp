// squeeze_excite_gate.cu on the CPU. Integers: 0 to launch or 1 to ask for the tiling; then dtype,
// act, gate_act, n, m, r, or n, m, r, bytes of an element.
#include "driver.h"
// The kernel comes after the runtime.
#include "squeeze_excite_gate.cu"

int host::run(Request& request) {
  if (request.integer() == 1) {
    const int64_t n = request.integer(), m = request.integer(), r = request.integer();
    const auto tiling = effv2::squeeze_excite::choose_tiling(
        n, m, r, request.integer(), host::options.multiprocessors, host::options.clusters);
    request.answers = {tiling.images, tiling.parts, static_cast<int>(tiling.hidden)};
    return cudaSuccess;
  }
  effv2::SqueezeExciteGateParams params = {};
  params.dtype = static_cast<effv2::DType>(request.integer());
  params.act = static_cast<effv2::Activation>(request.integer());
  params.gate_act = static_cast<effv2::Activation>(request.integer());
  params.size_n = request.integer();
  params.size_m = request.integer();
  params.size_r = request.integer();
  params.pooled = request.buffer();
  params.reduce_weight = request.buffer();
  params.reduce_bias = request.buffer();
  params.expand_weight = request.buffer();
  params.expand_bias = request.buffer();
  params.gate = request.buffer();
  const size_t scratch_bytes = effv2::squeeze_excite_gate_scratch(params) * sizeof(float);
  const std::vector<char> garbage(scratch_bytes, '\xff');
  const Buffer scratch(garbage.data(), scratch_bytes, 0);
  params.hidden = static_cast<float*>(scratch.data());
  return effv2::launch_squeeze_excite_gate(params, nullptr);
}
