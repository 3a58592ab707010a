// All of a model's transformer blocks over one step's tokens: camelid/kernels/stack.py says which.

#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

namespace camelid {

// tokens, hidden size, heads, key/value heads, head dimension, width of the feed-forward layer
using StackSizes = std::tuple<std::size_t, std::size_t, std::size_t, std::size_t, std::size_t, std::size_t>;

// Addresses of each block's nine weights (first norm, queries, keys, values, output, second norm, gate, up, down) and of
// the last norm's, the norms' epsilons, and each block's scale of scores, keys and values in the cache.
using StackBlocks = std::tuple<std::vector<std::uintptr_t>, std::vector<float>, std::vector<float>,
                               std::vector<std::uintptr_t>, std::vector<std::uintptr_t>>;

// A step's place in the cache: sequences, their number, block tables, block size, slots.
using StackPlace = std::tuple<std::uintptr_t, std::size_t, std::uintptr_t, std::size_t, std::uintptr_t>;

// Tokens that are wanted of the last block: their numbers, how many, their sequences as in the place, how many.
using StackWanted = std::tuple<std::uintptr_t, std::size_t, std::uintptr_t, std::size_t>;

// The blocks and, where there is one more weight, the last norm; of the wanted tokens into `out`. The workspace has
// 3 · (hidden + heads · dim + key heads · dim + width) + 2 · dim floats for each token.
void transformer_stack(const std::string &set, const StackSizes &sizes, const StackBlocks &blocks, const StackPlace &place,
                       const StackWanted &wanted, std::uintptr_t x, std::uintptr_t cos, std::uintptr_t sin,
                       std::uintptr_t workspace, std::uintptr_t out, std::size_t num_threads);

}  // namespace camelid
