// stem: y = act(conv(x) scale + shift), 3x3 at stride 2 from 3 channels; x as the user has it, NCHW
// or NHWC, float or 16 bits; y NHWC. The cast and the change of layout, two passes over the image
// elsewhere, come with the load.
//
// Bytes: x and y once: at 24 channels and all in 16 bits 24 + 48 an output pixel, 80 us for 128
// images of 384 x 384 on an H200. FLOPs: 54 O a pixel. On float units they alone take 27
// instructions an output; a kernel that made them so issued 44.6 in all and took 347 us, 75 % of
// its issue slots busy and the memory for a fifth of the time. On tensor cores (mma.sync, 27 of 32
// of whose depth are used) an output takes about 14 at 24 channels and SiLU, by count of the
// machine code for sm_90a: 6.4 to multiply, scale, activate and round, 1.4 to put x into registers,
// 2.5 to store, 1.2 to stage x, 2.1 once a tile, 0.4 once a block; 124 us there.
// float32 stays on the float units.
//
// Tile: 8 x 32 output pixels of one image, for all channels, by 128 threads; a block walks over
// tiles and stages weights once. The 17 rows of x under a tile go to shared memory as NHWC and in
// the dtype of the weight, by 16-byte loads where lines are aligned, with zeros outside of the
// image.
//
// 16 bits: in NHWC a row of a window is 9 neighbours that begin at an even element, or all begin at
// an odd one: so a register of a fragment, two neighbours in k, is one 32-bit read, and k is
// ordered for that (kSlots). What is over, with the pixel beside the window, is masked, once a row.
// The fragments of the weights are staged as a lane reads them: one 16-byte read for 8 channels of
// 32 pixels. Results go through shared memory, where no write of a fragment conflicts, to whole
// vectors.
//
// float32: a thread computes 8 channels of 4 pixels, 8 columns apart: neighbouring lanes then have
// neighbouring channels, then neighbouring pixels, so that stores are coalesced and reads of x
// conflict in no bank. A weight vector read is used for 4 pixels.
//
// Tried, by machine code: the loads of two turns of the staging at once spills below 64 registers;
// a lane's offsets kept from tile to tile spill too (ptx::renew); offsets of the innermost loop
// that are formed from one count cost it 5 instructions of 56.

#include "common/activations.cuh"
#include "common/launch.cuh"
#include "common/norm.cuh"
#include "common/ptx.cuh"
#include "common/vector_io.cuh"
#include "kernels.h"

namespace effv2::stem {

constexpr int kThreads = 128;
constexpr int kLanes = 32;
constexpr int kWarps = kThreads / kLanes;
constexpr int kIn = 3;  // channels of x
constexpr int kKernel = 3;
constexpr int kStride = 2;
constexpr int kTaps = kIn * kKernel * kKernel;
constexpr int kTileHeight = 8;
constexpr int kTileWidth = 32;
constexpr int kGroup = 8;                                     // channels at a time
constexpr int kRows = (kTileHeight - 1) * kStride + kKernel;  // of x under a tile
constexpr int kMostVector = 8;                                // elements of 16 bytes
// Columns of x under a tile, from the last multiple of kMostVector before them.
constexpr int kColumns = (kTileWidth - 1) * kStride + kKernel + kMostVector - 1;
// Elements from a row of x in shared memory to the next: rows start 24 banks apart (of 16-bit
// elements), where what a warp reads from three rows at once meets in no bank.
constexpr int kPitch = 240;

// On tensor cores, k of the product are 16 pairs of neighbours in a row of x: 4 from each of the
// three rows of a window, then the ninth element of each row, beside a zero, and two zeros.
constexpr int kSlots = 4;   // registers of a lane for a row of a or a column of b
constexpr int kHalves = 4;  // rows of fragments of a lane: 8 pixels apart

// Blocks of a multiprocessor, which bound registers.
template <typename T>
constexpr int kBlocks = sizeof(T) == 2 ? 8 : 6;
constexpr int64_t kSharedOfAll = 160 << 10;  // bytes that they have on every GPU with a target
static_assert(kColumns % kMostVector == 0 && kColumns * kIn <= kPitch);

__host__ __device__ constexpr int padded(int channels) {
  return (channels + kGroup - 1) / kGroup * kGroup;
}

// Channels from a pixel to the next in the tile of results: an odd number of groups, for banks.
__host__ __device__ constexpr int result_pitch(int channels) {
  return padded(channels) + (padded(channels) / kGroup % 2 == 0 ? kGroup : 0);
}

// Stores of results are of 16 bytes where that is possible: how many make a pixel.
__host__ __device__ constexpr int pieces(int channels) {
  return channels % kGroup == 0 ? channels / kGroup : channels;
}

// i / n is i * inverse_of(n) >> kInverseBits for i < 2^13 and n <= 2^8, i / n < 2^6.
constexpr int kInverseBits = 24;
constexpr int inverse_of(int n) {
  return (1 << kInverseBits) / n + 1;
}

// Where the tiles of a block begin in shared memory, in bytes; x is first.
template <typename T>
struct Layout {
  int weight_at, norm_at, result_at, bytes;

