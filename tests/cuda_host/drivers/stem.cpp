// stem.cu on the CPU. Integers: those of StemParams in the order below; buffers: x, weight, bias,
// y.
#include "driver.h"
// The kernel comes after the runtime.
#include "stem.cu"

int host::run(Request& request) {
  const auto next = [&] { return static_cast<int>(request.integer()); };
  effv2::StemParams params = {};
  params.dtype = static_cast<effv2::DType>(next());
  params.x_dtype = static_cast<effv2::DType>(next());
  params.bias_is_float = next() != 0;
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
  params.bias = request.buffer();
  params.y = request.buffer();
  return effv2::launch_stem(params, nullptr);
}
