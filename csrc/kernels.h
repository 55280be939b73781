// The only door into the .cu files: parameter structs and launch functions, with no torch type in
// sight.
//
// The *_ops.cpp check the contract, allocate and pick the stream; a launch function chooses the
// tile and launches. Every pointer is to device memory of the current device. A launch function
// never synchronises and never allocates.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace effv2 {

enum class DType { kFloat32, kFloat16, kBFloat16 };

enum class Activation { kNone, kSilu, kRelu, kRelu6, kHardswish, kGelu, kSigmoid, kHardsigmoid };

// What follows a convolution, as the model has it. Each is (channels) or null: without a mean there
// is no norm, and scale is 1; else
//   scale = gamma / sqrt(variance + eps), shift = beta + (bias - mean) * scale
// A kernel reads them anew in every launch, by element, and computes in float32.
struct Norm {
  const void* bias;
  const void* mean;  // null if and only if variance is
  const void* variance;
  const void* gamma;  // null if and only if beta is: 1 and 0
  const void* beta;
  float eps;
  bool bias_is_float;  // else it is of the dtype of the weight
  bool is_float;       // the other four
};

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

// How depthwise work is laid out: effv2_kernels/launch/native/depthwise.py chooses.
struct DepthwiseLaunch {
  int channel_threads;  // threads of a block along the channels
  int strip_threads;    // and along the strips of an image; together at most 128, whole warps
  int rows;             // output rows of a strip
  int parts;            // blocks that share the strips of an image, for the same channels
  bool cluster;  // with squeeze: those blocks are a cluster (of 2, 4 or 8), where the GPU has it
};

// y[n, i, j, c] = act(shift[c] + scale[c] * sum over a, b of weight[c, a, b] *
//                     x[n, i * stride + a - pad_top, j * stride + b - pad_left, c])
// with x = 0 outside of the image; pooled[n, c] = mean over i, j of y. All dense. An image has less
// than 2^31 elements.
struct DepthwiseParams {
  const void* x;       // (n, height, width, channels)
  const void* weight;  // (channels, kernel, kernel)
  Norm norm;
  void* y;         // (n, out_height, out_width, channels)
  void* pooled;    // (n, channels), or null
  float* partial;  // scratch, (n, parts, channels); null where pooled is or parts == 1

  int64_t size_n;
  int height, width, channels;
  int out_height, out_width;
  int kernel;  // 3, 5 or 7
  int stride;  // 1 or 2
  int pad_top, pad_left;

  DType dtype;
  Activation act;
  DepthwiseLaunch launch;
};

cudaError_t launch_depthwise(const DepthwiseParams& params, cudaStream_t stream);

// How an expand_depthwise is laid out: effv2_kernels/launch/native/expand_depthwise.py chooses.
struct ExpandDepthwiseLaunch {
  int tile_height;  // outputs of a block
  int tile_width;
  int rows;    // output rows of a strip
  int chunk;   // expanded channels at a time: 32 or 64
  int chunks;  // of a block, one after another
};

// y = act(depthwise(act(x expand_weight^T scale + shift))), the depthwise with its own scale and
// shift, as in DepthwiseParams, on an expanded tensor that is 0 outside of the image; pooled = mean
// of y over each image. All dense; channel counts are multiples of 8, pointers are aligned to 16
// bytes, but for those of the norms.
struct ExpandDepthwiseParams {
  const void* x;              // (n, height, width, in_channels)
  const void* expand_weight;  // (channels, in_channels)
  Norm expand_norm;
  const void* depthwise_weight;  // (channels, kernel, kernel)
  Norm depthwise_norm;
  void* y;         // (n, out_height, out_width, channels)
  void* pooled;    // (n, channels), or null
  float* partial;  // scratch, (n, tiles of an image, channels); null where pooled is or of one tile

  int64_t size_n;
  int height, width, in_channels, channels;
  int out_height, out_width;
  int kernel;  // 3 or 5
  int stride;  // 1 or 2
  int pad_top, pad_left;

  DType dtype;  // 16 bits
  Activation act;
  ExpandDepthwiseLaunch launch;
};

cudaError_t launch_expand_depthwise(const ExpandDepthwiseParams& params, cudaStream_t stream);

// y = act(conv(x, weight) * scale + shift), 3x3 at stride 2, x = 0 outside of the image. x and y
// are dense, and an image of either has less than 2^31 elements.
struct StemParams {
  const void* x;       // (n, 3, height, width) if channels_first, else (n, height, width, 3)
  const void* weight;  // (channels, 3, 3, 3) by weight_stride, in elements
  Norm norm;
  void* y;  // (n, out_height, out_width, channels), aligned to 32 bytes

  int64_t size_n;
  int64_t weight_stride[4];
  int height, width, channels;
  int out_height, out_width;
  int pad_top, pad_left;  // at most 64

  DType x_dtype;
  DType dtype;  // of weight and y
  bool channels_first;
  bool aligned;  // whether x is read in vectors: set by the launch
  Activation act;
};

cudaError_t launch_stem(const StemParams& params, cudaStream_t stream);

// target[o, p, c] = source[o, c, p], rounded to another dtype. Both are dense.
struct Conversion {
  const void* source;
  void* target;  // aligned to 16 bytes
  int size;      // elements
  int channels;
  int pixels;  // 1 where the order of the elements stays, whatever the shape
  DType source_dtype;
};

// Targets are of `dtype`. One launch for as many tensors as its parameters have room for.
cudaError_t launch_convert(const Conversion* conversions, size_t count, DType dtype,
                           cudaStream_t stream);

}  // namespace effv2
