// Matrix products for one instruction set, on the vectors of vector_impl.h.
//
// Both factors are packed into panels that are read from the first to the last byte, and a tile of the result stays in
// registers over a stretch of the depth (Goto and van de Geijn 2008, "Anatomy of high-performance matrix
// multiplication"). A number of the result is summed stretch by stretch, whatever else is computed: its bits depend
// neither on the threads nor on its neighbours.

constexpr std::size_t kTileVectors = 2, kTileColumns = kTileVectors * kLanes;

// Of the depth, between two visits to the result: a panel of the right factor, and a block of the left one, stay in L2.
constexpr std::size_t kStretch = 384;

// Rows for which packing the right factor would not pay: a square of it and their sums fit into the registers.
constexpr std::size_t kFewestRows = kLanes / 2;

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

// Of lines that come later: the processor foresees a few streams, not as many as there are lanes. To the second level, since
// they would drive from the first what is at work there.
inline void prefetch(const float *lines) { __builtin_prefetch(lines, 0, 2); }

// packed[k * packed_row + i] = lines[i * distance + k] for `width` ≤ kLanes lines.
inline void pack_across(const float *lines, std::size_t distance, std::size_t width, std::size_t depth, float *packed,
                        std::size_t packed_row) {
    std::size_t k = 0;
    for (; k + kLanes <= depth; k += kLanes) {
        Vector square[kLanes];
        for (std::size_t i = 0; i < kLanes; ++i) {
            prefetch(lines + (packed_row + i) * distance + k);
            square[i] = i < width ? load(lines + i * distance + k) : Vector{};
        }
        transpose_square(square);
        // A store goes on into the place of the next one, except at the end, where another panel may be.
        for (std::size_t i = 0; i + 1 < kLanes; ++i) store(packed + (k + i) * packed_row, square[i]);
        std::memcpy(packed + (k + kLanes - 1) * packed_row, &square[kLanes - 1], 4 * width);
    }
    for (; k < depth; ++k)
        for (std::size_t i = 0; i < width; ++i) packed[k * packed_row + i] = lines[i * distance + k];
}

// A panel with fewer lines than its width; what stands for the others is arbitrary.
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
    if (whole == end) return;
    const float *rest = lines + whole * kWidth * line;
    const std::size_t present = count - whole * kWidth;
    float *panel = packed + whole * kWidth * depth;
    if (along != 1) return pack_rest(rest, line, along, present, kWidth, depth, panel);
    for (std::size_t i = 0; i < present; i += kLanes)
        pack_across(rest + i * line, line, std::min(kLanes, present - i), depth, panel + i, kWidth);
}

void pack_left(Matrix a, std::size_t rows, std::size_t depth, float *packed, std::size_t begin, std::size_t end) {
    pack<kTileRows>(a.values, a.row, a.column, rows, depth, packed, begin, end);
}

void pack_right(Matrix b, std::size_t columns, std::size_t depth, float *packed, std::size_t begin, std::size_t end) {
    pack<kTileColumns>(b.values, b.column, b.row, columns, depth, packed, begin, end);
}

template <std::size_t kRows, bool kAdd>
inline void product_tile(const float *left, const float *right, std::size_t depth, float *c, std::size_t c_row) {
    Vector sums[kRows][kTileVectors] = {};
    for (std::size_t m = 0; kAdd && m < kRows; ++m) __builtin_prefetch(c + m * c_row, 1);
    for (std::size_t k = 0; k < depth; ++k) {
        Vector row[kTileVectors];
#pragma GCC unroll 4
        for (std::size_t n = 0; n < kTileVectors; ++n) row[n] = load(right + k * kTileColumns + n * kLanes);
#pragma GCC unroll 16
        for (std::size_t m = 0; m < kRows; ++m) {
            const Vector factor = broadcast(left[k * kTileRows + m]);
#pragma GCC unroll 4
            for (std::size_t n = 0; n < kTileVectors; ++n) sums[m][n] += factor * row[n];
        }
    }
#pragma GCC unroll 16
    for (std::size_t m = 0; m < kRows; ++m)
#pragma GCC unroll 4
        for (std::size_t n = 0; n < kTileVectors; ++n) {
            float *place = c + m * c_row + n * kLanes;
            store(place, kAdd ? load(place) + sums[m][n] : sums[m][n]);
        }
}

