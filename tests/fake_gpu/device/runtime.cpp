// The CUDA runtime, as far as PyTorch 2.11 and our library call it.
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "device.h"

namespace {

thread_local cudaError_t last = cudaSuccess;
std::mutex mutex;
std::map<const void*, const char*> names;  // of kernels, by the function that stands for them

cudaError_t result(int error) {
  if (error && error != fake::kNotReady) last = cudaError_t(error);
  return cudaError_t(error);
}

const char* name_of(const void* function) {
  std::lock_guard lock(mutex);
  auto found = names.find(function);
  return found == names.end() ? "a kernel without a name" : found->second;
}

cudaError_t launch(const void* function, dim3 g, dim3 b, size_t shared, cudaStream_t stream) {
  fake::Shape shape{{g.x, g.y, g.z}, {b.x, b.y, b.z}, shared};
  return result(fake::launch(name_of(function), function, shape, stream));
}

template <class T>
cudaError_t create(T* made) {
  *made = static_cast<T>(fake::handle());
  return result(fake::health());
}

cudaError_t copy(void* to, const void* from, size_t bytes) {
  memcpy(to, from, bytes);
  return result(fake::health());
}

// Nobody reads what a fill left, so a large one need not have real memory.
cudaError_t fill(void* memory, int value, size_t bytes) {
  if (bytes < (64u << 20)) memset(memory, value, bytes);
  return result(fake::health());
}

int attribute(cudaDeviceAttr name) {
  switch (name) {
    case cudaDevAttrComputeCapabilityMajor:
      return 9;
    case cudaDevAttrComputeCapabilityMinor:
      return 0;
    case cudaDevAttrMultiProcessorCount:
      return fake::kMultiprocessors;
    case cudaDevAttrClockRate:
      return 1980000;
    case cudaDevAttrMemoryClockRate:
      return 3201000;
    case cudaDevAttrGlobalMemoryBusWidth:
      return 6144;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return fake::kSharedBytes;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return fake::kMostSharedBytes;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return fake::kMostSharedBytes + 1024;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      return 2048;
    case cudaDevAttrMaxThreadsPerBlock:
      return fake::kThreads;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor:
      return 65536;
    case cudaDevAttrL2CacheSize:
      return 60 << 20;
    case cudaDevAttrWarpSize:
      return 32;
    case cudaDevAttrMaxGridDimX:
      return 0x7fffffff;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ:
      return fake::kGridYZ;
    default:
      return 1;
  }
}

}  // namespace

// The device.

API cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "NVIDIA H200");
  p->major = 9;
  p->totalGlobalMem = fake::kMemory;
  p->multiProcessorCount = fake::kMultiprocessors;
  p->sharedMemPerBlock = fake::kSharedBytes;
  p->sharedMemPerBlockOptin = fake::kMostSharedBytes;
  p->sharedMemPerMultiprocessor = fake::kMostSharedBytes + 1024;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->warpSize = 32;
  p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = fake::kThreads;
  p->maxThreadsDim[2] = 64;
  p->maxThreadsPerMultiProcessor = 2048;
  p->maxGridSize[0] = 0x7fffffff;
  p->maxGridSize[1] = p->maxGridSize[2] = fake::kGridYZ;
  p->l2CacheSize = 60 << 20;
  p->memoryBusWidth = 6144;
  p->textureAlignment = 512;
  p->unifiedAddressing = p->concurrentKernels = p->managedMemory = p->cooperativeLaunch = 1;
  p->asyncEngineCount = 3;
  return cudaSuccess;
}
API cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr name, int) {
  *value = attribute(name);
  return cudaSuccess;
}
API cudaError_t cudaGetDeviceCount(int* count) {
  return *count = 1, cudaSuccess;
}
API cudaError_t cudaGetDevice(int* device) {
  return *device = 0, cudaSuccess;
}
API cudaError_t cudaSetDevice(int device) {
  return device ? cudaErrorInvalidDevice : cudaSuccess;
}
API cudaError_t cudaDriverGetVersion(int* version) {
  return *version = 13000, cudaSuccess;
}
API cudaError_t cudaRuntimeGetVersion(int* version) {
  return *version = 13000, cudaSuccess;
}
API cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  return *can = 0, cudaSuccess;
}
API cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) {
  return cudaSuccess;
}
API cudaError_t cudaDeviceGetPCIBusId(char* text, int size, int) {
  snprintf(text, size, "0000:00:01.0");
  return cudaSuccess;
}
API cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int) {
  return create(pool);
}
API cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  return *least = 0, *greatest = -5, cudaSuccess;
}
API cudaError_t cudaProfilerStart() {
  return cudaSuccess;
}
API cudaError_t cudaProfilerStop() {
  return cudaSuccess;
}
API cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned,
                                                 unsigned long long,
                                                 cudaDriverEntryPointQueryResult* found) {
  *function = dlsym(RTLD_DEFAULT, name);
  if (found) {
    *found = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  }
  return *function ? cudaSuccess : cudaErrorSymbolNotFound;
}

