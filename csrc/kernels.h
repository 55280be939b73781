// The only door into the .cu files: parameter structs and launch functions, with no torch type in
// sight.
//
// ops.cpp checks the contract, allocates and picks the stream; a launch function chooses the tile
// and launches. Every pointer is to device memory of the current device. A launch function never
// synchronises and never allocates.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace effv2 {

enum class DType { kFloat32, kFloat16, kBFloat16 };

enum class Activation { kNone, kSilu, kRelu, kRelu6, kHardswish, kGelu, kSigmoid, kHardsigmoid };

// gate[n, m] = gate_act(sum_r expand_weight[m, r] * act(sum_k reduce_weight[r, k] * pooled[n, k]
//                                                      + reduce_bias[r]) + expand_bias[m])
// All tensors are dense and row-major in the axes given, and of one dtype.
struct SqueezeExciteGateParams {
  const void* pooled;         // (n, m)
  const void* reduce_weight;  // (r, m)
  const void* reduce_bias;    // (r)
  const void* expand_weight;  // (m, r)
  const void* expand_bias;    // (m)
  void* gate;                 // (n, m)
  float* hidden;              // scratch; null where squeeze_excite_gate_scratch() returns 0

  int64_t size_n;  // images
  int64_t size_m;  // channels of the expanded tensor
  int64_t size_r;  // channels after the reduction

  DType dtype;
  Activation act;       // after the reduction
  Activation gate_act;  // after the expansion
};

// Number of floats of scratch that the launch needs (0 for every network in use: the hidden vector
// fits in shared memory).
int64_t squeeze_excite_gate_scratch(const SqueezeExciteGateParams& params);

cudaError_t launch_squeeze_excite_gate(const SqueezeExciteGateParams& params, cudaStream_t stream);

}  // namespace effv2
