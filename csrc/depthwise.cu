// depthwise_bias_act: y = act(depthwise(x) scale + shift), and on request the mean of y over the
// image, in one pass; NHWC.
//
// Bytes: x and y once, the weights (k k C) are nothing beside them. FLOPs: 2 k k an output. So the
// floor is memory: at stride 1 and 16 bits 4 bytes an output, 0.93 ps on an H200 (4.3 TB/s copy),
// against 0.3 ps of multiplications for 3x3. A multiprocessor moves an output in 0.21 clocks, in
// which it can issue 27 instructions for it. The row loop of bfloat16 and SiLU takes, an output
// (sm_90a; float16 2 more for SiLU):
//   3x3 stride 1 17.2, stride 2 23.4; 5x5 37, 46; 7x7 62, 72
// 17.2 are 9 multiplications, 2 of SiLU, 1.5 conversions of inputs (6 loaded for 4 stored columns)
// and 0.5 of outputs, 1 sum of the squeeze, 3.2 for loads, stores, addresses and control.
//
// Measured on an H200 before this form (36 instructions an output at stride 1, 49 at stride 2;
// bfloat16, SiLU, squeeze, batch 128): 24x24x960 202 us (33 % of the floor's bandwidth), 24x24x512
// 106 us (33 %), 12x12x1536 116 us (23 %); stride 2: 48x48x256 64 us (70 %), 24x24x960 80 us
// (52 %). What cost that: instructions, 8 warps a multiprocessor, one of four of them without a
// strip at 24 and at 12 columns, the last wave. This form, when it had 18 instructions: 85 us
// (78 %), 47 us (75 %), 38 us (71 %); stride 2: 52 us (85 %), 50 us (83 %). With 17.2 only
// 48x48x256 was measured: 50.5 us (90 %).
//
// Tile: a thread computes a strip of 4 output columns of 4 channels at 3x3, of 2 at larger windows
// (common/depthwise.cuh), in at most 168 registers: 12 warps on a multiprocessor. What hides the
// latency of memory is, beside them, kAhead rows on their way to shared memory by cp.async, which
// costs no registers: 36 KB, where half of 4.3 TB/s (the other half is written) at 700 ns need 12
// KB. A column is asked for 1.5x at 3x3 stride 1, but neighbouring strips are in the same block and
// the second request ends in L1. channel_threads lanes lie along the channels (16 make a line of
// 128 bytes), the other threads take strips of one image, columns first. The row loop has no
// branch but its own: rows and columns outside of the image are zeros that cp.async writes, and
// outputs that do not exist are not stored, by predicates.
//
// Tried, in machine code only: 8 channels x 2 columns (a prototype: 18.0 instructions, 239
// registers); 4 x 4 in 128 registers, for 16 warps (spilled 56 bytes); jumping over the rows
// outside of the image (every row then copies the bias into its first sums, 16 moves in 290
// instructions; the rows of zeros are at most one in 12 at the networks' maps).
//
// Squeeze: a thread adds up what it stores, a block adds its threads in a fixed order. `parts`
// blocks share an image: one cluster, whose first block adds up the parts (sm_90 and later), or
// else blocks that leave their sums in memory for finish_kernel. No atomics: the same bits every
// time.

#include <type_traits>

#include "common/activations.cuh"
#include "common/depthwise.cuh"
#include "common/launch.cuh"
#include "common/reduce.cuh"
#include "common/squeeze.cuh"
#include "common/vector_io.cuh"
#include "kernels.h"

