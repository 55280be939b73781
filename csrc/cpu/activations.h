// The activations: value(z); slope(z), their derivative; through(grad, z), the gradient of z of
// that of the value. Values and derivatives are PyTorch's, at the kinks too.
#pragma once

#include "numbers.h"

namespace effv2::cpu {

enum class Activation { kNone, kSilu, kRelu, kRelu6, kHardswish, kGelu };

struct None {
  template <typename W>
  static EFFV2_INLINE W value(W z) {
    return z;
  }
  template <typename W>
  static EFFV2_INLINE W slope(W) {
    return W(1);
  }
  template <typename W>
  static EFFV2_INLINE W through(W grad, W) {
    return grad;
  }
};

struct Silu {
  template <typename W>
  static EFFV2_INLINE W sigmoid(W z) {
    return W(1) / (W(1) + exponential(-z));
  }
  template <typename W>
  static EFFV2_INLINE W value(W z) {
    return z * sigmoid(z);
  }
  template <typename W>
  static EFFV2_INLINE W slope(W z) {
    const W s = sigmoid(z);
    return s * (W(1) + z * (W(1) - s));
  }
  template <typename W>
  static EFFV2_INLINE W through(W grad, W z) {
    return grad * slope(z);
  }
};

// Where the slope is 0, an infinite gradient becomes 0 and no NaN: hence `through` by selection.
struct Relu {
  template <typename W>
  static EFFV2_INLINE W value(W z) {
    return z < W(0) ? W(0) : z;
  }
  template <typename W>
  static EFFV2_INLINE W slope(W z) {
    return through(W(1), z);
  }
  template <typename W>
  static EFFV2_INLINE W through(W grad, W z) {
    return z <= W(0) ? W(0) : grad;
  }
};

struct Relu6 {
  template <typename W>
  static EFFV2_INLINE W value(W z) {
    return clamped(z, W(0), W(6));
  }
  template <typename W>
  static EFFV2_INLINE W slope(W z) {
    return through(W(1), z);
  }
  template <typename W>
  static EFFV2_INLINE W through(W grad, W z) {
    return (z <= W(0)) | (z >= W(6)) ? W(0) : grad;
  }
};

struct Hardswish {
  template <typename W>
  static EFFV2_INLINE W value(W z) {
    return z * (clamped(z + W(3), W(0), W(6)) * (W(1) / W(6)));
  }
  template <typename W>
  static EFFV2_INLINE W slope(W z) {
    return through(W(1), z);
  }
  template <typename W>
  static EFFV2_INLINE W through(W grad, W z) {
    const W between = grad * (z * (W(1) / W(3)) + W(0.5));
    const W above = z >= W(3) ? grad : between;
    return z <= W(-3) ? W(0) : above;
  }
};

struct Gelu {
  template <typename W>
  static EFFV2_INLINE W distribution(W z) {
    return W(0.5) * (W(1) + error_function(z * W(0.70710678118654752440)));
  }
  template <typename W>
  static EFFV2_INLINE W value(W z) {
    return z * distribution(z);
  }
  template <typename W>
  static EFFV2_INLINE W slope(W z) {
    constexpr W kDensityAtZero = W(0.39894228040143267794);
    return distribution(z) + z * (kDensityAtZero * exponential(W(-0.5) * z * z));
  }
  template <typename W>
  static EFFV2_INLINE W through(W grad, W z) {
    return grad * slope(z);
  }
};

// use(None()), use(Silu()), ...: what follows is compiled for each activation.
template <typename Use>
EFFV2_INLINE void with_activation(Activation act, const Use& use) {
  switch (act) {
    case Activation::kNone:
      return use(None());
    case Activation::kSilu:
      return use(Silu());
    case Activation::kRelu:
      return use(Relu());
    case Activation::kRelu6:
      return use(Relu6());
    case Activation::kHardswish:
      return use(Hardswish());
    case Activation::kGelu:
      return use(Gelu());
  }
}

}  // namespace effv2::cpu
