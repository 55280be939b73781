// Activations on float. Each lets NaN through, as PyTorch does: hence comparisons where fmaxf and
// fminf would drop it.
#pragma once

#include <cuda_bf16.h>

#include <cmath>
#include <type_traits>

#include "../kernels.h"
#include "launch.cuh"
#include "ptx.cuh"

namespace effv2 {

// kFast costs one special-function instruction and is good to 2^-11 of the largest value: for
// bfloat16 results of kernels that the special-function unit would bound. kClose costs two and is
// good to a few ulp of float but where the result is next to 0: 2^-11 would double the error of a
// float16 result. kExact is good to a few ulp everywhere, which a gate near 0 needs, because
// 1 + tanh(x) cancels there.
enum class Accuracy { kFast, kClose, kExact };

// For results of type T.
template <typename T>
constexpr Accuracy kAccuracyFor = sizeof(T) == 4                     ? Accuracy::kExact
                                  : std::is_same_v<T, __nv_bfloat16> ? Accuracy::kFast
                                                                     : Accuracy::kClose;

template <Accuracy kAccuracy>
__device__ __forceinline__ float sigmoid(float x) {
  if constexpr (kAccuracy == Accuracy::kFast) {
    return 0.5f + 0.5f * ptx::tanh_approx(0.5f * x);
  } else if constexpr (kAccuracy == Accuracy::kClose) {
    return __fdividef(1.0f, 1.0f + __expf(-x));
  } else {
    return 1.0f / (1.0f + expf(-x));
  }
}

constexpr float kLog2E = 1.44269504f;

// What silu_of_scaled() wants x times, so that whoever has linear work before it can scale that
// instead, once, and save a multiplication.
template <Accuracy kAccuracy>
constexpr float kSiluScale = kAccuracy == Accuracy::kFast    ? 0.5f
                             : kAccuracy == Accuracy::kClose ? -kLog2E
                                                             : 1.0f;

// SiLU of x, from kSiluScale x.
template <Accuracy kAccuracy>
__device__ __forceinline__ float silu_of_scaled(float scaled) {
  if constexpr (kAccuracy == Accuracy::kFast) {
    return scaled + scaled * ptx::tanh_approx(scaled);
  } else if constexpr (kAccuracy == Accuracy::kClose) {
    // Not __expf and __fdividef, which spend as many instructions again on subnormals.
    return scaled * ptx::reciprocal_approx(-kLog2E - kLog2E * ptx::exp2_approx(scaled));
  } else {
    return scaled / (1.0f + expf(-scaled));
  }
}

template <Accuracy kAccuracy>
__device__ __forceinline__ float silu(float x) {
  return silu_of_scaled<kAccuracy>(kSiluScale<kAccuracy> * x);
}

__device__ __forceinline__ float relu(float x) {
  return x < 0.0f ? 0.0f : x;
}

__device__ __forceinline__ float relu6(float x) {
  const float y = relu(x);
  return y > 6.0f ? 6.0f : y;
}

__device__ __forceinline__ float hardsigmoid(float x) {
  return relu6(x + 3.0f) * (1.0f / 6.0f);
}

__device__ __forceinline__ float gelu(float x) {
  return 0.5f * x * (1.0f + erff(x * 0.70710678f));
}

// The choice is uniform over a launch, so the switch costs one predictable branch.
template <Accuracy kAccuracy>
__device__ __forceinline__ float activate(Activation activation, float x) {
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kSilu:
      return silu<kAccuracy>(x);
    case Activation::kRelu:
      return relu(x);
    case Activation::kRelu6:
      return relu6(x);
    case Activation::kHardswish:
      return x * hardsigmoid(x);
    case Activation::kGelu:
      return gelu(x);
    case Activation::kSigmoid:
      return sigmoid<kAccuracy>(x);
    case Activation::kHardsigmoid:
      return hardsigmoid(x);
  }
  return x;
}

// An activation of all values: the switch is outside of the loop, so that the unrolled code
// of a value is not six cases long.
template <Accuracy kAccuracy, Activation kActivation, int kRows, int kCount>
__device__ __forceinline__ void activate_all(float (&values)[kRows][kCount]) {
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      values[i][j] = activate<kAccuracy>(kActivation, values[i][j]);
    }
  }
}

// SiLU of all values, which are kSiluScale times what it is of.
template <Accuracy kAccuracy, int kRows, int kCount>
__device__ __forceinline__ void activate_scaled_silu(float (&values)[kRows][kCount]) {
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
#pragma unroll
    for (int j = 0; j < kCount; ++j) values[i][j] = silu_of_scaled<kAccuracy>(values[i][j]);
  }
}

// The activations of a convolution; those of a gate do not come here.
template <Accuracy kAccuracy, int kRows, int kCount>
__device__ __forceinline__ void activate(Activation activation, float (&values)[kRows][kCount]) {
  switch (activation) {
    case Activation::kSilu:
      return activate_all<kAccuracy, Activation::kSilu>(values);
    case Activation::kRelu:
      return activate_all<kAccuracy, Activation::kRelu>(values);
    case Activation::kRelu6:
      return activate_all<kAccuracy, Activation::kRelu6>(values);
    case Activation::kHardswish:
      return activate_all<kAccuracy, Activation::kHardswish>(values);
    case Activation::kGelu:
      return activate_all<kAccuracy, Activation::kGelu>(values);
    default:
      return;
  }
}

}  // namespace effv2
