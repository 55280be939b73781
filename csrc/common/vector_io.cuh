// Loads and stores of kWidth consecutive elements as float, in one instruction where kWidth
// elements make 4, 8 or 16 bytes. The pointer must be aligned to the whole vector; kWidth = 1 is
// the path for whatever is not.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

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

template <typename To, typename From>
__device__ __forceinline__ To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

// Two elements in a word, the first in its lower half, as float. A bfloat16 is the upper half of a
// float: one instruction each, where the conversion of one that stands alone takes three.
template <typename T>
__device__ __forceinline__ void unpack_pair(uint32_t word, float& first, float& second) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    first = __uint_as_float(word << 16);
    second = __uint_as_float(word & 0xffff0000u);
  } else {
    static_assert(std::is_same_v<T, __half>);
    const Pack<T, 2> pair = bits_as<Pack<T, 2>>(word);
    const float2 both = __half22float2(__halves2half2(pair.element[0], pair.element[1]));
    first = both.x;
    second = both.y;
  }
}

template <typename T>
__device__ __forceinline__ uint32_t pack_pair(float first, float second) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return bits_as<uint32_t>(__floats2bfloat162_rn(first, second));
  } else {
    static_assert(std::is_same_v<T, __half>);
    return bits_as<uint32_t>(__floats2half2_rn(first, second));
  }
}

// A vector by pairs, where that is possible; for inner loops. (load() keeps to single elements,
// which needs fewer registers at once.)
template <int kWidth, typename T>
__device__ __forceinline__ void unpack(const Pack<T, kWidth>& pack, float (&out)[kWidth]) {
  if constexpr (sizeof(T) == 2 && kWidth % 2 == 0) {
    const auto words = bits_as<Pack<uint32_t, kWidth / 2>>(pack);
#pragma unroll
    for (int i = 0; i < kWidth; i += 2) unpack_pair<T>(words.element[i / 2], out[i], out[i + 1]);
  } else {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) out[i] = to_float(pack.element[i]);
  }
}

template <int kWidth, typename T>
__device__ __forceinline__ void load(const T* source, float (&out)[kWidth]) {
  const Pack<T, kWidth> pack = *reinterpret_cast<const Pack<T, kWidth>*>(source);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) out[i] = to_float(pack.element[i]);
}

template <typename T, int kWidth>
__device__ __forceinline__ Pack<T, kWidth> pack(const float (&values)[kWidth]) {
  if constexpr (sizeof(T) == 2 && kWidth % 2 == 0) {
    Pack<uint32_t, kWidth / 2> words;
#pragma unroll
    for (int i = 0; i < kWidth; i += 2) {
      words.element[i / 2] = pack_pair<T>(values[i], values[i + 1]);
    }
    return bits_as<Pack<T, kWidth>>(words);
  } else {
    Pack<T, kWidth> elements;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) elements.element[i] = from_float<T>(values[i]);
    return elements;
  }
}

// Rounds and stores kWidth values as one vector.
template <int kWidth, typename T>
__device__ __forceinline__ void store(T* target, const float (&values)[kWidth]) {
  *reinterpret_cast<Pack<T, kWidth>*>(target) = pack<T>(values);
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