// Errors.

API cudaError_t cudaGetLastError() {
  cudaError_t error = last;
  last = cudaSuccess;
  return error ? error : cudaError_t(fake::health());
}
API cudaError_t cudaPeekAtLastError() {
  return last ? last : cudaError_t(fake::health());
}
API const char* cudaGetErrorString(cudaError_t error) {
  return fake::text(error);
}
API const char* cudaGetErrorName(cudaError_t error) {
  return fake::text(error);
}

// Memory.

API cudaError_t cudaMalloc(void** p, size_t n) {
  return result(fake::allocate(p, n));
}
API cudaError_t cudaMallocAsync(void** p, size_t n, cudaStream_t) {
  return cudaMalloc(p, n);
}
API cudaError_t cudaHostAlloc(void** p, size_t n, unsigned) {
  return cudaMalloc(p, n);
}
API cudaError_t cudaFree(void* p) {
  int error = fake::forbidden("cudaFree");
  return result(error ? error : fake::free(p));
}
API cudaError_t cudaFreeAsync(void* p, cudaStream_t) {
  return result(fake::free(p));
}
API cudaError_t cudaFreeHost(void* p) {
  return result(fake::free(p));
}
API cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *total = fake::kMemory;
  *free = fake::kMemory - fake::allocated();
  return result(fake::health());
}
API cudaError_t cudaMemcpy(void* to, const void* from, size_t n, cudaMemcpyKind) {
  int error = fake::synchronize("cudaMemcpy");
  return error ? result(error) : copy(to, from, n);
}
API cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t n, cudaMemcpyKind kind,
                                cudaStream_t) {
  // Of such large maps nobody reads a value.
  bool within = kind == cudaMemcpyDeviceToDevice && n >= (256u << 20);
  return within ? result(fake::health()) : copy(to, from, n);
}
API cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t n, cudaStream_t) {
  return copy(to, from, n);
}
API cudaError_t cudaMemcpyToSymbol(const void*, const void*, size_t, size_t, cudaMemcpyKind) {
  return cudaSuccess;
}
API cudaError_t cudaMemset(void* p, int value, size_t n) {
  return fill(p, value, n);
}
API cudaError_t cudaMemsetAsync(void* p, int value, size_t n, cudaStream_t) {
  return fill(p, value, n);
}
API cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* found, const void* p) {
  memset(found, 0, sizeof *found);
  found->type = cudaMemoryTypeDevice;
  found->devicePointer = const_cast<void*>(p);
  return cudaSuccess;
}
API cudaError_t cudaGetSymbolAddress(void** p, const void*) {
  return cudaMalloc(p, 4096);
}
API cudaError_t cudaHostRegister(void*, size_t, unsigned) {
  return cudaSuccess;
}
API cudaError_t cudaHostUnregister(void*) {
  return cudaSuccess;
}

// Streams and events.

API cudaError_t cudaStreamCreate(cudaStream_t* s) {
  return create(s);
}
API cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned) {
  return create(s);
}
API cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned, int) {
  return create(s);
}
API cudaError_t cudaStreamDestroy(cudaStream_t) {
  return cudaSuccess;
}
API cudaError_t cudaStreamGetPriority(cudaStream_t, int* p) {
  return *p = 0, cudaSuccess;
}
API cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return result(fake::synchronize("cudaStreamSynchronize"));
}
API cudaError_t cudaDeviceSynchronize() {
  return result(fake::synchronize("cudaDeviceSynchronize"));
}
API cudaError_t cudaStreamQuery(cudaStream_t) {
  int error = fake::forbidden("cudaStreamQuery");
  return result(error ? error : fake::is_busy() ? fake::kNotReady : fake::kSuccess);
}
API cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  fake::wait_for(stream, event);
  return result(fake::health());
}
API cudaError_t cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t function, void* data) {
  function(data);
  return cudaSuccess;
}
API cudaError_t cudaStreamAddCallback(cudaStream_t s, cudaStreamCallback_t function, void* data,
                                      unsigned) {
  function(s, cudaSuccess, data);
  return cudaSuccess;
}
API cudaError_t cudaEventCreate(cudaEvent_t* e) {
  return create(e);
}
API cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) {
  return create(e);
}
API cudaError_t cudaEventDestroy(cudaEvent_t) {
  return cudaSuccess;
}
API cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  fake::record(event, stream);
  return result(fake::health());
}
API cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
  return cudaEventRecord(event, stream);
}
API cudaError_t cudaEventQuery(cudaEvent_t) {
  return result(fake::is_busy() ? int(fake::kNotReady) : fake::health());
}
API cudaError_t cudaEventSynchronize(cudaEvent_t) {
  return result(fake::synchronize("cudaEventSynchronize"));
}
API cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t start, cudaEvent_t end) {
  *ms = fake::milliseconds(start, end);
  return result(fake::health());
}

