// Causal attention over sequences that lie end to end, and its gradient; float32.

#pragma once

#include <cstddef>
#include <cstdint>

namespace camelid {

// Row t of head h begins at values + t * row_stride + h * head_dim.
struct Rows {
    float *values;
    std::size_t row_stride;

    float *at(std::size_t token, std::size_t head, std::size_t head_dim) const {
        return values + token * row_stride + head * head_dim;
    }
};

struct AttentionShape {
    const std::int64_t *starts;  // sequence s has the tokens starts[s] … starts[s + 1] - 1
    std::size_t num_sequences, num_heads, num_key_heads, head_dim;
    float scale;

    // A task is one sequence under one key/value head; no two write to the same place.
    std::size_t num_tasks() const { return num_sequences * num_key_heads; }
};

struct AttentionKernels {
    const char *name;        // of the instruction set
    std::size_t dim_factor;  // head_dim must be a multiple of it

    // out = softmax(scale q kᵀ, causal) v, for tasks [begin, end).
    void (*forward)(const AttentionShape &shape, Rows q, Rows k, Rows v, Rows out, std::size_t begin, std::size_t end);

    // The gradients of q, k and v from that of out; nothing but q, k and v is needed of the forward pass.
    void (*backward)(const AttentionShape &shape, Rows q, Rows k, Rows v, Rows out_grad, Rows q_grad, Rows k_grad,
                     Rows v_grad, std::size_t begin, std::size_t end);
};

// There is none in plain C++: it took up to three times as long as torch's own kernel.
#ifdef CAMELID_X86
extern const AttentionKernels kAttentionAvx2;
extern const AttentionKernels kAttentionAvx512;
#endif

}  // namespace camelid
