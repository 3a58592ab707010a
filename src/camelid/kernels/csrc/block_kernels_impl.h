// The loops shared by all instruction sets. Each block_kernels_<set>.cpp includes this file after it has defined, in an
// unnamed namespace (so that no code compiled for one instruction set is ever linked into another):
//
//   struct Lanes                         floats that are worked on together; Lanes::kCount of them
//   Lanes zero(), load(const float *), multiply_add(a, b, c) = a * b + c; float sum(Lanes); void store(float *, Lanes)
//   struct Q8_0, Q4_0, Q4_1              kName, kBytes and decode(const uint8_t *block, Lanes w[kBlockSize / kCount])

constexpr std::size_t kVectors = kBlockSize / Lanes::kCount;
constexpr std::size_t kCacheLine = 64;

inline void prefetch(const std::uint8_t *bytes) {
#if defined(__GNUC__)
    __builtin_prefetch(bytes);
#else
    (void)bytes;
#endif
}

template <class Format>
void unpack(const std::uint8_t *weights, std::size_t columns, std::size_t begin, std::size_t end, float *out) {
    const std::size_t blocks_per_row = columns / kBlockSize;
    for (std::size_t block = begin * blocks_per_row; block < end * blocks_per_row; ++block) {
        Lanes w[kVectors];
        Format::decode(weights + block * Format::kBytes, w);
        for (std::size_t v = 0; v < kVectors; ++v) store(out + block * kBlockSize + v * Lanes::kCount, w[v]);
    }
}

// R rows of weights times T rows of activations. Every pair of rows has two accumulators of its own, for the even and
// the odd vectors, so its sum does not depend on R and T; R * T * 2 accumulators hide the latency of the additions.
template <class Format, std::size_t R, std::size_t T>
void multiply_tile(const float *x, const std::uint8_t *weights, std::size_t rows, std::size_t columns, float *out) {
    const std::size_t row_bytes = columns / kBlockSize * Format::kBytes;
    Lanes sums[R][T][2];
    for (std::size_t r = 0; r < R; ++r)
        for (std::size_t t = 0; t < T; ++t) sums[r][t][0] = sums[r][t][1] = zero();

    // Rows are too short for the processor to guess what comes next: while this tile is worked on, the next one is
    // fetched, which for weights in memory is up to four times as fast (benchmarks/packed_matvec.py, q8_0).
    const std::uint8_t *next_tile = weights + R * row_bytes;
    for (std::size_t block = 0; block < columns / kBlockSize; ++block) {
        const std::uint8_t *ahead = next_tile + block * R * Format::kBytes;
        for (std::size_t i = 0; i < R * Format::kBytes; i += kCacheLine) prefetch(ahead + i);
        for (std::size_t r = 0; r < R; ++r) {
            Lanes w[kVectors];
            Format::decode(weights + r * row_bytes + block * Format::kBytes, w);
            for (std::size_t t = 0; t < T; ++t) {
                const float *xs = x + t * columns + block * kBlockSize;
                for (std::size_t v = 0; v < kVectors; ++v)
                    sums[r][t][v % 2] = multiply_add(w[v], load(xs + v * Lanes::kCount), sums[r][t][v % 2]);
            }
        }
    }
    for (std::size_t r = 0; r < R; ++r)
        for (std::size_t t = 0; t < T; ++t) out[t * rows + r] = sum(sums[r][t][0]) + sum(sums[r][t][1]);
}

template <class Format, std::size_t R, std::size_t T>
void multiply_rows(const float *x, const std::uint8_t *weights, std::size_t rows, std::size_t columns,
                   std::size_t begin, std::size_t end, float *out) {
    const std::size_t row_bytes = columns / kBlockSize * Format::kBytes;
    std::size_t row = begin;
    for (; row + R <= end; row += R)
        multiply_tile<Format, R, T>(x, weights + row * row_bytes, rows, columns, out + row);
    for (; row < end; ++row) multiply_tile<Format, 1, T>(x, weights + row * row_bytes, rows, columns, out + row);
}

template <class Format>
void matmul(const float *x, std::size_t batch, const std::uint8_t *weights, std::size_t rows, std::size_t columns,
            std::size_t begin, std::size_t end, float *out) {
    // A strip of weights stays in the first-level cache while all activations pass over it.
    constexpr std::size_t kStrip = 8;
    for (std::size_t first = begin; first < end; first += kStrip) {
        const std::size_t last = first + kStrip < end ? first + kStrip : end;
        for (std::size_t t = 0; t < batch; t += 4) {
            const float *xs = x + t * columns;
            float *outs = out + t * rows;
            switch (batch - t) {
                case 1: multiply_rows<Format, 4, 1>(xs, weights, rows, columns, first, last, outs); break;
                case 2: multiply_rows<Format, 2, 2>(xs, weights, rows, columns, first, last, outs); break;
                case 3: multiply_rows<Format, 1, 3>(xs, weights, rows, columns, first, last, outs); break;
                default: multiply_rows<Format, 1, 4>(xs, weights, rows, columns, first, last, outs); break;
            }
        }
    }
}

template <class Format>
constexpr BlockKernels kernels_of() {
    return {Format::kName, Format::kBytes, unpack<Format>, matmul<Format>};
}

constexpr BlockKernels kKernels[] = {kernels_of<Q8_0>(), kernels_of<Q4_0>(), kernels_of<Q4_1>()};
