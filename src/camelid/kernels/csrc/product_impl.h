// Matrix products for one instruction set, on the vectors of vector_impl.h.
//
// Both factors are packed into panels that are read from the first to the last byte, and a tile of the result stays in
// registers over a stretch of the depth (Goto and van de Geijn 2008, "Anatomy of high-performance matrix
// multiplication"). Four numbers that follow each other along the depth, a quad, stay together: a vector holds quads of
// several columns, and a number of the result is four sums, over depths that are equal modulo 4, which are added at the
// end of a stretch. So a factor whose lines lie along the depth, as weights do, is packed by moving quads, or is
// multiplied as it lies: turning squares of single numbers would cost as much as a multiplication with several rows.
// Stretch follows stretch, whatever else is computed: a result's bits depend neither on the threads nor on its
// neighbours.

constexpr std::size_t kQuad = kDepthFactor;
constexpr std::size_t kVectorLines = kLanes / kQuad;  // of which a vector holds a quad each
constexpr std::size_t kTileVectors = 4, kTileColumns = kTileVectors * kVectorLines;
static_assert(2 * kTileRows % kVectorLines == 0 && kTileVectors == kQuad);

// Of the depth, between two visits to the result: a panel of the right factor, and a block of the left one, stay in L2.
constexpr std::size_t kStretch = 384;

// Of a right factor that is not packed: lines whose quads lie in the registers, beside their sums with so many rows.
constexpr std::size_t kLineVectors = 2, kLines = kLineVectors * kVectorLines, kLineRows = kLanes / 2;
static_assert(2 * kLineVectors == kQuad);

// Fewer rows are taken for so many: in 512 bits a processor of AMD's ran one or two rows slower than three.
constexpr std::size_t kLeastLineRows = kLanes == 16 ? 3 : 1;

// Rows up to which packing the right factor does not pay.
constexpr std::size_t kFewestRows = 32;

// Rows of the left factor that are taken past all columns of a block before the next ones.
constexpr std::size_t kBlockRows = 8 * kTileRows;

typedef float HalfVector __attribute__((vector_size(2 * kLanes), aligned(4), may_alias));

inline HalfVector first_half(Vector a) { return *reinterpret_cast<HalfVector *>(&a); }
inline HalfVector second_half(Vector a) { return *(reinterpret_cast<HalfVector *>(&a) + 1); }
inline HalfVector load_half(const float *from) { return *reinterpret_cast<const HalfVector *>(from); }
inline void store_half(float *to, HalfVector a) { *reinterpret_cast<HalfVector *>(to) = a; }

// The elements of a and b in turn, from the first half of each or from the second.
inline Vector first_in_turn(Vector a, Vector b) {
    Integers numbers;
    for (std::size_t i = 0; i < kLanes; ++i) numbers[i] = static_cast<std::int32_t>(i / 2 + i % 2 * kLanes);
    return interleave(a, b, numbers);
}

inline Vector second_in_turn(Vector a, Vector b) {
    Integers numbers;
    for (std::size_t i = 0; i < kLanes; ++i) numbers[i] = static_cast<std::int32_t>(kLanes / 2 + i / 2 + i % 2 * kLanes);
    return interleave(a, b, numbers);
}

// Each vector's elements go to as many places in a row: log2(kCount) rounds, each of which takes the vectors of the first half
// and of the second in turn.
template <std::size_t kCount>
inline void transpose(Vector (&vectors)[kCount]) {
    for (std::size_t round = 1; round < kCount; round *= 2) {
        Vector next[kCount];
        for (std::size_t i = 0; i < kCount / 2; ++i) {
            next[2 * i] = first_in_turn(vectors[i], vectors[i + kCount / 2]);
            next[2 * i + 1] = second_in_turn(vectors[i], vectors[i + kCount / 2]);
        }
        for (std::size_t i = 0; i < kCount; ++i) vectors[i] = next[i];
    }
}