namespace effv2::depthwise {

constexpr int kMostThreads = 128;
constexpr int kAhead = 3;  // input rows that are on their way while one is computed
constexpr int kStages = kAhead + 1;

// Blocks of kMostThreads that a multiprocessor must have registers for; the launch choice knows.
template <typename T, int kKernel>
constexpr int kBlocks = kKernel == 7 || sizeof(T) == 4 ? 2 : 3;

// Channels that do not fill vectors are read one by one, and not ahead.
template <typename Strip>
constexpr bool kStaged = Strip::kWidth > 1;

// The input rows of its strip that a thread has asked for, in shared memory. Copies are of 16
// bytes: where a thread takes fewer of a pixel, 2 or 4 neighbouring lanes share them, and copy
// different columns. Only a warp touches its slots, and its lanes walk down the rows together: no
// barrier of the block is needed. What is outside of the image is filled with zeros, so that
// the computation has no branches.
template <typename Strip>
class Stages {
 public:
  using Vector = typename Strip::Vector;
  using Element = std::remove_reference_t<decltype(Vector{}.element[0])>;
  static constexpr int kShare = 16 / static_cast<int>(sizeof(Vector));
  static constexpr int kCopies = (Strip::kInputs + kShare - 1) / kShare;  // of a lane, of a row
  // The slots of a column, one a lane, lie together: a column's distance from the first is then a
  // constant, whatever the block's shape.
  static constexpr int kSlot = sizeof(Vector);
  static constexpr int kColumnStep = kWarp * kSlot;
  static constexpr int kStageStep = kCopies * kShare * kColumnStep;
  static constexpr int kBytes = kStages * kStageStep;  // of a warp

  __device__ __forceinline__ Stages() {
    const int thread = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
    const int lane = thread % kWarp;
    mate_ = lane % kShare;
    first_ = thread / kWarp * kBytes + lane * kSlot;
    to_copy_ = mate_ * (kColumnStep - kSlot);
    ptx::keep(to_copy_);
  }

  // `source`: the thread's vector in the strip's first row and column, from which columns are
  // `channels` and rows `pitch` elements apart; columns [begin, end) of the strip are in the image.
  // Asks for the first kAhead rows; exists(i) says whether row i is in the image and needed.
  template <typename Exists>
  __device__ __forceinline__ void start(const Element* source, int channels, int pitch, int begin,
                                        int end, const Exists& exists) {
    pitch_ = pitch;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int column = i * kShare + mate_;
      inside_[i] = column >= begin && column < end;
      source_[i] = source + (column * channels - mate_ * Strip::kWidth);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) ask(first_ + i * kStageStep, exists(i));
    current_ = first_ + kAhead * kStageStep;
  }

  // Goes on to the next row, and asks for the one kAhead later, into the slots of the row before.
  __device__ __forceinline__ void next(bool exists) {
    ask(current_, exists);
    ptx::cp_async_wait<kAhead>();
    __syncwarp();
    current_ = current_ == first_ + kAhead * kStageStep ? first_ : current_ + kStageStep;
    ptx::keep(current_);
  }

  __device__ __forceinline__ Vector get(int column) const {
    return *reinterpret_cast<const Vector*>(shared(current_ + column * kColumnStep));
  }

 private:
  static __device__ __forceinline__ unsigned char* shared(int at) {
    return dynamic_shared<unsigned char>() + at;
  }

  // Every call closes a group.
  __device__ __forceinline__ void ask(int slot, bool exists) {
    if constexpr (kShare > 1) __syncwarp();  // all have read what is overwritten
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      ptx::cp_async_cached16(shared(slot + to_copy_ + i * kShare * kColumnStep), source_[i],
                             exists && inside_[i]);
      source_[i] += pitch_;
      ptx::keep(source_[i]);
    }
    ptx::cp_async_commit();
  }

  // In bytes from the start of the block's shared memory: 32 bits, which the compiler is told to
  // keep and to add to, where it would form them again from the block's shape for every row.
  int first_;    // slot of this thread
  int current_;  // that of the row that is computed
  int mate_;     // of those that share: 0, 1, ...
  int to_copy_;  // from this thread's slot to the first that it fills
  int pitch_;
  const Element* source_[kCopies];
  bool inside_[kCopies];
};

template <typename Strip>
__host__ __device__ constexpr size_t stage_bytes(int threads) {
  if (!kStaged<Strip>) return 0;
  return static_cast<size_t>(Stages<Strip>::kBytes) * ((threads + kWarp - 1) / kWarp);
}

