// The real csrc/common/launch.cuh over a stand-in for four functions of the runtime: two threads
// launch one kernel, with less and with more dynamic shared memory. The stand-in makes the meeting
// that goes wrong happen: who asks for more is served first, who asks for less last. It prints how
// often each was launched, and what was permitted in the end.
#include <cuda_runtime.h>

// What cuda_runtime.h adds for nvcc only.
template <typename... Params>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*kernel)(Params...)) {
  return cudaFuncGetAttributes(attributes, reinterpret_cast<const void*>(kernel));
}
template <typename... Params>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Params...), cudaFuncAttribute name, int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), name, value);
}

#include "common/launch.cuh"

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <thread>

namespace {

constexpr int kOptIn = 232448;
constexpr int kStatic = 2048;
constexpr int kLess = 64 * 1024;
constexpr int kMore = 200 * 1024;
constexpr int kAll = kOptIn - kStatic;

std::mutex mutex;
std::condition_variable changed;
int asking = 0;
bool served = false;
int permitted = 48 * 1024 - kStatic;

thread_local int mine;  // bytes of this thread's launches

void kernel(int) {}

int launched(int count) {
  int succeeded = 0;
  for (int i = 0; i < count; ++i) {
    effv2::LaunchShape shape;
    shape.shared_bytes = mine;
    succeeded += effv2::launch_with_shared<kernel>(shape, nullptr, 7) == cudaSuccess;
  }
  return succeeded;
}

}  // namespace

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin ? kOptIn : 0;
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {};
  attributes->sharedSizeBytes = kStatic;
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int value) {
  std::unique_lock<std::mutex> lock(mutex);
  if (value > kAll) return cudaErrorInvalidValue;
  ++asking;
  changed.notify_all();
  // Both have asked before either is served, unless the other never does.
  const auto patience = std::chrono::seconds(1);
  changed.wait_for(lock, patience, [] { return asking >= 2; });
  if (mine == kLess) changed.wait_for(lock, patience, [] { return served; });
  permitted = value;
  served = served || mine == kMore;
  changed.notify_all();
  return cudaSuccess;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void*, void**) {
  std::unique_lock<std::mutex> lock(mutex);
  // The first launch with more comes after the other thread's permission, if it asked for one.
  changed.wait_for(lock, std::chrono::milliseconds(200), [] { return permitted == kLess; });
  return static_cast<int>(config->dynamicSmemBytes) <= permitted ? cudaSuccess
                                                                 : cudaErrorInvalidValue;
}

int main() {
  int less = 0, more = 0;
  std::thread first([&] {
    mine = kLess;
    less = launched(3);
  });
  std::thread second([&] {
    mine = kMore;
    more = launched(3);
  });
  first.join();
  second.join();
  std::printf("%d %d %d\n", less, more, permitted == kAll);
}