// The quads of a and b with even numbers, or with odd ones.
template <std::size_t kOdd>
inline Vector every_other_quad(Vector a, Vector b) {
    Integers numbers;
    for (std::size_t i = 0; i < kLanes; ++i)
        numbers[i] = static_cast<std::int32_t>((2 * (i / kQuad) + kOdd) * kQuad + i % kQuad);
    return interleave(a, b, numbers);
}

// kLanes numbers of each of kVectorLines lines: vector j gets the lines' quads at depth 4 j.
inline void load_quads(const float *lines, std::size_t distance, Vector (&quads)[kVectorLines]) {
    for (std::size_t half = 0; half < 2; ++half) {
        const float *from = lines + half * kLanes / 2;
        Vector joined[kVectorLines / 2];
        for (std::size_t i = 0; i < kVectorLines / 2; ++i)
            joined[i] = join_halves(from + 2 * i * distance, from + (2 * i + 1) * distance);
        if constexpr (kVectorLines == 2) {
            quads[half] = joined[0];
        } else {
            quads[2 * half] = every_other_quad<0>(joined[0], joined[1]);
            quads[2 * half + 1] = every_other_quad<1>(joined[0], joined[1]);
        }
    }
}

// Of lines that come later: the processor foresees a few streams, not as many as there are. To the second level, since they
// would drive from the first what is at work there.
inline void prefetch(const float *lines) { __builtin_prefetch(lines, 0, 2); }

// Where the panels of `kWidth` lines have the quad of line i at depth k.
template <std::size_t kWidth>
inline std::size_t place_of(std::size_t i, std::size_t k, std::size_t depth) {
    return i / kWidth * kWidth * whole_quads(depth) + k / kQuad * kWidth * kQuad + i % kWidth * kQuad;
}

// The quads of kVectorLines lines, from line i on.
template <std::size_t kWidth>
inline void store_quads(float *packed, std::size_t i, std::size_t k, std::size_t depth, Vector quads) {
    if constexpr (kWidth % kVectorLines == 0) {
        store(packed + place_of<kWidth>(i, k, depth), quads);
    } else {  // half of them may belong to the next panel
        store_half(packed + place_of<kWidth>(i, k, depth), first_half(quads));
        store_half(packed + place_of<kWidth>(i + kVectorLines / 2, k, depth), second_half(quads));
    }
}

// Lines [begin, end) at depths from `from` on, number by number; zeros stand for what is not there.
template <std::size_t kWidth>
void pack_each(const float *lines, std::size_t line, std::size_t along, std::size_t count, std::size_t depth, float *packed,
               std::size_t begin, std::size_t end, std::size_t from) {
    for (std::size_t k = from; k < whole_quads(depth); ++k)
        for (std::size_t i = begin; i < end; ++i)
            packed[place_of<kWidth>(i, k, depth) + k % kQuad] = i < count && k < depth ? lines[i * line + k * along] : 0.0f;
}

// Panels [begin, end) of a matrix whose lines are `count`: `kWidth` lines each, quad after quad.
template <std::size_t kWidth>
void pack(const float *lines, std::size_t line, std::size_t along, std::size_t count, std::size_t depth, float *packed,
          std::size_t begin, std::size_t end) {
    const std::size_t first = begin * kWidth, last = std::min(end * kWidth, count);
    if (along == 1) {
        const std::size_t whole = first + (last - first) / kVectorLines * kVectorLines, turned = depth / kLanes * kLanes;
        for (std::size_t i = first; i < whole; i += kVectorLines)
            for (std::size_t k = 0; k < turned; k += kLanes) {
                Vector quads[kVectorLines];
                for (std::size_t j = 0; j < kVectorLines; ++j) prefetch(lines + (i + kWidth + j) * line + k);
                load_quads(lines + i * line + k, line, quads);
                for (std::size_t j = 0; j < kVectorLines; ++j)
                    store_quads<kWidth>(packed, i, k + j * kQuad, depth, quads[j]);
            }
        pack_each<kWidth>(lines, line, along, count, depth, packed, first, whole, turned);
        pack_each<kWidth>(lines, line, along, count, depth, packed, whole, end * kWidth, 0);
    } else {  // several panels at a time, since each step along the depth leads to another page
        const std::size_t whole = first + (last - first) / kLanes * kLanes, turned = depth / kQuad * kQuad;
        for (std::size_t k = 0; k < turned; k += kQuad)
            for (std::size_t i = first; i < whole; i += kLanes) {
                Vector rows[kQuad];
                for (std::size_t j = 0; j < kQuad; ++j) rows[j] = load(lines + i + (k + j) * along);
                transpose(rows);
                for (std::size_t j = 0; j < kQuad; ++j)
                    store_quads<kWidth>(packed, i + j * kVectorLines, k, depth, rows[j]);
            }
        pack_each<kWidth>(lines, line, along, count, depth, packed, first, whole, turned);
        pack_each<kWidth>(lines, line, along, count, depth, packed, whole, end * kWidth, 0);
    }
}

