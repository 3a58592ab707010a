// Products of float32 matrices as a training step needs them: a transposed factor is read as it lies.

#pragma once

#include <cstddef>
#include <vector>

namespace camelid {

// Element (i, j) lies at values + i * row + j * column; one of the two distances is 1.
struct Matrix {
    const float *values;
    std::size_t row, column;

    Matrix from(std::size_t i, std::size_t j) const { return {values + i * row + j * column, row, column}; }
};

// Numbers that follow each other along the depth and stay together in a packed factor, whose depth is filled up with zeros.
constexpr std::size_t kDepthFactor = 4;

inline std::size_t whole_quads(std::size_t depth) { return (depth + kDepthFactor - 1) / kDepthFactor * kDepthFactor; }

// The part of a product that is packed and multiplied at once: rows × columns of the result, over `depth`.
struct ProductPart {
    std::size_t rows, columns, depth;
};

struct ProductKernels {
    const char *name;                    // of the instruction set
    std::size_t tile_rows, tile_columns;  // of the result, kept in registers

    // Copy panels [begin, end) of the left factor: tile_rows rows each, `kDepthFactor` columns after as many.
    void (*pack_left)(Matrix a, std::size_t rows, std::size_t depth, float *packed, std::size_t begin, std::size_t end);

    // Copy panels [begin, end) of the right factor: tile_columns columns each, `kDepthFactor` rows after as many.
    void (*pack_right)(Matrix b, std::size_t columns, std::size_t depth, float *packed, std::size_t begin,
                       std::size_t end);

    // c = a b for a block of panels, or c += a b; `packed` factors are those of the whole part.
    void (*multiply)(const ProductPart &part, const float *left, const float *right, float *c, std::size_t c_row,
                     bool add, std::size_t first_row, std::size_t end_row, std::size_t first_column,
                     std::size_t end_column);

    // The same for `fewest_rows` or fewer and tile_columns lines of a right factor that lie along the depth, unpacked.
    std::size_t fewest_rows;
    void (*multiply_unpacked)(const ProductPart &part, Matrix a, Matrix b, float *c, std::size_t c_row, bool add);
};

// There is none in plain C++: torch's own products are vectorised.
#ifdef CAMELID_X86
extern const ProductKernels kProductAvx2;
extern const ProductKernels kProductAvx512;
#endif

// A right factor, and where its product goes.
struct ProductFactor {
    Matrix b;
    std::size_t columns;
    float *c;
};

// c = a b, or c += a b, for each factor, with rows of c that lie `c_row` floats apart; nothing is empty.
void multiply(const ProductKernels &kernels, std::size_t rows, std::size_t depth, Matrix a,
              const std::vector<ProductFactor> &factors, std::size_t c_row, bool add, std::size_t num_threads);

}  // namespace camelid
