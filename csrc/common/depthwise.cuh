// A strip of a depthwise convolution: kColumns output columns times any number of output rows, for
// kWidth channels, computed by one thread that walks down the input rows.
//
// Every input vector that the strip needs is loaded once, is converted to float once, and is added
// at once to all the outputs that it reaches; those are kept in registers, and so are the weights.
#pragma once

#include "activations.cuh"
#include "launch.cuh"
#include "vector_io.cuh"

namespace effv2 {

// Elements that a thread takes of each pixel: 16 bytes for 3x3. A larger window has more weights,
// and they must fit in registers: 4 and 2 channels of 5x5 and 7x7 make 100 and 98. Neighbouring
// lanes take neighbouring channels, so that a warp reads and writes whole lines all the same.
template <typename T, int kKernel>
constexpr int kDepthwiseWidth = kKernel == 3   ? kWidest<T>
                                : kKernel == 5 ? 4
                                               : 2;

// Output columns of a strip. More would reuse more of a row, and keep more sums in registers.
template <int kKernel, int kWidth>
constexpr int kDepthwiseColumns = kKernel == 7 || kWidth == 1 ? 4 : 2;

template <typename T, int kKernel_, int kStride_, int kWidth_>
struct DepthwiseStrip {
  static constexpr int kKernel = kKernel_;
  static constexpr int kStride = kStride_;
  static constexpr int kWidth = kWidth_;
  static constexpr int kColumns = kDepthwiseColumns<kKernel, kWidth>;
  static constexpr int kInputs = (kColumns - 1) * kStride + kKernel;  // columns of an input row
  static constexpr int kLive =
      (kKernel - 1) / kStride + 1;  // output rows that an input row reaches
  static constexpr int kTaps = kKernel * kKernel;

  using Vector = Pack<T, kWidth>;

  float weight[kTaps][kWidth];
  float bias[kWidth];

  // Weights and bias of channels [channel, channel + kWidth) from the (C, k, k) and (C) that they
  // are in, both aligned to 16 bytes unless kWidth is 1.
  __device__ __forceinline__ void load_weights(const T* weights, const void* biases,
                                               bool bias_is_float, int channel) {
    const T* own = weights + static_cast<int64_t>(channel) * kTaps;
#pragma unroll
    for (int i = 0; i < kTaps; ++i) {
      float values[kWidth];
      load(own + i * kWidth, values);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const int flat = i * kWidth + j;
        weight[flat % kTaps][flat / kTaps] = values[j];
      }
    }
    if (bias_is_float) {
      load_parts < kWidth<4 ? kWidth : 4>(static_cast<const float*>(biases) + channel);
    } else {
      load_parts<kWidth>(static_cast<const T*>(biases) + channel);
    }
  }

  // rows: output rows of this strip; first_row: the input row (maybe negative) of its first tap;
  // inside: bit i is set where input column i of the strip is in the image. begin(row) is called
  // before each input row, in the image or not, fetch(row, column) then for the columns that are;
  // store(row, values) takes the kColumns x kWidth finished sums of output row `row` of the strip.
  template <typename Begin, typename Fetch, typename Store>
  __device__ __forceinline__ void run(int rows, int first_row, int height, unsigned inside,
                                      const Begin& begin, const Fetch& fetch,
                                      const Store& store) const {
    float sums[kLive][kColumns][kWidth];
    const int last_row = first_row + (rows - 1) * kStride + kKernel - 1;
    // Output row `step` begins with input row first_row + step * kStride, and is finished kLive - 1
    // steps later. The first sums belong to rows before the strip and are not stored.
    for (int step = 0; step < rows + kLive - 1; ++step) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
#pragma unroll
        for (int j = 0; j < kWidth; ++j) sums[0][c][j] = bias[j];
      }
#pragma unroll
      for (int i = 0; i < kStride; ++i) {
        const int row = first_row + step * kStride + i;
        if (row > last_row) continue;
        begin(row);
        if (row < 0 || row >= height) continue;
#pragma unroll
        for (int column = 0; column < kInputs; ++column) {
          Vector vector = {};
          if (inside >> column & 1u) vector = fetch(row, column);
          add(vector, i, column, sums);
        }
      }
      if (step >= kLive - 1) store(step - (kLive - 1), sums[kLive - 1]);
#pragma unroll
      for (int live = kLive - 1; live > 0; --live) {
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
#pragma unroll
          for (int j = 0; j < kWidth; ++j) sums[live][c][j] = sums[live - 1][c][j];
        }
      }
    }
  }

 private:
  // The bias, in vectors of kPart.
  template <int kPart, typename Bias>
  __device__ __forceinline__ void load_parts(const Bias* from) {
#pragma unroll
    for (int first = 0; first < kWidth; first += kPart) {
      float part[kPart];
      load(from + first, part);
#pragma unroll
      for (int j = 0; j < kPart; ++j) bias[first + j] = part[j];
    }
  }

  // Adds one input vector, of row `phase` of a step, to every sum that it is part of.
  __device__ __forceinline__ void add(const Vector& vector, int phase, int column,
                                      float (&sums)[kLive][kColumns][kWidth]) const {
    float input[kWidth];
#pragma unroll
    for (int j = 0; j < kWidth; ++j) input[j] = to_float(vector.element[j]);
#pragma unroll
    for (int live = 0; live < kLive; ++live) {
      const int tap_row = live * kStride + phase;
      if (tap_row >= kKernel) continue;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const int tap = column - c * kStride;
        if (tap < 0 || tap >= kKernel) continue;
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          sums[live][c][j] += input[j] * weight[tap_row * kKernel + tap][j];
        }
      }
    }
  }
};

}  // namespace effv2
