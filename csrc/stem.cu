// stem: y = act(conv(x) scale + shift), 3x3 at stride 2 from 3 channels; x as the user has it, NCHW
// or NHWC, float or 16 bits; y NHWC. The cast and the change of layout, two passes over the image
// elsewhere, come with the load.
//
// Bytes: x and y once: at 24 channels of 16 bits and x in float 48 + 48 an output pixel, 5 clocks
// of an H200 multiprocessor by memory. FLOPs: 54 O a pixel: 648 multiplications at 24 channels, 5
// clocks at 128 a clock. So neither may wait for the other, and the tensor cores, which could take
// the multiplications (27 of 32 of an mma's depth used), are the next idea if issue turns out to
// bound it.
//
// Tile: 4 x 32 output pixels of one image, for all channels, by 128 threads. The 9 x 65 pixels of x
// under it go to shared memory as float, by 16-byte loads where lines are aligned (a line is a row
// of one channel in NCHW, a row of all three in NHWC), with zeros outside of the image; the weights
// go there too, [tap][channel], and behind them scale and shift. A thread computes 8 channels of 4
// pixels, 8 columns apart: neighbouring lanes then have neighbouring channels, then neighbouring
// pixels, so that stores are coalesced and reads of x conflict in no bank. A weight vector read is
// used for 4 pixels.

#include "common/activations.cuh"
#include "common/launch.cuh"
#include "common/norm.cuh"
#include "common/vector_io.cuh"
#include "kernels.h"

namespace effv2::stem {

constexpr int kThreads = 128;
constexpr int kIn = 3;  // channels of x
constexpr int kKernel = 3;
constexpr int kStride = 2;
constexpr int kTaps = kIn * kKernel * kKernel;
constexpr int kTileHeight = 4;
constexpr int kTileWidth = 32;
constexpr int kGroup = 8;   // channels of a thread
constexpr int kPixels = 4;  // of a thread
constexpr int kApart = kTileWidth / kPixels;
constexpr int kRows = (kTileHeight - 1) * kStride + kKernel;  // of x under a tile
constexpr int kColumns = (kTileWidth - 1) * kStride + kKernel;
constexpr int kMostVector = 8;  // elements of 16 bytes

// Where x of a tile lies in shared memory, in floats.
struct Lines {
  int count;      // lines
  int pitch;      // of a line
  int of_column;  // elements from a pixel to the next
  int of_row;
  int of_channel;

