// expand_depthwise.cu on the CPU. Integers: those of ExpandDepthwiseParams in the order below;
// buffers: x, the two weights each with those of its norm, y, pooled (empty without squeeze).
// Answers the dynamic shared memory of the launch.
#include "norm.h"
// The kernel comes after the runtime.
#include "expand_depthwise.cu"

int host::run(Request& request) {
  const auto next = [&] { return static_cast<int>(request.integer()); };
  effv2::ExpandDepthwiseParams params = {};
  params.dtype = static_cast<effv2::DType>(next());
  params.act = static_cast<effv2::Activation>(next());
  params.size_n = next();
  params.in_channels = next();
  params.channels = next();
  params.height = next();
  params.width = next();
  params.out_height = next();
  params.out_width = next();
  params.kernel = next();
  params.stride = next();
  params.pad_top = next();
  params.pad_left = next();
  params.launch.tile_height = next();
  params.launch.tile_width = next();
  params.launch.rows = next();
  params.launch.chunk = next();
  params.launch.chunks = next();
  params.x = request.buffer();
  params.expand_weight = request.buffer();
  params.expand_norm = norm_of(request);
  params.depthwise_weight = request.buffer();
  params.depthwise_norm = norm_of(request);
  params.y = request.buffer();
  params.pooled = request.buffer();
  const auto parts = [](int whole, int tile) { return (whole + tile - 1) / tile; };
  const int64_t tiles = int64_t{parts(params.out_height, params.launch.tile_height)} *
                        parts(params.out_width, params.launch.tile_width);
  const bool split = params.pooled != nullptr && tiles > 1;
  const size_t scratch_bytes = split ? sizeof(float) * params.size_n * tiles * params.channels : 0;
  const std::vector<char> garbage(scratch_bytes, '\xff');
  const Buffer scratch(garbage.data(), scratch_bytes, 0);
  params.partial = static_cast<float*>(scratch.data());
  const int status = effv2::launch_expand_depthwise(params, nullptr);
  request.answers = {static_cast<int64_t>(host::most_shared_bytes)};
  return status;
}
