// Every inline PTX instruction of the project, one wrapper each. A host build of the kernels
// (EFFV2_HOST_RUNTIME) takes its own versions instead, so that nothing outside this file depends on
// PTX.
#pragma once

#ifndef EFFV2_HOST_RUNTIME

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace effv2::ptx {

// One special-function instruction; relative error up to 2^-11, so for 16-bit results only.
__device__ __forceinline__ float tanh_approx(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 2^x, and 1 / x; relative error up to 2^-22 and 2^-23. Subnormals are 0.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float reciprocal_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// sum += value if count >= least, as a predicated addition: never a branch.
__device__ __forceinline__ void add_if_at_least(float& sum, float value, int count, int least) {
  asm("{.reg .pred p; setp.ge.s32 p, %2, %3; @p add.f32 %0, %0, %1;}"
      : "+f"(sum)
      : "f"(value), "r"(count), "r"(least));
}

// *global = value, of 2, 4, 8 or 16 bytes, if count >= least, as a predicated store.
template <typename T>
__device__ __forceinline__ void store_if_at_least(void* global, const T& value, int count,
                                                  int least) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  if constexpr (sizeof(T) == 2) {
    uint16_t half;
    memcpy(&half, &value, sizeof(T));
    asm volatile("{.reg .pred p; setp.ge.s32 p, %2, %3; @p st.global.b16 [%0], %1;}" ::"l"(global),
                 "h"(half), "r"(count), "r"(least)
                 : "memory");
  } else {
    uint32_t word[sizeof(T) / 4];
    memcpy(word, &value, sizeof(T));
    if constexpr (sizeof(T) == 4) {
      asm volatile(
          "{.reg .pred p; setp.ge.s32 p, %2, %3; @p st.global.b32 [%0], %1;}" ::"l"(global),
          "r"(word[0]), "r"(count), "r"(least)
          : "memory");
    } else if constexpr (sizeof(T) == 8) {
      asm volatile(
          "{.reg .pred p; setp.ge.s32 p, %3, %4; @p st.global.v2.b32 [%0], {%1, %2};}" ::"l"(
              global),
          "r"(word[0]), "r"(word[1]), "r"(count), "r"(least)
          : "memory");
    } else {
      asm volatile(
          "{.reg .pred p; setp.ge.s32 p, %5, %6; @p st.global.v4.b32 [%0], {%1, %2, %3, %4};}" ::
              "l"(global),
          "r"(word[0]), "r"(word[1]), "r"(word[2]), "r"(word[3]), "r"(count), "r"(least)
          : "memory");
    }
  }
}

// Hides from the compiler how a value came about: it is kept, not formed again where it is used.
__device__ __forceinline__ void keep(int& value) {
  asm("" : "+r"(value));
}

__device__ __forceinline__ void keep(int64_t& value) {
  asm("" : "+l"(value));
}

template <typename T>
__device__ __forceinline__ void keep(T*& pointer) {
  asm("" : "+l"(pointer));
}

// As keep(), but anew in every turn of a loop: nothing that is formed from the value outlives a
// turn.
__device__ __forceinline__ void renew(int& value) {
  asm volatile("" : "+r"(value));
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

// Copies 16 bytes, or writes 16 zero bytes if not `inside`, to shared memory while the thread goes
// on; both addresses are aligned to 16 bytes. What is read stays out of L1: a block reads it once.
__device__ __forceinline__ void cp_async16(void* shared, const void* global, bool inside) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int bytes = inside ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global),
               "r"(bytes)
               : "memory");
}

// As cp_async16(), through L1, where a neighbour that needs the same finds it.
__device__ __forceinline__ void cp_async_cached16(void* shared, const void* global, bool inside) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int bytes = inside ? 16 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global),
               "r"(bytes)
               : "memory");
}

// Closes a group of this thread's copies.
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits for all of this thread's groups but the kPending newest. A barrier makes them visible to
// the other threads.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Four 8x8 matrices of 16-bit elements from shared memory. Lane 8 i + r gives the address of row r
// of matrix i, aligned to 16 bytes; lane l receives elements 2 (l % 4) and the next of row l / 4 of
// each.
__device__ __forceinline__ void ldmatrix_x4(const void* row, uint32_t (&out)[4]) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address)
               : "memory");
}

// d += a b on tensor cores: a 16x16 row-major, b 16x8 column-major, d 16x8 in float. Fragments as
// in the PTX manual (mma.m16n8k16): a is what ldmatrix_x4() gives for the matrices (rows 0-7,
// columns 0-7), (8-15, 0-7), (0-7, 8-15), (8-15, 8-15); b, from rows of its transpose, for (rows
// 0-7 of k), (8-15); register i of d holds row lane / 4 + 8 (i / 2), column 2 (lane % 4) + i % 2.
template <typename T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    static_assert(std::is_same_v<T, __nv_bfloat16>);
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

}  // namespace effv2::ptx

#endif  // EFFV2_HOST_RUNTIME
