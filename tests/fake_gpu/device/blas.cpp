// cuBLAS: a product takes the time of one kernel. Only names matter here; no header is needed.
#include "device.h"

namespace {

thread_local void* current = nullptr;  // stream, as it was set last

int product(const void* stream) {
  return fake::launch("cublas", stream);
}

}  // namespace

#define NOTHING(name) \
  API int name() {    \
    return 0;         \
  }
#define PRODUCT(name)        \
  API int name() {           \
    return product(current); \
  }
#define MADE(name)                    \
  API int name(void** made) {         \
    return *made = fake::handle(), 0; \
  }

MADE(cublasCreate_v2)
MADE(cublasLtCreate)
MADE(cublasLtMatmulDescCreate)
MADE(cublasLtMatrixLayoutCreate)
MADE(cublasLtMatmulPreferenceCreate)

NOTHING(cublasDestroy_v2)
NOTHING(cublasSetWorkspace_v2)
NOTHING(cublasSetMathMode)
NOTHING(cublasSetPointerMode_v2)
NOTHING(cublasLtMatmulDescDestroy)
NOTHING(cublasLtMatmulDescSetAttribute)
NOTHING(cublasLtMatrixLayoutDestroy)
NOTHING(cublasLtMatmulPreferenceDestroy)
NOTHING(cublasLtMatmulPreferenceSetAttribute)

API int cublasGetMathMode(void*, int* mode) {
  return *mode = 0;
}
API int cublasGetPointerMode_v2(void*, int* mode) {
  return *mode = 0;
}
API size_t cublasLtGetVersion() {
  return 130100;
}
API int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, void*,
                                       int* found) {
  return *found = 1, 0;
}

API int cublasSetStream_v2(void*, void* stream) {
  current = stream;
  return 0;
}
API int cublasLtMatmul(void*, void*, const void*, const void*, void*, const void*, void*,
                       const void*, const void*, void*, void*, void*, const void*, void*, size_t,
                       void* stream) {
  return product(stream);
}
PRODUCT(cublasGemmEx)
PRODUCT(cublasSgemmEx)
PRODUCT(cublasGemmStridedBatchedEx)
PRODUCT(cublasSgemm_v2)
PRODUCT(cublasDgemm_v2)
PRODUCT(cublasSgemv_v2)
PRODUCT(cublasDgemv_v2)
PRODUCT(cublasSgemmStridedBatched)
PRODUCT(cublasDgemmStridedBatched)
PRODUCT(cublasSdot_v2)
PRODUCT(cublasDdot_v2)
PRODUCT(cublasDotEx)