  __host__ __device__ explicit Layout(int channels) {
    constexpr bool kMma = sizeof(T) == 2;
    weight_at = kRows * kPitch * static_cast<int>(sizeof(T));
    norm_at = weight_at + padded(channels) * 4 * (kMma ? 4 * kSlots : kTaps);
    result_at = norm_at + padded(channels) * 8;
    bytes = result_at + (kMma ? kWarps * kTileWidth * result_pitch(channels) * 2 : 0);
  }
};

// Elements that lie beside each other in memory, cast.
template <typename T, typename Input, int kWidth>
__device__ __forceinline__ Pack<T, kWidth> cast(const Pack<Input, kWidth>& from) {
  if constexpr (std::is_same_v<T, Input>) {
    return from;
  } else {
    float values[kWidth];
    unpack(from, values);
    return pack<T>(values);
  }
}

// From kWidth pixels of each channel to the same in NHWC.
template <typename Input, int kWidth>
__device__ __forceinline__ void interleave(Pack<Input, kWidth> (&vectors)[kIn]) {
  constexpr int kElements = kIn * kWidth;
  if constexpr (sizeof(Input) == 2 && kWidth % 2 == 0) {
    // By words: single elements would take a register each.
    using Words = Pack<uint32_t, kWidth / 2>;
    Words from[kIn], to[kIn];
#pragma unroll
    for (int k = 0; k < kIn; ++k) from[k] = bits_as<Words>(vectors[k]);
#pragma unroll
    for (int e = 0; e < kElements; e += 2) {
      const int first = e / kIn, second = (e + 1) / kIn;  // pixels
      to[e / kWidth].element[e % kWidth / 2] =
          __byte_perm(from[e % kIn].element[first / 2], from[(e + 1) % kIn].element[second / 2],
                      (first % 2 == 0 ? 0x10 : 0x32) + (second % 2 == 0 ? 0x5400 : 0x7600));
    }
#pragma unroll
    for (int k = 0; k < kIn; ++k) vectors[k] = bits_as<Pack<Input, kWidth>>(to[k]);
  } else {
    Pack<Input, kWidth> to[kIn];
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      to[e / kWidth].element[e % kWidth] = vectors[e % kIn].element[e / kIn];
    }
#pragma unroll
    for (int k = 0; k < kIn; ++k) vectors[k] = to[k];
  }
}

