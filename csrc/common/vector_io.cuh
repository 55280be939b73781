// Loads and stores of kWidth consecutive elements as float, in one instruction where kWidth
// elements make 4, 8 or 16 bytes. The pointer must be aligned to the whole vector; kWidth = 1 is
// the path for whatever is not.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "launch.cuh"

namespace effv2 {

__device__ __forceinline__ float to_float(float x) {
  return x;
}
__device__ __forceinline__ float to_float(__half x) {
  return __half2float(x);
}
__device__ __forceinline__ float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// Elements of T in the widest load.
template <typename T>
constexpr int kWidest = 16 / static_cast<int>(sizeof(T));

template <typename T, int kWidth>
struct alignas(sizeof(T) * kWidth) Pack {
  T element[kWidth];
};

template <int kWidth, typename T>
__device__ __forceinline__ void load(const T* source, float (&out)[kWidth]) {
  const Pack<T, kWidth> pack = *reinterpret_cast<const Pack<T, kWidth>*>(source);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) out[i] = to_float(pack.element[i]);
}

// Rounds and stores kWidth values as one vector.
template <int kWidth, typename T>
__device__ __forceinline__ void store(T* target, const float (&values)[kWidth]) {
  Pack<T, kWidth> pack;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) pack.element[i] = from_float<T>(values[i]);
  *reinterpret_cast<Pack<T, kWidth>*>(target) = pack;
}

// Widest load, in elements, with which rows of `row_elements` elements that start at `base` can be
// read.
template <typename T>
inline int vector_width(const void* base, int64_t row_elements) {
  const auto address = reinterpret_cast<uintptr_t>(base);
  for (int width = kWidest<T>; width > 1; width /= 2) {
    if (row_elements % width == 0 && address % (sizeof(T) * width) == 0) return width;
  }
  return 1;
}

}  // namespace effv2
