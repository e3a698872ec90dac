#include "lanczos.h"

#include <math.h>

#include <algorithm>

namespace sprfast {

namespace {

constexpr int WEIGHT_BITS = 22;  // behind the point
constexpr int LOW_BITS = 12;     // of a weight, in its lower part

double sinc(double x) {
    if (x == 0.0) return 1.0;
    x *= M_PI;
    return sin(x) / x;
}

double lanczos(double x) { return x >= -3.0 && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0; }

}  // namespace

Lanczos::Lanczos(int size, int outputs) : first_(outputs), count_(outputs) {
    const double scale = static_cast<double>(size) / outputs, stretch = std::max(scale, 1.0);
    const double support = 3.0 * stretch;
    stride_ = static_cast<int>(ceil(support)) * 2 + 1;
    weights_.resize(static_cast<size_t>(outputs) * stride_);
    for (int output = 0; output < outputs; output++) {
        const double centre = (output + 0.5) * scale;
        const int first = std::max(0, static_cast<int>(centre - support + 0.5));
        const int count = std::min(size, static_cast<int>(centre + support + 0.5)) - first;
        double* weights = &weights_[static_cast<size_t>(output) * stride_];
        double sum = 0.0;
        for (int i = 0; i < count; i++) sum += weights[i] = lanczos((i + first - centre + 0.5) * (1.0 / stretch));
        for (int i = 0; i < count; i++)
            if (sum != 0.0) weights[i] /= sum;
        first_[output] = first;
        count_[output] = count;
    }
    for (int output = 0, ended = 0; output < outputs; output++) {
        while (first_[ended] + count_[ended] <= first_[output]) ended++;
        while (overlap_ < output + 1 - ended) overlap_ *= 2;
    }
}

spr_weights Lanczos::weights() const {
    return {static_cast<int32_t>(first_.size()), stride_, overlap_, first_.data(), count_.data(), weights_.data()};
}

FixedLanczos::FixedLanczos(int size, int outputs) : first_(outputs), count_(outputs) {
    const Lanczos filter(size, outputs);
    const spr_weights given = filter.weights();
    stride_ = given.stride / 2 + 1;
    low_.resize(static_cast<size_t>(outputs) * stride_);
    high_.resize(low_.size());
    for (int output = 0; output < outputs; output++) {
        const int odd = given.first[output] % 2, count = given.count[output];
        first_[output] = given.first[output] / 2;
        count_[output] = (odd + count + 1) / 2;
        for (int i = 0; i < count; i++) {
            const double weight = given.weights[static_cast<size_t>(output) * given.stride + i] * (1 << WEIGHT_BITS);
            const int32_t whole = static_cast<int32_t>(weight < 0 ? weight - 0.5 : weight + 0.5);
            const size_t pair = static_cast<size_t>(output) * stride_ + (odd + i) / 2;
            const int half = (odd + i) % 2 * 16;
            low_[pair] |= (whole & ((1u << LOW_BITS) - 1)) << half;
            high_[pair] |= (static_cast<uint32_t>(whole >> LOW_BITS) & 0xffffu) << half;
        }
    }
}

spr_taps FixedLanczos::taps() const {
    return {static_cast<int32_t>(first_.size()), stride_, first_.data(), count_.data(), low_.data(), high_.data()};
}

namespace {

constexpr int LONGEST_KEPT = 1 << 14;  // pixels of a side; a filter takes 48 bytes for each

template <typename Filter> std::shared_ptr<const Filter> filter(Recent<Filter>& recent, int size, int outputs) {
    if (size > LONGEST_KEPT) return std::make_shared<const Filter>(size, outputs);
    return recent.get({size, outputs}, [&] { return Filter(size, outputs); });
}

}  // namespace

std::shared_ptr<const Lanczos> Filters::exact(int size, int outputs) { return filter(exact_, size, outputs); }

std::shared_ptr<const FixedLanczos> Filters::fixed(int size, int outputs) { return filter(fixed_, size, outputs); }

}  // namespace sprfast
