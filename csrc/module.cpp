// effv2_kernels._C: what the build put into _ops.so, for `python -m effv2_kernels info` and the
// tests; and the look whether a model is still what it was, of which Python makes as much as a
// batch of one takes on a GPU.
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

// Calls `holds` with each `n` neighbours of a tuple until it is false.
template <Py_ssize_t n, typename Holds>
bool all(const py::tuple& values, Holds holds) {
  const Py_ssize_t size = PyTuple_GET_SIZE(values.ptr());
  if (size % n != 0) throw py::value_error("an incomplete group at the end of a tuple");
  for (Py_ssize_t i = 0; i < size; i += n)
    if (!holds(&PyTuple_GET_ITEM(values.ptr(), i))) return false;
  return true;
}

PyObject* checked_dict(PyObject* object) {
  if (!PyDict_Check(object)) throw py::type_error("a dictionary was expected");
  return object;
}

bool unchanged(const py::tuple& items, const py::tuple& sizes, const py::tuple& kinds) {
  const auto has_item = [](PyObject* const* item) {
    PyObject* const found = PyDict_GetItemWithError(checked_dict(item[0]), item[1]);
    if (found == nullptr && PyErr_Occurred()) throw py::error_already_set();
    return found == (item[2] == Py_Ellipsis ? nullptr : item[2]);
  };
  const auto has_size = [](PyObject* const* pair) {
    const Py_ssize_t size = PyLong_AsSsize_t(pair[1]);
    if (size == -1 && PyErr_Occurred()) throw py::error_already_set();
    return PyDict_Size(checked_dict(pair[0])) == size;
  };
  const auto has_kind = [](PyObject* const* triple) {
    if (reinterpret_cast<PyObject*>(Py_TYPE(triple[0])) != triple[1]) return false;
    PyObject* const dict = PyObject_GenericGetDict(triple[0], nullptr);
    if (dict == nullptr) throw py::error_already_set();
    Py_DECREF(dict);  // compared by its address, and still the object's
    return dict == triple[2];
  };
  return all<2>(sizes, has_size) && all<3>(kinds, has_kind) && all<3>(items, has_item);
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "What was built into effv2_kernels/_ops.so, and whether objects are as they were.";
  module.def("build_info", &build_info,
             "Versions, architectures, and the registers, shared and local memory of each kernel.");
  module.def("unchanged", &unchanged, py::arg("items"), py::arg("sizes"), py::arg("kinds"),
             "Whether of (dictionary, key, value, ...) each has that very object under the key, or "
             "nothing if it is ..., of (dictionary, size, ...) each has that size, and of (object, "
             "type, __dict__, ...) each is of exactly that type and has that very dictionary. "
             "Raises TypeError and ValueError for tuples "
             "that are made otherwise.");
}
