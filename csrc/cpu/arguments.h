// What the passes take: elements of the checked type, the checks, the plan of a map, and
// coefficients and vectors of an image as the kernels read them.
#pragma once

#include "../checks.h"
#include "plan.h"

namespace effv2::cpu {

using MaybeTensor = std::optional<Tensor>;

// use(T()) with the type of the elements of y, which was checked.
template <typename Use>
auto with_elements(const Tensor& y, const Use& use) {
  switch (y.scalar_type()) {
    case ScalarType::Float:
      return use(float());
    case ScalarType::BFloat16:
      return use(BFloat16());
    default:
      return use(double());
  }
}

template <typename T>
const T* read(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <typename T>
const T* read(const MaybeTensor& tensor) {
  return tensor ? read<T>(*tensor) : nullptr;
}
template <typename T>
T* write(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}
template <typename T>
T* write(const MaybeTensor& tensor) {
  return tensor ? write<T>(*tensor) : nullptr;
}

inline ScalarType wide_of(const Tensor& map) {
  return map.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check_dtype(const char* op, const Argument& argument, ScalarType dtype) {
  if (argument.tensor.scalar_type() != dtype) {
    fail(op, argument.name, " must be ", torch::headeronly::toString(dtype), ", found ",
         torch::headeronly::toString(argument.tensor.scalar_type()));
  }
}

inline void check_vector(const char* op, const Argument& argument, ScalarType dtype,
                         std::initializer_list<Axis> axes) {
  check_shape(op, argument, axes);
  check_dtype(op, argument, dtype);
  check_contiguous(op, {argument});
}

inline void check_map(const char* op, const Argument& map) {
  const Tensor& tensor = map.tensor;
  if (tensor.dim() != 4) fail(op, map.name, " must be (N, C, H, W), found ", shape_text(tensor));
  if (tensor.numel() > 0 && !is_channels_last(tensor)) {
    fail(op, map.name, " must be dense channels_last, found other strides for ",
         shape_text(tensor));
  }
}

inline void check_map_like(const char* op, const Argument& map, const Tensor& y) {
  check_shape(op, map, {{"N", y.size(0)}, {"C", y.size(1)}, {"H", y.size(2)}, {"W", y.size(3)}});
  check_dtype(op, map, y.scalar_type());
  check_map(op, map);
}

inline void check_y(const char* op, const Tensor& y) {
  const ScalarType dtype = y.scalar_type();
  if (dtype != ScalarType::Float && dtype != ScalarType::BFloat16 && dtype != ScalarType::Double) {
    fail(op, "y must be float32, bfloat16 or float64, found ", torch::headeronly::toString(dtype));
  }
  check_map(op, {"y", y});
}

inline void check_normed(const char* op, const Tensor& y, const Tensor& coefficients) {
  check_y(op, y);
  check_vector(op, {"coefficients", coefficients}, wide_of(y), {{"5", 5}, {"C", y.size(1)}});
}

inline void check_out(const char* op, const MaybeTensor& out, const Tensor& y) {
  if (!out) return;
  check_map_like(op, {"out", *out}, y);
  if (y.numel() > 0 && out->const_data_ptr() == y.const_data_ptr()) {
    fail(op, "out must not be y, which is read after out was written");
  }
}

// Whether an activation's slope costs more than to write a map and read it again.
inline bool is_costly(Activation act) {
  return act == Activation::kSilu || act == Activation::kGelu;
}

inline Plan plan_of(const Tensor& y, bool by_image) {
  return Plan(y.size(0), y.size(2) * y.size(3), y.size(1), by_image);
}

enum Row { kMean, kVariance, kRstd, kScale, kShift, kRows };

// The coefficients as the kernels take them.
template <typename W>
class NormVectors {
 public:
  NormVectors(const Plan& plan, const Tensor& coefficients) : vectors_(plan, 3) {
    const W* from = read<W>(coefficients);
    const Row rows[] = {kMean, kScale, kShift};
    for (int64_t i = 0; i < 3; ++i) {
      const W* row = from + rows[i] * plan.channels;
      vectors_.set(i, [&](int64_t channel) { return row[channel]; });
    }
  }

  Norm<W> at(const Chunk& chunk) const {
    return {vectors_.at(0, chunk), vectors_.at(1, chunk), vectors_.at(2, chunk)};
  }

 private:
  Repeated<W> vectors_;
};

// Into `to`: the vector of an image, value(channel), as the kernels take it.
template <typename W, typename Value>
const W* image_vector(const Plan& plan, const Chunk& chunk, W* to, const Value& value) {
  for (int64_t i = 0; i < chunk.channels; ++i) to[i] = value(chunk.first_channel + i);
  repeat_vector(to, chunk.channels, std::min(plan.repeat, chunk.pixels));
  return to;
}

}  // namespace effv2::cpu
