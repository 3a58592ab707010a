#include "block_kernels.h"

namespace camelid {

const std::vector<InstructionSet> &instruction_sets() {
    static const std::vector<InstructionSet> sets = [] {
        std::vector<InstructionSet> found;
#ifdef CAMELID_X86
        __builtin_cpu_init();
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
            if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
                found.push_back(kAvx512);
            found.push_back(kAvx2);
        }
#endif
        found.push_back(kPortable);
        return found;
    }();
    return sets;
}

}  // namespace camelid
