// Device functions and the wrappers of csrc/common/ptx.cuh, on the host; part of host_runtime.h.
#pragma once

inline void __syncthreads() {
  host::wait(host::State::kBlockBarrier);
}

inline void __threadfence() {}
inline void __threadfence_block() {}

namespace host {

inline void warp_barrier(unsigned mask) {
  const int lane = block->current % kLanes;
  if (!(mask >> lane & 1)) fail("a lane that its own mask does not name");
  self().mask = mask;
  wait(State::kWarpBarrier);
}

// Shows `value` to the lanes of `mask`, and lets `read(lane)` look at theirs.
template <typename T, typename Read>
auto exchange(unsigned mask, const T& value, const Read& read) {
  static_assert(sizeof(T) <= kSlotBytes, "a slot is larger than what is handed on");
  const int first = block->current / kLanes * kLanes;
  std::memcpy(&block->slots[block->current * kSlotBytes], &value, sizeof(T));
  warp_barrier(mask);
  const auto of_lane = [&](int lane) {
    T other;
    std::memcpy(&other, &block->slots[(first + lane) * kSlotBytes], sizeof(T));
    return other;
  };
  const auto result = read(of_lane);
  warp_barrier(mask);
  return result;
}

template <typename T>
T shuffle(unsigned mask, T value, int source, bool inside) {
  return exchange(mask, value, [&](const auto& of_lane) {
    if (!inside) return value;
    if (!(mask >> source & 1)) fail("a shuffle from a lane that the mask does not name");
    return of_lane(source);
  });
}

inline int lane() {
  return block->current % kLanes;
}

}  // namespace host

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  host::warp_barrier(mask);
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int group = host::lane() / width * width;
  return host::shuffle(mask, value, group + source % width, true);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int offset, int width = 32) {
  const int source = host::lane() ^ offset;
  return host::shuffle(mask, value, source, source / width <= host::lane() / width);
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned offset, int width = 32) {
  const int source = host::lane() + static_cast<int>(offset);
  return host::shuffle(mask, value, source, source / width == host::lane() / width);
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned offset, int width = 32) {
  const int source = host::lane() - static_cast<int>(offset);
  return host::shuffle(mask, value, source, source >= host::lane() / width * width);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return host::exchange(mask, predicate, [&](const auto& of_lane) {
    unsigned votes = 0;
    for (int lane = 0; lane < host::kLanes; ++lane) {
      if (mask >> lane & 1) votes |= static_cast<unsigned>(of_lane(lane) != 0) << lane;
    }
    return votes;
  });
}

inline int __any_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) != 0;
}

inline int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) == mask;
}

// One thread runs at a time within a cluster of one block; with more, the blocks are threads.
template <typename T>
T atomicAdd(T* address, T value) {
  static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_mutex_lock(&mutex);
  const T old = *address;
  *address = old + value;
  pthread_mutex_unlock(&mutex);
  return old;
}

template <typename T>
T __ldg(const T* address) {
  return *address;
}

inline float __uint_as_float(unsigned x) {
  float y;
  std::memcpy(&y, &x, sizeof(y));
  return y;
}

// Byte i of the result is the one of y:x that digit i of the selector names.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t both = static_cast<uint64_t>(y) << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned digit = selector >> (4 * i) & 7;
    result |= static_cast<unsigned>(both >> (8 * digit) & 0xff) << (8 * i);
  }
  return result;
}

inline float __expf(float x) {
  return std::exp(x);
}

inline float __frsqrt_rn(float x) {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(x)));
}

// With the largest error that the CUDA manual allows: 2 ulp.
inline float rsqrtf(float x) {
  return __frsqrt_rn(x) * (1.0f + 0x1p-22f);
}

// The CUDA manual: 0 for a divisor between 2^126 and 2^128.
inline float __fdividef(float x, float y) {
  const float size = std::fabs(y);
  return size > 0x1p126f && std::isfinite(y) ? x * 0.0f : x / y;
}

using std::max;
using std::min;

