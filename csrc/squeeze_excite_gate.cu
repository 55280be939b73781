// squeeze_excite_gate: gate = gate_act(W2 act(W1 pooled + b1) + b2), the two small layers of
// squeeze-and-excite.
//
// Bytes: both weight matrices once (2 m r), pooled and gate (2 n m). FLOPs: 4 n m r. The largest of
// V2-S (m 1536, r 64, bf16) is 393 KB: 0.1 us of HBM and, at n = 1, 0.4 MFLOP. So the floor at
// small n is not a throughput but the latency of one launch and of two dependent reads of memory
// (about 3 us together), and what a design can lose is the rate at which one multiprocessor reads
// L2: 64 B a clock, 3.4 us for those 393 KB, 22 us for the largest of V2-L.
//
// Hence, at small n, the blocks of a thread-block cluster share one image: each computes a part of
// the hidden vector, stores it to the shared memory of all (256 bytes of traffic), and after one
// cluster barrier each expands a part of the channels. Without clusters (before sm_90) each block
// computes the whole hidden vector again, which costs no memory traffic beyond L2 and needs no
// communication. At large n a block takes up to 8 images, so that weights are read from L2 once for
// 8 images, and the floor is 4 n m r at the FMA rate (7 us at n = 1024 for the shape above).
//
// Tile: a warp computes 4 weight rows x kImages images at a time. Each weight vector (16 bytes a
// lane where alignment allows, coalesced) is then used kImages times and each activation vector 4
// times from registers. `pooled` is read through L1 and not staged: a block's images are at most 8
// x 3840 x 2 bytes, and staging would add a barrier to the latency chain. Reduction over lanes is a
// reduce-scatter (reduce.cuh), with no atomics: the result is the same in every run on one device.
//
// The activations run n (m + r) times beside n m r multiplications: they are exact, since nothing
// is to be gained from the fast ones, and a gate near 0 would lose its digits.

#include <algorithm>

#include "common/activations.cuh"
#include "common/launch.cuh"
#include "common/reduce.cuh"
#include "common/vector_io.cuh"
#include "kernels.h"

// Named, not anonymous: a profile and build_info() show the kernels' names.
namespace effv2::squeeze_excite {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;
constexpr int kRows = 4;        // weight rows of a warp's tile
constexpr int kMostParts = 8;   // the largest cluster size that every sm_90 and later accepts
constexpr int kMostImages = 8;  // images of a block
constexpr int kHiddenBytes =
    40960;  // shared memory for the hidden vectors; with the partial sums below 48 KB

// Where a block keeps the hidden vectors of its images.
enum class Hidden {
  kShared,   // in its shared memory; the block computes all of it
  kCluster,  // in the shared memory of each block of the cluster; each computes a part
  kScratch,  // in global memory, for a reduction too wide for shared memory; the block computes all
             // of it
};

// How the work is laid out; see choose_tiling().
struct Tiling {
  int images;  // of a block: 1, 2, 4 or 8
  int parts;   // blocks that share the channels of one group of images
  Hidden hidden;
};

// What the kernel needs beyond the parameters, fixed at launch.
struct KernelParams {
  SqueezeExciteGateParams op;
  int parts;
  int reduce_width;  // elements of a vector load from rows of m elements
  int expand_width;  // the same for rows of r elements
  int expand_lanes;  // lanes that share a row of r elements: a power of two
};

// kCount rows of a matrix, as offsets in elements from one pointer: half the registers of as many
// pointers. ops.cpp bounds m and r so that the offsets of 8 rows fit.
template <typename T, int kCount>
struct Rows {
  const T* base;
  int offset[kCount];
};

// acc[t * kRows + i] += sum over k of weight row i [k] * input row t [k], for the vectors of k that
// this lane owns. Input is T in global memory (pooled) or float (the hidden vectors).
template <int kWidth, int kImages, typename T, typename Input>
__device__ __forceinline__ void accumulate(const Rows<T, kRows>& weight,
                                           const Rows<Input, kImages>& input, int length,
                                           int first_vector, int vector_step,
                                           float (&acc)[kImages * kRows]) {
  // Two iterations in flight hide more latency; with several images the registers are needed for
  // the sums.
#pragma unroll(kImages == 1 ? 2 : 1)
  for (int k = first_vector * kWidth; k < length; k += vector_step * kWidth) {
    float w[kRows][kWidth];
#pragma unroll
    for (int i = 0; i < kRows; ++i) load(weight.base + weight.offset[i] + k, w[i]);
#pragma unroll
    for (int t = 0; t < kImages; ++t) {
      float x[kWidth];
      load(input.base + input.offset[t] + k, x);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int j = 0; j < kWidth; ++j) acc[t * kRows + i] += w[i][j] * x[j];
      }
    }
  }
}

