// Included before Highway: the instruction sets that kernels are compiled for.
// Vectors of run-time length (SVE) can't be held in arrays, as the register
// tiles do, and such machines have NEON; SSSE3 alone is not worth its code.
#pragma once

#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
