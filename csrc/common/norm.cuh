// Scale and shift of a Norm, in float32.
#pragma once

#include "../kernels.h"
#include "launch.cuh"
#include "vector_io.cuh"

namespace effv2 {

// Elements [first, first + kWidth) of a vector, or zeros where there is none; at any address.
template <typename Element, int kWidth>
__device__ __forceinline__ Pack<Element, kWidth> elements(const void* vector, int first) {
  Pack<Element, kWidth> pack = {};
  if (vector != nullptr) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      pack.element[j] = static_cast<const Element*>(vector)[first + j];
    }
  }
  return pack;
}

// For results of type T. An error of the scale is one of the whole channel: for float it is rounded
// correctly, where rsqrtf errs by up to 2 ulp, which 16 bits do not show.
template <typename T>
__device__ __forceinline__ float reciprocal_root(float x) {
  return sizeof(T) == 4 ? __frsqrt_rn(x) : rsqrtf(x);
}

// `shift` is the bias before, and the shift afterwards.
template <typename T, typename Element, int kWidth>
__device__ __forceinline__ void apply_norm(const Norm& norm, int channel, float (&scale)[kWidth],
                                           float (&shift)[kWidth]) {
  // All are asked for before the first is converted, which waits for it.
  const auto mean = elements<Element, kWidth>(norm.mean, channel);
  const auto variance = elements<Element, kWidth>(norm.variance, channel);
  const auto gamma = elements<Element, kWidth>(norm.gamma, channel);
  const auto beta = elements<Element, kWidth>(norm.beta, channel);
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    scale[j] = reciprocal_root<T>(to_float(variance.element[j]) + norm.eps);
    if (norm.gamma != nullptr) scale[j] *= to_float(gamma.element[j]);
    shift[j] = to_float(beta.element[j]) + (shift[j] - to_float(mean.element[j])) * scale[j];
  }
}

// Of channels [channel, channel + kWidth); T is the dtype of the weight.
template <typename T, int kWidth>
__device__ __forceinline__ void load_norm(const Norm& norm, int channel, float (&scale)[kWidth],
                                          float (&shift)[kWidth]) {
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    scale[j] = 1.0f;
    shift[j] = 0.0f;
  }
  if (norm.bias != nullptr) {
    const auto from = [&](auto pack) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) shift[j] = to_float(pack.element[j]);
    };
    if (norm.bias_is_float) {
      from(elements<float, kWidth>(norm.bias, channel));
    } else {
      from(elements<T, kWidth>(norm.bias, channel));
    }
  }
  if (norm.mean != nullptr) {
    if (norm.is_float) {
      apply_norm<T, float>(norm, channel, scale, shift);
    } else {
      apply_norm<T, T>(norm, channel, scale, shift);
    }
  }
}

}  // namespace effv2