// Elements of the vectors that the kernel loads, given the widest that the alignment allows: 16
// bytes, 8 bytes (r = 20, 44, 76), or one element. With 8 images 8 bytes are the most: the sums
// alone take 32 registers, and more spills.
template <typename T, int kImages>
__host__ __device__ constexpr int used_width(int allowed) {
  if (kImages < 8 && allowed == kWidest<T>) return allowed;
  return allowed >= kWidest<T> / 2 ? kWidest<T> / 2 : 1;
}

template <int kImages, typename T, typename Input>
__device__ __forceinline__ void accumulate(int width, const Rows<T, kRows>& weight,
                                           const Rows<Input, kImages>& input, int length,
                                           int first_vector, int vector_step,
                                           float (&acc)[kImages * kRows]) {
  constexpr int kWide = used_width<T, kImages>(kWidest<T>);
  constexpr int kNarrow = used_width<T, kImages>(kWidest<T> / 2);
  if (width == kWide) {
    accumulate<kWide, kImages>(weight, input, length, first_vector, vector_step, acc);
  } else if (kNarrow != kWide && width == kNarrow) {
    accumulate<kNarrow, kImages>(weight, input, length, first_vector, vector_step, acc);
  } else {
    accumulate<1, kImages>(weight, input, length, first_vector, vector_step, acc);
  }
}

// Rows of the hidden vectors are padded so that vector loads of each are aligned.
__host__ __device__ constexpr int64_t padded(int64_t r) {
  return (r + 7) / 8 * 8;
}

