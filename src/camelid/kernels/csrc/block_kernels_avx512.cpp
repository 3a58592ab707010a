// AVX-512 F, BW, DQ and VL: half the instructions of AVX2 for a block. Called only where they are present.

#include <immintrin.h>

#include <cstring>

#include "block_kernels.h"

namespace camelid {
namespace {

struct Lanes {
    static constexpr std::size_t kCount = 16;
    __m512 lanes;
};

inline Lanes zero() { return {_mm512_setzero_ps()}; }
inline Lanes load(const float *from) { return {_mm512_loadu_ps(from)}; }
inline void store(float *to, Lanes a) { _mm512_storeu_ps(to, a.lanes); }
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.lanes, b.lanes, c.lanes)}; }

inline float sum(Lanes a) {
    const __m256 halves = _mm256_add_ps(_mm512_castps512_ps256(a.lanes), _mm512_maskz_extractf32x8_ps(0xff, a.lanes, 1));
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

inline __m512 half_at(const std::uint8_t *bytes) {
    std::int16_t half;
    std::memcpy(&half, bytes, sizeof half);
    return _mm512_cvtph_ps(_mm256_set1_epi16(half));
}

// Two neighbours at once, in the lowest lanes: converting is the slow part of a small block.
inline __m128 two_halves_at(const std::uint8_t *bytes) {
    std::int32_t halves;
    std::memcpy(&halves, bytes, sizeof halves);
    return _mm_cvtph_ps(_mm_cvtsi32_si128(halves));
}

inline __m128i bytes_at(const std::uint8_t *bytes) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i *>(bytes));
}

inline __m512 signed_floats(__m128i bytes) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)); }

// first, first + 1, … first + 15
inline __m512 count_from(float first) {
    return _mm512_add_ps(_mm512_set1_ps(first), _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
}

// 32 nibbles replaced by the 16 weights they stand for; a permutation looks at the lowest four bits of an index only.
inline void look_up(__m128i nibbles, __m512 weights, Lanes *w) {
    const __m512i indices = _mm512_cvtepu8_epi32(nibbles);
    w[0].lanes = _mm512_permutexvar_ps(indices, weights);
    w[1].lanes = _mm512_permutexvar_ps(_mm512_srli_epi32(indices, 4), weights);
}

struct Q8_0 {
    static constexpr const char *kName = "q8_0";
    static constexpr std::size_t kBytes = 34;

    static inline void decode(const std::uint8_t *block, Lanes *w) {
        const __m512 scale = half_at(block);
        w[0].lanes = _mm512_mul_ps(scale, signed_floats(bytes_at(block + 2)));
        w[1].lanes = _mm512_mul_ps(scale, signed_floats(bytes_at(block + 18)));
    }
};

struct Q4_0 {
    static constexpr const char *kName = "q4_0";
    static constexpr std::size_t kBytes = 18;

    static inline void decode(const std::uint8_t *block, Lanes *w) {
        look_up(bytes_at(block + 2), _mm512_mul_ps(half_at(block), count_from(-8)), w);
    }
};

struct Q4_1 {
    static constexpr const char *kName = "q4_1";
    static constexpr std::size_t kBytes = 20;

    static inline void decode(const std::uint8_t *block, Lanes *w) {
        const __m128 halves = two_halves_at(block);
        const __m512 scaled = _mm512_mul_ps(_mm512_broadcastss_ps(halves), count_from(0));
        look_up(bytes_at(block + 4), _mm512_add_ps(scaled, _mm512_broadcastss_ps(_mm_movehdup_ps(halves))), w);
    }
};

#include "block_kernels_impl.h"

}  // namespace

const InstructionSet kAvx512{"avx512", kKernels, sizeof kKernels / sizeof *kKernels};

}  // namespace camelid
