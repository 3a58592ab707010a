// The operations on float32 tensors, which Python gives as addresses; work is shared among threads here. Each takes the
// name of an instruction set first, and fails with std::invalid_argument where there is none of that name.

#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace camelid {

using Address = std::pair<std::uintptr_t, std::size_t>;  // of the first row, and floats from one row to the next

// num_sequences, num_heads, num_key_heads, head_dim
using Sizes = std::tuple<std::size_t, std::size_t, std::size_t, std::size_t>;

// num_sequences, block_size, num_heads, num_key_heads, head_dim
using PagedSizes = std::tuple<std::size_t, std::size_t, std::size_t, std::size_t, std::size_t>;

using CachedAddress = std::pair<std::uintptr_t, std::uintptr_t>;  // of the numbers, and of their scales or 0

// Of element (0, 0), and the distances to the next row and to the next column.
using MatrixAddress = std::tuple<std::uintptr_t, std::size_t, std::size_t>;

// A right factor, its columns, and where its product begins.
using FactorAddress = std::tuple<MatrixAddress, std::size_t, std::uintptr_t>;

std::map<std::string, std::size_t> attention_dim_factors();

void attention(const std::string &set, std::uintptr_t starts, const Sizes &sizes, float scale, const Address &q,
               const Address &k, const Address &v, const Address &out, std::size_t num_threads);

void attention_gradients(const std::string &set, std::uintptr_t starts, const Sizes &sizes, float scale,
                         const Address &q, const Address &k, const Address &v, const Address &out_grad,
                         const Address &q_grad, const Address &k_grad, const Address &v_grad, std::size_t num_threads);

// Row slots[t] of `keys` and of `values` becomes row t of those that are new.
void store_rows(const Address &new_keys, const Address &new_values, std::uintptr_t slots, std::size_t count,
                std::uintptr_t keys, std::uintptr_t values, std::size_t width, std::size_t num_threads);

void paged_attention(const std::string &set, std::uintptr_t sequences, std::uintptr_t tables, const PagedSizes &sizes,
                     float scale, const std::pair<int, std::int64_t> &reach, const Address &q, const CachedAddress &keys,
                     const CachedAddress &values, const Address &out, std::size_t num_threads);

void rms_norm(const std::string &set, std::uintptr_t x, std::uintptr_t weight, float eps, std::uintptr_t out,
              std::size_t rows, std::size_t width, std::size_t num_threads);

void rms_norm_gradients(const std::string &set, std::uintptr_t x, std::uintptr_t weight, float eps,
                        std::uintptr_t out_grad, std::uintptr_t x_grad, std::uintptr_t weight_grads, std::size_t rows,
                        std::size_t width, std::size_t num_threads);

void swiglu(const std::string &set, std::uintptr_t gate, std::uintptr_t up, std::uintptr_t out, std::size_t count,
            std::size_t num_threads);

void swiglu_gradients(const std::string &set, std::uintptr_t gate, std::uintptr_t up, std::uintptr_t out_grad,
                      std::uintptr_t gate_grad, std::uintptr_t up_grad, std::size_t count, std::size_t num_threads);

void rotate(const std::string &set, const Address &x, std::uintptr_t cos, std::uintptr_t sin, bool back,
            std::uintptr_t out, std::size_t tokens, std::size_t heads, std::size_t dim, std::size_t num_threads);

void softmax_shares(const std::string &set, std::uintptr_t x, std::uintptr_t largest, std::uintptr_t totals,
                    std::size_t rows, std::size_t width, std::size_t num_threads);

// The greatest of each row, and the first column that has it; of a row with a number that is none, the first such.
std::pair<std::vector<float>, std::vector<std::size_t>> greatest(const std::string &set, const Address &x,
                                                                 std::size_t rows, std::size_t width,
                                                                 std::size_t num_threads);

void product(const std::string &set, const std::pair<std::size_t, std::size_t> &rows_and_depth, const MatrixAddress &a,
             const std::vector<FactorAddress> &factors, std::size_t out_row, bool add, std::size_t num_threads);

// silu(x gateᵀ) ⊙ x upᵀ, both products in one pass over `both`, which has 2 · width columns.
void gated_product(const std::string &set, const std::pair<std::size_t, std::size_t> &rows_and_depth,
                   const MatrixAddress &x, const MatrixAddress &gate, const MatrixAddress &up, std::size_t width,
                   std::uintptr_t both, std::uintptr_t out, std::size_t num_threads);

inline float *floats(std::uintptr_t address) { return reinterpret_cast<float *>(address); }

}  // namespace camelid