// Copies kRows x kColumns pixels of an image, whose first is (row, column), to shared memory as
// NHWC, with zeros outside of the image: kWidth pixels at a time, which are all inside or all
// outside.
template <typename T, typename Input, int kWidth>
__device__ __forceinline__ void fill(const StemParams& params, const Input* image, int row,
                                     int column, T* target) {
  using Vector = Pack<Input, kWidth>;
  constexpr unsigned kAcross = kColumns / kWidth;
  const int step = params.channels_first ? params.height * params.width : kWidth;
#pragma unroll 1
  for (unsigned i = threadIdx.x; i < kRows * kAcross; i += kThreads) {
    const int own_row = row + static_cast<int>(i / kAcross);
    const int own_column = column + static_cast<int>(i % kAcross) * kWidth;
    Vector found[kIn] = {};
    if (own_row >= 0 && own_row < params.height && own_column >= 0 && own_column < params.width) {
      const int pixel = own_row * params.width + own_column;
      const Input* from = image + (params.channels_first ? pixel : pixel * kIn);
#pragma unroll
      for (int k = 0; k < kIn; ++k) found[k] = *reinterpret_cast<const Vector*>(from + k * step);
    }
    if (params.channels_first) interleave(found);
    T* to = target + i / kAcross * kPitch + i % kAcross * kWidth * kIn;
#pragma unroll
    for (int k = 0; k < kIn; ++k) {
      *reinterpret_cast<Pack<T, kWidth>*>(to + k * kWidth) = cast<T>(found[k]);
    }
  }
}

template <typename T, typename Input>
__device__ __forceinline__ void fill_of(const StemParams& params, const void* image, int row,
                                        int column, T* target) {
  const Input* x = static_cast<const Input*>(image);
  if (params.aligned) {
    fill<T, Input, kWidest<Input>>(params, x, row, column, target);
  } else {
    fill<T, Input, 1>(params, x, row, column, target);
  }
}

// The weight of an element of a row of a window in NHWC.
template <typename T>
__device__ __forceinline__ T weight_of(const StemParams& params, int channel, int row,
                                       int element) {
  const int64_t at = channel * params.weight_stride[0] + element % kIn * params.weight_stride[1] +
                     row * params.weight_stride[2] + element / kIn * params.weight_stride[3];
  return static_cast<const T*>(params.weight)[at];
}

// As [tap][channel], in the order of the sum: input channel, row, column.
template <typename T>
__device__ __forceinline__ void stage_weight(const StemParams& params, float* target) {
  const int channels = padded(params.channels);
  for (int i = static_cast<int>(threadIdx.x); i < kTaps * channels; i += kThreads) {
    const int channel = i % channels;
    const int tap = i / channels;
    const int element = tap % kKernel * kIn + tap / (kKernel * kKernel);
    target[i] = channel < params.channels
                    ? to_float(weight_of<T>(params, channel, tap / kKernel % kKernel, element))
                    : 0.0f;
  }
}

// As fragments of b: [group][lane][slot]. Slot r < 3 of lane (channel, t) holds a pair of row r,
// and slot 3 what is over of row t. Pairs start at even elements of a row in shared memory: `odd`
// says that the window does not, and then it is its first element that is over, not its last.
template <typename T>
__device__ __forceinline__ void stage_fragments(const StemParams& params, int odd,
                                                uint32_t* target) {
  const int thread = static_cast<int>(threadIdx.x);
  const int slot = thread % kSlots;
  const int t = thread / kSlots % 4;
  const bool over = slot == kSlots - 1;
  const int row = over ? t : slot;
  const int first = over ? (odd ? -1 : kTaps / kKernel - 1) : 2 * t + odd;
  for (int i = thread; i < padded(params.channels) * 4 * kSlots; i += kThreads) {
    const int channel = i / (4 * kSlots);
    Pack<T, 2> pair = {};
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int element = first + j;
      if (channel < params.channels && row < kKernel && element >= 0 && element < kTaps / kKernel) {
        pair.element[j] = weight_of<T>(params, channel, row, element);
      }
    }
    target[i] = bits_as<uint32_t>(pair);
  }
}

// Scale and shift of each channel beside each other, times kSiluScale for SiLU.
template <typename T>
__device__ __forceinline__ void stage_norm(const StemParams& params, float* target) {
  const float factor = params.act == Activation::kSilu ? kSiluScale<kAccuracyFor<T>> : 1.0f;
  for (int i = static_cast<int>(threadIdx.x); i < padded(params.channels); i += kThreads) {
    float scale[1], shift[1];
    load_norm<T>(params.norm, min(i, params.channels - 1), scale, shift);
    const float own[2] = {factor * scale[0], factor * shift[0]};
    store(target + i * 2, own);
  }
}

