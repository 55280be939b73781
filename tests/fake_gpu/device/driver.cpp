// The CUDA driver, as far as Triton 3.6 calls it, and PyTorch past the runtime.
#include <cuda.h>

#include <map>
#include <mutex>
#include <string>

#include "device.h"

namespace {

std::mutex mutex;
std::map<CUfunction, std::string> names;
// A pointer that PyTorch and Triton hand around, and nobody reads.
const auto context = reinterpret_cast<CUcontext>(0x77);

CUresult result(int error) {
  return CUresult(error);
}

int attribute(CUdevice_attribute name) {
  switch (name) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
      return 9;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
      return 0;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
      return fake::kMultiprocessors;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE:
      return 32;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK:
      return 65536;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
      return fake::kMostSharedBytes;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE:
      return 1980000;
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE:
      return 3201000;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH:
      return 6144;
    default:
      return 1;
  }
}

CUresult launch(CUfunction function, const fake::Shape& shape, CUstream stream) {
  std::string name;
  {
    std::lock_guard lock(mutex);
    name = names[function];
  }
  return result(fake::launch(name.c_str(), function, shape, stream));
}

}  // namespace

API CUresult cuInit(unsigned) {
  return CUDA_SUCCESS;
}
API CUresult cuDriverGetVersion(int* version) {
  return *version = 13000, CUDA_SUCCESS;
}
API CUresult cuDeviceGetCount(int* count) {
  return *count = 1, CUDA_SUCCESS;
}
API CUresult cuDeviceGet(CUdevice* device, int) {
  return *device = 0, CUDA_SUCCESS;
}
API CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute name, CUdevice) {
  return *value = attribute(name), CUDA_SUCCESS;
}
API CUresult cuGetErrorString(CUresult error, const char** text) {
  return *text = fake::text(error), CUDA_SUCCESS;
}
API CUresult cuGetErrorName(CUresult error, const char** text) {
  return *text = fake::text(error), CUDA_SUCCESS;
}

API CUresult cuCtxGetCurrent(CUcontext* found) {
  return *found = context, CUDA_SUCCESS;
}
API CUresult cuCtxSetCurrent(CUcontext) {
  return CUDA_SUCCESS;
}
API CUresult cuCtxGetDevice(CUdevice* device) {
  return *device = 0, CUDA_SUCCESS;
}
API CUresult cuDevicePrimaryCtxRetain(CUcontext* found, CUdevice) {
  return *found = context, CUDA_SUCCESS;
}
API CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* active) {
  return *flags = 0, *active = 1, CUDA_SUCCESS;
}
API CUresult cuCtxGetLimit(size_t* value, CUlimit) {
  return *value = 0, CUDA_SUCCESS;
}
API CUresult cuCtxSetLimit(CUlimit, size_t) {
  return CUDA_SUCCESS;
}
API CUresult cuPointerGetAttribute(void* found, CUpointer_attribute, CUdeviceptr pointer) {
  return *static_cast<CUdeviceptr*>(found) = pointer, CUDA_SUCCESS;
}

// Loading a kernel during a capture is allowed, since CUDA 11.8.
API CUresult cuModuleLoadData(CUmodule* module, const void*) {
  *module = static_cast<CUmodule>(fake::handle());
  return result(fake::health());
}
API CUresult cuModuleUnload(CUmodule) {
  return CUDA_SUCCESS;
}
API CUresult cuModuleGetFunction(CUfunction* function, CUmodule, const char* name) {
  *function = static_cast<CUfunction>(fake::handle());
  std::lock_guard lock(mutex);
  names[*function] = name;
  return CUDA_SUCCESS;
}
API CUresult cuFuncGetAttribute(int* value, CUfunction_attribute name, CUfunction) {
  *value = name == CU_FUNC_ATTRIBUTE_NUM_REGS                ? 128
           : name == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? fake::kThreads
                                                             : 0;
  return CUDA_SUCCESS;
}
API CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute name, int value) {
  bool shared = name == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
  return result(shared ? fake::allow_shared_bytes(function, value) : int(fake::kSuccess));
}
API CUresult cuFuncSetCacheConfig(CUfunction, CUfunc_cache) {
  return CUDA_SUCCESS;
}
API CUresult cuOccupancyMaxActiveClusters(int* n, CUfunction, const CUlaunchConfig*) {
  return *n = 8, CUDA_SUCCESS;
}
API CUresult cuTensorMapEncodeTiled(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*,
                                    const cuuint64_t*, const cuuint64_t*, const cuuint32_t*,
                                    const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                                    CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  return CUDA_SUCCESS;
}

API CUresult cuLaunchKernelEx(const CUlaunchConfig* c, CUfunction function, void**, void**) {
  fake::Shape shape{{c->gridDimX, c->gridDimY, c->gridDimZ},
                    {c->blockDimX, c->blockDimY, c->blockDimZ},
                    c->sharedMemBytes};
  return launch(function, shape, c->hStream);
}
API CUresult cuLaunchKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                            unsigned by, unsigned bz, unsigned shared, CUstream stream, void**,
                            void**) {
  return launch(function, {{gx, gy, gz}, {bx, by, bz}, shared}, stream);
}

// What else there might be, there is not.
API CUresult cuGetProcAddress_v2(const char*, void**, int, cuuint64_t,
                                 CUdriverProcAddressQueryResult*) {
  return CUDA_ERROR_NOT_SUPPORTED;
}
API CUresult cuGetExportTable(const void**, const CUuuid*) {
  return CUDA_ERROR_NOT_SUPPORTED;
}
