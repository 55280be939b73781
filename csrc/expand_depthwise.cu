// expand_depthwise: y = act(depthwise(act(x W s1 + b1)) s2 + b2), and on request the mean of y over
// the image; NHWC, 16 bits. The expanded tensor, act(x W s1 + b1), never leaves the chip.
//
// Bytes: x (I channels), y (E channels) and the weights; the two separate ops also write and read
// the expanded tensor, 3 x the bytes of y at stride 1. FLOPs: 2 I an expanded element, 2 k k an
// output. Floor at I = 160, E = 960, 24 x 24 on an H200: 0.12 clocks of a multiprocessor an output
// by memory, 0.14 by mma.sync, 0.14 by the special-function unit (two activations), 0.23 by the
// issue of about 30 instructions. Hence no unit may wait for another: two blocks of 128 threads
// share a multiprocessor, and while one multiplies matrices the other slides windows.
//
// A block owns a tile of the output of one image: the whole map where it fits, for then nothing is
// expanded twice. The pixels of x under the tile and its halo go to shared memory once, whole (I <=
// 256 or so); then, kChunk channels at a time: weights by cp.async; x W on tensor cores (a warp
// takes 32 pixels x kChunk channels); norm, activation, and the chunk into shared memory; the
// depthwise strips of common/depthwise.cuh on it, while the next weights arrive. Only pixels of the
// image are in the tile, so that the padding of the *expanded* tensor is 0 and not act(b1): the
// strips skip it. Rows in shared memory are 16 bytes longer than their data: ldmatrix, the stores
// of fragments and the strips' loads then meet no bank conflicts.
//
// Against the separate ops this trades memory traffic for recomputed halos and for idle tensor
// cores; launch/native/expand_depthwise.py chooses by a model of both. Not measured on a GPU.

#include "common/activations.cuh"
#include "common/depthwise.cuh"
#include "common/launch.cuh"
#include "common/norm.cuh"
#include "common/reduce.cuh"
#include "common/squeeze.cuh"
#include "common/vector_io.cuh"
#include "kernels.h"

namespace effv2::expand_depthwise {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int kBlocks = 2;  // of a multiprocessor
constexpr int kPad = 8;     // elements, 16 bytes
constexpr int kDepth = 16;  // of one mma

__host__ __device__ constexpr int padded_depth(int in_channels) {
  return (in_channels + kDepth - 1) / kDepth * kDepth;
}

// Elements of the three tiles in shared memory; scale and shift of each channel follow.
struct Layout {
  int pitch;         // of a row of x or of the expand weights
  int hidden_pitch;  // of a row of the expanded tile
  int weight_at, hidden_at, norm_at;
  size_t bytes;

