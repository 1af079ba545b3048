// Included before Highway: the instruction sets that kernels are compiled for.
// Vectors of run-time length (SVE) can't be held in arrays, as the register
// tiles do, and such machines have NEON; x86 machines without AVX2 are too old
// to be worth a third copy of the code, and run the scalar one.
#pragma once

#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
