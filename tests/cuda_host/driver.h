// The main() of a host build: a request on standard input, the buffers after the launch on standard
// output. tests/cuda_host/runner.py is the other end.
//
// A request: the number of integers and those; the number of buffers; for each its bytes, its
// offset in bytes from an aligned address, and its contents. An answer: the driver's status, the
// number of integers and those that it gives back, and the contents of all buffers.
#pragma once

#include <unistd.h>

#include "host_runtime.h"

namespace host {

// A buffer of exactly its size: AddressSanitizer sees what goes past it.
class Buffer {
 public:
  Buffer(const char* contents, size_t bytes, size_t offset) : bytes_(bytes) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 256, std::max<size_t>(offset + bytes, 1)) != 0) std::abort();
    memory_ = static_cast<char*>(memory);
    data_ = memory_ + offset;
    std::memcpy(data_, contents, bytes);
  }
  Buffer(const Buffer&) = delete;
  Buffer(Buffer&& other) : memory_(other.memory_), data_(other.data_), bytes_(other.bytes_) {
    other.memory_ = nullptr;
  }
  ~Buffer() { std::free(memory_); }
  // No buffer of no bytes: the driver hands on null for a tensor that is not there.
  void* data() const { return bytes_ == 0 ? nullptr : data_; }
  size_t bytes() const { return bytes_; }

 private:
  char* memory_;
  char* data_;
  size_t bytes_;
};

struct Request {
  std::vector<int64_t> integers;
  std::vector<Buffer> buffers;
  std::vector<int64_t> answers;
  size_t next_integer = 0;
  size_t next_buffer = 0;

  int64_t integer() { return integers.at(next_integer++); }
  void* buffer() { return buffers.at(next_buffer++).data(); }
};

// The driver's own: takes integers and buffers in order, launches, and returns a cudaError_t.
int run(Request& request);

class Input {
 public:
  Input() {
    char chunk[65536];
    for (ssize_t got; (got = read(0, chunk, sizeof(chunk))) > 0;)
      all_.insert(all_.end(), chunk, chunk + got);
  }
  int64_t integer() {
    int64_t value;
    std::memcpy(&value, take(sizeof(value)), sizeof(value));
    return value;
  }
  const char* take(size_t bytes) {
    if (at_ + bytes > all_.size()) fail("a request that ends early");
    at_ += bytes;
    return all_.data() + at_ - bytes;
  }
  void rewind() { at_ = 0; }

 private:
  std::vector<char> all_;
  size_t at_ = 0;
};

inline Request parse(Input& input) {
  input.rewind();
  Request request;
  request.integers.resize(input.integer());
  for (int64_t& value : request.integers) value = input.integer();
  const int64_t count = input.integer();
  for (int64_t i = 0; i < count; ++i) {
    const int64_t bytes = input.integer();
    const int64_t offset = input.integer();
    request.buffers.emplace_back(input.take(bytes), bytes, offset);
  }
  options.multiprocessors = static_cast<int>(request.integer());
  options.clusters = request.integer() != 0;
  return request;
}

inline void put(const void* data, size_t bytes) {
  if (bytes > 0 && std::fwrite(data, 1, bytes, stdout) != bytes) std::abort();
}

inline void put(int64_t value) {
  put(&value, sizeof(value));
}

}  // namespace host

int main() {
  host::Input input;
  host::Request request = host::parse(input);
  const int status = host::run(request);
  host::Request again = host::parse(input);
  host::options.other_order = true;
  if (host::run(again) != status) host::fail("another status in another order");
  for (size_t i = 0; i < request.buffers.size(); ++i) {
    const host::Buffer& first = request.buffers[i];
    const size_t bytes = first.bytes();
    if (bytes > 0 && std::memcmp(first.data(), again.buffers[i].data(), bytes) != 0) {
      host::fail("a race: other results in another order of blocks and threads");
    }
  }
  host::put(status);
  host::put(static_cast<int64_t>(request.answers.size()));
  for (const int64_t value : request.answers) host::put(value);
  for (const host::Buffer& buffer : request.buffers) host::put(buffer.data(), buffer.bytes());
  std::fflush(stdout);
  return 0;
}
