// depthwise_bias_act: y = act(depthwise(x) + bias), and on request the mean of y over the image, in
// one pass; NHWC.
//
// Bytes: x and y once, the weights (k k C) are nothing beside them. FLOPs: 2 k k an output. So the
// floor is memory: at stride 1 and 16 bits 4 bytes an output, 0.93 ps on an H200 (4.3 TB/s),
// against 0.3 ps of multiplications for 3x3. Not measured on a GPU. What a design can lose is (1)
// reading a pixel 9 times, out of L1 or L2, and (2) instructions: a multiprocessor moves an output
// in 0.21 clocks, in which it can issue 27 instructions for it. Here it is about 19: 9
// multiplications, 2 conversions (columns / 2
// + 1 loaded a stored column), activation 3, and loads, stores and addresses.
//
// Tile: a thread computes a strip of 2 output columns (common/depthwise.cuh) of 16 bytes of
// channels at 3x3. Its weights (72 floats) and sums (48) take about 200 registers, so that only 2
// blocks of 128 threads fit on a multiprocessor: what hides the latency of memory is not the number
// of warps but kAhead rows on their way to shared memory by cp.async, which costs no registers: 24
// KB, where half of 4.3 TB/s (the other half is written) at 700 ns need 12 KB. A row is asked for
// 2x at 3x3, but neighbouring strips are in the same block and the second request ends in L1.
// channel_threads lanes lie along the channels (8 make a line of 128 bytes), the other threads take
// strips of one image, columns first.
//
// Squeeze: a thread adds up what it stores, a block adds its threads in a fixed order. `parts`
// blocks share an image: one cluster, whose first block adds up the parts (sm_90 and later), or
// else blocks that leave their sums in memory for finish_kernel. No atomics: the same bits every
// time.

#include "common/activations.cuh"
#include "common/depthwise.cuh"
#include "common/launch.cuh"
#include "common/reduce.cuh"
#include "common/squeeze.cuh"
#include "common/vector_io.cuh"
#include "kernels.h"

namespace effv2::depthwise {

constexpr int kMostThreads = 128;
constexpr int kBlocks = 2;  // of a multiprocessor, at least
constexpr int kAhead = 3;   // input rows that are on their way while one is computed
constexpr int kStages = kAhead + 1;

// Channels that do not fill vectors are read one by one, and not ahead.
template <typename Strip>
constexpr bool kStaged = Strip::kWidth > 1;

// The input rows that a thread has asked for, in shared memory. Copies are of 16 bytes: where a
// thread takes fewer of a pixel, 2 or 4 neighbouring lanes share them, and copy different columns.
// Nobody else touches their slots: no barrier of the block is needed. A row is numbered from the
// strip's first.
template <typename Strip>
class Stages {
 public:
  using Vector = typename Strip::Vector;
  static constexpr int kShare = 16 / static_cast<int>(sizeof(Vector));

  __device__ __forceinline__ explicit Stages(Vector* shared) {
    const int thread = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
    threads_ = static_cast<int>(blockDim.x * blockDim.y);
    own_ = shared + thread;
    mate_ = thread % kShare;
    mates_ = ((1u << kShare) - 1u) << (thread % kWarp - mate_);
  }

  // Asks for the columns whose bit is set; `source(column)` is where the thread's vector is. Every
  // call closes a group.
  template <typename Source>
  __device__ __forceinline__ void ask(int row, unsigned columns, const Source& source) {
    if constexpr (kShare > 1) __syncwarp(mates_);  // all have read what is overwritten
#pragma unroll
    for (int column = 0; column < Strip::kInputs; ++column) {
      if ((columns >> column & 1u) && column % kShare == mate_) {
        ptx::cp_async_cached16(slot(row, column) - mate_, source(column) - mate_ * Strip::kWidth);
      }
    }
    ptx::cp_async_commit();
  }

  // Waits for all but the newest kAhead rows.
  __device__ __forceinline__ void wait() const {
    ptx::cp_async_wait<kAhead>();
    if constexpr (kShare > 1) __syncwarp(mates_);
  }

  __device__ __forceinline__ Vector get(int row, int column) const { return *slot(row, column); }

 private:
  __device__ __forceinline__ Vector* slot(int row, int column) const {
    return own_ + (row % kStages * Strip::kInputs + column) * threads_;
  }

