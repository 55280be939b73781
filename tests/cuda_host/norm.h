// A Norm of a request. Integers: whether the bias is float, whether the other vectors are, the bits
// of eps; buffers: bias, mean, variance, gamma, beta, empty where there is none.
#pragma once

#include "driver.h"
#include "kernels.h"

namespace host {

inline effv2::Norm norm_of(Request& request) {
  effv2::Norm norm = {};
  norm.bias_is_float = request.integer() != 0;
  norm.is_float = request.integer() != 0;
  const auto bits = static_cast<uint32_t>(request.integer());
  std::memcpy(&norm.eps, &bits, sizeof(norm.eps));
  norm.bias = request.buffer();
  norm.mean = request.buffer();
  norm.variance = request.buffer();
  norm.gamma = request.buffer();
  norm.beta = request.buffer();
  return norm;
}

}  // namespace host
