// What a training step does between its matrix products, a row or an element at a time; float32, everything contiguous.

#pragma once

#include <cstddef>

namespace camelid {

// Rows whose share of the gradient of a norm's weight is summed at once; the sums do not depend on the threads.
constexpr std::size_t kNormRows = 32;

struct ElementwiseKernels {
    const char *name;          // of the instruction set
    std::size_t width_factor;  // a row's width, and the number of elements, must be a multiple of it

    // out = x · r · weight for rows [begin, end), with r = 1 / sqrt(mean(x²) + eps) of the row.
    void (*rms_norm)(const float *x, const float *weight, float eps, std::size_t width, float *out, std::size_t begin,
                     std::size_t end);

    // The gradients of x for blocks [begin, end) of kNormRows of the `rows` rows, and a block's share of the weight's.
    void (*rms_norm_gradients)(const float *x, const float *weight, const float *out_grad, float eps, std::size_t rows,
                               std::size_t width, float *x_grad, float *weight_grads, std::size_t begin,
                               std::size_t end);

    // out = silu(gate) · up for elements [begin, end).
    void (*swiglu)(const float *gate, const float *up, float *out, std::size_t begin, std::size_t end);
    void (*swiglu_gradients)(const float *gate, const float *up, const float *out_grad, float *gate_grad,
                             float *up_grad, std::size_t begin, std::size_t end);

    // Turn the pairs (i, i + dim / 2) of every head of tokens [begin, end), or turn them back. `cos` and `sin` have a
    // row of `dim` for each token, the sine negative in the first half; dim / 2 is at least width_factor. A token's heads
    // lie end to end, those of `x` x_row floats behind the token's before.
    void (*rotate)(const float *x, std::size_t x_row, const float *cos, const float *sin, std::size_t heads,
                   std::size_t dim, bool back, float *out, std::size_t begin, std::size_t end);

    // Replace rows [begin, end) of any width by exp(x − largest), and give each row's largest and the sum.
    void (*softmax_shares)(float *x, std::size_t width, float *largest, float *totals, std::size_t begin,
                           std::size_t end);

    // The greatest of one or more numbers, and the first place where it stands; where one is not a number, the first
    // such.
    float (*greatest)(const float *x, std::size_t count, std::size_t *place);
};

// There is none in plain C++: torch's own kernels are vectorised.
#ifdef CAMELID_X86
extern const ElementwiseKernels kElementwiseAvx2;
extern const ElementwiseKernels kElementwiseAvx512;
#endif

}  // namespace camelid