void pack_left(Matrix a, std::size_t rows, std::size_t depth, float *packed, std::size_t begin, std::size_t end) {
    pack<kTileRows>(a.values, a.row, a.column, rows, depth, packed, begin, end);
}

void pack_right(Matrix b, std::size_t columns, std::size_t depth, float *packed, std::size_t begin, std::size_t end) {
    pack<kTileColumns>(b.values, b.column, b.row, columns, depth, packed, begin, end);
}

// In each quad of lanes, these four of the quads of x (0 to 3) and y (4 to 7).
template <std::int32_t... kChosen>
inline Vector of_quads(Vector x, Vector y) {
    constexpr std::int32_t chosen[kQuad] = {kChosen...};
    Integers numbers;
    for (std::size_t i = 0; i < kLanes; ++i) {
        const std::int32_t number = chosen[i % kQuad];
        numbers[i] = static_cast<std::int32_t>(i / kQuad * kQuad) + number % 4 + number / 4 * static_cast<std::int32_t>(kLanes);
    }
    return interleave(x, y, numbers);
}

// The four sums of each number, added: those of `a` first, then those of b, c and d.
inline Vector add_quads(Vector a, Vector b, Vector c, Vector d) {
    const Vector ab = of_quads<0, 4, 1, 5>(a, b) + of_quads<2, 6, 3, 7>(a, b);
    const Vector cd = of_quads<0, 4, 1, 5>(c, d) + of_quads<2, 6, 3, 7>(c, d);
    const Vector abcd = of_quads<0, 1, 4, 5>(ab, cd) + of_quads<2, 3, 6, 7>(ab, cd);  // one of each in each quad
    Integers numbers;
    for (std::size_t i = 0; i < kLanes; ++i)
        numbers[i] = static_cast<std::int32_t>(i % kVectorLines * kQuad + i / kVectorLines);
    return interleave(abcd, abcd, numbers);
}

