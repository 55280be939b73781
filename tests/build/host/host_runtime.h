// Enough of the CUDA device runtime to run a kernel of csrc/ on the CPU, behind the launch() that
// the kernels use.
//
// A cluster's blocks are operating-system threads, and a block's threads are fibers of one of them,
// resumed in turn; a barrier or a shuffle is a switch to the next fiber. __shared__ is therefore
// thread_local: one copy a block.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __forceinline__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
#define __shared__ thread_local
#define __forceinline__ inline
#define __launch_bounds__(...)

namespace host {

enum class State { kReady, kWarpBarrier, kBlockBarrier, kClusterWait, kDone };

struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  State state;
};

struct Cluster {
  pthread_barrier_t barrier;
  std::vector<float*> shared;  // the dynamic shared memory of each rank
};

inline int multiprocessors = 132;
inline bool clusters = true;

inline thread_local ucontext_t scheduler;
inline thread_local std::vector<Fiber>* fibers;
inline thread_local int current;
inline thread_local int rank;
inline thread_local Cluster* cluster;
inline thread_local std::function<void()>* body;
inline thread_local float exchange[1024];

}  // namespace host

inline thread_local dim3 threadIdx;
inline thread_local dim3 blockIdx;

// The dynamic shared memory of the one kernel under test, under the name that it declares; 48 KB as
// on the device.
namespace effv2::squeeze_excite {
alignas(32) inline thread_local float shared_hidden[12288];
}

namespace host {

inline void wait(State state) {
  Fiber& fiber = (*fibers)[current];
  fiber.state = state;
  swapcontext(&fiber.context, &scheduler);
}

inline void fiber_main() {
  (*body)();
  (*fibers)[current].state = State::kDone;
}

// Runs the fibers of [begin, end) that wait in `state`, if all that are not done do.
inline bool release(int begin, int end, State state) {
  bool any = false;
  for (int i = begin; i < end; ++i) {
    const State found = (*fibers)[i].state;
    if (found == State::kDone) continue;
    if (found != state) return false;
    any = true;
  }
  for (int i = begin; any && i < end; ++i) {
    if ((*fibers)[i].state == state) (*fibers)[i].state = State::kReady;
  }
  return any;
}

inline void run_block(unsigned block_x, int threads, std::function<void()> kernel) {
  static thread_local std::vector<Fiber> storage;
  storage.resize(threads);
  fibers = &storage;
  body = &kernel;
  blockIdx = dim3(block_x);
  for (Fiber& fiber : storage) {
    fiber.stack.resize(96 * 1024);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = &scheduler;
    fiber.state = State::kReady;
    makecontext(&fiber.context, fiber_main, 0);
  }
  for (;;) {
    bool progress = false;
    bool done = true;
    for (int i = 0; i < threads; ++i) {
      if (storage[i].state != State::kReady) continue;
      current = i;
      threadIdx = dim3(static_cast<unsigned>(i));
      swapcontext(&scheduler, &storage[i].context);
      progress = true;
    }
    for (int i = 0; i < threads; i += 32) progress |= release(i, i + 32, State::kWarpBarrier);
    progress |= release(0, threads, State::kBlockBarrier);
    if (release(0, threads, State::kClusterWait)) {
      pthread_barrier_wait(&cluster->barrier);
      progress = true;
    }
    for (const Fiber& fiber : storage) done &= fiber.state == State::kDone;
    if (done) return;
    if (!progress) {
      std::fprintf(stderr, "deadlock: threads of a block wait at different barriers\n");
      std::abort();
    }
  }
}

}  // namespace host

inline void __syncthreads() {
  host::wait(host::State::kBlockBarrier);
}

inline float __shfl_xor_sync(unsigned mask, float value, int offset) {
  if (mask != 0xffffffffu) std::abort();
  const int self = static_cast<int>(threadIdx.x);
  host::exchange[self] = value;
  host::wait(host::State::kWarpBarrier);
  const float other = host::exchange[self ^ offset];
  host::wait(host::State::kWarpBarrier);
  return other;
}

using std::min;

namespace effv2 {

namespace ptx {

inline float tanh_approx(float x) {
  return std::tanh(x);
}

inline void cluster_arrive() {}  // the wait that follows does both halves

inline void cluster_wait() {
  host::wait(host::State::kClusterWait);
}

inline void store_shared_cluster(float* local, int rank, float value) {
  host::cluster->shared[rank][local - host::cluster->shared[host::rank]] = value;
}

}  // namespace ptx

struct LaunchShape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
  unsigned cluster_x = 1;
};

struct DeviceLimits {
  int multiprocessors;
  bool clusters;
};

inline cudaError_t current_device_limits(DeviceLimits* limits) {
  *limits = {host::multiprocessors, host::clusters};
  return cudaSuccess;
}

template <auto kKernel>
bool has_cluster_code() {
  return true;
}

template <typename... Params, typename... Args>
cudaError_t launch(void (*kernel)(Params...), const LaunchShape& shape, cudaStream_t,
                   const Args&... args) {
  const unsigned size = shape.cluster_x;
  if (shape.grid.x % size != 0 || shape.shared_bytes > 40960) return cudaErrorInvalidValue;
  for (unsigned first = 0; first < shape.grid.x; first += size) {
    host::Cluster cluster;
    cluster.shared.resize(size);
    pthread_barrier_init(&cluster.barrier, nullptr, size);
    std::vector<std::thread> blocks;
    for (unsigned rank = 0; rank < size; ++rank) {
      blocks.emplace_back([&, rank] {
        host::rank = static_cast<int>(rank);
        host::cluster = &cluster;
        float* shared = squeeze_excite::shared_hidden;
        // What a launch does not ask for, or a kernel does not write, is NaN.
        std::fill(shared, shared + 12288, std::nanf(""));
        cluster.shared[rank] = shared;
        pthread_barrier_wait(&cluster.barrier);
        host::run_block(first + rank, static_cast<int>(shape.block.x), [&] { kernel(args...); });
      });
    }
    for (std::thread& block : blocks) block.join();
    pthread_barrier_destroy(&cluster.barrier);
  }
  return cudaSuccess;
}

}  // namespace effv2
