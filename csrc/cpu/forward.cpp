// The kernels that read a map and no gradient, and what merges the sums of chunks.

#include "run.h"

namespace effv2::cpu {

EFFV2_DEFINE(BnAct<float>)
EFFV2_DEFINE(BnAct<BFloat16>)
EFFV2_DEFINE(BnAct<double>)
EFFV2_DEFINE(ActSum<float>)
EFFV2_DEFINE(ActSum<BFloat16>)
EFFV2_DEFINE(ActSum<double>)

EFFV2_CLONES void run(const Block& block, const Moments<float>& kernel) {
  run_spans(block, None(), kernel);
}
EFFV2_CLONES void run(const Block& block, const Moments<BFloat16>& kernel) {
  run_spans(block, None(), kernel);
}
EFFV2_CLONES void run(const Block& block, const Moments<double>& kernel) {
  run_spans(block, None(), kernel);
}

EFFV2_CLONES void add(const float* from, double* to, int64_t count) {
  EFFV2_VECTORISE
  for (int64_t i = 0; i < count; ++i) to[i] += from[i];
}
EFFV2_CLONES void add(const double* from, double* to, int64_t count) {
  EFFV2_VECTORISE
  for (int64_t i = 0; i < count; ++i) to[i] += from[i];
}

EFFV2_CLONES void merge(const Deviations& from, double from_count, const Deviations& to,
                        double to_count, int64_t channels) {
  const double share = from_count / (to_count + from_count);
  const double between = to_count * share;
  const double *from_mean = from.mean, *from_squares = from.squares;
  double *mean = to.mean, *squares = to.squares;
  EFFV2_VECTORISE
  for (int64_t i = 0; i < channels; ++i) {
    const double step = from_mean[i] - mean[i];
    mean[i] += step * share;
    squares[i] += from_squares[i] + step * step * between;
  }
}

}  // namespace effv2::cpu
