// The kernels of float32 tensors for AVX-512 F, BW, DQ and VL. Compiled with those flags, called only where they are
// present.

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

constexpr std::size_t kLanes = 16;
constexpr std::size_t kTileRows = 6;  // with kTileVectors columns: most of the vector registers

#include "vector_impl.h"

inline Vector broadcast_quad(const float *from) { return reinterpret_cast<Vector>(_mm512_broadcast_f32x4(_mm_loadu_ps(from))); }

inline Vector join_halves(const float *first, const float *second) {
    const __m512 low = _mm512_castps256_ps512(_mm256_loadu_ps(first));
    return reinterpret_cast<Vector>(_mm512_insertf32x8(low, _mm256_loadu_ps(second), 1));
}

#include "attention_impl.h"
#include "elementwise_impl.h"
#include "product_impl.h"

#include "paged_attention_impl.h"

}  // namespace

const AttentionKernels kAttentionAvx512{"avx512", kLanes, forward, backward};
const ElementwiseKernels kElementwiseAvx512{"avx512", kLanes, rms_norm, rms_norm_gradients, swiglu, swiglu_gradients,
                                            rotate, softmax_shares, greatest};
const ProductKernels kProductAvx512{"avx512", kTileRows, kTileColumns, pack_left, pack_right, multiply_panels,
                                    kFewestRows, multiply_unpacked};
const PagedAttentionKernels kPagedAttentionAvx512{"avx512", kLanes, attend};

}  // namespace camelid