  // The sums of the squeeze lie over the expanded tile, when that is no longer needed.
  __host__ __device__ Layout(int pixels, int in_channels, int chunk, size_t squeeze_bytes) {
    pitch = padded_depth(in_channels) + kPad;
    hidden_pitch = chunk + kPad;
    weight_at = pixels * pitch;
    hidden_at = weight_at + chunk * pitch;
    const int squeeze_elements = static_cast<int>((squeeze_bytes + 15) / 16 * 8);
    const int hidden = pixels * hidden_pitch;
    norm_at = hidden_at + (hidden > squeeze_elements ? hidden : squeeze_elements);
    bytes = norm_at * sizeof(uint16_t) + chunk * 2 * sizeof(float);
  }
};

// The tile of a block, in outputs, and the pixels of the image that it needs.
struct Tile {
  int row, column, rows, columns;              // of the output
  int in_row, in_column, in_rows, in_columns;  // of the image; may be empty
  __device__ int pixels() const { return in_rows * in_columns; }
};

template <int kKernel, int kStride>
__device__ __forceinline__ Tile tile_of(const ExpandDepthwiseParams& params, int index) {
  const int across = (params.out_width + params.launch.tile_width - 1) / params.launch.tile_width;
  Tile tile;
  tile.row = index / across * params.launch.tile_height;
  tile.column = index % across * params.launch.tile_width;
  tile.rows = min(params.launch.tile_height, params.out_height - tile.row);
  tile.columns = min(params.launch.tile_width, params.out_width - tile.column);
  const int top = tile.row * kStride - params.pad_top;
  const int left = tile.column * kStride - params.pad_left;
  const int bottom = top + (tile.rows - 1) * kStride + kKernel;
  const int right = left + (tile.columns - 1) * kStride + kKernel;
  tile.in_row = max(top, 0);
  tile.in_column = max(left, 0);
  tile.in_rows = max(min(bottom, params.height) - tile.in_row, 0);
  tile.in_columns = max(min(right, params.width) - tile.in_column, 0);
  return tile;
}

// Rows [0, rows) of `width` elements, `stride` apart, to shared memory rows of `pitch`: zeros where
// a row does not exist and from `width` to the padded depth. source(row) is null for the former.
template <typename T, typename Source>
__device__ __forceinline__ void copy_rows(T* target, int pitch, int rows, int width,
                                          const T* somewhere, const Source& source) {
  const int vectors = (pitch - kPad) / 8;
  const int thread = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
  for (int i = thread; i < rows * vectors; i += kThreads) {
    const int row = i / vectors;
    const int element = i % vectors * 8;
    const T* from = source(row);
    const bool exists = from != nullptr && element < width;
    ptx::cp_async16(target + row * pitch + element, exists ? from + element : somewhere, exists);
  }
}

// hidden[pixel, c] = act(norm[c].shift + norm[c].scale * sum over i of x[pixel, i] weight[c, i]),
// where `norm` has scale and shift of a channel beside each other, times kSiluScale for SiLU.
template <typename T, int kChunk>
__device__ __forceinline__ void expand(const T* x, const T* weight, const float* norm, T* hidden,
                                       int pixels, int pitch, int hidden_pitch, Activation act) {
  constexpr int kTiles = 2;             // of 16 pixels, of a warp
  constexpr int kColumns = kChunk / 8;  // of 8 channels
  const int thread = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
  const int lane = thread % kWarp;
  const T* weight_row = weight + (lane % 8 + lane / 16 * 8) * pitch + lane / 8 % 2 * 8;
  for (int first = thread / kWarp * 16 * kTiles; first < pixels; first += kWarps * 16 * kTiles) {
    float sums[kTiles * kColumns][4] = {};
    const T* x_row[kTiles];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      // Past the last pixel it is computed again and not stored.
      x_row[t] = x + min(first + 16 * t + lane % 16, pixels - 1) * pitch + lane / 16 * 8;
    }
    for (int k = 0; k < pitch - kPad; k += kDepth) {
      uint32_t a[kTiles][4];
#pragma unroll
      for (int t = 0; t < kTiles; ++t) ptx::ldmatrix_x4(x_row[t] + k, a[t]);
#pragma unroll
      for (int j = 0; j < kColumns; j += 2) {
        uint32_t both[4];
        ptx::ldmatrix_x4(weight_row + j * 8 * pitch + k, both);
        const uint32_t left[2] = {both[0], both[1]};
        const uint32_t right[2] = {both[2], both[3]};
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          ptx::mma_m16n8k16<T>(sums[t * kColumns + j], a[t], left);
          ptx::mma_m16n8k16<T>(sums[t * kColumns + j + 1], a[t], right);
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      float own[4];  // of this lane's two channels
      load(norm + (j * 8 + lane % 4 * 2) * 2, own);
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        float (&found)[4] = sums[t * kColumns + j];
#pragma unroll
        for (int r = 0; r < 4; ++r) found[r] = found[r] * own[r % 2 * 2] + own[r % 2 * 2 + 1];
      }
    }
    if (act == Activation::kSilu) {
      activate_scaled_silu<kAccuracyFor<T>>(sums);
    } else {
      activate<kAccuracyFor<T>>(act, sums);
    }
#pragma unroll
    for (int i = 0; i < kTiles * kColumns; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int pixel = first + i / kColumns * 16 + lane / 4 + half * 8;
        if (pixel >= pixels) continue;
        const float pair[2] = {sums[i][half * 2], sums[i][half * 2 + 1]};
        store(hidden + pixel * hidden_pitch + i % kColumns * 8 + lane % 4 * 2, pair);
      }
    }
    __syncwarp();  // whole again, as ldmatrix and mma ask of a warp
  }
}

