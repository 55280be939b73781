#include "device.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <map>
#include <mutex>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace fake {
namespace {

constexpr int64_t kKernelTime = 100'000;  // ns: more than a launch costs the CPU
constexpr int64_t kSlow = 50;             // times as much, for one that is planted as slow

struct Capture {
  bool on = false, invalid = false;
  unsigned long long number = 0;
  std::thread::id thread;
  std::set<const void*> streams;
  std::vector<std::string> kernels;
};

// FAKE_GPU_PLANTS="slow:depthwise_kernel wrong:stem_kernel"
std::multimap<std::string, std::string> planted_by_environment() {
  const char* text = getenv("FAKE_GPU_PLANTS");
  std::istringstream words(text ? text : "");
  std::multimap<std::string, std::string> found;
  for (std::string word; words >> word;) {
    size_t colon = word.find(':');
    found.emplace(word.substr(0, colon), word.substr(colon + 1));
  }
  return found;
}

std::recursive_mutex mutex;
std::map<std::string, long> counts;
std::multimap<std::string, std::string> plants = planted_by_environment();  // kind, kernel
std::map<const void*, int> shared_bytes;  // that a function may have
std::map<void*, size_t> blocks;
std::map<const void*, std::vector<std::string>> graphs;
std::map<const void*, int64_t> event_times;
std::set<const void*> events_in_capture;
Capture capture;
// The device's clock is the CPU's and what nobody had to wait for: who synchronizes finds its work
// done at once, and the time that it would have taken is added.
int64_t skipped = 0, busy_until = 0;
std::atomic<bool> dead = false, hangs = false, wrong = false;

int64_t now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1'000'000'000 + t.tv_nsec + skipped;
}

bool planted(const char* kind, const std::string& kernel) {
  auto [first, last] = plants.equal_range(kind);
  for (; first != last; ++first)
    if (kernel.find(first->second) != std::string::npos) return true;
  return false;
}

void execute(const std::string& kernel) {
  ++counts[kernel];
  busy_until = std::max(busy_until, now()) + kKernelTime * (planted("slow", kernel) ? kSlow : 1);
  wrong = wrong || planted("wrong", kernel);
  dead = dead || planted("fault", kernel);
  hangs = hangs || planted("hang", kernel);
}

}  // namespace

const char* text(int error) {
  switch (error) {
    case kSuccess:
      return "no error";
    case kInvalidValue:
      return "invalid argument";
    case kOutOfMemory:
      return "out of memory";
    case kInvalidConfiguration:
      return "invalid configuration argument";
    case kNotReady:
      return "device not ready";
    case kIllegalAddress:
      return "an illegal memory access was encountered";
    case kCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case kCaptureInvalidated:
      return "operation failed due to a previous error during capture";
  }
  return "unknown error";
}

int complain(int error, const char* format, ...) {
  char line[400];
  va_list values;
  va_start(values, format);
  vsnprintf(line, sizeof line, format, values);
  va_end(values);
  fprintf(stderr, "fake GPU: %s\n", line);
  if (const char* path = getenv("FAKE_GPU_COMPLAINTS")) {
    if (FILE* file = fopen(path, "a")) fprintf(file, "%s\n", line), fclose(file);
  }
  return error;
}

int health() {
  return dead ? kIllegalAddress : kSuccess;
}

void* handle() {
  std::lock_guard lock(mutex);
  static uintptr_t last = 0x1000;
  return reinterpret_cast<void*>(last += 16);
}

int allow_shared_bytes(const void* function, int bytes) {
  std::lock_guard lock(mutex);
  if (bytes > kMostSharedBytes) return complain(kInvalidValue, "%d bytes of shared memory", bytes);
  shared_bytes[function] = bytes;
  return kSuccess;
}

int launch(const char* kernel, const void* function, const Shape& s, const void* stream) {
  std::lock_guard lock(mutex);
  size_t threads = size_t(s.block[0]) * s.block[1] * s.block[2];
  bool fits = s.grid[0] && s.grid[1] && s.grid[2] && s.grid[0] <= 0x7fffffff && threads;
  fits = fits && s.grid[1] <= kGridYZ && s.grid[2] <= kGridYZ && threads <= kThreads;
  auto found = shared_bytes.find(function);
  int may = found == shared_bytes.end() ? kSharedBytes : std::max(found->second, kSharedBytes);
  if (!fits || s.shared_bytes > size_t(may)) {
    return complain(
        fits ? kInvalidValue : kInvalidConfiguration,
        "%.200s: a grid of %u x %u x %u, blocks of %u x %u x %u, %zu bytes of shared memory of %d",
        kernel, s.grid[0], s.grid[1], s.grid[2], s.block[0], s.block[1], s.block[2], s.shared_bytes,
        may);
  }
  return launch(kernel, stream);
}

