// The kernels of float32 tensors for AVX2 and FMA. Compiled with those flags, called only where they are present.

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "attention.h"
#include "elementwise.h"
#include "paged_attention.h"
#include "product.h"

namespace camelid {
namespace {

constexpr std::size_t kLanes = 8;
constexpr std::size_t kTileRows = 3;  // with kTileVectors columns: most of the vector registers

#include "vector_impl.h"

inline Vector broadcast_quad(const float *from) {
    return reinterpret_cast<Vector>(_mm256_broadcast_ps(reinterpret_cast<const __m128 *>(from)));
}

inline Vector join_halves(const float *first, const float *second) {
    return reinterpret_cast<Vector>(_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(first)), _mm_loadu_ps(second), 1));
}

#include "attention_impl.h"
#include "elementwise_impl.h"
#include "product_impl.h"

#include "paged_attention_impl.h"

}  // namespace

const AttentionKernels kAttentionAvx2{"avx2", kLanes, forward, backward};
const ElementwiseKernels kElementwiseAvx2{"avx2", kLanes, rms_norm, rms_norm_gradients, swiglu, swiglu_gradients,
                                            rotate, softmax_shares, greatest};
const ProductKernels kProductAvx2{"avx2", kTileRows, kTileColumns, pack_left, pack_right, multiply_panels,
                                  kFewestRows, multiply_unpacked};
const PagedAttentionKernels kPagedAttentionAvx2{"avx2", kLanes, attend};

}  // namespace camelid
