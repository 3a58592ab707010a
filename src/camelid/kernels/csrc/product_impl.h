// Matrix products for one instruction set, on the vectors of vector_impl.h.
//
// Both factors are packed into panels that are read from the first to the last byte, and a tile of the result stays in
// registers over a stretch of the depth (Goto and van de Geijn 2008, "Anatomy of high-performance matrix
// multiplication"). A number of the result is summed stretch by stretch, whatever else is computed: its bits depend
// neither on the threads nor on its neighbours.

constexpr std::size_t kTileVectors = 2, kTileColumns = kTileVectors * kLanes;

// Of the depth, between two visits to the result: a panel of the right factor, and a block of the left one, stay in L2.
constexpr std::size_t kStretch = 384;

// Rows of the left factor that are taken past all columns of a block before the next ones.
constexpr std::size_t kBlockRows = 8 * kTileRows;

// The transpose of a square of vectors: log2(kLanes) rounds, each of which interleaves the first half with the second.
inline void transpose_square(Vector (&square)[kLanes]) {
    Integers first, second;
    for (std::size_t i = 0; i < kLanes; ++i) {
        first[i] = static_cast<std::int32_t>(i / 2 + i % 2 * kLanes);
        second[i] = first[i] + static_cast<std::int32_t>(kLanes / 2);
    }
    for (std::size_t round = 1; round < kLanes; round *= 2) {
        Vector next[kLanes];
        for (std::size_t i = 0; i < kLanes / 2; ++i) {
            next[2 * i] = interleave(square[i], square[i + kLanes / 2], first);
            next[2 * i + 1] = interleave(square[i], square[i + kLanes / 2], second);
        }
        for (std::size_t i = 0; i < kLanes; ++i) square[i] = next[i];
    }
}

// packed[k * packed_row + i] = lines[i * distance + k] for `width` ≤ kLanes lines.
inline void pack_across(const float *lines, std::size_t distance, std::size_t width, std::size_t depth, float *packed,
                        std::size_t packed_row) {
    std::size_t k = 0;
    for (; k + kLanes <= depth; k += kLanes) {
        Vector square[kLanes];
        for (std::size_t i = 0; i < kLanes; ++i) square[i] = i < width ? load(lines + i * distance + k) : Vector{};
        transpose_square(square);
        // A store goes on into the place of the next one, except at the end, where another panel may be.
        for (std::size_t i = 0; i + 1 < kLanes; ++i) store(packed + (k + i) * packed_row, square[i]);
        std::memcpy(packed + (k + kLanes - 1) * packed_row, &square[kLanes - 1], 4 * width);
    }
    for (; k < depth; ++k)
        for (std::size_t i = 0; i < width; ++i) packed[k * packed_row + i] = lines[i * distance + k];
}

// A panel with fewer lines than its width; zeros stand for the others.
inline void pack_rest(const float *lines, std::size_t line, std::size_t along, std::size_t present, std::size_t width,
                      std::size_t depth, float *packed) {
    for (std::size_t k = 0; k < depth; ++k)
        for (std::size_t i = 0; i < width; ++i) packed[k * width + i] = i < present ? lines[i * line + k * along] : 0.0f;
}

// Panels [begin, end) of a matrix whose lines are `count`: `kWidth` lines each, element after element.
template <std::size_t kWidth>
void pack(const float *lines, std::size_t line, std::size_t along, std::size_t count, std::size_t depth, float *packed,
          std::size_t begin, std::size_t end) {
    const std::size_t whole = std::min(end, count / kWidth);
    if (along == 1) {
        for (std::size_t first = begin * kWidth; first < whole * kWidth; first += kWidth)
            for (std::size_t i = 0; i < kWidth; i += kLanes)
                pack_across(lines + (first + i) * line, line, std::min(kLanes, kWidth - i), depth,
                            packed + first * depth + i, kWidth);
    } else {  // several panels at a time, since each step along the depth leads to another page
        for (std::size_t k = 0; k < depth; ++k)
            for (std::size_t first = begin * kWidth; first < whole * kWidth; first += kWidth)
                std::memcpy(packed + first * depth + k * kWidth, lines + k * along + first, 4 * kWidth);
    }
    if (whole < end)
        pack_rest(lines + whole * kWidth * line, line, along, count - whole * kWidth, kWidth, depth,
                  packed + whole * kWidth * depth);
}