int launch(const char* kernel, const void* stream) {
  std::lock_guard lock(mutex);
  if (capture.on && capture.streams.count(stream)) {
    capture.kernels.push_back(kernel);
  } else if (capture.on && capture.thread == std::this_thread::get_id()) {
    capture.invalid = true;
    return complain(kCaptureUnsupported, "%.200s: launched past the stream of a capture", kernel);
  } else if (!dead) {
    execute(kernel);
  }
  return health();
}

int forbidden(const char* what) {
  std::lock_guard lock(mutex);
  if (capture.on && capture.thread == std::this_thread::get_id()) {
    capture.invalid = true;
    return complain(kCaptureUnsupported, "%s during a capture", what);
  }
  return health();
}

int synchronize(const char* what) {
  if (int error = forbidden(what)) return error;
  while (hangs) sleep(1);
  std::lock_guard lock(mutex);
  skipped += std::max<int64_t>(0, busy_until - now());
  return kSuccess;
}

bool is_busy() {
  std::lock_guard lock(mutex);
  return hangs || busy_until > now();
}

void begin_capture(const void* stream) {
  std::lock_guard lock(mutex);
  capture = {true, false, capture.number + 1, std::this_thread::get_id(), {stream}, {}};
  events_in_capture.clear();
}

int end_capture(void** graph) {
  std::lock_guard lock(mutex);
  capture.on = false;
  *graph = nullptr;
  if (capture.invalid) return kCaptureInvalidated;
  *graph = handle();
  graphs[*graph] = capture.kernels;
  return health();
}

bool is_capturing(const void* stream) {
  std::lock_guard lock(mutex);
  return capture.on && capture.streams.count(stream);
}

unsigned long long capture_number() {
  std::lock_guard lock(mutex);
  return capture.number;
}

int replay(const void* graph) {
  std::lock_guard lock(mutex);
  for (const std::string& kernel : graphs[graph])
    if (!dead) execute(kernel);
  return health();
}

void record(const void* event, const void* stream) {
  std::lock_guard lock(mutex);
  event_times[event] = std::max(busy_until, now());
  if (is_capturing(stream)) events_in_capture.insert(event);
}

// A stream that waits for what is captured is captured too.
void wait_for(const void* stream, const void* event) {
  std::lock_guard lock(mutex);
  if (capture.on && events_in_capture.count(event)) capture.streams.insert(stream);
}

float milliseconds(const void* start, const void* end) {
  std::lock_guard lock(mutex);
  return (event_times[end] - event_times[start]) / 1e6f;
}

int allocate(void** memory, size_t bytes) {
  std::lock_guard lock(mutex);
  *memory = nullptr;
  if (bytes == 0) return health();
  size_t whole = (bytes + 511) / 512 * 512;
  if (allocated() + whole > kMemory) return kOutOfMemory;
  // Reserved, and backed by real memory only where something is copied to.
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* found = mmap(nullptr, whole, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (found == MAP_FAILED) return kOutOfMemory;
  blocks[found] = whole;
  *memory = found;
  return health();
}

int free(void* memory) {
  std::lock_guard lock(mutex);
  auto found = blocks.find(memory);
  if (found != blocks.end()) {
    munmap(memory, found->second);
    blocks.erase(found);
  }
  return health();
}

size_t allocated() {
  std::lock_guard lock(mutex);
  size_t sum = 0;
  for (auto& block : blocks) sum += block.second;
  return sum;
}

}  // namespace fake

// How often kernels ran whose names contain `part`, in graphs too.
API long fake_gpu_launches(const char* part) {
  std::lock_guard lock(fake::mutex);
  long sum = 0;
  for (auto& [kernel, count] : fake::counts)
    if (kernel.find(part) != std::string::npos) sum += count;
  return sum;
}

// The clock by which the device takes time.
API double fake_gpu_seconds() {
  std::lock_guard lock(fake::mutex);
  return fake::now() / 1e9;
}

// From now on kernels whose names contain `part` are "slow"; "wrong"; a "fault", after which every
// call fails; or they "hang". No kernel for null.
API void fake_gpu_plant(const char* kind, const char* part) {
  std::lock_guard lock(fake::mutex);
  fake::plants.erase(kind);
  if (part) fake::plants.emplace(kind, part);
}

// Whether a kernel planted as wrong has run since this was last asked: values mean nothing here, so
// who compares them asks this instead.
API int fake_gpu_was_wrong() {
  std::lock_guard lock(fake::mutex);
  return fake::wrong.exchange(false);
}
