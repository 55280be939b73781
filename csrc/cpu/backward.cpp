// The kernels that read a gradient.

#include "run.h"

namespace effv2::cpu {

EFFV2_DEFINE(GradientSums<float>)
EFFV2_DEFINE(GradientSums<BFloat16>)
EFFV2_DEFINE(GradientSums<double>)
EFFV2_DEFINE(Gradient<float>)
EFFV2_DEFINE(Gradient<BFloat16>)
EFFV2_DEFINE(Gradient<double>)
EFFV2_DEFINE(GatedSums<float>)
EFFV2_DEFINE(GatedSums<BFloat16>)
EFFV2_DEFINE(GatedSums<double>)

}  // namespace effv2::cpu
