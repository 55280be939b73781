// Enough of the CUDA device runtime to run the kernels of csrc/ on the CPU, behind the launch()
// that they use. Found through the include path by csrc/common/launch.cuh when EFFV2_HOST_RUNTIME
// is set.
//
// Blocks run in turn. A block's threads are fibers of one operating-system thread; a barrier or a
// warp instruction is a switch to the next fiber. The blocks of a cluster are operating-system
// threads, which is why __shared__ is thread_local: one copy a block.
//
// What a kernel may get wrong, and how it shows:
// - a read or a write past a buffer, dynamic shared memory included: AddressSanitizer;
// - a misaligned vector access: the alignment sanitizer;
// - shared memory read before it is written: it starts as NaN;
// - a barrier that not all threads of a block reach: an error here;
// - a missing barrier or another race: other results in another order of threads and blocks
//   (`options`), since a thread runs until it has to wait. A copy by cp.async is made when it is
//   waited for, not before.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <link.h>
#include <pthread.h>
#include <vector_functions.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#include "fiber.h"

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __forceinline__
#undef __launch_bounds__
#undef __align__
#define __global__
#define __device__
#define __host__
#define __shared__ thread_local
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)

namespace host {

constexpr int kLanes = 32;
constexpr size_t kSlotBytes = 64;

// What a driver sets before it launches.
struct Options {
  int multiprocessors = 132;
  bool clusters = true;
  bool other_order = false;  // blocks backwards, threads shuffled
  size_t most_shared_bytes = 232448;
};
inline Options options;
inline size_t most_shared_bytes = 0;  // that a launch has asked for
inline int64_t launches = 0;

enum class State { kReady, kWarpBarrier, kBlockBarrier, kClusterBarrier, kDone };

struct Copy {
  void* target;
  const void* source;
  bool inside;  // else 16 zero bytes are written
  int group;
};

struct Fiber {
  Context context;
  char* stack = nullptr;
  State state = State::kReady;
  unsigned mask = 0;  // of the warp barrier that it waits at
  dim3 index;
  std::vector<Copy> copies;
  int group = 0;
};

struct Cluster {
  pthread_barrier_t barrier;
  std::vector<char*> shared;  // the dynamic shared memory of each rank
};

struct Block {
  std::vector<Fiber> fibers;
  Context scheduler;
  int current = 0;
  int rank = 0;
  Cluster* cluster = nullptr;
  char* shared = nullptr;
  size_t shared_bytes = 0;
  const std::function<void()>* body = nullptr;
  std::vector<unsigned char> slots;  // kSlotBytes for each thread: what a warp instruction hands on
};

inline thread_local Block* block = nullptr;

}  // namespace host

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace host {

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "host runtime: %s (block %u,%u,%u thread %u,%u,%u)\n", what, blockIdx.x,
               blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
  std::fflush(stderr);
  std::_Exit(3);
}

inline Fiber& self() {
  return block->fibers[block->current];
}

inline void wait(State state) {
  Fiber& fiber = self();
  fiber.state = state;
  switch_to(fiber.context, block->scheduler);
}

inline void fiber_main() {
  (*block->body)();
  wait(State::kDone);
}

inline void run_fiber(int index) {
  Fiber& fiber = block->fibers[index];
  block->current = index;
  threadIdx = fiber.index;
  switch_to(block->scheduler, fiber.context);
}

inline bool all(State state) {
  const auto& fibers = block->fibers;
  return std::all_of(fibers.begin(), fibers.end(),
                     [&](const Fiber& f) { return f.state == state; });
}

inline void release() {
  for (Fiber& fiber : block->fibers) fiber.state = State::kReady;
}

