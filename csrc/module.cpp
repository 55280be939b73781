// effv2_kernels._C: what the build put into _ops.so, for `python -m effv2_kernels info` and the
// tests.
//
// The numbers are those that ptxas printed when the kernels were compiled; setup.py writes them
// into build_info.h. cudaFuncGetAttributes would give only those of the device at hand, and nothing
// on a machine without one; these are known for every architecture in the library, and reading them
// needs neither a GPU nor libcuda.

#include <cxxabi.h>
#include <pybind11/pybind11.h>

#include <cstdlib>
#include <memory>
#include <string>

#include "build_info.h"

namespace py = pybind11;

namespace {

struct KernelUsage {
  const char* mangled_name;
  const char* architecture;
  int registers;
  int shared_bytes;  // static; a launch may add dynamic shared memory
  int local_bytes;   // stack frame, spills included
  int spill_store_bytes;
  int spill_load_bytes;
};

constexpr KernelUsage kKernels[] = {
#define EFFV2_KERNEL(...) {__VA_ARGS__},
    EFFV2_KERNELS
#undef EFFV2_KERNEL
};

std::string demangled(const char* name) {
  int status = 0;
  const std::unique_ptr<char, decltype(&std::free)> text(
      abi::__cxa_demangle(name, nullptr, nullptr, &status), &std::free);
  return status == 0 ? text.get() : name;
}

py::dict build_info() {
  py::list kernels;
  for (const KernelUsage& kernel : kKernels) {
    py::dict entry;
    entry["name"] = demangled(kernel.mangled_name);
    entry["architecture"] = kernel.architecture;
    entry["registers"] = kernel.registers;
    entry["shared_bytes"] = kernel.shared_bytes;
    entry["local_bytes"] = kernel.local_bytes;
    entry["spill_store_bytes"] = kernel.spill_store_bytes;
    entry["spill_load_bytes"] = kernel.spill_load_bytes;
    kernels.append(entry);
  }
  py::dict info;
  info["version"] = EFFV2_VERSION;
  info["cuda"] = EFFV2_CUDA_VERSION;
  info["architectures"] = py::str(EFFV2_ARCHITECTURES).attr("split")(",");
  info["torch_target"] = EFFV2_TORCH_TARGET;
  info["built_with_torch"] = EFFV2_TORCH_VERSION;
  info["host_compiler"] = __VERSION__;
  info["kernels"] = kernels;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "What was built into effv2_kernels/_ops.so.";
  module.def("build_info", &build_info,
             "Versions, architectures, and the registers, shared and local memory of each kernel.");
}