// kSilu: the activation is SiLU. The instance of the others chooses in each row.
template <typename T, int kKernel, int kStride, int kWidth, bool kSilu>
__global__ void __launch_bounds__(kMostThreads, kBlocks<T, kKernel>)
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
  const T* x = static_cast<const T*>(params.x) +
               image * params.height * params.width * params.channels + channel;
  T* y = static_cast<T*>(params.y) +
         image * params.out_height * params.out_width * params.channels + channel;
  const int pitch = params.width * params.channels;
  int out_pitch = params.out_width * params.channels;
  ptx::keep(out_pitch);
  int across[kColumns];  // from an output to those of the strip to its right
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    across[c] = c * params.channels;
    if (c > 0) ptx::keep(across[c]);
  }
  Strip strip;
  Stages<Strip> stages;
  const int strips_across = (params.out_width + kColumns - 1) / kColumns;
  const int strips = strips_across * ((params.out_height + launch.rows - 1) / launch.rows);
  const int step = launch.parts * static_cast<int>(blockDim.y);
  bool weights_are_there = false;
  for (int round = part * static_cast<int>(blockDim.y); round < strips; round += step) {
    const int i = round + static_cast<int>(threadIdx.y);
    const bool works = channel < params.channels && i < strips;
    if (kStaged<Strip> ? !__any_sync(0xffffffffu, works) : !works) continue;
    const int strip_index = min(i, strips - 1);
    const int out_row = strip_index / strips_across * launch.rows;
    const int out_column = strip_index % strips_across * kColumns;
    const int own_rows = min(launch.rows, params.out_height - out_row);
    int rows = own_rows;
    int skipped = Strip::steps_above(out_row * kStride - params.pad_top);
    if constexpr (kStaged<Strip>) {
      // The lanes of a warp go together: over all rows of the first, whose strip is the highest,
      // and from where the last begins, whose strip is the lowest.
      rows = __shfl_sync(0xffffffffu, rows, 0);
      skipped = __shfl_sync(0xffffffffu, skipped, kWarp - 1);
    }
    const int first_row = (out_row + skipped) * kStride - params.pad_top;
    const int first_column = out_column * kStride - params.pad_left;
    // The rows of the image that the strip needs end before this one.
    const int end_row = (out_row + own_rows - 1) * kStride - params.pad_top + kKernel;
    const auto end = static_cast<unsigned>(works ? max(min(end_row, params.height), 0) : 0);
    const auto exists = [&](int row) { return static_cast<unsigned>(row) < end; };
    if constexpr (kStaged<Strip>) {
      stages.start(x + (first_row * params.width + first_column) * params.channels, params.channels,
                   pitch, -first_column, params.width - first_column,
                   [&](int row) { return exists(first_row + row); });
    }
    if (!weights_are_there) {  // they come while the first rows do
      strip.load_weights(static_cast<const T*>(params.weight), params.norm,
                         min(channel, params.channels - kWidth),
                         kSilu ? kSiluScale<kAccuracyFor<T>> : 1.0f);
      weights_are_there = true;
    }
    int row = first_row - 1;
    const auto begin = [&] {
      ++row;
      if constexpr (kStaged<Strip>) stages.next(exists(row + kAhead));
    };
    const auto fetch = [&](int column) {
      if constexpr (kStaged<Strip>) {
        return stages.get(column);
      } else {
        using Vector = typename Strip::Vector;
        const bool inside = exists(row) && static_cast<unsigned>(first_column + column) <
                                               static_cast<unsigned>(params.width);
        const int pixel = row * params.width + first_column + column;
        return inside ? *reinterpret_cast<const Vector*>(x + pixel * params.channels) : Vector{};
      }
    };
    T* target = y + (out_row * params.out_width + out_column) * params.channels;
    int columns = works ? min(kColumns, params.out_width - out_column) : 0;
    ptx::keep(columns);
    int left = own_rows;
    const auto store = [&](float (&values)[kColumns][kWidth]) {
      if constexpr (kSilu) {
        activate_scaled_silu<kAccuracyFor<T>>(values);
      } else {
        activate<kAccuracyFor<T>>(params.act, values);
      }
      const int stored = left > 0 ? columns : 0;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        int distance = across[c];
        if (c > 0) ptx::keep(distance);
        ptx::store_if_at_least(target + distance, pack<T>(values[c]), stored, c + 1);
      }
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          ptx::add_if_at_least(sums[j], values[c][j], stored, c + 1);
        }
      }
      --left;
      target += out_pitch;
    };
    strip.template run<kSilu>(rows, skipped, begin, fetch, store);
  }
  if (params.pooled == nullptr) return;

  const Squeeze squeeze = {params.pooled,   params.partial, image,
                           params.channels, first_channel,  params.out_height * params.out_width,
                           launch.parts,    part,           launch.cluster};
  squeeze.finish<T>(
      sums, dynamic_shared<float>() + stage_bytes<Strip>(blockDim.x * blockDim.y) / sizeof(float));
}