// Lets the lanes go on whose whole mask waits at the same warp barrier.
inline bool release_warp(int first) {
  auto& fibers = block->fibers;
  const int lanes = std::min<int>(kLanes, static_cast<int>(fibers.size()) - first);
  bool released = false;
  for (int i = 0; i < lanes; ++i) {
    if (fibers[first + i].state != State::kWarpBarrier) continue;
    const unsigned mask = fibers[first + i].mask;
    bool complete = true;
    for (int j = 0; j < kLanes; ++j) {
      if (!(mask >> j & 1)) continue;
      if (j >= lanes || fibers[first + j].state == State::kDone) {
        fail("a lane named in the mask of a warp instruction has ended or does not exist");
      }
      const Fiber& other = fibers[first + j];
      complete &= other.state == State::kWarpBarrier && other.mask == mask;
    }
    if (!complete) continue;
    for (int j = 0; j < lanes; ++j) {
      if (mask >> j & 1) fibers[first + j].state = State::kReady;
    }
    released = true;
  }
  return released;
}

[[noreturn]] inline void report_deadlock() {
  for (const Fiber& fiber : block->fibers) {
    if (fiber.state == State::kDone) continue;
    threadIdx = fiber.index;
    fail(fiber.state == State::kWarpBarrier
             ? "deadlock: a warp instruction that not all lanes of its mask reach"
             : "deadlock: a barrier that not all threads of the block reach");
  }
  std::abort();
}

// Runs the prepared fibers to their end.
inline void schedule() {
  const int threads = static_cast<int>(block->fibers.size());
  std::vector<int> order(threads);
  for (int i = 0; i < threads; ++i) order[i] = i;
  std::mt19937 random(threads);
  std::vector<int> warps;
  for (int first = 0; first < threads; first += kLanes) warps.push_back(first);
  for (;;) {
    if (options.other_order) std::shuffle(warps.begin(), warps.end(), random);
    bool progress = false;
    for (const int first : warps) {
      const int end = std::min(first + kLanes, threads);
      if (options.other_order) std::shuffle(&order[first], &order[0] + end, random);
      do {
        for (int i = first; i < end; ++i) {
          if (block->fibers[order[i]].state != State::kReady) continue;
          run_fiber(order[i]);
          progress = true;
        }
      } while (release_warp(first));
    }
    if (all(State::kDone)) return;
    if (all(State::kBlockBarrier)) {
      release();
    } else if (all(State::kClusterBarrier)) {
      pthread_barrier_wait(&block->cluster->barrier);
      release();
    } else if (!progress) {
      report_deadlock();
    }
  }
}

// Fills static shared memory with NaN: it is thread_local, as are a few variables of this file,
// which are put back.
inline void poison_static_shared() {
  struct Saved {
    Block* block = host::block;
    dim3 values[4] = {threadIdx, blockIdx, blockDim, gridDim};
  };
  static const auto fill = [](dl_phdr_info* info, size_t, void*) {
    for (int i = 0; i < info->dlpi_phnum; ++i) {
      const auto& header = info->dlpi_phdr[i];
      if (header.p_type != PT_TLS || info->dlpi_tls_data == nullptr) continue;
      std::memset(info->dlpi_tls_data, 0xff, header.p_memsz);
    }
    return 1;  // the program itself comes first, and is all
  };
  const Saved saved;
  dl_iterate_phdr(fill, nullptr);
  host::block = saved.block;
  threadIdx = saved.values[0];
  blockIdx = saved.values[1];
  blockDim = saved.values[2];
  gridDim = saved.values[3];
}

// Stacks are kept: a grid has many blocks.
inline std::vector<char*>& spare_stacks() {
  static std::vector<char*>* stacks = new std::vector<char*>;
  return *stacks;
}
inline pthread_mutex_t stacks_mutex = PTHREAD_MUTEX_INITIALIZER;

inline void run_block(dim3 grid, dim3 shape, dim3 index, char* shared, size_t shared_bytes,
                      int rank, Cluster* cluster, const std::function<void()>& body) {
  Block own;
  block = &own;
  poison_static_shared();
  blockIdx = index;
  gridDim = grid;
  blockDim = shape;
  own.rank = rank;
  own.cluster = cluster;
  own.shared = shared;
  own.shared_bytes = shared_bytes;
  own.body = &body;
  own.fibers.resize(static_cast<size_t>(shape.x) * shape.y * shape.z);
  own.slots.resize(own.fibers.size() * kSlotBytes);
  pthread_mutex_lock(&stacks_mutex);
  for (Fiber& fiber : own.fibers) {
    auto& spare = spare_stacks();
    fiber.stack = spare.empty() ? new_stack() : spare.back();
    if (!spare.empty()) spare.pop_back();
  }
  pthread_mutex_unlock(&stacks_mutex);
  unsigned linear = 0;
  for (Fiber& fiber : own.fibers) {
    fiber.index = dim3(linear % shape.x, linear / shape.x % shape.y, linear / shape.x / shape.y);
    prepare(fiber.context, fiber.stack, fiber_main);
    ++linear;
  }
  schedule();
  pthread_mutex_lock(&stacks_mutex);
  for (Fiber& fiber : own.fibers) spare_stacks().push_back(fiber.stack);
  pthread_mutex_unlock(&stacks_mutex);
  block = nullptr;
}

