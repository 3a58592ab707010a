// The Python module camelid.kernels._native. Tensors arrive as addresses: the modules of camelid/kernels, its only
// callers, check type, shape and contiguity first. (Exchanging a torch tensor by DLPack costs microseconds, and a decoding
// step makes hundreds of calls.)

#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "block_kernels.h"
#include "elementwise.h"
#include "float_calls.h"
#include "stack.h"
#include "thread_pool.h"

namespace nb = nanobind;

namespace camelid {
namespace {

const BlockKernels &find(const std::string &format, const std::string &set_name) {
    for (const InstructionSet &set : instruction_sets())
        if (set_name == set.name)
            for (std::size_t i = 0; i < set.num_kernels; ++i)
                if (format == set.kernels[i].format) return set.kernels[i];
    throw nb::key_error((format + " on " + set_name).c_str());
}

std::vector<std::string> names_of_instruction_sets() {
    std::vector<std::string> names;
    for (const InstructionSet &set : instruction_sets()) names.emplace_back(set.name);
    return names;
}

std::map<std::string, std::size_t> block_bytes_of_formats() {
    std::map<std::string, std::size_t> formats;
    for (std::size_t i = 0; i < kPortable.num_kernels; ++i)
        formats[kPortable.kernels[i].format] = kPortable.kernels[i].block_bytes;
    return formats;
}

std::size_t rows_per_piece(const BlockKernels &kernels, std::size_t columns) {
    const std::size_t row_bytes = columns / kBlockSize * kernels.block_bytes;
    return (std::max<std::size_t>(kBytesPerPiece / std::max<std::size_t>(row_bytes, 1), 1) + 7) / 8 * 8;
}

void unpack(const std::string &format, const std::string &set, std::uintptr_t weights, std::uintptr_t out,
            std::size_t rows, std::size_t columns, std::size_t num_threads) {
    const BlockKernels &kernels = find(format, set);
    ThreadPool::instance().run(rows, rows_per_piece(kernels, columns), num_threads, [&](std::size_t begin, std::size_t end) {
        kernels.unpack(reinterpret_cast<const std::uint8_t *>(weights), columns, begin, end,
                       reinterpret_cast<float *>(out));
    });
}

void matmul(const std::string &format, const std::string &set, std::uintptr_t x, std::uintptr_t weights,
            std::uintptr_t out, std::size_t batch, std::size_t rows, std::size_t columns, std::size_t num_threads) {
    const BlockKernels &kernels = find(format, set);
    ThreadPool::instance().run(rows, rows_per_piece(kernels, columns), num_threads, [&](std::size_t begin, std::size_t end) {
        kernels.matmul(reinterpret_cast<const float *>(x), batch, reinterpret_cast<const std::uint8_t *>(weights), rows,
                       columns, begin, end, reinterpret_cast<float *>(out));
    });
}

}  // namespace
}  // namespace camelid

NB_MODULE(_native, module) {
    module.def("instruction_sets", &camelid::names_of_instruction_sets);
    module.def("formats", &camelid::block_bytes_of_formats);
    module.def("unpack", &camelid::unpack, nb::call_guard<nb::gil_scoped_release>());
    module.def("matmul", &camelid::matmul, nb::call_guard<nb::gil_scoped_release>());
    module.def("attention_dim_factors", &camelid::attention_dim_factors);
    module.def("attention", &camelid::attention, nb::call_guard<nb::gil_scoped_release>());
    module.def("attention_gradients", &camelid::attention_gradients, nb::call_guard<nb::gil_scoped_release>());
    module.def("store_rows", &camelid::store_rows, nb::call_guard<nb::gil_scoped_release>());
    module.def("paged_attention", &camelid::paged_attention, nb::call_guard<nb::gil_scoped_release>());
    module.attr("norm_rows") = camelid::kNormRows;
    module.def("rms_norm", &camelid::rms_norm, nb::call_guard<nb::gil_scoped_release>());
    module.def("rms_norm_gradients", &camelid::rms_norm_gradients, nb::call_guard<nb::gil_scoped_release>());
    module.def("swiglu", &camelid::swiglu, nb::call_guard<nb::gil_scoped_release>());
    module.def("swiglu_gradients", &camelid::swiglu_gradients, nb::call_guard<nb::gil_scoped_release>());
    module.def("rotate", &camelid::rotate, nb::call_guard<nb::gil_scoped_release>());
    module.def("softmax_shares", &camelid::softmax_shares, nb::call_guard<nb::gil_scoped_release>());
    module.def("greatest", &camelid::greatest, nb::call_guard<nb::gil_scoped_release>());
    module.def("product", &camelid::product, nb::call_guard<nb::gil_scoped_release>());
    module.def("transformer_stack", &camelid::transformer_stack, nb::call_guard<nb::gil_scoped_release>());
    module.def("gated_product", &camelid::gated_product, nb::call_guard<nb::gil_scoped_release>());
}