// Graphs.

API cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  fake::begin_capture(stream);
  return result(fake::health());
}
API cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
  return result(fake::end_capture(reinterpret_cast<void**>(graph)));
}
API cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status =
      fake::is_capturing(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
API cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status,
                                         unsigned long long* number, cudaGraph_t* graph,
                                         const cudaGraphNode_t** dependencies,
                                         const cudaGraphEdgeData** edges, size_t* count) {
  cudaStreamIsCapturing(stream, status);
  if (number) *number = fake::capture_number();
  if (graph) *graph = nullptr;
  if (dependencies) *dependencies = nullptr;
  if (edges) *edges = nullptr;
  if (count) *count = 0;
  return cudaSuccess;
}
API cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) {
  return cudaSuccess;
}
API cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* made, cudaGraph_t graph,
                                              unsigned long long) {
  *made = reinterpret_cast<cudaGraphExec_t>(graph);
  return result(fake::health());
}
API cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t) {
  return result(fake::replay(graph));
}
API cudaError_t cudaGraphDestroy(cudaGraph_t) {
  return cudaSuccess;
}
API cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) {
  return cudaSuccess;
}
API cudaError_t cudaGraphGetNodes(cudaGraph_t, cudaGraphNode_t*, size_t* count) {
  return *count = 1, cudaSuccess;
}

// Kernels.

API void** __cudaRegisterFatBinary(void*) {
  static void* one;
  return &one;
}
API void __cudaRegisterFatBinaryEnd(void**) {}
API void __cudaUnregisterFatBinary(void**) {}
API void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
API char __cudaInitModule(void**) {
  return 1;
}
API void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, uint3*,
                                uint3*, dim3*, dim3*, int*) {
  std::lock_guard lock(mutex);
  names[function] = name;
}
API cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}

namespace {
thread_local struct {
  dim3 grid, block;
  size_t shared;
  void* stream;
} pushed;
}  // namespace

API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
  pushed = {grid, block, shared, stream};
  return 0;
}
API cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = pushed.grid;
  *block = pushed.block;
  *shared = pushed.shared;
  *static_cast<void**>(stream) = pushed.stream;
  return cudaSuccess;
}
API cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void**, size_t shared,
                                 cudaStream_t stream) {
  return launch(function, grid, block, shared, stream);
}
API cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void**,
                                   size_t shared, cudaStream_t stream) {
  return launch(kernel, grid, block, shared, stream);
}
API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* c, const void* function, void**) {
  for (unsigned i = 0; i < c->numAttrs; ++i) {
    if (c->attrs[i].id != cudaLaunchAttributeClusterDimension) continue;
    auto d = c->attrs[i].val.clusterDim;
    dim3 g = c->gridDim;
    if (d.x * d.y * d.z > 8 || g.x % d.x || g.y % d.y || g.z % d.z) {
      return result(fake::complain(fake::kInvalidConfiguration, "%s: clusters of %u x %u x %u",
                                   name_of(function), d.x, d.y, d.z));
    }
  }
  return launch(function, c->gridDim, c->blockDim, c->dynamicSmemBytes, c->stream);
}
API cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* found, const void*) {
  memset(found, 0, sizeof *found);
  found->maxThreadsPerBlock = fake::kThreads;
  found->numRegs = 64;
  found->binaryVersion = found->ptxVersion = 90;
  return cudaSuccess;
}
API cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute name, int value) {
  bool shared = name == cudaFuncAttributeMaxDynamicSharedMemorySize;
  return result(shared ? fake::allow_shared_bytes(function, value) : int(fake::kSuccess));
}
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, const void*, int,
                                                                       size_t, unsigned) {
  return *n = 2, cudaSuccess;
}