void pack_left(Matrix a, std::size_t rows, std::size_t depth, float *packed, std::size_t begin, std::size_t end) {
    pack<kTileRows>(a.values, a.row, a.column, rows, depth, packed, begin, end);
}

void pack_right(Matrix b, std::size_t columns, std::size_t depth, float *packed, std::size_t begin, std::size_t end) {
    pack<kTileColumns>(b.values, b.column, b.row, columns, depth, packed, begin, end);
}

template <bool kAdd>
inline void product_tile(const float *left, const float *right, std::size_t depth, float *c, std::size_t c_row) {
    Vector sums[kTileRows][kTileVectors] = {};
    for (std::size_t m = 0; kAdd && m < kTileRows; ++m) __builtin_prefetch(c + m * c_row, 1);
    for (std::size_t k = 0; k < depth; ++k) {
        Vector row[kTileVectors];
#pragma GCC unroll 4
        for (std::size_t n = 0; n < kTileVectors; ++n) row[n] = load(right + k * kTileColumns + n * kLanes);
#pragma GCC unroll 16
        for (std::size_t m = 0; m < kTileRows; ++m) {
            const Vector factor = broadcast(left[k * kTileRows + m]);
#pragma GCC unroll 4
            for (std::size_t n = 0; n < kTileVectors; ++n) sums[m][n] += factor * row[n];
        }
    }
#pragma GCC unroll 16
    for (std::size_t m = 0; m < kTileRows; ++m)
#pragma GCC unroll 4
        for (std::size_t n = 0; n < kTileVectors; ++n) {
            float *place = c + m * c_row + n * kLanes;
            store(place, kAdd ? load(place) + sums[m][n] : sums[m][n]);
        }
}

// A tile at the edge of the result: computed whole, beside it.
inline void product_edge(const float *left, const float *right, std::size_t depth, float *c, std::size_t c_row,
                         std::size_t rows, std::size_t columns, bool add) {
    float whole[kTileRows * kTileColumns] = {};
    for (std::size_t m = 0; add && m < rows; ++m) std::copy_n(c + m * c_row, columns, whole + m * kTileColumns);
    product_tile<true>(left, right, depth, whole, kTileColumns);
    for (std::size_t m = 0; m < rows; ++m) std::copy_n(whole + m * kTileColumns, columns, c + m * c_row);
}

void multiply_panels(const ProductPart &part, const float *left, const float *right, float *c, std::size_t c_row,
                     bool add, std::size_t first_row, std::size_t end_row, std::size_t first_column,
                     std::size_t end_column) {
    const std::size_t stretches = (part.depth + kStretch - 1) / kStretch;
    const std::size_t stretch = (part.depth + stretches - 1) / stretches;
    for (std::size_t k = 0; k < part.depth; k += stretch) {
        const std::size_t depth = std::min(stretch, part.depth - k);
        const bool adds = add || k > 0;
        for (std::size_t block = first_row; block < end_row; block += kBlockRows)
            for (std::size_t n = first_column; n < end_column; n += kTileColumns) {
                const float *b = right + n * part.depth + k * kTileColumns;
                const std::size_t columns = std::min(kTileColumns, part.columns - n);
                for (std::size_t m = block; m < std::min(block + kBlockRows, end_row); m += kTileRows) {
                    const float *a = left + m * part.depth + k * kTileRows;
                    const std::size_t rows = std::min(kTileRows, part.rows - m);
                    float *tile = c + m * c_row + n;
                    if (rows < kTileRows || columns < kTileColumns)
                        product_edge(a, b, depth, tile, c_row, rows, columns, adds);
                    else if (adds)
                        product_tile<true>(a, b, depth, tile, c_row);
                    else
                        product_tile<false>(a, b, depth, tile, c_row);
                }
            }
    }
}
