// Kernels over rows of quantised blocks: one table of functions per weight format and instruction set.
//
// A weight matrix W has `rows` rows of `columns` elements, kept as whole blocks of 32 elements, row after row.
// Numbers are little-endian; block layouts are those of ggml's ggml-common.h.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace camelid {

constexpr std::size_t kBlockSize = 32;

struct BlockKernels {
    const char *format;
    std::size_t block_bytes;

    // Decode rows [begin, end) into out[row * columns + column], every weight rounded as in the format's definition.
    void (*unpack)(const std::uint8_t *weights, std::size_t columns, std::size_t begin, std::size_t end, float *out);

    // out[t * rows + row] = sum over c of x[t * columns + c] * W[row, c], for all t and for row in [begin, end).
    // A sum is made in the same order whatever `batch`, `begin` and `end` are.
    void (*matmul)(const float *x, std::size_t batch, const std::uint8_t *weights, std::size_t rows,
                   std::size_t columns, std::size_t begin, std::size_t end, float *out);
};

struct InstructionSet {
    const char *name;
    const BlockKernels *kernels;
    std::size_t num_kernels;
};

extern const InstructionSet kPortable;
#ifdef CAMELID_X86
extern const InstructionSet kAvx2;
extern const InstructionSet kAvx512;
#endif

// What this processor can run, best first.
const std::vector<InstructionSet> &instruction_sets();

}  // namespace camelid