template <typename T, int kImages, Hidden kHidden>
__global__ void __launch_bounds__(kThreads, 1)
    squeeze_excite_gate_kernel(const KernelParams params) {
  static_assert(kHidden != Hidden::kCluster || kImages == 1, "a cluster shares one image");
  constexpr int kSums = kImages * kRows;
  // Partial sums of the first layer where several warps share its rows: [k part][row
  // group][image][row]. Those warps have one task each, so this does not grow with m or r.
  __shared__ float partial[kWarps * kSums];
  const SqueezeExciteGateParams& op = params.op;
  const int m = static_cast<int>(op.size_m);
  const int r = static_cast<int>(op.size_r);
  const int stride = static_cast<int>(padded(r));
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int part = static_cast<int>(blockIdx.x) % params.parts;
  const int64_t first_image = static_cast<int64_t>(blockIdx.x / params.parts) * kImages;

  float* hidden = dynamic_shared<float>();
  if constexpr (kHidden == Hidden::kScratch) hidden = op.hidden + first_image * stride;

  // No block may write to the shared memory of another before that one runs; the wait is just
  // before the writes.
  if constexpr (kHidden == Hidden::kCluster) ptx::cluster_arrive();

  // ---- first layer: rows [row_begin, row_begin + rows) of the hidden vectors
  int row_begin = 0;
  int rows = r;
  if constexpr (kHidden == Hidden::kCluster) {
    row_begin = static_cast<int>(static_cast<int64_t>(r) * part / params.parts);
    rows = static_cast<int>(static_cast<int64_t>(r) * (part + 1) / params.parts) - row_begin;
  }
  const int row_groups = (rows + kRows - 1) / kRows;
  const int k_parts = row_groups > 0 && row_groups < kWarps ? kWarps / row_groups : 1;
  const int tasks = row_groups * k_parts;

  // Past the last image (n not a multiple of kImages) the last one is computed again and not
  // stored; rows likewise.
  const int images = static_cast<int>(min(op.size_n - first_image, int64_t{kImages}));
  Rows<T, kImages> pooled;
  pooled.base = static_cast<const T*>(op.pooled) + first_image * m;
#pragma unroll
  for (int t = 0; t < kImages; ++t) pooled.offset[t] = min(t, images - 1) * m;

  const auto first_layer = [&](int task, float (&sums)[kSums]) {
    const int first_row = task / k_parts * kRows;
    Rows<T, kRows> weight;
    weight.base =
        static_cast<const T*>(op.reduce_weight) + static_cast<int64_t>(row_begin + first_row) * m;
#pragma unroll
    for (int i = 0; i < kRows; ++i) weight.offset[i] = min(i, rows - 1 - first_row) * m;
    accumulate<kImages>(params.reduce_width, weight, pooled, m, task % k_parts * kWarp + lane,
                        k_parts * kWarp, sums);
    return reduce_scatter(sums, kWarp);
  };

  // Bias, activation and store of one hidden value; in a cluster, to the copy of block `rank`.
  const auto publish = [&](int t, int row, float sum, int rank) {
    const float bias = to_float(static_cast<const T*>(op.reduce_bias)[row_begin + row]);
    const float value = activate<Accuracy::kExact>(op.act, sum + bias);
    float* target = hidden + t * stride + row_begin + row;
    if constexpr (kHidden == Hidden::kCluster) {
      ptx::store_shared_cluster(target, rank, value);
    } else {
      *target = value;
    }
  };

  constexpr int kCopies = kWarp / kSums;  // lanes that hold the same total after the reduction
  static_assert(kHidden != Hidden::kCluster || kCopies >= kMostParts, "one lane for each rank");
  // Lanes (and below threads) that publish the same value, each to its own rank.
  const int ranks = kHidden == Hidden::kCluster ? params.parts : 1;
  const int copy = lane % kCopies;

  if (k_parts == 1) {
    if constexpr (kHidden == Hidden::kCluster) ptx::cluster_wait();
    for (int task = warp; task < tasks; task += kWarps) {
      float sums[kSums] = {};
      const int first = first_layer(task, sums);
      const int row = task * kRows + first % kRows;
      if (row < rows && copy < ranks) publish(first / kRows, row, sums[0], copy);
    }
  } else {
    if (warp < tasks) {
      float sums[kSums] = {};
      const int first = first_layer(warp, sums);
      const int slot = warp % k_parts * row_groups + warp / k_parts;
      if (copy == 0) partial[slot * kSums + first] = sums[0];
    }
    __syncthreads();
    if constexpr (kHidden == Hidden::kCluster) ptx::cluster_wait();
    for (int i = static_cast<int>(threadIdx.x); i < row_groups * kSums * ranks; i += kThreads) {
      const int value = i / ranks;  // [row group][image][row]
      const int row = value / kSums * kRows + value % kRows;
      if (row >= rows) continue;
      float sum = 0.0f;
      for (int k = 0; k < k_parts; ++k) sum += partial[k * row_groups * kSums + value];
      publish(value % kSums / kRows, row, sum, i % ranks);
    }
  }

  if constexpr (kHidden == Hidden::kCluster) {
    ptx::cluster_arrive();
    ptx::cluster_wait();
  } else {
    __syncthreads();
  }

  // ---- second layer: channels [channel_begin, channel_end); expand_lanes lanes share the rows of
  // a tile
  const int channel_begin = static_cast<int>(op.size_m * part / params.parts);
  const int channel_end = static_cast<int>(op.size_m * (part + 1) / params.parts);
  const int lanes = params.expand_lanes;
  const int group_lane = lane % lanes;
  const int held = kSums > lanes ? kSums / lanes : 1;
  const bool stores = lanes <= kSums || group_lane % (lanes / kSums) == 0;

  Rows<float, kImages> hidden_rows;
  hidden_rows.base = hidden;
#pragma unroll
  for (int t = 0; t < kImages; ++t) hidden_rows.offset[t] = t * stride;

  const int warp_channels = kWarp / lanes * kRows;
  for (int warp_first = channel_begin + warp * warp_channels; warp_first < channel_end;
       warp_first += kWarps * warp_channels) {
    const int channel_first = warp_first + lane / lanes * kRows;
    // A group of lanes may lie past the end whole: its rows are then the last one.
    const int base_channel = min(channel_first, channel_end - 1);
    Rows<T, kRows> weight;
    weight.base = static_cast<const T*>(op.expand_weight) + static_cast<int64_t>(base_channel) * r;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      weight.offset[i] = min(i, channel_end - 1 - base_channel) * r;
    }
    float sums[kSums] = {};
    accumulate<kImages>(params.expand_width, weight, hidden_rows, r, group_lane, lanes, sums);
    const int first = reduce_scatter(sums, lanes);
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      const int t = (first + i) / kRows;
      const int channel = channel_first + (first + i) % kRows;
      if (i < held && stores && t < images && channel < channel_end) {
        const float bias = to_float(static_cast<const T*>(op.expand_bias)[channel]);
        static_cast<T*>(op.gate)[(first_image + t) * m + channel] =
            from_float<T>(activate<Accuracy::kExact>(op.gate_act, sums[i] + bias));
      }
    }
  }
}

// ---- launch choices

bool fits_shared(int images, int64_t r) {
  return images * padded(r) * static_cast<int64_t>(sizeof(float)) <= kHiddenBytes;
}

