// The one way in which a kernel is launched. There is no <<<>>> anywhere, so that a host build can
// put its own runtime behind launch() (EFFV2_HOST_RUNTIME names that build; its header is found
// through the include path).
#pragma once

#ifdef EFFV2_HOST_RUNTIME
#include "host_runtime.h"
#else

#include <cuda_runtime.h>

#include <atomic>
#include <utility>

namespace effv2 {

struct LaunchShape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;  // dynamic
  unsigned cluster_x = 1;   // blocks of a cluster, along x
};

template <typename... Params, typename... Args>
cudaError_t launch(void (*kernel)(Params...), const LaunchShape& shape, cudaStream_t stream,
                   Args&&... args) {
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = shape.cluster_x;
  cluster.val.clusterDim.y = 1;
  cluster.val.clusterDim.z = 1;

  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = shape.cluster_x > 1 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...);
}

// Permits kKernel all the dynamic shared memory that a block of the current device can have, once
// a device. The permission is a property of the kernel: were it what a launch needs, a thread that
// needs little could take back what another has just been given.
template <auto kKernel>
cudaError_t permit_most_shared() {
  static std::atomic<bool> permitted[64];
  int device = 0;
  if (cudaError_t err = cudaGetDevice(&device); err != cudaSuccess) return err;
  const bool cacheable = device < 64;
  if (cacheable && permitted[device].load(std::memory_order_relaxed)) return cudaSuccess;
  int most = 0;  // of a block: static and dynamic
  cudaError_t err = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (err != cudaSuccess) return err;
  cudaFuncAttributes attributes;
  err = cudaFuncGetAttributes(&attributes, kKernel);
  if (err != cudaSuccess) return err;
  most -= static_cast<int>(attributes.sharedSizeBytes);
  err = cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
  if (err != cudaSuccess) return err;
  if (cacheable) permitted[device].store(true, std::memory_order_relaxed);
  return cudaSuccess;
}

// As launch(), for a kernel that may ask for more shared memory than the 48 KB that every block can
// have. Within a capture too: a permission is nothing that a stream does.
template <auto kKernel, typename... Args>
cudaError_t launch_with_shared(const LaunchShape& shape, cudaStream_t stream, Args&&... args) {
  if (cudaError_t err = permit_most_shared<kKernel>(); err != cudaSuccess) return err;
  return launch(kKernel, shape, stream, std::forward<Args>(args)...);
}

// The dynamic shared memory of a block. Not declared where it is used: a host build has its own.
template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char effv2_dynamic_shared[];
  return reinterpret_cast<T*>(effv2_dynamic_shared);
}

// What launch choices need to know of the current device; read once a device.
struct DeviceLimits {
  int multiprocessors;
  bool clusters;
};

inline cudaError_t current_device_limits(DeviceLimits* limits) {
  // 0 means "not read yet"; else multiprocessors * 2 + clusters.
  static std::atomic<int> cache[64];
  int device = 0;
  if (cudaError_t err = cudaGetDevice(&device); err != cudaSuccess) return err;
  const bool cacheable = device < 64;
  int packed = cacheable ? cache[device].load(std::memory_order_relaxed) : 0;
  if (packed == 0) {
    int multiprocessors = 0;
    int clusters = 0;
    cudaError_t err =
        cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    if (err != cudaSuccess) return err;
    err = cudaDeviceGetAttribute(&clusters, cudaDevAttrClusterLaunch, device);
    if (err != cudaSuccess) return err;
    packed = multiprocessors * 2 + (clusters != 0 ? 1 : 0);
    if (cacheable) cache[device].store(packed, std::memory_order_relaxed);
  }
  limits->multiprocessors = packed / 2;
  limits->clusters = (packed & 1) != 0;
  return cudaSuccess;
}

// Whether the code that this device runs for kKernel has cluster instructions: a library that was
// built for sm_80 only runs on a newer device too, from PTX, but its ptx:: cluster wrappers are
// empty. Read once a device.
template <auto kKernel>
bool has_cluster_code() {
  static std::atomic<int> cache[64];  // 0 unknown, 1 no, 2 yes
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= 64) return false;
  int known = cache[device].load(std::memory_order_relaxed);
  if (known == 0) {
    cudaFuncAttributes attributes;
    if (cudaFuncGetAttributes(&attributes, kKernel) != cudaSuccess) {
      cudaGetLastError();  // the launch of another instance will report what is wrong
      return false;
    }
    known = attributes.ptxVersion >= 90 ? 2 : 1;
    cache[device].store(known, std::memory_order_relaxed);
  }
  return known == 2;
}

}  // namespace effv2

#endif  // EFFV2_HOST_RUNTIME