template <typename T, int kKernel, int kStride, int kChunk>
__global__ void __launch_bounds__(kThreads, kBlocks)
    expand_depthwise_kernel(const ExpandDepthwiseParams params, int most_pixels) {
  using Strip = DepthwiseStrip<T, kKernel, kStride, kDepthwiseWidth<kKernel>>;
  constexpr int kWidth = Strip::kWidth;
  constexpr int kColumns = Strip::kColumns;

  const ExpandDepthwiseLaunch& launch = params.launch;
  const int chunks = (params.channels + kChunk - 1) / kChunk;
  const int groups = (chunks + launch.chunks - 1) / launch.chunks;
  const int tiles = ((params.out_height + launch.tile_height - 1) / launch.tile_height) *
                    ((params.out_width + launch.tile_width - 1) / launch.tile_width);
  const int group = static_cast<int>(blockIdx.x % static_cast<unsigned>(groups));
  const unsigned rest = blockIdx.x / static_cast<unsigned>(groups);
  const int part = static_cast<int>(rest % static_cast<unsigned>(tiles));
  const int64_t image = rest / static_cast<unsigned>(tiles);
  const Tile tile = tile_of<kKernel, kStride>(params, part);
  const int thread = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);

  const size_t squeeze_bytes = squeeze_shared_bytes(kChunk, static_cast<int>(blockDim.y), 1);
  const Layout layout(most_pixels, params.in_channels, kChunk, squeeze_bytes);
  T* shared = dynamic_shared<T>();
  T* x_tile = shared;
  T* weight_tile = shared + layout.weight_at;
  T* hidden = shared + layout.hidden_at;
  float* norm_tile = reinterpret_cast<float*>(shared + layout.norm_at);

  const T* x =
      static_cast<const T*>(params.x) + image * params.height * params.width * params.in_channels;
  const T* expand_weight = static_cast<const T*>(params.expand_weight);
  const auto ask_weights = [&](int chunk) {
    const int first = chunk * kChunk;
    copy_rows(weight_tile, layout.pitch, kChunk, params.in_channels, expand_weight, [&](int row) {
      return first + row < params.channels
                 ? expand_weight + static_cast<int64_t>(first + row) * params.in_channels
                 : nullptr;
    });
    ptx::cp_async_commit();
    if (thread < kChunk) {
      float scale[1], shift[1];
      load_norm<T>(params.expand_norm, min(first + thread, params.channels - 1), scale, shift);
      const float factor = params.act == Activation::kSilu ? kSiluScale<kAccuracyFor<T>> : 1.0f;
      const float own[2] = {factor * scale[0], factor * shift[0]};
      store(norm_tile + thread * 2, own);
    }
  };

  const int pixels = tile.pixels();
  copy_rows(x_tile, layout.pitch, pixels, params.in_channels, x, [&](int pixel) {
    const int row = tile.in_row + pixel / tile.in_columns;
    const int column = tile.in_column + pixel % tile.in_columns;
    return x + (row * params.width + column) * params.in_channels;
  });
  const int begin_chunk = group * launch.chunks;
  const int end_chunk = min(begin_chunk + launch.chunks, chunks);
  ask_weights(begin_chunk);

  for (int chunk = begin_chunk; chunk < end_chunk; ++chunk) {
    ptx::cp_async_wait<0>();
    __syncthreads();  // the weights are there, and nobody reads the last expanded tile
    expand<T, kChunk>(x_tile, weight_tile, norm_tile, hidden, pixels, layout.pitch,
                      layout.hidden_pitch, params.act);
    __syncthreads();
    if (chunk + 1 < end_chunk) ask_weights(chunk + 1);

    const int first_channel = chunk * kChunk;
    const int own = static_cast<int>(threadIdx.x) * kWidth;
    float totals[kWidth] = {};
    const auto convolve = [&](auto is_silu) {
      constexpr bool kSilu = decltype(is_silu)::value;
      Strip strip;
      strip.load_weights(static_cast<const T*>(params.depthwise_weight), params.depthwise_norm,
                         first_channel + own, kSilu ? kSiluScale<kAccuracyFor<T>> : 1.0f);
      T* y = static_cast<T*>(params.y) +
             image * params.out_height * params.out_width * params.channels + first_channel + own;
      const int across = (tile.columns + kColumns - 1) / kColumns;
      const int strips = across * ((tile.rows + launch.rows - 1) / launch.rows);
      for (int i = static_cast<int>(threadIdx.y); i < strips; i += static_cast<int>(blockDim.y)) {
        const int strip_row = i / across * launch.rows;
        const int strip_column = i % across * kColumns;
        const int out_row = tile.row + strip_row;
        const int out_column = tile.column + strip_column;
        // In rows and columns of the tile's pixels.
        const int skipped = Strip::steps_above(out_row * kStride - params.pad_top);
        const int first_row = (out_row + skipped) * kStride - params.pad_top - tile.in_row;
        const int first_column = out_column * kStride - params.pad_left - tile.in_column;
        unsigned inside = 0;
#pragma unroll
        for (int column = 0; column < Strip::kInputs; ++column) {
          const bool exists = first_column + column >= 0 && first_column + column < tile.in_columns;
          inside |= static_cast<unsigned>(exists) << column;
        }
        int row = first_row - 1;
        unsigned exist = 0;
        const auto begin = [&] {
          ++row;
          exist = row >= 0 && row < tile.in_rows ? inside : 0;
        };
        const auto fetch = [&](int column) {
          typename Strip::Vector vector = {};
          if (exist >> column & 1u) {
            const int pixel = row * tile.in_columns + first_column + column;
            vector = *reinterpret_cast<const typename Strip::Vector*>(
                hidden + pixel * layout.hidden_pitch + own);
          }
          return vector;
        };
        T* target = y + (out_row * params.out_width + out_column) * params.channels;
        const auto store = [&](float (&values)[kColumns][kWidth]) {
          if constexpr (kSilu) {
            activate_scaled_silu<kAccuracyFor<T>>(values);
          } else {
            activate<kAccuracyFor<T>>(params.act, values);
          }
#pragma unroll
          for (int c = 0; c < kColumns; ++c) {
            if (strip_column + c >= tile.columns) continue;
            effv2::store(target + c * params.channels, values[c]);
#pragma unroll
            for (int j = 0; j < kWidth; ++j) totals[j] += values[c][j];
          }
          target += params.out_width * params.channels;
        };
        strip.template run<kSilu>(min(launch.rows, tile.rows - strip_row), skipped, begin, fetch,
                                  store);
      }
    };
    if (first_channel + own < params.channels) {
      if (params.act == Activation::kSilu) {
        convolve(std::true_type());
      } else {
        convolve(std::false_type());
      }
    }
    if (params.pooled == nullptr) continue;
    __syncthreads();  // nobody reads the expanded tile, over which the sums go
    const Squeeze squeeze = {params.pooled,   params.partial, image,
                             params.channels, first_channel,  params.out_height * params.out_width,
                             tiles,           part,           false};
    squeeze.finish<T>(totals, reinterpret_cast<float*>(hidden));
  }
}

