// squeeze_excite_gate.cu as a CPU library for ctypes; see test_kernels_on_host.py.
#include "squeeze_excite_gate.cu"

extern "C" int run_gate(int dtype, int act, int gate_act, int64_t n, int64_t m, int64_t r,
                        const void* pooled, const void* reduce_weight, const void* reduce_bias,
                        const void* expand_weight, const void* expand_bias, void* gate,
                        int multiprocessors, int clusters) {
  host::multiprocessors = multiprocessors;
  host::clusters = clusters != 0;
  effv2::SqueezeExciteGateParams params = {};
  params.pooled = pooled;
  params.reduce_weight = reduce_weight;
  params.reduce_bias = reduce_bias;
  params.expand_weight = expand_weight;
  params.expand_bias = expand_bias;
  params.gate = gate;
  params.size_n = n;
  params.size_m = m;
  params.size_r = r;
  params.dtype = static_cast<effv2::DType>(dtype);
  params.act = static_cast<effv2::Activation>(act);
  params.gate_act = static_cast<effv2::Activation>(gate_act);
  std::vector<float> scratch(effv2::squeeze_excite_gate_scratch(params) + 8, std::nanf(""));
  const auto address = reinterpret_cast<uintptr_t>(scratch.data());
  params.hidden = reinterpret_cast<float*>((address + 31) / 32 * 32);
  return effv2::launch_squeeze_excite_gate(params, nullptr);
}

// "images parts hidden" of the tiling that the launch would choose, packed; for tests of the
// choice.
extern "C" int tiling(int64_t n, int64_t m, int64_t r, int element_bytes, int multiprocessors,
                      int clusters) {
  const effv2::squeeze_excite::Tiling t =
      effv2::squeeze_excite::choose_tiling(n, m, r, element_bytes, multiprocessors, clusters != 0);
  return t.images * 100 + t.parts * 10 + static_cast<int>(t.hidden);
}
