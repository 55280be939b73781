// One GPU that keeps books and computes nothing. Its memory is host memory, so copies are real; a
// kernel only takes time, counts, and may be planted to go wrong. runtime.cpp, driver.cpp and
// blas.cpp are the doors to it that PyTorch, Triton and our own library know.
#pragma once

#include <cstddef>
#include <cstdint>

#define API extern "C" __attribute__((visibility("default")))

namespace fake {

// What an H200 has, as far as anybody asks.
constexpr int kMultiprocessors = 132;
constexpr int kThreads = 1024;       // of a block
constexpr int kSharedBytes = 49152;  // of a block that did not ask for more
constexpr int kMostSharedBytes = 232448;
constexpr unsigned kGridYZ = 65535;
constexpr size_t kMemory = size_t(140) << 30;

// Errors are numbered alike in the runtime and in the driver.
enum Error {
  kSuccess = 0,
  kInvalidValue = 1,
  kOutOfMemory = 2,
  kInvalidConfiguration = 9,
  kNotReady = 600,
  kIllegalAddress = 700,
  kCaptureUnsupported = 900,
  kCaptureInvalidated = 901,
};
const char* text(int error);

// Something that a GPU refuses: a line on stderr, and one in the file that FAKE_GPU_COMPLAINTS
// names. Returns the error.
int complain(int error, const char* format, ...);

// The error that every call returns once a kernel has written where it must not.
int health();

// A stream, an event, a graph, a kernel of Triton's.
void* handle();

struct Shape {
  unsigned grid[3], block[3];
  size_t shared_bytes;  // dynamic
};
// function: what allowed() was told of.
int launch(const char* kernel, const void* function, const Shape& shape, const void* stream);
// Dynamic shared memory past the default is for those that asked for it.
int allow_shared_bytes(const void* function, int bytes);
// A kernel of a library, whose shape is the library's affair.
int launch(const char* kernel, const void* stream);

// Calls for which a capture is no place; what: the call's name.
int forbidden(const char* what);
int synchronize(const char* what);
bool is_busy();

void begin_capture(const void* stream);
int end_capture(void** graph);
bool is_capturing(const void* stream);
unsigned long long capture_number();
int replay(const void* graph);

void record(const void* event, const void* stream);
void wait_for(const void* stream, const void* event);
float milliseconds(const void* start, const void* end);

int allocate(void** memory, size_t bytes);
int free(void* memory);
size_t allocated();

}  // namespace fake

// For Python, by ctypes: see device.cpp.
API long fake_gpu_launches(const char* part);
API double fake_gpu_seconds();
API void fake_gpu_plant(const char* kind, const char* part);
API int fake_gpu_was_wrong();