template <std::size_t kRows, bool kAdd>
inline void product_tile(const float *left, const float *right, std::size_t depth, float *c, std::size_t c_row) {
    Vector sums[kRows][kTileVectors] = {};
    for (std::size_t m = 0; kAdd && m < kRows; ++m) __builtin_prefetch(c + m * c_row, 1);
    for (std::size_t k = 0; k < depth; k += kQuad) {
        Vector row[kTileVectors];
#pragma GCC unroll 4
        for (std::size_t n = 0; n < kTileVectors; ++n) row[n] = load(right + k * kTileColumns + n * kLanes);
#pragma GCC unroll 16
        for (std::size_t m = 0; m < kRows; ++m) {
            const Vector factor = broadcast_quad(left + k * kTileRows + m * kQuad);
#pragma GCC unroll 4
            for (std::size_t n = 0; n < kTileVectors; ++n) sums[m][n] += factor * row[n];
        }
    }
#pragma GCC unroll 16
    for (std::size_t m = 0; m < kRows; ++m) {
        const Vector row = add_quads(sums[m][0], sums[m][1], sums[m][2], sums[m][3]);
        float *place = c + m * c_row;
        store(place, kAdd ? load(place) + row : row);
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

// kLines lines of the right factor, which lie along the depth, times up to kRows rows of the left one, over one stretch.
// `later` lines, as far apart, come next.
template <std::size_t kRows>
void multiply_lines(std::size_t rows, Matrix a, const float *lines, const float *later, std::size_t distance,
                    std::size_t depth, float *c, std::size_t c_row, bool add) {
    if constexpr (kRows > kLeastLineRows)
        if (rows < kRows) return multiply_lines<kRows - 1>(rows, a, lines, later, distance, depth, c, c_row, add);
    Vector sums[kRows][kLineVectors] = {};
    for (std::size_t k = 0; k < depth; k += kLanes) {
        Vector quads[kLineVectors][kVectorLines];
        for (std::size_t j = 0; j < kLines; ++j) prefetch(later + j * distance + k);
#pragma GCC unroll 4
        for (std::size_t n = 0; n < kLineVectors; ++n) load_quads(lines + n * kVectorLines * distance + k, distance, quads[n]);
#pragma GCC unroll 4
        for (std::size_t j = 0; j < kVectorLines; ++j)
#pragma GCC unroll 8
            for (std::size_t m = 0; m < kRows; ++m) {
                const std::size_t row = kRows > kLeastLineRows ? m : std::min(m, rows - 1);
                const Vector factor = broadcast_quad(a.values + row * a.row + k + j * kQuad);
#pragma GCC unroll 4
                for (std::size_t n = 0; n < kLineVectors; ++n) sums[m][n] += factor * quads[n][j];
            }
    }
#pragma GCC unroll 8
    for (std::size_t m = 0; m < kRows; m += 2) {
        const std::size_t next = std::min(m + 1, kRows - 1);
        const Vector both = add_quads(sums[m][0], sums[m][1], sums[next][0], sums[next][1]);
        const HalfVector halves[] = {first_half(both), second_half(both)};
        for (std::size_t i = m; i < std::min(m + 2, rows); ++i) {
            float *place = c + i * c_row;
            store_half(place, add ? load_half(place) + halves[i - m] : halves[i - m]);
        }
    }
}

// The product with a panel of lines that lie along the depth, none of them packed, nor are the rows. Sums are those of
// `multiply_panels`, to the last bit.
void multiply_unpacked(const ProductPart &part, Matrix a, Matrix b, float *c, std::size_t c_row, bool add) {
    const std::size_t stretch = stretch_of(part.depth);
    const std::size_t groups = (part.rows + kLineRows - 1) / kLineRows, group = (part.rows + groups - 1) / groups;
    for (std::size_t n = 0; n < kTileColumns; n += kLines)
        for (std::size_t k = 0; k < part.depth; k += stretch) {
            const float *lines = b.from(k, n).values, *later = b.from(k, n + kLines).values;
            for (std::size_t m = 0; m < part.rows; m += group)
                multiply_lines<kLineRows>(std::min(group, part.rows - m), a.from(m, k), lines, later, b.column,
                                          std::min(stretch, part.depth - k), c + m * c_row + n, c_row, add || k > 0);
        }
}

void multiply_panels(const ProductPart &part, const float *left, const float *right, float *c, std::size_t c_row,
                     bool add, std::size_t first_row, std::size_t end_row, std::size_t first_column,
                     std::size_t end_column) {
    const std::size_t stretch = stretch_of(part.depth), part_depth = whole_quads(part.depth);
    for (std::size_t k = 0; k < part_depth; k += stretch) {
        const std::size_t depth = std::min(stretch, part_depth - k);
        const bool adds = add || k > 0;
        for (std::size_t block = first_row; block < end_row; block += kBlockRows)
            for (std::size_t n = first_column; n < end_column; n += kTileColumns) {
                const float *b = right + n * part_depth + k * kTileColumns;
                const std::size_t columns = std::min(kTileColumns, part.columns - n);
                for (std::size_t m = block; m < std::min(block + kBlockRows, end_row); m += kTileRows) {
                    const float *a = left + m * part_depth + k * kTileRows;
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
