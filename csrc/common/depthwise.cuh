// A strip of a depthwise convolution: kColumns output columns times any number of output rows, for
// kWidth channels, computed by one thread that walks down the input rows.
//
// Every input vector that the strip needs is loaded once, is converted to float once, and is added
// at once to all the outputs that it reaches; those are kept in registers, and so are the weights.
#pragma once

#include "activations.cuh"
#include "launch.cuh"
#include "norm.cuh"
#include "vector_io.cuh"

namespace effv2 {

// Channels and output columns of a strip. 4 x 4 outputs take 36 weights and 48 sums at 3x3, so that
// 16 warps fit on a multiprocessor, and need 6 input vectors a row; 8 x 2, as many outputs, need
// twice the weights and a third more conversions. A larger window has more weights: 2 channels of
// 5x5 and 7x7 make 50 and 98. Neighbouring lanes take neighbouring channels, so that a warp reads
// and writes whole lines all the same.
template <int kKernel>
constexpr int kDepthwiseWidth = kKernel == 3 ? 4 : 2;
constexpr int kDepthwiseColumns = 4;

template <typename T, int kKernel_, int kStride_, int kWidth_>
struct DepthwiseStrip {
  static constexpr int kKernel = kKernel_;
  static constexpr int kStride = kStride_;
  static constexpr int kWidth = kWidth_;
  static constexpr int kColumns = kDepthwiseColumns;
  static constexpr int kInputs = (kColumns - 1) * kStride + kKernel;  // columns of an input row
  static constexpr int kLive =
      (kKernel - 1) / kStride + 1;  // output rows that an input row reaches
  static constexpr int kTaps = kKernel * kKernel;

  using Vector = Pack<T, kWidth>;

  float weight[kTaps][kWidth];
  float bias[kWidth];

  // Weights and norm of channels [channel, channel + kWidth), the weights from the (C, k, k) that
  // they are in, aligned to 16 bytes unless kWidth is 1; times `factor`, and so are the sums. The
  // scale goes into the weights: the row loop knows nothing of a norm.
  __device__ __forceinline__ void load_weights(const T* weights, const Norm& norm, int channel,
                                               float factor = 1.0f) {
    const T* own = weights + static_cast<int64_t>(channel) * kTaps;
    Vector vectors[kTaps];  // asked for before the norm is waited for
#pragma unroll
    for (int i = 0; i < kTaps; ++i) {
      vectors[i] = *reinterpret_cast<const Vector*>(own + i * kWidth);
    }
    float scale[kWidth];
    load_norm<T>(norm, channel, scale, bias);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      scale[j] *= factor;
      bias[j] *= factor;
    }
#pragma unroll
    for (int i = 0; i < kTaps; ++i) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const int flat = i * kWidth + j;
        weight[flat % kTaps][flat / kTaps] = scale[flat / kTaps] * to_float(vectors[i].element[j]);
      }
    }
  }

  // The steps (below) of a strip that are not worth taking: their rows are above the image, which
  // the first of them, maybe negative, tells.
  static __device__ __forceinline__ int steps_above(int first_row) {
    return min(max(-first_row, 0) / kStride, kLive - 1);
  }

  // rows: output rows of this strip. skipped: steps_above(), whose input rows are left out. begin()
  // is called before each of the other input rows, then fetch(column) for each of its kInputs
  // columns, which gives zeros for whatever is outside of the image; store(values) takes the
  // kColumns x kWidth finished sums of the next output row.
  //
  // kUnroll: kLive rows of code in a turn of the loop, so that each row's sums keep their registers
  // for all of their life. Else they move on after each row: for code that the activations make
  // long.
  template <bool kUnroll, typename Begin, typename Fetch, typename Store>
  __device__ __forceinline__ void run(int rows, int skipped, const Begin& begin, const Fetch& fetch,
                                      const Store& store) const {
    constexpr int kTurn = kUnroll ? kLive : 1;
    // Step i takes the kStride input rows with which the windows of output row i begin, and
    // finishes output row i - (kLive - 1). The first sums belong to rows before the strip and are
    // not stored.
    const int steps = rows + kLive - 1;
    float sums[kLive][kColumns][kWidth];
#pragma unroll
    for (int live = 0; live < kLive; ++live) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
#pragma unroll
        for (int j = 0; j < kWidth; ++j) sums[live][c][j] = bias[j];
      }
    }
    for (int first_step = skipped; first_step < steps; first_step += kTurn) {
#pragma unroll
      for (int turn = 0; turn < kTurn; ++turn) {
        const int step = first_step + turn;
        if (turn > 0 && step >= steps) break;
#pragma unroll
        for (int phase = 0; phase < kStride; ++phase) {
          // The last step ends with the last row of a window.
          if (phase > (kKernel - 1) % kStride && step == steps - 1) continue;
          begin();
#pragma unroll
          for (int column = 0; column < kInputs; ++column) {
            add(fetch(column), turn, phase, column, sums);
          }
        }
        if (step >= kLive - 1) store(sums[slot(turn, kLive - 1)]);
      }
      if constexpr (!kUnroll) move_on(sums);
    }
  }

 private:
  // Where the sums are of the output row that began `live` steps ago.
  static __device__ constexpr int slot(int turn, int live) { return (turn + kLive - live) % kLive; }

  static __device__ __forceinline__ void move_on(float (&sums)[kLive][kColumns][kWidth]) {
#pragma unroll
    for (int live = kLive - 1; live > 0; --live) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          sums[slot(0, live)][c][j] = sums[slot(0, live - 1)][c][j];
        }
      }
    }
  }

  // Adds one input vector, of row `phase` of a step, to every sum that it is part of. The first
  // that is added to a sum adds the bias too.
  __device__ __forceinline__ void add(const Vector& vector, int turn, int phase, int column,
                                      float (&sums)[kLive][kColumns][kWidth]) const {
    float input[kWidth];
    unpack(vector, input);
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
          float& sum = sums[slot(turn, live)][c][j];
          const float before = tap_row == 0 && tap == 0 ? bias[j] : sum;
          sum = before + input[j] * weight[tap_row * kKernel + tap][j];
        }
      }
    }
  }
};

}  // namespace effv2
