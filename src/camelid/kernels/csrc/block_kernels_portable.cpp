// Plain C++ for every processor; the compiler vectorises the loops over lanes.

#include <cstring>

#include "block_kernels.h"

namespace camelid {
namespace {

struct Lanes {
    static constexpr std::size_t kCount = 8;
    float lane[kCount];
};

Lanes zero() { return {}; }

Lanes load(const float *from) {
    Lanes lanes;
    std::memcpy(lanes.lane, from, sizeof lanes.lane);
    return lanes;
}

void store(float *to, const Lanes &lanes) { std::memcpy(to, lanes.lane, sizeof lanes.lane); }

Lanes multiply_add(const Lanes &a, const Lanes &b, const Lanes &c) {
    Lanes result;
    for (std::size_t i = 0; i < Lanes::kCount; ++i) result.lane[i] = a.lane[i] * b.lane[i] + c.lane[i];
    return result;
}

float sum(const Lanes &a) {
    return ((a.lane[0] + a.lane[4]) + (a.lane[2] + a.lane[6])) + ((a.lane[1] + a.lane[5]) + (a.lane[3] + a.lane[7]));
}

// IEEE 754 binary16 to binary32, exact for every value.
float half_at(const std::uint8_t *bytes) {
    const std::uint32_t half = bytes[0] | static_cast<std::uint32_t>(bytes[1]) << 8;
    const std::uint32_t sign = (half & 0x8000u) << 16;
    const std::uint32_t exponent = half >> 10 & 0x1fu;
    const std::uint32_t mantissa = half & 0x3ffu;
    std::uint32_t bits;
    float value;
    if (exponent == 0) {
        value = static_cast<float>(mantissa) * 5.9604644775390625e-8f;  // 2^-24
        std::memcpy(&bits, &value, sizeof bits);
        bits |= sign;
    } else {
        bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | mantissa << 13;
    }
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

struct Q8_0 {
    static constexpr const char *kName = "q8_0";
    static constexpr std::size_t kBytes = 34;

    static void decode(const std::uint8_t *block, Lanes *w) {
        const float scale = half_at(block);
        std::int8_t q[kBlockSize];
        std::memcpy(q, block + 2, sizeof q);
        float weights[kBlockSize];
        for (std::size_t i = 0; i < kBlockSize; ++i) weights[i] = scale * static_cast<float>(q[i]);
        std::memcpy(w, weights, sizeof weights);
    }
};

struct Q4_0 {
    static constexpr const char *kName = "q4_0";
    static constexpr std::size_t kBytes = 18;

    static void decode(const std::uint8_t *block, Lanes *w) {
        const float scale = half_at(block);
        float weights[kBlockSize];
        for (std::size_t i = 0; i < 16; ++i) weights[i] = scale * static_cast<float>((block[2 + i] & 15) - 8);
        for (std::size_t i = 0; i < 16; ++i) weights[16 + i] = scale * static_cast<float>((block[2 + i] >> 4) - 8);
        std::memcpy(w, weights, sizeof weights);
    }
};

struct Q4_1 {
    static constexpr const char *kName = "q4_1";
    static constexpr std::size_t kBytes = 20;

    static void decode(const std::uint8_t *block, Lanes *w) {
        const float scale = half_at(block), minimum = half_at(block + 2);
        float weights[kBlockSize];
        for (std::size_t i = 0; i < 16; ++i) weights[i] = scale * static_cast<float>(block[4 + i] & 15) + minimum;
        for (std::size_t i = 0; i < 16; ++i) weights[16 + i] = scale * static_cast<float>(block[4 + i] >> 4) + minimum;
        std::memcpy(w, weights, sizeof weights);
    }
};

#include "block_kernels_impl.h"

}  // namespace

const InstructionSet kPortable{"portable", kKernels, sizeof kKernels / sizeof *kKernels};

}  // namespace camelid
