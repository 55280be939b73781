// depthwise.cu on the CPU. Integers: those of DepthwiseParams in the order below; buffers: x,
// weight, those of its norm, y, pooled (empty without squeeze).
#include "norm.h"
// The kernel comes after the runtime.
#include "depthwise.cu"

int host::run(Request& request) {
  const auto next = [&] { return static_cast<int>(request.integer()); };
  effv2::DepthwiseParams params = {};
  params.dtype = static_cast<effv2::DType>(next());
  params.act = static_cast<effv2::Activation>(next());
  params.size_n = next();
  params.channels = next();
  params.height = next();
  params.width = next();
  params.out_height = next();
  params.out_width = next();
  params.kernel = next();
  params.stride = next();
  params.pad_top = next();
  params.pad_left = next();
  params.launch.channel_threads = next();
  params.launch.strip_threads = next();
  params.launch.rows = next();
  params.launch.parts = next();
  params.launch.cluster = next() != 0;
  params.x = request.buffer();
  params.weight = request.buffer();
  params.norm = norm_of(request);
  params.y = request.buffer();
  params.pooled = request.buffer();
  const size_t scratch_bytes =
      params.pooled == nullptr || params.launch.parts == 1
          ? 0
          : sizeof(float) * params.size_n * params.launch.parts * params.channels;
  const std::vector<char> garbage(scratch_bytes, '\xff');
  const Buffer scratch(garbage.data(), scratch_bytes, 0);
  params.partial = static_cast<float*>(scratch.data());
  return effv2::launch_depthwise(params, nullptr);
}