  __host__ __device__ explicit Lines(bool channels_first)
      : count(channels_first ? kIn * kRows : kRows),
        pitch((channels_first ? kColumns : kColumns * kIn) + 2 * kMostVector),
        of_column(channels_first ? 1 : kIn),
        of_row(pitch),
        of_channel(channels_first ? kRows * pitch : 1) {}
};

__host__ __device__ constexpr int padded(int channels) {
  return (channels + kGroup - 1) / kGroup * kGroup;
}

// Copies the lines of a tile whose first pixel is (row, column) of x. Returns where that pixel
// begins in each line.
template <typename Input>
__device__ __forceinline__ int fill(const StemParams& params, const Lines& lines, int64_t image,
                                    int row, int column, float* target) {
  const int vector = params.aligned ? kWidest<Input> : 1;
  const int line_elements = params.width * lines.of_column;
  const int needed = column * lines.of_column;
  // Rounded down, for a negative number too: padding is less than a tile's line.
  const int begin = (needed + 1024 * kMostVector) / vector * vector - 1024 * kMostVector;
  const int vectors = (needed - begin + kColumns * lines.of_column + vector - 1) / vector;
  const Input* x = static_cast<const Input*>(params.x) +
                   image * kIn * params.height * static_cast<int64_t>(params.width);
  for (int i = static_cast<int>(threadIdx.x); i < lines.count * vectors; i += kThreads) {
    const int line = i / vectors;
    const int element = begin + i % vectors * vector;
    const int line_row = row + line % kRows;  // with one line a row, line is less than kRows
    const bool exists =
        line_row >= 0 && line_row < params.height && element >= 0 && element < line_elements;
    const Input* source = x + (line / kRows * params.height + line_row) * line_elements + element;
    float* own = target + line * lines.pitch + element - begin;
    if (params.aligned) {
      float values[kWidest<Input>] = {};
      if (exists) load(source, values);
#pragma unroll
      for (int j = 0; j < kWidest<Input>; ++j) own[j] = values[j];
    } else {
      *own = exists ? to_float(*source) : 0.0f;
    }
  }
  return needed - begin;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) stem_kernel(const StemParams params) {
  const int channels = params.channels;
  const int groups = padded(channels) / kGroup;
  const int tiles_across = (params.out_width + kTileWidth - 1) / kTileWidth;
  const int tiles_down = (params.out_height + kTileHeight - 1) / kTileHeight;
  const unsigned tile = blockIdx.x % static_cast<unsigned>(tiles_across * tiles_down);
  const int64_t image = blockIdx.x / static_cast<unsigned>(tiles_across * tiles_down);
  const int out_row = static_cast<int>(tile) / tiles_across * kTileHeight;
  const int out_column = static_cast<int>(tile) % tiles_across * kTileWidth;
  const int row = out_row * kStride - params.pad_top;
  const int column = out_column * kStride - params.pad_left;

  const Lines lines(params.channels_first);
  float* weight_tile = dynamic_shared<float>();
  float* x_tile = weight_tile + (kTaps + 2) * padded(channels);
  for (int i = static_cast<int>(threadIdx.x); i < kTaps * padded(channels); i += kThreads) {
    const int channel = i % padded(channels);
    const int tap = i / padded(channels);  // [input channel][row][column]
    const int64_t at =
        channel * params.weight_stride[0] + tap / (kKernel * kKernel) * params.weight_stride[1] +
        tap / kKernel % kKernel * params.weight_stride[2] + tap % kKernel * params.weight_stride[3];
    weight_tile[i] = channel < channels ? to_float(static_cast<const T*>(params.weight)[at]) : 0.0f;
  }
  int begin = 0;
  switch (params.x_dtype) {
    case DType::kFloat32:
      begin = fill<float>(params, lines, image, row, column, x_tile);
      break;
    case DType::kFloat16:
      begin = fill<__half>(params, lines, image, row, column, x_tile);
      break;
    case DType::kBFloat16:
      begin = fill<__nv_bfloat16>(params, lines, image, row, column, x_tile);
      break;
  }
  for (int i = static_cast<int>(threadIdx.x); i < padded(channels); i += kThreads) {
    float scale[1], shift[1];
    load_norm<T>(params.norm, min(i, channels - 1), scale, shift);
    weight_tile[kTaps * padded(channels) + i] = scale[0];
    weight_tile[(kTaps + 1) * padded(channels) + i] = shift[0];
  }
  __syncthreads();

  T* y = static_cast<T*>(params.y) +
         image * params.out_height * params.out_width * static_cast<int64_t>(channels);
  for (int i = static_cast<int>(threadIdx.x); i < groups * kApart * kTileHeight; i += kThreads) {
    const int channel = i % groups * kGroup;
    const int pixel_column = i / groups % kApart;
    const int pixel_row = i / groups / kApart;
    const float* x = x_tile + begin + pixel_row * kStride * lines.of_row +
                     pixel_column * kStride * lines.of_column;
    float sums[kPixels][kGroup] = {};
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap) {
      const float* from = x + tap / (kKernel * kKernel) * lines.of_channel +
                          tap / kKernel % kKernel * lines.of_row + tap % kKernel * lines.of_column;
      float weight[2][kGroup / 2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        load(weight_tile + tap * padded(channels) + channel + half * (kGroup / 2), weight[half]);
      }
#pragma unroll
      for (int p = 0; p < kPixels; ++p) {
        const float value = from[p * kApart * kStride * lines.of_column];
#pragma unroll
        for (int j = 0; j < kGroup; ++j) {
          sums[p][j] += value * weight[j / (kGroup / 2)][j % (kGroup / 2)];
        }
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      constexpr int kHalf = kGroup / 2;
      float scale[kHalf], shift[kHalf];
      load(weight_tile + kTaps * padded(channels) + channel + half * kHalf, scale);
      load(weight_tile + (kTaps + 1) * padded(channels) + channel + half * kHalf, shift);
#pragma unroll
      for (int p = 0; p < kPixels; ++p) {
#pragma unroll
        for (int j = 0; j < kHalf; ++j) {
          float& sum = sums[p][half * kHalf + j];
          sum = sum * scale[j] + shift[j];
        }
      }
    }
    activate<kAccuracyFor<T>>(params.act, sums);
#pragma unroll
    for (int p = 0; p < kPixels; ++p) {
      const int y_row = out_row + pixel_row;
      const int y_column = out_column + pixel_column + p * kApart;
      if (y_row >= params.out_height || y_column >= params.out_width) continue;
      T* own = y + (y_row * params.out_width + y_column) * channels + channel;
      if (channels % kGroup == 0) {
        store(own, sums[p]);
      } else {
#pragma unroll
        for (int j = 0; j < kGroup; ++j) {
          if (channel + j < channels) own[j] = from_float<T>(sums[p][j]);
        }
      }
    }
  }
}

template <typename T>
cudaError_t launch_dtype(StemParams params, cudaStream_t stream) {
  const int64_t line_elements = int64_t{params.width} * (params.channels_first ? 1 : kIn);
  const int wide = params.x_dtype == DType::kFloat32 ? kWidest<float> : kWidest<__half>;
  const int found = params.x_dtype == DType::kFloat32
                        ? vector_width<float>(params.x, line_elements)
                        : vector_width<__half>(params.x, line_elements);
  params.aligned = found == wide;
  const int64_t tiles = int64_t{(params.out_width + kTileWidth - 1) / kTileWidth} *
                        ((params.out_height + kTileHeight - 1) / kTileHeight);
  const int64_t blocks = params.size_n * tiles;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  const Lines lines(params.channels_first);
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(blocks));
  shape.block = dim3(kThreads);
  shape.shared_bytes =
      sizeof(float) * ((kTaps + 2) * padded(params.channels) + lines.count * lines.pitch);
  return launch_with_shared<stem_kernel<T>>(shape, stream, params);
}

}  // namespace effv2::stem

namespace effv2 {

cudaError_t launch_stem(const StemParams& params, cudaStream_t stream) {
  switch (params.dtype) {
    case DType::kFloat32:
      return stem::launch_dtype<float>(params, stream);
    case DType::kFloat16:
      return stem::launch_dtype<__half>(params, stream);
    case DType::kBFloat16:
      return stem::launch_dtype<__nv_bfloat16>(params, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace effv2