template <typename T, int kKernel, int kStride, int kChunk>
cudaError_t launch_instance(const ExpandDepthwiseParams& params, cudaStream_t stream) {
  const ExpandDepthwiseLaunch& choice = params.launch;
  const int rows = (choice.tile_height - 1) * kStride + kKernel;
  const int columns = (choice.tile_width - 1) * kStride + kKernel;
  const int64_t pixels = int64_t{rows < params.height ? rows : params.height} *
                         (columns < params.width ? columns : params.width);
  const int tiles_down = (params.out_height + choice.tile_height - 1) / choice.tile_height;
  const int tiles_across = (params.out_width + choice.tile_width - 1) / choice.tile_width;
  const int64_t tiles = int64_t{tiles_down} * tiles_across;
  const int chunks = (params.channels + kChunk - 1) / kChunk;
  const int64_t blocks = params.size_n * tiles * ((chunks + choice.chunks - 1) / choice.chunks);
  // 8 bytes of shared memory a pixel are far too few: what is larger cannot fit.
  if (blocks > INT32_MAX || pixels > 232448 / 8) return cudaErrorInvalidConfiguration;
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(blocks));
  shape.block = dim3(kChunk / kDepthwiseWidth<kKernel>);
  shape.block.y = kThreads / shape.block.x;
  const size_t squeeze_bytes = squeeze_shared_bytes(kChunk, static_cast<int>(shape.block.y), 1);
  shape.shared_bytes =
      Layout(static_cast<int>(pixels), params.in_channels, kChunk, squeeze_bytes).bytes;
  const cudaError_t error =
      launch_with_shared<expand_depthwise_kernel<T, kKernel, kStride, kChunk>>(
          shape, stream, params, static_cast<int>(pixels));
  if (error != cudaSuccess || params.pooled == nullptr || tiles == 1) return error;
  return launch_squeeze_finish<T>(params.partial, params.pooled, params.size_n, params.channels,
                                  static_cast<int>(tiles), params.out_height * params.out_width,
                                  stream);
}

template <typename T, int kChunk>
cudaError_t launch_window(const ExpandDepthwiseParams& params, cudaStream_t stream) {
  switch (params.kernel * 10 + params.stride) {
    case 31:
      return launch_instance<T, 3, 1, kChunk>(params, stream);
    case 32:
      return launch_instance<T, 3, 2, kChunk>(params, stream);
    case 51:
      return launch_instance<T, 5, 1, kChunk>(params, stream);
    case 52:
      return launch_instance<T, 5, 2, kChunk>(params, stream);
  }
  return cudaErrorInvalidValue;
}

template <typename T>
cudaError_t launch_dtype(const ExpandDepthwiseParams& params, cudaStream_t stream) {
  if (params.launch.chunk == 64) return launch_window<T, 64>(params, stream);
  if (params.launch.chunk == 32) return launch_window<T, 32>(params, stream);
  return cudaErrorInvalidValue;
}

}  // namespace effv2::expand_depthwise

namespace effv2 {

cudaError_t launch_expand_depthwise(const ExpandDepthwiseParams& params, cudaStream_t stream) {
  switch (params.dtype) {
    case DType::kFloat16:
      return expand_depthwise::launch_dtype<__half>(params, stream);
    case DType::kBFloat16:
      return expand_depthwise::launch_dtype<__nv_bfloat16>(params, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace effv2