inline char* new_shared(size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 256, std::max<size_t>(bytes, 1)) != 0) fail("out of memory");
  std::memset(memory, 0xff, bytes);
  return static_cast<char*>(memory);
}

// A cluster of `size` blocks along x, the first of which is at `first`.
inline void run_cluster(dim3 grid, dim3 shape, dim3 first, unsigned size, size_t shared_bytes,
                        const std::function<void()>& body) {
  Cluster cluster;
  for (unsigned rank = 0; rank < size; ++rank) cluster.shared.push_back(new_shared(shared_bytes));
  const auto run = [&](unsigned rank) {
    const dim3 index(first.x + rank, first.y, first.z);
    run_block(grid, shape, index, cluster.shared[rank], shared_bytes, static_cast<int>(rank),
              &cluster, body);
  };
  pthread_barrier_init(&cluster.barrier, nullptr, size);
  if (size == 1) {
    run(0);
  } else {
    std::vector<std::thread> blocks;
    for (unsigned rank = 0; rank < size; ++rank) blocks.emplace_back(run, rank);
    for (std::thread& thread : blocks) thread.join();
  }
  pthread_barrier_destroy(&cluster.barrier);
  for (char* shared : cluster.shared) std::free(shared);
}

}  // namespace host

#include "host_intrinsics.h"

namespace effv2 {

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
  *limits = {host::options.multiprocessors, host::options.clusters};
  return cudaSuccess;
}

template <auto kKernel>
bool has_cluster_code() {
  return host::options.clusters;
}

template <typename T>
T* dynamic_shared() {
  return reinterpret_cast<T*>(host::block->shared);
}

template <typename... Params, typename... Args>
cudaError_t launch(void (*kernel)(Params...), const LaunchShape& shape, cudaStream_t,
                   const Args&... args) {
  const dim3 grid = shape.grid;
  const unsigned size = shape.cluster_x;
  const unsigned threads = shape.block.x * shape.block.y * shape.block.z;
  if (threads == 0 || threads > 1024 || grid.x == 0 || grid.y == 0 || grid.z == 0) {
    return cudaErrorInvalidConfiguration;
  }
  if (grid.y > 65535 || grid.z > 65535 || size == 0 || size > 8 || grid.x % size != 0 ||
      shape.shared_bytes > host::options.most_shared_bytes) {
    return cudaErrorInvalidValue;
  }
  ++host::launches;
  host::most_shared_bytes = std::max(host::most_shared_bytes, shape.shared_bytes);
  const std::function<void()> body = [&] { kernel(args...); };
  const uint64_t clusters = uint64_t{grid.x / size} * grid.y * grid.z;
  for (uint64_t i = 0; i < clusters; ++i) {
    const uint64_t linear = host::options.other_order ? clusters - 1 - i : i;
    const uint64_t x = linear % (grid.x / size), rest = linear / (grid.x / size);
    const dim3 first(static_cast<unsigned>(x) * size, static_cast<unsigned>(rest % grid.y),
                     static_cast<unsigned>(rest / grid.y));
    host::run_cluster(grid, shape.block, first, size, shape.shared_bytes, body);
  }
  return cudaSuccess;
}

// As launch(): a kernel may ask for as much dynamic shared memory as the device has.
template <auto kKernel, typename... Args>
cudaError_t launch_with_shared(const LaunchShape& shape, cudaStream_t stream, const Args&... args) {
  return launch(kKernel, shape, stream, args...);
}

}  // namespace effv2