  Vector* own_;
  int threads_;
  int mate_;        // of those that share: 0, 1, ...
  unsigned mates_;  // a mask of lanes
};

template <typename Strip>
__host__ __device__ constexpr size_t stage_bytes(int threads) {
  return kStaged<Strip> ? sizeof(typename Strip::Vector) * kStages * Strip::kInputs * threads : 0;
}

template <typename T, int kKernel, int kStride, int kWidth>
__global__ void __launch_bounds__(kMostThreads, kBlocks)
    depthwise_kernel(const DepthwiseParams params) {
  using Strip = DepthwiseStrip<T, kKernel, kStride, kWidth>;
  constexpr int kColumns = Strip::kColumns;

  const DepthwiseLaunch& launch = params.launch;
  const int channel_blocks =
      (params.channels + launch.channel_threads * kWidth - 1) / (launch.channel_threads * kWidth);
  const int part = static_cast<int>(blockIdx.x % static_cast<unsigned>(launch.parts));
  const unsigned rest = blockIdx.x / static_cast<unsigned>(launch.parts);
  const int64_t image = rest / static_cast<unsigned>(channel_blocks);
  const int channel_block = static_cast<int>(rest % static_cast<unsigned>(channel_blocks));
  const int first_channel = channel_block * launch.channel_threads * kWidth;
  const int channel = first_channel + static_cast<int>(threadIdx.x) * kWidth;

  float sums[kWidth] = {};
  if (channel < params.channels) {
    const T* x = static_cast<const T*>(params.x) +
                 image * params.height * params.width * params.channels + channel;
    T* y = static_cast<T*>(params.y) +
           image * params.out_height * params.out_width * params.channels + channel;
    Strip strip;
    strip.load_weights(static_cast<const T*>(params.weight), params.bias, params.bias_is_float,
                       channel);
    const int strips_across = (params.out_width + kColumns - 1) / kColumns;
    const int strips = strips_across * ((params.out_height + launch.rows - 1) / launch.rows);
    const int step = launch.parts * static_cast<int>(blockDim.y);
    for (int i = part * static_cast<int>(blockDim.y) + static_cast<int>(threadIdx.y); i < strips;
         i += step) {
      const int out_row = i / strips_across * launch.rows;
      const int out_column = i % strips_across * kColumns;
      const int first_column = out_column * kStride - params.pad_left;
      unsigned inside = 0;
#pragma unroll
      for (int column = 0; column < Strip::kInputs; ++column) {
        const bool exists = first_column + column >= 0 && first_column + column < params.width;
        inside |= static_cast<unsigned>(exists) << column;
      }
      const int rows = min(launch.rows, params.out_height - out_row);
      const int first_row = out_row * kStride - params.pad_top;
      const int last_row = first_row + (rows - 1) * kStride + kKernel - 1;
      const auto source = [&](int row, int column) {
        const int pixel = row * params.width + first_column + column;
        return x + pixel * params.channels;
      };
      Stages<Strip> stages(dynamic_shared<typename Strip::Vector>());
      const auto ask = [&](int row) {
        stages.ask(row - first_row,
                   row <= last_row && row >= 0 && row < params.height ? inside : 0u,
                   [&](int column) { return source(row, column); });
      };
      if constexpr (kStaged<Strip>) {
        for (int ahead = 0; ahead < kAhead; ++ahead) ask(first_row + ahead);
      }
      const auto begin = [&](int row) {
        if constexpr (kStaged<Strip>) {
          ask(row + kAhead);
          stages.wait();
        }
      };
      const auto fetch = [&](int row, int column) {
        if constexpr (kStaged<Strip>) return stages.get(row - first_row, column);
        return *reinterpret_cast<const typename Strip::Vector*>(source(row, column));
      };
      const auto store = [&](int row, float (&values)[kColumns][kWidth]) {
        activate<kAccuracyFor<T>>(params.act, values);
        const int pixel = (out_row + row) * params.out_width + out_column;
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          if (out_column + c >= params.out_width) continue;
          effv2::store(y + (pixel + c) * params.channels, values[c]);
#pragma unroll
          for (int j = 0; j < kWidth; ++j) sums[j] += values[c][j];
        }
      };
      strip.run(rows, first_row, params.height, inside, begin, fetch, store);
    }
  }
  if (params.pooled == nullptr) return;