// A tile of fewer rows.
template <std::size_t kRows>
void product_rows(std::size_t rows, const float *left, const float *right, std::size_t depth, float *c, std::size_t c_row,
                  bool add) {
    if constexpr (kRows > 0) {
        if (rows < kRows) return product_rows<kRows - 1>(rows, left, right, depth, c, c_row, add);
        if (add)
            product_tile<kRows, true>(left, right, depth, c, c_row);
        else
            product_tile<kRows, false>(left, right, depth, c, c_row);
    }
}

// A tile of fewer columns: computed whole, beside its place.
inline void product_columns(std::size_t rows, std::size_t columns, const float *left, const float *right,
                            std::size_t depth, float *c, std::size_t c_row, bool add) {
    float whole[kTileRows * kTileColumns] = {};
    for (std::size_t m = 0; add && m < rows; ++m) std::copy_n(c + m * c_row, columns, whole + m * kTileColumns);
    product_rows<kTileRows>(rows, left, right, depth, whole, kTileColumns, true);
    for (std::size_t m = 0; m < rows; ++m) std::copy_n(whole + m * kTileColumns, columns, c + m * c_row);
}

// Stretches of about the same length, in whole vectors.
inline std::size_t stretch_of(std::size_t depth) {
    const std::size_t stretches = (depth + kStretch - 1) / kStretch;
    return ((depth + stretches - 1) / stretches + kLanes - 1) / kLanes * kLanes;
}

// Lines [0, kLanes) of the right factor, which lie along the depth, times up to kRows rows of the left one, over one
// stretch: each square of the lines is transposed in the registers and used there.
template <std::size_t kRows>
void multiply_lines(std::size_t rows, Matrix a, const float *lines, std::size_t distance, std::size_t depth, float *c,
                    std::size_t c_row, bool add) {
    if constexpr (kRows > 0) {
        if (rows < kRows) return multiply_lines<kRows - 1>(rows, a, lines, distance, depth, c, c_row, add);
        Vector sums[kRows] = {};
        std::size_t k = 0;
        for (; k + kLanes <= depth; k += kLanes) {
            Vector square[kLanes];
            for (std::size_t i = 0; i < kLanes; ++i) {
                prefetch(lines + (kLanes + i) * distance + k);
                square[i] = load(lines + i * distance + k);
            }
            transpose_square(square);
#pragma GCC unroll 16
            for (std::size_t i = 0; i < kLanes; ++i)
#pragma GCC unroll 8
                for (std::size_t m = 0; m < kRows; ++m)
                    sums[m] += broadcast(a.values[m * a.row + (k + i) * a.column]) * square[i];
        }
        for (; k < depth; ++k) {
            Vector column;
            for (std::size_t i = 0; i < kLanes; ++i) column[i] = lines[i * distance + k];
            for (std::size_t m = 0; m < kRows; ++m) sums[m] += broadcast(a.values[m * a.row + k * a.column]) * column;
        }
        for (std::size_t m = 0; m < kRows; ++m) {
            float *place = c + m * c_row;
            store(place, add ? load(place) + sums[m] : sums[m]);
        }
    }
}

// The product with a panel of tile_columns lines that lie along the depth, none of them packed. Sums are those of
// `multiply_panels`, to the last bit.
void multiply_unpacked(const ProductPart &part, Matrix a, Matrix b, float *c, std::size_t c_row, bool add) {
    const std::size_t stretch = stretch_of(part.depth);
    for (std::size_t n = 0; n < kTileColumns; n += kLanes)
        for (std::size_t k = 0; k < part.depth; k += stretch) {
            const std::size_t depth = std::min(stretch, part.depth - k);
            multiply_lines<kFewestRows>(part.rows, a.from(0, k), b.from(k, n).values, b.column, depth, c + n, c_row,
                                        add || k > 0);
        }
}

void multiply_panels(const ProductPart &part, const float *left, const float *right, float *c, std::size_t c_row,
                     bool add, std::size_t first_row, std::size_t end_row, std::size_t first_column,
                     std::size_t end_column) {
    const std::size_t stretch = stretch_of(part.depth);
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
                    if (columns < kTileColumns)
                        product_columns(rows, columns, a, b, depth, tile, c_row, adds);
                    else
                        product_rows<kTileRows>(rows, a, b, depth, tile, c_row, adds);
                }
            }
    }
}
