// How a map is split: chunks that a cache holds, by the shape only and never by the number of
// threads, so that sums come in one order and every run gives the same bits.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <vector>

#include "kernels.h"

namespace effv2::cpu {

// Some pixels of one group, some of their channels.
struct Chunk {
  int64_t group;
  int64_t part;  // among the chunks of all groups that have the same channels
  int64_t first_channel, channels, pixels;
  int64_t offset;  // of its first element in the map
  Block block;
};

// A group is an image where something differs by image, else the whole map.
class Plan {
 public:
  Plan(int64_t images, int64_t pixels, int64_t channels, bool by_image)
      : groups(by_image ? images : 1),
        pixels(by_image ? pixels : images * pixels),
        channels(channels),
        repeat(repeat_of(channels)) {
    tiles_ = (channels + kTile - 1) / kTile;
    tile_ = channels;
    if (tiles_ > 1) tile_ = (channels + tiles_ * kLanes - 1) / (tiles_ * kLanes) * kLanes;
    chunk_pixels_ = std::max<int64_t>(kChunk / std::max<int64_t>(tile_, 1) / repeat, 1) * repeat;
    parts = (this->pixels + chunk_pixels_ - 1) / chunk_pixels_;
  }

  const int64_t groups, pixels, channels;
  // Pixels of a span. Of narrow maps a span has several, so that vectors are full.
  const int64_t repeat;
  // Of a group.
  int64_t parts;

  int64_t vector_length() const { return repeat * channels; }
  int64_t part_pixels(int64_t part) const {
    return std::min(chunk_pixels_, pixels - part * chunk_pixels_);
  }

  // body(chunk, scratch) for every one, in parallel; scratch: `vectors` vectors, of any content.
  template <typename W, typename Body>
  void each_chunk(int64_t vectors, const Body& body) const {
    const int64_t elements = std::min(chunk_pixels_, std::max<int64_t>(pixels, 1)) * tile_;
    const int64_t grain = std::max<int64_t>(kChunk / std::max<int64_t>(elements, 1), 1);
    torch::stable::parallel_for(0, groups * parts * tiles_, grain, [&](int64_t begin, int64_t end) {
      const std::unique_ptr<W[]> scratch(new W[vectors * vector_length()]);
      for (int64_t index = begin; index < end; ++index) body(chunk(index), scratch.get());
    });
  }

 private:
  static constexpr int64_t kLanes = 32;     // of the widest vectors: 512 bits of bfloat16
  static constexpr int64_t kTile = 1024;    // channels whose sums and vectors stay in the L1 cache
  static constexpr int64_t kChunk = 32768;  // elements: two maps of float32 are 256 KB

  static int64_t repeat_of(int64_t channels) {
    constexpr int64_t kNarrow = 256, kLongest = 512;
    if (channels >= kNarrow || channels == 0) return 1;
    const int64_t full = kLanes / std::gcd(kLanes, channels);
    if (full * channels > kLongest) return kLongest / channels;
    return full * channels < 2 * kLanes ? 2 * full : full;
  }

  Chunk chunk(int64_t index) const {
    const int64_t tile = index % tiles_, part = index / tiles_ % parts;
    const int64_t group = index / (tiles_ * parts);
    const int64_t first = tile * tile_, width = std::min(tile_, channels - first);
    const int64_t rows = part_pixels(part);
    const int64_t offset = (group * pixels + part * chunk_pixels_) * channels + first;
    const Block block = {rows / repeat, repeat * width, repeat * channels, rows % repeat * width};
    return {group, group * parts + part, first, width, rows, offset, block};
  }

  int64_t tile_, tiles_, chunk_pixels_;
};

// Copies the first `width` elements until there are `repeat` of them.
template <typename W>
void repeat_vector(W* vector, int64_t width, int64_t repeat) {
  for (int64_t i = 1; i < repeat; ++i) std::copy_n(vector, width, vector + i * width);
}

// Vectors of all channels, each repeated as a span needs it.
template <typename W>
class Repeated {
 public:
  Repeated(const Plan& plan, int64_t count) : length_(plan.vector_length()), plan_(plan) {
    data_.resize(count * length_);
  }

  // value(channel)
  template <typename Value>
  void set(int64_t vector, const Value& value) {
    W* to = data_.data() + vector * length_;
    for (int64_t channel = 0; channel < plan_.channels; ++channel) to[channel] = value(channel);
    repeat_vector(to, plan_.channels, plan_.repeat);
  }
  const W* at(int64_t vector, const Chunk& chunk) const {
    return data_.data() + vector * length_ + chunk.first_channel;
  }

 private:
  int64_t length_;
  const Plan& plan_;
  std::vector<W> data_;
};

// Sums of every part of a group for each channel, kept apart until all are there and then merged in
// order: laid out (count, groups, parts, channels).
template <typename W>
class PartialSums {
 public:
  PartialSums(const Plan& plan, int64_t count)
      : plan_(plan), data_(new W[count * plan.groups * plan.parts * plan.channels]) {}

  // From a vector in which a channel occurs once for each pixel of a span.
  void put(int64_t sum, const Chunk& chunk, const W* vector) {
    W* to = at(sum, chunk);
    std::copy_n(vector, chunk.channels, to);
    for (int64_t i = 1; i < plan_.repeat; ++i) {
      for (int64_t c = 0; c < chunk.channels; ++c) to[c] += vector[i * chunk.channels + c];
    }
  }

  W* at(int64_t sum, const Chunk& chunk) { return part(sum, chunk.part) + chunk.first_channel; }

  // One sum of one group, or of all of them.
  std::vector<double> merged(int64_t sum, int64_t group) {
    return merged_parts(sum, group * plan_.parts, plan_.parts);
  }
  std::vector<double> merged(int64_t sum) {
    return merged_parts(sum, 0, plan_.groups * plan_.parts);
  }

 private:
  W* part(int64_t sum, int64_t part) {
    return data_.get() + (sum * plan_.groups * plan_.parts + part) * plan_.channels;
  }

  std::vector<double> merged_parts(int64_t sum, int64_t first, int64_t count) {
    std::vector<double> result(plan_.channels);
    for (int64_t i = 0; i < count; ++i) add(part(sum, first + i), result.data(), plan_.channels);
    return result;
  }

  const Plan& plan_;
  std::unique_ptr<W[]> data_;
};

}  // namespace effv2::cpu
