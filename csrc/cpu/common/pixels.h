// Images in batches.
#pragma once

#include "camguide.h"
#include "parallel.h"

namespace camguide {

// f(i) for every image: one for each thread as long as there are enough, then the threads share each that is left.
template <class F>
void for_each_image(int64_t batch, const F& f) {
  const int64_t shared = batch - batch % static_cast<int64_t>(torch::stable::get_num_threads());
  for_each(shared, f);
  for (int64_t i = shared; i < batch; ++i) f(i);
}

}  // namespace camguide
