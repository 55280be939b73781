// The passes of training between convolutions, as ops of `effv2_cpu`:
// effv2_kernels/engines/passes/__init__.py has their contract and the formulas. Maps are (N, C, H,
// W), dense channels_last, in float32, bfloat16 or float64; "wide" is float32, or float64 of
// float64.
//
//   pass             reads                          writes
//   coefficients     y (once from memory, once      (5, C)
//                    more from the cache)
//   bn_act           y, residual                    a map
//   act_mean         y                              (N, C)
//   bn_act_backward  grad, y; of a batch's          (2, C); of a batch's statistics `out` twice
//                    statistics y twice, and grad   where dz is kept in it, else once
//                    or out
//   gated_sums       grad, y                        (5, N, C)
//   gated_backward   grad, y if there is an out     (2, C), out

#include "arguments.h"

namespace effv2::cpu {
namespace {

using MaybeTensor = std::optional<Tensor>;

// The statistics of y: (mean, sum of squared deviations), of C channels each. A chunk's squares are
// about its mean, and what that one misses of the mean is made good for.
template <typename T>
std::vector<double> deviations_of(const Tensor& y) {
  using W = Wide<T>;
  const Plan plan = plan_of(y, false);
  const int64_t channels = plan.channels, length = plan.vector_length();
  std::vector<double> means(plan.parts * channels), squares(plan.parts * channels);
  PartialSums<W> sums(plan, 2);
  plan.each_chunk<W>(3, [&](const Chunk& chunk, W* scratch) {
    W *pivot = scratch, *sum = scratch + length, *square_sum = scratch + 2 * length;
    const T* from = read<T>(y) + chunk.offset;
    std::fill_n(scratch, 3 * length, W(0));
    run(chunk.block, Moments<T>{from, pivot, sum, square_sum});
    sums.put(0, chunk, sum);
    const W* total = sums.at(0, chunk);
    for (int64_t i = 0; i < chunk.channels; ++i) pivot[i] = total[i] / chunk.pixels;
    repeat_vector(pivot, chunk.channels, plan.repeat);
    std::fill_n(sum, 2 * length, W(0));
    run(chunk.block, Moments<T>{from, pivot, sum, square_sum});
    sums.put(0, chunk, sum);
    sums.put(1, chunk, square_sum);
    const W* square_total = sums.at(1, chunk);
    const int64_t first = chunk.part * channels + chunk.first_channel;
    for (int64_t i = 0; i < chunk.channels; ++i) {
      const double missed = static_cast<double>(total[i]) / chunk.pixels;
      means[first + i] = pivot[i] + missed;
      squares[first + i] = square_total[i] - missed * total[i];
    }
  });

  std::vector<double> result(2 * channels);
  const Deviations merged = {result.data(), result.data() + channels};
  int64_t count = 0;
  for (int64_t part = 0; part < plan.parts; ++part) {
    const Deviations next = {&means[part * channels], &squares[part * channels]};
    merge(next, plan.part_pixels(part), merged, count, channels);
    count += plan.part_pixels(part);
  }
  return result;
}

Tensor coefficients(const Tensor& y, const MaybeTensor& gamma, const MaybeTensor& beta,
                    const MaybeTensor& mean, const MaybeTensor& variance, double eps) {
  constexpr const char* kOp = "coefficients";
  check_y(kOp, y);
  const int64_t channels = y.size(1);
  const std::pair<const char*, const MaybeTensor&> vectors[] = {
      {"gamma", gamma}, {"beta", beta}, {"mean", mean}, {"variance", variance}};
  for (const auto& [name, vector] : vectors) {
    if (vector) check_vector(kOp, {name, *vector}, wide_of(y), {{"C", channels}});
  }
  if (mean.has_value() != variance.has_value()) {
    fail(kOp, "mean and variance must both be given, or neither");
  }
  return with_elements(y, [&](auto element) {
    using T = decltype(element);
    using W = Wide<T>;
    const Tensor result = empty({kRows, channels}, wide_of(y), y);
    W* rows = write<W>(result);
    std::vector<double> own;
    if (!mean) own = deviations_of<T>(y);
    const double count = static_cast<double>(y.size(0) * y.size(2) * y.size(3));
    const W *means = read<W>(mean), *variances = read<W>(variance);
    const W *gammas = read<W>(gamma), *betas = read<W>(beta);
    for (int64_t c = 0; c < channels; ++c) {
      const double mean_c = mean ? means[c] : own[c];
      const double variance_c = mean ? variances[c] : own[channels + c] / count;
      const double rstd = 1 / std::sqrt(variance_c + eps);
      const double scale = gamma ? gammas[c] * rstd : rstd;
      const double shift = (beta ? betas[c] : 0) - mean_c * scale;
      rows[kMean * channels + c] = static_cast<W>(mean_c);
      rows[kVariance * channels + c] = static_cast<W>(variance_c);
      rows[kRstd * channels + c] = static_cast<W>(rstd);
      rows[kScale * channels + c] = static_cast<W>(scale);
      rows[kShift * channels + c] = static_cast<W>(shift);
    }
    return result;
  });
}

Tensor bn_act(const Tensor& y, const Tensor& coefficients, const std::string& act,
              const MaybeTensor& gate, const MaybeTensor& mask, const MaybeTensor& residual) {
  constexpr const char* kOp = "bn_act";
  check_normed(kOp, y, coefficients);
  const Activation activation = checked_act<Activation>(kOp, act);
  const int64_t images = y.size(0), channels = y.size(1);
  const ScalarType dtype = y.scalar_type();
  if (gate) check_vector(kOp, {"gate", *gate}, dtype, {{"N", images}, {"C", channels}});
  if (mask) check_vector(kOp, {"mask", *mask}, dtype, {{"N", images}});
  if (residual) check_map_like(kOp, {"residual", *residual}, y);
  return with_elements(y, [&](auto element) {
    using T = decltype(element);
    using W = Wide<T>;
    const Tensor result = torch::stable::empty_like(y);
    const Plan plan = plan_of(y, gate || mask);
    const NormVectors<W> norms(plan, coefficients);
    const T *gates = read<T>(gate), *masks = read<T>(mask), *residuals = read<T>(residual);
    Repeated<W> one(plan, 1);
    one.set(0, [](int64_t) { return W(1); });
    plan.each_chunk<W>(1, [&](const Chunk& chunk, W* scratch) {
      const W* factor = one.at(0, chunk);
      if (gate || mask) {
        const W by_mask = mask ? widened(masks[chunk.group]) : W(1);
        factor = image_vector(plan, chunk, scratch, [&](int64_t channel) {
          return gate ? widened(gates[chunk.group * channels + channel]) * by_mask : by_mask;
        });
      }
      const Norm<W> norm = norms.at(chunk);
      run(chunk.block, activation,
          BnAct<T>{read<T>(y) + chunk.offset, residual ? residuals + chunk.offset : nullptr,
                   write<T>(result) + chunk.offset, norm.scale, norm.shift, factor});
    });
    return result;
  });
}

Tensor act_mean(const Tensor& y, const Tensor& coefficients, const std::string& act) {
  constexpr const char* kOp = "act_mean";
  check_normed(kOp, y, coefficients);
  const Activation activation = checked_act<Activation>(kOp, act);
  return with_elements(y, [&](auto element) {
    using T = decltype(element);
    using W = Wide<T>;
    const Plan plan = plan_of(y, true);
    const NormVectors<W> norms(plan, coefficients);
    PartialSums<W> sums(plan, 1);
    plan.each_chunk<W>(1, [&](const Chunk& chunk, W* sum) {
      std::fill_n(sum, plan.vector_length(), W(0));
      const Norm<W> norm = norms.at(chunk);
      run(chunk.block, activation,
          ActSum<T>{read<T>(y) + chunk.offset, norm.scale, norm.shift, sum});
      sums.put(0, chunk, sum);
    });
    const Tensor result = empty({y.size(0), y.size(1)}, y.scalar_type(), y);
    T* to = write<T>(result);
    for (int64_t image = 0; image < plan.groups; ++image) {
      for (const double sum : sums.merged(0, image)) {
        *to++ = rounded<T>(static_cast<W>(sum / static_cast<double>(plan.pixels)));
      }
    }
    return result;
  });
}

// The sums of dz and of dz (y - mean), of C channels each, as (dgamma, dbeta).
template <typename W>
Tensor parameter_gradients(const Tensor& coefficients, const std::vector<double>& sum,
                           const std::vector<double>& centred_sum) {
  const int64_t channels = coefficients.size(1);
  const Tensor result = empty({2, channels}, coefficients.scalar_type(), coefficients);
  const W* rstd = read<W>(coefficients) + kRstd * channels;
  W* to = write<W>(result);
  for (int64_t c = 0; c < channels; ++c) {
    to[c] = static_cast<W>(centred_sum[c] * rstd[c]);
    to[channels + c] = static_cast<W>(sum[c]);
  }
  return result;
}

// What is taken from dz on account of the batch's statistics: slope (y - mean) + offset, as vectors
// 0 and 1.
template <typename W>
Repeated<W> statistics_gradient(const Plan& plan, const Tensor& coefficients, int64_t count,
                                bool batch, const std::vector<double>& sum,
                                const std::vector<double>& centred_sum) {
  const int64_t channels = plan.channels;
  const W* rstd = read<W>(coefficients) + kRstd * channels;
  Repeated<W> vectors(plan, 2);
  if (!batch) return vectors;  // zeros
  vectors.set(0, [&](int64_t c) {
    const double precision = static_cast<double>(rstd[c]) * rstd[c];
    return static_cast<W>(precision * centred_sum[c] / count);
  });
  vectors.set(1, [&](int64_t c) { return static_cast<W>(sum[c] / count); });
  return vectors;
}

Tensor bn_act_backward(const Tensor& grad, const Tensor& y, const Tensor& coefficients,
                       const std::string& act, const MaybeTensor& mask, bool batch,
                       const MaybeTensor& out) {
  constexpr const char* kOp = "bn_act_backward";
  check_normed(kOp, y, coefficients);
  check_map_like(kOp, {"grad", grad}, y);
  const Activation activation = checked_act<Activation>(kOp, act);
  if (mask) check_vector(kOp, {"mask", *mask}, y.scalar_type(), {{"N", y.size(0)}});
  check_out(kOp, out, y);
  return with_elements(y, [&](auto element) {
    using T = decltype(element);
    using W = Wide<T>;
    // Sums are of the whole map, so a chunk may be of several images only without a mask.
    const Plan plan = plan_of(y, mask.has_value());
    const NormVectors<W> norms(plan, coefficients);
    const T* masks = read<T>(mask);
    T* const to = write<T>(out);
    Repeated<W> constants(plan, 2);  // 0, 1
    constants.set(1, [](int64_t) { return W(1); });
    const auto factor_of = [&](const Chunk& chunk, W* scratch) {
      if (!mask) return constants.at(1, chunk);
      const W value = widened(masks[chunk.group]);
      return image_vector(plan, chunk, scratch, [&](int64_t) { return value; });
    };

    // The first pass writes dy where that is all, or keeps dz for the second. Of few values what
    // the statistics take is nearly all of dz, so there it must not be rounded in between.
    constexpr int64_t kFew = 64;
    const int64_t count = plan.groups * plan.pixels;
    const bool keeps = out && batch && count >= kFew && is_costly(activation);
    Writes writes = Writes::kNothing;
    if (out && !batch) writes = Writes::kDy;
    if (keeps) writes = Writes::kDz;
    PartialSums<W> sums(plan, 2);
    plan.each_chunk<W>(3, [&](const Chunk& chunk, W* scratch) {
      W *sum = scratch, *centred_sum = scratch + plan.vector_length();
      std::fill_n(scratch, 2 * plan.vector_length(), W(0));
      const W* factor = factor_of(chunk, scratch + 2 * plan.vector_length());
      run(chunk.block, activation,
          GradientSums<T>{read<T>(grad) + chunk.offset, read<T>(y) + chunk.offset,
                          out ? to + chunk.offset : nullptr, writes, norms.at(chunk), factor, sum,
                          centred_sum});
      sums.put(0, chunk, sum);
      sums.put(1, chunk, centred_sum);
    });
    const std::vector<double> sum = sums.merged(0), centred_sum = sums.merged(1);

    if (out && batch) {
      const Repeated<W> statistics =
          statistics_gradient<W>(plan, coefficients, count, batch, sum, centred_sum);
      const T* from = keeps ? to : read<T>(grad);
      plan.each_chunk<W>(1, [&](const Chunk& chunk, W* scratch) {
        const W* factor = keeps ? constants.at(1, chunk) : factor_of(chunk, scratch);
        run(chunk.block, keeps ? Activation::kNone : activation,
            Gradient<T>{from + chunk.offset, read<T>(y) + chunk.offset, to + chunk.offset,
                        norms.at(chunk), factor, constants.at(0, chunk), statistics.at(0, chunk),
                        statistics.at(1, chunk)});
      });
    }
    return parameter_gradients<W>(coefficients, sum, centred_sum);
  });
}

Tensor gated_sums(const Tensor& grad, const Tensor& y, const Tensor& coefficients,
                  const std::string& act) {
  constexpr const char* kOp = "gated_sums";
  constexpr int64_t kSums = 5;
  check_normed(kOp, y, coefficients);
  check_map_like(kOp, {"grad", grad}, y);
  const Activation activation = checked_act<Activation>(kOp, act);
  return with_elements(y, [&](auto element) {
    using T = decltype(element);
    using W = Wide<T>;
    const Plan plan = plan_of(y, true);
    const NormVectors<W> norms(plan, coefficients);
    const int64_t length = plan.vector_length();
    PartialSums<W> sums(plan, kSums);
    plan.each_chunk<W>(kSums, [&](const Chunk& chunk, W* scratch) {
      std::fill_n(scratch, kSums * length, W(0));
      run(chunk.block, activation,
          GatedSums<T>{read<T>(grad) + chunk.offset,
                       read<T>(y) + chunk.offset,
                       norms.at(chunk),
                       {scratch, scratch + length, scratch + 2 * length, scratch + 3 * length,
                        scratch + 4 * length}});
      for (int64_t i = 0; i < kSums; ++i) sums.put(i, chunk, scratch + i * length);
    });
    const Tensor result = empty({kSums, y.size(0), y.size(1)}, wide_of(y), y);
    W* to = write<W>(result);
    for (int64_t i = 0; i < kSums; ++i) {
      for (int64_t image = 0; image < plan.groups; ++image) {
        for (const double sum : sums.merged(i, image)) *to++ = static_cast<W>(sum);
      }
    }
    return result;
  });
}

Tensor gated_backward(const Tensor& grad, const Tensor& y, const Tensor& coefficients,
                      const std::string& act, const Tensor& sums, const Tensor& gate,
                      const Tensor& dmean, bool batch, const MaybeTensor& out) {
  constexpr const char* kOp = "gated_backward";
  check_normed(kOp, y, coefficients);
  check_map_like(kOp, {"grad", grad}, y);
  const Activation activation = checked_act<Activation>(kOp, act);
  const int64_t images = y.size(0), channels = y.size(1);
  check_vector(kOp, {"sums", sums}, wide_of(y), {{"5", 5}, {"N", images}, {"C", channels}});
  check_vector(kOp, {"gate", gate}, y.scalar_type(), {{"N", images}, {"C", channels}});
  check_vector(kOp, {"dmean", dmean}, wide_of(y), {{"N", images}, {"C", channels}});
  check_out(kOp, out, y);
  return with_elements(y, [&](auto element) {
    using T = decltype(element);
    using W = Wide<T>;
    const Plan plan = plan_of(y, true);
    const T* gates = read<T>(gate);
    const W *dmeans = read<W>(dmean), *image_sums = read<W>(sums);
    // dz = (grad gate + dmean) p: its sums follow from those of the images.
    std::vector<double> sum(channels), centred_sum(channels);
    for (int64_t image = 0; image < images; ++image) {
      for (int64_t c = 0; c < channels; ++c) {
        const int64_t at = image * channels + c, next = images * channels;
        const double by_gate = widened(gates[at]), by_mean = dmeans[at];
        sum[c] += by_gate * image_sums[next + at] + by_mean * image_sums[3 * next + at];
        centred_sum[c] += by_gate * image_sums[2 * next + at] + by_mean * image_sums[4 * next + at];
      }
    }
    if (out) {
      const NormVectors<W> norms(plan, coefficients);
      const int64_t count = plan.groups * plan.pixels;
      const Repeated<W> statistics =
          statistics_gradient<W>(plan, coefficients, count, batch, sum, centred_sum);
      plan.each_chunk<W>(2, [&](const Chunk& chunk, W* scratch) {
        const int64_t image = chunk.group * channels;
        const W* factor = image_vector(
            plan, chunk, scratch, [&](int64_t channel) { return widened(gates[image + channel]); });
        const W* addend = image_vector(plan, chunk, scratch + plan.vector_length(),
                                       [&](int64_t channel) { return dmeans[image + channel]; });
        run(chunk.block, activation,
            Gradient<T>{read<T>(grad) + chunk.offset, read<T>(y) + chunk.offset,
                        write<T>(out) + chunk.offset, norms.at(chunk), factor, addend,
                        statistics.at(0, chunk), statistics.at(1, chunk)});
      });
    }
    return parameter_gradients<W>(coefficients, sum, centred_sum);
  });
}

}  // namespace
}  // namespace effv2::cpu

