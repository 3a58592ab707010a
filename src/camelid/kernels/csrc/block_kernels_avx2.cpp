// AVX2, FMA and F16C: x86-64 processors since 2013. Compiled with those flags, called only where they are present.

#include <immintrin.h>

#include <cstring>

#include "block_kernels.h"

namespace camelid {
namespace {

struct Lanes {
    static constexpr std::size_t kCount = 8;
    __m256 lanes;
};

inline Lanes zero() { return {_mm256_setzero_ps()}; }
inline Lanes load(const float *from) { return {_mm256_loadu_ps(from)}; }
inline void store(float *to, Lanes a) { _mm256_storeu_ps(to, a.lanes); }
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) { return {_mm256_fmadd_ps(a.lanes, b.lanes, c.lanes)}; }

inline float sum(Lanes a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.lanes), _mm256_extractf128_ps(a.lanes, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

inline __m256 half_at(const std::uint8_t *bytes) {
    std::uint16_t half;
    std::memcpy(&half, bytes, sizeof half);
    return _mm256_set1_ps(_cvtsh_ss(half));
}

// Two neighbours at once, in the lowest lanes.
inline __m128 two_halves_at(const std::uint8_t *bytes) {
    std::int32_t halves;
    std::memcpy(&halves, bytes, sizeof halves);
    return _mm_cvtph_ps(_mm_cvtsi32_si128(halves));
}

// 32 nibbles as bytes: element j in the low half of byte j, element j + 16 in its high half.
struct Nibbles {
    __m128i low, high;
};

inline Nibbles nibbles_at(const std::uint8_t *bytes) {
    const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i *>(bytes));
    const __m128i mask = _mm_set1_epi8(15);
    return {_mm_and_si128(packed, mask), _mm_and_si128(_mm_srli_epi16(packed, 4), mask)};
}

// The first eight of 16 signed bytes, as floats; nibbles are small enough to be signed.
inline __m256 first_eight(__m128i bytes) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)); }
inline __m128i last_eight(__m128i bytes) { return _mm_unpackhi_epi64(bytes, bytes); }

struct Q8_0 {
    static constexpr const char *kName = "q8_0";
    static constexpr std::size_t kBytes = 34;

    static inline void decode(const std::uint8_t *block, Lanes *w) {
        const __m256 scale = half_at(block);
        for (std::size_t v = 0; v < 4; ++v) {
            const __m128i q = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(block + 2 + 8 * v));
            w[v].lanes = _mm256_mul_ps(scale, first_eight(q));
        }
    }
};

struct Q4_0 {
    static constexpr const char *kName = "q4_0";
    static constexpr std::size_t kBytes = 18;

    static inline void decode(const std::uint8_t *block, Lanes *w) {
        const __m256 scale = half_at(block);
        const __m128i eight = _mm_set1_epi8(8);
        const Nibbles q = nibbles_at(block + 2);
        const __m128i low = _mm_sub_epi8(q.low, eight), high = _mm_sub_epi8(q.high, eight);
        w[0].lanes = _mm256_mul_ps(scale, first_eight(low));
        w[1].lanes = _mm256_mul_ps(scale, first_eight(last_eight(low)));
        w[2].lanes = _mm256_mul_ps(scale, first_eight(high));
        w[3].lanes = _mm256_mul_ps(scale, first_eight(last_eight(high)));
    }
};

struct Q4_1 {
    static constexpr const char *kName = "q4_1";
    static constexpr std::size_t kBytes = 20;

    static inline void decode(const std::uint8_t *block, Lanes *w) {
        const __m128 halves = two_halves_at(block);
        const __m256 scale = _mm256_broadcastss_ps(halves), minimum = _mm256_broadcastss_ps(_mm_movehdup_ps(halves));
        const Nibbles q = nibbles_at(block + 4);
        w[0].lanes = _mm256_add_ps(_mm256_mul_ps(scale, first_eight(q.low)), minimum);
        w[1].lanes = _mm256_add_ps(_mm256_mul_ps(scale, first_eight(last_eight(q.low))), minimum);
        w[2].lanes = _mm256_add_ps(_mm256_mul_ps(scale, first_eight(q.high)), minimum);
        w[3].lanes = _mm256_add_ps(_mm256_mul_ps(scale, first_eight(last_eight(q.high))), minimum);
    }
};

#include "block_kernels_impl.h"

}  // namespace

const InstructionSet kAvx2{"avx2", kKernels, sizeof kKernels / sizeof *kKernels};

}  // namespace camelid