namespace effv2::ptx {

// With the largest error that the PTX manual allows the instruction: 2^-11, relative.
inline float tanh_approx(float x) {
  int exponent = 0;
  const float mantissa = std::frexp(std::tanh(x), &exponent);
  return std::ldexp(std::rint(mantissa * 1024.0f) / 1024.0f, exponent);
}

// With the largest errors that the PTX manual allows.
inline float exp2_approx(float x) {
  const float y = std::exp2(x) * (1.0f + 0x1p-22f);
  return y < 0x1p-126f ? 0.0f : y;
}

inline float reciprocal_approx(float x) {
  const float y = 1.0f / x * (1.0f - 0x1p-23f);
  return std::fabs(y) < 0x1p-126f ? y * 0.0f : y;
}

inline void add_if_at_least(float& sum, float value, int count, int least) {
  if (count >= least) sum += value;
}

template <typename T>
inline void store_if_at_least(void* global, const T& value, int count, int least) {
  if (count >= least) *static_cast<T*>(global) = value;
}

template <typename T>
inline void keep(T&) {}

inline void renew(int&) {}

inline void cluster_arrive() {}  // the wait that follows does both halves

inline void cluster_wait() {
  host::wait(host::State::kClusterBarrier);
}

inline void store_shared_cluster(float* local, int rank, float value) {
  const auto offset = reinterpret_cast<char*>(local) - host::block->shared;
  if (rank < 0 || rank >= static_cast<int>(host::block->cluster->shared.size()) || offset < 0 ||
      static_cast<size_t>(offset) + sizeof(float) > host::block->shared_bytes) {
    host::fail("a store to another block's shared memory that does not exist");
  }
  std::memcpy(host::block->cluster->shared[rank] + offset, &value, sizeof(float));
}

// Made by the wait, so that whoever reads without waiting finds what was there before.
inline void cp_async16(void* shared, const void* global, bool inside) {
  for (const void* p : {static_cast<const void*>(shared), global}) {
    if (reinterpret_cast<uintptr_t>(p) % 16 != 0) host::fail("a misaligned cp.async");
  }
  host::Fiber& fiber = host::self();
  fiber.copies.push_back({shared, global, inside, fiber.group});
}

inline void cp_async_cached16(void* shared, const void* global, bool inside) {
  cp_async16(shared, global, inside);
}

inline void cp_async_commit() {
  ++host::self().group;
}

template <int kPending>
inline void cp_async_wait() {
  host::Fiber& fiber = host::self();
  std::vector<host::Copy> left;
  for (const host::Copy& copy : fiber.copies) {
    if (copy.group >= fiber.group - kPending) {
      left.push_back(copy);
      continue;
    }
    auto* target = static_cast<volatile unsigned char*>(copy.target);
    const auto* source = static_cast<const volatile unsigned char*>(copy.source);
    for (int i = 0; i < 16; ++i) target[i] = copy.inside ? source[i] : 0;
  }
  fiber.copies = left;
}

// Four 8x8 matrices of 16-bit elements. Lane 8 i + r gives the address of row r of matrix i; lane l
// receives elements 2 (l % 4) and the next of row l / 4 of each.
inline void ldmatrix_x4(const void* row, uint32_t (&out)[4]) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) host::fail("a misaligned ldmatrix");
  struct Four {
    uint32_t word[4];
  };
  const Four found = host::exchange(0xffffffffu, row, [&](const auto& of_lane) {
    Four four;
    for (int i = 0; i < 4; ++i) {
      const auto* source = static_cast<const uint32_t*>(of_lane(8 * i + host::lane() / 4));
      four.word[i] = source[host::lane() % 4];
    }
    return four;
  });
  for (int i = 0; i < 4; ++i) out[i] = found.word[i];
}

// d += a b for a 16x16 a (row-major), a 16x8 b (column-major) and a 16x8 d, in the fragments of the
// PTX manual: with g = lane / 4 and t = lane % 4, register i of a holds row g + 8 (i % 2), columns
// 2 t + 8 (i / 2) and the next; register i of b holds column g, rows 2 t + 8 i and the next;
// register i of d holds row g + 8 (i / 2), column 2 t + i % 2.
template <typename T>
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  struct Fragments {
    uint32_t a[4], b[2];
  };
  struct Result {
    float d[4];
  };
  const Fragments own = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const auto element = [](uint32_t word, int half) {
    T value;
    const auto bits = static_cast<uint16_t>(word >> (16 * half));
    std::memcpy(&value, &bits, sizeof(value));
    return static_cast<float>(value);
  };
  const Result found = host::exchange(0xffffffffu, own, [&](const auto& of_lane) {
    Result result;
    const int g = host::lane() / 4, t = host::lane() % 4;
    float rows[2][16], columns[2][16];
    for (int part = 0; part < 4; ++part) {
      const Fragments row = of_lane(4 * g + part);
      for (int i = 0; i < 4; ++i) {
        for (int half = 0; half < 2; ++half) {
          rows[i % 2][2 * part + 8 * (i / 2) + half] = element(row.a[i], half);
        }
      }
      for (int j = 0; j < 2; ++j) {
        const Fragments column = of_lane(4 * (2 * t + j) + part);
        for (int i = 0; i < 2; ++i) {
          for (int half = 0; half < 2; ++half) {
            columns[j][2 * part + 8 * i + half] = element(column.b[i], half);
          }
        }
      }
    }
    for (int i = 0; i < 4; ++i) {
      result.d[i] = d[i];
      for (int k = 0; k < 16; ++k) result.d[i] += rows[i / 2][k] * columns[i % 2][k];
    }
    return result;
  });
  for (int i = 0; i < 4; ++i) d[i] = found.d[i];
}

}  // namespace effv2::ptx
