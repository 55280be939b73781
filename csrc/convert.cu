// convert: many tensors to one dtype, and 4-D ones from NCHW to NHWC, in one launch. It makes what
// the kernels read of live weights in another dtype, so it runs before every forward.
//
// Bytes: each element once in and once out: for the 20 M weights of V2-S from float32 to 16 bits 28
// us on an H200 (4.3 TB/s copy).
//
// Tile: a block takes kChunk elements of one target; which, it looks up by its number. Where the
// order stays (1x1 and depthwise weights, vectors, NHWC), a thread takes kParts vectors, all loaded
// before the first is stored. Where it does not (3x3 of many channels, 4 % of V2-S), it takes
// element by element: writes are coalesced, and lines that are read serve the other pixels from L1.

#include "common/launch.cuh"
#include "common/vector_io.cuh"
#include "kernels.h"

namespace effv2::convert {

constexpr int kThreads = 256;
constexpr int kWidth = 4;  // of a vector
constexpr int kParts = 8;
constexpr int kChunk = kThreads * kWidth * kParts;
constexpr int kMostTensors = 112;

struct Batch {
  Conversion conversion[kMostTensors];
  int end_block[kMostTensors];  // blocks of the tensors up to and with this one
  int count;
};
static_assert(sizeof(Batch) <= 4096, "what the parameters of a launch may take everywhere");

template <typename From, typename To>
__device__ __forceinline__ void transpose(const Conversion& own, int begin, int count) {
  const auto* source = static_cast<const From*>(own.source);
  auto* target = static_cast<To*>(own.target);
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
    const int at = begin + i;
    const int channel = at % own.channels;
    const int pixel = at / own.channels % own.pixels;
    const int outer = at / own.channels / own.pixels;
    const int from = (outer * own.channels + channel) * own.pixels + pixel;
    target[at] = from_float<To>(to_float(source[from]));
  }
}

template <typename From, typename To>
__device__ __forceinline__ void cast(const Conversion& own, int begin, int count) {
  using Vector = Pack<From, kWidth>;
  const From* source = static_cast<const From*>(own.source) + begin;
  To* target = static_cast<To*>(own.target) + begin;
  const bool aligned = reinterpret_cast<uintptr_t>(source) % sizeof(Vector) == 0;
  const int whole = aligned ? count / kWidth : 0;
  Vector vectors[kParts];
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    const int i = part * kThreads + static_cast<int>(threadIdx.x);
    if (i < whole) vectors[part] = reinterpret_cast<const Vector*>(source)[i];
  }
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    const int i = part * kThreads + static_cast<int>(threadIdx.x);
    if (i >= whole) continue;
    float values[kWidth];
    unpack(vectors[part], values);
    store(target + i * kWidth, values);
  }
  for (int i = whole * kWidth + static_cast<int>(threadIdx.x); i < count; i += kThreads) {
    target[i] = from_float<To>(to_float(source[i]));
  }
}

template <typename From, typename To>
__device__ __forceinline__ void convert(const Conversion& own, int begin, int count) {
  if (own.pixels > 1) {
    transpose<From, To>(own, begin, count);
  } else {
    cast<From, To>(own, begin, count);
  }
}

template <typename To>
__global__ void __launch_bounds__(kThreads, 4) convert_kernel(const Batch batch) {
  const int block = static_cast<int>(blockIdx.x);
  int first = 0;  // of the tensors whose blocks end behind this one
  for (int last = batch.count - 1; first < last;) {
    const int middle = (first + last) / 2;
    if (block < batch.end_block[middle]) {
      last = middle;
    } else {
      first = middle + 1;
    }
  }
  const Conversion own = batch.conversion[first];
  const int begin = (block - (first == 0 ? 0 : batch.end_block[first - 1])) * kChunk;
  const int count = min(kChunk, own.size - begin);
  switch (own.source_dtype) {
    case DType::kFloat32:
      return convert<float, To>(own, begin, count);
    case DType::kFloat16:
      return convert<__half, To>(own, begin, count);
    case DType::kBFloat16:
      return convert<__nv_bfloat16, To>(own, begin, count);
  }
}

template <typename To>
cudaError_t launch_dtype(const Conversion* conversions, size_t count, cudaStream_t stream) {
  Batch batch = {};
  int blocks = 0;
  for (size_t i = 0; i < count; ++i) {
    const Conversion& conversion = conversions[i];
    if (conversion.size > 0) {
      blocks += (conversion.size - 1) / kChunk + 1;
      batch.conversion[batch.count] = conversion;
      batch.end_block[batch.count] = blocks;
      ++batch.count;
    }
    if (batch.count == 0 || (batch.count < kMostTensors && i + 1 < count)) continue;
    LaunchShape shape;
    shape.grid = dim3(static_cast<unsigned>(blocks));
    shape.block = dim3(kThreads);
    const cudaError_t error = launch(convert_kernel<To>, shape, stream, batch);
    if (error != cudaSuccess) return error;
    batch.count = 0;
    blocks = 0;
  }
  return cudaSuccess;
}

}  // namespace effv2::convert

namespace effv2 {

cudaError_t launch_convert(const Conversion* conversions, size_t count, DType dtype,
                           cudaStream_t stream) {
  switch (dtype) {
    case DType::kFloat32:
      return convert::launch_dtype<float>(conversions, count, stream);
    case DType::kFloat16:
      return convert::launch_dtype<__half>(conversions, count, stream);
    case DType::kBFloat16:
      return convert::launch_dtype<__nv_bfloat16>(conversions, count, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace effv2
