// The squeeze: the mean of each channel over an image, from sums that the threads of one or several
// blocks hold. Every sum is formed in a fixed order: the same bits in every run.
#pragma once

#include "launch.cuh"
#include "ptx.cuh"
#include "vector_io.cuh"

namespace effv2 {

// Shared memory that Squeeze::finish() needs.
__host__ __device__ constexpr size_t squeeze_shared_bytes(int block_channels, int strip_threads,
                                                          int cluster_parts) {
  const int slots = strip_threads > cluster_parts ? strip_threads : cluster_parts;
  return sizeof(float) * block_channels * (slots + (cluster_parts > 1 ? cluster_parts : 0));
}

struct Squeeze {
  void* pooled;       // (n, channels)
  float* partial;     // (n, parts, channels), or null
  int64_t image;      // of the block
  int channels;       // of the tensor
  int first_channel;  // of the block
  int pixels;         // that the mean is over
  int parts;          // blocks that share the image
  int part;           // of the block
  bool cluster;       // those blocks are a cluster

  // Called by all threads of a block of (channel threads, strip threads), each with the sums of its
  // kWidth channels. `shared` has squeeze_shared_bytes() and nobody else's data.
  template <typename T, int kWidth>
  __device__ __forceinline__ void finish(const float (&sums)[kWidth], float* shared) const {
    const int block_channels = static_cast<int>(blockDim.x) * kWidth;
    const int threads = static_cast<int>(blockDim.x * blockDim.y);
    const int thread = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
    const int strip_threads = static_cast<int>(blockDim.y);
    // What the parts of a cluster send to its first block lies behind a block's own sums.
    float* received = shared + block_channels * max(strip_threads, cluster ? parts : 1);
    // No block may write to the shared memory of another before that one runs.
    if (cluster) ptx::cluster_arrive();
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      shared[static_cast<int>(threadIdx.y) * block_channels +
             static_cast<int>(threadIdx.x) * kWidth + j] = sums[j];
    }
    __syncthreads();
    if (cluster) ptx::cluster_wait();
    for (int i = thread; i < block_channels; i += threads) {
      float sum = 0.0f;
      for (int k = 0; k < strip_threads; ++k) sum += shared[k * block_channels + i];
      if (cluster) {
        ptx::store_shared_cluster(received + part * block_channels + i, 0, sum);
      } else if (first_channel + i < channels) {
        if (parts == 1) {
          put<T>(i, sum);
        } else {
          partial[(image * parts + part) * channels + first_channel + i] = sum;
        }
      }
    }
    if (!cluster) return;
    ptx::cluster_arrive();
    ptx::cluster_wait();
    if (part != 0) return;
    for (int i = thread; i < block_channels; i += threads) {
      float sum = 0.0f;
      for (int k = 0; k < parts; ++k) sum += received[k * block_channels + i];
      if (first_channel + i < channels) put<T>(i, sum);
    }
  }

 private:
  template <typename T>
  __device__ __forceinline__ void put(int i, float sum) const {
    static_cast<T*>(pooled)[image * channels + first_channel + i] =
        from_float<T>(sum / static_cast<float>(pixels));
  }
};

constexpr int kFinishThreads = 128;

// pooled[n, c] = sum over parts of partial[n, part, c] / pixels, for blocks that are no cluster.
template <typename T>
__global__ void __launch_bounds__(kFinishThreads)
    squeeze_finish_kernel(const float* partial, T* pooled, int64_t count, int channels, int parts,
                          int pixels) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kFinishThreads + threadIdx.x;
  if (i >= count) return;
  const float* own = partial + i / channels * parts * channels + i % channels;
  float sum = 0.0f;
  for (int part = 0; part < parts; ++part) sum += own[static_cast<int64_t>(part) * channels];
  pooled[i] = from_float<T>(sum / static_cast<float>(pixels));
}

template <typename T>
cudaError_t launch_squeeze_finish(const float* partial, void* pooled, int64_t n, int channels,
                                  int parts, int pixels, cudaStream_t stream) {
  const int64_t count = n * channels;
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>((count + kFinishThreads - 1) / kFinishThreads));
  shape.block = dim3(kFinishThreads);
  return launch(squeeze_finish_kernel<T>, shape, stream, partial, static_cast<T*>(pooled), count,
                channels, parts, pixels);
}

}  // namespace effv2
