#include "product.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "thread_pool.h"

namespace camelid {
namespace {

// Of the depth, and floats of each factor, that are packed at once: 4 MB of memory for products of any size. Four times as
// much was no faster, and slower where the depth is a vocabulary.
constexpr std::size_t kPackedDepth = 1024, kPackedFloats = 512 * 1024;

// Of the result, for one task.
constexpr std::size_t kTaskRows = 96, kTaskColumns = 256;

// Panels that are packed in one go.
constexpr std::size_t kPanelsPerPiece = 8;

// A piece of the depth is a multiple of it, so that only the last one may end within a vector.
constexpr std::size_t kPieceFactor = 16;
static_assert(kPieceFactor % kDepthFactor == 0);

constexpr std::size_t kCacheLine = 64;

// Rows up to which a panel of the right factor is multiplied as soon as it is packed, while it lies in the thread's cache.
constexpr std::size_t kFewRows = 96;

// Floats of the right factor that one thread gets through while another wakes up; less is not worth sharing.
constexpr std::size_t kFloatsPerPiece = 16 * 1024;

std::size_t whole(std::size_t count, std::size_t factor) { return (count + factor - 1) / factor * factor; }

// Pieces of about the same size, not above `most` and, but for the last, multiples of `factor`.
std::size_t even_piece(std::size_t count, std::size_t most, std::size_t factor) {
    const std::size_t pieces = (count + most - 1) / most;
    return std::min(whole((count + pieces - 1) / pieces, factor), std::max(most / factor * factor, factor));
}

// What the calling thread packs into; kept from product to product, since fresh pages cost more than packing does.
float *packed_floats(std::size_t place, std::size_t count) {
    thread_local std::vector<float> memory[3];
    const std::size_t spare = kCacheLine / sizeof(float);
    if (memory[place].size() < count + spare) memory[place].resize(count + spare);
    // A vector that straddles two cache lines costs two reads.
    const auto address = reinterpret_cast<std::uintptr_t>(memory[place].data());
    return reinterpret_cast<float *>((address + kCacheLine - 1) / kCacheLine * kCacheLine);
}

void multiply_packed(const ProductKernels &kernels, const ProductPart &part, const float *left, const float *right,
                     float *c, std::size_t c_row, bool add, std::size_t num_threads) {
    const std::size_t task_rows = even_piece(part.rows, kTaskRows, kernels.tile_rows);
    const std::size_t task_columns = even_piece(part.columns, kTaskColumns, kernels.tile_columns);
    const std::size_t down = (part.rows + task_rows - 1) / task_rows;
    const std::size_t across = (part.columns + task_columns - 1) / task_columns;
    ThreadPool::instance().run(down * across, 1, num_threads, [&](std::size_t begin, std::size_t end) {
        for (std::size_t task = begin; task < end; ++task) {
            const std::size_t row = task / across * task_rows, column = task % across * task_columns;
            kernels.multiply(part, left, right, c, c_row, add, row, std::min(row + task_rows, part.rows), column,
                             std::min(column + task_columns, part.columns));
        }
    });
}

// Few rows: what counts is that the right factors come from memory once. Sums are cut where `multiply_many` cuts them.
void multiply_few(const ProductKernels &kernels, std::size_t rows, std::size_t all_depth, Matrix a,
                  const std::vector<ProductFactor> &factors, std::size_t c_row, bool add, std::size_t num_threads) {
    const std::size_t depth = even_piece(all_depth, kPackedDepth, kPieceFactor), width = kernels.tile_columns;
    std::vector<std::size_t> ends;  // of each factor's panels
    const bool are_fewest = rows <= kernels.fewest_rows && a.column == 1 && all_depth % kPieceFactor == 0;
    bool packs_left = !are_fewest;
    for (const ProductFactor &factor : factors) {
        ends.push_back((ends.empty() ? 0 : ends.back()) + whole(factor.columns, width) / width);
        packs_left = packs_left || factor.b.row != 1 || factor.columns % width != 0;
    }
    const std::size_t left_panels = whole(rows, kernels.tile_rows) / kernels.tile_rows;
    const std::size_t left_rows = left_panels * kernels.tile_rows;
    float *left = packed_floats(0, left_rows * whole_quads(all_depth));
    for (std::size_t k = 0; packs_left && k < all_depth; k += depth)
        kernels.pack_left(a.from(0, k), rows, std::min(depth, all_depth - k), left + k * left_rows, 0, left_panels);
    const std::size_t piece = std::max<std::size_t>(kFloatsPerPiece / (width * all_depth), 1);
    ThreadPool::instance().run(ends.back(), piece, num_threads, [&](std::size_t begin, std::size_t end) {
        std::size_t number = 0;
        for (std::size_t panel = begin; panel < end; ++panel) {
            while (panel >= ends[number]) ++number;
            const ProductFactor &factor = factors[number];
            const std::size_t n = (panel - (number > 0 ? ends[number - 1] : 0)) * width;
            for (std::size_t k = 0; k < all_depth; k += depth) {
                const ProductPart part{rows, std::min(width, factor.columns - n), std::min(depth, all_depth - k)};
                const Matrix b = factor.b.from(k, n);
                const bool adds = add || k > 0;
                if (are_fewest && b.row == 1 && part.columns == width) {
                    kernels.multiply_unpacked(part, a.from(0, k), b, factor.c + n, c_row, adds);
                    continue;
                }
                float *right = packed_floats(2, width * whole_quads(depth));
                kernels.pack_right(b, part.columns, part.depth, right, 0, 1);
                kernels.multiply(part, left + k * left_rows, right, factor.c + n, c_row, adds, 0, rows, 0, part.columns);
            }
        }
    });
}

void multiply_many(const ProductKernels &kernels, const ProductPart &all, Matrix a, Matrix b, float *c, std::size_t c_row,
                   bool add, std::size_t num_threads) {
    const std::size_t depth = even_piece(all.depth, kPackedDepth, kPieceFactor);
    const std::size_t columns = even_piece(all.columns, kPackedFloats / depth, kernels.tile_columns);
    const std::size_t rows = even_piece(all.rows, kPackedFloats / depth, kernels.tile_rows);
    float *left = packed_floats(0, whole(std::min(rows, all.rows), kernels.tile_rows) * whole_quads(depth));
    float *right = packed_floats(1, whole(std::min(columns, all.columns), kernels.tile_columns) * whole_quads(depth));
    ThreadPool &pool = ThreadPool::instance();
    for (std::size_t n = 0; n < all.columns; n += columns)
        for (std::size_t k = 0; k < all.depth; k += depth) {
            ProductPart part{0, std::min(columns, all.columns - n), std::min(depth, all.depth - k)};
            const std::size_t right_panels = whole(part.columns, kernels.tile_columns) / kernels.tile_columns;
            pool.run(right_panels, kPanelsPerPiece, num_threads, [&](std::size_t begin, std::size_t end) {
                kernels.pack_right(b.from(k, n), part.columns, part.depth, right, begin, end);
            });
            for (std::size_t m = 0; m < all.rows; m += rows) {
                part.rows = std::min(rows, all.rows - m);
                const std::size_t left_panels = whole(part.rows, kernels.tile_rows) / kernels.tile_rows;
                pool.run(left_panels, kPanelsPerPiece, num_threads, [&](std::size_t begin, std::size_t end) {
                    kernels.pack_left(a.from(m, k), part.rows, part.depth, left, begin, end);
                });
                multiply_packed(kernels, part, left, right, c + m * c_row + n, c_row, add || k > 0, num_threads);
            }
        }
}

}  // namespace

void multiply(const ProductKernels &kernels, std::size_t rows, std::size_t depth, Matrix a,
              const std::vector<ProductFactor> &factors, std::size_t c_row, bool add, std::size_t num_threads) {
    if (rows <= kFewRows) return multiply_few(kernels, rows, depth, a, factors, c_row, add, num_threads);
    for (const ProductFactor &factor : factors)
        multiply_many(kernels, {rows, factor.columns, depth}, a, factor.b, factor.c, c_row, add, num_threads);
}

}  // namespace camelid
