// Every inline PTX instruction of the project, one wrapper each. A host build of the kernels
// (EFFV2_HOST_RUNTIME) takes its own versions instead, so that nothing outside this file depends on
// PTX.
#pragma once

#ifndef EFFV2_HOST_RUNTIME

#include <cstdint>

namespace effv2::ptx {

// One special-function instruction; relative error up to 2^-11, so for 16-bit results only.
__device__ __forceinline__ float tanh_approx(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The cluster wrappers are empty below sm_90, where a kernel that uses them must not be launched:
// has_cluster_code() of launch.cuh is the guard.

// First half of a barrier over the cluster. Earlier shared-memory writes, remote ones too, are
// visible to whoever has passed the matching cluster_wait(). Not the .aligned form: threads of a
// warp may arrive apart.
__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
}

__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}

// Stores to the shared variable of block `rank` of the cluster that corresponds to `*local` here.
__device__ __forceinline__ void store_shared_cluster(float* local, int rank, float value) {
#if __CUDA_ARCH__ >= 900
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(local));
  uint32_t remote;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(remote), "f"(value) : "memory");
#endif
}

}  // namespace effv2::ptx

#endif  // EFFV2_HOST_RUNTIME
