// Kernels for the tests of the host runtime itself: right ones, and ones with a bug that it must
// find. The first integer chooses.
#include "driver.h"

#include "common/launch.cuh"
#include "common/ptx.cuh"
#include "common/reduce.cuh"
#include "common/vector_io.cuh"

namespace {

constexpr int kThreads = 96;

enum Case {
  kRight,
  kReadPastTheEnd,
  kWritePastTheEnd,
  kReadBeforeTheStart,
  kPastDynamicShared,
  kMisaligned,
  kMissingBarrier,
  kRaceOfBlocks,
  kPartialBarrier,
  kEarlyReturn,
  kPartialWarp,
  kUnwrittenShared,
  kUnwrittenStaticShared,
  kCopyNotAwaited,
};

// out[block * threads + i] = the sum of the block's part of `in`, beginning at element i.
__global__ void rotated_sums(Case which, const float* in, float* out, int count) {
  __shared__ float fixed[kThreads];
  float* shared = effv2::dynamic_shared<float>();
  const int i = static_cast<int>(threadIdx.x);
  const int first = static_cast<int>(blockIdx.x) * kThreads;
  if (which == kEarlyReturn && i == 5) return;
  float value = in[first + i];
  if (which == kReadPastTheEnd && first + i == count - 1) value += in[count];
  if (which == kReadBeforeTheStart && first + i == 0) value += in[-1];
  if (which == kMisaligned) {
    float pair[2];
    effv2::load(in + first + 1, pair);
    value += pair[0];
  }
  if (which == kCopyNotAwaited) {
    effv2::ptx::cp_async16(shared + i / 4 * 4, in + first + i / 4 * 4, true);
    effv2::ptx::cp_async_commit();
  } else if (which != kUnwrittenShared || i != 7) {
    shared[i] = value;
  }
  if (which != kUnwrittenStaticShared || i != 7) fixed[i] = value;
  if (which == kPastDynamicShared && i == 0) shared[kThreads] = value;
  if (which == kPartialBarrier && i < 32) {
    out[first + i] = 0.0f;
    __syncwarp();
    return;
  }
  if (which == kPartialWarp && i % 2 == 0) __syncwarp();
  if (which != kMissingBarrier) __syncthreads();
  const float* source = which == kUnwrittenStaticShared ? fixed : shared;
  float sum = 0.0f;
  for (int k = 0; k < kThreads; ++k) sum += source[(i + k) % kThreads];
  if (which == kWritePastTheEnd && first + i == count - 1) out[count] = sum;
  out[first + i] = sum;
  if (which == kRaceOfBlocks) out[i] = sum;
}

// Each lane's results of the warp instructions on its index.
__global__ void warp_instructions(int* out) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const unsigned pair = 3u << (lane & ~1);
  int* own = out + threadIdx.x * 6;
  own[0] = __shfl_sync(0xffffffffu, lane * lane, 3);
  own[1] = __shfl_xor_sync(pair, lane, 1);
  own[2] = __shfl_down_sync(0xffffffffu, lane, 4, 8);
  own[3] = __shfl_up_sync(0xffffffffu, lane, 4, 8);
  own[4] = static_cast<int>(__ballot_sync(0xffffffffu, lane % 3 == 0));
  own[5] = __all_sync(pair, lane > 1) * 2 + __any_sync(pair, lane == 5);
  atomicAdd(out + blockDim.x * 6, 1);
}

// d = a b^T for 16x16 a and 8x16 b, both loaded by ldmatrix from asynchronous copies.
__global__ void matrix_product(const __nv_bfloat16* a, const __nv_bfloat16* b, float* d) {
  auto* shared = effv2::dynamic_shared<__nv_bfloat16>();
  const int lane = static_cast<int>(threadIdx.x);
  effv2::ptx::cp_async16(shared + lane * 8, a + lane * 8, true);
  effv2::ptx::cp_async_commit();
  // Rows 8 and above of b do not exist: zero.
  const bool exists = lane < 16;
  effv2::ptx::cp_async16(shared + 256 + lane * 8, exists ? b + lane * 8 : b, exists);
  effv2::ptx::cp_async_commit();
  effv2::ptx::cp_async_wait<0>();
  __syncthreads();
  uint32_t left[4], right[4];
  effv2::ptx::ldmatrix_x4(shared + lane % 16 * 16 + lane / 16 * 8, left);
  effv2::ptx::ldmatrix_x4(shared + 256 + (lane % 8 + lane / 16 * 8) * 16 + lane / 8 % 2 * 8, right);
  float sum[4] = {};
  const uint32_t real[2] = {right[0], right[1]};
  effv2::ptx::mma_m16n8k16<__nv_bfloat16>(sum, left, real);
  const uint32_t zero[2] = {right[2], right[3]};
  effv2::ptx::mma_m16n8k16<__nv_bfloat16>(sum, left, zero);
  for (int i = 0; i < 4; ++i) d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
}

}  // namespace

int host::run(Request& request) {
  const int64_t which = request.integer();
  effv2::LaunchShape shape;
  if (which == 100) {
    shape.grid = dim3(1);
    shape.block = dim3(64);
    return effv2::launch(warp_instructions, shape, nullptr, static_cast<int*>(request.buffer()));
  }
  if (which == 101) {
    shape.grid = dim3(1);
    shape.block = dim3(32);
    shape.shared_bytes = 2 * 256 * sizeof(__nv_bfloat16);
    const auto* a = static_cast<const __nv_bfloat16*>(request.buffer());
    const auto* b = static_cast<const __nv_bfloat16*>(request.buffer());
    return effv2::launch(matrix_product, shape, nullptr, a, b,
                         static_cast<float*>(request.buffer()));
  }
  const auto* in = static_cast<const float*>(request.buffer());
  auto* out = static_cast<float*>(request.buffer());
  shape.grid = dim3(3);
  shape.block = dim3(kThreads);
  shape.shared_bytes = kThreads * sizeof(float);
  return effv2::launch(rotated_sums, shape, nullptr, static_cast<Case>(which), in, out,
                       3 * kThreads);
}