// Of values that stage_norm() has scaled.
template <typename T, int kRows, int kCount>
__device__ __forceinline__ void activate_scaled(Activation act, float (&values)[kRows][kCount]) {
  if (act == Activation::kSilu) {
    activate_scaled_silu<kAccuracyFor<T>>(values);
  } else {
    activate<kAccuracyFor<T>>(act, values);
  }
}

// A tile in float32. A thread computes 8 channels of 4 pixels, 8 columns apart: neighbouring lanes
// then have neighbouring channels, then neighbouring pixels. x and y are at the tile's first pixel.
template <typename T>
__device__ __forceinline__ void convolve(const StemParams& params, const T* x_tile,
                                         const float* weight_tile, const float* norm_tile, T* y,
                                         int rows, int columns) {
  constexpr int kPixels = 4;
  constexpr int kApart = kTileWidth / kPixels;
  const int channels = params.channels;
  const int groups = padded(channels) / kGroup;
  for (int i = static_cast<int>(threadIdx.x); i < groups * kApart * kTileHeight; i += kThreads) {
    const int channel = i % groups * kGroup;
    const int column = i / groups % kApart;
    const int row = i / groups / kApart;
    const T* x = x_tile + row * kStride * kPitch + column * kStride * kIn;
    float sums[kPixels][kGroup] = {};
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap) {
      const T* from =
          x + tap / (kKernel * kKernel) + tap / kKernel % kKernel * kPitch + tap % kKernel * kIn;
      float weight[2][kGroup / 2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        load(weight_tile + tap * padded(channels) + channel + half * (kGroup / 2), weight[half]);
      }
#pragma unroll
      for (int p = 0; p < kPixels; ++p) {
        const float value = from[p * kApart * kStride * kIn];
#pragma unroll
        for (int j = 0; j < kGroup; ++j) {
          sums[p][j] += value * weight[j / (kGroup / 2)][j % (kGroup / 2)];
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kGroup; j += 2) {
      float own[4];  // of two channels
      load(norm_tile + (channel + j) * 2, own);
#pragma unroll
      for (int p = 0; p < kPixels; ++p) {
        sums[p][j] = sums[p][j] * own[0] + own[1];
        sums[p][j + 1] = sums[p][j + 1] * own[2] + own[3];
      }
    }
    activate_scaled<T>(params.act, sums);
#pragma unroll
    for (int p = 0; p < kPixels; ++p) {
      if (row >= rows || column + p * kApart >= columns) continue;
      T* own = y + (row * params.out_width + column + p * kApart) * channels + channel;
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

// The first `count` pieces of the results of a warp, which have 1 / inverse a pixel; `gap` pieces
// lie between pixels in shared memory.
template <typename Piece>
__device__ __forceinline__ void copy_results(const Piece* from, int count, int inverse, int gap,
                                             Piece* to) {
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x) % kLanes; i < count; i += kLanes) {
    to[i] = from[i + (i * inverse >> kInverseBits) * gap];
  }
}

template <typename T, typename Base>
__device__ __forceinline__ auto at_byte(Base* base, int offset) {
  using Byte = std::conditional_t<std::is_const_v<Base>, const unsigned char, unsigned char>;
  using Element = std::conditional_t<std::is_const_v<Base>, const T, T>;
  return reinterpret_cast<Element*>(reinterpret_cast<Byte*>(base) + offset);
}

// A tile on tensor cores. A warp takes a row of 32 pixels: rows of two matrices a, of which lane
// (g, t) holds pixels g, g + 8, g + 16, g + 24; `start` is where the first begins. The results go
// through shared memory, so that stores are whole vectors of neighbours.
template <typename T>
__device__ __forceinline__ void multiply(const StemParams& params, const T* x_tile, int start,
                                         const uint32_t* weight_tile, const float* norm_tile,
                                         T* result_tile, T* y, int rows, int columns, int inverse) {
  int thread = static_cast<int>(threadIdx.x);
  ptx::renew(thread);
  const int warp = thread / kLanes;
  const int lane = thread % kLanes;
  const int g = lane / 4;
  const int t = lane % 4;
  const int channels = params.channels;
  const int pitch = result_pitch(channels);
  constexpr int kApart = 8 * kStride * kIn;  // elements from a pixel of a lane to the next
  const int odd = start % 2;
  int pairs = start + g * kStride * kIn + 2 * t + odd;
  int over =
      start + g * kStride * kIn + min(t, kKernel - 1) * kPitch + (odd ? -1 : kTaps / kKernel - 1);
  // The neighbour of what is over is no part of the window: it might be infinite, or NaN.
  int mask = t == kKernel ? 0 : odd ? -0x10000 : 0xffff;
  ptx::keep(pairs);
  ptx::keep(over);
  ptx::keep(mask);
  for (int row = warp; row < min(rows, kTileHeight); row += kWarps) {
    uint32_t a[2][2][4];  // [matrix][k / 16]
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) {
        const int at = row * kStride * kPitch + (slot < kKernel ? pairs + slot * kPitch : over);
        const auto word = *reinterpret_cast<const int*>(x_tile + at + half * kApart);
        a[half / 2][slot / 2][slot % 2 * 2 + half % 2] = slot < kKernel ? word : word & mask;
      }
    }
    // In bytes. Each is kept, or it would be formed again in every turn, from a count of the turns.
    int weight_at = lane * kSlots * 4;
    int norm_at = 2 * t * 2 * 4;
    int result_at = ((warp * kTileWidth + g) * pitch + 2 * t) * 2;
#pragma unroll 1
    for (int left = channels; left > 0; left -= kGroup) {
      const auto b = *at_byte<Pack<uint32_t, kSlots>>(weight_tile, weight_at);
      float norm[4];  // of this lane's two channels
      load(at_byte<float>(norm_tile, norm_at), norm);
      float sums[2][4] = {};
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        const uint32_t own[2] = {b.element[2 * step], b.element[2 * step + 1]};
        ptx::mma_m16n8k16<T>(sums[0], a[0][step], own);
        ptx::mma_m16n8k16<T>(sums[1], a[1][step], own);
      }
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int r = 0; r < 4; ++r) sums[m][r] = sums[m][r] * norm[r % 2 * 2] + norm[r % 2 * 2 + 1];
      }
      activate_scaled<T>(params.act, sums);
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        const float (&from)[4] = sums[half / 2];
        const float pair[2] = {from[half % 2 * 2], from[half % 2 * 2 + 1]};
        store(at_byte<T>(result_tile, result_at + half * 8 * pitch * 2), pair);
      }
      weight_at += kGroup * 4 * kSlots * 4;
      norm_at += kGroup * 2 * 4;
      result_at += kGroup * 2;
      ptx::keep(weight_at);
      ptx::keep(norm_at);
      ptx::keep(result_at);
    }
    __syncwarp();
    const T* results = result_tile + warp * kTileWidth * pitch;
    T* own = y + row * params.out_width * channels;
    if (channels % kGroup == 0) {
      using Piece = Pack<T, kGroup>;
      copy_results(reinterpret_cast<const Piece*>(results), columns * pieces(channels), inverse,
                   (pitch - channels) / kGroup, reinterpret_cast<Piece*>(own));
    } else {
      copy_results(results, columns * channels, inverse, pitch - channels, own);
    }
    __syncwarp();
  }
}