template <typename T, int kKernel, int kStride, int kWidth, bool kSilu>
cudaError_t launch_instance(const DepthwiseParams& params, cudaStream_t stream) {
  const DepthwiseLaunch& choice = params.launch;
  const int64_t block_channels = int64_t{choice.channel_threads} * kWidth;
  const int64_t channel_blocks = (params.channels + block_channels - 1) / block_channels;
  const int64_t blocks = params.size_n * channel_blocks * choice.parts;
  using Strip = DepthwiseStrip<T, kKernel, kStride, kWidth>;
  // Whole warps: staged lanes wait for each other.
  int strip_threads = choice.strip_threads;
  while (kStaged<Strip> && choice.channel_threads * strip_threads % kWarp != 0) ++strip_threads;
  if (blocks > INT32_MAX || choice.channel_threads * strip_threads > kMostThreads) {
    return cudaErrorInvalidConfiguration;
  }
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(blocks));
  shape.block =
      dim3(static_cast<unsigned>(choice.channel_threads), static_cast<unsigned>(strip_threads));
  shape.shared_bytes = stage_bytes<Strip>(choice.channel_threads * strip_threads);
  if (params.pooled != nullptr) {
    shape.shared_bytes += squeeze_shared_bytes(choice.channel_threads * kWidth, strip_threads,
                                               choice.cluster ? choice.parts : 1);
    if (choice.cluster) shape.cluster_x = static_cast<unsigned>(choice.parts);
  }
  const cudaError_t error =
      launch_with_shared<depthwise_kernel<T, kKernel, kStride, kWidth, kSilu>>(shape, stream,
                                                                               params);
  if (error != cudaSuccess || params.pooled == nullptr || choice.parts == 1 || choice.cluster) {
    return error;
  }
  return launch_squeeze_finish<T>(params.partial, params.pooled, params.size_n, params.channels,
                                  choice.parts, params.out_height * params.out_width, stream);
}

template <typename T, int kKernel, int kStride>
cudaError_t launch_width(DepthwiseParams params, cudaStream_t stream) {
  constexpr int kWide = kDepthwiseWidth<kKernel>;
  // Where channels do not fill vectors, or a slice is not aligned, a thread takes one channel.
  DepthwiseLaunch& choice = params.launch;
  const bool wide = vector_width<T>(params.x, params.channels) == kWidest<T> &&
                    vector_width<T>(params.weight, params.channels) == kWidest<T> &&
                    choice.channel_threads % (kWidest<T> / kWide) == 0;
  if (choice.cluster) {
    DeviceLimits limits;
    if (cudaError_t err = current_device_limits(&limits); err != cudaSuccess) return err;
    // Sizes that every GPU with clusters takes.
    const bool takes = choice.parts == 2 || choice.parts == 4 || choice.parts == 8;
    choice.cluster = takes && limits.clusters && params.pooled != nullptr &&
                     has_cluster_code<depthwise_kernel<T, kKernel, kStride, kWide, true>>();
  }
  if (!wide) return launch_instance<T, kKernel, kStride, 1, false>(params, stream);
  return params.act == Activation::kSilu
             ? launch_instance<T, kKernel, kStride, kWide, true>(params, stream)
             : launch_instance<T, kKernel, kStride, kWide, false>(params, stream);
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