  const Squeeze squeeze = {params.pooled,   params.partial, image,
                           params.channels, first_channel,  params.out_height * params.out_width,
                           launch.parts,    part,           launch.cluster};
  squeeze.finish<T>(
      sums, dynamic_shared<float>() + stage_bytes<Strip>(blockDim.x * blockDim.y) / sizeof(float));
}

template <typename T, int kKernel, int kStride, int kWidth>
cudaError_t launch_instance(const DepthwiseParams& params, cudaStream_t stream) {
  const DepthwiseLaunch& choice = params.launch;
  const int64_t block_channels = int64_t{choice.channel_threads} * kWidth;
  const int64_t channel_blocks = (params.channels + block_channels - 1) / block_channels;
  const int64_t blocks = params.size_n * channel_blocks * choice.parts;
  if (blocks > INT32_MAX || choice.channel_threads * choice.strip_threads > kMostThreads) {
    return cudaErrorInvalidConfiguration;
  }
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(blocks));
  shape.block = dim3(static_cast<unsigned>(choice.channel_threads),
                     static_cast<unsigned>(choice.strip_threads));
  shape.shared_bytes = stage_bytes<DepthwiseStrip<T, kKernel, kStride, kWidth>>(
      choice.channel_threads * choice.strip_threads);
  if (params.pooled != nullptr) {
    shape.shared_bytes += squeeze_shared_bytes(
        choice.channel_threads * kWidth, choice.strip_threads, choice.cluster ? choice.parts : 1);
    if (choice.cluster) shape.cluster_x = static_cast<unsigned>(choice.parts);
  }
  const cudaError_t error =
      launch_with_shared<depthwise_kernel<T, kKernel, kStride, kWidth>>(shape, stream, params);
  if (error != cudaSuccess || params.pooled == nullptr || choice.parts == 1 || choice.cluster) {
    return error;
  }
  return launch_squeeze_finish<T>(params.partial, params.pooled, params.size_n, params.channels,
                                  choice.parts, params.out_height * params.out_width, stream);
}

template <typename T, int kKernel, int kStride>
cudaError_t launch_width(DepthwiseParams params, cudaStream_t stream) {
  constexpr int kWide = kDepthwiseWidth<T, kKernel>;
  // Where channels do not fill vectors, or a slice is not aligned, a thread takes one channel.
  DepthwiseLaunch& choice = params.launch;
  const bool wide = vector_width<T>(params.x, params.channels) == kWidest<T> &&
                    vector_width<T>(params.weight, params.channels) == kWidest<T> &&
                    vector_width<T>(params.bias, params.channels) == kWidest<T> &&
                    choice.channel_threads % (kWidest<T> / kWide) == 0;
  if (choice.cluster) {
    DeviceLimits limits;
    if (cudaError_t err = current_device_limits(&limits); err != cudaSuccess) return err;
    // Sizes that every GPU with clusters takes.
    const bool takes = choice.parts == 2 || choice.parts == 4 || choice.parts == 8;
    choice.cluster = takes && limits.clusters && params.pooled != nullptr &&
                     has_cluster_code<depthwise_kernel<T, kKernel, kStride, kWide>>();
  }
  return wide ? launch_instance<T, kKernel, kStride, kWide>(params, stream)
              : launch_instance<T, kKernel, kStride, 1>(params, stream);
}

template <typename T>
cudaError_t launch_dtype(const DepthwiseParams& params, cudaStream_t stream) {
  switch (params.kernel * 10 + params.stride) {
    case 31:
      return launch_width<T, 3, 1>(params, stream);
    case 32:
      return launch_width<T, 3, 2>(params, stream);
    case 51:
      return launch_width<T, 5, 1>(params, stream);
    case 52:
      return launch_width<T, 5, 2>(params, stream);
    case 71:
      return launch_width<T, 7, 1>(params, stream);
    case 72:
      return launch_width<T, 7, 2>(params, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace effv2::depthwise

namespace effv2 {

cudaError_t launch_depthwise(const DepthwiseParams& params, cudaStream_t stream) {
  switch (params.dtype) {
    case DType::kFloat32:
      return depthwise::launch_dtype<float>(params, stream);
    case DType::kFloat16:
      return depthwise::launch_dtype<__half>(params, stream);
    case DType::kBFloat16:
      return depthwise::launch_dtype<__nv_bfloat16>(params, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace effv2