// What the launch works out, that no block need.
struct Plan {
  int64_t x_bytes;     // of an image
  int64_t y_elements;  // of an image
  int walk;            // tiles of a block, one after another: the weights are staged once for all
  int inverse;         // of the pieces of a pixel
};

template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    stem_kernel(const StemParams params, const Plan plan) {
  constexpr bool kMma = sizeof(T) == 2;
  const auto across = static_cast<unsigned>((params.out_width + kTileWidth - 1) / kTileWidth);
  const auto down = static_cast<unsigned>((params.out_height + kTileHeight - 1) / kTileHeight);
  const unsigned tile = blockIdx.x * static_cast<unsigned>(plan.walk);
  int out_column = static_cast<int>(tile % across) * kTileWidth;
  int out_row = static_cast<int>(tile / across % down) * kTileHeight;
  int image = static_cast<int>(tile / across / down);
  // Of x, before a tile's first column: alike for all tiles.
  const int before = -params.pad_left & (kMostVector - 1);
  const int start = before * kIn;

  const Layout<T> layout(params.channels);
  unsigned char* shared = dynamic_shared<unsigned char>();
  T* x_tile = reinterpret_cast<T*>(shared);
  float* norm_tile = reinterpret_cast<float*>(shared + layout.norm_at);
  stage_norm<T>(params, norm_tile);
  if constexpr (kMma) {
    stage_fragments<T>(params, start % 2, reinterpret_cast<uint32_t*>(shared + layout.weight_at));
  } else {
    stage_weight<T>(params, reinterpret_cast<float*>(shared + layout.weight_at));
  }

#pragma unroll 1
  for (int i = 0; i < plan.walk && image < params.size_n; ++i) {
    const int row = out_row * kStride - params.pad_top;
    const int column = out_column * kStride - params.pad_left - before;
    const unsigned char* x = static_cast<const unsigned char*>(params.x) + image * plan.x_bytes;
    switch (params.x_dtype) {
      case DType::kFloat32:
        fill_of<T, float>(params, x, row, column, x_tile);
        break;
      case DType::kFloat16:
        fill_of<T, __half>(params, x, row, column, x_tile);
        break;
      case DType::kBFloat16:
        fill_of<T, __nv_bfloat16>(params, x, row, column, x_tile);
        break;
    }
    __syncthreads();
    int64_t y_at =
        image * plan.y_elements + (out_row * params.out_width + out_column) * params.channels;
    if constexpr (kMma) ptx::keep(y_at);
    T* y = static_cast<T*>(params.y) + y_at;
    const int rows = params.out_height - out_row;
    const int columns = min(kTileWidth, params.out_width - out_column);
    if constexpr (kMma) {
      multiply<T>(params, x_tile, start,
                  reinterpret_cast<const uint32_t*>(shared + layout.weight_at), norm_tile,
                  reinterpret_cast<T*>(shared + layout.result_at), y, rows, columns, plan.inverse);
    } else {
      convolve<T>(params, x_tile + start, reinterpret_cast<const float*>(shared + layout.weight_at),
                  norm_tile, y, rows, columns);
    }
    __syncthreads();  // x of the next tile goes over that of this
    out_column += kTileWidth;
    if (out_column < params.out_width) continue;
    out_column = 0;
    out_row += kTileHeight;
    if (out_row < params.out_height) continue;
    out_row = 0;
    ++image;
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
  const int64_t across = (params.out_width + kTileWidth - 1) / kTileWidth;
  const int64_t down = (params.out_height + kTileHeight - 1) / kTileHeight;
  const int64_t tiles = params.size_n * across * down;
  if (tiles > INT32_MAX) return cudaErrorInvalidConfiguration;
  DeviceLimits limits;
  if (cudaError_t err = current_device_limits(&limits); err != cudaSuccess) return err;
  LaunchShape shape;
  shape.shared_bytes = Layout<T>(params.channels).bytes;
  // As many blocks as run at once, where the tiles suffice.
  const int64_t fit = kSharedOfAll / static_cast<int64_t>(shape.shared_bytes);
  const int64_t blocks = limits.multiprocessors * (fit < 1            ? 1
                                                   : fit < kBlocks<T> ? fit
                                                                      : kBlocks<T>);
  Plan plan;
  plan.walk = static_cast<int>((tiles + blocks - 1) / blocks);
  plan.inverse = inverse_of(pieces(params.channels));
  plan.x_bytes = line_elements * (params.channels_first ? kIn : 1) * params.height * (16 / wide);
  plan.y_elements = int64_t{params.out_height} * params.out_width * params.channels;
  shape.grid = dim3(static_cast<unsigned>((tiles + plan.walk - 1) / plan.walk));
  shape.block = dim3(kThreads);
  return launch_with_shared<stem_kernel<T>>(shape, stream, params, plan);
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
