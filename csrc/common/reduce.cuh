// Reductions over the lanes of a warp.
#pragma once

#include "launch.cuh"

namespace effv2 {

constexpr int kWarp = 32;

// One halving step of reduce_scatter() on the first kLive values, then the rest.
template <int kLive, int kCount>
__device__ __forceinline__ int halve(float (&values)[kCount], int lane, int offset, int first) {
  if constexpr (kLive > 1) {
    if (offset > 0) {
      constexpr int kHalf = kLive / 2;
      const bool upper = (lane & offset) != 0;
#pragma unroll
      for (int i = 0; i < kHalf; ++i) {
        const float keep = upper ? values[i + kHalf] : values[i];
        const float give = upper ? values[i] : values[i + kHalf];
        values[i] = keep + __shfl_xor_sync(0xffffffffu, give, offset);
      }
      return halve<kHalf>(values, lane, offset / 2, upper ? first + kHalf : first);
    }
  } else {
    for (; offset > 0; offset /= 2) values[0] += __shfl_xor_sync(0xffffffffu, values[0], offset);
  }
  return first;
}

// Sums each of kCount values over groups of `lanes` neighbouring lanes (kCount and lanes are powers
// of two); called by whole warps.
//
// Every step halves what a lane still carries: it hands one half of its values to its partner and
// adds the partner's other half, so kCount values cost kCount - 1 shuffles and not kCount *
// log2(lanes). Afterwards a lane holds, in values[0 .. max(1, kCount / lanes)), the totals of the
// values from the returned index on; with more lanes than values, neighbouring lanes hold the same
// total. The order of additions depends on nothing but lanes and kCount.
template <int kCount>
__device__ __forceinline__ int reduce_scatter(float (&values)[kCount], int lanes) {
  static_assert((kCount & (kCount - 1)) == 0, "kCount must be a power of two");
  return halve<kCount>(values, static_cast<int>(threadIdx.x) % kWarp, lanes / 2, 0);
}

}  // namespace effv2