Tiling choose_tiling(int64_t n, int64_t m, int64_t r, int64_t element_bytes, int multiprocessors,
                     bool clusters) {
  if (!fits_shared(1, r)) return {1, 1, Hidden::kScratch};
  // More images a block only once a block for each group of images fills the device.
  int images = 1;
  while (images < kMostImages && n > static_cast<int64_t>(images) * multiprocessors &&
         fits_shared(2 * images, r)) {
    images *= 2;
  }
  // Split the channels while multiprocessors are idle and each part still has 16 KB of weights to
  // read, below which a barrier over the blocks costs more than it saves (an estimate: not
  // measured).
  const int64_t blocks = (n + images - 1) / images;
  const int64_t weight_bytes = 2 * m * r * element_bytes;
  int parts = 1;
  while (parts < kMostParts && 2 * parts * blocks <= multiprocessors &&
         2 * parts * int64_t{16384} <= weight_bytes) {
    parts *= 2;
  }
  const bool share = clusters && parts > 1 && images == 1;
  return {images, parts, share ? Hidden::kCluster : Hidden::kShared};
}

// The number of lanes on a row of the second layer that needs the fewest rounds of loads; more
// lanes, hence wider coalesced rows, among equals.
int choose_expand_lanes(int64_t channels, int64_t vectors) {
  int best_lanes = 1;
  int64_t best_rounds = INT64_MAX;
  for (int lanes = 1; lanes <= kWarp; lanes *= 2) {
    const int64_t channels_at_once = static_cast<int64_t>(kThreads) / lanes * kRows;
    const int64_t passes = (channels + channels_at_once - 1) / channels_at_once;
    const int64_t rounds = passes * ((vectors + lanes - 1) / lanes);
    if (rounds <= best_rounds) {
      best_rounds = rounds;
      best_lanes = lanes;
    }
  }
  return best_lanes;
}

template <typename T, int kImages, Hidden kHidden>
cudaError_t launch_instance(const SqueezeExciteGateParams& op, int parts, cudaStream_t stream) {
  KernelParams params;
  params.op = op;
  params.parts = parts;
  params.reduce_width = used_width<T, kImages>(std::min(
      vector_width<T>(op.reduce_weight, op.size_m), vector_width<T>(op.pooled, op.size_m)));
  params.expand_width = used_width<T, kImages>(vector_width<T>(op.expand_weight, op.size_r));
  params.expand_lanes = choose_expand_lanes(
      (op.size_m + parts - 1) / parts, (op.size_r + params.expand_width - 1) / params.expand_width);

  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>((op.size_n + kImages - 1) / kImages * parts));
  shape.block = dim3(kThreads);
  if (kHidden != Hidden::kScratch) shape.shared_bytes = kImages * padded(op.size_r) * sizeof(float);
  if (kHidden == Hidden::kCluster) shape.cluster_x = static_cast<unsigned>(parts);
  return launch(squeeze_excite_gate_kernel<T, kImages, kHidden>, shape, stream, params);
}

template <typename T>
cudaError_t launch_dtype(const SqueezeExciteGateParams& op, cudaStream_t stream) {
  DeviceLimits limits;
  if (cudaError_t err = current_device_limits(&limits); err != cudaSuccess) return err;
  const bool clusters =
      limits.clusters && has_cluster_code<squeeze_excite_gate_kernel<T, 1, Hidden::kCluster>>();
  const Tiling tiling =
      choose_tiling(op.size_n, op.size_m, op.size_r, sizeof(T), limits.multiprocessors, clusters);
  const int parts = tiling.parts;
  if (tiling.hidden == Hidden::kScratch) {
    return launch_instance<T, 1, Hidden::kScratch>(op, parts, stream);
  }
  if (tiling.hidden == Hidden::kCluster) {
    return launch_instance<T, 1, Hidden::kCluster>(op, parts, stream);
  }
  switch (tiling.images) {
    case 1:
      return launch_instance<T, 1, Hidden::kShared>(op, parts, stream);
    case 2:
      return launch_instance<T, 2, Hidden::kShared>(op, parts, stream);
    case 4:
      return launch_instance<T, 4, Hidden::kShared>(op, parts, stream);
    default:
      return launch_instance<T, 8, Hidden::kShared>(op, parts, stream);
  }
}

}  // namespace effv2::squeeze_excite

namespace effv2 {

int64_t squeeze_excite_gate_scratch(const SqueezeExciteGateParams& params) {
  return squeeze_excite::fits_shared(1, params.size_r)
             ? 0
             : params.size_n * squeeze_excite::padded(params.size_r);
}

cudaError_t launch_squeeze_excite_gate(const SqueezeExciteGateParams& params, cudaStream_t stream) {
  switch (params.dtype) {
    case DType::kFloat32:
      return squeeze_excite::launch_dtype<float>(params, stream);
    case DType::kFloat16:
      return squeeze_excite::launch_dtype<__half>(params, stream);
    case DType::kBFloat16:
      return squeeze_excite::launch_dtype<__nv_bfloat16>(params, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace effv2
