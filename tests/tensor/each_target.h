// For tests of kernels/cpu.
#pragma once

#include <doctest/doctest.h>

#include <hwy/targets.h>

namespace parallm::test {

/** run() once for each instruction set that this machine has. */
template <class F>
void for_each_target(const F& run) {
  for (int64_t rest = hwy::SupportedTargets(); rest != 0; rest &= rest - 1) {
    const int64_t target = rest & -rest;
    INFO("target ", hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    run();
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

} // namespace parallm::test
