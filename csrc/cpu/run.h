// How a kernel is compiled: for several vector extensions at once where the compiler can.
#pragma once

#include "kernels.h"

// GCC compiles a function so marked three times, everything in it inlined, and the loader takes the
// best that the processor has (by an indirect function, which musl lacks). Elsewhere the code is
// for what the compiler takes for granted: 128-bit vectors.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__GLIBC__)
#if __GNUC__ >= 12
#define EFFV2_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EFFV2_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#else
#define EFFV2_CLONES
#endif

namespace effv2::cpu {

template <typename Act, typename Kernel>
EFFV2_INLINE void run_spans(const Block& block, Act act, const Kernel& kernel) {
  constexpr int kAtOnce = Kernel::kSpansAtOnce;
  int64_t span = 0;
  for (; span + kAtOnce <= block.spans; span += kAtOnce) {
    kernel.template spans<kAtOnce>(act, span * block.stride, block.stride, block.length);
  }
  for (; span < block.spans; ++span) {
    kernel.template spans<1>(act, span * block.stride, block.stride, block.length);
  }
  if (block.tail > 0) kernel.template spans<1>(act, span * block.stride, block.stride, block.tail);
}

template <typename Kernel>
EFFV2_INLINE void run_activated(const Block& block, Activation activation, const Kernel& kernel) {
  with_activation(activation,
                  [&](auto act) __attribute__((always_inline)) { run_spans(block, act, kernel); });
}

#define EFFV2_DEFINE(Kernel)                                                        \
  EFFV2_CLONES void run(const Block& block, Activation act, const Kernel& kernel) { \
    run_activated(block, act, kernel);                                              \
  }

}  // namespace effv2::cpu
