// What the torch side of the native CUDA ops shares: checks of the contract beyond checks.h, stream
// and launch, on torch's stable ABI.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <initializer_list>

#include "checks.h"
#include "kernels.h"

// torch declares this for CUDA builds only and defines it in libtorch_cuda. Weak, so that the
// library also loads where that one does not exist; no CUDA tensor can reach us there.
extern "C" __attribute__((weak)) AOTITorchError
aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace effv2 {

inline DType checked_dtype(const char* op, const char* name, ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    default:
      fail(op, name, " must be float32, float16 or bfloat16, found ",
           torch::headeronly::toString(dtype));
  }
}

// That all of them have.
inline DType checked_dtype(const char* op, std::initializer_list<Argument> arguments) {
  const Argument& first = *arguments.begin();
  const ScalarType dtype = first.tensor.scalar_type();
  for (const Argument& argument : arguments) {
    if (argument.tensor.scalar_type() != dtype) {
      fail(op, argument.name, " must have the dtype of ", first.name, ", ",
           torch::headeronly::toString(dtype), ", found ",
           torch::headeronly::toString(argument.tensor.scalar_type()));
    }
  }
  return checked_dtype(op, first.name, dtype);
}

inline void check_device(const char* op, std::initializer_list<Argument> arguments) {
  const Argument& first = *arguments.begin();
  if (!first.tensor.is_cuda()) {
    fail(op, first.name, " must be on a CUDA device, found ", device_text(first.tensor));
  }
  for (const Argument& argument : arguments) {
    if (!argument.tensor.is_cuda() ||
        argument.tensor.get_device_index() != first.tensor.get_device_index()) {
      fail(op, argument.name, " must be on the device of ", first.name, ", ",
           device_text(first.tensor), ", found ", device_text(argument.tensor));
    }
  }
}

inline cudaStream_t current_stream(const char* op, int32_t device_index) {
  void* stream = nullptr;
  if (aoti_torch_get_current_cuda_stream == nullptr) fail(op, "this torch has no CUDA support");
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_index, &stream));
  return static_cast<cudaStream_t>(stream);
}

inline void check_launch(const char* op, cudaError_t error) {
  if (error != cudaSuccess) {
    cudaGetLastError();  // reported here, so not once more by whoever asks next
    fail(op, "the launch failed: ", cudaGetErrorName(error), ", ", cudaGetErrorString(error));
  }
}

}  // namespace effv2
