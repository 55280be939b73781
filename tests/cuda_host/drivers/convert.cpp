// convert.cu on the CPU. Integers: the dtype of the targets, the number of tensors, and of each its
// dtype, elements, channels and pixels; buffers: the sources, then the targets. Answers the number
// of launches.
#include "driver.h"
// The kernel comes after the runtime.
#include "convert.cu"

int host::run(Request& request) {
  const auto next = [&] { return static_cast<int>(request.integer()); };
  const auto dtype = static_cast<effv2::DType>(next());
  std::vector<effv2::Conversion> conversions(next());
  for (effv2::Conversion& conversion : conversions) {
    conversion.source_dtype = static_cast<effv2::DType>(next());
    conversion.size = next();
    conversion.channels = next();
    conversion.pixels = next();
  }
  for (effv2::Conversion& conversion : conversions) conversion.source = request.buffer();
  for (effv2::Conversion& conversion : conversions) conversion.target = request.buffer();
  launches = 0;
  const int status = effv2::launch_convert(conversions.data(), conversions.size(), dtype, nullptr);
  request.answers = {launches};
  return status;
}