STABLE_TORCH_LIBRARY(effv2_cpu, library) {
  library.def(
      "coefficients(Tensor y, Tensor? gamma, Tensor? beta, Tensor? mean, Tensor? variance, "
      "float eps) -> Tensor");
  library.def(
      "bn_act(Tensor y, Tensor coefficients, str act, Tensor? gate, Tensor? mask, "
      "Tensor? residual) -> Tensor");
  library.def("act_mean(Tensor y, Tensor coefficients, str act) -> Tensor");
  library.def(
      "bn_act_backward(Tensor grad, Tensor y, Tensor coefficients, str act, Tensor? mask, "
      "bool batch, Tensor(a!)? out) -> Tensor");
  library.def("gated_sums(Tensor grad, Tensor y, Tensor coefficients, str act) -> Tensor");
  library.def(
      "gated_backward(Tensor grad, Tensor y, Tensor coefficients, str act, Tensor sums, "
      "Tensor gate, Tensor dmean, bool batch, Tensor(a!)? out) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(effv2_cpu, CPU, library) {
  library.impl("coefficients", TORCH_BOX(&effv2::cpu::coefficients));
  library.impl("bn_act", TORCH_BOX(&effv2::cpu::bn_act));
  library.impl("act_mean", TORCH_BOX(&effv2::cpu::act_mean));
  library.impl("bn_act_backward", TORCH_BOX(&effv2::cpu::bn_act_backward));
  library.impl("gated_sums", TORCH_BOX(&effv2::cpu::gated_sums));
  library.impl("gated_backward", TORCH_BOX(&effv2::cpu::gated_backward));
}
