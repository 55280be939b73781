// The element types of maps, and the few functions of them that compilers do not vectorise by
// themselves: plain code, which becomes vector code of whatever width the caller is compiled for.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define EFFV2_INLINE __attribute__((always_inline)) inline

// Says of the loop that follows that no iteration reads what another one writes: it holds where
// the output is an input too, of which the compiler would have to ask at run time.
#if defined(__clang__)
#define EFFV2_VECTORISE _Pragma("clang loop vectorize(assume_safety)")
#else
#define EFFV2_VECTORISE _Pragma("GCC ivdep")
#endif

namespace effv2::cpu {

struct BFloat16 {
  uint16_t bits;
};

// In which a map's statistics, sums and arithmetic are.
template <typename T>
struct WideOf {
  using type = float;
};
template <>
struct WideOf<double> {
  using type = double;
};
template <typename T>
using Wide = typename WideOf<T>::type;

template <typename To, typename From>
EFFV2_INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

EFFV2_INLINE float widened(float value) {
  return value;
}
EFFV2_INLINE double widened(double value) {
  return value;
}
EFFV2_INLINE float widened(BFloat16 value) {
  return bits_as<float>(static_cast<uint32_t>(value.bits) << 16);
}

// To the nearest, of two the even one. What is added to a NaN could make it an infinity or zero.
template <typename T>
EFFV2_INLINE T rounded(Wide<T> value) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    const uint32_t bits = bits_as<uint32_t>(value);
    const uint32_t nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return {static_cast<uint16_t>(value != value ? 0x7fc0u : nearest)};
  } else {
    return value;
  }
}

// A NaN stays one: every comparison with it is false.
template <typename W>
EFFV2_INLINE W clamped(W x, W low, W high) {
  x = low > x ? low : x;
  return high < x ? high : x;
}

// exp(x) = 2^n exp(r), |r| <= ln 2 / 2, with a polynomial of the least relative error, 3e-9; within
// 2 units in the last place. What would be subnormal is 0, what is above 2^127.5 infinity.
EFFV2_INLINE float exponential(float x) {
  constexpr float kLog2E = 1.44269504088896341f;
  // ln 2 in two parts: a product of n and the first is exact.
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  // 1.5 * 2^23 leaves a sum no bits for a fraction, and 127 makes of n the exponent's bits.
  constexpr float kRound = 12582912.0f + 127.0f;
  x = clamped(x, -88.0f, 89.0f);
  const float shifted = x * kLog2E + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * kLn2High) - n * kLn2Low;
  const float square = r * r;
  const float low = 1.666652113e-1f * r + 4.999999404e-1f;
  const float high = 1.381459879e-3f * square + (8.368716575e-3f * r + 4.166838899e-2f);
  const float series = (high * square + low) * square + (r + 1.0f);
  return series * bits_as<float>(bits_as<uint32_t>(shifted) << 23);
}
EFFV2_INLINE double exponential(double x) {
  return std::exp(x);
}

// A ratio of polynomials on [-4, 4], beyond which erf is 1 in float32.
EFFV2_INLINE float error_function(float x) {
  x = clamped(x, -4.0f, 4.0f);
  const float square = x * x;
  float above = -2.72614225801306e-10f;
  above = above * square + 2.77068142495902e-08f;
  above = above * square + -2.10102402082508e-06f;
  above = above * square + -5.69250639462346e-05f;
  above = above * square + -7.34990630326855e-04f;
  above = above * square + -2.95459980854025e-03f;
  above = above * square + -1.60960333262415e-02f;
  float below = -1.45660718464996e-05f;
  below = below * square + -2.13374055278905e-04f;
  below = below * square + -1.68282697438203e-03f;
  below = below * square + -7.37332916720468e-03f;
  below = below * square + -1.42647390514189e-02f;
  return x * above / below;
}
EFFV2_INLINE double error_function(double x) {
  return std::erf(x);
}

}  // namespace effv2::cpu
