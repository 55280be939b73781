// stem.cu on the CPU. Integers: those of StemParams in the order below; buffers: x, weight, those
// of its norm, y.
#include "norm.h"
// The kernel comes after the runtime.
#include "stem.cu"

int host::run(Request& request) {
  const auto next = [&] { return static_cast<int>(request.integer()); };
  effv2::StemParams params = {};
  params.dtype = static_cast<effv2::DType>(next());
  params.x_dtype = static_cast<effv2::DType>(next());
  params.act = static_cast<effv2::Activation>(next());
  params.size_n = next();
  params.channels = next();
  params.height = next();
  params.width = next();
  params.out_height = next();
  params.out_width = next();
  params.pad_top = next();
  params.pad_left = next();
  params.channels_first = next() != 0;
  for (int64_t& stride : params.weight_stride) stride = request.integer();
  params.x = request.buffer();
  params.weight = request.buffer();
  params.norm = norm_of(request);
  params.y = request.buffer();
  return effv2::launch_stem(params, nullptr);
}
